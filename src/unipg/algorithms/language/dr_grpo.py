"""Dr. GRPO, row 9 of the library's table, and the clip-free gradient that HPT's scripts run, row 15."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.estimator import ConstantLength, Everything, GroupCentered, OldPolicy, PolicyGradient, RatioClip


@register
@dataclass(frozen=True)
class DrGRPO(Algorithm):
    """GRPO without its two biases: no division by the group's std, no division by each row's own length."""

    name = "dr_grpo"
    title = "GRPO done right"
    paper = "arXiv 2503.20783"
    equation = "coefficient = 1_Clip · (R_j − mean_G R) · r;  sum over tokens / constant length"
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    clip: bool = setting(True, "whether the ratio is clipped; off for the gradient that HPT's scripts run")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 2503.20783")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 2503.20783")
    length: int | None = setting(None, "the constant that token sums are divided by; null for the limit on new tokens")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high) if self.clip else Everything(),
            reference=OldPolicy(),
            advantage=GroupCentered(),
            aggregate=ConstantLength(self.length or setting.max_new_tokens),
        )
