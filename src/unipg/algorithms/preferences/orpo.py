"""Odds ratio preference optimisation."""

from dataclasses import dataclass

from unipg.algorithms.base import Setting, register, setting
from unipg.algorithms.preferences.dpo import PairAlgorithm
from unipg.algorithms.rates import IMITATED
from unipg.estimator import (
    PREFERENCES,
    Constant,
    GroupMeanTokenSum,
    Logistic,
    LogOdds,
    Objective,
    PairPreference,
    PolicyGradient,
    SequenceMeanTokenMean,
)


@register
@dataclass(frozen=True)
class ORPO(PairAlgorithm):
    """Supervised fine-tuning on the chosen completions and a penalty on the odds of the rejected ones, in one stage without an anchor."""

    name = "orpo"
    title = "Odds ratio preference optimisation"
    learning_rate = IMITATED
    paper = "arXiv 2403.07691"
    equation = "1 / tokens on chosen;  ±weight · sigma(−z) / ((1 − p) · tokens),  z = log odds(chosen) − log odds(rejected)"
    deviations = (
        "The paper's likelihood of the chosen completion is a mean per row; one released trainer takes it over prompt and completion, "
        "tokens of the whole batch together: ours is over the completion, a mean per row.",
    )

    weight: float = setting(0.1, "weight of the odds ratio loss (lambda)", "arXiv 2403.07691")

    def preference(self) -> PairPreference:
        return PairPreference(Logistic(), LogOdds())

    def objective(self, setting: Setting) -> Objective:
        odds = PolicyGradient(advantage=self.preference(), aggregate=GroupMeanTokenSum(), rows=PREFERENCES, name="preference")
        sft = PolicyGradient(
            advantage=Constant(1.0),
            aggregate=SequenceMeanTokenMean(),
            rows=PREFERENCES,
            row_weight="chosen",
            count_weightless=False,
            name="sft",
        )
        return sft + self.weight * odds
