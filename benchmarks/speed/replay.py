"""SAC, TD3 and DQN beside Stable-Baselines3: steps per CPU-second, and learning curves of the same runs.

    python benchmarks/speed/replay.py [--peers PYTHON] [--cases sac-256,td3-64] [--seeds 5] [--steps N] [--quick] [--kept]

Both sides have one environment, one thread and the settings of Stable-Baselines3's defaults, but for what a case says: networks of 2 x 256
or 2 x 64 with ReLU, batches of 256 and an update after every step (SAC, TD3), batches of 64 and an update after every fourth step (DQN).
Each run has a process of its own, and the sides take turns. CPU-seconds are those of training alone: imports and a short first run are over
before the clock starts. A learning curve has at most ten points, the last of which is the return at the end. That losses and gradients are
equal on the same tensors is in `tests/peers/`. What still differs: the random numbers, and which temperature SAC's critic reads (ours that
of after its step). Finished runs are kept beside the result and are not done again; --kept tells of them alone, of as many seeds as each
case has.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import control
from control import ROOT, Run, clocked, curve, summary, told

OUTPUT = ROOT / "benchmarks" / "results" / "speed-replay.json"


@dataclass(frozen=True)
class Case:
    """What is run, and how many times Stable-Baselines3's steps per CPU-second are aimed at."""

    algorithm: str
    environment: str
    hidden: int
    steps: int
    aim: float


CASES = {
    "sac-256": Case("sac", "Pendulum-v1", 256, 10_000, 1.2),
    "td3-256": Case("td3", "Pendulum-v1", 256, 10_000, 1.2),
    "sac-64": Case("sac", "Pendulum-v1", 64, 10_000, 1.7),
    "td3-64": Case("td3", "Pendulum-v1", 64, 10_000, 1.7),
    "dqn": Case("dqn", "CartPole-v1", 64, 50_000, 2.5),
}
ITERATION = 1000
FIRST = 400
"""Steps of the run before the clock starts."""


def stretch(steps: int) -> int:
    """Steps of one point of a curve; our side tells returns once an iteration."""
    return max(min(ITERATION, steps), steps // 10)


def ours(case: Case, seed: int, steps: int) -> Run:
    from unipg.algorithms import algorithm_named
    from unipg.policies.actor_critic import ActorCriticRecipe
    from unipg.rollouts.environments import EnvironmentRecipe
    from unipg.training.feeds.replay import ReplayRecipe
    from unipg.training.run import wanted_of
    from unipg.training.trainer import Trainer, TrainingRecipe

    def trainer(seed: int, steps: int, folder: Path) -> Trainer:
        window = min(ITERATION, steps)
        experience = EnvironmentRecipe(case.environment, 1, window, vectorized=False).build(seed)
        experience.evaluate = lambda *_: []  # type: ignore[method-assign]
        algorithm = algorithm_named(case.algorithm)()
        controller = ActorCriticRecipe(hidden=[case.hidden, case.hidden])
        policy = controller.build(experience.observation_space, experience.action_space, seed, wanted=wanted_of(algorithm))
        dqn = case.algorithm == "dqn"
        replay = ReplayRecipe(batch=64 if dqn else 256, warmup=100, updates_per_step=0.25 if dqn else 1.0)
        training = TrainingRecipe(iterations=steps // window, save_every=steps // window)
        return Trainer(algorithm, policy, experience, folder=folder, training=training, seed=seed, replay=replay)

    return clocked(trainer, seed, FIRST, steps, stretch(steps))


def stable_baselines3(case: Case, seed: int, steps: int) -> Run:
    import gymnasium
    import numpy
    import stable_baselines3
    import torch
    from stable_baselines3.common.monitor import Monitor

    def model(seed: int) -> Any:
        settings: dict[str, Any] = {"learning_starts": 100, "batch_size": 256, "train_freq": 1, "gradient_steps": 1}
        if case.algorithm == "td3":
            noise = stable_baselines3.common.noise.NormalActionNoise(numpy.zeros(1), 0.1 * numpy.ones(1))
            settings["action_noise"] = noise
        if case.algorithm == "dqn":
            settings = {"batch_size": 64}
        environment = Monitor(gymnasium.make(case.environment))
        kind = getattr(stable_baselines3, case.algorithm.upper())
        shape = {"net_arch": [case.hidden, case.hidden]}
        return kind("MlpPolicy", environment, policy_kwargs=shape, device="cpu", seed=seed, **settings)

    model(seed + 1000).learn(FIRST)
    timed = model(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    timed.learn(steps)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    (returns,), (lengths,) = timed.env.env_method("get_episode_rewards"), timed.env.env_method("get_episode_lengths")
    ended = [(int(end), float(value), 1.0) for end, value in zip(numpy.cumsum(lengths), returns, strict=True)]
    named = {"stable-baselines3": stable_baselines3, "gymnasium": gymnasium, "torch": torch, "numpy": numpy}
    versions = {name: module.__version__ for name, module in named.items()}
    return {"steps": timed.num_timesteps, "cpu": cpu, "wall": wall, "curve": curve(ended, stretch(steps)), "versions": versions}


SIDES = {"ours": ours, "stable_baselines3": stable_baselines3}


def compared(case: Case, mine: Sequence[Run], theirs: Sequence[Run]) -> dict[str, Any]:
    """Ratios of runs that ran after each other, and whether the intervals of returns overlap; null where one seed says nothing of it."""
    ratios = [(a["steps"] / a["cpu"]) / (b["steps"] / b["cpu"]) for a, b in zip(mine, theirs, strict=True)]
    sides = {"ours": ended(summary(mine)), "stable_baselines3": ended(summary(theirs))}
    found: dict[str, bool | None] = {}
    for name in ("mean_return", "final_return"):
        a, b = (side[name] for side in sides.values())
        found[name] = a["low"] <= b["high"] and b["low"] <= a["high"] if len(ratios) > 1 else None
    ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "target": case.aim}
    return {"seeds": len(ratios), "ratio": ratio, "reached": ratio["median"] >= case.aim, "returns_overlap": found, **sides}


def ended(found: dict[str, Any]) -> dict[str, Any]:
    """Without the ends of intervals that a single number does not have: they are NaN, which nothing equals."""
    inner = {name: ended(value) if isinstance(value, dict) else value for name, value in found.items()}
    return {name: value for name, value in inner.items() if value == value}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peers", help="Python of an environment with stable-baselines3 (default $UNIPG_PEERS_PYTHON, then .venv-peers)")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each run, instead of the case's own")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="one seed of 1,000 steps: only whether it runs")
    parser.add_argument("--kept", action="store_true", help="start nothing: tell of the runs that are kept")
    parser.add_argument("--note", default="", help="what else there is to say of how it was measured")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.cases.split(",")) - set(CASES):
        parser.error(f"cases {', '.join(sorted(unknown))} do not exist; accepted: {', '.join(CASES)}")
    if chosen.side:
        import torch

        torch.set_num_threads(1)
        case = CASES[chosen.cases]
        told(json.dumps(SIDES[chosen.side](case, chosen.seed, chosen.steps or case.steps)))
        return 0
    python = chosen.peers or os.environ.get("UNIPG_PEERS_PYTHON") or str(ROOT / ".venv-peers" / "bin" / "python")
    if not chosen.kept and not control.present("stable_baselines3", python, None):
        return 1
    seeds = 1 if chosen.quick else chosen.seeds
    kept = chosen.output.with_suffix(".jsonl")
    done = [] if chosen.quick or not kept.is_file() else [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    runs: dict[str, dict[str, list[Run]]] = {name: {side: [] for side in SIDES} for name in chosen.cases.split(",")}
    for name, seed in [(name, seed) for seed in range(seeds) for name in runs]:
        steps = 1000 if chosen.quick else chosen.steps or CASES[name].steps
        keys = {side: {"case": name, "side": side, "seed": seed, "of": steps} for side in SIDES}
        known = {side: next((row["run"] for row in done if row["key"] == key), None) for side, key in keys.items()}
        if chosen.kept and None in known.values():
            continue
        for side in SIDES if seed % 2 == 0 else reversed(SIDES):
            found = known[side]
            if found is None:
                interpreter = sys.executable if side == "ours" else python
                told(f"{name} seed {seed} {side} …")
                found = run(interpreter, "--cases", name, "--side", side, "--seed", seed, "--steps", steps)
                if not chosen.quick:
                    with kept.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"key": keys[side], "run": found}) + "\n")
            runs[name][side].append(found)
            told(f"{name:8s} seed {seed}  {side:18s} {found['steps'] / found['cpu']:8.0f} steps per CPU-second")
    cases = {name: compared(CASES[name], found["ours"], found["stable_baselines3"]) for name, found in runs.items() if found["ours"]}
    for name, found in cases.items():
        ratio, word = found["ratio"], "reached" if found["reached"] else "NOT reached"
        told(f"{name}: {ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] x, aim {ratio['target']}: {word}")
        for side in SIDES:
            told(f"{'':10s}{side:18s} return at the end {found[side]['final_return']['value']:.0f}")
        told(f"{'':10s}returns overlap: {found['returns_overlap']}")
    if not chosen.quick:
        from unipg.training.record import cpu_name

        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": 1, "python": platform.python_version()}
        result = {
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.argv]),
            "commit": head,
            "machine": machine,
            "note": chosen.note,
            "cases": cases,
        }
        chosen.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        told(f"written to {chosen.output}")
    return 0


def run(python: str, *arguments: object) -> Any:
    """The last line that a side prints, from a fresh process of this script on one thread."""
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
