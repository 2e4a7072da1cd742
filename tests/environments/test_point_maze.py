"""Point mazes: the map, the way through it, and episodes of one who knows it."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from unipg import InputError
from unipg.environments import point_maze
from unipg.environments.point_maze import PointMaze, collect, guide


def test_the_map_and_the_shortest_ways() -> None:
    """The U: seven free cells, of which each has one way on; from one end to the other in six moves."""
    maze = PointMaze()
    assert maze.free() == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 1), (3, 2), (3, 3)]
    way, cell, steps = maze.moves((1, 1)), (3, 1), 0
    while cell != (1, 1):
        cell, steps = way[cell], steps + 1
    assert steps == 6
    assert way[(1, 1)] == (1, 1)
    assert way.keys() == set(maze.free())
    for cell in maze.free():
        assert maze.cell_at(maze.middle(cell)) == cell


def test_what_is_seen_and_where_it_ends() -> None:
    """Place, velocity and goal; 1 within 0.45 of the goal, which ends the episode."""
    maze = gymnasium.make("unipg/PointMaze-v0", start=[3, 1], goal=[1, 1])
    seen, _ = maze.reset(seed=0)
    world = maze.unwrapped
    np.testing.assert_allclose(seen[4:], world.goal, rtol=1e-6)
    assert np.abs(seen[:2] - [-1, -1]).max() <= 0.25 + 1e-6
    assert np.abs(seen[4:] - [-1, 1]).max() <= 0.25 + 1e-6
    inner = maze
    while not isinstance(inner, PointMaze):
        inner = inner.env
    push, steps = guide(inner, seen[4:]), 0
    terminated = False
    while not terminated:
        before = seen
        seen, reward, terminated, truncated, _ = maze.step(push(seen).clip(-1, 1))
        steps += 1
        assert reward == terminated
        assert not truncated
        assert np.linalg.norm(before[:2] - before[4:]) > point_maze.NEAR
    assert np.linalg.norm(seen[:2] - seen[4:]) <= point_maze.NEAR
    assert 30 < steps < 150
    again, _ = maze.reset(seed=0)
    assert maze.observation_space.contains(again)
    for _ in range(300):
        _, _, terminated, truncated, _ = maze.step(np.zeros(2))
    assert (terminated, truncated) == (False, True)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_who_knows_the_way_arrives(noise: float) -> None:
    data = collect(8, seed=1, noise=noise)
    last = np.append(np.diff(data["episode"]) != 0, True)
    assert data["terminated"][last].all()
    assert data["reward"].sum() == 8
    assert len(last) / 8 < 100
    assert np.abs(data["action"]).max() <= 1
    np.testing.assert_array_equal(data["next_observation"][:-1][~last[:-1]], data["observation"][1:][~last[:-1]])
    for name, values in collect(8, seed=1, noise=noise).items():
        np.testing.assert_array_equal(values, data[name])


def test_who_wanders_does_not_arrive() -> None:
    """With the goal at one end of the U, every third episode sees all of it but that end, and is cut."""
    data = collect(6, seed=0, wandering=3, steps=300, start=(3, 1), goal=(1, 1))
    ended = np.array([(data["terminated"] | data["truncated"])[data["episode"] == k] for k in range(6)], dtype=object)
    assert [len(rows) == 300 for rows in ended] == [False, False, True, False, False, True]
    assert all(rows[-1] and not rows[:-1].any() for rows in ended)
    assert data["reward"].sum() == data["terminated"].sum() == 4
    maze, strayed = PointMaze(start=(3, 1), goal=(1, 1)), np.isin(data["episode"], (2, 5))
    seen = {maze.cell_at(place) for place in data["observation"][strayed, :2]}
    assert {(3, 1), (3, 2), (3, 3), (2, 3), (1, 3), (1, 2)} <= seen


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"maze 'UMase' does not exist; did you mean 'UMaze'"):
        PointMaze("UMase")
    with pytest.raises(InputError, match=r"\[2, 1\] is no free cell of 'UMaze'; accepted: \(1, 1\), \(1, 2\)"):
        PointMaze(goal=(2, 1))
    with pytest.raises(InputError, match=r"\[9, 9\] is no free cell"):
        PointMaze(start=(9, 9))
    with pytest.raises(InputError, match=r"noise is -1 and wandering 0; accepted: 0 or more"):
        collect(2, noise=-1)
    with pytest.raises(InputError, match=r"0 episodes were asked for"):
        collect(0)


def test_it_is_made_in_silence() -> None:
    code = "from unipg.environments.point_maze import PointMaze; PointMaze().close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
