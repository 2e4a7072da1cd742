"""Exact gradients: by hand, against finite differences, against the estimator summed over every trajectory; problems and their limits."""

import dataclasses
import math

import pytest
import torch

from unipg import CurrentPolicy, InputError, OldPolicy, Outcome, PolicyGradient, SequenceMeanTokenSum
from unipg.lab import bandit, counting, problem_named, tree
from unipg.lab.exact import ExactProblem
from unipg.lab.problems import PROBLEMS
from unipg.lab.strings import StringProblem

REWARDS, LOGITS, BETA, MU = (1.0, 0.0, 0.5), (0.2, -0.1, 0.4), (0.5, 0.3, 0.2), 0.7


def close(found, expected, tolerance=1e-12) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance)


def test_u1_common_objective_on_a_bandit() -> None:
    problem = bandit([REWARDS], [LOGITS], [BETA])
    gradient = problem.gradient(lambda policy: problem.common_objective(MU, policy))
    close(gradient[:3], (0.267714, -0.101047, -0.166667), 1e-6)
    assert (gradient[3:] == 0).all()


def test_gradients_on_a_bandit_by_hand() -> None:
    """p_k (r_k − p·r) for the reward, beta − p for the likelihood, p_k (log p_k/a_k − KL) for the divergence from the anchor."""
    problem = bandit([REWARDS], [LOGITS], [BETA])
    p = torch.tensor(LOGITS, dtype=torch.float64).softmax(0)
    r, beta = torch.tensor(REWARDS, dtype=torch.float64), torch.tensor(BETA, dtype=torch.float64)
    close(problem.gradient(problem.expected_reward)[:3], p * (r - p @ r))
    close(problem.gradient(problem.demonstration_likelihood)[:3], beta - p)
    log_ratio = (3 * p).log()  # the anchor is uniform
    kl = p @ log_ratio
    close(problem.divergence_from_anchor().detach(), kl)
    close(problem.gradient(problem.divergence_from_anchor)[:3], p * (log_ratio - kl))
    regularised = problem.gradient(lambda policy: problem.regularised_reward(0.3, policy))
    close(regularised[:3], p * (r - p @ r) - 0.3 * p * (log_ratio - kl))


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_against_finite_differences(name: str) -> None:
    problem = problem_named(name, seed=3)
    draw = torch.Generator().manual_seed(0)
    objectives = (
        problem.expected_reward,
        problem.demonstration_likelihood,
        problem.divergence_from_anchor,
        lambda policy: problem.common_objective(MU, policy),
        lambda policy: problem.regularised_reward(0.2, policy),
    )
    for objective in objectives:
        gradient = problem.gradient(objective)
        assert gradient.norm() > 1e-3
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=draw)
        ends = []
        for sign in (1, -1):
            moved = problem.policy.twin()
            with torch.no_grad():
                moved.logits.add_(direction.reshape(moved.logits.shape), alpha=sign * 1e-5)
                ends.append(float(objective(moved)))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient @ direction), abs=1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("lag", [0, 3])
def test_the_estimator_summed_over_every_trajectory_is_exact(name: str, lag: int) -> None:
    """Σ_tau p_old(tau) · (pi/pi_old)(tau) · R · ∇log pi(tau), with the library's own parts, is the gradient of E[R] to float64."""
    problem = problem_named(name, seed=1)
    old = problem.lagged(lag, 0.2)
    with torch.no_grad():
        old_log_prob = problem.log_prob(old)
        # one weight a row: the trajectory's ratio, on each of its tokens
        ratio = torch.where(problem.rows.mask, problem.log_prob() - old_log_prob, 0).sum(1, keepdim=True)
        weight = problem.probability_of(old_log_prob)
        reward = problem.rows.total_reward() * weight * len(problem.rows) / problem.contexts
    rows = problem.rows.replace(step_reward=None, reward=reward, old_log_prob=problem.log_prob().detach() - ratio)
    term = PolicyGradient(reference=OldPolicy(), advantage=Outcome(), aggregate=SequenceMeanTokenSum())
    (found,) = torch.autograd.grad(-term(problem.policy.evaluate(rows), rows), problem.policy.logits)
    exact = problem.gradient(problem.expected_reward)
    assert float((found.flatten() - exact).norm() / exact.norm()) < 1e-10
    if lag:  # and without the weight it is not
        biased = dataclasses.replace(term, reference=CurrentPolicy())
        (found,) = torch.autograd.grad(-biased(problem.policy.evaluate(rows), rows), problem.policy.logits)
        assert float((found.flatten() - exact).norm() / exact.norm()) > 1e-2


@pytest.mark.parametrize("name", PROBLEMS)
def test_probabilities_add_up(name: str) -> None:
    problem = problem_named(name, seed=2)
    for weights in (problem.probability().detach(), problem.demonstrator):
        for context in range(problem.contexts):
            assert float(weights[problem.context == context].sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_values_are_expectations(name: str) -> None:
    """The first value is the context's expected reward; along a trajectory, values differ from what follows by nothing on average."""
    problem = problem_named(name, seed=2)
    with torch.no_grad():
        p, values = problem.probability(), problem.values(problem.log_prob())
    rows = problem.rows
    first = values.gather(1, rows.mask.int().argmax(1, keepdim=True)).squeeze(1)
    reward = rows.total_reward()
    for context in range(problem.contexts):
        mine = problem.context == context
        close(first[mine], (p * reward)[mine].sum().expand(int(mine.sum())))
    earned = torch.zeros_like(values) if rows.step_reward is None else rows.step_reward
    following = torch.cat([values[:, 1:], torch.zeros(len(rows), 1)], 1)
    surprise = torch.where(rows.mask, earned + torch.where(rows.terminated, rows.reward.unsqueeze(1), following) - values, 0)
    assert surprise.abs().max() > 0.05
    close(p @ surprise, torch.zeros(rows.mask.shape[1]))


def test_lagged_policy_is_behind_and_a_step_from_it_leads_back() -> None:
    problem = counting()
    past = problem.lagged(1, 0.1)
    assert float(problem.expected_reward(past).detach()) < float(problem.expected_reward().detach())
    assert float((problem.policy.logits - past.logits).detach().norm()) == pytest.approx(0.1, abs=1e-12)
    assert torch.equal(problem.lagged(0, 0.1).logits, problem.policy.logits)


def test_strings_that_end() -> None:
    problem = StringProblem(vocabulary=3, prompts=(0,), length=3, end=2)
    answers = problem.answers()
    # 2, then (0|1)2, then (0|1)(0|1)(0|1|2)
    assert len(answers) == len(set(answers)) == problem.count == 1 + 2 + 12
    assert all(a[:-1].count(2) == 0 and (a[-1] == 2 or len(a) == 3) for a in answers)
    assert answers == sorted(answers)
    batch = problem.batch([(0, (2,)), (0, (0, 1, 0))], [0, 0])
    assert batch.mask.tolist() == [[False, True, False, False], [False, True, True, True]]
    assert batch.terminated.tolist() == [[False, True, False, False], [False, False, False, True]]


def test_tree_by_hand() -> None:
    """Depth 1, two actions, slip s: P(left | action left) = 1 − s/2; the exact value is a one-line sum."""
    logits = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    problem = tree(logits, depth=1, leaf_reward=lambda start, leaf: float(leaf == 1), step_reward=lambda node, a: -0.1 * a, slip=0.4)
    p = logits.softmax(1)[0]
    expected = p[0] * 0.2 + p[1] * (0.8 - 0.1)
    close(problem.expected_reward().detach(), expected)
    assert len(problem.rows) == 4
    # d/dlogits of p0·0.2 + p1·0.7
    slope = float(p[0] * p[1]) * 0.5
    close(problem.gradient(problem.expected_reward), (-slope, slope))
    sure = tree(torch.zeros(3, 2, dtype=torch.float64), depth=2, leaf_reward=lambda start, leaf: float(leaf))
    assert len(sure.rows) == 4
    assert float(sure.expected_reward().detach()) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: counting(vocabulary=8), "^960800 strings are too many to enumerate; the limit is 100000"),  # 7^7 + 7^6 + … + 1
        (lambda: counting(vocabulary=7), "335922 strings .over all prompts."),
        (lambda: StringProblem(vocabulary=10, length=6), "^1000000 strings are too many to enumerate; the limit is 100000"),
        (lambda: counting(length=20000), r"about 10\^"),
        (lambda: problem_named("tree", length=9), "524288 paths"),
        (lambda: problem_named("bandit", vocabulary=1000), "999000 arms"),
        (lambda: problem_named("string"), "did you mean 'strings'"),
        (lambda: problem_named("bandit", length=2), "length is 1, not 2"),
        (lambda: counting(vocabulary=4, length=2), "accepted: 3 or more"),
        (lambda: counting(vocabulary=1), "accepted: 2 or more"),
        (lambda: bandit([(1, 0)] * 3, [(0, 0)] * 3), "room for 2 contexts"),
        (lambda: tree(torch.zeros(4, 2), depth=2, leaf_reward=lambda s, n: 0.0), "3 inner nodes"),
    ],
)
def test_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_an_action_that_is_never_taken_has_probability_zero() -> None:
    problem: ExactProblem = bandit([REWARDS], [LOGITS])
    log_prob = torch.tensor([[0, math.log(0.5)], [0, math.log(0.5)], [0, -math.inf]], dtype=torch.float64)
    close(problem.probability_of(log_prob), (0.5, 0.5, 0.0))
    close(problem.values(log_prob)[:, 1], (0.5, 0.5, 0.5))
