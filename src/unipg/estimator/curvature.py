"""Curvature of the policy gradient in the last layer: how far a token's own optimiser step would move objective and policy.

Belongs here: the model of one step, in logits and last hidden states. Does not belong here: which tokens are left out for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.likelihoods import Positions, Reading
from unipg.estimator.parts import Reduce, alone
from unipg.shapes import Bool, Float, Int

ADVANTAGE = "policy_gradient/advantage"
BLOCK_ELEMENTS = 1 << 18
"""Most entries of [tokens, support, H] that are there at once: few enough to stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class AdamModel:
    """Adam on a weight `[V,H]`, as a prediction: D = m̂ / (sqrt(n̂) + eps) for a gradient that would come next.

    While nothing was ever learnt (`steps` = 0) D is the gradient itself. What it learns is two tensors of the weight's size.
    Source: arXiv 2510.00819, released code.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 0
    """Gradients learnt so far."""
    momentum: Float[Tensor, "V H"] | None = None
    square: Float[Tensor, "V H"] | None = None

    def learnt(self, gradient: Float[Tensor, "V H"], seen: Bool[Tensor, " V"]) -> AdamModel:
        """The model after one more gradient; rows that are not `seen` keep what they had."""
        first, second = (torch.zeros_like(gradient) if t is None else t.to(gradient) for t in (self.momentum, self.square))
        rows = seen.unsqueeze(1)
        return AdamModel(
            self.betas,
            self.eps,
            self.steps + 1,
            torch.where(rows, torch.lerp(gradient, first, self.betas[0]), first),
            torch.where(rows, torch.lerp(gradient**2, second, self.betas[1]), second),
        )

    def state(self) -> dict[str, Any]:
        """What is learnt, as plain values: arguments of another one."""
        return {name: getattr(self, name) for name in ("steps", "momentum", "square")}

    def against(self, slope: Float[Tensor, "N K"], hidden: Float[Tensor, "N H"], rows: Int[Tensor, "N K"] | None) -> Float[Tensor, "N K"]:
        """[N,K] D·h for the gradients `slope ⊗ hidden` of N tokens, each by itself. `rows`: which K rows of the weight; None: all."""
        if self.steps == 0 or self.momentum is None or self.square is None:
            return slope * hidden.square().sum(-1, keepdim=True)
        (one, two), left = self.betas, [1 - beta ** (self.steps + 1) for beta in self.betas]
        momentum, square, eps = self.momentum.to(hidden), self.square.to(hidden), self.eps * math.sqrt(left[1])
        found = torch.empty_like(slope)
        for tokens, columns in _blocks(len(slope), slope.shape[1], hidden.shape[1]):
            which: slice | Tensor = columns if rows is None else rows[tokens, columns]
            h = hidden[tokens].unsqueeze(1)
            g = slope[tokens, columns].unsqueeze(-1) * h
            first = torch.lerp(g, momentum[which], one)
            size = torch.lerp(g.square_(), square[which], two).sqrt_().add_(eps)
            found[tokens, columns] = torch.matmul(first.div_(size), h.transpose(1, 2)).squeeze(-1)
        return found.mul_(math.sqrt(left[1]) / left[0])  # what remains of both corrections for the start


def _blocks(tokens: int, support: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Slices of tokens and of their support that cut [tokens, support, width] into blocks."""
    columns = max(1, min(support, BLOCK_ELEMENTS // max(1, width)))
    rows = max(1, BLOCK_ELEMENTS // max(1, columns * width))
    for begin in range(0, tokens, rows):
        for start in range(0, support, columns):
            yield slice(begin, begin + rows), slice(start, start + columns)


@dataclass(frozen=True, eq=False)
class LastLayerStep(Reading):
    """What each token's own step would do, by a second-order model of the projection W [V,H] alone (logits = W h).

        v = e − pi,   g = A · v ⊗ h,   u = D h,   F = diag(pi) − pi piᵀ
        predicted_gain  m_H = lr · ⟨g, D⟩ + lr²/2 · A · ((v·u)² − uᵀFu)     change of A · pi_W(a) / pi_old(a)
        predicted_shift m_F = lr²/2 · (v·u)²                                one sample of the next
        expected_shift      = lr²/2 · uᵀFu                                  KL(pi || pi after the step), in nats, to second order

    D: the step that the optimiser makes of g: `adam`, or g itself (plain gradient ascent) for None. A is the planned `ADVANTAGE`, pi the
    policy as it is: exact for the first step on a batch (pi = pi_old). e is the sampled token; h is the state that its logits were
    projected from, divided by the temperature. `support`: only the rows of that many largest logits, and of the sampled token, on which pi
    is normalised anew; None for all. `keeps` says which tokens pass; where there is an `adam`, `gathered` sums over those:
    g of each row, and the positions that had the row in their support. Time is linear in tokens · support · H with `adam`, memory is not.

    The model ranks steps of a whole network, and underestimates their size by one to two orders of magnitude.
    Errors: `InputError` for a policy without last hidden states, and for a support larger than the vocabulary. Source: arXiv 2510.00819.
    """

    wants: ClassVar[tuple[str, ...]] = (ADVANTAGE,)
    learning_rate: float
    adam: AdamModel | None = None
    support: int | None = None
    largest_shift: float | None = None
    """Tokens with m_F at or above it do not pass; None for all pass."""
    largest_gain: float | None = None
    """Tokens with m_H at or above it, or below its mirror image, do not pass; None for all pass."""
    symmetric: bool = True
    """Off: no token with m_H below 0 passes either."""
    gathered: dict[str, Tensor] = field(default_factory=dict, repr=False)
    """`gradient [V,H]` and `positions [V]`, over all chunks so far."""

    def keeps(self, gain: Float[Tensor, "*N"], shift: Float[Tensor, "*N"]) -> tuple[Bool[Tensor, "*N"], Bool[Tensor, "*N"]]:
        """Which tokens pass the test of m_F, and which that of m_H."""
        every = torch.ones_like(shift, dtype=torch.bool)
        by_shift = every if self.largest_shift is None else shift < self.largest_shift
        if self.largest_gain is None:
            return by_shift, every
        return by_shift, (gain < self.largest_gain) & (gain > -self.largest_gain if self.symmetric else gain >= 0)

    def learnt(self, reduce: Reduce = alone, gather: Callable[[Any], list[Any]] = lambda value: [value]) -> AdamModel:
        """`adam` after the mean gradient of the tokens that passed, over all workers: of each row, over the positions that had it in
        their support. Where none passed, as it was."""
        assert self.adam is not None
        gradient, positions = (self.gathered.get(name) for name in ("gradient", "positions"))
        kinds = gather(None if gradient is None else (gradient.shape, gradient.dtype))
        kind = next((kind for kind in kinds if kind is not None), None)
        if kind is None:
            return self.adam
        if gradient is None or positions is None:  # a worker without tokens
            gradient, positions = torch.zeros(kind[0], dtype=kind[1]), torch.zeros(kind[0][:1], dtype=kind[1])
        gradient, positions = reduce(gradient), reduce(positions)
        if not bool(positions.any()):
            return self.adam
        return self.adam.learnt(gradient / positions.clamp_min(1).unsqueeze(1), positions > 0)

    @torch.no_grad()
    def __call__(self, at: Positions) -> dict[str, Float[Tensor, " N"]]:
        if at.hidden is None:
            raise InputError("the curvature of the last layer needs a policy's last hidden states, and this policy offers none")
        vocabulary = at.logits.shape[1]
        if self.support is not None and self.support > vocabulary:
            raise InputError(f"a support of {self.support} logits is more than there are; accepted: 1 to {vocabulary}, or null for all")
        hidden = at.hidden.to(at.logits.dtype) / at.temperature
        advantage = at.planned[ADVANTAGE].to(at.logits.dtype)
        probability, sampled, rows = self._support(at.logits, at.action)
        v = sampled.to(probability.dtype) - probability
        slope = advantage.unsqueeze(1) * v
        u = (self.adam or AdamModel()).against(slope, hidden, rows)
        mean = (probability * u).sum(1)
        along = torch.where(sampled, u, 0).sum(1) - mean
        spread = (probability * (u - mean.unsqueeze(1)) ** 2).sum(1)
        rate = self.learning_rate
        gain = rate * advantage * along + 0.5 * rate**2 * advantage * (along**2 - spread)
        shift = 0.5 * rate**2 * along**2
        if self.adam is not None:
            by_shift, by_gain = self.keeps(gain, shift)
            self._gather(slope, hidden, rows, by_shift & by_gain, vocabulary)
        return {"predicted_gain": gain, "predicted_shift": shift, "expected_shift": 0.5 * rate**2 * spread}

    def _support(
        self, logits: Float[Tensor, "N V"], action: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"], Int[Tensor, "N K"] | None]:
        """pi on the support, where the sampled token is, and the support's rows of W (None where that is all of them)."""
        if self.support is None or self.support == logits.shape[1]:
            sampled = torch.arange(logits.shape[1], device=logits.device) == action.unsqueeze(1)
            return torch.softmax(logits, 1), sampled, None
        chosen, rows = logits.topk(self.support, 1)
        sampled = rows == action.unsqueeze(1)
        outside = ~sampled.any(1, keepdim=True)
        last = torch.where(outside, logits.gather(1, action.unsqueeze(1)), -math.inf)
        rows, sampled = torch.cat([rows, action.unsqueeze(1)], 1), torch.cat([sampled, outside], 1)
        return torch.softmax(torch.cat([chosen, last], 1), 1), sampled, rows

    def _gather(self, slope: Tensor, hidden: Tensor, rows: Tensor | None, kept: Tensor, vocabulary: int) -> None:
        slope = torch.where(kept.unsqueeze(1), slope, 0)
        if rows is None:
            seen = kept.sum().to(slope.dtype).expand(vocabulary)
        else:
            # a sampled token's own column beside the largest logits stands for nothing where they hold it already
            double = (rows[:, :-1] == rows[:, -1:]).any(1)
            part = kept.unsqueeze(1).expand(rows.shape).to(slope.dtype)
            part = torch.cat([part[:, :-1], torch.where(double, 0, part[:, -1]).unsqueeze(1)], 1)
            seen = slope.new_zeros(vocabulary).scatter_add_(0, rows.reshape(-1), part.reshape(-1))
            slope = slope.new_zeros(len(slope), vocabulary).scatter_add_(1, rows, slope)
        for name, more in (("gradient", slope.T @ hidden), ("positions", seen)):
            self.gathered[name] = self.gathered[name] + more if name in self.gathered else more.clone()
