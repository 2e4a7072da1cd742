"""`unipg evaluate` and `unipg diff` on a control run: what they say is what the environment and the parts say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unipg import InputError, load_run
from unipg.algorithms import registered
from unipg.cli import main
from unipg.lab.diff import recipe_of
from unipg.lab.diff_control import on_environments
from unipg.policies.actor_critic import ActorCritic
from unipg.rollouts.environments import evaluate_controller
from unipg.seeding import derived_seed
from unipg.training.evaluate import evaluate_model
from unipg.training.recipe import load_recipe

pytest.importorskip("gymnasium")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("control")
    (folder / "recipe.yaml").write_text(
        f"algorithm: {{name: ppo, gamma: 0.98}}\noutput: {folder}/run\nthreads: 1\nseed: 3\n"
        "environment: {id: CartPole-v1, count: 2, steps: 32, vectorized: false, evaluation_episodes: 6, options: {max_episode_steps: 40}}\n"
        "controller: {hidden: [8], log_std: -1, normalize_observations: true}\ntraining: {iterations: 2}\n",
        encoding="utf-8",
    )
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return folder / "run"


def test_a_run_is_measured_in_its_own_environment(run: Path) -> None:
    """As in training, but on other episodes than those of any evaluation there; and longer where more episodes are asked for."""
    shares: list[float] = []
    (found,) = evaluate_model(str(run), seed=3, progress=lambda name, done: shares.append(done))
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["results"][0]
    environment = load_recipe(run / "recipe.yaml").environment
    policy = ActorCritic.load(run / "model")
    assert evaluate_controller(policy, environment, 3).metrics == last["metrics"]
    assert evaluate_controller(policy, environment, derived_seed(3, "test")).metrics == found.metrics != last["metrics"]
    assert found.task == "CartPole-v1"
    assert shares[-1] == 1
    (more,) = evaluate_model(str(run / "model"), episodes=9)
    assert more.metrics["return"]["n"] == more.metrics["length"]["n"] == 9
    assert more.metrics["length"]["high"] <= 40


@pytest.mark.parametrize(("algorithm", "environment"), [("sac", "Pendulum-v1"), ("td3", "Pendulum-v1"), ("dqn", "CartPole-v1")])
def test_policies_of_every_kind_are_measured(algorithm: str, environment: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Squashed, deterministic and greedy actions are the saved policy's own: nobody has to ask for them."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"algorithm: {algorithm}\noutput: {tmp_path}/run\nthreads: 1\nenvironment: {{id: {environment}, count: 1, steps: 8}}\n"
        "controller: {hidden: [8]}\nreplay: {warmup: 2, batch: 4}\ntraining: {iterations: 1}\n",
        encoding="utf-8",
    )
    assert main(["train", str(recipe), "environment.evaluation_episodes=1"]) == 0
    for checkpoint in ("last", "best"):
        assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--checkpoint", checkpoint]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1", "--sample"]) == (2 if algorithm == "dqn" else 0)
    assert ("takes the best action by its values and draws none" in capsys.readouterr().err) == (algorithm == "dqn")
    if algorithm == "dqn":
        with pytest.raises(InputError, match=r"^sample is True, but the policy takes the best action by its values and draws none"):
            load_run(tmp_path / "run").policy.act([0, 0, 0, 0], sample=True)


def test_the_command_shows_and_writes_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run), "--episodes", "2", "--json", str(tmp_path / "found.json")]) == 0
    shown = capsys.readouterr().out
    assert "return" in shown
    assert "95 % interval" in shown
    assert json.loads((tmp_path / "found.json").read_text())["results"][0]["metrics"]["return"]["n"] == 2


def test_a_model_folder_needs_an_environment(run: Path, tmp_path: Path) -> None:
    (run / "model").rename(tmp_path / "bare")
    try:
        with pytest.raises(InputError, match=r"does not say which environment it acts in: give recipe=FILE"):
            evaluate_model(str(tmp_path / "bare"))
        assert evaluate_model(str(tmp_path / "bare"), recipe=str(run / "recipe.yaml"), episodes=1)[0].metrics["return"]["n"] == 1
        with pytest.raises(InputError, match="is a run that has no model yet"):
            evaluate_model(str(run))
    finally:
        (tmp_path / "bare").rename(run / "model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["chain_sum"]}, "is a controller, which acts in an environment: tasks does not apply"),
        ({"samples": 4}, ": samples does not apply"),
        ({"max_new_tokens": 4}, ": max_new_tokens does not apply"),
        ({"episodes": 0}, "^episodes is 0; accepted: 1 or more"),
        ({"recipe": "recipes/grpo.yaml"}, "has no environment for the controller in"),
    ],
)
def test_what_does_not_apply_is_named(run: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(InputError, match=message):
        evaluate_model(str(run), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "chain_sum"], ": --task does not apply"),
        (["--max-new-tokens", "4"], ": --max-new-tokens does not apply"),
        (["--episodes", "0"], "--episodes is 0; accepted: 1 or more"),
    ],
)
def test_the_command_names_its_own_options(run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run), *options]) == 2
    assert capsys.readouterr().err.strip().endswith(message)


def test_another_environment_is_named(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("algorithm: ppo\nenvironment: {id: Pendulum-v1}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"reads observations \[4\] and gives discrete actions \(n 2, .*has \[3\] and gaussian actions \("):
        evaluate_model(str(run), recipe=str(other))


def test_a_diff_on_a_run_is_of_its_episodes(run: Path) -> None:
    first, second = registered()["reinforce"](signed=False), registered()["ppo"]()
    loaded = recipe_of(str(run), first, second, [])
    assert (loaded.seed, loaded.controller.model) == (3, str(run))
    found = on_environments(loaded, first, second, 3, shown=1000)
    assert found.batch["steps"] == 64
    episodes = found.batch["episodes"]
    assert episodes > 2  # episodes, not windows
    assert sum(row.reward for row in found.rows) == 64  # CartPole pays 1 for each step
    for row in found.rows:  # REINFORCE puts the episode's outcome on each of its steps, in the mean over episodes
        assert row.answer == f"{row.reward:.0f} steps"
        assert row.first == pytest.approx(row.reward**2 / episodes, rel=1e-5)
    saved = json.loads((run / "model" / "config.json").read_text())
    assert found.total.parameters == 4 * saved["hidden"][0] + saved["hidden"][0] + 2 * saved["hidden"][0] + 2
    assert [group.name for group in (found.total, *found.groups)] == ["actor", "actor · layers.0", "actor · layers.1"]
    assert found.notes == ["'critic' is trained by ppo alone"]


def test_the_command_compares_on_a_control_recipe(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["diff", "ppo", "reinforce_plus_plus", "--on", str(run / "recipe.yaml"), "--set", "seed=1"]) == 0
    assert "64 steps" in " ".join(capsys.readouterr().out.split())
    assert main(["diff", "ppo", "grpo", "--on", str(run)]) == 2
    assert "'grpo' compares several rollouts of one prompt" in capsys.readouterr().err


def test_one_episode_has_no_interval(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run), "--episodes", "1", "--json", str(tmp_path / "one.json")]) == 0
    assert "nan" not in capsys.readouterr().out

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    written = json.loads((tmp_path / "one.json").read_text(), parse_constant=refused)
    assert written["results"][0]["metrics"]["return"].keys() == {"value", "n"}


def test_no_proof_of_a_controller(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["check-model", str(run)]) == 2
    assert "is a controller; accepted: a causal language model" in capsys.readouterr().err


def test_options_that_an_environment_does_not_have(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = ["train", str(run / "recipe.yaml"), f"output={tmp_path / 'other'}"]
    for vectorized in ("true", "false"):
        assert main([*other, "environment.options={suton_barto: true}", f"environment.vectorized={vectorized}"]) == 2
        said = capsys.readouterr().err
        assert "environment.options.suton_barto: this key does not exist; did you mean 'sutton_barto_reward'? accepted: " in said
    assert not (tmp_path / "other").exists()
