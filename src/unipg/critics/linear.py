"""Values in continuous time that are linear in their parameters, J = phi^T theta + base: each method's answer at once, no steps.

Where J at the end of a path is the payoff, what `features` and `base` say there counts for nothing (`Paths.closed`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from unipg.critics.continuous import Paths, Weighting, moment_weights, traces
from unipg.errors import InputError
from unipg.shapes import Float

SINGULAR = 1e12
"""Condition number from which a system is solved by least squares, with a warning."""


@dataclass(frozen=True)
class Solution:
    """theta [L] and the condition number of the system that it solves."""

    theta: Float[Tensor, " L"]
    condition: float


def clstd(
    paths: Paths,
    features: Float[Tensor, "N K1 L"],
    base: Float[Tensor, "N K1"] | None = None,
    lam: float | None = None,
    tests: Float[Tensor, "N K L"] | None = None,
) -> Solution:
    """(∑ xi_k e^{−beta t_k} (D phi_k)^T) theta = −∑ xi_k e^{−beta t_k} b_k, D phi and b the increments of phi and base.

    The fixed point of CTD(0), or of CTD(lam) with `lam`, whose xi are features and their traces; `tests`: any other adapted xi, as many as
    there are features. A singular system is solved by least squares, with a warning that has the condition number.
    """
    features, base = _read(paths, features, base)
    xi = traces(features[:, :-1], paths.times, lam) if tests is None else _tests(paths, tests, features)
    if xi.shape[-1] != features.shape[-1]:
        raise InputError(f"there are {xi.shape[-1]} test functions for {features.shape[-1]} features; accepted: as many (`gmm` takes more)")
    slope, rest = _moments(paths, features, base, xi)
    return _solved(slope, -rest)


def gmm(
    paths: Paths,
    features: Float[Tensor, "N K1 L"],
    tests: Float[Tensor, "N K M"],
    base: Float[Tensor, "N K1"] | None = None,
    weighting: Weighting = "inverse",
) -> Solution:
    """The theta at which ½ m₁^T A m₂ is stationary; m₁, m₂ the moments of the even and the odd paths, M ≥ L of them. See `moment_loss`.

    Errors: `InputError` for fewer than two paths, for M < L, and for another weighting.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} paths have no two independent halves; accepted: 2 or more")
    features, base = _read(paths, features, base)
    tests = _tests(paths, tests, features)
    if tests.shape[-1] < features.shape[-1]:
        raise InputError(f"there are {tests.shape[-1]} test functions for {features.shape[-1]} features; accepted: as many, or more")
    halves = [torch.arange(first, len(paths), 2) for first in (0, 1)]
    (s1, r1), (s2, r2) = (_moments(paths.select(rows), features[rows], base[rows], tests[rows], len(rows)) for rows in halves)
    a = moment_weights(paths, tests, weighting)
    return _solved(s1.T @ a @ s2 + s2.T @ a @ s1, -(s1.T @ a @ r2 + s2.T @ a @ r1))


def martingale_fit(paths: Paths, features: Float[Tensor, "N K1 L"], base: Float[Tensor, "N K1"] | None = None) -> Solution:
    """The minimiser of `martingale_loss`: the projection of what came onto the features, under the occupation measure."""
    features, base = _read(paths, features, base)
    weight = paths.times.weight * paths.times.dt.sqrt()
    target = paths.to_go() - base[:, :-1]
    return _least(weight.unsqueeze(-1) * paths.live(features[:, :-1]), weight * paths.live(target))


def mean_square_td_fit(paths: Paths, features: Float[Tensor, "N K1 L"], base: Float[Tensor, "N K1"] | None = None) -> Solution:
    """The minimiser of `mean_square_td`."""
    slope, rest = _increments(paths, *_read(paths, features, base))
    weight = paths.times.dt.rsqrt()
    return _least(weight.unsqueeze(-1) * slope, -weight * rest)


def _read(paths: Paths, features: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features [N,K+1,L] and base [N,K+1], 0 for None, in the widest dtype of them and the paths: systems are of one."""
    features = paths.checked(features, "features", "N,K+1,L")
    base = torch.zeros_like(features[..., 0]) if base is None else paths.checked(base, "base")
    dtype = reduce(torch.promote_types, (features.dtype, base.dtype, paths.rate.dtype))
    return features.to(dtype), base.to(dtype)


def _tests(paths: Paths, tests: Tensor, features: Tensor) -> Tensor:
    return paths.checked(tests, "tests", "N,K,M").to(features.dtype)


def _increments(paths: Paths, features: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """[N,K,L] D phi_k and [N,K] b_k."""
    return paths.live(paths.times.shift(paths.closed(features, torch.zeros_like(paths.payoff)))), paths.increments(base)


def _moments(paths: Paths, features: Tensor, base: Tensor, xi: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """[M,L] and [M]: what the moments of `count` paths are in theta, slope · theta + rest."""
    slope, rest = _increments(paths, features, base)
    weighed = paths.times.weight.unsqueeze(-1) * paths.live(xi)
    return torch.einsum("nkm,nkl->ml", weighed, slope) / count, torch.einsum("nkm,nk->m", weighed, rest) / count


def _least(rows: Tensor, target: Tensor) -> Solution:
    """The least-squares solution of [N,K,L] rows, by its normal equations: paths are many, features few."""
    flat, wanted = rows.flatten(0, 1), target.flatten()
    return _solved(flat.T @ flat, flat.T @ wanted)


def _solved(matrix: Tensor, right: Tensor) -> Solution:
    condition = float(torch.linalg.cond(matrix))
    if condition < SINGULAR:
        return Solution(torch.linalg.solve(matrix, right), condition)
    warnings.warn(
        f"the system of {len(right)} features is singular (condition number {condition:.3g}); solved by least squares", stacklevel=3
    )
    return Solution(torch.linalg.lstsq(matrix, right, driver="gelsd").solution, condition)
