"""D3S (arXiv 2509.22115): train on the rollouts with the most advantage variance and, of those, on the tokens that matter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.language.grpo import GRPO
from unipg.algorithms.language.gspo import GSPO
from unipg.algorithms.preparation import everywhere
from unipg.errors import InputError
from unipg.estimator import GroupStandardized, KLPenalty, Objective, Planning, PolicyGradient, Progress, TokenMean
from unipg.estimator.likelihoods import position_keys
from unipg.estimator.policy_gradient import check_rewards
from unipg.shapes import Bool, Float, Int
from unipg.trajectories import Source, Trajectories

SAME = 2.0**-20
"""Advantages are rounded to multiples of this before they are ranked, so that rounding errors do not break ties."""


@register
@dataclass(frozen=True)
class D3S(Algorithm):
    """GRPO on a part of its rollouts and tokens. Advantages are those of all rollouts, and are not normalised again.

    Rollouts: the subset of N with the largest variance of the advantage, over the batch or in each group. Tokens: of all tokens of those,
    the share K with the largest |A|·H, H the entropy of pi_old over the full vocabulary, in nats. N (as a share of the rollouts) and K move
    linearly from their first to their last value with p = step / (steps − 1), so that training ends on everything. The mask is narrowed to
    the kept tokens: nothing else is counted, and rows without any are dropped before the update.
    """

    name = "d3s"
    title = "Dynamic dual-level down-sampling"
    paper = "arXiv 2509.22115"
    equation = "coefficient = 1_Clip · (R_j − mean_G R) / (std_G R + 1e-6) · r  on kept tokens;  mean over kept tokens"
    bias = "Only the extreme advantages and the most uncertain tokens are kept, which changes the advantage's mean and scale."
    deviations = (
        "Ties are broken by what a row holds, then by its index: with 0/1 rewards ties are common, and the result must not depend on the "
        "order of rows. Advantages nearer than 1e-6 are ties.",
        "N is never less than 2 rollouts (of each group where selection is in groups).",
        "gspo: the sequence ratio is the mean over the kept tokens of a row; the paper does not say.",
        "With several optimiser steps per batch, p is that of the batch's first step.",
        "The paper's normaliser, N and K are not published: mean over kept tokens, a quarter and a fifth are the library's choice.",
    )
    claim = "benchmarks/claims/d3s.py"
    selects = True
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    base: Literal["grpo", "gspo"] = setting("grpo", "whose mask and reference are used", "arXiv 2509.22115: either")
    across_groups: bool = setting(True, "select rollouts from the whole batch; off: the same share of each group", "arXiv 2509.22115")
    sample_share_initial: float = setting(0.25, "share of the rollouts that is kept at the start")
    sample_share_final: float = setting(1.0, "share of the rollouts that is kept at the end")
    token_share_initial: float = setting(0.2, "share of the kept rollouts' tokens that is kept at the start", "abstract: fewer than 20 %")
    token_share_final: float = setting(1.0, "share of the kept rollouts' tokens that is kept at the end")
    allow_shrinking: bool = setting(False, "allow a share that falls during training")
    clip_low: float | None = setting(None, "distance below 1 that the ratio may go; null: the base's own")
    clip_high: float | None = setting(None, "distance above 1 that the ratio may go; null: the base's own")
    kl: float = setting(0.0, "weight of the KL penalty (k3) in the loss; 0 for none")

    def __post_init__(self) -> None:
        super().__post_init__()
        for level in ("sample_share", "token_share"):
            first, last = (getattr(self, f"{level}_{end}") for end in ("initial", "final"))
            for end, value in (("initial", first), ("final", last)):
                if not 0 < value <= 1:
                    raise InputError(f"algorithm.{level}_{end} is {value}; accepted: a share in (0, 1]")
            if first > last and not self.allow_shrinking:
                raise InputError(
                    f"algorithm.{level}_initial is {first}, above {level}_final ({last}): set allow_shrinking if the share is meant to fall"
                )

    def objective(self, setting: Setting) -> PolicyGradient | Objective:
        clips = {name: value for name in ("clip_low", "clip_high") if (value := getattr(self, name)) is not None}
        base = GRPO(**clips) if self.base == "grpo" else GSPO(**clips)
        gradient = base.objective(setting)
        assert isinstance(gradient, PolicyGradient)
        gradient = dataclasses.replace(gradient, aggregate=TokenMean())
        return gradient + self.kl * KLPenalty(aggregate=TokenMean()) if self.kl else gradient

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"old_entropy"} if min(self.token_share_initial, self.token_share_final) < 1 else ())

    def shares(self, progress: Progress) -> tuple[float, float]:
        """The shares of rollouts and of their tokens that are kept at this step."""
        if progress.total < 1:
            raise InputError(f"D3S: {progress.total} optimiser steps are planned; accepted: 1 or more")
        p = min(1.0, progress.step / max(1, progress.total - 1))
        ends = ((self.sample_share_initial, self.sample_share_final), (self.token_share_initial, self.token_share_final))
        samples, tokens = ((1 - p) * first + p * last for first, last in ends)
        return samples, tokens

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        assert batch.group is not None
        check_rewards(batch)
        live = batch.rows_from(Source.ROLLOUT) & batch.mask.any(1)
        if len(batch) >= self.rollouts and len(batch.group.unique()) == len(batch):
            raise InputError("D3S compares the rollouts of a prompt, but no two rows share a group; accepted: group ids of prompts")
        advantage = GroupStandardized()(batch)[:, 0].double()
        advantage = (advantage / SAME).round() * SAME
        keys = position_keys(batch, 0)
        samples, tokens = self.shares(planning.progress)
        selected = self._rows(advantage, keys[:, 0], live, batch.group, samples, planning)
        mask = batch.mask & selected.unsqueeze(1)
        if tokens < 1:
            entropy = batch.require("old_entropy", self.name)
            check_entropy(entropy, batch)
            mask = self._tokens(advantage.abs(), entropy.double(), keys, mask, tokens, planning)
        facts = {"advantage": advantage, "selected": selected.double(), "tokens": torch.where(live, batch.mask.sum(1), 0).double()}
        batch = batch.replace(reward=batch.total_reward(), step_reward=None) if batch.step_reward is not None else batch
        return batch.replace(mask=mask, planned={**batch.planned, **{f"d3s/{name}": fact for name, fact in facts.items()}})

    def _rows(self, advantage: Tensor, key: Tensor, live: Tensor, group: Tensor, share: float, planning: Planning) -> Tensor:
        """[B] bool: the rollouts that are kept."""
        units = [live] if self.across_groups else [live & (group == g) for g in group.unique()]
        chosen = torch.zeros_like(live)
        for unit in units:
            (values, ties), mine = everywhere([advantage[unit], key[unit]], planning if self.across_groups else Planning())
            size = max(2, math.floor(share * len(values) + 0.5))
            chosen[unit] = most_varied(values, size, ties)[mine]
        return chosen

    def _tokens(self, size: Tensor, entropy: Tensor, keys: Tensor, mask: Tensor, share: float, planning: Planning) -> Tensor:
        """[B,T] bool: the tokens that are kept, of those of all selected rollouts together."""
        place = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        large = size.unsqueeze(1).expand(mask.shape)
        columns = [(large * entropy)[mask], large[mask], place[mask], keys[mask]]
        (key, large, place, keys), mine = everywhere(columns, planning)
        best = torch.zeros(len(key), dtype=torch.bool, device=mask.device)
        best[lexicographic([-key, -large, place, keys])[: math.ceil(share * len(key) - 1e-9)]] = True
        return mask.masked_scatter(mask, best[mine])

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        chosen = batch.planned["d3s/selected"] > 0
        advantage = batch.planned["d3s/advantage"][chosen]
        if not len(advantage):
            return {"selection/signal": 0.0}
        return {
            "selection/signal": float(bool((advantage != 0).any())),
            "selection/rows": float(chosen.double().mean()),
            "selection/useful_fraction": float((advantage != 0).double().mean()),
            "selection/advantage_variance": float(advantage.var(correction=0)),
            "selection/advantage_sum": float(advantage.sum()),
            "selection/tokens": float(batch.mask.sum()),
            "selection/token_fraction": float(batch.mask.sum() / batch.planned["d3s/tokens"].sum()),
        }


def most_varied(values: Float[Tensor, " N"], size: int, tie: Int[Tensor, " N"] | None = None) -> Bool[Tensor, " N"]:
    """[N] bool: the subset of `size` with the largest variance, exactly, in O(N log N).

    It is always the k largest and the size − k smallest for some k, so one sort and prefix sums give the variance of each candidate; the
    lowest k on ties. Equal values rank by `tie`, then by index; where all are equal the first `size` are taken.
    Errors: `InputError` for fewer than 2, which have no variance.
    """
    if size < 2:
        raise InputError(f"a subset of {size} has no variance; accepted: 2 or more")
    count = len(values)
    if size >= count:
        return torch.ones(count, dtype=torch.bool, device=values.device)
    order = lexicographic([-values, *([] if tie is None else [tie])])
    ranked = values[order].double()
    centred = ranked - ranked.mean()
    first, second = (torch.cat([x.new_zeros(1), x.cumsum(0)]) for x in (centred, centred**2))
    k = torch.arange(size + 1, device=values.device)
    total, squares = (sums[k] + sums[-1] - sums[count - size + k] for sums in (first, second))
    variance = squares / size - (total / size) ** 2
    best = int((variance >= variance.max() * (1 - 1e-12)).nonzero()[0])
    top = size if bool(ranked[0] == ranked[-1]) else best
    chosen = torch.zeros(count, dtype=torch.bool, device=values.device)
    chosen[order[:top]] = True
    chosen[order[count - size + top :]] = True
    return chosen


def lexicographic(columns: Sequence[Tensor]) -> Int[Tensor, " N"]:
    """[N] order that sorts by the first column, then by the second …, then by index, ascending."""
    order = torch.arange(len(columns[0]), device=columns[0].device)
    for column in reversed(columns):
        order = order[torch.argsort(column[order], stable=True)]
    return order


def check_entropy(entropy: Tensor, batch: Trajectories) -> None:
    """Refuses an entropy that is not finite where the policy acted, naming the place."""
    bad = batch.mask & ~torch.isfinite(entropy)
    if bad.any():
        row, step = (int(i) for i in bad.nonzero()[0])
        raise InputError(f"old_entropy is {float(entropy[row, step])} at row {row}, position {step}; accepted: finite numbers, in nats")
