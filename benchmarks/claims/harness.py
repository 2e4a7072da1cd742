"""What all claim scripts share: a table of runs that survives being stopped, and its results for people and for programs.

A claim is methods, a function that runs one of them with one seed and returns numbers by name, and checks on those numbers:

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        ...                                                    # told(share) as often as you like, with the share done in [0, 1]
        return {"score": 0.9, "length": 12.0, "curve": {"0": 0.1, "100": 0.9}}

    def checks(runs: Runs) -> list[Check | None]:
        return [check("ours > theirs + 0.1", difference(runs, "ours", "theirs"), lambda gain: gain > 0.1)]

    def build(options: argparse.Namespace) -> Claim:           # `options.quick` asks for tiny sizes
        methods = {"ours": Method("Ours"), "theirs": Method("Theirs")}
        return Claim("mine", "What is claimed", "arXiv …", methods, run, checks, columns={"score": "score", "length": "tokens"})

    if __name__ == "__main__":
        sys.exit(main(__file__, __doc__, build, sys.argv[1:]))

`main` writes benchmarks/results/mine.{json,md,png} with commit, machine, seeds and command. A finished run is kept at once in mine.jsonl,
so a stopped benchmark continues where it was when the same command is given again on the same commit. A check that fails is a finding, not
an error. `string_operations.py` beside this file holds a ready toy.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unipg.errors import InputError, nearest
from unipg.statistics import Interval, mean_interval
from unipg.training.record import versions

ROOT = Path(__file__).resolve().parents[2]
INTERVAL = "95 % percentile bootstrap over seeds (unipg.statistics); with few seeds it is narrower than its name says"

Told = Callable[[float], None]
"""Is told the share of a run that is done, in [0, 1]."""
Run = dict[str, Any]
"""`method`, `seed` and the numbers that the run returned. `curve`, where there is one, is the score by step and is drawn."""
Runs = list[Run]
Check = dict[str, Any]
"""One piece of a claim: `claim` in words, its number with interval (`value`, `low`, `high`, `n`), `passed`, and both for each seed."""


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    title: str
    settings: Any = None
    """What makes its runs what they are beside the claim's setup; plain values."""
    note: str = ""
    """What a reader must know of it: how its loss is normalised."""
    cost: float = 1.0
    """Expected time of a run, in any unit that all methods share."""
    always: bool = False
    """Runs whatever `--methods` says: what the others start from. Its curve is not drawn."""


@dataclass(frozen=True)
class Claim:
    """A published claim on a toy."""

    name: str
    """Of the result files."""
    title: str
    source: str
    methods: Mapping[str, Method]
    run: Callable[[str, int, Told], dict[str, Any]]
    """One method with one seed. Runs come seed by seed, in the order of `methods`."""
    checks: Callable[[Runs], Sequence[Check | None]]
    """None for what cannot be checked because a method was left out."""
    columns: Mapping[str, str]
    """Numbers that the table shows, with their headings; the first is the score. A dot reaches into a dict: `operations.copy`."""
    about: str = ""
    """What the score and the other columns are."""
    setup: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the toy; plain values. Runs of another setup do not count as finished."""
    told: Callable[[Runs], Mapping[str, Sequence[str]]] = lambda runs: {}
    """Further sections of the report: lines by heading."""
    panels: Sequence[Callable[[Any, Runs], None]] = ()
    """Further panels of the picture; each draws on a matplotlib Axes."""
    limits: tuple[float, float] | None = None
    """Range of the score, where it has one."""
    over: str = "optimiser steps"
    """What the curves count."""


# ---------------------------------------------------------------------------------------------------------------------- checks


def number(run: Run, name: str) -> Any:
    """A number of a run, by its key or by a path of keys with dots between them; None where it has none."""
    value: Any = run
    for part in [name] if name in run else name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def by_seed(runs: Runs, method: str, name: str = "score") -> dict[int, Any]:
    """A number of a method, by seed; empty where the method did not run."""
    found = {run["seed"]: number(run, name) for run in runs if run["method"] == method}
    return {seed: value for seed, value in found.items() if value is not None}


def difference(runs: Runs, method: str, other: str, name: str = "score") -> dict[int, float]:
    """A number of `method` minus that of `other`, by seed; empty where one of them did not run."""
    return gains(by_seed(runs, method, name), by_seed(runs, other, name))


def gains(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """`ours` − `theirs`, by seed."""
    return {seed: rounded(ours[seed] - theirs[seed]) for seed in ours if seed in theirs}


def check(claim: str, values: Mapping[int, float], holds: Callable[[float], bool]) -> Check | None:
    """Whether `holds` is true of the mean over seeds, and of each seed; None where there are no values."""
    if not values:
        return None
    interval = mean_interval(list(values.values()))
    per_seed = {str(seed): {"value": value, "passed": bool(holds(value))} for seed, value in values.items()}
    return {"claim": claim, **_known(interval), "passed": bool(holds(rounded(interval.value))), "per_seed": per_seed}


def rounded(value: Any) -> Any:
    """Floats to six digits, throughout: what is compared is what is shown."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value


def _known(interval: Interval) -> dict[str, Any]:
    """An interval as JSON: null where one seed alone says nothing of the spread."""
    return {name: None if value != value else rounded(value) for name, value in interval._asdict().items()}


# ---------------------------------------------------------------------------------------------------------------------- all runs


class Left:
    """Lines of progress with the time that is left."""

    SECONDS_BETWEEN = 10.0

    def __init__(self, claim: Claim, wanted: list[tuple[str, int]]) -> None:
        self.claim = claim
        self.work = sum(claim.methods[name].cost for name, _ in wanted)
        self.done, self.began, self.last = 0.0, time.monotonic(), 0.0

    def of(self, name: str, seed: int) -> Told:
        """The callback of one run."""
        before, cost = self.done, self.claim.methods[name].cost

        def told(share: float) -> None:
            self.done = before + cost * share
            now = time.monotonic()
            if self.done > 0 and now - self.last >= self.SECONDS_BETWEEN:
                self.last = now
                left = (now - self.began) / self.done * (self.work - self.done)
                print(f"{name} seed {seed}: {share:.0%}; left {datetime.timedelta(seconds=round(left))}", flush=True)

        return told


def run_table(claim: Claim, methods: Sequence[str], seeds: Sequence[int], store: Path, commit: str = "") -> Runs:
    """Every method with every seed; finished runs are read from the store (one JSON object a line) and new ones appended to it."""
    runs = stored(claim, store, commit)
    wanted = [(name, seed) for seed in seeds for name in methods]
    missing = [pair for pair in wanted if pair not in runs]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} runs were finished before", flush=True)
    left = Left(claim, missing)
    store.parent.mkdir(parents=True, exist_ok=True)
    main_number = next(iter(claim.columns))
    for name, seed in missing:
        began, told = time.perf_counter(), left.of(name, seed)
        runs[name, seed] = run = {"method": name, "seed": seed, **rounded(claim.run(name, seed, told))}
        told(1.0)
        with store.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"identity": identity(claim, name, commit), **run}) + "\n")
        print(f"{name} seed {seed}: {number(run, main_number):.3f} in {time.perf_counter() - began:.0f} s", flush=True)
    return [runs[pair] for pair in wanted]


def identity(claim: Claim, name: str, commit: str) -> str:
    """What must be the same for a stored run to stand for a new one."""
    text = json.dumps([commit, claim.setup, name, claim.methods[name].settings])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def stored(claim: Claim, store: Path, commit: str) -> dict[tuple[str, int], Run]:
    """The finished runs of this claim, setup and commit."""
    runs = {}
    for line in store.read_text(encoding="utf-8").splitlines() if store.is_file() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:  # a kill in the middle of a line
            continue
        if run.get("method") in claim.methods and run.pop("identity") == identity(claim, run["method"], commit):
            runs[run["method"], run["seed"]] = run
    return runs


# ---------------------------------------------------------------------------------------------------------------------- results


def facts(claim: Claim, command: Sequence[str], commit: str, modified: bool) -> dict[str, Any]:
    """What ran, on what."""
    return {
        "claim": claim.title,
        "source": claim.source,
        "commit": commit,
        "library_modified": modified,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "setup": rounded(dict(claim.setup)),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    """What git says; nothing where there is no git or no checkout."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_results(output: Path, claim: Claim, told: Mapping[str, Any], runs: Runs) -> dict[str, Any]:
    """`<output>.json`, `.md` and `.png`; returns what the JSON holds."""
    methods = list(dict.fromkeys(run["method"] for run in runs))
    described = {n: {"title": m.title, "settings": m.settings, "note": m.note} for n in methods if (m := claim.methods[n])}
    result = {
        **told,
        "interval": INTERVAL,
        "methods": described,
        "summary": {name: _summary(claim, runs, name) for name in methods},
        "assertions": [piece for piece in claim.checks(runs) if piece is not None],
        "runs": runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    beside(output, ".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside(output, ".md").write_text(markdown(claim, result, output.name), encoding="utf-8")
    draw(claim, result, beside(output, ".png"))
    return result


def _summary(claim: Claim, runs: Runs, method: str) -> dict[str, Any]:
    """Each column's mean over seeds with its interval; columns that the method lacks are left out."""
    values = {name: list(by_seed(runs, method, name).values()) for name in claim.columns}
    return {name: _known(mean_interval(found)) for name, found in values.items() if found}


def beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def shown(interval: Mapping[str, Any], digits: int = 3) -> str:
    if interval["low"] is None:
        return f"{interval['value']:.{digits}f}"
    return f"{interval['value']:.{digits}f} [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"


def _cells(result: Mapping[str, Any], column: str) -> dict[str, str]:
    """A column's means by method; without digits where one is 10 or more, or all are whole numbers."""
    means = {method: row[column]["value"] for method, row in result["summary"].items() if column in row}
    digits = 0 if any(abs(value) >= 10 for value in means.values()) or all(value % 1 == 0 for value in means.values()) else 3
    return {method: f"{value:.{digits}f}" for method, value in means.items()}


def markdown(claim: Claim, result: Mapping[str, Any], name: str) -> str:
    """The results for people."""
    setup, machine = result["setup"], result["machine"]
    seeds = sorted({run["seed"] for run in result["runs"]})
    first, *others = claim.columns
    lines = [f"# {result['claim']}", ""]
    lines += [f"Source of the claim: {result['source']}. Means over the seeds {', '.join(map(str, seeds))}. Interval: {INTERVAL}."]
    lines += ["", claim.about] if claim.about else []
    lines += ["", f"| method | {' | '.join(claim.columns.values())} |", "|---|" + "---|" * len(claim.columns)]
    means = [_cells(result, column) for column in others]
    for method, row in result["summary"].items():
        cells = [shown(row[first]) if first in row else "", *(column.get(method, "") for column in means)]
        lines.append(f"| {claim.methods[method].title} | {' | '.join(cells)} |")
    lines += ["", f"![scores]({name}.png)"]
    if result["assertions"]:
        lines += ["", "## The claim, piece by piece", ""]
        lines += ["| piece | difference or value, mean over seeds | verdict | each seed |", "|---|---|---|---|"]
    for piece in result["assertions"]:
        each = ", ".join(f"{p['value']:.3f}{'' if p['passed'] else ' (FAIL)'}" for p in piece["per_seed"].values())
        lines.append(f"| {piece['claim']} | {shown(piece)} | {'PASS' if piece['passed'] else 'FAIL'} | {each} |")
    notes = [f"{claim.methods[method].title}: {note}" for method in result["summary"] if (note := claim.methods[method].note)]
    for heading, said in {**claim.told(result["runs"]), "Notes on the methods": notes}.items():
        lines += ["", f"## {heading}", "", *(f"- {line}" for line in said)] if said else []
    lines += ["", "## How it was measured", ""]
    lines += [
        f"- command: `{result['command']}`",
        f"- commit: {result['commit'] or 'unknown'}{', with changes to the library' if result['library_modified'] else ''}",
        f"- date: {result['date']}",
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s) used",
        f"- versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}",
        *([f"- setup: {', '.join(f'{k} {v}' for k, v in setup.items())}"] if setup else []),
    ]
    return "\n".join(lines) + "\n"


def draw(claim: Claim, result: Mapping[str, Any], path: Path) -> None:
    """Scores with intervals, the curves of runs that have any, and the claim's own panels."""
    from matplotlib.figure import Figure

    runs: Runs = result["runs"]
    score, heading = next(iter(claim.columns.items()))
    curves = any("curve" in run for run in runs)
    figure = Figure(figsize=(5.4 * (1 + curves + len(claim.panels)), 4.8), layout="constrained")
    axes = figure.subplots(1, 1 + curves + len(claim.panels), squeeze=False)[0]
    names = [name for name, row in result["summary"].items() if score in row]
    for place, name in enumerate(names):
        interval, colour = result["summary"][name][score], f"C{place}"
        axes[0].barh(place, interval["value"], color=colour, alpha=0.45)
        if interval["low"] is not None:
            axes[0].plot([interval["low"], interval["high"]], [place, place], color="black", linewidth=2)
        each = list(by_seed(runs, name, score).values())
        axes[0].plot(each, [place] * len(each), "o", color=colour, markersize=4)
        mine = [run["curve"] for run in runs if run["method"] == name and "curve" in run]
        if mine and len(mine[0]) > 1 and not claim.methods[name].always:
            steps = [step for step in mine[0] if all(step in curve for curve in mine)]  # runs may end when they are done
            means = [sum(curve[step] for curve in mine) / len(mine) for step in steps]
            axes[1].plot([int(step) for step in steps], means, color=colour, marker=".", label=name)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[0].set(xlim=claim.limits, xlabel=heading, title="mean over seeds, 95 % interval, each seed")
    if curves:
        axes[1].set(ylim=claim.limits, xlabel=claim.over, title=f"{heading} during training, mean over seeds")
        axes[1].grid(alpha=0.3)
        if axes[1].lines:
            axes[1].legend(fontsize=8)
    for axis, panel in zip(axes[1 + curves :], claim.panels, strict=True):
        panel(axis, runs)
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------------------------------------------- command line


def main(
    script: str,
    doc: str | None,
    build: Callable[[argparse.Namespace], Claim],
    arguments: Sequence[str],
    *,
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    seeds: int = 3,
) -> int:
    """Runs a claim; exit code 0 whichever way the numbers fall, 2 for bad input, 130 when stopped.

    `options` adds options of the script's own to those that all have; `seeds` is the default number of seeds.
    """
    program = Path(script).resolve().relative_to(ROOT).as_posix()
    parser = argparse.ArgumentParser(prog=program, description=(doc or "").strip().partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds, from 0 on (default %(default)s)")
    parser.add_argument("--methods", help="comma-separated; default: all")
    parser.add_argument("--output", type=Path, help="results, without suffix; default benchmarks/results/…, for --quick runs/claims/…")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one seed: only whether it runs")
    options(parser)
    try:
        chosen = parser.parse_args(arguments)
        if chosen.seeds < 1 or chosen.threads < 1:
            raise InputError(f"--seeds is {chosen.seeds} and --threads {chosen.threads}; accepted: 1 or more")
        torch.set_num_threads(chosen.threads)
        from transformers.utils import logging

        logging.disable_progress_bar()
        claim = build(chosen)
        named = list(claim.methods) if chosen.methods is None else chosen.methods.split(",")
        for name in named:
            if name not in claim.methods:
                raise InputError(f"--methods: '{name}' does not exist; {nearest(name, claim.methods)}")
        methods = [name for name, method in claim.methods.items() if method.always or name in named]
        output = chosen.output or ROOT / ("runs/claims" if chosen.quick else "benchmarks/results") / claim.name
        commit, modified = _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--", "src"))
        store = beside(output, ".jsonl")
        runs = run_table(claim, methods, range(1 if chosen.quick else chosen.seeds), store, commit)
        result = write_results(output, claim, facts(claim, ["python", program, *arguments], commit, modified), runs)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, and the same command continues", file=sys.stderr)
        return 130
    store.unlink()
    for piece in result["assertions"]:
        print(f"{'PASS' if piece['passed'] else 'FAIL'}  {piece['claim']}: {shown(piece)}")
    print(f"written: {', '.join(beside(output, s).name for s in ('.json', '.md', '.png'))} in {os.path.relpath(output.parent)}")
    return 0
