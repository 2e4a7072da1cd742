"""Learning rates that fit: what `auto` is, that the number used is recorded, and what is refused."""

import json

import pytest
import yaml

from unipg import InputError
from unipg.algorithms import Setting, registered
from unipg.algorithms.rates import ADAPTERS, CONTROLLED, DEMONSTRATED, LARGE, PREFERRED, REWARDED, SMALL, LearningRate
from unipg.cli import main
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.reports.explain import explanation
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe


def test_between_small_and_large_models_the_rate_is_a_line_in_logarithms() -> None:
    rate = LearningRate(1e-3, 1e-5, "…")
    assert [rate.at(size) for size in (1, SMALL, LARGE, 70 * LARGE)] == [1e-3, 1e-3, 1e-5, 1e-5]
    middle = round((SMALL * LARGE) ** 0.5)
    assert rate.at(middle) == pytest.approx(1e-4)
    sizes = [10**power for power in range(5, 12)]
    assert sorted((rate.at(size) for size in sizes), reverse=True) == [rate.at(size) for size in sizes]


def test_adapters_of_large_models_take_more_and_never_more_than_a_small_model() -> None:
    assert REWARDED.at(7_000_000_000, adapters=True) == pytest.approx(ADAPTERS * REWARDED.large)
    assert REWARDED.at(SMALL, adapters=True) == REWARDED.small
    assert LearningRate(2e-5, 1e-5, "…").at(LARGE, adapters=True) == 2e-5


@pytest.mark.parametrize(("small", "large"), [(1e-5, 1e-3), (1e-3, 0.0), (float("nan"), 1e-5)])
def test_rates_that_are_none_are_refused(small, large) -> None:
    with pytest.raises(InputError, match="accepted: both above 0, large at most small"):
        LearningRate(small, large, "…")


@pytest.mark.parametrize("name", list(registered()))
def test_every_algorithm_has_the_rate_of_its_kind_and_says_why(name) -> None:
    kind = registered()[name]
    if not kind.uses_rollouts and kind.completions == "none":
        assert kind.learning_rate == DEMONSTRATED
    elif kind.completions != "none":
        assert PREFERRED.small <= kind.learning_rate.small < DEMONSTRATED.small
    elif not name.startswith("hpt"):
        assert kind.learning_rate.small <= REWARDED.small
    text = explanation(kind)
    learners = kind().learners(Setting(acts=kind.acts))
    if all(learner.direction.owns_step or "learning_rate" in learner.optimizer for learner in learners):  # it says a number itself, or none
        assert "for models of up to 10 M" not in text
        for learner in learners:
            said = "neither learning rate" if learner.direction.owns_step else f"`learning_rate` {learner.optimizer['learning_rate']}"
            assert said in text
        return
    assert f"`optimizer.learning_rate: auto` is {kind.learning_rate.small:g} for models of up to 10 M" in text
    assert kind.learning_rate.why in text


def test_the_policy_that_is_trained_decides() -> None:
    recipe, grpo, policy = OptimizerRecipe(warmup=3), registered()["grpo"](), BigramPolicy(4)
    assert recipe.settled(grpo, policy) == OptimizerRecipe(
        REWARDED.small, warmup=3, kind="adamw", eps=1e-8, clip_norm=1.0, schedule="constant"
    )
    assert OptimizerRecipe(learning_rate=0.5).settled(grpo, policy).rate == 0.5
    assert recipe.settled(grpo, policy, controller=True).rate == CONTROLLED.small
    with pytest.raises(InputError, match="learning_rate is auto, which is a number only for an algorithm and a policy"):
        _ = recipe.rate


def test_few_trained_parameters_are_adapters(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(LearningRate, "at", lambda rate, parameters, adapters=False: asked.append((parameters, adapters)) or 1.0)
    policy = BigramPolicy(4)
    sizes = {name: parameter.numel() for name, parameter in policy.module.named_parameters()}
    largest = max(sizes, key=sizes.get)
    OptimizerRecipe().settled(registered()["grpo"](), policy)
    dict(policy.module.named_parameters())[largest].requires_grad_(False)
    OptimizerRecipe().settled(registered()["grpo"](), policy)
    total = sum(sizes.values())
    assert asked == [(total, False), (total, total - sizes[largest] < 0.25 * total)]
    assert asked[1][1]


def test_a_trainer_of_ones_own_takes_the_fitting_rate(tmp_path) -> None:
    for name in ("grpo", "sft"):
        experience = StringExperience(StringProblem(vocabulary=4, prompts=(0, 1)))
        trainer = Trainer(registered()[name](), BigramPolicy(4), experience, folder=tmp_path / name, training=TrainingRecipe(iterations=1))
        assert trainer.train()["learning_rate"] == registered()[name].learning_rate.small


def test_controllers_have_a_rate_of_their_own(tmp_path) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    spaces = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
    policy = ActorCriticRecipe().build(*spaces, 0, normalized=False)
    assert OptimizerRecipe().settled(registered()["ppo"](), policy, controller=True).rate == CONTROLLED.small


def test_the_run_folder_records_the_number_and_goes_on_with_it(recipe, tmp_path) -> None:
    path = recipe(algorithm={"name": "sft"}, optimizer={"learning_rate": "auto"}, training={"iterations": 1})
    assert main(["train", path]) == 0
    run = tmp_path / "run"
    assert json.loads((run / "run.json").read_text())["learning_rate"] == {"used": DEMONSTRATED.small, "asked": "auto"}
    assert yaml.safe_load((run / "recipe.yaml").read_text())["optimizer"]["learning_rate"] == DEMONSTRATED.small
    assert json.loads((run / "metrics.jsonl").read_text())["learning_rate"] == DEMONSTRATED.small
    (run / "run.json").write_text('{"status": "interrupted"}')
    assert main(["train", path, "--resume"]) == 0
    other = recipe(algorithm={"name": "sft"}, optimizer={"learning_rate": DEMONSTRATED.small}, training={"iterations": 1})
    (run / "run.json").write_text('{"status": "interrupted"}')
    assert main(["train", other, "--resume"]) == 0
    assert json.loads((run / "run.json").read_text())["learning_rate"] == {"used": DEMONSTRATED.small, "asked": DEMONSTRATED.small}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=automatic", "optimizer.learning_rate: 'automatic' does not exist; did you mean 'auto'"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1.0; accepted: 0 or more"),
        ("optimizer={kind: sgd}", "optimizer.learning_rate is auto, which is for adamw; accepted with optimizer.kind sgd: a number"),
    ],
)
def test_rates_in_recipes_that_are_refused(recipe, capsys, override, message) -> None:
    assert main(["train", recipe(), override]) == 2
    assert message in capsys.readouterr().err
