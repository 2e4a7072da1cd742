"""Several workers: counts and gradients are summed over them; nothing is averaged, because losses are normalised by global counts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """This process's place among the workers of a run (started with `torchrun`); alone by default."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Workers:
        """Joins the group that `torchrun` announced, if it did."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), world)

    @property
    def leads(self) -> bool:
        """Whether this worker writes files and prints."""
        return self.rank == 0

    def sum(self, counts: Tensor) -> Tensor:
        """The sum over all workers."""
        if self.world == 1:
            return counts
        total = counts.clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Adds up the gradients of all workers, in place. A worker without one contributes zeros; where no worker has one it stays None,
        so that the optimiser leaves the parameter alone."""
        if self.world == 1:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        for parameter, workers in zip(parameters, self.sum(has).tolist(), strict=True):
            if workers:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def share(self, parameters: Iterable[Tensor]) -> None:
        """Makes all workers start from the first worker's values."""
        if self.world > 1:
            for tensor in parameters:
                dist.broadcast(tensor.data, 0)

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()
