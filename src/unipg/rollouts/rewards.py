"""Rewards in units of what returns vary by, so that one step size and one critic fit every environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from unipg.policies.normalization import LIMIT, RunningNormalizer


class RewardScale:
    """r_t / sqrt(var(R) + 1e-8), cut off at ±10, with R_t = γ·R_{t−1} + r_t, from 0 in every episode, of every step so far.

    The mean is left in, so signs stay; until returns differ, rewards are left as they are. As in Stable-Baselines3's VecNormalize; the
    idea is of Henderson et al. 2018 (arXiv 1709.06560) and OpenAI Baselines.
    """

    def __init__(self, rows: int, discount: float) -> None:
        self.discount = discount
        self.statistics = RunningNormalizer(1)
        self.returns = np.zeros(rows)
        """[N] R of the episodes that go on."""

    def __call__(self, reward: np.ndarray, ended: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """[T,N] of rewards [T,N], each in the unit of its own step; `mask` False: a step that only resets, which counts for nothing."""
        scaled = np.empty(reward.shape, np.float32)
        for t, live in enumerate(mask):
            self.returns = np.where(live, self.discount * self.returns + reward[t], self.returns)
            self.statistics.update(torch.from_numpy(self.returns[live, None]))
            scaled[t] = (reward[t] / self.unit).clip(-LIMIT, LIMIT)
            self.returns[ended[t]] = 0
        return np.where(mask, scaled, reward)

    @property
    def unit(self) -> float:
        """What a reward is divided by now."""
        return 1.0 if self.statistics.empty else 1 / float(self.statistics.scale())

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        statistics = {name: value.tolist() for name, value in self.statistics.state_dict().items()}
        return {"returns": self.returns.tolist(), "statistics": statistics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns = np.array(state["returns"])
        found = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["statistics"].items()}
        self.statistics.load_state_dict(found)
