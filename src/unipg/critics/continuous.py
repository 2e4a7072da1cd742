"""Values in continuous time, from paths seen on a grid: increments, the martingale loss, orthogonality, the naive baseline.

    J(t, x) = E[∫_t^T e^{−beta (s−t)} r_s ds + e^{−beta (T−t)} h(X_T) | X_t = x]

J is the value function if and only if J(T, ·) = h and M_t = e^{−beta t} J(t, X_t) + ∫_0^t e^{−beta s} r_s ds is a martingale. Every method
here asks for that in another way; the squared TD error (`mean_square_td`) does not, since the square of an increment measures the noise
of the dynamics. Rewards are RATES: per unit of time, not multiplied by dt.
Source: arXiv 2108.06655, and 2111.11232 for the policy gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from unipg.errors import InputError, nearest, shown
from unipg.estimator.advantages import discounted_sums
from unipg.shapes import Bool, Float

Order = Literal["exact", "first"]
Weighting = Literal["identity", "inverse"]
WHOLE = 1e-6
"""How far the number of steps to the horizon may be from a whole one."""


MOST_STEPS = 10_000_000
"""Of an even grid: a slip of the keyboard more would not fit into memory."""
SHORTEST, LONGEST = 1e-30, 1e30
"""Of steps and horizons: beyond, what is per unit of time leaves float32, and becomes infinite or 0 without a word."""


def check_decay(lam: float, where: str = "lam") -> None:
    """Refuses what is no decay per unit of time. Errors: `InputError` outside (0, 1]."""
    if not (_is_number(lam) and 0 < lam <= 1):
        raise InputError(f"{where} is {shown(lam)}; accepted: a decay per unit of time in (0, 1]")


def check_rate(beta: float, where: str = "beta") -> None:
    """Refuses what is no discount rate. Errors: `InputError` unless finite and 0 or more."""
    if not (_is_number(beta) and math.isfinite(beta) and beta >= 0):
        raise InputError(f"{where} is {shown(beta)}; accepted: a finite discount rate, 0 or more per unit of time")


def check_step(dt: float, where: str = "dt") -> None:
    """Refuses what is no length of a step. Errors: `InputError` outside [1e-30, 1e30]."""
    if not (_is_number(dt) and SHORTEST <= dt <= LONGEST):
        raise InputError(f"{where} is {shown(dt)}; accepted: a time from {SHORTEST:g} to {LONGEST:g}")


def check_weighting(weighting: str) -> None:
    """Refuses what moments cannot be weighed by. Errors: `InputError` with the nearest name."""
    if weighting not in get_args(Weighting):
        raise InputError(f"weighting is {shown(weighting)}; {nearest(str(weighting), get_args(Weighting))}")


def _is_number(value: Any) -> bool:
    return (isinstance(value, Real) and not isinstance(value, bool)) or (isinstance(value, Tensor) and value.ndim == 0)


def _tensor(given: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} is {shown(given)}; accepted: a tensor, an array or a list of numbers") from None


def as_floats(given: Any, name: str) -> Tensor:
    """A tensor as it is, with its graph; whole numbers, flags, arrays and lists as one. In whole numbers every discount would be 0.

    Errors: `InputError` for what is no tensor of real numbers.
    """
    found = _tensor(given, name)
    if found.is_complex():
        raise InputError(f"{name} holds complex numbers; accepted: real ones")
    return found if found.is_floating_point() else found.double()


def _as_flags(given: Any, name: str) -> Tensor:
    found = _tensor(given, name)
    if found.dtype != torch.bool and not bool(((found == 0) | (found == 1)).all()):
        raise InputError(f"{name} holds other numbers than 0 and 1; accepted: for each step whether it is before the end of its path")
    return found.bool()


@dataclass(frozen=True)
class Times:
    """t_0 = 0 < t_1 < … < t_K, at which paths are seen, and the discount between them; steps may differ.

    `order`: an increment's discount of what follows, `exact` e^{−beta dt} J' − J, or `first` J' − J − beta J dt. Same limit, other numbers.
    """

    dt: Float[Tensor, " K"]
    beta: float = 0.0
    order: Order = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dt", as_floats(self.dt, "dt"))
        if self.dt.ndim != 1 or not len(self.dt):
            raise InputError(f"dt is {list(self.dt.shape)}; accepted: [K], the length of each step")
        check_step(float(self.dt.min()))
        check_step(float(self.dt.max()))
        check_rate(self.beta)
        if self.order not in ("exact", "first"):
            raise InputError(f"order is {shown(self.order)}; accepted: exact, first")

    @classmethod
    def even(cls, horizon: float, dt: float, beta: float = 0.0, order: Order = "exact", dtype: torch.dtype = torch.float64) -> Times:
        """Steps of one length. Errors: `InputError` unless the horizon is a whole number of steps, to 1e-6, ten million at most."""
        check_step(dt)
        check_step(horizon, "horizon")
        steps = round(horizon / dt)
        if not 1 <= steps <= MOST_STEPS or abs(horizon / dt - steps) > WHOLE:
            accepted = f"a whole number of steps, at most {MOST_STEPS}"
            raise InputError(f"horizon is {horizon}, which is {horizon / dt:.6g} steps of dt {dt}; accepted: {accepted}")
        return cls(torch.full((steps,), horizon / steps, dtype=dtype), beta, order)

    def __len__(self) -> int:
        return self.dt.shape[0]

    @property
    def points(self) -> Float[Tensor, " K1"]:
        """[K+1] t_0 … t_K."""
        return torch.cat([self.dt.new_zeros(1), self.dt.cumsum(0)])

    @property
    def factor(self) -> Float[Tensor, " K"]:
        """[K] e^{−beta dt}."""
        return torch.exp(-self.beta * self.dt)

    @property
    def weight(self) -> Float[Tensor, " K"]:
        """[K] e^{−beta t_k}."""
        return torch.exp(-self.beta * self.points[:-1])

    def checked(self, given: Any, name: str, form: str, paths: int | None = None) -> Tensor:
        """What is given of paths on this grid, as floats. `form`: a letter for each dimension, of which N is `paths`, K the steps and K+1
        the points; for `…` there may be any. Errors: `InputError` for another shape, of which some would be broadcast without a word."""
        found, letters = as_floats(given, name), form.split(",")
        sizes = {"N": paths, "K": len(self), "K+1": len(self) + 1}
        named = [letter for letter in letters if letter != "…"]
        many = found.ndim >= len(named) if "…" in letters else found.ndim == len(named)
        if not many or any(sizes.get(letter) not in (None, size) for letter, size in zip(named, found.shape, strict=False)):
            of = "" if paths is None else f"{paths} paths at "
            where = f"{len(self) + 1} points, the last one too" if "K+1" in letters else f"{len(self)} steps"
            raise InputError(f"{name} is {list(found.shape)}; accepted: [{form}], {of}{where}")
        return found

    def shift(self, values: Float[Tensor, "N K1 ..."]) -> Float[Tensor, "N K ..."]:
        """The linear part of an increment: e^{−beta dt} v_{k+1} − v_k, or v_{k+1} − (1 + beta dt) v_k."""
        values = self.checked(values, "values", "N,K+1,…")
        shape = (-1, *[1] * (values.ndim - 2))
        now, after = values[:, :-1], values[:, 1:]
        if self.order == "exact":
            return self.factor.view(shape).to(values.dtype) * after - now
        return after - (1 + self.beta * self.dt).view(shape).to(values.dtype) * now


@dataclass(frozen=True)
class Paths:
    """N paths of one policy: what they earned on the way, and at their end.

    `rate` [N,K] reward per unit of time; `payoff` [N] the value at the end of each path: h(X_T), or what is paid where it was stopped
    (an exit, an absorbing state). `mask` [N,K]: the steps before the end, the first ones of each row; None for all. Lists and arrays are
    taken too; all of it, and the times, is kept as floats of the widest dtype among them.
    Errors: `InputError` without a payoff (it is never taken to be 0), and for what is not finite, naming path and step.
    """

    times: Times
    rate: Float[Tensor, "N K"]
    payoff: Float[Tensor, " N"]
    mask: Bool[Tensor, "N K"] | None = None

    def __post_init__(self) -> None:
        if self.payoff is None:
            raise InputError("payoff is missing; accepted: [N], the value at the end of each path (zeros where nothing is paid there)")
        if not isinstance(self.times, Times):
            raise InputError(f"times is {shown(self.times)}; accepted: Times, the grid of the paths")
        rate, payoff = as_floats(self.rate, "rate"), as_floats(self.payoff, "payoff")
        dtype = torch.promote_types(torch.promote_types(rate.dtype, payoff.dtype), self.times.dt.dtype)
        object.__setattr__(self, "rate", rate.to(dtype))
        object.__setattr__(self, "payoff", payoff.to(dtype))
        object.__setattr__(self, "times", replace(self.times, dt=self.times.dt.to(rate.device, dtype)))
        if self.mask is not None:
            object.__setattr__(self, "mask", _as_flags(self.mask, "mask"))
        if self.rate.ndim != 2 or self.rate.shape[1] != len(self.times):
            raise InputError(f"rate is {list(self.rate.shape)} on a grid of {len(self.times)} steps; accepted: [N,K]")
        if self.payoff.shape != self.rate.shape[:1]:
            raise InputError(f"payoff is {list(self.payoff.shape)} but there are {self.rate.shape[0]} paths; accepted: [N]")
        mask = self.mask
        if mask is not None and mask.shape != self.rate.shape:
            raise InputError(f"mask is {list(mask.shape)} but rate is {list(self.rate.shape)}; they must be equal")
        if mask is not None and bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise InputError("mask has steps behind the end of a path; accepted: the first steps of each row")
        bad = ~torch.isfinite(self.rate) if mask is None else mask & ~torch.isfinite(self.rate)
        if bool(bad.any()):
            path, step = (int(i) for i in bad.nonzero()[0])
            raise InputError(f"rate is {float(self.rate[path, step])} on path {path}, step {step}; accepted: finite numbers")
        if bool((bad := ~torch.isfinite(self.payoff)).any()):
            path = int(bad.nonzero()[0])
            where = "stopped early: the payoff there" if mask is not None and not bool(mask[path].all()) else "the payoff at its end"
            raise InputError(f"path {path}: {where} is {float(self.payoff[path])}; accepted: finite numbers")
        if mask is not None:  # behind the end there may be anything
            object.__setattr__(self, "rate", torch.where(mask, self.rate, 0))

    def __len__(self) -> int:
        return self.rate.shape[0]

    def select(self, rows: Tensor) -> Paths:
        """The given paths."""
        return Paths(self.times, self.rate[rows], self.payoff[rows], None if self.mask is None else self.mask[rows])

    def live(self, values: Tensor) -> Tensor:
        """[N,K,…] with 0 behind the end of each path."""
        if self.mask is None:
            return values
        return torch.where(self.mask.view(*self.mask.shape, *[1] * (values.ndim - 2)), values, 0)

    def checked(self, given: Any, name: str = "values", form: str = "N,K+1") -> Tensor:
        """See `Times.checked`: of these paths."""
        return self.times.checked(given, name, form, len(self))

    def closed(self, values: Float[Tensor, "N K1 ..."], end: Tensor | None = None) -> Float[Tensor, "N K1 ..."]:
        """Values with what stands at the end of each path replaced by `end` (default: the payoff), and 0 behind it."""
        values = self.checked(values, form="N,K+1,…")
        end = self.payoff if end is None else end
        more = values.shape[2:]
        end = end.to(values.dtype).reshape(len(self), 1, *[1] * len(more)).expand(len(self), 1, *more)
        if self.mask is None:
            return torch.cat([values[:, :-1], end], 1)
        last = self.mask.sum(1, keepdim=True)
        place = torch.arange(values.shape[1], device=values.device).unsqueeze(0)
        shape = (*place.shape[:1], values.shape[1], *[1] * len(more))
        before = (place < last).view(len(self), *shape[1:])
        at = (place == last).view(len(self), *shape[1:])
        return torch.where(before, values, torch.where(at, end, 0))

    def increments(self, values: Float[Tensor, "N K1"]) -> Float[Tensor, "N K"]:
        """[N,K] delta_k, seen from t_k: an ordinary TD error with reward r dt and discount e^{−beta dt}. Of the value function its mean is
        0 given the past; its square is of order dt."""
        values = self.checked(values)
        return self.live(self.times.shift(self.closed(values)) + self.rate.to(values.dtype) * self.times.dt.to(values.dtype))

    def martingale_increments(self, values: Float[Tensor, "N K1"]) -> Float[Tensor, "N K"]:
        """[N,K] dM_k = e^{−beta t_k} delta_k."""
        found = self.increments(values)
        return self.times.weight.to(found.dtype) * found

    def to_go(self) -> Float[Tensor, "N K"]:
        """[N,K] what came from t_k on, seen from t_k: ∑_{j≥k} e^{−beta (t_j − t_k)} r_j dt_j + e^{−beta (T − t_k)} h. Exact discounts."""
        factor = self.times.factor
        last = torch.zeros_like(self.rate, dtype=torch.bool) if self.mask is None else self.mask.clone()
        if self.mask is None:
            last[:, -1] = True
        else:
            last[:, :-1] &= ~self.mask[:, 1:]
        earned = self.rate * self.times.dt + torch.where(last, factor * self.payoff.unsqueeze(1), 0)
        return self.live(discounted_sums(earned, torch.where(last, 0, factor)))


# -------------------------------------------------------------------------------------------------------------------------- losses


def martingale_loss(paths: Paths, values: Float[Tensor, "N K1"]) -> Float[Tensor, ""]:
    """½ E ∑_k (G_k − e^{−beta t_k} J_k)² dt, G_k discounted to time 0: gradient Monte-Carlo, for whole paths."""
    values = paths.checked(values)
    error = paths.to_go().to(values.dtype) - values[:, :-1]
    weight = (paths.times.weight**2 * paths.times.dt).to(values.dtype)
    return 0.5 * (weight * paths.live(error) ** 2).sum(1).mean()


def mean_square_td(paths: Paths, values: Float[Tensor, "N K1"]) -> Float[Tensor, ""]:
    """½ E ∑_k (delta_k / dt)² dt, with the whole gradient: the naive baseline. dt times it goes to half the expected quadratic variation
    of M as dt → 0, so it makes the value function flat; right only where the dynamics are deterministic."""
    delta = paths.increments(values)
    return 0.5 * (delta**2 / paths.times.dt.to(delta.dtype)).sum(1).mean()


def ctd_loss(paths: Paths, values: Float[Tensor, "N K1"], lam: float | None = None) -> Float[Tensor, ""]:
    """A loss whose gradient is −E ∑_k xi_k dM_k, the direction of CTD; its value means nothing.

        None:  xi_k = ∇J_k (CTD(0), semi-gradient TD(0));   lam:  xi_k = lam^{dt} xi_{k−1} + ∇J_k dt   (CTD(lam), lam per unit of time)

    The second is computed forwards: ∑_k xi_k dM_k = ∑_j ∇J_j dt_j ∑_{k≥j} lam^{t_k − t_j} dM_k.
    Errors: `InputError` for lam outside (0, 1].
    """
    values = paths.checked(values)
    moved = paths.martingale_increments(values).detach()
    if lam is not None:
        check_decay(lam)
        decay = (lam**paths.times.dt).to(values.dtype).expand_as(moved)
        moved = discounted_sums(moved, decay) * paths.times.dt.to(values.dtype)
    return -(paths.live(values[:, :-1]) * moved).sum(1).mean()


def traces(gradient: Float[Tensor, "N K L"], times: Times, lam: float | None = None) -> Float[Tensor, "N K L"]:
    """[N,K,L] test functions xi_k of the gradients ∇J_k (of a linear family: its features), as `ctd_loss` has them; adapted: they know the
    path up to t_k only. Errors: `InputError` for lam outside (0, 1]."""
    gradient = times.checked(gradient, "gradient", "N,K,L")
    if lam is None:
        return gradient
    check_decay(lam)
    decay = (lam**times.dt).to(gradient.dtype)
    seen = [gradient[:, 0] * times.dt[0].to(gradient.dtype)]
    for k in range(1, len(times)):
        seen.append(decay[k - 1] * seen[-1] + gradient[:, k] * times.dt[k].to(gradient.dtype))
    return torch.stack(seen, 1)


def moments(paths: Paths, values: Float[Tensor, "N K1"], tests: Float[Tensor, "N K L"]) -> Float[Tensor, "N L"]:
    """[N,L] ∑_k xi_k dM_k of each path; of the value function the mean is 0 for any adapted xi."""
    moved = paths.martingale_increments(values)
    return torch.einsum("nkl,nk->nl", paths.checked(tests, "tests", "N,K,L").to(moved.dtype), moved)


def moment_weights(paths: Paths, tests: Float[Tensor, "N K L"], weighting: Weighting = "inverse") -> Float[Tensor, "L L"]:
    """[L,L] A of the generalised method of moments: the identity, or (E ∑ xi xi^T dt)^{−1}, by least squares where that is singular.

    Errors: `InputError` for another weighting.
    """
    check_weighting(weighting)
    tests = paths.checked(tests, "tests", "N,K,L")
    if weighting == "identity":
        return torch.eye(tests.shape[-1], dtype=tests.dtype, device=tests.device)
    seen = paths.live(tests)
    second = torch.einsum("nkl,nkm,k->lm", seen, seen, paths.times.dt.to(tests.dtype)) / len(paths)
    return torch.linalg.pinv(second, hermitian=True)


def moment_loss(
    paths: Paths, values: Float[Tensor, "N K1"], tests: Float[Tensor, "N K L"], weighting: Weighting = "inverse"
) -> Float[Tensor, ""]:
    """½ m₁^T A m₂, m₁ and m₂ the moments of the even and of the odd paths: independent, so its mean is ½ m^T A m without the variance of m
    (CGTD, GMM). Errors: `InputError` for fewer than two paths, and for another weighting."""
    if len(paths) < 2:
        raise InputError(f"{len(paths)} paths have no two independent halves; accepted: 2 or more")
    tests = paths.checked(tests, "tests", "N,K,L")
    found = moments(paths, values, tests)
    weights = moment_weights(paths, tests.detach(), weighting).to(found.dtype)
    return 0.5 * found[::2].mean(0) @ weights @ found[1::2].mean(0)


# --------------------------------------------------------------------------------------------------------------------- for an actor


def advantage_rate(paths: Paths, values: Float[Tensor, "N K1"], lam: float | None = None) -> Float[Tensor, "N K"]:
    """[N,K] how good an action was, per unit of time: delta_k / dt, or of the sum ∑_{j≥k} (lam e^{−beta})^{t_j − t_k} delta_j; detached.

    The variance of the first grows as 1/dt: standardise it over a batch before it weighs a policy's loss.
    """
    delta = paths.increments(values).detach()
    if lam is not None:
        check_decay(lam)
        delta = discounted_sums(delta, (lam**paths.times.dt).to(delta.dtype) * paths.times.factor.to(delta.dtype).expand_as(delta))
    return delta / paths.times.dt.to(delta.dtype)


def policy_gradient_loss(
    paths: Paths,
    values: Float[Tensor, "N K1"],
    log_prob: Float[Tensor, "N K"],
    temperature: float = 0.0,
    entropy: Float[Tensor, "N K"] | None = None,
) -> Float[Tensor, ""]:
    """A loss whose gradient is minus that of J(0, x) in the policy (arXiv 2111.11232, theorem 2, the likelihood part; no other baseline):

        E ∑_k e^{−beta t_k} [∇log pi(a_k | t_k, X_k) (delta_k + temperature p_k dt) + temperature ∇p_k dt]

    p_k: the entropy of the policy at X_k, with its graph. Its own gradient stands for the last term's; delta_k is of the raw reward and of
    values that count the entropy. Errors: `InputError` for a temperature that is no number, or without entropies.
    """
    moved, log_prob = paths.increments(values).detach(), paths.checked(log_prob, "log_prob", "N,K")
    weight, dt = paths.times.weight.to(moved.dtype), paths.times.dt.to(moved.dtype)
    if not (_is_number(temperature) and math.isfinite(temperature)):
        raise InputError(f"temperature is {shown(temperature)}; accepted: a finite number")
    if not temperature:
        return -(weight * paths.live(log_prob * moved)).sum(1).mean()
    if entropy is None:
        raise InputError("entropy is missing, which a temperature weighs; accepted: [N,K] of the policy at each state")
    bonus = temperature * paths.checked(entropy, "entropy", "N,K") * dt
    return -(weight * paths.live(log_prob * (moved + bonus.detach()) + bonus)).sum(1).mean()
