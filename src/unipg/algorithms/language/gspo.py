"""Group sequence policy optimisation, row 6 of the table."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.estimator import GroupStandardized, PolicyGradient, SequenceClip, SequenceMean, SequenceMeanTokenMean


@register
@dataclass(frozen=True)
class GSPO(Algorithm):
    """Importance ratio and clip on the whole sequence: s = exp(mean_t log(pi_theta / pi_old))."""

    name = "gspo"
    title = "Group sequence policy optimisation"
    paper = "arXiv 2507.18071"
    equation = "coefficient = 1_SeqClip · (R_j − mean_G R) / (std_G R + 1e-6) · s;  mean over rows of the mean over tokens"
    bias = "Dividing by the group's own standard deviation; off policy the sequence ratio is a geometric mean."
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    clip_low: float = setting(3e-4, "distance below 1 that the sequence ratio may go", "arXiv 2507.18071")
    clip_high: float = setting(4e-4, "distance above 1 that the sequence ratio may go", "arXiv 2507.18071")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            mask=SequenceClip(self.clip_low, self.clip_high),
            reference=SequenceMean(),
            advantage=GroupStandardized(),
            aggregate=SequenceMeanTokenMean(),
        )
