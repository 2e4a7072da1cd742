"""Transitions that are given: every update draws from a dataset, and nothing is collected. Offline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unipg.algorithms.learners import Learner
from unipg.arguments import CheckedArguments
from unipg.critics.regression import DISCOUNT
from unipg.errors import InputError, one_line
from unipg.estimator.parts import alone
from unipg.hub import in_home
from unipg.loading import IN_MEMORY, Live, callable_named, check_named
from unipg.policies.actions import BoxActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.named import CORRECTION
from unipg.policies.spaces import described
from unipg.replay import Pairs, Transitions, n_step, open_data
from unipg.replay.cards import Episodes, rewarded
from unipg.replay.checks import misfit
from unipg.training.feeds.kept import DRAWN, Kept, chosen
from unipg.trajectories import Source, Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer

PIECE = 65_536
"""Rows that are looked at together where all are."""
OUTSIDE = 1e-4
"""How far an action may lie outside its bounds, in units of half their distance: rounding."""
INSIDE = 1e-5
"""How far inside its bounds an action is taken to lie where a density over them is learned: at the bounds themselves it has no end."""
CHANCE = 0.2
"""Share of the variance of steps above which a model of them is told to be a poor one."""
FACTOR = "factor"
RECORDS = 32
"""Updates of an iteration whose terms are recorded for diagnostics."""


@dataclass(frozen=True)
class DatasetRecipe(CheckedArguments):
    """Which transitions are learned from, and how often."""

    path: str
    """An .npz, .hdf5 or .parquet file, a folder (a dataset's, Minari's, or a run with a replay buffer), minari:NAME, or
    package.module:function, which returns arrays by column, as unipg.environments.lock:collect does."""
    demonstrations: str | None = None
    """More transitions, those of an expert, for algorithms that imitate one; null: none. They may lack rewards."""
    entries: list[str] | None = None
    """Of observations that have several by name, those to read, as the environment gives them; null: all."""
    batch: int | None = None
    """Transitions of an update; as many of the expert's again. null: the algorithm's own, or 256."""
    updates: int = 1000
    """Updates of an iteration."""
    reward_scale: float | str = 1.0
    """What rewards are multiplied by. `returns`: 1000 / (best return of an episode − worst)."""
    reward_shift: float = 0.0
    """What is added to them afterwards."""
    share: float = 0.5
    """Of an update's rows, where a recipe has `replay` too: the others are the run's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function that `path` names."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", in_home(self.path))
        if self.demonstrations is not None:
            object.__setattr__(self, "demonstrations", in_home(self.demonstrations))
        for name in ("batch", "updates"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"dataset.{name} is {value}; accepted: 1 or more")
        if not 0 < self.share < 1:
            raise InputError(f"dataset.share is {self.share}; accepted: between 0 and 1, without these")
        scale = self.reward_scale
        if scale != "returns" and (isinstance(scale, str) or not (math.isfinite(scale) and scale > 0)):
            raise InputError(f"dataset.reward_scale is {scale}; accepted: a finite number above 0, or returns")

    def settled(self, own: Mapping[str, Any]) -> int:
        """Transitions of an update; `own`: the algorithm's."""
        return self.batch or int(own.get("batch", 256))

    def open(self, place: str, progress: Callable[[float], None] | None = None) -> Transitions:
        """The rows at a place: `path`, or `demonstrations`. `progress` is told the finished share of what is read."""
        check_named(place, "dataset")
        if isinstance(place, Live) and isinstance(place.value, Transitions):
            return place.value
        called = ":" in place and not place.startswith("minari:") and not Path(place).exists()
        if not called:
            if self.options and place == self.path:
                raise InputError(f"dataset.options are of a function, but dataset.path is '{place}'; accepted: package.module:function")
            return open_data(place, entries=self.entries, progress=progress)
        function = callable_named(place, "dataset")
        own = self.options if place == self.path else {}
        try:
            inspect.signature(function).bind(**own)
        except TypeError as error:
            raise InputError(f"dataset.options do not fit '{place}': {error}") from None
        try:
            found = function(**own)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"the dataset '{place}' cannot be made: {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(found, Mapping):
            raise InputError(f"the dataset '{place}' gave a {type(found).__name__}; accepted: arrays by column, in a dict")
        return Transitions.of(found, {"function": str(place), "options": own})

    def rewards(self, data: Transitions) -> tuple[float, float]:
        """What rewards are multiplied by, and what is added."""
        if self.reward_scale != "returns":
            return float(self.reward_scale), self.reward_shift
        if not (spread := float(np.ptp(Episodes.of(data).returns))) > 0:
            raise InputError("dataset.reward_scale is returns, but all episodes have the same return; accepted: a number")
        return 1000 / spread, self.reward_shift


def live_data(data: Transitions) -> Live:
    """Transitions in memory in the place of a file's name; recorded by their fingerprint."""
    return Live(f"{IN_MEMORY}{len(data)} transitions, {data.fingerprint()}", data)


def pairs_of(policy: ActorCritic, data: Transitions) -> Pairs:
    """All pairs of states, as networks read them, and actions in the policy's units: copies."""
    parts = [data.draw(index, "observation", "action") for index in torch.arange(len(data)).split(PIECE)]
    observation = torch.cat([policy.read(part["observation"].to(policy.device)).cpu() for part in parts])
    return Pairs(observation, torch.cat([inner_actions(policy, part["action"]) for part in parts]))


def data_for(policy: ActorCritic, recipe: DatasetRecipe, place: str, environment: str) -> Transitions:
    """A recipe's rows at one of its places; `InputError` for those that are not of the policy's spaces."""
    data, stored = recipe.open(place), policy.encoder.stored
    observation, action = data.column("observation"), data.column("action")
    if observation.shape[1:] != tuple(stored.shape):
        raise InputError(
            f"the observations of '{place}' have shape {list(observation.shape[1:])}; accepted for environment '{environment}': "
            f"{list(stored.shape)}"
        )
    if (why := misfit(action, described(policy.actions))) is not None:
        raise InputError(f"the actions of '{place}' {why}")
    for first in range(0, len(data), PIECE):
        inner = policy.actions.from_environment(action[first : first + PIECE])
        if (row := _outside(policy, inner)) is not None:
            raise InputError(
                f"the action {np.asarray(action[first + row]).tolist()} in row {first + row} of '{place}' is outside the "
                "environment's; accepted: actions in the environment's own units, within its bounds"
            )
    return data


def _outside(policy: ActorCritic, inner: np.ndarray) -> int | None:
    """The first row whose action the environment does not have."""
    actions = policy.actions
    if isinstance(actions, BoxActions):
        bounded = np.isfinite(actions.low) & np.isfinite(actions.high)
        off = (np.abs(inner) > 1 + OUTSIDE)[:, bounded].any(1) if actions.type != "latent" else np.zeros(len(inner), bool)
    else:
        off = (inner < 0) | (inner >= policy.actions_per_step)
        off = off if off.ndim == 1 else off.any(1)
    return int(off.argmax()) if off.any() else None


def inner_actions(policy: ActorCritic, action: Tensor) -> Tensor:
    """An environment's actions [N,…] in the policy's units; inside their bounds where a density over these is learned."""
    inner = torch.from_numpy(policy.actions.from_environment(action.numpy()))
    return inner.clamp(INSIDE - 1, 1 - INSIDE) if policy.actions.type in ("squashed", "squashed_mixture") else inner


def check_same(recipe: DatasetRecipe, found: Any, learned: Any) -> None:
    """Refuses to go on with rows of another fingerprint than those that a run has learned from."""
    if found != learned:
        raise InputError(f"the dataset '{recipe.path}' is not the one that the run has learned from; accepted: the same rows")


def observe_all(policy: ActorCritic, data: Transitions) -> None:
    """Gives a policy the statistics of all observations of a dataset."""
    seen = data.column("observation")
    for first in range(0, len(seen), PIECE):
        piece = torch.from_numpy(np.array(seen[first : first + PIECE])).unsqueeze(1)
        rows = Trajectories(action=torch.zeros(len(piece), 1), mask=torch.ones(len(piece), 1, dtype=torch.bool), observation=piece)
        policy.observe(rows.to(policy.device), alone)


class Dataset(Kept):
    """As many rounds as updates of an iteration (`dataset.updates`), each of which draws uniformly.

    Observations that the policy normalises are in units of the whole dataset, to which the statistics are fitted once.
    """

    stream = "dataset"

    def __init__(self, run: Trainer, recipe: DatasetRecipe) -> None:
        batch, expert = recipe.settled(run.algorithm.replay), recipe.demonstrations is not None
        who = f"algorithm '{run.algorithm.name}'"
        if expert != (run.algorithm.demonstrations != "none"):
            accepted = "dataset.demonstrations: the transitions of an expert" if not expert else "null"
            raise InputError(f"dataset.demonstrations is {'given' if expert else 'null'}; accepted for {who}: {accepted}")
        places = {Source.REPLAY: recipe.path} | ({Source.DEMONSTRATION: recipe.demonstrations} if recipe.demonstrations else {})
        super().__init__(run, dict.fromkeys(places, batch))
        self.recipe, self.each, self.rounds = recipe, batch, recipe.updates
        self.data = {source: data_for(self.policy, recipe, place, self.experience.recipe.id) for source, place in places.items()}
        given = rewarded(self.data[Source.REPLAY])
        if not given and "step_reward" in self._objective.reads:
            raise InputError(f"'{recipe.path}' has no rewards, which {who} learns from; accepted: rewards, or an algorithm that imitates")
        self._unread = given and run.algorithm.imitates and "step_reward" not in self._objective.reads
        self.rescaled = recipe.rewards(self.data[Source.REPLAY])
        """What rewards are multiplied by, and what is added."""
        self.ahead, self.discount = run.algorithm.steps_ahead
        if self.ahead > 1 and recipe.reward_shift:
            raise InputError(f"dataset.reward_shift is {recipe.reward_shift:g}, but returns are over {self.ahead} steps; accepted: 0")
        self._pairs: Pairs | None = None
        trained = any(CORRECTION in learner.trains for learner in run.learned)
        self._warned = False
        self._correction = self.policy.correction if trained else None
        self._told = max(1, recipe.updates // RECORDS)

    def steps(self, learner: Learner) -> int:
        return self.steps_in(learner, self.iterations_of(learner) * self.rounds)

    def begin(self) -> None:
        if self.policy.must_observe:
            observe_all(self.policy, self.data[Source.REPLAY])
            self.tell_still("the dataset's")
        model = self._correction
        if still := [] if model is None or model.fitted else model.fit(*self._sample()):
            which = ", ".join(map(str, still))
            self.run.observer.note(f"of the dataset's observations the numbers {which} never change: they are left out of what is dense")
        if self._unread and self.done == 0 and self.data[Source.REPLAY].column("reward").any():
            self.run.observer.note(f"algorithm '{self.run.algorithm.name}' imitates: the rewards of '{self.recipe.path}' count for nothing")
        self.seconds = 0.0
        self._begun = True

    def _sample(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Up to `PIECE` observations, actions in the policy's units, next observations and ends, spread evenly over the dataset."""
        data, policy = self.data[Source.REPLAY], self.policy
        drawn = data.draw(torch.arange(0, len(data), -(-len(data) // PIECE)), "observation", "action", "next_observation", "terminated")
        seen, following = (policy.condition(drawn[name].to(self._device)) for name in ("observation", "next_observation"))
        return seen, inner_actions(policy, drawn["action"]).to(self._device), following, drawn["terminated"].to(self._device)

    def neighbours(self) -> Pairs:
        """All pairs, as `Planning.neighbours` has them: copied when they are first asked for, once the statistics are there."""
        if self._pairs is None:
            self._pairs = pairs_of(self.policy, self.data[Source.REPLAY])
        return self._pairs

    def updates(self, round: int) -> int:
        return 1

    def draw(self, round: int, number: int) -> Trajectories:
        numbers, planned = self.numbers()
        self.run.diagnostics.recording = self.done % self._told == 0
        found = [self._drawn_of(data, numbers[k * self.each : (k + 1) * self.each]) for k, data in enumerate(self.data.values())]
        drawn = found[0] if len(found) == 1 else {name: torch.cat([each[name] for each in found]) for name in found[0]}
        if FACTOR in drawn:
            planned[DISCOUNT] = drawn.pop(FACTOR).unsqueeze(1).to(self._device)
        return self.rows(drawn, planned)

    def _drawn_of(self, data: Transitions, numbers: np.ndarray) -> dict[str, Tensor]:
        """The columns of the rows that numbers in [0, 1) decide, and the `FACTOR` of what follows them, where it is not the discount."""
        index = chosen(numbers, len(data))
        drawn = data.draw(index, *DRAWN)
        if self.ahead > 1:
            several = n_step(data, index, self.ahead, self.discount)
            drawn |= data.draw(several.last, "next_observation", "terminated") | {"reward": several.reward, FACTOR: several.factor}
        drawn["action"] = inner_actions(self.policy, drawn["action"])
        if self.rescaled != (1.0, 0.0):
            drawn["reward"] = drawn["reward"] * self.rescaled[0] + self.rescaled[1]
        return drawn

    def finish(self) -> dict[str, Any]:
        self._begun = False
        rows = len(self.data[Source.REPLAY])
        told = {} if self._correction is None else {"correction/unexplained": self._correction.settle(*self._sample())}
        if (open := told.get("correction/unexplained", 0.0)) > CHANCE and not self._warned:
            self._warned = True
            self.run.observer.note(
                f"{open:.0%} of the variance of the data's steps is not explained by state and action: a correction takes the environment "
                "to be deterministic, and its dynamics to be learned"
            )
        return told | {"dataset/updates": float(self.done), "dataset/passes": self.done * self.each / rows, "time/rollout": self.seconds}

    def _fingerprints(self) -> list[str]:
        return [data.fingerprint() for data in self.data.values()]

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self._begun, "done": self.done, "data": self._fingerprints()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_same(self.recipe, self._fingerprints(), state["data"])
        self.done = state["done"]
        if state["begun"]:
            self.begin()
