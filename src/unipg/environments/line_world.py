"""A line with a bad stretch: the smallest data set in which the recorded action is the wrong one to copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from gymnasium import spaces

from unipg.environments.worlds import Array, Many, One, World, check_episodes, transitions

LENGTH = 10.0
BAD = (4.0, 6.0)
"""Where only steps to the left are recorded."""


@dataclass(frozen=True)
class Line(World):
    """x' = clip(x + a, 0, 10), |a| ≤ 1; reward 1 and the end at x' ≥ 10, else 0; cut after 40 steps; begins at x ~ U(0, 2).

    Source: the toy of the claim, after arXiv 2306.06569.
    """

    horizon: ClassVar[int] = 40

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0.0, LENGTH, (1,), np.float32)

    @property
    def action_space(self) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)

    def begin(self, rows: int, draw: np.random.Generator) -> Array:
        return draw.uniform(0, 2, (rows, 1))

    def after(self, state: Array, action: Array, draw: np.random.Generator) -> tuple[Array, Array, Array]:
        following = (state + action.clip(-1, 1)).clip(0, LENGTH)
        arrived = following[:, 0] >= LENGTH
        return following, arrived.astype(np.float64), arrived


class LineWorld(One):
    """`Line` by itself."""

    def __init__(self) -> None:
        super().__init__(Line())


class LineWorlds(Many):
    """`Line` in rows."""

    def __init__(self, num_envs: int, max_episode_steps: int | None = None) -> None:
        super().__init__(Line(), num_envs, max_episode_steps)


def collect(episodes: int = 4000, seed: int = 0) -> dict[str, Array]:
    """Transitions that are episodes of one step each: x ~ U(0, 10), a ~ U(−1, 1), but a ~ U(−1, −0.5) for x in [4, 6). Those that do not
    arrive are cut, not terminated. Columns: `replay.transition_columns`."""
    check_episodes(episodes)
    draw = np.random.default_rng(seed)
    state, action = draw.uniform(0, LENGTH, (episodes, 1)), draw.uniform(-1, 1, (episodes, 1))
    bad = (state >= BAD[0]) & (state < BAD[1])
    action = np.where(bad, draw.uniform(-1, -0.5, (episodes, 1)), action)
    following, reward, arrived = Line().after(state, action, draw)
    return transitions(state, following, action, reward, arrived, ~arrived, np.arange(episodes))
