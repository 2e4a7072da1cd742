"""Advantages among the rows of a group that have the same structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.advantages import Advantage, GroupAdvantage, GroupStandardized, Planning, group_statistics, spread
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Trajectories


@dataclass(frozen=True)
class Stratified(Advantage):
    """Â = G + alpha · (S − G): a group advantage G, and S, the same among the rows of the group that are in the same stratum.

    `stratum`: name of a planned `[B]` int64 tensor; rows of one group with the same number are a stratum. S is 0 in a stratum of one row,
    which has nothing to be compared with, and G in other strata of fewer than `smallest` rows. A group that is one stratum has S = G, so
    Â is exactly G there; with alpha = 0 everywhere.

    `alpha`, in [0, 1]: with 1 the expected gradient on what decides the stratum is 0, for given the strata every S is centred.
    Source: arXiv 2510.06214 (Stratified Advantage Normalization, blended).
    """

    compares: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"stratum", "smallest"})
    alpha: float = 0.8
    within: GroupAdvantage = field(default=GroupStandardized())
    stratum: str = "stratum"
    smallest: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"Stratified.alpha is {self.alpha}; accepted: a share in [0, 1]")
        if self.smallest < 2:
            raise InputError(f"Stratified.smallest is {self.smallest}; accepted: 2 rows or more")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.stratum})

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        assert batch.group is not None
        reward, counted = batch.total_reward(), batch.rows_from(*self.within.over)
        unit = stratum_units(batch, self.stratum)
        overall = self.within.of_rewards(reward, batch.group, counted)
        mine, all_rows = group_statistics(reward, unit, counted).count, group_statistics(reward, batch.group, counted).count
        small = torch.where(mine > 1, overall, 0)
        inside = torch.where(mine < self.smallest, small, self.within.of_rewards(reward, unit, counted))
        inside = torch.where(mine == all_rows, overall, inside)
        return spread(inside if self.alpha == 1 else overall + self.alpha * (inside - overall), batch)


def stratum_units(batch: Trajectories, stratum: str) -> Tensor:
    """[B] a number for each stratum of each group: strata are never pooled over groups."""
    assert batch.group is not None
    pairs = torch.stack([batch.group, batch.require(stratum, "Stratified").long()], 1)
    return pairs.unique(dim=0, return_inverse=True)[1]
