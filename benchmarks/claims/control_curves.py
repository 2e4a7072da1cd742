"""Learning curves beside Stable-Baselines3 at its defaults: PPO, TRPO and A2C on an inverted double pendulum; `--part replay`: SAC and TD3
on a pendulum, DQN on a cart pole."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from control_runs import LAST, overlap, peers_python, sb3, trained
from harness import Check, Claim, Method, Runs, Told, main

from unipg.algorithms.base import Algorithm
from unipg.algorithms.control.a2c import A2C
from unipg.algorithms.control.dqn import DQN
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.control.sac import SAC
from unipg.algorithms.control.td3 import TD3
from unipg.algorithms.control.trpo import TRPO
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import TrainingRecipe
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.optimization import OptimizerRecipe


@dataclass(frozen=True)
class Case:
    """An algorithm at the defaults of Stable-Baselines3, whose networks and learning rates ours has by default too; one environment."""

    algorithm: Algorithm
    environment: str
    steps: int
    window: int
    epochs: int = 1
    minibatches: int = 1
    optimizer: OptimizerRecipe | None = None
    replay: ReplayRecipe | None = None
    cost: tuple[float, float] = (1.0, 2.0)
    """Of a run of ours, and of theirs."""


ON_POLICY: dict[str, Any] = {"environment": "InvertedDoublePendulum-v5", "steps": 49 * 2048}
PENDULUM: dict[str, Any] = {"environment": "Pendulum-v1", "steps": 10_000, "window": 200, "cost": (100.0, 140.0)}
PARTS = {
    "rollouts": {
        # ½ (V − target)² times 1 is their square times 0.5
        "ppo": Case(
            PPO(gamma=0.99, value_weight=1.0),
            window=2048,
            epochs=10,
            minibatches=32,
            optimizer=OptimizerRecipe(learning_rate=3e-4, eps=1e-5, clip_norm=0.5),
            **ON_POLICY,
        ),
        "trpo": Case(TRPO(), window=2048, **ON_POLICY),
        "a2c": Case(A2C(), window=5, cost=(3.0, 3.0), **ON_POLICY),
    },
    "replay": {
        "sac": Case(SAC(), replay=ReplayRecipe(batch=256, warmup=100), **PENDULUM),
        "td3": Case(TD3(), replay=ReplayRecipe(batch=256, warmup=100), **PENDULUM),
        "dqn": Case(DQN(), "CartPole-v1", 50_000, 500, replay=ReplayRecipe(batch=64, warmup=100), cost=(20.0, 40.0)),
    },
}


def run(case: Case, steps: int, seed: int, told: Told) -> dict[str, Any]:
    iterations = max(1, steps // case.window)
    training = TrainingRecipe(iterations=iterations, epochs=case.epochs, minibatches=case.minibatches, save_every=iterations)
    # as theirs, replayed environments are stepped as they are
    environment = EnvironmentRecipe(case.environment, 1, case.window, vectorized=None if case.replay is None else False)
    return trained(case.algorithm, environment, training, seed, told, optimizer=case.optimizer, replay=case.replay)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=tuple(PARTS), default="rollouts", help="whether transitions are kept")
    parser.add_argument(
        "--peers", help="Python of an environment with stable-baselines3 and sb3-contrib ($UNIPG_PEERS_PYTHON, .venv-peers)"
    )


def build(chosen: argparse.Namespace) -> Claim:
    python, cases = peers_python(chosen.peers), PARTS[chosen.part]
    lengths = {name: 4 * case.window if chosen.quick else case.steps for name, case in cases.items()}
    names = ", ".join(name.upper() for name in cases)
    methods = {}
    for name, case in cases.items():
        setting = {"parts": case.algorithm.name, "window": case.window, "epochs": case.epochs, "minibatches": case.minibatches}
        methods[name] = Method(f"{name.upper()}, unipg", setting, cost=case.cost[0])
        methods[f"{name}-sb3"] = Method(f"{name.upper()}, Stable-Baselines3", cost=case.cost[1])

    def one(method: str, seed: int, told: Told) -> dict[str, Any]:
        name, _, side = method.partition("-")
        case, steps = cases[name], lengths[name]
        return sb3(python, name, case.environment, steps, seed) if side else run(case, steps, seed, told)

    def checks(runs: Runs) -> list[Check | None]:
        what = {"score": "return over the run", "last": "return at its end"}
        return [
            overlap(runs, name, f"{name}-sb3", number, f"{name.upper()}: {words}, unipg − Stable-Baselines3: intervals overlap")
            for name in cases
            for number, words in what.items()
        ]

    where = {f"{case.environment}, {lengths[name]:,} steps": None for name, case in cases.items()}
    return Claim(
        name="control_curves" if chosen.part == "rollouts" else f"control_curves-{chosen.part}",
        title=f"{names} learn as Stable-Baselines3's do",
        source="Stable-Baselines3 and its contrib, at their defaults",
        methods=methods,
        run=one,
        checks=checks,
        columns={"score": "return over the run", "last": f"in its last {LAST:.0%}", "speed": "steps per CPU-second"},
        about=(
            f"{'; '.join(where)} of one environment, undiscounted returns of the episodes of training. Over the run: the mean over its "
            "steps. "
            + ("TD3 explores with noise of 0.1 on both sides, DQN has batches of 64. " if chosen.part == "replay" else "")
            + "Steps per CPU-second are of training, on a machine that others use too."
        ),
        setup={"part": chosen.part, "steps": lengths},
        over="steps",
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options, seeds=5))
