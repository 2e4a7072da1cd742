"""Batches of fresh trajectories with rows of a dataset in them, as many as there are fresh steps. Hybrid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic
from unipg.replay.cards import rewarded
from unipg.rollouts.environments import EnvironmentRollouts
from unipg.seeding import generator
from unipg.training.feeds.dataset import DatasetRecipe, check_same, data_for, inner_actions
from unipg.training.feeds.kept import DRAWN
from unipg.training.feeds.rollouts import Rollouts
from unipg.trajectories import Source, Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer


class Mixed(Rollouts):
    """`Rollouts`, to whose batches rows of a dataset are joined before they are prepared, drawn with replacement: of each of its strata
    (`Algorithm.parts_of`), which are the columns of these rows, as many. Which ones is decided by the seed and the iteration.

    Where the algorithm `redraws`, each comes again with an action of the policy as it is then.
    """

    def __init__(self, run: Trainer, recipe: DatasetRecipe) -> None:
        super().__init__(run)
        who = f"algorithm '{run.algorithm.name}'"
        if not isinstance(run.experience, EnvironmentRollouts) or not isinstance(run.policy, ActorCritic):
            raise InputError(f"{who} joins rows of a dataset to what it collects; accepted: an environment and its controller")
        if run.workers.world > 1 or run.training.overlap:
            raise InputError(f"{who} joins rows of a dataset to what it collects; accepted: one worker, training.overlap: false")
        if recipe.batch is not None or recipe.demonstrations is not None:
            raise InputError(
                f"{who} draws as many rows of a dataset as there are fresh steps, and imitates nobody; accepted: dataset.batch: null, "
                "dataset.demonstrations: null"
            )
        self.recipe, self.policy = recipe, run.policy
        self.data = data_for(run.policy, recipe, recipe.path, run.experience.recipe.id)
        if not rewarded(self.data):
            raise InputError(f"'{recipe.path}' has no rewards, which {who} learns from; accepted: rewards")
        strata = run.algorithm.parts_of(self.data)
        self.strata = [np.arange(len(self.data))] if strata is None else [np.flatnonzero(strata == k) for k in range(strata.max() + 1)]
        self._scale, self._shift = recipe.rewards(self.data)

    def _joined(self, batch: Trajectories, number: int) -> Trajectories:
        rows, columns = int(batch.mask.sum()) // len(self.strata), len(self.strata)
        source = generator(self.run.seed, "dataset", self.run.iteration, number)
        chosen = torch.rand(rows, columns, generator=source, dtype=torch.float64).numpy()
        index = np.stack([stratum[(chosen[:, k] * len(stratum)).astype(np.int64)] for k, stratum in enumerate(self.strata)], 1)
        drawn = self.data.draw(torch.from_numpy(index.reshape(-1)), *DRAWN)
        drawn["step_reward"] = drawn.pop("reward") * self._scale + self._shift
        drawn["action"] = inner_actions(self.policy, drawn["action"])
        drawn["truncated"] = torch.ones_like(drawn["terminated"])  # nothing in a row belongs together
        shape = (rows, columns)
        found = Trajectories(
            mask=torch.ones(shape, dtype=torch.bool),
            source=torch.full((rows,), int(Source.REPLAY)),
            **{name: values.reshape(*shape, *values.shape[1:]) for name, values in drawn.items()},  # type: ignore[arg-type]
        ).to(self.policy.device)
        parts = [found]
        if self.run.algorithm.redraws:
            noise = torch.randn(rows * columns, self.policy.actions.noises, generator=source).to(self.policy.device)
            seen = self.policy.read(found.require("observation", "a dataset").flatten(0, 1))
            with torch.no_grad():
                action = self.policy.fresh(seen, "actor", noise)[0]
            parts.append(found.replace(action=action.reshape(found.action.shape).to(found.action.dtype)).with_planned(redrawn=found.mask))
        added = Trajectories.join(parts)
        if batch.old_log_prob is not None:  # which joining would make 0
            added = added.replace(old_log_prob=self.run.learner.evaluate(added).log_prob)
        return Trajectories.join([batch, added])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"data": self.data.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_same(self.recipe, self.data.fingerprint(), state["data"])
        super().load_state_dict(state)
