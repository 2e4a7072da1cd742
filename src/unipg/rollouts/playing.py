"""Whole episodes with a controller's most likely actions: its evaluation."""

from __future__ import annotations

import signal
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from unipg.errors import InputError
from unipg.policies.actor_critic import Controller

if TYPE_CHECKING:
    import gymnasium
    import torch

POLL_SECONDS = 0.2
"""Longest time between two steps at which nobody is asked whether to go on."""


@dataclass
class Played:
    """Finished episodes, in the order of their ends."""

    returns: list[float] = field(default_factory=list)
    """Undiscounted."""
    lengths: list[float] = field(default_factory=list)
    cut: list[float] = field(default_factory=list)
    """1 for an episode that did not end by itself."""


def play(
    environments: gymnasium.vector.VectorEnv,
    policy: Controller,
    episodes: int,
    seed: int,
    progress: Callable[[float], None],
    *,
    name: str,
    most_steps: float,
    source: torch.Generator,
    sample: bool = False,
    seen: Callable[[], None] | None = None,
) -> Played:
    """`episodes` episodes with the policy's actions of an evaluation (`Controller.noise_of_evaluation`), or with `sample` those of
    training, whichever `source` draws. They are shared out evenly among the environments before they start: the first to finish would be
    the short ones.

    An episode of `most_steps` steps is cut there, with what it earned; its environment then plays no more, and a warning says so.
    `progress` is told the finished share after every episode, and from time to time; what it raises ends the evaluation.
    `seen` is called after every reset and step.

    Errors: `InputError` for an observation or a reward that is not finite, naming the environment, its row and the episode's step.
    """
    rows = environments.num_envs
    left = np.full(rows, episodes // rows)
    left[: episodes % rows] += 1
    act, give = policy.actor(), policy.outward()
    same_step = resets_in_same_step(environments)
    total, length = np.zeros(rows), np.zeros(rows)
    resetting = np.zeros(rows, bool)
    played = Played()
    told = time.monotonic()
    observation = policy.flatten(environments.reset(seed=seed)[0])
    _check(name, "observation", observation, left > 0, length)
    check_counts(policy, name, observation, left > 0, lambda row: f"row {row} at the first step of the evaluation")
    if seen is not None:
        seen()
    while left.any():
        noise = policy.noise(1, rows, source)[0] if sample else policy.noise_of_evaluation(rows, source)
        following, reward, terminated, truncated, _ = environments.step(give(observation, act(observation, noise)))
        if seen is not None:
            seen()
        observation = policy.flatten(following)
        reward = np.asarray(reward, float)
        _check(name, "reward", reward, (left > 0) & ~resetting, length)
        total += np.where(resetting, 0, reward)
        length += ~resetting
        ended = terminated | truncated
        cut = (length >= most_steps) & ~ended
        for row in ((ended | cut) & (left > 0)).nonzero()[0]:
            left[row] = 0 if cut[row] else left[row] - 1
            played.returns.append(float(total[row]))
            played.lengths.append(float(length[row]))
            played.cut.append(float(cut[row]))
            progress(len(played.returns) / episodes)
        at = np.where(ended, 0, length) if same_step else length
        _check(name, "observation", observation, left > 0, at)
        check_counts(
            policy, name, observation, left > 0, lambda row, at=at: f"row {row} at step {at[row]:.0f} of an episode of the evaluation"
        )
        total[ended] = length[ended] = 0
        if not same_step:
            resetting = ended
        if time.monotonic() - told > POLL_SECONDS:
            told = time.monotonic()
            progress(len(played.returns) / episodes)
    if any(played.cut):
        warnings.warn(
            f"environment '{name}': {sum(played.cut):.0f} of {len(played.cut)} evaluation episodes were cut after {most_steps:.0f} steps; "
            "set environment.options: {max_episode_steps: …}, or environment.evaluation_steps",
            stacklevel=3,
        )
    return played


def _check(name: str, what: str, values: np.ndarray, live: np.ndarray, step: np.ndarray) -> None:
    """Refuses NaN and infinity in [N] or [N,O] where `live` [N]; `step` [N] is each row's place in its episode."""
    if values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values)
    bad = (bad.any(1) if bad.ndim > 1 else bad) & live
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise not_finite(name, what, values[row], f"row {row} at step {step[row]:.0f} of an episode of the evaluation")


def not_finite(environment: str, what: str, values: Any, where: str) -> InputError:
    """The error for a number of an environment, one or several, that is NaN or infinite."""
    several = np.atleast_1d(values)
    article = "an" if what[0] in "aeiou" else "a"
    return InputError(
        f"environment '{environment}' gave {article} {what} that is not finite, in {where}: {several[~np.isfinite(several)][0]}"
    )


def check_counts(policy: Controller, environment: str, values: np.ndarray, live: np.ndarray | None, where: Callable[..., str]) -> None:
    """Refuses observations […,O] as stored that their space does not have, where `live` […]; `where` is told the place of the first."""
    bad = policy.outside(values)
    if bad is not None and live is not None:
        bad = bad & live
    if bad is not None and bad.any():
        at = tuple(np.argwhere(bad)[0].tolist())
        raise InputError(
            f"environment '{environment}' gave an observation that its space does not have, in {where(*at)}: {policy.told(values[at])}"
        )


def resets_in_same_step(environments: gymnasium.vector.VectorEnv) -> bool:
    """Whether the observation after an episode's last step is already the next episode's first."""
    from gymnasium.vector import AutoresetMode

    return bool(environments.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP)


@contextmanager
def at_once(ask: Callable[[], object]) -> Iterator[None]:
    """While environments run, a signal that asks to stop does not wait for a step of theirs: `ask` is called right behind whoever handles
    the signal, and what it raises breaks into the step. Outside the main thread, and for signals that nobody handles, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: types.FrameType | None) -> None:
        handler = before[signal.Signals(number)]
        assert callable(handler)
        handler(number, frame)
        ask()

    taken = [number for number, handler in before.items() if callable(handler)]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
