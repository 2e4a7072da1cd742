"""What follows a learner's step: copies of its networks that lag behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.errors import InputError

Weights = Callable[[str], list[Tensor]]
"""The weights of a network by its name, buffers behind parameters: as few tensors as they can be kept in."""


@dataclass(frozen=True)
class Follows:
    """Base class: `lagged` follows `of`, two networks by name, after a learner's step."""

    of: str
    lagged: str

    def __call__(self, weights: Weights, steps: int) -> None:
        """`steps`: the learner's steps so far, this one included."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Polyak(Follows):
    """lagged ← (1 − tau) · lagged + tau · of, after every step; buffers are copied."""

    tau: float = 0.005

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise InputError(f"tau is {self.tau}; accepted: above 0, at most 1")

    @torch.no_grad()
    def __call__(self, weights: Weights, steps: int) -> None:
        for own, theirs in zip(weights(self.lagged), weights(self.of), strict=True):
            own.lerp_(theirs, self.tau) if own.is_floating_point() else own.copy_(theirs)


@dataclass(frozen=True)
class Copied(Follows):
    """lagged ← of, after every `every` steps of the learner."""

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"a copy is taken every {self.every} steps; accepted: 1 or more")

    @torch.no_grad()
    def __call__(self, weights: Weights, steps: int) -> None:
        if steps % self.every == 0:
            for own, theirs in zip(weights(self.lagged), weights(self.of), strict=True):
                own.copy_(theirs)
