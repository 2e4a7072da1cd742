"""Advantages from given completions: pairs, single ones that were liked or not, several with scores.

Their losses are functions of the current policy's sequence log-probabilities alone, so the gradient is a coefficient per row on
∇log pi(y): an advantage with pi_ref = pi_theta, taken from the detached current policy. The anchor pi_0 that they compare with is
inside the advantage; it is not the denominator of the estimator.

    rho(y) = log pi_theta(y) − log pi_0(y),   sums over the policy's tokens
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.advantages import PREFERENCES, Advantage, LeaveOneOut, Planning, spread
from unipg.estimator.parts import Joint, Part
from unipg.shapes import Bool, Float
from unipg.trajectories import Evaluation, Source, Trajectories

ANCHOR = "anchor_log_prob"


def _current(now: Evaluation | None, who: str) -> Tensor:
    if now is None:
        raise InputError(f"{who} depends on the current policy: call it with `now`")
    return now.log_prob.detach()


def _row_sums(values: Float[Tensor, "B T"], batch: Trajectories) -> Float[Tensor, " B"]:
    return torch.where(batch.mask, values, 0).sum(1)


def log_ratio_to_anchor(batch: Trajectories, now: Evaluation | None, who: str) -> Float[Tensor, " B"]:
    """[B] rho(y), detached."""
    return _row_sums(_current(now, who) - batch.require(ANCHOR, who), batch)


# ------------------------------------------------------------------------------------------------ what is compared


@dataclass(frozen=True)
class Score(Part):
    """What a pair's two completions are compared by: a number per row, and its slope in each token's log-probability."""

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    def __call__(self, batch: Trajectories, now: Evaluation | None) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """[B] scores and [B] slopes ds/dlog pi(token), detached."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class LogRatio(Score):
    """s(y) = beta · rho(y), the implicit reward of DPO.

    `anchored`: subtract log pi_0 (otherwise pi_0 is taken as uniform over everything). `average`: divide by the number of tokens.
    """

    beta: float = 0.1
    anchored: bool = True
    average: bool = False

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise InputError(f"beta is {self.beta}; accepted: a number above 0")

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({ANCHOR}) if self.anchored else frozenset()

    def __call__(self, batch: Trajectories, now: Evaluation | None) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        who = type(self).__name__
        total = log_ratio_to_anchor(batch, now, who) if self.anchored else _row_sums(_current(now, who), batch)
        slope = torch.full_like(total, self.beta)
        if self.average:
            slope = slope / batch.mask.sum(1).clamp_min(1)
        return slope * total, slope


@dataclass(frozen=True)
class LogOdds(Score):
    """s(y) = log(p / (1 − p)), p = exp(mean_t log pi(y_t)): the odds of ORPO, without anchor. Slope 1 / ((1 − p) · tokens)."""

    def __call__(self, batch: Trajectories, now: Evaluation | None) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        count = batch.mask.sum(1).clamp_min(1)
        mean = _row_sums(_current(now, "LogOdds"), batch) / count
        # −expm1 keeps 1 − p above 0 for a p that rounds to 1
        rest = (-torch.expm1(mean)).clamp_min(torch.finfo(mean.dtype).tiny)
        return mean - rest.log(), 1 / (rest * count)


# ------------------------------------------------------------------------------------------------ losses of a margin


@dataclass(frozen=True)
class PairLoss(Part):
    """A loss l(z) of the margin z by which the chosen completion's score exceeds the rejected one's."""

    def __call__(self, margin: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """l(z)."""
        raise NotImplementedError(type(self).__name__)

    def slope(self, margin: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """l'(z)."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Logistic(PairLoss):
    """−(1 − e) log sigma(z) − e log sigma(−z): Bradley and Terry's likelihood; `smoothing` e is the share of wrong labels (cDPO)."""

    minor: ClassVar[frozenset[str]] = frozenset({"smoothing"})
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 0.5:
            raise InputError(f"label smoothing is {self.smoothing}; accepted: a share of wrong labels in [0, 0.5)")

    def __call__(self, margin: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        log_sigmoid = torch.nn.functional.logsigmoid
        return -(1 - self.smoothing) * log_sigmoid(margin) - self.smoothing * log_sigmoid(-margin)

    def slope(self, margin: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return -(1 - self.smoothing) * torch.sigmoid(-margin) + self.smoothing * torch.sigmoid(margin)


@dataclass(frozen=True)
class Squared(PairLoss):
    """(z − target)²: IPO with target 1 / (2 · beta)."""

    target: float = 0.5

    def __call__(self, margin: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return (margin - self.target) ** 2

    def slope(self, margin: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        return 2 * (margin - self.target)


# ------------------------------------------------------------------------------------------------ advantages


def chosen_rows(batch: Trajectories) -> Bool[Tensor, " B"]:
    """[B] bool: the given completions with label 1."""
    return batch.rows_from(Source.PREFERENCE) & (batch.require("reward", "a preference") > 0.5)


@dataclass(frozen=True)
class PairPreference(Advantage):
    """Â = −l'(z) · ds/dlog pi on the chosen completion's tokens and +l'(z) · ds/dlog pi on the rejected one's.

        z = s(chosen) − s(rejected) − margin

    A pair is a group of two given completions, with reward 1 (chosen) and 0 (rejected). With the logistic loss and s = beta · rho it is
    DPO: beta · sigma(−z) and −beta · sigma(−z). Source: Rafailov et al. 2023, arXiv 2305.18290, gradient in section 4.
    """

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "group"
    compares: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"margin"})
    loss: PairLoss = Logistic()
    score: Score = LogRatio()
    margin: float = 0.0

    @property
    def reads(self) -> frozenset[str]:
        return self.score.reads

    def margins(self, batch: Trajectories, now: Evaluation | None) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """[B] each row's pair's z, and the row's slope with its sign: + chosen, − rejected, 0 for other rows."""
        assert batch.group is not None
        score, slope = self.score(batch, now)
        chosen = chosen_rows(batch)
        sign = torch.where(chosen, 1.0, torch.where(batch.rows_from(Source.PREFERENCE), -1.0, 0.0)).to(score.dtype)
        groups, index = batch.group.unique(return_inverse=True)
        difference = score.new_zeros(len(groups)).index_add(0, index, sign * score)
        return difference[index] - self.margin, sign * slope

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        z, slope = self.margins(batch, now)
        return spread(-self.loss.slope(z) * slope, batch)

    def facts(self, batch: Trajectories, now: Evaluation) -> dict[str, Tensor]:
        z, _ = self.margins(batch, now)
        z = z + self.margin
        chosen, given = chosen_rows(batch), batch.rows_from(Source.PREFERENCE)
        total = _row_sums(now.log_prob, batch)
        nothing = torch.nan
        return {
            "loss": torch.where(chosen, self.loss(z - self.margin), nothing),
            "margin": torch.where(chosen, z, nothing),
            "accuracy": torch.where(chosen, (z > 0).to(z.dtype), nothing),
            "log_prob_chosen": torch.where(chosen, total, nothing),
            "log_prob_rejected": torch.where(given & ~chosen, total, nothing),
        }


@dataclass(frozen=True)
class Contrastive(Advantage):
    """CoPG: Â_i = R_beta(y_i) − mean_{j≠i} R_beta(y_j),   R_beta(y) = R(y) − beta · rho(y), over the given completions of a prompt.

    The baseline is part of the method's correctness, not variance reduction: the completions were not sampled from the policy. Two
    completions are the paper's pairs; on the policy's own samples it is RLOO with the KL in the reward.
    Source: Flet-Berliac et al. 2024, arXiv 2406.19185.
    """

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "group"
    compares: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({ANCHOR})
    minor: ClassVar[frozenset[str]] = frozenset({"over"})
    beta: float = 0.06
    over: tuple[Source, ...] = PREFERENCES

    def __post_init__(self) -> None:
        if not (self.beta > 0 and math.isfinite(self.beta)):
            raise InputError(f"Contrastive.beta is {self.beta}; accepted: a number above 0 (0 leaves the problem unbounded)")

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        assert batch.group is not None
        rho = log_ratio_to_anchor(batch, now, "Contrastive")
        regularized = batch.total_reward().to(rho.dtype) - self.beta * rho
        return spread(LeaveOneOut().of_rewards(regularized, batch.group, batch.rows_from(*self.over)), batch)

    def facts(self, batch: Trajectories, now: Evaluation) -> dict[str, Tensor]:
        rho = log_ratio_to_anchor(batch, now, "Contrastive")
        return {"log_ratio": torch.where(batch.rows_from(*self.over), rho, torch.nan)}


@dataclass(frozen=True)
class KahnemanTversky(Advantage):
    """KTO: the slope of a saturating value of each completion's log-ratio against a common reference point z0.

        liked:     Â = +desirable · beta · sigma'(beta · (rho − z0))
        disliked:  Â = −undesirable · beta · sigma'(beta · (z0 − rho)),      sigma' = sigma · (1 − sigma)
        z0 = max(0, mean of rho over completions of other prompts), an estimate of KL(pi || pi_0)

    Source: Ethayarajh et al. 2024, arXiv 2402.01306, eqs. 7 and 8.
    """

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({ANCHOR})
    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.desirable < 0 or self.undesirable < 0:
            raise InputError(
                f"KahnemanTversky(beta={self.beta}, desirable={self.desirable}, undesirable={self.undesirable}); "
                "accepted: beta above 0, weights of 0 or more"
            )

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        rho = log_ratio_to_anchor(batch, now, "KahnemanTversky")
        other = batch.rows_from(Source.MISMATCHED) & batch.mask.any(1)
        moments = (planning or Planning()).reduce(torch.stack([torch.where(other, rho, 0).sum().double(), other.sum().double()]))
        reference = (moments[0] / moments[1].clamp_min(1)).clamp_min(0).to(rho.dtype)
        liked = chosen_rows(batch)
        value = torch.sigmoid(self.beta * (rho - reference))
        bend = self.beta * value * (1 - value)
        signed = torch.where(liked, self.desirable * bend, -self.undesirable * bend)
        return spread(torch.where(batch.rows_from(Source.PREFERENCE), signed, 0), batch)

    def facts(self, batch: Trajectories, now: Evaluation) -> dict[str, Tensor]:
        rho = log_ratio_to_anchor(batch, now, "KahnemanTversky")
        liked, given = chosen_rows(batch), batch.rows_from(Source.PREFERENCE)
        return {
            "log_ratio_liked": torch.where(liked, rho, torch.nan),
            "log_ratio_disliked": torch.where(given & ~liked, rho, torch.nan),
            "log_ratio_mismatched": torch.where(batch.rows_from(Source.MISMATCHED), rho, torch.nan),
        }
