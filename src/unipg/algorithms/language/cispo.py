"""CISPO and its masked variant, row 5 of the table."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.estimator import GroupStandardized, OldPolicy, PolicyGradient, RatioClip, TokenMean, TruncatedWeight


@register
@dataclass(frozen=True)
class CISPO(Algorithm):
    """The importance WEIGHT is truncated instead of the token dropped: every token keeps a gradient."""

    name = "cispo"
    title = "Clipped importance-sampling policy optimisation"
    paper = "arXiv 2506.13585"
    equation = "coefficient = clip(r, 1 − low, 1 + high) · (R_j − mean_G R) / (std_G R + 1e-6)"
    bias = "Dividing by the group's own standard deviation; off policy also the truncation of the weight."
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    weight_low: float = setting(1.0, "distance below 1 that the weight may go; 1 for no lower bound", "arXiv 2506.13585")
    weight_high: float = setting(0.28, "distance above 1 that the weight may go", "released code of Trinity-RFT")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            reference=TruncatedWeight(self.weight_low, self.weight_high), advantage=GroupStandardized(), aggregate=TokenMean()
        )


@register
@dataclass(frozen=True)
class MaskedCISPO(Algorithm):
    """The variant in the paper's table: PPO's mask, divided by pi_old. `truncate` also truncates the weight, as Trinity-RFT does."""

    name = "cispo_masked"
    title = "CISPO with a mask"
    paper = "arXiv 2509.04419, Table 1, row 5"
    equation = "coefficient = 1_Clip · (R_j − mean_G R) / (std_G R + 1e-6) · r"
    bias = "Dividing by the group's own standard deviation; off policy also the mask."
    deviations = ("The published CISPO drops no token (algorithm `cispo`); the unifying paper's table has this masked form.",)
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    clip_low: float = setting(1.0, "distance below 1 that the ratio may go", "released code of Trinity-RFT")
    clip_high: float = setting(0.28, "distance above 1 that the ratio may go", "released code of Trinity-RFT")
    truncate: bool = setting(False, "truncate the weight as well", "released code of Trinity-RFT has it on")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high),
            reference=TruncatedWeight(self.clip_low, self.clip_high) if self.truncate else OldPolicy(),
            advantage=GroupStandardized(),
            aggregate=TokenMean(),
        )
