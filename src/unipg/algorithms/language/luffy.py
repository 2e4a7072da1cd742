"""LUFFY, row 8 of the table: rollouts and a demonstration in one group, the demonstration's likelihood reshaped."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.estimator import (
    ROLLOUTS,
    UNION,
    ConstantLength,
    EntropyBonus,
    Everything,
    GroupCentered,
    GroupStandardized,
    Objective,
    OldPolicy,
    PolicyGradient,
    RatioClip,
    ShapedUniform,
    TokenMean,
)
from unipg.trajectories import Source


@register
@dataclass(frozen=True)
class LUFFY(Algorithm):
    """Off-policy guidance: the advantage is taken over rollouts and demonstration together; demonstrations are divided by 1 and their
    likelihood reshaped by f(p) = p / (p + 0.1), so that unlikely tokens still learn."""

    name = "luffy"
    title = "Learning to reason under off-policy guidance"
    paper = "arXiv 2504.14945; arXiv 2509.04419, Table 1, row 8"
    equation = "rollouts: Â · r;  demonstrations: Â · f'(pi_theta) · pi_theta, f(p) = p / (p + shape);  Â = R_j − mean_{G_on ∪ G_off} R"
    bias = "Demonstrations are not importance-corrected (pi_ref = 1) and enter the baseline."
    deviations = (
        "The table divides Â by the group's std; the scripts do not: use_std, default off as in the scripts.",
        "The table takes the mean over rollouts and demonstrations, the released code over rollouts only: union_baseline, default on. Over "
        "rollouts only, with use_std, a std of 0 counts as 1: beside rollouts that all fail a right demonstration has advantage 1.",
        "The scripts run without the clip: clip, default off.",
    )
    demonstrations = "required"
    scores_demonstrations = True

    rollouts: int = setting(7, "rollouts per prompt, beside one demonstration", "released scripts")
    shape: float = setting(0.1, "probability scale of the reshaping", "arXiv 2504.14945")
    use_std: bool = setting(False, "divide the advantage by the group's standard deviation", "released scripts: off; the table: on")
    union_baseline: bool = setting(True, "take the mean over rollouts and demonstrations", "arXiv 2509.04419, Table 1")
    clip: bool = setting(False, "clip the ratio of the rollouts", "released scripts: off")
    entropy: float = setting(0.001, "weight of the entropy bonus over all rows", "released scripts")

    def objective(self, setting: Setting) -> Objective:
        over = UNION if self.union_baseline else ROLLOUTS
        advantage = GroupStandardized(over=over) if self.use_std else GroupCentered(over=over)
        aggregate = ConstantLength(setting.max_new_tokens)
        return (
            PolicyGradient(
                mask=RatioClip() if self.clip else Everything(),
                reference=OldPolicy(),
                advantage=advantage,
                aggregate=aggregate,
                counted=UNION,
                name="rollouts",
            )
            + PolicyGradient(
                reference=ShapedUniform(self.shape),
                advantage=advantage,
                aggregate=aggregate,
                rows=(Source.DEMONSTRATION,),
                counted=UNION,
                name="demonstrations",
            )
            + self.entropy * EntropyBonus(rows=UNION, aggregate=TokenMean())
        )
