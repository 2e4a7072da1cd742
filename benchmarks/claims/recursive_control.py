"""N-PG-IGT and N-HARPG on CartPole with small batches, beside the plain and the normalised policy gradient and normalised momentum."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main, rounded
from recursive import Momentum
from torch import Tensor

from unipg.algorithms.control.n_pg_igt import NPGIGT
from unipg.algorithms.control.recursive import RecursiveGradient
from unipg.estimator import Progress
from unipg.estimator.directions import HessianAided, Recursive, State, Surface, Transported, decayed
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import derived_seed
from unipg.training import Trainer, TrainingRecipe
from unipg.training.observer import Observer


@dataclass(frozen=True)
class Vanilla(Recursive):
    """θ_{t+1} = θ_t − γ_t g(θ_t), γ_t = step · (2/(t+2))^(2/3): no momentum, no normalisation."""

    displaces: ClassVar[bool] = False

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Tensor:
        return self._moved(surfaces[0].gradient(), decayed(self.step, state["count"], 2 / 3), False, surfaces[0], state)


@dataclass(frozen=True)
class Moved(NPGIGT):
    """The same estimator with any direction."""

    by: Recursive = Transported()

    def direction(self) -> Recursive:
        return self.by


@dataclass(frozen=True)
class Cart:
    """Sizes of the problem."""

    iterations: int = 250
    count: int = 2
    steps: int = 50
    most: int = 200
    """Steps of an episode."""
    last: int = 25
    """Iterations of the column at the end."""


DIRECTIONS: dict[str, tuple[str, Recursive]] = {
    "vanilla-0.3": ("policy gradient, gamma_0 0.3", Vanilla(0.3)),
    "vanilla-1": ("policy gradient, gamma_0 1", Vanilla(1.0)),
    "normalised-0.3": ("normalised policy gradient, gamma_0 0.3", Transported(0.3, momentum_power=0.0)),
    "normalised-1": ("normalised policy gradient, gamma_0 1", Transported(1.0, momentum_power=0.0)),
    "momentum-0.3": ("normalised momentum, gamma_0 0.3", Momentum(0.3)),
    "igt-0.3": ("N-PG-IGT, gamma_0 0.3", Transported(0.3)),
    "igt-1": ("N-PG-IGT, gamma_0 1", Transported(1.0)),
    "harpg-0.3": ("N-HARPG, gamma_0 0.3", HessianAided(0.3)),
}


class Returns(Observer):
    """The mean return of the episodes that ended in each iteration; where none did, that of before."""

    def __init__(self, told: Told) -> None:
        self.told, self.seen = told, [0.0]

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.seen.append(metrics.get("return/mean", self.seen[-1]))
        self.told(done / total)


def trained(cart: Cart, algorithm: RecursiveGradient, seed: int, told: Told) -> dict[str, Any]:
    recipe = EnvironmentRecipe("CartPole-v1", cart.count, cart.steps, {"max_episode_steps": cart.most}, evaluation_episodes=20)
    environments = recipe.build(derived_seed(seed, "environment"))
    policy = ActorCriticRecipe([32, 32]).build(environments.observation_space, environments.action_space, seed)
    returns = Returns(told)
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingRecipe(iterations=cart.iterations, save_every=cart.iterations)
        Trainer(algorithm, policy, environments, folder=Path(folder), training=training, seed=seed, observer=returns).train()
    seen = torch.tensor(returns.seen[1:])
    kept = environments.evaluate(policy, seed)[0].metrics["return"]["value"]
    curve = {str(t): float(seen[max(0, t - 10) : t + 1].mean()) for t in range(0, len(seen), max(1, len(seen) // 25))}
    return {"score": float(seen.mean()), "last": float(seen[-cart.last :].mean()), "kept": kept, "curve": curve}


def best(runs: Runs, kind: str) -> dict[int, float]:
    """Of a method's settings, the one with the highest mean over seeds."""
    tables = [by_seed(runs, name) for name in DIRECTIONS if name.startswith(kind)]
    return max((table for table in tables if table), key=lambda table: sum(table.values()) / len(table), default={})


def checks(runs: Runs) -> list[Check | None]:
    igt, normalised, vanilla = best(runs, "igt"), best(runs, "normalised"), best(runs, "vanilla")
    same = share(by_seed(runs, "igt-0.3"), by_seed(runs, "normalised-0.3"))
    return [
        check("N-PG-IGT / normalised policy gradient, mean return of the run, best gamma_0 of each > 1.1", share(igt, normalised), _more),
        check("the same at gamma_0 0.3 (added here) > 1.1", same, _more),
        check("N-PG-IGT / policy gradient, best gamma_0 of each ≥ 0.9", share(igt, vanilla), lambda value: value >= 0.9),
    ]


def _more(value: float) -> bool:
    return value > 1.1


def share(ours: dict[int, float], theirs: dict[int, float]) -> dict[int, float]:
    """`ours` / `theirs`, by seed."""
    return {seed: rounded(value / theirs[seed]) for seed, value in ours.items() if seed in theirs}


def build(chosen: argparse.Namespace) -> Claim:
    cart = Cart(iterations=4, last=2) if chosen.quick else Cart()

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        return trained(cart, Moved(by=DIRECTIONS[method][1]), seed, told)

    return Claim(
        name="recursive-control",
        title="N-PG-IGT and N-HARPG on CartPole with small batches",
        source="arXiv 2302.01734",
        methods={name: Method(title, {"direction": direction.symbol()}) for name, (title, direction) in DIRECTIONS.items()},
        run=run,
        checks=checks,
        columns={"score": "mean return of the run", "last": f"last {cart.last} iterations", "kept": "policy that is kept, greedy"},
        about=(
            f"Returns of the policy that samples, mean over {cart.iterations} iterations of {cart.count * cart.steps} steps; episodes end "
            f"at {cart.most}. One critic for all, GAE with lambda 1, perceptrons of 32 and 32. N-HARPG takes a second batch an iteration."
        ),
        setup=dataclasses.asdict(cart),
        limits=(0, float(cart.most)),
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
