"""Each kind of collapse is found once and told everywhere; runs that learn, and those that are done, stay silent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from unipg.algorithms import registered
from unipg.cli import main
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.reports import write_report
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.collapse import FIRST, WINDOW, Watch

HEALTHY = {
    "groups/no_signal_fraction": 0.5,
    "groups/all_zero_fraction": 0.4,
    "reward/mean": 0.3,
    "reward/max": 1.0,
    "entropy": 0.6,
    "length/truncated_fraction": 0.02,
    "ratio/q99": 1.3,
    "ratio/ess": 0.98,
    "gradient_norm": 0.8,
}
Curve = Callable[[int], float]


def read(watch: Watch, iterations: int = 40, **curves: float | Curve | None) -> list[tuple[str, int]]:
    """Kind and iteration of what is found in rows that are healthy but for `curves`; None takes a metric out. `__` stands for `/`."""
    for iteration in range(iterations):
        row: dict[str, Any] = {"iteration": iteration, "step": 2 * iteration + 2, **HEALTHY}
        for name, curve in curves.items():
            value = curve(iteration) if callable(curve) else curve
            row[name.replace("__", "/")] = value
        watch.read({name: value for name, value in row.items() if value is not None})
    return [(finding.kind, finding.iteration) for finding in watch.found]


def watch(**changes: bool) -> Watch:
    return Watch(**{"compares": True, **changes})


def falls(start: float, end: float, at: int = 8) -> Curve:
    return lambda iteration: start if iteration < at else end


# ---------------------------------------------------------------------------------------------------- each kind


@pytest.mark.parametrize(
    ("kind", "curves"),
    [
        ("no_signal", {"groups__no_signal_fraction": falls(0.6, 0.97), "groups__all_zero_fraction": 0.9, "reward__mean": 0.3}),
        ("no_signal", {"groups__no_signal_fraction": 1.0, "groups__all_zero_fraction": 0.0, "reward__mean": 0.5}),
        ("solved", {"groups__no_signal_fraction": falls(0.6, 0.97), "groups__all_zero_fraction": 0.0, "reward__mean": falls(0.3, 0.99)}),
        ("entropy", {"entropy": falls(0.6, 0.004)}),
        ("length", {"length__truncated_fraction": falls(0.1, 1.0)}),
        ("length", {"length__truncated_fraction": 1.0, "reward__mean": 0.0, "reward__max": 0.0}),
        ("reward", {"reward__mean": falls(0.3, 0.1)}),
        ("reward", {"reward__mean": falls(-1.0, -2.0), "reward__max": 0.0}),
        ("reward", {"reward__mean": None, "reward__max": None, "return__mean": falls(22.0, 9.4)}),
        ("ratio", {"ratio__q99": falls(1.3, 40.0)}),
        ("ratio", {"ratio__ess": falls(0.9, 0.01)}),
        ("gradient", {"gradient_norm": falls(0.8, 900.0, 15)}),
        ("gradient", {"steps/skipped_nonfinite": 8.0}),
        ("gradient", {"steps/skipped_large": lambda iteration: 2.0 * max(0, iteration - 12)}),
    ],
)
def test_each_kind_is_found_once_with_what_helps(kind, curves) -> None:
    seen = watch()
    told: list[str] = []
    seen.listeners.append(lambda finding: told.append(str(finding)))
    found = read(seen, **curves)
    assert [name for name, _ in found] == [kind]
    assert found[0][1] >= 4
    assert len(told) == 1
    assert "\n" not in told[0]
    assert told[0].startswith("note" if kind == "solved" else "warning")
    assert ("What usually helps" in told[0]) == (kind != "solved")
    assert f"iteration {found[0][1]}: " in told[0]


def test_two_kinds_are_two_findings_and_each_is_judged_as_soon_as_it_can_be() -> None:
    found = read(watch(), reward__mean=falls(0.3, 0.0, FIRST), entropy=falls(0.6, 0.0, 0), groups__no_signal_fraction=1.0)
    assert found == [("no_signal", WINDOW - 1), ("reward", WINDOW + FIRST - 1)]  # an entropy that was 0 from the start has not fallen


def test_of_prompts_that_earn_nothing_demonstrations_help_and_of_equal_ones_a_finer_reward() -> None:
    none, same = watch(), watch()
    read(none, groups__no_signal_fraction=1.0, groups__all_zero_fraction=1.0)
    read(same, groups__no_signal_fraction=1.0, groups__all_zero_fraction=0.0, reward__mean=0.5)
    assert "100% of them nothing" in none.found[0].text
    assert "demonstrations" in none.found[0].text
    assert "a finer reward" in same.found[0].text


def test_a_policy_whose_weights_are_all_zero_is_told_of() -> None:
    seen = watch(compares=False, given=True)
    assert read(seen, 3, **{"steps/still": lambda i: 60.0 * i}) == [("still", 2)]
    assert "receives no gradient, for 120 steps" in seen.found[0].text
    assert "lambda" in seen.found[0].text
    assert read(watch(), 3, **{"steps/still": 500.0}) == []


# ---------------------------------------------------------------------------------------------------- no false alarm


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"reward__mean": lambda i: 0.15 + 0.01 * i, "groups__no_signal_fraction": lambda i: 0.6 - 0.005 * i},
        {"reward__mean": lambda i: 0.15 + 0.12 * math.sin(i)},  # batches of very different difficulty
        {"reward__mean": lambda i: 0.12 if i % 5 else 0.02},
        {"reward__mean": falls(0.3, 0.16)},
        {"reward__mean": 0.0},
        {"gradient_norm": lambda i: 90.0 if i < 2 else 0.7},  # the first steps away from an anchor
        {"gradient_norm": lambda i: 300.0 if i in (15, 25) else 0.7},
        {"gradient_norm": lambda i: 0.001 if i < 12 else 4.0},
        {"ratio__q99": lambda i: 30.0 if i % 10 == 0 else 1.4},
        {"groups__no_signal_fraction": 0.85, "groups__all_zero_fraction": 0.85},
        {"entropy": lambda i: 0.6 / (1 + 0.1 * i)},
        {"entropy": 0.01},
        {"length__truncated_fraction": lambda i: 0.85 if i % 2 else 1.0, "reward__mean": 0.3},
        {"length__truncated_fraction": 1.0, "reward__mean": lambda i: 0.1 + 0.01 * i},  # answers of a fixed length
        {"steps/skipped_large": 3.0},
        {"groups__no_signal_fraction": None, "reward__mean": None, "entropy": math.nan},
    ],
)
def test_runs_that_learn_stay_silent(curves) -> None:
    assert read(watch(), 60, **curves) == []


def test_the_natural_end_of_learning_is_told_as_that() -> None:
    learnt: Curve = lambda i: min(1.0, 0.2 + 0.03 * i)  # noqa: E731
    found = read(
        watch(), 60, reward__mean=learnt, groups__no_signal_fraction=learnt, groups__all_zero_fraction=0.0, entropy=lambda i: 0.6 * 0.8**i
    )
    assert [kind for kind, _ in found if kind != "entropy"] == ["solved"]


def test_a_controller_that_has_learnt_may_be_decided() -> None:
    returns = {"reward__mean": None, "reward__max": None, "groups__no_signal_fraction": None}
    decided: Curve = lambda i: 0.6 * 0.7**i  # noqa: E731
    assert read(watch(), 40, **returns, return__mean=lambda i: 20.0 + 10 * i, entropy=decided) == []
    assert [kind for kind, _ in read(watch(), 40, **returns, return__mean=lambda i: 20.0 - 0.1 * i, entropy=decided)] == ["entropy"]


def test_nothing_is_said_of_what_an_algorithm_does_not_do() -> None:
    wrong = {"groups__no_signal_fraction": 1.0, "groups__all_zero_fraction": 1.0}
    assert read(watch(compares=False), **wrong) == []
    assert read(watch(counts=False), entropy=lambda i: 2.0 - 0.1 * i) == []
    assert read(watch(samples=False), entropy=falls(3.0, 0.0), ratio__ess=0.001, length__truncated_fraction=1.0) == []


def test_nothing_is_said_in_the_first_iterations() -> None:
    curves = {"groups__no_signal_fraction": 1.0, "reward__mean": falls(0.3, 0.0, 1), "ratio__q99": 99.0, "length__truncated_fraction": 1.0}
    assert read(watch(), WINDOW - 1, **curves) == []


@pytest.mark.parametrize(
    ("name", "compares", "samples"),
    [
        ("grpo", True, True),
        ("rloo", True, True),
        ("d3s", True, True),
        ("ppo", False, True),
        ("spo", False, True),
        ("hpt", False, True),  # what never succeeds is supervised
        ("copo", False, True),  # its prompt-level term
        ("fdpg", False, True),
        ("chord", False, True),
        ("sft", False, False),
        ("dpo", False, False),
    ],
)
def test_what_is_judged_follows_the_algorithm(name, compares, samples) -> None:
    made = Watch.of(registered()[name](), BigramPolicy(4))
    assert (made.compares, made.samples, made.counts) == (compares, samples, True)


# ---------------------------------------------------------------------------------------------------- real runs


def trained(tmp_path, rate: float, iterations: int = 60) -> Watch:
    experience = StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2)))
    trainer = Trainer(
        registered()["grpo"](),
        BigramPolicy(4, seed=1),
        experience,
        folder=tmp_path / "run",
        training=TrainingRecipe(iterations=iterations, save_every=iterations),
        optimizer=OptimizerRecipe(learning_rate=rate),
    )
    trainer.train()
    return trainer.watch


def test_a_real_run_that_learns_says_nothing_but_that_it_is_done(tmp_path) -> None:
    assert {finding.kind for finding in trained(tmp_path, 0.1).found} <= {"solved"}


def test_a_real_run_is_told_everywhere_once(recipe, tmp_path, capsys) -> None:
    """A model from scratch earns nothing, so that RLOO has nothing to learn from, and ends no answer."""
    path = recipe(algorithm={"name": "rloo", "rollouts": 2}, training={"iterations": WINDOW + 2, "prompts": 3})
    assert main(["train", path]) == 0
    out = capsys.readouterr().out
    assert out.count("warning, iteration 9: in 100% of the prompts all rollouts earn the same, 100% of them nothing") == 1
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    assert [(entry["kind"], entry["iteration"], entry["collapse"]) for entry in kept] == [
        ("no_signal", WINDOW - 1, True),
        ("length", WINDOW - 1, True),
    ]
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    head = page[: page.index("<section")]
    assert "Warning, iteration 9: in 100% of the prompts" in head


def test_a_resumed_run_knows_what_was_said(recipe, tmp_path, capsys, monkeypatch) -> None:
    path = recipe(algorithm={"name": "rloo", "rollouts": 2}, training={"iterations": WINDOW + 6, "prompts": 3})
    steps = 2 + WINDOW
    monkeypatch.setattr(Trainer, "_stopping", lambda trainer: trainer.iteration == steps)
    assert main(["train", path]) == 130
    assert capsys.readouterr().out.count("warning, iteration") == 2
    monkeypatch.undo()
    assert main(["train", path, "--resume"]) == 0
    assert "warning, iteration" not in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    assert [entry["kind"] for entry in kept] == ["no_signal", "length"]


def test_a_policy_of_densities_is_not_asked_for_its_entropy() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    from unipg.policies.actor_critic import ActorCriticRecipe

    observed = gymnasium.spaces.Box(-1, 1, (3,))
    for action, counts in ((gymnasium.spaces.Discrete(2), True), (gymnasium.spaces.Box(-1, 1, (2,)), False)):
        assert Watch.of(registered()["ppo"](), ActorCriticRecipe().build(observed, action, 0, normalized=False)).counts == counts
