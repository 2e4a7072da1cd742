"""Every recipe of the repository runs, and every algorithm has one."""

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from unipg.algorithms import registered
from unipg.cli import main
from unipg.replay import Transitions
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training.recipe import load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def test_every_algorithm_has_a_recipe() -> None:
    assert {load_recipe(path).build_algorithm().name for path in RECIPES} == set(registered())


def test_every_algorithm_has_an_oracle() -> None:
    """Closed forms of its paper, in `tests/oracles/`, by its name or its class."""
    told = "\n".join(path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "oracles").glob("*.py"))
    missing = [n for n, kind in registered().items() if not re.search(rf"[\"\']{n}[\"\']|\b{kind.__name__}\b", told)]
    assert missing == []


def random_transitions(environment: EnvironmentRecipe, folder: Path) -> Path:
    """A dataset of 64 steps with actions drawn uniformly."""
    env = gymnasium.make(environment.id, **environment.options)
    env.action_space.seed(0)
    rows: dict[str, list] = {name: [] for name in ("observation", "next_observation", "action", "reward", "terminated", "truncated")}
    ended, seen = True, None
    for t in range(64):
        seen = env.reset(seed=t)[0] if ended else seen
        action = env.action_space.sample()
        after, reward, terminated, _, _ = env.step(action)
        truncated = t % 16 == 15  # several episodes, however long the environment's are
        for name, value in zip(rows, (seen, after, action, reward, terminated, truncated), strict=True):
            rows[name].append(value)
        ended, seen = terminated or truncated, after
    Transitions.of({name: np.array(values) for name, values in rows.items()}).save(folder / "data")
    return folder / "data"


# what is said of Box2D's and MuJoCo's simulations
@pytest.mark.filterwarnings("ignore:environment '.*' (cannot be saved|is more than its numbers):UserWarning")
@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_runs(path: Path, tmp_path) -> None:
    small = ["training.iterations=2", f"output={tmp_path / 'run'}", "training.evaluate_every=0", "optimizer.warmup=0", "threads=1"]
    recipe = load_recipe(path)
    if recipe.environment is not None:
        small += ["environment.evaluation_episodes=1", "environment.steps=16"]
        if recipe.dataset is not None and recipe.build_algorithm().mixes:  # whole episodes of both
            small[-1:] = [f"environment.steps={recipe.environment.steps}", "environment.count=8", "dataset.options.episodes=8"]
        elif recipe.dataset is not None:
            small += [f"dataset.path={random_transitions(recipe.environment, tmp_path)}", "dataset.batch=8", "dataset.updates=8"]
        elif recipe.build_algorithm().replays:
            small += ["replay.warmup=4", "replay.batch=8"]
    else:
        kind = "reasoning_gym" if recipe.task.multi_hop is None else "multi_hop"
        small += ["training.prompts=2", "evaluation.items=2", f"task.{kind}.size=64"]
        if recipe.policy.scratch is None:
            small += ["policy.model=null", "policy.scratch={hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64}"]
    assert main(["train", str(path), *small]) == 0
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    assert (tmp_path / "run" / "model").is_dir()
