"""GRPO steps of unipg, of TRL's trainer and of a plain Hugging Face loop, side by side: first equal, then timed.

Each side runs in a process of its own, on one thread, from the same weights, prompts, lengths and rewards. Before anything is timed, every
side takes one SGD step on the same completions, and the weights must agree to 1e-6. Each side then runs at the fastest of a few settings,
and steps of the sides alternate.
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
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from work import Order, Work, build

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
OUTPUT = ROOT / "benchmarks" / "results" / "speed-language.json"
EQUAL = 1e-6
TRIALS, NEAR = 3, 1.05
"""Steps at each setting that is tried, and how near to the fastest counts as equal."""
LOSES = 1.05
"""A plan that takes this much longer than the best is a loser."""
SIDES = {
    "ours": ("our_side.py", "unipg"),
    "trl": ("trl_side.py", "TRL GRPOTrainer"),
    "plain": ("plain_loop.py", "plain Hugging Face loop"),
}
Setting = dict[str, Any]


def works(quick: bool) -> dict[str, Work]:
    """The GRPO steps, by name."""
    skewed: Setting = {"prompts": 5, "prompt_tokens": 256, "mean_tokens": 20, "longest": 128, "skewed": True}
    found = [
        Work(
            "uniform",
            "Whole step, uniform short lengths",
            "Generation and update. Prompts and completions of 32 tokens, so packing gains nothing and sharing prompts a little.",
            targets={"time": 1.5, "memory": 0.5},
        ),
        Work(
            "brief",
            "The same with prompts of 8 tokens",
            "Generation and update. There is next to no prompt to share and no padding to leave out: what is left is generation.",
            prompt_tokens=8,
            targets={"time": 1.5, "memory": 0.5},
        ),
        Work(
            "skewed",
            "Whole step, skewed lengths after a long prompt",
            "Generation and update. Prompts of 256 tokens, groups of 8, log-normal completion lengths up to 128.",
            targets={"time": 3.0, "memory": 0.5},
            **skewed,
        ),
        Work(
            "dead",
            "Update alone, 60 % of rows without advantage",
            "As above, but completions are given, and in three of five groups all rewards are equal.",
            measured="update",
            dead=3,
            targets={"time": 5.0, "memory": 0.5},
            **skewed,
        ),
        Work(
            "generation",
            "Generation alone",
            "512 rows in 64 slots, prompts of 16 tokens, log-normal lengths up to 64: finished rows make room for waiting ones.",
            measured="rollout",
            prompts=64,
            prompt_tokens=16,
            mean_tokens=12,
            longest=64,
            skewed=True,
            slots=64,
        ),
    ]
    if quick:
        found = [
            replace(w, hidden=64, layers=2, prompt_tokens=w.prompt_tokens // 4, longest=16, mean_tokens=6, prompts=min(w.prompts, 16))
            for w in found
        ]
    return {w.name: w for w in found}


def shapes(quick: bool) -> dict[str, Work]:
    """Updates in which some plan loses."""
    found = [
        Work("short-prompts", "short prompts, long completions", "loses with shared prompts", prompts=2, prompt_tokens=32, longest=128),
        Work("uniform", "uniform lengths, no groups", "gains nothing by packing", prompts=16, rollouts=1, prompt_tokens=4, longest=64),
        Work("tiny", "two-token prompts, 16-token completions", "little to share", prompt_tokens=2, longest=16),
        Work("pairs", "pairs, prompts of 64, completions of 32", "shared by two", rollouts=2, prompt_tokens=64, longest=32),
        Work(
            "skewed",
            "skewed lengths, short prompts",
            "gains by packing",
            prompts=4,
            prompt_tokens=8,
            mean_tokens=20,
            longest=128,
            skewed=True,
        ),
        Work("long-prompts", "prompts of 256, completions of 32", "gains by sharing", prompts=2, prompt_tokens=256, longest=32),
    ]
    if quick:
        found = [replace(w, hidden=64, layers=2) for w in found[:1]]
    return {w.name: w for w in found}


def candidates(side: str, work: Work, quick: bool) -> list[Setting]:
    """Settings that each side is tried at; the fastest is taken."""
    if quick:
        return [{} if side == "ours" else {"rows": 8}]
    if side == "ours":
        return [{"micro_batch_tokens": tokens} for tokens in (16384, 1024, 768, 512)]
    if side == "trl":
        return [{"rows": work.rows}, {"rows": 8}, {"rows": 8, "gradient_checkpointing": True}]
    return [{"rows": work.rows}, {"rows": 8}]


# ---------------------------------------------------------------------------------------------------------------------- processes


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }


class Failed(RuntimeError):
    """A side ended before it answered."""


class Process:
    """A side that does one step whenever it is asked."""

    def __init__(self, python: str, script: str, order: Order) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self.running = subprocess.Popen(
            [python, str(HERE / script), order.written()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(),
        )

    def step(self) -> dict[str, Any]:
        assert self.running.stdin is not None
        assert self.running.stdout is not None
        try:
            self.running.stdin.write("go\n")
            self.running.stdin.flush()
            found: dict[str, Any] = json.loads(self.running.stdout.readline())
        except (OSError, ValueError):
            raise Failed(self.said()) from None
        return found

    def said(self) -> str:
        """The last line of its errors."""
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def finish(self) -> None:
        """Waits for a side that is not asked for steps, or ends one that waits."""
        assert self.running.stdin is not None
        self.running.stdin.close()
        if self.running.wait() != 0:
            raise Failed(self.said())


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "each": list(values)}


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------- cases


class Bench:
    """How everything is run: interpreters of the sides, repeats, and a folder for weights."""

    def __init__(self, pythons: dict[str, str], repeats: int, folder: Path, quick: bool) -> None:
        self.pythons, self.repeats, self.folder, self.quick = pythons, repeats, folder, quick

    def order(self, work: Work, setting: Setting, proof: str = "") -> Order:
        weights = self.folder / f"{work.hidden}-{work.layers}-{work.vocabulary}"
        if not weights.is_dir():
            build(work, weights)
        return Order(work, str(weights), setting, proof)

    def start(self, side: str, work: Work, setting: Setting) -> Process:
        return Process(self.pythons[side], SIDES[side][0], self.order(work, setting))

    def fastest(self, side: str, work: Work) -> tuple[Setting, list[dict[str, Any]]]:
        """Of the candidates, whose steps take turns; and what each took. Of those within `NEAR` of the fastest, the one that needs least
        memory."""
        settings = candidates(side, work, self.quick)
        if len(settings) == 1:
            return settings[0], []
        processes = [self.start(side, work, setting) for setting in settings]
        steps = [[process.step() for process in processes] for _ in range(1 + TRIALS)][1:]
        for process in processes:
            process.finish()
        tried = [
            {"setting": setting, "cpu": min(s[clock(work)] for s in mine), "peak_mb": mine[-1]["peak_mb"]}
            for setting, mine in zip(settings, zip(*steps, strict=True), strict=True)
        ]
        best = min(t["cpu"] for t in tried)
        chosen = min((t for t in tried if t["cpu"] <= NEAR * best), key=lambda t: t["peak_mb"])
        return chosen["setting"], tried

    def proof(self, work: Work, settings: dict[str, Setting]) -> dict[str, dict[str, Any]]:
        """How far one SGD step on the same completions leaves each peer's weights from ours."""
        import torch
        from safetensors.torch import load_file

        weights = {}
        for side, setting in settings.items():
            path = self.folder / f"{side}.pt"
            process = Process(self.pythons[side], SIDES[side][0], self.order(work, setting, str(path)))
            process.finish()
            weights[side] = torch.load(path)
        start = load_file(Path(self.order(work, {}).folder) / "model.safetensors")
        largest = max(float(v.abs().max()) for v in start.values())
        moved = max(float((weights["ours"][n] - v).abs().max()) for n, v in start.items())
        found = {}
        for side in settings:
            if side != "ours":
                apart = max(float((weights["ours"][n] - weights[side][n]).abs().max()) for n in start)
                found[side] = {
                    "difference": apart / largest,
                    "of_step": apart / moved,
                    "moved": moved / largest,
                    "equal": apart <= EQUAL * largest,
                }
        return found

    def side_by_side(self, work: Work, tuned: dict[str, tuple[Setting, list[dict[str, Any]]]]) -> dict[str, Any]:
        """One case: equality, then steps that alternate."""
        sides = [s for s in self.pythons if not (work.measured == "rollout" and s == "trl")]
        if work.measured == "rollout":
            tuned = {s: ({}, []) for s in sides}
        for side in sides:
            if side not in tuned:
                told(f"  settings of {SIDES[side][1]} …")
                tuned[side] = self.fastest(side, work)
        settings = {s: tuned[s][0] for s in sides}
        told("  one SGD step on the same completions …")
        equality = {} if work.measured == "rollout" else self.proof(work, settings)
        told("  timed steps …")
        processes = {s: self.start(s, work, settings[s]) for s in sides}
        for process in processes.values():
            process.step()
        rows: dict[str, list[dict[str, Any]]] = {s: [] for s in sides}
        for repeat in range(self.repeats):
            for s in sides[repeat % len(sides) :] + sides[: repeat % len(sides)]:
                rows[s].append(processes[s].step())
        for process in processes.values():
            process.finish()
        found = {}
        for side, steps in rows.items():
            found[side] = {
                "title": SIDES[side][1],
                "setting": settings[side],
                "tried": tuned[side][1],
                "peak_mb": max(s["peak_mb"] for s in steps),
                "base_mb": steps[0]["base_mb"],
                **{name: summary([s[name] for s in steps]) for name in ("cpu", "wall", "rollout", "update")},
            }
        return {
            "title": work.title,
            "about": work.about,
            "clock": clock(work),
            "work": {**asdict(work), "completion_tokens": sum(work.lengths())},
            "sides": found,
            "equality": equality,
            "verdicts": verdicts(work, found),
        }

    def layouts(self) -> list[dict[str, Any]]:
        """The planner's choice beside each forced one."""
        found = []
        for work in shapes(self.quick).values():
            process = self.start("ours", replace(work, measured="layouts"), {})
            process.step()
            rows = [process.step() for _ in range(self.repeats)]
            process.finish()
            ways = {name: summary([r[name] for r in rows]) for name in rows[0]["ways"]}
            best = min((name for name in ways if name != "planned"), key=lambda name: ways[name]["median"])
            chosen, difference = rows[0]["chosen"], rows[0]["difference"]
            cost = ways[chosen]["median"] / ways[best]["median"]
            found.append(
                {"title": work.title, "about": work.about, "work": asdict(work), "ways": ways, "tokens": rows[0]["tokens"]}
                | {"chosen": chosen, "best": best, "cost": cost, "loses": cost > LOSES, "difference": difference}
            )
        return found

    def skipping(self, work: Work, setting: Setting) -> list[dict[str, Any]]:
        """Rows without advantage left out or kept, without and with a KL term that touches them."""
        variants = {
            f"{'KL term' if kl else 'no KL term'}, {'all rows kept' if keep else 'skipping'}": {**setting, "kl": kl, "keep_all": keep}
            for kl in (0.0, 0.04)
            for keep in ((False,) if self.quick else (False, True))
        }
        processes = {name: self.start("ours", work, variant) for name, variant in variants.items()}
        for process in processes.values():
            process.step()
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
        for _ in range(self.repeats):
            for name, process in processes.items():
                rows[name].append(process.step())
        for process in processes.values():
            process.finish()
        return [
            {"title": name, "active": steps[0]["active"], "update": summary([s["update"] for s in steps])} for name, steps in rows.items()
        ]

    def projection(self) -> dict[str, Any]:
        """Time and memory of the vocabulary projection; a process for each measurement, so that its peak is its own."""
        sizes = (256, 2048, 64) if self.quick else (4096, 32768, 256)
        pythons = dict.fromkeys(("full", "ours") if self.quick else ("full", "selective", "ours", "ours_entropy"), self.pythons["ours"])
        if "trl" in self.pythons and not self.quick:
            pythons["trl"] = self.pythons["trl"]

        def run(what: str, way: str) -> dict[str, Any]:
            done = subprocess.run(
                [pythons[way], str(HERE / "projection_side.py"), what, way, *map(str, sizes)],
                capture_output=True,
                text=True,
                env=environment(),
            )
            if done.returncode:
                raise Failed((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
            answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return answer

        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in pythons}
        for _ in range(self.repeats):
            for way, steps in rows.items():
                steps.append(run("measure", way))
        ways = {
            way: {name: summary([s[name] for s in steps]) for name in ("cpu", "wall", "extra_mb")}
            | {"difference": 0.0 if way == "full" else run("difference", way)["difference"]}
            for way, steps in rows.items()
        }
        slower = ways["ours"]["cpu"]["median"] / ways["full"]["cpu"]["median"]
        extra = ways["ours"]["extra_mb"]["median"] / 1e3
        return {
            "tokens": sizes[0],
            "vocabulary": sizes[1],
            "hidden": sizes[2],
            "ways": ways,
            "verdicts": [
                {"what": "time beside the full log-softmax", "target": 1.4, "value": slower, "reached": slower <= 1.4},
                {"what": "extra memory in GB", "target": 0.25, "value": extra, "reached": extra <= 0.25},
            ],
        }


def clock(work: Work) -> str:
    """Which time counts."""
    return {"step": "cpu", "update": "update", "rollout": "rollout"}[work.measured]


def verdicts(work: Work, sides: dict[str, Any]) -> list[dict[str, Any]]:
    """The targets against TRL, with what was found."""
    if "trl" not in sides or not work.targets:
        return []
    ours, trl, name = sides["ours"], sides["trl"], clock(work)
    faster, memory = trl[name]["median"] / ours[name]["median"], ours["peak_mb"] / trl["peak_mb"]
    added = (ours["peak_mb"] - ours["base_mb"]) / (trl["peak_mb"] - trl["base_mb"])
    return [
        {"what": "times faster than TRL", "target": work.targets["time"], "value": faster, "reached": faster >= work.targets["time"]},
        {
            "what": "share of TRL's peak memory",
            "target": work.targets["memory"],
            "value": memory,
            "reached": memory <= work.targets["memory"],
        }
        | {"without_start": added},
    ]


# ---------------------------------------------------------------------------------------------------------------------- what ran


def facts(pythons: dict[str, str], command: Sequence[str], repeats: int, quick: bool) -> dict[str, Any]:
    """Commit, machine, versions and command."""
    from unipg.training.record import cpu_name, versions

    named: dict[str, dict[str, str]] = {"ours": versions()}
    if "trl" in pythons:
        ask = "import importlib.metadata as m,json;print(json.dumps({n:m.version(n) for n in ('trl','transformers','torch','accelerate')}))"
        named["trl"] = json.loads(subprocess.run([pythons["trl"], "-c", ask], capture_output=True, text=True, check=True).stdout)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "library_modified": bool(_git("status", "--porcelain", "--", "src")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": 1,
            "system": platform.system(),
            "load_before": os.getloadavg()[0],
        },
        "versions": named,
        "repeats": repeats,
        "quick": quick,
    }


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def peers_python(given: str | None) -> str | None:
    """The interpreter of the peers' environment; None, with a line that says so, where there is none with TRL in it."""
    python = given or os.environ.get("UNIPG_PEERS_PYTHON") or str(ROOT / ".venv-peers" / "bin" / "python")
    try:
        done = subprocess.run([python, "-c", "import trl; print(trl.__version__)"], capture_output=True, text=True, env=environment())
    except OSError:
        told(f"TRL is left out: there is no '{python}'; `make bench` sets it up, or give --peers PYTHON")
        return None
    if done.returncode:
        told(f"TRL is left out: '{python}' cannot import trl; `make bench` sets it up, or give --peers PYTHON")
        return None
    return python


CASES = ("uniform", "brief", "skewed", "dead", "generation", "layouts", "skipping", "projection")


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 whichever way the numbers fall, 1 where a step is not equal or a side fails, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="benchmarks/speed/language.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", help="Python of an environment with trl (default $UNIPG_PEERS_PYTHON, then .venv-peers)")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated (default %(default)s)")
    parser.add_argument("--repeats", type=int, help="timed steps of each side (default 5; 1 with --quick)")
    parser.add_argument("--output", type=Path, help="default benchmarks/results/speed-language.json, with --quick runs/speed-language.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only whether it runs; the numbers mean nothing")
    chosen = parser.parse_args(arguments)
    cases = chosen.cases.split(",")
    unknown = [c for c in cases if c not in CASES]
    repeats = chosen.repeats if chosen.repeats is not None else 1 if chosen.quick else 5
    if unknown or repeats < 1:
        told(f"--cases is {chosen.cases} and --repeats {repeats}; accepted: of {', '.join(CASES)}, and 1 or more")
        return 2
    python = peers_python(chosen.peers)
    pythons = {"ours": sys.executable, **({"trl": python} if python else {}), "plain": sys.executable}
    output = chosen.output or (ROOT / "runs" / OUTPUT.name if chosen.quick else OUTPUT)
    result: dict[str, Any] = facts(pythons, ["python", "benchmarks/speed/language.py", *arguments], repeats, chosen.quick)
    result["cases"] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(pythons, repeats, Path(folder), chosen.quick)
            tuned: dict[str, tuple[Setting, list[dict[str, Any]]]] = {}  # both skewed cases have the same shapes, so the same settings
            for name, work in works(chosen.quick).items():
                if name in cases:
                    told(f"{work.title}:")
                    result["cases"][name] = bench.side_by_side(work, tuned if name in ("skewed", "dead") else {})
            if "layouts" in cases:
                told("layouts …")
                result["layouts"] = bench.layouts()
            if "skipping" in cases:
                told("skipping …")
                result["skipping"] = bench.skipping(works(chosen.quick)["dead"], tuned.get("ours", ({}, []))[0])
            if "projection" in cases:
                told("vocabulary projection …")
                result["projection"] = bench.projection()
    except Failed as error:
        told(f"benchmarks/speed/language.py: a side failed: {error}")
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {os.path.relpath(output)}")
    apart = [f"{name}, {side}" for name, case in result["cases"].items() for side, e in case["equality"].items() if not e["equal"]]
    if apart:
        told(f"one SGD step gave other weights (more than {EQUAL} apart): {'; '.join(apart)}")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
