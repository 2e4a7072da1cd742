"""Critics for physical time steps: what of their training survives dt → 0, for any actor (arXiv 2108.06655).

A step is `dt` long, its reward is a rate times dt, and what comes after it is discounted by e^{−beta dt}. Decays are per unit of time: a
trace keeps its length in time as dt shrinks. Critics of states are trained on the windows of a batch, whose ends have the value of before
the update for a payoff; the weight e^{−beta t} of the time since the start, in whose place any positive one will do, is left out.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from unipg.critics.continuous import Weighting, check_decay, check_rate, check_step
from unipg.critics.kinds.base import Critic, Judged, register_kind
from unipg.critics.regression import Bootstrapped, Loss, Regression
from unipg.critics.residual import MomentLoss, ResidualLoss, ResidualRegression
from unipg.critics.values import Greedy, Reduction, Value
from unipg.errors import InputError
from unipg.estimator import GAE, Advantage, Term, ValueLoss
from unipg.estimator.advantages import generalized_advantage, rewards_per_step
from unipg.estimator.aggregation import Aggregate, TokenMean
from unipg.trajectories import Trajectories


@dataclass(frozen=True)
class AdvantageRate(GAE):
    """Generalised advantage over `dt`: per unit of time, so that a mean over steps keeps its size as they shrink."""

    dt: float = 1.0

    def raw(self, batch: Trajectories) -> Tensor:
        return super().raw(batch) / self.dt


@dataclass(frozen=True)
class ContinuousCritic(Critic):
    """Base class.

    The actor reads ∑_{j≥k} (trace · e^{−beta})^{t_j − t_k} delta_j / dt, an advantage rate; with `trace` 0 it is delta_k / dt, that of the
    policy gradient of arXiv 2111.11232, theorem 2, whose variance grows as 1/dt.
    """

    judges: ClassVar[tuple[Judged, ...]] = ("states",)
    dt: float = 1.0
    """Length of a step, in any unit of time; 1: the step itself is the unit."""
    beta: float | None = None
    """Discount rate per unit of time; e^{−beta dt} then takes the place of the algorithm's discount per step. null: that one."""
    trace: float = 0.5
    """Decay per unit of time of the increments that the actor's advantage sums, in place of the algorithm's lam; 0: the next one alone."""

    def __post_init__(self) -> None:
        check_step(self.dt, "algorithm.critic.dt")
        if self.beta is not None:
            check_rate(self.beta, "algorithm.critic.beta")
        if not 0 <= self.trace <= 1:
            raise InputError(f"algorithm.critic.trace is {self.trace}; accepted: a decay per unit of time in [0, 1]")

    def discount(self, gamma: float) -> float:
        return gamma if self.beta is None else math.exp(-self.beta * self.dt)

    def per_step(self, decay: float) -> float:
        """A decay per unit of time, per step."""
        return decay**self.dt if decay else 0.0

    def advantage(self, gae: GAE) -> Advantage:
        given = {f.name: getattr(gae, f.name) for f in dataclasses.fields(gae)}
        return AdvantageRate(**given | {"gamma": self.discount(gae.gamma), "lam": self.per_step(self.trace)}, dt=self.dt)

    def target(self, gae: GAE, lam: float) -> GAE:
        """What a critic of states regresses on, with a decay per unit of time."""
        return dataclasses.replace(gae, gamma=self.discount(gae.gamma), lam=self.per_step(lam))

    def metrics(self, batch: Trajectories, gamma: float) -> dict[str, float]:
        """Of the increments delta of the values with which a batch was collected: their mean over dt, which is 0 where the values are
        right, and their mean square over dt, the quadratic variation per unit of time, which does not vanish with dt."""
        if batch.value is None or not bool(batch.mask.any()):
            return {}
        reward = rewards_per_step(batch).to(batch.value.dtype)
        ends = {"terminated": batch.terminated, "truncated": batch.truncated, "bootstrap_value": batch.bootstrap_value}
        delta = generalized_advantage(reward, batch.value, batch.mask, self.discount(gamma), 0.0, **ends)[batch.mask].double()  # type: ignore[arg-type]
        return {"critic/drift": float(delta.mean()) / self.dt, "critic/variation": float((delta**2).mean()) / self.dt}


@register_kind
@dataclass(frozen=True)
class Martingale(ContinuousCritic):
    """½ (V − G)², G what came until the window's end: the martingale loss, gradient Monte-Carlo."""

    kind: Literal["martingale"] = field(default="martingale", kw_only=True, repr=False)

    def state_loss(self, gae: GAE, *, clip: float | None = None, aggregate: Aggregate = TokenMean()) -> Term:
        return ValueLoss(gae=self.target(gae, 1.0), clip=clip, aggregate=aggregate)


@register_kind
@dataclass(frozen=True)
class CTD0(ContinuousCritic):
    """CTD(0), orthogonality to the value's own gradient: ½ (V − (r + e^{−beta dt} V'))², V' fixed. Of actions: the usual target."""

    judges: ClassVar[tuple[Judged, ...]] = ("states", "actions")
    kind: Literal["ctd0"] = field(default="ctd0", kw_only=True, repr=False)

    def state_loss(self, gae: GAE, *, clip: float | None = None, aggregate: Aggregate = TokenMean()) -> Term:
        return ValueLoss(gae=self.target(gae, 0.0), clip=clip, aggregate=aggregate)

    def regression(self, of: str, target: Bootstrapped, loss: Loss = "squared") -> Regression:
        return Regression(of=of, target=dataclasses.replace(target, discount=self.discount(target.discount)), loss=loss)


@register_kind
@dataclass(frozen=True)
class CTDLambda(ContinuousCritic):
    """CTD(lam), orthogonality to the decayed sum of the value's gradients: by its forward view ½ (V − G_lam)², lam per unit of time."""

    lam: float = 0.5
    """Decay of the trace per unit of time, in (0, 1]; not per step, by which it would vanish as dt → 0."""
    kind: Literal["ctd_lambda"] = field(default="ctd_lambda", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay(self.lam, "algorithm.critic.lam")

    def state_loss(self, gae: GAE, *, clip: float | None = None, aggregate: Aggregate = TokenMean()) -> Term:
        return ValueLoss(gae=self.target(gae, self.lam), clip=clip, aggregate=aggregate)


@register_kind
@dataclass(frozen=True)
class MSTDE(ContinuousCritic):
    """½ (r + e^{−beta dt} V' − V)² with the gradient of both values: the baseline that is wrong where dynamics are noisy, the more the
    finer the steps; right where they are not. Of actions: of the networks themselves, their lagged copies are not read."""

    judges: ClassVar[tuple[Judged, ...]] = ("states", "actions")
    kind: Literal["mstde"] = field(default="mstde", kw_only=True, repr=False)

    def state_loss(self, gae: GAE, *, clip: float | None = None, aggregate: Aggregate = TokenMean()) -> Term:
        return ResidualLoss(gae=self.target(gae, 0.0), clip=clip, aggregate=aggregate, name="value_loss")

    def target_value(self, of: str, reduction: Reduction = "min") -> Value:
        return super().target_value(of.removesuffix("_lagged"), reduction)

    def greedy(self, by: str) -> Greedy:
        return super().greedy(by.removesuffix("_lagged"))

    def regression(self, of: str, target: Bootstrapped, loss: Loss = "squared") -> Regression:
        discount = self.discount(target.discount)
        return ResidualRegression(of=of, target=dataclasses.replace(target, discount=discount), name="regression")


@register_kind
@dataclass(frozen=True)
class GMM(ContinuousCritic):
    """½ m₁^T A m₂: moments of increments with functions of the state, from two independent halves of the rows of an optimiser step."""

    tests: int = 64
    """Test functions beside the constant: random Fourier features of the observation."""
    weighting: Weighting = "inverse"
    """A: inverse, of the test functions' second moment, or identity."""
    kind: Literal["gmm"] = field(default="gmm", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tests < 1:
            raise InputError(f"algorithm.critic.tests is {self.tests}; accepted: 1 or more")

    def state_loss(self, gae: GAE, *, clip: float | None = None, aggregate: Aggregate = TokenMean()) -> Term:
        gae = self.target(gae, 0.0)
        return MomentLoss(gae=gae, clip=clip, aggregate=aggregate, tests=self.tests, weighting=self.weighting, name="value_loss")
