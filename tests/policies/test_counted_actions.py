"""Actions that can be counted: several choices at once, yes or no, the best of values; against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg.errors import InputError
from unipg.policies.actions import Actions, DiscreteActions, GreedyActions, MultiBinaryActions, MultiDiscreteActions
from unipg.policies.spaces import actions_of
from unipg.seeding import generator

DRAWS = 40_000
KINDS = [
    (spaces.Discrete(4, start=3), list(range(4))),
    (spaces.MultiDiscrete([3, 1, 2], start=[1, 0, -2]), list(itertools.product(range(3), range(1), range(2)))),
    (spaces.MultiBinary((1, 3)), list(itertools.product(range(2), repeat=3))),
]


@pytest.mark.parametrize(("space", "every"), KINDS, ids=lambda value: str(value)[:20])
def test_probabilities_entropies_and_draws_are_those_of_enumeration(space: spaces.Space, every: list) -> None:
    actions = actions_of(space)
    output = torch.randn(1, actions.outputs, generator=generator(3), dtype=torch.float64).requires_grad_()
    action = torch.tensor(every)
    log_prob, entropy = actions.log_prob(output.expand(len(every), -1), None, action, True)
    assert log_prob.shape == (len(every),)
    assert entropy is not None
    p = log_prob.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(entropy, -(p * log_prob).sum().expand_as(entropy))
    mine, exact = (torch.autograd.grad(value, output, retain_graph=True)[0] for value in (entropy[0], -(p * log_prob).sum()))
    torch.testing.assert_close(mine, exact)
    assert actions.log_prob(output.expand(len(every), -1), None, action, False)[0].tolist() == log_prob.tolist()

    noise = actions.noise(2, DRAWS, generator(4))[1]
    row = output.detach().float()
    drawn = actions.draw(row.expand(DRAWS, -1).numpy(), None, noise)
    count = {tuple(np.ravel(one)): 0 for one in every}
    for one, times in zip(*np.unique(drawn.reshape(DRAWS, -1), axis=0, return_counts=True), strict=True):
        count[tuple(one.tolist())] = int(times)
    frequency, wanted = np.array(list(count.values())) / DRAWS, p.detach().numpy()
    assert (np.abs(frequency - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / DRAWS) + 1e-6).all()

    fresh, fresh_log_prob = actions.fresh(row.expand(DRAWS, -1), torch.from_numpy(noise))
    assert np.array_equal(fresh.numpy(), drawn)
    assert fresh_log_prob is not None
    torch.testing.assert_close(fresh_log_prob, actions.log_prob(row.expand(DRAWS, -1), None, fresh, False)[0])
    likeliest, _ = actions.fresh(row, None)
    assert np.array_equal(likeliest.numpy(), actions.draw(row.numpy(), None, None))
    assert tuple(np.ravel(likeliest.numpy()[0])) == tuple(np.ravel(every[int(p.argmax())]))


@pytest.mark.parametrize(("space", "every"), KINDS, ids=lambda value: str(value)[:20])
def test_the_environment_is_given_its_own_numbers(space: spaces.Space, every: list) -> None:
    actions = actions_of(space)
    stored = np.array(every, np.int64)
    given = actions.for_environment(stored)
    assert all(space.contains(action) for action in given)
    assert len(np.unique(given.reshape(len(every), -1), axis=0)) == len(every)
    assert np.array_equal(actions.from_environment(given), stored)
    warm = actions.random(3, DRAWS, generator(5))
    assert warm.shape == (3, DRAWS, *stored.shape[1:])
    found, times = np.unique(warm[1].reshape(DRAWS, -1), axis=0, return_counts=True)
    assert len(found) == len(every)
    share = 1 / len(every)
    assert (np.abs(times / DRAWS - share) <= 5 * math.sqrt(share * (1 - share) / DRAWS)).all()


def test_a_thousand_actions_one_of_them_far_above() -> None:
    actions = DiscreteActions(1000)
    for low, high in ((-50.0, 50.0), (-math.inf, 50.0)):
        logits = torch.full((3, 1000), low)
        logits[:, 417] = high
        logits.requires_grad_()
        log_prob, entropy = actions.log_prob(logits, None, torch.tensor([417, 417, 417]), True)
        assert entropy is not None
        (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), logits)
        assert log_prob.tolist() == pytest.approx([0.0] * 3, abs=1e-6)
        assert entropy.isfinite().all()
        assert gradient.isfinite().all()
        noise = actions.noise(1, 3, generator(0))[0]
        assert actions.draw(logits.detach().numpy(), None, noise).tolist() == [417] * 3
    rare, _ = actions.log_prob(torch.tensor([[50.0] + [-50.0] * 999]), None, torch.tensor([5]), False)
    assert rare.item() == pytest.approx(-100)


@pytest.mark.parametrize("actions", [MultiBinaryActions((3,)), MultiDiscreteActions((2, 2, 2), (0, 0, 0), (3,))])
def test_certain_choices_have_finite_values_and_gradients(actions: Actions) -> None:
    output = torch.full((2, actions.outputs), 50.0) * torch.tensor([-1.0, 1.0]).repeat(actions.outputs)[: actions.outputs]
    output.requires_grad_()
    log_prob, entropy = actions.log_prob(output, None, torch.tensor([[0, 1, 0], [1, 0, 1]]), True)
    assert entropy is not None
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), output)
    assert log_prob.isfinite().all()
    assert entropy.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    assert gradient.isfinite().all()


def test_the_best_value_or_with_epsilon_any() -> None:
    actions = actions_of(spaces.Discrete(5, start=1), "greedy")
    assert actions == GreedyActions(5, 1)
    values = np.tile(np.array([0.0, 3.0, -1.0, 2.0, 1.0], np.float32), (DRAWS, 1))
    noise = actions.noise(1, DRAWS, generator(0))[0]
    assert noise.shape == (DRAWS, 6)
    assert (actions.draw(values, None, None) == 1).all()
    assert (actions.draw(values, 0.0, noise) == 1).all()
    for epsilon in (0.3, 1.0):
        share = np.bincount(actions.draw(values, epsilon, noise), minlength=5) / DRAWS
        expected = np.full(5, epsilon / 5)
        expected[1] += 1 - epsilon
        assert (np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-9).all()
    assert actions.fresh(torch.from_numpy(values[:2]), None)[0].tolist() == [1, 1]
    with pytest.raises(InputError, match="greedy actions have no log-probability"):
        actions.log_prob(torch.zeros(1, 5), None, torch.tensor([0]), False)


@pytest.mark.parametrize(
    ("space", "kind", "message"),
    [
        (spaces.Discrete(3), "squashed", r"Discrete\(3\), of which a squashed policy can make nothing; accepted: a Box of real numbers"),
        (spaces.Box(-1, 1, (2,)), "greedy", r"of which a greedy policy can make nothing; accepted: Discrete$"),
        (spaces.MultiDiscrete([2, 2]), "greedy", r"greedy policy can make nothing; accepted: Discrete$"),
        (spaces.Discrete(3), "sqashed", "did you mean 'squashed'"),
    ],
)
def test_kinds_that_a_space_cannot_have_are_named(space: spaces.Space, kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        actions_of(space, kind)  # type: ignore[arg-type]
