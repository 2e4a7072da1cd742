"""HNPG on a combination lock: what a data set of someone who lapses is worth to an on-policy method, and what it is without."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from typing import Any

from control_runs import Progress, settings_of, trained
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main
from offline_runs import learned

from unipg.algorithms.base import Algorithm
from unipg.algorithms.offline.bc import BC
from unipg.algorithms.offline.hnpg import HNPG
from unipg.environments.lock import collect
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import TrainingRecipe
from unipg.training.feeds.dataset import DatasetRecipe

BATCH = 1000
"""Steps of the environment in an iteration."""
WINDOW = 20
"""Iterations that a mean return is of."""
SOLVED = 0.9
MOST = {5: 150_000, 10: 300_000}
"""Steps of the environment after which a run is given up, by the steps of the lock."""
METHODS: dict[str, tuple[str, Algorithm, int]] = {
    "hnpg": ("HNPG", HNPG(horizon=5), 5),
    "trpo": ("without the data: TRPO with critics of returns", HNPG(horizon=5, hybrid=False), 5),
    "paper": ("HNPG with the data's actions and a bound on the KL", HNPG(horizon=5, offline_actions="data", bound_kl=True), 5),
    "bc": ("behaviour cloning, its mean action", BC(), 5),
    "hnpg_10": ("HNPG, a lock of 10 steps", HNPG(horizon=10), 10),
}


class UntilSolved(Progress):
    """Ends a run once the mean return of `WINDOW` iterations is above `SOLVED`."""

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def start(self, run: Any) -> None:
        self.run = run

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        super().iteration(done, total, metrics)
        self.recent.append(metrics["return/mean"])
        if len(self.recent) == WINDOW and sum(self.recent) / WINDOW > SOLVED:
            self.run.finish("solved")


def of_windows(rows: Any) -> dict[str, Any]:
    """The mean return of the last iterations, how many steps the run took, and the mean return by steps."""
    means = [row["return/mean"] for row in rows]
    moving = [sum(some := means[max(0, at - WINDOW + 1) : at + 1]) / len(some) for at in range(len(means))]
    curve = {str(BATCH * (at + 1)): value for at, value in enumerate(moving) if (at + 1) % 5 == 0 or at + 1 == len(moving)}
    return {"score": moving[-1], "steps": BATCH * len(means), "curve": curve}


def build(options: argparse.Namespace) -> Claim:
    episodes = 100 if options.quick else 20_000

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        _, algorithm, steps = METHODS[method]
        lock = {"steps": steps, "secret": seed}
        environment = EnvironmentRecipe(
            "unipg.environments:unipg/Lock-v0", BATCH // steps, steps, lock, evaluation_episodes=10 if options.quick else 1000
        )
        if method == "bc":
            plain = ActorCriticRecipe(hidden=[64, 64], kind="gaussian")
            rows, updates = collect(episodes, 100 + seed, **lock), 20 if options.quick else 2000
            found, _ = learned(algorithm, environment, rows, updates, seed, told, controller=plain)
            return {"score": found["score"], "speed": found["speed"], "steps": 0}  # its curve counts updates, those of the others steps
        iterations = 2 if options.quick else MOST[steps] // BATCH
        data = {"path": "unipg.environments.lock:collect", "options": {"episodes": episodes, "seed": 100 + seed, **lock}}
        return trained(
            algorithm,
            environment,
            TrainingRecipe(iterations=iterations, save_every=iterations),
            seed,
            told,
            dataset=DatasetRecipe(**data) if algorithm.mixes else None,  # type: ignore[arg-type]
            watch=UntilSolved,
            more=of_windows,
        )

    def checks(runs: Runs) -> list[Check | None]:
        return [
            check("HNPG solves a lock of 5 within 150,000 steps", by_seed(runs, "hnpg"), lambda share: share > SOLVED),
            check("without the data: at most 0.12 after 150,000", by_seed(runs, "trpo"), lambda share: share <= 0.12),
            check("HNPG solves a lock of 10 within 300,000 steps", by_seed(runs, "hnpg_10"), lambda share: share > SOLVED),
        ]

    return Claim(
        name="hnpg",
        title="HNPG: with data of someone who lapses, on-policy steps find what pays at the end alone",
        source="arXiv 2311.08384",
        methods={name: Method(title, settings_of(made), cost=steps / 5) for name, (title, made, steps) in METHODS.items()},
        run=run,
        checks=checks,
        columns={"score": "return", "steps": "steps of the environment", "speed": "steps per CPU-second"},
        about=(
            f"A lock of H steps with 10 ways at each; {episodes:,} episodes of someone who knows it but for a lapse in one step of H. "
            f"{BATCH:,} steps an iteration; a run ends once the mean return of {WINDOW} iterations is above {SOLVED}, or after "
            f"{MOST[5]:,} steps (H = 10: {MOST[10]:,}). The return is that mean; of behaviour cloning, which plays no step, that of 1,000 "
            "episodes of its mean action after 2,000 updates. Most of the data's actions are right, so their mean is: where to copy is to "
            "solve the data alone are enough, and the claim is about what they are worth to a method that does not copy. Each seed has a "
            "lock, data and weights of its own."
        ),
        setup={"episodes": episodes, "batch": BATCH, "window": WINDOW, "most": {str(steps): most for steps, most in MOST.items()}},
        limits=(0.0, 1.0),
        over="steps of the environment",
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
