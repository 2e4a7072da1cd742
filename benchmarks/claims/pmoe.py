"""PMOE on a pendulum, beside SAC, and on a bandit with two equally good actions: do components stay apart, and what is that worth?"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from control_runs import LAST, overlap, settings_of, trained
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.algorithms.control.pmoe_sac import PMOESAC
from unipg.estimator import Planning
from unipg.lab.control import Exact
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.mixtures import SquashedMixtureActions
from unipg.policies.now import NOISE
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import generator
from unipg.training import TrainingRecipe
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.optimization import OptimizerRecipe
from unipg.trajectories import Source, Trajectories

SOURCE = "arXiv 2104.09122"
PENDULUM: dict[str, tuple[str, Algorithm, int | None]] = {
    "k4": ("PMOE, K = 4", PMOESAC(), 4),
    "k4-all": ("PMOE, K = 4, update: all", PMOESAC(update="all"), 4),
    "k1": ("PMOE, K = 1", PMOESAC(), 1),
}
ALPHA, RATE, ROWS = 0.02, 1e-2, 256
BANDIT: dict[str, tuple[str, PMOESAC, int]] = {
    "k1": ("K = 1", PMOESAC(temperature=ALPHA), 1),
    "k4-all": ("K = 4, update: all", PMOESAC(temperature=ALPHA, update="all"), 4),
    "k4-max": ("K = 4, update: max", PMOESAC(temperature=ALPHA), 4),
}
UNIMODAL, MULTIMODAL, MOST = 0.05, 0.1, 0.5
"""Mass of the minor mode below which there is one mode, above which there are two; weight of a component that has most of the mass."""


def pendulum(steps: int) -> Claim:
    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        _, algorithm, components = PENDULUM[method]
        training = TrainingRecipe(iterations=steps // 200, save_every=steps // 200)
        return trained(
            algorithm,
            EnvironmentRecipe("Pendulum-v1", 1, 200),
            training,
            seed,
            told,
            controller=ActorCriticRecipe(hidden=[32, 32], components=components),
            optimizer=OptimizerRecipe(learning_rate=1e-3),
            replay=ReplayRecipe(batch=128, warmup=200, updates_per_step=1.0),
        )

    def checks(runs: Runs) -> list[Check | None]:
        return [
            overlap(runs, "k4", "k1", "score", "K = 4, return over the run − that of K = 1: intervals overlap"),
            overlap(runs, "k4-all", "k1", "score", "K = 4 with update: all, the same"),
            overlap(runs, "k4", "k1", "last", "K = 4, return at the end − that of K = 1: intervals overlap"),
        ]

    return Claim(
        name="pmoe",
        title="PMOE in SAC on a pendulum: four components against one",
        source=SOURCE,
        methods={name: Method(title, {**settings_of(algorithm), "K": k}) for name, (title, algorithm, k) in PENDULUM.items()},
        run=run,
        checks=checks,
        columns={"score": "return over the run", "last": f"in the last {LAST:.0%} of the steps", "speed": "steps per CPU-second"},
        about=(
            f"Pendulum-v1, {steps:,} steps of one environment, the first 200 uniform, an update of 128 transitions after all others; "
            "32-32 ReLU networks, Adam at 1e-3. K = 1 is SAC to the bit. Returns of training episodes, whose actions are drawn."
        ),
        setup={"steps": steps},
        over="steps",
    )


def _value(x: Tensor) -> Tensor:
    """Q(a) = exp(−((|a| − 0.6) / 0.25)²): two equal peaks."""
    return torch.exp(-(((x[:, 1:].abs() - 0.6) / 0.25) ** 2)).unsqueeze(0)


def bandit(steps: int) -> Claim:
    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        _, algorithm, components = BANDIT[method]
        actions = SquashedMixtureActions((1,), (-1.0,), (1.0,), components=components)
        made = ActorCritic((1,), actions, hidden=(), init="torch", critic=False, seed=seed)
        made.module.double()
        made.modules["q"] = Exact(_value)
        source = generator(seed, "bandit")
        with torch.no_grad():
            for network in (made.networks["actor"], made.networks["router"]):
                for parameter in network:
                    parameter.zero_()
            made.networks["actor"][1][:components] = 0.8 * torch.randn(components, generator=source, dtype=torch.float64)
        learners = [found for found in algorithm.learned(Setting(1, False, 1)) if found.name in ("router", "policy")]
        own = {found.name: [p for name in found.trains for p in made.networks[name]] for found in learners}
        optimizers = {name: torch.optim.Adam(parameters, RATE) for name, parameters in own.items()}
        curve: dict[str, float] = {}
        for step in range(steps):
            batch = _rows(actions.noises, source)
            for found in learners:
                ready = found.terms.plan(batch)
                loss = found.terms.loss(made.now(ready, found.terms.differentiates), ready, Planning())
                for parameter, gradient in zip(own[found.name], torch.autograd.grad(loss, own[found.name]), strict=True):
                    parameter.grad = gradient
                optimizers[found.name].step()
            if step % max(1, steps // 15) == 0:
                curve[str(step)] = _drawn(made, generator(seed, "look"))[0]
                told(step / steps)
        value, minor = _drawn(made, generator(seed, "drawn"))
        shares = made.networks["router"][1].softmax(-1)
        return {"minor": minor, "score": value, "largest": float(shares.detach().max()), "curve": curve}

    def checks(runs: Runs) -> list[Check | None]:
        one, every = (by_seed(runs, name, "minor") for name in ("k1", "k4-all"))
        apart = {seed: float(minor > MULTIMODAL) for seed, minor in every.items()}
        return [
            check(f"K = 1: mass of the minor mode < {UNIMODAL:g}", one, lambda minor: minor < UNIMODAL),
            check(f"update: all keeps both modes (minor mass > {MULTIMODAL:g}) in most seeds", apart, lambda share: share > 0.5),
            check(
                f"update: max gives one component more than {MOST:g} of the mass", by_seed(runs, "k4-max", "largest"), lambda w: w > MOST
            ),
        ]

    return Claim(
        name="pmoe-bandit",
        title="PMOE on a bandit with two equal peaks and exact values: do components stay apart?",
        source=SOURCE,
        methods={name: Method(title, {**settings_of(algorithm), "K": k}) for name, (title, algorithm, k) in BANDIT.items()},
        run=run,
        checks=checks,
        columns={"score": "Q of a drawn action", "minor": "mass of the minor mode", "largest": "largest weight of the router"},
        about=(
            f"One state, Q(a) = exp(−((|a| − 0.6) / 0.25)²), known; {steps:,} steps of {ROWS} drawn rows, alpha {ALPHA}, Adam at {RATE:g}; "
            "means before tanh start as N(0, 0.8²), standard deviations at 1, the router even. Mass: share of drawn actions of one sign."
        ),
        setup={"steps": steps, "alpha": ALPHA, "rate": RATE, "rows": ROWS},
        limits=(0.0, 1.0),
    )


def _rows(noises: int, source: torch.Generator) -> Trajectories:
    noise = torch.randn(ROWS, 1, noises, generator=source, dtype=torch.float64)
    return Trajectories(
        action=torch.zeros(ROWS, 1, 1),
        mask=torch.ones(ROWS, 1, dtype=torch.bool),
        observation=torch.ones(ROWS, 1, 1, dtype=torch.float64),
        source=torch.full((ROWS,), int(Source.REPLAY)),
        planned={NOISE.format("observation"): noise},
    )


@torch.no_grad()
def _drawn(made: ActorCritic, source: torch.Generator, draws: int = 20_000) -> tuple[float, float]:
    """Mean Q of drawn actions, and the share of the sign that is rarer."""
    noise = torch.from_numpy(made.noise(1, draws, source)[0]).double()
    action = made.fresh(torch.ones(draws, 1, dtype=torch.float64), "actor", noise)[0]
    above = float((action > 0).double().mean())
    return float(_value(torch.cat([torch.ones_like(action), action], 1)).mean()), min(above, 1 - above)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("pendulum", "bandit"), default="pendulum", help="of the claim (default %(default)s)")


def build(chosen: argparse.Namespace) -> Claim:
    if chosen.part == "pendulum":
        return pendulum(2000 if chosen.quick else 3000)
    return bandit(60 if chosen.quick else 1500)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options))
