"""Monte-Carlo measurements against what is known exactly: unbiased methods are found unbiased, stated biases are seen."""

import dataclasses
import itertools
import math

import pytest
import torch

from unipg import InputError, Objective, Planning
from unipg.algorithms import Setting, registered
from unipg.algorithms.control.reinforce import Reinforce
from unipg.algorithms.language.dapo import DAPO
from unipg.algorithms.language.grpo import GRPO
from unipg.algorithms.language.polychromic import Polychromic
from unipg.algorithms.language.rloo import RLOO
from unipg.lab import bandit, counting, problem_named
from unipg.lab.gradients import Draw, Sampler, ascent_directions, kept, study_batches
from unipg.lab.measures import measure, nearest_in_cone
from unipg.lab.study import Conditions, adapted, claimed_objective, draw_for, examine, expected_score, instances, run_study
from unipg.seeding import generator

PROBLEM = counting()


def studied(algorithm, batches: int = 200, problem=PROBLEM, **conditions):
    return examine(adapted(algorithm, 4, None), problem, Sampler.of(problem), batches, **conditions)


# ------------------------------------------------------------------------------------------------ measures


def test_measures_of_a_known_distribution() -> None:
    """E[G] = (3, 4), unit noise in 2 dimensions, target along the first axis: the 95 % intervals hold the truth in most of 40 samples."""
    target = torch.tensor([2.0, 0.0], dtype=torch.float64)
    truth = {"cosine": 0.6, "bias": 0.8, "variance": 2 / 25, "snr": math.sqrt(25 / 2)}
    inside = dict.fromkeys(truth, 0)
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        gradients = torch.randn(500, 2, dtype=torch.float64, generator=draw) + torch.tensor([3.0, 4.0], dtype=torch.float64)
        found = measure(gradients, [target], seed)
        for name, expected in truth.items():
            interval = getattr(found, name)
            inside[name] += interval.low <= expected <= interval.high
            assert 0 < interval.high - interval.low < 0.25 * expected
    assert min(inside.values()) >= 34  # 38 expected; fewer than 34 has a chance of 1 in 70
    assert found.scale[0] == pytest.approx(1.5, abs=0.1)
    assert found.norm == pytest.approx(5, abs=0.2)


def test_few_noisy_batches_do_not_look_biased() -> None:
    """A plain cosine of the mean would be pulled far below 1 by the noise of 50 batches."""
    target = torch.zeros(30, dtype=torch.float64)
    target[0] = 1
    plain, below = [], 0
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        gradients = target + torch.randn(50, 30, dtype=torch.float64, generator=draw)
        below += measure(gradients, [target], seed).cosine.high < 1
        plain.append(float(torch.cosine_similarity(gradients.mean(0), target, dim=0)))
    assert max(plain) < 0.95
    assert below <= 4


def test_a_gradient_that_points_away_or_nowhere() -> None:
    draw = torch.Generator().manual_seed(0)
    target = torch.tensor([1.0, 0.0], dtype=torch.float64)
    away = measure(-target + 0.1 * torch.randn(50, 2, dtype=torch.float64, generator=draw), [target])
    assert away.bias.value == 1
    assert away.cosine.value < -0.99
    assert away.scale == (0.0,)
    nowhere = measure(torch.zeros(5, 2, dtype=torch.float64), [target])
    assert nowhere.bias.value == 1
    assert nowhere.variance.value == math.inf
    assert nowhere.snr.value == 0
    always = measure(torch.tensor([[0.1, 0.3]], dtype=torch.float64).expand(7, 2), [target])
    assert always.variance.value == pytest.approx(0, abs=1e-12)
    assert always.variance.value >= 0
    assert always.cosine.value == pytest.approx(0.1**0.5)
    with pytest.raises(InputError, match="2 or more"):
        measure(torch.zeros(1, 2, dtype=torch.float64), [target])


def test_nearest_in_a_cone_by_hand() -> None:
    x, y = torch.eye(2, dtype=torch.float64)
    for vector, weights in (((2.0, 3.0), [2, 3]), ((2.0, -3.0), [2, 0]), ((-1.0, 5.0), [0, 5]), ((-1.0, -1.0), [0, 0])):
        found, target = nearest_in_cone(torch.tensor(vector, dtype=torch.float64), [x, y])
        assert found == pytest.approx(weights)
        torch.testing.assert_close(target, weights[0] * x + weights[1] * y if any(weights) else x + y)


# ------------------------------------------------------------------------------------------------ gradients of batches


@pytest.mark.parametrize("name", [algorithm.name for algorithm in instances()])
def test_copies_give_each_batch_its_own_gradient(name: str) -> None:
    """The shared backward pass against one batch at a time, through the algorithm's own loss."""
    algorithm = adapted(registered()[name](), 3, None)
    sampler = Sampler.of(PROBLEM, PROBLEM.lagged(2, 0.1))
    objective, planned = study_batches(algorithm, PROBLEM, sampler, draw_for(algorithm, PROBLEM), 3, generator(0, name))
    found = ascent_directions(objective, PROBLEM.policy, planned)
    for batch, direction in zip(planned, found, strict=True):
        now = PROBLEM.policy.evaluate(batch, entropy=True, value=True, readings=objective.readings)
        (slope,) = torch.autograd.grad(objective.loss(now, batch), PROBLEM.policy.logits)
        torch.testing.assert_close(direction, -slope.flatten(), rtol=0, atol=1e-14)
    assert found.norm() > 1e-3


def test_given_completions_are_refused() -> None:
    with pytest.raises(InputError, match="'dpo' learns from given completions"):
        instances(["grpo", "dpo"])


@pytest.mark.parametrize("algorithm", [RLOO(), Reinforce(signed=False), Reinforce(signed=False, baseline=0.4)])
@pytest.mark.parametrize("name", ["bandit", "strings", "tree"])
def test_unbiased_methods_have_the_exact_gradient(algorithm, name: str) -> None:
    """In direction, by the interval; and each component in size, within four standard errors."""
    problem = problem_named(name, seed=1)
    algorithm = adapted(algorithm, 4, None)
    result = examine(algorithm, problem, Sampler.of(problem), 150)
    assert result.measured.cosine.high == 1
    assert result.measured.bias.low == 0
    assert (result.ess, result.masked) == (1, 0)
    draw = draw_for(algorithm, problem)
    objective, planned = study_batches(algorithm, problem, Sampler.of(problem), draw, 150, generator(0, "again"))
    gradients = ascent_directions(objective, problem.policy, planned)
    exact = problem.gradient(problem.expected_reward)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - exact).abs() <= 4 * error + 1e-12).all()
    assert (error[exact != 0] < 0.5 * exact.abs().max()).all()


def test_grpos_stated_bias_is_seen_and_has_the_enumerated_size() -> None:
    """The Monte-Carlo mean against the exact expectation over all pairs of answers, component by component."""
    problem = bandit([(1.0, 0.0, 0.5), (0.2, 1.0, 0.0)], [(0.2, -0.1, 0.4), (1.5, -1.0, 0.0)])
    grpo = adapted(GRPO(), 2, None)
    setting = Setting(max_new_tokens=1)
    objective = grpo.terms(setting)
    expected = torch.zeros(9, dtype=torch.float64)
    with torch.no_grad():
        p, log_prob = problem.probability(), problem.log_prob()
    for context in range(2):
        for pair in itertools.product(range(3 * context, 3 * context + 3), repeat=2):
            batch = problem.rows.replace(old_log_prob=log_prob).select(list(pair))
            now = problem.policy.evaluate(batch)
            loss = objective(now, batch, Planning())
            (slope,) = torch.autograd.grad(loss, problem.policy.logits)
            expected -= 0.5 * float(p[list(pair)].prod()) * slope.flatten()
    sampler = Sampler.of(problem)
    _, planned = study_batches(grpo, problem, sampler, draw_for(grpo, problem), 400, generator(5, "grpo"))
    gradients = ascent_directions(objective, problem.policy, planned)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - expected).abs() <= 4 * error + 1e-12).all()
    exact = problem.gradient(problem.expected_reward)
    cosine = float(torch.cosine_similarity(expected, exact, dim=0))
    found = measure(gradients, [exact]).cosine
    assert found.low < cosine < found.high < 1


def test_stated_biases_are_seen_on_the_default_problem() -> None:
    for name in ("grpo", "dapo", "reinforce", "dft", "srft"):
        algorithm = registered()[name]()
        assert algorithm.bias
        assert studied(algorithm, 60).measured.bias.low > 0.03, name
    for name in ("sft", "dr_grpo"):
        assert not registered()[name]().bias
        assert studied(registered()[name](), 60).measured.bias.low == 0, name


def test_a_kl_in_the_reward_follows_the_regularised_objective() -> None:
    result = studied(RLOO(kl_in_reward=0.3), 150)
    assert result.objective == "E[R] − KL"
    assert result.measured.cosine.high == 1
    assert result.reward_cosine < 0.99


def test_claimed_objectives() -> None:
    names = {name: claimed_objective(algorithm(), PROBLEM)[0] for name, algorithm in registered(answers=True).items()}
    assert names["sft"] == names["dft"] == "likelihood"
    assert names["hpt"] == names["luffy"] == names["srft"] == "J_mu"
    assert names["ppo"] == names["grpo"] == "E[R]"
    assert names["polychromic"] == "E[F]"
    assert claimed_objective(Polychromic(kl=0.1), PROBLEM)[0] == "E[F] − KL"
    assert claimed_objective(Polychromic(diversity="math:fsum"), PROBLEM)[0] == "E[R]"


@pytest.mark.parametrize("diversity", ["fraction", "none_if_alike", "none"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("name", "sizes"), [("strings", (3, None)), ("tree", (2, 2))])  # a tree's actions do not tell where one slipped
def test_the_expected_score_of_sets_is_the_sum_over_all_of_them(name, sizes, size, diversity) -> None:
    problem = problem_named(name, 0, *sizes)
    low, high = float(problem.rows.total_reward().min()) - 0.5, float(problem.rows.total_reward().max())
    algorithm = Polychromic(set_size=size, diversity=diversity, reward_low=low, reward_high=high)
    reward, p = (problem.rows.total_reward() - low) / (high - low), problem.probability().detach()
    answers = algorithm.signatures(problem.rows)
    expected = 0.0
    for context in range(problem.contexts):
        mine = (problem.context == context).nonzero().squeeze(-1).tolist()
        for members in itertools.product(mine, repeat=size):
            different = len({answers[row] for row in members})
            d = {"fraction": different / size, "none_if_alike": (different - 1) / (size - 1), "none": 1.0}[diversity]
            expected += float(p[list(members)].prod() * reward[list(members)].mean()) * d / problem.contexts
    assert expected_score(algorithm, problem, problem.policy).item() == pytest.approx(expected, abs=1e-12)


def test_sets_are_measured_against_their_own_score() -> None:
    """Averages over tokens lean towards short answers, sums over them do not."""
    plain = Polychromic(aggregate="sequence_mean_token_sum")
    for algorithm in (plain, dataclasses.replace(plain, set_size=3, diversity="none_if_alike")):
        result = studied(algorithm, 150)
        assert result.objective == "E[F]"
        assert result.measured.bias.low == 0
        assert result.reward_cosine < 0.99
    assert studied(Polychromic(), 150).measured.bias.low > 0.1


def test_wrong_scores_shrink_the_gradient_by_one_less_twice_their_share() -> None:
    """E[score] = (1 − 2 p) R + p."""
    plain, noisy = (studied(RLOO(), 200, noise=p).measured for p in (0.0, 0.3))
    assert noisy.scale[0] / plain.scale[0] == pytest.approx(0.4, abs=0.08)
    assert noisy.variance.low > 3 * plain.variance.high
    assert noisy.cosine.high == 1


def test_an_older_sampler_biases_what_does_not_correct_and_a_clip_masks() -> None:
    results = run_study(instances(["grpo", "sft", "rloo", "cispo"]), PROBLEM, Conditions(lags=(0, 10), group_sizes=(4,), batches=80))
    found = {(r.name, r.lag): r for r in results}
    assert found["grpo", 0].masked == found["cispo", 10].masked == 0
    assert found["grpo", 10].masked > 0.05
    assert found["grpo", 10].measured.bias.low > found["grpo", 0].measured.bias.high
    assert found["rloo", 0].measured.bias.low == 0 < found["rloo", 10].measured.bias.low
    assert found["sft", 10].measured.bias.low == 0
    assert found["cispo", 10].ess < found["cispo", 0].ess == 1


def test_cases_follow_the_lists() -> None:
    conditions = Conditions(group_sizes=(2, 4), lags=(0,), clips=(0.1, 0.3), noises=(0.0, 0.1), batches=3)
    told: list[float] = []
    results = run_study(instances(["grpo", "rloo", "sft"]), PROBLEM, conditions, progress=told.append)
    counts = {name: sum(r.name == name for r in results) for name in ("grpo", "rloo", "sft")}
    assert counts == {"grpo": 8, "rloo": 4, "sft": 2}  # rloo has no clip, sft neither clip nor group
    assert {r.clip for r in results if r.name == "grpo"} == {0.1, 0.3}
    assert {r.clip for r in results if r.name != "grpo"} == {None}
    assert told[-1] == 1
    assert told == sorted(told)
    again = run_study(instances(["grpo", "rloo", "sft"]), PROBLEM, conditions)
    for one, other in zip(again, results, strict=True):  # but for the last bits: how arrays lie in memory decides the order of sums
        for name, value in one.as_json().items():
            theirs = other.as_json()[name]
            number = isinstance(value, float | dict | tuple)
            assert value == (pytest.approx(theirs, rel=1e-9, nan_ok=True) if number else theirs), name
    other = run_study(instances(["rloo"]), PROBLEM, conditions, seed=1)
    assert other[0].measured.norm != next(r for r in results if r.name == "rloo").measured.norm


def test_dynamic_sampling_replaces_groups_without_signal() -> None:
    algorithm = dataclasses.replace(DAPO(), rollouts=2)
    draw = Draw(6, 2, demonstrations=False)
    random = generator(0, "dapo")
    asked: list[int] = []

    def fresh(number: int, missing: int):
        asked.append(missing)
        return dataclasses.replace(draw, groups=missing)(PROBLEM, Sampler.of(PROBLEM), 1, random)[0]

    batch = kept(algorithm, fresh, 6)
    assert asked[0] == 6
    assert asked[1] < 6
    for group in batch.group.unique():
        assert len(set(batch.reward[batch.group == group].tolist())) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": 1}, "2 or more"),
        ({"group_sizes": (0,)}, "group_sizes holds 0; accepted: numbers 1 or more"),
        ({"lags": (0, -1)}, "lags holds -1"),
        ({"clips": (1.5,)}, "from 0 to 1"),
        ({"noises": (0.7,)}, "noises holds 0.7; accepted: numbers from 0 to 0.5"),
        ({"noises": (math.nan,)}, "noises holds nan"),
        ({"lags": ()}, "lags holds nothing"),
    ],
)
def test_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Conditions(**changes)


def test_a_group_that_is_too_small_is_refused_by_the_algorithm() -> None:
    with pytest.raises(InputError, match="rollouts is 1; accepted for grpo: 2 or more"):
        run_study(instances(["grpo"]), PROBLEM, Conditions(group_sizes=(1,), batches=2))


def test_another_objective_can_be_put_in_an_algorithms_place() -> None:
    plain = RLOO(rollouts=4).terms(Setting())
    doubled = studied(RLOO(), 50, objective=Objective(tuple(2.0 * t for t in plain.terms)))
    assert doubled.measured.norm == pytest.approx(2 * studied(RLOO(), 50).measured.norm)
