"""Direct preference optimisation, and cDPO."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preparation import check_pairs
from unipg.algorithms.rates import PREFERRED
from unipg.estimator import PREFERENCES, GroupMeanTokenSum, Logistic, LogRatio, Objective, PairPreference, Planning, PolicyGradient, Term
from unipg.trajectories import Trajectories

BIAS = "The completions are given, not the policy's own, and their coefficients are no importance-corrected rewards."


@dataclass(frozen=True)
class PairAlgorithm(Algorithm):
    """What every method on pairs shares: the data, and the advantage of a pair."""

    uses_rollouts = False
    completions = "pairs"
    learning_rate = PREFERRED
    bias = BIAS

    rollouts: int = setting(0, "rollouts per prompt: none")

    def preference(self) -> PairPreference:
        raise NotImplementedError(type(self).__name__)

    def objective(self, setting: Setting) -> Objective | Term:
        return PolicyGradient(advantage=self.preference(), aggregate=GroupMeanTokenSum(), rows=PREFERENCES, name="preference")

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        return check_pairs(batch)


@register
@dataclass(frozen=True)
class DPO(PairAlgorithm):
    """The reward that a policy implies, beta · log(pi / pi_0), is fitted to preferences by logistic regression."""

    name = "dpo"
    title = "Direct preference optimisation"
    paper = "arXiv 2305.18290"
    equation = (
        "±beta · sigma(−z) on chosen / rejected,  z = beta · (rho(chosen) − rho(rejected)),  rho = log pi − log pi_0;  mean over pairs"
    )

    beta: float = setting(0.1, "strength of the KL to the anchor; larger stays nearer", "arXiv 2305.18290")
    label_smoothing: float = setting(0.0, "assumed share of wrong labels, in [0, 0.5)")

    def preference(self) -> PairPreference:
        return PairPreference(Logistic(self.label_smoothing), LogRatio(self.beta))


@register
@dataclass(frozen=True)
class CDPO(DPO):
    """DPO that assumes a share of the labels to be wrong, so that no pair is pushed without end."""

    name = "cdpo"
    title = "Conservative DPO"
    paper = "Mitchell 2023, A note on DPO with noisy preferences"
    equation = "±beta · ((1 − e) · sigma(−z) − e · sigma(z)) on chosen / rejected;  mean over pairs"

    label_smoothing: float = setting(0.1, "assumed share e of wrong labels, in [0, 0.5)")
