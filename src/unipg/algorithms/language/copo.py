"""COPO (arXiv 2508.04138): a second, prompt-level advantage for prompts whose answers agree, so that degenerate groups still teach."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preparation import AnswersCompared, answers_of, check_extract, prompt_of
from unipg.errors import InputError, nearest
from unipg.estimator import (
    GroupCentered,
    GroupStandardized,
    Objective,
    OldPolicy,
    Planning,
    PolicyGradient,
    RatioClip,
    SequenceMeanTokenMean,
)
from unipg.estimator.advantages import GroupAdvantage
from unipg.estimator.baselines import AcrossPrompts
from unipg.estimator.policy_gradient import check_rewards
from unipg.trajectories import Source, Trajectories

CONSISTENCY, LOCAL, GLOBAL, ENTROPY = "copo/consistency", "copo/local", "copo/global", "copo/entropy"
VARIANTS = ("no global", "only global", "only soft", "only forced", "soft with forced", "only zero", "soft with zero")


@register
@dataclass(frozen=True)
class COPO(Algorithm):
    """Two clipped policy gradients with the same mask: w · the group's own advantage + (1 − w) · the prompt's among the prompts.

    w = sigmoid(sharpness · (H − midpoint)), H the entropy of the group's final answers in bits: where they agree, the prompt-level
    advantage counts. `variant` says what w is:

        no global         1                                  only global       0
        only soft         w                                  only forced       1 where A_local is not 0, else 0
        soft with forced  w where A_local is not 0, else 0   only zero         1 where the reward is not 0, else 0
        soft with zero    w where the reward is not 0, else 0

    Answers are `annotations["answer"]`, of which `extract` may take a part. Rows without that annotation are compared by their tokens.
    """

    name = "copo"
    title = "Consistency-aware policy optimisation"
    paper = "arXiv 2508.04138"
    equation = (
        "coefficient = w · 1_Clip(A) · A · r + (1 − w) · 1_Clip(B) · B · r,  A = (R_j − mean_G R) / (std_G R + 1e-6),  "
        "B = (R_q − mean_q R) / (std_q R + 1e-6);  mean over rows of the mean over tokens"
    )
    bias = (
        "Dividing by standard deviations; the gate depends on the sampled answers, and the prompt-level term gives no credit to a response."
    )
    deviations = (
        "The released script runs 'soft with zero'; the default is the abstract's method, 'only soft'. Hyphens, underscores and spaces "
        "in `variant` are the same.",
        "With zero variants a wrong answer to a prompt easier than the average has a positive advantage of weight 1: so the released code.",
        "A single prompt in a batch has prompt-level advantage 0; the released code divides by NaN.",
        "The paper's best gate is said to be sharpness 20, midpoint 1.5; the released script has 5 and 1.",
    )
    claim = "benchmarks/claims/copo.py"
    unit_rewards = True
    needs_group = 2
    learns_from_equals = True

    rollouts: int = setting(6, "rollouts per prompt, at least 2", "released script")
    variant: str = setting("only soft", f"one of: {', '.join(VARIANTS)}", "abstract; released script: soft with zero")
    sharpness: float = setting(5.0, "slope of the gate per bit (k, gamma)", "released script; 20 is the paper's best")
    midpoint: float = setting(
        1.0, "entropy in bits at which both terms weigh the same (b, rho)", "released script; 1.5 is the paper's best"
    )
    consistency: bool = setting(False, "multiply a prompt's mean reward by 1 − H (1 − 1/G) / log2 G", "released script: off")
    divide_by_std: bool = setting(True, "divide both advantages by their standard deviations", "released script")
    answers: AnswersCompared = setting("auto", "what is compared: annotated text, tokens; auto: text where there is any")
    extract: str | None = setting(None, "regular expression of the final answer in the text, its last match counts; null: all of the text")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "released script")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "released script")
    clip_dual: float | None = setting(3.0, "bound on the ratio itself where the advantage is negative; null for none", "released script")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in VARIANTS:
            raise InputError(f"algorithm.variant '{self.variant}' does not exist; {nearest(self.kind, list(VARIANTS))}")
        if not self.sharpness > 0:
            raise InputError(f"algorithm.sharpness is {self.sharpness}; accepted: a number above 0")
        check_extract(self.extract)

    @property
    def kind(self) -> str:
        """The variant with one spelling."""
        return re.sub(r"[-_\s]+", " ", self.variant.strip().lower())

    @property
    def local(self) -> GroupAdvantage:
        return GroupStandardized() if self.divide_by_std else GroupCentered()

    def objective(self, setting: Setting) -> Objective:
        across = AcrossPrompts(CONSISTENCY if self.consistency else None, self.divide_by_std)
        mask, mean = RatioClip(self.clip_low, self.clip_high, self.clip_dual), SequenceMeanTokenMean()
        local = PolicyGradient(mask=mask, reference=OldPolicy(), advantage=self.local, aggregate=mean, row_weight=LOCAL, name="local")
        return local + PolicyGradient(mask=mask, reference=OldPolicy(), advantage=across, aggregate=mean, row_weight=GLOBAL, name="global")

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        check_rewards(batch)
        reward, rollouts = batch.total_reward(), batch.rows_from(Source.ROLLOUT)
        wrong = rollouts & batch.mask.any(1) & ((reward < 0) | (reward > 1))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise InputError(f"COPO reads mean rewards as accuracies: that of row {row} is {float(reward[row]):g}; accepted: 0 to 1")
        entropy, size = self._entropy(batch, rollouts)
        weight = self.weight(entropy, self.local(batch)[:, 0], reward)
        planned = {ENTROPY: entropy, LOCAL: weight, GLOBAL: 1 - weight}
        if self.consistency:
            alone = rollouts & (size == 1)
            if alone.any():
                raise InputError(f"{prompt_of(batch, int(alone.nonzero()[0]))} has one rollout; accepted with consistency: 2 or more")
            planned[CONSISTENCY] = consistency_coefficient(entropy, size)
        return batch.replace(planned={**batch.planned, **planned})

    def weight(self, entropy: Tensor, local_advantage: Tensor, reward: Tensor) -> Tensor:
        """[B] weight of the local term: the variant's gate."""
        soft = torch.sigmoid(self.sharpness * (entropy - self.midpoint)) if "soft" in self.kind else torch.ones_like(entropy)
        if self.kind == "only global":
            return torch.zeros_like(entropy)
        if "forced" in self.kind:
            return torch.where(local_advantage != 0, soft, 0)
        return torch.where(reward != 0, soft, 0) if "zero" in self.kind else soft

    def _entropy(self, batch: Trajectories, rollouts: Tensor) -> tuple[Tensor, Tensor]:
        """[B] entropy of the answers of each row's group in bits, and [B] the number of its rollouts."""
        assert batch.group is not None
        answers = answers_of(batch, self.answers, self.extract, "COPO")
        counts: dict[int, Counter[Hashable]] = {}
        groups = batch.group.tolist()
        for group, answer, counted in zip(groups, answers, rollouts.tolist(), strict=True):
            mine = counts.setdefault(group, Counter())
            if counted:
                mine[answer] += 1
        values = [(answer_entropy(counts[g]), float(counts[g].total())) for g in groups]
        entropy, size = torch.tensor(values, dtype=torch.float64, device=batch.mask.device).reshape(-1, 2).unbind(1)
        return entropy, size

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        rows = batch.rows_from(Source.ROLLOUT)
        if not rows.any():
            return {}
        return {
            "answers/entropy": float(batch.planned[ENTROPY][rows].mean()),
            "gate/local": float(batch.planned[LOCAL][rows].mean()),
            "gate/degenerate_fraction": float((batch.planned["local/advantage"][rows][:, 0] == 0).double().mean()),
        }


def answer_entropy(counts: Counter[Hashable]) -> float:
    """H = −sum_u p_u log2(p_u + 1e-8) in bits, p_u the share of each distinct answer; 0 where all agree."""
    total = counts.total()
    shares = sorted(count / total for count in counts.values())
    return 0.0 if len(shares) < 2 else -math.fsum(p * math.log2(p + 1e-8) for p in shares)


def consistency_coefficient(entropy: Tensor, size: Tensor) -> Tensor:
    """c = 1 − lambda H with lambda = (1 − 1/G) / log2 G: 1 where all G answers agree, 1/G where all differ."""
    return 1 - (1 - 1 / size) / size.log2() * entropy
