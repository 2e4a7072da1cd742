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
    epochs: int | None = None
    """Passes over each batch of rollouts; None: what the recipe says."""
    minibatches: int | None = None
    """Steps in each of these passes; None: what the recipe says."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings where the recipe's are `auto`: `learning_rate`, `kind`, `eps`, `clip_norm`."""

    def __post_init__(self) -> None:
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
    names = Counter(name for learner in learners for name, _ in learner.terms.named())
    found = []
    for learner in learners:
        if any(names[name] > 1 for name, _ in learner.terms.named()):
            named = tuple(dataclasses.replace(term, name=f"{learner.name}_{name}") for name, term in learner.terms.named())
            learner = dataclasses.replace(learner, objective=Objective(named))
        found.append(learner)
    return tuple(found)
