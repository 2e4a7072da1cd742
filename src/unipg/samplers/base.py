"""The sampler protocol, and the uniform sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from unipg.errors import InputError
from unipg.seeding import generator
from unipg.trajectories import Trajectories


class Sampler(Protocol):
    """Chooses item indices, learns from what came of them and from what the algorithm remembers, and can be saved."""

    def choose(self, count: int) -> list[int]: ...

    def update(self, batch: Trajectories, memory: Mapping[str, Any]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UniformSampler:
    """Every item once per epoch, in an order that depends on seed and epoch alone."""

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise InputError("there is nothing to sample from: the task has no items")
        self.size, self.seed = size, seed
        self.position = 0

    def choose(self, count: int) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < count:
            epoch, place = divmod(self.position, self.size)
            order = torch.randperm(self.size, generator=generator(self.seed, "order", epoch))
            take = order[place : place + count - len(chosen)].tolist()
            chosen += take
            self.position += len(take)
        return chosen

    def update(self, batch: Trajectories, memory: Mapping[str, Any]) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])
