"""Optimiser, learning-rate schedule and the guarded step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from unipg.errors import InputError


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimiser, its learning rate over time, and what guards a step."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to 0 at the last step."""
    warmup: int = 0
    """Optimiser steps over which the learning rate rises from 0."""
    clip_norm: float | None = 1.0
    """Largest gradient norm; longer gradients are scaled down. null for none."""
    skip_norm: float | None = None
    """A gradient longer than this, before clipping, is not applied at all (HPT's guard uses 80). null for none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do with a NaN or infinite gradient: stop and dump the batch, or skip the step and count it."""
    kind: Literal["adamw", "sgd"] = "adamw"
    """sgd: plain, without momentum; `betas` and `eps` are AdamW's."""

    def __post_init__(self) -> None:
        if not self.learning_rate >= 0 or self.weight_decay < 0 or self.warmup < 0:
            raise InputError("optimizer: learning_rate, weight_decay and warmup must not be negative")
        for name in ("clip_norm", "skip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"optimizer.{name} is {value}; accepted: above 0, or null for none")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        trained = [p for p in parameters if p.requires_grad]
        if not trained:
            raise InputError("nothing to train: no parameter of the policy requires a gradient")
        if self.kind == "sgd":
            return torch.optim.SGD(trained, lr=self.learning_rate, weight_decay=self.weight_decay)
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
        return torch.optim.AdamW(
            trained, lr=self.learning_rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )

    def learning_rate_at(self, step: int, total: int) -> float:
        """The learning rate of optimiser step `step` (from 0) of `total`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, total - self.warmup)
        if self.schedule == "linear":
            return self.learning_rate * max(0.0, 1 - share)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return self.learning_rate
