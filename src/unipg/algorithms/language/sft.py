"""Supervised fine-tuning, row 1 of the table."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.rates import DEMONSTRATED
from unipg.estimator import Constant, CurrentPolicy, PolicyGradient
from unipg.estimator.aggregation import AggregateName, aggregate_named
from unipg.trajectories import Source


@register
@dataclass(frozen=True)
class SFT(Algorithm):
    """Maximum likelihood of demonstrations: the estimator with advantage 1 on data that the policy did not sample.

    With demonstrations of different lengths, token_mean lets long ones count for more; sequence_mean_token_sum is the likelihood itself.
    What makes it SFT rather than REINFORCE with advantage 1 is only where the trajectories come from.
    """

    name = "sft"
    title = "Supervised fine-tuning"
    paper = "arXiv 2509.04419, Table 1, row 1"
    equation = "coefficient = 1;  token mean over demonstrations"
    demonstrations = "required"
    uses_rollouts = False
    learning_rate = DEMONSTRATED

    rollouts: int = setting(0, "rollouts per prompt: none")
    aggregate: AggregateName = setting("token_mean", "how tokens are averaged", "released code of HPT")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            reference=CurrentPolicy(),
            advantage=Constant(1.0),
            aggregate=aggregate_named(self.aggregate, setting.max_new_tokens),
            rows=(Source.DEMONSTRATION,),
            name="sft",
        )
