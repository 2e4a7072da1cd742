"""What the terminal shows: progress with the time that is left, tables, one-line errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from unipg.policies.proof import WAYS, Proof
from unipg.rollouts.base import EvaluationResult
from unipg.training.collapse import Finding
from unipg.training.observer import Observer

if TYPE_CHECKING:
    from unipg.training.estimates import Estimate
    from unipg.training.trainer import Trainer

Shown = tuple[tuple[str, str, str], ...]
SHOWN: Shown = (
    ("reward/mean", "reward", ".3g"),
    ("gate/offline_fraction", "offline", ".3g"),
    ("preference/accuracy", "accuracy", ".3g"),
    ("preference/margin", "margin", ".3g"),
    ("loss", "loss", ".3g"),
    ("entropy", "entropy", ".3g"),
    ("length/mean", "length", ".3g"),
    ("verifier/failures", "failed to score", ".3g"),
)
STEPS, PACE = "environment/steps", "steps in a second"
SHOWN_OF_CONTROLLERS: Shown = (
    ("return/last_100", "return", ",.4g"),
    ("critic/loss", "critic loss", ".3g"),
    (PACE, "steps/s", ",.0f"),
    (STEPS, "steps", ",.0f"),
    ("temperature_loss/temperature", "temperature", ".3g"),
    ("entropy", "entropy", ".3g"),
)
"""Of a run that counts steps of environments; what matters most first, since narrow terminals cut the rest."""
PLAIN_SECONDS = 10.0
"""Seconds between lines where the output is not a terminal."""


def plain_console() -> Console:
    """The terminal. What users wrote (prompts, names of tasks and folders) is shown as it is, and never read as markup."""
    return Console(markup=False, emoji=False)


class TrainingDisplay(Observer):
    """A live bar on a terminal; a line now and then elsewhere (a log file)."""

    def __init__(self, console: Console, title: str) -> None:
        self.console, self.title = console, title
        self.live = console.is_terminal
        self.began: float | None = None
        self.done_at_start = 0
        self.last_line = 0.0
        self.progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[finished]}/{task.total:.0f}", markup=False),
            TextColumn("spent"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=False,
        )
        self.task: Any = None
        self.at, self.total = 0, 0
        """Iterations that are done, of how many."""
        self.steps: float | None = None
        """Environment steps at the end of the last iteration; None before the first one after a resume."""
        self.facts = ""
        self.heard = time.monotonic()
        """When something of the run was last told."""

    def __enter__(self) -> TrainingDisplay:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.progress.stop()

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def start(self, run: Trainer) -> None:
        self.at, self.total, self.heard = run.iteration, run.training.iterations, time.monotonic()
        self.steps = None if run.iteration else 0.0

    def phase(self, name: str, done: float) -> None:
        shown = {"evaluate": "evaluating", "anchor": "log-probabilities under the anchor", "dataset": "reading the dataset"}
        if self.live and name in shown:
            self._bar(self.total or 1, f"{shown[name]} {done:.0%}")
        elif name == "update" and self.total:
            self._partly(done)

    def _partly(self, done: float) -> None:
        """Within an iteration: the bar moves on, and a log hears of one that takes long."""
        now = time.monotonic()
        if self.live:
            self._bar(self.total, self.facts, self.at + done)
        elif now - self.heard >= PLAIN_SECONDS:
            self.heard = now
            self.console.print(f"{self.title} {self.at}/{self.total}  iteration {self.at + 1}: {done:.0%}", highlight=False, soft_wrap=True)

    def _bar(self, total: float, facts: str, completed: float | None = None) -> None:
        if self.task is None:
            self.task = self.progress.add_task(self.title, total=total, facts=facts, finished=self.at)
        elif completed is None:
            self.progress.update(self.task, facts=facts)
        if completed is not None:
            self.progress.update(self.task, total=total, completed=completed, facts=facts, finished=int(completed))

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        now = time.monotonic()
        if self.began is None:
            self.began, self.done_at_start = now - float(metrics.get("time/rollout", 0)) - float(metrics.get("time/update", 0)), done - 1
        self.facts = facts = self._told(metrics)
        self.at, self.total = done, total
        if self.live:
            self._bar(total, facts, done)
        elif now - self.last_line >= PLAIN_SECONDS or done == total:
            self.last_line = self.heard = now
            left = (now - self.began) / max(1, done - self.done_at_start) * (total - done)
            times = f"spent {_clock(now - self.began)}  left {_clock(left)}"
            self.console.print(f"{self.title} {done}/{total}  {times}  {facts}", highlight=False, soft_wrap=True)

    def _told(self, metrics: dict[str, Any]) -> str:
        """What matters of an iteration, in one line."""
        known = dict(metrics)
        if STEPS in metrics:
            seconds = metrics.get("time/rollout", 0.0) + metrics.get("time/update", 0.0)
            if self.steps is not None and seconds > 0:
                known[PACE] = (metrics[STEPS] - self.steps) / seconds
            self.steps = metrics[STEPS]
        shown = SHOWN_OF_CONTROLLERS if STEPS in metrics else SHOWN
        return "  ".join(f"{label} {known[key]:{form}}" for key, label, form in shown if known.get(key))

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self.console.print(evaluation_table(results))

    def warning(self, finding: Finding) -> None:
        self.console.print(str(finding), highlight=False, soft_wrap=True)


WIDE = 150
"""Columns of a terminal from which the algorithm table has a column per part."""


def algorithm_table(rows: list[dict[str, str]], width: int) -> Table:
    """Every algorithm by its four parts; on a narrow terminal the parts of one algorithm stand below each other."""
    parts = ("mask", "reference", "advantage", "likelihood", "data")
    table = Table(title=f"{len(rows)} algorithms: 1_stable · (1/pi_ref) · Â · ∇pi_theta", title_justify="left", show_lines=width < WIDE)
    table.add_column("name", no_wrap=True)
    if width >= WIDE:
        for part in parts:
            table.add_column(part, overflow="fold")
        for row in rows:
            table.add_row(row["name"], *(row[part].replace(" | ", "\n") for part in parts))
    else:
        table.add_column("parts", overflow="fold")
        for row in rows:
            table.add_row(row["name"], "\n".join(f"{part:11}{row[part]}" for part in parts))
    return table


@contextmanager
def evaluation_progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar per task on a terminal; a line now and then elsewhere (a log file)."""
    with Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        TextColumn("spent"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bars:
        tasks: dict[str, Any] = {}

        last = began = time.monotonic()

        def told(name: str, done: float) -> None:
            nonlocal last
            now = time.monotonic()
            if not console.is_terminal:
                if now - last >= PLAIN_SECONDS and done > 0:
                    last = now
                    console.print(f"{name} {done:.0%}  spent {_clock(now - began)}", highlight=False, soft_wrap=True)
                return
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=1.0)
            bars.update(tasks[name], completed=done)

        yield told


def evaluation_table(results: list[EvaluationResult]) -> Table:
    """One row per task and metric, with its 95 % interval."""
    table = Table(title="held-out evaluation", title_justify="left")
    for column in ("task", "metric", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for result in results:
        for name, m in result.metrics.items():
            share = name.startswith(("pass@", "maj@", "accuracy")) and 0 <= m["value"] <= 1  # rewards may have any scale

            def shown(value: float, share: bool = share) -> str:
                return f"{100 * value:.1f} %" if share else f"{value:.4g}"

            interval = f"{shown(m['low'])} – {shown(m['high'])}" if "low" in m else ""
            table.add_row(f"{result.task}, {result.how}" if result.how else result.task, name, shown(m["value"]), interval, f"{m['n']:.0f}")
    return table


def estimates_table(found: Sequence[Estimate], discount: float) -> Table:
    """One row per estimator, with its 95 % interval."""
    table = Table(title=f"discounted return, {discount:g} a step, by data alone", title_justify="left")
    for column in ("estimator", "value", "95 % interval", "n", "effective n"):
        table.add_column(column, justify="left" if column == "estimator" else "right", no_wrap=True)
    for each in found:
        value, low, high, n = each.interval
        effective = "" if each.effective is None else f"{each.effective:.1f}"
        table.add_row(each.estimator, f"{value:.3g}", f"{low:.3g} – {high:.3g}", str(n), effective)
    return table


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def proof_table(proof: Proof) -> Table:
    """What was tried on a model of an architecture, and what came of it."""
    table = Table(title=f"{proof.architecture}: log-probabilities beside plain forward passes of single rows", title_justify="left")
    for column in ("way", "what is tried", "largest difference", "used"):
        table.add_column(column)
    for way, what in WAYS.items():
        trial = proof.trials[way]
        off = trial.reason if trial.off is None else f"{trial.off:.1e} nats (tolerance {trial.tolerance:.0e})"
        used = "yes" if trial.holds else "refused" if way in ("causal", "padded") else "no"
        table.add_row(way, what, Text(off), used)
    return table
