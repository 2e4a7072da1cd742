"""One call of `unipg lab`: which parts of the lab are run, on what, under which conditions."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from unipg.errors import InputError
from unipg.lab import continuous, control
from unipg.lab.grid import KINDS, chosen_parts, run_grid
from unipg.lab.mismatch import run_mismatch
from unipg.lab.page import Findings
from unipg.lab.problems import problem_named
from unipg.lab.study import Conditions, instances, run_study

SDE = continuous.Diffusions.name
MISMATCHED = ("rloo", "grpo")
"""What the mismatch study runs unless algorithms are named: the exact policy gradient, and the usual one."""


def run_lab(
    *,
    algorithms: Sequence[str] = (),
    problem: str = "strings",
    vocabulary: int | None = None,
    length: int | None = None,
    group_sizes: Sequence[int] | None = None,
    lags: Sequence[int] | None = None,
    clips: Sequence[float] | None = None,
    noises: Sequence[float] | None = None,
    steps: Sequence[float] | None = None,
    batches: int | None = None,
    mismatch: bool = False,
    grid: bool = False,
    parts: dict[str, Sequence[str]] | None = None,
    seed: int = 0,
    command: str = "unipg lab",
    progress: Callable[[str, float], None] | None = None,
) -> Findings:
    """The study of algorithms, or with `mismatch` and `grid` those instead; None stands for each one's default. On a problem of control the
    ways to differentiate are studied, and `group_sizes` are numbers of visited states; on `sde` critics, by `steps` (dt), of so many paths.

    `parts`: names by kind that the grid is restricted to. `progress` is told a name and the finished share. Errors: `InputError` for a
    name that does not exist, a problem too large to enumerate, and a condition that a study does not take.
    """
    lists: dict[str, Any] = {"group_sizes": group_sizes, "lags": lags, "clips": clips, "noises": noises}
    given: dict[str, Any] = {name: tuple(values) for name, values in lists.items() if values is not None}
    if batches is not None:
        given["batches"] = batches
    if steps and problem != SDE:
        raise InputError(f"--dt does not apply to problem '{problem}'; accepted: problem {SDE}, which is seen every dt")
    if problem in control.PROBLEMS or problem == SDE:
        compared = "critics" if problem == SDE else "ways to differentiate"
        asked = {"algorithms": algorithms, "vocabulary": vocabulary, "length": length, "lags": lags, "clip": clips, "noise": noises}
        asked |= {"mismatch": mismatch, "grid": grid, **(parts or {})}
        if names := [name for name, value in asked.items() if value]:
            raise InputError(f"--{names[0].replace('_', '-')} does not apply to problem '{problem}', where {compared} are compared")
        tell = None if progress is None else functools.partial(progress, "study")
        if problem == SDE:
            if group_sizes and len(group_sizes) > 1:
                raise InputError(f"--group-sizes holds {len(group_sizes)} values; problem '{SDE}' takes one, the paths of a batch")
            paths = group_sizes[0] if group_sizes else continuous.PATHS
            turns = continuous.BATCHES if batches is None else batches
            judged = continuous.run_diffusions(steps or continuous.STEPS, paths, turns, seed, tell)
            return Findings(continuous.Diffusions(), command, seed, values=judged)
        made = control.PROBLEMS[problem](seed)
        visits = tuple(group_sizes) if group_sizes else (control.VISITS,)
        study = control.run_control(made, control.BATCHES if batches is None else batches, visits, seed, tell)
        return Findings(made, command, seed, study=study)
    Conditions(**given)
    instances(algorithms)  # names that do not exist are refused before a problem is built
    exact = problem_named(problem, seed, vocabulary, length)
    chosen = instances(algorithms, exact)
    many: dict[str, Any] = {} if batches is None else {"batches": batches}

    def told(name: str) -> Callable[[float], None] | None:
        return None if progress is None else lambda done: progress(name, done)

    if parts and any(parts.values()) and not grid:
        raise InputError(f"{', '.join(sorted(k for k, v in parts.items() if v))}: lists of parts belong to --grid")
    if not mismatch and not grid:
        study = run_study(chosen, exact, Conditions(**given), seed=seed, progress=told("study"))
        return Findings(exact, command, seed, study=study)
    found = Findings(exact, command, seed)
    if mismatch:
        one = _single("--mismatch", given, {"group_sizes": "group_size"})
        found.mismatch.extend(
            run_mismatch(chosen if algorithms else instances(MISMATCHED), exact, **one, **many, seed=seed, progress=told("mismatch"))
        )
    if not grid:
        return found
    if algorithms and not mismatch:
        raise InputError("--algorithms does not apply to --grid, which combines parts: name masks, references, advantages or aggregates")
    one = _single("--grid", given, {"group_sizes": "group_size", "lags": "lag", "noises": "noise"})
    pool = chosen_parts(exact, parts or {})
    return Findings(
        exact, command, seed, mismatch=found.mismatch, grid=run_grid(exact, pool, **one, **many, seed=seed, progress=told("grid"))
    )


def _single(option: str, given: dict[str, Any], accepted: dict[str, str]) -> dict[str, Any]:
    """The conditions of a study that takes one value of each; refuses lists, and conditions that it does not have."""
    chosen = {}
    for name, values in given.items():
        label = "--" + {"clips": "clip", "noises": "noise"}.get(name, name).replace("_", "-")
        if name == "batches":
            continue
        if name not in accepted:
            raise InputError(f"{label} does not apply to {option}")
        if len(values) > 1:
            raise InputError(f"{label} holds {len(values)} values; {option} takes one")
        chosen[accepted[name]] = values[0]
    return chosen


def split_names(text: str) -> list[str]:
    """Names separated by commas; commas inside brackets belong to the name."""
    return [name.strip() for name in re.split(r",(?![^(]*\))", text) if name.strip()]


__all__ = ["KINDS", "run_lab", "split_names"]
