"""What the loop asks of a policy."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from unipg.errors import InputError
from unipg.estimator.likelihoods import Reading
from unipg.estimator.parts import Reduce
from unipg.trajectories import Evaluation, Trajectories


class Policy(ABC):
    """A trainable policy: one `nn.Module` and how it evaluates a batch."""

    module: nn.Module
    """Everything that is trained and checkpointed; the critic, where there is one, included. It stays in evaluation mode: with dropout, the
    log-probabilities of one policy would differ from call to call."""
    memoryless: bool = False
    """Whether each step depends on its own observation alone, so that steps may be shuffled and split freely."""
    has_value: bool = False
    has_densities: bool = False
    """Whether its actions are real numbers, so that probabilities and entropies are those of densities."""

    counts_actions: bool = True
    """Whether actions can be counted, one number each."""
    actions_per_step: int = 1
    """How many actions there are, or how many numbers one has, where algorithms must know."""

    has_kl: bool = False
    """Whether it offers the exact KL of two of its own distributions (`distributions`, `kl`)."""
    has_entropy: bool = True
    """Whether `evaluate` offers the entropy of its distributions."""
    twice_differentiable: bool = True
    """Whether log-probabilities may be differentiated twice."""

    @property
    def called(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @abstractmethod
    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """[B,T] log-probabilities of the batch's actions with the graph; entropy, value and `readings` of the logits when asked for.

        Readings that draw take their keys from `batch.planned["position_key"]`. Entries where `batch.mask` is 0 are 0.
        """

    def distributions(self, batch: Trajectories) -> tuple[Tensor, ...]:
        """What its distributions at the N steps where it acted are made of, [N,…] each, with the graph."""
        raise InputError(f"{type(self).__name__} offers no exact KL of its distributions; accepted: a controller that draws its actions")

    def kl(self, one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
        """[N] the exact KL(one ‖ other) in nats, of what `distributions` gave."""
        raise InputError(f"{type(self).__name__} offers no exact KL of its distributions; accepted: a controller that draws its actions")

    def cost(self, batch: Trajectories) -> Tensor:
        """[B] tokens (or steps) that a forward pass over each row costs."""
        assert batch.present is not None
        return batch.present.sum(1)

    def cost_together(self, batch: Trajectories, unit: Tensor, units: int) -> Tensor:
        """[units] tokens that the rows of each unit (`unit` [B]) cost in one forward pass; here they are padded to the longest."""
        longest = torch.zeros(units, dtype=torch.long, device=unit.device).scatter_reduce(0, unit, self.cost(batch), "amax")
        return longest * unit.bincount(minlength=units)

    def cuts(self, batch: Trajectories, budget: int, together: bool = False) -> list[Tensor]:
        """Row indices of each micro-batch, of at most `budget` tokens (or of one row, or group, that is more by itself).

        `together`: the rows of a group share a micro-batch.
        """
        assert batch.group is not None
        if self.memoryless and batch.mask.shape[1] == 1:
            return list(torch.arange(len(batch), device=self.device).split(budget))
        cost = self.cost(batch)
        units, unit = batch.group.unique(return_inverse=True) if together else (cost, torch.arange(len(cost), device=cost.device))
        longest = cost.new_zeros(len(units)).scatter_reduce(0, unit, cost, "amax")
        # rows of similar length together, so that little is padded
        by_cost = torch.argsort(longest, descending=True, stable=True)
        order = torch.argsort(torch.argsort(by_cost)[unit], stable=True)
        sizes, lengths = unit.bincount(minlength=len(units))[by_cost].tolist(), longest[by_cost].tolist()
        pieces: list[int] = []
        most = 0
        for size, length in zip(sizes, lengths, strict=True):
            if not pieces or pieces[-1] + size > most:
                pieces.append(0)
                most = budget // max(1, int(length))
            pieces[-1] += size
        return list(order.split(pieces))

    def renew(self, names: Sequence[str], seed: int) -> None:
        """Draws the named networks anew, in place."""
        raise InputError(f"{type(self).__name__} cannot draw its networks anew; accepted: a controller")

    def twin(self) -> Self:
        """The same policy with parameters of its own."""
        return copy.deepcopy(self)

    def frozen_copy(self) -> Policy:
        """The policy as it is now, never to be trained: an anchor for KL penalties."""
        twin = self.twin()
        twin.module.eval().requires_grad_(False)
        return twin

    def proposal(self) -> Self:
        """A twin to sample from: what sampling does not read, such as a critic, may be left out."""
        return self.twin()

    def follow(self, other: Policy) -> None:
        """Takes over the parameters and buffers of another policy, which has all of this one's."""
        theirs = other.module.state_dict()
        self.module.load_state_dict({name: theirs[name] for name in self.module.state_dict()})

    @property
    def must_observe(self) -> bool:
        """Whether it must `observe` a batch before it is trained on any."""
        return False

    @property
    def still(self) -> list[int]:
        """The numbers of an observation that hardly change in what it was shown; none where it reads them as they are."""
        return []

    def observe(self, batch: Trajectories, total: Reduce) -> None:
        """Told of every batch after the updates on it, for what it keeps of its inputs beside its parameters; `total` sums over workers."""

    @property
    def critic_parameters(self) -> list[nn.Parameter]:
        """What only a critic is made of whose loss cannot move the policy; empty where it can, and where there is no critic.

        These have a learning rate of their own (`optimizer.critic_learning_rate`), and their gradient is guarded and clipped by itself.
        """
        return []

    @property
    def networks(self) -> dict[str, list[nn.Parameter]]:
        """Small networks by name, each of whose parameters gets a gradient together with the others; the trainer keeps each as one vector.
        Usually none."""
        return {}

    @property
    def names_networks(self) -> bool:
        """Whether terms may ask for its networks by name (`now`)."""
        return False

    def buffers_of(self, network: str) -> list[Tensor]:
        """What a network keeps beside its parameters."""
        return []

    def now(self, batch: Trajectories, graphs: frozenset[str] = frozenset()) -> Evaluation:
        """Its networks on a batch, evaluated when they are asked for. `graphs`: observations whose fresh actions will be differentiated."""
        raise InputError(f"{type(self).__name__} has no networks by name, which this algorithm trains; accepted: a controller")

    def save_critic(self, folder: Path) -> None:
        """Writes what `save` leaves out of the critic; nothing where there is no such thing."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the policy in its ecosystem's own format, ready to be loaded without unipg."""
