"""EnvPool's environments, stepped in C++, as arrays that Gymnasium's loops can use."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from unipg.errors import InputError, missing_package
from unipg.settings import unknown_key

OURS = frozenset({"num_envs", "batch_size", "max_num_players", "base_path", "seed", "env_seed", "gym_reset_return_info"})
"""Of EnvPool's settings: what is decided here."""
LIMIT = "max_episode_steps"
UNLIMITED = 2**31 - 1


class Pool(VectorEnv):
    """`rows` environments of EnvPool that take a step of their own to reset, in which the action is not looked at.

    `options`: EnvPool's settings of the environment, `num_threads` among them (0: as many as there are rows and cores). Row k has the seed
    + k; numbers do not depend on the threads. Limits of time are counted here and EnvPool's own is set one step further, for it tells an
    end of the last step before its limit as a cut.

    EnvPool shows nobody where its environments stand, so that they cannot be saved.

    Errors: `InputError` where EnvPool is not installed, lacks the environment, or is given what it does not take.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  (Gymnasium's own way)

    def __init__(self, name: str, rows: int, options: dict[str, Any]) -> None:
        self.num_envs, self._name = rows, name
        config = pool_settings(name, options)
        limit = options.get(LIMIT, config[LIMIT])
        self._limit = limit if isinstance(limit, int) and 0 < limit < UNLIMITED else None
        self._options = options if self._limit is None else options | {LIMIT: self._limit + 1}
        with _quietly():
            spec = self._checked("make_spec")
            self.single_observation_space, self.single_action_space = spec.gymnasium_observation_space, spec.gymnasium_action_space
            self.observation_space, self.action_space = (
                batch_space(space, rows) for space in (self.single_observation_space, self.single_action_space)
            )
        if spec.config.max_num_players != 1:
            raise InputError(f"environment '{name}' of EnvPool has several players; accepted: one")
        self._pool: Any = None
        self._cut = np.zeros(rows, bool)
        """Rows that have come to the limit, which EnvPool does not know."""

    def _checked(self, how: str, **more: Any) -> Any:
        """What EnvPool makes of the settings."""
        import envpool

        try:
            return getattr(envpool, how)(self._name, num_envs=self.num_envs, **self._options, **more)
        except (TypeError, ValueError, RuntimeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"environment '{self._name}' of EnvPool with options {self._options} cannot be made: {first}") from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """EnvPool takes seeds where it makes environments alone, so a seed makes new ones."""
        self._cut = np.zeros(self.num_envs, bool)
        with _quietly():
            if seed is not None or self._pool is None:
                self._pool = self._checked("make_gymnasium", **({} if seed is None else {"seed": seed}))
            observation, _ = self._pool.reset()
        return observation, {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        found = self._after_cuts(actions) if self._cut.any() else self._pool.step(actions)
        observation, reward, terminated, truncated, infos = found
        if self._limit is not None:
            self._cut = (infos["elapsed_step"] >= self._limit) & ~terminated
            truncated = truncated | self._cut
        return observation, reward, terminated, truncated, {}

    def _after_cuts(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step in which the rows that were cut do what EnvPool would do by itself: they only reset."""
        cut, going = np.flatnonzero(self._cut), np.flatnonzero(~self._cut)
        started, infos = self._pool.reset(cut)
        shape = (self.num_envs, *started.shape[1:])
        observation = np.empty(shape, started.dtype)
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        elapsed = np.zeros(self.num_envs, np.int64)
        observation[cut], elapsed[cut] = started, infos["elapsed_step"]
        if len(going):
            stepped = self._pool.step(np.ascontiguousarray(actions[going]), going)
            observation[going], reward[going], terminated[going], truncated[going] = stepped[:4]
            elapsed[going] = stepped[4]["elapsed_step"]
        return observation, reward, terminated, truncated, {"elapsed_step": elapsed}

    def close_extras(self, **_: Any) -> None:
        if self._pool is not None:
            self._pool.close()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("EnvPool shows nobody where they stand")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that EnvPool's bounds lose precision as float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
        yield


def pool_settings(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """EnvPool's settings of an environment; refuses options that are not among them."""
    try:
        import envpool
    except ModuleNotFoundError as absent:
        raise missing_package("envpool", "envpool", f"environment '{name}' with environment.backend: envpool") from absent
    names = envpool.list_all_envs()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise InputError(
            f"EnvPool has no environment '{name}'; {hint}accepted: one of its {len(names):,}, or environment.backend: gymnasium"
        )
    with _quietly():
        settings: dict[str, Any] = envpool.make_spec(name).config._asdict()
    for option in options:
        if option not in settings or option in OURS:
            raise unknown_key(f"environment.options.{option}", sorted(settings.keys() - OURS))
    return settings
