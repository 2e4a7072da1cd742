"""Numbers, spans of time and outcomes in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unipg.reports.run import Run

PREFERRED = ("pass@1", "accuracy", "return")
MINUS = "−"


def is_percent(metric: str) -> bool:
    """Whether an evaluation metric is a share that people read in percent."""
    return metric.startswith(("pass@", "maj@", "cons@", "best@")) or metric.endswith(("accuracy", "rate", "fraction"))


def is_better_higher(metric: str) -> bool:
    """Whether a rise is known to be good; of metrics with other names nothing is assumed."""
    return (is_percent(metric) and "limit" not in metric) or "return" in metric or "reward" in metric


def number(value: float) -> str:
    """Four significant digits."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{MINUS if value < 0 else ''}infinite"
    return f"{value:,.4g}".replace("-", MINUS)


def percent(value: float) -> str:
    """A share as percent, one digit."""
    return f"{100 * value:.1f} %".replace("-", MINUS) if math.isfinite(value) else number(value)


def duration(seconds: float) -> str:
    """`3 h 12 min`, `4 min 5 s`, `12 s`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def measured(metric: str, point: dict[str, float]) -> str:
    """`84.0 % [81.2, 86.4]`, or the number with its interval; without an interval where there is none."""
    show = percent if is_percent(metric) else number
    low, high = point.get("low", math.nan), point.get("high", math.nan)
    interval = f" [{show(low).removesuffix(' %')}, {show(high).removesuffix(' %')}]" if math.isfinite(low) and math.isfinite(high) else ""
    return show(point["value"]) + interval


def change(metric: str, before: dict[str, float], after: dict[str, float]) -> str:
    """`+52.8 points`, and whether the intervals overlap."""
    difference = after["value"] - before["value"]
    if not math.isfinite(difference):
        return ""
    sign = "+" if difference >= 0 else MINUS
    size = f"{abs(100 * difference):.1f} points" if is_percent(metric) else number(abs(difference))
    return f"{sign}{size}{' (intervals overlap)' if overlap(before, after) else ''}"


def overlap(before: dict[str, float], after: dict[str, float]) -> bool:
    """Whether both have intervals and these share a value."""
    ends = [before.get("low", math.nan), before.get("high", math.nan), after.get("low", math.nan), after.get("high", math.nan)]
    return all(map(math.isfinite, ends)) and ends[0] <= ends[3] and ends[2] <= ends[1]


def points_of(run: Run, task: str, metric: str) -> list[dict[str, float]]:
    """The metric at every evaluation that has it, in order."""
    results = [result for evaluations in run.evaluations for result in evaluations.results if result.task == task]
    return [result.metrics[metric] for result in results if metric in result.metrics]


def tasks_of(runs: Sequence[Run]) -> list[str]:
    """Every task that was evaluated, in the order of the files."""
    return list(dict.fromkeys(result.task for run in runs for evaluations in run.evaluations for result in evaluations.results))


def metrics_of(runs: Sequence[Run], task: str) -> list[str]:
    """Every metric of the task, the main one first."""
    results = [result for run in runs for evaluations in run.evaluations for result in evaluations.results if result.task == task]
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    return sorted(names, key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))


def outcome(run: Run) -> str:
    """One sentence: the main metric of the first task, from the first evaluation to the last."""
    tasks = tasks_of([run])
    metrics = metrics_of([run], tasks[0]) if tasks else []
    if not metrics:
        return _reward_outcome(run)
    points = points_of(run, tasks[0], metrics[0])
    more = len(tasks) - 1
    also = f"; {more} more task{'s' if more > 1 else ''} in the table" if more else ""
    what = f"{metrics[0]} on {tasks[0]}"
    if len(points) == 1:
        return f"{what}: {measured(metrics[0], points[0])} (evaluated once){also}"
    first, last = points[0], points[-1]
    return f"{what}: {measured(metrics[0], first)} → {measured(metrics[0], last)}, {change(metrics[0], first, last)}{also}"


def _reward_outcome(run: Run) -> str:
    for key, label in (("return/last_100", "mean return of the last 100 episodes"), ("reward/mean", "mean training reward")):
        values = [value for value in run.metrics[key].values if math.isfinite(value)] if key in run.metrics else []
        if values:
            tenth = max(1, len(values) // 10)
            first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
            return f"No evaluation yet; {label}: {number(first)} in the first tenth → {number(last)} in the last tenth of the iterations"
    return "Nothing has been measured yet"
