"""Items by how undecided they are, from values that an algorithm keeps for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.seeding import generator
from unipg.shapes import Float
from unipg.trajectories import Trajectories

TRACKER = "tracker"
"""Name in `Planning.memory` of a table: item (or another key of a prompt) to a mapping with at least `value` and `count`."""


def priorities(
    value: Float[Tensor, " N"], count: Float[Tensor, " N"], exploration: float = 0.05, power: float = 0.0
) -> Float[Tensor, " N"]:
    """w = sqrt(v (1 − v)) / n^power + exploration, v in [0, 1] the success rate of an item and n the number of observations it rests on.

    NaN stands for an unknown item: weight 0. Source: arXiv 2509.13232; its released code has power 0.
    """
    spread = (value * (1 - value)).clamp_min(0).sqrt() / count**power + exploration
    return torch.where(value.isnan(), 0, spread)


class PrioritizedSampler:
    """Draws items with probabilities proportional to `priorities` of the values in `memory[TRACKER]`.

    Without replacement; with replacement where fewer items have a weight than are asked for. All weights 0: uniform. `unknown`: the value
    of an item that was never seen; None leaves such items out.
    """

    def __init__(self, size: int, seed: int = 0, *, exploration: float = 0.05, power: float = 0.0, unknown: float | None = 0.5) -> None:
        if size < 1:
            raise InputError("there is nothing to sample from: the task has no items")
        self.size, self.seed, self.draws = size, seed, 0
        self.exploration, self.power = exploration, power
        start = float("nan") if unknown is None else unknown
        self.value = torch.full((size,), start, dtype=torch.float64)
        self.count = torch.ones(size, dtype=torch.float64)

    def weights(self) -> Float[Tensor, " N"]:
        """[size] not normalised."""
        weights = priorities(self.value, self.count, self.exploration, self.power)
        return weights if bool((weights > 0).any()) else torch.ones_like(weights)

    def choose(self, count: int) -> list[int]:
        weights = self.weights()
        again = count > int((weights > 0).sum())
        draw = generator(self.seed, "priority", self.draws)
        self.draws += 1
        return torch.multinomial(weights, count, replacement=again, generator=draw).tolist()

    def update(self, batch: Trajectories, memory: Mapping[str, Any]) -> None:
        self.learn(memory.get(TRACKER, {}))

    def learn(self, table: Mapping[Any, Mapping[str, Any]]) -> None:
        """Takes over what a table says of items by number; see `TRACKER`."""
        known = [(key, entry) for key, entry in table.items() if isinstance(key, int) and 0 <= key < self.size]
        if known:
            index = torch.tensor([key for key, _ in known])
            self.value[index] = torch.tensor([entry["value"] for _, entry in known], dtype=torch.float64)
            self.count[index] = torch.tensor([entry["count"] for _, entry in known], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"draws": self.draws, "value": self.value.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws, self.value, self.count = int(state["draws"]), state["value"].clone(), state["count"].clone()
