"""Collecting in a process of its own: what is sampled, how old it is, what corrects for it, and what may go wrong."""

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from unipg import Corrected, InputError, OldPolicy, PolicyGradient, Source
from unipg.algorithms import Algorithm, Setting, algorithm_named
from unipg.cli import main
from unipg.estimator.policy_gradient import corrected
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Experience
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.trainer import Observer, Stopped

GRPO = algorithm_named("grpo")()
PROBLEM = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)


class Rows(Observer):
    """An observer that keeps the metrics."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def iteration(self, done, total, metrics):
        self.rows.append(dict(metrics))


def trainer(folder: Path, algorithm: Algorithm = GRPO, experience: Experience | None = None, overlap: bool = True) -> Trainer:
    return Trainer(
        algorithm,
        BigramPolicy(4, seed=1),
        experience or StringExperience(PROBLEM, prompts=6),
        folder=folder,
        training=TrainingRecipe(iterations=4, epochs=2, overlap=overlap),
        optimizer=OptimizerRecipe(learning_rate=0.1),
        anchor=BigramPolicy(4, seed=1),
        observer=Rows(),
        seed=3,
    )


class Lagging(StringExperience):
    """Samples from the policy as it was when the batch before was collected: what overlap does, without another process."""

    def collect(self, policy, demand):
        before, self.before = getattr(self, "before", policy.twin()), policy.twin()
        return super().collect(before, demand)


@pytest.fixture(scope="module")
def overlapped(tmp_path_factory) -> Trainer:
    run = trainer(tmp_path_factory.mktemp("overlap"))
    run.train()
    return run


def test_it_trains_on_batches_that_are_one_iteration_old(overlapped, tmp_path) -> None:
    plain = trainer(tmp_path, experience=Lagging(PROBLEM, prompts=6), overlap=False)
    plain.learner.objective = corrected(plain.objective, 2.0)
    plain.train()
    assert torch.equal(overlapped.policy.logits, plain.policy.logits)
    uncorrected = trainer(tmp_path / "uncorrected", experience=Lagging(PROBLEM, prompts=6), overlap=False)
    uncorrected.train()
    assert not torch.equal(overlapped.policy.logits, uncorrected.policy.logits)


def test_staleness_is_recorded(overlapped) -> None:
    assert [row["staleness/steps"] for row in overlapped.observer.rows] == [0, 2, 2, 2]
    ages = [row["mismatch/log_ratio"] for row in overlapped.observer.rows]
    assert ages[0] == pytest.approx(0, abs=1e-6)
    assert min(ages[1:]) > 1e-3
    assert all(row["mismatch/ratio_max"] > 1 for row in overlapped.observer.rows[1:])


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_it_resumes_to_the_bit(overlapped, tmp_path, stop) -> None:
    first = trainer(tmp_path)
    first.stop_after_steps = stop
    with pytest.raises(Stopped):
        first.train()
    assert first.feed.ahead is None
    second = trainer(tmp_path)
    second.resume()
    second.train()
    assert torch.equal(second.policy.logits, overlapped.policy.logits)
    assert [row["staleness/steps"] for row in second.observer.rows] == [0, 2, 2, 2][stop // 2 :]


def test_a_language_model_through_the_command_line(recipe, tmp_path, capsys) -> None:
    path = recipe(algorithm={"name": "spo"}, training={"iterations": 3, "prompts": 4, "overlap": True})
    assert main(["train", path]) == 0
    assert main(["train", path, f"output={tmp_path / 'again'}"]) == 0
    files = sorted((tmp_path / "run" / "model").glob("*.safetensors"))
    assert files
    for file in files:
        assert file.read_bytes() == (tmp_path / "again" / "model" / file.name).read_bytes()


def test_the_correction_wraps_what_needs_it() -> None:
    grpo = corrected(GRPO.terms(Setting(4)), 2.0)
    assert grpo.terms[0].reference == Corrected(OldPolicy(), 2.0)
    luffy = corrected(algorithm_named("luffy")().terms(Setting(4)), None)
    gradients = [term for term in luffy.terms if isinstance(term, PolicyGradient)]
    assert [isinstance(term.reference, Corrected) for term in gradients] == [Source.ROLLOUT in term.rows for term in gradients]
    assert len({Source.ROLLOUT in term.rows for term in gradients}) == 2
    fdpg = algorithm_named("fdpg")().terms(Setting(4))
    assert corrected(fdpg, 2.0) == fdpg


def test_a_process_that_dies_is_one_clear_error(tmp_path) -> None:
    run = trainer(tmp_path)

    class Killing(Rows):
        def iteration(self, done, total, metrics):
            os.kill(run.feed.ahead._process.pid, signal.SIGKILL)

    run.observer = Killing()
    with pytest.raises(InputError, match=r"the process that samples ended by itself \(exit code -9\)"):
        run.train()
    again = trainer(tmp_path)
    again.resume()
    again.train()
    assert again.iteration == 4


def test_what_cannot_be_sent_is_refused(tmp_path) -> None:
    problem = StringProblem(reward=lambda prompt, answer: 1.0)
    with pytest.raises(InputError, match="cannot be sent to another process"):
        trainer(tmp_path / "run", experience=StringExperience(problem))
    assert not (tmp_path / "run").exists()


def controller(folder: Path, overlap: bool = True, iterations: int = 3) -> Trainer:
    """Of environments that are objects, whose episodes go on from window to window."""
    experience = EnvironmentRecipe("Pendulum-v1", 2, 7, {"max_episode_steps": 10}, evaluation_episodes=1).build(0)
    policy = ActorCriticRecipe(hidden=[4]).build(experience.observation_space, experience.action_space, 0)
    training = TrainingRecipe(iterations=iterations, epochs=2, overlap=overlap)
    return Trainer(algorithm_named("ppo")(), policy, experience, folder=folder, training=training, observer=Rows(), seed=3)


def test_environments_go_on_in_the_other_process_as_they_would_here(tmp_path) -> None:
    whole, plain = controller(tmp_path / "whole"), controller(tmp_path / "plain", overlap=False, iterations=1)
    whole.train()
    plain.train()
    of_window = ("return/episodes", "values/predicted", "values/lambda_return", "environment/steps")
    assert [whole.observer.rows[0][name] for name in of_window] == [plain.observer.rows[0][name] for name in of_window]
    assert [row["return/episodes"] for row in whole.observer.rows] == [0, 2, 2]  # 10 steps each: none began anew
    first, second = controller(tmp_path / "stopped"), controller(tmp_path / "stopped")
    first.stop_after_steps = 3
    with pytest.raises(Stopped):
        first.train()
    second.resume()
    second.train()
    for ours, theirs in zip(second.policy.module.parameters(), whole.policy.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [(algorithm_named("fdpg")(proposal="adaptive"), "keeps a proposal of its own"), (algorithm_named("sft")(), "does not sample")],
)
def test_methods_that_have_nothing_to_overlap(algorithm, message, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, algorithm)


def test_an_error_in_the_other_process_is_told(recipe, rows, capsys) -> None:
    path = recipe(training={"overlap": True}, algorithm={"name": "grpo", "rollouts": 2}, rollouts={"max_new_tokens": 4})
    values = yaml.safe_load(Path(path).read_text())
    values["policy"]["scratch"]["max_positions"] = 8
    Path(path).write_text(yaml.safe_dump(values))
    assert main(["train", path]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "more than the model's context of 8" in said[0]


@pytest.mark.parametrize("limit", [0.5, -1.0, float("nan")])
def test_the_limit_of_the_correction_is_checked_when_the_recipe_is_read(limit) -> None:
    with pytest.raises(InputError, match=r"training.overlap_limit is .*; accepted: a weight of 1 or more, or null"):
        TrainingRecipe(overlap_limit=limit)
