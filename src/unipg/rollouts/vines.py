"""Whole episodes and vines: several ways on from states of theirs, drawn from copies of the environments as they stood there."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unipg.errors import InputError, one_line, shown
from unipg.loading import callable_named
from unipg.policies.actor_critic import Controller
from unipg.rollouts.base import Demand, Vines
from unipg.rollouts.blame import check_shape, number
from unipg.rollouts.playing import check_counts, not_finite
from unipg.rollouts.snapshots import Copies, Node, NotNumbers
from unipg.seeding import derived_seed, generator
from unipg.trajectories import Trajectories

if TYPE_CHECKING:
    import gymnasium

SIGNATURE = "signature"
"""Annotation: the number of a vine's signature, equal ones alike; None for an episode from its start."""
PLACE = "place"
"""In an environment's infos: where its state belongs."""
_SEEDS = 2**31

MOST_SHOWN = 12
"""Signatures, of which shares are told where there are no more than that."""

SIGNATURES: dict[str, Callable[[list[Any]], Hashable]] = {
    "set": lambda places: frozenset(place for place in places if place is not None),
    "sequence": lambda places: tuple(place for place in places if place is not None),
    "last": lambda places: places[-1],
}


Came = tuple[np.ndarray, float, bool, bool]
"""Of a step: the observation after it, the reward, and whether the episode terminated, or was cut."""
TRIED = 16
"""Most steps by which a new environment is tried."""
ELSEWHERE = "led somewhere else, or earned something else"


@dataclass
class _Row:
    """One episode, or what is left of one."""

    environment: Any
    observation: np.ndarray
    began: int
    """Steps that the episode had before."""
    group: int
    vine: bool
    before: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    @property
    def where(self) -> str:
        """What an error of its last step, or of its reset, says of the place."""
        return f"step {self.began + len(self) - 1} of an episode" if self.rewards else "the reset before an episode"


class Vineyard:
    """Draws them. `new(k)`: a single environment, not yet reset; `name`: of the environment, for errors; `limit`: most steps of an episode,
    which goes on elsewhere behind it, as a window's does.

    Random generators of a copy (`unwrapped.np_random`) are seeded anew for each vine: else chance would be the same in all of them.
    """

    def __init__(self, new: Callable[[], gymnasium.Env], count: int, name: str, limit: int) -> None:
        from unipg.rollouts.rows import shape_of  # which needs Gymnasium

        self._new, self.name, self.limit = new, name, limit
        self.environments = [new() for _ in range(count)]
        self._shape = shape_of(self.environments[0].observation_space)

        def fresh() -> gymnasium.Env:
            environment = new()
            environment.reset(seed=0)
            return environment

        self.copies = Copies(fresh)

    def check(self, policy: Controller, vines: Vines) -> None:
        """Plays a new environment from where it was saved, and again from there with the same actions: the same must come of each step.

        Errors: `InputError` where it cannot be saved, where something else comes, so that its steps depend on more than itself, and for
        places that cannot be had.
        """
        environment, place = self._new(), _place_named(vines.place)
        observation, info = environment.reset(seed=0)
        self._place(place, environment, policy.flatten_one(observation), info)
        saved = self._saved(environment)
        space = copy.deepcopy(environment.action_space)  # whose random numbers may be the environment's
        space.seed(0)
        actions = [space.sample() for _ in range(min(TRIED, self.limit))]
        first = self._tried(environment, actions, policy, lambda seen, info: self._place(place, environment, seen, info))
        again = self._back(saved)
        if not all(map(_same, first, self._tried(again, actions, policy))):
            raise self._unrestorable(f"the same {len(first)} actions {ELSEWHERE}")
        self.copies.done([again])

    def _tried(
        self, environment: Any, actions: Sequence[Any], policy: Controller, tell: Callable[[np.ndarray, dict[str, Any]], Any] | None = None
    ) -> list[Came]:
        """What came of each action, as far as an end. `tell` is given the observation and the info after each."""
        found: list[Came] = []
        for action in actions:
            observation, reward, terminated, truncated, info = environment.step(action)
            found.append((policy.flatten_one(observation).copy(), number(reward), bool(terminated), bool(truncated)))
            if tell is not None:
                tell(found[-1][0], info)
            if terminated or truncated:
                break
        return found

    def collect(self, policy: Controller, demand: Demand, seed: int, stop: Callable[[], None]) -> Grown:
        """Rows [B,T]: the episodes, each a group of its own, then the vines, those from one state a group. `seed`: of start states."""
        vines = demand.vines
        assert vines is not None
        place = _place_named(vines.place)

        def named(what: str) -> tuple[object, ...]:
            return what, demand.iteration, demand.round, demand.worker

        starts = []
        for index, environment in enumerate(self.environments):
            stop()
            observation, info = environment.reset(seed=derived_seed(seed, *named("episode"), index) % _SEEDS)
            starts.append(_Row(environment, np.empty(0), 0, index, False))
            self._see(starts[-1], observation, policy)
            starts[-1].places.append(self._place(place, environment, starts[-1].observation, info))
        saved = [self._saved(row.environment) for row in starts] if vines.states else []
        self._play(starts, policy, generator(demand.seed, *named("act")), place, stop)
        grown: list[_Row] = []
        replayed = 0
        for start, at in zip(starts, saved, strict=False):
            stop()
            for index in dict.fromkeys(len(start) * k // vines.states for k in range(vines.states)):
                state = self._at(start, at, index, policy) if index else at
                replayed += index
                group = len(starts) + len(grown) // vines.count
                for _ in range(vines.count):
                    row = _Row(self._back(state), start.before[index], index, group, True, places=[start.places[index]])
                    row.environment.unwrapped.np_random = np.random.default_rng(derived_seed(seed, *named("vine"), len(grown)))
                    grown.append(row)
        self._play(grown, policy, generator(demand.seed, *named("act vines")), place, stop)
        self.copies.done(row.environment for row in grown)
        signature = _signature_named(vines.signature)
        found = _signatures(grown, signature, vines.signature)
        numbers: dict[Hashable, int] = {}
        numbered = [numbers.setdefault(value, len(numbers)) for value in found]
        return Grown(starts + grown, len(starts), replayed, numbered, _shares(grown, found))

    def _saved(self, environment: Any) -> Node | bytes:
        try:
            return self.copies.save(environment)
        except NotNumbers as error:
            raise self._unrestorable(str(error)) from error

    def _back(self, saved: Node | bytes) -> Any:
        try:
            return self.copies.back(saved)
        except Exception as error:  # whatever a foreign object raises
            raise self._unrestorable(one_line(error)) from error

    def _unrestorable(self, why: str) -> InputError:
        return InputError(
            f"environment '{self.name}' cannot be saved and restored ({why}), and vines begin where it stood; accepted: one that can, or "
            "an algorithm without vines, such as ppo"
        )

    def _at(self, row: _Row, saved: Node | bytes, index: int, policy: Controller) -> Node | bytes:
        """The environment of a row at its step `index`: its start, and the same actions again."""
        environment = self._back(saved)
        give = policy.outward()
        given = [give(before[None], action[None])[0] for before, action in zip(row.before, row.actions[:index], strict=False)]
        came = self._tried(environment, given, policy)
        before = zip(row.before[1:], row.rewards[:index], strict=False)
        if len(came) < index or not all(_same(now, (*then, False, False)) for now, then in zip(came, before, strict=False)):
            raise self._unrestorable(f"the same {index} actions {ELSEWHERE}")
        found = self._saved(environment)
        self.copies.done([environment])
        return found

    def _play(self, rows: Sequence[_Row], policy: Controller, source: torch.Generator, place: Any, stop: Callable[[], None]) -> None:
        """All rows to their ends, side by side."""
        act, give = policy.actor(), policy.outward()
        going = [row for row in rows if row.began < self.limit]
        while going:
            stop()
            current = np.stack([row.observation for row in going])
            actions = act(current, policy.noise(1, len(going), source)[0])
            given = give(current, actions)
            for row, observation, action, theirs in zip(going, current, actions, given, strict=True):
                row.before.append(observation)
                row.actions.append(action)
                following, reward, row.terminated, row.truncated, info = row.environment.step(theirs)
                row.rewards.append(number(reward))
                if not math.isfinite(row.rewards[-1]):
                    raise not_finite(self.name, "reward", row.rewards[-1], row.where)
                self._see(row, following, policy)
                row.places.append(self._place(place, row.environment, row.observation, info))
            going = [row for row in going if not row.ended and row.began + len(row) < self.limit]

    def _see(self, row: _Row, observation: Any, policy: Controller) -> None:
        """Takes an observation as the one before a row's next step."""
        check_shape(observation, self._shape)
        row.observation = policy.flatten_one(observation)
        if row.observation.dtype.kind == "f" and not np.isfinite(row.observation).all():
            raise not_finite(self.name, "observation", row.observation, row.where)
        check_counts(policy, self.name, row.observation, None, lambda: row.where)

    def _place(self, place: Any, environment: Any, observation: np.ndarray, info: dict[str, Any]) -> Any:
        if place is None and PLACE not in info:
            return observation.tobytes()
        try:
            found = info[PLACE] if place is None else place(environment, info)
        except Exception as error:
            raise InputError(f"algorithm.place failed in environment '{self.name}': {one_line(error)}") from error
        try:
            hash(found)
        except TypeError as error:
            who = f"info['{PLACE}']" if place is None else "algorithm.place"
            raise InputError(
                f"{who} is {shown(found)} in environment '{self.name}', which cannot be told from other places; accepted: a hashable "
                "value, such as a number, text or a tuple of them"
            ) from error
        return found


def _same(one: Came, other: Came) -> bool:
    return all(np.array_equal(np.array(a), np.array(b), equal_nan=True) for a, b in zip(one, other, strict=True))  # NaN has a message


@dataclass
class Grown:
    """Rows as they came out: first `episodes` from a start, then vines."""

    rows: list[_Row]
    episodes: int
    replayed: int
    """Steps that were taken again on the way to states."""
    signatures: list[int]
    """Of the vines."""
    shares: dict[str, float]
    """Metrics: the share of each signature among the vines from episodes' starts."""

    @property
    def steps(self) -> int:
        """Of the policy."""
        return sum(map(len, self.rows))

    @property
    def told(self) -> list[tuple[float, int]]:
        """Return and length of the episodes."""
        return [(sum(row.rewards), len(row)) for row in self.rows[: self.episodes]]

    def finals(self, value: bool) -> list[tuple[int, int, np.ndarray]] | None:
        """Row, step and observation after it, of rows that go on elsewhere; None where no `value` is wanted."""
        return [(k, len(row) - 1, row.observation) for k, row in enumerate(self.rows) if not row.terminated] if value else None

    def batch(self) -> Trajectories:
        rows, width = self.rows, max(map(len, self.rows))
        mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]

        def padded(name: str, like: np.ndarray) -> torch.Tensor:
            found = np.zeros((len(rows), width, *like.shape), like.dtype)
            for index, row in enumerate(rows):
                found[index, : len(row)] = getattr(row, name)
            return torch.from_numpy(found)

        last = np.arange(width) == mask.sum(1)[:, None] - 1
        ends = {name: last & np.array([getattr(row, name) for row in rows])[:, None] for name in ("terminated", "truncated")}
        return Trajectories(
            action=padded("actions", np.asarray(rows[0].actions[0])),
            mask=torch.from_numpy(mask),
            present=torch.from_numpy(mask),
            observation=padded("before", rows[0].before[0]),
            step_reward=padded("rewards", np.zeros((), np.float32)),
            terminated=torch.from_numpy(ends["terminated"]),
            truncated=torch.from_numpy(ends["truncated"] & ~ends["terminated"]),
            group=torch.tensor([row.group for row in rows]),
            annotations={SIGNATURE: [None] * self.episodes + self.signatures},
        )


def _place_named(spec: str) -> Callable[..., Any] | None:
    return None if spec == "auto" else callable_named(spec, "algorithm.place", names=["auto"])


def _signature_named(spec: str) -> Callable[[list[Any]], Hashable]:
    return SIGNATURES.get(spec) or callable_named(spec, "algorithm.signature", names=SIGNATURES)


def _signatures(rows: Sequence[_Row], signature: Callable[[list[Any]], Hashable], name: str) -> list[Hashable]:
    found = []
    for row in rows:
        try:
            found.append(signature(row.places))
            hash(found[-1])
        except TypeError as error:
            raise InputError(
                f"algorithm.signature '{name}' gave no hashable value ({one_line(error)}); accepted: one that can be compared"
            ) from error
        except Exception as error:
            raise InputError(f"algorithm.signature '{name}' failed: {one_line(error)}") from error
    return found


def _shares(rows: Sequence[_Row], signatures: Sequence[Hashable]) -> dict[str, float]:
    """Nothing where signatures are many, or made of other things than numbers and names."""
    counts = Counter(value for row, value in zip(rows, signatures, strict=True) if not row.began)
    labels = {value: _label(value) for value in counts}
    if len(counts) > MOST_SHOWN or not all(labels.values()):
        return {}
    return {f"vines/share_{labels[value]}": count / counts.total() for value, count in counts.items()}


def _label(value: Any) -> str:
    parts = sorted(value, key=str) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else [value]
    plain = all(isinstance(part, int | np.integer | str) for part in parts)
    return "-".join(map(str, parts))[:40] or "none" if plain else ""


def check_signature(vines: Vines) -> None:
    """Refuses names of functions that do not exist."""
    _place_named(vines.place)
    _signature_named(vines.signature)
