"""Observations in units of their own running statistics, which belong to the policy that reads them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from unipg.estimator.parts import Reduce, alone

LIMIT = 10.0
"""Standard deviations at which a normalised observation is cut off."""
EPS = 1e-8
STILL = 1e-3
"""Standard deviation of an observed number below which its units say little."""


def _normalised(x: Tensor, mean: Tensor, scale: Tensor, limit: float) -> Tensor:
    return ((x - mean) * scale).clamp(-limit, limit).to(x.dtype)


class Frozen(nn.Module):
    """(x − mean) · scale of each of O numbers, cut off at ±limit: a `RunningNormalizer` that has stopped, free of branches."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, limit: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        """[N,O] to [N,O], of the same dtype."""
        return _normalised(x, self.mean, self.scale, self.limit)


class RunningNormalizer(nn.Module):
    """(x − mean) / sqrt(variance + 1e-8) of each of O numbers, cut off at ±10, over everything that `update` was shown.

    A number that never changed is read as its distance from that; until anything was shown, x is read as it is. The statistics are buffers
    in float64, saved and copied with the policy; nothing but `update` moves them.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    """[O] sum of squared distances from the mean."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        for name in ("mean", "squares"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    @property
    def empty(self) -> bool:
        return not bool(self.count)

    @property
    def still(self) -> list[int]:
        """Of the O numbers those that hardly change: a standard deviation below 1e-3."""
        return [] if self.empty else ((self.squares / self.count).sqrt() < STILL).nonzero()[:, 0].tolist()

    def scale(self) -> Tensor:
        """[O] what distances from the mean are multiplied by."""
        variance = self.squares / self.count
        # of a constant the square root of 1e-8 would make 10 of any other number; its variance is rounding
        return torch.where(variance <= (1e-10 * self.mean) ** 2, 1.0, (variance + EPS).rsqrt())

    def forward(self, x: Tensor) -> Tensor:
        """[N,O] to [N,O], of the same dtype."""
        if self.empty:
            return x
        return _normalised(x, self.mean, self.scale(), LIMIT)

    def frozen(self) -> Frozen:
        """The statistics as they are now, which nothing moves any more."""
        return Frozen(self.mean.clone(), torch.ones_like(self.mean) if self.empty else self.scale(), math.inf if self.empty else LIMIT)

    def on_the_host(self) -> Callable[[np.ndarray], np.ndarray]:
        """The statistics as they are now, in NumPy."""
        if self.empty:
            return lambda x: x
        mean, scale = (tensor.detach().double().cpu().numpy().copy() for tensor in (self.mean, self.scale()))
        return lambda x: ((x - mean) * scale).clip(-LIMIT, LIMIT).astype(x.dtype)

    @torch.no_grad()
    def update(self, x: Tensor, total: Reduce = alone) -> None:
        """Adds [N,O] observations of this worker; `total` sums over all workers. Source: Chan et al. 1979 (merging moments)."""
        x = x.to(self.mean)
        added = total(torch.cat([x.sum(0), x.new_tensor([len(x)])]))
        count = added[-1]
        if not bool(count):
            return
        mean = added[:-1] / count
        squares = total(((x - mean) ** 2).sum(0))
        every, shift = self.count + count, mean - self.mean
        self.squares += squares + shift**2 * (self.count * count / every)
        self.mean += shift * (count / every)
        self.count.copy_(every)
