"""Every online algorithm learns at its defaults: on the demo's task it ends above where it began.

    python benchmarks/claims/defaults.py            every algorithm, written to benchmarks/results/defaults.{json,md,png}
    python benchmarks/claims/defaults.py --quick    does it run? The numbers mean nothing

Each algorithm runs as a user would run it: by its own recipe (`unipg train recipes/NAME.yaml`), and put into the demo's
(`unipg train recipes/demo.yaml algorithm=NAME`). Nothing about training is overridden but the number of iterations: what makes 20,480
rollouts, 160 at most, with schedules that end where the run does. HPT and its variants have all 160: where no rollout succeeds they
supervise, which first spreads the policy out, so that sampled answers get worse for the first 40 iterations or so before they get better.
All start from the one model of `recipes/demo-warm-start.yaml`, which is trained first where it is not there yet (a minute). The score is
how much the success rate of sampled answers to the held-out tasks grows, in their mean over 4 answers to each item; greedy answers are
measured beside it. stratified_grpo is missing: it needs tools, which this task has not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import ROOT, Check, Claim, Method, Runs, Told, by_seed, check, main

from unipg.algorithms import registered
from unipg.algorithms.base import Algorithm
from unipg.training.observer import Observer
from unipg.training.recipe import load_recipe
from unipg.training.run import run_recipe

RECIPES = ROOT / "recipes"
MODEL = ROOT / "runs" / "demo" / "warm-start"
ROLLOUTS = 20480
"""Of a run; that of a recipe with 64 prompts and 8 rollouts of each then has 40 iterations of 200."""
ITERATIONS = 160
"""At most, since those of algorithms with one rollout per prompt are many; and of algorithms that supervise where nothing succeeds."""
SAMPLED, GREEDY = "pass@1 (sampled)", "pass@1 (greedy)"
FORMS = {"recipe": "its recipe", "demo": "the demo's"}
ELSEWHERE = ("stratified_grpo",)
"""Online algorithms that this task is not for."""


def online(kind: type[Algorithm]) -> bool:
    return kind.uses_rollouts and kind.completions == "none" and kind.name not in ELSEWHERE


class Share(Observer):
    """Tells the share of the iterations that is done."""

    def __init__(self, told: Told) -> None:
        self.told = told

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.told(done / total)


def start(quick: bool) -> Path:
    """The model that all runs start from."""
    folder = ROOT / "runs" / "claims" / "warm-start" if quick else MODEL
    if not (folder / "model").is_dir():
        print("training the model that all runs start from", flush=True)
        run_recipe(load_recipe(RECIPES / "demo-warm-start.yaml", [f"output={folder}", *(["training.iterations=2"] if quick else [])]))
    return folder / "model"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained(method: str, seed: int, told: Told, model: Path, rollouts: int) -> dict[str, Any]:
    """One run of an algorithm in one of the two forms, and what came of it."""
    form, name = method.split("/")
    path, chosen = (RECIPES / f"{name}.yaml", []) if form == "recipe" else (RECIPES / "demo.yaml", [f"algorithm={name}"])
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *chosen,
            f"policy.model={model}",
            f"output={folder}/run",
            f"seed={seed}",
            "training.evaluate_every=0",
            "evaluation.samples=4",
        ]
        recipe = load_recipe(path, overrides)
        algorithm = recipe.build_algorithm()
        enough = max(1, rollouts // (recipe.training.prompts * algorithm.rollouts))
        if algorithm.counts_successes and rollouts == ROLLOUTS:  # not where it is only tried whether it runs
            enough = ITERATIONS
        iterations = min(recipe.training.iterations, ITERATIONS, enough)
        recipe = load_recipe(path, [*overrides, f"training.iterations={iterations}", f"training.save_every={iterations}"])
        run_recipe(recipe, observer=Share(told))
        rows, (first, last) = (lines(Path(folder) / "run" / name) for name in ("metrics.jsonl", "evaluations.jsonl"))
        record = json.loads((Path(folder) / "run" / "run.json").read_text(encoding="utf-8"))
    rates = {
        kind: [[result["metrics"][kind]["value"] for result in found["results"]] for found in (first, last)] for kind in (SAMPLED, GREEDY)
    }
    before, after = rates[SAMPLED]
    tenth = max(1, len(rows) // 10)
    rewards = [sum(row["reward/mean"] for row in part) / tenth for part in (rows[:tenth], rows[-tenth:])]
    return {
        "score": (sum(after) - sum(before)) / len(after),
        "before": sum(before) / len(before),
        "after": sum(after) / len(after),
        "tasks": {result["task"]: [b, a] for result, b, a in zip(first["results"], before, after, strict=True)},
        "greedy_before": sum(rates[GREEDY][0]) / len(before),
        "greedy_after": sum(rates[GREEDY][1]) / len(after),
        "reward_first": rewards[0],
        "reward_last": rewards[1],
        "iterations": iterations,
        "rate": 1e4 * record["learning_rate"]["used"],
        "entropy_last": rows[-1].get("entropy", 0.0),
        "seconds": rows[-1]["seconds"],
    }


def checks(runs: Runs) -> list[Check | None]:
    methods = dict.fromkeys(run["method"] for run in runs)
    return [check(f"{method}: held-out success grows", by_seed(runs, method), lambda gain: gain > 0) for method in methods]


def build(chosen: argparse.Namespace) -> Claim:
    model, rollouts = start(chosen.quick), 8 if chosen.quick else ROLLOUTS
    names = [name for name, kind in registered().items() if online(kind)]
    return Claim(
        "defaults",
        "Every online algorithm learns at its defaults",
        "recipes of this repository",
        {
            f"{form}/{name}": Method(f"{name}, {title}")
            for name in names
            for form, title in (("recipe", "its recipe"), ("demo", "the demo"))
        },
        lambda method, seed, told: trained(method, seed, told, model, rollouts),
        checks,
        columns={
            "score": "growth of held-out success, sampled",
            "before": "before",
            "after": "after",
            "greedy_before": "greedy, before",
            "greedy_after": "greedy, after",
            "reward_first": "reward, first tenth",
            "reward_last": "reward, last tenth",
            "rate": "learning rate, 1e-4",
            "iterations": "iterations",
        },
        about=__doc__.partition("\n\n")[2].rpartition("\n\n")[2].strip().replace("\n", " "),
        setup={"rollouts": rollouts},
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=5))
