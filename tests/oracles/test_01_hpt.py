"""Closed-form oracles of HPT and of the unified estimator (arXiv 2509.04419): U1 to U7, and bad input."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipg import (
    BehaviourPolicy,
    ConstantLength,
    CurrentPolicy,
    Evaluation,
    Everything,
    GroupCentered,
    GroupStandardized,
    InputError,
    OldPolicy,
    Outcome,
    Planning,
    PolicyGradient,
    RatioClip,
    SequenceClip,
    SequenceMean,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    ShapedUniform,
    Source,
    TokenMean,
    Trajectories,
    TruncatedWeight,
    Uniform,
)
from unipg.algorithms import Setting, registered
from unipg.estimator import coefficient
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe

LOGITS = (0.2, -0.1, 0.4)


def bandit(arm: int, **fields) -> tuple[torch.Tensor, Evaluation, Trajectories]:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    log_prob = logits.log_softmax(0)[arm].reshape(1, 1)
    batch = Trajectories(action=torch.tensor([[arm]]), mask=torch.ones(1, 1, dtype=torch.bool), **fields)
    return logits, Evaluation(log_prob), batch


def ascent(term: PolicyGradient, arm: int = 2, reward: float = 1.0) -> torch.Tensor:
    logits, now, batch = bandit(
        arm, reward=torch.tensor([reward], dtype=torch.float64), old_log_prob=torch.full((1, 1), math.log(1 / 3), dtype=torch.float64)
    )
    term(now, batch).backward()
    return -logits.grad


def test_u1_common_objective_on_a_bandit() -> None:
    """grad J_mu enumerated over pi_ref = pi_beta with the detached A = r + mu·pi_beta/pi equals the exact gradient."""
    reward, beta, mu = (1.0, 0.0, 0.5), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.7
    total = torch.zeros(3, dtype=torch.float64)
    for arm in range(3):
        logits, now, batch = bandit(arm, behaviour_log_prob=beta.log()[arm].reshape(1, 1))
        pi = now.log_prob.detach().exp().item()
        batch = batch.replace(reward=torch.tensor([reward[arm] + mu * float(beta[arm]) / pi], dtype=torch.float64))
        PolicyGradient(advantage=Outcome(), reference=BehaviourPolicy())(now, batch).backward()
        total -= beta[arm] * logits.grad
    torch.testing.assert_close(total, torch.tensor([0.267714, -0.101047, -0.166667], dtype=torch.float64), rtol=0, atol=1e-6)
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(0)
    ((p * torch.tensor(reward, dtype=torch.float64)).sum() - mu * (beta * (beta.log() - p.log())).sum()).backward()
    torch.testing.assert_close(total, logits.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("term", "reward", "expected"),
    [
        (PolicyGradient(advantage=Outcome(), reference=CurrentPolicy()), 1.0, (-0.337585, -0.250089, 0.587673)),
        (PolicyGradient(advantage=Outcome(), reference=OldPolicy(), mask=RatioClip(0.2, 0.2)), 1.0, (0.0, 0.0, 0.0)),
        (PolicyGradient(advantage=Outcome(), reference=OldPolicy(), mask=RatioClip(0.2, 0.2)), -1.0, (0.417585, 0.309355, -0.726940)),
        (PolicyGradient(advantage=Outcome(), reference=TruncatedWeight(1.0, 0.2)), 1.0, (-0.405101, -0.300107, 0.705208)),
        (PolicyGradient(advantage=Outcome(), reference=ShapedUniform(0.1)), 1.0, (-0.053031, -0.039286, 0.092317)),
        (PolicyGradient(advantage=Outcome(), reference=Uniform()), 1.0, (-0.139195, -0.103118, 0.242313)),
    ],
    ids=["sft", "ppo clipped", "ppo negative", "cispo", "luffy", "srft offline"],
)
@pytest.mark.parametrize("surrogate", ["score", "ratio"])
def test_u2_coefficients_on_a_bandit(term, reward, expected, surrogate) -> None:
    found = ascent(dataclasses.replace(term, surrogate=surrogate), reward=reward)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-6)
    if expected == (0.0, 0.0, 0.0):
        assert (found == 0).all()


@st.composite
def token_batches(draw) -> tuple[torch.Tensor, Trajectories]:
    rows, steps = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 10_000))
    rng = torch.Generator().manual_seed(seed)
    log_prob = -torch.rand(rows, steps, dtype=torch.float64, generator=rng) * 3
    old = log_prob + 0.4 * torch.randn(rows, steps, dtype=torch.float64, generator=rng)
    same = torch.rand(rows, steps, generator=rng) < 0.3  # some ratios are exactly 1
    mask = torch.rand(rows, steps, generator=rng) < 0.8
    reward = torch.randint(-1, 2, (rows,), generator=rng).double()  # some advantages are 0
    batch = Trajectories(
        action=torch.zeros(rows, steps, dtype=torch.long), mask=mask, old_log_prob=torch.where(same, log_prob, old), reward=reward
    )
    return log_prob.requires_grad_(), batch


@settings(deadline=None, max_examples=60)
@given(token_batches())
def test_u3_grpo_equals_autograd_of_the_textbook_loss(case) -> None:
    log_prob, batch = case
    term = PolicyGradient(mask=RatioClip(0.2, 0.28), reference=OldPolicy(), advantage=Outcome(), aggregate=TokenMean())
    (ours,) = torch.autograd.grad(term(Evaluation(log_prob), batch), log_prob)
    ratio = (log_prob - batch.old_log_prob).exp()
    a = batch.reward.unsqueeze(1)
    loss = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.28))
    (textbook,) = torch.autograd.grad((loss * batch.mask).sum() / batch.mask.sum().clamp_min(1), log_prob)
    torch.testing.assert_close(ours, textbook, rtol=0, atol=1e-12)


def test_u3_on_policy_all_ratio_methods_have_coefficient_a() -> None:
    log_prob = torch.tensor([[-0.5, -1.5, -0.1], [-2.0, -0.3, -0.7]], dtype=torch.float64)
    batch = Trajectories(
        action=torch.zeros(2, 3, dtype=torch.long),
        mask=torch.ones(2, 3, dtype=torch.bool),
        old_log_prob=log_prob,
        reward=torch.tensor([1.5, -0.5], dtype=torch.float64),
    )
    advantage = Outcome()(batch)
    for mask, reference in (
        (RatioClip(), OldPolicy()),
        (Everything(), TruncatedWeight()),
        (SequenceClip(), SequenceMean()),
        (RatioClip(1.0, 0.28), OldPolicy()),
    ):
        stable = mask(torch.zeros_like(log_prob), advantage, batch)
        assert torch.equal(coefficient(log_prob, reference(log_prob, batch), advantage, stable), advantage)


def test_u4_gspo_sequence_ratio() -> None:
    first = torch.tensor((0.2, -0.1, 0.4), dtype=torch.float64, requires_grad=True)
    second = torch.tensor((1.0, 0.0, -1.0), dtype=torch.float64, requires_grad=True)
    log_prob = torch.stack([first.log_softmax(0)[2], second.log_softmax(0)[0]]).unsqueeze(0)
    old = torch.full((1, 2), math.log(1 / 3), dtype=torch.float64)
    s = (log_prob - old).mean().exp()
    assert round(float(s.detach()), 4) == 1.5712
    batch = Trajectories(
        action=torch.tensor([[2, 0]]), mask=torch.ones(1, 2, dtype=torch.bool), old_log_prob=old, reward=torch.ones(1, dtype=torch.float64)
    )
    term = PolicyGradient(reference=SequenceMean(), advantage=Outcome(), aggregate=SequenceMeanTokenMean())
    ours = torch.autograd.grad(term(Evaluation(log_prob), batch), (first, second), retain_graph=True)
    exact = torch.autograd.grad(-s, (first, second))
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [(GroupStandardized(), 0.866024), (GroupCentered(), 0.5), (GroupStandardized(unbiased=False), 0.999998)],
)
def test_u5_group_advantages(advantage, expected) -> None:
    batch = Trajectories(
        action=torch.zeros(4, 1, dtype=torch.long),
        mask=torch.ones(4, 1, dtype=torch.bool),
        group=torch.zeros(4, dtype=torch.long),
        reward=torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64),
    )
    found = advantage(batch).squeeze(1)
    torch.testing.assert_close(found, expected * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("advantage", [GroupStandardized(), GroupCentered()])
def test_a_group_of_one_has_mean_0_and_std_1(advantage) -> None:
    batch = Trajectories(action=torch.zeros(1, 1, dtype=torch.long), mask=torch.ones(1, 1, dtype=torch.bool), reward=torch.tensor([0.7]))
    torch.testing.assert_close(advantage(batch), torch.tensor([[0.7]]))


def one_step(algorithm, batch: Trajectories, policy: BigramPolicy) -> torch.Tensor:
    setting, planning = Setting(max_new_tokens=2), Planning()
    objective = algorithm.terms(setting)
    ready = objective.plan(objective.prepare(algorithm.prepare(batch, setting, planning), planning), planning)
    policy.module.zero_grad()
    objective.loss(policy.evaluate(ready, entropy=True, value=True), ready).backward()
    return policy.module["logits"].grad.clone()


def mixed_batch(successes: list[int], rollouts: int = 8) -> Trajectories:
    """One group per entry, with that many correct rollouts of the prompt (0), and its demonstration."""
    problem = StringProblem(vocabulary=3, prompts=(0,), length=2)
    rows, group, source = [], [], []
    for number, correct in enumerate(successes):
        rows += [(0, (0, 0))] * correct + [(0, (1, 2))] * (rollouts - correct) + [(0, (0, 0))]
        group += [number] * (rollouts + 1)
        source += [Source.ROLLOUT] * rollouts + [Source.DEMONSTRATION]
    return problem.batch(rows, group, source)


def test_u6_the_two_ends_of_the_gate() -> None:
    table = registered()
    policy = BigramPolicy(3, seed=2)
    batch = mixed_batch([0, 3, 8])
    rollouts = batch.select(batch.rows_from(Source.ROLLOUT))
    demonstrations = batch.select(batch.rows_from(Source.DEMONSTRATION))
    never = one_step(table["hpt"](gamma=-1.0, entropy=0.0), batch, policy)
    assert never.norm() > 0
    assert torch.equal(never, one_step(table["dr_grpo"](clip=False), rollouts, policy))
    always = one_step(table["hpt"](gamma=1.0, entropy=0.0), batch, policy)
    assert always.norm() > 0
    assert torch.equal(always, one_step(table["sft"](), demonstrations, policy))


def test_u6_always_supervising_gives_the_parameters_of_sft_after_k_steps(tmp_path) -> None:
    table = registered()
    problem = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)

    def run(algorithm, folder):
        policy = BigramPolicy(4, seed=1)
        options, steps = TrainingRecipe(iterations=6), OptimizerRecipe(learning_rate=1e-3)
        Trainer(algorithm, policy, StringExperience(problem), folder=folder, training=options, optimizer=steps, seed=7).train()
        return policy.module["logits"].detach()

    assert torch.equal(run(table["hpt"](gamma=1.0, entropy=0.0), tmp_path / "a"), run(table["sft"](), tmp_path / "b"))
    assert torch.equal(run(table["hpt"](gamma=-1.0, entropy=0.0), tmp_path / "c"), run(table["dr_grpo"](clip=False), tmp_path / "d"))


def test_u6_a_gate_just_below_always_still_routes_all_correct_groups_to_reinforcement() -> None:
    gates = registered()["hpt"](gamma=7 / 8).gates(torch.tensor([7 / 8, 1.0], dtype=torch.float64))
    assert gates["rollouts"].tolist() == [0.0, 1.0]
    assert gates["sft"].tolist() == [1.0, 0.0]


def test_u7_the_threshold_is_inclusive() -> None:
    batch = mixed_batch([0, 1, 2, 3])
    ready = registered()["hpt"](gamma=2 / 8).prepare(batch, Setting(2), Planning())
    demonstrations = ready.rows_from(Source.DEMONSTRATION)
    assert ready.planned["gate/sft"][demonstrations].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert ready.planned["gate/rollouts"][~demonstrations].reshape(4, 8)[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_the_three_way_gate() -> None:
    gates = registered()["hpt_three_way"](gamma=0.0, gamma_off_policy=0.25).gates(torch.tensor([0, 0.125, 0.25, 0.375]).double())
    assert gates["sft"].tolist() == [1, 0, 0, 0]
    assert gates["off_policy"].tolist() == [0, 1, 1, 0]
    assert gates["rollouts"].tolist() == [0, 0, 0, 1]


def test_the_soft_gate_follows_the_released_table() -> None:
    gates = registered()["hpt_soft"]().gates(torch.arange(9).double() / 8)
    assert gates["rollouts"].tolist() == [0, 0.125, 0.25, 0.5, 1, 1, 1, 1, 1]
    assert gates["sft"].tolist() == [1, 0.5, 0.25, 0.125, 0, 0, 0, 0, 0]
    assert gates["off_policy"].tolist() == [0, 0.5, 1, 0.5, 0.25, 0.125, 0, 0, 0]


def test_losses_by_hand() -> None:
    """Two prompts of 4 rollouts, one of them gated: RL = −sum(A·r·m)/(length·all rollouts), SFT = −sum over gated / all demo tokens."""
    batch, policy = mixed_batch([0, 1], rollouts=4), BigramPolicy(3, seed=5)
    ours = one_step(registered()["hpt"](gamma=0.0, entropy=0.0, rollouts=4), batch, policy)
    policy.module.zero_grad()
    log_prob = policy.evaluate(batch).log_prob.sum(1)
    second = torch.arange(10) >= 5
    on = second & batch.rows_from(Source.ROLLOUT)
    advantage = batch.reward - 0.25
    reinforcement = -(advantage * log_prob)[on].sum() / (2 * 8)
    supervision = -log_prob[4] / 4
    (reinforcement + supervision).backward()
    torch.testing.assert_close(ours, policy.module["logits"].grad, rtol=0, atol=1e-14)


# ---------------------------------------------------------------------------------------------------- bad input, section 9


def test_a_gated_prompt_without_demonstration_is_named() -> None:
    batch = mixed_batch([0, 8])
    batch.annotations["prompt"] = ["what is 2+2?"] * len(batch)
    lacking = batch.select(batch.rows_from(Source.ROLLOUT))
    with pytest.raises(InputError, match=r"prompt 0 \('what is 2\+2\?'\) has no demonstration"):
        registered()["hpt"]().prepare(lacking, Setting(2), Planning())
    ready = registered()["hpt"](on_missing_demo="rl").prepare(lacking, Setting(2), Planning())
    assert ready.planned["gate/rollouts"].tolist() == [1.0] * 16
    ready = registered()["hpt"](on_missing_demo="skip").prepare(lacking, Setting(2), Planning())
    assert ready.planned["gate/rollouts"].tolist() == [0.0] * 8 + [1.0] * 8


def test_a_non_binary_reward_needs_a_threshold() -> None:
    batch = mixed_batch([1])
    batch.reward[0] = 0.4
    with pytest.raises(InputError, match=r"0\.4 is neither 0 nor 1.*success_threshold"):
        registered()["hpt"]().prepare(batch, Setting(2), Planning())
    ready = registered()["hpt"](success_threshold=0.3).prepare(batch, Setting(2), Planning())
    assert ready.planned["success_rate"][0] == 1 / 8


@pytest.mark.parametrize("bad", [{"gamma": 1.1}, {"gamma": -1.5}, {"rollouts": 0}])
def test_values_outside_their_range(bad) -> None:
    with pytest.raises(InputError, match="accepted"):
        registered()["hpt"](**bad)


def test_one_rollout_with_gate_0_is_legal() -> None:
    ready = registered()["hpt"](rollouts=1).prepare(mixed_batch([0, 1], rollouts=1), Setting(2), Planning())
    assert ready.planned["gate/sft"].tolist() == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_log_probs_that_are_not_finite_are_refused_with_their_place(value) -> None:
    batch = mixed_batch([1])
    log_prob = torch.zeros(batch.mask.shape)
    log_prob[2, 1] = value
    with pytest.raises(InputError, match=r"log_prob is (nan|-inf) at row 2, position 1"):
        PolicyGradient(advantage=GroupCentered())(Evaluation(log_prob), batch)


def test_shapes_that_do_not_match_are_refused() -> None:
    batch = mixed_batch([1])
    with pytest.raises(InputError, match="must be equal"):
        PolicyGradient(advantage=GroupCentered())(Evaluation(torch.zeros(2, 2)), batch)


def test_a_batch_whose_rows_are_all_masked_does_no_step(tmp_path) -> None:
    class Mute(StringExperience):
        def collect(self, policy, demand):
            batch, metrics = super().collect(policy, demand)
            return batch.replace(mask=torch.zeros_like(batch.mask)), metrics

    policy = BigramPolicy(3)
    before = policy.module["logits"].detach().clone()
    trainer = Trainer(registered()["dr_grpo"](), policy, Mute(StringProblem()), folder=tmp_path, training=TrainingRecipe(iterations=2))
    last = trainer.train()
    assert torch.equal(policy.module["logits"], before)
    assert last["steps/skipped_empty"] == 2


def test_the_constant_length_is_a_property_of_the_setting_not_of_the_padding() -> None:
    with pytest.raises(InputError, match="at least 1"):
        ConstantLength(0)
    assert SequenceMeanTokenSum()(torch.zeros(2, 3, dtype=torch.bool)).sum() == 0
