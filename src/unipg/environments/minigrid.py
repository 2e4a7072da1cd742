"""Minigrid as controllers take it: one vector of numbers, the room as a place, and a reward that falls slowly."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

KINDS = (11, 6, 3)
"""Objects, colours and states that a cell of the view can have."""
DIRECTIONS = 4
AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Where each direction leads, (x, y)."""


class Rooms(gymnasium.Wrapper[np.ndarray, Any, Any, Any]):
    """A Minigrid environment seen as [h·w·20 + 4] zeros and ones: object, colour and state of each visible cell, and the direction.

    Missions are left out: for tasks that are the same in every episode. Reward 1 − `slope` · t / H at success instead of the package's
    1 − 0.9 · t / H. `info["place"]`: the room that the agent is in (where the environment knows no rooms, the quarter of the grid), None in
    a wall's column or row. Source: rewards and signatures of arXiv 2509.25424.
    """

    def __init__(self, environment: gymnasium.Env, slope: float = 0.5) -> None:
        super().__init__(environment)
        image = environment.observation_space["image"]  # type: ignore[index]
        self.slope = slope
        self.observation_space = spaces.Box(0.0, 1.0, (image.shape[0] * image.shape[1] * sum(KINDS) + DIRECTIONS,), np.float32)

    def reset(self, **given: Any) -> tuple[np.ndarray, dict[str, Any]]:
        seen, info = self.env.reset(**given)
        return self._vector(seen), {**info, "place": self._place()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        grid: Any = self.unwrapped
        earned = 1 - self.slope * grid.step_count / grid.max_steps if float(reward) > 0 else 0.0
        return self._vector(seen), earned, terminated, truncated, {**info, "place": self._place()}

    def _vector(self, seen: Any) -> np.ndarray:
        parts = [np.eye(kinds, dtype=np.float32)[seen["image"][..., k]].reshape(-1) for k, kinds in enumerate(KINDS)]
        return np.concatenate([*parts, np.eye(DIRECTIONS, dtype=np.float32)[seen["direction"]]])

    def _place(self) -> int | None:
        grid: Any = self.unwrapped
        x, y = (int(number) for number in grid.agent_pos)
        if hasattr(grid, "room_size"):  # a grid of equal rooms that share their walls
            inner = grid.room_size - 1
            return None if x % inner == 0 or y % inner == 0 else x // inner + y // inner * grid.num_cols
        middle, half = grid.width // 2, grid.height // 2
        return None if x == middle or y == half else int(x > middle) + 2 * int(y > half)


class Elsewhere(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Begins in another room than the environment would, in a free cell that its seed decides; put around it before `Rooms`."""

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        _, info = self.env.reset(**given)
        grid: Any = self.unwrapped
        middle, half = grid.width // 2, grid.height // 2

        def room(x: int, y: int) -> tuple[bool, bool]:
            return x > middle, y > half

        here = room(*(int(number) for number in grid.agent_pos))
        cells = [(x, y) for x in range(grid.width) for y in range(grid.height) if x != middle and y != half]
        free = [cell for cell in cells if grid.grid.get(*cell) is None and room(*cell) != here]
        grid.agent_pos = free[int(grid.np_random.integers(len(free)))]
        return grid.gen_obs(), info


def shortest_way(environment: gymnasium.Env) -> list[int]:
    """The fewest turns (0 left, 1 right) and steps forward (2) from where the agent stands to the goal of a grid of walls; an expert."""
    grid: Any = environment.unwrapped
    start = (*(int(number) for number in grid.agent_pos), int(grid.agent_dir))
    came: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}
    queue = deque([start])
    while queue:
        x, y, direction = state = queue.popleft()
        found = grid.grid.get(x, y)
        if found is not None and found.type == "goal":
            actions = []
            while state != start:
                state, action = came[state]
                actions.append(action)
            return actions[::-1]
        ahead = (x + AHEAD[direction][0], y + AHEAD[direction][1])
        cell = grid.grid.get(*ahead)
        moved = (*ahead, direction) if cell is None or cell.can_overlap() else state
        for action, after in enumerate(((x, y, (direction - 1) % 4), (x, y, (direction + 1) % 4), moved)):
            if after not in came and after != start:
                came[after] = state, action
                queue.append(after)
    raise ValueError("the goal cannot be reached")
