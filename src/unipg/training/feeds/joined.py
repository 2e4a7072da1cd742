"""Transitions that are kept, and a dataset beside them: every update draws a share of its rows from each. Offline to online."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.replay import Pairs
from unipg.training.feeds.dataset import DatasetRecipe, check_same, data_for, inner_actions, observe_all, pairs_of
from unipg.training.feeds.kept import DRAWN, chosen
from unipg.training.feeds.replay import Replay, ReplayRecipe

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer


class Joined(Replay):
    """`Replay`, of whose rows the share `dataset.share` are a dataset's; rewards of both are rescaled as the dataset's are.

    There is no warm-up unless the recipe says so. Observations that the policy normalises stay in the units that it came with, or in those
    of the dataset. Source of the even mixture: arXiv 2302.02948.
    """

    def __init__(self, run: Trainer, recipe: ReplayRecipe, given: DatasetRecipe) -> None:
        who = f"algorithm '{run.algorithm.name}'"
        super().__init__(run, dataclasses.replace(recipe, warmup=recipe.warmup or 0))
        for what, there in (
            ("replay.priorities are", recipe.priorities is not None),
            ("algorithm.n_step is", self.ahead > 1),
            ("dataset.batch is", given.batch is not None),
            ("dataset.demonstrations are", given.demonstrations is not None),
        ):
            if there:
                raise InputError(f"{what} given, but {who} draws from a dataset and from what it keeps at once; accepted: leave it out")
        self.given = given
        self.data = data_for(self.policy, given, given.path, self.experience.recipe.id)
        self._scale, self._shift = given.rewards(self.data)
        self._pairs: Pairs | None = None
        self._ours = round((1 - given.share) * self.batch)
        """Rows of an update that are its own."""

    def begin(self) -> None:
        if self.policy.must_observe:
            observe_all(self.policy, self.data)
            self.tell_still("the dataset's")
        super().begin()

    def neighbours(self) -> Pairs:
        """Those of the dataset alone."""
        if self._pairs is None:
            self._pairs = pairs_of(self.policy, self.data)
        return self._pairs

    def _observe(self, observation: np.ndarray) -> None:
        """Nothing: the units stay."""

    def _drawn_rows(self, numbers: np.ndarray, planned: dict[str, Tensor]) -> dict[str, Tensor]:
        own = super()._drawn_rows(numbers[: self._ours], planned)
        theirs = self.data.draw(chosen(numbers[self._ours :], len(self.data)), *DRAWN)
        theirs["action"] = inner_actions(self.policy, theirs["action"])
        drawn = {name: torch.cat([own[name], theirs[name]]) for name in DRAWN}
        drawn["reward"] = drawn["reward"] * self._scale + self._shift
        return drawn

    def _promised(self, metrics: dict[str, float]) -> dict[str, float]:
        """Values are in other units than the environment's rewards where these are rescaled."""
        return super()._promised(metrics) if (self._scale, self._shift) == (1.0, 0.0) else {}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"data": self.data.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_same(self.given, self.data.fingerprint(), state["data"])
        super().load_state_dict(state)
