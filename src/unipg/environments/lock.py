"""A combination lock with real actions and observations that hide its state: of ten ways one is right at each step; the last one pays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from gymnasium import spaces

from unipg.environments.worlds import Array, Many, One, World, collected
from unipg.errors import InputError

CHOICES = 10
"""Latent actions, and numbers of a real one."""
TEMPERATURE = 0.1
LOST = 2
"""The latent state that nothing leads out of."""


@dataclass(frozen=True)
class Lock(World):
    """`steps` H, latent states 0, 1 (good) and 2 (lost). Of an action a in R^10 the latent one is drawn from softmax(a / 0.1); in state
    i ∈ {0, 1} at step h one is right, `secret`'s. The right one leads to 0 or 1, with probability ½ each, any other to 2 for good.

    Rewards are 0 but for the last step's: 1 for the right action in a good state, else 0.1 with probability ½. `shaped`: the same 0.1
    whenever a good state is lost, as in the paper's text; its released code has none of that. Begins in 0 or 1 with probability ½ each.

    Observed are D = 2^⌈log2(H+4)⌉ numbers: of a vector with N(0, 0.1²) in its first H + 3 places, 1 added at the latent state's and at
    3 + h, its product with the Hadamard matrix of D; and behind them h, the step, as Gymnasium's TimeAwareObservation has it. The state
    [N,2]: latent state, step. Source: arXiv 2311.08384, section 6 and released code.
    """

    horizon: ClassVar[int] = 2**31
    """Never cut: it ends by itself."""
    steps: int = 5
    secret: int = 0
    """Seed of the right actions."""
    shaped: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a lock has {self.steps} steps; accepted: 1 or more")

    @cached_property
    def right(self) -> Array:
        """[2,H] the right latent actions of the good states."""
        return np.random.default_rng(self.secret).integers(CHOICES, size=(2, self.steps))

    @cached_property
    def hadamard(self) -> Array:
        """[D,D] of ±1, not normalised: Sylvester's."""
        found: Array = np.ones((1, 1))
        while len(found) < self.steps + 4:
            found = np.kron([[1, 1], [1, -1]], found)
        return found

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (len(self.hadamard) + 1,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (CHOICES,), np.float32)

    def begin(self, rows: int, draw: np.random.Generator) -> Array:
        return np.stack((draw.integers(2, size=rows), np.zeros(rows)), 1).astype(np.float64)

    def seen(self, state: Array, draw: np.random.Generator) -> Array:
        latent, step = state.astype(np.int64).T
        rows, noisy = np.arange(len(state)), self.steps + 3
        hidden = np.zeros((len(state), len(self.hadamard)))
        hidden[:, :noisy] = 0.1 * draw.standard_normal((len(state), noisy))
        hidden[rows, latent] += 1
        hidden[rows, 3 + step] += 1
        return np.concatenate([hidden @ self.hadamard, step[:, None]], 1).astype(np.float32)

    def after(self, state: Array, action: Array, draw: np.random.Generator) -> tuple[Array, Array, Array]:
        if not np.isfinite(action).all():
            raise InputError(f"a lock was given the action {action[~np.isfinite(action).all(1)][0].tolist()}; accepted: finite numbers")
        latent, step = state.astype(np.int64).T
        shares = np.exp((action - action.max(1, keepdims=True)) / TEMPERATURE).cumsum(1)
        chosen = (shares < draw.random((len(action), 1)) * shares[:, -1:]).sum(1)
        good = latent != LOST
        right = good & (chosen == self.right[np.minimum(latent, 1), step])
        last = step + 1 == self.steps
        consoled = (last | (good if self.shaped else False)) & ~right & (draw.random(len(state)) < 0.5)
        reward = 1.0 * (right & last) + 0.1 * consoled
        following = np.where(right, draw.integers(2, size=len(state)), LOST)
        return np.stack((following, step + 1), 1).astype(np.float64), reward, last


class LockWorld(One):
    """`Lock` by itself."""

    def __init__(self, steps: int = 5, secret: int = 0, shaped: bool = False) -> None:
        super().__init__(Lock(steps, secret, shaped))


class LockWorlds(Many):
    """`Lock` in rows."""

    def __init__(self, num_envs: int, max_episode_steps: int | None = None, steps: int = 5, secret: int = 0, shaped: bool = False) -> None:
        super().__init__(Lock(steps, secret, shaped), num_envs, max_episode_steps)


def collect(
    episodes: int = 20_000, seed: int = 0, *, steps: int = 5, secret: int = 0, shaped: bool = False, epsilon: float | None = None
) -> dict[str, Array]:
    """Episodes of one who knows the lock: the right action as a unit vector (once lost: that of state 1), or with probability `epsilon`,
    1/H where it is None, each number uniform in [0, 1]. Columns: `replay.transition_columns`."""
    world = Lock(steps, secret, shaped)
    lapse = 1 / steps if epsilon is None else epsilon
    if not 0 <= lapse <= 1:
        raise InputError(f"epsilon is {epsilon}; accepted: a probability, or None for 1/H")

    def behaviour(state: Array, step: int, draw: np.random.Generator) -> Array:
        known = np.eye(CHOICES)[world.right[np.minimum(state[:, 0].astype(np.int64), 1), step]]
        return np.where(draw.random((len(state), 1)) < lapse, draw.random((len(state), CHOICES)), known)

    return collected(world, behaviour, episodes, seed)
