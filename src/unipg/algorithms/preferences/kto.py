"""Kahneman-Tversky optimisation."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preferences.dpo import BIAS
from unipg.algorithms.preparation import check_completions
from unipg.algorithms.rates import PREFERRED
from unipg.estimator import PREFERENCES, KahnemanTversky, Planning, PolicyGradient, SequenceMeanTokenSum
from unipg.trajectories import Source, Trajectories


@register
@dataclass(frozen=True)
class KTO(Algorithm):
    """Learns from completions that were liked or not, without pairs: each is compared with a reference point common to the batch."""

    name = "kto"
    title = "Kahneman-Tversky optimisation"
    paper = "arXiv 2402.01306"
    equation = "±weight · beta · sigma'(beta · (rho − z0)) on liked / disliked,  z0 = max(0, mean rho of mismatched completions)"
    bias = BIAS
    uses_rollouts = False
    completions = "unpaired"
    learning_rate = PREFERRED

    rollouts: int = setting(0, "rollouts per prompt: none")
    beta: float = setting(0.1, "strength of the KL to the anchor", "arXiv 2402.01306")
    desirable_weight: float = setting(1.0, "weight of liked completions", "arXiv 2402.01306")
    undesirable_weight: float = setting(1.0, "weight of disliked completions", "arXiv 2402.01306")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            advantage=KahnemanTversky(self.beta, self.desirable_weight, self.undesirable_weight),
            aggregate=SequenceMeanTokenSum(),
            rows=PREFERENCES,
            name="preference",
        )

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        check_completions(batch, batch.rows_from(Source.PREFERENCE))
        return batch
