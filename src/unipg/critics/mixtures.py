"""Mixtures of experts: expectations over a mixture's components, the router's loss, and a critic of actions that ranks for it.

Source: arXiv 2104.09122 and its authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn.functional import one_hot

from unipg.critics.values import Expectation, Value
from unipg.estimator.advantages import GAE, Planning
from unipg.estimator.likelihoods import Ranks, Substituted, Valued
from unipg.estimator.parts import Joint, furthest
from unipg.estimator.policy_gradient import Record, Term
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Trajectories

Update = Literal["max", "all"]
SHOWN = 4
"""Most dimensions of an action that records tell of."""


@dataclass(frozen=True)
class Components(Expectation):
    """f of one fresh action of each component: of that which the advantage `by` finds best (`max`, the others get no gradient), or the
    mean of all (`all`). `mixture`: a log-probability is that of the whole mixture and not of the component alone."""

    draws: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"mixture"})
    by: Value
    update: Update = "max"
    mixture: bool = False

    def ranks(self, at: str) -> Ranks:
        return frozenset({(at, self.by)}) if self.update == "max" else frozenset()

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Float[Tensor, "B T"]:
        if self.update == "all":
            return value(now.components(at, self.mixture)).mean(-1)
        return value(now.component(at, now.winner(at, self.by), self.mixture))


@dataclass(frozen=True)
class Routed(Expectation):
    """f at a fresh action of the component that the router draws."""

    draws: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"mixture"})
    mixture: bool = False

    def __call__(self, value: Valued, now: Evaluation, at: str) -> Float[Tensor, "B T"]:
        return value(now.component(at, None, self.mixture))


@dataclass(frozen=True)
class Through(Substituted):
    """∇_theta of an expectation as it is taken: `Pathwise`, where there are several fresh actions to choose among."""

    draws: ClassVar[bool] = True
    over: Expectation

    @property
    def ranks(self) -> Ranks:
        return self.over.ranks("observation")

    def expected(self, value: Valued, now: Evaluation, at: str = "observation") -> Float[Tensor, "B T"]:
        return self.over(value, now, at)


@dataclass(frozen=True)
class Frequencies(Term):
    """(1/K) · Σ_i (v_i − w_i)², v = 1 for the component whose fresh action the advantage `by` finds best, 0 for the others, detached.

    Of one state least where w_i is how often component i wins; ∂/∂logits = (2/K) · (diag(w) − w wᵀ) · (w − v).
    """

    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    by: Value = field(kw_only=True)

    @property
    def differentiates(self) -> frozenset[str]:
        return frozenset({"observation"})

    @property
    def noise(self) -> frozenset[str]:
        return frozenset({"observation"})

    @property
    def ranks(self) -> Ranks:
        return frozenset({("observation", self.by)})

    def symbol(self) -> str:
        return f"w → how often each component wins by {self.by.symbol()}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        w = now.router("observation").exp()
        won = one_hot(now.winner("observation", self.by), w.shape[-1]).to(w.dtype)
        drawn = now.components("observation").action.detach()  # type: ignore[attr-defined]
        facts: dict[str, Any] = {}
        for k in range(w.shape[-1]):
            facts |= {f"share_{k}": w[..., k], f"won_{k}": won[..., k]}
            facts |= {f"action_{k}_{d}": drawn[:, k, d] for d in range(min(SHOWN, drawn.shape[-1]))}
        return (won - w).square().mean(-1), Record.of(name, **facts)


@dataclass(frozen=True)
class ReturnOfActions(Term):
    """½ Σ_k (q_k(s, a) − target)² of the network `of` at the actions that were taken, target = raw GAE advantage + V_old; detached."""

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    of: str = field(kw_only=True)
    gae: GAE = field(default=GAE(), kw_only=True)

    @property
    def reach(self) -> Joint:
        return furthest((super().reach, self.gae.reach))

    def symbol(self) -> str:
        return f"{self.of} → {self.gae.symbol()} + V_old"

    def prepared(self, batch: Trajectories, planning: Planning) -> dict[str, Tensor]:
        return {"target": self.gae.raw(batch) + batch.require("value", "ReturnOfActions")}

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        values, target = now.action_value(self.of), batch.require(f"{name}/target", "ReturnOfActions")
        loss = 0.5 * (values - target).square().sum(0)
        return loss, Record.of(name, value=values, target=target, loss=loss)
