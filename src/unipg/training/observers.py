"""Observers that are ready: early stopping, the best model so far, every model that was measured, and numbers to a tracker of one's own."""

from __future__ import annotations

import difflib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipg.errors import InputError, nearest
from unipg.files import write_folder
from unipg.rollouts.base import EvaluationResult
from unipg.training.folder import EVALUATED
from unipg.training.observer import Observer

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer


ALIKE = 0.85
"""How much a name that was not seen must be like one that was, for it to be told at once (`difflib`'s ratio)."""
DOUBT = 10
"""Iterations after which any name that was not seen is told."""


class _Watching(Observer):
    """Follows one number: a name of metrics.jsonl (`reward/mean`), or of an evaluation (`pass@1 (greedy)`, or `evaluation/TASK/NAME` of one
    task among several). After a resume it has seen what the run folder holds."""

    def __init__(self, metric: str, higher_is_better: bool) -> None:
        self.metric, self.sign = metric, 1.0 if higher_is_better else -1.0

    def start(self, run: Trainer) -> None:
        self.run = run
        self.best, self.since = -math.inf, 0
        self.met: set[str] = set()
        self.doubted = False
        """Whether it was told that the number was not seen."""
        for row in _rows(run.folder / "metrics.jsonl", run.iteration):
            self._look(row, told=False)
        for row in _rows(run.folder / "evaluations.jsonl", run.iteration + 1):
            self._look(_flat([EvaluationResult(r["task"], r["metrics"]) for r in row["results"]]), told=False)

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self._look(metrics)
        if done >= DOUBT or difflib.get_close_matches(self.metric, self.met, 1, ALIKE):
            self._doubt(f"after {done} {'iteration' if done == 1 else 'iterations'}")

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self._look(_flat(results))

    def _look(self, numbers: Mapping[str, Any], told: bool = True) -> None:
        self.met |= numbers.keys()
        value = numbers.get(self.metric)
        if value is None or not math.isfinite(value):
            return
        better = self.sign * value > self.best + self.margin
        if better:
            self.best, self.since = self.sign * value, 0
        else:
            self.since += 1
        if told:
            self.seen(float(value), better)

    margin = 0.0
    """By how much a number must beat the best one to be better."""

    def seen(self, value: float, better: bool) -> None:
        """Told of every value, and whether it is the best so far."""

    def stop(self, status: str) -> None:
        if status == "finished":
            self._doubt("in this run")

    def _doubt(self, when: str) -> None:
        """Warns once where the number has not been seen yet."""
        if self.metric not in self.met and not self.doubted:
            self.doubted = True
            warnings.warn(f"{type(self).__name__} saw no '{self.metric}' {when}; {nearest(self.metric, sorted(self.met))}", stacklevel=3)


class EarlyStopping(_Watching):
    """Ends a run once `metric` has not been better by more than `margin` for `patience` values in a row, or has reached `target`.

    The iteration that is going on is finished, the policy evaluated and saved, and the run is `finished`; `resume` takes it further.
    """

    def __init__(
        self,
        metric: str,
        *,
        patience: int | None = None,
        target: float | None = None,
        margin: float = 0.0,
        higher_is_better: bool = True,
    ) -> None:
        super().__init__(metric, higher_is_better)
        if patience is None and target is None:
            raise InputError("EarlyStopping needs a patience, a target, or both")
        if patience is not None and patience < 1:
            raise InputError(f"EarlyStopping: patience is {patience}; accepted: 1 or more")
        if not margin >= 0:
            raise InputError(f"EarlyStopping: margin is {margin}; accepted: 0 or more")
        self.patience, self.target, self.margin = patience, target, margin

    def seen(self, value: float, better: bool) -> None:
        if self.target is not None and self.sign * value >= self.sign * self.target:
            self.run.finish(f"{self.metric} is {value:.4g}, and {self.target:g} was the target")
        elif self.patience is not None and self.since >= self.patience:
            self.run.finish(f"{self.metric} has not been better than {self.sign * self.best:.4g} for {self.since} values")


class BestModel(_Watching):
    """Keeps the policy at the best `metric` so far in the run folder's `best/`, as `model/` keeps the last one.

    With a number of an evaluation (`training.evaluate_every`) it is the policy that was measured; with one of metrics.jsonl the policy
    after that iteration's updates.
    """

    def __init__(self, metric: str, *, higher_is_better: bool = True, name: str = "best") -> None:
        super().__init__(metric, higher_is_better)
        if not name or Path(name).name != name or name in ("model", "critic", "initial"):
            raise InputError(f"BestModel: name is '{name}'; accepted: the name of a folder of its own")
        self.name = name

    def seen(self, value: float, better: bool) -> None:
        if better and self.run.workers.leads:
            write_folder(self.run.folder / self.name, self.run.policy.save)


class EvaluatedModels(Observer):
    """Keeps the policy of every evaluation in the run folder's `evaluated/`, in a folder that is called by the iterations before it."""

    def start(self, run: Trainer) -> None:
        self.run = run

    def evaluation(self, results: list[EvaluationResult]) -> None:
        if self.run.workers.leads:
            write_folder(self.run.folder / EVALUATED / str(self.run.iteration), self.run.policy.save)


class Track(Observer):
    """Passes numbers on: `log(numbers, step=…)` after every iteration and evaluation, as wandb.log and mlflow.log_metrics take them.

    Those of evaluations are called `evaluation/TASK/NAME`.
    """

    def __init__(self, log: Callable[..., Any]) -> None:
        self.log = log

    def start(self, run: Trainer) -> None:
        self.run = run

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        if self.run.workers.leads:
            self.log({name: value for name, value in metrics.items() if name not in ("iteration", "step")}, step=int(metrics["step"]))

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self.log({name: value for name, value in _flat(results).items() if name.startswith("evaluation/")}, step=self.run.step)


def last_and_best(folder: Path) -> dict[str, Any] | None:
    """Mean returns of a controller's evaluations in a run folder: the last, the best, and of how many; None where there are none."""
    found = measured_returns(folder)
    return {"last": found[-1], "best": max(found, key=lambda each: each["return"]), "n": len(found)} if found else None


def measured_returns(folder: Path) -> list[dict[str, Any]]:
    """`iteration`, mean `return` and normalised `score (LABEL)` of each evaluation of a controller in a run folder, in order."""
    found: list[dict[str, Any]] = []
    for row in _rows(folder / "evaluations.jsonl", sys.maxsize):
        metrics = row["results"][0]["metrics"] if row["results"] else {}
        if "return" in metrics:
            scores = {name: metric["value"] for name, metric in metrics.items() if name.startswith("score")}
            found.append({"iteration": row["iteration"], "return": metrics["return"]["value"], **scores})
    return found


def _flat(results: list[EvaluationResult]) -> dict[str, float]:
    """The numbers of an evaluation by their full names, and those of its first task by their short ones."""
    full = {f"evaluation/{r.task}/{name}": metric["value"] for r in results for name, metric in r.metrics.items()}
    return full | {name: metric["value"] for r in results[:1] for name, metric in r.metrics.items()}


def _rows(path: Path, end: int) -> Iterator[dict[str, Any]]:
    """The rows of a file of the run folder before iteration `end`."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        row = json.loads(line)
        if row["iteration"] < end:
            yield row
