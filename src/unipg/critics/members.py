"""Critics of several members that each regress on a target of their own, and say more than a value: as terms of the estimator.

Belongs here: what is common to critics of states and of actions. Does not belong here: what an error costs (`critics/kinds/`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from unipg.critics.regression import Bootstrapped, Regression
from unipg.errors import InputError
from unipg.estimator import ValueLoss
from unipg.estimator.advantages import Planning
from unipg.estimator.policy_gradient import Record, Term
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Trajectories

MEMBERS, MEMBERS_AFTER = "members/value", "members/bootstrap_value"
"""Planned [B,T,K]: `value` and `bootstrap_value` of each member of a critic of states, when the batch was collected."""
EPISTEMIC = "epistemic"
"""Planned [B,T,critics]: the weights of steps by the error variance over their members."""


class Cost(Protocol):
    """What the errors of K members cost, in the scale of ½ e²."""

    @property
    def members(self) -> int:
        """K."""

    @property
    def weighs(self) -> bool:
        """Whether steps are weighed against each other: a statistic of the whole batch of an optimiser step."""

    def fit(
        self, said: Float[Tensor, "... K B T C"], error: Float[Tensor, "... K B T"]
    ) -> tuple[Float[Tensor, "... B T"], dict[str, Tensor]]:
        """Of each step by itself, and what is worth plotting; `said`: value and what stands behind it."""

    def size(self, error: Float[Tensor, "... K B T"]) -> Float[Tensor, "... B T"]:
        """What the weights of steps multiply."""

    def variance(self, said: Float[Tensor, "... K B T C"], error: Float[Tensor, "... K B T"], discount: float) -> Float[Tensor, "... B T"]:
        """How unsure the members are of each step; detached."""

    def weights(self, variance: Float[Tensor, "critics N"]) -> Float[Tensor, "critics N"]:
        """Of N steps, from all of their variances; in a mean over N, they are what multiplies."""


def _weights(term: Term, cost: Cost, said: Tensor, error: Tensor, batch: Trajectories, planning: Planning, discount: float) -> Tensor:
    """[B,T,critics] the weights of the term's steps, of everybody's; 0 elsewhere."""
    mine = term.taken(batch) & batch.rows_from(*term.rows).unsqueeze(1)
    variance, whole = cost.variance(said, error, discount), bool(mine.all())
    own = variance.flatten(1) if whole else variance[:, mine]
    everyone = planning.gather(own)
    start = sum(each.shape[1] for each in everyone[: planning.rank])
    found = cost.weights(own if len(everyone) == 1 else torch.cat([each.to(own.device) for each in everyone], 1))
    found = found[:, start : start + own.shape[1]].T
    return found.reshape(*mine.shape, found.shape[1]) if whole else found.new_zeros(*mine.shape, found.shape[1]).index_put((mine,), found)


def _costs(
    term: Term, cost: Cost, said: Tensor, target: Tensor, batch: Trajectories, name: str, planning: Planning, discount: float
) -> tuple[Tensor, Record]:
    """[B,T] what members [critics,K,B,T,C] cost that aim at [K,B,T]."""
    error = said[..., 0] - target
    loss, facts = cost.fit(said, error)
    if cost.weighs:
        known = batch.planned.get(f"{name}/{EPISTEMIC}")
        weight = _weights(term, cost, said.detach(), error.detach(), batch, planning, discount) if known is None else known
        loss = loss + weight.movedim(-1, 0) * cost.size(error)
    total = loss.sum(0)
    told = {"value": said[..., 0].mean(1), "target": target.mean(0), "loss": total, "error": error}
    return total, Record.of(name, shapes=("error", *facts), **told, **facts)


@dataclass(frozen=True)
class MembersRegression(Regression):
    """The cost of the errors of critics of K members each: q [critics·K,B,T] against y [K,B,T], a target for each member."""

    cost: Cost = field(kw_only=True)
    target: Bootstrapped = field(kw_only=True)

    @property
    def spans(self) -> bool:
        return self.cost.weighs

    def _said(self, now: Evaluation) -> Tensor:
        return now.action_values(self.of).unflatten(0, (-1, self.cost.members))

    def planned_now(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> dict[str, Tensor]:
        if not self.cost.weighs:
            return {}
        said = self._said(now)
        error = said[..., 0] - self.target(now, batch, planning)
        return {EPISTEMIC: _weights(self, self.cost, said, error, batch, planning, self.target.discount)}

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        target = self.target(now, batch, planning)
        said = self._said(now)
        if said.shape[1:-1] != target.shape:
            raise InputError(f"'{self.of}' gives {list(said.shape[1:-1])} but its targets are {list(target.shape)}; they must be equal")
        return _costs(self, self.cost, said, target, batch, name, planning, self.target.discount)


@dataclass(frozen=True)
class MembersValueLoss(ValueLoss):
    """The cost of the errors of K members of a critic of states, each against its own target: its raw GAE + V_old, of its own values."""

    cost: Cost = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.clip is not None:
            raise InputError("algorithm.value_clip is given, but a critic of this kind has no squared error to clip; accepted: null")

    @property
    def spans(self) -> bool:
        return self.cost.weighs

    def prepared(self, batch: Trajectories, planning: Planning) -> dict[str, Tensor]:
        value, after = (batch.require(name, "a critic with members") for name in (MEMBERS, MEMBERS_AFTER))
        live = batch.mask.unsqueeze(-1)
        value, after = torch.where(live, value, 0), torch.where(live, after, 0)
        return {"target": self.gae.of_members(batch, value, after) + value}

    def _said(self, now: Evaluation) -> Tensor:
        if now.values is None:
            raise InputError("a critic with members needs a policy whose critic has them: algorithm.critic says how many")
        return now.values.movedim(2, 0).unsqueeze(0)

    def planned_now(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> dict[str, Tensor]:
        if not self.cost.weighs:
            return {}
        said = self._said(now)
        error = said[..., 0] - batch.require(f"{name}/target", "a critic with members").movedim(-1, 0)
        return {EPISTEMIC: _weights(self, self.cost, said, error, batch, planning, self.gae.gamma)}

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        target = batch.require(f"{name}/target", "a critic with members").movedim(-1, 0)
        return _costs(self, self.cost, self._said(now), target, batch, name, planning, self.gae.gamma)
