"""Identity preference optimisation."""

from dataclasses import dataclass

from unipg.algorithms.base import register, setting
from unipg.algorithms.preferences.dpo import PairAlgorithm
from unipg.errors import InputError
from unipg.estimator import LogRatio, PairPreference, Squared


@register
@dataclass(frozen=True)
class IPO(PairAlgorithm):
    """The gap of log-ratios is regressed on a constant, so that sure preferences do not drive it to infinity as they do in DPO."""

    name = "ipo"
    title = "Identity preference optimisation"
    paper = "arXiv 2310.12036"
    equation = "±2 · (1 / (2 · beta) − z) on chosen / rejected,  z = rho(chosen) − rho(rejected);  mean over pairs"
    deviations = ("The paper's rho is a sum over tokens; some trainers take the mean per token: average, default off as in the paper.",)

    beta: float = setting(
        0.01, "strength of the KL to the anchor (tau): the gap aimed at is 1 / (2 · beta)", "best of arXiv 2406.19185's sweep"
    )
    average: bool = setting(False, "divide each log-ratio by the number of its tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise InputError(f"algorithm.beta is {self.beta}; accepted: a number above 0")

    def preference(self) -> PairPreference:
        return PairPreference(Squared(1 / (2 * self.beta)), LogRatio(1.0, average=self.average))
