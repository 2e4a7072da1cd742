"""Terms of a critic's increments delta = r + discount · V(s') − V(s), differentiated through both values.

½ delta² is the baseline that fails: in a stochastic world its mean is half the variance of what follows beside the squared Bellman error,
and the finer the steps, the more of the former. Its cure are products of means: moments. Sources: Baird 1995 (residual gradient);
arXiv 2108.06655 (what both are in continuous time).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unipg.critics.continuous import Weighting
from unipg.critics.regression import Bootstrapped, Regression, beyond_ends
from unipg.errors import InputError
from unipg.estimator import ValueLoss
from unipg.estimator.advantages import Planning, rewards_per_step, values_after
from unipg.estimator.parts import Joint
from unipg.estimator.policy_gradient import Record
from unipg.seeding import generator
from unipg.trajectories import Evaluation, Trajectories

PULL = "pull"
"""Planned [B,T]: what the gradient of a step's increment is multiplied by, from the moments of the other half of the rows."""
RIDGE = 1e-3
"""Share of the mean second moment of test functions that is added to each: many of them say nearly the same."""


@dataclass(frozen=True)
class IncrementLoss(ValueLoss):
    """Base class: of the increments delta_t = r_t + gamma V_{t+1} − V_t of the critic as it is, along each row, with their graph. What
    follows the last step of a row that goes on elsewhere is `bootstrap_value`."""

    joint: ClassVar[Joint] = "row"

    def __post_init__(self) -> None:
        if self.clip is not None:
            raise InputError("algorithm.value_clip is given, but a critic of this kind has no target to clip to; accepted: null")

    def prepared(self, batch: Trajectories, planning: Planning) -> dict[str, Tensor]:
        return {"reward": rewards_per_step(batch)}

    def increments(self, now: Evaluation, batch: Trajectories, name: str) -> Tensor:
        """[B,T], 0 where the policy did not act."""
        if now.value is None:
            raise InputError(f"{type(self).__name__} needs a policy with a critic")
        after = values_after(
            now.value, batch.mask, terminated=batch.terminated, truncated=batch.truncated, bootstrap_value=batch.bootstrap_value
        )
        reward = batch.require(f"{name}/reward", type(self).__name__).to(now.value.dtype)
        return torch.where(batch.mask, reward + self.gae.gamma * after - now.value, 0)


@dataclass(frozen=True)
class ResidualLoss(IncrementLoss):
    """½ delta_t² of a critic of states."""

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        return 0.5 * self.increments(now, batch, name) ** 2, None


@dataclass(frozen=True)
class MomentLoss(IncrementLoss):
    """½ m₁^T A m₂, m the means of xi(s) · delta over the steps of every other group (a row each, by default), A = (E xi xi^T)^{−1} or 1.

    The halves are independent, so no variance of delta comes in. xi: 1 and `tests` random Fourier features cos(w·s + b) of the observation
    in units of its standard deviation, w ~ N(0, 1): functions of the state alone, which any value's increments must be orthogonal to.
    Errors: `InputError` where one row alone has steps, and for observations that are not vectors.
    """

    least_rows: ClassVar[int] = 2
    tests: int = field(default=64, kw_only=True)
    weighting: Weighting = field(default="inverse", kw_only=True)

    @property
    def spans(self) -> bool:
        return True

    def planned_now(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> dict[str, Tensor]:
        return {PULL: self._pull(now, batch, name, planning)}

    @torch.no_grad()
    def _pull(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> Tensor:
        """[B,T] xi^T A m of the other half, in the scale of a mean over all steps: what an increment's gradient is multiplied by."""
        mine = self.taken(batch) & batch.rows_from(*self.rows).unsqueeze(1)
        delta = self.increments(now, batch, name)
        seen = batch.require("observation", "moments")
        if seen.ndim != 3:
            raise InputError(f"a critic by moments looks at vectors, but observations are {list(seen.shape[2:])}; accepted: another kind")
        seen = torch.where(mine.unsqueeze(-1), seen, 0).to(delta.dtype)
        count = planning.reduce(mine.sum().to(delta.dtype)).clamp_min(1)
        mean = planning.reduce(seen.sum((0, 1))) / count
        spread = (planning.reduce(torch.where(mine.unsqueeze(-1), (seen - mean) ** 2, 0).sum((0, 1))) / count).sqrt()
        source = generator(0, "moments", self.tests, seen.shape[-1])
        w = torch.randn(seen.shape[-1], self.tests, generator=source, dtype=torch.float64).to(seen)
        b = 2 * math.pi * torch.rand(self.tests, generator=source, dtype=torch.float64).to(seen)
        xi = torch.cos((seen - mean) / torch.where(spread > 0, spread, 1) @ w + b)
        xi = torch.where(mine.unsqueeze(-1), torch.cat([torch.ones_like(xi[..., :1]), xi], -1), 0)
        assert batch.group is not None
        live = mine.any(1)
        first = torch.zeros_like(live)  # of groups by their number, so that the order of rows decides nothing
        first[live] = batch.group[live].unique(return_inverse=True)[1] % 2 == 0
        first = first.unsqueeze(1)
        halves = [mine & first, mine & ~first]
        size = planning.reduce(torch.stack([half.sum() for half in halves]).to(delta.dtype))
        if float(size.sum()) == 0:
            return torch.zeros_like(delta)
        if not bool((size > 0).all()):
            raise InputError("a critic by moments compares two halves of the rows, but one row alone has steps; accepted: 2 rows or more")
        sums = [planning.reduce(torch.einsum("btl,bt->l", xi, torch.where(half, delta, 0))) for half in halves]
        a = torch.eye(xi.shape[-1], dtype=xi.dtype, device=xi.device)
        if self.weighting == "inverse":
            second = planning.reduce(torch.einsum("btl,btm->lm", xi, xi)) / count
            a = torch.linalg.inv(second + RIDGE * second.diagonal().mean() * a)
        other = torch.where(first.unsqueeze(-1), a @ sums[1], a @ sums[0]) / (2 * size[0] * size[1] / count)
        return torch.where(mine, (xi * other).sum(-1), 0)

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        pull = batch.planned.get(f"{name}/{PULL}")
        if pull is None:
            pull = self._pull(now, batch, name, planning)
        return pull * self.increments(now, batch, name), None


@dataclass(frozen=True)
class ResidualRegression(Regression):
    """sum_k ½ (q_k(s, a) − y)² of a critic of actions, with the gradient of y as well: its value must be of the network itself."""

    target: Bootstrapped = field(kw_only=True)

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        target = self.target.with_graph(*beyond_ends(now, batch), planning)
        values = now.action_value(self.of)
        error = values - target
        loss = 0.5 * (error * error).sum(0)
        return loss, Record.of(name, value=values, target=target.detach(), loss=loss)
