"""What a run cannot have is told before anything is written; and kinds of actions without an entropy where none is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml

from unipg.cli import main
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.spaces import actions_of
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import Trainer, TrainingRecipe
from unipg.training.recipe import build_algorithm

SMALL = {"id": "Pendulum-v1", "count": 2, "steps": 8, "evaluation_episodes": 1, "options": {"max_episode_steps": 5}}
ROOMS = {"id": "unipg.environments:unipg/FourRooms-v0", "count": 2, "steps": 8, "evaluation_episodes": 1}
GMM = {"name": "ppo", "critic": {"kind": "gmm", "dt": 0.05, "beta": 2.0}}


def written(folder: Path, **sections) -> str:
    """A recipe of few steps, whose run goes to `run`."""
    recipe = {"output": str(folder / "run"), "threads": 1, "environment": SMALL, "training": {"iterations": 1}} | sections
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(folder / "recipe.yaml")


# ---------------------------------------------------------------------------------------------------- without an entropy


@pytest.mark.parametrize("kind", ["squashed", "mixture", "squashed_mixture"])
@pytest.mark.parametrize("name", ["ppo", "a2c", "reinforce", "reinforce_plus_plus", "tppo"])
def test_kinds_without_an_entropy_train_where_it_weighs_nothing(name, kind, tmp_path) -> None:
    path = written(tmp_path, algorithm=name, controller={"kind": kind, "hidden": [4]}, training={"iterations": 2})
    assert main(["train", path]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["gradient_norm"] > 0 and "entropy" not in row for row in rows)
    assert main(["report", str(tmp_path / "run")]) == 0


def test_the_others_tell_theirs(tmp_path) -> None:
    assert main(["train", written(tmp_path, algorithm="ppo", controller={"kind": "gaussian"})]) == 0
    assert "entropy" in json.loads((tmp_path / "run" / "metrics.jsonl").read_text())


# ---------------------------------------------------------------------------------------------------- before there is a folder


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"algorithm": {"name": "ppo", "entropy": 0.01}, "controller": {"kind": "squashed"}},
            "algorithm.entropy is 0.01, but a controller of kind 'squashed' has none in closed form; accepted: 0, or controller.kind "
            "gaussian, spread, bounded, bounded_spread, latent, or actions that can be counted",
        ),
        (
            {"algorithm": {"name": "a2c", "entropy": 0.5}, "controller": {"kind": "mixture"}},
            "algorithm.entropy is 0.5, but a controller of kind 'mixture' has none in closed form; accepted: 0, or controller.kind",
        ),
        (
            {"algorithm": "trpo", "controller": {"kind": "mixture"}},
            "algorithm 'trpo' needs the exact KL of two policies, which a controller of kind 'mixture' does not offer; accepted: "
            "controller.kind gaussian, spread, squashed, bounded, bounded_spread, latent, or actions that can be counted",
        ),
        (
            {"algorithm": "ppo", "controller": {"kind": "deterministic"}},
            "accepted for algorithm 'ppo' here: gaussian, spread, bounded, bounded_spread, squashed, latent, mixture, squashed_mixture",
        ),
        (
            {"algorithm": GMM, "environment": SMALL | {"count": 1}},
            "environment.count is 1 and training.minibatches 1, so that an optimiser step may have no more than 1 of the 2 rows that "
            "algorithm.critic.kind 'gmm' compares; accepted: environment.count of at least 2, or fewer minibatches",
        ),
        (
            {"algorithm": GMM, "environment": SMALL | {"count": 4}, "training": {"iterations": 1, "minibatches": 4}},
            "environment.count is 4 and training.minibatches 4, .* accepted: environment.count of at least 8",
        ),
        (
            {"algorithm": "polychromic_ppo", "environment": ROOMS | {"processes": 2}},
            "environment.processes is 2, but vines are of environments that are saved here",
        ),
        (
            {"algorithm": "polychromic_ppo", "environment": ROOMS | {"normalize_rewards": True}},
            "environment.normalize_rewards is true, but sets of episodes are scored by rewards as they are",
        ),
        (
            {"algorithm": "polychromic_ppo", "environment": ROOMS | {"wrappers": [f"{__name__}.Forgetful"]}},
            r"environment 'unipg.environments:unipg/FourRooms-v0' cannot be saved and restored \(.*generator",
        ),
        (
            {"algorithm": {"name": "polychromic_ppo", "place": f"{__name__}:nowhere"}, "environment": ROOMS},
            r"algorithm.place is array\(\[0., 0.\]\) in environment .*, which cannot be told from other places; accepted: a hashable value",
        ),
        (
            {"algorithm": "polychromic_ppo", "environment": ROOMS, "training": {"iterations": 1, "epochs": 2}},
            "training.epochs is 2, but algorithm 'polychromic_ppo' says itself how often its learners use a batch",
        ),
        (
            {"algorithm": "gorl", "environment": SMALL, "training": {"iterations": 1, "overlap": True}},
            "training.overlap is true, but algorithm 'gorl' goes through stages",
        ),
        (
            {"algorithm": "ppo", "environment": SMALL | {"processes": 2}, "training": {"iterations": 1, "overlap": True}},
            "environment.processes is 2, but training.overlap sends environments to another process with each demand",
        ),
        (
            {
                "algorithm": "ppo",
                "environment": ROOMS | {"wrappers": [f"{__name__}.Forgetful"]},
                "training": {"iterations": 1, "overlap": True},
            },
            "environment 'unipg.environments:unipg/FourRooms-v0' cannot be saved .* accepted: training.overlap: false",
        ),
    ],
)
def test_nothing_is_written(sections, said, tmp_path, capsys) -> None:
    assert main(["train", written(tmp_path, **sections)]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_trainer_that_is_made_has_written_nothing(tmp_path) -> None:
    experience = EnvironmentRecipe(**SMALL).build(0)
    policy = ActorCritic([3], actions_of(gymnasium.spaces.Box(-2, 2, (1,), np.float32)))
    made = Trainer(build_algorithm("ppo"), policy, experience, folder=tmp_path / "run", training=TrainingRecipe(iterations=1))
    assert not (tmp_path / "run").exists()
    made.train()
    assert (tmp_path / "run" / "model").is_dir()


def nowhere(environment: gymnasium.Env, info: dict) -> np.ndarray:
    return np.zeros(2)


class Forgetful(gymnasium.Wrapper):
    """Holds what nothing can save."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.stream = (number for number in range(3))


# ---------------------------------------------------------------------------------------------------- vines from states that are not all


class Outside(gymnasium.Wrapper):
    """Counts its steps where no copy of it is told apart."""

    count = 0

    def step(self, action):
        Outside.count += 1
        return self.env.step(action)


class Paid(Outside):
    """Earns by the count; what is observed does not depend on it."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, Outside.count / 1000, terminated, truncated, info


class Ended(Outside):
    """Ends by the count."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, Outside.count % 9 == 0, info


@pytest.mark.parametrize("wrapper", ["Paid", "Ended"])
@pytest.mark.parametrize("states", [1, 2])
def test_rewards_and_ends_that_depend_on_more_than_the_environment_are_found(wrapper, states, tmp_path, capsys) -> None:
    environment = ROOMS | {"wrappers": [f"{__name__}.{wrapper}"]}
    path = written(tmp_path, algorithm={"name": "polychromic_ppo", "vine_states": states}, environment=environment)
    assert main(["train", path]) == 2
    assert re.search(r"cannot be saved and restored \(the same \d+ actions led somewhere else, or earned", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
