"""Values that no run can have, in one line that names the key, before anything is built or written."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unipg.cli import main
from unipg.errors import InputError
from unipg.rollouts.evaluation import EvaluationRecipe
from unipg.settings import parse_value
from unipg.tasks.data import data_task
from unipg.training.recipe import check_threads, load_recipe
from unipg.training.run import run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1" + "0" * 30, "seed is a whole number of 100 bits; accepted: whole numbers of at most 63 bits"),
        ("seed=" + "9" * 5000, "override 'seed': '9999.*is not valid YAML"),
        ("training.iterations=-1" + "0" * 40, "iterations is a whole number of"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate is nan; accepted: 0 or more"),
        ("optimizer.clip_norm=.inf", "optimizer.clip_norm is inf; accepted: finite numbers"),
        ("optimizer.betas=[0.9, 1.0]", r"optimizer.betas is \[0.9, 1.0\]; accepted: two numbers in \[0, 1\)"),
        ("optimizer.betas=[-0.1, 0.9]", "optimizer.betas is"),
        ("optimizer.eps=0", "optimizer.eps is 0.*; accepted: above 0"),
        ("policy.lora={r: 0}", "policy.lora.r is 0; accepted: 1 or more"),
        ("policy.lora={dropout: 1.0}", r"policy.lora.dropout is 1.0; accepted: a share in \[0, 1\)"),
        ("policy={scratch: {hidden_size: 0}}", "policy.scratch.hidden_size is 0; accepted: 1 or more"),
        ("policy={scratch: {layers: -1}}", "policy.scratch.layers is -1; accepted: 1 or more"),
        ("policy={scratch: {vocabulary: 3}}", "policy.scratch.vocabulary is 3; accepted: 260 or more"),
        ("training.prompts=99999999999999999", "an iteration would have .* rows; accepted: at most 10000000"),
        ("policy={scratch: {hidden_size: 100000000000}}", "policy.scratch.hidden_size is 100000000000; accepted: 1 or more, and at most"),
        ("threads=100000", "threads is 100000; accepted here: 1 to"),
        ("threads=0", "threads is 0; accepted here: 1 to"),
        ("evaluation.temperature=0", "evaluation.temperature is 0.*; accepted: above 0"),
        ("algorithm.kl=-1", "algorithm.kl is -1.*; accepted: 0 or more"),
        ("algorithm.clip_low=-0.5", "algorithm.clip_low is -0.5; accepted: 0 or more"),
        ("training.minibatches=100000", "training.minibatches is 100000, but an iteration has .* rows"),
        ("training.evaluate_every=-1", "training.evaluate_every is -1"),
        ("output=", "output"),
        ("output='   '", "output is empty"),
    ],
)
def test_impossible_values(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as found:
        load_recipe(str(RECIPES / "grpo.yaml"), [override])
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 300


@pytest.mark.parametrize(
    ("recipe", "override", "said"),
    [
        (
            "cartpole-ppo",
            "rollouts.temperature=5",
            "rollouts is of language recipes, but .* an environment; accepted: leave",
        ),
        ("cartpole-ppo", "evaluation.samples=4", "evaluation is of language .*; accepted: environment.evaluation_episodes"),
        ("cartpole-ppo", "reward={verifier: 1, functions: [{function: math:floor}]}", "reward is of language recipes"),
        ("cartpole-ppo", "training.prompts=5", "training.prompts is of language recipes; accepted with an environment: environment.count"),
        ("cartpole-ppo", "policy.dtype=float64", "policy is of language recipes, .*; accepted: `controller`, which says what acts"),
        ("cartpole-ppo", "environment=3", "environment: give a name .*or a section with `id`; got 3"),
        ("pendulum-sac", "algorithm.temperature=-1", "algorithm.temperature is -1.0; accepted: 0 or more"),
    ],
)
def test_what_controllers_have_no_use_for(recipe: str, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as found:
        load_recipe(str(RECIPES / f"{recipe}.yaml"), [override])
    assert "\n" not in str(found.value)


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    recipe = load_recipe(str(RECIPES / "pendulum-sac.yaml"), ["replay.capacity=1e4", "training.iterations=2e1"])
    assert (recipe.replay.capacity, recipe.training.iterations) == (10_000, 20)
    with pytest.raises(InputError, match=r"training.iterations: expected a whole number, got 2\.5"):
        load_recipe(str(RECIPES / "pendulum-sac.yaml"), ["training.iterations=2.5"])


def test_how_much_is_evaluated_may_change_on_resume() -> None:
    identities = {load_recipe(str(RECIPES / "cartpole-ppo.yaml"), o).identity() for o in ([], ["environment.evaluation_episodes=3"])}
    assert len(identities) == 1


def test_a_warm_up_longer_than_the_run_is_told(tmp_path: Path) -> None:
    short = ["training.iterations=1", "environment.steps=20", "environment.evaluation_episodes=1", f"output={tmp_path / 'run'}"]
    with pytest.warns(UserWarning, match="nothing will be learned: the run has 20 steps of environments, .*replay.warmup, 1000 steps"):
        assert main(["train", str(RECIPES / "pendulum-sac.yaml"), *short, "replay.warmup=1000", "threads=1"]) == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("controller.hidden=[64, a]", r"controller.hidden: expected a list of whole numbers or null, got \[64, 'a'\]"),
        ("algorithm.critic=null", "algorithm.critic: a value is missing; expected a name or a section with `kind`"),
        ("optimizer.learners={policy: 3}", "optimizer.learners: expected a section of sections, got"),
        ("training=null", "training: a value is missing; expected a section with keys"),
    ],
)
def test_types_are_told_in_the_words_of_recipes(override: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        load_recipe(str(RECIPES / "pendulum-ppo-martingale.yaml"), [override])


@pytest.mark.parametrize("members", [10**8, 10**17])
@pytest.mark.parametrize("recipe", ["pendulum-ppo-martingale", "pendulum-sac"])
def test_networks_larger_than_the_memory(recipe: str, members: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    critic = f"algorithm.critic={{kind: gaussian, members: {members}}}"
    assert main(["train", str(RECIPES / f"{recipe}.yaml"), critic, f"output={tmp_path / 'run'}", "threads=1"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.match(r"unipg: .*networks? of \[.*\]: training .* weights takes .* accepted: fewer or narrower networks$", said[0])
    assert not (tmp_path / "run").exists()


def test_networks_that_are_too_large_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of about 4,500 weights: 72 KB each while it is made, and 108 KB of gradients and moments of both."""
    monkeypatch.setattr("unipg.networks.perceptron.free_memory", lambda: 90_000)
    with pytest.raises(InputError, match=r"^the controller's networks: training 8\.9\de\+03 weights takes .* GB of memory more, but"):
        run_recipe(load_recipe(str(RECIPES / "pendulum-ppo-martingale.yaml"), [f"output={tmp_path / 'run'}", "device=cpu"]))


def test_diff_of_controllers_wants_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "sac", "td3"]) == 2
    assert "algorithm 'sac' trains controllers; accepted: --on RECIPE, one with an environment" in capsys.readouterr().err


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("algorithm: grpo\nseed: 1\nseed: 2\n")
    with pytest.raises(InputError, match=r"twice.yaml' line 3 is not valid YAML: the key 'seed' stands twice in a section"):
        load_recipe(str(tmp_path / "twice.yaml"))
    with pytest.raises(InputError, match="the key 'kl' stands twice"):
        parse_value("{kl: 0, kl: 1}", "override")


def test_home_is_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["output=~/runs/x", "policy.model=~/model", "policy.anchor=~/anchor", "anchor_cache=~/c", "reward.models=[{model: ~/r}]"]
    recipe = load_recipe(str(RECIPES / "grpo.yaml"), given)
    found = (recipe.output, recipe.policy.model, recipe.policy.anchor, recipe.anchor_cache, recipe.reward.models[0].model)  # type: ignore[union-attr]
    assert found == tuple(str(tmp_path / name) for name in ("runs/x", "model", "anchor", "c", "r"))
    (tmp_path / "own.yaml").write_text("algorithm: grpo\nenvironment: {id: x}\npolicy: {model: y}\n")
    (tmp_path / "on.yaml").write_text("base: ~/own.yaml\n")
    for command in (["train", "~/on.yaml"], ["evaluate", str(tmp_path), "--recipe=~/on.yaml"], ["diff", "grpo", "rloo", "--on=~/on.yaml"]):
        assert "does not exist" not in _said(command)
    (tmp_path / "foreign").write_text("mine")
    for command in (
        ["evaluate", "gpt2", "--json=~/foreign"],
        ["report", ".", "--output=~/foreign"],
        ["diff", "grpo", "rloo", "--output=~/foreign"],
    ):
        assert str(tmp_path / "foreign") in _said(command)
    assert f"'{tmp_path / 'none'}'" in _said(["evaluate", "~/none"])


def _said(command: list[str]) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(command) == 2
    return said.getvalue()


@pytest.mark.parametrize("temperature", [float("nan"), 0.0, -1.0, float("inf")])
def test_temperatures_of_evaluations(temperature: float) -> None:
    with pytest.raises(InputError, match=r"evaluation.temperature is .*; accepted: above 0"):
        EvaluationRecipe(temperature=temperature)


def test_threads_that_cannot_be_started() -> None:
    check_threads(2)
    code = "from unipg.cli import main; import sys; sys.exit(main(['evaluate', '.', '--task', 'chain_sum', '--threads', '100000']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_completions_that_are_the_same(tmp_path: Path) -> None:
    def written(*pairs: tuple[str, str]) -> str:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps({"prompt": "q", "chosen": a, "rejected": b}) + "\n" for a, b in pairs))
        return str(path)

    with pytest.warns(UserWarning, match="pairs.jsonl line 2: the completions are the same text, as in 1 of 2 rows"):
        data_task(written(("a", "b"), ("c", "c")), preferences="pairs")
    with pytest.raises(InputError, match=r"pairs.jsonl line 1: the completions are the same text, here and in every other row"):
        data_task(written(("a", "a"), ("c", "c")), preferences="pairs")


def test_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(RECIPES / "grpo.yaml"), f"output={tmp_path / 'run'}", "algorithm.kl=-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
