"""A road that is a quarter of a circle, and beside it a ditch: what a constant error of the driver costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium import spaces

from unipg.environments.worlds import Array, Many, One, World, collected
from unipg.errors import InputError

STEP = 0.05
"""What an action of 1 moves."""
WIDTH = 0.15
"""Of the road, either way from its middle, the circle of radius 1."""
CRASH = 0.2
"""Probability of a crash at each step that ends beside the road."""


@dataclass(frozen=True)
class Road(World):
    """s' = s + 0.05 · clip(a + `noise` · N(0, I), −1, 1) in the plane, from (1, 0) + 0.03 · N(0, I), along the circle of radius 1.

    Each step costs 0.01. Where | |s'| − 1 | > 0.15 there is a crash with probability 0.2: reward −1 and the end. Else s'_x < 0.05 gives 1
    and ends. Cut after 60 steps. Source: the toy of the claim, after arXiv 2406.07541.
    """

    horizon: ClassVar[int] = 60
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < np.inf:
            raise InputError(f"a road's noise is {self.noise}; accepted: a finite standard deviation of at least 0")

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (2,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def begin(self, rows: int, draw: np.random.Generator) -> Array:
        return np.array([1.0, 0.0]) + 0.03 * draw.standard_normal((rows, 2))

    def after(self, state: Array, action: Array, draw: np.random.Generator) -> tuple[Array, Array, Array]:
        following = state + STEP * (action + self.noise * draw.standard_normal(action.shape)).clip(-1, 1)
        beside = np.abs(np.linalg.norm(following, axis=1) - 1) > WIDTH
        crashed = beside & (draw.random(len(state)) < CRASH)
        arrived = ~crashed & (following[:, 0] < 0.05)
        return following, arrived - 1.0 * crashed - 0.01, arrived | crashed


class RoadWorld(One):
    """`Road` by itself."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__(Road(noise))


class RoadWorlds(Many):
    """`Road` in rows."""

    def __init__(self, num_envs: int, max_episode_steps: int | None = None, noise: float = 0.0) -> None:
        super().__init__(Road(noise), num_envs, max_episode_steps)


def driver(state: Array) -> Array:
    """[N,2] the action 0.8 · tangent + 3 (1 − |s|) · radial, not clipped: an expert."""
    radius = np.linalg.norm(state, axis=1, keepdims=True)
    radial = state / radius
    tangent = np.stack((-radial[:, 1], radial[:, 0]), 1)
    return 0.8 * tangent + 3 * (1 - radius) * radial


def collect(episodes: int = 300, seed: int = 0, noise: float = 0.3) -> dict[str, Array]:
    """Episodes of `driver` with Gaussian noise of that standard deviation, clipped to the bounds. Columns: `replay.transition_columns`."""

    def behaviour(state: Array, step: int, draw: np.random.Generator) -> Array:
        return (driver(state) + noise * draw.standard_normal(state.shape)).clip(-1, 1)

    return collected(Road(), behaviour, episodes, seed)
