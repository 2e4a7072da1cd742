"""A run of Stable-Baselines3 at its defaults, in a process of its own: `python sb3_side.py ALGORITHM ENVIRONMENT STEPS SEED`.

TD3 has noise of 0.1 nevertheless, and DQN batches of 64.
Prints one line of JSON: the episodes (step of their end, return, 1), the steps, CPU-seconds of training alone, and versions.
"""

from __future__ import annotations

import json
import sys
import time

import gymnasium
import numpy
import sb3_contrib
import stable_baselines3
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise


def main(algorithm: str, environment: str, steps: int, seed: int) -> None:
    torch.set_num_threads(1)
    kind = sb3_contrib.TRPO if algorithm == "trpo" else getattr(stable_baselines3, algorithm.upper())
    settings = {"dqn": {"batch_size": 64}, "td3": {"action_noise": NormalActionNoise(numpy.zeros(1), 0.1 * numpy.ones(1))}}
    model = kind("MlpPolicy", Monitor(gymnasium.make(environment)), device="cpu", seed=seed, **settings.get(algorithm, {}))
    began = time.process_time()
    model.learn(steps)
    seconds = time.process_time() - began
    (found,), (lengths,) = model.env.env_method("get_episode_rewards"), model.env.env_method("get_episode_lengths")
    ended = [[int(end), float(value), 1] for end, value in zip(numpy.cumsum(lengths), found, strict=True)]
    named = {"stable-baselines3": stable_baselines3, "sb3-contrib": sb3_contrib, "gymnasium": gymnasium, "torch": torch, "numpy": numpy}
    versions = {name: module.__version__ for name, module in named.items()}
    print(json.dumps({"ended": ended, "steps": model.num_timesteps, "cpu": seconds, "versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
