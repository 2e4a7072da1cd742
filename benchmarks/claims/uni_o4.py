"""Uni-O4 on a pendulum's mixed data: PPO from clones, whose old policy never moves, moves each time, or when a model finds it better."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from control_runs import settings_of
from harness import Check, Claim, Method, Runs, Told, check, difference, main
from offline_runs import PENDULUM, REFERENCES, arrays_of, learned

from unipg.algorithms.offline.uni_o4 import UniO4
from unipg.policies.actor_critic import ActorCriticRecipe

OWN: dict[str, Any] = {"members": 1, "critic_iterations": 6, "clone_iterations": 3, "model_iterations": 3, "model_members": 1}
STEPS = {"clone": 3} | dict.fromkeys(("never", "always", "model"), 8)
"""Thousands of updates: of the clone alone, else of 6 of critics and 2 of the policy."""
METHODS = {
    "clone": ("the clone", UniO4(**OWN)),
    "never": ("one step: the old policy stays", UniO4(gate="never", **OWN)),
    "always": ("several steps, without a gate", UniO4(gate="always", **OWN)),
    "model": ("several steps, by the model's gate", UniO4(**OWN)),
}
LEARNERS = {name: {"learning_rate": 3e-4 if name == "policy" else 1e-3} for name in ("value", "critic", "clone", "policy")}


def build(options: argparse.Namespace) -> Claim:
    each = 10 if options.quick else 1000
    arrays = arrays_of("pendulum-mix")

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        found, _ = learned(
            METHODS[method][1],
            PENDULUM,
            arrays,
            each * STEPS[method],
            seed,
            told,
            controller=ActorCriticRecipe(hidden=[64, 64]),
            evaluations=STEPS[method],
            references=REFERENCES,
            learners=LEARNERS,
            kept=("gate/opened", "gate/accepted"),
            reward_scale=0.125,
        )
        return found

    def checks(runs: Runs) -> list[Check | None]:
        improved = list(METHODS)[1:]
        return [check(f"{METHODS[m][0]} − the clone: at least 15", difference(runs, m, "clone"), lambda gain: gain >= 15) for m in improved]

    return Claim(
        name="uni_o4",
        title="Uni-O4, offline: steps on fresh actions in the data's states improve a clone",
        source="arXiv 2311.03351",
        methods={name: Method(title, settings_of(made)) for name, (title, made) in METHODS.items()},
        run=run,
        checks=checks,
        columns={
            "score": "score",
            "opened": "share of looks at which the gate opened",
            "accepted": "its score in the model",
            "speed": "updates per CPU-s",
        },
        about=(
            "Pendulum-v1, 25 random, 25 medium and 10 expert episodes (benchmarks/data). Score: 0 random, 100 the expert, 20 episodes of "
            f"the last policy. One member; {6 * each:,} updates of 512 of critics, {3 * each:,} of clone and model (Adam at 1e-3), PPO "
            f"{2 * each:,} at 3e-4 falling to 0, clip 0.25, a look at the gate every 100, 50 steps of the model; 64-64 networks, "
            "rewards / 8. That the gate beats one step is not asserted: it scores by the critics that the steps exploit."
        ),
        setup={"updates": each, "learners": LEARNERS},
        over="updates",
    )


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
