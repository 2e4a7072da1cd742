"""Where numbers go: JSONL in the run folder always; TensorBoard, Weights & Biases and trackio through accelerate's trackers by a key."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unipg.errors import InputError, missing_package, nearest
from unipg.files import write_file, writing
from unipg.rollouts.base import EvaluationResult
from unipg.training.diagnostics import Histogram
from unipg.training.folder import untouched

TRACKERS = ("tensorboard", "wandb", "trackio")


class Tracker:
    """Appends to `metrics.jsonl`, `histograms.jsonl` and `evaluations.jsonl`; forwards numbers to the named trackers."""

    def __init__(self, folder: Path, names: Sequence[str] = (), *, project: str = "unipg", config: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self._others = [_open_tracker(name, folder, project, config or {}) for name in names]

    def _append(self, file: str, row: dict[str, Any]) -> None:
        path = self.folder / file
        with writing(path, untouched), path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def metrics(self, row: dict[str, Any]) -> None:
        """One iteration's numbers; `iteration` and `step` among them."""
        self._append("metrics.jsonl", {k: _plain(v) for k, v in row.items()})
        self._forward({k: v for k, v in row.items() if k not in ("iteration", "step")}, int(row["step"]))

    def histograms(self, iteration: int, histograms: Sequence[Histogram]) -> None:
        for item in histograms:
            self._append("histograms.jsonl", {"iteration": iteration, **vars(item)})

    def evaluation(self, iteration: int, step: int, seconds: float, results: Sequence[EvaluationResult]) -> None:
        rows = [dataclasses.asdict(r) for r in results]
        self._append("evaluations.jsonl", {"iteration": iteration, "step": step, "seconds": round(seconds, 3), "results": rows})
        self._forward({f"evaluation/{r.task}/{name}": m["value"] for r in results for name, m in r.metrics.items()}, step)

    def _forward(self, numbers: dict[str, Any], step: int) -> None:
        with writing(self.folder, untouched):
            for tracker in self._others:
                tracker.log(numbers, step=step)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics that were written so far, a row for each iteration."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def rewind(self, iteration: int, evaluated_at: int) -> None:
        """Drops lines that a resumed run will write again: those from `iteration` on, and evaluations after that at `evaluated_at`."""
        for file, first in (("metrics.jsonl", iteration), ("histograms.jsonl", iteration), ("evaluations.jsonl", evaluated_at + 1)):
            path = self.folder / file
            if not path.is_file():
                continue
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    at = json.loads(line)["iteration"]
                except (ValueError, KeyError):
                    continue  # a line that a kill cut off
                if at < first:
                    kept.append(line)
            write_file(path, "".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        with writing(self.folder, untouched):
            for tracker in self._others:
                tracker.finish()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def check_trackers(names: Sequence[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"logging.trackers: '{name}' does not exist; {nearest(name, TRACKERS)}")


def _open_tracker(name: str, folder: Path, project: str, config: dict[str, Any]) -> Any:
    try:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available
    except ImportError:
        raise missing_package("accelerate", "tracking", f"logging.trackers: {name}") from None
    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "trackio": is_trackio_available}
    if not available[name]():
        raise missing_package(name, "tracking", f"logging.trackers: {name}")
    PartialState()
    tracker_class = LOGGER_TYPE_TO_CLASS[name]
    in_folder = tracker_class.requires_logging_directory
    tracker = tracker_class(folder.name, logging_dir=folder) if in_folder else tracker_class(project)
    if hasattr(tracker, "start"):
        tracker.start()
    flat = {key: value if isinstance(value, int | float | str | bool) else json.dumps(value, default=str) for key, value in config.items()}
    tracker.store_init_configuration(flat)
    return tracker
