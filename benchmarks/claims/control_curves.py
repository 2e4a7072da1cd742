"""PPO, TRPO and A2C beside Stable-Baselines3 at its defaults: learning curves on an inverted double pendulum."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from control_runs import LAST, overlap, peers_python, sb3, trained
from harness import Check, Claim, Method, Runs, Told, main

from unipg.algorithms.base import Algorithm
from unipg.algorithms.control.a2c import A2C
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.control.trpo import TRPO
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import TrainingRecipe
from unipg.training.optimization import OptimizerRecipe

ENVIRONMENT = "InvertedDoublePendulum-v5"


@dataclass(frozen=True)
class Case:
    """An algorithm at the defaults of Stable-Baselines3: one environment, separate 64-64 tanh networks."""

    algorithm: Algorithm
    window: int
    epochs: int = 1
    minibatches: int = 1
    optimizer: OptimizerRecipe | None = None


CASES = {
    # ½ (V − target)² times 1 is their square times 0.5
    "ppo": Case(PPO(gamma=0.99, value_weight=1.0), 2048, 10, 32, OptimizerRecipe(learning_rate=3e-4, eps=1e-5, clip_norm=0.5)),
    "trpo": Case(TRPO(), 2048),
    "a2c": Case(A2C(), 5),
}


def run(case: Case, steps: int, seed: int, told: Told) -> dict[str, Any]:
    iterations = max(1, steps // case.window)
    training = TrainingRecipe(iterations=iterations, epochs=case.epochs, minibatches=case.minibatches, save_every=iterations)
    return trained(case.algorithm, EnvironmentRecipe(ENVIRONMENT, 1, case.window), training, seed, told, optimizer=case.optimizer)


def checks(runs: Runs) -> list[Check | None]:
    what = {"score": "return over the run", "last": "return at its end"}
    return [
        overlap(runs, name, f"{name}-sb3", number, f"{name.upper()}: {words}, unipg − Stable-Baselines3: intervals overlap")
        for name in CASES
        for number, words in what.items()
    ]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--peers", help="Python of an environment with stable-baselines3 and sb3-contrib ($UNIPG_PEERS_PYTHON, .venv-peers)"
    )


def build(chosen: argparse.Namespace) -> Claim:
    python = peers_python(chosen.peers)
    steps = 4096 if chosen.quick else 49 * 2048
    methods = {}
    for name, case in CASES.items():
        setting = {"parts": case.algorithm.name, "window": case.window, "epochs": case.epochs, "minibatches": case.minibatches}
        methods[name] = Method(f"{name.upper()}, unipg", setting, cost=3.0 if name == "a2c" else 1.0)
        methods[f"{name}-sb3"] = Method(f"{name.upper()}, Stable-Baselines3", cost=3.0 if name == "a2c" else 2.0)

    def one(method: str, seed: int, told: Told) -> dict[str, Any]:
        name, _, side = method.partition("-")
        return sb3(python, name, ENVIRONMENT, steps, seed) if side else run(CASES[name], steps, seed, told)

    return Claim(
        name="control_curves",
        title="PPO, TRPO and A2C learn as Stable-Baselines3's do",
        source="Stable-Baselines3 and its contrib, at their defaults",
        methods=methods,
        run=one,
        checks=checks,
        columns={"score": "return over the run", "last": f"in its last {LAST:.0%}", "speed": "steps per CPU-second"},
        about=(
            f"{ENVIRONMENT}, {steps:,} steps of one environment, undiscounted returns of the episodes of training. Over the run: the mean "
            "over its steps. Steps per CPU-second are of training, on a machine that others use too."
        ),
        setup={"environment": ENVIRONMENT, "steps": steps},
        over="steps",
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options, seeds=5))
