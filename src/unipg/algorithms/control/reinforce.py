"""REINFORCE with a ±1 outcome, row 4 of the table."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.estimator import BySuccess, CurrentPolicy, Outcome, PolicyGradient
from unipg.estimator.aggregation import AggregateName, aggregate_named


@register
@dataclass(frozen=True)
class Reinforce(Algorithm):
    """On-policy score-function gradient. `signed`: advantage +1 where R > 0 and −1 elsewhere; otherwise R − `baseline`.

    Returns of environments often have one sign, which says nothing: there the reward itself is the default.
    """

    name = "reinforce"
    title = "REINFORCE"
    paper = "Williams 1992; arXiv 2509.04419, Table 1, row 4"
    equation = "coefficient = +1 if R > 0 else −1"
    bias = "The sign of the reward replaces the reward: it follows the success rate, not the expected reward (exact with signed: false)."
    deviations = (
        "The paper's table has ±1; with signed: false the advantage is R − baseline, the textbook estimator.",
        "On policy: with several optimiser steps per batch the later ones are off policy, and nothing corrects for it.",
    )

    rollouts: int = setting(8, "rollouts per prompt")
    signed: bool | None = setting(
        None, "±1 by success instead of the reward itself; null: true, but false in environments", "arXiv 2509.04419, Table 1"
    )
    baseline: float = setting(0.0, "constant subtracted from the reward when signed is off")
    aggregate: AggregateName = setting("sequence_mean_token_sum", "how tokens are averaged; the default is the exact policy gradient")

    def objective(self, setting: Setting) -> PolicyGradient:
        signed = not setting.acts if self.signed is None else self.signed
        return PolicyGradient(
            reference=CurrentPolicy(),
            advantage=BySuccess() if signed else Outcome(self.baseline),
            aggregate=aggregate_named(self.aggregate, setting.max_new_tokens),
        )
