"""Stages of a run: what happens to networks where the span of a learner begins or ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unipg.rollouts.base import EvaluationResult
from unipg.seeding import derived_seed
from unipg.training.learner import Learning

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer

MEASURE = "return"
"""Of an evaluation: what the best one is the highest by."""


class Stages:
    """`begin` before an iteration's evaluation, `evaluated` after any, `restore` after that: each may be repeated after an interruption."""

    def __init__(self, run: Trainer) -> None:
        self.run = run
        self.best: dict[str, dict[str, Any]] = {}
        """`value` of the best evaluation within each learner's span so far, and the `weights` then, by the learner's name."""

    def unreached(self) -> str:
        """What to say of learners that the run ends before; empty where there are none."""
        iterations = self.run.training.iterations
        late = {learner.spec.role: int(learner.spec.span[0]) for learner in self.run.learners if learner.spec.span[0] >= iterations}
        if not late:
            return ""
        told = ", ".join(f"'{name}' at {first}" for name, first in late.items())
        return f"training.iterations is {iterations}, and these learners begin later, so they learn nothing: {told}"

    def begin(self) -> None:
        """Networks that a stage starts anew, but for those that wait for data made by what they were."""
        for learner in self._turning(0):
            if learner.spec.data is None:
                renew(self.run, learner)

    def evaluated(self, results: Sequence[EvaluationResult]) -> None:
        found = [result.metrics[MEASURE]["value"] for result in results if MEASURE in result.metrics]
        if not found:
            return
        for learner in self.run.learners:
            first, end = learner.spec.span
            if not learner.spec.keeps_best or not first <= self.run.iteration <= end:
                continue
            if learner.name not in self.best or found[0] > self.best[learner.name]["value"]:
                weights = {name: tensor.detach().clone() for name, tensor in self._kept(learner).items()}
                self.best = {learner.name: {"value": found[0], "weights": weights}}  # of stages that are over nothing is asked

    @property
    def ends(self) -> bool:
        """Whether a stage has ended whose best networks are wanted: the last ones are to be evaluated too."""
        return any(learner.spec.keeps_best for learner in self._turning(1))

    @torch.no_grad()
    def restore(self) -> None:
        """The best networks of a stage that has ended."""
        for learner in self._turning(1):
            if learner.spec.keeps_best and learner.name in self.best:
                kept = self.best[learner.name]["weights"]
                for name, tensor in self._kept(learner).items():
                    tensor.copy_(kept[name])

    def metrics(self) -> dict[str, float]:
        """`stage`, of runs that have several, counted from 0: it goes up where a policy starts anew."""
        firsts = [learner.spec.span[0] for learner in self.run.learners if learner.spec.renews and learner.spec.data is None]
        return {"stage": float(sum(first <= self.run.iteration for first in firsts))} if firsts else {}

    def _turning(self, side: int) -> list[Learning]:
        """Learners whose span begins (0) or ends (1) here."""
        at = self.run.iteration
        return [learner for learner in self.run.learners if at > 0 and learner.spec.span[side] == at and (side or learner.spec.renews)]

    def _kept(self, learner: Learning) -> dict[str, Tensor]:
        """The policy's tensors by name, but for other networks' weights: what it knows of its observations goes with them."""
        networks = self.run.policy.networks
        others = {id(p) for name, network in networks.items() if name not in learner.spec.trains for p in network}
        return {name: tensor for name, tensor in self.run.policy.module.state_dict(keep_vars=True).items() if id(tensor) not in others}

    def state_dict(self) -> dict[str, Any]:
        return {"best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = dict(state["best"])


def renew(run: Trainer, learner: Learning) -> None:
    """Draws a learner's networks anew, by the run's seed and its name."""
    run.policy.renew(learner.spec.trains, derived_seed(run.seed, "stage", learner.name))
