"""Noise and scale that are put around environments, as `environment.wrappers`: on what an action does, and on rewards."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
from gymnasium import spaces

from unipg.errors import InputError

FORCES = ("force_mag", "force")
"""What classic control calls the force of an action (CartPole, MountainCar)."""


class NoisyForce(gymnasium.Wrapper):
    """Every action acts with its force times a factor, drawn anew from U(`low`, `high`): of CartPole and MountainCar the force, of real
    actions these themselves. Source: arXiv 2408.02295, centred on 1.

    `released`: 1 + U(`low`, `high`), as in the authors' code, where the mean force is doubled.
    """

    def __init__(self, env: gymnasium.Env, low: float = 0.7, high: float = 1.3, released: bool = False) -> None:
        super().__init__(env)
        if not 0 <= low <= high < math.inf:
            raise InputError(f"NoisyForce draws from [{low}, {high}]; accepted: 0 <= low <= high")
        self.low, self.high, self.released = low, high, released
        self.name = next((name for name in FORCES if hasattr(env.unwrapped, name)), "")
        if not self.name and not isinstance(env.action_space, spaces.Box):
            raise InputError(
                f"NoisyForce knows no force of {env.unwrapped}; accepted: CartPole, MountainCar, environments with real actions"
            )

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        factor = self.released + self.np_random.uniform(self.low, self.high)
        if not self.name:
            return self.env.step(action * factor)
        world = self.env.unwrapped
        force = getattr(world, self.name)
        setattr(world, self.name, force * factor)
        try:
            return self.env.step(action)
        finally:
            setattr(world, self.name, force)


class NoisyReward(gymnasium.Wrapper):
    """The reward plus `scale` times Student's t of `freedom` degrees: of infinite variance for 2 and less. Evaluations are without."""

    def __init__(self, env: gymnasium.Env, scale: float = 0.5, freedom: float = 1.8) -> None:
        super().__init__(env)
        if not (scale >= 0 and freedom > 0):
            raise InputError(f"NoisyReward has scale {scale} and freedom {freedom}; accepted: scale >= 0, freedom > 0")
        self.scale, self.freedom = scale, freedom

    def show_own_rewards(self) -> None:
        self.scale = 0.0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + self.scale * self.np_random.standard_t(self.freedom), terminated, truncated, info


class ScaledReward(gymnasium.Wrapper):
    """The reward times `factor`, for critics that want them of the order of 1. Evaluations are without."""

    def __init__(self, env: gymnasium.Env, factor: float) -> None:
        super().__init__(env)
        if not 0 < factor < math.inf:
            raise InputError(f"ScaledReward has the factor {factor}; accepted: a finite number above 0")
        self.factor = factor

    def show_own_rewards(self) -> None:
        self.factor = 1.0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) * self.factor, terminated, truncated, info
