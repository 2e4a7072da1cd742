"""Four rooms of a grid with two equally short ways from start to goal: the smallest problem on which a policy can forget one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIZE, WALL = 11, 5
START, GOAL = (2, 2), (8, 8)
DOORS = ((2, 5), (5, 2), (5, 8), (8, 5))
"""The first and the third are on the upper way, the others on the lower one. (row, column), as all cells."""
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Up, down, left, right."""
PIXELS = 20
"""Of a cell's side in a picture."""


class FourRooms(gymnasium.Env[np.int64, Any]):
    """11 × 11 cells with walls in row and column 5 and a door in each of their halves; from (2, 2) to (8, 8) in 12 moves at least.

    The observation is the cell's number, row · 11 + column. Reward 1 − 0.5 · t / `horizon` for the goal at step t, which ends the episode,
    else 0; cut after `horizon` steps. A move into a wall, or into a door of `closed` [row, column], stays. `info["place"]`: the room, 0 to
    3 in reading order; None in a door. Source: the toy of the claim, after arXiv 2509.25424.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 6}  # noqa: RUF012  (Gymnasium's own way)

    def __init__(self, closed: Sequence[Sequence[int]] = (), horizon: int = 60, render_mode: str | None = None) -> None:
        doors: set[tuple[int, ...]] = {tuple(door) for door in closed}
        if not doors <= set(DOORS):
            raise ValueError(f"closed is {sorted(doors)}; accepted: some of {', '.join(map(str, DOORS))}")
        self.open = {door for door in DOORS if door not in doors}
        self.horizon = horizon
        self.render_mode = render_mode
        self.observation_space = spaces.Discrete(SIZE * SIZE)
        self.action_space = spaces.Discrete(len(MOVES))
        self.row, self.column = START
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.int64, dict[str, Any]]:
        super().reset(seed=seed)
        self.row, self.column = START
        self.steps = 0
        return self._seen(), self._told()

    def step(self, action: Any) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        self.row, self.column = after((self.row, self.column), int(action), self.open)
        self.steps += 1
        ended = (self.row, self.column) == GOAL
        reward = 1 - 0.5 * self.steps / self.horizon if ended else 0.0
        return self._seen(), reward, ended, self.steps >= self.horizon, self._told()

    def render(self) -> np.ndarray:
        """[H,W,3] uint8: walls grey, the goal green, the policy blue."""
        picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
        walls = [(row, column) for row in range(SIZE) for column in range(SIZE) if WALL in (row, column) and (row, column) not in self.open]
        for cells, colour in ((walls, (96, 96, 96)), ([GOAL], (46, 160, 67)), ([(self.row, self.column)], (31, 119, 180))):
            for cell in cells:
                picture[cell] = colour
        return picture.repeat(PIXELS, 0).repeat(PIXELS, 1)

    def _seen(self) -> np.int64:
        return np.int64(self.row * SIZE + self.column)

    def _told(self) -> dict[str, Any]:
        inside = self.row != WALL and self.column != WALL
        return {"place": 2 * (self.row > WALL) + (self.column > WALL) if inside else None}


def after(cell: tuple[int, int], move: int, doors: set[tuple[int, int]]) -> tuple[int, int]:
    """Where a move leads from a cell, with these doors open."""
    row, column = cell[0] + MOVES[move][0], cell[1] + MOVES[move][1]
    free = 0 <= row < SIZE and 0 <= column < SIZE and (WALL not in (row, column) or (row, column) in doors)
    return (row, column) if free else cell


def shortest_moves() -> np.ndarray:
    """[121,4] bool: the moves of each cell that are on a shortest way to the goal, all doors open; an expert, for a policy's start."""
    distance = {GOAL: 0}
    queue = deque([GOAL])
    while queue:
        cell = queue.popleft()
        for move in range(len(MOVES)):
            if (before := after(cell, move, set(DOORS))) not in distance:  # moves have inverses
                distance[before] = distance[cell] + 1
                queue.append(before)
    found = np.zeros((SIZE * SIZE, len(MOVES)), bool)
    for (row, column), steps in distance.items():
        for move in range(len(MOVES)):
            found[row * SIZE + column, move] = distance[after((row, column), move, set(DOORS))] < steps
    return found
