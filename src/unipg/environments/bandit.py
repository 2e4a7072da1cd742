"""One state, one step: the smallest problem on which a controller can be right."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Bandit(gymnasium.Env[np.ndarray, Any]):
    """Reward −(a − `best`)² of a real action a in [−1, 1]; of `arms` > 0 actions, 1 for number `best` and 0 for the others.

    Every episode is one step. The observation is always [1].
    """

    def __init__(self, best: float = 0.5, arms: int = 0) -> None:
        self.best, self.arms = best, arms
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(arms) if arms else spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.best) if self.arms else -((float(action[0]) - self.best) ** 2)
        return np.ones(1, np.float32), reward, True, False, {}
