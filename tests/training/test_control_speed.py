"""The benchmark against Stable-Baselines3: its equality proof, and how it draws learning curves; speed itself is not a test."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("gymnasium")


@pytest.fixture(scope="module")
def control() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "speed" / "control.py"
    spec = importlib.util.spec_from_file_location("speed_control", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("case", "vectorized"), [("cartpole", None), ("cartpole", False), ("hopper", None)])
def test_the_gradient_of_a_minibatch_is_that_of_the_textbook_loss(control, case, vectorized) -> None:
    if case == "hopper":
        pytest.importorskip("mujoco")
    assert control.proof(control.CASES[case], vectorized) <= control.EQUAL


def test_a_curve_is_the_mean_return_of_the_episodes_that_ended_in_each_stretch(control) -> None:
    ended = [(100, 10.0, 1.0), (control.POINT, 40.0, 2.0), (control.POINT + 1, 5.0, 1.0)]
    assert control.curve(ended) == {str(control.POINT): 30.0, str(2 * control.POINT): 5.0}
    assert control.curve(ended, 50) == {"100": 10.0, str(50 * -(-control.POINT // 50)): (2 * 40.0 + 5.0) / 3}


def test_runs_are_compared_pair_by_pair(control) -> None:
    def run(cpu: float, value: float) -> dict:
        return {"steps": 100, "cpu": cpu, "wall": cpu, "curve": {"4096": value}, "versions": {}}

    found = control.compared([run(1, 10), run(2, 12), run(1, 11)], [run(3, 11), run(4, 10), run(5, 12)], 2.5)
    assert found["ratio"]["median"] == 3
    assert found["reached"]
    assert found["returns_overlap"] == {"mean_return": True, "final_return": True}
    apart = control.compared([run(1, 10), run(1, 12)], [run(1, 100), run(1, 120)], 2.5)
    assert not apart["reached"]
    assert not any(apart["returns_overlap"].values())


def test_a_missing_peer_is_said_and_left_out(control, capsys) -> None:
    assert not control.present("stable_baselines3", "/nowhere/python", None)
    assert "stable_baselines3 is left out: '/nowhere/python' cannot import" in capsys.readouterr().out


@pytest.mark.parametrize(("script", "said"), [(None, "name a copy of its ppo.py"), ("/nowhere/ppo.py", "'/nowhere/ppo.py' is no file")])
def test_cleanrl_needs_its_script(control, capsys, monkeypatch, script, said) -> None:
    monkeypatch.setitem(control.PEERS, "cleanrl", "torch")
    assert not control.present("cleanrl", sys.executable, script)
    assert f"cleanrl is left out: {said}" in capsys.readouterr().out
