"""The claim of OTR (arXiv 2509.26313) on a toy: one-token rollouts filter an expert's errors where the base model has support, and learn
slower than SFT where it has none.

On the two toys of `string_operations.two_toys`: the base model of T1 knows two of the four operations, that of T2 all of them.

    python benchmarks/claims/otr.py                        the whole claim, written to benchmarks/results/otr.{json,md,png}
    python benchmarks/claims/otr.py --quick                half a minute: does it run? The numbers mean nothing
    python benchmarks/claims/otr.py --architecture gpt2    another small transformer, written to benchmarks/results/otr-gpt2.*
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from harness import Check, Claim, Runs, check, difference, gains, main
from string_operations import KNOWN, Toy, Training, algorithm, architecture_option, claim_on, on_operations, two_toys, with_architecture

_MEAN = "mean over all demonstration tokens of the step"
TRAININGS = {
    f"{toy}/{name}": Training(title, ((algorithm(name, **settings), 1.0),), _MEAN, toy)
    for toy in ("T1", "T2")
    for name, title, settings in (
        ("sft", "SFT", {}),
        ("dft", "DFT", {}),
        ("otr", "OTR (64 draws at 1.3, beta −0.1)", {"draws": 64, "temperature": 1.3, "beta": -0.1, "aggregate": "token_mean"}),
    )
}


def checks(runs: Runs) -> list[Check | None]:
    """The claim, piece by piece."""
    known = gains(on_operations(runs, "T1/otr", KNOWN), on_operations(runs, "T1/sft", KNOWN))
    return [
        check("T2: OTR > SFT + 0.15", difference(runs, "T2/otr", "T2/sft"), lambda gain: gain > 0.15),
        check("T2: SFT < base model", difference(runs, "T2/sft", "T2/base"), lambda gain: gain < 0),
        check("T1: OTR < SFT + 0.02", difference(runs, "T1/otr", "T1/sft"), lambda gain: gain < 0.02),
        check("T1: OTR > SFT + 0.1 on the operations the base model knows", known, lambda gain: gain > 0.1),
        check("T1 at step 100: OTR < SFT + 0.02 (added here)", difference(runs, "T1/otr", "T1/sft", "curve.100"), lambda gain: gain < 0.02),
    ]


def claim(toys: Mapping[str, Toy]) -> Claim:
    architecture = toys["T1"].model.architecture
    return claim_on(
        toys,
        TRAININGS,
        name=with_architecture("otr", architecture),
        title=f"OTR on the toy 'noisy expert on string operations', {architecture}",
        source="arXiv 2509.26313",
        checks=checks,
    )


def build(chosen: argparse.Namespace) -> Claim:
    return claim(two_toys(chosen.quick, chosen.architecture))


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=architecture_option))
