"""What feeds of single transitions have in common: the rows of an update, and the noise of its fresh actions, follow from its number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.estimator import Objective
from unipg.estimator.likelihoods import Ranks
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.named import NamedNetworks
from unipg.policies.now import NOISE, WINNER
from unipg.rollouts.environments import EnvironmentRollouts
from unipg.seeding import generator
from unipg.training.feeds.base import Feed
from unipg.training.learner import Learning
from unipg.training.optimization import TrainingRecipe
from unipg.trajectories import Evaluation, Source, Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer

DRAWN = ("observation", "next_observation", "action", "reward", "terminated")
BLOCK = 64
"""Updates whose random numbers are drawn at once."""


def check_once(training: TrainingRecipe) -> None:
    """Refuses what is said of batches of rollouts alone."""
    for name, accepted in (("epochs", 1), ("minibatches", 1), ("overlap", False)):
        if (value := getattr(training, name)) != accepted:
            raise InputError(
                f"training.{name} is {str(value).lower()}, which is of batches of rollouts; accepted with replay: {str(accepted).lower()}"
            )


def chosen(numbers: np.ndarray, rows: int) -> Tensor:
    """[N] int64 of so many rows those that numbers [N] in [0, 1) decide."""
    return torch.from_numpy((numbers * rows).astype(np.int64))


@torch.no_grad()
def winners(policy: NamedNetworks, batch: Trajectories, ranks: Ranks, cuts: Iterable[Tensor]) -> dict[str, Tensor]:
    """[B,T] the best components as the networks are now, planned, found in the given micro-batches."""
    found = {WINNER.format(at): torch.zeros(batch.mask.shape, dtype=torch.long, device=batch.mask.device) for at, _ in ranks}
    for index in cuts:
        now = policy.now(batch.select(index))
        for at, by in ranks:
            found[WINNER.format(at)][index] = now.winner(at, by)
    return found


class Kept(Feed):
    """Base class. `stream`: what its random numbers go by."""

    stream = "replay"

    def __init__(self, run: Trainer, rows: Mapping[Source, int]) -> None:
        """`rows`: of each source in an update, in this order."""
        super().__init__(run)
        experience, policy = run.experience, run.policy
        who = f"algorithm '{run.algorithm.name}'"
        if not isinstance(experience, EnvironmentRollouts) or not isinstance(policy, ActorCritic):
            raise InputError(f"{who} learns from transitions that are kept; accepted: an environment, and a controller such as ActorCritic")
        if run.workers.world > 1:
            raise InputError(f"{who} keeps its transitions in one place; accepted: one worker")
        check_once(run.training)
        if any(learner.direction.once for learner in run.learned):
            raise InputError(f"{who} has a direction that uses each batch once, where it was collected; accepted: batches of rollouts")
        self.experience, self.policy = experience, policy
        self.done = 0
        """Updates so far."""
        self._begun = False
        self._objective = Objective(tuple(term for learner in run.learned if not learner.collects for term in learner.terms.terms))
        self.graphs = self._objective.differentiates
        self._drawn = sorted(self._objective.noise)
        self._prepared: tuple[int, Objective, bool] | None = None
        """The iteration, all terms of its learners, and whether any has work on a whole batch, as advantages have that ask no network."""
        self._block: tuple[int, np.ndarray, dict[str, Tensor]] | None = None
        self._device = policy.device
        self._moves = policy.device.type != "cpu"
        """Whether rows go to another device."""
        self.batch = sum(rows.values())
        self._template = Trajectories(
            action=torch.zeros(self.batch, 1),
            mask=torch.ones(self.batch, 1, dtype=torch.bool),
            source=torch.cat([torch.full((count,), int(source)) for source, count in rows.items()]),
        ).to(policy.device)

    @property
    def begun(self) -> bool:
        return self._begun

    def numbers(self) -> tuple[np.ndarray, dict[str, Tensor]]:
        """[batch] numbers in [0, 1) that decide the rows of the update, and its planned noise."""
        block, place = divmod(self.done, BLOCK)
        if self._block is None or self._block[0] != block:
            source = generator(self.run.seed, self.stream, block)
            rows = self.batch
            uniform = torch.rand(BLOCK, rows, generator=source, dtype=torch.float64).numpy()
            normal = {
                NOISE.format(at): torch.randn(BLOCK, rows, 1, self.policy.noises(at), generator=source).to(self._device)
                for at in self._drawn
            }
            self._block = block, uniform, normal
        return self._block[1][place], {name: values[place] for name, values in self._block[2].items()}

    def rows(self, drawn: Mapping[str, Tensor], planned: dict[str, Tensor]) -> Trajectories:
        """The batch of an update, [batch,1], of columns [batch,…]; the update is counted."""
        rows = {name: tensor.unsqueeze(1) for name, tensor in drawn.items()}
        rows["step_reward"] = rows.pop("reward")
        if self._moves:
            rows = {name: tensor.to(self._device) for name, tensor in rows.items()}
        self.done += 1
        batch = self._template._with({**rows, "planned": planned})
        return self._decided(self._ready(batch, planned))

    def _ready(self, batch: Trajectories, planned: dict[str, Tensor]) -> Trajectories:
        """The batch with the work on it as a whole."""
        if self._prepared is None or self._prepared[0] != self.run.iteration:
            self._prepared = self.run.iteration, self.objective, True
        iteration, objective, prepares = self._prepared
        if not prepares:
            return batch
        prepared = objective.prepare(batch)
        self._prepared = iteration, objective, prepared.planned.keys() != planned.keys()
        return prepared

    def _decided(self, batch: Trajectories) -> Trajectories:
        """With what all learners of an update share where each of them sees the batch in micro-batches: which components are best."""
        if not self._objective.ranks or batch.mask.numel() <= (budget := self.run.training.micro_batch_tokens):
            return batch
        return batch.with_planned(**winners(self.policy, batch, self._objective.ranks, self.policy.cuts(batch, budget)))

    def due(self, round: int, number: int) -> list[Learning]:
        update, iteration = self.done, self.run.iteration  # `draw` has counted it
        return [learner for learner in self.run.learners if update % learner.spec.every == 0 and learner.is_on(iteration)]

    def now(self, batch: Trajectories) -> Evaluation | None:
        return self.policy.now(batch, self.graphs)

    def steps_in(self, learner: Learner, updates: int) -> int:
        """Steps that a learner takes in so many updates."""
        return max(1, updates // learner.every)
