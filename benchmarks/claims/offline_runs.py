"""What claims on given transitions share: a run of the library's own loop on arrays, as the returns of its evaluations."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from control_runs import Progress
from harness import ROOT, Told

from unipg.algorithms.base import Algorithm
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.replay import Transitions, open_data
from unipg.replay.cards import References
from unipg.rollouts.base import EvaluationResult
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import Trainer, TrainingRecipe
from unipg.training.feeds.dataset import DatasetRecipe
from unipg.training.optimization import OptimizerRecipe
from unipg.training.run import wanted_of

DATA = ROOT / "benchmarks" / "data"
PENDULUM = EnvironmentRecipe("Pendulum-v1", evaluation_episodes=20)
REFERENCES = References(-1240.0, -147.0, horizon=200)
"""Of Pendulum-v1: returns of random actions, and of the expert that the data have."""


def arrays_of(name: str) -> dict[str, np.ndarray]:
    """The columns of a kept dataset."""
    data = open_data(DATA / f"{name}.npz")
    return {column.name: data.column(column.name) for column in data.columns}


def references_of(name: str) -> References:
    """What the card of a kept dataset measures returns against."""
    found = References.of(open_data(DATA / f"{name}.npz").card)
    assert found is not None
    return found


def spread_of(arrays: Mapping[str, np.ndarray], discount: float = 1.0) -> float:
    """The best (discounted) return of an episode less the worst."""
    _, first, episode = np.unique(arrays["episode"], return_index=True, return_inverse=True)
    step = np.arange(len(episode)) - first[episode]
    returns = np.bincount(episode, arrays["reward"] * discount**step)
    return float(returns.max() - returns.min())


class _Evaluated(Progress):
    """Keeps the mean return of each evaluation, by update."""

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        self.curve: dict[str, float] = {}
        self.run: Any = None

    def start(self, run: Trainer) -> None:
        self.run = run

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self.curve[str(self.run.step)] = results[0].metrics["return"]["value"]


def learned(
    algorithm: Algorithm,
    environment: EnvironmentRecipe,
    arrays: Mapping[str, np.ndarray],
    updates: int,
    seed: int,
    told: Told,
    *,
    controller: ActorCriticRecipe | None = None,
    learning_rate: float | None = None,
    evaluations: int = 1,
    demonstrations: Mapping[str, np.ndarray] | None = None,
    references: References | None = None,
    learners: Mapping[str, Mapping[str, Any]] | None = None,
    kept: Sequence[str] = (),
    **dataset: Any,
) -> tuple[dict[str, Any], ActorCritic]:
    """A run of unipg on columns of transitions, and its policy: `score`, the mean return of the last evaluation, in units of `references`
    where there are any; the `curve` of all of them; and updates per CPU-second (`speed`), without evaluations. `demonstrations`: an
    expert's transitions. `learners`: settings of their optimisers; `kept`: metrics of the last iteration that are returned too, by what
    stands behind the slash. `dataset`: more of that section of recipes."""
    experience = environment.build(seed)
    spent, evaluate = 0.0, experience.evaluate

    def timed(*arguments: Any) -> Any:
        nonlocal spent
        began = time.process_time()
        found = evaluate(*arguments)
        spent += time.process_time() - began
        return found

    experience.evaluate = timed  # type: ignore[method-assign]
    spaces = experience.observation_space, experience.action_space
    policy = (controller or ActorCriticRecipe()).build(*spaces, seed, wanted=wanted_of(algorithm))
    with tempfile.TemporaryDirectory() as scratch:
        Transitions.of(arrays).save(Path(scratch, "data"))
        if demonstrations is not None:
            Transitions.of(demonstrations).save(Path(scratch, "demonstrations"))
            dataset["demonstrations"] = str(Path(scratch, "demonstrations"))
        each = updates // evaluations
        run = Trainer(
            algorithm,
            policy,
            experience,
            folder=Path(scratch, "run"),
            training=TrainingRecipe(iterations=evaluations, save_every=evaluations, evaluate_every=1),
            optimizer=OptimizerRecipe(
                **({} if learning_rate is None else {"learning_rate": learning_rate}),
                learners={name: dict(own) for name, own in (learners or {}).items()},
            ),
            dataset=DatasetRecipe(str(Path(scratch, "data")), updates=each, **dataset),
            seed=seed,
            observer=(watch := _Evaluated(told)),
        )
        began = time.process_time()
        last = run.train()
        seconds = time.process_time() - began - spent
    curve = {step: value if references is None else references.score(value) for step, value in watch.curve.items()}
    return {"score": list(curve.values())[-1], "curve": curve, "speed": each * evaluations / seconds} | {
        name.split("/")[-1]: last[name] for name in kept if name in last
    }, policy
