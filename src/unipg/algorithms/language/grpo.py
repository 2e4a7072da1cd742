"""Group relative policy optimisation, row 3 of the table."""

from dataclasses import dataclass
from typing import Literal

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.estimator import GroupStandardized, KLPenalty, Objective, OldPolicy, PolicyGradient, RatioClip
from unipg.estimator.advantages import Advantage
from unipg.estimator.aggregation import AggregateName, aggregate_named


class ClippedGroups(Algorithm):
    """GRPO's composition, for algorithms that differ from it in the advantage; the hyper-parameters are theirs to declare."""

    clip_low: float
    clip_high: float
    clip_dual: float | None = None
    kl: float
    kl_estimator: Literal["k2", "k3"]
    aggregate: AggregateName

    @property
    def advantage(self) -> Advantage:
        """The part that others replace."""
        return GroupStandardized()

    def objective(self, setting: Setting) -> PolicyGradient | Objective:
        aggregate = aggregate_named(self.aggregate, setting.max_new_tokens)
        gradient = PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high, self.clip_dual),
            reference=OldPolicy(),
            advantage=self.advantage,
            aggregate=aggregate,
        )
        return gradient + self.kl * KLPenalty(estimator=self.kl_estimator, aggregate=aggregate) if self.kl else gradient


@register
@dataclass(frozen=True)
class GRPO(ClippedGroups):
    """Clipped importance ratio with the reward standardised within the group of rollouts of one prompt; no critic."""

    name = "grpo"
    title = "Group relative policy optimisation"
    paper = "arXiv 2402.03300"
    equation = "coefficient = 1_Clip · (R_j − mean_G R) / (std_G R + 1e-6) · r,  r = pi_theta / pi_old"
    bias = "Dividing by the group's own standard deviation favours prompts that are nearly solved or nearly failed."
    deviations = ("KL: the paper adds 0.04 · k3 to the loss, most code of 2025 leaves it out; default 0, set kl: 0.04 for the paper's.",)
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 2402.03300")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 2402.03300")
    clip_dual: float | None = setting(None, "bound on the ratio itself where the advantage is negative (dual clip, 3); null for none")
    kl: float = setting(0.0, "weight of the KL penalty in the loss; 0 for none", "arXiv 2402.03300 uses 0.04")
    kl_estimator: Literal["k2", "k3"] = setting("k3", "estimate of the KL in the loss", "arXiv 2402.03300, eq. 4")
    aggregate: AggregateName = setting("sequence_mean_token_mean", "how tokens are averaged", "arXiv 2402.03300, eq. 3")
