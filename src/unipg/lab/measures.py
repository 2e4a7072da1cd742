"""Bias, variance and signal of gradient estimates against an exact gradient, with intervals that know their own Monte-Carlo noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.seeding import generator
from unipg.statistics import Interval

RESAMPLES = 1000
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Measurement:
    """What N independent gradient estimates `G_i [P]` say of their expectation E[G] and its target."""

    cosine: Interval
    """Cosine of E[G] with the target. The noise of the mean over batches is taken out, so it is not pulled below 1 by few batches."""
    bias: Interval
    """‖E[G] − c · target‖ / ‖E[G]‖ with the best positive scale c: 0 for the right direction, 1 for none of it."""
    variance: Interval
    """tr Cov(G) / ‖E[G]‖²: of one batch."""
    snr: Interval
    """Signal-to-noise ratio of one batch, ‖E[G]‖ / √tr Cov(G)."""
    batch_cosine: Interval
    """Mean over batches of the cosine of one batch's gradient with the target: bias and noise together."""
    norm: float
    """‖E[G]‖."""
    scale: tuple[float, ...]
    """The best non-negative weight of each of the gradients that make up the target."""


def measure(gradients: Tensor, basis: Sequence[Tensor], seed: int = 0) -> Measurement:
    """`gradients [N,P]` against the cone spanned by the exact gradients in `basis` (`[P]` each).

    The target is the combination with non-negative weights that is nearest to the mean gradient. For one exact gradient that is the
    gradient itself, with the best positive scale; for two, such as those of E[R] and of the demonstrations' likelihood, it is J_mu at the
    best mu. Squares of expectations are estimated from pairs of different batches (a U-statistic),

        ‖E[G]‖² ≈ Σ_{i≠j} G_i · G_j / N(N − 1),

    whose mean has no Monte-Carlo noise in it. Intervals: 95 %, percentile bootstrap over batches with the target held fixed.

    Errors: `InputError` for fewer than two batches.
    """
    count = len(gradients)
    if count < 2:
        raise InputError(f"{count} batches say nothing of the variance; accepted: 2 or more")
    scale, target = nearest_in_cone(gradients.mean(0), basis)
    unit = target / target.norm().clamp_min(1e-300)
    along = gradients @ unit
    across = gradients - along.unsqueeze(1) * unit
    squares = torch.stack([along**2, (across**2).sum(1)], 1)

    def statistics(weight: Tensor) -> Tensor:
        """[R,4] cosine, bias, variance, snr for R weightings of the batches `[R,N]` that sum to N."""
        mean = weight @ along / count
        pairs = (weight**2) @ squares  # what a batch has with itself, and with its own copies
        total = (count**2 - (weight**2).sum(1)).clamp_min(1)  # 0 where a resample holds one batch alone
        right = ((mean * count) ** 2 - pairs[:, 0]) / total
        wrong = ((weight @ across).square().sum(1) - pairs[:, 1]) / total
        signal = right + wrong
        spread = (weight @ squares).sum(1) / count - signal
        share = torch.where(signal > 0, wrong / signal, 1).clamp(0, 1)
        ahead = (mean > 0) & (target.norm() > 0)
        cosine = torch.where(mean > 0, 1, -1) * (1 - share).sqrt()
        bias = torch.where(ahead, share.sqrt(), 1)
        noise = torch.where(signal > 0, spread.clamp_min(0) / signal.clamp_min(1e-300), math.inf)
        return torch.stack([cosine, bias, noise, noise.clamp_min(1e-300).rsqrt()], 1)

    draw = generator(seed, "bootstrap")
    drawn = torch.randint(count, (RESAMPLES, count), generator=draw)
    weights = torch.zeros(RESAMPLES, count, dtype=gradients.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=gradients.dtype))
    value = statistics(torch.ones(1, count, dtype=gradients.dtype))[0].tolist()
    ends = statistics(weights).quantile(torch.tensor(LEVELS, dtype=gradients.dtype), 0, interpolation="nearest").T.tolist()
    cosine, bias, variance, snr = (Interval(v, low, high, count) for v, (low, high) in zip(value, ends, strict=True))
    length = gradients.norm(dim=1)
    each = torch.where(length > 0, along / length.clamp_min(1e-300), 0)
    low, high = ((weights @ each) / count).quantile(torch.tensor(LEVELS, dtype=gradients.dtype)).tolist()
    norm = float(gradients.mean(0).norm())
    one = Interval(float(each.mean()), low, high, count)
    return Measurement(cosine, bias, variance, snr, one, norm, tuple(scale))


def nearest_in_cone(vector: Tensor, basis: Sequence[Tensor]) -> tuple[list[float], Tensor]:
    """Weights >= 0 and their combination of `basis` nearest to `vector`: least squares over every subset of the basis.

    Where no positive weight helps (the vector points away from all of them) the weights are 0 and the target is the plain sum.
    """
    best: tuple[float, list[float], Tensor] = (float(vector.norm()), [0.0] * len(basis), torch.stack(list(basis)).sum(0))
    for size in range(1, len(basis) + 1):
        for subset in itertools.combinations(range(len(basis)), size):
            matrix = torch.stack([basis[i] for i in subset], 1)
            weights = torch.linalg.lstsq(matrix, vector).solution
            rest = float((vector - matrix @ weights).norm())
            if (weights > 0).all() and rest < best[0]:
                chosen = [0.0] * len(basis)
                for i, weight in zip(subset, weights.tolist(), strict=True):
                    chosen[i] = weight
                best = (rest, chosen, matrix @ weights)
    return best[1], best[2]
