"""f-divergences D_f(pi || p) = E_p[f(pi / p)] by their derivative f', and the advantage that descends one of them towards any target.

Directions: t = pi / p, policy over target. `kl` is KL(p || pi), the forward one; `reverse_kl` is KL(pi || p); chi2 likewise. Only f' is
ever needed, since grad D_f(pi || p) = E_pi[f'(pi / p) grad log pi], and a constant added to it is a baseline. Source: arXiv 2302.08215.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unipg.errors import InputError, nearest
from unipg.estimator.advantages import Advantage, Planning, spread
from unipg.estimator.parts import Part
from unipg.loading import callable_named
from unipg.shapes import Float
from unipg.trajectories import Evaluation, Trajectories


@dataclass(frozen=True)
class Divergence(Part):
    """A divergence by its name and `slope`: f'(t) as an elementwise function of l = log t; t = pi / p, +inf where p = 0."""

    name: str
    slope: Callable[[Tensor], Tensor] = field(compare=False, repr=False)

    def symbol(self) -> str:
        return self.name

    def derivative(self, log_t: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """f'(t) at l = log t."""
        return self.slope(log_t)

    @property
    def bounded(self) -> bool:
        """Whether f' stays finite as p(x) -> 0: then a sample that the target excludes is merely pushed down."""
        return bool(torch.isfinite(self.derivative(torch.tensor([math.inf], dtype=torch.float64))).all())


def alpha(a: float) -> Divergence:
    """The alpha family, f(t) = (t^a − a·t − (1 − a)) / (a·(a − 1)), f'(t) = (t^(a−1) − 1) / (a − 1), log t at a = 1.

    a = 0: `kl`; 1: `reverse_kl`; 2: half `reverse_chi2`; −1: half `chi2`; 1/2: squared Hellinger; each up to a constant in f'. Bounded
    for a < 1.
    """

    def slope(log_t: Tensor) -> Tensor:
        return log_t if a == 1 else torch.expm1((a - 1) * log_t) / (a - 1)

    return Divergence(f"alpha({a:g})", slope)


DIVERGENCES: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in (
        Divergence("kl", lambda log_t: -torch.exp(-log_t)),
        Divergence("reverse_kl", lambda log_t: log_t + 1),
        Divergence("js", lambda log_t: math.log(2) - torch.nn.functional.softplus(-log_t)),
        Divergence("tv", lambda log_t: torch.sign(log_t) / 2),
        Divergence("chi2", lambda log_t: -torch.expm1(-2 * log_t)),
        Divergence("reverse_chi2", lambda log_t: 2 * torch.expm1(log_t)),
    )
}
"""Of f(t) = −log t; t·log t; t·log(2t/(1+t)) + log(2/(1+t)), which is twice Jensen-Shannon; |t − 1|/2; (1 − t)²/t; (t − 1)²."""

_ALPHA = re.compile(r"alpha\(\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*\)")


def divergence_named(spec: str) -> Divergence:
    """The divergence that `spec` names: one of `DIVERGENCES`, `alpha(0.5)`, or a function `f'(log t) -> tensor` of anyone's.

    A function is written `package.module:function`; modules of the current folder are found too.

    Errors: `InputError` with the nearest names for an unknown name, module or function, and for a function that does not turn a tensor
    into one of the same shape.
    """
    if spec in DIVERGENCES:
        return DIVERGENCES[spec]
    family = _ALPHA.fullmatch(spec)
    if family:
        return alpha(float(family[1]))
    if ":" not in spec:
        accepted = [*DIVERGENCES, "alpha(0.5)", "package.module:function"]
        raise InputError(f"divergence '{spec}' does not exist; {nearest(spec, accepted)}")
    slope = callable_named(spec, "divergence")
    probe = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    try:
        shape = slope(probe).shape
    except Exception as error:
        raise InputError(f"divergence '{spec}' cannot be called as f'(log_t): {type(error).__name__}: {error}") from error
    if shape != probe.shape:
        raise InputError(f"divergence '{spec}' turns a tensor {list(probe.shape)} into {list(shape)}; f' must keep the shape of log t")
    return Divergence(spec, slope)


@dataclass(frozen=True)
class FDivergence(Advantage):
    """Â = −f'(t) − b on every token of a row, with t = pi_theta / p of the whole row under the current policy:

        log t = sg(sum over the row of log pi_theta) − (log P − log Z)

    so that the policy gradient descends D_f(pi_theta || p), p = P / Z. Planned for each row, `[B]`: `target/log_prob` log P, −inf where the
    target excludes the row; `target/log_partition` log Z; `target/baseline` b. Rows must be whole: a likelihood of single steps is another.

    `log_ratio_max`: bound on log t, for divergences whose f' grows without bound as p -> 0; None for none.

    Errors: `InputError` for log P = +inf or NaN, and for −inf where f' is then infinite and `log_ratio_max` is None.
    Source: arXiv 2302.08215, theorem 1.
    """

    dynamic: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"target/log_prob", "target/log_partition", "target/baseline"})
    divergence: Divergence
    log_ratio_max: float | None = None

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        if now is None:
            raise InputError("FDivergence depends on the current policy: call it with `now`")
        if not bool(batch.mask.any()):  # nothing was done, so no target is needed
            return torch.zeros(batch.mask.shape, dtype=torch.float64, device=batch.mask.device)
        who = type(self).__name__
        log_prob = sequence_log_prob(now.log_prob.detach(), batch)
        reward = self.pseudo_reward(log_prob, batch.require("target/log_prob", who), batch.require("target/log_partition", who))
        return spread(reward - batch.require("target/baseline", who), batch)

    def pseudo_reward(
        self, log_prob: Float[Tensor, " B"], log_target: Float[Tensor, " B"], log_partition: Float[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """[B] −f'(t), from the log-probability of whole rows."""
        wrong = log_target.isnan() | (log_target == torch.inf)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise InputError(f"the target's log P of row {row} is {float(log_target[row])}; accepted: finite numbers, and −inf for P = 0")
        excluded = log_target == -torch.inf
        if self.log_ratio_max is None and bool(excluded.any()) and not self.divergence.bounded:
            row = int(excluded.nonzero()[0])
            raise InputError(
                f"the target excludes row {row} (log P = −inf), where f' of the divergence '{self.divergence.name}' is infinite: take one "
                "whose f' is bounded (kl, js, tv, chi2, alpha below 1) or set log_ratio_max"
            )
        log_t = log_prob - log_target.to(log_prob.dtype) + log_partition
        return -self.divergence.derivative(log_t if self.log_ratio_max is None else log_t.clamp_max(self.log_ratio_max))


def sequence_log_prob(log_prob: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, " B"]:
    """[B] log-probability of each whole row, in float64; what stands where the policy did not act is ignored."""
    return torch.where(batch.mask, log_prob, 0).double().sum(1)
