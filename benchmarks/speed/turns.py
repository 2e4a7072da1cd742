"""Sides that take turns: processes of one thread that live side by side, so that what else the machine does falls on all of them.

A side is a function of its case, of how many turns it takes and of what it calls after each; the first turn does not count: imports,
warm-up and caches are its own. A benchmark of such sides gives `main` its cases.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from control import ROOT, told

Turn = Callable[[], None]
PEER = "peer"
"""The name of the side that runs in an environment of its own."""


@dataclass(frozen=True)
class Case:
    """What is run."""

    algorithm: str
    hidden: int
    each: int
    """What a turn does: steps, or updates."""
    aim: float
    """How many times the peer's speed is aimed at."""
    bare: float
    """The share of the bare loop's speed that is aimed at."""


Side = Callable[[Case, int, Turn], None]


@dataclass(frozen=True)
class Benchmark:
    """Cases, and who runs them: `ours`, `bare` (the same arithmetic with nothing around it) and `peer`."""

    script: str
    doc: str
    output: Path
    cases: Mapping[str, Case]
    sides: Mapping[str, Side]
    unit: str
    """What is counted."""
    peer: str
    """The package."""
    option: str
    """That names the Python it is installed in."""
    needs: str
    """What installs it."""
    environment: str
    """The variable that does."""
    python: Path | None = None
    """Where that is if neither says."""
    few: int = 40
    """What a turn does of a quick look."""


class Running:
    """A process that takes turns."""

    def __init__(self, script: str, python: str, side: str, name: str, turns: int, each: int) -> None:
        alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [python, script, "--side", side, "--cases", name, "--repeats", str(turns), "--each", str(each)]
        self._process = subprocess.Popen(
            command, env={**os.environ, **alone}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def seconds(self) -> float:
        """CPU-seconds of its next turn."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        while not (line := process.stdout.readline()).startswith("turn "):
            if not line:
                _, said = process.communicate()
                raise RuntimeError(f"{shlex.join(map(str, process.args))} failed:\n{said[-2000:]}")
        return float(line.removeprefix("turn "))

    def end(self) -> None:
        self._process.communicate("\n")


def take_turns(side: Side, case: Case, repeats: int) -> None:
    """What a side's process does: waits, works, and says what its turn took."""
    import torch

    torch.set_num_threads(1)
    sys.stdin.readline()
    began = time.process_time()

    def turn() -> None:
        nonlocal began
        told(f"turn {time.process_time() - began}")
        sys.stdin.readline()
        began = time.process_time()

    side(case, repeats + 1, turn)


def measured(of: Benchmark, name: str, peer: str | None, repeats: int, each: int) -> dict[str, Any]:
    """Speeds of each side per CPU-second, and the ratios of turns that followed each other."""
    case = of.cases[name]
    pythons = {side: peer if side == PEER else sys.executable for side in of.sides}
    running = {side: Running(of.script, python, side, name, repeats, each) for side, python in pythons.items() if python}
    for side in running.values():
        side.seconds()
    seconds: dict[str, list[float]] = {side: [] for side in running}
    for repeat in range(repeats):
        for side in running if repeat % 2 == 0 else reversed(running):
            seconds[side].append(running[side].seconds())
    for side in running.values():
        side.end()
    found: dict[str, Any] = {side: {"per_cpu_second": spread([each / one for one in mine])} for side, mine in seconds.items()}
    for side, aim in ((PEER, case.aim), ("bare", case.bare)):
        if side in seconds:
            ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds[side], strict=True)]
            found[side] |= {"ratio": spread(ratios) | {"target": aim}, "reached": statistics.median(ratios) >= aim}
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main(of: Benchmark, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=Path(of.script).name, description=of.doc.splitlines()[0])
    parser.add_argument(
        of.option, dest="peer", help=f"Python of an environment with {of.peer} (default ${of.environment}); else it is left out"
    )
    parser.add_argument("--cases", default=",".join(of.cases))
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side that count (default %(default)s)")
    parser.add_argument("--each", type=int, help=f"{of.unit} of a turn, instead of the case's own")
    parser.add_argument("--output", type=Path, default=of.output)
    parser.add_argument("--quick", action="store_true", help=f"two turns of {of.few} {of.unit}: only whether it runs")
    parser.add_argument("--side", choices=tuple(of.sides), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.cases.split(",")) - set(of.cases):
        parser.error(f"cases {', '.join(sorted(unknown))} do not exist; accepted: {', '.join(of.cases)}")
    if chosen.side:
        take_turns(of.sides[chosen.side], replace(of.cases[chosen.cases], each=chosen.each), chosen.repeats)
        return 0
    peer = chosen.peer or os.environ.get(of.environment) or (str(of.python) if of.python and of.python.is_file() else None)
    package = of.peer.replace("-", "_")
    if peer and (
        not Path(peer).is_file() or subprocess.run([peer, "-c", f"import {package}"], capture_output=True, check=False).returncode
    ):
        told(f"'{peer}' cannot import {package}; `{of.needs}` there, or give {of.option} PYTHON")
        return 1
    cases = {}
    for name in chosen.cases.split(","):
        repeats, each = (2, of.few) if chosen.quick else (chosen.repeats, chosen.each or of.cases[name].each)
        cases[name] = found = measured(of, name, peer, repeats, each)
        told(f"{name}: {found['ours']['per_cpu_second']['median']:.0f} {of.unit} per CPU-second")
        for side in [side for side in found if side != "ours"]:
            ratio, word = found[side]["ratio"], "reached" if found[side]["reached"] else "NOT reached"
            title = of.peer if side == PEER else "a bare loop"
            told(f"{'':8s}{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] x {title}, aim {ratio['target']:.2f}: {word}")
    if not chosen.quick:
        from unipg.training.record import cpu_name, versions

        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        given = ("PYTHON" if argument == chosen.peer else argument for argument in arguments)
        result = {
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", str(Path(of.script).resolve().relative_to(ROOT)), *given]),
            "commit": head,
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": 1, "python": platform.python_version()},
            "load": os.getloadavg()[0],
            "versions": versions(),
            "repeats": chosen.repeats,
            "unit": of.unit,
            "needs": of.needs,
            "cases": cases,
        }
        chosen.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        told(f"written to {chosen.output}")
    return 0
