"""PRDC on a line with a stretch where only steps the wrong way were recorded: the nearest pair against the recorded action."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from control_runs import settings_of
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main
from offline_runs import learned

from unipg.algorithms.offline.prdc import PRDC
from unipg.algorithms.offline.td3_bc import TD3BC
from unipg.environments.line_world import BAD, collect
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe

OWN: dict[str, Any] = {"discount": 0.95, "alpha": 2.5}
METHODS = {
    "prdc": ("PRDC, beta 2", PRDC(beta=2.0, **OWN)),
    "prdc_all": ("PRDC, beta 2, all pairs compared", PRDC(beta=2.0, search="all", **OWN)),
    "td3_bc": ("TD3+BC: the recorded action", TD3BC(**OWN)),
    "prdc_100": ("PRDC, beta 100: the nearest state first", PRDC(beta=100.0, **OWN)),
}
INSIDE = np.linspace(*BAD, 101, dtype=np.float32)[:-1, None]


def build(options: argparse.Namespace) -> Claim:
    updates, rows, evaluations = (40, 400, 2) if options.quick else (6000, 4000, 12)

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        environment = EnvironmentRecipe("unipg.environments:unipg/LineWorld-v0", evaluation_episodes=20)
        controller = ActorCriticRecipe(hidden=[64, 64])
        found, policy = learned(
            METHODS[method][1],
            environment,
            collect(rows, seed),
            updates,
            seed,
            told,
            controller=controller,
            learning_rate=1e-3,
            evaluations=evaluations,
        )
        return found | {"inside": float(policy.outward()(INSIDE, policy.actor()(INSIDE, None)).mean())}

    def checks(runs: Runs) -> list[Check | None]:
        return [
            check("PRDC, beta 2: success ≥ 0.9", by_seed(runs, "prdc"), lambda share: share >= 0.9),
            check("TD3+BC: success ≤ 0.2", by_seed(runs, "td3_bc"), lambda share: share <= 0.2),
            check("PRDC, beta 100: success ≤ 0.2", by_seed(runs, "prdc_100"), lambda share: share <= 0.2),
        ]

    return Claim(
        name="prdc",
        title="PRDC: a good action recorded near by in place of a bad one recorded here",
        source="arXiv 2306.06569",
        methods={name: Method(title, settings_of(made)) for name, (title, made) in METHODS.items()},
        run=run,
        checks=checks,
        columns={"score": "success", "inside": "mean action in [4, 6)", "speed": "updates per CPU-second"},
        about=(
            f"x in [0, 10], steps of at most 1, 1 for getting to 10 within 40 steps from x ~ U(0, 2). {rows:,} recorded steps with "
            f"a ~ U(−1, 1), but a ~ U(−1, −0.5) for x in [4, 6). {updates:,} updates of 256, 64-64 networks, Adam at 1e-3, discount 0.95, "
            "alpha 2.5. "
            "Success in 20 episodes of the last policy. All seeds have data of their own."
        ),
        setup={"updates": updates, "rows": rows, "evaluations": evaluations},
        limits=(0.0, 1.0),
        over="updates",
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
