"""Every offline method on one pendulum's mixed data, beside d3rlpy's where it has it: scores, and updates per CPU-second."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from control_runs import settings_of
from d3rlpy_side import mean_return
from harness import Check, Claim, Method, Runs, Told, check, difference, main
from offline_runs import PENDULUM, REFERENCES, arrays_of, learned, spread_of

from unipg.algorithms.base import algorithm_named
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe

OURS = {
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
THEIRS = ("bc", "td3_bc", "prdc", "iql", "awac", "cql")
SIDE = Path(__file__).with_name("d3rlpy_side.py")
HIDDEN, RATE, SCALE = [64, 64], 1e-3, 0.125


def ours(name: str, updates: int, seed: int, told: Told) -> dict[str, Any]:
    arrays, algorithm = arrays_of("pendulum-mix"), algorithm_named(name)(**OURS[name])
    scale = 200 / spread_of(arrays) if name == "odice" else SCALE  # its weights depend on it
    recipe = ActorCriticRecipe(hidden=HIDDEN)
    found, policy = learned(algorithm, PENDULUM, arrays, updates, seed, told, controller=recipe, learning_rate=RATE, reward_scale=scale)
    act, outward = policy.actor(), policy.outward()
    value = mean_return(lambda seen: outward(seen, act(seen, None)), PENDULUM.id)
    return {"score": REFERENCES.score(value), "speed": found["speed"]}


def theirs(name: str, updates: int, seed: int, python: str) -> dict[str, Any]:
    settings = {"updates": updates, "seed": seed, "hidden": HIDDEN, "learning_rate": RATE, "reward_scale": SCALE}
    settings |= {"environment": PENDULUM.id, "low": [-2.0], "high": [2.0]}
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(place := Path(scratch, "arrays.npz"), **arrays_of("pendulum-mix"))
        command = [python, str(SIDE), name, str(place), json.dumps(settings)]
        done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"d3rlpy's side failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"score": REFERENCES.score(found["return"]), "speed": updates / found["cpu"], "versions": found["versions"]}


def run(updates: int, python: str, method: str, seed: int, told: Told) -> dict[str, Any]:
    side, _, name = method.partition("/")
    return ours(name, updates, seed, told) if side == "unipg" else theirs(name, updates, seed, python)


def checks(runs: Runs) -> list[Check | None]:
    gaps = {name: difference(runs, f"unipg/{name}", f"d3rlpy/{name}") for name in THEIRS}
    return [check(f"{name} − d3rlpy's: not below −10", gap, lambda gain: gain >= -10) for name, gap in gaps.items()]


def build(options: argparse.Namespace) -> Claim:
    python, updates = options.d3rlpy or os.environ.get("UNIPG_D3RLPY_PYTHON"), 40 if options.quick else 4000
    methods = {f"unipg/{name}": Method(name, settings_of(algorithm_named(name)(**own))) for name, own in OURS.items()}
    if python:
        methods |= {f"d3rlpy/{name}": Method(f"{name}, d3rlpy", cost=2.0) for name in THEIRS}
    return Claim(
        name="offline-table",
        title="Offline methods on the same arrays, beside d3rlpy",
        source="d3rlpy 2.8.1",
        methods=methods,
        run=partial(run, updates, python or ""),
        checks=checks,
        columns={"score": "score", "speed": "updates per CPU-second"},
        about=(
            "Pendulum-v1, 25 random, 25 medium and 10 expert episodes (benchmarks/data). Score: 0 random, 100 the expert, the same 20 "
            f"episodes for all. {updates:,} updates of 256, 64-64 networks, Adam at 1e-3 for all networks, rewards × {SCALE} (ODICE: to a "
            "range of 200); observations in units of their standard deviation for bc, td3_bc and prdc. All else is each library's default, "
            "but for CQL's weight, which is fixed in both."
        ),
        setup={"updates": updates, "reward_scale": SCALE},
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--d3rlpy", help="Python of an environment with d3rlpy (default $UNIPG_D3RLPY_PYTHON); none: without that side")


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options))
