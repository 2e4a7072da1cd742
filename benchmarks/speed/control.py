"""PPO beside Stable-Baselines3 and CleanRL: first the gradient against a plain loss, then speed and learning curves.

    python benchmarks/speed/control.py [--case cartpole|hopper] [--peers PYTHON] [--cleanrl path/to/cleanrl/ppo.py] [--seeds 10] [--quick]

CleanRL is no package but a script: name a copy of its `ppo.py` by --cleanrl or UNIPG_CLEANRL, or it is left out; it has no `hopper`.

All sides have separate 64-64 tanh networks, Adam, one thread and 32,768 steps. `cartpole`: 4 environments x 128 steps, 4 epochs and
minibatches of 128. `hopper`: Stable-Baselines3's defaults, 1 environment x 2,048 steps, 10 epochs and minibatches of 64; unipg runs it
with EnvPool's environment too, whose thread counts. Each run has a process of its own, and the sides take turns. CPU-seconds are those of
training alone: imports and a first iteration are over before the clock starts. A step is one that the policy chose; those in which array
environments reset do not count. What still differs: Stable-Baselines3 and CleanRL whiten advantages in each minibatch, unipg over the
batch; CleanRL clips the value loss and trains on the reset steps of its environments; the random numbers.
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
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
EQUAL = 1e-10
EPS, CLIP_NORM, GAMMA, LAM = 1e-5, 0.5, 0.99, 0.95
STEPS = 32_768


@dataclass(frozen=True)
class Case:
    """What is run, and how many times the peers' steps per CPU-second are aimed at, by our side."""

    environment: str
    environments: int
    window: int
    epochs: int
    minibatches: int
    rate: float
    aims: dict[str, float]
    peers: tuple[str, ...]
    output: str

    @property
    def batch(self) -> int:
        return self.environments * self.window


CASES = {
    "cartpole": Case("CartPole-v1", 4, 128, 4, 4, 1e-3, {"ours": 2.5}, ("stable_baselines3", "cleanrl"), "speed-control.json"),
    "hopper": Case("Hopper-v5", 1, 2048, 10, 32, 3e-4, {"ours": 2.0, "envpool": 2.4}, ("stable_baselines3",), "speed-control-hopper.json"),
}
POINT = 4096
"""Steps for each point of a learning curve."""
PEERS = {"stable_baselines3": "stable_baselines3", "cleanrl": "tyro"}
"""The sides beside ours, and a package that each needs."""
Run = dict[str, Any]


def told(text: str) -> None:
    print(text, flush=True)


# ---------------------------------------------------------------------------------------------------- what runs in processes of their own


def trainer(case: Case, seed: int, iterations: int, folder: Path, vectorized: bool | None, envpool: bool = False) -> Any:
    """Of unipg, at the settings above. Nothing is evaluated during the run, as the other side evaluates nothing."""
    from unipg.algorithms.control.ppo import PPO
    from unipg.policies.actor_critic import ActorCriticRecipe
    from unipg.rollouts.environments import EnvironmentRecipe
    from unipg.training.optimization import OptimizerRecipe
    from unipg.training.trainer import Trainer, TrainingRecipe

    pool: dict[str, Any] = {"backend": "envpool", "options": {"num_threads": 1}} if envpool else {"vectorized": vectorized}
    experience = EnvironmentRecipe(case.environment, case.environments, case.window, **pool).build(seed)
    experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    policy = ActorCriticRecipe().build(experience.observation_space, experience.action_space, seed)
    return Trainer(
        PPO(gamma=GAMMA, lam=LAM, value_weight=1.0),  # times our ½ (V - target)²: Stable-Baselines3's 0.5 times a plain square
        policy,
        experience,
        folder=folder,
        training=TrainingRecipe(iterations=iterations, epochs=case.epochs, minibatches=case.minibatches, save_every=iterations),
        optimizer=OptimizerRecipe(learning_rate=case.rate, eps=EPS, clip_norm=CLIP_NORM),
        seed=seed,
    )


def ours(case: Case, seed: int, iterations: int, vectorized: bool | None, envpool: bool) -> Run:
    return clocked(lambda seed, length, folder: trainer(case, seed, length, folder, vectorized, envpool), seed, 1, iterations)


def clocked(make: Callable[[int, int, Path], Any], seed: int, first: int, length: int, point: int = POINT) -> Run:
    """A run of unipg, what it took and what its episodes returned; `make`: a trainer by seed, length and folder. One of length `first` and
    of another seed is over before the clock starts. `point`: see `curve`."""
    from unipg.training.record import versions

    with tempfile.TemporaryDirectory() as scratch:
        make(seed + 1000, first, Path(scratch, "first")).train()
        (folder := Path(scratch, "run")).mkdir()
        timed = make(seed, length, folder)
        wall, cpu = time.perf_counter(), time.process_time()
        timed.train()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ended = [(row["environment/steps"], row["return/mean"], row["return/episodes"]) for row in rows if row["return/episodes"]]
    return {"steps": rows[-1]["environment/steps"], "cpu": cpu, "wall": wall, "curve": curve(ended, point), "versions": versions()}


def stable_baselines3(case: Case, seed: int, iterations: int) -> Run:
    import gymnasium
    import numpy
    import stable_baselines3
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    def model(seed: int) -> Any:
        return PPO(
            "MlpPolicy",
            make_vec_env(case.environment, case.environments, seed=seed),
            n_steps=case.window,
            batch_size=case.batch // case.minibatches,
            n_epochs=case.epochs,
            learning_rate=case.rate,
            gamma=GAMMA,
            gae_lambda=LAM,
            max_grad_norm=CLIP_NORM,
            device="cpu",
            seed=seed,
        )

    model(seed + 1000).learn(case.batch)
    timed = model(seed)
    wall, cpu = time.perf_counter(), time.process_time()
    timed.learn(iterations * case.batch)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    ended = []
    returns, lengths = timed.env.env_method("get_episode_rewards"), timed.env.env_method("get_episode_lengths")
    for environment_returns, environment_lengths in zip(returns, lengths, strict=True):
        ends = numpy.cumsum(environment_lengths) * case.environments
        ended += [(int(end), float(value), 1.0) for end, value in zip(ends, environment_returns, strict=True)]
    named = {"stable-baselines3": stable_baselines3, "gymnasium": gymnasium, "torch": torch, "numpy": numpy}
    versions = {name: module.__version__ for name, module in named.items()}
    return {"steps": timed.num_timesteps, "cpu": cpu, "wall": wall, "curve": curve(ended), "versions": versions}


def cleanrl(case: Case, script: str, seed: int, iterations: int) -> Run:
    """CleanRL's own script; the time of a run of one iteration, with its set-up, is taken off."""
    import functools
    import runpy

    import gymnasium
    import numpy
    import torch

    gymnasium.wrappers.RecordEpisodeStatistics = functools.partial(  # it would forget all but the last 100
        gymnasium.wrappers.RecordEpisodeStatistics, buffer_length=iterations * case.batch
    )
    settings = {
        "learning-rate": case.rate,
        "num-envs": case.environments,
        "num-steps": case.window,
        "num-minibatches": case.minibatches,
        "update-epochs": case.epochs,
        "gamma": GAMMA,
        "gae-lambda": LAM,
        "max-grad-norm": CLIP_NORM,
        "ent-coef": 0.0,
    }
    options = [f"--{name}={value}" for name, value in settings.items()] + ["--no-anneal-lr", "--no-cuda"]

    def timed(seed: int, count: int) -> tuple[float, float, dict[str, Any]]:
        sys.argv = [script, *options, f"--seed={seed}", f"--total-timesteps={count * case.batch}"]
        wall, cpu = time.perf_counter(), time.process_time()
        found = runpy.run_path(script, run_name="__main__")
        return time.process_time() - cpu, time.perf_counter() - wall, found

    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # it writes event files
        timed(seed + 1000, 1)  # imports
        few = timed(seed + 1000, 1)
        many = timed(seed, iterations)
        os.chdir(ROOT)
    ended = []
    for environment in many[2]["envs"].envs:
        ends = numpy.cumsum(environment.length_queue) * case.environments
        ended += [(int(end), float(value), 1.0) for end, value in zip(ends, environment.return_queue, strict=True)]
    named = {"gymnasium": gymnasium, "torch": torch, "numpy": numpy}
    return {
        "steps": (iterations - 1) * case.batch,
        "cpu": many[0] - few[0],
        "wall": many[1] - few[1],
        "curve": curve(ended),
        "versions": {"cleanrl": "ppo.py"} | {name: module.__version__ for name, module in named.items()},
    }


def curve(ended: Sequence[tuple[float, float, float]], point: int = POINT) -> dict[str, float]:
    """Mean return of the episodes that ended within each `point` steps, from (step, mean return, episodes)."""
    sums: dict[int, list[float]] = {}
    for step, mean, episodes in ended:
        place = sums.setdefault(int((max(step, 1) - 1) // point + 1) * point, [0.0, 0.0])
        place[0] += mean * episodes
        place[1] += episodes
    return {str(step): total / count for step, (total, count) in sorted(sums.items())}


def proof(case: Case, vectorized: bool | None) -> float:
    """How far our gradient of a minibatch is from that of the textbook loss, over the largest entry of each parameter's; float64."""
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        one = trainer(case, 0, 1, Path(scratch), vectorized)
        one.feed.begin()
        batch = one.feed.draw(0, 0)
    module = one.policy.module.double()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the old policy, so that ratios differ from 1 and some are clipped
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=source, dtype=torch.float64)
    parameters = list(module.parameters())
    planning = one.learner.planning()
    planned = one.objective.plan(batch, planning)
    now = one.policy.evaluate(planned, value=True)
    found = torch.autograd.grad(one.objective.loss(now, planned, planning), parameters)

    acted = module.actor(batch.observation[:, 0])
    if module.log_std is None:
        log_prob = torch.log_softmax(acted, -1).gather(1, batch.action).squeeze(1)
    else:
        log_prob = torch.distributions.Normal(acted, module.log_std.exp()).log_prob(batch.action[:, 0].double()).sum(-1)
    ratio = (log_prob - batch.old_log_prob[:, 0].double()).exp()
    advantage = batch.planned["policy_gradient/advantage"][:, 0].double()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    error = module.critic(batch.observation[:, 0]).squeeze(1) - batch.planned["value_loss/target"][:, 0].double()
    assert bool((ratio.clamp(0.8, 1.2) != ratio).any())
    wanted = torch.autograd.grad(-gain.mean() + 0.5 * (error**2).mean(), parameters)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))


# ---------------------------------------------------------------------------------------------------- what compares them


def run(python: str, *arguments: object) -> Any:
    """The last line that a side prints, from a fresh process on one thread."""
    alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [python, __file__, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **alone}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def present(peer: str, python: str, script: str | None) -> bool:
    """Whether a peer can run; a line says why not."""
    package, install = PEERS[peer], {"stable_baselines3": "stable-baselines3==2.9.2", "cleanrl": "tyro tensorboard gymnasium"}[peer]
    if not Path(python).is_file() or subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode:
        told(f"{peer} is left out: '{python}' cannot import {package}; `pip install {install}` there, or give --peers PYTHON")
        return False
    if peer == "cleanrl" and not (script and Path(script).is_file()):
        told("cleanrl is left out: " + (f"'{script}' is no file" if script else "name a copy of its ppo.py by --cleanrl or UNIPG_CLEANRL"))
        return False
    return True


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Of one side: steps per CPU-second, and the return over the whole run and at its end, with IQM and interval over seeds."""
    from unipg.statistics import interquartile_mean

    speeds = [r["steps"] / r["cpu"] for r in runs]
    points = sorted({int(step) for r in runs for step in r["curve"]})
    shown = {str(p): [r["curve"][str(p)] for r in runs if str(p) in r["curve"]] for p in points}
    return {
        "steps_per_cpu_second": {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)},
        "steps_per_wall_second": statistics.median(r["steps"] / r["wall"] for r in runs),
        "mean_return": interquartile_mean([statistics.fmean(r["curve"].values()) for r in runs])._asdict(),
        "final_return": interquartile_mean([r["curve"][max(r["curve"], key=int)] for r in runs])._asdict(),
        "curve": {step: interquartile_mean(values)._asdict() for step, values in shown.items()},
        "runs": [{k: v for k, v in r.items() if k != "versions"} for r in runs],
        "versions": runs[0]["versions"],
    }


def compared(mine: Sequence[Run], theirs: Sequence[Run], aim: float) -> dict[str, Any]:
    """Ratios of runs that ran after each other, and whether the intervals overlap."""
    ratios = [(a["steps"] / a["cpu"]) / (b["steps"] / b["cpu"]) for a, b in zip(mine, theirs, strict=True)]
    a, b = summary(mine), summary(theirs)
    shared = sorted(set(a["curve"]) & set(b["curve"]), key=int)

    def overlap(x: dict[str, float], y: dict[str, float]) -> bool:
        return x["low"] <= y["high"] and y["low"] <= x["high"]

    return {
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "target": aim},
        "reached": statistics.median(ratios) >= aim,
        "returns_overlap": {name: overlap(a[name], b[name]) for name in ("mean_return", "final_return")},
        "curve_overlap": {step: overlap(a["curve"][step], b["curve"][step]) for step in shared},
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--case", choices=tuple(CASES), default="cartpole")
    parser.add_argument("--peers", help="Python of an environment with stable-baselines3 (default $UNIPG_PEERS_PYTHON, then .venv-peers)")
    parser.add_argument("--cleanrl", default=os.environ.get("UNIPG_CLEANRL"), help="a copy of CleanRL's ppo.py (default $UNIPG_CLEANRL)")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="default benchmarks/results/speed-control….json")
    parser.add_argument("--stepped", action="store_true", help="unipg steps one environment object after the other, not the array")
    parser.add_argument("--quick", action="store_true", help="two seeds of four iterations: only whether it runs")
    parser.add_argument("--side", choices=("ours", "envpool", "proof", *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    case = CASES[chosen.case]
    seeds, iterations = (2, 4) if chosen.quick else (chosen.seeds, chosen.iterations or STEPS // case.batch)
    if chosen.side:
        import torch

        torch.set_num_threads(1)
        vectorized = False if chosen.stepped else None
        if chosen.side == "proof":
            found: Any = proof(case, vectorized)
        elif chosen.side in ("ours", "envpool"):
            found = ours(case, chosen.seed, iterations, vectorized, chosen.side == "envpool")
        elif chosen.side == "cleanrl":
            found = cleanrl(case, chosen.cleanrl, chosen.seed, iterations)
        else:
            found = stable_baselines3(case, chosen.seed, iterations)
        told(json.dumps(found))
        return 0

    from unipg.training.record import cpu_name

    python = chosen.peers or os.environ.get("UNIPG_PEERS_PYTHON") or str(ROOT / ".venv-peers" / "bin" / "python")
    script = str(Path(chosen.cleanrl).resolve()) if chosen.cleanrl else None
    stepped = ["--stepped"] if chosen.stepped else []
    runs: dict[str, list[Run]] = {side: [] for side in (*case.aims, *(peer for peer in case.peers if present(peer, python, script)))}
    difference = run(sys.executable, "--case", chosen.case, "--side", "proof", *stepped)
    told(f"gradient of a minibatch against the plain loss: {difference:.1e} of the largest entry (limit {EQUAL:g})")
    if not difference <= EQUAL:
        return 1
    more: dict[str, list[Any]] = {"ours": stepped, "cleanrl": ["--cleanrl", script]}
    for seed in range(seeds):
        for side in runs if seed % 2 == 0 else reversed(runs):
            what = ("--case", chosen.case, "--side", side, "--seed", seed, "--iterations", iterations, *more.get(side, []))
            runs[side].append(run(sys.executable if side in case.aims else python, *what))
            told(f"seed {seed}  {side:18s} {runs[side][-1]['steps'] / runs[side][-1]['cpu']:8.0f} steps per CPU-second")
    result: dict[str, Any] = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": 1,
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "setting": {
            "environment": case.environment,
            "steps": iterations * case.batch,
            "environments": case.environments,
            "window": case.window,
            "epochs": case.epochs,
            "minibatches": case.minibatches,
            "learning_rate": case.rate,
            "seeds": seeds,
            "array_environments": not chosen.stepped,
        },
        "gradient_difference": difference,
        "sides": {side: summary(found) for side, found in runs.items()},
        "comparisons": {
            peer if side == "ours" else f"{side} beside {peer}": compared(runs[side], runs[peer], aim)
            for side, aim in case.aims.items()
            for peer in runs
            if peer not in case.aims
        },
    }
    for name, side in result["sides"].items():
        speed, whole, end = side["steps_per_cpu_second"], side["mean_return"], side["final_return"]
        told(f"{name:18s} {speed['median']:6.0f} steps per CPU-second [{speed['min']:.0f}, {speed['max']:.0f}]")
        for what, value in (("over the run", whole), ("at its end", end)):
            told(f"{'':18s} return {what}: {value['value']:.0f} [{value['low']:.0f}, {value['high']:.0f}]")
    for name, comparison in result["comparisons"].items():
        ratio, word = comparison["ratio"], "reached" if comparison["reached"] else "NOT reached"
        told(f"{name}: {ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]; target {ratio['target']}: {word}")
        told(f"{'':18s} returns overlap: {comparison['returns_overlap']}")
    if not chosen.quick:
        output = chosen.output or RESULTS / case.output
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        told(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
