"""Learners: which networks an algorithm trains, by which objective, in which direction, how often, and what follows."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unipg.critics.lagged import Follows
from unipg.errors import InputError
from unipg.estimator import Objective, Term
from unipg.estimator.directions import Direction, Plain
from unipg.networks.denoisers import Schedule


@dataclass(frozen=True)
class Generated:
    """Pairs of observations and decoded actions (s, u) that the policy makes itself, in one iteration, and passes over them.

    Of all pairs `most` are kept, by chance; the share `held_out` of these is for validation. Passes end after `epochs`, or once the
    validation error has not fallen for `patience` of them; the weights with the least error are kept.
    """

    batches: int = 20
    """Batches of rollouts that are collected."""
    most: int = 10_000_000
    """2 at least: one to learn from, one for validation."""
    batch: int = 8192
    """Pairs of an update; the last one of a pass has what is left."""
    draws: int = 8
    """Of noise, for each pair."""
    epochs: int = 50
    patience: int = 20
    held_out: float = 0.1
    schedule: Schedule = "cosine"
    """Of a diffusion's noise."""

    def __post_init__(self) -> None:
        for name, least in (("batches", 1), ("most", 2), ("batch", 1), ("draws", 1), ("epochs", 1), ("patience", 1)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"generated pairs: {name} is {value}; accepted: {least} or more")
        if not 0 < self.held_out < 1:
            raise InputError(f"generated pairs: held_out is {self.held_out}; accepted: a share between 0 and 1")


@dataclass(frozen=True)
class Learner:
    """Some networks of the policy, and how they are trained. An algorithm's learners are stepped in their order, which is arithmetic."""

    name: str
    """What its metrics begin with, but for the learner `policy`."""
    trains: tuple[str, ...]
    """Networks of the policy by name; none: everything that the policy trains."""
    objective: Objective | Term
    direction: Direction = Plain()
    every: int = 1
    """It takes a step at every so many updates."""
    then: tuple[Follows, ...] = ()
    """What follows each of its steps: networks that lag behind."""
    span: tuple[float, float] = (0, math.inf)
    """Iterations in which it is trained: from the first, up to but without the second."""
    role: str = ""
    """What its settings (`optimizer.learners`) and metrics go by: learners of several stages, or of the steps of an episode, may share one.
    Those of one role that follow each other begin on a batch together (`Advantage.held`). Its name, where nothing is said."""
    renews: bool = False
    """Whether its networks are drawn anew, from a seed of its name, when its span begins: after the iteration's rows have been gathered
    where it has `data`, else before the policy is evaluated."""
    keeps_best: bool = False
    """Whether its networks are put back, at the end of its span, to what they were at the best evaluation of it."""
    data: Generated | None = None
    """What the policy makes for it, and how long it is trained on that; None: it learns from the batches of rollouts."""
    collects: bool = False
    """Of an algorithm that is given transitions: whether this one learns from batches of rollouts, while those rest."""
    epochs: int | None = None
    """Passes over each batch of rollouts; None: what the recipe says."""
    minibatches: int | None = None
    """Steps in each of these passes; None: what the recipe says."""
    afresh: bool = False
    """Whether its optimiser forgets what it has gathered, moments and all, before each batch of rollouts."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings where the recipe's are `auto`: `learning_rate`, `kind`, `eps`, `clip_norm`, `schedule`."""

    def __post_init__(self) -> None:
        if not self.role:
            object.__setattr__(self, "role", self.name)
        if isinstance(self.objective, Term):
            object.__setattr__(self, "objective", Objective((self.objective,)))
        if self.every < 1:
            raise InputError(f"learner '{self.name}' steps at every {self.every} updates; accepted: 1 or more")
        for name in ("epochs", "minibatches"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"learner '{self.name}' has {value} {name}; accepted: 1 or more, or None for the recipe's")

    @property
    def terms(self) -> Objective:
        assert isinstance(self.objective, Objective)
        return self.objective


def told_apart(learners: Sequence[Learner]) -> tuple[Learner, ...]:
    """The same learners, with names for terms that would share theirs: what is planned and recorded of a term goes by its name."""
    found = []
    for learner in learners:
        together = (other for other in learners if other.span[0] < learner.span[1] and learner.span[0] < other.span[1])
        names = Counter(name for other in together for name, _ in other.terms.named())
        if any(names[name] > 1 for name, _ in learner.terms.named()):
            named = tuple(dataclasses.replace(term, name=f"{learner.name}_{name}") for name, term in learner.terms.named())
            learner = dataclasses.replace(learner, objective=Objective(named))
        found.append(learner)
    return tuple(found)
