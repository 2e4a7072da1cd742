"""What follows a learner's step: copies of its networks that lag behind, or that are taken where a score says so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator import Planning
from unipg.estimator.parts import Part
from unipg.trajectories import Evaluation, Trajectories

Weights = Callable[[str], list[Tensor]]
"""The weights of a network by its name, buffers behind parameters: as few tensors as they can be kept in."""
Told = Mapping[str, float]
SUSPECT = 10.0
"""A score this many times as large as that of the accepted policy is one of a model that has run away."""


@dataclass(frozen=True)
class Moment:
    """What may be asked after a step."""

    batch: Trajectories
    """The rows of the step."""
    now: Callable[[], Evaluation]
    """The networks on these rows, as they are."""
    planning: Planning


@dataclass(frozen=True)
class Follows:
    """Base class: `lagged` follows `of`, two networks by name, after a learner's step."""

    of: str
    lagged: str

    def __call__(self, weights: Weights, steps: int, moment: Moment | None = None) -> Told | None:
        """`steps`: the learner's steps so far, this one included. Returns metrics, where it has any."""
        raise NotImplementedError(type(self).__name__)

    @torch.no_grad()
    def copy(self, weights: Weights, of: str | None = None) -> None:
        """lagged ← of."""
        for own, theirs in zip(weights(self.lagged), weights(of or self.of), strict=True):
            own.copy_(theirs)


@dataclass(frozen=True)
class Polyak(Follows):
    """lagged ← (1 − tau) · lagged + tau · of, after every step; buffers are copied."""

    tau: float = 0.005

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise InputError(f"tau is {self.tau}; accepted: above 0, at most 1")

    @torch.no_grad()
    def __call__(self, weights: Weights, steps: int, moment: Moment | None = None) -> None:
        for own, theirs in zip(weights(self.lagged), weights(self.of), strict=True):
            own.lerp_(theirs, self.tau) if own.is_floating_point() else own.copy_(theirs)


@dataclass(frozen=True)
class Every(Follows):
    """Base class of what is done after every `every` steps of the learner."""

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"a copy is taken every {self.every} steps; accepted: 1 or more")

    def __call__(self, weights: Weights, steps: int, moment: Moment | None = None) -> Told | None:
        return None if steps % self.every else self.due(weights, moment)

    def due(self, weights: Weights, moment: Moment | None) -> Told | None:
        """What is done then; returns metrics, where it has any."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Copied(Every):
    """lagged ← of, after every `every` steps of the learner."""

    def due(self, weights: Weights, moment: Moment | None) -> None:
        self.copy(weights)


@dataclass(frozen=True)
class Score(Part):
    """Base class: how good a policy is found, without acting."""

    def __call__(self, now: Evaluation, of: str, planning: Planning) -> float:
        """The policy `of`, by what there is to know of it at the rows of `now`; of all policies at the same random numbers."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Scored(Every):
    """Base class of copies that are taken where `score` says so. All are scored at the same rows and random numbers, so that nothing but
    the policies tells them apart, and no score is kept."""

    score: Score | None = None

    def due(self, weights: Weights, moment: Moment | None) -> Told:
        assert self.score is not None
        assert moment is not None
        now = moment.now()
        return self.decide(weights, moment, [self.score(now, network, moment.planning) for network in self.compared])

    @property
    def compared(self) -> tuple[str, ...]:
        """The networks that are scored."""
        return self.of, self.lagged

    def decide(self, weights: Weights, moment: Moment, scores: list[float]) -> Told:
        """Copies or not, by the scores of the networks `compared`."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Gated(Scored):
    """lagged ← of, where `score` finds `of` strictly better than `lagged`: asked after every `every` steps.

    What is no number, or `SUSPECT` times as large as the other one, counts as no better, with a warning.
    """

    def decide(self, weights: Weights, moment: Moment, scores: list[float]) -> Told:
        found, best = scores
        opens = self._believed(found, best) and found > best
        if opens:
            self.copy(weights)
        memory, key = moment.planning.memory, f"gate/{self.lagged}"
        opened, asked = memory.get(key, (0, 0))
        memory[key] = (opened + opens, asked + 1)
        return {"gate/score": found, "gate/accepted": max(found, best) if opens else best, "gate/opened": (opened + opens) / (asked + 1)}

    def _believed(self, found: float, best: float) -> bool:
        trusted = math.isfinite(found) and not abs(found) > SUSPECT * abs(best) > 0
        if not trusted:
            warnings.warn(
                f"the gate finds {found:.3g} of '{self.of}', and {best:.3g} of '{self.lagged}' before it: it stays closed; "
                "accepted: fewer steps of the model (algorithm.rollout), or a model that was trained for longer",
                stacklevel=2,
            )
        return trusted


@dataclass(frozen=True)
class Elected(Scored):
    """lagged ← that of the networks `among` which `score` finds best: asked after every `every` steps. `of` is one of them."""

    among: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[str, ...]:
        return self.among

    def decide(self, weights: Weights, moment: Moment, scores: list[float]) -> Told:
        chosen = max(range(len(scores)), key=lambda k: scores[k] if math.isfinite(scores[k]) else -math.inf)
        self.copy(weights, self.among[chosen])
        return {"elected": float(chosen)}
