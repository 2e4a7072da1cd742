"""The vocabulary projection: selected log-probabilities and entropies from hidden states, without `[N,V]` ever being there.

One operator. What differs is how much of the logits it holds: all of them where they are few, otherwise a chunk of rows at a time, formed
again in the backward pass. Values and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from unipg.shapes import Float, Int

KEPT_ELEMENTS = 1 << 22
"""Most logits that are kept for the backward pass; forming them again costs a fourth product beside the three that there are."""
CHUNK_ELEMENTS = 1 << 23
"""Most logits that are there at once where they are formed again."""
CHUNK_ON_GPU = 16
"""How many times that on a GPU, which is idle with less."""
HALF_PRODUCTS = ("cuda",)
"""Devices that multiply half-precision inputs and sum in float32; elsewhere they are made float32 before."""
LOWEST = -1e30
"""Stands for log 0 in products with a probability of 0, in the entropy."""


def project(
    hidden: Float[Tensor, "N H"],
    weight: Float[Tensor, "V H"],
    token: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"] | None]:
    """log softmax(hidden·weightᵀ / temperature) at `token`, and the entropy of that distribution in nats if asked.

    Sums are float32 or better whatever the inputs are. Time and memory are linear in N; beside inputs and their gradients at most
    `CHUNK_ELEMENTS` logits and one temporary of that size are held, `CHUNK_ON_GPU` times as many on a GPU. There, with half-precision
    inputs, the gradient on the logits is rounded to their precision before it is multiplied, as everywhere in such training.
    """
    log_prob, h = _Projection.apply(hidden, weight, bias, token, temperature, entropy)
    return log_prob, h if entropy else None


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, token: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.entropy = temperature, entropy
        exact = torch.promote_types(hidden.dtype, torch.float32)
        rows = len(hidden)
        log_prob, total = hidden.new_empty(rows, dtype=exact), hidden.new_empty(rows, dtype=exact)
        h = hidden.new_zeros(rows, dtype=exact)
        keep = rows * len(weight) <= KEPT_ELEMENTS and any(ctx.needs_input_grad[:3])
        wide = _wide(weight)
        kept = None
        for piece in _pieces(rows, weight, keep):
            logits = _logits(hidden[piece], wide, bias, temperature)
            log_prob[piece] = logits.gather(1, token[piece].unsqueeze(1)).squeeze(1)
            if keep:
                kept = logits.clone() if entropy else logits
            highest = logits.amax(1, keepdim=True)
            if entropy:
                exponential = torch.sub(logits, highest).exp_()
                mass = exponential.sum(1)
                total[piece] = highest.squeeze(1) + mass.log()
                moment = torch.linalg.vecdot(exponential, logits.clamp_(min=LOWEST))
                h[piece] = total[piece] - moment / mass
            else:
                total[piece] = highest.squeeze(1) + torch.sub(logits, highest).exp_().sum(1).log()
        log_prob -= total
        ctx.save_for_backward(hidden, weight, bias, token, total, h, kept)
        if not entropy:
            ctx.mark_non_differentiable(h)
        return log_prob, h

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        """With p = softmax and H the entropy: dlog_prob/dlogits = onehot − p,  dH/dlogits = −p · (log p + H).

        Positions whose incoming gradient is 0 are left out: they add nothing.
        """
        hidden, weight, bias, token, total, h, kept = ctx.saved_tensors
        slope, slope_h = slopes[0], slopes[1] if ctx.entropy and bool((slopes[1] != 0).any()) else None
        live = (slope != 0) if slope_h is None else (slope != 0) | (slope_h != 0)
        index = None if bool(live.all()) else live.nonzero().squeeze(1)
        if index is not None:
            hidden_live, token, total, h, slope = hidden[index], token[index], total[index], h[index], slope[index]
            slope_h = None if slope_h is None else slope_h[index]
            kept = None if kept is None else kept[index]
        else:
            hidden_live = hidden
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wide = _wide(weight)
        d_live = torch.zeros_like(hidden_live) if wants_hidden else None
        d_weight = torch.zeros_like(wide, dtype=total.dtype) if wants_weight else None
        d_bias = total.new_zeros(len(weight)) if wants_bias and bias is not None else None
        for piece in _pieces(len(hidden_live), weight, kept is not None):
            logits = _logits(hidden_live[piece], wide, bias, ctx.temperature) if kept is None else kept[piece]
            d = torch.sub(logits, total[piece].unsqueeze(1), out=logits if kept is None else None)
            if slope_h is None:
                d = d.exp_().mul_(-slope[piece].unsqueeze(1))
            else:
                p = d.exp()
                d = (
                    d.clamp_(min=LOWEST)
                    .add_(h[piece].unsqueeze(1))
                    .mul_(-slope_h[piece].unsqueeze(1))
                    .sub_(slope[piece].unsqueeze(1))
                    .mul_(p)
                )
            d.scatter_add_(1, token[piece].unsqueeze(1), slope[piece].unsqueeze(1))
            if ctx.temperature != 1.0:
                d.mul_(1 / ctx.temperature)
            if d_live is not None:
                d_live[piece] = _product(d, wide).to(hidden.dtype)
            if d_weight is not None:
                _add_product(d_weight, d.T, hidden_live[piece].to(wide.dtype))
            if d_bias is not None:
                d_bias += d.sum(0)
        d_hidden = d_live
        if d_live is not None and index is not None:
            d_hidden = torch.zeros_like(hidden).index_copy_(0, index, d_live)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _wide(weight: Tensor) -> Tensor:
    """[V,H] in float32 or better, unless the device sums products of half precision in float32 by itself."""
    if weight.device.type in HALF_PRODUCTS and weight.dtype in (torch.float16, torch.bfloat16):
        return weight
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left · right, in float32 or better."""
    if right.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return left.to(right.dtype) @ right


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total + left · right, in place."""
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right)


def _pieces(rows: int, weight: Tensor, whole: bool) -> Iterator[slice]:
    most = CHUNK_ELEMENTS * (CHUNK_ON_GPU if weight.is_cuda else 1)
    size = max(1, rows if whole else most // len(weight))
    return (slice(begin, begin + size) for begin in range(0, rows, size))


def _logits(hidden: Tensor, wide: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = _product(hidden, wide.T)
    if bias is not None:
        logits += bias
    return logits if temperature == 1.0 else logits.mul_(1 / temperature)
