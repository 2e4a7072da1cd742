"""What the loop asks of a feed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unipg.algorithms.learners import Learner
from unipg.estimator import Objective
from unipg.estimator.parts import Neighbours, no_neighbours
from unipg.policies.normalization import STILL
from unipg.training.learner import Learning
from unipg.training.surface import Displaced
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer

NAMED = 12
"""Most numbers of observations that are told one by one."""


class Feed(ABC):
    """An iteration is `begin`, then `rounds` times: `gather`, and `updates` times `draw` with a step of the `due` learners; then `finish`.

    Where the run stands is (iteration, round, update): between any two of these calls it can be saved and continued.
    """

    rounds: int = 1
    """Of an iteration."""
    keeps_records: bool = False
    """Whether it wants to know what the terms saw of every step (`Learning.records`)."""
    displaced: Sequence[Displaced] = ()
    """The batches of a direction that wants them from other points than the iterate."""

    def __init__(self, run: Trainer) -> None:
        self.run = run
        self._objectives: dict[tuple[str, ...], Objective] = {}
        self.seconds = 0.0
        """Of the iteration so far that went into gathering, in its rounds."""

    @property
    def on(self) -> list[Learning]:
        """The learners that this iteration is for."""
        return [learner for learner in self.run.learners if learner.is_on(self.run.iteration)]

    @property
    def objective(self) -> Objective:
        """All terms of all of them: what a batch is prepared for."""
        names = tuple(learner.name for learner in self.on)
        if names not in self._objectives:
            self._objectives[names] = Objective(tuple(term for learner in self.on for term in learner.objective.terms))
        return self._objectives[names]

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether the iteration has begun."""

    @abstractmethod
    def begin(self) -> None:
        """All randomness of an iteration, and what is gathered at once. `Interrupted` leaves it to be begun again."""

    def gather(self, round: int) -> None:
        """What a round adds."""

    @abstractmethod
    def updates(self, round: int) -> int:
        """Updates of a round, once it has gathered."""

    @abstractmethod
    def draw(self, round: int, number: int) -> Trajectories:
        """The rows of an update."""

    @abstractmethod
    def due(self, round: int, number: int) -> list[Learning]:
        """The learners that take a step at an update, in their order."""

    @abstractmethod
    def steps(self, learner: Learner) -> int:
        """Steps that a learner takes in the whole run."""

    def iterations_of(self, learner: Learner) -> int:
        """Of the whole run those that a learner is for; at least 1."""
        first, last = learner.span
        return int(max(1, min(self.run.training.iterations, last) - first))

    def now(self, batch: Trajectories) -> Evaluation | None:
        """The policy on the rows of an update, where all learners share what they ask of it."""
        return None

    def fitted(self, learner: Learner) -> Learner:
        """A learner with its terms as the rows of this feed need them."""
        return learner

    def neighbours(self) -> Neighbours:
        """All the pairs that it draws from, where they are known; see `Planning.neighbours`."""
        return no_neighbours()

    def stepped(self, learning: Learning) -> None:
        """After each step of a learner."""

    def tell_still(self, whose: str) -> None:
        """Says which numbers of observations hardly change, where a policy reads them in units of their standard deviations."""
        if still := self.run.policy.still:
            shown = ", ".join(map(str, still[:NAMED])) + (f" and {len(still) - NAMED} more" if len(still) > NAMED else "")
            self.run.observer.note(
                f"of {whose} observations the numbers {shown} hardly change (std below {STILL:g}): in units of their standard deviation "
                "whatever differs from them is large"
            )

    def finish(self) -> dict[str, Any]:
        """Ends the iteration; metrics of it."""
        return {}

    def learnt(self) -> None:
        """After the metrics of the iteration have been told."""

    def flush(self) -> None:
        """What a checkpoint refers to is written out."""

    def open(self) -> None:
        """Takes up again what `close` has let go of."""

    def close(self) -> None:
        """Frees what runs beside this process, and files."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on; references, not copies."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
