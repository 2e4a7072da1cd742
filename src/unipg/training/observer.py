"""What is told of a run while it goes on, and how a run says that it was stopped."""

from __future__ import annotations

import signal
from typing import Any, Protocol

from unipg.rollouts.base import EvaluationResult
from unipg.training.collapse import Finding


class Observer(Protocol):
    """What is told of progress (the terminal's display)."""

    def note(self, text: str) -> None: ...

    def phase(self, name: str, done: float) -> None: ...

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None: ...

    def evaluation(self, results: list[EvaluationResult]) -> None: ...

    def warning(self, finding: Finding) -> None: ...


class Silent:
    """An observer that says nothing."""

    def note(self, text: str) -> None: ...

    def phase(self, name: str, done: float) -> None: ...

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None: ...

    def evaluation(self, results: list[EvaluationResult]) -> None: ...

    def warning(self, finding: Finding) -> None: ...


class Stopped(Exception):
    """Training was stopped on request; the checkpoint is written and `--resume` continues."""

    signal: int = signal.SIGINT
    """What asked for it."""
