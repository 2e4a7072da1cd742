"""What the loop asks of a policy."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unipg.estimator.likelihoods import Reading
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
    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """[B,T] log-probabilities of the batch's actions with the graph; entropy, value and `readings` of the logits when asked for.

        Readings that draw take their keys from `batch.planned["position_key"]`. Entries where `batch.mask` is 0 are 0.
        """

    def cost(self, batch: Trajectories) -> Tensor:
        """[B] tokens (or steps) that a forward pass over each row costs; micro-batches are cut by it."""
        assert batch.present is not None
        return batch.present.sum(1)

    def frozen_copy(self) -> Policy:
        """The policy as it is now, never to be trained: an anchor for KL penalties, or a proposal to sample from."""
        twin = copy.deepcopy(self)
        twin.module.eval().requires_grad_(False)
        return twin

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the policy in its ecosystem's own format, ready to be loaded without unipg."""
