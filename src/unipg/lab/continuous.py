"""Critics in continuous time against the exact value: how far each is off as the step dt shrinks, on diffusions whose values are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipg.critics.continuous import Times
from unipg.critics.linear import Solution, clstd, gmm, martingale_fit, mean_square_td_fit
from unipg.errors import InputError
from unipg.lab.diffusions import DIFFUSIONS, Drawn, Scheme, draw
from unipg.seeding import generator
from unipg.statistics import Interval, mean_interval

STEPS = (0.2, 0.1, 0.05, 0.02, 0.01)
"""dt of the study, with a horizon of 1."""
BATCHES = 20
PATHS = 500
LAM = 0.5


def _over_identified(drawn: Drawn) -> Tensor:
    """Features, 1 and the state: one or two more test functions than there are features."""
    x = drawn.state[:, :-1]
    return torch.cat([drawn.features[:, :-1], torch.ones_like(x).unsqueeze(-1), x.unsqueeze(-1)], -1)


METHODS: dict[str, tuple[str, Callable[[Drawn], Solution]]] = {
    "mstde": ("mean-square TD error", lambda d: mean_square_td_fit(d.paths, d.features, d.base)),
    "martingale": ("martingale loss", lambda d: martingale_fit(d.paths, d.features, d.base)),
    "ctd0": ("CTD(0), its fixed point", lambda d: clstd(d.paths, d.features, d.base)),
    "ctd_lambda": (f"CTD({LAM:g}), its fixed point", lambda d: clstd(d.paths, d.features, d.base, LAM)),
    "gmm": ("moments, two more tests", lambda d: gmm(d.paths, d.features, _over_identified(d), d.base)),
}
"""What each is called, and its answer in the family of a diffusion, which holds the truth."""


@dataclass(frozen=True)
class Judged:
    """How far a method's values are off, under one dt."""

    diffusion: str
    method: str
    dt: float
    scheme: Scheme
    error: Interval
    """Root mean square of J_theta − J over the states and times of the paths, over that of J; mean over batches."""
    condition: float
    """Of the system that was solved: the worst of the batches."""

    def as_json(self) -> dict[str, Any]:
        return {
            "diffusion": self.diffusion,
            "method": self.method,
            "dt": self.dt,
            "scheme": self.scheme,
            "error": self.error._asdict(),
            "condition": self.condition,
        }


@dataclass(frozen=True)
class Diffusions:
    """The problem of `unipg lab --problem sde`: all four diffusions."""

    name: str = "sde"
    title: str = "values of diffusions, seen every dt"
    outcome: str = "the value of each diffusion is known in closed form, and the family of values holds it."
    contexts: int = len(DIFFUSIONS)
    trajectories: None = None


def relative_error(drawn: Drawn, theta: Tensor) -> float:
    """Of values in the family, under the occupation measure: every path and step but the last point."""
    truth = drawn.value[:, :-1]
    found = (drawn.features @ theta + drawn.base)[:, :-1]
    weight = drawn.paths.times.dt
    return float((((found - truth) ** 2 * weight).sum() / (truth**2 * weight).sum()).sqrt())


def run_diffusions(
    steps: Sequence[float] = STEPS,
    paths: int = PATHS,
    batches: int = BATCHES,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> list[Judged]:
    """Every method on the same paths of every diffusion, drawn exactly and by Euler-Maruyama, for each dt.

    Errors: `InputError` for fewer than two batches or paths, and for steps that do not fill the horizon.
    """
    if batches < 2:
        raise InputError(f"{batches} batches say nothing of the spread; accepted: 2 or more")
    if paths < 2:
        raise InputError(f"a batch has {paths} paths; accepted: 2 or more")
    schemes: tuple[Scheme, ...] = ("exact", "euler")
    cells = [(name, scheme, dt) for name in DIFFUSIONS for scheme in schemes for dt in steps]
    found = []
    for done, (name, scheme, dt) in enumerate(cells):
        diffusion = DIFFUSIONS[name]()
        times = Times.even(diffusion.horizon, dt, diffusion.beta)
        errors: dict[str, list[float]] = {method: [] for method in METHODS}
        worst = dict.fromkeys(METHODS, 0.0)
        for batch in range(batches):
            drawn = draw(diffusion, times, paths, generator(seed, "sde", name, dt, batch), scheme)
            for method, (_, solve) in METHODS.items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of singular systems: the condition is told
                    solution = solve(drawn)
                errors[method].append(relative_error(drawn, solution.theta))
                worst[method] = max(worst[method], solution.condition)
        found += [Judged(name, m, dt, scheme, mean_interval(errors[m], seed), worst[m]) for m in METHODS]
        if progress is not None:
            progress((done + 1) / len(cells))
    return found
