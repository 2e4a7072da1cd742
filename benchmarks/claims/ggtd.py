"""GGTD: critics that predict the shape of their errors, on a ring with heavy-tailed rewards, and on a cart pole with noise."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from typing import Any

import torch
from control_runs import trained
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
from torch import Tensor

from unipg.algorithms.control.ppo import PPO
from unipg.critics.kinds import Critic, Ensemble, Gaussian, GeneralizedGaussian
from unipg.critics.kinds.ensembles import EnsembleCritic
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import generator
from unipg.training import TrainingRecipe
from unipg.training.optimization import OptimizerRecipe

SOURCE = "arXiv 2408.02295"
STATES, GAMMA, MEMBERS = 10, 0.9, 5
NOISES = {"gaussian": "Gaussian(1)", "laplace": "Laplace(0.7)", "t": "0.5 · t(1.8)"}
LAST = 0.25
"""Share of the updates that errors on the ring are of."""
CRITICS: dict[str, tuple[str, Critic]] = {
    "mse": ("ensemble, squared error", Ensemble()),
    "gd": ("ensemble, Gaussian likelihood", Gaussian()),
    "ggd": ("generalised Gaussian", GeneralizedGaussian(epistemic="none")),
    "iev-ggd": ("generalised Gaussian, weighed by error variance (the method)", GeneralizedGaussian()),
}
TABLES: dict[str, tuple[str, EnsembleCritic]] = {
    "mse": ("squared error", Ensemble()),
    "gd": ("Gaussian likelihood", Gaussian()),
    "power": ("generalised Gaussian, power", GeneralizedGaussian(epistemic="none")),
    "released": ("generalised Gaussian, released form", GeneralizedGaussian(epistemic="none", form="released")),
    "power-0.69": ("power, beta from 0.69", GeneralizedGaussian(epistemic="none", start=math.log(2))),
    "released-0.69": ("released, beta from 0.69", GeneralizedGaussian(epistemic="none", form="released", start=math.log(2))),
}


def drawn(noise: str, rows: int, source: torch.Generator) -> Tensor:
    """[rows] of a reward's noise."""
    if noise == "gaussian":
        return torch.randn(rows, generator=source)
    if noise == "laplace":
        u = torch.rand(rows, generator=source) - 0.5
        return -0.7 * u.sign() * torch.log1p(-2 * u.abs())
    normal = torch.randn(rows, generator=source)
    chi = torch._standard_gamma(torch.full((rows,), 0.9), generator=source) * 2  # of 1.8 degrees of freedom
    return 0.5 * normal / (chi / 1.8).sqrt()


def exact() -> Tensor:
    """[S] V = (I − gamma P)⁻¹ r of the ring: a step to either side, each as likely."""
    states = torch.arange(STATES)
    step = torch.zeros(STATES, STATES, dtype=torch.float64)
    for side in (1, -1):
        step[states, (states + side) % STATES] = 0.5
    reward = torch.sin(2 * math.pi * states.double() / STATES)
    return torch.linalg.solve(torch.eye(STATES, dtype=torch.float64) - GAMMA * step, reward)


def evaluated(kind: EnsembleCritic, noise: str, seed: int, updates: int) -> tuple[float, float]:
    """RMSE of the members' mean against the exact value, over the last quarter; and of a sample's slope there its 99.9 % quantile over its
    median."""
    source, truth = generator(seed, noise), exact()
    table = torch.zeros(MEMBERS, STATES, kind.channels)
    table[..., 0] = 0.1 * torch.randn(MEMBERS, STATES, generator=source)
    lagged = table[..., 0].clone()
    table.requires_grad_()
    adam = torch.optim.Adam([table], lr=1e-2)
    errors, slopes = [], []
    for update in range(updates):
        state = torch.randint(STATES, (32,), generator=source)
        after = (state + 2 * torch.randint(2, (32,), generator=source) - 1) % STATES
        reward = torch.sin(2 * math.pi * state / STATES) + drawn(noise, 32, source)
        target = reward + GAMMA * lagged[:, after]
        said = table[:, state].unsqueeze(2)  # [K,B,1,C]
        said.retain_grad()
        loss, _ = kind.fit(said, said[..., 0] - target.unsqueeze(-1))
        adam.zero_grad()
        loss.mean().backward()
        if update >= (1 - LAST) * updates:
            errors.append(float((table[..., 0].detach().mean(0) - truth).square().mean()))
            assert said.grad is not None
            slopes.append(said.grad[..., 0].abs().flatten())
        adam.step()
        lagged.lerp_(table[..., 0].detach(), 0.005)
    sizes = torch.cat(slopes)
    sizes = sizes[sizes > 0]
    return math.sqrt(sum(errors) / len(errors)), float(sizes.quantile(0.999) / sizes.median())


def ring(updates: int) -> Claim:
    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        found = {}
        for number, noise in enumerate(NOISES):
            found[noise], found[f"{noise}_tail"] = evaluated(TABLES[method][1], noise, seed, updates)
            told((number + 1) / len(NOISES))
        return {"score": found["t"], **found}

    def ratio(runs: Runs, method: str, name: str) -> dict[int, float]:
        own, plain = by_seed(runs, method, name), by_seed(runs, "mse", name)
        return {seed: own[seed] / plain[seed] for seed in own if seed in plain}

    def checks(runs: Runs) -> list[Check | None]:
        forms = ("power", "released")
        near = [
            check(f"RMSE, {form} / squared error, {title} < 2", ratio(runs, form, noise), lambda value: value < 2)
            for form in forms
            for noise, title in NOISES.items()
        ]
        tails = [
            check(f"slopes under t noise, 99.9 % quantile / median: {form} / squared < 1", ratio(runs, form, "t_tail"), lambda v: v < 1)
            for form in forms
        ]
        return [*near, *tails]

    return Claim(
        name="ggtd-ring",
        title="GGTD on a ring: heavy-tailed rewards and the mean of returns",
        source=SOURCE,
        methods={name: Method(title, asdict(kind)) for name, (title, kind) in TABLES.items()},
        run=run,
        checks=checks,
        columns={"t": "RMSE, 0.5 · t(1.8)", "gaussian": "Gaussian(1)", "laplace": "Laplace(0.7)", "t_tail": "tail of slopes, t"},
        about=(
            f"{STATES} states on a ring, steps to either side, reward sin(2πs/{STATES}) + noise, gamma {GAMMA}; a table of {MEMBERS} "
            f"members, Adam 1e-2, batch 32, targets by Polyak 0.005, {updates:,} updates. Root of the mean squared error of the members' "
            f"mean against the exact value, over the last {LAST:.0%}. Tail of slopes: |∂loss/∂V| of a sample, 99.9 % quantile over median."
        ),
        setup={"updates": updates},
    )


def control(steps: int) -> Claim:
    wrappers = [{"path": "unipg.environments.noise.NoisyForce"}, {"path": "unipg.environments.noise.NoisyReward"}]

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        iterations = max(1, steps // 1024)
        return trained(
            PPO(gamma=0.99, value_weight=1.0, critic=CRITICS[method][1]),
            EnvironmentRecipe("CartPole-v1", 8, 128, wrappers=wrappers),
            TrainingRecipe(iterations=iterations, epochs=4, minibatches=16, save_every=iterations),
            seed,
            told,
            optimizer=OptimizerRecipe(learning_rate=1e-3, clip_norm=0.5),
            of="length/mean",
        )

    def checks(runs: Runs) -> list[Check | None]:
        pairs = (("iev-ggd", "ggd"), ("ggd", "mse"), ("iev-ggd", "mse"), ("ggd", "gd"))
        return [check(f"return over the run, {one} − {other} >= 0", difference(runs, one, other), lambda v: v >= 0) for one, other in pairs]

    return Claim(
        name="ggtd",
        title="GGTD on a cart pole with noisy force and heavy-tailed rewards",
        source=SOURCE,
        methods={name: Method(title, asdict(kind)) for name, (title, kind) in CRITICS.items()},
        run=run,
        checks=checks,
        columns={"score": "return over the run", "last": "in the last 10 % of the steps"},
        about=(
            f"PPO on CartPole-v1, {steps:,} steps of 8 environments; force times U(0.7, 1.3), reward + 0.5 · t(1.8); {MEMBERS} members, "
            "4 epochs of 16 minibatches of 64, Adam 1e-3, 64-64 tanh networks. Returns are lengths of training episodes: without the noise."
        ),
        setup={"steps": steps},
        limits=(0, 500),
        over="steps",
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("ring", "control"), default="control", help="of the claim (default %(default)s)")


def build(chosen: argparse.Namespace) -> Claim:
    if chosen.part == "ring":
        return ring(200 if chosen.quick else 3000)
    return control(2048 if chosen.quick else 102_400)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options, seeds=5))
