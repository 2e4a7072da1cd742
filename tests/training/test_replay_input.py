"""What a run that learns from kept transitions cannot have: one line that names the place, exit code 2, and nothing lost."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from unipg import InputError
from unipg.cli import main
from unipg.training.recipe import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = [
    "environment.steps=16",
    "environment.evaluation_episodes=1",
    "replay.warmup=4",
    "replay.batch=8",
    "replay.capacity=20",
    "threads=1",
]


@pytest.mark.parametrize(
    ("recipe", "override", "said"),
    [
        ("pendulum-td3", "replay.capacity=100", "replay.capacity is 100, but a batch has 256 transitions; accepted: at least as many"),
        ("cartpole-dqn", "replay={capacity: 20}", "replay.capacity is 20, but a batch has 32 transitions; accepted: at least as many"),
        ("pendulum-td3", "replay.updates_per_step=0", "replay.updates_per_step is 0.0; accepted: a number above 0"),
        ("pendulum-td3", "replay.warmup=-1", "replay.warmup is -1; accepted: 0 or more steps"),
        ("pendulum-td3", "replay.priorities={alpha: -1}", "replay.priorities.alpha is -1.0; accepted: 0 or more"),
        ("pendulum-td3", "replay.priorities={beta: 1.5}", r"replay.priorities.beta is 1.5; accepted: a number in \[0, 1\]"),
        ("pendulum-td3", "replay.priorities={eps: 0}", "replay.priorities.eps is 0.0; accepted: above 0"),
        ("pendulum-td3", "replay.priorities={weight: 0}", "replay.priorities.weight: this key does not exist"),
        ("cartpole-ppo", "replay.batch=8", "replay is given, but algorithm 'ppo' learns from each batch of rollouts once"),
        ("pendulum-td3", "training.epochs=2", "training.epochs is 2, which is of batches of rollouts; accepted with replay: 1"),
        ("pendulum-td3", "training.overlap=true", "training.overlap is true, which is of batches of rollouts; accepted with replay: false"),
        ("pendulum-td3", "algorithm.n_step=0", "algorithm.n_step is 0; accepted: 1 or more"),
        ("pendulum-td3", "algorithm.limit=-1", "algorithm.limit is -1.0; accepted: 0 or more"),
        (
            "pendulum-td3",
            "optimizer.learners={critic: {rate: 0.1}}",
            "optimizer.learners.critic.rate: this key does not exist; accepted: betas",
        ),
        (
            "pendulum-td3",
            "optimizer.learners={critic: {learning_rate: -1}}",
            "optimizer.learners.critic: optimizer.learning_rate is -1; accepted: 0 or more",
        ),
        (
            "pendulum-td3",
            "optimizer.learners={critic: {kind: sdg}}",
            "optimizer.learners.critic: OptimizerRecipe: kind 'sdg' does not exist; did you mean 'sgd'",
        ),
    ],
)
def test_recipes_that_no_run_can_have(recipe, override, said) -> None:
    with pytest.raises(InputError, match=f"^{said}") as found:
        load_recipe(RECIPES / f"{recipe}.yaml", [override])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("recipe", "override", "said"),
    [
        ("pendulum-td3", "optimizer.learners={critc: {learning_rate: 0.1}}", "optimizer.learners.critc: .* did you mean 'critic'"),
        ("pendulum-td3", "replay.capacity=1000000000000", r"the disk of .* has .* GB of room; .* need \d+.\d+ GB: make room, or lower"),
        ("cartpole-ppo", "controller.kind=greedy", "controller.kind is 'greedy', whose actions have no probabilities; .*'ppo' here: auto"),
        ("cartpole-ppo", "environment.options={max_episode_steps: -3}", "environment.options.max_episode_steps is -3; accepted: whole"),
        ("cartpole-ppo", "environment.processes=9", "environment.processes is 9; accepted: at most environment.count, 2"),
    ],
)
def test_what_is_found_when_a_run_is_built_leaves_no_folder(recipe, override, said, tmp_path, capsys) -> None:
    small = [f"output={tmp_path / 'run'}", "environment.count=2", "threads=1"]
    assert main(["train", str(RECIPES / f"{recipe}.yaml"), *small, override]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


class Still(gymnasium.Env):
    """Episodes of two steps, then of three, and so on."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (2,), np.float32)
    action_space: spaces.Space = spaces.Box(-1, 1, (2,), np.float32)
    episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return np.zeros(2, np.float32), 0.0, self.time == 2 + self.episode, False, {}


class Spoilt(Still):
    """Shows or pays NaN at the third step of its second episode."""

    def __init__(self, what: str) -> None:
        self.what = what

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, *rest = super().step(action)
        if self.episode == 1 and self.time == 3:
            reward, observation = (math.nan, observation) if self.what == "reward" else (reward, observation * math.nan)
        return observation, reward, *rest


class Unbounded(Still):
    action_space = spaces.Box(-np.inf, np.inf, (2,))


gymnasium.register("Spoilt-v0", entry_point=Spoilt)
gymnasium.register("Unbounded-v0", entry_point=Unbounded)


def command(capsys: Any, folder: Path, recipe: str, *overrides: str) -> str:
    """What a run that is refused says on the command line, in one line."""
    capsys.readouterr()
    assert main(["train", str(RECIPES / f"{recipe}.yaml"), f"output={folder}", *SMALL, *overrides]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("unipg: ")
    return said.removeprefix("unipg: ")


@pytest.mark.parametrize(
    ("recipe", "environment", "said"),
    [
        ("pendulum-td3", "CartPole-v1", "the environment's actions are Discrete.*; accepted for algorithm 'td3': a Box of real numbers"),
        ("cartpole-dqn", "Pendulum-v1", "the environment's actions are Box.*; accepted for algorithm 'dqn': Discrete"),
        ("pendulum-td3", "Unbounded-v0", "deterministic actions need two finite bounds in every dimension, .* in dimension 0"),
        ("pendulum-sac", "Unbounded-v0", "squashed actions need two finite bounds in every dimension, .* in dimension 0"),
        (
            "pendulum-td3",
            "Spoilt-v0 environment.options={what:reward}",
            "environment 'Spoilt-v0' gave a reward .* row 0 at step 2 .*step 4",
        ),
        (
            "pendulum-td3",
            "Spoilt-v0 environment.options={what:observation}",
            "environment 'Spoilt-v0' gave an observation .* row 0 at step 2",
        ),
    ],
)
def test_environments_that_cannot_be_had(recipe, environment, said, tmp_path, capsys) -> None:
    name, *options = environment.replace(":", ": ").split(" environment.")
    told = command(capsys, tmp_path / "run", recipe, f"environment.id={name}", *(f"environment.{option}" for option in options))
    assert re.match(said, told), told
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def gone(path: Path, other: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [(cut, "is cut off or damaged"), (foreign, "is the replay buffer of another run than the checkpoint's"), (gone, "does not exist")],
)
def test_a_buffer_that_cannot_be_gone_on_with_ends_the_resume_and_loses_nothing(harm, said, tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    for place in (folder, tmp_path / "other"):
        assert main(["train", str(RECIPES / "pendulum-td3.yaml"), f"output={place}", *SMALL, "training.iterations=1"]) == 0
    kept = (folder / "replay.bin").read_bytes()
    harm(folder / "replay.bin", tmp_path / "other" / "replay.bin")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".jsonl", ".bin")}
    assert said in command(capsys, folder, "pendulum-td3", "training.iterations=2", "--resume")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pt", ".jsonl", ".bin")}
    (folder / "replay.bin").write_bytes(kept)
    assert main(["train", str(RECIPES / "pendulum-td3.yaml"), f"output={folder}", *SMALL, "training.iterations=2", "--resume"]) == 0


def test_a_learner_of_another_name(tmp_path, capsys) -> None:
    overrides = [*SMALL, "optimizer.learners={critc: {learning_rate: 0.1}}", f"output={tmp_path / 'run'}"]
    assert main(["train", str(RECIPES / "pendulum-td3.yaml"), *overrides]) == 2
    said = capsys.readouterr().err
    assert said.endswith("unipg: optimizer.learners.critc: this key does not exist; did you mean 'critic'? accepted: critic, policy\n")
