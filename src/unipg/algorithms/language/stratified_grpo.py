"""Stratified GRPO (arXiv 2510.06214): rollouts are compared with those that used their tools alike, and a little with all others."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unipg.algorithms.base import Setting, register, setting
from unipg.algorithms.language.grpo import ClippedGroups
from unipg.algorithms.preparation import prompt_of
from unipg.errors import InputError, nearest, one_line
from unipg.estimator import GroupCentered, GroupStandardized, Planning
from unipg.estimator.advantages import group_statistics
from unipg.estimator.aggregation import AggregateName
from unipg.estimator.strata import Stratified, stratum_units
from unipg.loading import callable_named
from unipg.trajectories import Source, Trajectories

STRATUM = "stratified_grpo/stratum"
Call = Mapping[str, Any]

STRATA: dict[str, Callable[[list[Call]], Hashable]] = {
    "calls": len,
    "names": lambda calls: tuple(call["name"] for call in calls),
    "places": lambda calls: tuple(call["turn"] for call in calls),
    "outcomes": lambda calls: tuple(call["outcome"] for call in calls),
}
"""Strata by the tool calls of a row: how many, which tools, in which turns, how they ended."""


@register
@dataclass(frozen=True)
class StratifiedGRPO(ClippedGroups):
    """GRPO whose advantage is blended: alpha · among the rollouts of the prompt with the same structure + (1 − alpha) · among all of them.

    `strata` says what structure is: one of calls, names, places, outcomes, several of them joined by "+", or `package.module:function`,
    which is given the annotations of a row and returns any hashable value. `auto`: `annotations["stratum"]` where there is one, else calls.
    """

    name = "stratified_grpo"
    title = "Stratified GRPO for agents that use tools"
    paper = "arXiv 2510.06214"
    equation = (
        "coefficient = 1_Clip · (A_G + alpha · (A_S − A_G)) · r,  A_S = (R_j − mean_S R) / (std_S R + 1e-6) over j's stratum S of group G"
    )
    bias = (
        "Within a stratum advantages are centred, so that alpha = 1 has no gradient on what decides the stratum: only (1 − alpha) of "
        "GRPO's pressure on structure is left. Dividing by standard deviations."
    )
    deviations = (
        "alpha is not stated in the paper; 0.8 here, in the range where the key-lookup toy neither collapses nor stands still.",
        "A stratum of one rollout has advantage 0 within it; the paper does not say.",
        "Standard deviations have ddof 1, those of strata as those of groups.",
    )
    claim = "benchmarks/claims/stratified_grpo.py"
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2")
    alpha: float = setting(0.8, "share of the advantage within the stratum, in [0, 1]", "library's choice")
    strata: str = setting("auto", "what makes a stratum: calls, names, places, outcomes, joined by +; package.module:function; auto")
    smallest: int = setting(2, "strata of fewer rollouts take the group's advantage (one rollout alone: 0)", "library's choice")
    divide_by_std: bool = setting(True, "divide both advantages by their standard deviations", "arXiv 2510.06214")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 2402.03300")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 2402.03300")
    kl: float = setting(0.0, "weight of the KL penalty in the loss; 0 for none")
    kl_estimator: Literal["k2", "k3"] = setting("k3", "estimate of the KL in the loss", "arXiv 2402.03300, eq. 4")
    aggregate: AggregateName = setting("sequence_mean_token_mean", "how tokens are averaged", "arXiv 2402.03300, eq. 3")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise InputError(f"algorithm.alpha is {self.alpha}; accepted: a share in [0, 1]")
        if self.smallest < 2:
            raise InputError(f"algorithm.smallest is {self.smallest}; accepted: 2 rollouts or more")
        if ":" in self.strata:
            callable_named(self.strata, "algorithm.strata")
        else:
            for part in [] if self.strata == "auto" else self.strata.split("+"):
                if part not in STRATA:
                    raise InputError(f"algorithm.strata '{part}' does not exist; {nearest(part, [*STRATA, 'package.module:function'])}")

    @property
    def advantage(self) -> Stratified:
        within = GroupStandardized() if self.divide_by_std else GroupCentered()
        return Stratified(self.alpha, within, STRATUM, self.smallest)

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        rollouts = batch.rows_from(Source.ROLLOUT)
        check_prompts(batch, rollouts)
        numbers: dict[Hashable, int] = {}
        stratum = [
            numbers.setdefault(value, len(numbers)) if mine else -1
            for value, mine in zip(self._values(batch, rollouts.tolist()), rollouts.tolist(), strict=True)
        ]
        return batch.replace(planned={**batch.planned, STRATUM: torch.tensor(stratum, dtype=torch.long, device=batch.mask.device)})

    def _values(self, batch: Trajectories, rollouts: list[bool]) -> list[Hashable]:
        """What structure each row has; None for rows that are no rollouts."""
        have, rows = batch.annotations, len(batch)
        if self.strata == "auto" and "stratum" in have:
            values = have["stratum"]
        elif ":" in self.strata:
            function = callable_named(self.strata, "algorithm.strata")
            _check_lengths(batch, list(have))
            of_row = [{name: column[row] for name, column in have.items()} for row in range(rows)]
            values = [self._value(function, facts, row) if rollouts[row] else None for row, facts in enumerate(of_row)]
        else:
            if "tool_calls" not in have:
                raise InputError(
                    "stratified_grpo compares rollouts of the same structure, but the batch has no 'stratum' or "
                    "'tool_calls' annotation; accepted: a task with tools, or one value of either for each row"
                )
            _check_lengths(batch, ["tool_calls"])
            parts = [STRATA[part] for part in ("calls" if self.strata == "auto" else self.strata).split("+")]
            values = [tuple(part(calls or []) for part in parts) for calls in have["tool_calls"]]
        if len(values) != rows:
            raise InputError(f"there are {len(values)} strata for {rows} rows; accepted: one for each")
        for row, (value, mine) in enumerate(zip(values, rollouts, strict=True)):
            if mine:
                _check_stratum(value, row)
        return [value if mine else None for value, mine in zip(values, rollouts, strict=True)]

    def _value(self, function: Callable[..., Hashable], facts: dict[str, Any], row: int) -> Hashable:
        try:
            return function(facts)
        except Exception as error:
            raise InputError(f"algorithm.strata '{self.strata}' failed for row {row}: {one_line(error)}") from error

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        rows = batch.rows_from(Source.ROLLOUT)
        if not rows.any():
            return {}
        assert batch.group is not None
        unit = stratum_units(batch, STRATUM)
        reward = batch.total_reward().double()
        inside = group_statistics(reward, unit, rows)
        units, groups, count = len(unit[rows].unique()), len(batch.group[rows].unique()), int(rows.sum())
        if 2 * units > count:
            warnings.warn(
                f"{units / groups:.1f} strata per prompt for {count / groups:.1f} rollouts: most have nothing to be compared with; take "
                "coarser strata or more rollouts",
                stacklevel=2,
            )
        told = {
            "strata/per_prompt": units / groups,
            "strata/single_fraction": float((inside.count[rows] == 1).double().sum()) / units,
            "strata/no_signal_fraction": float((inside.squares == 0)[rows].double().mean()),
        }
        return told | self._by_calls(batch, rows, reward)

    def _by_calls(self, batch: Trajectories, rows: Tensor, reward: Tensor) -> dict[str, float]:
        """Share and mean reward of the rollouts with 0, 1, 2 … tool calls: the histogram of what most strata are made of."""
        calls = batch.annotations.get("tool_calls")
        if calls is None:
            return {}
        counts = torch.tensor([len(mine or []) for mine in calls], device=rows.device)
        told = {}
        for count in sorted(Counter(counts[rows].tolist())):
            these = rows & (counts == count)
            told[f"strata/share_{count}_calls"] = float(these.sum() / rows.sum())
            told[f"strata/reward_{count}_calls"] = float(reward[these].mean())
        return told


def check_prompts(batch: Trajectories, rollouts: Tensor) -> None:
    """Refuses a group whose rollouts answer different prompts: they would be compared with each other."""
    assert batch.group is not None
    items = batch.annotations.get("item")
    if items is None or len(items) != len(batch):
        return
    first: dict[int, Any] = {}
    for row, (group, item, mine) in enumerate(zip(batch.group.tolist(), items, rollouts.tolist(), strict=True)):
        if mine and first.setdefault(group, item) != item:
            raise InputError(f"{prompt_of(batch, row)}: its group holds rollouts of items {first[group]} and {item}; accepted: one prompt")


def _check_lengths(batch: Trajectories, names: list[str]) -> None:
    for name in names:
        if len(batch.annotations[name]) != len(batch):
            raise InputError(f"there are {len(batch.annotations[name])} values of '{name}' for {len(batch)} rows; accepted: one for each")


def _check_stratum(value: Any, row: int) -> None:
    missing = value is None or (isinstance(value, float) and value != value)
    if missing or not isinstance(value, Hashable):
        raise InputError(f"the stratum of row {row} is {value!r}; accepted: a hashable value such as a number of tool calls")
    try:
        hash(value)
    except TypeError:
        raise InputError(f"the stratum of row {row} is {value!r}; accepted: a hashable value such as a number of tool calls") from None
