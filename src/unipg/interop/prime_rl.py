"""prime-rl: its custom loss is a function of one sequence, found by import path.

    [trainer.loss]
    type = "custom"
    import_path = "unipg.interop.prime_rl.loss"
    kwargs = { algorithm = "cispo" }

prime-rl divides the sum over sequences by its own global token count; unipg brings mask and reference. The sampler's log-probabilities take
the place of the old policy's, as prime-rl means them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import algorithm_named
from unipg.errors import InputError
from unipg.interop.functions import per_token_function


@functools.lru_cache
def _per_token(algorithm: str, settings: tuple[tuple[str, Any], ...]) -> Callable[..., Tensor]:
    return per_token_function(algorithm_named(algorithm)(**dict(settings)))


def summed_loss(inputs: Any, algorithm: str = "grpo", **hyper_parameters: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the sequence's tokens of the algorithm's loss, and metrics; `inputs` has prime-rl's fields, all `[T]`:
    `trainer_logprobs`, `inference_logprobs`, `advantages`, `loss_mask`."""
    row = [t.unsqueeze(0) for t in (inputs.trainer_logprobs, inputs.inference_logprobs, inputs.advantages, inputs.loss_mask)]
    losses = _per_token(algorithm, tuple(sorted(hyper_parameters.items())))(*row)
    with torch.no_grad():
        inside = row[3].bool()
        log_ratio = torch.where(inside, row[0] - row[1], 0).sum() / inside.sum().clamp_min(1)
    return losses.sum(), {"mean_log_ratio": log_ratio}


def loss(inputs: Any, algorithm: str = "grpo", **hyper_parameters: Any) -> Any:
    """prime-rl's entry point: `LossInputs -> LossOutputs`."""
    try:
        from prime_rl.trainer.rl.loss import LossOutputs
    except ImportError as error:
        raise InputError(f"unipg.interop.prime_rl.loss runs inside prime-rl: {error}") from error
    total, metrics = summed_loss(inputs, algorithm, **hyper_parameters)
    return LossOutputs(loss=total, metrics=metrics)
