"""Closed-form oracles of policy evaluation in continuous time (arXiv 2108.06655): increments, losses, CLSTD, martingales, MSTDE's bias."""

import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from unipg import InputError
from unipg.critics import continuous, linear
from unipg.critics.continuous import Paths, Times
from unipg.estimator.advantages import generalized_advantage
from unipg.lab.diffusions import DIFFUSIONS, BrownianMotion, LinearQuadratic, OrnsteinUhlenbeck, draw
from unipg.seeding import generator


def some(paths: int = 5, steps: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Reward rates, payoffs and values with a graph."""
    source = generator(seed, "some")
    rate, payoff = torch.randn(paths, steps, generator=source).double(), torch.randn(paths, generator=source).double()
    return rate, payoff, torch.randn(paths, steps + 1, generator=source).double().requires_grad_()


def gradient(loss: Tensor, values: Tensor) -> Tensor:
    return torch.autograd.grad(loss, values, retain_graph=True)[0]


# ------------------------------------------------------------------------------------------------------------------------ oracle 1


def test_a_step_of_1_is_the_usual_td_error() -> None:
    rate, payoff, values = some()
    gamma = 0.9
    paths = Paths(Times(torch.ones(7), -math.log(gamma)), rate, payoff)
    after = torch.cat([values[:, 1:-1], payoff.unsqueeze(1)], 1)
    delta = rate + gamma * after - values[:, :-1]
    torch.testing.assert_close(paths.increments(values), delta, atol=1e-7, rtol=0)
    weight = gamma ** torch.arange(7.0)
    td = gradient(-(weight * values[:, :-1] * delta.detach()).sum(1).mean(), values)
    torch.testing.assert_close(gradient(continuous.ctd_loss(paths, values), values), td, atol=1e-7, rtol=0)
    to_go, returns = payoff, []
    for step in reversed(range(7)):
        to_go = rate[:, step] + gamma * to_go
        returns.insert(0, to_go)
    error = torch.stack(returns, 1) - values[:, :-1]
    torch.testing.assert_close(
        gradient(continuous.martingale_loss(paths, values), values),
        gradient(0.5 * (weight**2 * error**2).sum(1).mean(), values),
        atol=1e-7,
        rtol=0,
    )


def test_first_order_is_the_same_limit_by_other_numbers() -> None:
    rate, payoff, values = some()
    gaps = []
    for dt in (0.1, 0.01):
        exact, first = (
            Paths(Times(torch.full((7,), dt).double(), 0.5, order), rate, payoff).increments(values) for order in ("exact", "first")
        )
        by_hand = torch.cat([values[:, 1:-1], payoff.unsqueeze(1)], 1) - values[:, :-1] * (1 + 0.5 * dt) + rate * dt
        torch.testing.assert_close(first, by_hand)
        gaps.append(float((exact - first + 0.5 * dt * paths_difference(values, payoff)).detach().abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)  # what is left is of the second order
    assert gaps[1] > 0


def paths_difference(values: Tensor, payoff: Tensor) -> Tensor:
    return torch.cat([values[:, 1:-1], payoff.unsqueeze(1)], 1) - values[:, :-1]


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_the_trace_backwards_is_the_sum_forwards(lam: float) -> None:
    """CTD(lam)'s gradient by its definition, xi_k with each parameter's own gradient, on steps of different lengths."""
    rate, payoff, _ = some()
    features = torch.randn(5, 8, 3, generator=generator(1, "f")).double()
    theta = torch.randn(3, generator=generator(2, "f")).double().requires_grad_()
    dt = torch.tensor([0.1, 0.3, 0.05, 0.2, 0.2, 0.01, 0.5]).double()
    paths = Paths(Times(dt, 0.4), rate, payoff)
    xi = continuous.traces(features[:, :-1], paths.times, lam)
    by_hand = -continuous.moments(paths, (features @ theta).detach(), xi).mean(0)
    torch.testing.assert_close(gradient(continuous.ctd_loss(paths, features @ theta, lam), theta), by_hand, atol=1e-10, rtol=0)


# ------------------------------------------------------------------------------------------------------------------------ oracle 2


def test_clstd_of_two_paths_by_hand() -> None:
    paths = Paths(Times(torch.ones(1)), torch.tensor([[0.5], [1.0]]).double(), torch.zeros(2).double())
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0]]).double().unsqueeze(-1)
    assert float(linear.clstd(paths, features).theta) == pytest.approx(0.5, abs=1e-12)


def test_clstd_is_where_ctd_stands_still() -> None:
    found = draw(OrnsteinUhlenbeck(), Times.even(1.0, 0.1, 0.5), 64, generator(0, "paths"))
    for lam in (None, 0.5):
        theta = linear.clstd(found.paths, found.features, found.base, lam).theta.requires_grad_()
        loss = continuous.ctd_loss(found.paths, found.features @ theta + found.base, lam)
        assert gradient(loss, theta).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("fit", "loss"),
    [
        (linear.martingale_fit, continuous.martingale_loss),
        (linear.mean_square_td_fit, continuous.mean_square_td),
    ],
)
def test_fits_are_the_minimisers(fit: Callable[..., linear.Solution], loss: Callable[..., Tensor]) -> None:
    found = draw(OrnsteinUhlenbeck(), Times.even(1.0, 0.1, 0.5), 64, generator(0, "paths"))
    theta = fit(found.paths, found.features, found.base).theta.requires_grad_()
    assert gradient(loss(found.paths, found.features @ theta + found.base), theta).abs().max() < 1e-10


def test_gmm_is_where_its_loss_stands_still_and_clstd_where_tests_are_features() -> None:
    found = draw(OrnsteinUhlenbeck(), Times.even(1.0, 0.1, 0.5), 64, generator(0, "paths"))
    tests = torch.cat([found.features[:, :-1], found.state[:, :-1, None], torch.ones(64, 10, 1).double()], -1)
    for weighting in ("identity", "inverse"):
        theta = linear.gmm(found.paths, found.features, tests, found.base, weighting).theta.requires_grad_()
        loss = continuous.moment_loss(found.paths, found.features @ theta + found.base, tests, weighting)
        assert gradient(loss, theta).abs().max() < 1e-10
    twice = draw(OrnsteinUhlenbeck(), Times.even(1.0, 0.1, 0.5), 32, generator(0, "paths"))
    both = torch.arange(32).repeat_interleave(2)  # both halves are the same paths: exactly identified moments are 0 in both
    paths, features = twice.paths.select(both), twice.features[both]
    same = linear.gmm(paths, features, features[:, :-1])
    torch.testing.assert_close(same.theta, linear.clstd(paths, features).theta, atol=1e-8, rtol=0)


# ------------------------------------------------------------------------------------------------------------------------ oracle 3


@pytest.mark.parametrize("name", list(DIFFUSIONS))
@pytest.mark.parametrize("scheme", ["exact", "euler"])
def test_increments_of_the_value_are_orthogonal_to_the_past_alone(name: str, scheme: str) -> None:
    """To what is known at t_k, within four standard errors and what a step of finite length leaves; not to the step itself."""
    process = DIFFUSIONS[name]()
    found = draw(process, Times.even(1.0, 0.005, process.beta), 3000, generator(3, name, scheme), scheme)
    x = found.state[:, :-1]
    known = torch.stack([torch.ones_like(x), x, x.cos(), torch.cat([x[:, :1], x[:, :-1]], 1)], -1)
    sums = continuous.moments(found.paths, found.value, known)
    error = sums.std(0) / math.sqrt(len(sums))
    assert (sums.mean(0).abs() < 4 * error + 0.005).all()  # the rate at the left end of a step stands for all of it: O(dt)
    ahead = continuous.moments(found.paths, found.value, found.value.diff(dim=1).unsqueeze(-1))
    assert ahead.mean().abs() > 10 * ahead.std() / math.sqrt(len(ahead))


@pytest.mark.parametrize("name", list(DIFFUSIONS))
def test_the_exact_sampler_and_eulers_agree_as_steps_shrink(name: str) -> None:
    """By the same noise: the distance at the horizon falls with dt."""
    process = DIFFUSIONS[name]()
    gaps = []
    for dt in (0.1, 0.01):
        ends = [draw(process, Times.even(1.0, dt), 2000, generator(0, dt), scheme).state[:, -1] for scheme in ("exact", "euler")]
        gaps.append(float((ends[0] - ends[1]).abs().mean()))
    assert gaps[1] <= gaps[0] / 2.5
    assert (gaps[0] > 0) == (name != "bm")


def test_values_are_what_paths_earn() -> None:
    """J(0, x) of each process is the mean of what comes, within four standard errors and O(dt)."""
    for name, kind in DIFFUSIONS.items():
        process = kind()
        found = draw(process, Times.even(1.0, 0.005, process.beta), 3000, generator(5, name))
        gap = found.paths.to_go()[:, 0] - found.value[:, 0]
        assert float(gap.mean().abs()) < 4 * float(gap.std()) / math.sqrt(len(gap)) + 0.007, name


# ------------------------------------------------------------------------------------------------------------------------ oracle 4


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_the_squared_error_of_the_truth_is_its_quadratic_variation(steps: int) -> None:
    """½ sigma² ∑ (T − t_{k+1})², of order 1/dt; and its minimiser is B / (A + B)."""
    process = BrownianMotion()
    found = draw(process, Times.even(1.0, 1 / steps), 2000, generator(0, "bm"))
    left = found.left[0, 1:]
    expected = 0.5 * float((left**2).sum())
    assert float(continuous.mean_square_td(found.paths, found.value)) == pytest.approx(expected, rel=0.05)
    dt = 1 / steps
    a, b = dt * float((left**2).sum()), dt**2 * sum(k * dt for k in range(steps))
    assert b / (a + b) == pytest.approx({10: 0.1363636, 100: 0.0148515, 1000: 0.0014985}[steps], abs=1e-7)
    theta = float(linear.mean_square_td_fit(found.paths, found.features).theta)
    assert theta == pytest.approx(b / (a + b), abs=0.01)


def test_without_noise_the_squared_error_is_right() -> None:
    process = BrownianMotion(sigma=0.0, x0=1.0)
    found = draw(process, Times.even(1.0, 0.01), 3, generator(0, "still"))
    assert float(linear.mean_square_td_fit(found.paths, found.features).theta) == pytest.approx(1.0, abs=1e-9)


# ------------------------------------------------------------------------------------------------------------------------ oracle 5


def test_ends_of_the_trace() -> None:
    slopes = torch.randn(2, 6, 3, generator=generator(0, "s")).double()
    times = Times(torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1, 0.2]).double())
    whole = continuous.traces(slopes, times, 1.0)
    torch.testing.assert_close(whole, (slopes * times.dt.view(1, -1, 1)).cumsum(1))
    none = continuous.traces(slopes, times, 1e-300)
    torch.testing.assert_close(none, slopes * times.dt.view(1, -1, 1))


def test_the_trace_is_per_unit_of_time() -> None:
    """After a unit of time a gradient weighs lam, however many steps that takes."""
    for steps in (4, 400):
        slopes = torch.zeros(1, steps + 1, 1).double()
        slopes[0, 0] = steps  # times dt: 1
        assert float(continuous.traces(slopes, Times(torch.full((steps + 1,), 1 / steps).double()), 0.3)[0, -1]) == pytest.approx(0.3)


# ---------------------------------------------------------------------------------------------------------- advantages, the actor


def test_the_advantage_rate_is_generalised_advantage_over_dt() -> None:
    rate, payoff, values = some()
    dt, beta, lam = 0.2, 0.7, 0.4
    paths = Paths(Times(torch.full((7,), dt).double(), beta), rate, payoff)
    gae = generalized_advantage(
        rate * dt,
        values.detach()[:, :-1],
        torch.ones(5, 7, dtype=torch.bool),
        math.exp(-beta * dt),
        lam**dt,
        bootstrap_value=torch.cat([torch.zeros(5, 6).double(), payoff.unsqueeze(1)], 1),
    )
    torch.testing.assert_close(continuous.advantage_rate(paths, values, lam), gae / dt)
    torch.testing.assert_close(continuous.advantage_rate(paths, values), paths.increments(values).detach() / dt)


def test_the_actors_gradient_is_that_of_the_value() -> None:
    """Linear-quadratic: ∂J(0, x)/∂gain by score and exact values, against the derivative of the closed form; with entropy too."""
    process = LinearQuadratic(gain=-1.0)
    dt, count = 0.04, 20_000
    times = Times.even(1.0, dt, process.beta)
    source = generator(0, "actor")
    x, states, actions = torch.ones(count).double(), [], []
    for step in times.dt:
        noise = torch.randn(count, 2, generator=source).double()
        states.append(x)
        actions.append(process.gain * x + process.std * noise[:, 1])
        x = process.step(x, step, noise, "exact")[0]
    seen, taken = torch.stack([*states, x], 1), torch.stack(actions, 1)
    paths = Paths(times, -(seen[:, :-1] ** 2 + process.cost * taken**2), torch.zeros(count).double())
    left = (1.0 - times.points).clamp_min(0).unsqueeze(0)
    gain = torch.tensor(process.gain, requires_grad=True, dtype=torch.float64)
    log_prob = -((taken - gain * seen[:, :-1]) ** 2) / (2 * process.std**2)
    score = torch.autograd.grad(continuous.policy_gradient_loss(paths, process.value(left, seen), log_prob), gain)[0]

    def value(k: float) -> float:
        return float(LinearQuadratic(gain=k).value(torch.tensor(1.0).double(), torch.tensor(1.0).double()))

    exact = (value(process.gain + 1e-4) - value(process.gain - 1e-4)) / 2e-4
    assert float(-score) == pytest.approx(exact, abs=0.06)
    assert abs(exact) > 0.3
    log_std = torch.zeros((), requires_grad=True, dtype=torch.float64)
    entropy = log_std.expand_as(taken)
    bonus = torch.autograd.grad(continuous.policy_gradient_loss(paths, process.value(left, seen), 0 * entropy, 0.5, entropy), log_std)[0]
    assert float(-bonus) == pytest.approx(0.5 * float((times.weight * times.dt).sum()))  # temperature ∫ e^{−beta t} dt


# ------------------------------------------------------------------------------------------------------- paths that end, bad input


def test_a_path_that_stops_early_is_a_shorter_path() -> None:
    rate, payoff, values = some(2, 6)
    times = Times(torch.full((6,), 0.1).double(), 0.3)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    spoiled = torch.where(mask, rate, math.nan)
    both = Paths(times, spoiled, payoff, mask)
    short = Paths(Times(times.dt[:4], 0.3), rate[:1, :4], payoff[:1])
    torch.testing.assert_close(both.increments(values)[:1, :4], short.increments(values[:1, :5]))
    torch.testing.assert_close(both.to_go()[:1, :4], short.to_go())
    assert not both.increments(values)[0, 4:].any()
    for loss in (continuous.martingale_loss, continuous.mean_square_td, continuous.ctd_loss):
        slope = gradient(loss(both, values), values)
        torch.testing.assert_close(2 * slope[:1, :5], gradient(loss(short, values[:1, :5]), values)[:1, :5])
        assert not slope[0, 5:].any()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Times(torch.tensor([0.1, 0.0])), "dt is 0"),
        (lambda: Times(torch.tensor([0.1]), -1.0), "beta is -1"),
        (lambda: Times(torch.tensor([0.1]), 0.0, "second"), "accepted: exact, first"),  # type: ignore[arg-type]
        (lambda: Times.even(1.0, 0.3), "accepted: a whole number of steps"),
        (lambda: Times.even(1.0, -0.1), "dt is -0.1"),
        (lambda: Times.even(1.0, 1e-20), "1e+20 steps of dt 1e-20; accepted: a whole number of steps, at most 10000000"),
        (lambda: continuous.traces(torch.ones(1, 1, 1), Times(torch.ones(1)), 0.0), "lam is 0"),
        (lambda: continuous.traces(torch.ones(1, 1, 1), Times(torch.ones(1)), 1.5), "lam is 1.5"),
        (lambda: Paths(Times(torch.ones(1)), torch.ones(1, 1), None), "payoff is missing"),  # type: ignore[arg-type]
        (lambda: Paths(Times(torch.ones(2)), torch.tensor([[0.0, math.nan]]), torch.ones(1)), "rate is nan on path 0, step 1"),
        (lambda: Times("a"), "dt is 'a'; accepted: a tensor, an array or a list of numbers"),  # type: ignore[arg-type]
        (lambda: Times(torch.tensor([1j])), "dt holds complex numbers; accepted: real ones"),
        (lambda: Times(torch.tensor([1e-320], dtype=torch.float64)), "dt is 1e-320; accepted: a time from 1e-30 to 1e+30"),
        (lambda: Times.even(1.0, 1e-320), "dt is 1e-320; accepted: a time from"),
        (lambda: Times.even("a", 0.1), "horizon is 'a'; accepted: a time from"),  # type: ignore[arg-type]
        (lambda: Times(torch.ones(2), "a"), "beta is 'a'; accepted: a finite discount rate"),  # type: ignore[arg-type]
        (lambda: continuous.traces(torch.ones(1, 1, 1), Times(torch.ones(1)), "a"), "lam is 'a'; accepted: a decay"),  # type: ignore[arg-type]
        (lambda: continuous.traces(torch.ones(1, 3, 1), Times(torch.ones(2))), "gradient is [1, 3, 1]; accepted: [N,K,L], 2 steps"),
        (lambda: Paths([1.0], torch.ones(1, 1), torch.ones(1)), "times is [1.0]; accepted: Times"),  # type: ignore[arg-type]
        (lambda: Paths(Times(torch.ones(1)), np.array([["a\nb"]]), torch.ones(1)), "rate is array([['a"),  # type: ignore[arg-type]
        (
            lambda: Paths(Times(torch.ones(2)), torch.ones(1, 2), torch.ones(1), torch.tensor([[1.0, 0.5]])),
            "mask holds other numbers than 0 and 1; accepted: for each step",
        ),
        (
            lambda: Paths(Times(torch.ones(2)), torch.ones(1, 2), torch.tensor([math.nan]), torch.tensor([[True, False]])),
            "path 0: stopped early: the payoff there is nan",
        ),
    ],
)
def test_bad_input_is_one_line(made: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        made()
    assert isinstance(error.value, ValueError)
    assert message in str(error.value)


GRID = Paths(Times(torch.tensor([0.1, 0.2, 0.3]).double(), 0.5), torch.ones(2, 3).double(), torch.ones(2).double())
WIDE = torch.ones(2, 4, 3).double()


@pytest.mark.parametrize("values", [torch.ones(2, 2), torch.ones(2, 3), torch.ones(2, 4, 1), torch.ones(1, 4)])
@pytest.mark.parametrize(
    "read",
    [
        GRID.increments,
        partial(continuous.martingale_loss, GRID),
        partial(continuous.mean_square_td, GRID),
        partial(continuous.ctd_loss, GRID),
        partial(continuous.ctd_loss, GRID, lam=0.5),
        partial(continuous.advantage_rate, GRID),
        partial(continuous.moment_loss, GRID, tests=WIDE[:, :-1]),
        partial(continuous.policy_gradient_loss, GRID, log_prob=torch.ones(2, 3)),
    ],
)
def test_values_stand_at_every_point_for_all_who_read_them(read: Callable[[Tensor], Tensor], values: Tensor) -> None:
    with pytest.raises(InputError, match=rf"^values is {re.escape(str(list(values.shape)))}; accepted: \[N,K\+1\], 2 paths at 4 points"):
        read(values)
    assert read(torch.ones(2, 4)).isfinite().all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: linear.martingale_fit(GRID, WIDE, WIDE[:, :-1, 0]),
            "base is [2, 3]; accepted: [N,K+1], 2 paths at 4 points, the last one too",
        ),
        (lambda: linear.martingale_fit(GRID, WIDE[..., 0]), "features is [2, 4]; accepted: [N,K+1,L], 2 paths at 4 points"),
        (lambda: linear.mean_square_td_fit(GRID, WIDE[:1]), "features is [1, 4, 3]; accepted: [N,K+1,L]"),
        (lambda: linear.clstd(GRID, WIDE, WIDE[:, :, 0, None]), "base is [2, 4, 1]; accepted: [N,K+1]"),
        (lambda: linear.clstd(GRID, WIDE, tests=WIDE), "tests is [2, 4, 3]; accepted: [N,K,M], 2 paths at 3 steps"),
        (lambda: linear.gmm(GRID, WIDE, WIDE[:, :-1, :2]), "there are 2 test functions for 3 features; accepted: as many, or more"),
        (lambda: linear.gmm(GRID, WIDE, WIDE[:, :-1], weighting="inv"), "weighting is 'inv'; did you mean 'inverse'? accepted: identity"),  # type: ignore[arg-type]
        (
            lambda: continuous.moment_loss(GRID, WIDE[..., 0], WIDE[:, :-1], "identiti"),  # type: ignore[arg-type]
            "weighting is 'identiti'; did you mean 'identity'? accepted: identity, inverse",
        ),
        (
            lambda: continuous.policy_gradient_loss(GRID, WIDE[..., 0], torch.ones(2, 3), "a", torch.ones(2, 3)),  # type: ignore[arg-type]
            "temperature is 'a'; accepted: a finite number",
        ),
        (lambda: continuous.policy_gradient_loss(GRID, WIDE[..., 0], torch.ones(2, 1)), "log_prob is [2, 1]; accepted: [N,K]"),
        (
            lambda: continuous.policy_gradient_loss(GRID, WIDE[..., 0], torch.ones(2, 3), 0.1, torch.ones(3)),
            "entropy is [3]; accepted: [N,K], 2 paths at 3 steps",
        ),
    ],
)
def test_what_does_not_fit_the_paths_is_one_line(made: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        made()
    assert str(error.value).startswith(message)


def test_numbers_of_any_kind_are_the_same_paths() -> None:
    """Whole numbers too, in which every factor below 1 would be 0; by hand: G_k = dt_k + e^{−dt_k/2} G_{k+1}, G_K = 1."""
    dt = [0.1, 0.2, 0.3]
    to_go, by_hand = 1.0, []
    for step in reversed(dt):
        to_go = step + math.exp(-0.5 * step) * to_go
        by_hand.insert(0, to_go)
    times, values = Times(torch.tensor(dt).double(), 0.5), torch.zeros(2, 4)
    features, tests = torch.randn(2, 4, 1, generator=generator(0, "kinds")), torch.ones(2, 3, 1)
    whole, single = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3)
    for paths in (
        Paths(times, whole, whole[:, 0]),
        Paths(times, whole, single[:, 0]),
        Paths(times, single, whole[:, 0].double()),
        Paths(Times(times.dt.float(), 0.5), single.double(), single[:, 0], whole),
        Paths(Times(dt, 0.5), [[1, 1, 1]] * 2, [1, 1], [[1.0, 1.0, 1.0]] * 2),  # type: ignore[arg-type]
        Paths(Times(np.array(dt), 0.5), np.ones((2, 3), int), np.ones(2), np.ones((2, 3), bool)),  # type: ignore[arg-type]
    ):
        assert paths.to_go().flatten().tolist() == pytest.approx(by_hand * 2), paths
        loss = 0.5 * sum(w * d * g * g for w, d, g in zip((times.weight**2).tolist(), dt, by_hand, strict=True))
        for zeros in (values, values.double(), values.long()):
            assert float(continuous.martingale_loss(paths, zeros)) == pytest.approx(loss)
            assert float(paths.increments(zeros + 1)[0, 0]) == pytest.approx(0.1 + math.exp(-0.05) - 1, abs=1e-6)
        for solved in (
            linear.martingale_fit(paths, features, values),
            linear.mean_square_td_fit(paths, features.double(), values),
            linear.clstd(paths, features, values.double(), tests=tests),
            linear.gmm(paths, features.double(), tests),
        ):
            assert solved.theta.isfinite().all()
    ones = torch.ones(2, 4, 1, dtype=torch.long)
    assert float(linear.martingale_fit(GRID, ones).theta) == pytest.approx(float(linear.martingale_fit(GRID, ones.double()).theta))


def test_a_whole_number_of_steps_is_one_to_rounding() -> None:
    assert len(Times.even(1.0, 1 / 3)) == 3
    assert len(Times.even(1.0, 0.1 * (1 + 1e-8))) == 10


def test_a_singular_system_is_solved_by_least_squares_and_said() -> None:
    found = draw(BrownianMotion(), Times.even(1.0, 0.1), 50, generator(0, "bm"))
    doubled = torch.cat([found.features, found.features], -1)
    with pytest.warns(UserWarning, match=r"singular \(condition number"):
        solution = linear.clstd(found.paths, doubled)
    assert solution.condition > linear.SINGULAR
    torch.testing.assert_close(solution.theta.sum(), linear.clstd(found.paths, found.features).theta[0])


# ------------------------------------------------------------------------------------------------------------------------- claims


def test_a_family_without_the_truth_shows_what_each_method_projects() -> None:
    """Reward x², Brownian motion from 1, J = theta x (T − t). Martingale loss: ∫τ²(1 + 3t) + τ³/2 over ∫τ²(1 + t), 1.7, the projection
    under the occupation measure; CTD(0) stands still at ∫τ(1 + 3t) over ∫τ(1 + t), 1.5."""
    found = draw(BrownianMotion(x0=1.0), Times.even(1.0, 0.01), 8000, generator(0, "misfit"))
    paths = Paths(found.paths.times, found.state[:, :-1] ** 2, found.paths.payoff)
    assert float(linear.martingale_fit(paths, found.features).theta) == pytest.approx(1.7, abs=0.06)
    assert float(linear.clstd(paths, found.features).theta) == pytest.approx(1.5, abs=0.06)


def test_the_truth_by_martingale_methods_alone() -> None:
    """Claim A at 8,000 paths: Brownian motion, reward x, also discounted."""
    for process, most in ((BrownianMotion(), 0.05), (BrownianMotion(beta=1.0, x0=1.0), 0.05)):
        found = draw(process, Times.even(1.0, 0.01, process.beta), 8000, generator(1, "claim", process.beta))
        thetas = [
            linear.martingale_fit(found.paths, found.features).theta,
            linear.clstd(found.paths, found.features).theta,
            linear.clstd(found.paths, found.features, lam=0.5).theta,
        ]
        assert all(abs(float(theta) - 1) < most for theta in thetas)
        assert float(linear.mean_square_td_fit(found.paths, found.features).theta) < 0.1
