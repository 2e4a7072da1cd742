"""Truncated PPO (arXiv 2506.15050): policy updates from unfinished responses, which go on in the next iteration."""

import math
from dataclasses import dataclass

import torch

from unipg.algorithms.base import Algorithm, Setting, check_range, register, setting
from unipg.errors import InputError
from unipg.estimator import GAE, Objective, OldPolicy, Planning, PolicyGradient, RatioClip, TokenMean, ValueLoss
from unipg.estimator.advantages import settled
from unipg.rollouts.base import FRESH
from unipg.trajectories import Trajectories

POLICY, CRITIC = "tppo/policy", "tppo/critic"


@register
@dataclass(frozen=True)
class TPPO(Algorithm):
    """PPO whose iterations sample at most `window` new tokens of each response: no one waits for the longest.

    Prompts times `rollouts` responses are in work at any time. Finished ones are scored and make room for new prompts, the others go on.
    The policy learns from the tokens of the window, each in one iteration, with the policy that wrote it as pi_old. Their advantage is EGAE
    over the response so far: GAE with V_n := V_{n-1} where the window cuts. At gamma 1 the last token before a cut thus has advantage 0:
    going on there is not judged, ending there is.

    So windows must not be short. A response's windows begin where it does, so that cuts fall on the same positions in every response: one
    token of each `window` is never judged, whatever it leads to, and the others before a cut by the critic alone, never by the reward. In
    answers of two tokens and windows of one, with an exact critic, success ends at the share of first tokens that were right from the
    start; with the critic's value behind the cut instead of the copied one, the same gradient is that of the expected reward (both are
    enumerated in the tests). The paper's windows are a third of the longest response.

    The critic learns from all tokens of the responses that finished in this iteration;
    where none did, it does not move. Values are the present critic's.

    With `policy.critic: separate` policy and critic are two models, each moved by its own tokens alone: `value_warmup` then leaves the
    policy as it is, to the bit. With the default, shared, the critic is a head on the policy's trunk, and its loss moves the trunk too.
    Without a window every response is finished, and only the value target differs from PPO's. Environments take no `window`, since their
    rows are windows already: the value is copied where a row cuts an episode, and the critic learns from episodes that end in their row.
    """

    name = "tppo"
    title = "Truncated proximal policy optimisation"
    paper = "arXiv 2506.15050"
    equation = "coefficient = 1_Clip · Â_EGAE · r on the window's tokens;  + value loss to the return on finished responses"
    bias = "The critic is learned and copied at the cut, lam < 1; a token mean over the kept tokens; prefixes come from older policies."
    deviations = (
        "No code is published. Learning rates, clip bounds, whitening and inner epochs are not known: they are those of the library's PPO, "
        "without whitening.",
        "The paper trains two models independently, which is `policy.critic: separate`; it does not say what the critic starts from: here "
        "from the policy's weights and a head of 0.",
        "A response that max_new_tokens stops counts as finished, with the verifier's reward.",
    )
    claim = "benchmarks/claims/tppo.py"

    rollouts: int = setting(1, "rollouts per prompt; prompts times rollouts are in work at any time", "arXiv 2506.15050: 16")
    window: int | None = setting(None, "most new tokens of a response in an iteration; null: no limit", "arXiv 2506.15050: 8K of 24K")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 1707.06347")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 1707.06347")
    gamma: float = setting(1.0, "discount per token", "arXiv 2506.15050")
    lam: float = setting(0.95, "lambda of the policy's advantage", "arXiv 2506.15050, second hand")
    value_lam: float = setting(1.0, "lambda of the critic's target; 1: the return itself", "arXiv 2506.15050")
    normalize_advantage: bool = setting(False, "whiten the advantage over the tokens that train the policy")
    value_weight: float = setting(0.5, "weight of the critic's loss", "arXiv 1707.06347")
    value_clip: float | None = setting(None, "how far the value may move from the old one; null for no clipping")
    value_warmup: int = setting(0, "iterations that begin before this optimiser step train the critic alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam", "value_lam")
        check_range(self, 0, math.inf, "value_weight")
        if self.window is not None and self.window < 1:
            raise InputError(f"algorithm.window is {self.window}; accepted: 1 or more new tokens, or null for no window")
        if self.value_warmup < 0:
            raise InputError(f"algorithm.value_warmup is {self.value_warmup}; accepted: 0 or more optimiser steps")

    def objective(self, setting: Setting) -> Objective:
        egae = GAE(self.gamma, self.lam, self.normalize_advantage, bootstrap="copied", tokens=POLICY if self.normalize_advantage else None)
        target = GAE(self.gamma, self.value_lam, normalize=False)
        clip = RatioClip(self.clip_low, self.clip_high)
        policy = PolicyGradient(mask=clip, reference=OldPolicy(), advantage=egae, aggregate=TokenMean(), tokens=POLICY)
        return policy + self.value_weight * ValueLoss(gae=target, clip=self.value_clip, aggregate=TokenMean(), tokens=CRITIC)

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        finished = settled(batch)
        fresh = batch.planned.get(FRESH, batch.mask) & batch.mask
        if planning.progress.step < self.value_warmup:
            fresh = torch.zeros_like(fresh)
        if batch.reward is not None:  # an unfinished response has none, whatever stands there
            batch = batch.replace(reward=torch.where(finished.any(1), batch.reward, 0))
        return batch.replace(planned={**batch.planned, POLICY: fresh, CRITIC: finished})

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        return {"tokens/policy": float(batch.planned[POLICY].sum()), "tokens/critic": float(batch.planned[CRITIC].sum())}
