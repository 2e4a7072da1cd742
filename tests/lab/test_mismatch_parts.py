"""Corrections for a sampler that is not the trainer: hand numbers, silence, what they read, and exactness where they promise it."""

import dataclasses
import math

import pytest
import torch

from unipg import (
    BehaviourPolicy,
    Corrected,
    CurrentPolicy,
    Evaluation,
    Everything,
    InputError,
    MismatchMask,
    Objective,
    OldPolicy,
    Outcome,
    PolicyGradient,
    RatioClip,
    SequenceCorrected,
    SequenceMean,
    SequenceMeanTokenSum,
    SequenceMismatchMask,
    Trajectories,
    TruncatedWeight,
)
from unipg.algorithms import registered
from unipg.lab import counting
from unipg.lab.mismatch import CORRECTIONS, Engine, Rounded, Tempered, TopK
from unipg.laws import silence, split


def table(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# k = pi_old / pi_behaviour = 4, 1/2, 1.5 and, in the second row, 1, 0.2 (then padding)
OLD = torch.tensor([[0.8, 0.2, 0.6], [0.5, 0.1, math.nan]], dtype=torch.float64).log()
BEHAVIOUR = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.5, math.inf]], dtype=torch.float64).log()
NOW = torch.tensor([[0.9, 0.3, 0.3], [0.4, 0.2, 0.1]], dtype=torch.float64).log()
MASK = torch.tensor([[True, True, True], [True, True, False]])


def batch() -> Trajectories:
    return Trajectories(
        action=torch.zeros(2, 3, dtype=torch.long),
        mask=MASK,
        old_log_prob=OLD,
        behaviour_log_prob=BEHAVIOUR,
        reward=torch.tensor([1.0, -1.0], dtype=torch.float64),
    )


def weights(reference) -> torch.Tensor:
    rows = batch().replace(old_log_prob=torch.where(MASK, OLD, 0))
    return torch.where(MASK, (NOW - reference(NOW, rows)).exp(), 0)


RATIO = torch.tensor([[0.9 / 0.8, 1.5, 0.5], [0.8, 2.0, 0]], dtype=torch.float64)
ONE = MASK.double()


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (Corrected(limit=2.0), RATIO * table([[2, 0.5, 1.5], [1, 0.2, 0]])),
        (Corrected(limit=None), RATIO * table([[4, 0.5, 1.5], [1, 0.2, 0]])),
        (Corrected(CurrentPolicy(), 3.0), ONE * table([[3, 0.5, 1.5], [1, 0.2, 0]])),
        (SequenceCorrected(limit=None), RATIO * table([[3.0], [0.2]])),  # 4 · 0.5 · 1.5 and 1 · 0.2
        (SequenceCorrected(limit=2.0), RATIO * table([[2.0], [0.2]])),
        (SequenceCorrected(CurrentPolicy(), 2.5), ONE * table([[2.5], [0.2]])),
    ],
    ids=lambda v: v.symbol() if hasattr(v, "symbol") else "",
)
def test_truncated_weights_by_hand(reference, expected) -> None:
    torch.testing.assert_close(weights(reference), expected, rtol=0, atol=1e-12)


def test_without_a_limit_the_old_policy_corrected_is_the_behaviour_policy() -> None:
    torch.testing.assert_close(weights(Corrected(OldPolicy(), None)), weights(BehaviourPolicy()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (MismatchMask(0.5, 2.0), [[False, True, True], [True, False]]),  # 0.5 itself is inside
        (MismatchMask(0.51, 5.0), [[True, False, True], [True, False]]),
        (MismatchMask(0.0, 1.0), [[False, True, False], [True, True]]),
        (SequenceMismatchMask(0.5, 1.4), [[False] * 3, [False] * 2]),  # 3^(1/3) = 1.442, 0.2^(1/2) = 0.447
        (SequenceMismatchMask(0.44, 1.45), [[True] * 3, [True] * 2]),
        (SequenceMismatchMask(0.44, 1.44), [[False] * 3, [True] * 2]),
    ],
    ids=lambda v: v.symbol() if hasattr(v, "symbol") else "",
)
def test_masks_by_hand(mask, expected) -> None:
    found = mask(torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64), batch())
    assert [row[m].tolist() for row, m in zip(found, MASK, strict=True)] == expected


def test_what_they_read_is_known_through_every_composition() -> None:
    both = {"old_log_prob", "behaviour_log_prob"}
    assert Corrected(CurrentPolicy()).reads == both
    assert PolicyGradient(advantage=Outcome(), reference=SequenceCorrected(SequenceMean())).reads == both
    assert PolicyGradient(advantage=Outcome(), mask=MismatchMask()).reads == both
    assert PolicyGradient(advantage=Outcome(), mask=RatioClip() & SequenceMismatchMask()).reads == both
    assert PolicyGradient(advantage=Outcome(), mask=RatioClip() & Everything()).reads == {"old_log_prob"}
    with pytest.raises(InputError, match="needs the field 'behaviour_log_prob'"):
        PolicyGradient(advantage=Outcome(), reference=Corrected())(Evaluation(NOW), batch().replace(behaviour_log_prob=None))


def test_a_correction_beside_a_clip_keeps_the_clips_ratio() -> None:
    """The clip bounds pi_theta / pi_old, whatever the sampler did; the weight is the product."""
    now = torch.where(MASK, NOW, 0).requires_grad_()
    rows = batch().replace(reward=torch.ones(2, dtype=torch.float64))
    term = PolicyGradient(mask=RatioClip(0.2, 0.2), reference=Corrected(limit=2.0), advantage=Outcome(), aggregate=SequenceMeanTokenSum())
    (found,) = torch.autograd.grad(-term(Evaluation(now), rows), now)
    weight = weights(Corrected(limit=2.0))
    expected = torch.where(RATIO > 1.2, 0, weight) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: c.name)
@pytest.mark.parametrize("name", ["grpo", "hpt"])
def test_corrected_algorithms_obey_the_laws(name: str, correction) -> None:
    """Masked NaN, padding, row order, micro-batches and workers change nothing."""
    plain = registered()[name]

    @dataclasses.dataclass(frozen=True)
    class Fixed(plain):
        def objective(self, setting):
            composed = plain.objective(self, setting)
            return correction(composed if isinstance(composed, Objective) else Objective((composed,)))

    split(Fixed())
    silence(Fixed())


@pytest.mark.parametrize("engine", [Rounded(), Tempered(0.5), Tempered(1.5)], ids=lambda e: e.name)
def test_sequence_weights_are_exact_in_expectation(engine: Engine) -> None:
    """Summed over every string that the engine can draw; token weights and none at all are not."""
    problem = counting(seed=2)
    behaviour = engine.log_prob(problem)
    chance = problem.probability_of(behaviour)
    now = problem.policy.evaluate(problem.rows)
    exact = problem.gradient(problem.expected_reward)

    def error(reference) -> float:
        rows = problem.rows.replace(
            old_log_prob=now.log_prob.detach(),
            behaviour_log_prob=behaviour,
            reward=problem.rows.reward * chance * len(problem.rows) / problem.contexts,
        )
        term = PolicyGradient(reference=reference, advantage=Outcome(), aggregate=SequenceMeanTokenSum())
        (found,) = torch.autograd.grad(-term(now, rows), problem.policy.logits, retain_graph=True)
        return float((found.flatten() - exact).norm() / exact.norm())

    assert error(SequenceCorrected(CurrentPolicy(), None)) < 1e-10
    assert error(CurrentPolicy()) > 10 * error(SequenceCorrected(CurrentPolicy(), None)) + 1e-5
    assert error(Corrected(CurrentPolicy(), None)) > 1e-5


def test_engines() -> None:
    problem = counting()
    rows, mask = problem.rows, problem.rows.mask
    same, bf16, cut = (e.log_prob(problem)[mask] for e in (Engine(), Rounded(), TopK(3)))
    plain = problem.log_prob().detach()[mask]
    assert torch.equal(same, plain)
    assert 0 < float((bf16 - plain).abs().max()) < 0.02
    least = problem.policy.logits.detach().argmin(1)
    never = (rows.action == least[problem.policy.states(rows)])[mask]
    assert torch.equal(cut == -torch.inf, never)
    assert never.any()
    cold = Tempered(0.5).log_prob(problem)
    for log_prob in (cold, TopK(2).log_prob(problem)):
        assert float(problem.probability_of(log_prob).sum()) == pytest.approx(problem.contexts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Corrected(limit=0.5), "Corrected.limit is 0.5; accepted: a weight of 1 or more"),
        (lambda: SequenceCorrected(limit=math.nan), "SequenceCorrected.limit is nan"),
        (lambda: MismatchMask(0.5, 0.9), "bounds on the ratio"),
        (lambda: MismatchMask(-0.1, 2.0), "bounds on the ratio"),
        (lambda: SequenceMismatchMask(1.1, 2.0), "SequenceMismatchMask.low=1.1"),
    ],
)
def test_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_truncated_references_compose() -> None:
    """CISPO's own truncation is of pi_theta / pi_old, the correction's of pi_old / pi_behaviour."""
    found = weights(Corrected(TruncatedWeight(1.0, 0.28), 2.0))
    expected = RATIO.clamp_max(1.28) * table([[2, 0.5, 1.5], [1, 0.2, 0]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
