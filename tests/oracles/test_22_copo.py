"""Closed-form oracles of COPO (arXiv 2508.04138) and its bad input."""

import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch

from unipg import Evaluation, GroupCentered, InputError, Objective, Planning, PolicyGradient, SequenceMeanTokenSum, Trajectories
from unipg.algorithms import Setting, registered
from unipg.algorithms.language.copo import COPO, VARIANTS, answer_entropy, consistency_coefficient
from unipg.algorithms.preparation import NO_ANSWER, final_answer
from unipg.estimator.baselines import AcrossPrompts
from unipg.lab import BigramPolicy
from unipg.laws import checks
from unipg.laws.cases import VOCABULARY, random_batch

SETTING = Setting(6)


def batch_of(rewards: list[list[float]], answers: list[str] | None = None, tokens: int = 1, **fields) -> Trajectories:
    rows = sum(map(len, rewards))
    return Trajectories(
        action=torch.arange(rows * tokens).reshape(rows, tokens) % 8,
        mask=torch.ones(rows, tokens, dtype=torch.bool),
        group=torch.tensor([g for g, group in enumerate(rewards) for _ in group]),
        reward=torch.tensor([r for group in rewards for r in group], dtype=torch.float64),
        annotations={} if answers is None else {"answer": answers},
        **fields,
    )


def gates(algorithm: COPO, batch: Trajectories) -> list[float]:
    return algorithm.prepare(batch, SETTING, Planning()).planned["copo/local"].tolist()


# ---------------------------------------------------------------------------------------------------- 1. GRPO at one end


@pytest.mark.parametrize("settings", [{"variant": "no global"}, {"sharpness": 1e4, "midpoint": -1.0}], ids=["no global", "steep gate"])
@pytest.mark.parametrize("divide_by_std", [True, False])
def test_1_with_weight_1_it_is_grpo_bit_for_bit(settings, divide_by_std) -> None:
    copo, grpo = COPO(divide_by_std=divide_by_std, **settings), registered()["grpo"](clip_dual=3.0)
    batch, policy = random_batch(copo, 5), BigramPolicy(VOCABULARY, 5)
    term = grpo.objective(SETTING)
    plain = Objective((term if divide_by_std else dataclasses.replace(term, advantage=GroupCentered()),))
    expected = checks.step(plain, policy, plain.prepare(batch))
    assert expected[1:].norm() > 1e-3
    objective, ready = checks.prepared(copo, batch)
    assert torch.equal(checks.step(objective, policy, ready), expected)


# ---------------------------------------------------------------------------------------------------- 2. gate and consistency


@pytest.mark.parametrize(
    ("counts", "entropy", "gate"),
    [
        ([6], 0.0, 0.00669),
        ([5, 1], 0.65002, 0.14806),
        ([3, 3], 1.0, 0.5),
        ([2, 2, 2], 1.58496, 0.94906),
        ([1] * 6, 2.58496, 0.99964),
    ],
)
def test_2_gate(counts, entropy, gate) -> None:
    answers = [str(i) for i, count in enumerate(counts) for _ in range(count)]
    batch = batch_of([[0.0] * 5 + [1.0]], answers)
    ready = COPO().prepare(batch, SETTING, Planning())
    torch.testing.assert_close(ready.planned["copo/entropy"], torch.full((6,), entropy, dtype=torch.float64), rtol=0, atol=6e-6)
    torch.testing.assert_close(ready.planned["copo/local"], torch.full((6,), gate, dtype=torch.float64), rtol=0, atol=6e-6)
    assert torch.equal(ready.planned["copo/global"], 1 - ready.planned["copo/local"])


@pytest.mark.parametrize("size", [2, 3, 6, 16])
def test_2_consistency_coefficient(size) -> None:
    def at(entropy: float) -> float:
        return float(consistency_coefficient(torch.tensor(entropy, dtype=torch.float64), torch.tensor(float(size), dtype=torch.float64)))

    def coefficient(counts: Counter) -> float:
        return at(answer_entropy(counts))

    assert coefficient(Counter({"a": size})) == 1.0
    assert coefficient(Counter(range(size))) == pytest.approx(1 / size, abs=1e-6)
    if size == 6:
        assert at(0.0) - at(1.0) == pytest.approx(0.32237734, abs=5e-9)  # lambda


def test_2_the_coefficient_scales_the_prompts_reward() -> None:
    """Two answers of two differ: c = 1/2; two agree: c = 1. R = [1 · 1/2, 1] → ± the same advantage, as of two numbers."""
    copo = COPO(consistency=True, divide_by_std=False, variant="only global")
    objective, ready = checks.prepared(copo, batch_of([[1, 1], [1, 1]], ["4", "5", "7", "7"]))
    found = ready.planned["global/advantage"][:, 0]
    torch.testing.assert_close(found, torch.tensor([-0.25, -0.25, 0.25, 0.25], dtype=torch.float64), rtol=0, atol=1e-7)
    assert "copo/consistency" in objective.reads


# ---------------------------------------------------------------------------------------------------- 3. the global advantage


def test_3_global_advantage() -> None:
    batch = batch_of([[1, 1], [1, 0], [0, 0], [0, 0]])
    found = AcrossPrompts()(batch)[::2, 0]
    expected = torch.tensor([1.3055797, 0.2611159, -0.7833478, -0.7833478], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-8)
    centred = AcrossPrompts(standardize=False)(batch)[::2, 0]
    torch.testing.assert_close(centred, torch.tensor([0.625, 0.125, -0.375, -0.375], dtype=torch.float64), rtol=0, atol=1e-15)


def test_3_each_prompt_counts_once_however_many_rollouts_it_has() -> None:
    uneven = AcrossPrompts()(batch_of([[1], [1, 0, 1, 0], [0, 0, 0], [0]]))[:, 0]
    even = AcrossPrompts()(batch_of([[1, 1], [1, 0], [0, 0], [0, 0]]))[::2, 0]
    torch.testing.assert_close(uneven, even.repeat_interleave(torch.tensor([1, 4, 3, 1])), rtol=0, atol=1e-12)


def test_3_one_prompt_or_equal_prompts_give_exactly_0() -> None:
    assert (AcrossPrompts()(batch_of([[1, 0, 0]])) == 0).all()
    assert (AcrossPrompts()(batch_of([[0.1, 0.1, 0.1]] * 7)) == 0).all()
    third = batch_of([[0, 0, 1]] * 7)
    assert (AcrossPrompts()(third) == 0).all()


# ---------------------------------------------------------------------------------------------------- 4. expected gradients


@pytest.mark.parametrize("size", [2, 3])
def test_4_expected_gradients_on_a_bandit(size) -> None:
    """E[mean reward − constant] carries 1/G of the policy gradient, the centred group advantage the other 1 − 1/G."""
    logits, reward = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64, requires_grad=True), (1.0, 0.0, 0.3)
    worth = torch.tensor(reward, dtype=torch.float64)
    (exact,) = torch.autograd.grad((logits.softmax(0) * worth).sum(), logits)
    across, centred = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=size):
        probability = float(logits.detach().softmax(0)[list(arms)].prod())
        others = [[0.4] * size]  # another prompt, whose reward is known: the fixed baseline is (R_q + 0.4) / 2
        batch = batch_of([[reward[a] for a in arms], *others])
        log_prob = logits.log_softmax(0)[list(arms)].unsqueeze(1)
        now = Evaluation(torch.cat([log_prob, torch.zeros(size, 1, dtype=torch.float64)]))
        for total, advantage in ((across, AcrossPrompts(standardize=False)), (centred, GroupCentered())):
            loss = PolicyGradient(advantage=advantage, aggregate=SequenceMeanTokenSum())(now, batch)
            (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
            total -= 2 * probability * slope  # the mean is over both prompts' rows
    # R_q − (R_q + 0.4) / 2 = (R_q − 0.4) / 2: half of the fixed-baseline advantage
    torch.testing.assert_close(2 * across, exact / size, rtol=0, atol=1e-14)
    torch.testing.assert_close(centred, exact * (1 - 1 / size), rtol=0, atol=1e-14)


# ---------------------------------------------------------------------------------------------------- 5. the blend is of losses


def test_5_on_policy_the_blend_of_losses_is_that_of_advantages() -> None:
    batch, policy = random_batch(COPO(), 6), BigramPolicy(VOCABULARY, 6)
    with torch.no_grad():
        batch = batch.replace(old_log_prob=policy.evaluate(batch).log_prob)
    objective, ready = checks.prepared(COPO(), batch)
    found = checks.gradient(objective, policy, ready)
    planned = ready.planned
    blended = planned["copo/local"].unsqueeze(1) * planned["local/advantage"]
    blended = blended + planned["copo/global"].unsqueeze(1) * planned["global/advantage"]
    policy.module.zero_grad()
    per_row = torch.where(batch.mask, blended * policy.evaluate(batch).log_prob, 0).sum(1) / batch.mask.sum(1).clamp_min(1)
    (-per_row.sum() / batch.mask.any(1).sum()).backward()
    assert found.norm() > 1e-3
    torch.testing.assert_close(found[:25], policy.logits.grad.flatten(), rtol=0, atol=1e-14)


def test_5_off_policy_each_loss_has_its_own_clip() -> None:
    """r = 1.5, A_local = +1, A_global = −1, w = 1/2: the local part is clipped, the global one is not: gradient +0.75."""
    log_prob = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    old = torch.full((1, 1), -math.log(1.5), dtype=torch.float64)
    batch = batch_of([[1]], old_log_prob=old).with_planned(copo__local=torch.tensor([0.5]), copo__global=torch.tensor([0.5]))
    objective = COPO().terms(SETTING)
    planned = objective.plan(batch.with_planned(local__advantage=torch.ones(1, 1), global__advantage=-torch.ones(1, 1)))
    (slope,) = torch.autograd.grad(objective.loss(Evaluation(log_prob), planned), log_prob)
    assert float(slope) == pytest.approx(0.75, abs=1e-15)
    (both,) = torch.autograd.grad(objective.terms[0](Evaluation(log_prob), batch.replace(reward=torch.zeros(1))), log_prob)
    assert float(both) == 0.0  # advantages blended first: 0


def test_5_dual_clip() -> None:
    """A < 0 and r = 4 > 3: max(−rA, …) is capped at −3A, which has no gradient."""
    log_prob = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    objective = COPO(variant="only global").terms(SETTING)
    for ratio, expected in ((2.9, 2.9), (4.0, 0.0)):
        old = torch.full((1, 1), -math.log(ratio), dtype=torch.float64)
        batch = batch_of([[1]], old_log_prob=old).with_planned(copo__local=torch.zeros(1), copo__global=torch.ones(1))
        planned = objective.plan(batch.with_planned(local__advantage=torch.ones(1, 1), global__advantage=-torch.ones(1, 1)))
        (slope,) = torch.autograd.grad(objective.loss(Evaluation(log_prob), planned), log_prob)
        assert float(slope) == pytest.approx(expected, abs=1e-14)


# ---------------------------------------------------------------------------------------------------- 6. variants

ANSWERS = ["a", "a", "b", "b", "c", "c", "c", "c"]
REWARDS = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
HALF, LOW = 0.5, 1 / (1 + math.exp(5))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("no global", [1] * 8),
        ("only global", [0] * 8),
        ("only soft", [HALF] * 4 + [LOW] * 4),
        ("only forced", [1] * 4 + [0] * 4),
        ("soft with forced", [HALF] * 4 + [0] * 4),
        ("only zero", [1, 1, 0, 0, 0, 0, 0, 0]),
        ("soft with zero", [HALF, HALF, 0, 0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("spelled", [str, lambda v: v.replace(" ", "-"), lambda v: v.replace(" ", "_").upper()])
def test_6_variants_in_every_spelling(variant, expected, spelled) -> None:
    assert variant in VARIANTS
    assert gates(COPO(variant=spelled(variant)), batch_of(REWARDS, ANSWERS)) == pytest.approx(expected, abs=1e-7)


def test_6_soft_with_zero_trains_wrong_responses_by_the_global_loss_alone() -> None:
    batch = random_batch(COPO(), 7)
    policy = BigramPolicy(VOCABULARY, 7)

    def of_wrong(variant: str) -> torch.Tensor:
        objective, ready = checks.prepared(COPO(variant=variant), batch)
        planned = objective.plan(ready)
        wrong = planned.select(batch.reward == 0)
        policy.module.zero_grad()
        objective.loss(policy.evaluate(wrong), wrong).backward()
        return policy.logits.grad.clone()

    assert of_wrong("soft with zero").norm() > 1e-4
    assert torch.equal(of_wrong("soft with zero"), of_wrong("only global"))


# ---------------------------------------------------------------------------------------------------- the claim in closed form


def test_a_batch_of_consistent_degenerate_groups_moves_copo_and_not_grpo() -> None:
    """Prompts 0 and 1 are always right, prompts 2 and 3 always give the same wrong answer."""
    groups = [[1.0] * 4, [1.0] * 4, [0.0] * 4, [0.0] * 4]
    prompts = torch.arange(4).repeat_interleave(4)
    action = torch.stack([prompts, torch.tensor([5, 6, 7, 4])[prompts]], 1)
    batch = batch_of(groups, [str(a) for a in action[:, 1].tolist()], 2).replace(action=action)
    batch.mask[:, 0] = False
    policy = BigramPolicy(8, 3)
    with torch.no_grad():
        batch = batch.replace(old_log_prob=policy.evaluate(batch).log_prob)
    objective, ready = checks.prepared(registered()["grpo"](), batch)
    assert (checks.gradient(objective, policy, ready) == 0).all()
    objective, ready = checks.prepared(COPO(), batch)
    slope = checks.gradient(objective, policy, ready)[:64].reshape(8, 8)
    before = policy.evaluate(batch).log_prob[:, 1].detach()
    with torch.no_grad():
        policy.logits -= 0.1 * slope
    change = policy.evaluate(batch).log_prob[:, 1].detach() - before
    assert (change[:8] > 1e-4).all()
    assert (change[8:] < -1e-4).all()
    assert COPO().metrics(ready)["gate/degenerate_fraction"] == 1.0


# ---------------------------------------------------------------------------------------------------- answers


def test_answers_are_texts_or_tokens() -> None:
    batch = batch_of([[1, 0, 0, 0]], ["7", " 7 ", "8", None])
    entropy = COPO().prepare(batch, SETTING, Planning()).planned["copo/entropy"]
    torch.testing.assert_close(entropy, torch.full((4,), 1.5, dtype=torch.float64), rtol=0, atol=1e-6)  # 7 twice, 8, none
    by_token = COPO(answers="tokens").prepare(batch, SETTING, Planning()).planned["copo/entropy"]
    torch.testing.assert_close(by_token, torch.full((4,), 2.0, dtype=torch.float64), rtol=0, atol=1e-6)
    without = batch.replace(annotations={})
    assert torch.equal(COPO().prepare(without, SETTING, Planning()).planned["copo/entropy"], by_token)


def test_the_final_answer_is_extracted() -> None:
    boxed = r"\\boxed\{(.*?)\}"
    assert final_answer(r"so \boxed{3}, no: \boxed{ 4 }", boxed) == "4"
    assert final_answer("no box", boxed) == NO_ANSWER
    assert final_answer("1 + 2 = -3", r"-?\d+") == "-3"
    assert final_answer("  ", None) == NO_ANSWER


# ---------------------------------------------------------------------------------------------------- bad input, section 9


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variant": "soft with ones"}, "variant 'soft with ones' does not exist; did you mean 'soft with forced' or 'soft with zero'"),
        ({"sharpness": 0.0}, r"sharpness is 0\.0; accepted: a number above 0"),
        ({"rollouts": 1}, "rollouts is 1; accepted for copo: 2 or more"),
        ({"extract": "("}, "extract is no regular expression"),
    ],
)
def test_values_outside_their_range(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        COPO(**settings)


def test_an_unknown_variant_lists_the_valid_ones() -> None:
    with pytest.raises(InputError) as error:
        COPO(variant="something else entirely")
    assert all(variant in str(error.value) for variant in VARIANTS)


def test_bad_batches() -> None:
    def prepare(batch: Trajectories, **settings) -> None:
        COPO(**settings).prepare(batch, SETTING, Planning())

    with pytest.raises(InputError, match=r"that of row 1 is 1\.5; accepted: 0 to 1"):
        prepare(batch_of([[0, 1.5]], ["a", "b"]))
    with pytest.raises(InputError, match=r"that of row 0 is -1; accepted: 0 to 1"):
        prepare(batch_of([[-1, 1]], ["a", "b"]))
    with pytest.raises(InputError, match="the batch has no annotation 'answer'; accepted: one text per row"):
        prepare(batch_of([[0, 1]]), answers="text")
    with pytest.raises(InputError, match="3 answers for 2 rewards; accepted: one per row"):
        prepare(batch_of([[0, 1]], ["a", "b", "c"]))
    with pytest.raises(InputError, match="prompt 1 has one rollout; accepted with consistency: 2 or more"):
        prepare(batch_of([[0, 1], [1]], ["a", "b", "c"]), consistency=True)
    with pytest.raises(InputError, match="the reward of row 0 is nan"):
        prepare(batch_of([[float("nan"), 1]], ["a", "b"]))
