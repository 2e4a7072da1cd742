"""Gymnasium-Robotics' point mazes as controllers take them: one vector, an end at the goal, and someone who knows the way."""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from unipg.environments.worlds import Array, check_episodes, transitions
from unipg.errors import InputError, missing_package, nearest

MAZES = ("UMaze", "Open", "Medium", "Large")
NEAR = 0.45
"""Within which success is counted (Gymnasium-Robotics), in cells."""
Cell = tuple[int, int]
"""Row and column."""


class PointMaze(gymnasium.Wrapper[Array, Any, Any, Any]):
    """A ball that is pushed through a maze, seen as [6]: where it is, its velocity, and where the goal is. Reward 1 and the end at the
    goal, else 0. `start` and `goal`: cells of the map, [row, column]; None: drawn. Source: D4RL (arXiv 2004.07219).

    Errors: `InputError` for an unknown maze, and for a cell that is a wall.
    """

    def __init__(self, maze: str = "UMaze", start: Cell | None = None, goal: Cell | None = None, render_mode: str | None = None) -> None:
        if maze not in MAZES:
            raise InputError(f"maze '{maze}' does not exist; {nearest(maze, MAZES)}")
        super().__init__(_made(maze, render_mode))
        self.map = np.array([[cell == 1 for cell in row] for row in self._world.maze.maze_map])
        self.cells = {"reset_cell": start, "goal_cell": goal}
        for cell in (start, goal):
            if cell is not None and not self.is_free(tuple(cell)):  # type: ignore[arg-type]
                raise InputError(f"{list(cell)} is no free cell of '{maze}'; accepted: {', '.join(map(str, self.free()))}")
        self.observation_space = spaces.Box(-np.inf, np.inf, (6,), np.float32)

    @property
    def _world(self) -> Any:
        return self.env.unwrapped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        cells = {name: np.array(cell) for name, cell in {**self.cells, **(options or {})}.items() if cell is not None}
        seen, info = self.env.reset(seed=seed, options=cells or None)
        return _vector(seen), info

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        return _vector(seen), float(reward), terminated, truncated, info

    # the map

    def is_free(self, cell: Cell) -> bool:
        inside = all(0 <= place < size for place, size in zip(cell, self.map.shape, strict=True))
        return inside and not self.map[cell]

    def free(self) -> list[Cell]:
        """Its cells that are no wall, in reading order."""
        return [(int(row), int(column)) for row, column in np.argwhere(~self.map)]

    def cell_at(self, place: Array) -> Cell:
        """Of a place [2]."""
        row, column = self._world.maze.cell_xy_to_rowcol(np.asarray(place, np.float64))
        return int(row), int(column)

    def middle(self, cell: Cell) -> Array:
        """[2] of a cell."""
        return np.asarray(self._world.maze.cell_rowcol_to_xy(np.array(cell)), np.float64)

    def moves(self, goal: Cell) -> dict[Cell, Cell]:
        """The next cell on a shortest way from each cell from where `goal` can be reached; of the goal itself it."""
        after, queue = {goal: goal}, deque([goal])
        while queue:
            row, column = cell = queue.popleft()
            for other in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if self.is_free(other) and other not in after:
                    after[other] = cell
                    queue.append(other)
        return after


def _made(maze: str, render_mode: str | None) -> gymnasium.Env:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # news of its other environments
            import gymnasium_robotics
    except ModuleNotFoundError as absent:
        raise missing_package("gymnasium-robotics", "robotics", "environment 'unipg/PointMaze-v0'") from absent
    gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(f"PointMaze_{maze}-v3", continuing_task=False, render_mode=render_mode).unwrapped


def _vector(seen: Any) -> Array:
    """[6] of what Gymnasium-Robotics shows by name."""
    return np.concatenate([seen["observation"], seen["desired_goal"]]).astype(np.float32)


def guide(maze: PointMaze, target: Array) -> Callable[[Array], Array]:
    """An expert: of what is seen [6], the push [2] towards the middle of the next cell on a shortest way to `target` [2], braked; in the
    target's own cell towards it. Not clipped."""
    goal = maze.cell_at(target)
    way = maze.moves(goal)

    def push(seen: Array) -> Array:
        place, velocity = seen[:2].astype(np.float64), seen[2:4].astype(np.float64)
        cell = way.get(maze.cell_at(place), goal)
        at = target if cell == goal else maze.middle(cell)
        return 10 * (at - place) - velocity

    return push


def collect(
    episodes: int = 60,
    seed: int = 0,
    *,
    maze: str = "UMaze",
    start: Cell | None = None,
    goal: Cell | None = None,
    noise: float = 0.5,
    wandering: int = 0,
    steps: int = 300,
) -> dict[str, Array]:
    """Episodes of `guide` with Gaussian noise, clipped; of at most so many `steps`. Of every `wandering` episodes one goes to other
    cells than the goal's, one after the other, so that ways must be stitched together; 0: none. Columns: `replay.transition_columns`."""
    check_episodes(episodes)
    if wandering < 0 or noise < 0:
        raise InputError(f"noise is {noise} and wandering {wandering}; accepted: 0 or more")
    environment, draw = PointMaze(maze, start, goal), np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    for episode in range(episodes):
        seen, _ = environment.reset(seed=int(draw.integers(2**31)))
        strays = wandering > 0 and (episode + 1) % wandering == 0
        aim = seen[4:].astype(np.float64)
        target = _elsewhere(environment, aim, draw) if strays else aim
        push = guide(environment, target)
        for step in range(steps):
            if strays and np.linalg.norm(seen[:2] - target) < NEAR:
                target = _elsewhere(environment, aim, draw)
                push = guide(environment, target)
            action = (push(seen) + noise * draw.standard_normal(2)).clip(-1, 1).astype(np.float32)
            after, reward, terminated, _, _ = environment.step(action)
            rows.append((seen, after, action, reward, terminated, step + 1 == steps and not terminated, episode))
            seen = after
            if terminated:
                break
    environment.close()
    return transitions(*(np.array(column) for column in zip(*rows, strict=True)))


def _elsewhere(environment: PointMaze, goal: Array, draw: np.random.Generator) -> Array:
    """[2] the middle of a free cell that is not the goal's."""
    cells = [cell for cell in environment.free() if cell != environment.cell_at(goal)]
    return environment.middle(cells[int(draw.integers(len(cells)))])
