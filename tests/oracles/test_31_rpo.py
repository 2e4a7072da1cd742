"""Oracles of regularised preference optimisation (RPO)."""

import math

import pytest
import torch

from unipg import Evaluation, Planning, Source, Trajectories
from unipg.algorithms import Setting, registered
from unipg.algorithms.preferences.rpo import from_eta
from unipg.errors import InputError

RPO, DPO = registered()["regularized_preference_optimization"], registered()["dpo"]
CHOSEN, REJECTED = 0, 1


def pair(anchor: tuple[float, float] = (-3.2, -3.5), lengths: tuple[int, int] = (1, 1), pairs: int = 1) -> Trajectories:
    """Pairs whose anchor log-probability is spread evenly over the tokens of each completion."""
    steps = torch.arange(max(lengths))
    mask = torch.stack([steps < lengths[row % 2] for row in range(2 * pairs)])
    per_token = torch.tensor([anchor[row % 2] / max(1, lengths[row % 2]) for row in range(2 * pairs)], dtype=torch.float64)
    return Trajectories(
        action=torch.zeros(mask.shape, dtype=torch.long),
        mask=mask,
        group=torch.arange(pairs).repeat_interleave(2),
        source=torch.full((2 * pairs,), int(Source.PREFERENCE)),
        reward=torch.tensor([1.0, 0.0] * pairs, dtype=torch.float64),
        anchor_log_prob=torch.where(mask, per_token.unsqueeze(1), 0),
    )


def coefficients(algorithm, batch: Trajectories, log_prob: torch.Tensor) -> torch.Tensor:
    """[B,T] what multiplies ∇log pi."""
    leaf = log_prob.clone().requires_grad_()
    ready = algorithm.prepare(batch, Setting(batch.mask.shape[1]), Planning())
    (gradient,) = torch.autograd.grad(algorithm.terms(Setting(batch.mask.shape[1]))(Evaluation(leaf), ready), leaf)
    return -gradient


def values(*log_probs: float) -> torch.Tensor:
    return torch.tensor(log_probs, dtype=torch.float64).unsqueeze(1)


def written_out(log_prob: torch.Tensor, batch: Trajectories, beta: float, eta: float) -> torch.Tensor:
    """The paper's loss, for autograd."""
    rho = torch.where(batch.mask, log_prob - batch.anchor_log_prob, 0).sum(1)
    z = beta * (rho[0::2] - rho[1::2])
    sft = torch.where(batch.mask, log_prob, 0).sum(1)[0::2]
    return (-torch.nn.functional.logsigmoid(z) - eta * beta * sft).mean()


def test_r1_by_hand() -> None:
    found = coefficients(RPO(beta=0.1, eta=0.5), pair(), values(-3, -4)).squeeze(1)
    torch.testing.assert_close(found, torch.tensor([0.0982507, -0.0482507], dtype=torch.float64), rtol=0, atol=5e-8)
    log_prob = values(-3, -4)
    assert written_out(log_prob, pair(), 0.1, 0.0).item() == pytest.approx(0.658760, abs=5e-7)
    assert written_out(log_prob, pair(), 0.1, 0.5).item() == pytest.approx(0.808760, abs=5e-7)


def test_r1_the_reported_loss_and_margin() -> None:
    batch = DPO(beta=0.1).prepare(pair(), Setting(1), Planning())
    facts = DPO(beta=0.1).preference().facts(batch, Evaluation(values(-3, -4)))
    assert facts["loss"][CHOSEN].item() == pytest.approx(0.658760, abs=5e-7)
    assert facts["margin"][CHOSEN].item() == pytest.approx(0.07, abs=1e-12)
    assert facts["accuracy"][CHOSEN].item() == 1.0
    assert facts["margin"][REJECTED].isnan()
    assert (facts["log_prob_chosen"][CHOSEN].item(), facts["log_prob_rejected"][REJECTED].item()) == (-3.0, -4.0)


@pytest.mark.parametrize("eta", [0.0, 5e-7])
def test_r2_without_the_regulariser_it_is_dpo(eta: float) -> None:
    log_prob = values(-3.0, -4.0, -2.0, -2.5)
    batch = pair(pairs=2)
    assert torch.equal(coefficients(RPO(beta=0.1, eta=eta), batch, log_prob), coefficients(DPO(beta=0.1), batch, log_prob))


def test_r3_beta_alone_changes_no_direction_and_eta_does() -> None:
    one, other = (coefficients(RPO(beta=b, eta=0.0), pair(), values(-3, -4)).squeeze(1) for b in (0.05, 3.0))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0).item() == pytest.approx(1.0, abs=1e-12)
    far = coefficients(RPO(beta=1.0, eta=0.5), pair(anchor=(0.0, 0.0)), values(-3, -63)).squeeze(1)
    torch.testing.assert_close(far, torch.tensor([0.5, 0.0], dtype=torch.float64), rtol=0, atol=1e-20 + math.exp(-59))


@pytest.mark.parametrize(("beta", "eta"), [(0.1, 0.5), (0.05, 0.005), (2.0, 1.0)])
def test_r4_the_four_parts_give_the_gradient_of_the_loss(beta: float, eta: float) -> None:
    batch = pair(lengths=(3, 5), pairs=3)
    log_prob = -torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.1
    leaf = log_prob.clone().requires_grad_()
    (slope,) = torch.autograd.grad(written_out(leaf, batch, beta, eta), leaf)
    torch.testing.assert_close(coefficients(RPO(beta=beta, eta=eta), batch, log_prob), -slope, rtol=0, atol=1e-15)


def test_r5_average_and_cumulative_agree_on_equal_lengths() -> None:
    batch, length, weight = pair(lengths=(4, 4), pairs=2), 4, 0.3
    log_prob = -torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    average = coefficients(RPO(beta=0.1, sft_weight=weight, sft_over="average"), batch, log_prob)
    cumulative = coefficients(RPO(beta=0.1, eta=weight / length / 0.1), batch, log_prob)
    torch.testing.assert_close(average, cumulative, rtol=0, atol=1e-15)


def test_r6_at_the_anchor_the_rejected_has_half_of_beta() -> None:
    batch = pair()
    found = coefficients(RPO(beta=0.3, eta=0.7), batch, batch.anchor_log_prob)
    torch.testing.assert_close(found.squeeze(1), torch.tensor([0.15 + 0.21, -0.15], dtype=torch.float64), rtol=0, atol=1e-16)


def test_equal_completions_leave_the_supervised_loss() -> None:
    found = coefficients(RPO(beta=0.1, eta=0.5), pair(anchor=(-3.0, -3.0)), values(-2, -2)).sum()
    assert found.item() == pytest.approx(0.05, abs=1e-15)


def test_weight_from_eta() -> None:
    assert from_eta(0.01, 0.005) == pytest.approx(5e-5)
    assert RPO().weight == pytest.approx(5e-5)
    assert RPO(sft_weight=0.2, sft_over="average").weight == 0.2


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"algorithm.eta is -1; accepted: 0 or more"):
        RPO(eta=-1)
    with pytest.raises(InputError, match="beta is 0"):
        RPO(beta=0.0).objective(Setting(1))
    two_chosen = pair().replace(reward=torch.tensor([1.0, 1.0]))
    with pytest.raises(InputError, match="prompt 0 needs exactly one chosen completion, and has 2"):
        RPO().prepare(two_chosen, Setting(1), Planning())
    with pytest.raises(InputError, match="prompt 0 needs exactly one rejected completion, and has 0"):
        RPO().prepare(pair().select([CHOSEN]), Setting(1), Planning())
    other_prompts = pair().replace(group=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="needs exactly one"):
        RPO().prepare(other_prompts, Setting(1), Planning())
    with pytest.raises(InputError, match="empty completion"):
        RPO().prepare(pair(lengths=(1, 0)), Setting(1), Planning())
    with pytest.raises(InputError, match="anchor_log_prob is -inf"):
        coefficients(RPO(), pair().replace(anchor_log_prob=values(-1.0, -math.inf)), values(-1, -1))
