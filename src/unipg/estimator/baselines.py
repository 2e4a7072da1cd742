"""Advantages that compare a row, or a prompt, with the rest of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.estimator.advantages import Advantage, Planning, group_statistics, has_spread, spread
from unipg.estimator.parts import Reduce
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Source, Trajectories

NO_SPREAD = 1e-9
"""A standard deviation below this is rounding: everything is equal, and the advantage exactly 0."""


def standardized(values: Float[Tensor, " N"], weight: Float[Tensor, " N"], reduce: Reduce, eps: float | None) -> Float[Tensor, " N"]:
    """(x − mean) / (std + eps) with counts `weight`, ddof 1 and the moments of all workers; 0 for all where there is no spread.

    `eps` None: not divided. Entries of weight 0 are left out of the moments; so is one alone, whose result is 0.
    """
    count, total = reduce(torch.stack([weight.sum(), (weight * values).sum()]))
    mean = total / count.clamp_min(1)
    squares = reduce((weight * (values - mean) ** 2).sum())
    std = (squares / (count - 1).clamp_min(1)).sqrt()
    scale = 1.0 if eps is None else 1 / (std + eps)
    return torch.where((std > NO_SPREAD) & has_spread(squares, mean, count), (values - mean) * scale, 0)


@dataclass(frozen=True)
class AcrossPrompts(Advantage):
    """Â = (R_q − mean_q R) / (std_q R + eps) on every row of prompt q, over the prompts of the batch, each counted once.

    R_q is the mean reward of the prompt's rollouts, times the planned `[B]` tensor `coefficient` where one is named. ddof 1. One prompt, or
    all R_q equal: 0. A prompt whose rollouts have no tokens is left out. `standardize` off: not divided by the standard deviation.
    Source: arXiv 2508.04138 (the global advantage of COPO).
    """

    minor: ClassVar[frozenset[str]] = frozenset({"standardize", "eps"})
    coefficient: str | None = None
    standardize: bool = True
    eps: float = 1e-6

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.coefficient} if self.coefficient else ())

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        assert batch.group is not None
        rollouts = batch.rows_from(Source.ROLLOUT)
        value = group_statistics(batch.total_reward().double(), batch.group, rollouts).mean
        if self.coefficient is not None:
            value = value * batch.require(self.coefficient, type(self).__name__).double()
        groups, index = batch.group.unique(return_inverse=True)
        by_prompt = value.new_zeros(len(groups)).index_copy(0, index, value)
        weight = value.new_zeros(len(groups)).index_add(0, index, (rollouts & batch.mask.any(1)).double()).clamp_max(1)
        found = standardized(by_prompt, weight, (planning or Planning()).reduce, self.eps if self.standardize else None)
        return spread(found[index], batch)


@dataclass(frozen=True)
class RowsWhitened(Advantage):
    """Â = (a − mean a) / (std a + eps) over the rows of the batch, a = R − baseline, ddof 1; one value for each trajectory.

    `baseline`: name of a planned `[B]` tensor, 0 where nothing is planned. `level`: what counts, each row once or each of its tokens (then
    the token-weighted mean is 0, where rows have different lengths). One row, or all a equal: 0.
    Source: arXiv 2509.13232 (row); 2608.24870 (token).
    """

    minor: ClassVar[frozenset[str]] = frozenset({"eps"})
    baseline: str | None = None
    level: Literal["row", "token"] = "row"
    eps: float = 1e-8

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.baseline} if self.baseline else ())

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        surplus = batch.total_reward().double()
        if self.baseline in batch.planned:
            surplus = surplus - batch.planned[self.baseline]
        rollouts = batch.rows_from(Source.ROLLOUT)
        tokens = torch.where(rollouts, batch.mask.sum(1), 0).double()
        weight = tokens if self.level == "token" else tokens.clamp_max(1)
        return spread(standardized(surplus, weight, (planning or Planning()).reduce, self.eps), batch)
