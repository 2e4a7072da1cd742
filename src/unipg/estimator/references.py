"""Reference policies `1/pi_ref`: what the likelihood is divided by.

A reference is called as `reference(log_prob, batch)` with the detached current log-probabilities and returns `log pi_ref [B,T]`. The
weight on ∇log pi that follows from it is `pi_theta / pi_ref = exp(log_prob − log_reference)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.masks import sequence_mean
from unipg.estimator.parts import Part
from unipg.shapes import Float
from unipg.trajectories import Trajectories


@dataclass(frozen=True)
class Reference(Part):
    """Base class."""

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class CurrentPolicy(Reference):
    """pi_ref = pi_theta (detached): weight 1 on ∇log pi. SFT and REINFORCE, and whatever is exactly on policy."""

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return log_prob


@dataclass(frozen=True)
class OldPolicy(Reference):
    """pi_ref = pi_old: the policy when the batch was assembled. Weight r = pi_theta / pi_old, PPO's importance ratio."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob"})

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return batch.require("old_log_prob", type(self).__name__)


@dataclass(frozen=True)
class BehaviourPolicy(Reference):
    """pi_ref = the policy that sampled, by the sampler's own record: also corrects a sampler that differs from the trainer."""

    needs: ClassVar[frozenset[str]] = frozenset({"behaviour_log_prob"})

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return batch.require("behaviour_log_prob", type(self).__name__)


@dataclass(frozen=True)
class Uniform(Reference):
    """pi_ref = 1: weight pi_theta itself. DFT; the offline part of SRFT. Not an importance weight: a bias taken for stability."""

    def __call__(self, log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, "B T"]:
        return torch.zeros_like(log_prob)


@dataclass(frozen=True)
class ShapedUniform(Reference):
    """LUFFY's policy shaping: pi_ref = 1 and the likelihood reshaped by f(p) = p / (p + shape).

    Weight on ∇log pi: f'(p)·p with f'(p) = shape / (p + shape)². Source: arXiv 2504.14945; Table 1 of arXiv 2509.04419, row 8.
    """

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
class TruncatedWeight(Reference):
    """CISPO: pi_ref = pi_theta / clip(r, 1 − low, 1 + high), so the weight is the truncated ratio and no token is dropped.

    `low`, `high` are distances of the WEIGHT from 1, as in the paper; not the bound itself. Source: arXiv 2506.13585, eq. 4.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob"})
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
