"""Likelihoods: how `log pi_theta(action)` and its gradient are obtained.

Two halves. The part `Likelihood` says what of the policy's evaluation a term differentiates. The functions below turn a network's output
into log-probabilities and entropies `[B,T]`; policies call them, and what makes them fast (only the policy's own positions are projected,
the vocabulary in chunks) is their business and nobody else's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unipg.errors import InputError
from unipg.estimator.parts import Part
from unipg.shapes import Float, Int
from unipg.trajectories import Evaluation, Trajectories

CHUNK_ELEMENTS = 1 << 24
"""Logits held at once when the vocabulary is projected; more are recomputed chunk by chunk in the backward pass."""


@dataclass(frozen=True)
class Positions:
    """The next-token distributions at the `N` positions where the policy acted, with the graph."""

    logits: Float[Tensor, "N V"]
    """Divided by the temperature."""
    action: Int[Tensor, " N"]
    key: Int[Tensor, " N"]
    """A number per position that depends on the row's content, the optimiser step and the seed alone: for draws that do not change with
    the order of rows, padding or micro-batches (`uniforms`)."""
    hidden: Float[Tensor, "N H"] | None = None
    """The last hidden state that the logits were projected from, where there is one."""
    weight: Float[Tensor, "V H"] | None = None
    """The projection."""


@dataclass(frozen=True)
class Reading(Part):
    """Something read off the whole next-token distribution while its logits are there; `now.reading(self)` gives it back as `[B,T]`.

    The logits never exist for all positions at once: a reading sees them chunk by chunk, and must look at each position by itself.
    """

    def __call__(self, at: Positions) -> dict[str, Float[Tensor, " N"]]:
        raise NotImplementedError(type(self).__name__)


def read_off(
    logits: Float[Tensor, "B T V"], action: Int[Tensor, "B T"], batch: Trajectories, readings: Sequence[Reading]
) -> dict[Reading, dict[str, Tensor]]:
    """What each reading finds where the policy acted, `[B,T]` by name and 0 elsewhere: for policies whose logits all fit in memory."""
    if not readings:
        return {}
    mask = batch.mask
    positions = Positions(logits[mask], action[mask], batch.require("position_key", "a reading")[mask])
    found = {reading: reading(positions) for reading in readings}

    def place(values: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)

    return {reading: {name: place(values) for name, values in named.items()} for reading, named in found.items()}


def uniforms(key: Int[Tensor, " N"], count: int) -> Float[Tensor, "N K"]:
    """`count` numbers in [0, 1) for each key, by hashing: the same key always gives the same ones (splitmix64)."""
    draws = torch.arange(1, count + 1, dtype=torch.long, device=key.device) * _GOLDEN
    return (mixed(key.unsqueeze(-1) + draws) >> 11 & ((1 << 53) - 1)).double() * 2.0**-53


_GOLDEN = -7046029254386353131  # 0x9e3779b97f4a7c15 as int64


def mixed(number: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """The finaliser of splitmix64: every bit of the result depends on every bit of the number. int64, wrapping."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        number = (number ^ (number >> shift & ((1 << (64 - shift)) - 1))) * factor
    return number ^ (number >> 31 & ((1 << 33) - 1))


def position_keys(batch: Trajectories, seed: int) -> Int[Tensor, "B T"]:
    """[B,T] keys for draws at each position, from what the row holds and which group it is in; rows that are the same share them."""
    assert batch.present is not None
    assert batch.group is not None
    place = torch.arange(1, batch.mask.shape[1] + 1, device=batch.mask.device) * _GOLDEN
    if batch.action.is_floating_point():
        content = batch.action.reshape(*batch.mask.shape, -1).float().contiguous().view(torch.int32).long().sum(-1)
    else:
        content = batch.action.long()
    row = torch.where(batch.present, mixed(content + place), 0).sum(1)
    return mixed((row + mixed(batch.group + seed * _GOLDEN)).unsqueeze(1) + place)


@dataclass(frozen=True)
class Likelihood(Part):
    """Base class: the `[B,T]` log-probabilities that a term differentiates."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What must be read off the next-token distributions."""
        return ()

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
    readings: Sequence[Reading] = (),
    key: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None, dict[Reading, dict[str, Tensor]]]:
    """log softmax(hidden·weightᵀ / temperature) at `token`, the entropy of that distribution in nats if asked, and `readings` of it.

    Logits are formed for at most `CHUNK_ELEMENTS` entries at a time, in float32 or better; with several chunks the backward pass
    recomputes them, so `[N,V]` never exists.
    """

    keys = torch.zeros_like(token) if key is None else key

    def one(h: Tensor, t: Tensor, k: Tensor) -> tuple[Tensor, Tensor, dict[Reading, dict[str, Tensor]]]:
        logits = torch.nn.functional.linear(h, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        positions = Positions(logits, t, k, h, weight)
        return *categorical_log_prob(logits, t, entropy=entropy), {r: r(positions) for r in readings}

    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if hidden.shape[0] <= rows:
        log_prob, h, read = one(hidden, token, keys)
        return log_prob, h if entropy else None, read
    pieces = zip(hidden.split(rows), token.split(rows), keys.split(rows), strict=True)
    chunks = [checkpoint(one, *piece, use_reentrant=False) for piece in pieces]
    read = {r: {name: torch.cat([c[2][r][name] for c in chunks]) for name in chunks[0][2][r]} for r in readings}
    return torch.cat([c[0] for c in chunks]), torch.cat([c[1] for c in chunks]) if entropy else None, read


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
