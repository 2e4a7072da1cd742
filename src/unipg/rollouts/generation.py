"""Sampling from a Hugging Face causal language model, with the sampler's own log-probabilities.

One prefill per distinct prompt: its key-value cache is repeated for the rollouts of the group. Rows that have ended leave the batch, so
that decode steps follow the rows still alive. The distribution sampled from is exactly softmax(logits / temperature), the one that
log-probabilities are taken of; there is no top-k or top-p here, because then the two would differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.rollouts.base import Interrupted

COMPACT_BELOW = 0.75
"""Ended rows are dropped from the cache once fewer than this share of its rows is alive: copying the cache costs too."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    tokens: list[int]
    """With the end-of-sequence token where it ended by itself."""
    log_probs: list[float]
    """log pi(token), as sampled; zeros for greedy decoding."""
    ended: bool
    """Whether it ended by itself; otherwise the limit stopped it."""


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    rollouts: int,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    pad_token: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    greedy: bool = False,
    batch_rows: int = 256,
    should_stop: Callable[[], bool] = bool,
    progress: Callable[[float], None] | None = None,
) -> list[list[Completion]]:
    """`rollouts` completions of each prompt. `batch_rows`: most rows decoded together; `progress` is told the finished share.

    Raises Interrupted when `should_stop` answers true between decode steps.
    """
    if rollouts < 1:
        raise InputError(f"rollouts is {rollouts}; accepted: 1 or more")
    per_batch = max(1, batch_rows // rollouts)
    results: list[list[Completion]] = []
    # prompts of similar length share a batch, so that little is padded
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    by_prompt: dict[int, list[Completion]] = {}
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        completions = _sample_batch(
            model,
            [prompts[i] for i in chosen],
            rollouts,
            max_new_tokens,
            torch.tensor(list(end_tokens), device=model.device),
            pad_token,
            temperature,
            generator,
            greedy,
            should_stop,
        )
        by_prompt.update(zip(chosen, completions, strict=True))
        if progress is not None:
            progress(min(1.0, (start + per_batch) / len(order)))
    results.extend(by_prompt[i] for i in range(len(prompts)))
    return results


def _sample_batch(
    model: Any,
    prompts: list[Sequence[int]],
    rollouts: int,
    max_new_tokens: int,
    end_tokens: Tensor,
    pad_token: int,
    temperature: float,
    generator: torch.Generator | None,
    greedy: bool,
    should_stop: Callable[[], bool],
) -> list[list[Completion]]:
    device = model.device
    width = max(len(p) for p in prompts)
    tokens = torch.full((len(prompts), width), pad_token, device=device)
    attention = torch.zeros(len(prompts), width + max_new_tokens, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(list(prompt), device=device)
        attention[row, width - len(prompt) : width] = 1
    padded = bool((attention[:, :width] == 0).any())
    positions = (attention[:, :width].cumsum(1) - 1).clamp_min(0)
    out = model(
        input_ids=tokens,
        attention_mask=attention[:, :width] if padded else None,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
    )
    cache = out.past_key_values
    cache.batch_repeat_interleave(rollouts)
    logits = out.logits[:, -1].repeat_interleave(rollouts, 0)
    attention = attention.repeat_interleave(rollouts, 0)
    position = positions[:, -1:].repeat_interleave(rollouts, 0)

    total = len(prompts) * rollouts
    sampled = torch.full((total, max_new_tokens), pad_token, device=device)
    log_probs = torch.zeros(total, max_new_tokens, device=device)
    lengths = torch.zeros(total, dtype=torch.long, device=device)
    ended = torch.zeros(total, dtype=torch.bool, device=device)
    rows = torch.arange(total, device=device)  # the rows still in the cache
    for step in range(max_new_tokens):
        if should_stop():
            raise Interrupted
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        if greedy:
            token = scores.argmax(-1)
        else:
            log_p = torch.log_softmax(scores, -1)
            # argmax(log p − log E) with E ~ Exp(1) is a draw from p
            noise = torch.empty_like(log_p).exponential_(generator=generator)
            token = (log_p - noise.log()).argmax(-1)
            log_probs[rows, step] = log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1).float()
        live = ~ended[rows]
        sampled[rows, step] = torch.where(live, token, pad_token)
        lengths[rows] += live
        ended[rows] |= torch.isin(token, end_tokens)
        alive = ~ended[rows]
        remaining = int(alive.sum())
        if remaining == 0 or step + 1 == max_new_tokens:
            break
        if remaining < COMPACT_BELOW * len(rows):
            keep = alive.nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            rows, token, position, attention = rows[keep], token[keep], position[keep], attention[keep]
        position = position + 1
        attention[:, width + step] = 1
        out = model(
            input_ids=token.unsqueeze(1),
            attention_mask=attention[:, : width + step + 1] if padded else None,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits = out.past_key_values, out.logits[:, -1]

    sampled_list, log_prob_list, length_list, ended_list = sampled.tolist(), log_probs.tolist(), lengths.tolist(), ended.tolist()
    completions = [Completion(sampled_list[i][: length_list[i]], log_prob_list[i][: length_list[i]], ended_list[i]) for i in range(total)]
    return [completions[i : i + rollouts] for i in range(0, total, rollouts)]
