"""What every part of the estimator has in common: it says what it is, what it reads, and it is a value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from unipg.arguments import CheckedArguments
from unipg.errors import InputError


@dataclass(frozen=True)
class Progress:
    """Where training stands; what schedules and planning read."""

    step: int = 0
    """Optimiser steps done so far."""
    total: int = 1
    """Optimiser steps planned."""
    learning_rate: float = 0.0

    @property
    def fraction(self) -> float:
        """In [0, 1]."""
        return min(1.0, self.step / max(1, self.total))


@dataclass(frozen=True)
class Schedule(CheckedArguments):
    """A weight that changes with training. Base class; `2.0 * schedule` is a schedule."""

    def __call__(self, progress: Progress) -> float:
        raise NotImplementedError(type(self).__name__)

    def __rmul__(self, factor: float) -> Schedule:
        if not isinstance(factor, float | int):
            return NotImplemented  # a term or an objective: they know what a weight does to them
        return Scaled(factor, self)

    __mul__ = __rmul__


@dataclass(frozen=True)
class Scaled(Schedule):
    """factor · schedule."""

    factor: float
    schedule: Schedule

    def __call__(self, progress: Progress) -> float:
        return self.factor * self.schedule(progress)


@dataclass(frozen=True)
class Complement(Schedule):
    """1 − schedule: the other side of a mixture."""

    schedule: Schedule

    def __call__(self, progress: Progress) -> float:
        return 1.0 - self.schedule(progress)


@dataclass(frozen=True)
class Linear(Schedule):
    """Moves linearly from `start` to `end` over the given share of training, then stays."""

    start: float
    end: float
    until: float = 1.0
    """Share of training, in (0, 1], at which `end` is reached."""

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise InputError(f"Linear.until is {self.until}; accepted: a share of training in (0, 1]")

    def __call__(self, progress: Progress) -> float:
        share = min(1.0, progress.fraction / self.until)
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class Tightening(Schedule):
    """1 / t_k, t_k = first · max(1 − (k − lead) / K, 1 / K): a proximal weight whose step size falls linearly to 0, and never gets there.

    k counts iterations of `every` optimiser steps each, K is how many there are; also past the last of them the weight is finite.
    """

    first: float = 1.0
    """t_0, but for `lead`."""
    every: int = 1
    lead: float = 0.0
    """Iterations that the fall is late by."""

    def __post_init__(self) -> None:
        if not (self.first > 0 and math.isfinite(self.first)):
            raise InputError(f"Tightening.first is {self.first}; accepted: a finite step size above 0")
        if self.every < 1:
            raise InputError(f"Tightening.every is {self.every}; accepted: 1 or more optimiser steps")

    def __call__(self, progress: Progress) -> float:
        total = max(1, progress.total // self.every)
        return 1 / (self.first * max(1 - (progress.step // self.every - self.lead) / total, 1 / total))


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Rises linearly from 0 to `peak` in `warmup` steps, falls along a cosine to `valley` in `decay` steps, then stays there.

        peak · s / W   for s < W;   valley + (peak − valley) · (1 + cos(pi · (s − W) / D)) / 2   for W <= s < W + D;   valley   after

    `s` counts optimiser steps. With W = D = 0 it is `valley` throughout.
    """

    peak: float
    valley: float
    warmup: int = 0
    decay: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.decay < 0:
            raise InputError(f"WarmupCosine(warmup={self.warmup}, decay={self.decay}); accepted: numbers of steps of 0 or more")

    def __call__(self, progress: Progress) -> float:
        since = progress.step - self.warmup
        if since < 0:
            return self.peak * progress.step / self.warmup
        if since >= self.decay:
            return self.valley
        return self.valley + (self.peak - self.valley) * (1 + math.cos(math.pi * since / self.decay)) / 2


Weight = float | Schedule


def shown_weight(weight: Weight) -> str:
    """A weight in tables."""
    return f"{weight:g}" if isinstance(weight, int | float) else str(weight)


def weight_at(weight: Weight, progress: Progress) -> float:
    return weight(progress) if isinstance(weight, Schedule) else float(weight)


Search = Literal["tree", "all"]
"""How the nearest of many pairs are found: in a k-d tree, or by comparing all."""


@runtime_checkable
class Neighbours(Protocol):
    """All the pairs of observation and action that a run has been given; see `replay.Pairs`."""

    def nearest(self, observation: Tensor, action: Tensor, beta: float, count: int, search: Search) -> Tensor:
        """[M,A] the stored action nearest to each of M pairs, observations [M,O] as networks read them."""


def no_neighbours() -> Neighbours:
    """The pairs of a run that is given none. `InputError`."""
    raise InputError("a term looks for pairs of a dataset, and there is none; accepted: a run with a dataset section")


Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor of counts over all workers."""


def alone(counts: Tensor) -> Tensor:
    """The `Reduce` of a single worker."""
    return counts


Joint = Literal["step", "row", "group", "batch"]
"""How far a part looks around a token: at that step alone, at its row, at the rows of its group, or at the batch of an optimiser step."""
REACH: tuple[Joint, ...] = ("step", "row", "group", "batch")


def furthest(reaches: Iterable[Joint]) -> Joint:
    return REACH[max((REACH.index(r) for r in reaches), default=0)]


def beyond_row(reach: Joint) -> bool:
    return REACH.index(reach) > REACH.index("row")


class Part(CheckedArguments):
    """A small immutable value with a symbol for tables, the batch fields it reads, and whether it needs the policy's entropy."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of `Trajectories` that must be there before the model is run."""
    needs_entropy: ClassVar[bool] = False
    joint: ClassVar[Joint] = "row"
    """How far it looks when it is called. Only where every part of an objective says "step" are the rows of a policy without memory cut
    into steps; a part that says nothing is given whole rows."""
    minor: ClassVar[frozenset[str]] = frozenset()
    """Settings that a table need not show while they have their default."""

    @property
    def reach(self) -> Joint:
        """`joint`, or the furthest of the parts that it is made of."""
        return self.joint

    def symbol(self) -> str:
        """A short name with its settings, for tables. What is switched off (None) is left out, and minor settings at their default."""
        settings = [
            f"{f.name}={_short(value)}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, f.name)) is not None and not (f.name in self.minor and value == f.default)
        ]
        return type(self).__name__ + (f"({', '.join(settings)})" if settings else "")


def _short(value: object) -> str:
    if isinstance(value, Part):
        return value.symbol()
    if isinstance(value, tuple):
        return "+".join(_short(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "name", value)).lower()
