"""The claim of COPO (arXiv 2508.04138) on the digits toy, as far as it can be asserted: the soft gate is not worse than GRPO.

    python benchmarks/claims/copo.py            the whole claim, written to benchmarks/results/copo.{json,md,png}
    python benchmarks/claims/copo.py --quick    does it run? The numbers mean nothing

That a batch of consistent degenerate groups moves COPO and not GRPO is tested with closed forms. The sign of the difference is reported.
"""

from __future__ import annotations

import argparse
import sys

from digits import QUICK, Toy, claim_on
from harness import Check, Claim, Runs, check, difference, main

from unipg.algorithms import algorithm_named
from unipg.algorithms.base import Algorithm

METHODS: dict[str, tuple[str, Algorithm]] = {
    "grpo": ("GRPO, 20 prompts x 6", algorithm_named("grpo")(rollouts=6)),
    "copo": ("COPO, only soft", algorithm_named("copo")()),
    "copo_zero": ("COPO, soft with zero (released variant)", algorithm_named("copo")(variant="soft with zero")),
}


def checks(runs: Runs) -> list[Check | None]:
    return [check("COPO (only soft) ≥ GRPO − 0.02", difference(runs, "copo", "grpo"), lambda gain: gain >= -0.02)]


def told(runs: Runs) -> dict[str, list[str]]:
    lines = [f"{name}, minus GRPO, by seed: {difference(runs, name, 'grpo')}" for name in ("copo", "copo_zero")]
    return {"Reported, not asserted": lines}


def build(chosen: argparse.Namespace) -> Claim:
    toy = Toy(**({"warm_steps": 120, "prompts": 20, "rows": 120, "learning_rate": 1e-3} | (QUICK if chosen.quick else {})))
    return claim_on(toy, METHODS, name="copo", title="COPO on the digits toy", source="arXiv 2508.04138", checks=checks, told=told)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], seeds=5))
