"""Likelihoods: how `log pi_theta(action)` and its gradient are obtained.

Two halves. The part `Likelihood` says what of the policy's evaluation a term differentiates. The functions below turn a network's output
into log-probabilities and entropies `[B,T]`; policies call them, and what makes them fast (only the policy's own positions are projected,
the vocabulary in chunks) is their business and nobody else's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unipg.errors import InputError
from unipg.estimator.parts import Part
from unipg.shapes import Float, Int
from unipg.trajectories import Evaluation

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once when the vocabulary is projected; more are recomputed chunk by chunk in the backward pass."""


@dataclass(frozen=True)
class Likelihood(Part):
    """Base class: the `[B,T]` log-probabilities that a term differentiates."""

    def __call__(self, now: Evaluation) -> Float[Tensor, "B T"]:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Stepwise(Likelihood):
    """log pi(tau) = sum_t log pi(a_t | what came before): autoregressive tokens, or the steps of a controller."""

    def __call__(self, now: Evaluation) -> Float[Tensor, "B T"]:
        return now.log_prob


def token_log_prob(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    token: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """log softmax(hidden·weightᵀ / temperature) at `token`, and the entropy of that distribution in nats if asked.

    Logits are formed for at most `CHUNK_ELEMENTS` entries at a time, in float32 or better; with several chunks the backward pass
    recomputes them, so `[N,V]` never exists.
    """

    def one(h: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.nn.functional.linear(h, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        return categorical_log_prob(logits, t, entropy=entropy)

    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if hidden.shape[0] <= rows:
        log_prob, h = one(hidden, token)
        return log_prob, h if entropy else None
    chunks = [checkpoint(one, h, t, use_reentrant=False) for h, t in zip(hidden.split(rows), token.split(rows), strict=True)]
    return torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks]) if entropy else None


def categorical_log_prob(
    logits: Float[Tensor, "*N V"], action: Int[Tensor, "*N"], *, entropy: bool = True
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """log softmax(logits) at `action`, and the entropy in nats (zeros unless asked)."""
    log_p = torch.log_softmax(logits, -1)
    chosen = log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return chosen, torch.zeros_like(chosen)
    # p·log p is 0 for an impossible token; its log-probability must not reach the product, nor its gradient
    possible = log_p > -torch.inf
    return chosen, -torch.where(possible, log_p.exp() * torch.where(possible, log_p, 0), 0).sum(-1)


def gaussian_log_prob(
    mean: Float[Tensor, "*N A"], log_std: Float[Tensor, "*#N A"], action: Float[Tensor, "*N A"]
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """Log-density of a diagonal Gaussian, summed over the action's dimensions, and its entropy in nats."""
    log_std = log_std.expand_as(mean)
    z = (action - mean) * torch.exp(-log_std)
    constant = 0.5 * math.log(2 * math.pi)
    log_prob = (-0.5 * z * z - log_std - constant).sum(-1)
    return log_prob, (log_std + constant + 0.5).sum(-1)


def check_temperature(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"temperature is {temperature}; accepted: a finite number above 0 (greedy decoding has no log-probabilities)")
    return temperature
