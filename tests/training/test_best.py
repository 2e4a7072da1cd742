"""The best policy of a control run: which one it is, that it survives a stop, and that its score is measured on other episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from unipg.cli import main
from unipg.policies.actor_critic import ActorCritic
from unipg.rollouts.environments import evaluate_controller
from unipg.training.evaluate import evaluate_model
from unipg.training.recipe import load_recipe
from unipg.training.trainer import Trainer


class Luck(gymnasium.Env):
    """One step, paid with a draw from N(0, 1) whatever is done."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), float(self.np_random.normal()), True, False, {}


gymnasium.register("Luck-v0", Luck)


def recipe(folder: Path, environment: str) -> str:
    path = folder / "r.yaml"
    path.write_text(
        f"algorithm: {{name: ppo, gamma: 0.98}}\noutput: {folder}/run\nthreads: 1\n"
        f"environment: {{{environment}}}\ncontroller: {{hidden: [8]}}\n"
        "training: {iterations: 6, evaluate_every: 1, epochs: 4}\noptimizer: {learning_rate: 0.03}\n",
        encoding="utf-8",
    )
    return str(path)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_it_is_the_policy_that_measured_best_also_after_a_stop(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = recipe(tmp_path, "id: CartPole-v1, count: 4, steps: 32, evaluation_episodes: 5, options: {max_episode_steps: 60}")
    assert main(["train", path]) == 0
    told = " ".join(capsys.readouterr().out.split())
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    returns = [row["results"][0]["metrics"]["return"]["value"] for row in rows]
    found = json.loads((run / "run.json").read_text())["evaluations"]
    assert found["n"] == len(returns) == 7
    assert found["last"] == {"iteration": 6, "return": returns[-1]}
    assert found["best"] == {"iteration": rows[int(np.argmax(returns))]["iteration"], "return": max(returns)}
    assert f"return last {returns[-1]:.4g} at iteration 6; best {max(returns):.4g} at iteration {found['best']['iteration']}" in told
    environment = load_recipe(path).environment
    best = evaluate_controller(ActorCritic.load(run / "best"), environment, 0)
    assert best.metrics["return"]["value"] == max(returns)
    assert main(["train", path, f"output={tmp_path}/stopped", "training.iterations=3"]) == 0
    assert main(["train", path, f"output={tmp_path}/stopped", "--resume"]) == 0
    assert weights(tmp_path / "stopped" / "best") == weights(run / "best")
    assert weights(tmp_path / "stopped" / "model") == weights(run / "model")


def killed_in(iteration: int, path: str, run: Path) -> None:
    """What kill -9 leaves at the end of an iteration, in this process."""
    finish = Trainer._finish_iteration

    def ends(self, seconds):
        row = finish(self, seconds)
        if self.iteration == iteration:
            raise ArithmeticError
        return row

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "_finish_iteration", ends)
        with pytest.raises(ArithmeticError):
            main(["train", path, f"output={run}", "training.save_every=50"])
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert not (run / "checkpoint.pt").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = recipe(tmp_path, "id: CartPole-v1, count: 4, steps: 32, evaluation_episodes: 5, options: {max_episode_steps: 60}")
    assert main(["train", path, f"output={tmp_path}/whole"]) == 0
    run = tmp_path / "run"
    killed_in(3, path, run)
    assert (run / "best").is_dir()
    capsys.readouterr()
    assert main(["train", path]) == 2
    assert "already exists: use --resume" in capsys.readouterr().err
    assert main(["train", path, "--resume", "seed=7"]) == 2
    assert "is that of another recipe: it has 'seed: 0' where this one has 'seed: 7'" in capsys.readouterr().err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert main(["train", path, "--resume"]) == 0
    for name in ("best", "model"):
        assert weights(run / name) == weights(tmp_path / "whole" / name)
    for name in ("evaluations.jsonl", "histograms.jsonl"):
        ours, straight = ([json.loads(line) for line in (place / name).read_text().splitlines()] for place in (run, tmp_path / "whole"))
        assert [{**row, "seconds": 0} for row in ours] == [{**row, "seconds": 0} for row in straight]


def test_a_run_that_failed_in_its_first_iteration_may_be_begun_again_though_it_was_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, "id: CartPole-v1, count: 4, steps: 32, evaluation_episodes: 5, options: {max_episode_steps: 60}")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", None)
        with pytest.raises(TypeError):
            main(["train", path])
    assert (tmp_path / "run" / "best").is_dir()
    assert main(["train", path]) == 0


def test_its_score_is_of_episodes_that_did_not_choose_it(tmp_path: Path) -> None:
    """Policies without skill: each evaluation in training plays the same episodes, which evaluations of the best model do not."""
    path = recipe(tmp_path, "id: Luck-v0, count: 2, steps: 4, evaluation_episodes: 5")
    assert main(["train", path]) == 0
    chosen = json.loads((tmp_path / "run" / "run.json").read_text())["evaluations"]["best"]["return"]
    drawn = evaluate_model(str(tmp_path / "run"), episodes=5, checkpoint="best")[0].metrics["return"]["value"]
    assert drawn != chosen
    many = evaluate_model(str(tmp_path / "run"), episodes=1000, checkpoint="best")[0].metrics["return"]
    assert abs(many["value"]) < 4 / np.sqrt(1000)


def test_a_run_that_goes_on_does_not_write_over_anothers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = recipe(tmp_path, "id: Luck-v0, count: 2, steps: 4, evaluation_episodes: 2")
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["train", path]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "run" / "best" / "mine.txt").read_text(encoding="utf-8") == "mine"
