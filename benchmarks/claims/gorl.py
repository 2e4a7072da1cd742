"""GoRL: optimisation apart from generation on two peaks, the decoder's prior, and returns over stages on an inverted double pendulum."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from control_runs import LAST, Progress, settings_of, trained
from gymnasium import spaces
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
from torch import Tensor

from unipg.algorithms.base import Algorithm
from unipg.algorithms.control.gorl import GoRL
from unipg.algorithms.control.ppo import PPO
from unipg.critics import Decoder
from unipg.networks import Denoiser
from unipg.policies.actions import LatentActions
from unipg.policies.actor_critic import ActorCritic
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import generator
from unipg.training import Trainer, TrainingRecipe
from unipg.training.optimization import OptimizerRecipe

SOURCE = "arXiv 2512.02581"
GOOD, WIDTH, SPREAD, SHARE = 0.6, 0.12, 0.05, 0.25
"""Where the higher peak is (the lower one, of 0.6, is mirrored), how wide both are; the data's spread at each, and their share at it."""
DRAWS = 20_000
ONE = LatentActions((1,), (-1.0,), (1.0,))


def reward(action: np.ndarray) -> np.ndarray:
    return np.exp(-(((action - GOOD) / WIDTH) ** 2)) + 0.6 * np.exp(-(((action + GOOD) / WIDTH) ** 2))


class Peaks(gymnasium.Env[np.ndarray, np.ndarray]):
    """One state, one step, two peaks."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.ones(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(reward(action[0])), True, False, {}


gymnasium.register("unipg/Peaks-v0", Peaks)


def behaviour(seed: int) -> Tensor:
    """[N,1] u = atanh(a) of the data: three quarters at the lower peak."""
    source = generator(seed, "behaviour")
    at = torch.where(torch.rand(DRAWS, 1, generator=source) < SHARE, GOOD, -GOOD)
    return (at + SPREAD * torch.randn(DRAWS, 1, generator=source)).atanh()


def fitted(u: Tensor, seed: int, steps: int, prior: str = "fixed", z: Tensor | None = None) -> Denoiser:
    """A flow fitted to u [N,1], 3 x 64. `prior` of its noise: fixed, N(0, 1); pairs, the z that made each u; policy, those of others."""
    made, source = Denoiser("flow", 1, 1, (64, 64, 64), 10), generator(seed, "fit", prior)
    made.draw(source)
    optimizer = torch.optim.Adam(made.parameters(), 1e-3)
    for _ in range(steps):
        index = torch.randint(len(u), (256,), generator=source)
        noise = made.noise((len(index), 4), source)
        if z is not None:
            others = index.unsqueeze(1) if prior == "pairs" else torch.randint(len(u), (len(index), 4), generator=source)
            noise[..., :1] = z[others.expand(-1, 4)]
        optimizer.zero_grad()
        made.error(torch.ones(len(index), 1), u[index], noise).mean().backward()
        optimizer.step()
    return made


def controller(seed: int, decoder: Denoiser | None, mean: float, std: float) -> ActorCritic:
    """A policy whose Gaussian is N(mean, std²) at the start, before a decoder that nothing moves."""
    made = ActorCritic(
        (1,), ONE, hidden=(32, 32), networks=None if decoder is None else {"decoder": Decoder("flow", (64, 64, 64))}, seed=seed
    )
    if decoder is not None and made.decoder is not None:
        made.decoder.load_state_dict(decoder.state_dict())
        made.decoder.requires_grad_(False)
    last = made.module.actor.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([mean, math.log(math.expm1(std - 1e-3))]))
    return made


def actions_of(policy: ActorCritic, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[N] actions that it draws, and [N,1] their z."""
    state = np.ones((DRAWS, 1), np.float32)
    z = policy.actor()(state, policy.noise(1, DRAWS, generator(seed, "draws"))[0])
    return policy.outward()(state, z)[:, 0], z


def improved(policy: ActorCritic, seed: int, iterations: int, told: Told) -> None:
    """Some iterations of PPO on 256 draws each."""
    with tempfile.TemporaryDirectory() as scratch:
        Trainer(
            PPO(),
            policy,
            EnvironmentRecipe("unipg/Peaks-v0", 16, 16, evaluation_episodes=1).build(seed),
            folder=Path(scratch, "run"),
            training=TrainingRecipe(iterations=iterations, epochs=10, minibatches=4, save_every=iterations),
            optimizer=OptimizerRecipe(learning_rate=1e-3),
            seed=seed,
            observer=Progress(told),
        ).train()


def modes(quick: bool) -> Claim:
    steps, iterations = (60, 4) if quick else (1000, 60)
    early = min(10, iterations - 1)

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        u = behaviour(seed)
        decoder = None if method == "gaussian" else fitted(u, seed, steps)
        start = (0.0, 1.0) if decoder is not None else (float(u.mean()), float(u.std()))
        policy = controller(seed, decoder, *start)
        first, _ = actions_of(policy, seed)
        found: dict[str, Any] = {"start": float(reward(first).mean())}
        if method == "gorl":
            found |= {"good": float((first > 0.3).mean()), "between": float((np.abs(first) < 0.3).mean())}
        improved(policy, seed, early, lambda share: told(share * early / iterations))
        then, z = actions_of(policy, seed)
        found |= {"early": float(reward(then).mean())}
        if method in ("gorl", "gaussian"):
            improved(policy, seed + 1000, iterations - early, lambda share: told((early + share * (iterations - early)) / iterations))
            final = reward(actions_of(policy, seed)[0])
            return found | {"score": float(final.mean()), "curve": {"0": found["start"], "10": found["early"], "60": float(final.mean())}}
        # the next stage: the decoder is fitted to what this policy does, and a new actor starts at N(0, 0.694²)
        assert policy.decoder is not None
        with torch.no_grad():
            data = policy.decoder.decode(torch.ones(DRAWS, 1), torch.from_numpy(z))
        after = fitted(data, seed, steps, method, None if method == "fixed" else torch.from_numpy(z))
        again = {f"{name}": actions_of(controller(seed, after, 0.0, std), seed)[0] for name, std in (("next", 0.694), ("whole", 1.0))}
        return found | {name: float(reward(a).mean()) for name, a in again.items()} | {"score": float(reward(again["next"]).mean())}

    def checks(runs: Runs) -> list[Check | None]:
        good = {seed: abs(share - SHARE) for seed, share in by_seed(runs, "gorl", "good").items()}
        starts, theirs = by_seed(runs, "gorl", "start"), by_seed(runs, "gaussian", "start")
        apart = {seed: round(value / theirs[seed], 6) for seed, value in starts.items() if seed in theirs}
        kept = {s: abs(value - by_seed(runs, "fixed", "early")[s]) for s, value in by_seed(runs, "fixed", "whole").items()}
        return [
            check("share of the decoder's draws at the better peak, distance from 25 % ≤ 5 points", good, lambda value: value <= 0.05),
            check("reward at the start / the Gaussian's > 2", apart, lambda value: value > 2),
            check("reward after latent PPO > 0.95, in all seeds", by_seed(runs, "gorl"), lambda value: value > 0.95),
            check("the Gaussian in action space ends below 0.95", by_seed(runs, "gaussian"), lambda value: value < 0.95),
            check("fixed prior: N(0, 1) gives the behaviour again, reward within 0.05", kept, lambda value: value <= 0.05),
            check("next start, fixed prior − pairs (z, u) > 0", difference(runs, "fixed", "pairs"), lambda gain: gain > 0),
            check("next start, fixed prior − noise of the policy > 0", difference(runs, "fixed", "policy"), lambda gain: gain > 0),
        ]

    titles = {
        "gorl": "Latent PPO through a fitted decoder",
        "gaussian": "Gaussian PPO on the moment-matched Gaussian",
        "fixed": "Next stage, decoder from e ~ N(0, 1)",
        "pairs": "Next stage, decoder from the z of each u",
        "policy": "Next stage, decoder from e ~ pi_theta",
    }
    return Claim(
        name="gorl",
        title="GoRL: optimisation apart from generation, and a prior that stands still",
        source=SOURCE,
        methods={name: Method(title, name) for name, title in titles.items()},
        run=run,
        checks=checks,
        columns={
            "score": "reward at the end, or of the next start",
            "start": "at the start",
            "early": f"after {early} iterations",
            "good": "draws at the better peak",
            "between": "draws between",
            "whole": "next start from N(0, 1)",
        },
        about=(
            f"One state; peaks of height 1 at a = {GOOD} and 0.6 at −{GOOD}, 25 % of the data at the better one. A flow of 3 x 64, "
            f"{steps:,} steps; then PPO, {iterations} iterations of 256 draws, 10 passes of 4 minibatches, Adam at 1e-3. Rewards are means "
            f"over {DRAWS:,} draws of the policy. The next stage's decoder is fitted to what the actor does after {early} iterations; its "
            "new actor starts at N(0, 0.694²)."
        ),
        setup={"steps": steps, "iterations": iterations},
        limits=(0.0, 1.0),
        over="iterations",
    )


WINDOW = 2048


def stages(quick: bool) -> Claim:
    lengths = (2, 2, 1, 1) if quick else (30, 30, 15, 15)
    iterations = sum(lengths) + len(lengths) - 1
    fit = {"batches": 2, "decoder_batch": 512, "decoder_epochs": 2 if quick else 30, "patience": 8}
    own = {"gamma": 0.99, "reward_scale": 0.1}
    algorithms: dict[str, tuple[str, Algorithm]] = {
        "gorl": ("GoRL, four stages", GoRL(stages=lengths, **own, **fit)),
        "frozen": ("GoRL, one stage: decoder updates off", GoRL(stages=(iterations,), **own)),
        "ppo": ("Gaussian PPO", PPO(gamma=0.99, entropy=0.0)),
    }

    def best(rows: Any) -> dict[str, Any]:
        """The best mean return of an iteration in each stage."""
        told: dict[str, float] = {}
        for row in rows:
            name = f"stage {row.get('stage', 0):.0f}"
            if row["return/episodes"]:
                told[name] = max(told.get(name, -math.inf), row["return/mean"])
        return {"stages": told}

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        extra = 1 if method == "gorl" else 0
        rounds = iterations if extra else iterations + 3 * (fit["batches"] - 1)  # the same steps: those of the data count
        training = TrainingRecipe(iterations=rounds, epochs=10, minibatches=16, save_every=rounds, evaluate_every=5)
        environment = EnvironmentRecipe("InvertedDoublePendulum-v5", 16, WINDOW // 16, evaluation_episodes=8)
        optimizer = OptimizerRecipe(learning_rate=1e-3 if method != "ppo" else 3e-4)
        return trained(algorithms[method][1], environment, training, seed, told, optimizer=optimizer, evaluates=True, more=best)

    def checks(runs: Runs) -> list[Check | None]:
        per_seed = by_seed(runs, "gorl", "stages")
        worst = {}
        for seed, of in per_seed.items():
            values = [of[name] for name in sorted(of)]
            worst[seed] = round(min(after / before for before, after in pairwise(values)), 6)
        return [
            check("best return of a stage / that of the stage before, the least of a run ≥ 0.9", worst, lambda value: value >= 0.9),
            check("last tenth, GoRL − PPO ≥ 0", difference(runs, "gorl", "ppo", "last"), lambda gain: gain >= 0),
            check("last tenth, GoRL − decoder updates off ≥ 0", difference(runs, "gorl", "frozen", "last"), lambda gain: gain >= 0),
        ]

    return Claim(
        name="gorl-stages",
        title="GoRL over stages: no collapse, beside Gaussian PPO and a decoder that stays the identity",
        source=SOURCE,
        methods={name: Method(title, settings_of(made)) for name, (title, made) in algorithms.items()},
        run=run,
        checks=checks,
        columns={"last": f"return in the last {LAST:.0%} of the steps", "score": "over the run", "speed": "steps per CPU-second"},
        about=(
            f"InvertedDoublePendulum-v5, 16 environments, stages of {', '.join(map(str, lengths))} iterations of {WINDOW:,} steps, the "
            "decoder's data counted; 64-64 networks, 10 passes of 16 minibatches, Adam at 1e-3 (PPO: 3e-4). Returns of training episodes. "
            "A third of the steps that the system's description asks for."
        ),
        setup={"lengths": list(lengths), "window": WINDOW},
        over="steps",
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("modes", "stages"), default="modes", help="of the claim (default %(default)s)")


def build(chosen: argparse.Namespace) -> Claim:
    return modes(chosen.quick) if chosen.part == "modes" else stages(chosen.quick)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options))
