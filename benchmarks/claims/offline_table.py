"""Every offline method on the same arrays, beside d3rlpy's where it has it: scores, and updates per CPU-second. One pendulum's mixed data;
`--part hopper`: what a SAC agent had replayed on Hopper-v5 (made by the command in benchmarks/data/hopper.yaml, an hour or less)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from control_runs import settings_of
from d3rlpy_side import mean_return
from harness import Check, Claim, Method, Runs, Told, check, difference, main
from offline_runs import DATA, PENDULUM, arrays_of, learned, references_of, spread_of

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe

SIDE = Path(__file__).with_name("d3rlpy_side.py")
RATE = 1e-3
TABLE = {
    "bc": {},
    "td3_bc": {},
    "prdc": {},
    "iql": {},
    "awac": {},
    "cql": {},
    "xql": {"clip": 5.0},
    "f_dvl": {},
    "odice": {"lam": 0.5, "eta": 0.2, "critics": 1},
}


@dataclass(frozen=True)
class Part:
    """A dataset, and what learns from it."""

    environment: EnvironmentRecipe
    data: str
    hidden: tuple[int, ...]
    updates: int
    scale: float
    """Of rewards."""
    ours: Mapping[str, Mapping[str, Any]]
    theirs: tuple[str, ...]
    about: str


PARTS = {
    "pendulum": Part(
        environment=PENDULUM,
        data="pendulum-mix",
        hidden=(64, 64),
        updates=4000,
        scale=0.125,
        ours=TABLE,
        theirs=("bc", "td3_bc", "prdc", "iql", "awac", "cql"),
        about="Pendulum-v1, 25 random, 25 medium and 10 expert episodes (benchmarks/data).",
    ),
    "hopper": Part(
        environment=EnvironmentRecipe("Hopper-v5", evaluation_episodes=10),
        data="hopper-medium-replay",
        hidden=(128, 128),
        updates=20_000,
        scale=1.0,
        ours={name: {} for name in ("bc", "td3_bc", "prdc", "iql")},
        theirs=("td3_bc", "prdc"),
        about="Hopper-v5, what a SAC agent of 64-64 networks had played until it was as good as in benchmarks/data/hopper.yaml.",
    ),
}


def ours(part: Part, algorithm: Algorithm, updates: int, seed: int, told: Told) -> dict[str, Any]:
    arrays = arrays_of(part.data)
    scale = 200 / spread_of(arrays) if algorithm.name == "odice" else part.scale  # its weights depend on it
    recipe = ActorCriticRecipe(hidden=list(part.hidden))
    found, policy = learned(
        algorithm, part.environment, arrays, updates, seed, told, controller=recipe, learning_rate=RATE, reward_scale=scale
    )
    act, outward = policy.actor(), policy.outward()
    value = mean_return(lambda seen: outward(seen, act(seen, None)), part.environment.id)
    return {"score": references_of(part.data).score(value), "speed": found["speed"]}


def theirs(part: Part, name: str, updates: int, seed: int, python: str) -> dict[str, Any]:
    made = part.environment.build(seed).action_space
    settings = {"updates": updates, "seed": seed, "hidden": part.hidden, "learning_rate": RATE, "reward_scale": part.scale}
    settings |= {"environment": part.environment.id, "low": made.low.tolist(), "high": made.high.tolist()}
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(place := Path(scratch, "arrays.npz"), **arrays_of(part.data))
        command = [python, str(SIDE), name, str(place), json.dumps(settings)]
        done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"d3rlpy's side failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"score": references_of(part.data).score(found["return"]), "speed": updates / found["cpu"], "versions": found["versions"]}


def build(options: argparse.Namespace) -> Claim:
    part = PARTS[options.part]
    if not (DATA / f"{part.data}.npz").is_file():
        raise InputError(f"benchmarks/data/{part.data}.npz is not there; benchmarks/data/{options.part}.yaml says how it is made")
    python, updates = options.d3rlpy or os.environ.get("UNIPG_D3RLPY_PYTHON"), 40 if options.quick else part.updates
    algorithms = {name: algorithm_named(name)(**own) for name, own in part.ours.items()}
    methods = {f"unipg/{name}": Method(name, settings_of(algorithm)) for name, algorithm in algorithms.items()}
    if python:
        methods |= {f"d3rlpy/{name}": Method(f"{name}, d3rlpy", cost=2.0) for name in part.theirs}

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        side, _, name = method.partition("/")
        if side == "unipg":
            return ours(part, algorithms[name], updates, seed, told)
        return theirs(part, name, updates, seed, python or "")

    def checks(runs: Runs) -> list[Check | None]:
        gaps = {name: difference(runs, f"unipg/{name}", f"d3rlpy/{name}") for name in part.theirs}
        found = [check(f"{name} − d3rlpy's: not below −10", gap, lambda gain: gain >= -10) for name, gap in gaps.items()]
        if options.part == "hopper":
            found.append(check("prdc − td3_bc: not below −5", difference(runs, "unipg/prdc", "unipg/td3_bc"), lambda gain: gain >= -5))
        return found

    return Claim(
        name="offline-table" if options.part == "pendulum" else f"offline-table-{options.part}",
        title=f"Offline methods on the same arrays of {part.environment.id}, beside d3rlpy",
        source="d3rlpy 2.8.1",
        methods=methods,
        run=run,
        checks=checks,
        columns={"score": "score", "speed": "updates per CPU-second"},
        about=(
            f"{part.about} Score: 0 random, 100 the expert of the data's card, the same 20 episodes for all. {updates:,} updates of 256, "
            f"{'-'.join(map(str, part.hidden))} networks, Adam at 1e-3 for all networks, rewards × {part.scale:g} (ODICE: to a range of "
            "200); observations in units of their standard deviation for bc, td3_bc and prdc. All else is each library's default, but for "
            "CQL's weight, which is fixed in both."
        ),
        setup={"part": options.part, "updates": updates, "reward_scale": part.scale},
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=tuple(PARTS), default="pendulum", help="of which data")
    parser.add_argument("--d3rlpy", help="Python of an environment with d3rlpy (default $UNIPG_D3RLPY_PYTHON); none: without that side")


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options))
