"""RPO's bandit with partial coverage: DPO moves its mass to arms that no pair ever covered, and the supervised term keeps it.

Arms have features, the policy is a softmax of a linear score of them, and the pairs compare the best arms only. So what DPO does to the
few arms it sees moves the many that it does not.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from copg import ArmPairs, train_arms
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.lab.strings import TabularPolicy
from unipg.policies.base import Policy
from unipg.seeding import generator


class LinearPolicy(TabularPolicy):
    """log pi(arm | bandit) = log softmax(features[bandit] @ theta[bandit])[arm], in float64; `features` [S,K,D], `theta` [S,D]."""

    def __init__(self, features: Tensor, theta: Tensor) -> None:
        self.features = features
        self.theta = nn.Parameter(theta.clone())
        self.value = nn.Parameter(torch.zeros(len(theta), dtype=torch.float64))
        self.module = nn.ParameterDict({"theta": self.theta, "value": self.value})

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        """[S,K]"""
        return (self.features @ self.theta.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Bandit:
    """Sizes of the problem."""

    arms: int = 50
    features: int = 8
    covered: int = 15
    """The pairs compare this many of the best arms."""
    pairs: int = 20
    """Drawn; those of equal arms are dropped."""
    sharpness: float = 2.0
    """A label is drawn from sigmoid(sharpness · (r − r'))."""
    anchor_scale: float = 0.3
    beta: float = 0.1
    steps: int = 2000
    learning_rate: float = 0.05
    every: int = 50
    """Steps between points of the curves."""


@dataclass(frozen=True)
class Problem:
    """A bandit that was drawn, and its data."""

    features: Tensor
    """[K,D]"""
    theta: Tensor
    """[D] of the initial policy, which is the anchor."""
    reward: Tensor
    """[K], standardised."""
    covered: Tensor
    """[K] bool: the arms that pairs may compare."""
    chosen: Tensor
    """[N] arms."""
    rejected: Tensor

    @property
    def anchor(self) -> Tensor:
        """[K] log-probabilities."""
        return torch.log_softmax(self.features @ self.theta, -1)

    @classmethod
    def draw(cls, bandit: Bandit, seed: int) -> Problem:
        rng = generator(seed, "partial coverage")

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=rng)

        features = normal(bandit.arms, bandit.features)
        reward = features @ normal(bandit.features) / bandit.features**0.5
        reward = (reward - reward.mean()) / reward.std()
        theta = bandit.anchor_scale * normal(bandit.features)
        covered = reward >= reward.topk(bandit.covered).values[-1]
        share = torch.where(covered, torch.softmax(features @ theta, -1), 0)
        pairs = torch.multinomial(share, 2 * bandit.pairs, True, generator=rng).view(-1, 2)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        gap = bandit.sharpness * (reward[pairs[:, 0]] - reward[pairs[:, 1]])
        first = torch.rand(len(pairs), dtype=torch.float64, generator=rng) < torch.sigmoid(gap)
        chosen, rejected = torch.where(first, pairs.T, pairs.flip(1).T)
        return cls(features, theta, reward, covered, chosen, rejected)

    def facts(self, log_pi: Tensor, beta: float) -> dict[str, float]:
        """What the claim is about, of a policy [K]."""
        pi, rho = log_pi.exp(), log_pi - self.anchor
        return {
            "value": float((pi * self.reward).sum()),
            "chosen": float(rho[self.chosen].mean()),
            "uncovered": float(pi[~self.covered].sum()),
            "dpo_loss": float(-logsigmoid(beta * (rho[self.chosen] - rho[self.rejected])).mean()),
            "kl": float((pi * rho).sum()),
        }


ETAS = {"dpo": 0.0, "rpo-0.05": 0.05, "rpo-0.2": 0.2, "rpo-1": 1.0}


def algorithm(bandit: Bandit, name: str) -> Algorithm:
    eta = ETAS[name]
    if not eta:
        return algorithm_named("dpo")(beta=bandit.beta)
    return algorithm_named("regularized_preference_optimization")(beta=bandit.beta, eta=eta)


def panel(fact: str, title: str) -> Callable[[Any, Runs], None]:
    """A panel of the picture: means over seeds of one of the runs' `curves`, by step."""

    def draw(axes: Any, runs: Runs) -> None:
        for place, name in enumerate(dict.fromkeys(run["method"] for run in runs)):
            curves = [run["curves"][fact] for run in runs if run["method"] == name and "curves" in run]
            if not curves:
                continue
            means = [sum(curve[step] for curve in curves) / len(curves) for step in curves[0]]
            axes.plot([int(step) for step in curves[0]], means, color=f"C{place}")
        axes.set(xlabel="optimiser steps", title=title)
        axes.grid(alpha=0.3)

    return draw


def claim(bandit: Bandit, seeds: int) -> Claim:
    """`seeds`: problems that are trained side by side. They share the loop and nothing else: each has parameters of its own, and Adam does
    not notice that its gradient is a share of a mean over all problems."""
    trained: dict[str, list[dict[str, Any]]] = {}

    def train(name: str, told: Told) -> list[dict[str, Any]]:
        problems = [Problem.draw(bandit, seed) for seed in range(seeds)]
        pairs = torch.cat([torch.stack([p.chosen, p.rejected], 1) for p in problems])
        labels = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(pairs.shape)
        owner = torch.arange(seeds).repeat_interleave(torch.tensor([len(p.chosen) for p in problems]))

        def watch(now: Policy) -> list[dict[str, float]]:
            assert isinstance(now, LinearPolicy)
            log_pi = torch.log_softmax(now.logits.detach(), -1)
            return [problem.facts(log_pi[seed], bandit.beta) for seed, problem in enumerate(problems)]

        anchor = torch.stack([p.anchor for p in problems])
        arms = ArmPairs(pairs, labels, owner, anchor, len(pairs), 0, watch, bandit.every)
        policy = LinearPolicy(torch.stack([p.features for p in problems]), torch.stack([p.theta for p in problems]))
        seen = train_arms(algorithm(bandit, name), policy, arms, bandit.steps, bandit.learning_rate, told)
        curves = [{fact: {step: facts[s][fact] for step, facts in seen.items()} for fact in seen["0"][0]} for s in range(seeds)]
        return [{**seen[str(bandit.steps)][s], "curve": curves[s]["value"], "curves": curves[s]} for s in range(seeds)]

    def run(name: str, seed: int, told: Told) -> dict[str, Any]:
        if name not in trained:
            trained[name] = train(name, told)
        return trained[name][seed]

    def checks(runs: Runs) -> list[Check | None]:
        pieces = [check("value: RPO (0.05) > DPO", difference(runs, "rpo-0.05", "dpo", "value"), lambda d: d > 0)]
        names = list(ETAS)
        for less, more in itertools.pairwise(names):
            what = f"log pi(chosen): eta {ETAS[more]:g} > eta {ETAS[less]:g}"
            pieces.append(check(what, difference(runs, more, less, "chosen"), lambda d: d > 0))
        dpo, rpo = (by_seed(runs, name, "uncovered") for name in ("dpo", "rpo-0.05"))
        # of the means, which is the claim: of each seed the ratio would be of numbers near 0
        both = [seed for seed in dpo if seed in rpo]
        excess = {seed: dpo[seed] - 5 * rpo[seed] for seed in both}
        pieces.append(check("mass on uncovered arms: DPO − 5 · RPO (0.05) > 0", excess, lambda d: d > 0))
        pieces.append(check("DPO's loss: RPO (0.05) > DPO", difference(runs, "rpo-0.05", "dpo", "dpo_loss"), lambda d: d > 0))
        return pieces

    return Claim(
        name="rpo",
        title="RPO on a bandit with partial coverage" + ("" if bandit == Bandit() else ", sizes changed"),
        source="arXiv 2405.16436",
        methods={
            name: Method(f"RPO, eta {eta:g}" if eta else "DPO (eta 0)", {"algorithm": repr(algorithm(bandit, name))})
            for name, eta in ETAS.items()
        },
        run=run,
        checks=checks,
        columns={
            "value": "true value",
            "chosen": "log pi − log pi_0 of the chosen",
            "uncovered": "mass on uncovered arms",
            "dpo_loss": "DPO's loss",
            "kl": "KL(pi || pi_0)",
        },
        about=(
            f"True value: E_pi[r], r with mean 0 and standard deviation 1 over {bandit.arms} arms. Uncovered: the arms that no pair may "
            f"compare, all but the best {bandit.covered}. Full batch, Adam. A seed is a problem with its data."
        ),
        setup={"problems": seeds, **{name: getattr(bandit, name) for name in bandit.__dataclass_fields__}},
        panels=[panel("chosen", "log pi − log pi_0 of the chosen"), panel("uncovered", "mass on uncovered arms")],
    )


def build(chosen: argparse.Namespace) -> Claim:
    return claim(Bandit(**({"steps": 20, "every": 10} if chosen.quick else {})), 1 if chosen.quick else chosen.seeds)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=10))
