"""Stabilisation masks `1_stable`: which tokens may move the policy.

A mask is a part called as `mask(log_ratio, advantage, batch)` with detached tensors, and returns `[B,T]` bool. `log_ratio` is
`log pi_theta − log pi_old`, 0 wherever the policy did not act. A silenced token still counts in the aggregate's denominator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.parts import Joint, Part, Progress, Weight, furthest, weight_at
from unipg.shapes import Bool, Float
from unipg.trajectories import Source, Trajectories


@dataclass(frozen=True)
class Mask(Part):
    """Base class. `ratio_field` names the log-probability the ratio is taken to; None where no ratio is read."""

    @property
    def ratio_field(self) -> str | None:
        return None

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the batch that it reads beside the ratio's."""
        return self.needs

    def at(self, progress: Progress) -> Mask:
        """With the numbers that its schedules have at a moment of training; itself, where it has none."""
        return self

    def __call__(self, log_ratio: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], batch: Trajectories) -> Bool[Tensor, "B T"]:
        raise NotImplementedError(type(self).__name__)

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)


@dataclass(frozen=True)
class Everything(Mask):
    """1 everywhere: no stabilisation."""

    joint: ClassVar[Joint] = "step"

    def __call__(self, log_ratio: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], batch: Trajectories) -> Bool[Tensor, "B T"]:
        return torch.ones_like(log_ratio, dtype=torch.bool)


@dataclass(frozen=True)
class RatioClip(Mask):
    """PPO's clip as an indicator, on each token's ratio r = pi_theta / pi_old.

        0  iff  (A > 0 and r > 1 + high)  or  (A < 0 and r < 1 − low)  or  (A < 0 and r > dual)

    `low`, `high`: distance from 1 that the ratio may go, in the direction the advantage pushes. `dual`: bound on the ratio itself for
    negative advantages (dual clip, usually 3), None for none. Distances may be scheduled. Strict inequalities. Source: Schulman et al.
    2017; Ye et al. 2020 (dual).
    """

    joint: ClassVar[Joint] = "step"
    low: Weight = 0.2
    high: Weight = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.low, float | int) and isinstance(self.high, float | int):
            _check_range(self, self.low, self.high)
        if self.dual is not None and self.dual <= 1:
            raise InputError(f"RatioClip.dual is {self.dual}; accepted: a ratio above 1 (usually 3), or null for none")

    @property
    def ratio_field(self) -> str:
        return "old_log_prob"

    def at(self, progress: Progress) -> RatioClip:
        if isinstance(self.low, float | int) and isinstance(self.high, float | int):
            return self
        return RatioClip(weight_at(self.low, progress), weight_at(self.high, progress), self.dual)

    def __call__(self, log_ratio: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], batch: Trajectories) -> Bool[Tensor, "B T"]:
        low, high = (weight_at(distance, Progress()) for distance in (self.low, self.high))
        blocked = _outside(log_ratio, advantage, low, high)
        if self.dual is not None:
            blocked |= (advantage < 0) & (log_ratio > math.log(self.dual))
        return ~blocked


@dataclass(frozen=True)
class SequenceClip(Mask):
    """GSPO's clip: as `RatioClip`, on the geometric mean of a row's ratios s = exp(mean_t log r). Source: arXiv 2507.18071."""

    low: float = 3e-4
    high: float = 4e-4

    def __post_init__(self) -> None:
        _check_range(self, self.low, self.high)

    @property
    def ratio_field(self) -> str:
        return "old_log_prob"

    def __call__(self, log_ratio: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], batch: Trajectories) -> Bool[Tensor, "B T"]:
        mean = sequence_mean(log_ratio, batch.mask).expand_as(log_ratio)
        return ~_outside(mean, advantage, self.low, self.high)


@dataclass(frozen=True)
class MismatchMask(Mask):
    """Silences tokens on which sampler and trainer disagree, whatever the advantage (IcePop; MIS with a `Corrected` reference).

        1  iff  low <= k <= high,   k = pi_old / pi_behaviour   of each token

    `low`, `high`: bounds on k itself; with C = `high`, [1/C, C] is the symmetric choice, and low = 0 bounds k from above only. `pi_old`
    is the trainer's own probability, `pi_behaviour` what the sampler recorded. Source: IcePop (Ling team, 2025; range [0.5, 5]).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob", "behaviour_log_prob"})
    joint: ClassVar[Joint] = "step"
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 <= self.high:
            raise InputError(
                f"{type(self).__name__}(low={self.low}, high={self.high}): bounds on the ratio pi_old / pi_behaviour itself; "
                "accepted: low in [0, 1], high 1 or more"
            )

    def __call__(self, log_ratio: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], batch: Trajectories) -> Bool[Tensor, "B T"]:
        mismatch = self.measured(mismatch_log_ratio(batch, type(self).__name__), batch.mask).expand_as(log_ratio)
        floor = math.log(self.low) if self.low > 0 else -math.inf
        return (mismatch >= floor) & (mismatch <= math.log(self.high))

    def measured(self, mismatch: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B #T"]:
        """What the bounds are on: each token's own log k."""
        return mismatch


@dataclass(frozen=True)
class SequenceMismatchMask(MismatchMask):
    """As `MismatchMask`, on the geometric mean of a row's ratios: a row is silenced as a whole.

        1  iff  low <= exp(mean_t log k_t) <= high

    Source: Liu et al. 2025, "When speed kills stability" (masks on the geometric mean).
    """

    joint: ClassVar[Joint] = "row"

    def measured(self, mismatch: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B #T"]:
        return sequence_mean(mismatch, mask)


@dataclass(frozen=True)
class Both(Mask):
    """1 where both masks are 1 (`first & second`)."""

    first: Mask
    second: Mask

    def __post_init__(self) -> None:
        fields = {f for m in (self.first, self.second) if (f := m.ratio_field) is not None}
        if len(fields) > 1:
            raise InputError(f"masks on ratios to different policies cannot be joined: {sorted(fields)}")

    @property
    def reach(self) -> Joint:
        return furthest((self.first.reach, self.second.reach))

    @property
    def ratio_field(self) -> str | None:
        return self.first.ratio_field or self.second.ratio_field

    @property
    def reads(self) -> frozenset[str]:
        return self.first.reads | self.second.reads

    def at(self, progress: Progress) -> Both:
        return Both(self.first.at(progress), self.second.at(progress))

    def __call__(self, log_ratio: Float[Tensor, "B T"], advantage: Float[Tensor, "B T"], batch: Trajectories) -> Bool[Tensor, "B T"]:
        return self.first(log_ratio, advantage, batch) & self.second(log_ratio, advantage, batch)


def sequence_mean(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B 1"]:
    """[B,1] mean over each row's masked-in entries; 0 for a row without any."""
    return torch.where(mask, values, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)


def mismatch_log_ratio(batch: Trajectories, who: str) -> Float[Tensor, "B T"]:
    """[B,T] log pi_old − log pi_behaviour, trainer against sampler; 0 where the policy did not act, and in rows that it did not sample."""
    log_ratio = batch.require("old_log_prob", who) - batch.require("behaviour_log_prob", who)
    given = batch.rows_from(Source.DEMONSTRATION, Source.PREFERENCE, Source.MISMATCHED)
    return torch.where(batch.mask & ~given.unsqueeze(1), log_ratio, 0)


def _outside(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    floor = math.log1p(-low) if low < 1 else -math.inf
    return ((advantage > 0) & (log_ratio > math.log1p(high))) | ((advantage < 0) & (log_ratio < floor))


def _check_range(mask: Mask, low: float, high: float) -> None:
    if not 0 <= low <= 1 or high < 0:
        raise InputError(
            f"{type(mask).__name__}(low={low}, high={high}): both are distances of the ratio from 1; accepted: low in [0, 1], high >= 0"
        )
