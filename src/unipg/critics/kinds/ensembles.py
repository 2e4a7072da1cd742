"""Ensembles whose members predict a value and the shape of its errors, weighed by how far the members are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from unipg.critics.kinds.base import Critic, register_kind
from unipg.critics.kinds.epistemic import error_variance, inverse_variance_weights, value_variance
from unipg.critics.members import MembersRegression, MembersValueLoss
from unipg.critics.networks import ActionValues
from unipg.critics.regression import Bootstrapped, Loss, Regression
from unipg.critics.values import Greedy, Reduction, Value, ValueOfEach
from unipg.errors import InputError
from unipg.estimator import GAE, Term
from unipg.estimator.aggregation import Aggregate, TokenMean
from unipg.shapes import Float

LEAST_VARIANCE = 1e-6
"""Of a Gaussian's head."""
LEAST_SHAPE, MOST_SHAPE = 1e-3, 20.0
"""Of beta: below, log and lgamma(1/beta) overflow."""
LEAST_ERROR = 1e-6
"""Smaller errors count as this in a power, whose slope is infinite at 0 for beta < 1."""
MOST_EXPONENT = 30.0
"""Of |e|^beta = exp(beta · log|e|); beyond, it goes on as a straight line in the exponent."""

Epistemic = Literal["none", "error_variance", "value_variance"]


@dataclass(frozen=True)
class EnsembleCritic(Critic):
    """Base class: K members, each with a target of its own, which keeps them apart. States: heads on one trunk. Actions: one batched
    product. The actor reads the mean of the members.

        + weight · ½ Σ_b ω_b Σ_k size(e_bk),   ω_b ∝ 1/(V_b + xi) over the batch of an optimiser step

    Steps on which members agree count more. `epistemic` says what V_b is: the estimated variance of the members' errors
    (`error_variance`; arXiv 2408.02295), or discount² times that of their values (`value_variance`; arXiv 2201.01666).
    """

    members: int = 5
    """K, members of each critic."""
    epistemic: Epistemic = "none"
    """What steps are weighed by: error_variance, value_variance, or none."""
    epistemic_weight: float = 0.1
    """Weight of that term beside the likelihood."""
    effective_batch: float = 16.0
    """Effective size of the weighted batch that xi sees to, 1/Σω²; at most the batch less one."""
    ddof: int = 1
    """Of the variance over members: 1, which its shrinkage is derived for; 0: the released code."""
    reduction: Literal["sum", "mean"] = "sum"
    """Of the weighted errors over the batch. mean: the released code, which divides by its size once more."""

    def __post_init__(self) -> None:
        for name, least in (("members", 1), ("effective_batch", 1.0), ("epistemic_weight", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise InputError(f"algorithm.critic.{name} is {value}; accepted: {least:g} or more")
        if self.ddof not in (0, 1):
            raise InputError(f"algorithm.critic.ddof is {self.ddof}; accepted: 0, 1")
        most = {"none": 1, "value_variance": 2, "error_variance": 4}[self.epistemic]
        if self.members < most:
            why = "its variance estimate has a bias-corrected kurtosis" if most == 4 else "there is a variance of several alone"
            raise InputError(
                f"algorithm.critic.members is {self.members}, but epistemic is {self.epistemic} and {why}; accepted: {most} or more, or "
                "epistemic: none"
            )

    # ------------------------------------------------------------------------------------------------ what it costs; see `members.Cost`

    @property
    def weighs(self) -> bool:
        return self.epistemic != "none" and self.epistemic_weight > 0

    def fit(
        self, said: Float[Tensor, "... K B T C"], error: Float[Tensor, "... K B T"]
    ) -> tuple[Float[Tensor, "... B T"], dict[str, Tensor]]:
        raise NotImplementedError(type(self).__name__)

    def size(self, error: Float[Tensor, "... K B T"]) -> Float[Tensor, "... B T"]:
        return 0.5 * self.epistemic_weight * (error * error).sum(-3)

    @torch.no_grad()
    def variance(self, said: Float[Tensor, "... K B T C"], error: Float[Tensor, "... K B T"], discount: float) -> Float[Tensor, "... B T"]:
        if self.epistemic == "value_variance":
            return value_variance(said[..., 0], discount, -3)
        return error_variance(error, self.ddof, -3)

    def weights(self, variance: Float[Tensor, "critics N"]) -> Float[Tensor, "critics N"]:
        weights = inverse_variance_weights(variance, self.effective_batch)
        return weights * variance.shape[1] if self.reduction == "sum" else weights

    # ------------------------------------------------------------------------------------------------ what algorithms ask

    @property
    def channels(self) -> int:
        """Numbers that a member says: its value, and one more."""
        return 2

    @property
    def heads(self) -> tuple[int, int]:
        return self.members, self.channels

    def state_loss(self, gae: GAE, *, clip: float | None = None, aggregate: Aggregate = TokenMean()) -> Term:
        if self.heads == (1, 1):  # one value, as everybody's
            return super().state_loss(gae, clip=clip, aggregate=aggregate)
        return MembersValueLoss(gae=gae, clip=clip, aggregate=aggregate, cost=self, name="value_loss")

    def action_values(self, critics: int = 1) -> ActionValues:
        return ActionValues(critics * self.members, self.channels)

    def value(self, of: str, reduction: Reduction = "min") -> Value:
        return Value(of, reduction, self.members)

    def target_value(self, of: str, reduction: Reduction = "min") -> Value:
        return ValueOfEach(of, reduction, self.members)

    def greedy(self, by: str) -> Greedy:
        return Greedy(by, each=True)

    def regression(self, of: str, target: Bootstrapped, loss: Loss = "squared") -> Regression:
        return MembersRegression(of=of, target=target, cost=self, name="regression")


@register_kind
@dataclass(frozen=True)
class Ensemble(EnsembleCritic):
    """½ Σ_k (V_k − target_k)²: several squared errors, by which an ensemble is compared with those that say more."""

    kind: Literal["ensemble"] = field(default="ensemble", kw_only=True, repr=False)

    @property
    def channels(self) -> int:
        return 1

    def fit(self, said: Tensor, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return 0.5 * (error * error).sum(-3), {}


@register_kind
@dataclass(frozen=True)
class Gaussian(EnsembleCritic):
    """½ Σ_k ½ (log σ_k² + e_k² / σ_k²), σ² = softplus(raw) ≥ 1e-6: the likelihood of Gaussian errors of a predicted variance."""

    kind: Literal["gaussian"] = field(default="gaussian", kw_only=True, repr=False)

    def fit(self, said: Tensor, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        variance = softplus(raw_of(said)).clamp_min(LEAST_VARIANCE)
        return 0.25 * (variance.log() + error * error / variance).sum(-3), {"variance": variance}


@register_kind
@dataclass(frozen=True)
class GeneralizedGaussian(EnsembleCritic):
    """½ Σ_k w_k · (|e_k|^beta_k − log beta_k + lgamma(1/beta_k)), w_k = beta_k / Σ beta: the likelihood of generalised Gaussian errors of
    scale 1 and a predicted shape, beta = softplus(raw + softplus⁻¹(start)) in [1e-3, 20]; 2 is Gaussian, 1 Laplace, less has heavier
    tails. Members that find their errors light-tailed count more (risk aversion).

    With beta ≠ 2 the value is no mean of returns but, at 1, their median. The scale is fixed: rewards should be of the order of 1.
    Source: arXiv 2408.02295.
    """

    kind: Literal["generalized_gaussian"] = field(default="generalized_gaussian", kw_only=True, repr=False)
    epistemic: Epistemic = "error_variance"
    """What steps are weighed by: error_variance, value_variance, or none."""
    form: Literal["power", "released"] = "power"
    """power: |e|^beta, the paper's density. released: beta · |e|, the product that the authors' code has in its place."""
    detach_weight: bool = False
    """Whether the weights of members are not differentiated; the released code does, so the network may move weight to small losses."""
    start: float = 2.0
    """beta where the head says 0, about where training begins: 2 is the squared error. The released code's is 0.693."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not LEAST_SHAPE <= self.start <= MOST_SHAPE:
            raise InputError(f"algorithm.critic.start is {self.start}; accepted: a number in [{LEAST_SHAPE:g}, {MOST_SHAPE:g}]")

    def shape(self, raw: Tensor) -> Tensor:
        """beta from what the head says."""
        return softplus(raw + math.log(math.expm1(self.start))).clamp(LEAST_SHAPE, MOST_SHAPE)

    def fit(self, said: Tensor, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        beta = self.shape(raw_of(said))
        each = likelihood_loss(error, beta, self.form)
        if self.members == 1:
            return 0.5 * each.squeeze(-3), {"beta": beta}
        share = beta.detach() if self.detach_weight else beta
        return 0.5 * (share * each).sum(-3) / share.sum(-3), {"beta": beta}

    def size(self, error: Tensor) -> Tensor:
        return 0.5 * self.epistemic_weight * error.abs().sum(-3)


def likelihood_loss(error: Float[Tensor, "..."], beta: Float[Tensor, "..."], form: Literal["power", "released"] = "power") -> Tensor:
    """|e|^beta − log beta + lgamma(1/beta), −log of a generalised Gaussian density of scale 1 but for log 2; released: beta · |e| first."""
    size = error.abs()
    constant = torch.lgamma(beta.reciprocal()) - beta.log()
    if form == "released":
        return beta * size + constant
    size = size.clamp_min(LEAST_ERROR)
    exponent = beta * size.log()
    over = exponent > MOST_EXPONENT
    power = torch.where(over, 1.0, size) ** beta  # a power and no exponential: at beta 2 its slope is that of e² to the last bit
    return torch.where(over, math.exp(MOST_EXPONENT) * (1 + exponent - MOST_EXPONENT), power) + constant


def raw_of(said: Float[Tensor, "... C"]) -> Float[Tensor, "..."]:
    """What stands behind the value. Errors: `InputError` where nothing does."""
    if said.shape[-1] < 2:
        raise InputError(f"a critic that predicts a shape says two numbers, a value and it, but this one gives {list(said.shape)}")
    return said[..., 1]
