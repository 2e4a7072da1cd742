"""slime: its reward hook and its custom loss, found by path.

    --custom-reward-post-process-path unipg.interop.slime.rewards     UNIPG_ALGORITHM=rloo
    --loss-type custom_loss --custom-loss-function-path unipg.interop.slime.loss

`rewards` turns raw rewards into the algorithm's group advantages, which slime then spreads over tokens; `loss` brings mask and reference.
slime passes no further arguments to such functions, so the algorithm's name is read from the environment variable UNIPG_ALGORITHM.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.errors import InputError
from unipg.interop.functions import advantage_function, per_token_function


def chosen() -> Algorithm:
    """The algorithm that UNIPG_ALGORITHM names (default grpo)."""
    return algorithm_named(os.environ.get("UNIPG_ALGORITHM", "grpo"))()


def rewards(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """(raw rewards, group advantages) of slime's samples; `group_index` says which prompt a sample answers."""
    raw = [float(sample.get_reward_value(args)) for sample in samples]
    group = torch.tensor([int(sample.group_index) for sample in samples])
    one_token = torch.ones(len(raw), 1, dtype=torch.bool)
    found = advantage_function(chosen())(torch.tensor(raw, dtype=torch.float64), one_token, group)
    return raw, found.squeeze(1).tolist()


def loss(args: Any, batch: Any, logits: Tensor, sum_of_sample_mean: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """slime's custom loss: log-probabilities by slime, mask and reference by unipg, the reduction by slime."""
    try:
        from slime.backends.megatron_utils.loss import get_log_probs_and_entropy
    except ImportError as error:
        raise InputError(f"unipg.interop.slime.loss runs inside slime: {error}") from error
    found = get_log_probs_and_entropy(
        logits,
        args=args,
        unconcat_tokens=batch["unconcat_tokens"],
        total_lengths=batch["total_lengths"],
        response_lengths=batch["response_lengths"],
        with_entropy=False,
    )
    current = found[1]["log_probs"] if isinstance(found, tuple) else found["log_probs"]
    total = packed_loss(current, batch["log_probs"], batch["advantages"], batch["loss_masks"])
    value = sum_of_sample_mean(total)
    return value, {"loss": value.detach().clone()}


def packed_loss(log_probs: Sequence[Tensor], old: Sequence[Tensor], advantages: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """`[sum of lengths]` per-token losses of sequences of any length, one after the other as slime packs them."""
    per_token = per_token_function(chosen())
    rows = zip(log_probs, old, advantages, masks, strict=True)
    return torch.cat([per_token(*(t.unsqueeze(0) for t in row[:3]), row[3].unsqueeze(0).bool()).squeeze(0) for row in rows])
