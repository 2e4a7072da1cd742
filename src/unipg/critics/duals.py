"""Values of states that are learned from values of the actions that the data hold: what V is, of all that Q says of them.

Each shape is a loss of y = Q(s, a) − V(s) whose gradient reaches V alone: an expectile, or the dual of a regularised linear program over
visitations (arXiv 2302.08560). With any of them no action is ever asked for that the data do not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.critics.regression import REPLAYED, beyond_ends
from unipg.critics.values import largest
from unipg.errors import InputError
from unipg.estimator.advantages import Advantage, Planning
from unipg.estimator.parts import Joint, Part, furthest
from unipg.estimator.policy_gradient import Record, Term
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Source, Trajectories

TOP = "top"
"""Planned [B,T]: the largest exponent of an optimiser step (`Gumbel`)."""


def check_between(who: str, name: str, value: float, least: float = 0.0, most: float = 1.0) -> None:
    """Refuses what is not strictly between two numbers."""
    if not least < value < most:
        raise InputError(f"{who}.{name} is {value}; accepted: a number between {least:g} and {most:g}, without these")


@dataclass(frozen=True)
class Shape(Part):
    """Base class: a loss of y = Q − V, whose minimum over V says what V is of the values of a state's actions."""

    joint: ClassVar[Joint] = "step"

    def __call__(self, y: Float[Tensor, "K B T"], top: Tensor | None) -> Float[Tensor, "K B T"]:
        """With the graph to V. `top`: the largest exponent of the batch, of shapes that have one."""
        raise NotImplementedError(type(self).__name__)

    def exponent(self, y: Float[Tensor, "K B T"]) -> Float[Tensor, "K B T"] | None:
        """What is exponentiated, of shapes that do; None of the others."""
        return None


@dataclass(frozen=True)
class Expectile(Shape):
    """|tau − 1[y < 0]| · y²: V is the tau-expectile of Q over the data's actions, ½ their mean. Source: arXiv 2110.06169, eq. 5."""

    tau: float = 0.7

    def __post_init__(self) -> None:
        check_between("Expectile", "tau", self.tau)

    def __call__(self, y: Float[Tensor, "K B T"], top: Tensor | None) -> Float[Tensor, "K B T"]:
        return torch.where(y < 0, 1 - self.tau, self.tau) * y.square()


@dataclass(frozen=True)
class TotalVariation(Shape):
    """lambda · max(y, 0) − (1 − lambda) · y: V is the (2·lambda − 1)/lambda quantile of Q. At lambda ½ or less nothing bounds V from below.
    Source: arXiv 2302.08560, released code."""

    lam: float = 0.8

    def __post_init__(self) -> None:
        check_between("TotalVariation", "lam", self.lam, 0.5)

    def __call__(self, y: Float[Tensor, "K B T"], top: Tensor | None) -> Float[Tensor, "K B T"]:
        return self.lam * y.clamp_min(0) - (1 - self.lam) * y


@dataclass(frozen=True)
class ChiSquare(Shape):
    """lambda · max(y + y²/4, 0) − (1 − lambda) · y. Below y = −4 it rises again. Source: arXiv 2302.08560, released code."""

    lam: float = 0.8

    def __post_init__(self) -> None:
        check_between("ChiSquare", "lam", self.lam)

    def __call__(self, y: Float[Tensor, "K B T"], top: Tensor | None) -> Float[Tensor, "K B T"]:
        return self.lam * (y + 0.25 * y * y).clamp_min(0) - (1 - self.lam) * y


@dataclass(frozen=True)
class Gumbel(Shape):
    """e^{z−m} − z·e^{−m} − e^{−m},  z = min(y / temperature, clip),  m = max(max of the batch's z, −1), detached: the reverse KL.

    V is temperature · log E exp(Q / temperature) where nothing is clipped. m only scales the gradient, by e^{−m}, so that it stays finite.
    `clip`: None for none. Source: arXiv 2301.02328 (XQL), and 2302.08560, released code.
    Errors: `InputError` for differences that are not finite.
    """

    temperature: float = 1.0
    clip: float | None = 7.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"Gumbel.temperature is {self.temperature}; accepted: a finite number above 0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"Gumbel.clip is {self.clip}; accepted: above 0, or null for none")

    def exponent(self, y: Float[Tensor, "K B T"]) -> Float[Tensor, "K B T"]:
        z = y / self.temperature
        return z if self.clip is None else z.clamp_max(self.clip)

    def __call__(self, y: Float[Tensor, "K B T"], top: Tensor | None) -> Float[Tensor, "K B T"]:
        assert top is not None
        z = self.exponent(y)
        return (z - top).exp() - z * (-top).exp() - (-top).exp()


@dataclass(frozen=True)
class DualValue(Term):
    """weight · shape(toward(s, a) − v_k(s)), summed over the members of the network `of`; `toward` is detached, so Q gets no gradient."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    of: str = field(default="v", kw_only=True)
    toward: Advantage = field(kw_only=True)
    shape: Shape = field(kw_only=True)

    @property
    def reach(self) -> Joint:
        return furthest((super().reach, self.toward.reach))

    def symbol(self) -> str:
        return f"{self.of} → {self.toward.symbol()} by {self.shape.symbol()}"

    @property
    def spans(self) -> bool:
        return isinstance(self.shape, Gumbel)

    def _differences(self, now: Evaluation, batch: Trajectories, planning: Planning) -> Tensor:
        """[K,B,T]; 0 where nothing counts."""
        values = now.state_value(self.of)
        with torch.no_grad():
            toward = self.toward(batch, now, planning)
        y = toward - values
        return torch.where(self.taken(batch) & batch.rows_from(*self.rows).unsqueeze(1), y, 0)

    @torch.no_grad()
    def _top(self, y: Tensor, planning: Planning) -> Tensor:
        """[] m of the whole optimiser step."""
        exponent = self.shape.exponent(y)
        assert exponent is not None
        top = largest(exponent, planning)
        if top == math.inf or math.isnan(top):
            raise InputError(
                f"'{self.of}' is {top} away from its target by {self.shape.symbol()}: its exponential has no end; accepted: a larger "
                "temperature, a clip, or smaller rewards"
            )
        return y.new_tensor(max(top, -1.0))

    def planned_now(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> dict[str, Tensor]:
        if not self.spans:
            return {}
        return {TOP: self._top(self._differences(now, batch, planning), planning).expand(batch.mask.shape)}

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        y = self._differences(now, batch, planning)
        top = None
        if self.spans:
            top = batch.planned.get(f"{name}/{TOP}")
            top = self._top(y, planning) if top is None else top
        loss = self.shape(y, top).sum(0)
        return loss, Record.of(name, difference=y, loss=loss)


@dataclass(frozen=True)
class Level(Term):
    """weight · sum_k q_k(s, a): pushes values down, or with a weight below 0 up."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    of: str = field(default="q", kw_only=True)

    def symbol(self) -> str:
        return f"level of {self.of}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        values = now.action_value(self.of)
        return values.sum(0), Record.of(name, value=values)


@dataclass(frozen=True)
class Toward(Term):
    """weight · sum_k ½ (q_k(s, a) − value)²."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    of: str = field(default="q", kw_only=True)
    value: float = field(kw_only=True)

    def symbol(self) -> str:
        return f"{self.of} → {self.value:g}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        values = now.action_value(self.of)
        return 0.5 * (values - self.value).square().sum(0), Record.of(name, value=values)


@dataclass(frozen=True)
class Residual(Part):
    """delta = r + discount · (1 − terminated) · V_next(s') − V_here(s), [K,B,T] of each member, with the graph of what is differentiated.

    Where a step is the least of the members of the copy `lagged` stands, without graph; what is said of a terminal state, NaN included,
    counts for nothing.
    """

    joint: ClassVar[Joint] = "step"
    of: str = "v"
    lagged: str = "v_lagged"
    discount: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise InputError(f"discount is {self.discount}; accepted: a number in [0, 1]")

    def __call__(self, now: Evaluation, batch: Trajectories, *, here: str, after: str) -> Float[Tensor, "K B T"]:
        """`here`, `after`: which network says what s and s' are worth, the learned one or the copy."""
        return self.ahead(now, batch, after) - self._values(now, here)

    def ahead(self, now: Evaluation, batch: Trajectories, of: str) -> Float[Tensor, "K B T"]:
        if of == self.of:
            now, batch = beyond_ends(now, batch)
        ended = batch.require("terminated", "Residual")
        following = self._values(now.every("next_observation"), of).masked_fill(ended, 0)
        return batch.require("step_reward", "Residual") + self.discount * following

    def _values(self, now: Evaluation, of: str) -> Tensor:
        if of == self.of:
            return now.state_value(of)
        with torch.no_grad():
            return now.state_value(of).min(0, keepdim=True).values


Conjugate = Literal["chi_square", "reverse_kl"]


def conjugate(y: Tensor, divergence: Conjugate) -> Tensor:
    """f*(y): `chi_square` y·w − (w − 1)² with w = max(y/2 + 1, 0), which is y + y²/4 from −2 on and −1 below; `reverse_kl` exp(y − 1)."""
    if divergence == "reverse_kl":
        return (y - 1).exp()
    weight = (0.5 * y + 1).clamp_min(0)
    return y * weight - (weight - 1).square()


@dataclass(frozen=True)
class DualLoss(Term):
    """weight · mean over members of f*(delta), differentiated at s (`forward`), at s' (`backward`) or at both (`whole`); the other end is
    the lagged copy's. Source: arXiv 2402.00348, eq. 9 to 11, and released code."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "step_reward", "terminated"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    rows: tuple[Source, ...] = REPLAYED
    residual: Residual = field(kw_only=True)
    through: Literal["forward", "backward", "whole"] = field(kw_only=True)
    divergence: Conjugate = field(default="chi_square", kw_only=True)

    def symbol(self) -> str:
        return f"f*(r + {self.residual.discount:g} V(s') − V(s)) {self.through}, f {self.divergence}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        of, lagged = self.residual.of, self.residual.lagged
        here, after = {"forward": (of, lagged), "backward": (lagged, of), "whole": (of, of)}[self.through]
        delta = self.residual(now, batch, here=here, after=after)
        loss = conjugate(delta, self.divergence).mean(0)
        return torch.where(batch.mask, loss, 0), Record.of(name, residual=delta, loss=loss)


@dataclass(frozen=True)
class StateLevel(Term):
    """weight · mean over members of v_k(s)."""

    needs: ClassVar[frozenset[str]] = frozenset({"observation"})
    needs_log_prob: ClassVar[bool] = False
    joint: ClassVar[Joint] = "step"
    of: str = field(default="v", kw_only=True)

    def symbol(self) -> str:
        return f"level of {self.of}"

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        values = now.state_value(self.of)
        return values.mean(0), Record.of(name, value=values)


@dataclass(frozen=True)
class DualWeight(Advantage):
    """min(w(delta), most), the mean over members: w = max(delta, 0) (`relu`), or (f')⁻¹ = max(delta/2 + 1, 0) (`theory`).

    delta has the learned V at s and its lagged copy at s'. Source: arXiv 2402.00348, released code.
    """

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    needs: ClassVar[frozenset[str]] = frozenset({"observation", "next_observation", "step_reward", "terminated"})
    residual: Residual = Residual()
    weight: Literal["relu", "theory"] = "relu"
    most: float = 100.0

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        assert now is not None
        delta = self.residual(now, batch, here=self.residual.of, after=self.residual.lagged)
        return (delta if self.weight == "relu" else 0.5 * delta + 1).clamp(0, self.most).mean(0)
