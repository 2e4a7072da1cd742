"""Values of diffusions by the squared TD error and by martingale methods: in closed form, neural by dt, in a family without the truth."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main
from torch import Tensor, nn

from unipg.critics.continuous import Paths, Times, ctd_loss, martingale_loss, mean_square_td, moment_loss
from unipg.critics.linear import clstd, gmm, martingale_fit, mean_square_td_fit
from unipg.lab.diffusions import BrownianMotion, Drawn, OrnsteinUhlenbeck, draw
from unipg.seeding import generator

TITLES = {
    "mstde": "mean-square TD error",
    "martingale": "martingale loss",
    "ctd0": "CTD(0)",
    "ctd_lambda": "CTD(0.5 per unit of time)",
    "gmm": "moments",
}
LAM = 0.5
HORIZON = 0.9
"""Of the neural critics, which all steps divide."""
PROJECTED, FIXED = 1.7, 1.5
"""Of x² by theta · x · (T − t), Brownian motion from 1: the projection, ∫τ²(1 + 3t) + τ³/2 over ∫τ²(1 + t), and the point at which CTD(0)
stands still, ∫τ(1 + 3t) over ∫τ(1 + t)."""


@dataclass(frozen=True)
class Sizes:
    paths: int = 20_000
    steps: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003)
    batch: int = 64
    iterations: int = 400
    learning_rate: float = 1e-2
    judged: int = 1000
    """Paths on which a neural critic is judged."""


def tests_of(times: Tensor, state: Tensor, left: float) -> Tensor:
    """[N,K,9] products of powers of the state and of the time that is left: adapted."""
    remaining = (left - times[:-1]).expand_as(state)
    return torch.stack([state**i * remaining**j for i in range(3) for j in range(3)], -1)


def fitted(method: str, found: Drawn, paths: Paths, seed: int) -> float:
    """theta of one feature: at once, but for CTD, whose steps are taken along batches of paths; the mean of the second half of them."""
    features = found.features
    if method == "martingale":
        return float(martingale_fit(paths, features).theta)
    if method == "mstde":
        return float(mean_square_td_fit(paths, features).theta)
    if method == "gmm":
        x = found.state[:, :-1]
        return float(gmm(paths, features, torch.stack([features[:, :-1, 0], torch.ones_like(x)], -1)).theta)
    theta, seen = torch.zeros(1, dtype=torch.float64, requires_grad=True), []
    order = torch.randperm(len(paths), generator=generator(seed, "order")).split(200)
    lam = None if method == "ctd0" else LAM
    scale = 1.0 if lam is None else 4.0  # its test functions are as large as dt makes them
    for epoch in range(5):
        for number, rows in enumerate(order):
            loss = ctd_loss(paths.select(rows), features[rows] @ theta, lam)
            slope = torch.autograd.grad(loss, theta)[0]
            with torch.no_grad():
                theta -= scale / (1 + (epoch * len(order) + number) / 20) * slope
            seen.append(float(theta.detach()))
    return sum(seen[len(seen) // 2 :]) / len(seen[len(seen) // 2 :])


class Critic(nn.Module):
    """J(t, x) of two layers of 64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, found: Drawn) -> Tensor:
        x = found.state.float()
        return self.net(torch.stack([x, found.left.float().expand_as(x)], -1)).squeeze(-1)


def losses(found: Drawn) -> dict[str, Callable[[Tensor], Tensor]]:
    times = found.paths.times
    return {
        "mstde": lambda v: mean_square_td(found.paths, v),
        "martingale": lambda v: martingale_loss(found.paths, v),
        "ctd0": lambda v: ctd_loss(found.paths, v),
        "ctd_lambda": lambda v: ctd_loss(found.paths, v, LAM),
        "gmm": lambda v: moment_loss(found.paths, v, tests_of(times.points, found.state[:, :-1], HORIZON)),
    }


def neural(sizes: Sizes, method: str, dt: float, seed: int, told: Told) -> float:
    """Root mean square error of the values over their size, on fresh paths."""
    process = OrnsteinUhlenbeck(horizon=HORIZON)
    times, critic = Times.even(HORIZON, dt, process.beta), Critic(seed)
    adam = torch.optim.Adam(critic.parameters(), lr=sizes.learning_rate)
    for number in range(sizes.iterations):
        adam.param_groups[0]["lr"] = sizes.learning_rate * (1 - number / sizes.iterations)
        found = draw(process, times, sizes.batch, generator(seed, "neural", dt, number))
        adam.zero_grad()
        losses(found)[method](critic(found)).backward()
        adam.step()
        if number % 20 == 0:
            told(number / sizes.iterations)
    judged = draw(process, Times.even(HORIZON, 0.03), sizes.judged, generator(seed, "judged"))
    with torch.no_grad():
        truth, value = judged.value[:, :-1], critic(judged)[:, :-1]
    return float((((value - truth) ** 2).sum() / (truth**2).sum()).sqrt())


def build(chosen: argparse.Namespace) -> Claim:
    sizes = Sizes(200, (0.1, 0.03), 8, 4, judged=20) if chosen.quick else Sizes()

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        plain = draw(BrownianMotion(), Times.even(1.0, 0.01), sizes.paths, generator(seed, "a"))
        discounted = draw(BrownianMotion(beta=1.0, x0=1.0), Times.even(1.0, 0.01, 1.0), sizes.paths, generator(seed, "discounted"))
        other = draw(BrownianMotion(x0=1.0), Times.even(1.0, 0.01), sizes.paths, generator(seed, "c"))
        squares = Paths(other.paths.times, other.state[:, :-1] ** 2, other.paths.payoff)
        found: dict[str, Any] = {
            "theta": fitted(method, plain, plain.paths, seed),
            "discounted": fitted(method, discounted, discounted.paths, seed),
            "misfit": fitted(method, other, squares, seed),
            "exact": float(clstd(plain.paths, plain.features).theta),
        }
        total = sum(1 / dt for dt in sizes.steps)
        done = 0.0
        curve = {}
        for dt in sizes.steps:
            curve[str(round(1 / dt))] = neural(sizes, method, dt, seed, lambda s, d=done, n=1 / dt: told((d + s * n) / total))  # type: ignore[misc]
            done += 1 / dt
        errors = {f"error_{dt:g}": curve[str(round(1 / dt))] for dt in sizes.steps}
        growth = curve[str(round(1 / sizes.steps[-1]))] / curve[str(round(1 / sizes.steps[0]))]
        return {"score": curve[str(round(1 / sizes.steps[-1]))], "curve": curve, "growth": growth, **errors, **found}

    dt, left = 0.01, [1 - 0.01 * (k + 1) for k in range(100)]
    a, b = dt * sum(t * t for t in left), dt**2 * sum(dt * k for k in range(100))
    biased = b / (a + b)

    def checks(runs: Runs) -> list[Check | None]:
        near = [
            check(f"A. {TITLES[m]}: |theta − 1| < 0.02", by_seed(runs, m, "theta"), lambda v: abs(v - 1) < 0.02)
            for m in ("martingale", "ctd0", "ctd_lambda")
        ]
        clear = [
            check("A. CLSTD: |theta − 1| < 0.02", by_seed(runs, "martingale", "exact"), lambda v: abs(v - 1) < 0.02),
            check(f"A. MSTDE: |theta − {biased:.4f}| < 0.005", by_seed(runs, "mstde", "theta"), lambda v: abs(v - biased) < 0.005),
            check("B. MSTDE: error at the finest dt / at the coarsest > 1.5", by_seed(runs, "mstde", "growth"), lambda v: v > 1.5),
        ]
        flat = [
            check(f"B. {TITLES[m]}: error at the finest dt / at the coarsest < 1.2", by_seed(runs, m, "growth"), lambda v: v < 1.2)
            for m in ("martingale", "ctd_lambda")
        ]
        misfit = [
            check(f"C. {TITLES[m]}: |theta − {value:g}| < 0.05", by_seed(runs, m, "misfit"), lambda v, value=value: abs(v - value) < 0.05)
            for m, value in (("martingale", PROJECTED), ("ctd0", FIXED))
        ]
        return [*near, *clear, *flat, *misfit]

    return Claim(
        name="martingale",
        title="Martingale methods and the squared TD error on diffusions",
        source="arXiv 2108.06655",
        methods={name: Method(title) for name, title in TITLES.items()},
        run=run,
        checks=checks,
        columns={
            **{"score": f"error at dt {sizes.steps[-1]:g}"},
            **{f"error_{dt:g}": f"at {dt:g}" for dt in sizes.steps[:-1]},
            **{"theta": "A: theta (1)", "discounted": "A: discounted (1)", "misfit": "C: theta (1.7 or 1.5)"},
        },
        about=(
            f"A: Brownian motion with reward x, dt 0.01, {sizes.paths:,} paths, one parameter whose truth is 1; CTD by stochastic "
            "approximation, the others solved. B: error of a neural critic (64, 64) over the size of the values, Ornstein-Uhlenbeck with "
            f"reward −x², {sizes.iterations} steps of Adam on {sizes.batch} fresh paths each. C: reward x², whose value the family "
            "x (T − t) does not hold: its projection is 1.7, CTD(0) stands still at 1.5."
        ),
        setup=dataclasses.asdict(sizes),
        over="looks per unit of time",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
