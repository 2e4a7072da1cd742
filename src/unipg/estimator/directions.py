"""Directions: what becomes of a gradient before it is a step.

Belongs here: functions of flat vectors, with a state of their own. Does not belong here: networks, batches and loops; products with a
Fisher matrix or a Hessian are asked of the `Surface` that the loop hands over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from unipg.estimator.parts import Part, Progress
from unipg.shapes import Float

State = dict[str, Any]
"""What a direction keeps from step to step: tensors and plain values, saved with the checkpoint."""


class Surface(ABC):
    """A learner's loss around its weights `theta [D]`, on the batch of one optimiser step."""

    theta: Float[Tensor, " D"]
    """The iterate; the gradient may be that of another point (`Direction.point`)."""

    @abstractmethod
    def gradient(self) -> Float[Tensor, " D"]:
        """Of the loss, which is minimised."""

    @abstractmethod
    def named(self) -> dict[str, Float[Tensor, " D"]]:
        """Of each term's loss, by the term's name."""

    @abstractmethod
    def loss(self, theta: Float[Tensor, " D"]) -> float:
        """The loss at other weights."""

    @abstractmethod
    def divergence(self, theta: Float[Tensor, " D"]) -> float:
        """The mean KL of the policy as it is to that at other weights, KL(now ‖ theta), over the batch."""

    @abstractmethod
    def fisher(self, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """F · vector, F the Hessian of `divergence` at the weights as they are."""

    @abstractmethod
    def hessian(self, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """H · vector, H the Hessian of the loss where it was evaluated."""


@dataclass(frozen=True)
class Direction(Part):
    """Base class. A call gives what the optimiser is handed as the gradient, or, where `owns_step`, the step itself."""

    owns_step: ClassVar[bool] = False
    """Whether its result is added to the weights as it is: no optimiser, no clipping, no learning rate."""
    once: ClassVar[bool] = False
    """Whether every batch must be used for exactly one step."""
    points: ClassVar[int] = 1
    """At how many points a step needs a batch."""

    def start(self, theta: Float[Tensor, " D"]) -> State:
        """Its state before the first step."""
        return {}

    def point(self, number: int, theta: Float[Tensor, " D"], state: State, progress: Progress, seed: int) -> Float[Tensor, " D"] | None:
        """Where batch `number` of the next step is collected and differentiated; None for the iterate, `theta`."""
        return None

    def __call__(self, surfaces: list[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        """`surfaces`: one for each of its points. Changes `state`."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Plain(Direction):
    """The gradient itself."""

    def __call__(self, surfaces: list[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        return surfaces[0].gradient()
