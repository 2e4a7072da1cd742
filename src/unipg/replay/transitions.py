"""Transitions that are given: a dataset, whose rows are drawn by their number and never change."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unipg.errors import InputError, nearest, one_line
from unipg.files import write_folder
from unipg.replay.pieces import CARD, Settled, gathered, pieces_of, stored, write_card
from unipg.replay.tables import Array, Column, Tables, widths_of


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

        What may be left out, and what it then is, says `Settled`. Errors: as there, and `InputError` for values that are not finite, naming
        the row.
        """
        settled = Settled(pieces_of({name: np.asarray(array) for name, array in arrays.items()}))
        return cls.settled(settled, card).check_finite()

    @classmethod
    def settled(cls, settled: Settled, card: Mapping[str, Any] | None = None, folder: Path | None = None) -> Transitions:
        """From pieces that are read now, in memory or, piece by piece, into `folder`, which appears whole or not at all and is mapped.

        What is not finite is told in the card (`nonfinite`), and is for `check_finite` to refuse.
        """
        if folder is not None:
            write_folder(folder, lambda place: stored(settled, place, card or {}))
            return cls.open(folder)
        tables = gathered(settled)
        return cls(settled.columns, tables, {**(card or {}), **settled.told()})

    def check_finite(self) -> Transitions:
        """The same rows. Errors: `InputError` for NaN and infinity in them, naming column and row."""
        for name, (count, row) in self.card.get("nonfinite", {}).items():
            raise InputError(f"column '{name}' is not finite in row {row} ({count} rows in all); accepted: finite numbers")
        return self

    def save(self, folder: Path) -> None:
        """A folder of one `.npy` file for each dtype and a card, that `open` maps; it appears whole or not at all."""

        def write(place: Path) -> None:
            place.mkdir(parents=True, exist_ok=True)
            for dtype, table in self._tables.items():
                np.save(place / f"{dtype}.npy", table)
            write_card(place, self.columns, self.card)

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
            return cls(columns, tables, told["card"])
        except Exception as error:  # of NumPy and of what is made of the card, whatever it holds
            raise InputError(f"'{folder}' is not a dataset's folder, or is damaged: {one_line(error)}") from None
