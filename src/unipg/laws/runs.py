"""The laws that need the whole loop: learning and resume."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.lab.strings import BigramPolicy, StringExperience, StringProblem
from unipg.laws.cases import LawBroken
from unipg.policies.actions import DiscreteActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.trainer import Observer, Stopped, Trainer
from unipg.trajectories import Trajectories

PROBLEM = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)
"""Repeat the prompt's token twice."""


STEP_PER_RATE = 40
"""Of methods whose steps have a length of their own (`step`): what it is for a learning rate of 1."""


class _Played(StringExperience):
    """The same strings as episodes of an environment, whose observation is the token before."""

    has_prompts = False

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        batch, told = super().collect(_table(policy), demand)
        assert batch.present is not None
        before = torch.where(batch.present, batch.action, 0).roll(1, 1)
        return batch.replace(observation=torch.nn.functional.one_hot(before, self.problem.vocabulary).double()), told


def _table(policy: Policy) -> BigramPolicy:
    """The policy as a table of what follows each token."""
    if isinstance(policy, BigramPolicy):
        return policy
    assert isinstance(policy, ActorCritic)
    table = BigramPolicy(policy.inputs)
    with torch.no_grad():
        table.logits.copy_(policy.module.actor(torch.eye(policy.inputs, dtype=torch.float64)))
    return table


def _controller() -> ActorCritic:
    policy = ActorCritic((PROBLEM.vocabulary,), DiscreteActions(PROBLEM.vocabulary), hidden=(16,), seed=1)
    policy.module.double()
    return policy


def _trainer(algorithm: Algorithm, folder: Path, training: TrainingRecipe, rate: float) -> Trainer:
    anchor = BigramPolicy(4, seed=1)
    anchor.module.requires_grad_(False)
    return Trainer(
        copy.deepcopy(algorithm),  # as in a new process: what an algorithm remembers by itself is not there
        _controller() if algorithm.acts else BigramPolicy(4, seed=1),
        (_Played if algorithm.acts else StringExperience)(PROBLEM, prompts=6),
        folder=folder,
        training=training,
        optimizer=OptimizerRecipe(learning_rate=rate),
        anchor=None if algorithm.acts else anchor,
        seed=3,
    )


def _reached(policy: Policy) -> float:
    """The exact expected reward."""
    return float(PROBLEM.expected_reward(_table(policy)).detach())


class _UntilSolved(Observer):
    """Stops a run as soon as the expected reward reaches the goal."""

    def __init__(self, trainer: Trainer, policy: Policy, goal: float) -> None:
        self.trainer, self.policy, self.goal = trainer, policy, goal

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        if _reached(self.policy) >= self.goal:
            self.trainer.stop_requested = True


def learning(algorithm: Algorithm, iterations: int = 60, rate: float = 0.15, goal: float = 0.9) -> float:
    """6. The algorithm solves a trivial task in seconds: repeat the prompt's token twice. Returns the exact expected reward reached."""
    if algorithm.uses_rollouts:  # the same budget for all
        algorithm = dataclasses.replace(algorithm, rollouts=max(algorithm.rollouts, 8))
    if "step" in {field.name for field in dataclasses.fields(algorithm)}:
        algorithm = dataclasses.replace(algorithm, step=STEP_PER_RATE * rate)  # type: ignore[call-arg]
    with tempfile.TemporaryDirectory() as folder:
        recipe = TrainingRecipe(iterations=iterations, micro_batch_tokens=256, save_every=iterations)
        trainer = _trainer(algorithm, Path(folder), recipe, rate)
        policy = trainer.policy
        before = _reached(policy)
        trainer.observer = _UntilSolved(trainer, policy, goal)
        try:
            trainer.train()
        except Stopped:
            pass
        except Exception as error:
            raise LawBroken(f"learning: {type(error).__name__} ({error})") from error
        after = _reached(policy)
    if not after >= goal:
        said = f"the expected reward went from {before:.3f} to {after:.3f} in {iterations} iterations, not to {goal}"
        raise LawBroken(f"learning: {said}; example: answers of 2 out of 4 tokens that should repeat the prompt")
    return after


def resume(algorithm: Algorithm, steps: tuple[int, ...] = (1, 2, 5), *, epochs: int = 2, minibatches: int = 2) -> None:
    """7. Stopping and continuing anywhere, also in the middle of re-using a batch, gives bit-identical weights.

    `steps`: the optimiser steps after which to stop, out of 3 iterations of `epochs` · `minibatches` steps each; of methods that say
    themselves how often a batch is used, out of as many iterations as these would be steps. A run that moves no
    weight, or none after it was continued, breaks the law: nothing was compared.
    """
    iterations = 3
    if all(None not in (learner.epochs, learner.minibatches) for learner in algorithm.learners(Setting())):  # they say it themselves
        iterations, epochs, minibatches = 3 * epochs * minibatches, 1, 1
    training = TrainingRecipe(iterations=iterations, epochs=epochs, minibatches=minibatches, micro_batch_tokens=64)

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
