"""Diffusions whose values are known: Brownian motion, Ornstein-Uhlenbeck, geometric Brownian motion, linear-quadratic control.

Each can be drawn exactly on any grid, or by Euler and Maruyama's steps: what differs between the two is the error of discretisation, what
remains is that of estimation. Values are those of the limit of small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.critics.continuous import Paths, Times
from unipg.errors import InputError, nearest
from unipg.shapes import Float

Scheme = Literal["exact", "euler"]


def annuity(rate: float, left: Tensor) -> Tensor:
    """∫_0^left e^{−rate s} ds."""
    return left if rate == 0 else -torch.expm1(-rate * left) / rate


@dataclass(frozen=True)
class Diffusion:
    """dX = b(X) dt + sigma(X) dW from X_0 to `horizon`, with rewards per unit of time, discounted at `beta`.

    Its value is the sum of its `features`, all of which are 0 at the horizon, and of `base`: a linear family that holds the truth at 1.
    """

    noises: ClassVar[int] = 1
    """Normal numbers of a step."""
    name: ClassVar[str]
    title: ClassVar[str]
    horizon: float = 1.0
    beta: float = 0.0

    def start(self, count: int, source: torch.Generator) -> Float[Tensor, " N"]:
        """X_0: 1 for all, unless it says otherwise."""
        return torch.ones(count, dtype=torch.float64)

    def step(self, x: Tensor, dt: Tensor, noise: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """X after dt, and the reward rate on the way there; `noise` [N,noises] standard normal."""
        raise NotImplementedError(type(self).__name__)

    def features(self, left: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Of the state and the time that is left."""
        raise NotImplementedError(type(self).__name__)

    def base(self, left: Tensor, x: Tensor) -> Tensor:
        """What of the value is not learned; at the horizon the payoff."""
        return torch.zeros_like(x)

    def value(self, left: Tensor, x: Tensor) -> Tensor:
        """J(horizon − left, x), exact."""
        return torch.stack(torch.broadcast_tensors(*self.features(left, x))).sum(0) + self.base(left, x)


@dataclass(frozen=True)
class BrownianMotion(Diffusion):
    """dX = sigma dW, reward x: J = x ∫_0^left e^{−beta s} ds."""

    name: ClassVar[str] = "bm"
    title: ClassVar[str] = "Brownian motion, reward x"
    sigma: float = 1.0
    x0: float = 0.0

    def start(self, count: int, source: torch.Generator) -> Tensor:
        return torch.full((count,), self.x0, dtype=torch.float64)

    def step(self, x: Tensor, dt: Tensor, noise: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        return x + self.sigma * dt.sqrt() * noise[:, 0], x

    def features(self, left: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return (x * annuity(self.beta, left),)


def drawn_back(x: Tensor, pull: float, sigma: float, dt: Tensor, noise: Tensor, scheme: Scheme) -> Tensor:
    """A step of dX = −pull X dt + sigma dW."""
    if scheme == "euler":
        return x - pull * x * dt + sigma * dt.sqrt() * noise
    return torch.exp(-pull * dt) * x + sigma * annuity(2 * pull, dt).sqrt() * noise


@dataclass(frozen=True)
class OrnsteinUhlenbeck(Diffusion):
    """dX = −pull X dt + sigma dW from N(0, 1), reward −x², payoff 0. With v = sigma²/(2 pull):

    J = −(x² − v) ∫_0^left e^{−(beta + 2 pull) s} ds − v ∫_0^left e^{−beta s} ds
    """

    name: ClassVar[str] = "ou"
    title: ClassVar[str] = "Ornstein-Uhlenbeck, reward −x²"
    beta: float = 0.5
    pull: float = 1.0
    sigma: float = 1.0

    def start(self, count: int, source: torch.Generator) -> Tensor:
        return torch.randn(count, generator=source, dtype=torch.float64)

    def step(self, x: Tensor, dt: Tensor, noise: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        return drawn_back(x, self.pull, self.sigma, dt, noise[:, 0], scheme), -(x**2)

    def features(self, left: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        own, still = annuity(self.beta + 2 * self.pull, left), self.sigma**2 / (2 * self.pull)
        return -(x**2) * own, -still * (annuity(self.beta, left) - own) * torch.ones_like(x)


@dataclass(frozen=True)
class GeometricBrownianMotion(Diffusion):
    """dX = drift X dt + sigma X dW from 1, reward x, payoff x: J = x ∫_0^left e^{(drift − beta) s} ds + x e^{(drift − beta) left}."""

    name: ClassVar[str] = "gbm"
    title: ClassVar[str] = "geometric Brownian motion, reward and payoff x"
    beta: float = 0.5
    drift: float = 0.1
    sigma: float = 0.4

    def step(self, x: Tensor, dt: Tensor, noise: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        shock = self.sigma * dt.sqrt() * noise[:, 0]
        if scheme == "euler":
            return x * (1 + self.drift * dt + shock), x
        return x * torch.exp((self.drift - self.sigma**2 / 2) * dt + shock), x

    def features(self, left: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return (x * annuity(self.beta - self.drift, left),)

    def base(self, left: Tensor, x: Tensor) -> Tensor:
        return x * torch.exp((self.drift - self.beta) * left)


@dataclass(frozen=True)
class LinearQuadratic(Diffusion):
    """dX = (a X + b u) dt + sigma dW, reward −(x² + cost u²), u ~ N(gain x, std²) drawn at each point and kept until the next.

    For small steps the noise of actions averages out of the state, but not of the cost: with pull = −(a + b gain), v = sigma²/(2 pull),
    J = −(1 + cost gain²) [(x² − v) ∫ e^{−(beta + 2 pull) s} ds + v ∫ e^{−beta s} ds] − cost std² ∫ e^{−beta s} ds.
    """

    noises: ClassVar[int] = 2
    name: ClassVar[str] = "lq"
    title: ClassVar[str] = "linear-quadratic control by a Gaussian policy"
    beta: float = 0.5
    a: float = 0.5
    b: float = 1.0
    cost: float = 0.2
    gain: float = -1.5
    std: float = 0.5
    sigma: float = 1.0

    def start(self, count: int, source: torch.Generator) -> Tensor:
        return torch.randn(count, generator=source, dtype=torch.float64)

    def step(self, x: Tensor, dt: Tensor, noise: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        action = self.gain * x + self.std * noise[:, 1]
        pushed = self.b * action * (dt if scheme == "euler" else annuity(-self.a, dt))
        return drawn_back(x, -self.a, self.sigma, dt, noise[:, 0], scheme) + pushed, -(x**2 + self.cost * action**2)

    def features(self, left: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        pull, scale = -(self.a + self.b * self.gain), 1 + self.cost * self.gain**2
        own, whole, still = annuity(self.beta + 2 * pull, left), annuity(self.beta, left), self.sigma**2 / (2 * pull)
        rest = scale * still * (whole - own) + self.cost * self.std**2 * whole
        return -scale * x**2 * own, -rest * torch.ones_like(x)


DIFFUSIONS: dict[str, Callable[[], Diffusion]] = {
    kind.name: kind for kind in (BrownianMotion, OrnsteinUhlenbeck, GeometricBrownianMotion, LinearQuadratic)
}


def diffusion_named(name: str) -> Diffusion:
    """One of the four at its defaults. Errors: `InputError` for a name that does not exist."""
    if name not in DIFFUSIONS:
        raise InputError(f"diffusion '{name}' does not exist; {nearest(name, DIFFUSIONS)}")
    return DIFFUSIONS[name]()


@dataclass(frozen=True)
class Drawn:
    """Paths of a diffusion with what stands along them: states, time that is left, features, base and exact values, all [N,K+1,…]."""

    of: Diffusion
    paths: Paths
    state: Float[Tensor, "N K1"]

    @property
    def left(self) -> Tensor:
        """[1,K+1]"""
        return (self.of.horizon - self.paths.times.points).clamp_min(0).unsqueeze(0)

    @property
    def features(self) -> Tensor:
        """[N,K+1,L]"""
        return torch.stack(torch.broadcast_tensors(*self.of.features(self.left, self.state)), -1)

    @property
    def base(self) -> Tensor:
        return self.of.base(self.left, self.state)

    @property
    def value(self) -> Tensor:
        return self.of.value(self.left, self.state)


def draw(diffusion: Diffusion, times: Times, count: int, source: torch.Generator, scheme: Scheme = "exact") -> Drawn:
    """`count` paths on a grid that ends at the horizon. Errors: `InputError` for fewer than one, or a grid that ends elsewhere."""
    if count < 1:
        raise InputError(f"paths is {count}; accepted: 1 or more")
    if not math.isclose(float(times.points[-1]), diffusion.horizon, rel_tol=1e-9):
        raise InputError(f"the grid ends at {float(times.points[-1]):g}, but the horizon is {diffusion.horizon:g}; they must be equal")
    x = diffusion.start(count, source)
    states, rates = [x], []
    for dt in times.dt:
        x, rate = diffusion.step(x, dt, torch.randn(count, diffusion.noises, generator=source, dtype=torch.float64), scheme)
        states.append(x)
        rates.append(rate)
    state = torch.stack(states, 1)
    payoff = diffusion.base(torch.zeros(()), state[:, -1])
    return Drawn(diffusion, Paths(times, torch.stack(rates, 1), payoff), state)
