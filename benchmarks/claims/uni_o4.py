"""Uni-O4 on a pendulum's mixed data: PPO from clones, whose old policy never moves, moves each time, or when a model finds it better.
`--part online`: PPO in the environment from there, with the data's V, with a fresh one, and from nothing."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from control_runs import settings_of
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
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
BATCHES, COUNT, WINDOW = 24, 8, 256
ONLINE = {
    "kept": ("actor and V of the data", UniO4(offline_iterations=2, value_clip=None, **OWN)),
    "fresh": ("actor of the data, fresh V", UniO4(offline_iterations=2, value_clip=None, online_value="fresh", **OWN)),
    "scratch": (
        "from nothing: one update of each",
        UniO4(
            offline_iterations=1, value_clip=None, members=1, critic_iterations=1, clone_iterations=1, model_iterations=1, model_members=1
        ),
    ),
}
RATES = {"online": {"learning_rate": 3e-4}, "online_value": {"learning_rate": 1e-3}}
SOON, DROP = 5, 10.0


def build(options: argparse.Namespace) -> Claim:
    return online(options.quick) if options.part == "online" else offline(options.quick)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("offline", "online"), default="offline", help="whether it goes on in the environment")


def online(quick: bool) -> Claim:
    each, batches = (10, 6) if quick else (1000, BATCHES)
    arrays = arrays_of("pendulum-mix")
    environment = replace(PENDULUM, count=COUNT, steps=WINDOW)

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        algorithm = ONLINE[method][1]
        assert algorithm.offline_iterations is not None
        before = algorithm.learned_at + algorithm.offline_iterations
        found, _ = learned(
            algorithm,
            environment,
            arrays,
            (1 if method == "scratch" else each) * (before + batches),
            seed,
            told,
            controller=ActorCriticRecipe(hidden=[64, 64]),
            evaluations=before + batches,
            references=REFERENCES,
            learners={**LEARNERS, **RATES},
            reward_scale=0.125,
        )
        scores = list(found["curve"].values())[before:]
        curve = {str(batch * COUNT * WINDOW): score for batch, score in enumerate(scores)}
        area = sum(scores[1:]) / batches
        return {"score": area, "start": scores[0], "drop": scores[0] - min(scores[1 : SOON + 1]), "end": scores[-1], "curve": curve}

    def checks(runs: Runs) -> list[Check | None]:
        return [
            check(
                f"the data's V: no more than {DROP:g} lost in the first {SOON} batches", by_seed(runs, "kept", "drop"), lambda d: d <= DROP
            ),
            check("the data's V − a fresh one, over the run: above 0", difference(runs, "kept", "fresh"), lambda gain: gain > 0),
            check("a fresh V − from nothing, over the run: above 0", difference(runs, "fresh", "scratch"), lambda gain: gain > 0),
        ]

    return Claim(
        name="uni_o4-online",
        title="Uni-O4, from offline to online: what the data's policy and V are worth",
        source="arXiv 2311.03351",
        methods={name: Method(title, settings_of(made)) for name, (title, made) in ONLINE.items()},
        run=run,
        checks=checks,
        columns={"score": "score over the run", "start": "at its start", "drop": f"lost in {SOON} batches", "end": "at its end"},
        about=(
            f"As the claim offline, by the model's gate; then PPO for {batches} batches of {COUNT * WINDOW:,} steps of Pendulum-v1, 10 "
            "passes of 16 steps, clip 0.05, Adam at 3e-4 (V: 1e-3) falling to 0. Score: 0 random, 100 the expert, 20 episodes after every "
            "batch; over the run: their mean."
        ),
        setup={"updates": each, "batches": batches, "learners": {**LEARNERS, **RATES}},
        over="steps",
    )


def offline(quick: bool) -> Claim:
    each = 10 if quick else 1000
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
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options))
