"""Rows of named columns, the columns of one dtype side by side in one table, so that drawing rows is one gather for each dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError, nearest

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Column:
    """One value of every row, by name: its shape, and its type in NumPy's words."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"column '{self.name}' has dtype '{self.dtype}'; {nearest(self.dtype, DTYPES)}")
        if any(size < 1 for size in self.shape):
            raise InputError(f"column '{self.name}' has shape {list(self.shape)}; accepted: sizes of at least 1")

    @property
    def width(self) -> int:
        """Numbers in one row."""
        width = 1
        for size in self.shape:
            width *= size
        return width


def transition_columns(
    observation_shape: tuple[int, ...], observation_dtype: str, action_shape: tuple[int, ...], action_dtype: str
) -> tuple[Column, ...]:
    """What a transition of control holds.

    `next_observation` is what the step led to, the final observation of an episode included; never the first one of the next episode.
    `terminated` and `truncated` are kept apart: only after the former is there nothing to come. `episode` is a number that no other
    episode has, in whichever environment.
    """
    return (
        Column("observation", observation_shape, observation_dtype),
        Column("next_observation", observation_shape, observation_dtype),
        Column("action", action_shape, action_dtype),
        Column("reward"),
        Column("terminated", dtype="bool"),
        Column("truncated", dtype="bool"),
        Column("episode", dtype="int64"),
    )


def widths_of(columns: Sequence[Column]) -> dict[str, int]:
    """Numbers in a row of the table of each dtype, in the order of the tables."""
    widths: dict[str, int] = {}
    for column in columns:
        widths[column.dtype] = widths.get(column.dtype, 0) + column.width
    return widths


class Tables:
    """Columns over given tables {dtype: [N,width]}; see `widths_of`. Nothing is copied."""

    def __init__(self, columns: Sequence[Column], tables: dict[str, Array]) -> None:
        self.views: dict[str, Array] = {}
        """[N,…] of each column."""
        self.tables: list[tuple[Array, list[tuple[str, int | slice, tuple[int, ...]]]]] = []
        for dtype, table in tables.items():
            parts: list[tuple[str, int | slice, tuple[int, ...]]] = []
            start = 0
            for column in columns:
                if column.dtype == dtype:
                    stop = start + column.width
                    self.views[column.name] = table[:, start:stop].reshape(len(table), *column.shape)
                    parts.append((column.name, slice(start, stop) if column.shape else start, column.shape))
                    start = stop
            self.tables.append((table, parts))

    def draw(self, where: Array, names: Sequence[str] = ()) -> dict[str, Tensor]:
        """Copies of the rows at `where` [N]: [N,…] of every column, or of `names` alone."""
        if names:
            return {name: torch.from_numpy(self.views[name][where]) for name in names}
        drawn = {}
        for table, parts in self.tables:
            taken = table.take(where, 0)
            for name, place, shape in parts:
                part = taken[:, place]
                drawn[name] = torch.from_numpy(part.reshape(-1, *shape) if len(shape) > 1 else part)
        return drawn
