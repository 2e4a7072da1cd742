"""Transitions that are given: a dataset, whose rows are drawn by their number and never change."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unipg.errors import InputError, nearest
from unipg.files import write_folder
from unipg.replay.tables import Array, Column, Tables, transition_columns, widths_of

CARD = "card.json"
"""File of a dataset's folder: its columns, and what is known of where they come from."""
NEEDED = ("observation", "action", "terminated")
"""Columns without which nothing can be learned."""


class Transitions:
    """Rows (s, a, r, s', terminated, truncated, episode), those of an episode in the order of time. Actions are in the environment's units.

    `Transitions.of` takes arrays; `Transitions.open` a folder that `save` has written, which is memory-mapped: opening it reads nothing.
    """

    def __init__(self, columns: tuple[Column, ...], tables: Mapping[str, Array], card: Mapping[str, Any]) -> None:
        self.columns, self.card = columns, dict(card)
        self._tables = dict(tables)
        self._laid = Tables(columns, self._tables)
        self._rows = len(next(iter(self._tables.values())))

    def __len__(self) -> int:
        return self._rows

    def column(self, name: str) -> Array:
        """[N,…] all of a column, as a view. Errors: `InputError` for a name that is not there."""
        if name not in self._laid.views:
            raise InputError(f"the dataset has no column '{name}'; {nearest(name, self._laid.views)}")
        return self._laid.views[name]

    def draw(self, index: Tensor, *names: str) -> dict[str, Tensor]:
        """Copies of the rows at `index` [N], int64 in [0, len): [N,…] of every column, or of `names` alone. `IndexError` outside."""
        places = index.numpy()
        if places.size and not (int(places.min()) >= 0 and int(places.max()) < self._rows):
            raise IndexError(f"rows {places.min()} to {places.max()} were asked for; there are {self._rows}, from 0 on")
        return self._laid.draw(places, names)

    def fingerprint(self) -> str:
        """Of a sample of the rows, up to 65,536 of them spread evenly, and of how many there are: whether two datasets are the same one."""
        step = max(1, self._rows // 65_536)
        sums = [zlib.crc32(np.ascontiguousarray(table[::step]).data) for table in self._tables.values()]
        return f"{self._rows}-" + "-".join(f"{each:08x}" for each in sums)

    @classmethod
    def of(cls, arrays: Mapping[str, Array], card: Mapping[str, Any] | None = None) -> Transitions:
        """From arrays [N,…] by column; they are copied once.

        May be left out: `reward` (0: imitation), `truncated` (none), `episode` (a new one after every end), `next_observation` (the
        observation of the next row of the episode; the last row of an episode that did not terminate is then left out, since what followed
        it is not known).

        Errors: `InputError` for a column that is missing or unknown, for another number of rows or shape, for no rows, and for values that
        are not finite, naming the row.
        """
        known = {column.name: column for column in transition_columns((1,), "float32", (1,), "float32")}
        for name in arrays:
            if name not in known:
                raise InputError(f"unknown column '{name}' of a dataset; {nearest(name, known)}")
        for name in NEEDED:
            if name not in arrays:
                raise InputError(f"column '{name}' is missing of a dataset; needed: {', '.join(NEEDED)}")
        rows = len(arrays["observation"])
        full = {name: np.asarray(array) for name, array in arrays.items()}
        for name, array in full.items():
            if array.ndim == 0 or len(array) != rows:
                raise InputError(f"column '{name}' has {len(array) if array.ndim else 'no'} rows; accepted: {rows}, as observation has")
        if not rows:
            raise InputError("a dataset has no rows; accepted: one or more")
        full.setdefault("reward", np.zeros(rows, np.float32))
        full.setdefault("truncated", np.zeros(rows, bool))
        for name in ("reward", "terminated", "truncated"):
            full[name] = full[name].reshape(rows, -1)[:, 0] if full[name].size == rows else full[name]
        full["terminated"], full["truncated"] = full["terminated"].astype(bool), full["truncated"].astype(bool)
        ended = full["terminated"] | full["truncated"]
        if "episode" not in full:
            full["episode"] = np.concatenate([[0], np.cumsum(ended)[:-1]])
        if "next_observation" not in full:
            full = _followed(full)
        rows, action = len(full["observation"]), full["action"]
        counted = np.issubdtype(action.dtype, np.integer)
        seen = "uint8" if full["observation"].dtype == np.uint8 else "float32"
        columns = transition_columns(full["observation"].shape[1:], seen, action.shape[1:], "int64" if counted else "float32")
        tables = {dtype: np.empty((rows, width), dtype) for dtype, width in widths_of(columns).items()}
        made = cls(columns, tables, card or {})
        for column in columns:
            array = full[column.name]
            if array.shape[1:] != column.shape:
                raise InputError(f"column '{column.name}' has shape {list(array.shape)}; accepted: {[rows, *column.shape]}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array.reshape(rows, -1)))[0][0])
                raise InputError(f"column '{column.name}' is not finite in row {row}; accepted: finite numbers")
            made.column(column.name)[...] = array
        return made

    def save(self, folder: Path) -> None:
        """A folder of one `.npy` file for each dtype and a card, that `open` maps; it appears whole or not at all."""

        def write(place: Path) -> None:
            place.mkdir(parents=True, exist_ok=True)
            for dtype, table in self._tables.items():
                np.save(place / f"{dtype}.npy", table)
            columns = [[column.name, list(column.shape), column.dtype] for column in self.columns]
            (place / CARD).write_text(json.dumps({"columns": columns, "card": self.card}, indent=1), encoding="utf-8")

        write_folder(folder, write)

    @classmethod
    def open(cls, folder: Path) -> Transitions:
        """Maps what `save` has written. Errors: `InputError` for a folder that is not one, or is damaged."""
        try:
            told = json.loads((folder / CARD).read_text(encoding="utf-8"))
            columns = tuple(Column(name, tuple(shape), dtype) for name, shape, dtype in told["columns"])
            tables = {dtype: np.load(folder / f"{dtype}.npy", mmap_mode="r") for dtype in widths_of(columns)}
            fits = all(table.shape == (len(next(iter(tables.values()))), widths_of(columns)[dtype]) for dtype, table in tables.items())
            if not (tables and fits):
                raise ValueError("its tables do not have the shapes that its card says")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{folder}' is not a dataset's folder, or is damaged: {error}") from None
        return cls(columns, tables, told["card"])


def _followed(full: dict[str, Array]) -> dict[str, Array]:
    """With the next observation of each row that has one: the next row's, of the same episode; a terminal row's is its own, which nobody
    asks for."""
    same = np.append(full["episode"][1:] == full["episode"][:-1], False)
    after = np.where(same, np.arange(len(same)) + 1, np.arange(len(same)))
    kept = same | full["terminated"]
    if not kept.any():
        raise InputError("a dataset of single steps without next_observation has no transition; accepted: next_observation, or episodes")
    return {name: array[kept] for name, array in full.items()} | {"next_observation": full["observation"][after][kept]}
