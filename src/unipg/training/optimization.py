"""Optimiser, learning-rate schedule and the guarded step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from unipg.errors import InputError


@dataclass(frozen=True)
class OptimizerRecipe:
    """The optimiser, its learning rate over time, and what guards a step."""

    learning_rate: float = 1e-3
    critic_learning_rate: float | None = None
    """That of a critic which cannot move the policy (`policy.critic`: detached, separate), with the same schedule; null for the same."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to 0 at the last step."""
    warmup: int = 0
    """Optimiser steps over which the learning rate rises from 0."""
    clip_norm: float | None = 1.0
    """Largest gradient norm; longer gradients are scaled down. null for none. A critic that cannot move the policy is clipped by itself."""
    skip_norm: float | None = None
    """A gradient longer than this, before clipping, is not applied at all (HPT's guard uses 80). null for none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do with a NaN or infinite gradient: stop and dump the batch, or skip the step and count it."""
    kind: Literal["adamw", "sgd"] = "adamw"
    """sgd: plain, without momentum; `betas` and `eps` are AdamW's."""

    def __post_init__(self) -> None:
        if not self.learning_rate >= 0 or self.weight_decay < 0 or self.warmup < 0:
            raise InputError("optimizer: learning_rate, weight_decay and warmup must not be negative")
        if self.critic_learning_rate is not None and not self.critic_learning_rate >= 0:
            raise InputError(f"optimizer.critic_learning_rate is {self.critic_learning_rate}; accepted: 0 or more, or null for the same")
        for name in ("clip_norm", "skip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"optimizer.{name} is {value}; accepted: above 0, or null for none")

    def build(self, *models: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """One optimiser; what is trained of each model is a parameter group, with a learning rate of its own."""
        groups = [[p for p in parameters if p.requires_grad] for parameters in models]
        trained = [p for group in groups for p in group]
        if not trained:
            raise InputError("nothing to train: no parameter of the policy requires a gradient")
        named: list[dict[str, Any]] = [{"params": group} for group in groups]
        if self.kind == "sgd":
            return torch.optim.SGD(named, lr=self.learning_rate, weight_decay=self.weight_decay)
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
        return torch.optim.AdamW(named, lr=self.learning_rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused)

    def learning_rate_at(self, step: int, total: int, *, critic: bool = False) -> float:
        """The learning rate of optimiser step `step` (from 0) of `total`; `critic`: that of a critic which cannot move the policy."""
        highest = self.critic_learning_rate if critic and self.critic_learning_rate is not None else self.learning_rate
        if step < self.warmup:
            return highest * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, total - self.warmup)
        if self.schedule == "linear":
            return highest * max(0.0, 1 - share)
        if self.schedule == "cosine":
            return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return highest
