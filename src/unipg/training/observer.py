"""What is told of a run while it goes on, and how a run says that it was stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipg.errors import InputError
from unipg.rollouts.base import EvaluationResult
from unipg.training.collapse import Finding

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer


class Observer:
    """What is told of a run: the terminal's display, and one's own. Any method may be left out; those here do nothing.

    They are called in the loop's own process and thread, in every worker, and an exception in one ends the run as any other does. An
    observer that changes the policy or draws from a global random generator changes the run.
    """

    def start(self, run: Trainer) -> None:
        """Before the first iteration, or the first after a resume. `run` has `iteration`, `policy`, `folder` …; `run.finish(why)` ends it
        after the iteration that is going on, as if that had been the last."""

    def note(self, text: str) -> None:
        """One line that the user should read."""

    def phase(self, name: str, done: float) -> None:
        """How far a longer piece of work is: `evaluate`, `update`, `anchor` and `dataset` (before `start`); `done`: its finished share."""

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        """After an iteration's updates, with its line of metrics.jsonl: rewards are of the policy before the updates."""

    def evaluation(self, results: list[EvaluationResult]) -> None:
        """After an evaluation on held-out tasks, or of a controller's episodes; of the policy as it is now."""

    def warning(self, finding: Finding) -> None:
        """When something looks like collapse: `str(finding)` is what the terminal says."""

    def checkpoint(self, folder: Path) -> None:
        """After a checkpoint was written to the run folder."""

    def stop(self, status: str) -> None:
        """At the end: `finished`, `stopped` (on request; it can be resumed) or `failed`."""


TOLD = ("start", "note", "phase", "iteration", "evaluation", "warning", "checkpoint", "stop")


class Observers(Observer):
    """Several observers as one; each is told what it has a method for.

    Errors: `InputError` for one that has no method of an `Observer`.
    """

    def __init__(self, observers: Sequence[Any]) -> None:
        self.observers = list(observers)
        for one in self.observers:
            if isinstance(one, type) or not any(callable(getattr(one, name, None)) for name in TOLD):
                what = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
                raise InputError(f"observers holds {what}; accepted: an object with any of the methods {', '.join(TOLD)}")

    def _tell(self, name: str, *told: Any) -> None:
        for one in self.observers:
            method: Callable[..., None] | None = getattr(one, name, None)
            if method is not None:
                method(*told)

    def start(self, run: Trainer) -> None:
        self._tell("start", run)

    def note(self, text: str) -> None:
        self._tell("note", text)

    def phase(self, name: str, done: float) -> None:
        self._tell("phase", name, done)

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self._tell("iteration", done, total, metrics)

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self._tell("evaluation", results)

    def checkpoint(self, folder: Path) -> None:
        self._tell("checkpoint", folder)

    def stop(self, status: str) -> None:
        self._tell("stop", status)

    def warning(self, finding: Finding) -> None:
        self._tell("warning", finding)


class Stopped(Exception):
    """Training was stopped on request; the checkpoint is written, and a resume continues."""

    signal: int = signal.SIGINT
    """What asked for it."""
