"""Directions: what becomes of a gradient before it is a step.

Belongs here: functions of flat vectors, with a state of their own. Does not belong here: networks, batches and loops; products with a
Fisher matrix or a Hessian are asked of the `Surface` that the loop hands over.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from unipg.errors import InputError, nearest
from unipg.estimator.parts import Joint, Part, Progress
from unipg.shapes import Float

State = dict[str, Any]
"""What a direction keeps from step to step: tensors and plain values, saved with the checkpoint."""
Curvature = Literal["product", "dice"]
"""How the Hessian of an expected loss is estimated from trajectories; see `HessianAided`."""
ENOUGH = 1e-10
"""Of the squared residual that conjugate gradients start with: what they stop at."""


class Surface(ABC):
    """A learner's loss around its weights `theta [D]`, on the batch of one optimiser step."""

    theta: Float[Tensor, " D"]
    """The iterate; the batch, and what is asked here without weights, may be of another point (`Direction.points`)."""
    told: dict[str, float]
    """What a direction has to tell of the step, by name."""

    @abstractmethod
    def gradient(self) -> Float[Tensor, " D"]:
        """Of the loss, which is minimised."""

    @abstractmethod
    def named(self) -> dict[str, Float[Tensor, " D"]]:
        """Of each term's loss, by the term's name."""

    @abstractmethod
    def loss(self, theta: Float[Tensor, " D"] | None = None) -> float:
        """The loss; at other weights where they are given."""

    @abstractmethod
    def divergence(self, theta: Float[Tensor, " D"]) -> float:
        """The mean KL of the policy as it is to that at other weights, KL(now ‖ theta), over the batch."""

    @abstractmethod
    def fisher(self, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """F · vector, F the Hessian of `divergence` at the weights as they are."""

    @abstractmethod
    def hessian(self, vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        """H · vector, H the Hessian of the loss on this batch."""

    @abstractmethod
    def expected_hessian(self, vector: Float[Tensor, " D"], estimate: Curvature) -> Float[Tensor, " D"]:
        """B · vector, E[B] the Hessian of the EXPECTED loss: which trajectories there are depends on the weights too."""


@dataclass(frozen=True)
class Direction(Part):
    """Base class. A call gives what the optimiser is handed as the gradient, or, where `owns_step`, the step itself."""

    joint: ClassVar[Joint] = "step"
    owns_step: ClassVar[bool] = False
    """Whether its result is added to the weights as it is: no optimiser, no clipping, no learning rate."""
    once: ClassVar[bool] = False
    """Whether every batch must be used for exactly one step."""
    displaces: ClassVar[bool] = False
    """Whether batches are collected at other points than the iterate (`points`)."""
    reads_kl: ClassVar[bool] = False
    """Whether it asks for `divergence` or `fisher`."""
    reads_hessian: ClassVar[bool] = False
    """Whether it asks for second derivatives of log-probabilities."""

    def start(self, theta: Float[Tensor, " D"]) -> State:
        """Its state before the first step."""
        return {}

    def points(self, theta: Float[Tensor, " D"], state: State, draw: torch.Generator) -> tuple[Float[Tensor, " D"] | None, ...]:
        """Where each batch of the next step is collected and differentiated, None for the iterate, `theta`; the first one trains the other
        learners too. `draw`: what is random in it."""
        return (None,)

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        """`surfaces`: one for each of its `points`. Changes `state` at its very end: a surface may refuse its gradient."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Plain(Direction):
    """The gradient itself."""

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        return surfaces[0].gradient()


@dataclass(frozen=True)
class Orthogonal(Direction):
    """The sum of the gradients of all terms, that of `back` without its part along that of `along`:

        g = Σ g_i − <g_along, g_back> / max(<g_along, g_along>, 1e-10) · g_along

    over all parameters as one vector. The optimiser is handed g. Source: arXiv 2402.00348, section 3.
    Errors: `InputError` for a name that no term has.
    """

    along: str = "forward"
    back: str = "backward"

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        surface = surfaces[0]
        found = surface.named()
        for name in (self.along, self.back):
            if name not in found:
                raise InputError(f"Orthogonal asks for the term '{name}'; {nearest(name, found)}")
        along, back = found[self.along], found[self.back]
        share = torch.dot(along, back) / torch.dot(along, along).clamp_min(1e-10)
        lengths = torch.linalg.vector_norm(along) * torch.linalg.vector_norm(back)
        surface.told["cosine"] = float(torch.dot(along, back) / lengths) if bool(lengths > 0) else 0.0
        return torch.stack(list(found.values())).sum(0) - share * along


# ---------------------------------------------------------------------------------------------------- natural gradient


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], target: Float[Tensor, " D"], iterations: int, enough: float = ENOUGH
) -> Float[Tensor, " D"]:
    """x of A·x = target by conjugate gradients, A symmetric and not negative, given by its products. Starts at 0.

    Ends after `iterations`, when the squared residual is `enough` of what it was, or where a direction has no curvature left (A·p·p is 0,
    negative or not finite): x is then what was found before. A target of 0 gives 0.
    """
    x = torch.zeros_like(target)
    residual = target.clone()
    along = residual.clone()
    square = first = torch.dot(residual, residual)
    for _ in range(iterations):
        if not float(square) > enough * float(first):
            break
        image = product(along)
        curvature = torch.dot(along, image)
        if not (float(curvature) > 0 and math.isfinite(float(curvature))):
            break
        length = square / curvature
        x = x + length * along
        residual = residual - length * image
        before, square = square, torch.dot(residual, residual)
        along = residual + (square / before) * along
    return x


@dataclass(frozen=True)
class Natural(Direction):
    """The natural gradient inside a trust region, by conjugate gradients and a line search.

        x = (F + damping·I)⁻¹ (−g),   step = shrink^k · sqrt(2 max_kl / xᵀ(F + damping·I)x) · x

    F: the Fisher matrix of the batch, never formed. k: the smallest of 0 … tries − 1 at which the batch's mean KL(now ‖ after) is at most
    `max_kl` and the loss is lower; where there is none, no step, and the weights stay the same to the last bit.
    `promised`: instead, the smallest k at which the loss has fallen by more than that share of what its gradient promises, −gᵀstep,
    whatever the KL (the code of arXiv 2311.08384, and of many before it).
    Source: Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
    """

    owns_step: ClassVar[bool] = True
    reads_kl: ClassVar[bool] = True
    max_kl: float = 0.01
    damping: float = 0.1
    iterations: int = 15
    shrink: float = 0.8
    tries: int = 10
    promised: float | None = None

    def __post_init__(self) -> None:
        if self.promised is not None and not 0 <= self.promised < 1:
            raise InputError(f"Natural.promised is {self.promised}; accepted: a share in [0, 1), or None for a bound on the KL")
        if not (self.max_kl > 0 and math.isfinite(self.max_kl)):
            raise InputError(f"Natural.max_kl is {self.max_kl}; accepted: a finite number above 0")
        if not (self.damping >= 0 and math.isfinite(self.damping)):
            raise InputError(f"Natural.damping is {self.damping}; accepted: a finite number of 0 or more")
        if not 0 < self.shrink < 1:
            raise InputError(f"Natural.shrink is {self.shrink}; accepted: a number between 0 and 1, without these")
        for name in ("iterations", "tries"):
            if getattr(self, name) < 1:
                raise InputError(f"Natural.{name} is {getattr(self, name)}; accepted: 1 or more")

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        surface = surfaces[0]

        def curved(vector: Tensor) -> Tensor:
            return surface.fisher(vector) + self.damping * vector

        gradient = surface.gradient()
        x = conjugate_gradients(curved, -gradient, self.iterations)
        nothing = torch.zeros_like(x)
        square = float(torch.dot(x, curved(x))) if bool(x.any()) else 0.0
        surface.told |= {"trust_region/kl": 0.0, "trust_region/backtracks": float(self.tries), "trust_region/rejected": 1.0}
        if not (square > 0 and math.isfinite(square)):
            return nothing
        step = math.sqrt(2 * self.max_kl / square) * x
        before, slope = surface.loss(), float(torch.dot(gradient, step))
        for tried in range(self.tries):
            after = surface.theta + step
            fallen = before - surface.loss(after)
            enough = fallen > 0 if self.promised is None else fallen > max(0.0, -self.promised * slope * self.shrink**tried)
            if enough and ((kl := surface.divergence(after)) <= self.max_kl or self.promised is not None):
                surface.told |= {"trust_region/kl": kl, "trust_region/backtracks": float(tried), "trust_region/rejected": 0.0}
                return step
            step = self.shrink * step
        return nothing


# ---------------------------------------------------------------------------------------------------- recursive momentum


def check_schedule(who: str, step: float, momentum: float) -> None:
    if not (step > 0 and math.isfinite(step)):
        raise InputError(f"{who}.step is {step}; accepted: a finite number above 0")
    if not 0 < momentum <= 1:
        raise InputError(f"{who}.momentum is {momentum}; accepted: a number above 0, at most 1")


def decayed(first: float, count: int, power: float) -> float:
    """first · (2 / (count + 2))^power: `first` at 0."""
    return first * (2 / (count + 2)) ** power


@dataclass(frozen=True)
class Recursive(Direction):
    """Base class of directions d that remember: d_0 is the first gradient, and each step is at most `step` · (2/(t+2))^step_power long.

    Kept: t, the previous iterate, d, and how many steps were 0 because d was.
    """

    owns_step: ClassVar[bool] = True
    once: ClassVar[bool] = True
    displaces: ClassVar[bool] = True
    step: float = 0.1
    momentum: float = 1.0

    def __post_init__(self) -> None:
        check_schedule(type(self).__name__, self.step, self.momentum)

    def start(self, theta: Float[Tensor, " D"]) -> State:
        return {"count": 0, "previous": theta.clone(), "direction": torch.zeros_like(theta), "zero": 0}

    def _moved(self, d: Tensor, length: float, normalised: bool, surface: Surface, state: State) -> Tensor:
        """−length · d, or that of d / ‖d‖; what is kept of it."""
        norm = float(torch.linalg.vector_norm(d))
        zero = state["zero"] + (norm == 0)
        state |= {"count": state["count"] + 1, "previous": surface.theta.clone(), "direction": d, "zero": zero}
        if zero:
            surface.told["steps/zero"] = float(zero)
        surface.told["direction_norm"] = norm
        if norm == 0:
            return torch.zeros_like(d)
        return -length / norm * d if normalised else -length * d


@dataclass(frozen=True)
class Transported(Recursive):
    """Normalised momentum whose gradients come from a look-ahead point (implicit gradient transport): N-PG-IGT.

        θ̃_t = θ_t + (1 − η_t)/η_t · (θ_t − θ_{t−1}),   d_t = (1 − η_t) d_{t−1} + η_t g(θ̃_t),   θ_{t+1} = θ_t − γ_t d_t / ‖d_t‖
        η_t = momentum · (2/(t+2))^momentum_power,   γ_t = step · (2/(t+2))^step_power

    g: the gradient of the loss, from a batch that was sampled at θ̃_t. On a quadratic without noise d_t is the gradient at θ_t, exactly.
    Source: Fatkhullin et al. 2023 (arXiv 2302.01734), algorithm 1; powers as in the authors' code.
    """

    momentum_power: float = 0.8
    step_power: float = 1.0

    def points(self, theta: Float[Tensor, " D"], state: State, draw: torch.Generator) -> tuple[Float[Tensor, " D"] | None, ...]:
        eta = decayed(self.momentum, state["count"], self.momentum_power)
        if state["count"] == 0 or eta == 1:
            return (None,)
        return (theta + (1 - eta) / eta * (theta - state["previous"]),)

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        count, gradient = state["count"], surfaces[0].gradient()
        eta = decayed(self.momentum, count, self.momentum_power)
        d = gradient if count == 0 else (1 - eta) * state["direction"] + eta * gradient
        return self._moved(d, decayed(self.step, count, self.step_power), True, surfaces[0], state)


@dataclass(frozen=True)
class HessianAided(Recursive):
    """Momentum carried along by the Hessian on a random point of the last step: (N-)HARPG.

        θ̂_t = q θ_t + (1 − q) θ_{t−1}, q uniform in [0, 1];   v_t = B(θ̂_t) (θ_t − θ_{t−1})
        d_t = (1 − η_t)(d_{t−1} + v_t) + η_t g(θ_t),   η_t = momentum · (2/(t+2))^momentum_power
        θ_{t+1} = θ_t − γ_t d_t / ‖d_t‖, γ_t = step · 2/(t+2), where `normalised`; else θ_t − γ_t d_t, γ_t = step · sqrt(2/(t+2))

    g and B come from a batch each, sampled at θ_t and at θ̂_t; where v_t counts for nothing (t = 0, η_t = 1) there is no second batch.
    `hessian`: of trajectories with Φ = Σ_t Â_t log π(a_t|s_t), `product` is the paper's B = ∇²Φ + ∇Φ (Σ_t ∇log π(a_t|s_t))ᵀ; `dice` leaves
    out of it products of mean 0, those of an advantage with scores that come later (arXiv 1802.05098, 1909.10549): same mean, less noise.
    Source: Fatkhullin et al. 2023 (arXiv 2302.01734), algorithm 2; powers as in the authors' code.
    """

    joint: ClassVar[Joint] = "row"
    reads_hessian: ClassVar[bool] = True
    normalised: bool = True
    hessian: Curvature = "product"
    momentum_power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hessian not in get_args(Curvature):
            raise InputError(f"HessianAided.hessian '{self.hessian}' does not exist; {nearest(str(self.hessian), get_args(Curvature))}")

    def points(self, theta: Float[Tensor, " D"], state: State, draw: torch.Generator) -> tuple[Float[Tensor, " D"] | None, ...]:
        if state["count"] == 0 or decayed(self.momentum, state["count"], self.momentum_power) == 1:
            return (None,)
        share = float(torch.rand((), generator=draw, dtype=torch.float64))
        return None, share * theta + (1 - share) * state["previous"]

    def __call__(self, surfaces: Sequence[Surface], state: State, progress: Progress) -> Float[Tensor, " D"]:
        count, gradient = state["count"], surfaces[0].gradient()
        eta = decayed(self.momentum, count, self.momentum_power)
        d = gradient
        if len(surfaces) > 1:
            carried = surfaces[1].expected_hessian(surfaces[0].theta - state["previous"], self.hessian)
            d = (1 - eta) * (state["direction"] + carried) + eta * gradient
        length = decayed(self.step, count, 1.0 if self.normalised else 0.5)
        return self._moved(d, length, self.normalised, surfaces[0], state)
