"""Transitions that are kept: environments and updates take turns, and every update draws from all that is remembered. Off policy."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unipg.algorithms.learners import Learner
from unipg.arguments import CheckedArguments
from unipg.critics.regression import DISCOUNT, Regression
from unipg.errors import InputError
from unipg.estimator import Objective, Progress
from unipg.policies.actor_critic import ActorCritic
from unipg.replay import Priorities, Ring, n_step, transition_columns
from unipg.rollouts.environments import EnvironmentRollouts
from unipg.seeding import generator
from unipg.training.feeds.kept import DRAWN, Kept, chosen
from unipg.training.feeds.promises import promised
from unipg.training.learner import Learning
from unipg.training.optimization import TrainingRecipe
from unipg.trajectories import Source, Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer

RECORDS = 32
"""Updates of an iteration whose terms are recorded for diagnostics."""


WEIGHT = "replay/weight"
"""Planned [B]: what makes rows that were drawn by priority count as if each had had the same chance."""
OWN: dict[str, Any] = {"batch": 256, "warmup": 1000, "updates_per_step": 1.0}
"""What null stands for where an algorithm says nothing of its own."""


@dataclass(frozen=True)
class PrioritiesRecipe(CheckedArguments):
    """Transitions are drawn in proportion to (|error of the critic| + eps)^alpha, and weighed against it (arXiv 1511.05952)."""

    alpha: float = 0.6
    """0: all alike; 1: in proportion to the error."""
    beta: float = 0.4
    """How much of the choice the weights undo at the start; it grows linearly to 1, all of it, at the end of the run."""
    eps: float = 1e-6
    """Keeps transitions without an error from never being drawn again."""

    def __post_init__(self) -> None:
        for name, fits, accepted in (
            ("alpha", self.alpha >= 0, "0 or more"),
            ("beta", 0 <= self.beta <= 1, "a number in [0, 1]"),
            ("eps", self.eps > 0, "above 0"),
        ):
            if not fits:
                raise InputError(f"replay.priorities.{name} is {getattr(self, name)}; accepted: {accepted}")


@dataclass(frozen=True)
class ReplayRecipe(CheckedArguments):
    """What is remembered of the environments, and how often it is learned from."""

    capacity: int = 1_000_000
    """Transitions that are kept; the oldest are forgotten."""
    batch: int | None = None
    """Transitions of an update. null: the algorithm's own, or 256."""
    warmup: int | None = None
    """Steps with actions drawn uniformly, before the first update. null: the algorithm's own, or 1000."""
    updates_per_step: float | None = None
    """Updates for every step of an environment after the warm-up; 0.25 is one update after every fourth step. null: the algorithm's own,
    or 1."""
    priorities: PrioritiesRecipe | None = None
    """Draw transitions by how wrong the critic was about them; null: all alike."""

    def __post_init__(self) -> None:
        for name, least in (("capacity", 1), ("batch", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"replay.{name} is {value}; accepted: {least} or more{' steps' if name == 'warmup' else ''}")
        if self.updates_per_step is not None and not (self.updates_per_step > 0 and math.isfinite(self.updates_per_step)):
            raise InputError(f"replay.updates_per_step is {self.updates_per_step}; accepted: a number above 0")
        if self.batch is not None and self.capacity < self.batch:
            raise InputError(f"replay.capacity is {self.capacity}, but a batch has {self.batch} transitions; accepted: at least as many")

    def settled(self, own: Mapping[str, Any]) -> ReplayRecipe:
        """The same with values for null; `own`: the algorithm's."""
        values = {**OWN, **own}
        return replace(self, **{name: values[name] for name in OWN if getattr(self, name) is None})

    def updates(self, steps: int) -> int:
        """Updates that are due once the environments have taken so many steps. Of a recipe that is settled."""
        assert self.warmup is not None
        assert self.updates_per_step is not None
        return math.floor(max(0, steps - self.warmup) * self.updates_per_step + 1e-9)


def ring_of(recipe: ReplayRecipe, folder: Path, policy: ActorCritic, experience: EnvironmentRollouts, training: TrainingRecipe) -> Ring:
    """Where a run keeps its transitions; nothing is written yet."""
    stored, environment = policy.encoder.stored, experience.recipe
    acts: tuple[tuple[int, ...], str] = ((), "int64") if policy.counts_actions else ((policy.actions_per_step,), "float32")
    columns = transition_columns(tuple(stored.shape), str(stored.dtype), *acts)
    slack = (2 * training.save_every + 1) * environment.steps * environment.count
    return Ring(folder, columns, recipe.capacity, slack=slack, identity=environment.id)


class Replay(Kept):
    """As many rounds as steps that each environment takes in an iteration (`environment.steps`); each may be followed by updates.

    Which rows an update draws, and the noise of its fresh actions, are decided by the seed and the number of the update.
    """

    def __init__(self, run: Trainer, recipe: ReplayRecipe) -> None:
        settled = recipe.settled(run.algorithm.replay)
        assert settled.batch is not None
        assert settled.warmup is not None
        super().__init__(run, {Source.REPLAY: settled.batch})
        self.recipe, self.warmup, experience = settled, settled.warmup, self.experience
        self.rounds, self.count = experience.recipe.steps, experience.recipe.count
        self.ring = ring_of(recipe, run.folder, self.policy, experience, run.training)
        self.ahead, self.discount = run.algorithm.steps_ahead
        asked = recipe.priorities
        self.priorities = None if asked is None else Priorities(recipe.capacity, alpha=asked.alpha, beta=asked.beta, eps=asked.eps)
        judged = any(isinstance(term, Regression) for learner in run.learned for term in learner.terms.terms)
        if asked is not None and not judged:
            who = f"algorithm '{run.algorithm.name}'"
            raise InputError(f"replay.priorities is given, but {who} has no regression of values to take errors from; accepted: null")
        self.keeps_records = asked is not None
        self._index: Tensor | None = None
        """The rows of the last update, counted as the ring did when they were drawn."""
        self._size = 0
        """Of the ring then."""
        self._closed: dict[str, Any] | None = None
        """Of the ring, while it is closed."""

    @property
    def steps_taken(self) -> int:
        """Of the environments, all together."""
        return self.experience.stepper(self.policy).episodes.steps

    def steps(self, learner: Learner) -> int:
        return self.steps_in(learner, self.recipe.updates(self.run.training.iterations * self.rounds * self.count))

    def begin(self) -> None:
        run, policy = self.run, self.policy
        self._stepper = self.experience.stepper(policy, run.workers.rank)
        source = generator(run.seed, "act", run.iteration)
        self._noise = policy.noise(self.rounds, self.count, source)
        self._random: np.ndarray | None = None
        if self.steps_taken < self.warmup:
            self._random = policy.actions.random(self.rounds, self.count, source)
        # a live actor follows the weights, not the statistics of observations
        self._live = not policy.normalizes and policy.device.type == "cpu" and next(policy.module.parameters()).dtype == torch.float32
        self._act, self._give = policy.actor(live=self._live), policy.outward()
        self._tell_every = max(1, self.recipe.updates(10**9) * self.rounds * self.count // 10**9 // RECORDS)
        self.seconds = 0.0
        self._begun = True

    def gather(self, round: int) -> None:
        began = time.perf_counter()
        if not self._begun or not hasattr(self, "_stepper"):
            self.begin()
        stepper, policy = self._stepper, self.policy
        steps = stepper.episodes.steps
        if self._random is not None and steps < self.warmup:
            action = self._random[round]
        else:
            if not self._live:
                self._act = policy.actor()
            policy.exploration = self.run.algorithm.explores(self._progress(steps))
            action = self._act(stepper.observation, None if policy.exploration == 0 else self._noise[round])
        found = stepper.step(self._give(stepper.observation, action))
        self.ring.append(
            observation=found.observation,
            next_observation=found.next_observation,
            action=action if found.live is None else action[found.live],
            reward=found.reward,
            terminated=found.terminated,
            truncated=found.truncated,
            episode=found.episode,
        )
        if policy.normalizes:
            self._observe(found.observation)
        if self.priorities is not None:
            self.priorities.append(len(found.reward))
        self.seconds += time.perf_counter() - began

    def _observe(self, observation: np.ndarray) -> None:
        """Statistics follow every step; what is kept stays as the environment gave it, and is read by the statistics of the moment."""
        rows = torch.from_numpy(observation).unsqueeze(1)
        step = Trajectories(action=torch.zeros(len(rows), 1), mask=torch.ones(len(rows), 1, dtype=torch.bool), observation=rows)
        self.policy.observe(step.to(self._device), self.run.workers.sum)

    def _progress(self, steps: int) -> Progress:
        return Progress(steps, self.run.training.iterations * self.rounds * self.count)

    def updates(self, round: int) -> int:
        return self.run.position + self.recipe.updates(self._stepper.episodes.steps) - self.done

    def draw(self, round: int, number: int) -> Trajectories:
        numbers, planned = self.numbers()
        self.run.diagnostics.recording = self.done % self._tell_every == 0
        return self.rows(self._drawn_rows(numbers, planned), planned)

    def _drawn_rows(self, numbers: np.ndarray, planned: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns of the rows that numbers in [0, 1) decide; what goes with them is planned."""
        if self.priorities is None:
            self._index = chosen(numbers, len(self.ring))
        else:
            asked, progress = self.recipe.priorities, self._progress(self.steps_taken)
            assert asked is not None
            self.priorities.beta = asked.beta + (1 - asked.beta) * min(1.0, progress.step / progress.total)
            self._index, weight = self.priorities.draw(torch.from_numpy(numbers))
            planned[WEIGHT] = weight.to(self._device)
        self._size = len(self.ring)
        drawn = self.ring.draw(self._index, *DRAWN)
        if self.ahead > 1:
            several = n_step(self.ring, self._index, self.ahead, self.discount, self.count)
            drawn |= self.ring.draw(several.last, "next_observation", "terminated") | {"reward": several.reward}
            planned[DISCOUNT] = several.factor.unsqueeze(1).to(self._device)
        return drawn

    def fitted(self, learner: Learner) -> Learner:
        if self.priorities is None:
            return learner
        terms = (replace(t, row_weight=WEIGHT) if Source.REPLAY in t.rows and t.row_weight is None else t for t in learner.terms.terms)
        return replace(learner, objective=Objective(tuple(terms)))

    def stepped(self, learning: Learning) -> None:
        """The errors that a critic had before its step are the priorities of the rows that it was stepped on."""
        if self.priorities is None or self._index is None:
            return
        judged = {name for name, term in learning.objective.named() if isinstance(term, Regression)}
        pieces: dict[str, list[Tensor]] = {}
        for record in learning.records:
            if record.term in judged:
                target = record.facts["target"]
                error = (record.facts["value"].reshape(-1, len(target)) - target).abs().mean(0)
                pieces.setdefault(record.term, []).append(error)
        if pieces:
            errors = torch.stack([torch.cat(some) for some in pieces.values()]).mean(0)
            self.priorities.update(self._index, errors.cpu())

    def finish(self) -> dict[str, Any]:
        metrics = self._stepper.episodes.told()
        metrics |= {"time/rollout": self.seconds, "replay/size": float(len(self.ring)), "replay/updates": float(self.done)}
        if self._index is not None:
            metrics["replay/age"] = self._size - 1 - float(self._index.double().mean())
        metrics |= {"replay/filled": len(self.ring) / self.ring.capacity, **self._promised(metrics)}
        self._begun = False
        if self.run.iteration == 0:
            self.tell_still("the first iteration's")
        return metrics

    def _promised(self, metrics: dict[str, float]) -> dict[str, float]:
        """The first critic's promises about the episodes that ended in this iteration, and what came of them."""
        judged = (term for learner in self.run.learned for term in learner.terms.terms if isinstance(term, Regression))
        regression = next(judged, None)
        if regression is None or not metrics["return/episodes"]:
            return {}
        source = generator(self.run.seed, "promises", self.run.iteration)
        newest = self.rounds * self.count
        return promised(self.ring, self.policy, regression, self.run.learner.planning(), source, newest=newest, ahead=self.ahead)

    def flush(self) -> None:
        self.ring.flush()

    def open(self) -> None:
        if self._closed is not None:
            self.ring.load_state_dict(self._closed)
            self._closed = None

    def close(self) -> None:
        if self._closed is None:
            self._closed = self.ring.state_dict()
            self.ring.close()

    def state_dict(self) -> dict[str, Any]:
        priorities = None if self.priorities is None else self.priorities.state_dict()
        last = {"index": self._index, "size": self._size}
        return {"begun": self._begun, "done": self.done, "ring": self.ring.state_dict(), "priorities": priorities, **last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ring.load_state_dict(state["ring"])
        if self.priorities is not None:
            self.priorities.load_state_dict(state["priorities"])
        self.done, self._index, self._size = state["done"], state["index"], state["size"]
        if state["begun"]:
            self.begin()
