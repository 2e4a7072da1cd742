"""Policies that learn from the data's states alone, at actions of a policy of their own; and how several are kept apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unipg.critics.regression import REPLAYED
from unipg.estimator.advantages import Planning
from unipg.estimator.likelihoods import gaussian_kl, gaussian_log_densities
from unipg.estimator.parts import Joint
from unipg.estimator.policy_gradient import PolicyGradient, Record, Term
from unipg.trajectories import Evaluation, Source, Trajectories

OLD = "old_log_prob"


@dataclass(frozen=True)
class Redrawn(PolicyGradient):
    """The formula at the stored states and one action in each of the network `by`, by planned noise; its log-probability is the old one.

    On policy in actions, though the states are those of the data. Source: arXiv 2311.03351.
    """

    rows: tuple[Source, ...] = REPLAYED
    by: str = field(kw_only=True)

    @property
    def reads(self) -> frozenset[str]:
        return super().reads - {OLD}

    @property
    def noise(self) -> frozenset[str]:
        return super().noise | {"observation"}

    def _there(self, now: Evaluation, batch: Trajectories) -> tuple[Evaluation, Trajectories]:
        old = now.fresh("observation", self.by).log_prob.detach()
        drawn = batch.replace(action=now.fresh_action("observation", self.by).detach(), old_log_prob=old)
        return now.over(drawn), drawn

    def planned_now(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> dict[str, Tensor]:
        return super().planned_now(*self._there(now, batch), name, planning)

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        return super().per_token(*self._there(now, batch), name, planning)


@dataclass(frozen=True)
class Apart(Term):
    """−weight · KL(pi_of(·|s) ‖ pi_j(·|s)), j that of the networks `others` which finds the stored action likeliest; in closed form, of
    Gaussians that nothing squashes.

    Source: arXiv 2311.03351, section 3.2, with the KL summed over dimensions.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    of: str = field(kw_only=True)
    others: tuple[str, ...] = field(kw_only=True)

    def symbol(self) -> str:
        return f"−KL({self.of} ‖ the others' likeliest)"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        with torch.no_grad():
            mean, log_std = (torch.stack(each) for each in zip(*(self._moments(now, other, batch) for other in self.others), strict=True))
            found = gaussian_log_densities(mean, log_std, batch.action.to(mean.dtype).expand_as(mean)).sum(-1)
            nearest = found.argmax(0)[None, ..., None].expand_as(mean[:1])
            theirs = mean.gather(0, nearest)[0], log_std.gather(0, nearest)[0]
        divergence = gaussian_kl(*self._moments(now, self.of, batch), *theirs)
        return -divergence, Record.of(name, divergence=divergence)

    @staticmethod
    def _moments(now: Evaluation, of: str, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """[B,T,A] mean and log_std, finite everywhere."""
        mean, std = now.gaussian(of)
        return mean, torch.where(batch.mask.unsqueeze(-1), std, 1.0).log()
