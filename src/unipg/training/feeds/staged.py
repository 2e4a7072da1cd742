"""Feeds one after the other: what the rows of an iteration are drawn from is decided by the learners that it is for."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.estimator.parts import Neighbours
from unipg.rollouts.environments import EnvironmentRollouts
from unipg.training.feeds.base import Feed
from unipg.training.feeds.dataset import Dataset, DatasetRecipe
from unipg.training.feeds.rollouts import Rollouts
from unipg.training.learner import Learning
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer


class Staged(Feed):
    """Base class. `feeds`: by name, in the order of their state."""

    def __init__(self, run: Trainer, **feeds: Feed) -> None:
        super().__init__(run)
        self.feeds = feeds

    @abstractmethod
    def of(self, learner: Learner) -> Feed:
        """What a learner draws from."""

    @property
    def _now(self) -> Feed:
        at = self.run.iteration
        on = (made for made in self.run.learned if made.span[0] <= at < made.span[1])
        return next(map(self.of, on), next(reversed(self.feeds.values())))

    @property
    def begun(self) -> bool:
        return self._now.begun

    def begin(self) -> None:
        now = self._now
        now.begin()
        self.rounds, self.seconds = now.rounds, now.seconds

    def gather(self, round: int) -> None:
        self._now.gather(round)

    def updates(self, round: int) -> int:
        return self._now.updates(round)

    def draw(self, round: int, number: int) -> Trajectories:
        return self._now.draw(round, number)

    def due(self, round: int, number: int) -> list[Learning]:
        return self._now.due(round, number)

    def steps(self, learner: Learner) -> int:
        return self.of(learner).steps(learner)

    def fitted(self, learner: Learner) -> Learner:
        return self.of(learner).fitted(learner)

    def neighbours(self) -> Neighbours:
        return self._now.neighbours()

    def now(self, batch: Trajectories) -> Evaluation | None:
        return self._now.now(batch)

    def finish(self) -> dict[str, Any]:
        return self._now.finish()

    def learnt(self) -> None:
        self._now.learnt()

    def close(self) -> None:
        for feed in self.feeds.values():
            feed.close()

    def state_dict(self) -> dict[str, Any]:
        return {name: feed.state_dict() for name, feed in self.feeds.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, feed in self.feeds.items():
            feed.load_state_dict(state[name])
        self.rounds = self._now.rounds


class Continued(Rollouts):
    """Rollouts after a dataset: rewards are rescaled as its were, and observations stay in its units."""

    def __init__(self, run: Trainer, scale: float, shift: float) -> None:
        super().__init__(run)
        self._scale, self._shift = scale, shift
        assert isinstance(run.experience, EnvironmentRollouts)
        rows = run.experience.recipe.count * run.experience.recipe.steps
        for made in run.learned:
            if made.collects and (made.minibatches or 1) > rows:
                raise InputError(
                    f"'{made.name}' takes {made.minibatches} steps in each pass over a batch, but a batch has {rows} rows; accepted: so "
                    "many at most, or more of environment.count · environment.steps"
                )

    def _joined(self, batch: Trajectories, number: int) -> Trajectories:
        return batch.replace(step_reward=batch.require("step_reward", "rollouts") * self._scale + self._shift)

    def _observe(self, batch: Trajectories) -> None:
        """Nothing: the units stay."""


class HandedOver(Staged):
    """A dataset, then batches of rollouts for the learners that say so (`Learner.collects`). Offline to online."""

    def __init__(self, run: Trainer, recipe: DatasetRecipe) -> None:
        dataset = Dataset(run, recipe)
        if dataset.ahead > 1:
            raise InputError(f"returns are over {dataset.ahead} steps, but rollouts follow the dataset; accepted: 1")
        super().__init__(run, dataset=dataset, rollouts=Continued(run, *dataset.rescaled))

    def of(self, learner: Learner) -> Feed:
        return self.feeds["rollouts" if learner.collects else "dataset"]
