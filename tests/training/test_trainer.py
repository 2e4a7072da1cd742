"""The loop on the string laboratory: several workers, what the parts need, what is left out of the forward pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unipg import InputError
from unipg.algorithms import registered
from unipg.estimator import Objective
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.seeding import generator
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.trajectories import Trajectories

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
    monkeypatch.setattr(Objective, "touched_rows", lambda self, batch: torch.ones(len(batch), dtype=torch.bool))
    fewer = sum(seen)
    seen.clear()
    whole = trainer(registered()["dr_grpo"](), tmp_path / "b", training=TrainingRecipe(iterations=3))
    whole.train()
    assert fewer < sum(seen)
    torch.testing.assert_close(skipping.policy.logits, whole.policy.logits, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["dpo", "copg", "kto"])
def test_optimiser_steps_and_micro_batches_keep_what_is_compared_together(name, tmp_path, monkeypatch) -> None:
    """Groups are never torn apart by optimiser steps; and however small a micro-batch is, the weights come out the same."""
    anchor = BigramPolicy(4, seed=2)
    steps = []
    plan = Objective.plan

    def counted(self, batch, *arguments, **options):
        steps.append(batch.group.tolist())
        return plan(self, batch, *arguments, **options)

    monkeypatch.setattr(Objective, "plan", counted)
    logits = []
    for tokens in (4096, 1):
        training = TrainingRecipe(iterations=2, minibatches=3, epochs=2, micro_batch_tokens=tokens)
        made = trainer(registered()[name](), tmp_path / str(tokens), training=training, anchor=anchor)
        made.train()
        logits.append(made.policy.logits.detach())
    torch.testing.assert_close(*logits, rtol=0, atol=1e-13)
    if name != "kto":  # its completions stand alone
        size = {"dpo": 2, "copg": 4}[name]
        assert all(groups.count(group) == size for groups in steps for group in groups)


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


def test_minibatches_are_the_shares_of_a_permutation_of_the_seed_iteration_and_epoch(tmp_path) -> None:
    """Ten rows in four parts: the first two have one more. A resumed run must find the same rows, wherever it starts."""
    recipe = TrainingRecipe(iterations=1, epochs=2, minibatches=4)
    trainer = Trainer(
        registered()["sft"](),
        BigramPolicy(4, seed=1),
        StringExperience(StringProblem(vocabulary=4)),
        folder=tmp_path,
        training=recipe,
        seed=3,
    )
    actions = torch.arange(10).unsqueeze(1)
    batch = Trajectories(action=actions, mask=torch.ones(10, 1, dtype=torch.bool), annotations={"name": list("abcdefghij")})
    for position in (6, 0, 1, 2, 3, 4, 5, 6, 7):
        trainer.feed.batch = batch
        epoch, part = divmod(position, 4)
        order = torch.randperm(10, generator=generator(3, "order", 0, epoch))
        expected = batch.select(order.tensor_split(4)[part])
        got = trainer.feed.draw(0, position)
        assert torch.equal(got.action, expected.action)
        assert got.annotations == expected.annotations
    other = batch.replace(action=actions + 100)
    trainer.feed.batch = other
    assert (trainer.feed.draw(0, position).action >= 100).all()


def test_the_step_clips_to_the_norm_as_torch_does(tmp_path) -> None:
    """One SGD step of rate 1 from a gradient that is longer than the limit, and from one that is not."""
    for limit, longer in ((0.01, True), (100.0, False)):
        policy = BigramPolicy(4, seed=1)
        trainer = Trainer(
            registered()["sft"](),
            policy,
            StringExperience(StringProblem(vocabulary=4)),
            folder=tmp_path,
            optimizer=OptimizerRecipe(learning_rate=1.0, clip_norm=limit),
        )
        trainer.learner.optimizer = torch.optim.SGD(policy.module.parameters(), 1.0)
        parameters = list(policy.module.parameters())
        source = torch.Generator().manual_seed(0)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
        gradients = [parameter.grad.clone() for parameter in parameters]
        norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients))
        before = [parameter.detach().clone() for parameter in parameters]
        assert (norm > limit) == longer
        row = trainer.learner.guarded_step(
            Trajectories(action=torch.zeros(1, 1, dtype=torch.long), mask=torch.ones(1, 1, dtype=torch.bool))
        )
        factor = limit / norm if longer else 1.0
        for old, parameter, gradient in zip(before, parameters, gradients, strict=True):
            torch.testing.assert_close(old - parameter.detach(), gradient * factor, rtol=1e-4, atol=1e-7)
        assert row["gradient_norm"] == pytest.approx(float(norm), rel=1e-6)


@pytest.mark.parametrize("times", [0.5, 1.1, 1.5, 3.0, 100.0])
def test_clipping_leaves_a_norm_of_the_limit_or_the_gradient_as_it_is(times, tmp_path) -> None:
    """What the optimiser sees in a run, for gradients of `times` the limit."""
    made = trainer(registered()["sft"](), tmp_path / "free", optimizer=OptimizerRecipe(clip_norm=None))
    free = made.train()["gradient_norm"]
    for limit, name in ((free / times, "set"), (OptimizerRecipe().longest, "default")):
        made = trainer(registered()["sft"](), tmp_path / name, optimizer=OptimizerRecipe(clip_norm=limit))
        seen = []
        step = made.optimizer.step

        def watched(step=step, seen=seen, made=made) -> None:
            seen.append(float(torch.cat([p.grad.flatten() for p in made.policy.module.parameters() if p.grad is not None]).norm()))
            step()

        made.learner.optimizer.step = watched
        scale = 1.0
        if name == "default":  # the gradient itself is made as long as asked for
            scale = times * limit / free
            made.policy.module["logits"].register_hook(lambda grad, scale=scale: grad * scale)
        assert made.train()["gradient_norm"] == pytest.approx(free * scale, rel=1e-6)
        assert seen == [pytest.approx(min(free * scale, limit), rel=1e-6)]


def test_the_limit_of_clipping_is_that_of_the_literature() -> None:
    assert OptimizerRecipe().longest == 1.0
