"""Environments that misbehave: numbers that are none, episodes without an end, steps that take their time, running normalisers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TransformObservation
from gymnasium.wrappers.vector import NormalizeObservation as NormalizeArray

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.base import Demand, Interrupted
from unipg.rollouts.environments import EnvironmentRecipe, EnvironmentRollouts, evaluate_controller
from unipg.training.recipe import load_recipe
from unipg.training.run import run_recipe


class Odd(gymnasium.Env):
    """Two numbers, two actions, reward 1; `ends` steps an episode, or none. `bad` is given as `what` at the step `at`, once."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, ends: int | None = None, what: str = "", bad: Any = None, at: int = 0, seconds: float = 0.0) -> None:
        self.ends, self.what, self.bad, self.at, self.seconds = ends, what, bad, at, seconds

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self.observation(), {}

    def observation(self) -> np.ndarray:
        return np.array([self.bad if self.what == "observation" and self.time == self.at else 0.0, self.time], np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        assert self.action_space.contains(action)
        if self.seconds:
            time.sleep(self.seconds)
        reward = self.bad if self.what == "reward" and self.time == self.at else 1.0
        self.time += 1
        return self.observation(), reward, self.time == self.ends, False, {}


class Real(Odd):
    """With real actions, which no NaN is one of."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)


class Far(gymnasium.Env):
    """Two states that alternate, seen as numbers near 1000; 1 for the action that names the state. Ten steps."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2)

    def seen(self) -> np.ndarray:
        return 1000 + 10 * np.eye(2, dtype=np.float32)[self.state]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state, self.steps = int(self.np_random.integers(2)), 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward, self.state, self.steps = float(action == self.state), 1 - self.state, self.steps + 1
        return self.seen(), reward, self.steps >= 10, False, {}


class Foreign(gymnasium.Wrapper):
    """Someone's own normaliser."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.obs_rms = None


class Target(gymnasium.Env):
    """Reward 1 − the distance of the action from three quarters of its range, in ranges. Five steps."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.action_space = spaces.Box(low, high, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.steps += 1
        wanted = self.low + 0.75 * (self.high - self.low)
        return np.ones(1, np.float32), 1 - abs(float(action[0]) - wanted) / (self.high - self.low), self.steps >= 5, False, {}


def normal_array(num_envs: int) -> gymnasium.vector.VectorEnv:
    return NormalizeArray(gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point"))


gymnasium.register("Odd-v0", entry_point=Odd)
gymnasium.register("Real-v0", entry_point=Real)
gymnasium.register("Far-v0", entry_point=Far)
gymnasium.register("Target-v0", entry_point=Target)
gymnasium.register("Normal-v0", entry_point=lambda: NormalizeObservation(Far()))
gymnasium.register("NormalArray-v0", vector_entry_point=normal_array)
gymnasium.register("Inside-v0", entry_point=lambda: TransformObservation(NormalizeObservation(Far()), lambda x: x.clip(-5, 5), None))
gymnasium.register("Foreign-v0", entry_point=lambda: Foreign(Far()))
gymnasium.register("Scaled-v0", entry_point=lambda: NormalizeReward(Odd(ends=4)), max_episode_steps=50)


def made(name: str = "Odd-v0", **settings: Any) -> tuple[EnvironmentRollouts, ActorCritic]:
    rollouts = EnvironmentRecipe(**{"id": name, "count": 2, "steps": 6, "evaluation_episodes": 3} | settings).build(0)
    return rollouts, ActorCriticRecipe([4]).build(rollouts.observation_space, rollouts.action_space, 0)


# ------------------------------------------------------------------------------------------------ numbers that are none


@pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")
@pytest.mark.parametrize("name", ["Odd-v0", "Real-v0"])
@pytest.mark.parametrize(("what", "bad"), [("reward", None), ("reward", float("nan")), ("reward", -np.inf), ("observation", np.nan)])
def test_they_are_named_in_training_and_in_evaluation(name: str, what: str, bad: Any) -> None:
    rollouts, policy = made(name, options={"ends": 5, "what": what, "bad": bad, "at": 3})
    with pytest.raises(InputError, match=rf"'{name}' gave an? {what} that is not finite, in row 0 at step 3 of the window: (nan|-inf)"):
        rollouts.collect(policy, Demand(iteration=0, value=True))
    with pytest.raises(
        InputError, match=rf"'{name}' gave an? {what} that is not finite, in row 0 at step 3 of an episode of the evaluation"
    ):
        rollouts.evaluate(policy, 0)


@pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")
def test_an_observation_that_only_a_value_is_taken_of_is_named_too() -> None:
    """The one behind the window's last step, and a truncated episode's last."""
    options = {"what": "observation", "bad": np.nan, "at": 6}
    rollouts, policy = made(options=options)
    with pytest.raises(InputError, match="gave an observation that is not finite, in row 0 after step 5 of the window: nan"):
        rollouts.collect(policy, Demand(iteration=0, value=True))
    rollouts, policy = made(options={**options, "max_episode_steps": 6}, steps=9)
    with pytest.raises(InputError, match="in row 0 after step 5 of the window: nan"):
        rollouts.collect(policy, Demand(iteration=0, value=True))


# ------------------------------------------------------------------------------------------------ episodes without an end


def test_an_endless_episode_is_cut_and_said() -> None:
    rollouts, policy = made(evaluation_steps=25)
    with pytest.warns(UserWarning, match=r"'Odd-v0': 3 of 3 evaluation episodes were cut after 25 steps; set .*max_episode_steps"):
        (found,) = rollouts.evaluate(policy, 0)
    assert found.metrics["length"]["value"] == found.metrics["return"]["value"] == 25
    assert found.metrics["cut fraction"]["value"] == 1
    rollouts, policy = made(evaluation_steps=25, options={"ends": 25})
    (found,) = rollouts.evaluate(policy, 0)
    assert "cut fraction" not in found.metrics


def test_there_is_a_limit_where_nobody_sets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from unipg.rollouts import environments

    monkeypatch.setattr(environments, "EVALUATION_STEPS", 30)
    rollouts, policy = made()
    with pytest.warns(UserWarning, match="cut after 30 steps"):
        rollouts.evaluate(policy, 0)
    rollouts, policy = made(options={"max_episode_steps": 40})  # its own limit counts
    assert rollouts.evaluate(policy, 0)[0].metrics["length"]["value"] == 40


def test_an_endless_evaluation_asks_whether_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    from unipg.rollouts import playing

    monkeypatch.setattr(playing, "POLL_SECONDS", 0.01)
    rollouts, policy = made(evaluation_steps=10**9)
    asked = []

    def stop(done: float) -> None:
        asked.append(done)
        if len(asked) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        rollouts.evaluate(policy, 0, stop)
    assert asked == [0.0] * 3


# ------------------------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize("what", ["collect", "evaluate"])
def test_a_signal_breaks_into_a_long_step(what: str) -> None:
    """Whoever handles the signal sets a flag, as the command line does; the step of an hour is not waited for."""
    rollouts, policy = made(options={"seconds": 3600.0})
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())

    def progress(done: float) -> None:
        if asked.is_set():
            raise Interrupted

    def run() -> Any:
        if what == "collect":
            return rollouts.collect(policy, Demand(iteration=0, should_stop=asked.is_set))
        return rollouts.evaluate(policy, 0, progress)

    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            run()
        assert signal.getsignal(signal.SIGINT).__name__ == "<lambda>"  # type: ignore[union-attr]
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 2


def test_ctrl_c_stops_a_run_at_once(tmp_path: Path) -> None:
    """An environment that takes an hour for a step is interrupted in the evaluation before training; nothing is lost."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"algorithm: ppo\noutput: {tmp_path}/run\nthreads: 1\nenvironment: {{id: 'test_playing:Odd-v0', evaluation_steps: 1000000000, "
        f"options: {{seconds: 3600}}}}\n",
        encoding="utf-8",
    )
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unipg.cli", "train", str(recipe)]
    process = subprocess.Popen(command, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "recipe.yaml").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == 130, errors
    assert "nothing is lost" in output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


# ------------------------------------------------------------------------------------------------ normalisers


def recipe_of(folder: Path, name: str, *overrides: str) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(
        f"algorithm: {{name: ppo, gamma: 0.9, lam: 1.0}}\noutput: {folder}/out\nthreads: 1\n"
        f"environment: {{id: {name}, count: 4, steps: 64, evaluation_episodes: 16}}\n"
        "training: {iterations: 30, epochs: 4, minibatches: 2}\noptimizer: {learning_rate: 3e-3}\n",
        encoding="utf-8",
    )
    return load_recipe(path, list(overrides))


def last_evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "evaluations.jsonl").read_text().splitlines()[-1])["results"][0]["metrics"]["return"]


@pytest.mark.filterwarnings("ignore:the environment's NormalizeObservation is switched off")
@pytest.mark.parametrize(("name", "settings"), [("Far-v0", ["controller.normalize_observations=true"]), ("Normal-v0", [])])
def test_what_was_learned_on_normalised_observations_is_there_in_evaluation(name: str, settings: list[str], tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, name, *settings)
    last = run_recipe(recipe)
    assert last["return/last_100"] > 9.5
    assert last_evaluation(tmp_path)["value"] == 10
    assert last["environment/steps"] == 31 * 4 * 64  # one window was played for the statistics alone
    saved = ActorCritic.load(tmp_path / "out" / "model")
    again = evaluate_controller(saved, recipe.environment, 0)
    assert again.metrics["return"]["value"] == 10


def test_without_statistics_observations_far_away_teach_nothing(tmp_path: Path) -> None:
    """What makes the test above one: the same run on plain observations."""
    run_recipe(recipe_of(tmp_path, "Far-v0"))
    assert last_evaluation(tmp_path)["value"] < 8


def test_actions_far_from_zero_are_learnt(tmp_path: Path) -> None:
    run_recipe(recipe_of(tmp_path, "Target-v0", "environment.options={low: 100, high: 200}"))
    assert last_evaluation(tmp_path)["value"] > 4.25  # of 5; it begins in the middle of the range, at 3.75


def test_the_statistics_follow_one_batch_behind_and_resume(tmp_path: Path) -> None:
    """Interrupted in the middle of a batch and continued: the same bits; and they are those of every window that was collected."""
    from unipg.training.trainer import Stopped, Trainer

    changes = ["controller.normalize_observations=true", "training.iterations=4"]

    straight = recipe_of(tmp_path, "Far-v0", *changes, f"output={tmp_path}/straight")
    run_recipe(straight)
    broken = recipe_of(tmp_path, "Far-v0", *changes, f"output={tmp_path}/broken")
    started = Trainer.train

    def stopping(self: Trainer) -> Any:
        self.stop_after_steps = 19
        return started(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", stopping)
        with pytest.raises(Stopped):
            run_recipe(broken)
    run_recipe(broken, resume=True)
    one, two = (ActorCritic.load(tmp_path / name / "model").module.state_dict() for name in ("straight", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["normalizer.count"] == 5 * 4 * 64
    assert one["normalizer.mean"].tolist() == pytest.approx([1005, 1005], abs=0.2)


def test_arrays_of_environments_may_come_normalised_too() -> None:
    rollouts = EnvironmentRecipe("NormalArray-v0", count=3, steps=20).build(0)
    assert rollouts.normalized
    plain = EnvironmentRecipe("CartPole-v1", count=3, steps=20).build(0)
    with pytest.warns(UserWarning, match="is switched off"):
        policy = ActorCriticRecipe([4]).build(rollouts.observation_space, rollouts.action_space, 0, normalized=True)
    one, other = (source.collect(policy, Demand(iteration=0))[0].observation for source in (rollouts, plain))
    assert torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Inside-v0",
            "'Inside-v0' is wrapped by NormalizeObservation, inside of TransformObservation: its running statistics are in no saved",
        ),
        ("Foreign-v0", "'Foreign-v0' is wrapped by Foreign, an unknown normaliser of observations"),
    ],
)
def test_normalisers_that_cannot_be_replaced_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EnvironmentRecipe(name).build(0)


def test_a_policy_without_statistics_is_refused_where_the_environment_lost_its_own() -> None:
    rollouts, policy = made("Normal-v0")
    assert rollouts.normalized
    for ask in (lambda: rollouts.collect(policy, Demand(iteration=0)), lambda: rollouts.evaluate(policy, 0)):
        with pytest.raises(InputError, match=r"accepted: a policy that keeps them \(controller\.normalize_observations: true\)"):
            ask()


def test_evaluations_show_the_environments_own_rewards() -> None:
    rollouts, policy = made("Scaled-v0", steps=40)
    batch, _ = rollouts.collect(policy, Demand(iteration=0))
    assert batch.step_reward is not None
    assert batch.step_reward.unique().numel() > 2  # in training they are scaled
    assert rollouts.evaluate(policy, 0)[0].metrics["return"]["value"] == 4
