"""The claim of CHORD (arXiv 2508.11408) on a toy: SFT as a weighted part of every RL step beats SFT and GRPO alone, and the token weight
p·(1 − p) keeps the policy's own skill where plain SFT on a noisy expert destroys it.

On the two toys of `string_operations.two_toys`: the base model of T1 knows two of the four operations, that of T2 all of them.

    python benchmarks/claims/chord.py                        the whole claim, written to benchmarks/results/chord.{json,md,png}
    python benchmarks/claims/chord.py --quick                half a minute: does it run? The numbers mean nothing
    python benchmarks/claims/chord.py --architecture gpt2    another small transformer, written to benchmarks/results/chord-gpt2.*
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from harness import Check, Claim, Runs, check, difference, main
from string_operations import UNKNOWN, Toy, Training, algorithm, architecture_option, claim_on, on_operations, two_toys, with_architecture

_RL = "rollouts: mean over all their tokens, A = (R − group mean) / group std; dual clip 3"
_SFT = "mean over all demonstration tokens of the step"


def _grpo(toy: str) -> Training:
    return Training("GRPO alone", ((algorithm("grpo", aggregate="token_mean", clip_dual=3.0), 1.0),), _RL, toy)


def _sft(toy: str) -> Training:
    return Training("SFT alone", ((algorithm("sft"), 1.0),), _SFT, toy)


def _phi(toy: str) -> Training:
    return Training("CHORD-phi (mu = 0.1)", ((algorithm("chord"), 1.0),), f"0.9 · ({_RL}) + 0.1 · phi, {_SFT}", toy)


TRAININGS = {
    "T1/grpo": _grpo("T1"),
    "T1/sft": _sft("T1"),
    "T1/chord_mu": Training(
        "CHORD-mu (0.9 → 0.05 over 200 steps)", ((algorithm("chord_mu"), 1.0),), f"(1 − mu) · ({_RL}) + mu · {_SFT}", "T1"
    ),
    "T1/constant": Training("constant mu = 0.1, phi off", ((algorithm("chord", phi="none"), 1.0),), f"0.9 · ({_RL}) + 0.1 · {_SFT}", "T1"),
    "T1/chord_phi": _phi("T1"),
    "T2/grpo": _grpo("T2"),
    "T2/sft": _sft("T2"),
    "T2/chord_phi": _phi("T2"),
}


def checks(runs: Runs) -> list[Check | None]:
    """The claim, piece by piece."""
    against_grpo = difference(runs, "T2/chord_phi", "T2/grpo")
    return [
        check("T1: CHORD-mu > SFT + 0.1", difference(runs, "T1/chord_mu", "T1/sft"), lambda gain: gain > 0.1),
        check("T1: CHORD-mu > GRPO + 0.3", difference(runs, "T1/chord_mu", "T1/grpo"), lambda gain: gain > 0.3),
        check("T2: CHORD-phi > SFT + 0.15", difference(runs, "T2/chord_phi", "T2/sft"), lambda gain: gain > 0.15),
        check("T2: CHORD-phi within 0.02 of GRPO", against_grpo, lambda gain: abs(gain) <= 0.02),
        check("T2: CHORD-phi ≥ GRPO − 0.02 (added here)", against_grpo, lambda gain: gain >= -0.02),
        check(
            "T1: CHORD-phi on the operations the base model does not know < 0.1 (a limit: no support, no signal)",
            on_operations(runs, "T1/chord_phi", UNKNOWN),
            lambda share: share < 0.1,
        ),
    ]


def claim(toys: Mapping[str, Toy]) -> Claim:
    architecture = toys["T1"].model.architecture
    return claim_on(
        toys,
        TRAININGS,
        name=with_architecture("chord", architecture),
        title=f"CHORD on the toy 'noisy expert on string operations', {architecture}",
        source="arXiv 2508.11408",
        checks=checks,
    )


def build(chosen: argparse.Namespace) -> Claim:
    return claim(two_toys(chosen.quick, chosen.architecture))


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=architecture_option))
