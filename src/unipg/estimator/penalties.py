"""Penalties and further losses that are added to a policy gradient: KL, entropy, the critic's value loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.errors import InputError, nearest
from unipg.estimator.advantages import GAE, Planning
from unipg.estimator.parts import Joint, Search, furthest
from unipg.estimator.policy_gradient import LOG_RATIO_LIMIT, Record, Term, check_log_probs
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Trajectories

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(log_prob: Float[Tensor, "*N"], anchor_log_prob: Float[Tensor, "*N"], estimator: KLEstimator) -> Float[Tensor, "*N"]:
    """Per-sample estimate of KL(pi_theta || pi_anchor) from samples of pi_theta, d = log pi_theta − log pi_anchor.

        k1 = d        unbiased, noisy, may be negative
        k2 = d² / 2   biased value, low variance; on policy its GRADIENT is the unbiased one of the KL
        k3 = exp(−d) − 1 + d   unbiased value, never negative; its gradient is that of KL(pi_anchor || pi_theta) as seen from pi_theta

    Where −d exceeds 20, k3 goes on as a straight line: exp would only add noise, then inf; the pull stays.
    Source: Schulman 2020, "Approximating KL divergence".
    """
    d = log_prob - anchor_log_prob
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d * d
    if estimator == "k3":
        steep = (-d).clamp_max(LOG_RATIO_LIMIT)
        return torch.expm1(steep) + torch.exp(steep.detach()) * (-d - steep) + d
    raise InputError(f"KL estimator '{estimator}' does not exist; {nearest(str(estimator), ['k1', 'k2', 'k3'])}")


@dataclass(frozen=True)
class KLPenalty(Term):
    """weight · KL(pi_theta || pi_anchor) in the loss, estimated per token.

    Only `k2` and `k3` exist here. `k1` as a loss has the gradient ∇log pi_theta, which does not contain the anchor and is zero on average:
    put k1 in the reward (`kl_in_reward`), where it is right, or use k2, whose gradient is what k1 was meant to have.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"anchor_log_prob"})
    joint: ClassVar[Joint] = "step"
    estimator: Literal["k2", "k3"] = field(default="k3", kw_only=True)

    def __post_init__(self) -> None:
        if self.estimator not in ("k2", "k3"):
            raise InputError(
                f"KLPenalty(estimator='{self.estimator}'): accepted in the loss: k2, k3; the gradient of k1 as a loss has no anchor in it, "
                "use k1 in the reward (kl_in_reward) or k2 here"
            )

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        return kl_estimate(now.log_prob, batch.require("anchor_log_prob", "KLPenalty"), self.estimator), None


def kl_in_reward(batch: Trajectories, weight: float, estimator: KLEstimator = "k1") -> Trajectories:
    """The batch with `weight` · KL estimate subtracted from the reward of each policy step (old policy against anchor).

    Errors: `InputError` for a log-probability that is not finite where the policy acted.
    """
    old, anchor = (batch.require(name, "kl_in_reward") for name in ("old_log_prob", "anchor_log_prob"))
    check_log_probs(old, batch, "old_log_prob")
    check_log_probs(anchor, batch, "anchor_log_prob")
    kl = kl_estimate(old, anchor, estimator)
    penalty = torch.where(batch.mask, weight * kl, 0)
    so_far = 0 if batch.step_reward is None else torch.where(batch.mask, batch.step_reward, 0)
    return batch.replace(step_reward=so_far - penalty)


@dataclass(frozen=True)
class EntropyBonus(Term):
    """−weight · H(pi_theta) per token: rewards staying undecided. The entropy is exact, over the whole distribution."""

    needs_entropy: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        return -now.entropy_of("EntropyBonus"), None


@dataclass(frozen=True)
class ActionError(Term):
    """weight · mean over dimensions of (a_theta(s) − a)²: the policy's own action beside the stored one, in the policy's units.

    Behaviour cloning of a deterministic policy. Source: arXiv 2106.06860, eq. 3, as in its code (a mean over dimensions).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"

    @property
    def noise(self) -> frozenset[str]:
        return frozenset({"observation"})

    @property
    def differentiates(self) -> frozenset[str]:
        return frozenset({"observation"})

    def aim(self, action: Tensor, now: Evaluation, batch: Trajectories, planning: Planning) -> Float[Tensor, "B T A"]:
        """What the policy's `action` [B,T,A], detached, is pulled to."""
        return batch.action.reshape(action.shape).to(action.dtype)

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        action = now.fresh_action("observation")
        error = (action - self.aim(action.detach(), now, batch, planning)).square().mean(-1)
        return torch.where(batch.mask, error, 0), Record.of(name, distance=error.sqrt())


@dataclass(frozen=True)
class NearestAction(ActionError):
    """weight · mean over dimensions of (a_theta(s) − â)², (ŝ, â) the dataset's pair that is nearest to [beta · s ; a_theta(s)].

    Distances are Euclidean, over observations as the networks read them, so what beta means depends on their normalisation. The search
    has no gradient. beta → infinity: the action recorded at s, as in `ActionError`; beta = 0: the nearest action anywhere. `count`: of
    several pairs the mean action (our own: the method has one). `search`: a k-d `tree`, or `all` pairs. Source: arXiv 2306.06569.
    """

    minor: ClassVar[frozenset[str]] = frozenset({"count", "search"})
    beta: float = field(default=2.0, kw_only=True)
    count: int = field(default=1, kw_only=True)
    search: Search = field(default="tree", kw_only=True)

    def __post_init__(self) -> None:
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            raise InputError(f"NearestAction.beta is {self.beta}; accepted: a finite number of 0 or more")
        if self.count < 1:
            raise InputError(f"NearestAction.count is {self.count}; accepted: 1 or more")
        if self.search not in ("tree", "all"):
            raise InputError(f"NearestAction.search is '{self.search}'; {nearest(str(self.search), ['tree', 'all'])}")

    def aim(self, action: Tensor, now: Evaluation, batch: Trajectories, planning: Planning) -> Float[Tensor, "B T A"]:
        live = action[batch.mask]
        found = planning.neighbours().nearest(now.observed("observation"), live, self.beta, self.count, self.search)
        return torch.zeros_like(action).index_put((batch.mask,), found)


@dataclass(frozen=True)
class ValueLoss(Term):
    """weight · ½ (V − target)², target = raw GAE advantage + V_old, the critic's regression.

    `clip`: PPO2's clipping of the value's change, max of the two squared errors; None for none.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    gae: GAE = field(default=GAE(), kw_only=True)
    clip: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"ValueLoss.clip is {self.clip}; accepted: above 0, or null for no clipping")

    @property
    def reads_value(self) -> bool:
        return True

    @property
    def reach(self) -> Joint:
        return furthest((super().reach, self.gae.reach))

    def prepared(self, batch: Trajectories, planning: Planning) -> dict[str, Tensor]:
        return {"target": self.gae.raw(batch) + batch.require("value", "ValueLoss")}

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        if now.value is None:
            if bool(batch.require(f"{name}/weight", "ValueLoss").any()):
                raise InputError("ValueLoss needs a policy with a value head")
            return torch.zeros_like(now.log_prob), None  # no token of this step trains the critic
        target = batch.require(f"{name}/target", "ValueLoss")
        error = (now.value - target) ** 2
        if self.clip is not None:
            old = batch.require("value", "ValueLoss")
            clipped = old + (now.value - old).clamp(-self.clip, self.clip)
            error = torch.maximum(error, (clipped - target) ** 2)
        return 0.5 * error, None
