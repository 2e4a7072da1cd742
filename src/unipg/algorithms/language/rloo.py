"""REINFORCE leave-one-out, row 11 of the library's table."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, KLInReward, Setting, register, setting
from unipg.estimator import CurrentPolicy, LeaveOneOut, PolicyGradient
from unipg.estimator.aggregation import AggregateName, aggregate_named


@register
@dataclass(frozen=True)
class RLOO(KLInReward, Algorithm):
    """On-policy gradient with the mean of the OTHER rollouts as baseline: unbiased for any group size."""

    name = "rloo"
    title = "REINFORCE leave-one-out"
    paper = "arXiv 2402.14740"
    equation = "coefficient = R_j − mean_{k≠j} R_k"
    deviations = ("On policy: with several optimiser steps per batch the later ones are off policy, and nothing corrects for it.",)
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    aggregate: AggregateName = setting("sequence_mean_token_sum", "how tokens are averaged; the default is the exact policy gradient")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            reference=CurrentPolicy(),
            advantage=LeaveOneOut(),
            aggregate=aggregate_named(self.aggregate, setting.max_new_tokens),
        )
