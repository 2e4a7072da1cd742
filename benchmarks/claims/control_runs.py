"""What claims on controllers share: a run of the library's own loop, or of Stable-Baselines3, as the returns of the episodes in it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import ROOT, Check, Runs, Told, by_seed, check, difference

from unipg.algorithms.base import Algorithm
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.statistics import mean_interval
from unipg.training import Trainer, TrainingRecipe
from unipg.training.feeds.dataset import DatasetRecipe
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe
from unipg.training.run import wanted_of

POINTS = 20
"""Of a curve."""
LAST = 0.1
"""Share of the steps that the return at the end is of."""
SIDE = Path(__file__).with_name("sb3_side.py")
Ended = Sequence[Sequence[float]]
"""Episodes, one or several a row: the step at which they had ended, their mean return, and how many they are."""


class Progress(Observer):
    """Tells the share that is done."""

    def __init__(self, told: Told) -> None:
        self.told = told

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.told(done / total)


def settings_of(algorithm: Algorithm) -> dict[str, Any]:
    """What a stored run must have been made with, in plain values."""
    return {"algorithm": algorithm.name, **asdict(algorithm)}


def trained(
    algorithm: Algorithm,
    environment: EnvironmentRecipe,
    training: TrainingRecipe,
    seed: int,
    told: Told,
    *,
    controller: ActorCriticRecipe | None = None,
    optimizer: OptimizerRecipe | None = None,
    replay: ReplayRecipe | None = None,
    dataset: DatasetRecipe | None = None,
    watch: type[Progress] = Progress,
    of: str = "return/mean",
    evaluates: bool = False,
    more: Callable[[Sequence[dict[str, Any]]], dict[str, Any]] = lambda rows: {},
) -> dict[str, Any]:
    """A run of unipg: what `returns` makes of its episodes, its steps per CPU-second, and what `more` makes of its rows of metrics. `of`:
    the metric that is told of episodes, such as their length where that is their return without noise.

    It evaluates nothing on the way but where it `evaluates`; `watch` may end it early.
    """
    experience = environment.build(seed)
    if not evaluates:
        experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    spaces = experience.observation_space, experience.action_space
    policy = (controller or ActorCriticRecipe()).build(*spaces, seed, wanted=wanted_of(algorithm))
    with tempfile.TemporaryDirectory() as scratch:
        run = Trainer(
            algorithm,
            policy,
            experience,
            folder=Path(scratch, "run"),
            training=training,
            optimizer=optimizer,
            replay=replay,
            dataset=dataset,
            seed=seed,
            observer=watch(told),
        )
        began = time.process_time()
        run.train()
        seconds = time.process_time() - began
        assert run.tracker is not None
        rows = run.tracker.rows()
    ended = [(row["environment/steps"], row[of], row["return/episodes"]) for row in rows if row["return/episodes"]]
    steps = int(rows[-1]["environment/steps"])
    return returns(ended, steps) | {"speed": steps / seconds} | more(rows)


def sb3(python: str, algorithm: str, environment: str, steps: int, seed: int) -> dict[str, Any]:
    """A run of Stable-Baselines3 at its defaults, in a process of `python` with one thread."""
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [python, str(SIDE), algorithm, environment, str(steps), str(seed)]
    done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"Stable-Baselines3's side failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return returns(found["ended"], found["steps"]) | {"speed": found["steps"] / found["cpu"], "versions": found["versions"]}


def peers_python(chosen: str | None) -> str:
    """The interpreter with Stable-Baselines3; `InputError` where there is none."""
    python = chosen or os.environ.get("UNIPG_PEERS_PYTHON") or str(ROOT / ".venv-peers" / "bin" / "python")
    packages = "import stable_baselines3, sb3_contrib"
    if not Path(python).is_file() or subprocess.run([python, "-c", packages], capture_output=True, check=False).returncode:
        raise InputError(
            f"'{python}' cannot import stable_baselines3 and sb3_contrib; `make .venv-peers/.installed`, or give --peers PYTHON"
        )
    return python


def returns(ended: Ended, steps: int) -> dict[str, Any]:
    """`score`: mean over the run's steps of the return of the episodes that ended there; `last`: in its last tenth; and the curve.

    A point in which no episode ended is as the one before.
    """
    size = steps / POINTS
    points: list[list[tuple[float, float]]] = [[] for _ in range(POINTS)]
    for step, value, count in ended:
        points[min(POINTS - 1, int(max(0, step - 1) / size))].append((value, count))
    curve: dict[str, float] = {}
    mean = 0.0
    for place, point in enumerate(points):
        if point:
            mean = sum(value * count for value, count in point) / sum(count for _, count in point)
        curve[str(round((place + 1) * size))] = mean
    late = [(value, count) for step, value, count in ended if step > (1 - LAST) * steps]
    last = sum(value * count for value, count in late) / sum(count for _, count in late) if late else mean
    return {"score": sum(curve.values()) / POINTS, "last": last, "curve": curve}


def overlap(runs: Runs, ours: str, theirs: str, name: str, claim: str) -> Check | None:
    """Whether the intervals of two means over seeds overlap; the number is the difference of the means."""
    one, other = (list(by_seed(runs, method, name).values()) for method in (ours, theirs))
    if len(one) < 2 or len(other) < 2:
        return None
    a, b = mean_interval(one), mean_interval(other)
    most, least = (a.value - a.low) + (b.high - b.value), -((a.high - a.value) + (b.value - b.low))
    return check(claim, difference(runs, ours, theirs, name), lambda gap: least <= gap <= most)


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """`ours` / `theirs`, by seed."""
    return {seed: round(value / theirs[seed], 6) for seed, value in ours.items() if seed in theirs}
