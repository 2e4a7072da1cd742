"""What the loop asks of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from unipg.trajectories import Evaluation, Trajectories


class Policy(ABC):
    """A trainable policy: one `nn.Module` and how it evaluates a batch."""

    module: nn.Module
    """Everything that is trained and checkpointed; a value head, where there is one, included."""
    memoryless: bool = False
    """Whether each step depends on its own observation alone, so that steps may be shuffled and split freely."""
    has_value: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @abstractmethod
    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False) -> Evaluation:
        """[B,T] log-probabilities of the batch's actions with the graph; entropy and value when asked for.

        Entries where `batch.mask` is 0 are 0.
        """

    def cost(self, batch: Trajectories) -> Tensor:
        """[B] tokens (or steps) that a forward pass over each row costs; micro-batches are cut by it."""
        assert batch.present is not None
        return batch.present.sum(1)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the policy in its ecosystem's own format, ready to be loaded without unipg."""
