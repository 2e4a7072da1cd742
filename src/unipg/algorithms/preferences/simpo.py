"""Simple preference optimisation."""

from dataclasses import dataclass

from unipg.algorithms.base import register, setting
from unipg.algorithms.preferences.dpo import PairAlgorithm
from unipg.estimator import Logistic, LogRatio, PairPreference


@register
@dataclass(frozen=True)
class SimPO(PairAlgorithm):
    """DPO without an anchor, on the mean log-probability per token, with a margin that the chosen completion must lead by."""

    name = "simpo"
    title = "Simple preference optimisation"
    paper = "arXiv 2405.14734"
    equation = "±beta · sigma(−z) / tokens on chosen / rejected,  z = beta · (mean log pi(chosen) − mean log pi(rejected)) − gamma"

    beta: float = setting(2.0, "scale of the mean log-probability", "arXiv 2405.14734 (2.0 to 2.5)")
    gamma: float = setting(1.0, "margin, in units of beta · log-probability", "arXiv 2405.14734 (gamma / beta about 0.5)")

    def preference(self) -> PairPreference:
        return PairPreference(Logistic(), LogRatio(self.beta, anchored=False, average=True), margin=self.gamma)
