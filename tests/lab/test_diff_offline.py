"""`unipg diff` of methods that learn from given transitions: on rows of the recipe's own dataset."""

from pathlib import Path

import numpy as np
import pytest

from unipg.algorithms.base import algorithm_named
from unipg.lab.diff_control import on_environments
from unipg.replay import Transitions
from unipg.training.recipe import recipe_from


def rows(folder: Path, name: str, size: int = 300) -> str:
    draw = np.random.default_rng(len(name))
    given = {
        "observation": draw.standard_normal((size, 3)),
        "next_observation": draw.standard_normal((size, 3)),
        "action": draw.uniform(-2, 2, (size, 1)),
        "reward": draw.standard_normal(size),
        "terminated": np.arange(size) % 50 == 49,
    }
    Transitions.of(given).save(folder / name)
    return str(folder / name)


def differ(folder: Path, first: str, second: str, **dataset):
    given = {"path": rows(folder, "data"), "reward_scale": 2.0} | dataset
    recipe = recipe_from({"algorithm": first, "environment": {"id": "Pendulum-v1"}, "dataset": given, "controller": {"hidden": [8]}})
    return on_environments(recipe, recipe.build_algorithm(), algorithm_named(second)(), seed=0)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("iql", "xql", "layer normalisation in one of the two"),
        ("td3_bc", "iql", "deterministic actions in td3_bc"),
        ("iql", "awac", "trained by iql alone"),
        ("bc", "cdsa", "trained by cdsa alone"),
        ("bc", "odice", "before the direction Orthogonal"),
    ],
)
def test_two_methods_on_the_same_rows(tmp_path: Path, first: str, second: str, told: str) -> None:
    found = differ(tmp_path, first, second)
    assert any(told in note for note in found.notes)
    assert found.batch == {"transitions": 512.0}
    assert all(np.isfinite(row.first) and np.isfinite(row.second) for row in found.rows)


@pytest.mark.parametrize("name", ["iql", "td3_bc"])  # the latter in units of the dataset
def test_a_method_beside_itself_is_the_same(tmp_path: Path, name: str) -> None:
    found = differ(tmp_path, name, name)
    assert found.total.cosine == pytest.approx(1.0)
    assert all(row.first == row.second for row in found.rows)


def test_imitation_sees_both_sources(tmp_path: Path) -> None:
    found = differ(tmp_path, "recoil", "recoil", demonstrations=rows(tmp_path, "expert"))
    assert found.batch == {"transitions": 1024.0}
