"""Rollouts in environments: a deterministic toy says what every field must hold, in both ways environments reset themselves."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts import environments as module
from unipg.rollouts.base import Demand, Interrupted
from unipg.rollouts.environments import EnvironmentRecipe, EnvironmentRollouts
from unipg.trajectories import Trajectories

LENGTH = 3


class Clock(gymnasium.Env):
    """Shows [time, episode]; pays 10·episode + time; every episode has `LENGTH` steps, even ones terminate, odd ones are truncated."""

    observation_space = spaces.Box(-100, 100, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, both: bool = False, bad: str = "", lock: bool = False) -> None:
        self.both, self.bad = both, bad
        self.lock = threading.Lock() if lock else None
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time, self.episode = 0, self.episode + 1
        return self.observation(), {}

    def observation(self) -> np.ndarray:
        return np.array([math.nan if self.bad == "observation" and self.time == 2 else self.time, self.episode], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = math.inf if self.bad == "reward" and self.time == 1 else 10.0 * self.episode + self.time
        self.time += 1
        end = self.time == LENGTH
        even = self.episode % 2 == 0
        return self.observation(), reward, end and even, end and (self.both or not even), {}


class Clocks(VectorEnv):
    """Clocks as one array environment that takes a step of its own to reset."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012  (gymnasium's own way)

    def __init__(self, num_envs: int, both: bool = False) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = Clock.observation_space, Clock.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.clocks = [Clock(both) for _ in range(num_envs)]
        self.ended = [False] * num_envs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.stack([clock.reset()[0] for clock in self.clocks]), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        results = [
            (clock.reset()[0], 0.0, False, False) if ended else clock.step(action)[:4]
            for clock, action, ended in zip(self.clocks, actions, self.ended, strict=True)
        ]
        observation, reward, terminated, truncated = (np.array(column) for column in zip(*results, strict=True))
        self.ended = (terminated | truncated).tolist()
        return observation, reward, terminated, truncated, {}


class Remembers(Clock, EzPickle):
    """Pickled by gymnasium's own way, it would forget where it stands."""

    def __init__(self) -> None:
        EzPickle.__init__(self)
        Clock.__init__(self)


class Bounded(gymnasium.Env):
    """Refuses an action outside its bounds."""

    observation_space = spaces.Box(-1, 1, (1, 2), np.float64)

    def __init__(self, discrete: bool) -> None:
        self.action_space = spaces.Discrete(3, start=5) if discrete else spaces.Box(-0.5, 0.5, (2, 1), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, (1, 2)), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        return self.np_random.uniform(-1, 1, (1, 2)), 1.0, False, False, {}


gymnasium.register("Clock-v0", entry_point=Clock, vector_entry_point=Clocks)
gymnasium.register("Remembers-v0", entry_point=Remembers)
gymnasium.register("Bounded-v0", entry_point=Bounded)

BOTH_WAYS = pytest.mark.parametrize("vectorized", [False, True], ids=["same step", "next step"])


def clock(vectorized: bool = False, seed: int = 0, **settings: Any) -> tuple[EnvironmentRollouts, ActorCritic]:
    """Clocks, and a linear critic that says time + 100·episode."""
    environments = EnvironmentRecipe(**{"id": "Clock-v0", "count": 2, "steps": 8, "vectorized": vectorized} | settings).build(seed)
    policy = ActorCriticRecipe([]).build(environments.observation_space, environments.action_space, seed)
    with torch.no_grad():
        policy.module.critic.layers[0].weight.copy_(torch.tensor([[1.0, 100.0]]))
    return environments, policy


def demand(iteration: int = 0, **settings: Any) -> Demand:
    return Demand(iteration=iteration, value=True, **settings)


def row(tensor: torch.Tensor | None) -> list:
    """The first row, which all clocks share."""
    assert tensor is not None
    assert torch.equal(tensor[0], tensor[1])
    return tensor[0].tolist()


def test_a_window_of_environments_that_reset_in_the_same_step() -> None:
    environments, policy = clock(vectorized=False)
    batch, metrics = environments.collect(policy, demand())
    assert row(batch.observation) == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [0, 2], [1, 2]]
    assert row(batch.mask) == [True] * 8
    assert row(batch.step_reward) == [0, 1, 2, 10, 11, 12, 20, 21]
    assert np.flatnonzero(row(batch.terminated)).tolist() == [2]
    assert np.flatnonzero(row(batch.truncated)).tolist() == [5]
    assert row(batch.value) == [0, 1, 2, 100, 101, 102, 200, 201]
    # the final observation of the truncated episode is [3, 1]; the window cuts before [2, 2]
    assert row(batch.bootstrap_value) == [0, 0, 0, 0, 0, 103, 0, 202]
    assert metrics["return/episodes"] == 4
    assert metrics["return/mean"] == metrics["return/last_100"] == (3 + 33) / 2
    assert metrics["length/mean"] == 3
    assert metrics["environment/steps"] == 16
    again, metrics = environments.collect(policy, demand(1))
    assert row(again.observation)[0] == [2, 2]
    assert np.flatnonzero(row(again.terminated)).tolist() == [0, 6]
    assert metrics["return/mean"] == (63 + 93 + 123) / 3
    assert metrics["return/last_100"] == (3 + 33 + 63 + 93 + 123) / 5
    assert metrics["environment/steps"] == 32


def test_a_window_of_environments_that_take_a_step_to_reset() -> None:
    environments, policy = clock(vectorized=True)
    batch, metrics = environments.collect(policy, demand())
    assert row(batch.mask) == [True, True, True, False, True, True, True, False]
    mask = batch.mask
    assert batch.observation is not None
    assert batch.observation[0][mask[0]].tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    assert np.flatnonzero(row(batch.terminated)).tolist() == [2]
    assert np.flatnonzero(row(batch.truncated)).tolist() == [6]
    assert row(batch.value) == [0, 1, 2, 0, 100, 101, 102, 0]
    assert row(batch.bootstrap_value) == [0, 0, 0, 0, 0, 0, 103, 0]
    assert metrics == {
        "return/episodes": 4,
        "return/mean": 18,
        "return/last_100": 18,
        "length/mean": 3,
        "environment/steps": 12,
    }
    again, _ = environments.collect(policy, demand(1))
    assert row(again.mask) == [True, True, True, False] * 2


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@BOTH_WAYS
def test_windows_of_any_length_tell_the_same_story(vectorized: bool, steps: int) -> None:
    """The policy's steps, one after the other, do not depend on where windows cut; bootstrap values stand where they must."""
    environments, policy = clock(vectorized, steps=steps)
    story: list[tuple[float, ...]] = []
    for iteration in range(math.ceil(24 / steps)):
        batch, _ = environments.collect(policy, demand(iteration))
        live = batch.mask[0]
        assert batch.observation is not None
        assert batch.bootstrap_value is not None
        assert batch.truncated is not None
        fields = (batch.step_reward, batch.terminated, batch.truncated)
        columns = [f[0][live].float() for f in fields if f is not None]
        for t in live.nonzero().squeeze(-1).tolist():
            time, episode = batch.observation[0, t].tolist()
            cut = t == steps - 1 and not (time == LENGTH - 1 and episode % 2 == 0)
            expected = time + 1 + 100 * episode if cut or batch.truncated[0, t] else 0
            assert batch.bootstrap_value[0, t] == expected
        story += [tuple(s) for s in torch.stack([batch.observation[0][live][:, 0], *columns], 1).tolist()]
    expected_story = [(t, 10 * e + t, t == 2 and e % 2 == 0, t == 2 and e % 2 == 1) for e in range(8) for t in range(LENGTH)]
    assert len(story) >= 16
    assert story[:16] == expected_story[:16]


@BOTH_WAYS
def test_an_end_at_the_limit_is_an_end(vectorized: bool) -> None:
    environments, policy = clock(vectorized, steps=3, options={"both": True})
    batch, _ = environments.collect(policy, demand())
    assert row(batch.terminated) == [False, False, True]
    assert not any(row(batch.truncated))
    assert row(batch.bootstrap_value) == [0, 0, 0]


def test_log_probs_are_the_networks_and_values_come_only_when_asked() -> None:
    environments, policy = clock()
    batch, _ = environments.collect(policy, demand())
    with torch.no_grad():
        now = policy.evaluate(batch, value=True)
    assert batch.behaviour_log_prob is not None
    assert torch.equal(batch.behaviour_log_prob, now.log_prob)
    assert torch.equal(batch.behaviour_log_prob, batch.old_log_prob)
    without, _ = clock()[0].collect(policy, Demand(iteration=0))
    assert torch.equal(without.action, batch.action)
    assert without.value is None
    assert without.bootstrap_value is None


@pytest.mark.parametrize("discrete", [False, True])
def test_environments_get_actions_they_accept(discrete: bool) -> None:
    environments = EnvironmentRecipe("Bounded-v0", count=3, steps=20, options={"discrete": discrete}).build(0)
    policy = ActorCriticRecipe(log_std=1.0).build(environments.observation_space, environments.action_space, 0)
    batch, _ = environments.collect(policy, demand())
    if discrete:
        assert batch.action.shape == (3, 20)
        assert set(batch.action.unique().tolist()) == {0, 1, 2}
    else:
        assert batch.action.shape == (3, 20, 2)
        assert batch.action.abs().max() > 0.5  # unclipped, as their log-probability is
    assert batch.observation is not None
    assert batch.observation.shape == (3, 20, 2)
    assert batch.observation.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ exact resume


def assert_same(one: Trajectories, other: Trajectories) -> None:
    for name in Trajectories.tensor_fields():
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name


def through_a_file(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=False)


@pytest.mark.parametrize(
    ("name", "vectorized"), [("CartPole-v1", True), ("CartPole-v1", False), ("Pendulum-v1", False), ("Remembers-v0", False)]
)
def test_a_resumed_run_continues_bit_for_bit(name: str, vectorized: bool, tmp_path: Path) -> None:
    recipe = EnvironmentRecipe(name, count=3, steps=70, vectorized=vectorized)
    environments = recipe.build(0)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    environments.collect(policy, demand(0))
    state = through_a_file(environments.state_dict(), tmp_path)
    for resumed in (recipe.build(0), environments):  # a fresh process, and stepping back
        expected = [environments.collect(policy, demand(i)) for i in (1, 2)] if resumed is not environments else expected
        resumed.load_state_dict(state)
        for i, (batch, metrics) in zip((1, 2), expected, strict=True):
            again, told = resumed.collect(policy, demand(i))
            assert_same(batch, again)
            assert told == metrics


def test_a_run_that_has_not_started_can_be_resumed() -> None:
    environments, policy = clock()
    fresh, _ = clock()
    fresh.load_state_dict(environments.state_dict())
    assert_same(environments.collect(policy, demand())[0], fresh.collect(policy, demand())[0])


def test_an_interrupted_window_can_be_repeated() -> None:
    recipe = EnvironmentRecipe("CartPole-v1", count=2, steps=30)
    environments, straight = recipe.build(0), recipe.build(0)
    policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
    for source in (environments, straight):
        source.collect(policy, demand(0))
    state = environments.state_dict()
    polls = iter(range(100))
    with pytest.raises(Interrupted):
        environments.collect(policy, demand(1, should_stop=lambda: next(polls) == 10))
    environments.load_state_dict(state)
    assert_same(environments.collect(policy, demand(1))[0], straight.collect(policy, demand(1))[0])


def test_environments_that_cannot_be_saved_say_so_once_and_start_afresh() -> None:
    environments, policy = clock(steps=4, options={"lock": True})
    environments.collect(policy, demand(0))
    with pytest.warns(UserWarning, match=r"'Clock-v0' cannot be saved \(.*lock.*\); after a resume its episodes start afresh") as told:
        state = environments.state_dict()
    assert len(told) == 1
    assert environments.state_dict()["environments"] is None
    resumed, _ = clock(steps=4, options={"lock": True})
    resumed.load_state_dict(state)
    batch, metrics = resumed.collect(policy, demand(1))
    assert row(batch.observation)[0] == [0, 0]
    assert metrics["environment/steps"] == 16
    assert metrics["return/last_100"] == 3  # returns of finished episodes are kept, of the broken ones not


def test_a_checkpoint_with_other_environments_is_refused() -> None:
    state = clock()[0].state_dict()
    with pytest.raises(InputError, match=r"environment\.count is 3 but the checkpoint holds 2"):
        clock(count=3)[0].load_state_dict(state)


@BOTH_WAYS
def test_seeds_and_workers_decide_the_experience(vectorized: bool) -> None:
    def first(seed: int, **settings: Any) -> Trajectories:
        environments = EnvironmentRecipe("CartPole-v1", count=2, steps=20, vectorized=vectorized).build(seed)
        policy = ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)
        return environments.collect(policy, demand(seed=seed, **settings))[0]

    assert_same(first(0), first(0))
    for other in (first(1), first(0, worker=1, workers=2)):
        assert other.observation is not None
        assert not torch.equal(first(0).observation[:, 0], other.observation[:, 0])  # type: ignore[index]
        assert not torch.equal(first(0).action, other.action)


# ------------------------------------------------------------------------------------------------ evaluation and errors


@BOTH_WAYS
def test_evaluation_plays_a_fixed_number_of_episodes_per_environment(vectorized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE_BY_SIDE", 2)
    environments, policy = clock(vectorized, evaluation_episodes=3)
    environments.collect(policy, demand())
    before = environments.state_dict()
    shares: list[float] = []
    (result,) = environments.evaluate(policy, seed=0, progress=shares.append)
    assert result.task == "Clock-v0"
    # the first environment plays two episodes (3 and 33), the second one (3)
    assert result.metrics["return"]["value"] == 13
    assert result.metrics["return"]["low"] <= 13 <= result.metrics["return"]["high"]
    assert result.metrics["return"]["n"] == 3
    assert result.metrics["length"]["value"] == 3
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert environments.state_dict()["observation"].tolist() == before["observation"].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "CartPool-v1"}, r"environment 'CartPool-v1' does not exist; did you mean 'CartPole-v1'"),
        ({"id": "no_such_module:Clock-v0"}, "no_such_module"),
        ({"count": 0}, r"environment\.count is 0; accepted: 1 or more"),
        ({"steps": 0}, r"environment\.steps is 0"),
        ({"options": {"lenght": 3}}, r"environment\.options\.lenght: this key does not exist; accepted: both"),
        ({"id": "Bounded-v0", "vectorized": True}, "has no array implementation; accepted: false, null"),
    ],
)
def test_impossible_environments_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EnvironmentRecipe(**{"id": "Clock-v0"} | settings).build(0)


def test_impossible_demands_are_named() -> None:
    environments, policy = clock()
    with pytest.raises(InputError, match="gives no demonstrations"):
        environments.collect(policy, demand(demonstrations=True))

    with pytest.raises(InputError, match="a policy that acts on observations, such as ActorCritic, not object"):
        environments.collect(object(), demand())  # type: ignore[arg-type]


@pytest.mark.parametrize(("bad", "step"), [("reward", 1), ("observation", 2)])
def test_an_environment_that_gives_nan_is_named(bad: str, step: int) -> None:
    environments, policy = clock(options={"bad": bad})
    with pytest.raises(
        InputError, match=rf"'Clock-v0' gave an? {bad} that is not finite, in row 0 at step {step} of the window: (nan|inf)"
    ):
        environments.collect(policy, demand())
