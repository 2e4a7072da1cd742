"""What benchmarks/speed measures, in counts instead of seconds, against a stored baseline; and that its sides do the same work."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unipg.estimator import projection
from unipg.policies import packing
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.policies.decoding import proof_of
from unipg.rollouts import conversations, generation

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
BASELINE = json.loads((SPEED / "baseline.json").read_text(encoding="utf-8"))
TINY = {"hidden": 32, "layers": 2, "heads": 2, "vocabulary": 40, "prompts": 5, "rollouts": 4, "prompt_tokens": 24, "mean_tokens": 6}
SKEWED = {**TINY, "longest": 24, "skewed": True}


@pytest.fixture(scope="module")
def script() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of benchmarks/speed as the scripts themselves do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPEED))
        yield importlib.import_module


@pytest.fixture
def order(script, tmp_path, monkeypatch) -> Callable[..., Any]:
    """Orders to a side, with weights; what sides change in the library is put back afterwards."""
    monkeypatch.setattr(conversations, "sample", conversations.sample)
    monkeypatch.setattr(generation.ContinuousBatch, "_draw", generation.ContinuousBatch._draw)
    monkeypatch.setattr(packing, "plan", packing.plan)
    work = script("work")

    def made(setting: dict[str, Any] | None = None, proof: str = "", **sizes: Any) -> Any:
        wanted = work.Work("tiny", "", "", **sizes)
        if not (tmp_path / "config.json").is_file():
            work.build(wanted, tmp_path)
        return work.Order(wanted, str(tmp_path), setting or {}, proof)

    return made


def near(name: str, found: float) -> None:
    """Within the baseline's tolerance. Where a number fell for good, put the new one into benchmarks/speed/baseline.json."""
    stored = BASELINE["counts"][name]
    assert abs(found - stored) <= BASELINE["tolerance"] * stored, f"{name}: {found}, stored {stored}"


class Counts:
    """Tokens that a model was called on, and calls."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.tokens = self.calls = 0
        module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.tokens += (named["input_ids"] if "input_ids" in named else arguments[0]).numel()
        self.calls += 1


def test_tokens_through_the_layers(script, order, monkeypatch) -> None:
    """Padded, packed, and with prompts shared; the plan is the cheapest of them."""
    ours, asked = script("our_side"), order(**SKEWED)
    model, tokenizer = script("work").load(asked.work, Path(asked.folder))
    policy = CausalLanguageModel(model, tokenizer)
    batch = ours.given_batch(asked.work, tokenizer)
    none = torch.zeros(len(batch), dtype=torch.long)
    counts = Counts(model.model)
    found = {}
    plans = {
        "padded": lambda b, hidden: None,
        "packed": lambda b, hidden: packing.layout_of(b, none),
        "shared": lambda b, hidden: packing.layout_of(b, packing.shared_prefixes(b)),
        "planned": packing.plan,
    }
    for name, plan in plans.items():
        monkeypatch.setattr(packing, "plan", plan)
        counts.tokens = 0
        policy.evaluate(batch)
        near(f"tokens, {name}", counts.tokens)
        found[name] = counts.tokens
    lengths = asked.work.lengths()
    assert found["padded"] == 20 * (24 + 24 - 1)
    assert found["packed"] == sum(lengths) + 20 * (24 - 1)
    assert found["shared"] == sum(lengths) - 20 + 5 * 24
    assert found["planned"] == min(found.values())


@pytest.mark.parametrize(("kl", "name"), [(0.0, "tokens, 60 % dead"), (0.04, "tokens, 60 % dead, KL term")])
def test_rows_without_advantage_are_not_computed(script, order, tmp_path, kl, name) -> None:
    """Three of five groups are left out of the forward pass; with a KL term none is."""
    asked = order({"kl": kl}, proof="weights.pt", measured="update", dead=3, **SKEWED)
    trainer = script("our_side").trainer_for(asked, tmp_path / "run", None)
    counts = Counts(trainer.policy.model.model)
    trainer.train()
    near(name, counts.tokens)
    lengths = asked.work.lengths()
    alive = sum(n - 1 for n in (lengths if kl else lengths[12:]))
    assert counts.tokens == alive + 24 * (5 if kl else 2)


def test_decode_steps(script, order) -> None:
    """Prompts are prefilled once for a group, and finished rows make room."""
    asked = order(**{**SKEWED, "prompts": 16, "slots": 8})
    script("our_side").force_lengths(asked.work)
    model, tokenizer = script("work").load(asked.work, Path(asked.folder))
    proof_of(model)  # once for an architecture, and not counted
    counts = Counts(model.eval())
    asked_for = [tokenizer.encode(text) for text in asked.work.prompt_texts]
    answers = generation.sample(model, asked_for, rollouts=4, max_new_tokens=24, end_tokens=[1], pad_token=0, batch_rows=8)
    assert [len(c.tokens) for group in answers for c in group] == asked.work.lengths()
    near("tokens, generation", counts.tokens)
    near("forward passes, generation", counts.calls)
    fixed_batches = sum(max(asked.work.lengths()[i : i + 8]) for i in range(0, 64, 8))
    assert counts.calls < fixed_batches


def test_logits(script, order, monkeypatch) -> None:
    """Only positions of the policy are projected; logits are formed again in the backward pass where they are not kept."""
    ours, asked = script("our_side"), order(**SKEWED)
    model, tokenizer = script("work").load(asked.work, Path(asked.folder))
    policy = CausalLanguageModel(model, tokenizer)
    batch = ours.given_batch(asked.work, tokenizer)
    formed, logits = [0], projection._logits

    def counted(*arguments: Any) -> torch.Tensor:
        out = logits(*arguments)
        formed[0] += out.numel()
        return out

    monkeypatch.setattr(projection, "_logits", counted)
    for name, kept in (("logits, kept", 1 << 22), ("logits, formed again", 0)):
        monkeypatch.setattr(projection, "KEPT_ELEMENTS", kept)
        formed[0] = 0
        policy.evaluate(batch).log_prob.sum().backward()
        near(name, formed[0])
        assert formed[0] == int(batch.mask.sum()) * 40 * (1 if kept else 2)


@pytest.mark.parametrize("dead", [0, 3])
def test_one_step_equals_that_of_the_plain_loop(script, order, tmp_path, dead) -> None:
    asked = order({"micro_batch_tokens": 100}, proof=str(tmp_path / "ours.pt"), dead=dead, **SKEWED)
    script("our_side").side(asked, None)
    script("plain_loop").side(order({"rows": 5}, proof=str(tmp_path / "plain.pt"), dead=dead, **SKEWED), None)
    ours, plain = torch.load(tmp_path / "ours.pt"), torch.load(tmp_path / "plain.pt")
    before = script("work").load(asked.work, Path(asked.folder))[0].state_dict()
    largest = max(float(v.abs().max()) for v in before.values())
    assert max(float((ours[n] - v).abs().max()) for n, v in before.items()) > 1e-3 * largest
    assert max(float((ours[n] - plain[n]).abs().max()) for n in before) <= 1e-6 * largest


def test_the_page_is_what_was_measured(script, tmp_path) -> None:
    page = script("page")
    results = page.RESULTS
    names = ("language", "control", "gpu", "overlap", "control-hopper", "replay", "offline")
    language, control, *more = (page.read(results / f"speed-{name}.json") for name in names)
    found = page.page(language, control, tmp_path, *more)
    assert (page.ROOT / "docs" / "speed.md").read_text(encoding="utf-8") == found, "run: python benchmarks/speed/page.py"


@pytest.mark.parametrize(("name", "case"), [("offline", "iql-64"), ("replay", "dqn")])
def test_sides_take_turns(script, monkeypatch, name, case) -> None:
    """Each turn of ours beside that of the bare loop which was next to it; without the peer, which has an environment of its own."""
    monkeypatch.delitem(sys.modules, "offline", raising=False)  # that of tests/support
    benchmark = getattr(script(name), name.upper())
    found = script("turns").measured(benchmark, case, None, 2, 120)
    assert set(found) == {"ours", "bare"}
    assert 0 < found["bare"]["ratio"]["min"] <= found["bare"]["ratio"]["max"]
    made = {"command": "", "commit": "", "written": "", "machine": {"cpu": "", "cores": 1}, "repeats": 2, "load": 0.0, "versions": {}}
    told = script("page").taken_in_turns("", {**made, "unit": benchmark.unit, "needs": benchmark.needs, "cases": {case: found}})
    assert any(line.startswith(f"| {case} |") and "| – | – | – | – |" in line for line in told)


def test_the_gpu_measurements_run_on_a_tiny_model_and_are_equal(script, tmp_path, capsys) -> None:
    output = tmp_path / "gpu.json"
    assert script("gpu").main(["--quick", "--output", str(output)]) == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    differences = [row["gradient_difference"] for name in ("projection", "update") for row in result[name]]
    differences += [value for name in ("packed", "shared") for row in result[name] for value in row["differences"].values()]
    assert len(differences) == 3 + 2 + 4
    assert max(differences) <= 2e-6
    assert result["sampler"][0]["log_prob_difference"] <= 1e-5
    lines = script("page").gpu(result)
    assert {"### Projection", "### Packed", "### Shared", "### Sampler", "### Update"} <= set(lines)
    assert script("gpu").main(["--quick", "--only", "speed"]) == 2


def test_a_missing_peer_is_said_in_one_line(script, capsys) -> None:
    assert script("language").peers_python("/nowhere/python") is None
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "/nowhere/python" in told
