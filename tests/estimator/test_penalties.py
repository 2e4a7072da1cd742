"""KL estimates, entropy and value losses against closed forms."""

import math

import pytest
import torch

from unipg import (
    EntropyBonus,
    Evaluation,
    GroupCentered,
    InputError,
    KLPenalty,
    Outcome,
    PolicyGradient,
    Trajectories,
    ValueLoss,
    kl_estimate,
    kl_in_reward,
)


def batch(**fields) -> Trajectories:
    return Trajectories(action=torch.zeros(1, 2, dtype=torch.long), mask=torch.ones(1, 2, dtype=torch.bool), **fields)


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_estimates_by_hand(estimator, value) -> None:
    found = kl_estimate(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64), estimator)
    assert float(found) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(("estimator", "expected"), [("k1", True), ("k3", True), ("k2", False)])
def test_which_estimates_have_the_expected_value_of_the_kl(estimator, expected) -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = float((p * (p.log() - q.log())).sum())
    assert (float((p * kl_estimate(p.log(), q.log(), estimator)).sum()) == pytest.approx(exact, abs=1e-12)) == expected


def test_the_gradient_of_k2_is_that_of_the_kl_on_policy_and_that_of_k3_is_not() -> None:
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits)[0]

    def log_p() -> torch.Tensor:
        return logits.log_softmax(0)

    exact = gradient((log_p().exp() * (log_p() - q)).sum())
    weights = log_p().exp().detach()
    torch.testing.assert_close(gradient((weights * kl_estimate(log_p(), q, "k2")).sum()), exact, rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient((weights * kl_estimate(log_p(), q, "k3")).sum()), gradient(-(q.exp() * log_p()).sum()))
    assert gradient((weights * kl_estimate(log_p(), q, "k1")).sum()).abs().max() < 1e-14  # no anchor in it, and zero on average


def test_k3_stays_finite_and_keeps_pulling() -> None:
    log_prob = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    loss = KLPenalty()(Evaluation(log_prob), batch(anchor_log_prob=torch.tensor([[89.0, -1.5]])))
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert torch.isfinite(loss)
    assert gradient[0, 0] == pytest.approx(-0.5 * math.exp(20), rel=1e-5)
    assert gradient[0, 1] == pytest.approx(0.5 * (1 - math.exp(-0.5)), rel=1e-5)


def test_k1_cannot_be_chosen_as_a_loss() -> None:
    with pytest.raises((InputError, TypeError), match="k1"):  # the type checker of the tests may be the first to refuse
        KLPenalty(estimator="k1")  # type: ignore[arg-type]


def test_kl_in_the_reward() -> None:
    before = batch(old_log_prob=torch.tensor([[-1.0, -2.0]]), anchor_log_prob=torch.tensor([[-1.5, -1.0]]), reward=torch.tensor([1.0]))
    after = kl_in_reward(before, 0.1)
    torch.testing.assert_close(after.step_reward, torch.tensor([[-0.05, 0.1]]))
    assert float(after.total_reward()) == pytest.approx(1.05)


def test_the_entropy_bonus_raises_entropy() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    one = Trajectories(action=torch.zeros(2, 1, dtype=torch.long), mask=torch.ones(2, 1, dtype=torch.bool))
    loss = (0.1 * EntropyBonus())(Evaluation(log_p[..., 0], entropy), one)
    assert float(loss.detach()) == pytest.approx(-0.1 * float(entropy.mean().detach()))


def test_a_reward_that_is_not_finite_is_refused_by_its_row() -> None:
    with pytest.raises(InputError, match="the reward of row 0 is nan"):
        PolicyGradient(advantage=GroupCentered())(Evaluation(torch.zeros(1, 2)), batch(reward=torch.tensor([math.nan])))


def test_constants_are_exact_in_double_precision() -> None:
    from unipg import Constant, SequenceMeanTokenSum

    log_prob = torch.full((1, 2), -1.5, dtype=torch.float64)
    loss = PolicyGradient(advantage=Constant(0.1), aggregate=SequenceMeanTokenSum())(Evaluation(log_prob), batch())
    assert float(loss) == 0.1 * 1.5 * 2
    assert float(PolicyGradient(advantage=0.5 * Outcome())(Evaluation(log_prob), batch(reward=torch.ones(1, dtype=torch.float64)))) == 0.75


@pytest.mark.parametrize("clip", [-1.0, 0.0, float("nan")])
def test_a_value_clip_must_be_above_0(clip) -> None:
    with pytest.raises(InputError, match=r"ValueLoss.clip is .*; accepted: above 0, or null"):
        ValueLoss(clip=clip)
