"""Reads a run folder: what the trainer wrote, as typed values."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from unipg.errors import InputError
from unipg.rollouts.base import EvaluationResult

NEEDED = ("metrics.jsonl", "evaluations.jsonl")
OPTIONAL = ("run.json", "recipe.yaml", "histograms.jsonl")
RECORDINGS = ("recording.mp4", "recording.gif")
"""Episodes that were filmed, in the order in which they are looked for."""
CLOCK = ("iteration", "step", "seconds")
"""Keys of a metrics line that say when, not what."""


@dataclass
class Series:
    """One metric over the iterations at which it was written, in order; values may be NaN or infinite."""

    iterations: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass
class Histogram:
    """How often a quantity fell between `edges[i]` and `edges[i + 1]` in one iteration."""

    iteration: int
    edges: list[float]
    counts: list[float]


@dataclass
class Evaluations:
    """Everything measured at one point of the run."""

    iteration: int
    """Iterations done before it."""
    step: float
    """Optimiser steps done before it."""
    seconds: float
    """How long it took; NaN where that was not written."""
    results: list[EvaluationResult]


@dataclass
class Run:
    """A run folder."""

    folder: Path
    label: str = ""
    """What it is called on the page: its name, made unique among the runs shown."""
    info: dict[str, Any] = field(default_factory=dict)
    """`run.json`, empty if there is none."""
    recipe: str = ""
    metrics: dict[str, Series] = field(default_factory=dict)
    histograms: dict[str, list[Histogram]] = field(default_factory=dict)
    evaluations: list[Evaluations] = field(default_factory=list)
    clock: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Optimiser steps and seconds since the start at the end of an iteration, in order; NaN where they were not written."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know: cut-off files, values that are not finite."""

    @property
    def recording(self) -> Path | None:
        """The film of an episode, where there is one."""
        return next((path for name in RECORDINGS if (path := self.folder / name).is_file()), None)

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.folder.resolve().name)

    @property
    def algorithm(self) -> str:
        return str(self.info.get("algorithm") or "unknown algorithm")

    @property
    def status(self) -> str:
        return str(self.info.get("status") or "unknown status")


def read_run(folder: Path) -> Run:
    """The run in `folder`.

    A last line that a kill has cut off is left out, with a note. Of an iteration that was written twice (a run resumed from an earlier
    checkpoint) the later lines count. Raises `InputError` for a folder that is missing or is not a run's, and for a file that cannot be
    read, with its line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: {'a file, not a run folder' if folder.exists() else 'no such run folder'}")
    if not any((folder / name).is_file() for name in NEEDED):
        inside = sorted(str(path.parent) for name in NEEDED for path in folder.glob(f"*/{name}"))
        hint = f"; run folders in it: {', '.join(dict.fromkeys(inside))}" if inside else ""
        raise InputError(
            f"{folder}: not a run folder: it holds neither {' nor '.join(NEEDED)} (it may also hold {', '.join(OPTIONAL)}){hint}"
        )
    run = Run(folder)
    run.info = _read_info(folder / "run.json")
    run.notes += _warnings(run.info)
    run.recipe = _read_text(folder / "recipe.yaml")
    _read_metrics(run)
    _read_histograms(run)
    _read_evaluations(run)
    return run


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, with labels that tell them apart. Raises `InputError` as `read_run` does, and when there are none."""
    if not folders:
        raise InputError("no run folder given")
    runs = [read_run(folder) for folder in folders]
    names = Counter(run.name for run in runs)
    for run in runs:
        run.label = run.name if names[run.name] == 1 else f"{run.name} ({run.folder})"
    labels = Counter(run.label for run in runs)
    for position, run in enumerate(runs, start=1):
        run.label += f" #{position}" * (labels[run.label] > 1)
    return runs


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text ({error})") from error


def _read_info(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    if not text:
        return {}
    try:
        info = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: not readable as JSON ({error.msg})") from error
    if not isinstance(info, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(info).__name__}")
    return info


def _warnings(info: dict[str, Any]) -> list[str]:
    """What the run itself was told while it went on: a collapse, or that its task is solved."""
    told = info.get("warnings")
    known = [entry for entry in (told if isinstance(told, list) else []) if isinstance(entry, dict) and "text" in entry]
    return [
        f"{'Warning' if entry.get('collapse', True) else 'Note'}, iteration {entry.get('iteration')}: {entry['text']}" for entry in known
    ]


def _read_lines(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, record)` of each line; `place` names file and line for error messages."""
    if not path.is_file():
        return
    lines = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
    for number, line in lines:
        place = f"{path} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:  # covers bad JSON and bad UTF-8
            if number == lines[-1][0]:
                notes.append(f"The last line of {path.name} (line {number}) is cut off, as a killed run leaves it; it is not shown.")
                return
            raise InputError(f"{place}: not readable as JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{place}: expected a JSON object, found {type(record).__name__}")
        yield place, record


def _iteration(record: dict[str, Any], place: str) -> int:
    iteration = record.get("iteration")
    if not isinstance(iteration, int):
        raise InputError(f"{place}: 'iteration' must be a whole number, found {iteration!r}")
    return iteration


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(record: dict[str, Any], key: str, place: str) -> list[float]:
    values = record.get(key)
    if not isinstance(values, list) or not all(map(_is_number, values)):
        raise InputError(f"{place}: '{key}' must be a list of numbers")
    return [float(value) for value in values]


def _number(record: dict[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if _is_number(value) else math.nan


def _read_metrics(run: Run) -> None:
    by_iteration: dict[int, dict[str, float]] = {}
    clock: dict[int, tuple[float, float]] = {}
    odd: set[str] = set()
    for place, record in _read_lines(run.folder / "metrics.jsonl", run.notes):
        iteration = _iteration(record, place)
        clock[iteration] = (_number(record, "step"), _number(record, "seconds"))
        # trackers write null for a number that JSON cannot hold
        values = {key: math.nan if value is None else value for key, value in record.items() if key not in CLOCK}
        odd |= {key for key, value in values.items() if not isinstance(value, int | float)}
        by_iteration[iteration] = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
    run.clock = dict(sorted(clock.items()))
    for iteration, values in sorted(by_iteration.items()):
        for key, value in values.items():
            series = run.metrics.setdefault(key, Series())
            series.iterations.append(iteration)
            series.values.append(value)
    if odd:
        run.notes.append(f"Some values in metrics.jsonl are not numbers and are not shown: {', '.join(sorted(odd))}.")
    for key, series in run.metrics.items():
        bad = [i for i, value in zip(series.iterations, series.values, strict=True) if not math.isfinite(value)]
        if bad:
            where = f"iteration {bad[0]}" if len(bad) == 1 else f"{len(bad)} iterations, the first of them {bad[0]}"
            run.notes.append(f"{key} was NaN or infinite in {where}; those points are left out of the charts.")


def _read_histograms(run: Run) -> None:
    found: dict[str, dict[int, Histogram]] = {}
    for place, record in _read_lines(run.folder / "histograms.jsonl", run.notes):
        iteration, edges, counts = _iteration(record, place), _numbers(record, "edges", place), _numbers(record, "counts", place)
        if len(edges) != len(counts) + 1 or not counts:
            raise InputError(f"{place}: 'edges' must be one more than 'counts', found {len(edges)} and {len(counts)}")
        if any(low > high for low, high in pairwise(edges)):
            raise InputError(f"{place}: 'edges' must not fall")
        if any(map(math.isnan, edges)) or not all(map(math.isfinite, counts)):
            run.notes.append(
                f"A histogram of {record.get('name')} in iteration {iteration} holds values that are not numbers; it is left out."
            )
            continue
        found.setdefault(str(record.get("name")), {})[iteration] = Histogram(iteration, edges, counts)
    run.histograms = {name: [row for _, row in sorted(rows.items())] for name, rows in found.items()}


def _read_evaluations(run: Run) -> None:
    found: dict[int, Evaluations] = {}
    for place, record in _read_lines(run.folder / "evaluations.jsonl", run.notes):
        iteration = _iteration(record, place)
        results = [_result(item, place) for item in record.get("results") or ()]
        found[iteration] = Evaluations(iteration, _number(record, "step"), _number(record, "seconds"), results)
    run.evaluations = [evaluations for _, evaluations in sorted(found.items())]


def _result(item: Any, place: str) -> EvaluationResult:
    try:
        metrics = {
            name: {key: float("nan" if value is None else value) for key, value in metric.items()}
            for name, metric in (item.get("metrics") or {}).items()
        }
        samples = [dict(sample) for sample in item.get("samples") or ()]
        if any("value" not in metric for metric in metrics.values()):
            raise ValueError("a metric without 'value'")
        return EvaluationResult(str(item["task"]), metrics, samples, how=str(item.get("how") or ""))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{place}: 'results' must be a list of {{'task', 'metrics': {{name: {{'value', …}}}}}} ({error})") from error
