"""The claim of HPT (arXiv 2509.04419) on a toy: hybrid post-training beats SFT, GRPO and LUFFY on the same budget.

The toy, "noisy expert on string operations", is described in `string_operations.py`. Reinforcement alone never finds the two operations
that the base model does not know, supervision alone is bounded by the expert's 80 %.

    python benchmarks/claims/hpt.py                        the whole claim, written to benchmarks/results/hpt.{json,md,png}
    python benchmarks/claims/hpt.py --quick                a minute: does it run? The numbers mean nothing
    python benchmarks/claims/hpt.py --methods hpt,sft      some of the methods
    python benchmarks/claims/hpt.py --architecture gpt2    another small transformer, written to benchmarks/results/hpt-gpt2.{json,md,png}

A finished run is kept at once, so a stopped benchmark continues where it was when the same command is given again (on the same commit).
"""

from __future__ import annotations

import argparse
import dataclasses
import operator
import sys
from collections.abc import Callable
from typing import Any

from harness import Check, Claim, Runs, by_seed, check, difference, main
from string_operations import QUICK, Toy, Training, algorithm, architecture_option, claim_on, model_of, with_architecture

_CENTRED = "sum over tokens of A · log pi / (5 tokens · 256 rollouts), A = R − group mean"
TRAININGS = {
    "sft": Training("SFT", ((algorithm("sft"), 1.0),), "mean over all demonstration tokens of the step"),
    "dr_grpo": Training("GRPO, as in HPT's scripts (clip-free Dr. GRPO)", ((algorithm("dr_grpo", clip=False), 1.0),), _CENTRED),
    "grpo": Training(
        "GRPO, as published",
        ((algorithm("grpo"), 1.0),),
        "mean over 256 rollouts of each one's token mean, A = (R − group mean) / group std; the clip never acts at one step per batch",
    ),
    "sft_then_grpo": Training(
        "SFT for a third of the steps, then GRPO (clip-free Dr. GRPO)",
        ((algorithm("sft"), 1 / 3), (algorithm("dr_grpo", clip=False), 1.0)),
        "each phase as SFT and as clip-free Dr. GRPO alone; a fresh optimiser at the change",
    ),
    "luffy": Training(
        "LUFFY (7 rollouts and the demonstration)",
        ((algorithm("luffy"), 1.0),),
        "sum over tokens / (5 tokens · 256 rows: 224 rollouts and 32 demonstrations), A = R − mean over both; "
        "entropy bonus 0.001 · token mean",
    ),
    "srft": Training(
        "SRFT (7 rollouts and the demonstration)",
        ((algorithm("srft"), 1.0),),
        "rollouts and reinforced demonstrations: sum over tokens / (5 tokens · 256 rows); SFT: mean over all demonstration tokens; "
        "entropy bonus 0.001 · token mean",
    ),
    "hpt": Training(
        "HPT, gate 0",
        ((algorithm("hpt", gamma=0.0), 1.0),),
        "rollouts of the prompts that keep them: sum over tokens of A · log pi / (5 tokens · ALL 256 rollouts), A = R − group mean; "
        "SFT: sum over tokens of the gated demonstrations / tokens of ALL 32 demonstrations of the step (their lengths are equal here: "
        "the token mean times the gated fraction); entropy bonus 0.001 · token mean over the rows that train",
    ),
}

CLAIMS: tuple[tuple[str, Callable[[float, float], bool], float, str], ...] = (
    ("sft", operator.gt, 0.1, "HPT > SFT + 0.1"),
    ("dr_grpo", operator.gt, 0.3, "HPT > GRPO (clip-free Dr. GRPO) + 0.3"),
    ("grpo", operator.gt, 0.3, "HPT > GRPO as published + 0.3 (added here)"),
    ("luffy", operator.gt, 0.3, "HPT > LUFFY + 0.3"),
    ("sft_then_grpo", operator.ge, -0.03, "HPT ≥ SFT then GRPO − 0.03"),
)
"""How HPT's score minus that of each of these methods must compare with a margin."""
OFFLINE_BELOW = 0.05


def checks(runs: Runs) -> list[Check | None]:
    """The claim, piece by piece."""

    def against(other: str, exceeds: Callable[[float, float], bool], margin: float, text: str) -> Check | None:
        return check(text, difference(runs, "hpt", other), lambda gain: exceeds(gain, margin))

    last = {seed: fractions[-1] for seed, fractions in by_seed(runs, "hpt", "offline_fraction").items()}
    text = f"HPT's offline fraction in the last steps < {OFFLINE_BELOW:g}"
    return [*(against(*piece) for piece in CLAIMS), check(text, last, lambda share: share < OFFLINE_BELOW)]


def gate(runs: Runs, window: int) -> dict[str, list[str]]:
    """The course of the gate, in words."""
    curves = by_seed(runs, "hpt", "offline_fraction")
    lines = [f"seed {seed}: {', '.join(f'{v:.2f}' for v in values)}" for seed, values in curves.items()]
    return {f"HPT's offline fraction in each {window} steps": lines}


def draw_gate(axes: Any, runs: Runs, window: int) -> None:
    """The same, drawn."""
    for seed, values in by_seed(runs, "hpt", "offline_fraction").items():
        axes.plot([(i + 1) * window for i in range(len(values))], values, marker=".", label=f"seed {seed}")
        axes.legend(fontsize=8)
    axes.axhline(OFFLINE_BELOW, color="grey", linestyle=":")
    axes.set(ylim=(0, 1), xlabel="optimiser steps", title=f"HPT: share of prompts supervised, per {window} steps")
    axes.grid(alpha=0.3)


def claim(toy: Toy) -> Claim:
    as_claimed = dataclasses.replace(toy, model=Toy.model) == Toy()
    architecture = toy.model.architecture
    return claim_on(
        {"": toy},
        TRAININGS,
        name=with_architecture("hpt", architecture),
        title=f"HPT on the toy 'noisy expert on string operations', {architecture}{'' if as_claimed else ', sizes changed'}",
        source="arXiv 2509.04419",
        checks=checks,
        told=lambda runs: gate(runs, toy.window),
        panels=[lambda axes, runs: draw_gate(axes, runs, toy.window)],
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, help=f"optimiser steps of each method (default {Toy.steps})")
    architecture_option(parser)


def build(chosen: argparse.Namespace) -> Claim:
    sizes = (QUICK if chosen.quick else {}) | ({} if chosen.steps is None else {"steps": chosen.steps})
    return claim(Toy(**sizes, model=model_of(chosen.architecture)))


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options, seeds=5))
