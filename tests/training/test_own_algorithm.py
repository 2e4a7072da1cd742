"""An algorithm of one's own, in a module of the current folder: by Python, by recipe, and from the run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unipg import InputError, KLPenalty, load_run, train
from unipg.training.recipe import recipe_from

MODULE = """
from dataclasses import dataclass

from unipg import OldPolicy, PolicyGradient, RatioClip
from unipg.algorithms import Algorithm, setting
from unipg.estimator import GAE, ValueLoss


@dataclass(frozen=True)
class Mine(Algorithm):
    name = "mine"
    title = "PPO with a wider clip"
    paper = "none"
    clip: float = setting(0.4, "distance from 1 that the ratio may go")

    def objective(self, setting):
        gae = GAE(gamma=0.99)
        return PolicyGradient(mask=RatioClip(self.clip, self.clip), reference=OldPolicy(), advantage=gae) + 0.5 * ValueLoss(gae=gae)


number = 3
"""
ENVIRONMENT = {"id": "CartPole-v1", "count": 2, "steps": 16, "evaluation_episodes": 2}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_algorithm.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_algorithm", None)
    return tmp_path


def test_it_trains_and_its_run_is_found_again(module) -> None:
    from own_algorithm import Mine  # type: ignore[import-not-found]

    train(Mine(clip=0.3), environment=ENVIRONMENT, iterations=1, output="run", progress=False)
    kept = yaml.safe_load((module / "run" / "recipe.yaml").read_text())["algorithm"]
    assert (kept["name"], kept["clip"]) == ("own_algorithm:Mine", 0.3)
    assert load_run("run").evaluate()
    ours = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-m", "unipg.cli", "evaluate", "run", "--episodes", "2"]
    assert subprocess.run(command, cwd=module, env=ours, capture_output=True, timeout=120).returncode == 0
    train("own_algorithm:Mine", environment=ENVIRONMENT, iterations=1, output="again", progress=False)


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        ({"name": "own_algorithm:Mine", "clp": 0.3}, "algorithm.clp: this key does not exist; did you mean 'clip'?"),
        ("own_algorithm:Mone", "algorithm 'own_algorithm:Mone': 'own_algorithm' has no 'Mone'; did you mean 'Mine'?"),
        ("own_algorithm:GAE", "algorithm 'own_algorithm:GAE' is no subclass of unipg.Algorithm"),
        ("nowhere:Mine", "algorithm 'nowhere:Mine': there is no module 'nowhere'"),
        (KLPenalty(), "algorithm is an objective, which says nothing of its data; accepted: a name, or an `Algorithm`"),
    ],
)
def test_what_is_no_algorithm(module, algorithm, said) -> None:
    with pytest.raises(InputError) as found:
        recipe_from({"algorithm": algorithm, "environment": ENVIRONMENT})
    assert str(found.value).startswith(said)
