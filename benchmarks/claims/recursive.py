"""N-PG-IGT and HARPG on a noisy quadratic: how fast the error of their direction falls with the number of steps.

Gradients of −½ xᵀAx with Gaussian noise, one a step; the directions are the library's own, on a surface of ten numbers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, gains, main
from torch import Tensor

from unipg.estimator import Progress
from unipg.estimator.directions import Curvature, HessianAided, Recursive, State, Surface, Transported, decayed
from unipg.seeding import generator


@dataclass(frozen=True)
class Quadratic:
    """Sizes of the problem: A = diag(0.5 … 2), started at ones."""

    size: int = 10
    noise: float = 1.0
    steps: int = 2000
    step: float = 1.0
    since: int = 20
    """The first step of the slopes."""
    last: int = 200
    """Steps at the end over which the score is averaged."""


@dataclass(frozen=True)
class Momentum(Recursive):
    """d_t = (1 − η_t) d_{t−1} + η_t g(θ_t), normalised: momentum without transport."""

    displaces: ClassVar[bool] = False
    momentum_power: float = 2 / 3

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Tensor:
        eta = decayed(self.momentum, state["count"], self.momentum_power)
        d = (1 - eta) * state["direction"] + eta * surfaces[0].gradient()
        return self._moved(d, decayed(self.step, state["count"], 1.0), True, surfaces[0], state)


@dataclass
class Noisy(Surface):
    """½ xᵀAx at a point, its gradient with noise, its Hessian without."""

    theta: Tensor
    curvature: Tensor
    point: Tensor
    noise: Tensor
    told: dict[str, float] = field(default_factory=dict)

    def gradient(self) -> Tensor:
        return self.curvature * self.point + self.noise

    def named(self) -> dict[str, Tensor]:
        return {"quadratic": self.gradient()}

    def loss(self, theta: Tensor | None = None) -> float:
        at = self.point if theta is None else theta
        return float(0.5 * (self.curvature * at * at).sum())

    def divergence(self, theta: Tensor) -> float:
        raise NotImplementedError

    def fisher(self, vector: Tensor) -> Tensor:
        raise NotImplementedError

    def hessian(self, vector: Tensor) -> Tensor:
        return self.curvature * vector

    def expected_hessian(self, vector: Tensor, estimate: Curvature) -> Tensor:
        return self.hessian(vector)


def directions(problem: Quadratic) -> dict[str, tuple[str, Recursive]]:
    return {
        "raw": ("raw gradient, normalised", Transported(problem.step, momentum_power=0.0)),
        "momentum": ("normalised momentum without transport", Momentum(problem.step)),
        "igt": ("N-PG-IGT", Transported(problem.step)),
        "harpg": ("N-HARPG, exact Hessian", HessianAided(problem.step)),
    }


def errors(problem: Quadratic, direction: Recursive, seed: int) -> Tensor:
    """[steps] ‖d_t − ∇(θ_t)‖²."""
    curvature = torch.linspace(0.5, 2, problem.size, dtype=torch.float64)
    theta = torch.ones(problem.size, dtype=torch.float64)
    state, draw = direction.start(theta), generator(seed, "noise")
    found = torch.zeros(problem.steps, dtype=torch.float64)
    for t in range(problem.steps):
        surfaces = []
        for point in direction.points(theta, state, draw) if direction.displaces else (None,):
            noise = problem.noise * torch.randn(problem.size, dtype=torch.float64, generator=draw)
            surfaces.append(Noisy(theta, curvature, theta if point is None else point, noise))
        step = direction(surfaces, state, Progress())
        found[t] = ((state["direction"] - curvature * theta) ** 2).sum()
        theta = theta + step
    return found


def slope(found: Tensor, since: int) -> float:
    """Of log error against log t, by least squares over bins that are equally wide in log t."""
    edges = torch.unique(torch.logspace(math.log10(since), math.log10(len(found)), 12).long()).tolist()
    bins = list(itertools.pairwise(edges))
    middle = torch.tensor([math.log(math.sqrt(a * b)) for a, b in bins])
    height = torch.tensor([float(found[a:b].mean().log()) for a, b in bins])
    middle, height = middle - middle.mean(), height - height.mean()
    return float((middle * height).sum() / (middle * middle).sum())


def checks(runs: Runs) -> list[Check | None]:
    def ratio(method: str, other: str) -> dict[int, float]:
        logs = [{seed: math.log10(value) for seed, value in by_seed(runs, name).items()} for name in (method, other)]
        return gains(*logs)

    order = (("momentum", "raw"), ("igt", "momentum"), ("harpg", "igt"))
    lower = [check(f"log10 error of {one} below that of {other}", ratio(one, other), lambda value: value < 0) for one, other in order]
    igt, harpg = by_seed(runs, "igt", "slope"), by_seed(runs, "harpg", "slope")
    return [
        *lower,
        check("slope of igt within 0.15 of −0.8", igt, lambda value: abs(value + 0.8) <= 0.15),
        check("slope of harpg within 0.15 of −1", harpg, lambda value: abs(value + 1) <= 0.15),
    ]


def build(chosen: argparse.Namespace) -> Claim:
    problem = Quadratic(steps=60, last=10) if chosen.quick else Quadratic()
    table = directions(problem)

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        found = errors(problem, table[method][1], seed)
        curve = {str(t): float(found[max(0, t - 10) : t + 10].mean()) for t in range(10, problem.steps, max(1, problem.steps // 50))}
        return {"score": float(found[-problem.last :].mean()), "slope": slope(found, problem.since), "curve": curve}

    return Claim(
        name="recursive",
        title="N-PG-IGT and HARPG on a noisy quadratic",
        source="arXiv 2302.01734",
        methods={name: Method(title, {"direction": direction.symbol()}) for name, (title, direction) in table.items()},
        run=run,
        checks=checks,
        columns={"score": "error of the direction", "slope": "slope of its logarithm in log t"},
        about=(
            f"Error: ‖d_t − ∇J(θ_t)‖², mean over the last {problem.last} of {problem.steps} steps; J = −½ xᵀAx in R^{problem.size}, noise "
            "of standard deviation 1 in every coordinate. The theory has slopes of −4/5 and −1."
        ),
        setup={name: getattr(problem, name) for name in problem.__dataclass_fields__},
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=10))
