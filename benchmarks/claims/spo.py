"""The claim of SPO (arXiv 2509.13232) on the digits toy: a tracked success rate per prompt beats groups on the same number of responses.

    python benchmarks/claims/spo.py            the whole claim, written to benchmarks/results/spo.{json,md,png}
    python benchmarks/claims/spo.py --quick    does it run? The numbers mean nothing

Nothing is asserted of the adaptive rate against a constant one, nor of priorities against uniform sampling: their numbers are reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass

from digits import QUICK, Toy, claim_on
from harness import Check, Claim, Runs, check, difference, main

from unipg.algorithms import Setting, algorithm_named
from unipg.algorithms.base import Algorithm
from unipg.algorithms.language.spo import SPO
from unipg.estimator import PolicyGradient
from unipg.estimator.baselines import RowsWhitened


@dataclass(frozen=True)
class NoBaseline(SPO):
    """SPO with the tracker taken out: the whitened reward itself."""

    def objective(self, setting: Setting) -> PolicyGradient:
        return dataclasses.replace(super().objective(setting), advantage=RowsWhitened())


METHODS: dict[str, tuple[str, Algorithm]] = {
    "grpo": ("GRPO, 16 prompts x 8", algorithm_named("grpo")()),
    "spo": ("SPO, 128 prompts x 1, no offline scores", SPO()),
    "spo_constant_875": ("SPO, constant rho 0.875", SPO(forgetting="constant")),
    "spo_constant_96": ("SPO, constant rho 0.96", SPO(forgetting="constant", rho_min=0.96)),
    "spo_uniform": ("SPO, uniform sampling", SPO(sampler="uniform")),
    "no_baseline": ("whitened reward without baseline, uniform sampling", NoBaseline(sampler="uniform")),
}


def checks(runs: Runs) -> list[Check | None]:
    return [
        check("SPO ≥ GRPO + 0.08", difference(runs, "spo", "grpo"), lambda gain: gain >= 0.08),
        check("SPO > the same without baseline", difference(runs, "spo", "no_baseline"), lambda gain: gain > 0),
    ]


def build(chosen: argparse.Namespace) -> Claim:
    toy = Toy(**(QUICK if chosen.quick else {}))
    return claim_on(toy, METHODS, name="spo", title="SPO on the digits toy", source="arXiv 2509.13232", checks=checks)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=5))
