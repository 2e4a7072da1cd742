"""The claim of D3S (arXiv 2509.22115) on the digits toy: selected rollouts and tokens, fewer of them, and no worse for it.

    python benchmarks/claims/d3s.py            the whole claim, written to benchmarks/results/d3s.{json,md,png}
    python benchmarks/claims/d3s.py --quick    does it run? The numbers mean nothing

The gradient's norm is measured at the start, over batches of 16 prompts x 8 rollouts. No large gain over GRPO is asserted.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

import torch
from digits import BASE, COLUMNS, QUICK, DigitPolicy, Digits, Toy, UniformSampler, claim_on
from harness import Check, Claim, Runs, by_seed, check, difference, gains, main
from torch import Tensor

from unipg.algorithms import Setting, algorithm_named
from unipg.algorithms.base import Algorithm
from unipg.algorithms.language.d3s import D3S
from unipg.estimator import Planning, Progress
from unipg.rollouts.base import Demand
from unipg.seeding import generator

BATCHES = 20


@dataclass(frozen=True)
class RandomRows(D3S):
    """A random share of the rollouts, all of their tokens."""

    def _rows(self, advantage: Tensor, key: Tensor, live: Tensor, group: Tensor, share: float, planning: Planning) -> Tensor:
        order = torch.randperm(len(live), generator=generator(planning.seed, "random rows", planning.progress.step))
        return torch.zeros_like(live).scatter(0, order[: round(share * len(live))], True)


def shares(samples: float, tokens: float) -> dict[str, float]:
    """Shares of rollouts and tokens that stay."""
    ends = {"initial": samples, "final": samples}, {"initial": tokens, "final": tokens}
    return {f"{level}_share_{end}": value for level, kept in zip(("sample", "token"), ends, strict=True) for end, value in kept.items()}


METHODS: dict[str, tuple[str, Algorithm]] = {
    "grpo": ("GRPO", algorithm_named("grpo")()),
    "d3s": ("D3S, rollouts 25 % to 100 %, tokens 20 % to 100 %", D3S()),
    "unscheduled": ("D3S without schedule, 25 % and 20 %", D3S(**shares(0.25, 0.2))),
    "random": ("a random 25 % of the rollouts", RandomRows(**shares(0.25, 1.0))),
}
AT_START: dict[str, D3S] = {
    "full": D3S(**shares(1.0, 1.0)),
    "random": RandomRows(**shares(0.25, 1.0)),
    "selected": D3S(**shares(0.25, 1.0)),
    "selected_tokens": D3S(**shares(0.25, 0.2)),
}


def at_start(toy: Toy, policy: DigitPolicy, seed: int) -> dict[str, Any]:
    """Means over batches of the warmed-up policy: gradient norm, share of rollouts with an advantage, variance of the advantages."""
    experience = Digits(UniformSampler(1000, seed), toy.prompts)
    sums: dict[str, float] = {}
    for number in range(BATCHES):
        batch, _ = experience.collect(policy, Demand(number, rollouts=8, seed=seed))
        with torch.no_grad():
            batch = batch.replace(old_entropy=policy.evaluate(batch, entropy=True).entropy)
        for name, algorithm in AT_START.items():
            planning, setting = Planning(Progress(number, 1 + BATCHES), seed=seed), Setting(3)
            objective = algorithm.terms(setting)
            ready = objective.plan(objective.prepare(algorithm.prepare(batch, setting, planning), planning), planning)
            policy.module.zero_grad()
            objective.loss(policy.evaluate(ready), ready, planning).backward()
            told = algorithm.metrics(ready)
            norm = torch.nn.utils.get_total_norm([p.grad for p in policy.module.parameters() if p.grad is not None])
            found = {"norm": float(norm), "useful": told["selection/useful_fraction"], "variance": told["selection/advantage_variance"]}
            for key, value in found.items():
                sums[f"{key}_{name}"] = sums.get(f"{key}_{name}", 0.0) + value / BATCHES
    policy.module.zero_grad()
    return {"start": sums}


def checks(runs: Runs) -> list[Check | None]:
    tokens = {
        seed: mine / theirs for seed, mine in by_seed(runs, "d3s", "tokens").items() if (theirs := by_seed(runs, "grpo", "tokens")[seed])
    }
    start = {name: by_seed(runs, BASE, f"start.{name}") for name in ("norm_full", "norm_random", "norm_selected", "norm_selected_tokens")}
    return [
        check("D3S ≥ a random subset + 0.05", difference(runs, "d3s", "random"), lambda gain: gain >= 0.05),
        check("D3S ≥ GRPO − 0.01", difference(runs, "d3s", "grpo"), lambda gain: gain >= -0.01),
        check("D3S's tokens / GRPO's < 0.5", tokens, lambda share: share < 0.5),
        check("scheduled ≥ unscheduled", difference(runs, "d3s", "unscheduled"), lambda gain: gain >= 0),
        check("gradient norm at the start: selected > random", gains(start["norm_selected"], start["norm_random"]), lambda d: d > 0),
        check("gradient norm at the start: random > full", gains(start["norm_random"], start["norm_full"]), lambda d: d > 0),
        check("share of selected rollouts with an advantage = 1", by_seed(runs, BASE, "start.useful_selected"), lambda d: d >= 1 - 1e-6),
    ]


def told(runs: Runs) -> dict[str, list[str]]:
    found = [run["start"] for run in runs if run["method"] == BASE]
    names = {f"{key}_{name}": None for key in ("norm", "useful", "variance") for name in AT_START}
    return {
        "At the start, means over seeds": [f"{name}: {sum(f[name] for f in found) / len(found):.3f}" for name in names] if found else []
    }


def build(chosen: argparse.Namespace) -> Claim:
    toy = Toy(**(QUICK if chosen.quick else {}))
    title = "D3S on the digits toy"
    return claim_on(
        toy, METHODS, start=at_start, name="d3s", title=title, source="arXiv 2509.22115", checks=checks, told=told, columns=COLUMNS
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=5))
