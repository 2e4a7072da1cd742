"""Real actions inside bounds: densities against quadrature and samples, far tails, gradients, units."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg.errors import InputError
from unipg.estimator.likelihoods import log_slope_of_tanh
from unipg.policies.actions import BoxActions, DeterministicActions, SquashedActions
from unipg.policies.spaces import actions_of
from unipg.seeding import generator

LOPSIDED = spaces.Box(np.array([-2.0, 0.5], np.float32), np.array([2.0, 10.5], np.float32))
BOXES = [spaces.Box(100.0, 200.0, (1,)), spaces.Box(-1.0, 3.0, (1,)), LOPSIDED]


def squashed(space: spaces.Box) -> SquashedActions:
    actions = actions_of(space, "squashed")
    assert isinstance(actions, SquashedActions)
    return actions


@pytest.mark.parametrize("output", [[0.3, -1.0, -0.5, 0.2], [0.0, 2.0, 0.4, -1.5]])
def test_a_squashed_density_integrates_to_1_over_the_environments_box(output: list[float]) -> None:
    actions = squashed(LOPSIDED)
    half = (LOPSIDED.high.astype(float) - LOPSIDED.low) / 2
    # nodes at tanh(x), where a density that piles up at a bound is smooth
    nodes = LOPSIDED.low + half * (1 + np.tanh(np.linspace(-9, 9, 1201))[:, None])
    widths = np.gradient(nodes, axis=0)
    grid = np.stack(np.meshgrid(*nodes.T, indexing="ij"), -1).reshape(-1, 2)
    stored = torch.from_numpy(actions.from_environment(grid))
    assert (stored.abs() <= 1).all()
    log_prob, _ = actions.log_prob(torch.tensor([output], dtype=torch.float64).expand(len(grid), -1), None, stored, False)
    density = log_prob.exp().numpy() / half.prod()
    assert density @ np.outer(*widths.T).reshape(-1) == pytest.approx(1, abs=2e-4)


def test_what_is_drawn_has_the_density() -> None:
    """Kolmogorov and Smirnov's distance of 20,000 draws of each dimension to the distribution function of the density, by quadrature."""
    actions, draws = squashed(LOPSIDED), 20_000
    output = torch.tensor([0.4, -0.9, -0.3, 0.1], dtype=torch.float64)
    noise = actions.noise(1, draws, generator(0))[0]
    drawn = actions.draw(np.broadcast_to(output.numpy().astype(np.float32), (draws, 4)), None, noise)
    assert drawn.dtype == np.float32
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    alone = SquashedActions((1,), (-1.0,), (1.0,))
    for k in range(2):
        own = torch.stack([output[k], output[2 + k]]).expand(len(x), 2)
        a = x.tanh()
        mass = alone.log_prob(own, None, a.unsqueeze(1), False)[0].exp() * (1 - a**2) * (x[1] - x[0])
        below = np.interp(np.sort(drawn[:, k]), a.numpy(), mass.cumsum(0).numpy())
        distance = np.abs(below - np.arange(1, draws + 1) / draws).max()
        assert distance < 1.95 / math.sqrt(draws)  # a thousandth of true samples lies further off


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_slope_of_tanh_is_exact_far_out(dtype: torch.dtype) -> None:
    u = torch.tensor([-20.0, -9.0, -1.0, 0.0, 0.3, 5.0, 9.0, 12.0, 20.0], dtype=dtype)
    expected = [2 * (math.log(2) - abs(v) - math.log1p(math.exp(-2 * abs(v)))) for v in u.tolist()]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    assert log_slope_of_tanh(u.unsqueeze(1)).tolist() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_fresh_actions_far_out_have_the_exact_log_prob() -> None:
    actions = SquashedActions((1,), (-1.0,), (1.0,))
    for u in (-20.0, -9.5, -2.0, 0.0, 4.0, 9.5, 20.0):
        output = torch.tensor([[u - 0.5, 0.0]], requires_grad=True)
        action, log_prob = actions.fresh(output, torch.tensor([[0.5]]))
        assert log_prob is not None
        slope = 2 * (math.log(2) - abs(u) - math.log1p(math.exp(-2 * abs(u))))
        assert log_prob.item() == pytest.approx(-0.125 - 0.5 * math.log(2 * math.pi) - slope, rel=1e-6)
        (gradient,) = torch.autograd.grad(log_prob.sum() + action.sum(), output)
        assert gradient.isfinite().all()
        if abs(u) <= 4:  # the same action stored: as far as its digits say
            stored, _ = actions.log_prob(output, None, action.detach(), False)
            assert stored.item() == pytest.approx(log_prob.item(), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_actions_on_the_bound_have_finite_values_and_gradients(dtype: torch.dtype) -> None:
    actions = SquashedActions((3,), (-1.0,) * 3, (1.0,) * 3)
    output = torch.zeros(1, 6, dtype=dtype, requires_grad=True)
    action = torch.tensor([[-1.0, 1.0, 0.5]], requires_grad=True)
    log_prob, _ = actions.log_prob(output, None, action, False)
    assert log_prob.isfinite().all()
    gradients = torch.autograd.grad(log_prob.sum(), (output, action))
    assert all(gradient.isfinite().all() for gradient in gradients)
    # from both bounds the same, and towards them
    assert gradients[0][0, 0] == -gradients[0][0, 1]
    assert gradients[0][0, 1] > 5


def test_log_probs_are_a_number_for_each_row() -> None:
    actions = squashed(LOPSIDED)
    output, noise = torch.randn(6, 4, generator=generator(0)), torch.randn(6, 2, generator=generator(1))
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    action, log_prob = actions.fresh(output, noise)
    assert log_prob is not None
    assert (action.shape, log_prob.shape) == ((6, 2), (6,))
    again, moved = actions.fresh(output[order], noise[order])
    assert moved is not None
    assert torch.equal(moved, log_prob[order])
    assert torch.equal(again, action[order])
    stored, entropy = actions.log_prob(output, None, action, False)
    assert stored.shape == (6,)
    assert entropy is None
    torch.testing.assert_close(actions.log_prob(output[order], None, action[order], False)[0], stored[order])


def test_log_std_is_held_inside_its_bounds_and_has_no_gradient_beyond() -> None:
    actions = SquashedActions((1,), (-1.0,), (1.0,))
    for given, held in ((-1e9, -20.0), (-21.0, -20.0), (-3.0, -3.0), (1.9, 1.9), (2.5, 2.0), (1e9, 2.0)):
        output = torch.tensor([[0.1, given]], requires_grad=True)
        mean, log_std = actions.gaussian(output)
        assert (mean.item(), log_std.item()) == (pytest.approx(0.1), pytest.approx(held))
        action, log_prob = actions.fresh(output, torch.tensor([[0.7]]))
        assert log_prob is not None
        assert action.isfinite().all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), output)
        assert gradient.isfinite().all()
        assert bool(gradient[0, 1]) == (held == pytest.approx(given))
        drawn = actions.draw(output.detach().numpy(), None, np.array([[0.7]], np.float32))
        assert drawn == pytest.approx(action.detach().numpy(), rel=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "deterministic"])
def test_fresh_actions_are_what_the_host_draws_and_carry_the_gradient(kind: str) -> None:
    actions = actions_of(LOPSIDED, kind)  # type: ignore[arg-type]
    assert isinstance(actions, BoxActions)
    log_std = torch.tensor([-0.5, 0.2], dtype=torch.float64, requires_grad=True)
    output = torch.randn(5, actions.outputs, generator=generator(2), dtype=torch.float64, requires_grad=True)
    noise = torch.randn(5, 2, generator=generator(3), dtype=torch.float64)
    std = None if kind == "squashed" else log_std
    for given in (noise, None):
        action, _ = actions.fresh(output, given, std)
        spread = None if std is None else std.detach().exp().numpy()
        drawn = actions.draw(output.detach().numpy(), spread, None if given is None else given.numpy())
        assert action.detach().numpy() == pytest.approx(drawn, rel=1e-12)
    parts = (output,) if kind == "squashed" else (output, log_std)

    def pathwise(*_: torch.Tensor) -> torch.Tensor:
        action, log_prob = actions.fresh(output, noise, std)
        return torch.cat([action, log_prob.unsqueeze(1)], 1) if log_prob is not None else action

    assert torch.autograd.gradcheck(pathwise, parts)


@pytest.mark.parametrize("kind", ["gaussian", "squashed"])
def test_fresh_log_probs_are_those_of_the_same_actions_stored(kind: str) -> None:
    actions = actions_of(LOPSIDED, kind)  # type: ignore[arg-type]
    log_std = torch.tensor([-0.5, 0.2], dtype=torch.float64)
    output = torch.randn(50, actions.outputs, generator=generator(2), dtype=torch.float64)
    for noise in (torch.randn(50, 2, generator=generator(3), dtype=torch.float64), None):
        action, log_prob = actions.fresh(output, noise, log_std)
        torch.testing.assert_close(actions.log_prob(output, log_std, action, False)[0], log_prob)


def test_exploration_noise_is_in_policy_units_and_clipped() -> None:
    actions = actions_of(spaces.Box(100.0, 200.0, (1,)), "deterministic")
    assert isinstance(actions, DeterministicActions)
    noise = actions.noise(1, 50_000, generator(0))[0]
    output = np.zeros((50_000, 1), np.float32)
    assert actions.draw(output, None, noise).std() == pytest.approx(0.1, rel=0.02)
    assert actions.draw(output, 0.3, noise).std() == pytest.approx(0.3, rel=0.02)
    assert actions.draw(output, 0.0, noise).tolist() == output.tolist()
    far = actions.draw(output + 2, 1.0, noise)
    assert (far.min(), far.max()) == (-1.0, 1.0)


@pytest.mark.parametrize("space", BOXES, ids=str)
@pytest.mark.parametrize("kind", ["squashed", "deterministic"])
def test_stored_in_units_given_in_the_environments(space: spaces.Box, kind: str) -> None:
    actions = actions_of(space, kind)  # type: ignore[arg-type]
    rows = 2000
    warm = actions.random(1, rows, generator(0))[0]
    drawn = actions.draw(np.zeros((rows, actions.outputs), np.float32) + 3, None, actions.noise(1, rows, generator(1))[0])
    greedy = actions.draw(np.full((rows, actions.outputs), -3, np.float32), None, None)
    for stored in (warm, drawn, greedy):
        assert stored.dtype == np.float32
        assert (np.abs(stored) <= 1).all()
        given = actions.for_environment(stored)
        assert all(space.contains(action) for action in given)
        # exact but for the rounding of the environment's own numbers, here of the largest
        digits = np.spacing(np.abs(space.high)) / ((space.high - space.low) / 2)
        assert (np.abs(actions.from_environment(given) - stored) <= digits + 1e-7).all()
    assert warm.mean(0) == pytest.approx(0, abs=5 * 3**-0.5 / math.sqrt(rows))
    assert warm.std(0) == pytest.approx(3**-0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["gaussian", "squashed", "deterministic"])
def test_actions_are_of_the_spaces_dtype_and_inside(dtype: type, kind: str) -> None:
    space = spaces.Box(-0.1, 0.1, (3,), dtype)
    actions = actions_of(space, kind)  # type: ignore[arg-type]
    for far in (-40.0, 0.3, 40.0):
        action = actions.draw(np.full((2, actions.outputs), far, np.float32), None, None)
        assert all(space.contains(each) for each in actions.for_environment(action))


def test_boxes_without_bounds_are_refused_where_they_are_needed() -> None:
    space = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, np.inf], np.float32))
    for kind, who in (("squashed", "squashed actions"), ("deterministic", "deterministic actions")):
        with pytest.raises(InputError, match=rf"{who} need two finite bounds in every dimension, .* are 0\.0 and inf in dimension 1"):
            actions_of(space, kind)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="random actions need two finite bounds"):
        actions_of(space).random(1, 1, generator(0))


def test_what_does_not_exist_is_said() -> None:
    space = spaces.Box(-1.0, 1.0, (2,))
    output, action = torch.zeros(1, 2), torch.zeros(1, 2)
    with pytest.raises(InputError, match="deterministic actions have no log-probability"):
        actions_of(space, "deterministic").log_prob(output, None, action, False)
    with pytest.raises(InputError, match="entropy of squashed actions has no closed form"):
        squashed(space).log_prob(torch.zeros(1, 4), None, action, True)
    with pytest.raises(InputError, match="exploration noise is -1"):
        DeterministicActions((1,), (0.0,), (1.0,), exploration=-1)
