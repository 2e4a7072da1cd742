"""Likelihoods: how `log pi_theta(action)` and its gradient are obtained.

Two halves. The part `Likelihood` says what of the policy's evaluation a term differentiates. The functions below turn a network's output
into log-probabilities and entropies `[B,T]`; policies call them, and what makes them fast (only the policy's own positions are projected,
the vocabulary in chunks) is their business and nobody else's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from unipg.errors import InputError
from unipg.estimator.parts import Joint, Part
from unipg.estimator.projection import CHUNK_ELEMENTS, project
from unipg.shapes import Bool, Float, Int
from unipg.trajectories import Evaluation, Trajectories

POSITION_KEY = "position_key"
"""The planned tensor from which readings draw."""
Valued = Callable[[Evaluation], Tensor]
"""An advantage as a function of where it is looked at, [B,T], or [B,T,n] at a point with all n actions."""
Ranks = frozenset[tuple[str, Callable[[Trajectories, Evaluation], Tensor]]]
"""Observations by field, and the advantage by which a mixture's components compete there."""
STD_MIN, STD_MAX = 1e-3, 10.0
"""Of latent actions, between which the standard deviation that a network gives is held (arXiv 2512.02581, released code)."""


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
    planned: Mapping[str, Tensor] = field(default_factory=dict)
    """`[N]` each: the planned tensors that the readings want, by name."""
    temperature: float = 1.0
    """What the logits were divided by."""


@dataclass(frozen=True)
class Reading(Part):
    """Something read off the whole next-token distribution while its logits are there; `now.reading(self)` gives it back as `[B,T]`.

    The logits never exist for all positions at once: a reading sees them chunk by chunk, and must look at each position by itself.
    """

    wants: ClassVar[tuple[str, ...]] = ()
    """Names of planned `[B,T]` tensors that it sees beside the logits."""

    def __call__(self, at: Positions) -> dict[str, Float[Tensor, " N"]]:
        raise NotImplementedError(type(self).__name__)


def read_off(
    logits: Float[Tensor, "B T V"],
    action: Int[Tensor, "B T"],
    batch: Trajectories,
    readings: Sequence[Reading],
    hidden: Float[Tensor, "N H"] | None = None,
    weight: Float[Tensor, "V H"] | None = None,
) -> dict[Reading, dict[str, Tensor]]:
    """What each reading finds where the policy acted, `[B,T]` by name and 0 elsewhere: for policies whose logits all fit in memory.

    `hidden`, `weight`: where the logits are `hidden·weightᵀ`, the states at the N positions where the policy acted, and the projection.
    """
    if not readings:
        return {}
    mask = batch.mask
    planned = wanted(batch, readings)
    positions = Positions(logits[mask], action[mask], planned[POSITION_KEY], hidden, weight, planned)
    found = {reading: reading(positions) for reading in readings}
    return {reading: {name: placed(values, mask) for name, values in named.items()} for reading, named in found.items()}


def wanted(batch: Trajectories, readings: Sequence[Reading]) -> dict[str, Tensor]:
    """[N] each, where the policy acted: the positions' keys, and the planned tensors that `readings` want; nothing without readings."""
    names = dict.fromkeys([POSITION_KEY, *(name for reading in readings for name in reading.wants)] if readings else [])
    return {name: batch.require(name, "a reading")[batch.mask] for name in names}


def placed(values: Float[Tensor, " N"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Values of the positions where `mask` is 1, back at their places; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def uniforms(key: Int[Tensor, " N"], count: int, first: int = 0) -> Float[Tensor, "N K"]:
    """`count` numbers in [0, 1) for each key, by hashing: the same key always gives the same ones (splitmix64). `first`: how many of a
    key's numbers are left out before them."""
    draws = torch.arange(first + 1, first + count + 1, dtype=torch.long, device=key.device) * _GOLDEN
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
        if content.ndim > 2:  # several choices a step
            several = content.reshape(*batch.mask.shape, -1)
            content = mixed(several + torch.arange(several.shape[-1], device=several.device) * _GOLDEN).sum(-1)
    row = torch.where(batch.present, mixed(content + place), 0).sum(1)
    turn = torch.tensor(seed, device=batch.mask.device) * _GOLDEN  # wraps as a tensor; as a plain number it would not fit
    return mixed((row + mixed(batch.group + turn)).unsqueeze(1) + place)


@dataclass(frozen=True)
class OneTokenRollout(Reading):
    """Tokens `a_1 … a_K` drawn at every position from pi' = softmax(z / temperature), beside the given token y: what OTR reads.

        hit           = (1/K) · #{j: a_j = y}                           detached
        miss_log_prob = (1/K) · sum over j with a_j ≠ y of log pi(a_j)  with the graph, log pi = log softmax(z) untempered

    `draws`: K, with replacement; None for the expectation over pi' instead: hit = pi'(y), miss_log_prob = sum_{a ≠ y} pi'(a)·log pi(a).
    `temperature` is relative to the logits z, which are already divided by the policy's own. Draws invert the cumulative distribution
    at `uniforms`, counted per token, so only `[N,V]` is held. A logit of −inf is a token that cannot be drawn.
    Errors: `InputError` for logits that are NaN, +inf or all −inf, and for a given token outside the vocabulary. Source: arXiv 2509.26313.
    """

    draws: int | None = 256
    temperature: float = 1.3

    def __post_init__(self) -> None:
        if self.draws is not None and self.draws < 1:
            raise InputError(f"OneTokenRollout.draws is {self.draws}; accepted: 1 or more, or null for the exact expectation")
        check_temperature(self.temperature)

    def __call__(self, at: Positions) -> dict[str, Float[Tensor, " N"]]:
        logits, given = at.logits.detach(), at.action.unsqueeze(-1)
        if not bool(torch.isfinite(logits.amax(-1)).all()):  # the largest of a row with a NaN is NaN
            raise InputError("the logits of a position have a NaN, +inf or nothing but −inf; accepted: finite, −inf for impossible tokens")
        if not bool(((given >= 0) & (given < logits.shape[-1])).all()):
            raise InputError(f"a demonstrated token is outside the vocabulary; accepted: 0 to {logits.shape[-1] - 1}")
        share = self.share(logits, at.key)
        log_prob = torch.log_softmax(at.logits, -1)
        missed = (share > 0).scatter(-1, given, False)
        return {
            "hit": share.gather(-1, given).squeeze(-1),
            "miss_log_prob": (torch.where(missed, share, 0) * torch.where(missed, log_prob, 0)).sum(-1),
        }

    def share(self, logits: Float[Tensor, "N V"], key: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """[N,V] share of the draws that are each token, detached; with `draws` None its expectation pi'."""
        probability = torch.softmax(logits / self.temperature, -1)
        if self.draws is None:
            return probability
        edges = probability.double().cumsum(-1)
        count = torch.zeros_like(probability)
        block = max(1, CHUNK_ELEMENTS // max(1, len(key)))
        for start in range(0, self.draws, block):
            height = uniforms(key, min(block, self.draws - start), start) * edges[:, -1:]
            drawn = torch.searchsorted(edges, height, right=True).clamp_max(logits.shape[-1] - 1)
            count.scatter_add_(-1, drawn, torch.ones_like(height, dtype=count.dtype))
        return count / self.draws


def nth(at: str, draw: int) -> str:
    """What the planned noise of several draws at one observation goes by: the first as that of a single one."""
    return f"{at}/{draw}" if draw else at


@dataclass(frozen=True)
class Likelihood(Part):
    """Base class: the `[B,T]` log-probabilities that a term differentiates."""

    substitutes: ClassVar[bool] = False
    """Whether other actions stand in the place of the stored one, so that no ratio and no mask mean anything (`Substituted`)."""
    draws: ClassVar[bool] = False
    """Whether those actions are drawn, from planned noise."""
    own: ClassVar[bool] = False
    """Whether it stands in the place of the policy's log-probabilities, which are then not asked for."""

    @property
    def noise(self) -> frozenset[str]:
        """What its planned noise is for (`noise/…`)."""
        return frozenset({"observation"}) if self.draws else frozenset()

    @property
    def ranks(self) -> Ranks:
        """See `Term.ranks`."""
        return frozenset()

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What must be read off the next-token distributions."""
        return ()

    def __call__(self, now: Evaluation) -> Float[Tensor, "B T"]:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Substituted(Likelihood):
    """Base class: the objective is E[Â(s, a)] over the policy's own actions at each stored observation, and is differentiated as it is."""

    substitutes: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"

    def expected(self, value: Valued, now: Evaluation, at: str = "observation") -> Float[Tensor, "B T"]:
        """An estimate of E[Â(s, a)], a ~ pi_theta(·|s), at the named observations; its gradient is that of the expectation."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Pathwise(Substituted):
    """∇_theta Â(s, a_theta(s, noise)): through the action, one draw for each row. The advantage is differentiated, not weighed.

    The noise is planned (`noise/observation`, [B,T,A]), so the gradient does not depend on how a batch is cut. `scale`: alpha of
    alpha · Â / mean|Â|, the mean over the steps of an optimiser step and detached (arXiv 2106.06860, eq. 5): the advantage's own scale
    then counts for nothing beside other terms. Source: arXiv 1312.6114; 1801.01290, eq. 12.
    """

    draws: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"scale"})
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not (self.scale >= 0 and math.isfinite(self.scale)):
            raise InputError(f"Pathwise.scale is {self.scale}; accepted: a finite number of 0 or more, or null for values as they are")

    def expected(self, value: Valued, now: Evaluation, at: str = "observation") -> Float[Tensor, "B T"]:
        return value(now.fresh(at))


@dataclass(frozen=True)
class Enumerated(Substituted):
    """sum_a ∇pi_theta(a|s) · Â(s, a) over all actions, without a draw; Â is detached. Source: arXiv 1910.07207; 1709.00503.

    `through`: Â is differentiated too. That of an entropy bonus −log pi adds 0; that of any other function of pi does not.
    """

    minor: ClassVar[frozenset[str]] = frozenset({"through"})
    through: bool = False

    def expected(self, value: Valued, now: Evaluation, at: str = "observation") -> Float[Tensor, "B T"]:
        point = now.every(at)
        found = value(point)
        return (point.log_prob.exp() * (found if self.through else found.detach())).sum(-1)


@dataclass(frozen=True)
class Stepwise(Likelihood):
    """log pi(tau) = sum_t log pi(a_t | what came before): autoregressive tokens, or the steps of a controller."""

    joint: ClassVar[Joint] = "step"

    def __call__(self, now: Evaluation) -> Float[Tensor, "B T"]:
        return now.log_prob


@dataclass(frozen=True)
class NamedPolicy(Likelihood):
    """log pi_of(a|s) of the network `of`: another policy than that which acts, such as a member of an ensemble."""

    joint: ClassVar[Joint] = "step"
    own: ClassVar[bool] = True
    of: str = "actor"

    def __call__(self, now: Evaluation) -> Float[Tensor, "B T"]:
        return now.log_prob_of(self.of)


@dataclass(frozen=True)
class Denoised(Likelihood):
    """log g(u|s) by its denoising bound, up to a constant and a factor: −(mean over K draws) of the squared error of the network `of`.

        flow        |v(s, x_t, t) − (e − u)|², x_t = t·e + (1 − t)·u          diffusion   |e(s, x_k, k) − e|²

    u is the stored action; e and t are planned (`noise/<of>`, [B,T,K,A+1]), so the gradient does not depend on how a batch is cut, and
    several policies can be asked at the same noise. Source: arXiv 2210.02747; 2006.11239.
    """

    joint: ClassVar[Joint] = "step"
    own: ClassVar[bool] = True
    of: str = "decoder"

    @property
    def noise(self) -> frozenset[str]:
        return frozenset({self.of})

    def __call__(self, now: Evaluation) -> Float[Tensor, "B T"]:
        return -now.denoised(self.of)


@dataclass(frozen=True)
class ReadLikelihood(Likelihood):
    """The log-probability that a `Reading` calls `value`: of tokens other than the one that was given, say."""

    joint: ClassVar[Joint] = "step"
    reading: Reading
    value: str

    @property
    def readings(self) -> tuple[Reading, ...]:
        return (self.reading,)

    def __call__(self, now: Evaluation) -> Float[Tensor, "B T"]:
        return now.reading(self.reading)[self.value]


def token_log_prob(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    token: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    readings: Sequence[Reading] = (),
    planned: Mapping[str, Tensor] | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None, dict[Reading, dict[str, Tensor]]]:
    """log softmax(hidden·weightᵀ / temperature) at `token`, the entropy of that distribution in nats if asked, and `readings` of it.

    Without readings by `projection.project`; with them logits are formed for at most `CHUNK_ELEMENTS` entries at a time and again in the
    backward pass. `[N,V]` never exists where it is large. `planned`: what the readings want of each token (`wanted`).
    """

    if not readings:
        return *project(hidden, weight, token, bias=bias, temperature=temperature, entropy=entropy), {}
    planned = {POSITION_KEY: torch.zeros_like(token)} if planned is None else planned

    def one(h: Tensor, t: Tensor, *more: Tensor) -> tuple[Tensor, Tensor, dict[Reading, dict[str, Tensor]]]:
        logits = torch.nn.functional.linear(h, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        mine = dict(zip(planned, more, strict=True))
        positions = Positions(logits, t, mine[POSITION_KEY], h, weight, mine, temperature)
        return *categorical_log_prob(logits, t, entropy=entropy), {r: r(positions) for r in readings}

    rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    if hidden.shape[0] <= rows:
        log_prob, h, read = one(hidden, token, *planned.values())
        return log_prob, h if entropy else None, read
    pieces = zip(hidden.split(rows), token.split(rows), *(values.split(rows) for values in planned.values()), strict=True)
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
    # an impossible token's p·log p is 0, and so is its gradient, as soon as its log-probability is finite
    return chosen, -(log_p.exp() * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(-1)


def gaussian_log_prob(
    mean: Float[Tensor, "*N A"], log_std: Float[Tensor, "*#N A"], action: Float[Tensor, "*N A"], entropy: bool = True
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N"]]:
    """Log-density of a diagonal Gaussian, summed over the action's dimensions, and its entropy in nats (zeros unless asked)."""
    log_std = log_std.expand_as(mean)
    log_prob = gaussian_log_densities(mean, log_std, action).sum(-1)
    return log_prob, (log_std + 0.5 * math.log(2 * math.pi) + 0.5).sum(-1) if entropy else torch.zeros_like(log_prob)


def gaussian_log_densities(
    mean: Float[Tensor, "*N A"], log_std: Float[Tensor, "*#N A"], action: Float[Tensor, "*N A"]
) -> Float[Tensor, "*N A"]:
    """Log-density of each of the action's dimensions by itself."""
    z = (action - mean) * torch.exp(-log_std)
    return -0.5 * z * z - log_std - 0.5 * math.log(2 * math.pi)


def categorical_kl(logits: Float[Tensor, "*N V"], other: Float[Tensor, "*N V"]) -> Float[Tensor, "*N"]:
    """KL(softmax(logits) ‖ softmax(other)) in nats."""
    log_p, log_q = (torch.log_softmax(each, -1) for each in (logits, other))
    least = torch.finfo(log_p.dtype).min  # an action that is impossible under both adds 0
    return (log_p.exp() * (log_p.clamp_min(least) - log_q.clamp_min(least))).sum(-1)


def gaussian_kl(
    mean: Float[Tensor, "*N A"], log_std: Float[Tensor, "*N A"], other: Float[Tensor, "*N A"], other_log_std: Float[Tensor, "*N A"]
) -> Float[Tensor, "*N"]:
    """KL(N(mean, std) ‖ N(other, other_std)) in nats, of diagonal Gaussians: ½ Σ (e^{2d} − 1 − 2d) + ((mean − other) / other_std)², with
    d = log_std − other_log_std. Exactly 0 where they are equal."""
    d = log_std - other_log_std
    z = (mean - other) * torch.exp(-other_log_std)
    return 0.5 * (torch.expm1(2 * d) - 2 * d + z * z).sum(-1)


def log_slope_of_tanh(u: Float[Tensor, "*N A"]) -> Float[Tensor, "*N"]:
    """log |da/du| of a = tanh(u), summed over the action's dimensions: Σ 2·(log 2 − u − softplus(−2u)), exact where 1 − a² is 0."""
    return log_slopes_of_tanh(u).sum(-1)


def log_slopes_of_tanh(u: Float[Tensor, "*N A"]) -> Float[Tensor, "*N A"]:
    """The same of each dimension."""
    return 2 * (math.log(2) - u + logsigmoid(2 * u))


def check_temperature(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"temperature is {temperature}; accepted: a finite number above 0 (greedy decoding has no log-probabilities)")
    return temperature
