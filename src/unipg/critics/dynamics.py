"""Models of an environment: what they are trained on, and policies scored by steps in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unipg.critics.lagged import Score
from unipg.critics.regression import REPLAYED
from unipg.critics.values import Value
from unipg.errors import InputError
from unipg.estimator.advantages import Advantage, Planning
from unipg.estimator.parts import Joint
from unipg.estimator.policy_gradient import Record, Term
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Source, Trajectories


@dataclass(frozen=True)
class DynamicsLoss(Term):
    """The negative log-likelihood of what came of each step, by the model `of`; see `GaussianDynamics.error`, which `decay` is of."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "step_reward", "terminated"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    of: str = field(default="model", kw_only=True)
    decay: float = field(default=0.0, kw_only=True)

    def symbol(self) -> str:
        return f"−log {self.of}(s', r, end | s, a)"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        loss = now.forecast(self.of, self.decay)
        return loss, Record.of(name, loss=loss)


@dataclass(frozen=True)
class Imagined(Score):
    """The mean of value(s_t, a_t) over all steps of rollouts of the model `model`, at most `steps`, with a policy's most likely actions.

    Begins at every row's observation; a row is left out once its episode has ended. Source: arXiv 2311.03351, released code.
    """

    value: Advantage = Value("q")
    model: str = "model"
    steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"rollouts of a model have {self.steps} steps; accepted: 1 or more")

    @torch.no_grad()
    def __call__(self, now: Evaluation, of: str, planning: Planning) -> float:
        source = generator(planning.seed, "imagined", planning.progress.step)
        total, count = 0.0, 0
        for rows, point in now.imagined(self.model, of, self.steps, source):
            values = self.value(rows, point, planning)
            total, count = total + float(values.sum()), count + values.numel()
        return total / max(1, count)
