"""How unsure an ensemble is of each step of a batch, and the weights that follow."""

from __future__ import annotations

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.shapes import Float

LEAST_VARIANCE = 1e-6
"""Of a step's errors, in weights."""
EQUAL = 1e-12
"""Members whose variance is smaller are equal, and have no kurtosis."""
ROUNDS = 60
"""Of the bisection, each of which halves what is left."""


def excess_kurtosis(values: Float[Tensor, "... K"]) -> Float[Tensor, "..."]:
    """G2, the bias-corrected excess kurtosis of K values, 0 where they are equal. Errors: `InputError` for K < 4, where there is none."""
    k = values.shape[-1]
    if k < 4:
        raise InputError(f"a bias-corrected kurtosis is asked of {k} values; accepted: 4 or more")
    square = (values - values.mean(-1, keepdim=True)).square()
    second = square.mean(-1)
    equal = second < EQUAL
    ratio = square.square().mean(-1) / torch.where(equal, 1.0, second).square()
    return torch.where(equal, 0.0, ((k * k - 1) * ratio - 3 * (k - 1) ** 2) / ((k - 2) * (k - 3)))


def _variance(values: Float[Tensor, "... K"], ddof: int) -> Float[Tensor, "..."]:
    """As torch's, which warns of batches without rows."""
    return (values - values.mean(-1, keepdim=True)).square().sum(-1) / (values.shape[-1] - ddof)


def value_variance(value: Float[Tensor, "... K"], discount: float) -> Float[Tensor, "..."]:
    """V = discount² · the unbiased variance of K values (arXiv 2201.01666)."""
    return discount**2 * _variance(value, 1)


def error_variance(error: Float[Tensor, "... K"], ddof: int = 1) -> Float[Tensor, "..."]:
    """V = s² / (kappa/K + (K+1)/(K−1)): the variance of K errors, shrunk to the least mean squared error for the kurtosis they show."""
    k = error.shape[-1]
    return _variance(error, ddof) / (excess_kurtosis(error) / k + (k + 1) / (k - 1))


def effective_size(weights: Float[Tensor, "... N"]) -> Float[Tensor, "..."]:
    """(Σω)² / Σω², in [1, N]."""
    return weights.sum(-1).square() / weights.square().sum(-1)


@torch.no_grad()
def inverse_variance_weights(variance: Float[Tensor, "C N"], effective: float) -> Float[Tensor, "C N"]:
    """ω ∝ 1/(V + xi) with sum 1 over N steps, V at least 1e-6, with the least xi ≥ 0 that gives an effective size of min(N - 1, effective).

    The effective size grows with xi, so it is bisected: exact and without chance, where the released code minimises with Nelder-Mead.
    """
    count = variance.shape[-1]
    if count == 0:
        return variance
    v = variance.clamp_min(LEAST_VARIANCE)
    weights = v.reciprocal()
    goal = min(count - 1, effective)
    short = effective_size(weights) < goal
    if bool(short.any()):
        exact = v[short].double()
        low, high = exact.new_zeros(len(exact), 1), exact.amax(-1, keepdim=True)
        while bool((less := effective_size((exact + high).reciprocal()) < goal).any()):
            high = torch.where(less.unsqueeze(-1), 2 * high, high)
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            less = (effective_size((exact + middle).reciprocal()) < goal).unsqueeze(-1)
            low, high = torch.where(less, middle, low), torch.where(less, high, middle)
        weights[short] = (exact + high).reciprocal().to(v.dtype)
    return weights / weights.sum(-1, keepdim=True)
