"""Episodes that are kept are the environment's own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from unipg.errors import InputError, Interrupted
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.replay import Transitions
from unipg.replay.cards import Episodes
from unipg.rollouts.collecting import bystander, collect_episodes, with_limit
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.rollouts.making import step_limit


class Labelled(gymnasium.Env):
    """Shows (seed of its first reset, episode, time, last action); 1 + time a step; episode k lasts 1 + k % 4 steps, and every third one is
    cut instead of ending."""

    observation_space = spaces.Box(-1e9, 1e9, (4,), np.float32)
    action_space: spaces.Space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    episode = -1
    label = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.label = self.label if seed is None else seed % 1000
        self.episode, self.time, self.last = self.episode + 1, 0, 0.0
        return self.shown(), {}

    def shown(self) -> np.ndarray:
        return np.array([self.label, self.episode, self.time, self.last], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.time, self.last = self.time + 1, float(action[1])
        ended, cut = self.time == 1 + self.episode % 4, self.episode % 3 == 2
        return self.shown(), float(self.time), ended and not cut, ended and cut, {}


def arrays(num_envs: int = 1, **_: Any) -> SyncVectorEnv:
    return SyncVectorEnv([Labelled] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


class Endless(Labelled):
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.shown(), 1.0, False, False, {}


gymnasium.register("CollectLabelled-v0", entry_point=Labelled, vector_entry_point=arrays)
gymnasium.register("CollectEndless-v0", entry_point=Endless)


@pytest.mark.parametrize("vectorized", [False, True], ids=["same step", "next step"])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("episodes", [1, 5, 150])
def test_every_row_is_a_step_of_one_episode(episodes: int, uniform: bool, vectorized: bool) -> None:
    """However the environments reset: rows lead from step to step of one episode, whose action and reward are those that it saw."""
    recipe = EnvironmentRecipe("CollectLabelled-v0", vectorized=vectorized)
    rows = collect_episodes(recipe, bystander(recipe, 0), episodes, 3, uniform=uniform)
    before, after = rows["observation"], rows["next_observation"]
    assert (before[:, :2] == after[:, :2]).all()
    np.testing.assert_array_equal(after[:, 2], before[:, 2] + 1)
    np.testing.assert_array_equal(after[:, 3], rows["action"][:, 1])
    np.testing.assert_array_equal(rows["reward"], after[:, 2])
    assert rows["reward"].dtype == np.float32
    found = Episodes.of(Transitions.of(rows))
    assert len(found.start) == episodes == rows["episode"].max() + 1
    number = before[found.start, 1].astype(int)
    np.testing.assert_array_equal(found.length, 1 + number % 4)  # whole, from its first step to its last
    np.testing.assert_array_equal(before[found.start, 2], 0)
    np.testing.assert_array_equal(found.ends == 1, number % 3 == 2)
    assert not (rows["terminated"] & rows["truncated"]).any()
    side = min(episodes, 64)
    assert np.bincount(number, minlength=2)[0] == side  # so many environments, and each plays its share, short or long
    assert number.max() == -(-episodes // side) - 1


def test_the_seed_decides_everything_and_random_actions_fill_their_space() -> None:
    recipe = EnvironmentRecipe("CollectLabelled-v0", vectorized=False)
    one, same, other = (collect_episodes(recipe, bystander(recipe, 0), 400, seed, uniform=True) for seed in (0, 0, 1))
    assert all((one[name] == same[name]).all() for name in one)
    assert (one["action"][:50] != other["action"][:50]).all()
    low, high = one["action"].min(0), one["action"].max(0)
    half = np.array([2, 5])
    np.testing.assert_allclose(low / half, [-1, 0], atol=0.03)
    np.testing.assert_allclose(high / half, [1, 2], atol=0.03)
    np.testing.assert_allclose(one["action"].mean(0) / half, [0, 1], atol=0.1)


def test_actions_that_count_are_in_the_environments_own_numbering() -> None:
    recipe = EnvironmentRecipe("CartPole-v1", vectorized=False)
    rows = collect_episodes(recipe, bystander(recipe, 0), 3, 0)
    assert rows["action"].shape == rows["reward"].shape
    assert set(rows["action"].tolist()) == {0, 1}
    assert Transitions.of(rows).column("action").dtype == np.int64


def test_episodes_without_an_end_are_cut() -> None:
    recipe = EnvironmentRecipe("CollectEndless-v0", evaluation_steps=7)
    assert step_limit(with_limit(recipe)) == 7
    rows = collect_episodes(recipe, bystander(recipe, 0), 2, 0)
    assert rows["truncated"].nonzero()[0].tolist() == [6, 13]
    assert not rows["terminated"].any()


def test_a_policy_that_draws_nothing_is_refused() -> None:
    recipe = EnvironmentRecipe("CartPole-v1", vectorized=False)
    experience = recipe.build(0)
    greedy = ActorCriticRecipe([4], kind="greedy").build(experience.observation_space, experience.action_space, 0)
    with pytest.raises(InputError, match="draws none"):
        collect_episodes(recipe, greedy, 1, 0)
    with pytest.raises(InputError, match="episodes is 0"):
        collect_episodes(recipe, greedy, 0, 0)


def test_a_collection_stops_when_it_is_asked_to() -> None:
    recipe = EnvironmentRecipe("CollectEndless-v0")

    def stop(done: float) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        collect_episodes(recipe, bystander(recipe, 0), 2, 0, progress=stop)
