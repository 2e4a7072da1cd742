"""One measurement of the vocabulary projection, forward and backward, in a process of its own: JSON with seconds and extra memory."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor
from work import cpu_seconds, memory_mb, one_thread


def full(hidden: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    """The log-softmax of all logits."""
    return torch.log_softmax(hidden @ weight.T, -1).gather(1, token.unsqueeze(1)).squeeze(1)


def selective(hidden: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    """The chosen logit less the log-sum-exp."""
    logits = hidden @ weight.T
    return logits.gather(1, token.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)


def ours(hidden: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    from unipg.estimator.projection import project

    return project(hidden, weight, token)[0]


def ours_entropy(hidden: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    """With the entropy too, as the trainer asks for it."""
    from unipg.estimator.projection import project

    return project(hidden, weight, token, entropy=True)[0]


def trl(hidden: Tensor, weight: Tensor, token: Tensor) -> Tensor:
    """TRL's chunked head, with the chunks that its trainer takes."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    found: Tensor = _ChunkedLogProbFunction.apply(
        hidden, weight, None, token, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy")
    )[0]
    return found


WAYS = {"full": full, "selective": selective, "ours": ours, "ours_entropy": ours_entropy, "trl": trl}


def inputs(tokens: int, vocabulary: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=draw).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=draw) / width**0.5).requires_grad_()
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=draw), torch.randn(tokens, generator=draw)


def measure(way: str, tokens: int, vocabulary: int, width: int) -> dict[str, Any]:
    few = inputs(8, 16, width)
    (WAYS[way](*few[:3]) * few[3]).sum().backward()  # imports and first calls
    hidden, weight, token, factor = inputs(tokens, vocabulary, width)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    base, cpu, wall = memory_mb(), cpu_seconds(), time.perf_counter()
    log_prob = WAYS[way](hidden, weight, token)
    (log_prob * factor).sum().backward()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "extra_mb": memory_mb("VmHWM") - base}


def difference(way: str, tokens: int, vocabulary: int, width: int) -> dict[str, Any]:
    """Largest difference of gradients to the full log-softmax, beside the largest entry."""
    gradients = []
    for name in ("full", way):
        hidden, weight, token, factor = inputs(tokens, vocabulary, width)
        (WAYS[name](hidden, weight, token) * factor).sum().backward()
        gradients.append((hidden.grad, weight.grad))
    pairs = zip(*gradients, strict=True)
    return {"difference": max(float((b - a).abs().max() / a.abs().max()) for a, b in pairs)}  # type: ignore[operator, union-attr]


if __name__ == "__main__":
    one_thread()
    what, name, *sizes = sys.argv[1:]
    tokens, vocabulary, width = map(int, sizes)
    print(json.dumps((measure if what == "measure" else difference)(name, tokens, vocabulary, width)))
