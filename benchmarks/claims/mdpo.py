"""MDPO on policy, on an inverted double pendulum, and off policy, on a pendulum: what several steps and the weight of the KL decide."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

from control_runs import LAST, overlap, ratio, settings_of, trained
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main

from unipg.algorithms.base import Algorithm, Setting
from unipg.algorithms.control.mdpo import MDPO
from unipg.algorithms.control.mdpo_off_policy import OffPolicyMDPO
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.control.sac import SAC
from unipg.algorithms.learners import Learner
from unipg.estimator import GAE, OldPolicy, PolicyGradient, RatioClip
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import TrainingRecipe
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.optimization import OptimizerRecipe

WINDOW = 2048
SOURCE = "arXiv 2005.09814"
LOST = -400.0
"""Below this a pendulum is not held up; an untrained policy has about −1,200."""


@dataclass(frozen=True)
class WholeBatchPPO(MDPO):
    """MDPO with PPO's clip in the place of the KL: the same steps, all of the batch each time, and the same critic."""

    clip: float = 0.2

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        policy, critic = super().learners(setting)
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage)
        clipped = PolicyGradient(mask=RatioClip(self.clip, self.clip), reference=OldPolicy(), advantage=gae)
        return replace(policy, objective=clipped), critic


ON_POLICY: dict[str, tuple[str, Algorithm]] = {
    "mdpo-10": ("MDPO, m = 10", MDPO()),
    "mdpo-1": ("MDPO, m = 1", MDPO(steps=1)),
    "ppo-whole": ("PPO, 10 steps on the whole batch", WholeBatchPPO(step_size=None)),
    "ppo": ("PPO, 10 epochs of 32 minibatches", PPO(gamma=0.99, value_weight=1.0)),
}
OFF_POLICY: dict[str, tuple[str, Algorithm]] = {
    "mdpo-0.2": ("MDPO, c = 0.2", OffPolicyMDPO(kl=0.2)),
    "mdpo-1": ("MDPO, c = 1", OffPolicyMDPO(kl=1.0)),
    "sac": ("SAC, alpha = 0.2", SAC(temperature=0.2)),
}


def on_policy(steps: int) -> Claim:
    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        algorithm = ON_POLICY[method][1]
        usual = method == "ppo"
        iterations = steps // WINDOW
        training = TrainingRecipe(iterations=iterations, epochs=10 if usual else 1, minibatches=32 if usual else 1, save_every=iterations)
        optimizer = OptimizerRecipe(learning_rate=3e-4, eps=1e-5, clip_norm=0.5) if usual else None
        environment = EnvironmentRecipe("InvertedDoublePendulum-v5", 1, WINDOW)
        controller = ActorCriticRecipe(normalize_observations=True)
        return trained(algorithm, environment, training, seed, told, controller=controller, optimizer=optimizer)

    def checks(runs: Runs) -> list[Check | None]:
        ten, one, whole = (by_seed(runs, name, "last") for name in ("mdpo-10", "mdpo-1", "ppo-whole"))
        return [
            check(f"m = 10 / m = 1, last {LAST:.0%} of the steps > 1.5", ratio(ten, one), lambda value: value > 1.5),
            check(f"m = 10 / PPO on the whole batch, last {LAST:.0%} ≥ 1", ratio(ten, whole), lambda value: value >= 1),
        ]

    return Claim(
        name="mdpo",
        title="MDPO on policy: ten steps on a batch against one, and against PPO's clip",
        source=SOURCE,
        methods={name: Method(title, settings_of(algorithm)) for name, (title, algorithm) in ON_POLICY.items()},
        run=run,
        checks=checks,
        columns={"last": f"return in the last {LAST:.0%} of the steps", "score": "over the run"},
        about=(
            f"InvertedDoublePendulum-v5, {steps:,} steps of one environment, {WINDOW:,} an iteration; observations normalised, "
            "64-64 tanh networks, Adam at 3e-4. PPO on the whole batch differs from MDPO in the clip alone. Returns of training episodes."
        ),
        setup={"steps": steps},
        over="steps",
    )


def off_policy(steps: int) -> Claim:
    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        algorithm = OFF_POLICY[method][1]
        training = TrainingRecipe(iterations=steps // 1000, save_every=steps // 1000)
        return trained(
            algorithm,
            EnvironmentRecipe("Pendulum-v1", 1, 1000),
            training,
            seed,
            told,
            controller=ActorCriticRecipe(hidden=[64, 64]),
            replay=ReplayRecipe(batch=256, warmup=1000, updates_per_step=1.0),
        )

    def checks(runs: Runs) -> list[Check | None]:
        held = by_seed(runs, "mdpo-1", "last")
        return [
            overlap(runs, "mdpo-0.2", "sac", "last", "c = lambda = 0.2, return at the end − SAC's: intervals overlap"),
            overlap(runs, "mdpo-0.2", "sac", "score", "c = lambda = 0.2, return over the run − SAC's: intervals overlap"),
            check(f"c = 1, return at the end > {LOST:g}: no collapse", held, lambda value: value > LOST),
        ]

    return Claim(
        name="mdpo-off_policy",
        title="MDPO off policy: soft actor-critic at c = lambda, and away from it",
        source=SOURCE,
        methods={name: Method(title, settings_of(algorithm)) for name, (title, algorithm) in OFF_POLICY.items()},
        run=run,
        checks=checks,
        columns={"last": f"return in the last {LAST:.0%} of the steps", "score": "over the run"},
        about=(
            f"Pendulum-v1, {steps:,} steps of one environment, the first 1,000 uniform, an update of 256 transitions after all "
            "others; 64-64 ReLU networks, Adam at 3e-4, lambda = 0.2, m = 1,000. Returns of training episodes."
        ),
        setup={"steps": steps},
        over="steps",
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("on_policy", "off_policy"), default="on_policy", help="of the claim (default %(default)s)")


def build(chosen: argparse.Namespace) -> Claim:
    if chosen.part == "on_policy":
        return on_policy(4 * WINDOW if chosen.quick else 49 * WINDOW)
    return off_policy(2000 if chosen.quick else 10_000)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options))
