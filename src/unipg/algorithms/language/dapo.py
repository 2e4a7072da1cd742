"""DAPO, row 10 of the library's table."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preparation import groups_with_signal, overlong_penalty
from unipg.estimator import GroupStandardized, OldPolicy, Planning, PolicyGradient, RatioClip, TokenMean
from unipg.trajectories import Trajectories


@register
@dataclass(frozen=True)
class DAPO(Algorithm):
    """GRPO with an asymmetric clip, token mean, dynamic sampling (groups whose rewards are all equal are dropped and replaced) and a soft
    over-length penalty in the reward."""

    name = "dapo"
    title = "Decoupled clip and dynamic sampling policy optimisation"
    paper = "arXiv 2503.14476"
    equation = "coefficient = 1_Clip(0.2, 0.28) · (R_j − mean_G R) / (std_G R + 1e-6) · r;  token mean"
    bias = "Dividing by the group's own standard deviation, and prompts without signal are dropped."
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2; the paper uses 16")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 2503.14476")
    clip_high: float = setting(0.28, "distance above 1 that the ratio may go", "arXiv 2503.14476")
    dynamic_sampling: bool = setting(True, "drop groups whose rewards are all equal and sample others", "arXiv 2503.14476")
    max_sampling_rounds: int = setting(4, "how often a batch is topped up before it is trained on as it is")
    overlong_buffer: int | None = setting(None, "tokens before the limit at which the penalty starts; null for a fifth of the limit")
    overlong_factor: float = setting(1.0, "largest penalty on an over-long answer; 0 for none", "arXiv 2503.14476")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high),
            reference=OldPolicy(),
            advantage=GroupStandardized(),
            aggregate=TokenMean(),
        )

    def keep(self, batch: Trajectories) -> Trajectories:
        return batch.select(groups_with_signal(batch)) if self.dynamic_sampling else batch

    @property
    def most_sampling_rounds(self) -> int:
        return self.max_sampling_rounds if self.dynamic_sampling else 1

    @property
    def penalises_length(self) -> bool:
        return self.overlong_factor != 0

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        if not self.overlong_factor:
            return batch
        limit = setting.max_new_tokens
        buffer = limit // 5 if self.overlong_buffer is None else self.overlong_buffer
        return overlong_penalty(batch, limit, max(1, buffer), self.overlong_factor)
