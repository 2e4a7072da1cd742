"""CHORD: demonstrations as a weighted loss inside every step of reinforcement (arXiv 2508.11408)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preparation import prompt_of
from unipg.errors import InputError
from unipg.estimator import (
    Complement,
    Constant,
    CurrentPolicy,
    GroupStandardized,
    Objective,
    OldPolicy,
    Planning,
    PolicyGradient,
    RatioClip,
    Uniform,
    WarmupCosine,
)
from unipg.estimator.advantages import Advantage, TokenProbability
from unipg.estimator.aggregation import AggregateName, aggregate_named
from unipg.estimator.parts import Weight, weight_at
from unipg.trajectories import Source, Trajectories


@register
@dataclass(frozen=True)
class CHORD(Algorithm):
    """GRPO on rollouts times 1 − mu plus weighted SFT on demonstrations times mu. A demonstrated token of probability p counts phi(p):
    1 (none), p (probability, DFT's weight) or p·(1 − p) (uncertainty: tokens the policy is sure of, either way, are left alone).

    p·(1 − p) is at most 1/4, so values of mu cannot be compared across phi; and where p is near 0 it teaches nothing. A constant mu of 0
    is GRPO and a constant 1 is weighted SFT, to the last bit: the other loss is left out.
    """

    name = "chord"
    title = "Harmonised supervised and reinforcement fine-tuning"
    paper = "arXiv 2508.11408"
    equation = "(1 − mu) · GRPO on rollouts + mu · phi(pi_theta) on demonstrations;  token mean over each"
    bias = "A sum of two objectives: mu of the gradient follows the demonstrations, weighted by phi, whatever the reward says of them."
    deviations = (
        "The released code weights the token means of micro-batches by their rows; here each loss is a mean over all tokens of its kind.",
        "The paper's 'step' counts batches; here mu follows optimiser steps, the same with one step per batch.",
        "The paper's appendix lets mu decay in 30 steps, an ablation and the released recipe in 200 or more: mu_decay.",
        "The released code clamps the log ratio to ±20; here a token beyond 20 is left out and counted.",
    )
    claim = "benchmarks/claims/chord.py"
    demonstrations = "required"
    needs_group = 2
    learns_from_equals = True

    rollouts: int = setting(8, "rollouts per prompt, at least 2", "released recipe")
    mu_peak: float = setting(0.1, "mu after the warm-up", "released recipe, comments")
    mu_valley: float = setting(0.1, "mu after the decay", "released recipe, comments")
    mu_warmup: int = setting(0, "optimiser steps in which mu rises from 0 to mu_peak", "released recipe, comments")
    mu_decay: int = setting(0, "optimiser steps in which mu falls along a cosine to mu_valley", "released recipe, comments")
    phi: Literal["none", "probability", "uncertainty"] = setting("uncertainty", "weight of a demonstrated token", "arXiv 2508.11408")
    cutoff_prob: float = setting(1.0, "demonstrated tokens above this probability do not count; 1 for none", "released code")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "released recipe")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "released recipe")
    clip_dual: float | None = setting(3.0, "bound on the ratio itself where the advantage is negative; null for none", "released code")
    aggregate: AggregateName = setting("token_mean", "how the rollouts' tokens are averaged", "released recipe")
    sft_aggregate: AggregateName = setting("token_mean", "how the demonstrations' tokens are averaged", "released recipe")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mu_peak", "mu_valley"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"algorithm.{name} is {getattr(self, name)}; accepted: a share in [0, 1]")
        for name in ("mu_warmup", "mu_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"algorithm.{name} is {getattr(self, name)}; accepted: a number of optimiser steps of 0 or more")
        if not 0 < self.cutoff_prob <= 1:
            raise InputError(f"algorithm.cutoff_prob is {self.cutoff_prob}; accepted: a probability in (0, 1], 1 for none")

    @property
    def mu(self) -> Weight:
        """Weight of the demonstrations: a number where it never changes."""
        flat = self.mu_decay == 0 or self.mu_peak == self.mu_valley
        if flat and (self.mu_warmup == 0 or self.mu_peak == 0):
            return self.mu_valley
        return WarmupCosine(self.mu_peak, self.mu_valley, self.mu_warmup, self.mu_decay)

    def objective(self, setting: Setting) -> Objective:
        rollouts = PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high, self.clip_dual),
            reference=OldPolicy(),
            advantage=GroupStandardized(),
            aggregate=aggregate_named(self.aggregate, setting.max_new_tokens),
            name="rollouts",
        )
        complement = self.phi == "uncertainty"
        weighted = complement or self.cutoff_prob < 1
        advantage: Advantage = TokenProbability(complement, self.cutoff_prob) if weighted else Constant(1.0)
        sft = PolicyGradient(
            reference=CurrentPolicy() if self.phi == "none" else Uniform(),
            advantage=advantage,
            aggregate=aggregate_named(self.sft_aggregate, setting.max_new_tokens),
            rows=(Source.DEMONSTRATION,),
            name="sft",
        )
        mu = self.mu
        rest: Weight = 1 - mu if isinstance(mu, int | float) else Complement(mu)
        return Objective(tuple(term * weight for term, weight in ((rollouts, rest), (sft, mu)) if weight != 0))

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        demonstrations = batch.rows_from(Source.DEMONSTRATION)
        empty = demonstrations & ~batch.mask.any(1)
        if empty.any():
            raise InputError(f"the demonstration of {prompt_of(batch, int(empty.nonzero()[0]))} is empty; accepted: 1 token or more")
        mu = weight_at(self.mu, planning.progress)
        if mu > 0 and float(planning.reduce(demonstrations.sum().double())) == 0:
            warnings.warn(f"no demonstration in this batch, though they have weight {mu:g} (algorithm.mu_…)", stacklevel=2)
        return batch.with_planned(mu=torch.full((len(batch),), mu, dtype=torch.float64, device=batch.mask.device))

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        demonstrated = float(batch.rows_from(Source.DEMONSTRATION).double().mean()) if len(batch) else 0.0
        return {"mixing/mu": float(batch.planned["mu"][0]) if len(batch) else 0.0, "mixing/demonstrated_rows": demonstrated}


@register
@dataclass(frozen=True)
class CHORDMu(CHORD):
    """CHORD with plain SFT under a falling weight: demonstrations lead at first, also where the policy has no support, then fade out."""

    name = "chord_mu"
    title = "CHORD with a decaying mixture and unweighted tokens"
    equation = "(1 − mu(step)) · GRPO on rollouts + mu(step) · 1 on demonstrations;  token mean over each"

    mu_peak: float = setting(0.9, "mu after the warm-up", "released recipe, comments")
    mu_valley: float = setting(0.05, "mu after the decay", "released recipe, comments")
    mu_decay: int = setting(200, "optimiser steps in which mu falls along a cosine to mu_valley", "released recipe, comments; appendix: 30")
    phi: Literal["none", "probability", "uncertainty"] = setting("none", "weight of a demonstrated token", "arXiv 2508.11408")
