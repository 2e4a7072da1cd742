"""Reference policies `1/pi_ref`: what the likelihood is divided by.

A reference is called as `reference(log_prob, batch)` with the detached current log-probabilities and returns `log pi_ref [B,T]`. The
weight on ∇log pi that follows from it is `pi_theta / pi_ref = exp(log_prob − log_reference)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.masks import mismatch_log_ratio, sequence_mean
from unipg.estimator.parts import Joint, Part, furthest
from unipg.shapes import Float
from unipg.trajectories import Trajectories


@dataclass(frozen=True)
class Reference(Part):
    """Base class."""

    offline: ClassVar[bool] = False
    """Whether it is for data whose sampling policy is unknown: over rollouts its weight would be no importance weight."""

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the batch that it reads."""
        return self.needs

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class CurrentPolicy(Reference):
    """pi_ref = pi_theta (detached): weight 1 on ∇log pi. SFT and REINFORCE, and whatever is exactly on policy."""

    joint: ClassVar[Joint] = "step"

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return log_prob


@dataclass(frozen=True)
class OldPolicy(Reference):
    """pi_ref = pi_old: the policy when the batch was assembled. Weight r = pi_theta / pi_old, PPO's importance ratio."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob"})
    joint: ClassVar[Joint] = "step"

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return batch.require("old_log_prob", type(self).__name__)


@dataclass(frozen=True)
class BehaviourPolicy(Reference):
    """pi_ref = the policy that sampled, by the sampler's own record: also corrects a sampler that differs from the trainer."""

    needs: ClassVar[frozenset[str]] = frozenset({"behaviour_log_prob"})
    joint: ClassVar[Joint] = "step"

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return batch.require("behaviour_log_prob", type(self).__name__)


@dataclass(frozen=True)
class Uniform(Reference):
    """pi_ref = 1: weight pi_theta itself. DFT; the offline part of SRFT. Not an importance weight: a bias taken for stability."""

    offline: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return torch.zeros_like(log_prob)


@dataclass(frozen=True)
class ShapedUniform(Reference):
    """LUFFY's policy shaping: pi_ref = 1 and the likelihood reshaped by f(p) = p / (p + shape).

    Weight on ∇log pi: f'(p)·p with f'(p) = shape / (p + shape)². Source: arXiv 2504.14945; Table 1 of arXiv 2509.04419, row 8.
    """

    offline: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    shape: float = 0.1

    def __post_init__(self) -> None:
        if self.shape <= 0:
            raise InputError(f"ShapedUniform.shape is {self.shape}; accepted: a probability scale above 0 (published: 0.1)")

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return 2 * torch.log(log_prob.exp() + self.shape) - math.log(self.shape)


@dataclass(frozen=True)
class SequenceMean(Reference):
    """GSPO: pi_ref = pi_theta · (pi_old(tau) / pi_theta(tau))^(1/|tau|), detached. Weight s = exp(mean_t log(pi_theta / pi_old))."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob"})

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        log_ratio = log_prob - batch.require("old_log_prob", type(self).__name__)
        return log_prob - sequence_mean(log_ratio, batch.mask)


@dataclass(frozen=True)
class SequenceRatio(Reference):
    """The policy that sampled, for whole rows: weight pi_theta(tau) / q(tau) = exp(sum_t log(pi_theta / q)) on each token of a row.

    `field`: which log-probability q is. `limit`: largest weight that counts; None, the default, for none: then the estimator is exact
    wherever q has support, its variance may be large, and a row beyond the estimator's `LOG_RATIO_LIMIT` is silenced as overflow.
    Source: arXiv 2302.08215 (off-policy distributional policy gradient).
    """

    minor: ClassVar[frozenset[str]] = frozenset({"field"})
    field: Literal["behaviour_log_prob", "old_log_prob"] = "behaviour_log_prob"
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit >= 1:
            raise InputError(f"SequenceRatio.limit is {self.limit}; accepted: a weight of 1 or more, or null for no truncation")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.field})

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        log_ratio = torch.where(batch.mask, log_prob - batch.require(self.field, type(self).__name__), 0)
        weight = log_ratio.sum(1, keepdim=True)
        return log_prob - (weight if self.limit is None else weight.clamp_max(math.log(self.limit)))


@dataclass(frozen=True)
class TruncatedWeight(Reference):
    """CISPO: pi_ref = pi_theta / clip(r, 1 − low, 1 + high), so the weight is the truncated ratio and no token is dropped.

    `low`, `high` are distances of the WEIGHT from 1, as in the paper; not the bound itself. Source: arXiv 2506.13585, eq. 4.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob"})
    joint: ClassVar[Joint] = "step"
    low: float = 1.0
    high: float = 0.28

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or self.high < 0:
            raise InputError(
                f"TruncatedWeight(low={self.low}, high={self.high}): distances of the weight from 1; accepted: low in [0, 1], high >= 0"
            )

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        log_ratio = log_prob - batch.require("old_log_prob", type(self).__name__)
        floor = math.log1p(-self.low) if self.low < 1 else -math.inf
        return log_prob - log_ratio.clamp(floor, math.log1p(self.high))


@dataclass(frozen=True)
class Corrected(Reference):
    """Truncated importance sampling (TIS) for a sampler that is not the trainer's pi_old: the weight of `reference` times

        min(k, limit),   k = pi_old / pi_behaviour   of each token

    so log pi_ref = log pi_ref of `reference` − min(log k, log limit). With `OldPolicy` and no limit it is `BehaviourPolicy`.

    `limit`: largest k that counts (published: 2), null for none. It bounds the correction alone, not pi_theta / pi_old.
    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob", "behaviour_log_prob"})
    joint: ClassVar[Joint] = "step"
    reference: Reference = OldPolicy()
    limit: float | None = 2.0

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit >= 1:
            raise InputError(f"{type(self).__name__}.limit is {self.limit}; accepted: a weight of 1 or more, or null for no truncation")

    @property
    def reach(self) -> Joint:
        return furthest((self.joint, self.reference.reach))

    @property
    def reads(self) -> frozenset[str]:
        return self.needs | self.reference.reads

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        weight = self.measured(mismatch_log_ratio(batch, type(self).__name__))
        if self.limit is not None:
            weight = weight.clamp_max(math.log(self.limit))
        return self.reference(log_prob, batch) - weight

    def measured(self, mismatch: Float[Tensor, "B T"]) -> Float[Tensor, "B #T"]:
        """[B,T] or [B,1] log k that is truncated; `mismatch` is 0 where the policy did not act."""
        return mismatch


@dataclass(frozen=True)
class SequenceCorrected(Corrected):
    """As `Corrected`, with the whole row's ratio k = prod_t pi_old / pi_behaviour on each of its tokens.

    Without a limit and with pi_theta = pi_old it is exact wherever the sampler has support; weights of single tokens leave out how likely
    the rest of the row was. Source: Liu et al. 2025, "When speed kills stability" (sequence-level TIS).
    """

    joint: ClassVar[Joint] = "row"

    def measured(self, mismatch: Float[Tensor, "B T"]) -> Float[Tensor, "B #T"]:
        return mismatch.sum(1, keepdim=True)
