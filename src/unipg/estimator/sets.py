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
from unipg.shapes import Bool, Float, Int
from unipg.trajectories import Evaluation, Trajectories

SHARED, MEMBER, WITHIN, OUTSIDE = "sets/advantage", "sets/member", "sets/within", "sets/outside"


def distinct(signature: Int[Tensor, "S n"]) -> Int[Tensor, " S"]:
    """How many different signatures each set has; they are numbered, equal ones alike."""
    if not signature.numel():
        return torch.zeros(len(signature), dtype=torch.long, device=signature.device)
    ordered = signature.sort(1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)


def set_scores(reward: Float[Tensor, " B"], diversity: Float[Tensor, " S"], member: Int[Tensor, "S n"]) -> Float[Tensor, " S"]:
    """F = mean reward of the members · diversity. `member`: rows of each set. Nothing is scored without success."""
    return reward[member].mean(1) * diversity


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
    """Â_t = scale · A# on the steps of a row that share it (planned `sets/within` [B,T], `sets/advantage` [B]); `otherwise` elsewhere.

    The same number for all members of a set: no credit within it. `algorithms.sets` plans both.
    """

    compares: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"otherwise"})
    otherwise: Advantage
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.otherwise.is_dynamic:
            raise InputError("SetAdvantage.otherwise depends on the current policy; accepted: one that is known with the batch, as sets are")

    @property
    def reads(self) -> frozenset[str]:
        return self.otherwise.reads

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        within, shared = (batch.require(name, "SetAdvantage") for name in (WITHIN, SHARED))
        elsewhere = self.otherwise(batch, now, planning)
        return torch.where(within, self.scale * shared.unsqueeze(1).to(elsewhere.dtype), elsewhere)


def plan_shared(batch: Trajectories, shared: Shared, window: int | None) -> Trajectories:
    """The batch with what `SetAdvantage` reads: it holds on a member's first `window` + 1 steps of the policy; None: on all of them."""
    inside: Bool[Tensor, "B T"] = batch.mask & (shared.sets > 0).unsqueeze(1)
    if window is not None:
        inside = inside & (batch.mask.cumsum(1) <= window + 1)
    plan = {SHARED: shared.advantage, MEMBER: shared.sets > 0, WITHIN: inside, OUTSIDE: batch.mask & ~inside}
    return batch.replace(planned={**batch.planned, **plan})


__all__ = ["SetAdvantage", "distinct", "plan_shared", "set_advantages", "set_scores"]
