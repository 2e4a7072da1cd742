"""Sets of rollouts that are scored together: which there are, how different their members are, and what they share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import check_range, setting
from unipg.errors import InputError, one_line
from unipg.estimator import Planning
from unipg.estimator.advantages import group_statistics
from unipg.estimator.sets import MEMBER, distinct, expected_distinct, plan_shared, set_advantages, set_scores
from unipg.loading import callable_named
from unipg.seeding import generator
from unipg.trajectories import Trajectories

MOST_SETS = 20_000
"""Of a group; more are drawn, not counted through."""
DIVERSITY, SCORE, ALIKE, USUAL, SILENT = (
    *("sets/diversity", "sets/score", "sets/alike_fraction"),
    *("sets/most_common_fraction", "sets/no_signal_fraction"),
)
DIVERSITIES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "fraction": lambda different, n: different / n,
    "none_if_alike": lambda different, n: (different - 1) / (n - 1),
    "none": lambda different, n: torch.ones_like(different),
}
"""d of a set with so many different signatures among n."""


@dataclass(frozen=True)
class ScoresSets:
    """A mixin, named before `Algorithm`: F = mean reward · diversity of sets of rollouts, and an advantage that their members share."""

    set_size: int = setting(4, "n: rollouts in a set, fewer than there are", "arXiv 2509.25424")
    sets: int | None = setting(4, "M: random sets of each group, at least 2; null: all that there are", "arXiv 2509.25424")
    diversity: str = setting(
        "fraction",
        "d of a set's signatures: fraction (distinct / n), none_if_alike ((distinct − 1) / (n − 1)), none (1); "
        "package.module:function of their list",
        "arXiv 2509.25424",
    )
    poly_scale: float = setting(1.0, "factor of the set advantage, which is a difference of numbers in [0, 1]", "library's choice")
    reward_low: float = setting(0.0, "reward that counts as 0 in a set's score")
    reward_high: float = setting(1.0, "reward that counts as 1 in a set's score")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        least = 2 if self.diversity == "none_if_alike" else 1
        if not least <= self.set_size < self.members:
            why = f"{least} or more, and fewer than the {self.members} that sets are made of"
            raise InputError(f"algorithm.set_size is {self.set_size}; accepted: {why}")
        if self.sets is not None and self.sets < 2:
            raise InputError(
                f"algorithm.sets is {self.sets}: one set is no better than the mean of itself; accepted: 2 or more, null for all"
            )
        count = math.comb(self.members, self.set_size)
        if self.sets is None and count > MOST_SETS:
            raise InputError(
                f"algorithm.sets is null, but {self.members} rollouts have {count:,} sets of {self.set_size}; accepted: a number of sets"
            )
        if self.diversity not in DIVERSITIES:
            callable_named(self.diversity, "algorithm.diversity", names=DIVERSITIES)
        if not (math.isfinite(self.reward_low) and math.isfinite(self.reward_high) and self.reward_low < self.reward_high):
            raise InputError(
                f"algorithm.reward_low is {self.reward_low} and reward_high {self.reward_high}; accepted: finite numbers, the first smaller"
            )
        check_range(self, 0, math.inf, "poly_scale")  # type: ignore[arg-type]

    @property
    def members(self) -> int:
        """N: rollouts of a group."""
        return self.rollouts  # type: ignore[attr-defined]

    def signatures(self, batch: Trajectories) -> list[Hashable]:
        """[B] what tells a row from others."""
        raise NotImplementedError(type(self).__name__)

    def planned_sets(
        self, batch: Trajectories, signatures: Sequence[Hashable], rows: Tensor, planning: Planning, window: int | None = None
    ) -> Trajectories:
        """The batch with what `SetAdvantage` reads. Sets are of the `rows` [B] of one group; those of a group with no more than n are none.

        `signatures` [B]: equal ones are alike. Errors: `InputError` for returns outside [reward_low, reward_high], for signatures that
        cannot be compared, and for diversities outside [0, 1].
        """
        assert batch.group is not None
        reward = self._unit(batch.total_reward().double(), rows)
        signature = numbered(signatures, rows)
        groups: dict[int, list[int]] = {}
        for row in rows.nonzero().squeeze(-1).tolist():
            groups.setdefault(int(batch.group[row]), []).append(row)
        chosen = {group: self._chosen(len(mine), group, planning) for group, mine in groups.items() if len(mine) > self.set_size}
        device = batch.mask.device
        member = torch.cat(
            [torch.tensor(groups[group], device=device)[picked.to(device)] for group, picked in chosen.items()]
            or [torch.zeros(0, self.set_size, dtype=torch.long, device=device)]
        )
        of = torch.tensor([group for group, picked in chosen.items() for _ in range(len(picked))], dtype=torch.long, device=device)
        different = distinct(signature[member])
        diversity = self._diversity(different, member, signatures)
        score = set_scores(reward, diversity, member)
        batch = plan_shared(batch, set_advantages(score, of, member, len(batch)), window)
        return batch.replace(planned={**batch.planned, **self._facts(batch, of, member, different, diversity, score, signature)})

    def _facts(
        self, batch: Trajectories, of: Tensor, member: Tensor, different: Tensor, diversity: Tensor, score: Tensor, signature: Tensor
    ) -> dict[str, Tensor]:
        """[B] on members, for `metrics`: means over the sets of their group, which are as many in each."""
        assert batch.group is not None
        owner, inside = batch.group.unique(return_inverse=True)[1], batch.planned[MEMBER]

        def spread(values: Tensor) -> Tensor:
            """[B] mean over the sets of a row's group."""
            mean = group_statistics(values.double(), of).mean
            return torch.zeros(len(batch), dtype=torch.float64, device=owner.device).index_put((member,), mean.unsqueeze(1))

        pairs = torch.stack([owner, signature], 1).unique(dim=0, return_inverse=True)[1]
        alike, everyone = (group_statistics(inside.double(), unit, inside).count for unit in (pairs, owner))
        share = torch.where(inside, alike / everyone.clamp_min(1), 0)
        most = torch.zeros_like(share).scatter_reduce(0, owner, share, "amax")[owner]
        silent = group_statistics(score, of).squares == 0
        return {DIVERSITY: spread(diversity), SCORE: spread(score), ALIKE: spread(different == 1), SILENT: spread(silent), USUAL: most}

    def expected_score(self, reward: Tensor, probability: Tensor, signature: Tensor) -> Tensor:
        """[] E[F] of a set of independent rollouts, each one of N trajectories by their `probability` [N], with the graph. `signature` [N]:
        numbers, equal ones alike. Only for a diversity that has a name, which is linear in the number of distinct ones."""
        reward = (reward - self.reward_low) / (self.reward_high - self.reward_low)
        mean, different = (probability * reward).sum(), expected_distinct(reward, probability, signature, self.set_size)
        at_0, at_1 = DIVERSITIES[self.diversity](torch.tensor([0.0, 1.0], dtype=torch.float64), self.set_size)
        return at_0 * mean + (at_1 - at_0) * different

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        """Of the rows that are in sets: how different and how good these are, and whether they say anything."""
        inside = batch.planned[MEMBER]
        told = {"sets/member_fraction": float(inside.double().mean())}
        return told | {name: float(batch.planned[name][inside].mean()) for name in (DIVERSITY, SCORE, ALIKE, SILENT, USUAL) if inside.any()}

    def _unit(self, reward: Tensor, rows: Tensor) -> Tensor:
        low, high = self.reward_low, self.reward_high
        wrong = rows & ~((reward >= low) & (reward <= high))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise InputError(
                f"the reward of row {row} is {float(reward[row]):g}; a set's score needs numbers in [{low:g}, {high:g}]: set "
                "algorithm.reward_low and reward_high to the least and the most that can be earned"
            )
        return (reward - low) / (high - low)

    def _chosen(self, rows: int, group: int, planning: Planning) -> Tensor:
        """[S,n] places of the members of each set among a group's rows."""
        if self.sets is None:
            return torch.tensor(list(itertools.combinations(range(rows), self.set_size)))
        draw = generator(planning.seed, "sets", planning.progress.step, planning.rank, group)
        return torch.stack([torch.randperm(rows, generator=draw)[: self.set_size] for _ in range(self.sets)])

    def _diversity(self, different: Tensor, member: Tensor, signatures: Sequence[Hashable]) -> Tensor:
        """[S] in [0, 1]."""
        if self.diversity in DIVERSITIES:
            return DIVERSITIES[self.diversity](different.double(), self.set_size)
        function = callable_named(self.diversity, "algorithm.diversity")
        found = [self._diversity_of(function, [signatures[row] for row in picked]) for picked in member.tolist()]
        return torch.tensor(found, dtype=torch.float64, device=member.device)

    def _diversity_of(self, function: Callable[..., Any], signatures: list[Hashable]) -> float:
        try:
            value = float(function(signatures))
        except Exception as error:
            raise InputError(f"algorithm.diversity '{self.diversity}' failed: {one_line(error)}") from error
        if not 0 <= value <= 1:
            raise InputError(f"algorithm.diversity '{self.diversity}' is {value:g} for a set; accepted: a number in [0, 1]")
        return value


def numbered(signatures: Sequence[Hashable], rows: Tensor) -> Tensor:
    """[B] a number for each signature, equal ones alike; 0 outside of `rows` [B]."""
    numbers: dict[Hashable, int] = {}
    found = []
    for row, (signature, mine) in enumerate(zip(signatures, rows.tolist(), strict=True)):
        try:
            found.append(numbers.setdefault(signature, len(numbers)) if mine else 0)
        except TypeError:
            raise InputError(f"the signature of row {row} is {signature!r}; accepted: a hashable value") from None
    return torch.tensor(found, dtype=torch.long, device=rows.device)
