"""What the loop asks of a source of experience."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unipg.errors import Interrupted as Interrupted
from unipg.policies.base import Policy
from unipg.trajectories import Trajectories

Completions = Literal["none", "pairs", "unpaired", "scored"]
"""Kinds of given completions: none; a chosen and a rejected one per prompt; single ones that were liked or not; several with scores."""
FRESH = "fresh"
"""Name of a planned [B,T] bool tensor: the policy's tokens that were chosen in this collection. Where it is missing, all were."""


@dataclass(frozen=True)
class Vines:
    """Whole episodes, and several ways on from states of theirs, instead of windows; for environments that can be saved and restored."""

    states: int = 2
    """Of each episode: steps 0, L/p, 2L/p …, L its length. 0: the episodes alone."""
    count: int = 8
    """Ways on from each of these states, to the end of the episode."""
    place: str = "auto"
    """What a step counts as, a hashable value: `package.module:function` of (environment, info); auto: `info["place"]`, else the
    observation."""
    signature: str = "set"
    """What of its places tells a way on from others: set, sequence, last, or `package.module:function` of their list. `set` and
    `sequence` leave out places that are None."""


@dataclass(frozen=True)
class Demand:
    """What one call of `collect` is asked for."""

    iteration: int
    round: int = 0
    """0, and 1, 2 … while a batch is topped up (dynamic sampling)."""
    share: float = 1.0
    """Share of the full number of prompts that is still missing, in (0, 1]."""
    rollouts: int = 1
    """Rollouts per prompt; 0 for none."""
    demonstrations: bool = False
    """Whether rows with the prompts' demonstrations are wanted."""
    score_demonstrations: bool = False
    completions: Completions = "none"
    """Which given completions are wanted; with `unpaired`, rows with another prompt's completion too (`Source.MISMATCHED`)."""
    value: bool = False
    """Whether the critic's values are wanted with the trajectories."""
    window: int | None = None
    """Most new tokens of each trajectory in this collection; one that is not finished then goes on in the next. None: no such limit."""
    vines: Vines | None = None
    """Of environments alone: what is wanted in the place of windows."""
    seed: int = 0
    """The run's seed; draw with `seeding.generator(seed, "…", iteration, round)`."""
    worker: int = 0
    workers: int = 1
    """Which share of the prompts is this worker's: every `workers`-th, from `worker` on."""
    should_stop: Callable[[], bool] = bool
    """Polled during long sampling; when true, raise `Interrupted`."""


@dataclass(frozen=True)
class Pickled:
    """Bytes in an experience's state that run code when they are unpickled: kept apart from the checkpoint, which runs none."""

    data: bytes
    own: bool = True
    """Whether this user's own runs wrote them; others are refused by `resume`, unless it is told to trust them."""


@dataclass
class EvaluationResult:
    """Held-out performance on one task."""

    task: str
    metrics: dict[str, dict[str, float]]
    """By name (`pass@1`, `return`): `value`, `low`, `high` (95 % interval, where there is one) and `n`."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """A few answers: `prompt`, `answer`, `expected`, `reward`."""
    trouble: str = ""
    """Why answers could not be scored, where there were any: to be read by a person."""
    broken: bool = False
    """Whether the verifier raised an error for every answer."""
    how: str = ""
    """How actions were chosen, of policies for which there are several ways."""


class Experience(ABC):
    """Chooses what is asked, draws trajectories from the policy, and scores them."""

    max_new_tokens: int
    """Limit on the policy's own tokens (or steps) in one trajectory."""
    has_prompts: bool = True
    """Whether rows answer prompts, several of them the same one where they are asked to; environments start each episode by itself."""
    anchored: bool = False
    """Whether its trajectories carry the anchor's log-probabilities already."""
    trouble: str = ""
    """Why rollouts could not be scored, the first time that this happened: to be read by a person."""

    @property
    def keeps_unfinished(self) -> bool:
        """Whether trajectories can go on from one collection to the next (`Demand.window`)."""
        return False

    def check(self, policy: Policy, demand: Demand) -> None:
        """Refuses a demand that it can already say it cannot meet: before a run writes anything."""

    def check_ahead(self) -> None:
        """Refuses to be what another process collects from, which is sent its state with each demand (`training.overlap`)."""

    @abstractmethod
    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        """Scored trajectories, and metrics of the collection (`verifier/failures`, `length/mean` …)."""

    @property
    def learns(self) -> bool:
        """Whether `update` changes what is collected next."""
        return False

    def update(self, batch: Trajectories, memory: Mapping[str, Any]) -> None:
        """Called after the updates with the prepared batch and what planning remembers (`Planning.memory`); samplers learn from both."""

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        """Held-out performance; `progress` is told the finished share in [0, 1]."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly (sampler position, running environments): tensors, arrays and plain values, which are read
        without running code; what can only be pickled as `Pickled`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""

    def fingerprint(self) -> dict[str, str]:
        """Of what it draws from, by name: a run is continued with the same data, or not at all."""
        return {}
