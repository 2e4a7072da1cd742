"""Environments in processes of their own: the same numbers as in one process, saved and resumed alike."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.base import Demand, Interrupted, Pickled
from unipg.rollouts.environments import EnvironmentRecipe, EnvironmentRollouts
from unipg.trajectories import Trajectories

FORKED = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # newer Pythons, of gymnasium's own processes
pytestmark = FORKED


class Walk(gymnasium.Env):
    """A random walk with ends of both kinds; breaks, or dies, where it is told to."""

    observation_space = spaces.Box(-100, 100, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, lock: bool = False, lambdas: bool = False, dies: int = -1, breaks: int = -1) -> None:
        self.lock = threading.Lock() if lock else None
        self.pushed = (lambda x: x + 0.5) if lambdas else float
        self.dies, self.breaks = dies, breaks
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time, self.place = 0, 0.0
        return self.seen(), {}

    def seen(self) -> np.ndarray:
        return np.array([self.time, self.place], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        if self.steps == self.breaks:
            raise ArithmeticError("a leg broke")
        if self.steps == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        self.time += 1
        self.place += self.pushed(self.np_random.normal()) + (0.2 if action else -0.2)
        return self.seen(), self.place, abs(self.place) > 2, self.time >= 6, {}


gymnasium.register("Walk-v0", entry_point=Walk)
gymnasium.register("WalkScaled-v0", entry_point=lambda: gymnasium.wrappers.NormalizeReward(Walk()))
gymnasium.register("WalkNormalized-v0", entry_point=lambda: gymnasium.wrappers.NormalizeObservation(Walk()))


def made(processes: int | None, name: str = "Walk-v0", **settings: Any) -> tuple[EnvironmentRollouts, ActorCritic]:
    recipe = EnvironmentRecipe(**{"id": name, "count": 3, "steps": 20, "vectorized": False if processes is None else None} | settings)
    environments = EnvironmentRecipe(**vars(recipe) | {"processes": processes}).build(0)
    return environments, ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)


def windows(environments: EnvironmentRollouts, policy: ActorCritic, iterations: range) -> list[tuple[Trajectories, dict[str, float]]]:
    return [environments.collect(policy, Demand(iteration=i, value=True)) for i in iterations]


def assert_same(one: list[tuple[Trajectories, dict[str, float]]], other: list[tuple[Trajectories, dict[str, float]]]) -> None:
    for (a, told), (b, told_too) in zip(one, other, strict=True):
        assert told == told_too
        for name in Trajectories.tensor_fields():
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x, y), name


@pytest.mark.parametrize("name", ["Walk-v0", "WalkScaled-v0", "CartPole-v1"])
@pytest.mark.parametrize("processes", [2, 3])
def test_they_give_what_one_process_gives(name: str, processes: int) -> None:
    alone, apart = made(None, name), made(processes, name)
    one = windows(*alone, range(3))
    assert_same(one, windows(*apart, range(3)))
    if name == "Walk-v0":
        assert bool(one[0][0].terminated.any())  # type: ignore[union-attr]
        assert bool(one[0][0].truncated.any())  # type: ignore[union-attr]
    assert [r.metrics for r in alone[0].evaluate(alone[1], 0)] == [r.metrics for r in apart[0].evaluate(apart[1], 0)]


def test_transitions_too() -> None:
    alone, apart = (environments.stepper(policy) for environments, policy in (made(None), made(2)))
    source = np.random.default_rng(0)
    for _ in range(20):
        given = source.integers(0, 2, 3)
        a, b = alone.step(given), apart.step(given)
        for name in ("observation", "next_observation", "reward", "terminated", "truncated", "episode"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize(("options", "pickles"), [({}, False), ({"lambdas": True}, True)])
def test_a_resumed_run_continues_bit_for_bit_here_and_in_one_process(options: dict[str, Any], pickles: bool, tmp_path: Path) -> None:
    environments, policy = made(2, options=options)
    windows(environments, policy, range(1))
    state = _warned(environments) if pickles else environments.state_dict()
    assert isinstance(state["environments"], Pickled) == pickles
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=False)
    expected = windows(environments, policy, range(1, 3))
    for other in (made(2, options=options)[0], made(None, options=options)[0], environments):
        other.load_state_dict(state)
        assert_same(expected, windows(other, policy, range(1, 3)))


def _warned(environments: EnvironmentRollouts) -> dict[str, Any]:
    with pytest.warns(UserWarning, match="'Walk-v0' is more than its numbers"):
        return environments.state_dict()


def test_what_cannot_be_saved_says_so_once_and_goes_on() -> None:
    environments, policy = made(2, options={"lock": True})
    windows(environments, policy, range(1))
    with pytest.warns(UserWarning, match=r"'Walk-v0' cannot be saved \(.*lock.*\); after a resume its episodes start afresh") as told:
        assert environments.state_dict()["environments"] is None
    assert len(told) == 1
    windows(environments, policy, range(1, 2))


def test_an_interrupted_window_can_be_repeated() -> None:
    environments, policy = made(2)
    windows(environments, policy, range(1))
    state = environments.state_dict()
    expected = windows(environments, policy, range(1, 2))
    environments.load_state_dict(state)
    polls = iter(range(100))
    with pytest.raises(Interrupted):
        environments.collect(policy, Demand(iteration=1, value=True, should_stop=lambda: next(polls) == 10))
    environments._environments.step_async(np.zeros(3, int))  # broken off in the middle of a step
    environments.load_state_dict(state)
    assert_same(expected, windows(environments, policy, range(1, 2)))


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_process_that_dies_is_one_line_with_the_environment(at_once) -> None:
    """Also where it had the turn that another one waits for."""
    environments, policy = made(at_once, options={"dies": 5})
    with pytest.raises(
        InputError, match=r"a process of environment 'Walk-v0' has ended by itself, out of memory or killed: row [012]"
    ) as told:
        windows(environments, policy, range(1))
    assert "\n" not in str(told.value)
    assert f"exit code {-signal.SIGKILL}" in str(told.value)


@pytest.mark.filterwarnings("ignore:.*(Worker-|Traceback|main process):UserWarning")  # gymnasium's log of it
def test_what_an_environment_raises_is_raised_here() -> None:
    environments, policy = made(2, options={"breaks": 5})
    with pytest.raises(ArithmeticError, match="a leg broke") as told:
        windows(environments, policy, range(1))
    assert told.value.__notes__ == ["in environment 'Walk-v0', at step 4 of the window"]


def test_a_running_normaliser_is_found_and_off() -> None:
    environments, _ = made(2, "WalkNormalized-v0")
    assert environments.normalized
    policy = ActorCriticRecipe([8], normalize_observations=True).build(environments.observation_space, environments.action_space, 0)
    batch, _ = environments.collect(policy, Demand(iteration=0))
    assert batch.observation is not None
    assert {math.floor(t) for t in batch.observation[..., 0].flatten().tolist()} <= set(range(7))  # the plain times


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 0}, r"environment\.processes is 0; accepted: 1 or more"),
        ({"processes": 2, "vectorized": True}, r"environment\.processes is 2, but arrays are in one process; accepted: null"),
        ({"processes": 2, "options": {"lenght": 1}}, r"environment\.options\.lenght: this key does not exist"),
        ({"processes": 2, "id": "Wolk-v0"}, r"environment 'Wolk-v0' does not exist; did you mean 'Walk-v0'"),
    ],
)
def test_impossible_ones_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EnvironmentRecipe(**{"id": "Walk-v0"} | settings).build(0)
