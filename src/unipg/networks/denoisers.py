"""Networks that turn noise into data, step by step: a velocity (flow matching) or the noise itself (diffusion), and their samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unipg.errors import InputError, nearest
from unipg.networks.perceptron import Perceptron, initialise

Process = Literal["flow", "diffusion"]
Schedule = Literal["linear", "cosine"]
FREQUENCIES = 4
"""Of the time features: 1, 2, 4, 8."""
LEVELS = 10
"""Of the released diffusion, which is nearly the identity at the start."""
T = TypeVar("T", Tensor, np.ndarray)


def time_features(t: Tensor) -> Tensor:
    """[N] times in [0, 1] to [N,8]: cos(2^i t) and then sin(2^i t), i = 0 … 3."""
    angle = t.unsqueeze(-1) * 2.0 ** torch.arange(FREQUENCIES, dtype=t.dtype, device=t.device)
    return torch.cat([angle.cos(), angle.sin()], -1)


def alpha_bars(schedule: Schedule, levels: int) -> list[float]:
    """[K] the share of the data's variance that is left at each level of noise, k = 0 … K − 1; all above 0.

    linear   prod_{i <= k} (1 − beta_i), beta from 1e-4 to 0.02 (arXiv 2006.11239)
    cosine   cos²((k/K + s) / (1 + s) · pi/2), relative to k = 0, s = 0.008 (arXiv 2102.09672)
    """
    if levels < 2:
        raise InputError(f"a diffusion has {levels} levels of noise; accepted: 2 or more")
    if schedule == "linear":
        return np.cumprod(1 - np.linspace(1e-4, 0.02, levels)).tolist()
    if schedule == "cosine":
        rising = [math.cos((k / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(levels)]
        return [each / rising[0] for each in rising]
    raise InputError(f"noise schedule '{schedule}' does not exist; {nearest(str(schedule), get_args(Schedule))}")


def euler(velocity: Callable[[T, float], T], z: T, steps: int) -> T:
    """x from t = 1, where it is z, to t = 0: x ← x + (t' − t) · v(x, t) in even steps. No noise is added."""
    times = [1 - step / steps for step in range(steps)] + [0.0]
    for t, after in pairwise(times):
        z = z + (after - t) * velocity(z, t)
    return z


def ddim(noise: Callable[[T, int], T], z: T, alpha_bar: Sequence[float] | Tensor) -> T:
    """x from the last level, where it is z, to none: deterministic DDIM, of which the last target's share is 1 (arXiv 2010.02502, eta = 0).

    x ← sqrt(a') · x0 + sqrt(1 − a') · e,  x0 = (x − sqrt(1 − a) · e) / sqrt(a),  e = noise(x, k), k from K − 1 to 1.
    """
    for k in range(len(alpha_bar) - 1, 0, -1):
        e, share = noise(z, k), alpha_bar[k]
        clean = (z - (1 - share) ** 0.5 * e) / share**0.5
        if k == 1:
            return clean
        z = alpha_bar[k - 1] ** 0.5 * clean + (1 - alpha_bar[k - 1]) ** 0.5 * e
    return z


class Denoiser(nn.Module):
    """g(c, z): a perceptron (SiLU) on [(c − mean) / std, x_t, features of t] that stands for the velocity, or for the noise, of x_t.

        flow        x_t = t·e + (1 − t)·u, t ∈ [0, 1];                             it gives e − u; decoded by `euler`
        diffusion   x_k = sqrt(a_k)·u + sqrt(1 − a_k)·e, read with t = k/K;        it gives e;     decoded by `ddim`

    Its weights start at 0: then `decode` gives z itself, or of a diffusion z / sqrt(a_{K−1}), 1.05 · z of ten levels of the linear
    schedule. More levels, the last of which would be nothing but noise, start with as little noise as ten have. `draw` starts it afresh for
    training. `mean`, `std` [C]: its own statistics of the condition, set by `fit`.

    Errors: `InputError` for fewer than 1 step, and for a z that has not the `size` A of the data.
    """

    mean: Tensor
    std: Tensor
    alpha_bar: Tensor

    def __init__(self, process: Process, condition: int, size: int, hidden: Sequence[int], steps: int) -> None:
        super().__init__()
        if process not in get_args(Process):
            raise InputError(f"process '{process}' does not exist; {nearest(str(process), get_args(Process))}")
        if steps < 1:
            raise InputError(f"a decoder takes {steps} steps; accepted: 1 or more")
        self.process, self.size, self.steps = process, size, steps
        sizes = [condition + size + 2 * FREQUENCIES, *hidden, size]
        self.network = Perceptron(sizes, activation="silu", source=torch.Generator())
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.zero_()
        self.register_buffer("mean", torch.zeros(condition, dtype=torch.float64))
        self.register_buffer("std", torch.ones(condition, dtype=torch.float64))
        bars = np.array(alpha_bars("linear", steps) if process == "diffusion" else []) ** min(1.0, LEVELS / steps)
        self.register_buffer("alpha_bar", torch.from_numpy(bars))

    @torch.no_grad()
    def draw(self, source: torch.Generator, schedule: Schedule = "cosine") -> None:
        """New weights, uniform in ±1/sqrt(inputs of the layer), and of a diffusion the schedule to be trained with."""
        for layer in cast("list[nn.Linear]", list(self.network.layers)):
            initialise(layer, "torch", 1.0, source)
        if self.process == "diffusion":
            self.alpha_bar.copy_(torch.tensor(alpha_bars(schedule, self.steps)))

    @torch.no_grad()
    def fit(self, condition: Tensor) -> None:
        """Takes mean and standard deviation over [N,C]; 1 for what never changes."""
        condition = condition.double()
        self.mean.copy_(condition.mean(0))
        spread = condition.std(0, correction=0)
        self.std.copy_(torch.where(spread <= 1e-6 * self.mean.abs().clamp_min(1e-6), 1.0, spread))

    def read(self, condition: Tensor) -> Tensor:
        """[N,C] in units of its statistics."""
        return ((condition - self.mean) / self.std).to(condition.dtype)

    def forward(self, read: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """[N,A] what is said of x_t [N,A] at times t [N] in [0, 1]; `read` [N,C]: the condition as `read` gives it."""
        return self.network(torch.cat([read, x, time_features(t)], -1))

    def decode(self, condition: Tensor, z: Tensor) -> Tensor:
        """[N,A] u of conditions [N,C] and z [N,A], with the graph."""
        self._check(z)
        read = self.read(condition)

        def said(x: Tensor, t: float) -> Tensor:
            return self(read, x, torch.full_like(x[:, 0], t))

        if self.process == "flow":
            return euler(said, z, self.steps)
        return ddim(lambda x, k: said(x, k / self.steps), z, self.alpha_bar)

    def noise(self, shape: Sequence[int], source: torch.Generator) -> Tensor:
        """[*shape,A+1] what `error` draws x_t by: e, standard normal, and a number in [0, 1) that decides t."""
        e = torch.randn(*shape, self.size, generator=source)
        return torch.cat([e, torch.rand(*shape, 1, generator=source)], -1)

    def error(self, condition: Tensor, u: Tensor, noise: Tensor) -> Tensor:
        """[N] mean squared error of what is said of u [N,A], over its numbers and over the K draws of `noise` [N,K,A+1].

        Flow matching (arXiv 2210.02747), or the noise prediction of a diffusion at a level in 1 … K − 1: level 0 has none.
        """
        self._check(u)
        draws = noise.shape[1]
        e, t = noise[..., : self.size].to(u.dtype), noise[..., self.size :].to(u.dtype)
        u = u.unsqueeze(1)
        if self.process == "flow":
            x, target = t * e + (1 - t) * u, e - u
        else:
            k = (1 + (t * (self.steps - 1)).floor().clamp_max(self.steps - 2)).long()
            share = self.alpha_bar[k].to(u.dtype)
            x, target, t = share.sqrt() * u + (1 - share).sqrt() * e, e, k.to(u.dtype) / self.steps
        read = self.read(condition).unsqueeze(1).expand(-1, draws, -1)
        said = self(read.flatten(0, 1), x.flatten(0, 1), t.flatten())
        return (said - target.flatten(0, 1)).square().mean(-1).unflatten(0, (-1, draws)).mean(1)

    def on_the_host(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """`decode` in NumPy, of weights as they are now."""
        network = self.network.on_the_host()
        mean, std = (each.cpu().numpy().copy() for each in (self.mean, self.std))
        features = {t: time_features(torch.tensor([t], dtype=torch.float32)).numpy() for t in self._times()}
        bars: list[Any] = self.alpha_bar.tolist()

        def decode(condition: np.ndarray, z: np.ndarray) -> np.ndarray:
            read = ((condition - mean) / std).astype(np.float32)

            def said(x: np.ndarray, t: float) -> np.ndarray:
                return network(np.concatenate([read, x, np.broadcast_to(features[t], (len(x), 2 * FREQUENCIES))], -1))

            z = z.astype(np.float32, copy=False)
            if self.process == "flow":
                return euler(said, z, self.steps)
            return ddim(lambda x, k: said(x, k / self.steps), z, bars)

        return decode

    def _times(self) -> list[float]:
        """Those that the sampler asks about."""
        steps = range(self.steps)
        return [1 - step / self.steps for step in steps] if self.process == "flow" else [k / self.steps for k in steps]

    def _check(self, z: Tensor) -> None:
        if z.shape[-1] != self.size:
            raise InputError(f"a decoder of actions of {self.size} numbers was given {z.shape[-1]}; accepted: as many, it keeps dimensions")
