"""Reward models from preferences, by Bradley and Terry's likelihood."""

from dataclasses import dataclass

from unipg.algorithms.base import register
from unipg.algorithms.preferences.dpo import PairAlgorithm
from unipg.estimator import Logistic, LogRatio, PairPreference


@register
@dataclass(frozen=True)
class BradleyTerry(PairAlgorithm):
    """A reward model r(x, y): the log-density, up to a constant, of an unnormalised policy exp(r), fitted to pairs.

    Trains a sequence classifier with one output (`policy.kind: reward`); the result scores answers in every online recipe
    (`reward_model:`).
    """

    name = "bradley_terry"
    title = "Bradley-Terry reward model"
    paper = "Bradley and Terry 1952; arXiv 2203.02155"
    equation = "±sigma(−(r(chosen) − r(rejected))) on ∇r of chosen / rejected;  mean over pairs"
    scores = True

    def preference(self) -> PairPreference:
        return PairPreference(Logistic(), LogRatio(1.0, anchored=False))
