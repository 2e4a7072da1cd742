"""Parts and algorithms that are wrong on purpose: each has one mistake of the kind that keeps coming back in this field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from unipg.algorithms import Algorithm
from unipg.algorithms.control.pmoe_sac import PMOESAC
from unipg.algorithms.learners import Learner
from unipg.critics import Expectation, Value
from unipg.critics.mixtures import Components, Frequencies, Routed, Through
from unipg.estimator import (
    Advantage,
    Aggregate,
    GroupAdvantage,
    KLPenalty,
    LeaveOneOut,
    Mask,
    OldPolicy,
    Outcome,
    PolicyGradient,
    Reference,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
)
from unipg.estimator.advantages import spread
from unipg.laws import trial
from unipg.trajectories import Source

SUM = SequenceMeanTokenSum()

# ---------------------------------------------------------------------------------------------------- split


@dataclass(frozen=True)
class MicroBatchMean(PolicyGradient):
    """Averages over the tokens of the micro-batch, on top of the planned weights."""

    def per_token(self, now, batch, name, planning):
        loss, record = super().per_token(now, batch, name, planning)
        return loss / batch.mask.sum().clamp_min(1), record


@dataclass(frozen=True)
class LooksAtTheMicroBatch(Advantage):
    """A baseline from whatever rows happen to be evaluated together."""

    dynamic: ClassVar[bool] = True

    def __call__(self, batch, now=None, planning=None):
        return spread(batch.total_reward() - batch.total_reward().mean(), batch)


@dataclass(frozen=True)
class PaddedWidth(Aggregate):
    """Divides by the width of the padded batch instead of a length of its own."""

    def weights(self, mask, total):
        return mask.double() / mask.shape[1] / total


@dataclass(frozen=True)
class WrongAxis(Advantage):
    """Compares the k-th rows of all groups with each other instead of the rows of one group."""

    def __call__(self, batch, now=None, planning=None):
        reward, seen, place = batch.total_reward(), {}, []
        for group in batch.group.tolist():
            seen[group] = seen.get(group, -1) + 1
            place.append(seen[group])
        index = torch.tensor(place, dtype=torch.long)
        means = {k: reward[index == k].mean() for k in set(place)}
        return spread(reward - torch.stack([means[k] for k in place]) if place else reward, batch)


@dataclass(frozen=True)
class OwnTokenCount(Aggregate):
    """A token mean that forgets to add up the workers' counts."""

    def __call__(self, mask, reduce=None):
        return mask.double() / mask.sum().clamp_min(1)


@dataclass(frozen=True)
class OwnWhitening(Advantage):
    """Batch statistics of this worker alone."""

    def __call__(self, batch, now=None, planning=None):
        reward = batch.total_reward()
        return spread((reward - reward.mean()) / (reward.std(correction=0) + 1) if len(reward) else reward, batch)


@dataclass(frozen=True)
class Dithered(Algorithm):
    """Draws random numbers while it prepares a batch."""

    name, title, paper = "dithered", "Dithered", "none"

    def objective(self, setting):
        return PolicyGradient(advantage=Outcome(), aggregate=SUM)

    def prepare(self, batch, setting, planning):
        return batch.replace(reward=batch.reward + 0.1 * torch.randn(len(batch), dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------- silence


@dataclass(frozen=True)
class TimesMask(Algorithm):
    """NaN · 0 is NaN: a penalty in the reward that multiplies by the mask."""

    name, title, paper = "times_mask", "Times mask", "none"

    def objective(self, setting):
        return PolicyGradient(advantage=LeaveOneOut(), aggregate=SUM)

    def prepare(self, batch, setting, planning):
        return batch.replace(reward=batch.reward - 0.1 * ((batch.old_log_prob - batch.anchor_log_prob) * batch.mask).sum(1))


@dataclass(frozen=True)
class WholeRow(Algorithm):
    """Sums step rewards over the whole row, the environment's and the padding's positions included."""

    name, title, paper = "whole_row", "Whole row", "none"

    def objective(self, setting):
        return PolicyGradient(advantage=LeaveOneOut(), aggregate=SUM)

    def prepare(self, batch, setting, planning):
        return batch if batch.step_reward is None else batch.replace(reward=batch.reward + batch.step_reward.sum(1))


# ---------------------------------------------------------------------------------------------------- exactness


@dataclass(frozen=True)
class Undetached(PolicyGradient):
    """An advantage with a graph: the entropy is a fine baseline, but its gradient does not belong into the estimator."""

    @property
    def reads_entropy(self):
        return True

    def per_token(self, now, batch, name, planning):
        _, record = super().per_token(now, batch, name, planning)
        advantage = batch.require(f"{name}/advantage", "Undetached") - now.entropy
        return -advantage * now.log_prob, record


@dataclass(frozen=True)
class PeekingBaseline(GroupAdvantage):
    """A baseline that looks at its own sample."""

    def of_rewards(self, reward, group, counted):
        return reward - reward**2


@dataclass(frozen=True)
class WrongSignKL(KLPenalty):
    """Pushes the policy away from the anchor."""

    def per_token(self, now, batch, name, planning):
        loss, record = super().per_token(now, batch, name, planning)
        return -loss, record


@dataclass(frozen=True)
class WrongSignKLInReward(Algorithm):
    """The same in the reward: adds the KL instead of subtracting it."""

    name, title, paper = "wrong_sign", "Wrong sign", "none"
    reads: ClassVar[frozenset[str]] = frozenset({"old_log_prob", "anchor_log_prob"})

    def objective(self, setting):
        return PolicyGradient(advantage=LeaveOneOut(), aggregate=SUM)

    def prepare(self, batch, setting, planning):
        return batch.replace(step_reward=torch.where(batch.mask, 0.1 * (batch.old_log_prob - batch.anchor_log_prob), 0))


@dataclass(frozen=True)
class OnlyFirstToken(Mask):
    """A mask that is called stabilisation but drops tokens on policy, too."""

    def __call__(self, log_ratio, advantage, batch):
        return batch.mask & (batch.mask.cumsum(1) == 1)


# ---------------------------------------------------------------------------------------------------- agreement


@dataclass(frozen=True)
class UndetachedRatio(PolicyGradient):
    """The score surrogate with a ratio that keeps its graph: the product rule adds a term."""

    def per_token(self, now, batch, name, planning):
        loss, record = super().per_token(now, batch, name, planning)
        if self.surrogate == "ratio":
            return loss, record
        ratio = (now.log_prob - batch.old_log_prob).exp()
        return -ratio * batch.require(f"{name}/advantage", "UndetachedRatio") * now.log_prob, record


@dataclass(frozen=True)
class ClipsAtOne(Mask):
    """Clips where the ratio is exactly 1: the bound forgot its epsilon."""

    @property
    def ratio_field(self):
        return "old_log_prob"

    def __call__(self, log_ratio, advantage, batch):
        return ~((advantage > 0) & (log_ratio >= 0))


@dataclass(frozen=True)
class OtherTemperature(Reference):
    """Divides by the old policy at another temperature."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_log_prob"})

    def __call__(self, log_prob, batch):
        return 0.9 * batch.old_log_prob


# ---------------------------------------------------------------------------------------------------- emptiness


@dataclass(frozen=True)
class MeanOfNothing(PolicyGradient):
    """A mean over each row's tokens without a guard: 0/0 in a row without any."""

    def per_token(self, now, batch, name, planning):
        loss, record = super().per_token(now, batch, name, planning)
        return loss + 0.0 * (now.log_prob.sum(1) / batch.mask.sum(1)).unsqueeze(1), record


@dataclass(frozen=True)
class MaximumOfNothing(Advantage):
    """Scales by the largest reward, of which an empty batch has none."""

    bias: ClassVar[str] = "the scale depends on the batch"

    def __call__(self, batch, now=None, planning=None):
        reward = batch.total_reward()
        return spread(reward / reward.max().clamp_min(1), batch)


@dataclass(frozen=True)
class CountsIdleRows(Aggregate):
    """A mean over all rows, those included in which the policy did nothing."""

    def count(self, mask):
        return torch.tensor(float(len(mask)), dtype=torch.float64)

    def weights(self, mask, total):
        return mask.double() / total


# ---------------------------------------------------------------------------------------------------- learning, resume, second opinion


@dataclass(frozen=True)
class UpsideDown(Outcome):
    """The sign of the advantage is wrong, and the class talks itself out of it."""

    bias: ClassVar[str] = "deliberate"

    def __call__(self, batch, now=None, planning=None):
        return -super().__call__(batch, now, planning)


class Anew(Components):
    """Does not say that it asks who is best, so that nobody decides it before the batch is cut."""

    ranks = Expectation.ranks


class CountsAnew(Frequencies):
    """The same of the router's loss."""

    ranks = frozenset()


@dataclass(frozen=True)
class WinnersOfEachLearner(PMOESAC):
    """Each learner finds its own winners in the micro-batches that it sees, after the steps of those before it."""

    def actions(self, setting):
        components = Anew(Value("q"))
        return components, Routed(), Through(components)

    def learners(self, setting):
        _, *others = super().learners(setting)
        return (Learner("router", ("router",), CountsAnew(rows=(Source.REPLAY,), by=Value("q"), name="router")), *others)


@dataclass(frozen=True)
class Forgetful(Algorithm):
    """A running baseline that lives in the algorithm and not in the checkpoint."""

    name, title, paper = "forgetful", "Forgetful", "none"

    seen: list[float] = field(default_factory=list)

    def objective(self, setting):
        return PolicyGradient(advantage=Outcome(), aggregate=SUM)

    def prepare(self, batch, setting, planning):
        baseline = sum(self.seen) / max(1, len(self.seen))
        self.seen.append(float(batch.reward.mean()) if len(batch) else 0.0)
        return batch.replace(reward=batch.reward - baseline)


@dataclass(frozen=True)
class PackedWithoutBorders(PolicyGradient):
    """Sums along packed tokens and runs from one row into the next."""

    def per_token(self, now, batch, name, planning):
        loss, record = super().per_token(now, batch, name, planning)
        return loss.reshape(-1).cumsum(0).reshape(loss.shape), record


PLAIN = {"advantage": LeaveOneOut(), "aggregate": SUM}


class NothingLeft(Algorithm):
    """Every row is dropped before it is stepped on, so that all batches are empty."""

    name, title, paper = "nothing_left", "Nothing left", "none"

    def objective(self, setting):
        return PolicyGradient(advantage=Outcome(), aggregate=SUM)

    def select(self, batch, planning, evaluate):
        return batch.select([])


@dataclass(frozen=True)
class Worthless(Outcome):
    """An advantage of 0: whatever is done to the batch, the gradient stays the same."""

    def __call__(self, batch, now=None, planning=None):
        return 0 * super().__call__(batch, now, planning)


BROKEN: dict[str, tuple[str, str, Callable[[], Algorithm]]] = {
    # name: the law that must catch it, words that its sentence must have, and how it is made
    "per-micro-batch mean": ("split", "micro-batches instead of one", lambda: trial(MicroBatchMean(**PLAIN))),
    "advantage that reads the whole micro-batch": ("split", "micro-batches instead of one", lambda: trial(LooksAtTheMicroBatch())),
    "aggregate divided by the padded width": ("split", "more columns of padding", lambda: trial(PaddedWidth())),
    "group statistics over the wrong axis": ("split", "another order|workers instead of one", lambda: trial(WrongAxis())),
    "count of one worker": ("split", "workers instead of one", lambda: trial(OwnTokenCount())),
    "statistics of one worker": ("split", "workers instead of one", lambda: trial(OwnWhitening())),
    "random numbers while preparing": ("split", "prepared a second time", Dithered),
    "winners of each learner": ("split", "all learners in turn", WinnersOfEachLearner),
    "NaN times mask": ("silence", "where the mask is 0", TimesMask),
    "step rewards of the environment": ("silence", "in step_reward where the mask is 0", WholeRow),
    "undetached advantage": ("exactness", "cosine", lambda: trial(Undetached(**PLAIN))),
    "baseline that looks at its own sample": ("exactness", "no bias is stated", lambda: trial(PeekingBaseline())),
    "length bias": ("exactness", "no bias is stated; .*01: .*, 1: ", lambda: trial(SequenceMeanTokenMean())),
    "mask that drops tokens on policy": ("exactness", "no bias is stated", lambda: trial(OnlyFirstToken())),
    "wrong sign of the KL": ("exactness", "raises the KL", lambda: trial(WrongSignKL(aggregate=SUM))),
    "wrong sign of the KL in the reward": ("exactness", "raises the KL", WrongSignKLInReward),
    "ratio not detached": ("agreement", "surrogates", lambda: trial(UndetachedRatio(reference=OldPolicy(), **PLAIN))),
    "clip without a margin": ("agreement", "pi_theta = pi_old", lambda: trial(ClipsAtOne())),
    "reference at another temperature": ("agreement", "pi_theta = pi_old", lambda: trial(OtherTemperature())),
    "mean over no tokens": ("emptiness", "not exactly 0", lambda: trial(MeanOfNothing(**PLAIN))),
    "maximum over no rows": ("emptiness", "RuntimeError|IndexError", lambda: trial(MaximumOfNothing())),
    "mean over idle rows": ("emptiness", "one more group", lambda: trial(CountsIdleRows())),
    "wrong sign of the advantage": ("learning", "went from", lambda: trial(UpsideDown())),
    "state outside the checkpoint": ("resume", "not bit-identical", Forgetful),
    "batches that are all empty": ("resume", r"no weight moved in \d+ optimiser steps \(skipped: \d+ empty\)", NothingLeft),
    "packing that runs over row borders": ("second_opinion", "each row alone", lambda: trial(PackedWithoutBorders(**PLAIN))),
}
