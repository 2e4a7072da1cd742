"""Aggregation: how per-token terms become one number, normalised globally.

An aggregate is a weight `[B,T]` per token, computed once from the whole optimiser step's batch (with several workers, from counts
summed over all of them). A micro-batch's loss is then a plain weighted sum, so the gradient cannot depend on how the batch was cut.

    loss = - sum_{b,t} weight[b,t] · x[b,t]

Belongs here: weights and counts. Does not belong here: what is aggregated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.errors import InputError, nearest
from unipg.estimator.parts import Joint, Part, Reduce, alone
from unipg.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Aggregate(Part):
    """Base class. `count` gives this worker's share of the denominator, `weights` the weight of each token given the global one.

    `mask` holds the tokens of the normalisation group, whether or not a stabilisation mask will silence them: they count. A row
    without any token does not count as a row.
    """

    def count(self, mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        """The group's rows that have at least one token."""
        return mask.any(1).sum().double()

    def weights(self, mask: Bool[Tensor, "B T"], total: Float[Tensor, ""]) -> Float[Tensor, "B T"]:
        raise NotImplementedError(type(self).__name__)

    def grouped(self, mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"], reduce: Reduce = alone) -> Float[Tensor, "B T"]:
        """The same, for aggregates that count prompts instead of rows: `group` is the prompt that each row answers."""
        return self(mask, reduce)

    def __call__(self, mask: Bool[Tensor, "B T"], reduce: Reduce = alone) -> Float[Tensor, "B T"]:
        """[B,T] weights of a whole batch; an empty normalisation group gives zeros."""
        total = reduce(self.count(mask))
        return torch.where(mask, self.weights(mask, total.clamp_min(1)), 0)


@dataclass(frozen=True)
class TokenMean(Aggregate):
    """sum(x·m) / sum(m): every token of the batch counts equally (DAPO, SFT)."""

    joint: ClassVar[Joint] = "step"

    def count(self, mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        return mask.sum().double()

    def weights(self, mask: Bool[Tensor, "B T"], total: Float[Tensor, ""]) -> Float[Tensor, "B T"]:
        return mask.double() / total


@dataclass(frozen=True)
class SequenceMeanTokenMean(Aggregate):
    """mean_b( sum_t(x·m) / sum_t(m) ): every row counts equally, long or short (GRPO, GSPO)."""

    def weights(self, mask: Bool[Tensor, "B T"], total: Float[Tensor, ""]) -> Float[Tensor, "B T"]:
        return mask.double() / mask.sum(1, keepdim=True).clamp_min(1) / total


@dataclass(frozen=True)
class SequenceMeanTokenSum(Aggregate):
    """mean_b( sum_t(x·m) ): the log-probability of the whole trajectory (REINFORCE, RLOO)."""

    def weights(self, mask: Bool[Tensor, "B T"], total: Float[Tensor, ""]) -> Float[Tensor, "B T"]:
        return mask.double() / total


@dataclass(frozen=True)
class ConstantLength(Aggregate):
    """mean_b( sum_t(x·m) / length ): a constant instead of each row's own length (Dr. GRPO).

    `length` in tokens, usually the run's limit on new tokens: a property of the setting, never the padded width of a batch.
    """

    length: int = 1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"ConstantLength.length is {self.length}; accepted: a number of tokens of at least 1")

    def weights(self, mask: Bool[Tensor, "B T"], total: Float[Tensor, ""]) -> Float[Tensor, "B T"]:
        return mask.double() / self.length / total


@dataclass(frozen=True)
class GroupMeanTokenSum(Aggregate):
    """mean_g( sum_{b in g} sum_t(x·m) ): one summand per prompt, so a pair of completions counts once (DPO, CoPG)."""

    def grouped(self, mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"], reduce: Reduce = alone) -> Float[Tensor, "B T"]:
        total = reduce(torch.tensor(float(group[mask.any(1)].unique().numel()), dtype=torch.float64, device=mask.device))
        return mask.double() / total.clamp_min(1)


AggregateName = Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "constant_length"]


def aggregate_named(name: AggregateName, length: int) -> Aggregate:
    """The aggregate of a recipe's `aggregate` key; `length` is the run's limit on new tokens, read by `constant_length`."""
    if name == "constant_length":
        return ConstantLength(length)
    plain = {"token_mean": TokenMean, "sequence_mean_token_mean": SequenceMeanTokenMean, "sequence_mean_token_sum": SequenceMeanTokenSum}
    if name not in plain:
        raise InputError(f"aggregate '{name}' does not exist; {nearest(name, [*plain, 'constant_length'])}")
    return plain[name]()
