"""The loop on the string laboratory: several workers, what the parts need, what is left out of the forward pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unipg import InputError
from unipg.algorithms import registered
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe

WORKER = """
import sys, torch
from pathlib import Path
from unipg.algorithms import registered
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.distribution import Workers

torch.set_num_threads(1)
workers = Workers.from_environment()
policy = BigramPolicy(4, seed=1 + workers.rank)  # the leader's weights must win
trainer = Trainer(registered()[sys.argv[1]](), policy, StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2))),
    folder=Path(sys.argv[2]), training=TrainingRecipe(iterations=4), optimizer=OptimizerRecipe(learning_rate=0.1), workers=workers)
last = trainer.train()
torch.save(policy.logits.detach(), f"{sys.argv[2]}/rank{workers.rank}.pt")
"""


def run_workers(algorithm: str, folder: Path, world: int, port: int) -> list[torch.Tensor]:
    folder.mkdir()
    processes = []
    for rank in range(world):
        place = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER, algorithm, str(folder)]
        processes.append(subprocess.Popen(command, env={**os.environ, **place}, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]


def test_two_workers_take_the_steps_of_one(tmp_path) -> None:
    """On demonstrations the batch is the same however it is shared, so the weights must be too."""
    alone = run_workers("sft", tmp_path / "alone", 1, 29611)[0]
    first, second = run_workers("sft", tmp_path / "together", 2, 29612)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-12)


def test_two_workers_agree_on_rollouts(tmp_path) -> None:
    first, second = run_workers("reinforce_plus_plus", tmp_path / "together", 2, 29613)
    assert torch.equal(first, second)
    assert not torch.equal(first, BigramPolicy(4, seed=1).logits)


def trainer(algorithm, folder, **options) -> Trainer:
    options.setdefault("training", TrainingRecipe(iterations=1))
    problem = StringProblem(vocabulary=4, prompts=(0, 1, 2))
    return Trainer(algorithm, BigramPolicy(4, seed=1), StringExperience(problem), folder=folder, **options)


def test_a_kl_without_an_anchor_is_refused_before_anything_runs(tmp_path) -> None:
    with pytest.raises(InputError, match="needs an anchor"):
        trainer(registered()["grpo"](kl=0.1), tmp_path)


def test_a_critic_is_asked_for_before_anything_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(BigramPolicy, "has_value", False)
    with pytest.raises(InputError, match="needs a critic"):
        trainer(registered()["ppo"](), tmp_path)


def test_rows_without_advantage_are_not_run_forward_and_change_nothing(tmp_path, monkeypatch) -> None:
    seen = []
    evaluate = BigramPolicy.evaluate

    def counted(self, batch, **options):
        if options.get("entropy"):
            seen.append(len(batch))
        return evaluate(self, batch, **options)

    monkeypatch.setattr(BigramPolicy, "evaluate", counted)
    skipping = trainer(registered()["dr_grpo"](), tmp_path / "a", training=TrainingRecipe(iterations=3))
    skipping.train()
    from unipg.estimator import Objective

    monkeypatch.setattr(Objective, "touched_rows", lambda self, batch: torch.ones(len(batch), dtype=torch.bool))
    fewer = sum(seen)
    seen.clear()
    whole = trainer(registered()["dr_grpo"](), tmp_path / "b", training=TrainingRecipe(iterations=3))
    whole.train()
    assert fewer < sum(seen)
    torch.testing.assert_close(skipping.policy.logits, whole.policy.logits, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (OptimizerRecipe(learning_rate=1.0), [1.0, 1.0, 1.0]),
        (OptimizerRecipe(learning_rate=1.0, schedule="linear"), [1.0, 0.5, 0.0]),
        (OptimizerRecipe(learning_rate=1.0, schedule="cosine"), [1.0, 0.5, 0.0]),
    ],
)
def test_learning_rates(recipe, expected) -> None:
    assert [round(recipe.learning_rate_at(step, 10), 12) for step in (0, 5, 10)] == expected


def test_the_warm_up_rises_from_the_first_step() -> None:
    recipe = OptimizerRecipe(learning_rate=1.0, warmup=4)
    assert [recipe.learning_rate_at(step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
