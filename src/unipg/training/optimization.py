"""How long a run trains, with which optimiser, at which learning rate."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unipg.algorithms.base import Algorithm
from unipg.algorithms.rates import CONTROLLED
from unipg.arguments import CheckedArguments
from unipg.errors import InputError
from unipg.policies.base import Policy
from unipg.settings import unknown_key

OWN: dict[str, Any] = {"kind": "adamw", "eps": 1e-8, "clip_norm": 1.0, "schedule": "constant"}
"""What `auto` stands for where an algorithm's learner says nothing of its own."""
RMSPROP = 0.99
"""What RMSprop keeps of the mean square at each step, unless `betas` say otherwise."""
ADAPTER_SHARE = 0.25
"""Where less of a policy's parameters is trained, it is adapters that are."""


@dataclass(frozen=True)
class TrainingRecipe(CheckedArguments):
    """How long, how much at once, how often."""

    iterations: int = 100
    """Collect-and-update rounds."""
    prompts: int = 32
    """Prompts per iteration (language)."""
    epochs: int = 1
    """Passes over each iteration's batch."""
    minibatches: int = 1
    """Optimiser steps per pass."""
    micro_batch_tokens: int = 16384
    """Most tokens in one forward pass; a memory limit that does not change the gradient."""
    save_every: int = 1
    """Iterations between checkpoints: what a kill can lose."""
    evaluate_every: int = 0
    """Iterations between held-out evaluations; 0 for before and after only."""
    keep_evaluated: bool = False
    """Keep the policy of every evaluation in the run folder, in evaluated/ITERATION: `unipg data collect` plays those in between."""
    overlap: bool = False
    """Collect the next batch in a process of its own while this one is trained on: it is then one iteration old, and corrected for."""
    overlap_limit: float | None = 2.0
    """Largest weight pi_old / pi_behaviour of a token in that correction; null for none."""

    def __post_init__(self) -> None:
        for name in ("iterations", "prompts", "epochs", "minibatches", "micro_batch_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} is {getattr(self, name)}; accepted: 1 or more")
        if self.evaluate_every < 0:
            raise InputError(f"training.evaluate_every is {self.evaluate_every}; accepted: 1 or more, or 0 for before and after only")
        if self.overlap_limit is not None and not self.overlap_limit >= 1:
            raise InputError(f"training.overlap_limit is {self.overlap_limit}; accepted: a weight of 1 or more, or null for no truncation")

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps on each iteration's batch."""
        return self.epochs * self.minibatches

    @property
    def total_steps(self) -> int:
        return self.iterations * self.steps_per_batch


@dataclass(frozen=True)
class OptimizerRecipe(CheckedArguments):
    """The optimiser, its learning rate over time, and what guards a step."""

    learning_rate: float | Literal["auto"] = "auto"
    """The highest. auto: what fits the algorithm and the size of the policy (`unipg explain NAME`); the run folder records the number."""
    critic_learning_rate: float | None = None
    """That of a critic which cannot move the policy (`policy.critic`: detached, separate), with the same schedule; null for the same."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How much AdamW keeps of the mean gradient and of its mean square at each step."""
    eps: float | Literal["auto"] = "auto"
    """What AdamW and RMSprop add to the root of the mean square. auto: 1e-8, or the algorithm's own."""
    weight_decay: float = 0.0
    """Share of each weight that a step takes away, times the learning rate."""
    schedule: Literal["auto", "constant", "linear", "cosine"] = "auto"
    """After the warm-up: stay, or fall to 0 at the last step. auto: constant, or the algorithm's own."""
    warmup: int = 0
    """Optimiser steps over which the learning rate rises from 0."""
    clip_norm: float | Literal["auto"] | None = "auto"
    """Largest gradient norm; longer gradients are scaled down. null for none; auto: 1, or the algorithm's own. A critic that cannot move
    the policy is clipped by itself."""
    skip_norm: float | None = None
    """A gradient longer than this, before clipping, is not applied at all (HPT's guard uses 80). null for none."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do with a NaN or infinite gradient: stop and dump the batch, or skip the step and count it."""
    kind: Literal["auto", "adamw", "sgd", "rmsprop"] = "auto"
    """sgd: plain, without momentum. rmsprop: `betas[1]` is what it keeps of the mean square, 0.99 by default. auto: adamw, or the
    algorithm's own."""
    learners: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of single learners by their names, in place of those above: `critic: {learning_rate: 1.0e-3}`. `unipg explain NAME` says
    which learners an algorithm has."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "warmup"):
            value = getattr(self, name)
            if value != "auto" and not (value >= 0 and math.isfinite(value)):
                raise InputError(f"optimizer.{name} is {value}; accepted: 0 or more")
        if self.learning_rate == "auto" and self.kind == "sgd":
            raise InputError("optimizer.learning_rate is auto, which is for adamw; accepted with optimizer.kind sgd: a number")
        if self.critic_learning_rate is not None and not self.critic_learning_rate >= 0:
            raise InputError(f"optimizer.critic_learning_rate is {self.critic_learning_rate}; accepted: 0 or more, or null for the same")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas is {list(self.betas)}; accepted: two numbers in [0, 1)")
        if self.eps != "auto" and not self.eps > 0:
            raise InputError(f"optimizer.eps is {self.eps}; accepted: above 0")
        for name in ("clip_norm", "skip_norm"):
            value = getattr(self, name)
            if value is not None and value != "auto" and not value > 0:
                raise InputError(f"optimizer.{name} is {value}; accepted: above 0, or null for none")
        for learner in self.learners:
            self.of(learner)

    def of(self, learner: str) -> OptimizerRecipe:
        """That of a learner, by its name. Errors: `InputError` for a setting of its own that is none, or not of its kind."""
        own, place = self.learners.get(learner, {}), f"optimizer.learners.{learner}"
        accepted = [each.name for each in fields(self) if each.name not in ("learners", "critic_learning_rate")]
        for name in own:
            if name not in accepted:
                raise unknown_key(f"{place}.{name}", accepted)
        try:
            return replace(self, learners={}, **own)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error

    def check_learners(self, names: Collection[str]) -> None:
        """Refuses settings of a learner that an algorithm has not; `names`: those that it has."""
        for name in self.learners.keys() - names:
            raise unknown_key(f"optimizer.learners.{name}", names)

    @property
    def longest(self) -> float | None:
        """The norm to which gradients are clipped; None for as they are."""
        return OWN["clip_norm"] if self.clip_norm == "auto" else self.clip_norm

    @property
    def rate(self) -> float:
        """The highest learning rate as a number."""
        if isinstance(self.learning_rate, str):
            raise InputError("optimizer.learning_rate is auto, which is a number only for an algorithm and a policy: see `settled`")
        return self.learning_rate

    def settled(
        self, algorithm: Algorithm, policy: Policy, *, controller: bool = False, own: Mapping[str, Any] | None = None
    ) -> OptimizerRecipe:
        """The same with values for auto. `controller`: whether the policy acts in an environment; `own`: a learner's settings."""
        named = {**OWN, **(own or {})}
        changes = {name: named[name] for name in OWN if getattr(self, name) == "auto"}
        if self.learning_rate == "auto" and "learning_rate" in named:
            changes["learning_rate"] = named["learning_rate"]
        elif self.learning_rate == "auto":
            critic = {id(p) for p in policy.critic_parameters}
            sizes = [(p.numel(), p.requires_grad) for p in policy.module.parameters() if id(p) not in critic]
            parameters, trained = sum(size for size, _ in sizes), sum(size for size, moves in sizes if moves)
            fitting = CONTROLLED if controller else algorithm.learning_rate
            changes["learning_rate"] = fitting.at(parameters, adapters=trained < ADAPTER_SHARE * parameters)
        return replace(self, **changes) if changes else self

    def build(self, *models: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """One optimiser; what is trained of each model is a parameter group, with a learning rate of its own."""
        groups = [[p for p in parameters if p.requires_grad] for parameters in models]
        trained = [p for group in groups for p in group]
        if not trained:
            raise InputError("nothing to train: no parameter of the policy requires a gradient")
        halves = [p.dtype for p in trained if p.dtype in (torch.bfloat16, torch.float16)]
        if halves:
            raise InputError(
                f"trained weights are {str(halves[0]).removeprefix('torch.')}, in which small steps are lost; accepted: float32 weights; "
                "policy.dtype: bfloat16 computes with them in half precision"
            )
        named: list[dict[str, Any]] = [{"params": group} for group in groups]
        if self.kind == "sgd":
            return torch.optim.SGD(named, lr=self.rate, weight_decay=self.weight_decay)
        eps = OWN["eps"] if self.eps == "auto" else self.eps
        if self.kind == "rmsprop":
            kept = RMSPROP if self.betas == type(self).betas else self.betas[1]
            return torch.optim.RMSprop(named, lr=self.rate, alpha=kept, eps=eps, weight_decay=self.weight_decay)
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
        adamw = torch.optim.AdamW(named, lr=self.rate, betas=self.betas, eps=eps, weight_decay=self.weight_decay, fused=fused)
        if fused:
            adamw.register_step_post_hook(_count_versions)
        return adamw

    def learning_rate_at(self, step: int, total: int, *, critic: bool = False) -> float:
        """The learning rate of optimiser step `step` (from 0) of `total`; `critic`: that of a critic which cannot move the policy."""
        highest = self.critic_learning_rate if critic and self.critic_learning_rate is not None else self.rate
        if step < self.warmup:
            return highest * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, total - self.warmup)
        if self.schedule == "linear":
            return highest * max(0.0, 1 - share)
        if self.schedule == "cosine":
            return highest * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return highest


def _count_versions(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Tells autograd that a step has written to the parameters, which torch's fused steps leave out: a backward pass through a graph from
    before the step then raises, as after any other step, instead of giving a wrong gradient."""
    torch.autograd.graph.increment_version([p for group in optimizer.param_groups for p in group["params"] if p.grad is not None])


@contextmanager
def without_denormals() -> Iterator[None]:
    """In it, numbers of this thread that are not 0 but nearer to it than 1.2e-38 are 0: processors take ten times as long with them."""
    before = sys.float_info.min * 0.5 == 0  # whoever has asked for it keeps it
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def gradient_norm(gradients: list[Tensor]) -> float:
    """The norm of all of them together. torch's own helpers for it, and for clipping, cost as much as a small controller's forward pass."""
    if not gradients:
        return 0.0
    if len(gradients) == 1:
        return float(torch.linalg.vector_norm(gradients[0]))
    norms = torch._foreach_norm(gradients)
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))


@torch.no_grad()
def take_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`, to the bit but for moments below 1.2e-38, which are 0. Of fused AdamW on the CPU by its kernel alone: what torch
    has around it costs a small network's forward pass.

    Such moments are what units that are off leave behind, a fifth of a small network; the weights do not feel them.
    """
    moved = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    fused = isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
    if not fused or not all(p in optimizer.state and p.device.type == "cpu" and p.dtype == torch.float32 for ps in moved for p in ps):
        optimizer.step()
        return
    with without_denormals():
        for group, parameters in zip(optimizer.param_groups, moved, strict=True):
            if not parameters:
                continue
            states = [optimizer.state[p] for p in parameters]
            counts = [state["step"] for state in states]
            torch._foreach_add_(counts, 1)
            torch._fused_adamw_(
                parameters,
                [p.grad for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                counts,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
    torch.autograd.graph.increment_version([p for parameters in moved for p in parameters])
