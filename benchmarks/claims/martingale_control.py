"""PPO on a pendulum seen every 0.1 to 0.01 s, shaken by noise: which critics, and which actors' advantages, survive small steps."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from control_runs import Progress
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main

from unipg.algorithms.base import Algorithm
from unipg.algorithms.control.ppo import PPO
from unipg.critics.kinds import CTD0, GMM, MSTDE, CTDLambda, Martingale
from unipg.environments.timed import TimeStep
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import derived_seed
from unipg.training import Trainer, TrainingRecipe
from unipg.training.optimization import OptimizerRecipe
from unipg.training.run import wanted_of

STEPS = (0.1, 0.05, 0.02, 0.01)
SECONDS = 10.0
"""Of an episode: 200 of Gymnasium's steps."""
BETA, DECAY = 2.0, 0.3
"""Per second: 0.905 and 0.942 per step of 0.05."""
TITLES = {
    "fixed": "squared error, discount and lambda per step",
    "ctd_lambda": "CTD(lambda)",
    "martingale": "martingale loss",
    "ctd0": "CTD(0)",
    "mstde": "mean-square TD error",
    "gmm": "moments",
}


class Shaken(TimeStep):
    """A pendulum whose speed is pushed by white noise: `noise` rad/s per root of a second."""

    def __init__(self, env: gymnasium.Env[Any, Any], dt: float, noise: float) -> None:
        super().__init__(env, dt)
        self.noise = noise * math.sqrt(dt)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = super().step(action)
        inner: Any = self.unwrapped
        speed = inner.state[1] + self.noise * inner.np_random.normal()
        inner.state = np.array([inner.state[0], np.clip(speed, -inner.max_speed, inner.max_speed)])
        return inner._get_obs(), reward, terminated, truncated, info


@dataclass(frozen=True)
class Sizes:
    iterations: int = 40
    count: int = 32
    window: float = 3.2
    """Seconds of each environment in a batch."""
    epochs: int = 10
    minibatches: int = 8
    episodes: int = 50
    noise: float = 1.0


def algorithm(kind: str, dt: float) -> Algorithm:
    """The per-step numbers of `fixed` are those of 0.05 s, whatever the step."""
    if kind == "fixed":
        return PPO(gamma=math.exp(-BETA * 0.05), lam=DECAY**0.05)
    kinds = {"ctd0": CTD0, "martingale": Martingale, "mstde": MSTDE, "gmm": GMM}
    if kind == "ctd_lambda":
        return PPO(critic=CTDLambda(dt, BETA, DECAY, lam=DECAY))
    return PPO(critic=kinds[kind](dt, BETA, DECAY))


def trained(sizes: Sizes, kind: str, dt: float, seed: int, told: Told) -> dict[str, float]:
    """The return of the most likely actions over ten seconds, and what the critic's increments were at the end."""
    wrapper = {"path": f"{__name__ if __name__ != '__main__' else 'martingale_control'}.Shaken", "dt": dt, "noise": sizes.noise}
    recipe = EnvironmentRecipe(
        "Pendulum-v1",
        sizes.count,
        round(sizes.window / dt),
        {"max_episode_steps": round(SECONDS / dt)},
        evaluation_episodes=sizes.episodes,
        wrappers=[wrapper],
    )
    environments = recipe.build(derived_seed(seed, "environment"))
    evaluate, environments.evaluate = environments.evaluate, lambda *_: []  # type: ignore[method-assign,assignment]
    chosen = algorithm(kind, dt)
    policy = ActorCriticRecipe().build(environments.observation_space, environments.action_space, seed, wanted=wanted_of(chosen))
    training = TrainingRecipe(iterations=sizes.iterations, epochs=sizes.epochs, minibatches=sizes.minibatches, save_every=sizes.iterations)
    optimizer = OptimizerRecipe(learning_rate=1e-3, clip_norm=0.5)
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(
            chosen,
            policy,
            environments,
            folder=Path(folder, "run"),
            training=training,
            optimizer=optimizer,
            seed=seed,
            observer=Progress(told),
        )
        run.train()
        assert run.tracker is not None
        last = run.tracker.rows()[-1]
    kept = {name: last[f"values/{name}"] for name in ("explained_variance",) if f"values/{name}" in last}
    return {"score": evaluate(policy, seed)[0].metrics["return"]["value"], **kept}


def build(chosen: argparse.Namespace) -> Claim:
    sizes = Sizes(2, 8, 0.8, 1, 2, 2) if chosen.quick else Sizes()

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for turn, dt in enumerate(STEPS):
            one = trained(sizes, method, dt, seed, lambda share, turn=turn: told((turn + share) / len(STEPS)))  # type: ignore[misc]
            found |= {f"return_{dt:g}": one["score"], f"explained_{dt:g}": one.get("explained_variance", math.nan)}
        finest, coarsest = (found[f"return_{dt:g}"] for dt in (STEPS[-1], STEPS[0]))
        explained = {name: value for name, value in found.items() if name.startswith("explained") and math.isfinite(value)}
        kept = {name: value for name, value in found.items() if name.startswith("return")}
        curve = {f"{1 / dt:g}": found[f"return_{dt:g}"] for dt in STEPS}
        return {"score": finest, "change": finest - coarsest, "curve": curve, **kept, **explained}

    def checks(runs: Runs) -> list[Check | None]:
        made: list[Check | None] = [
            check(f"{TITLES[kind]}: return at 0.01 s ≥ that at 0.1 s − 150", by_seed(runs, kind, "change"), lambda v: v > -150)
            for kind in ("ctd_lambda", "martingale", "ctd0", "gmm")
        ]
        apart = [
            check(f"{TITLES['ctd_lambda']} > {TITLES[kind]} + 100 at 0.01 s", difference(runs, "ctd_lambda", kind), lambda v: v > 100)
            for kind in ("mstde", "fixed")
        ]
        return [*made, *apart]

    return Claim(
        name="martingale-control",
        title="PPO on a shaken pendulum, by the length of the step",
        source="arXiv 2108.06655",
        methods={name: Method(title) for name, title in TITLES.items()},
        run=run,
        checks=checks,
        columns={**{"score": "return at 0.01 s"}, **{f"return_{dt:g}": f"at {dt:g} s" for dt in STEPS[:-1]}, "change": "0.01 s less 0.1 s"},
        about=(
            f"Return of the most likely actions over 10 s (rewards per second are Gymnasium's at steps of 0.05 s), {sizes.episodes} "
            f"episodes, after {sizes.iterations * sizes.count * sizes.window:,.0f} s of experience whatever the step; the speed is shaken "
            f"by white noise of {sizes.noise:g} rad/s per root of a second. Actor and critic of 64 and 64, {sizes.epochs} epochs of "
            f"{sizes.minibatches} minibatches; discount rate {BETA:g} and decays {DECAY:g} per second, but for the first row, which keeps "
            "the numbers per step that these are at 0.05 s."
        ),
        setup=dataclasses.asdict(sizes) | {"steps": list(STEPS)},
        over="looks per second",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
