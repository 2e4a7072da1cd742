"""`environment.wrappers`: what is put around every environment, and what is said of wrong entries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv

import unipg
from unipg.cli import main
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Demand
from unipg.rollouts.environments import EnvironmentRecipe, evaluate_controller


class Doubled(gymnasium.RewardWrapper):
    """Rewards times `factor`."""

    def __init__(self, env: gymnasium.Env, factor: float = 2.0) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward: Any) -> Any:
        return reward * self.factor


class Plus(gymnasium.RewardWrapper):
    def reward(self, reward: Any) -> Any:
        return reward + 1


def fails(env: gymnasium.Env) -> gymnasium.Env:
    raise RuntimeError("no")


def counts(env: gymnasium.Env) -> int:
    return 3


HERE = __name__


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def collected(wrappers: list[Any], **settings: Any) -> Any:
    environments = EnvironmentRecipe("CartPole-v1", count=2, steps=12, wrappers=wrappers, **settings).build(0)
    policy = ActorCriticRecipe([4]).build(environments.observation_space, environments.action_space, 0)
    return environments.collect(policy, Demand(0, 1, value=False, seed=0))[0], environments, policy


def test_the_first_is_innermost_and_arguments_arrive() -> None:
    """1·3 + 1 and (1 + 1)·3; evaluations see the same rewards."""
    tripled = {"path": f"{HERE}:Doubled", "factor": 3}
    for wrappers, reward in (([tripled, f"{HERE}.Plus"], 4), ([f"{HERE}.Plus", tripled], 6), ([f"{HERE}.Doubled"], 2)):
        batch, environments, policy = collected(wrappers)
        assert (batch.step_reward == reward).all()
        (found,) = environments.evaluate(policy, 0)
        assert found.metrics["return"]["value"] == pytest.approx(reward * found.metrics["length"]["value"])


def test_an_array_implementation_gives_way() -> None:
    plain, with_one = collected([])[1], collected([f"{HERE}.Plus"])[1]
    assert not isinstance(plain._environments, SyncVectorEnv)
    assert isinstance(with_one._environments, SyncVectorEnv)
    with pytest.raises(InputError, match=r"^environment\.vectorized is true, but environment\.wrappers are put around single environments"):
        EnvironmentRecipe("CartPole-v1", wrappers=[f"{HERE}.Plus"], vectorized=True)


def test_spaces_are_the_outermost_ones() -> None:
    _, environments, _ = collected([{"path": "gymnasium.wrappers.FrameStackObservation", "stack_size": 3}])
    assert environments.observation_space.shape == (3, 4)


def test_a_resumed_run_continues_bit_for_bit() -> None:
    """In numbers: wrappers do not make a pickle of what is none."""
    _, environments, policy = collected([{"path": f"{HERE}:Doubled", "factor": 3}])
    state = environments.state_dict()
    assert isinstance(state["environments"], list)
    expected = environments.collect(policy, Demand(1, 1, value=False, seed=0))[0]
    resumed = EnvironmentRecipe("CartPole-v1", count=2, steps=12, wrappers=[{"path": f"{HERE}:Doubled", "factor": 3}]).build(1)
    resumed.load_state_dict(state)
    again = resumed.collect(policy, Demand(1, 1, value=False, seed=0))[0]
    assert torch.equal(expected.observation, again.observation)
    assert torch.equal(expected.step_reward, again.step_reward)


@pytest.mark.parametrize(
    ("wrappers", "message"),
    [
        (["gymnasium.wrappers.FlatenObservation"], r"wrappers\[0\] 'gymnasium.wrappers.FlatenObservation': .* did you mean 'FlattenObs"),
        (["unipg.environments.timed.TimeStp"], r"has no 'TimeStp'; did you mean 'TimeStep'\? accepted: TimeStep$"),
        (["nonsense.Thing"], r"environment\.wrappers\[0\] 'nonsense.Thing': there is no module 'nonsense'"),
        ([f"{HERE}.Plus", {"path": f"{HERE}.Doubled", "facter": 1}], r"^environment\.wrappers\[1\]\.facter: .* did you mean 'factor'\?"),
        ([f"{HERE}.fails"], r"wrappers\[0\]: '.*fails' cannot be put around the environment: RuntimeError: no$"),
        ([f"{HERE}.counts"], r"wrappers\[0\]: '.*counts' made a int of an environment"),
        ([{"factor": 1}], r"^environment\.wrappers\[0\] is \{'factor': 1\}; accepted: package\.module\.Wrapper, or \{path: …"),
        ([3], r"^environment\.wrappers\[0\] is 3; accepted"),
    ],
)
def test_wrong_entries_are_one_line(wrappers: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        collected(wrappers)


def test_from_a_file_and_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The same run by dotted path and by class: what is recorded is the path."""
    monkeypatch.chdir(tmp_path)
    recipe = (
        "algorithm: ppo\nthreads: 1\ntraining: {iterations: 1}\nenvironment: {id: CartPole-v1, count: 2, steps: 8, evaluation_episodes: 2, "
    )
    wrappers = f"wrappers: [{{path: '{HERE}:Doubled', factor: 5}}]}}\n"
    Path("r.yaml").write_text(recipe + wrappers, encoding="utf-8")
    assert main(["train", "r.yaml", "output=one"]) == 0
    section = {"id": "CartPole-v1", "count": 2, "steps": 8, "evaluation_episodes": 2, "wrappers": [{"path": Doubled, "factor": 5}]}
    run = unipg.train("ppo", environment=section, iterations=1, threads=1, output="two", progress=False)
    one, two = (json.loads((Path(name) / "evaluations.jsonl").read_text().splitlines()[-1])["results"] for name in ("one", "two"))
    assert one == two
    assert run.recipe.as_dict()["environment"]["wrappers"] == [{"path": f"{HERE}:Doubled", "factor": 5}]
    capsys.readouterr()
    assert main(["train", "r.yaml", "output=three", "environment.wrappers=[nonsense.Thing]"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("three").exists()


def test_a_normaliser_among_them_is_the_policys() -> None:
    environments = EnvironmentRecipe("CartPole-v1", count=2, wrappers=["gymnasium.wrappers.NormalizeObservation"]).build(0)
    assert environments.normalized
    with pytest.warns(UserWarning, match="NormalizeObservation is switched off"):
        policy = ActorCriticRecipe([4]).build(
            environments.observation_space, environments.action_space, 0, normalized=environments.normalized
        )
    found = evaluate_controller(policy, EnvironmentRecipe("CartPole-v1", evaluation_episodes=2), 0)
    assert np.isfinite(found.metrics["return"]["value"])
