"""Worlds by hand, one by one and in rows, and the data that is collected in them."""

import gymnasium
import numpy as np
import pytest

from unipg import InputError
from unipg.environments import line_world, lock, road
from unipg.rollouts.snapshots import Snapshots, put
from unipg.trajectories import Trajectories

WORLDS = {
    "unipg/LineWorld-v0": (line_world.Line(), line_world.collect),
    "unipg/Road-v0": (road.Road(), road.collect),
    "unipg/Lock-v0": (lock.Lock(), lock.collect),
}


def made(name: str, rows: int) -> gymnasium.vector.VectorEnv:
    return gymnasium.make_vec(name, rows, vectorization_mode="vector_entry_point")


def test_the_line_by_hand() -> None:
    world, draw = line_world.Line(), np.random.default_rng(0)
    state = np.array([[0.5], [9.0], [9.5], [3.0]])
    following, reward, terminated = world.after(state, np.array([[-1.0], [0.5], [0.75], [7.0]]), draw)
    assert following[:, 0].tolist() == [0.0, 9.5, 10.0, 4.0]
    assert reward.tolist() == [0, 0, 1, 0]
    assert terminated.tolist() == [False, False, True, False]
    begun = world.begin(4000, draw)
    assert 0 <= begun.min() < 0.01
    assert 1.99 < begun.max() <= 2


def test_the_data_of_the_line_knows_no_step_to_the_right_in_the_bad_stretch() -> None:
    data = line_world.collect(4000, seed=1)
    x, action = data["observation"][:, 0], data["action"][:, 0]
    bad = (x >= 4) & (x < 6)
    assert 700 < bad.sum() < 900
    assert -1 <= action[bad].min() < action[bad].max() <= -0.5
    assert action[~bad].max() > 0.99
    np.testing.assert_allclose(data["next_observation"][:, 0], (x + action).clip(0, 10), atol=1e-6)
    np.testing.assert_array_equal(data["terminated"], data["next_observation"][:, 0] >= 10)
    np.testing.assert_array_equal(data["truncated"], ~data["terminated"])
    np.testing.assert_array_equal(data["episode"], np.arange(4000))


def test_the_road_by_hand() -> None:
    """On the road each step costs 0.01, the end of it gives 1; beside it one step of five crashes."""
    world, draw = road.Road(), np.random.default_rng(0)
    state, action = np.array([[1.0, 0.0], [0.06, 1.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [-0.5, 0.0], [4.0, -4.0]])
    following, reward, terminated = world.after(state, action, draw)
    np.testing.assert_allclose(following, [[1.0, 0.05], [0.035, 1.0], [1.05, -0.05]])
    np.testing.assert_allclose(reward, [-0.01, 0.99, -0.01])
    assert terminated.tolist() == [False, True, False]
    _, reward, crashed = world.after(np.tile([1.2, 0.0], (20_000, 1)), np.zeros((20_000, 2)), draw)
    assert crashed.mean() == pytest.approx(0.2, abs=0.01)
    assert sorted(np.unique(reward).tolist()) == pytest.approx([-1.01, -0.01])


def test_the_driver_keeps_to_the_road() -> None:
    """Without noise from its middle: 0.8 · 0.05 a step along a circle, so (π/2 − arcsin 0.05) / 0.04 steps, a little fewer for its drift
    outwards, which the second term holds."""
    state = np.array([[0.0, 1.1]])
    np.testing.assert_allclose(road.driver(state), [[-0.8, -0.3]], atol=1e-12)
    data = road.collect(300, seed=0)
    last = np.append(np.diff(data["episode"]) > 0, True)
    returns = np.bincount(data["episode"], data["reward"])
    lengths = np.bincount(data["episode"])
    assert data["reward"][last].mean() > 0.98  # all but a few arrive
    assert returns.mean() == pytest.approx(0.6, abs=0.02)
    assert np.median(lengths) == pytest.approx((np.pi / 2 - np.arcsin(0.05)) / 0.04, abs=2)


def test_the_lock_by_hand() -> None:
    """Right actions keep to good states, each of them half the time; others lose for good; only the last step pays."""
    world, draw = lock.Lock(steps=3, secret=4), np.random.default_rng(0)
    n = 20_000
    sure = 100 * np.eye(10)
    state = world.begin(n, draw)
    assert state[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    for step in range(3):
        state, reward, ended = world.after(state, sure[world.right[state[:, 0].astype(int), step]], draw)
        assert (reward == (step == 2)).all()
        assert (ended == (step == 2)).all()
        assert state[:, 0].mean() == pytest.approx(0.5, abs=0.02)
        assert (state[:, 1] == step + 1).all()
    wrong, consoled = np.zeros((n, 2)), []
    for step in range(3):
        action = sure[(world.right[0, 0] + 1) % 10] if step == 0 else sure[world.right[0, step]]
        wrong, reward, _ = world.after(wrong, np.tile(action, (n, 1)), draw)
        assert (wrong[:, 0] == lock.LOST).all()
        consoled.append(reward)
    assert np.unique(consoled[2]).tolist() == [0, 0.1]
    assert np.mean(consoled, 1) == pytest.approx([0, 0, 0.05], abs=0.002)
    shaped = lock.Lock(3, 4, shaped=True).after(np.zeros((n, 2)), np.tile(sure[(world.right[0, 0] + 1) % 10], (n, 1)), draw)[1]
    assert shaped.mean() == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize(("steps", "size"), [(1, 8), (4, 8), (5, 16), (12, 16), (13, 32)])
def test_what_is_seen_of_the_lock(steps: int, size: int) -> None:
    """D = 2^ceil(log2(H + 4)); the Hadamard matrix is orthogonal, so the hidden vector can be read back: its marks, and noise of 0.1."""
    world, draw = lock.Lock(steps), np.random.default_rng(0)
    assert world.hadamard.shape == (size, size)
    np.testing.assert_array_equal(world.hadamard @ world.hadamard.T, size * np.eye(size))
    state = np.tile([1.0, steps], (4000, 1))
    seen = world.seen(state, draw)
    assert (seen[:, -1] == steps).all()
    hidden = seen[:, :-1].astype(np.float64) @ world.hadamard / size
    marks = np.zeros(size)
    marks[[1, 3 + steps]] = 1
    np.testing.assert_allclose(hidden.mean(0), marks, atol=0.01)
    np.testing.assert_allclose(hidden.std(0), np.where(np.arange(size) < steps + 3, 0.1, 0), atol=0.01)


def test_the_lock_and_those_who_know_it() -> None:
    """Without lapses the optimum has probability 0.99959^H; with the lapse 1/H, 0.82^5 at H = 5; a policy that knows nothing has 10^-H."""
    right = np.exp(10) / (np.exp(10) + 9)
    assert right == pytest.approx(0.99959, abs=5e-6)

    def optimal(data: dict[str, np.ndarray]) -> float:
        return float((data["reward"] == 1).sum() / len(np.unique(data["episode"])))

    assert optimal(lock.collect(20_000, 0, epsilon=0)) == pytest.approx(right**5, abs=1.5e-3)
    lapses = optimal(lock.collect(20_000, 1, secret=7))
    assert lapses == pytest.approx((0.8 * right + 0.2 * 0.1) ** 5, abs=0.012)
    draw, world = np.random.default_rng(0), lock.Lock(2)
    unknowing = lock.collected(world, lambda state, step, draw: draw.standard_normal((len(state), 10)), 40_000, 0)
    assert optimal(unknowing) == pytest.approx(0.01, abs=0.0018)
    with pytest.raises(InputError, match=r"epsilon is 2; accepted"):
        lock.collect(3, epsilon=2)
    with pytest.raises(InputError, match=r"a lock was given the action \[nan"):
        world.after(world.begin(1, draw), np.full((1, 10), np.nan), draw)
    with pytest.raises(InputError, match=r"a lock has 0 steps; accepted: 1 or more"):
        lock.LockWorld(0)


@pytest.mark.parametrize("name", WORLDS)
def test_one_row_is_what_many_are(name: str) -> None:
    """With one generator, one environment by itself and rows of one give the same episodes, ends and starts included."""
    alone, rows = gymnasium.make(name), made(name, 1)
    seen, _ = alone.reset(seed=3)
    many, _ = rows.reset(seed=3)
    np.testing.assert_array_equal(seen, many[0])
    draw, ends = np.random.default_rng(0), 0
    for _ in range(200):
        action = draw.uniform(-1, 1, alone.action_space.shape).astype(np.float32)
        seen, reward, terminated, truncated, _ = alone.step(action)
        many, rewards, ended, cut, infos = rows.step(action[None])
        assert (reward, terminated, truncated) == (rewards[0], ended[0], cut[0])
        if terminated or truncated:
            np.testing.assert_array_equal(infos["final_obs"][0], seen)
            seen, _ = alone.reset()
            ends += 1
        np.testing.assert_array_equal(seen, many[0])
        assert alone.observation_space.contains(seen)
    assert ends > 2


@pytest.mark.parametrize("name", WORLDS)
def test_running_rows_are_their_numbers(name: str) -> None:
    """A snapshot put into new rows goes on as the old ones would have."""
    old, new = made(name, 3), made(name, 3)
    old.reset(seed=1)
    new.reset(seed=2)
    shots, draw = Snapshots(made_and_reset(name)), np.random.default_rng(0)
    for _ in range(50):
        old.step(draw.uniform(-1, 1, old.action_space.shape))
    put(shots.take(old), new)
    for _ in range(50):
        action = draw.uniform(-1, 1, old.action_space.shape)
        for one, other in zip(old.step(action)[:4], new.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, other)


def made_and_reset(name: str) -> gymnasium.vector.VectorEnv:
    environments = made(name, 3)
    environments.reset(seed=0)
    return environments


@pytest.mark.parametrize("name", WORLDS)
def test_collected_episodes_are_whole_and_in_order(name: str) -> None:
    world, collect = WORLDS[name]
    data, again = collect(40, seed=5), collect(40, seed=5)
    assert {values.dtype.name for values in data.values()} == {"float32", "bool", "int64"}
    for column, values in data.items():
        np.testing.assert_array_equal(values, again[column])
    assert (collect(40, seed=6)["observation"][0] != data["observation"][0]).any()
    np.testing.assert_array_equal(np.unique(data["episode"]), np.arange(40))
    last = np.append(np.diff(data["episode"]) != 0, True)
    np.testing.assert_array_equal(data["terminated"] | data["truncated"], last)
    assert not (data["terminated"] & data["truncated"]).any()
    np.testing.assert_array_equal(data["next_observation"][:-1][~last[:-1]], data["observation"][1:][~last[:-1]])
    assert np.bincount(data["episode"]).max() <= world.horizon
    fields = {field: values for field, values in data.items() if field not in ("reward", "action")}
    rows = {field: np.expand_dims(values, 1) for field, values in fields.items()}
    Trajectories(action=data["action"][:, None], mask=np.ones((len(last), 1)), step_reward=data["reward"][:, None], **rows)


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"0 episodes were asked for; accepted: 1 or more"):
        line_world.collect(0)
    with pytest.raises(InputError, match=r"a road's noise is -1; accepted"):
        road.RoadWorld(noise=-1)
    with pytest.raises(InputError, match=r"Road was given actions \[3\]; accepted: \[2\]"):
        made("unipg/Road-v0", 4).step(np.zeros((4, 3)))
