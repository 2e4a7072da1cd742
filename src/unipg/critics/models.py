"""What models of the data are trained on, as terms of the estimator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unipg.critics.regression import REPLAYED
from unipg.estimator.advantages import Planning
from unipg.estimator.parts import Joint
from unipg.estimator.policy_gradient import NOTHING, Record, Term
from unipg.trajectories import Evaluation, Source, Trajectories


@dataclass(frozen=True)
class ModelLoss(Term):
    """weight · the sum of all the errors that the network `of` says it makes on a stored transition, at planned noise (`noise/<of>`)."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "terminated"})
    needs_log_prob: ClassVar[bool] = False
    reads_ends: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    of: str = field(kw_only=True)

    @property
    def noise(self) -> frozenset[str]:
        return frozenset({self.of})

    def symbol(self) -> str:
        return f"the errors of {self.of}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        errors = now.errors(self.of)
        return torch.stack(list(errors.values())).sum(0), Record(name, NOTHING, NOTHING, NOTHING, errors)
