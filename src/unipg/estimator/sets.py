"""Sets: groups of trajectories that are scored together, and whose members share one advantage.

    F(g) = (1/n) Σ_{i in g} R_i · d(g)            the polychromic objective: at once successful and diverse, both factors in [0, 1]
    grad E[F] = E[(F(g) − b) · Σ_{i in g} Σ_t ∇log pi(a_t^i | s_t^i)],   b any number that does not depend on the set

Source: arXiv 2509.25424.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.advantages import Advantage, Planning, group_statistics
from unipg.estimator.parts import Joint, furthest
from unipg.shapes import Bool, Float, Int
from unipg.trajectories import Evaluation, Trajectories

SHARED, MEMBER, OUTSIDE = "sets/advantage", "sets/member", "sets/outside"


def distinct(signature: Int[Tensor, "S n"]) -> Int[Tensor, " S"]:
    """How many different signatures each set has; they are numbered, equal ones alike."""
    if not signature.numel():
        return torch.zeros(len(signature), dtype=torch.long, device=signature.device)
    ordered = signature.sort(1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)


def set_scores(reward: Float[Tensor, " B"], diversity: Float[Tensor, " S"], member: Int[Tensor, "S n"]) -> Float[Tensor, " S"]:
    """F = mean reward of the members · diversity. `member`: rows of each set. Nothing is scored without success."""
    return reward[member].mean(1) * diversity


def expected_distinct(
    reward: Float[Tensor, " N"], probability: Float[Tensor, " N"], signature: Int[Tensor, " N"], size: int
) -> Float[Tensor, ""]:
    """E[mean reward of the members · distinct signatures] of a set of `size` draws from N trajectories; exact, with the graph.

        Σ_s r_s + (E[R] − r_s) · (1 − (1 − p_s)^(n−1)),   p_s = P(signature is s),  r_s = E[R · 1(signature is s)]

    One member has s itself, or any of the n − 1 others does; members are alike, so R is that of the first.
    """
    seen, of = signature.unique(return_inverse=True)
    nothing = torch.zeros(len(seen), dtype=probability.dtype, device=probability.device)
    p, r = nothing.index_add(0, of, probability), nothing.index_add(0, of, probability * reward)
    return (r + (r.sum() - r) * (1 - (1 - p) ** (size - 1))).sum()


class Shared(NamedTuple):
    """[B] per row: the mean of its sets' advantages, and in how many sets it is."""

    advantage: Tensor
    sets: Tensor


def set_advantages(score: Float[Tensor, " S"], group: Int[Tensor, " S"], member: Int[Tensor, "S n"], rows: int) -> Shared:
    """A#(g) = F(g) − mean of F over the sets of the same group, given to every member; a row in several sets gets their mean.

    Sets of a group that all score the same give exactly 0; so does a row in no set. `group` [S]: the prompt or state whose rows the set
    is of. `rows`: B.
    """
    centred = score - group_statistics(score, group).mean
    index = member.reshape(-1)
    total = torch.zeros(rows, dtype=score.dtype, device=score.device)
    total = total.index_add(0, index, centred.repeat_interleave(member.shape[1]))
    count = torch.zeros_like(total).index_add(0, index, torch.ones_like(index, dtype=score.dtype))
    return Shared(total / count.clamp_min(1), count)


@dataclass(frozen=True)
class SetAdvantage(Advantage):
    """Â_t = scale · A# on the first `window` + 1 steps of the policy in each row that is in a set (None: on all); `otherwise` elsewhere.

    The same number for all members of a set: no credit within it. A# and who is in sets are planned [B], see `plan_shared`.
    """

    compares: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    minor: ClassVar[frozenset[str]] = frozenset({"otherwise", "window"})
    otherwise: Advantage
    scale: float = 1.0
    window: int | None = None

    def __post_init__(self) -> None:
        if self.otherwise.is_dynamic:
            raise InputError(
                "SetAdvantage.otherwise depends on the current policy; accepted: one that is known with the batch, as sets are"
            )
        if self.window is not None and self.window < 0:
            raise InputError(f"SetAdvantage.window is {self.window}; accepted: 0 or more steps behind the first, or None for all")

    @property
    def reads(self) -> frozenset[str]:
        return self.otherwise.reads | {SHARED, MEMBER}

    @property
    def reach(self) -> Joint:
        return furthest((self.joint, self.otherwise.reach))

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        shared, member = (batch.require(name, "SetAdvantage") for name in (SHARED, MEMBER))
        elsewhere = self.otherwise(batch, now, planning)
        within = sharing(batch, member.bool(), self.window)
        return torch.where(within, self.scale * shared.unsqueeze(1).to(elsewhere.dtype), elsewhere)


def sharing(batch: Trajectories, member: Bool[Tensor, " B"], window: int | None) -> Bool[Tensor, "B T"]:
    """[B,T] bool: the steps of the policy on which a member's set advantage holds."""
    inside = batch.mask & member.unsqueeze(1)
    return inside if window is None else inside & (batch.mask.cumsum(1) <= window + 1)


def plan_shared(batch: Trajectories, shared: Shared, window: int | None) -> Trajectories:
    """The batch with `SetAdvantage`'s A# and members [B], and the steps [B,T] on which something else holds."""
    member = shared.sets > 0
    outside = batch.mask & ~sharing(batch, member, window)
    return batch.replace(planned={**batch.planned, SHARED: shared.advantage, MEMBER: member, OUTSIDE: outside})


__all__ = ["SetAdvantage", "distinct", "expected_distinct", "plan_shared", "set_advantages", "set_scores", "sharing"]
