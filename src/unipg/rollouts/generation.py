"""Sampling from a Hugging Face causal language model; the engine is in `policies/decoding.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from unipg.errors import InputError
from unipg.policies.decoding import Completion, ContinuousBatch, Decoding, OnStop


@torch.no_grad()
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
    max_total_tokens: int | None = None,
    on_stop: OnStop | None = None,
    decoding: Decoding = "auto",
    should_stop: Callable[[], bool] = bool,
    progress: Callable[[float], None] | None = None,
) -> list[list[Completion]]:
    """`rollouts` completions of each prompt, in the order of the prompts.

    `batch_rows`: most rows decoded together; `progress` is told the finished share. The limits and `on_stop` are those of
    `ContinuousBatch`; the request of rollout j of prompt i is i · rollouts + j.

    Raises Interrupted when `should_stop` answers true between decode steps.
    """
    if rollouts < 1:
        raise InputError(f"rollouts is {rollouts}; accepted: 1 or more")
    batch = ContinuousBatch(
        model,
        max_new_tokens=max_new_tokens,
        end_tokens=end_tokens,
        pad_token=pad_token,
        temperature=temperature,
        generator=generator,
        greedy=greedy,
        batch_rows=batch_rows,
        max_total_tokens=max_total_tokens,
        on_stop=on_stop,
        decoding=decoding,
    )
    # prompts of similar length are prefilled together, so that little is padded
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        batch.add(prompts[i], range(i * rollouts, (i + 1) * rollouts))
    finished = batch.run(should_stop, progress)
    return [[finished[i] for i in range(start, start + rollouts)] for start in range(0, len(prompts) * rollouts, rollouts)]
