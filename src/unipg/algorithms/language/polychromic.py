"""Polychromic objective for language: sets of answers that are right and different share an advantage (arXiv 2509.25424)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from unipg.algorithms.base import Setting, register, setting
from unipg.algorithms.language.grpo import ClippedGroups
from unipg.algorithms.preparation import AnswersCompared, answers_of, check_extract
from unipg.algorithms.sets import ScoresSets
from unipg.estimator import GroupCentered, Planning
from unipg.estimator.aggregation import AggregateName
from unipg.estimator.sets import SetAdvantage
from unipg.trajectories import Source, Trajectories


@register
@dataclass(frozen=True)
class Polychromic(ScoresSets, ClippedGroups):
    """GRPO's clipped ratio with an advantage of sets: F = mean reward of n rollouts of a prompt · share of distinct answers among them.

    Every rollout gets the mean of F − mean F over its sets, on all of its tokens. Answers are `annotations["answer"]`, of which `extract`
    may take a part; rows without that annotation are compared by their tokens.
    """

    name = "polychromic"
    title = "Polychromic objective for language models"
    paper = "arXiv 2509.25424"
    equation = "coefficient = 1_Clip · mean_{g∋j} (F(g) − mean_g F) · r,  F(g) = mean_g R · (distinct answers of g) / n"
    bias = (
        "It follows the objective of sets, not the expected reward: with two right answers any mixture has the same expected reward, and "
        "the even one the highest F. Larger n pays for diversity with wrong answers. F is centred with its own mean."
    )
    deviations = (
        "The paper has vines from states of a controller; here all rollouts of a prompt start at its end, and all tokens share.",
        "All sets of n among the rollouts instead of random ones: the mean over the draws; `sets` draws them.",
    )
    claim = "benchmarks/claims/polychromic.py"
    unit_rewards = True
    needs_group = 3
    learns_from_equals = True

    rollouts: int = setting(8, "N: rollouts per prompt, more than set_size")
    set_size: int = setting(2, "n: rollouts in a set; with 2 wrong answers never pay where two right ones are known", "library's choice")
    sets: int | None = setting(None, "M: random sets of each prompt, at least 2; null: all that there are", "library's choice")
    answers: AnswersCompared = setting("auto", "what is compared: annotated text, tokens; auto: text where there is any")
    extract: str | None = setting(None, "regular expression of the final answer in the text, its last match counts; null: all of the text")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 2509.25424")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 2509.25424")
    kl: float = setting(0.0, "weight of the KL penalty in the loss; 0 for none")
    kl_estimator: Literal["k2", "k3"] = setting("k3", "estimate of the KL in the loss", "arXiv 2402.03300, eq. 4")
    aggregate: AggregateName = setting("sequence_mean_token_mean", "how tokens are averaged", "arXiv 2402.03300, eq. 3")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_extract(self.extract)

    @property
    def advantage(self) -> SetAdvantage:
        return SetAdvantage(GroupCentered(), self.poly_scale)

    def signatures(self, batch: Trajectories) -> list[Hashable]:
        return answers_of(batch, self.answers, self.extract, self.name)

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        return self.planned_sets(batch, self.signatures(batch), batch.rows_from(Source.ROLLOUT) & batch.mask.any(1), planning)
