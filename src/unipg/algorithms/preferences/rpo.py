"""Regularised preference optimisation: a preference loss with a supervised one as its adversarial regulariser."""

from dataclasses import dataclass
from typing import Literal

from unipg.algorithms.base import Setting, register, setting
from unipg.algorithms.preferences.dpo import DPO
from unipg.algorithms.rates import IMITATED
from unipg.errors import InputError
from unipg.estimator import PREFERENCES, Constant, GroupMeanTokenSum, Objective, PolicyGradient, SequenceMeanTokenMean, Term

NEGLIGIBLE = 1e-6
"""An eta below this is 0, as in the released trainer."""


def from_eta(beta: float, eta: float) -> float:
    """The weight of the supervised loss that the paper's eta stands for: eta · beta."""
    return 0.0 if eta < NEGLIGIBLE else eta * beta


@register
@dataclass(frozen=True)
class RPO(DPO):
    """DPO and the likelihood of the chosen completions: the closed form of being pessimistic about the reward where no data covers it.

    Not Reward-aware Preference Optimization, which shares the acronym; and `rpo_alpha` elsewhere is not this eta.
    """

    name = "regularized_preference_optimization"
    title = "Regularised preference optimisation (RPO)"
    learning_rate = IMITATED
    paper = "arXiv 2405.16436"
    equation = "beta · sigma(−z) + eta · beta on chosen,  −beta · sigma(−z) on rejected,  z as in DPO;  mean over pairs"
    deviations = (
        "Two released trainers: the supervised loss as a sum over tokens with weight eta · beta (the paper's), or as a mean over tokens "
        "whose weight is not multiplied by beta: sft_over: average with sft_weight.",
    )
    claim = "benchmarks/claims/rpo.py"

    beta: float = setting(0.01, "strength of the KL to the anchor", "released Zephyr-beta script; 0.05 for gemma")
    eta: float = setting(0.005, "strength of the regulariser: its weight is eta · beta; 0 is DPO", "released scripts")
    sft_weight: float | None = setting(None, "weight of the supervised loss itself, instead of eta · beta", "average variant: 0.2")
    sft_over: Literal["cumulative", "average"] = setting("cumulative", "sum over a completion's tokens, or their mean", "paper; appendix F")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("eta", "sft_weight"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise InputError(f"algorithm.{key} is {value}; accepted: 0 or more")

    @property
    def weight(self) -> float:
        """Of the supervised loss."""
        return from_eta(self.beta, self.eta) if self.sft_weight is None else self.sft_weight

    def objective(self, setting: Setting) -> Objective | Term:
        preference = super().objective(setting)
        if not self.weight:
            return preference
        sft = PolicyGradient(
            advantage=Constant(1.0),
            aggregate=GroupMeanTokenSum() if self.sft_over == "cumulative" else SequenceMeanTokenMean(),
            rows=PREFERENCES,
            row_weight="chosen",
            count_weightless=False,
            name="sft",
        )
        return preference + self.weight * sft
