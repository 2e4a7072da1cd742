"""REINFORCE++, row 12 of the library's table."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, KLInReward, Setting, check_range, register, setting
from unipg.estimator import BatchWhitened, OldPolicy, PolicyGradient, RatioClip
from unipg.estimator.aggregation import AggregateName, aggregate_named


@register
@dataclass(frozen=True)
class ReinforcePlusPlus(KLInReward, Algorithm):
    """PPO's clip without a critic: reward-to-go (with the KL in the reward), whitened over the whole batch instead of the group."""

    name = "reinforce_plus_plus"
    title = "REINFORCE++"
    paper = "arXiv 2501.03262"
    equation = "coefficient = 1_Clip · Â · r,  Â = (G_t − mean_batch) / std_batch,  r = pi_theta / pi_old"
    bias = "Whitening divides by a standard deviation that depends on the sampled batch."

    rollouts: int = setting(8, "rollouts per prompt")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 2501.03262")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 2501.03262")
    gamma: float = setting(1.0, "discount per token")
    aggregate: AggregateName = setting("token_mean", "how tokens are averaged")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high),
            reference=OldPolicy(),
            advantage=BatchWhitened(self.gamma),
            aggregate=aggregate_named(self.aggregate, setting.max_new_tokens),
        )
