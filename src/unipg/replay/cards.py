"""What is told of a dataset beside its rows: episodes, returns, references, checksums, normalised scores."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from unipg.arguments import CheckedArguments
from unipg.errors import InputError, shown
from unipg.replay.tables import Array
from unipg.replay.transitions import Transitions

_PIECE = 1 << 16
"""Rows that are read at a time."""


@dataclass(frozen=True)
class References(CheckedArguments):
    """What returns of one environment are measured against: score = 100 · (return − min) / (max − min)."""

    min: float
    """The return that scores 0: of random actions."""
    max: float
    """The return that scores 100: an expert's."""
    horizon: int | None = None
    """Most steps of the episodes that the two were measured in: with another limit, scores are of another scale. null: not known."""
    label: str = "local"
    """Whose they are, told with every score: `local`, or `D4RL-ref` for those of D4RL's tasks."""

    def __post_init__(self) -> None:
        if not (np.isfinite([self.min, self.max]).all() and self.max > self.min):
            raise InputError(f"reference returns are {self.min} and {self.max}; accepted: two finite numbers, the first one smaller")

    def score(self, value: float) -> float:
        """Normalised: 0 for `min`, 100 for `max`."""
        return 100 * (value - self.min) / (self.max - self.min)

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> References | None:
        """Those of a card; None where it has none. `InputError` for what are none."""
        found = card.get("references")
        if not found:
            return None
        if not isinstance(found, Mapping) or not {"min", "max"} <= found.keys() <= {field.name for field in fields(cls)}:
            raise InputError(f"the references of the card are {shown(found)}; accepted: min, max, horizon, label")
        return cls(**found)


def environment_of(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a card tells of its environment: `id`, `horizon`, `action` …, as far as it is known; a name alone is its `id`."""
    found = card.get("environment", {})
    return found if isinstance(found, Mapping) else {"id": str(found)}


@dataclass(frozen=True)
class Episodes:
    """Where the episodes of a dataset lie, and what came of them."""

    start: Array
    """[E] first row of each."""
    length: Array
    """[E] rows."""
    returns: Array
    """[E] sums of rewards, not discounted, float64."""
    ends: Array
    """[E] how each ended: 2 terminated, 1 truncated, 0 neither (cut off)."""

    @classmethod
    def of(cls, data: Transitions) -> Episodes:
        """Of a dataset, whose rows are read once."""
        number = data.column("episode")
        first = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
        length = np.diff(np.append(first, len(data)))
        last = first + length - 1
        ends = np.where(data.column("terminated")[last], 2, np.where(data.column("truncated")[last], 1, 0))
        with np.errstate(invalid="ignore", over="ignore"):
            returns = np.add.reduceat(data.column("reward"), first, dtype=np.float64)
        return cls(first, length, returns, ends)

    @property
    def whole(self) -> Array:
        """[E] bool: those that came to an end."""
        return self.ends > 0


def spread(values: Array) -> dict[str, float]:
    """Mean, standard deviation, minimum and maximum, in plain values; empty for none."""
    if not len(values):
        return {}
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the numbers
        return {"mean": float(values.mean()), "std": float(values.std()), "min": float(values.min()), "max": float(values.max())}


def quantiles(values: Array) -> dict[str, float]:
    """Least, quartiles and largest of the finite ones; empty for none."""
    names, finite = ("min", "25 %", "median", "75 %", "max"), values[np.isfinite(values)]
    return dict(zip(names, np.quantile(finite, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True)) if len(finite) else {}


def rewarded(data: Transitions) -> bool:
    """Whether rewards were given, or are 0 because there were none."""
    return "reward" not in data.card.get("missing", ())


def facts(data: Transitions) -> dict[str, Any]:
    """Numbers of transitions and episodes, lengths, returns of whole episodes (none without rewards), and what the rows' checksum is."""
    found = Episodes.of(data)
    return {
        "transitions": len(data),
        "episodes": len(found.start),
        "ended": {name: int((found.ends == end).sum()) for end, name in enumerate(("cut off", "truncated", "terminated"))},
        "lengths": spread(found.length.astype(np.float64)),
        "returns": spread(found.returns[found.whole] if rewarded(data) else found.returns[:0]),
        "sha256": digest(data),
    }


def digest(data: Transitions) -> str:
    """SHA-256 of all columns, one after the other, with their names, shapes and dtypes; the same in every format that keeps the rows."""
    found = hashlib.sha256()
    for column in data.columns:
        found.update(f"{column.name} {len(data)} {list(column.shape)} {column.dtype}\n".encode())
        values = data.column(column.name)
        for start in range(0, len(data), _PIECE):
            found.update(np.ascontiguousarray(values[start : start + _PIECE]).data)
    return found.hexdigest()
