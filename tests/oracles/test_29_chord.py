"""Closed-form oracles of CHORD (arXiv 2508.11408): H1 to H6, and bad input."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from unipg import Evaluation, InputError, Planning, Source, Trajectories
from unipg.algorithms import Setting, registered
from unipg.algorithms.base import Algorithm
from unipg.estimator import Objective, Progress
from unipg.estimator.advantages import TokenProbability
from unipg.estimator.parts import weight_at
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.laws.cases import random_batch
from unipg.training import Trainer, TrainingRecipe
from unipg.training.optimization import OptimizerRecipe

SETTING = Setting(max_new_tokens=6)
GRPO = {"clip_dual": 3.0, "aggregate": "token_mean"}


def algorithm(name: str, **settings) -> Algorithm:
    return registered()[name](**settings)


def constant(mu: float, **settings) -> Algorithm:
    return algorithm("chord", mu_peak=mu, mu_valley=mu, **settings)


def of_source(batch: Trajectories, source: Source) -> torch.Tensor:
    """[B,T] tokens of the policy in rows of a source."""
    return batch.mask & batch.rows_from(source).unsqueeze(1)


def example(seed: int = 0) -> tuple[torch.Tensor, Trajectories]:
    """Log-probabilities as a leaf, and 4 prompts with rollouts of different lengths and a demonstration each."""
    batch = random_batch(algorithm("chord"), seed)
    draw = torch.Generator().manual_seed(seed)
    log_prob = -3 * torch.rand(batch.mask.shape, dtype=torch.float64, generator=draw) - 1e-3
    return log_prob.requires_grad_(), batch


def slope(
    method: Algorithm, log_prob: torch.Tensor, batch: Trajectories, step: int = 0, cuts: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and its gradient in each token's log-probability [B,T]; in micro-batches where `cuts` are given."""
    objective, planning = method.terms(SETTING), Planning(Progress(step, 1000))
    planned = objective.plan(objective.prepare(method.prepare(batch, SETTING, planning), planning), planning)
    total = torch.zeros((), dtype=torch.float64)
    for rows in cuts or [torch.arange(len(batch))]:
        total = total + objective.loss(Evaluation(log_prob[rows]), planned.select(rows), planning)
    (gradient,) = torch.autograd.grad(total, log_prob)
    return total.detach(), gradient


# ---------------------------------------------------------------------------------------------------- H1: the schedule


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"mu_decay": 200, "mu_peak": 0.9, "mu_valley": 0.05},
            {0: 0.9, 50: 0.775520, 100: 0.475, 150: 0.174480, 199: 0.050052, 200: 0.05, 999: 0.05},
        ),
        (
            {"mu_warmup": 200, "mu_decay": 400, "mu_peak": 0.5, "mu_valley": 0.02},
            {0: 0.0, 100: 0.25, 200: 0.5, 400: 0.26, 600: 0.02, 999: 0.02},
        ),
        ({"mu_peak": 0.1, "mu_valley": 0.1}, {0: 0.1, 1: 0.1, 500: 0.1}),
        ({"mu_warmup": 10, "mu_peak": 0.4, "mu_valley": 0.4}, {0: 0.0, 5: 0.2, 10: 0.4, 11: 0.4}),
    ],
    ids=["decay", "warm-up and decay", "constant", "warm-up only"],
)
def test_h1_schedule(settings: dict, expected: dict[int, float]) -> None:
    """mu itself, and what planning makes of it: with token means the weights of a branch sum to its share."""
    chord = algorithm("chord", **settings)
    _, batch = example()
    objective = chord.terms(SETTING)
    ready = objective.prepare(batch)
    for step, mu in expected.items():
        progress = Progress(step, 1000)
        assert weight_at(chord.mu, progress) == pytest.approx(mu, abs=1e-6)
        planned = objective.plan(ready, Planning(progress)).planned
        assert float(planned["sft/weight"].sum()) == pytest.approx(mu, abs=1e-6)
        assert float(planned["rollouts/weight"].sum()) == pytest.approx(1 - mu, abs=1e-6)
        assert chord.metrics(chord.prepare(batch, SETTING, Planning(progress)))["mixing/mu"] == pytest.approx(mu, abs=1e-6)


def test_registered_variants_are_the_columns_of_the_released_recipe() -> None:
    phi, mu = algorithm("chord"), algorithm("chord_mu")
    assert (phi.mu_warmup, phi.mu_decay, phi.mu_peak, phi.mu_valley, phi.phi) == (0, 0, 0.1, 0.1, "uncertainty")
    assert (mu.mu_warmup, mu.mu_decay, mu.mu_peak, mu.mu_valley, mu.phi) == (0, 200, 0.9, 0.05, "none")


# ---------------------------------------------------------------------------------------------------- H2: phi


def demonstrated(*probabilities: float) -> tuple[torch.Tensor, Trajectories]:
    log_prob = torch.tensor([probabilities], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, len(probabilities), dtype=torch.bool)
    return log_prob, Trajectories(action=mask.long(), mask=mask, source=torch.tensor([1]), reward=torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("phi", "expected"),
    [("uncertainty", (0.0099, 0.25, 0.09)), ("probability", (0.01, 0.5, 0.9)), ("none", (1.0, 1.0, 1.0))],
)
def test_h2_gradient_is_minus_phi_over_tokens(phi: str, expected: tuple[float, ...]) -> None:
    log_prob, batch = demonstrated(0.01, 0.5, 0.9)
    _, found = slope(constant(1.0, phi=phi), log_prob, batch)
    torch.testing.assert_close(found, -torch.tensor([expected], dtype=torch.float64) / 3, rtol=0, atol=1e-15)


def test_h2_phi_is_detached() -> None:
    log_prob, batch = demonstrated(0.01, 0.4, 0.9)  # at 0.5 the slope of phi is 0
    p = log_prob.exp()
    (through,) = torch.autograd.grad(-(p * (1 - p) * log_prob).mean(), log_prob)
    _, found = slope(constant(1.0), log_prob, batch)
    assert (through - found).abs().min() > 1e-3


def test_h2_phi_follows_the_current_policy_not_the_one_that_was_planned_on() -> None:
    log_prob, batch = demonstrated(0.5, 0.5)
    objective = constant(1.0).terms(SETTING)
    planned = objective.plan(objective.prepare(batch))
    for p in (0.5, 0.9):
        moved = torch.full_like(log_prob, math.log(p)).requires_grad_()
        (found,) = torch.autograd.grad(objective.loss(Evaluation(moved), planned), moved)
        torch.testing.assert_close(found, torch.full_like(found, -p * (1 - p) / 2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("phi", ["none", "probability", "uncertainty"])
def test_cutoff_is_the_clamp_of_the_released_code(phi: str) -> None:
    """log p clamped from above: no gradient where p > cutoff, all of it at the cutoff itself."""
    log_prob, batch = demonstrated(0.3, 0.8, 0.9)
    cutoff = math.exp(float(log_prob[0, 1].detach()))
    weights = {"none": lambda p: p**0, "probability": lambda p: p, "uncertainty": lambda p: p * (1 - p)}[phi](log_prob.detach().exp())
    (clamped,) = torch.autograd.grad(-(weights * log_prob.clamp(max=math.log(cutoff))).mean(), log_prob)
    _, found = slope(constant(1.0, phi=phi, cutoff_prob=cutoff), log_prob, batch)
    torch.testing.assert_close(found, clamped, rtol=0, atol=1e-15)
    assert float(found[0, 2]) == 0
    assert float(found[0, 1]) < 0


# ---------------------------------------------------------------------------------------------------- H3: the two ends


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("schedule", [{}, {"mu_warmup": 5, "mu_decay": 7}], ids=["constant", "scheduled"])
def test_h3_mu_0_is_grpo_bit_for_bit(seed: int, schedule: dict) -> None:
    log_prob, batch = example(seed)
    loss, found = slope(constant(0.0, **schedule), log_prob, batch)
    grpo_loss, grpo = slope(algorithm("grpo", **GRPO), log_prob, batch)
    assert loss.equal(grpo_loss)
    assert found.equal(grpo)
    assert (grpo != 0).any()
    assert (found[of_source(batch, Source.DEMONSTRATION)] == 0).all()


@pytest.mark.parametrize(("mu", "left", "source"), [(0.0, "rollouts", Source.ROLLOUT), (1.0, "sft", Source.DEMONSTRATION)])
def test_h3_what_has_no_weight_is_left_out_not_multiplied_by_0(mu: float, left: str, source: Source) -> None:
    """Rows of the other source are not even evaluated."""
    _, batch = example()
    objective = constant(mu, phi="none").terms(SETTING)
    assert [name for name, _ in objective.named()] == [left]
    touched = objective.touched_rows(objective.prepare(batch))
    assert touched.any()
    assert not (touched & ~batch.rows_from(source)).any()


def test_h3_mu_0_at_the_end_of_a_schedule() -> None:
    log_prob, batch = example()
    fading = algorithm("chord", mu_peak=0.5, mu_valley=0.0, mu_decay=10)
    _, grpo = slope(algorithm("grpo", **GRPO), log_prob, batch)
    assert slope(fading, log_prob, batch, step=10)[1].equal(grpo)
    assert not slope(fading, log_prob, batch, step=9)[1].equal(grpo)


@pytest.mark.parametrize(("phi", "alone"), [("none", "sft"), ("probability", "dft")])
def test_h3_mu_1_is_supervision_and_rollouts_get_nothing(phi: str, alone: str) -> None:
    log_prob, batch = example()
    _, found = slope(constant(1.0, phi=phi), log_prob, batch)
    _, expected = slope(algorithm(alone), log_prob, batch)
    assert found.equal(expected)
    assert (found[of_source(batch, Source.ROLLOUT)] == 0).all()
    assert (found[of_source(batch, Source.DEMONSTRATION)] != 0).all()


def test_h3_between_the_ends_it_is_their_weighted_sum() -> None:
    log_prob, batch = example()
    _, found = slope(constant(0.3, phi="none"), log_prob, batch)
    _, rollouts = slope(algorithm("grpo", **GRPO), log_prob, batch)
    _, sft = slope(algorithm("sft"), log_prob, batch)
    torch.testing.assert_close(found, 0.7 * rollouts + 0.3 * sft, rtol=0, atol=1e-12)


def test_h3_a_whole_run_with_mu_0_is_a_run_of_grpo(tmp_path: Path) -> None:
    """The same weights to the last bit, though CHORD's batches hold demonstrations too."""
    weights = []
    for method in (constant(0.0), algorithm("grpo", **GRPO)):
        policy = BigramPolicy(3, seed=1)
        Trainer(
            method,
            policy,
            StringExperience(StringProblem(), prompts=4),
            folder=tmp_path / method.name,
            training=TrainingRecipe(iterations=5, epochs=2),
            optimizer=OptimizerRecipe(learning_rate=0.1),
            seed=2,
        ).train()
        weights.append(policy.logits.detach())
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(BigramPolicy(3, seed=1).logits)


# ---------------------------------------------------------------------------------------------------- H4, H5


def test_h4_sft_is_with_density_1_is_the_gradient_of_the_probability() -> None:
    log_prob, batch = example()
    _, found = slope(constant(1.0, phi="probability"), log_prob, batch)
    mine = of_source(batch, Source.DEMONSTRATION)
    (expected,) = torch.autograd.grad(-log_prob[mine].exp().mean(), log_prob)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_h5_demonstrations_do_not_change_the_advantage_of_any_rollout() -> None:
    _, batch = example()
    chord = algorithm("chord")
    objective = chord.terms(SETTING)

    def advantages(of: Trajectories) -> torch.Tensor:
        ready = objective.prepare(chord.prepare(of, SETTING, Planning()))
        return ready.planned["rollouts/advantage"][ready.rows_from(Source.ROLLOUT)]

    expected = advantages(batch)
    assert (expected != 0).any()
    experts = batch.select(batch.rows_from(Source.DEMONSTRATION))
    assert experts.reward is not None
    assert batch.group is not None
    assert batch.reward is not None
    flipped = experts.replace(reward=torch.full_like(experts.reward, -1e6)).select([3, 1, 0, 2])
    assert advantages(Trajectories.join([flipped, batch, flipped])).equal(expected)
    # by hand: (R − mean) / (std + 1e-6) over the rollouts of a prompt, n − 1 in the variance
    rollouts = batch.rows_from(Source.ROLLOUT)
    reward, group = batch.reward[rollouts], batch.group[rollouts]
    for g in group.unique():
        r = reward[group == g]
        torch.testing.assert_close(expected[group == g][:, 0], (r - r.mean()) / (r.std() + 1e-6), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- H6: micro-batches


def released(batch: Trajectories, log_prob: torch.Tensor, cuts: list[torch.Tensor]) -> torch.Tensor:
    """The released code's SFT branch: each micro-batch's own token mean, weighted by its share of the demonstrations."""
    rows = batch.rows_from(Source.DEMONSTRATION)
    total = torch.zeros((), dtype=torch.float64)
    for cut in cuts:
        mine = of_source(batch, Source.DEMONSTRATION)[cut]
        if mine.any():
            total = total - rows[cut].sum() / rows.sum() * log_prob[cut][mine].mean()
    return torch.autograd.grad(total, log_prob)[0]


@pytest.mark.parametrize("equal", [True, False])
def test_h6_micro_batches(equal: bool) -> None:
    log_prob, batch = example()
    if equal:  # every demonstration has two tokens
        steps = torch.arange(batch.mask.shape[1])
        two = (steps == 2) | (steps == 3)
        batch = batch.replace(mask=torch.where(batch.rows_from(Source.DEMONSTRATION).unsqueeze(1), two, batch.mask))
    cuts = [torch.arange(len(batch))[number::4] for number in range(4)]
    chord = constant(1.0, phi="none")
    loss, whole = slope(chord, log_prob, batch)
    parts_loss, parts = slope(chord, log_prob, batch, cuts=cuts)
    torch.testing.assert_close((parts_loss, parts), (loss, whole), rtol=0, atol=1e-14)
    theirs = released(batch, log_prob, cuts)
    assert torch.allclose(theirs, whole, rtol=0, atol=1e-14) is equal
    torch.testing.assert_close(released(batch, log_prob, [torch.arange(len(batch))]), whole, rtol=0, atol=1e-14)


def test_dual_clip_is_on() -> None:
    """Token-wise max(−A r, −A clip(r)), at most 3·|A| where A < 0, as the released PPO loss."""
    log_prob, batch = example(1)
    assert batch.old_log_prob is not None
    batch = batch.replace(old_log_prob=torch.where(batch.mask, batch.old_log_prob - 1.2, batch.old_log_prob))
    _, found = slope(constant(0.0), log_prob, batch)
    objective: Objective = constant(0.0).terms(SETTING)
    advantage = objective.prepare(batch).planned["rollouts/advantage"]
    mine = of_source(batch, Source.ROLLOUT)
    a, ratio = advantage[mine], (log_prob - batch.old_log_prob)[mine].exp()
    plain = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
    loss = torch.where(a < 0, torch.minimum(plain, -3 * a), plain).mean()
    (expected,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert ((a < 0) & (ratio > 3)).any()


# ---------------------------------------------------------------------------------------------------- section 9: bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mu_peak": 1.1}, r"algorithm\.mu_peak is 1\.1; accepted: a share in \[0, 1\]"),
        ({"mu_valley": -0.1}, r"algorithm\.mu_valley is -0\.1; accepted: a share in \[0, 1\]"),
        ({"mu_valley": float("nan")}, r"algorithm\.mu_valley is nan"),
        ({"mu_decay": -1}, r"algorithm\.mu_decay is -1; accepted: a number of optimiser steps of 0 or more"),
        ({"mu_warmup": -1}, r"algorithm\.mu_warmup is -1; accepted"),
        ({"cutoff_prob": 0.0}, r"algorithm\.cutoff_prob is 0\.0; accepted: a probability in \(0, 1\]"),
        ({"cutoff_prob": 1.5}, r"algorithm\.cutoff_prob is 1\.5"),
        ({"phi": "entropy"}, r"CHORD: phi 'entropy' does not exist; accepted: none, probability, uncertainty"),
        ({"rollouts": 1}, r"algorithm\.rollouts is 1; accepted for chord: 2 or more"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        algorithm("chord", **settings)


def test_bad_cutoff_of_the_part() -> None:
    with pytest.raises(InputError, match=r"TokenProbability\.cutoff is 0\.0"):
        TokenProbability(cutoff=0.0)


def test_a_batch_without_demonstrations_is_told_of() -> None:
    log_prob, batch = example()
    rollouts = batch.select(batch.rows_from(Source.ROLLOUT))
    with pytest.warns(UserWarning, match=r"no demonstration in this batch, though they have weight 0\.1"):
        _, found = slope(algorithm("chord"), log_prob[batch.rows_from(Source.ROLLOUT)], rollouts)
    assert found.isfinite().all()
    slope(constant(0.0), log_prob[batch.rows_from(Source.ROLLOUT)], rollouts)  # without a warning: none are wanted


def test_an_empty_demonstration_names_its_prompt() -> None:
    _, batch = example()
    row = int(batch.rows_from(Source.DEMONSTRATION).nonzero()[1])
    mask = batch.mask.clone()
    mask[row] = False
    with pytest.raises(InputError, match=r"the demonstration of prompt 1 is empty; accepted: 1 token or more"):
        algorithm("chord").prepare(batch.replace(mask=mask), SETTING, Planning())


def test_a_source_for_every_row() -> None:
    _, batch = example()
    assert batch.source is not None
    with pytest.raises(InputError, match=r"source is \[19\] but must be \[20\]"):
        dataclasses.replace(batch, source=batch.source[1:])


def test_all_rollouts_truncated_leaves_the_rl_branch_defined() -> None:
    log_prob, batch = example()
    assert batch.reward is not None
    failed = batch.replace(
        reward=torch.where(batch.rows_from(Source.ROLLOUT), 0, batch.reward), truncated=batch.terminated, terminated=None
    )
    _, found = slope(algorithm("chord"), log_prob, failed)
    assert (found[of_source(batch, Source.ROLLOUT)] == 0).all()
    assert (found[of_source(batch, Source.DEMONSTRATION)] != 0).all()
