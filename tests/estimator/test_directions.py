"""Directions on surfaces whose every number is known."""

import dataclasses
import itertools
import math

import pytest
import torch

from unipg.errors import InputError
from unipg.estimator import Progress
from unipg.estimator.directions import (
    Direction,
    HessianAided,
    Natural,
    Plain,
    Surface,
    Transported,
    conjugate_gradients,
)
from unipg.seeding import generator


class Quadratic(Surface):
    """loss = ½ xᵀAx + bᵀx; the policy's KL is ½ (x − θ)ᵀF(x − θ)."""

    def __init__(self, theta, matrix, slope, fisher=None, point=None):
        self.theta, self.matrix, self.slope = theta, matrix, slope
        self.curvature = torch.eye(len(theta), dtype=theta.dtype) if fisher is None else fisher
        self.here = theta if point is None else point
        self.told = {}

    def gradient(self):
        return self.matrix @ self.here + self.slope

    def named(self):
        return {"quadratic": self.gradient()}

    def loss(self, theta=None):
        at = self.here if theta is None else theta
        return float(0.5 * at @ self.matrix @ at + self.slope @ at)

    def divergence(self, theta):
        return float(0.5 * (theta - self.theta) @ self.curvature @ (theta - self.theta))

    def fisher(self, vector):
        return self.curvature @ vector

    def hessian(self, vector):
        return self.matrix @ vector

    def expected_hessian(self, vector, estimate):
        return self.matrix @ vector


def positive(n: int, seed: int = 0) -> torch.Tensor:
    root = torch.randn(n, n, dtype=torch.float64, generator=generator(seed, "matrix"))
    return root @ root.T + 0.1 * torch.eye(n, dtype=torch.float64)


def vector(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=generator(seed, "vector"))


def steps(direction: Direction, surface_at, theta: torch.Tensor, count: int) -> tuple[list[torch.Tensor], list[dict]]:
    """The iterates of `count` steps, and the direction's state after each; `surface_at(theta, point)`."""
    state, found, states = direction.start(theta), [theta], []
    for number in range(count):
        points = direction.points(theta, state, generator(0, number))
        theta = theta + direction([surface_at(theta, point) for point in points], state, Progress())
        found.append(theta)
        states.append(dict(state))
    return found, states


# ---------------------------------------------------------------------------------------------------- conjugate gradients


def test_they_are_exact_after_as_many_products_as_dimensions() -> None:
    matrix, target = positive(10), vector(10)
    products = []
    x = conjugate_gradients(lambda v: products.append(v) or matrix @ v, target, 10, enough=0.0)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, target), rtol=1e-9, atol=1e-9)
    assert len(products) == 10


def test_a_target_of_zero_is_met_by_zero_without_a_product() -> None:
    def never(v):
        raise AssertionError

    assert not conjugate_gradients(never, torch.zeros(4), 10).any()


def test_no_curvature_left_ends_them_without_a_number_that_is_none() -> None:
    """A matrix of rank 1, and of curvature below 0: nothing is divided by 0."""
    u = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    assert not conjugate_gradients(lambda v: torch.zeros_like(v), u, 5).any()
    assert not conjugate_gradients(lambda v: -v, u, 5).any()
    found = conjugate_gradients(lambda v: torch.dot(u, v) * u, vector(3), 20)
    assert torch.isfinite(found).all()
    damped = conjugate_gradients(lambda v: torch.dot(u, v) * u + 0.1 * v, vector(3), 20)
    torch.testing.assert_close(damped, torch.linalg.solve(torch.outer(u, u) + 0.1 * torch.eye(3, dtype=torch.float64), vector(3)))


# ---------------------------------------------------------------------------------------------------- natural


def test_the_step_has_the_direction_and_the_length_of_its_definition() -> None:
    fisher, theta, slope = positive(6, 3), vector(6), vector(6, 2)
    surface = Quadratic(theta, 1e-6 * torch.eye(6, dtype=torch.float64), slope, fisher)
    step = Natural(max_kl=0.02, damping=0.3, iterations=30)([surface], {}, Progress())
    damped = fisher + 0.3 * torch.eye(6, dtype=torch.float64)
    x = torch.linalg.solve(damped, -surface.gradient())
    torch.testing.assert_close(step, math.sqrt(2 * 0.02 / float(x @ damped @ x)) * x, rtol=1e-4, atol=1e-8)
    assert surface.told["trust_region/backtracks"] == 0
    assert surface.told["trust_region/kl"] == surface.divergence(theta + step) <= 0.02


def test_the_line_search_shortens_until_the_loss_is_lower_and_the_kl_small_enough() -> None:
    """A loss of curvature 50 along the step: it is lower only for short ones."""
    theta = torch.tensor([1.0], dtype=torch.float64)
    surface = Quadratic(theta, torch.tensor([[50.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    step = Natural(max_kl=8.0, damping=0.0)([surface], {}, Progress())  # 4 long at first; a lower loss needs less than 2
    assert float(step) == pytest.approx(-4 * 0.8**4)
    assert surface.told["trust_region/backtracks"] == 4
    surface.divergence = lambda theta: 100 * float((theta - surface.theta).abs())
    assert Natural(max_kl=8.0, damping=0.0, tries=60)([surface], {}, Progress()).abs() <= 0.08


@pytest.mark.parametrize("loss", [lambda theta=None: 0.0, lambda theta=None: math.nan if theta is not None else 0.0])
def test_where_no_try_is_better_there_is_no_step_at_all(loss) -> None:
    surface = Quadratic(vector(4), positive(4), vector(4, 3))
    surface.loss = loss
    assert not Natural()([surface], {}, Progress()).any()
    assert surface.told == {"trust_region/kl": 0.0, "trust_region/backtracks": 10.0, "trust_region/rejected": 1.0}


def test_a_gradient_of_zero_is_a_step_of_zero() -> None:
    surface = Quadratic(torch.zeros(3), torch.eye(3), torch.zeros(3))
    assert not Natural()([surface], {}, Progress()).any()
    surface = Quadratic(vector(3), positive(3), vector(3), fisher=torch.zeros(3, 3, dtype=torch.float64))
    assert not Natural(damping=0.0)([surface], {}, Progress()).any()  # no curvature: no trust region to fill


# ---------------------------------------------------------------------------------------------------- recursive momentum


MATRIX = torch.tensor([[-2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -0.3], dtype=torch.float64)


def ascended(theta: torch.Tensor, point: torch.Tensor | None) -> Quadratic:
    """The quadratic whose gradient MATRIX·x + SLOPE is climbed."""
    return Quadratic(theta, -MATRIX, -SLOPE, point=point)


@pytest.mark.parametrize("momentum", [1.0, 0.6])
def test_transported_momentum_is_exact_on_a_quadratic(momentum) -> None:
    found, states = steps(Transported(step=0.3, momentum=momentum), ascended, torch.zeros(2, dtype=torch.float64), 6)
    for theta, state in zip(found, states, strict=False):
        assert (state["direction"] + (MATRIX @ theta + SLOPE)).abs().max() <= 2e-15
    assert found[6].tolist() == pytest.approx([0.5042, -0.0659], abs=5e-5)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("momentum", [1.0, 0.6])
def test_hessian_aided_momentum_is_exact_on_a_quadratic(normalised, momentum) -> None:
    found, states = steps(
        HessianAided(step=0.3, momentum=momentum, normalised=normalised), ascended, torch.zeros(2, dtype=torch.float64), 6
    )
    for theta, state in zip(found, states, strict=False):
        assert (state["direction"] + (MATRIX @ theta + SLOPE)).abs().max() <= 2e-15


@pytest.mark.parametrize("direction", [Transported(step=0.3, momentum_power=0.0), HessianAided(step=0.3, momentum_power=0.0)])
def test_without_momentum_they_are_the_normalised_gradient_to_the_last_bit(direction) -> None:
    """eta = 1 at every step: every batch is the iterate's own, and there is one."""
    noise = torch.randn(5, 2, dtype=torch.float64, generator=generator(0, "noise"))
    theta = by_hand = torch.tensor([0.4, -0.1], dtype=torch.float64)
    state = direction.start(theta)
    for t in range(5):
        assert direction.points(theta, state, generator(0, t)) == (None,)
        surface = Quadratic(theta, -MATRIX, noise[t])
        theta = theta + direction([surface], state, Progress())
        gradient = -MATRIX @ by_hand + noise[t]
        by_hand = by_hand + -(0.3 * (2 / (t + 2))) / float(torch.linalg.vector_norm(gradient)) * gradient
        assert torch.equal(theta, by_hand)


@pytest.mark.parametrize("direction", [Transported(step=0.7, momentum=0.5), HessianAided(step=0.7, momentum=0.5)])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_steps_have_the_length_of_the_schedule_whatever_the_rewards_are(direction, scale) -> None:
    def surface(theta, point):
        return Quadratic(theta, -scale * MATRIX, -scale * SLOPE, point=point)

    found, _ = steps(direction, surface, torch.tensor([0.2, 0.9], dtype=torch.float64), 8)
    for t, (before, after) in enumerate(itertools.pairwise(found)):
        assert float(torch.linalg.vector_norm(after - before)) == pytest.approx(0.7 * 2 / (t + 2), rel=1e-6)
    plain, _ = steps(direction, ascended, torch.tensor([0.2, 0.9], dtype=torch.float64), 8)
    torch.testing.assert_close(torch.stack(found), torch.stack(plain), rtol=1e-12, atol=1e-12)


def test_unnormalised_steps_shrink_with_the_root_of_time() -> None:
    found, states = steps(HessianAided(step=0.2, normalised=False), ascended, torch.zeros(2, dtype=torch.float64), 4)
    for t, state in enumerate(states):
        torch.testing.assert_close(found[t + 1] - found[t], -0.2 * (2 / (t + 2)) ** 0.5 * state["direction"])


def test_the_look_ahead_point_is_beyond_the_iterate_by_its_formula() -> None:
    direction, theta, before = Transported(momentum=0.5), vector(3), vector(3, 4)
    state = {"count": 2, "previous": before, "direction": vector(3), "zero": 0}
    eta = 0.5 * (2 / 4) ** 0.8
    (point,) = direction.points(theta, state, generator(0))
    torch.testing.assert_close(point, theta + (1 - eta) / eta * (theta - before))


def test_the_second_point_is_uniform_on_the_last_step() -> None:
    state = {"count": 1, "previous": torch.zeros(2, dtype=torch.float64), "direction": torch.zeros(2), "zero": 0}
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    shares = []
    for seed in range(500):
        own, point = HessianAided().points(theta, state, generator(seed, "q"))
        assert own is None
        assert float(point[1]) == pytest.approx(2 * float(point[0]))  # the same q for all weights
        shares.append(float(point[0]))
    assert 0 <= min(shares) < 0.02
    assert 0.98 < max(shares) <= 1
    assert sum(shares) / 500 == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("direction", [Transported(), HessianAided(), HessianAided(normalised=False)])
def test_a_direction_of_zero_moves_nothing_and_is_counted(direction) -> None:
    def flat(theta, point):
        return Quadratic(theta, torch.zeros(2, 2), torch.zeros(2), point=point)

    found, states = steps(direction, flat, torch.ones(2), 3)
    assert all(torch.equal(theta, torch.ones(2)) for theta in found)
    assert states[-1]["zero"] == 3


def test_a_surface_that_refuses_leaves_the_state_as_it_was() -> None:
    class Refused(Exception):
        pass

    class Bad(Quadratic):
        def gradient(self):
            raise Refused

    for direction in (Transported(), HessianAided()):
        theta = torch.ones(2, dtype=torch.float64)
        state = direction.start(theta)
        direction([ascended(theta, None)], state, Progress())
        kept = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
        with pytest.raises(Refused):
            direction([Bad(theta, MATRIX, SLOPE)] * 2, state, Progress())
        assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(kept[name])) for name in kept)


def test_the_plain_direction_is_the_gradient() -> None:
    surface = ascended(torch.ones(2, dtype=torch.float64), None)
    assert torch.equal(Plain()([surface], {}, Progress()), surface.gradient())


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Natural, {"max_kl": 0.0}, "Natural.max_kl is 0.0"),
        (Natural, {"max_kl": math.inf}, "max_kl is inf"),
        (Natural, {"damping": -0.1}, "damping is -0.1; accepted: a finite number of 0 or more"),
        (Natural, {"shrink": 1.0}, "shrink is 1.0"),
        (Natural, {"tries": 0}, "tries is 0; accepted: 1 or more"),
        (Natural, {"iterations": 0}, "iterations is 0"),
        (Transported, {"momentum": 0.0}, "Transported.momentum is 0.0; accepted: a number above 0, at most 1"),
        (Transported, {"momentum": 1.5}, "momentum is 1.5"),
        (HessianAided, {"step": -1.0}, "HessianAided.step is -1.0; accepted: a finite number above 0"),
        (HessianAided, {"step": math.nan}, "step is nan"),
        (HessianAided, {"hessian": "product_"}, "'product_'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, settings, words) -> None:
    with pytest.raises(InputError, match=words):
        kind(**settings)


def test_directions_are_values() -> None:
    assert Transported(0.2) == Transported(0.2)
    assert dataclasses.replace(Natural(), max_kl=0.1).symbol().startswith("Natural(max_kl=0.1")
