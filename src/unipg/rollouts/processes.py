"""Environments in processes of their own, for those whose step takes long; the same transitions as in one process."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import pickle
import signal
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from unipg.errors import InputError, one_line
from unipg.rollouts.blame import check_given, check_shape, number
from unipg.rollouts.rows import shape_of
from unipg.rollouts.snapshots import NotNumbers, pickled

LAST_SECONDS = 5.0
"""How long a process whose pipe has broken may take to end."""


class Held(gymnasium.Wrapper):
    """An environment in a process of its own, which can be asked for and replaced."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            observation, reward, terminated, truncated, infos = self.env.step(action)
        except Exception as error:
            check_given(error)
            raise
        check_shape(observation, shape_of(self.observation_space))
        return observation, number(reward), terminated, truncated, infos

    def held(self) -> bytes | str:
        """Pickled; or why it cannot be: an error would end its process."""
        try:
            return pickled(self.env)
        except Exception as error:
            return one_line(error)

    def hold(self, data: bytes) -> None:
        self.env = pickle.loads(data)


class Processes(AsyncVectorEnv):
    """Gymnasium's environments in processes, of which `at_once` work at a time; one that is left by its process is named.

    `name`: of the environment. `make`: makes one of them. Errors: `InputError` where a process has ended.
    """

    def __init__(self, name: str, make: Callable[[], gymnasium.Env], rows: int, at_once: int) -> None:
        self.name = name

        def held() -> gymnasium.Env:
            if multiprocessing.parent_process() is not None:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; who trains decides
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the parent makes of it is not theirs
            return Held(make())

        limit = at_once if at_once < rows else None
        super().__init__([held] * rows, copy=False, autoreset_mode=AutoresetMode.SAME_STEP, max_concurrency=limit)

    def reset(self, **settings: Any) -> Any:
        return self._asked(super().reset, **settings)

    def step(self, actions: Any) -> Any:
        return self._asked(super().step, actions)

    def reset_wait(self, *values: Any, **named: Any) -> Any:
        self._wait()
        return super().reset_wait(*values, **named)

    def step_wait(self, *values: Any, **named: Any) -> Any:
        self._wait()
        return super().step_wait(*values, **named)

    def call_wait(self, *values: Any, **named: Any) -> Any:
        self._wait()
        return super().call_wait(*values, **named)

    def _wait(self) -> None:
        """Until every process has answered. One that dies takes its turn (`at_once`) with it, and others would wait for that for ever; one
        whose environment has raised an error says so and ends in order."""
        silent = dict(zip(self.parent_pipes, self.processes, strict=True))
        while silent:
            ready = multiprocessing.connection.wait([*silent, *(process.sentinel for process in silent.values())])
            for pipe, process in [*silent.items()]:
                if process.sentinel in ready:
                    process.join(LAST_SECONDS)
                    if process.exitcode != 0:
                        raise ConnectionError("a process has ended")
                    del silent[pipe]
                elif pipe in ready:
                    del silent[pipe]

    def fetch(self) -> list[gymnasium.Env]:
        """Copies of the environments as they stand. `NotNumbers` where they cannot be pickled."""
        found = self._asked(self.call, "held")
        for data in found:
            if isinstance(data, str):
                raise NotNumbers(data)
        return [pickle.loads(data) for data in found]

    def replace(self, environments: Sequence[gymnasium.Env]) -> None:
        """Goes on from copies of `environments`."""
        for pipe, environment in zip(self.parent_pipes, environments, strict=True):
            pipe.send(("_call", ("hold", (pickled(environment),), {})))
        for pipe in self.parent_pipes:
            pipe.recv()

    def _asked(self, call: Callable[..., Any], *values: Any, **named: Any) -> Any:
        try:
            return call(*values, **named)
        except (EOFError, ConnectionError) as error:
            ended = multiprocessing.connection.wait([process.sentinel for process in self.processes], LAST_SECONDS)
            for process in self.processes:
                if process.sentinel in ended:  # its pipe is gone a moment before it is
                    process.join(LAST_SECONDS)
            dead = {row: process.exitcode for row, process in enumerate(self.processes) if not process.is_alive()}
            which = ", ".join(f"{row} (exit code {code})" for row, code in dead.items())
            self.terminate()
            raise InputError(f"a process of environment '{self.name}' has ended by itself, out of memory or killed: row {which}") from error

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Ends the processes; those that were broken off in the middle of something without waiting for it."""
        if self._state is AsyncState.DEFAULT and None not in self.parent_pipes:
            super().close_extras(timeout, terminate)
        else:
            self.terminate()

    def __del__(self) -> None:
        if not getattr(self, "closed", True) and hasattr(self, "processes"):
            self.terminate()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("environments in processes of their own stay there")

    def terminate(self) -> None:
        """Ends the processes whatever they are doing."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.parent_pipes:
            if pipe is not None:
                pipe.close()
        self.closed = True
