"""Worlds by hand, one by one and in rows, and the data that is collected in them."""

import gymnasium
import numpy as np
import pytest

from unipg import InputError
from unipg.environments import line_world, road
from unipg.rollouts.snapshots import Snapshots, put
from unipg.trajectories import Trajectories

WORLDS = {
    "unipg/LineWorld-v0": (line_world.Line(), line_world.collect),
    "unipg/Road-v0": (road.Road(), road.collect),
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
    assert (collect(40, seed=6)["action"][0] != data["action"][0]).all()
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
