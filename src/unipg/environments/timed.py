"""Other time steps: the same physics, looked at and acted on more or less often."""

from __future__ import annotations

import math
from typing import Any

import gymnasium

from unipg.errors import InputError

ATTRIBUTES = ("dt", "tau")
"""Where environments keep the length of their step, in seconds: Pendulum's and CartPole's names."""


class TimeStep(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose steps are `dt` long instead of its own; its reward per step is scaled by dt over its own, so that it stays the
    same per unit of time and returns over equal times can be compared. A limit of steps (`max_episode_steps`) is not: set it too.

    Errors: `InputError` for dt that is not finite or above 0, and for an environment that has no step to set.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], dt: float) -> None:
        super().__init__(env)
        if not (math.isfinite(dt) and dt > 0):
            raise InputError(f"TimeStep.dt is {dt}; accepted: a finite time above 0, in seconds")
        inner = env.unwrapped
        name = next((name for name in ATTRIBUTES if isinstance(vars(inner).get(name), float)), None)
        if name is None:
            raise InputError(
                f"{type(inner).__name__} has no time step that can be set; accepted: an environment with {' or '.join(ATTRIBUTES)}"
            )
        self.scale = dt / getattr(inner, name)
        setattr(inner, name, dt)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) * self.scale, terminated, truncated, info
