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
ROUNDS, PARTS = 6, 64
"""Of the search for xi: each round leaves one of so many parts of what was left, 64⁻⁶ = 2⁻³⁶ of it in the end."""


def excess_kurtosis(values: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """G2, the bias-corrected excess kurtosis of K values, 0 where they are equal. Errors: `InputError` for K < 4, where there is none."""
    return _kurtosis(_squares(values, dim), dim)


def error_variance(error: Float[Tensor, "..."], ddof: int = 1, dim: int = -1) -> Float[Tensor, "..."]:
    """V = s² / (kappa/K + (K+1)/(K−1)): the variance of K errors, shrunk to the least mean squared error for the kurtosis they show."""
    squares, k = _squares(error, dim), error.shape[dim]
    return squares.sum(dim) / ((k - ddof) * (_kurtosis(squares, dim) / k + (k + 1) / (k - 1)))


def value_variance(value: Float[Tensor, "..."], discount: float, dim: int = -1) -> Float[Tensor, "..."]:
    """V = discount² · the unbiased variance of K values (arXiv 2201.01666)."""
    return _squares(value, dim).sum(dim) * (discount**2 / (value.shape[dim] - 1))


def _squares(values: Tensor, dim: int) -> Tensor:
    """Of the distances to the mean. Written out: torch's `var` warns of batches without rows."""
    return (values - values.mean(dim, keepdim=True)).square()


def _kurtosis(squares: Tensor, dim: int) -> Tensor:
    k = squares.shape[dim]
    if k < 4:
        raise InputError(f"a bias-corrected kurtosis is asked of {k} values; accepted: 4 or more")
    second = squares.mean(dim)
    equal = second < EQUAL
    ratio = squares.square().mean(dim) / second.masked_fill(equal, 1.0).square()
    return (((k * k - 1) * ratio - 3 * (k - 1) ** 2) / ((k - 2) * (k - 3))).masked_fill(equal, 0.0)


def effective_size(weights: Float[Tensor, "... N"]) -> Float[Tensor, "..."]:
    """(Σω)² / Σω², in [1, N]."""
    return weights.sum(-1).square() / weights.square().sum(-1)


@torch.no_grad()
def inverse_variance_weights(variance: Float[Tensor, "C N"], effective: float) -> Float[Tensor, "C N"]:
    """ω ∝ 1/(V + xi) with sum 1 over N steps, V at least 1e-6, with the least xi ≥ 0 that gives an effective size of min(N - 1, effective).

    The effective size grows with xi, which is cornered as by bisection, in larger parts: exact and without chance, where the released code
    minimises with Nelder-Mead.
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
        parts = torch.linspace(0, 1, PARTS + 1, dtype=exact.dtype, device=v.device)[1:]
        for _ in range(ROUNDS):
            xi = low + (high - low) * parts  # [C,PARTS]
            enough = effective_size((exact.unsqueeze(1) + xi.unsqueeze(-1)).reciprocal()) >= goal
            first = enough[:, :-1].logical_not().sum(1, keepdim=True)  # the last of them is always enough, rounding aside
            step = (high - low) / PARTS
            low, high = low + step * first, xi.gather(1, first)
        weights[short] = (exact + high).reciprocal().to(v.dtype)
    return weights / weights.sum(-1, keepdim=True)
