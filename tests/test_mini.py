"""The teaching version has the library's gradients."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from unipg import Evaluation, Planning, Source, Trajectories
from unipg.algorithms import Setting, registered

PATH = Path(__file__).parent.parent / "examples" / "mini_unipg.py"


@pytest.fixture(scope="module")
def mini():
    spec = importlib.util.spec_from_file_location("mini_unipg", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mini_unipg"] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_needs_torch_only() -> None:
    text = PATH.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    imports = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= {"torch", "__future__", "sys", "collections", "dataclasses"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("SFT", registered()["sft"]()),
        ("DFT", registered()["dft"]()),
        ("GRPO", registered()["grpo"]()),
        ("DR_GRPO", registered()["dr_grpo"]()),
        ("HPT", registered()["hpt"](entropy=0.0)),
    ],
)
def test_same_gradient(mini, ours, theirs, seed) -> None:
    rng = torch.Generator().manual_seed(seed)
    groups, rollouts, steps = 4, 5, 6
    rows = groups * (rollouts + 1)
    log_prob = (-3 * torch.rand(rows, steps, generator=rng, dtype=torch.float64)).requires_grad_()
    old = log_prob.detach() + 0.3 * torch.randn(rows, steps, generator=rng, dtype=torch.float64)
    mask = torch.rand(rows, steps, generator=rng) < 0.7
    old[~mask] = float("nan")
    group = torch.arange(groups).repeat(rollouts + 1)
    demonstration = torch.arange(rows) >= groups * rollouts
    reward = torch.randint(0, 2, (rows,), generator=rng).double()
    reward[group == 0] = 0.0  # a prompt that never succeeds
    batch = mini.Batch(torch.zeros(rows, steps, dtype=torch.long), mask, group, reward, demonstration, old)
    if ours == "HPT":
        batch = mini.gate(batch)
    (small,) = torch.autograd.grad(mini.total_loss(getattr(mini, ours), log_prob, batch), log_prob)
    carrier = Trajectories(
        action=torch.zeros(rows, steps, dtype=torch.long),
        mask=mask,
        group=group,
        reward=reward,
        old_log_prob=old,
        source=torch.where(demonstration, int(Source.DEMONSTRATION), int(Source.ROLLOUT)),
    )
    setting = Setting(max_new_tokens=mini.LIMIT)
    (large,) = torch.autograd.grad(theirs.terms(setting)(Evaluation(log_prob), theirs.prepare(carrier, setting, Planning())), log_prob)
    assert large.norm() > 1e-3
    torch.testing.assert_close(small, large, rtol=0, atol=1e-12)


def test_it_learns_what_it_says(mini) -> None:
    results = mini.main(steps=250)
    assert results["HPT"][0] > results["SFT"][0] + 0.1
    assert results["HPT"][0] > results["GRPO"][0] + 0.3
