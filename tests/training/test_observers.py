"""What observers are told, and the three that are ready."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from unipg import InputError, load_run, train
from unipg.algorithms import DQN, PPO
from unipg.policies.actor_critic import ActorCritic
from unipg.training import BestModel, EarlyStopping, Observer, Track

ENVIRONMENT = {"id": "CartPole-v1", "count": 2, "steps": 16, "evaluation_episodes": 2}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*observers, iterations: int = 6, **more):
    return train(PPO(), environment=ENVIRONMENT, iterations=iterations, output="run", observers=observers, progress=False, **more)


class Everything(Observer):
    def __init__(self) -> None:
        self.told: list = []

    def start(self, run) -> None:
        self.told.append(("start", run.iteration))

    def iteration(self, done, total, metrics) -> None:
        self.told.append(("iteration", done, total))
        assert metrics["iteration"] == done - 1

    def evaluation(self, results) -> None:
        self.told.append(("evaluation", results[0].task))

    def checkpoint(self, folder) -> None:
        assert (folder / "checkpoint.pt").is_file()
        self.told.append(("checkpoint",))

    def stop(self, status) -> None:
        self.told.append(("stop", status))


class Counting:
    """No method but one, and no base class."""

    def __init__(self) -> None:
        self.count = 0

    def iteration(self, done, total, metrics) -> None:
        self.count += 1


def test_what_is_told_and_when() -> None:
    everything, counting = Everything(), Counting()
    run(everything, counting, iterations=2)
    assert everything.told == [
        ("start", 0), ("evaluation", "CartPole-v1"), ("iteration", 1, 2), ("checkpoint",), ("iteration", 2, 2), ("checkpoint",),
        ("evaluation", "CartPole-v1"), ("checkpoint",), ("stop", "finished"),
    ]  # fmt: skip
    assert counting.count == 2


def test_observers_change_nothing() -> None:
    first = run(iterations=2)
    weights = ActorCritic.load(first.folder / "model").module.state_dict()
    second = train(
        PPO(), environment=ENVIRONMENT, iterations=2, output="other", observers=[Everything(), BestModel("return")], progress=False
    )
    assert all(torch.equal(weights[name], value) for name, value in second.policy.policy.module.state_dict().items())


def test_a_failure_of_an_observer_fails_the_run_and_is_told() -> None:
    everything = Everything()

    class Broken:
        def iteration(self, done, total, metrics) -> None:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        run(Broken(), everything)
    assert everything.told[-1] == ("stop", "failed")
    assert load_run("run").status == "failed"


def test_a_target_ends_a_run_as_if_it_were_done() -> None:
    found = run(EarlyStopping("step", target=3))
    assert len(found.metrics) == 3
    assert found.status == "finished"
    assert found.record["ended_early"] == "step is 3, and 3 was the target"
    assert [row["iteration"] for row in found.evaluations] == [0, 3]
    assert (found.folder / "model").is_dir()
    found.resume()
    assert len(found.metrics) == 6
    assert "ended_early" not in found.record


def test_patience_ends_a_run() -> None:
    found = run(EarlyStopping("seconds", patience=2, higher_is_better=False))
    assert len(found.metrics) == 3
    assert "has not been better than" in found.record["ended_early"]


def test_patience_counts_what_was_before_a_resume() -> None:
    class Stop:
        def start(self, run) -> None:
            self.run = run

        def iteration(self, done, total, metrics) -> None:
            self.run.stop_requested = done == 2

    from unipg.training import Stopped

    early = EarlyStopping("seconds", patience=3, higher_is_better=False)
    with pytest.raises(Stopped):
        run(early, Stop())
    found = run(EarlyStopping("seconds", patience=3, higher_is_better=False), resume=True)
    assert len(found.metrics) == 4


def test_a_number_of_evaluations_is_watched() -> None:
    found = run(EarlyStopping("return", target=0.0))
    assert found.metrics == []
    assert found.evaluations[0]["iteration"] == 0
    assert (found.folder / "model").is_dir()


def test_the_best_model_is_kept() -> None:
    class Kept(BestModel):
        def seen(self, value, better) -> None:
            super().seen(value, better)
            if better:
                self.at = {name: tensor.clone() for name, tensor in self.run.policy.module.state_dict().items()}

    best = Kept("return")
    found = run(best, training={"evaluate_every": 1}, optimizer={"learning_rate": 0.05})
    returns = [row["results"][0]["metrics"]["return"]["value"] for row in found.evaluations]
    assert best.best == max(returns)
    saved = ActorCritic.load(found.folder / "best").module.state_dict()
    assert all(torch.equal(best.at[name], value) for name, value in saved.items())
    assert returns.index(max(returns)) != len(returns) - 1
    assert any(not torch.equal(saved[name], value) for name, value in found.policy.policy.module.state_dict().items())


def test_numbers_go_to_a_tracker_of_ones_own() -> None:
    logged: list = []
    found = run(Track(lambda numbers, step: logged.append((step, numbers))), iterations=2)
    assert [step for step, numbers in logged if "loss" in numbers] == [1, 2]
    assert [step for step, numbers in logged if "evaluation/CartPole-v1/return" in numbers] == [0, 2]
    assert [n["loss"] for _, n in logged if "loss" in n] == pytest.approx([row["loss"] for row in found.metrics])
    json.dumps(logged)


@pytest.mark.parametrize(
    ("metric", "iterations", "line", "seen"),
    [
        ("retrun/mean", 3, "saw no 'retrun/mean' after 2 iterations; did you mean 'return/mean'", 2),  # when the first episode ended
        ("accuracy", 3, "saw no 'accuracy' in this run", 3),
        ("accuracy", 12, "saw no 'accuracy' after 10 iterations", 10),
    ],
)
def test_a_metric_that_does_not_come_is_told_once_and_soon(metric, iterations, line, seen) -> None:
    class Early(EarlyStopping):
        def iteration(self, done, total, metrics) -> None:
            super().iteration(done, total, metrics)
            at.append(len(told))

    at: list[int] = []
    with pytest.warns(UserWarning, match=f"Early {line}") as told:
        run(Early(metric, patience=1), iterations=iterations)
    assert len([each for each in told if "saw no" in str(each.message)]) == 1
    assert at == [int(done >= seen and iterations > seen) for done in range(1, iterations + 1)]


def test_a_metric_that_comes_late_is_not_doubted() -> None:
    run(EarlyStopping("return/mean", patience=100), iterations=2)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: EarlyStopping("loss"), "needs a patience, a target, or both"),
        (lambda: EarlyStopping("loss", patience=0), "patience is 0; accepted: 1 or more"),
        (lambda: EarlyStopping("loss", patience=1, margin=-1), "margin is -1"),
        (lambda: BestModel("loss", name="model"), "name is 'model'"),
        (lambda: BestModel("loss", name="../x"), r"name is '\.\./x'"),
    ],
)
def test_settings_that_make_no_sense(make, line) -> None:
    with pytest.raises(InputError, match=line):
        make()


class OneStill(gymnasium.ObservationWrapper):
    """The cart stands at 50."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation * np.array([0, 1, 1, 1], np.float32) + np.array([50, 0, 0, 0], np.float32)


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)


@pytest.mark.parametrize("algorithm", [PPO(), DQN()], ids=["rollouts", "replay"])
def test_numbers_that_hardly_change_are_told_of_once_where_they_are_normalised(algorithm) -> None:
    told = {}
    for wrappers, normalize in (([], True), ([f"{__name__}.OneStill"], True), ([f"{__name__}.OneStill"], False)):
        notes = Notes()
        train(
            algorithm,
            environment={**ENVIRONMENT, "count": 1, "steps": 64, "wrappers": wrappers},
            controller={"hidden": [8], "normalize_observations": normalize},
            iterations=3,
            output=f"run-{len(told)}",
            observers=[notes],
            progress=False,
        )
        told[bool(wrappers), normalize] = notes.heard
    assert told[False, True] == told[True, False] == []
    (text,) = told[True, True]
    assert text.startswith("of the first iteration's observations the numbers 0 hardly change (std below 0.001)")
