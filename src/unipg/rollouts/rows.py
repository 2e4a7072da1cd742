"""Environments that are one object a row, stepped in turn in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate

from unipg.rollouts.blame import check_shape, number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import gymnasium

ARRAYS = (Box, Discrete, MultiBinary, MultiDiscrete)
PLAIN = frozenset({float, int, np.float64, np.float32})
"""Classes of rewards that need no look."""


def shape_of(space: gymnasium.Space) -> tuple[int, ...] | None:
    """Of observations that are arrays by themselves; of others None."""
    return space.shape if isinstance(space, (Box, Discrete)) else None


class Rows(SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv`; where it resets in the same step, what a step costs there is left out: infos but for `final_obs`,
    iterators and copies. Where a step of the environment takes 5 μs, these are twice that.

    Observations that `step` returns are written over by the next one. `Unusable` for rewards that are no numbers, and for observations of
    another shape, which NumPy might read or repeat.
    """

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env]], reset: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
        super().__init__(makers, autoreset_mode=reset, copy=False)
        self._shape = shape_of(self.single_observation_space)
        """Of observations that are written straight into their array; of others None."""
        self._indexed = isinstance(self.single_action_space, ARRAYS)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            return super().step(actions)
        rewards, terminations, truncations, shape = self._rewards, self._terminations, self._truncations, self._shape
        observations: Any = self._env_obs if shape is None else self._observations
        infos: dict[str, Any] = {}
        for row, action in enumerate(actions if self._indexed else iterate(self.action_space, actions)):
            environment = self.envs[row]
            observation, reward, terminated, truncated, _ = environment.step(action)
            rewards[row] = reward if reward.__class__ in PLAIN else number(reward)
            terminations[row], truncations[row] = terminated, truncated
            if terminated or truncated:
                infos = self._add_info(infos, {"final_obs": observation}, row)
                observation, _ = environment.reset()
            check_shape(observation, shape)
            observations[row] = observation
        if shape is None:
            self._observations = concatenate(self.single_observation_space, observations, self._observations)
        return self._observations, rewards.copy(), terminations.copy(), truncations.copy(), infos
