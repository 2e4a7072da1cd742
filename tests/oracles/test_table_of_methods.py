"""Closed forms of the methods that the table has beside HPT: RLOO, REINFORCE, REINFORCE++, DAPO, PPO, CISPO, GSPO, LUFFY, SRFT."""

import math

import pytest
import torch

from unipg import BySuccess, Evaluation, Outcome, Planning, Source, Trajectories
from unipg.algorithms import Setting, registered


def rows(rewards: list[float], steps: int = 2, **fields) -> Trajectories:
    """One group, every row of `steps` tokens."""
    count = len(rewards)
    return Trajectories(
        action=torch.zeros(count, steps, dtype=torch.long),
        mask=torch.ones(count, steps, dtype=torch.bool),
        group=torch.zeros(count, dtype=torch.long),
        reward=torch.tensor(rewards, dtype=torch.float64),
        **fields,
    )


def coefficients(name: str, batch: Trajectories, log_prob: torch.Tensor, entropy: float = 0.0, **settings) -> torch.Tensor:
    """[B,T] what multiplies ∇log pi, aggregate included."""
    algorithm = registered()[name](**settings)
    setting = Setting(max_new_tokens=batch.mask.shape[1])
    leaf = log_prob.clone().requires_grad_()
    ready = algorithm.prepare(batch, setting, Planning())
    now = Evaluation(leaf, torch.full_like(leaf, entropy), torch.zeros_like(leaf))
    (gradient,) = torch.autograd.grad(algorithm.terms(setting)(now, ready), leaf)
    return -gradient


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    found = coefficients("rloo", rows([1.0, 0.0, 0.5]), torch.full((3, 2), -1.0, dtype=torch.float64))
    expected = torch.tensor([1.0 - 0.25, 0.0 - 0.75, 0.5 - 0.5], dtype=torch.float64) / 3
    torch.testing.assert_close(found, expected.unsqueeze(1).expand(3, 2))


@pytest.mark.parametrize(
    ("settings", "expected"), [({}, [1.0, -1.0]), ({"signed": False}, [0.7, 0.0]), ({"signed": False, "baseline": 0.2}, [0.5, -0.2])]
)
def test_reinforce(settings, expected) -> None:
    found = coefficients("reinforce", rows([0.7, 0.0]), torch.full((2, 2), -1.0, dtype=torch.float64), **settings)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).unsqueeze(1).expand(2, 2) / 2)


def test_reinforce_in_environments_takes_the_return_itself() -> None:
    """Returns of CartPole are all above 0: their sign says nothing."""
    parts = registered()["reinforce"]()
    assert parts.terms(Setting(acts=True)).terms[0].advantage == Outcome(0.0)
    assert parts.terms(Setting()).terms[0].advantage == BySuccess()


def test_reinforce_plus_plus_whitens_over_the_batch() -> None:
    old = torch.full((2, 2), -1.0, dtype=torch.float64)
    found = coefficients("reinforce_plus_plus", rows([1.0, 0.0], old_log_prob=old), old)
    std = math.sqrt(4 * 0.25 / 3)  # four tokens of ±0.5, unbiased
    torch.testing.assert_close(found, torch.tensor([[0.5], [-0.5]], dtype=torch.float64).expand(2, 2) / std / 4, rtol=1e-7, atol=0)


def test_dapo_punishes_length_softly() -> None:
    """Limit 10, buffer 4: no penalty up to 6 tokens, then linearly to −1 at 10."""
    mask = torch.arange(12) < torch.tensor([[5], [6], [8], [10], [12]])
    batch = Trajectories(action=mask.long(), mask=mask, reward=torch.zeros(5))
    ready = registered()["dapo"](overlong_buffer=4).prepare(batch, Setting(10), Planning())
    assert ready.reward.tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_dapo_keeps_groups_with_a_signal() -> None:
    batch = rows([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]).replace(group=torch.tensor([0, 0, 1, 1, 2, 2]))
    assert registered()["dapo"]().keep(batch).group.tolist() == [1, 1]
    assert len(registered()["dapo"](dynamic_sampling=False).keep(batch)) == 6


def test_the_clips_of_ppo_and_dapo_differ_above() -> None:
    old = torch.zeros(2, 2, dtype=torch.float64)
    log_prob = torch.full((2, 2), math.log(1.25), dtype=torch.float64)
    batch = rows([1.0, 0.0], old_log_prob=old)
    assert (coefficients("grpo", batch, log_prob)[0] == 0).all()
    a = 0.5 / (math.sqrt(0.5) + 1e-6)
    found = coefficients("dapo", batch, log_prob, overlong_factor=0.0)
    torch.testing.assert_close(found, torch.tensor([[1.25 * a], [-1.25 * a]], dtype=torch.float64).expand(2, 2) / 4)


def test_cispo_truncates_the_weight_and_keeps_the_token() -> None:
    batch = rows([1.0, 0.0], old_log_prob=torch.zeros(2, 2, dtype=torch.float64))
    log_prob = torch.tensor([[math.log(2.0), 0.0], [math.log(2.0), math.log(0.5)]], dtype=torch.float64)
    a = 0.5 / (math.sqrt(0.5) + 1e-6)
    expected = torch.tensor([[1.28 * a, a], [-1.28 * a, -0.5 * a]], dtype=torch.float64) / 4
    torch.testing.assert_close(coefficients("cispo", batch, log_prob), expected)
    masked = coefficients("cispo_masked", batch, log_prob)
    torch.testing.assert_close(masked, torch.tensor([[0.0, a], [-2 * a, -0.5 * a]], dtype=torch.float64) / 4)


def test_gspo_clips_whole_rows() -> None:
    batch = rows([1.0, 0.0], old_log_prob=torch.zeros(2, 2, dtype=torch.float64))
    log_prob = torch.tensor([[0.1, 0.1], [0.1, -0.1]], dtype=torch.float64)  # s = e^0.1, blocked above; s = 1
    a = 0.5 / (math.sqrt(0.5) + 1e-6)
    torch.testing.assert_close(coefficients("gspo", batch, log_prob), torch.tensor([[0.0, 0.0], [-a, -a]], dtype=torch.float64) / 4)


def with_demonstration() -> tuple[Trajectories, torch.Tensor]:
    source = torch.tensor([int(Source.ROLLOUT)] * 2 + [int(Source.DEMONSTRATION)])
    batch = rows([1.0, 0.0, 1.0], source=source, old_log_prob=torch.full((3, 2), math.log(0.4), dtype=torch.float64))
    return batch, torch.full((3, 2), math.log(0.4), dtype=torch.float64)


def test_luffy_by_hand() -> None:
    """Mean over the union 2/3; demonstrations: Â · f'(p) · p with f'(p) = 0.1 / (p + 0.1)²."""
    batch, log_prob = with_demonstration()
    found = coefficients("luffy", batch, log_prob, entropy=0.0)
    shaped = 0.1 / 0.5**2 * 0.4
    expected = torch.tensor([[1 / 3], [-2 / 3], [1 / 3 * shaped]], dtype=torch.float64).expand(3, 2) / (2 * 3)
    torch.testing.assert_close(found, expected)


def test_srft_by_hand() -> None:
    """Rollouts +0.1·e^H and −1; the demonstration: Â · p, and 0.5·e^−H as SFT."""
    batch, log_prob = with_demonstration()
    h = 0.7
    found = coefficients("srft", batch, log_prob, entropy=h)
    reinforced = torch.tensor([[0.1 * math.exp(h)], [-1.0], [1 / 3 * 0.4]], dtype=torch.float64).expand(3, 2) / (2 * 3)
    supervised = torch.tensor([[0.0], [0.0], [0.5 * math.exp(-h)]], dtype=torch.float64).expand(3, 2) / 2
    torch.testing.assert_close(found, reinforced + supervised)


def test_ppo_with_a_terminal_reward() -> None:
    """gamma = 1, lam = 1, V = 0: every token has Â = R; a value of 0.25 subtracts itself."""
    old = torch.zeros(2, 2, dtype=torch.float64)
    batch = rows([1.0, 0.0], old_log_prob=old, value=torch.full((2, 2), 0.25, dtype=torch.float64))
    found = coefficients("ppo", batch, old, lam=1.0, normalize_advantage=False)
    torch.testing.assert_close(found, torch.tensor([[0.75], [-0.25]], dtype=torch.float64).expand(2, 2) / 4)


@pytest.mark.parametrize("name", ["sft", "dft", "dr_grpo"])
def test_plain_rows_of_the_table(name) -> None:
    batch, log_prob = with_demonstration()
    found = coefficients(name, batch, log_prob)
    expected = {
        "sft": [0.0, 0.0, 1 / 2],
        "dft": [0.0, 0.0, 0.4 / 2],
        "dr_grpo": [0.5 / 4, -0.5 / 4, 0.0],
    }[name]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).unsqueeze(1).expand(3, 2))
