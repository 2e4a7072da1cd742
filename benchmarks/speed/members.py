"""What K members of a critic cost: CPU-seconds of the same training with one member and with five, kind by kind.

    python benchmarks/speed/members.py [--steps N] [--rounds N]

SAC on Pendulum-v1 (twin critics, so ten networks at five members; batches of 256), DQN (batches of 64) and PPO (minibatches of 64) on
CartPole-v1, networks of 2 x 64, one thread, an update after every step. Of several rounds, in turns, the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from control import ROOT

from unipg.algorithms import DQN, PPO, SAC
from unipg.algorithms.base import Algorithm
from unipg.critics.kinds import Ensemble, Gaussian, GeneralizedGaussian
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.record import versions
from unipg.training.run import wanted_of
from unipg.training.trainer import Trainer, TrainingRecipe

OUTPUT = ROOT / "benchmarks" / "results" / "speed-members.json"
HOSTS: dict[str, tuple[Algorithm, str, int]] = {
    "sac": (SAC(), "Pendulum-v1", 256),
    "dqn": (DQN(), "CartPole-v1", 64),
    "ppo": (PPO(gamma=0.99), "CartPole-v1", 64),
}
KINDS = {
    "ensemble": Ensemble(members=1),
    "gaussian": Gaussian(members=1),
    "generalized_gaussian": GeneralizedGaussian(members=1, epistemic="none"),
}
MEMBERS = 5


def seconds(algorithm: Algorithm, environment: str, batch: int, steps: int) -> float:
    """Of a training on so many steps."""
    kept = algorithm.replays
    rows, length = (1, steps) if kept else (8, 128)
    experience = EnvironmentRecipe(environment, rows, length, vectorized=False).build(0)
    spaces = experience.observation_space, experience.action_space
    policy = ActorCriticRecipe(hidden=[64, 64]).build(*spaces, 0, wanted=wanted_of(algorithm))
    iterations = 1 if kept else max(1, steps // 1024)
    training = TrainingRecipe(iterations=iterations, save_every=iterations, epochs=1 if kept else 8, minibatches=1 if kept else 16)
    replay = ReplayRecipe(batch=batch, warmup=batch, updates_per_step=1.0) if kept else None
    with tempfile.TemporaryDirectory() as scratch:
        run = Trainer(algorithm, policy, experience, folder=Path(scratch, "run"), training=training, replay=replay, seed=0)
        run.experience.evaluate = lambda *_: []  # type: ignore[method-assign]
        began = time.process_time()
        run.train()
        return time.process_time() - began


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = {}
    for host, (algorithm, environment, batch) in HOSTS.items():
        seconds(algorithm, environment, batch, 512)  # what is only done once
        for name, kind in KINDS.items():
            several = {"5": replace(kind, members=MEMBERS)}
            if isinstance(kind, GeneralizedGaussian):
                several["5, weighed"] = replace(kind, members=MEMBERS, epistemic="error_variance")
            kinds = {"1": kind, **several}
            found = {key: [] for key in kinds}
            for _ in range(chosen.rounds):
                for key, one in kinds.items():
                    found[key].append(seconds(replace(algorithm, critic=one), environment, batch, chosen.steps))  # type: ignore[call-arg]
            least = {key: round(min(times), 3) for key, times in found.items()}
            ratios = {f"{key} / 1": round(least[key] / least["1"], 2) for key in several}
            cases[f"{host} {name}"] = {"seconds": least, **ratios}
            print(f"{host} {name}: {ratios}", flush=True)
    OUTPUT.write_text(json.dumps({"steps": chosen.steps, "versions": versions(), "cases": cases}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
