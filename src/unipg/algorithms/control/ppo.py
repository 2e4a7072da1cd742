"""Proximal policy optimisation, row 2 of the table; for language and for control."""

import math
from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, KindOfCritic, KLInReward, Setting, check_range, register, setting
from unipg.estimator import GAE, EntropyBonus, Objective, OldPolicy, PolicyGradient, RatioClip
from unipg.estimator.aggregation import AggregateName, aggregate_named


@register
@dataclass(frozen=True)
class PPO(KindOfCritic, KLInReward, Algorithm):
    """Clipped importance ratio, generalised advantage estimation against a learned critic, value loss and entropy bonus."""

    name = "ppo"
    title = "Proximal policy optimisation"
    paper = "arXiv 1707.06347"
    equation = "coefficient = 1_Clip · Â_GAE · r,  r = pi_theta / pi_old;  + value loss − entropy bonus"
    bias = (
        "The advantage is whitened with statistics of the sampled batch, token_mean weights rows by the batch's lengths, "
        "and a learned critic with lam < 1 is biased."
    )
    claim = "benchmarks/claims/control_curves.py"

    rollouts: int = setting(1, "rollouts per prompt; no group is needed")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 1707.06347")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 1707.06347")
    clip_dual: float | None = setting(None, "bound on the ratio itself where the advantage is negative (dual clip, 3); null for none")
    gamma: float = setting(1.0, "discount per token or step; 0.99 is usual for control")
    lam: float = setting(0.95, "GAE's lambda", "arXiv 1707.06347")
    normalize_advantage: bool = setting(True, "whiten the advantage over the batch")
    value_weight: float = setting(0.5, "weight of the critic's loss", "arXiv 1707.06347")
    value_clip: float | None = setting(None, "how far the value may move from the old one; null for no clipping")
    entropy: float = setting(0.0, "weight of the entropy bonus")
    aggregate: AggregateName = setting("token_mean", "how tokens are averaged")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam")
        check_range(self, 0, math.inf, "value_weight")

    def objective(self, setting: Setting) -> Objective:
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage)
        aggregate = aggregate_named(self.aggregate, setting.max_new_tokens)
        critic = self.critic_of_states(setting.acts)
        objective = PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high, self.clip_dual),
            reference=OldPolicy(),
            advantage=critic.advantage(gae),
            aggregate=aggregate,
        ) + self.value_weight * critic.state_loss(gae, clip=self.value_clip, aggregate=aggregate)
        return objective + self.entropy * EntropyBonus(aggregate=aggregate) if self.entropy else objective
