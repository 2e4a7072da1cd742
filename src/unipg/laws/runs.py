"""The laws that need the whole loop: learning and resume."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from unipg.algorithms.base import Algorithm
from unipg.lab.strings import BigramPolicy, StringExperience, StringProblem
from unipg.laws.cases import LawBroken
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.trainer import Observer, Stopped, Trainer

PROBLEM = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)
"""Repeat the prompt's token twice."""


def _trainer(algorithm: Algorithm, folder: Path, training: TrainingRecipe, rate: float) -> Trainer:
    anchor = BigramPolicy(4, seed=1)
    anchor.module.requires_grad_(False)
    return Trainer(
        copy.deepcopy(algorithm),  # as in a new process: what an algorithm remembers by itself is not there
        BigramPolicy(4, seed=1),
        StringExperience(PROBLEM, prompts=6),
        folder=folder,
        training=training,
        optimizer=OptimizerRecipe(learning_rate=rate),
        anchor=anchor,
        seed=3,
    )


class _UntilSolved(Observer):
    """Stops a run as soon as the expected reward reaches the goal."""

    def __init__(self, trainer: Trainer, policy: BigramPolicy, goal: float) -> None:
        self.trainer, self.policy, self.goal = trainer, policy, goal

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        if float(PROBLEM.expected_reward(self.policy).detach()) >= self.goal:
            self.trainer.stop_requested = True


def learning(algorithm: Algorithm, iterations: int = 60, rate: float = 0.15, goal: float = 0.9) -> float:
    """6. The algorithm solves a trivial task in seconds: repeat the prompt's token twice. Returns the exact expected reward reached."""
    if algorithm.uses_rollouts:  # the same budget for all
        algorithm = dataclasses.replace(algorithm, rollouts=max(algorithm.rollouts, 8))
    with tempfile.TemporaryDirectory() as folder:
        recipe = TrainingRecipe(iterations=iterations, micro_batch_tokens=256, save_every=iterations)
        trainer = _trainer(algorithm, Path(folder), recipe, rate)
        policy = trainer.policy
        assert isinstance(policy, BigramPolicy)
        before = float(PROBLEM.expected_reward(policy).detach())
        trainer.observer = _UntilSolved(trainer, policy, goal)
        try:
            trainer.train()
        except Stopped:
            pass
        except Exception as error:
            raise LawBroken(f"learning: {type(error).__name__} ({error})") from error
        after = float(PROBLEM.expected_reward(policy).detach())
    if not after >= goal:
        said = f"the expected reward went from {before:.3f} to {after:.3f} in {iterations} iterations, not to {goal}"
        raise LawBroken(f"learning: {said}; example: answers of 2 out of 4 tokens that should repeat the prompt")
    return after


def resume(algorithm: Algorithm, steps: tuple[int, ...] = (1, 2, 5), *, epochs: int = 2, minibatches: int = 2) -> None:
    """7. Stopping and continuing anywhere, also in the middle of re-using a batch, gives bit-identical weights.

    `steps`: the optimiser steps after which to stop, out of 3 iterations of `epochs` · `minibatches` steps each. A run that moves no
    weight, or none after it was continued, breaks the law: nothing was compared.
    """
    training = TrainingRecipe(iterations=3, epochs=epochs, minibatches=minibatches, micro_batch_tokens=64)

    def weights(trainer: Trainer) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in trainer.policy.module.state_dict().items()}

    with tempfile.TemporaryDirectory() as folder:
        straight = _trainer(algorithm, Path(folder) / "straight", training, 0.05)
        start = weights(straight)
        straight.train()
        expected = weights(straight)
        if _same(start, expected):
            skipped = ", ".join(f"{count} {why}" for why, count in straight.learner.skipped.items() if count)
            said = f"no weight moved in {straight.step} optimiser steps{f' (skipped: {skipped})' if skipped else ''}"
            raise LawBroken(f"resume: {said}, so nothing was compared; example: {epochs} epochs x {minibatches} minibatches")
        continued = False
        for stop in steps:
            place = Path(folder) / f"stop{stop}"
            example = f"stopped after optimiser step {stop} of {training.total_steps}, {epochs} epochs x {minibatches} minibatches"
            first = _trainer(algorithm, place, training, 0.05)
            first.stop_after_steps = stop
            try:
                first.train()
            except Stopped:
                pass
            else:
                raise LawBroken(f"resume: the run did not stop; example: {example}")
            second = _trainer(algorithm, place, training, 0.05)
            second.resume()
            before = weights(second)
            second.train()
            found = weights(second)
            continued |= not _same(before, found)
            for name, value in found.items():
                if not value.equal(expected[name]):
                    raise LawBroken(f"resume: '{name}' is not bit-identical to that of an uninterrupted run; example: {example}")
        if not continued and len(steps) > 1:
            raise LawBroken(f"resume: no weight moved after any of the stops at {list(steps)}, so nothing was compared; example: {example}")


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(value.equal(other[name]) for name, value in one.items())
