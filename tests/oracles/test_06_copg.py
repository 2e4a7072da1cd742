"""Oracles of contrastive policy gradient (CoPG): the three equal forms, its fixed point, and IPO and RLOO as special cases."""

import itertools

import pytest
import torch

from unipg import Evaluation, Planning, Source, Trajectories
from unipg.algorithms import Setting, registered
from unipg.errors import InputError
from unipg.estimator import Contrastive, GroupMeanTokenSum, PolicyGradient

BETA, REWARD = 0.5, torch.tensor([2.5, 2.0, 1.0], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
UNIFORM = torch.full((3,), -torch.log(torch.tensor(3.0, dtype=torch.float64)).item(), dtype=torch.float64)
OBJECTIVE = PolicyGradient(advantage=Contrastive(BETA), aggregate=GroupMeanTokenSum(), rows=(Source.PREFERENCE,))


def arms(
    chosen: list[int], group: list[int] | None = None, reward: torch.Tensor = REWARD, source: Source = Source.PREFERENCE
) -> Trajectories:
    """Arms of the bandit as completions of one token, all of one prompt unless `group` says otherwise."""
    index = torch.tensor(chosen)
    return Trajectories(
        action=index.unsqueeze(1),
        mask=torch.ones(len(chosen), 1, dtype=torch.bool),
        group=torch.tensor(group or [0] * len(chosen)),
        source=torch.full((len(chosen),), int(source)),
        reward=reward[index],
        anchor_log_prob=UNIFORM[index].unsqueeze(1),
    )


def ascent(batch: Trajectories, logits: torch.Tensor = LOGITS, objective: PolicyGradient = OBJECTIVE) -> torch.Tensor:
    """[3] minus the gradient of the loss in the logits."""
    leaf = logits.clone().requires_grad_()
    now = Evaluation(torch.log_softmax(leaf, -1)[batch.action])
    (gradient,) = torch.autograd.grad(objective(now, batch), leaf)
    return -gradient


def undetached(i: int, j: int, logits: torch.Tensor) -> torch.Tensor:
    """The paper's loss of a pair, to be maximised: differentiable through everything, with beta / 2."""
    rho = torch.log_softmax(logits, -1) - UNIFORM
    half = REWARD - 0.5 * BETA * rho
    return (half[i] - half[j]) * rho[i] + (half[j] - half[i]) * rho[j]


def squared(i: int, j: int, logits: torch.Tensor) -> torch.Tensor:
    rho = torch.log_softmax(logits, -1) - UNIFORM
    gap = REWARD[i] - REWARD[j]
    return -(1 / (2 * BETA)) * (gap - BETA * (rho[i] - rho[j])) ** 2 + gap**2 / (2 * BETA)


def test_c1_a_pair_by_hand() -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = undetached(0, 2, leaf)
    assert loss.item() == pytest.approx(0.29, abs=1e-12)
    expected = torch.tensor([1.4, 0.0, -1.4], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(squared(0, 2, leaf), leaf)[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ascent(arms([0, 2])), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair", list(itertools.product(range(3), repeat=2)))
def test_the_three_forms_are_one(pair: tuple[int, int]) -> None:
    leaf = torch.tensor([-0.7, 0.4, 1.1], dtype=torch.float64, requires_grad=True)
    for form in (undetached, squared):
        (expected,) = torch.autograd.grad(form(*pair, leaf), leaf)
        torch.testing.assert_close(ascent(arms(list(pair)), leaf.detach()), expected, rtol=0, atol=1e-14)


def test_c2_on_policy_it_is_twice_the_policy_gradient() -> None:
    policy = torch.softmax(LOGITS, -1)
    total = sum(policy[i] * policy[j] * ascent(arms([i, j])) for i, j in itertools.product(range(3), repeat=2))
    leaf = LOGITS.clone().requires_grad_()
    log_policy = torch.log_softmax(leaf, -1)
    value = (log_policy.exp() * (REWARD - BETA * (log_policy - UNIFORM))).sum()
    torch.testing.assert_close(total, 2 * torch.autograd.grad(value, leaf)[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(total, torch.tensor([0.441305, 0.142621, -0.583926], dtype=torch.float64), rtol=0, atol=1e-6)


def test_c3_the_fixed_point_does_not_depend_on_where_the_data_comes_from() -> None:
    first, second = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.05, 0.05, 0.9])
    total = sum(first[i] * second[j] * ascent(arms([i, j]), REWARD / BETA) for i, j in itertools.product(range(3), repeat=2))
    assert total.abs().max() < 1e-14


@pytest.mark.parametrize("chosen", [[0, 2], [0, 1, 2, 2], [1, 1, 1, 0]])
def test_c4_on_policy_it_is_rloo_with_the_kl_in_the_reward(chosen: list[int]) -> None:
    batch = arms(chosen, source=Source.ROLLOUT)
    log_prob = torch.log_softmax(LOGITS, -1)[batch.action]
    rloo = registered()["rloo"](kl_in_reward=BETA)
    ready = rloo.prepare(batch.replace(old_log_prob=log_prob), Setting(1), Planning())
    leaf = LOGITS.clone().requires_grad_()
    loss = rloo.terms(Setting(1))(Evaluation(torch.log_softmax(leaf, -1)[batch.action]), ready)
    expected = -len(chosen) * torch.autograd.grad(loss, leaf)[0]  # RLOO is a mean over rows, CoPG a sum over a prompt's rows
    torch.testing.assert_close(ascent(arms(chosen)), expected, rtol=0, atol=1e-12)


def test_c4_several_completions_are_all_their_pairs() -> None:
    chosen = [0, 1, 2, 2]
    pairs = sum(ascent(arms([a, b])) for a, b in itertools.combinations(chosen, 2))
    torch.testing.assert_close(ascent(arms(chosen)), pairs / 3, rtol=0, atol=1e-15)


def test_c5_signs_for_rewards_give_ipo() -> None:
    signs = torch.tensor([0.25, 0.0, -0.25], dtype=torch.float64)
    leaf = LOGITS.clone().requires_grad_()
    rho = torch.log_softmax(leaf, -1) - UNIFORM
    (slope,) = torch.autograd.grad((rho[0] - rho[2] - 1 / (2 * BETA)) ** 2, leaf)
    torch.testing.assert_close(ascent(arms([0, 2], reward=signs)), -BETA / 2 * slope, rtol=0, atol=1e-14)
    ipo = registered()["ipo"](beta=BETA)
    labels = arms([0, 2], reward=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(ascent(labels, objective=ipo.objective(Setting(1))), -slope, rtol=0, atol=1e-14)


def test_c6_a_constant_of_the_prompt_changes_nothing() -> None:
    batch = arms([0, 1, 2, 1], [0, 0, 1, 1])
    moved = batch.replace(reward=batch.reward + torch.tensor([3.0, 3.0, -5.0, -5.0]))
    torch.testing.assert_close(ascent(moved), ascent(batch), rtol=0, atol=1e-14)


def test_equal_completions_give_nothing_and_equal_scores_pull_together() -> None:
    assert (ascent(arms([1, 1])) == 0).all()
    even = torch.zeros(3, dtype=torch.float64)
    found = ascent(arms([0, 1], reward=even))
    assert found[0] < 0 < found[1]  # arm 0 is the likelier one


@pytest.mark.parametrize("beta", [0.0, -0.1, float("inf"), float("nan")])
def test_bad_beta(beta: float) -> None:
    with pytest.raises(InputError, match=r"accepted: a number above 0"):
        Contrastive(beta)


def test_bad_batches() -> None:
    copg = registered()["copg"]()
    with pytest.raises(InputError, match="one scored completion; accepted: 2 or more"):
        copg.prepare(arms([0, 1, 2], [0, 0, 1]), Setting(1), Planning())
    empty = arms([0, 1])
    with pytest.raises(InputError, match="empty completion"):
        copg.prepare(empty.replace(mask=torch.tensor([[True], [False]])), Setting(1), Planning())
    now = Evaluation(torch.zeros(2, 1, dtype=torch.float64))
    with pytest.raises(InputError, match="reward of row 1 is nan"):
        OBJECTIVE(now, empty.replace(reward=torch.tensor([1.0, torch.nan])))
    with pytest.raises(InputError, match="anchor_log_prob is -inf at row 1"):
        OBJECTIVE(now, empty.replace(anchor_log_prob=torch.tensor([[0.0], [-torch.inf]])))
