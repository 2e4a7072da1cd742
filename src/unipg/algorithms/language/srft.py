"""SRFT, row 7 of the table: supervised and reinforcement fine-tuning in one step, weighted by entropy."""

from dataclasses import dataclass
from typing import Literal

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.estimator import (
    UNION,
    BySuccess,
    Constant,
    ConstantLength,
    EntropyBonus,
    EntropyScaled,
    GroupCentered,
    GroupStandardized,
    Objective,
    PolicyGradient,
    ShapedUniform,
    TokenMean,
    Uniform,
)
from unipg.trajectories import Source


@register
@dataclass(frozen=True)
class SRFT(Algorithm):
    """Three sums in one step: SFT on demonstrations weighted by 0.5·exp(−H), reinforcement on demonstrations divided by 1, and on-policy
    rollouts with +0.1·exp(H) for the correct and −1 for the wrong ones. H is the row's mean token entropy, detached."""

    name = "srft"
    title = "Supervised reinforcement fine-tuning"
    paper = "arXiv 2506.19767; arXiv 2509.04419, Table 1, row 7"
    equation = "demonstrations: 0.5·exp(−H) + Â · pi_theta;  rollouts: +0.1·exp(H) if R > 0 else −1"
    bias = "A sum of three estimators with different objectives; the entropy weights are not importance weights."
    deviations = (
        "Reinforcement on demonstrations: the table weights by pi_theta, the released code reshapes by p / (p + 0.1): variant.",
        "The table divides Â by the group's std; the scripts do not: use_std, default off as in the scripts.",
    )
    demonstrations = "required"
    scores_demonstrations = True

    rollouts: int = setting(7, "rollouts per prompt, beside one demonstration", "released scripts")
    variant: Literal["paper", "released"] = setting("paper", "demonstrations divided by 1 (paper) or reshaped by p/(p+0.1) (released)")
    sft_weight: float = setting(0.5, "scale of exp(−H) on demonstrations", "released code")
    on_policy_weight: float = setting(0.1, "scale of exp(H) on correct rollouts", "released code")
    use_std: bool = setting(False, "divide the advantage by the group's standard deviation", "released scripts: off; the table: on")
    entropy: float = setting(0.001, "weight of the entropy bonus over all rows", "released scripts")

    def objective(self, setting: Setting) -> Objective:
        aggregate = ConstantLength(setting.max_new_tokens)
        demonstrations = (Source.DEMONSTRATION,)
        return (
            PolicyGradient(
                advantage=BySuccess(EntropyScaled(self.on_policy_weight, sign=1), Constant(-1.0)),
                aggregate=aggregate,
                counted=UNION,
                name="rollouts",
            )
            + PolicyGradient(
                reference=Uniform() if self.variant == "paper" else ShapedUniform(0.1),
                advantage=GroupStandardized(over=UNION) if self.use_std else GroupCentered(over=UNION),
                aggregate=aggregate,
                rows=demonstrations,
                counted=UNION,
                name="demonstrations",
            )
            + PolicyGradient(advantage=EntropyScaled(self.sft_weight, sign=-1), aggregate=TokenMean(), rows=demonstrations, name="sft")
            + self.entropy * EntropyBonus(rows=UNION, aggregate=TokenMean())
        )
