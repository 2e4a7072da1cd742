"""Whether collecting the next batch in another process pays (`training.overlap`): one process on one thread, on two, and two processes.

    python benchmarks/speed/overlap.py [--repeats 3] [--iterations 12] [--quick]

GRPO on a small transformer from scratch, once with rollouts as long as the update takes and once with a verifier that is slow, as a code
sandbox is. Runs of the three ways take turns; an iteration's wall seconds are those between two rows of metrics, the first two left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "benchmarks" / "results" / "speed-overlap.json"
WAYS = {"one thread": (1, False), "two threads": (2, False), "overlap, one thread each": (1, True)}
CASES = {"verifier that takes no time": 0.0, "verifier that takes 5 ms an answer": 0.005}
FIRST = 2
"""Iterations that do not count: the start of the other process, allocations."""


def slow(answer: str, item: Any) -> float:
    """A verifier: the share of vowels, after `UNIPG_SLOW` seconds of waiting."""
    time.sleep(float(os.environ["UNIPG_SLOW"]))
    return sum(c in "aeiou" for c in answer) / max(1, len(answer))


def recipe(folder: Path, iterations: int, threads: int, overlap: bool) -> dict[str, Any]:
    return {
        "algorithm": "grpo",
        "output": str(folder),
        "threads": threads,
        "policy": {
            "scratch": {"architecture": "qwen3", "hidden_size": 128, "layers": 2, "heads": 4, "intermediate_size": 384, "vocabulary": 340}
        },
        "task": {"data": {"source": str(folder.parent / "prompts.jsonl"), "prompt": "prompt", "verifier": "overlap:slow"}},
        "rollouts": {"max_new_tokens": 32},
        "evaluation": {"items": 1},
        "training": {"iterations": iterations, "prompts": 16, "save_every": iterations, "overlap": overlap},
    }


def run(iterations: int, threads: int, overlap: bool, seconds: float) -> dict[str, float]:
    """Median wall seconds of an iteration, and CPU-seconds of all processes in an iteration."""
    import yaml

    with tempfile.TemporaryDirectory() as scratch:
        words = "".join(json.dumps({"prompt": f"a word of {i % 9 + 1} letters, number {i}:"}) + "\n" for i in range(500))
        Path(scratch, "prompts.jsonl").write_text(words, encoding="utf-8")
        path = Path(scratch, "recipe.yaml")
        path.write_text(yaml.safe_dump(recipe(Path(scratch, "run"), iterations, threads, overlap)), encoding="utf-8")
        alone = {"OMP_NUM_THREADS": str(threads), "UNIPG_SLOW": str(seconds), "PYTHONPATH": str(Path(__file__).parent)}
        before = os.times()
        command = [sys.executable, "-m", "unipg.cli", "train", str(path)]
        done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
        after = os.times()
        rows = [json.loads(line) for line in Path(scratch, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    took = [b["seconds"] - a["seconds"] for a, b in zip(rows[FIRST - 1 :], rows[FIRST:], strict=False)]
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": statistics.median(took), "cpu": cpu / iterations}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="one repeat of four iterations: only whether it runs")
    chosen = parser.parse_args(arguments)

    from unipg.training.record import cpu_name, versions

    repeats, iterations = (1, 4) if chosen.quick else (chosen.repeats, chosen.iterations)
    found: dict[str, dict[str, list[dict[str, float]]]] = {case: {way: [] for way in WAYS} for case in CASES}
    for repeat in range(repeats):
        for case, seconds in CASES.items():
            for way in list(WAYS) if repeat % 2 == 0 else reversed(WAYS):
                found[case][way].append(run(iterations, *WAYS[way], seconds))
                print(f"{case}  {way:26s} {found[case][way][-1]['wall']:.3f} s of wall time an iteration", flush=True)
    result = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": versions(),
        "repeats": repeats,
        "iterations": iterations,
        "cases": {
            case: {way: {"wall": [r["wall"] for r in runs], "cpu": [r["cpu"] for r in runs]} for way, runs in ways.items()}
            for case, ways in found.items()
        },
    }
    chosen.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
