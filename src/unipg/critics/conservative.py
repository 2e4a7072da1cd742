"""Values that are held down where the data have no action (arXiv 2006.04779)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unipg.critics.regression import REPLAYED, beyond_ends
from unipg.errors import InputError
from unipg.estimator.advantages import Planning
from unipg.estimator.likelihoods import nth
from unipg.estimator.parts import Joint, Part
from unipg.estimator.policy_gradient import Record, Term
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Source, Trajectories

UNIFORM = "uniform"
"""Planned noise of actions that are drawn evenly."""
ACTED, AFTER = "observation", "next_observation"
MOST = 1e6
"""Largest multiplier."""


@dataclass(frozen=True)
class Gap(Part):
    """log sum_a exp(q_k(s, a)) − q_k(s, a_data), of each member of the network `of`; real actions stand for all:

        log sum_j exp(q_k(s, a_j)) / mu(a_j),   a_j ~ pi(s), pi(s') and U[-1,1]^A, `draws` each, mu the density that drew it

    A terminal s' counts as s. `draws` 0: actions can be counted, and the sum is over all.
    Source: arXiv 2006.04779, eq. 4, appendix F, and released code.
    """

    joint: ClassVar[Joint] = "step"
    of: str = "q"
    draws: int = 10

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise InputError(f"Gap.draws is {self.draws}; accepted: 1 or more, or 0 where actions can be counted")

    @property
    def noise(self) -> frozenset[str]:
        """The first draw at an observation is the policy's own."""
        return frozenset(nth(at, number) for at in (ACTED, AFTER, UNIFORM) for number in range(1, self.draws + 1))

    def __call__(self, now: Evaluation, batch: Trajectories) -> Float[Tensor, "K B T"]:
        if not self.draws:
            return now.every(ACTED).action_value(self.of).logsumexp(-1) - now.action_value(self.of)
        with torch.no_grad():
            drawn = [now.several(ACTED, self.draws), beyond_ends(now, batch)[0].several(AFTER, self.draws)]
            evenly = now.evenly(UNIFORM, self.draws)
            action = torch.cat([*(each for each, _ in drawn), evenly], 2)
            even = drawn[0][1].new_full(evenly.shape[:-1], -evenly.shape[-1] * math.log(2))
            density = torch.cat([*(each for _, each in drawn), even], 2)
        return (now.values_at(self.of, ACTED, action) - density).logsumexp(-1) - now.action_value(self.of)


@dataclass(frozen=True)
class Conservative(Term):
    """weight · sum_k of a `gap`, times the number of a network (`multiplier`) where one is named: q is pushed down where the data have no
    action, and up where they have."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "terminated"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    gap: Gap = field(kw_only=True)
    multiplier: str | None = field(default=None, kw_only=True)

    @property
    def noise(self) -> frozenset[str]:
        return self.gap.noise

    def symbol(self) -> str:
        return f"{self.gap.of} less where the data have no action"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        gap = self.gap(now, batch)
        factor = 1.0 if self.multiplier is None else now.number(self.multiplier).detach().clamp_max(MOST)
        return factor * gap.sum(0), Record.of(name, gap=gap)


@dataclass(frozen=True)
class MultiplierLoss(Term):
    """−alpha · (mean over members of a `gap` − threshold), the gap detached: alpha rises where q is too high beyond the data.

    Source: arXiv 2006.04779, eq. 30.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "terminated"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    of: str = field(kw_only=True)
    gap: Gap = field(kw_only=True)
    threshold: float = field(kw_only=True)

    @property
    def noise(self) -> frozenset[str]:
        return self.gap.noise

    def symbol(self) -> str:
        return f"{self.of} by which the gap → {self.threshold:g}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        with torch.no_grad():
            gap = self.gap(now, batch).mean(0)
        alpha = now.number(self.of).clamp_max(MOST)
        return -alpha * (gap - self.threshold), Record.of(name, multiplier=alpha, gap=gap)
