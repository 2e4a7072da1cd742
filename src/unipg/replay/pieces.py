"""Rows that come piece by piece, from whatever they lie in, and become the columns of transitions; nothing else is held whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from unipg.errors import InputError, nearest
from unipg.replay.tables import Array, Column, Tables, transition_columns, widths_of

PIECE = 1 << 15
"""Rows that are read at a time."""
NEEDED = ("observation", "action", "terminated")
"""Columns without which nothing can be learned."""
CARD = "card.json"
"""File of a dataset's folder: its columns, and what is known of where they come from."""

Piece = Mapping[str, Array]
"""Rows [n,…] by column; those of an episode one behind the other, in the order of time, across pieces too."""
_KNOWN = [column.name for column in transition_columns((1,), "float32", (1,), "float32")]
_FLAGS = ("reward", "terminated", "truncated", "episode")


def pieces_of(arrays: Mapping[str, Any]) -> Iterator[Piece]:
    """Pieces of columns that can be sliced, [N,…]: arrays, or what lies in a file."""
    for start in range(0, max((values.shape[0] for values in arrays.values() if values.ndim), default=1) or 1, PIECE):
        yield {name: values[start : start + PIECE] if values.ndim else values for name, values in arrays.items()}


class Settled:
    """Pieces of some columns as pieces of all of them, in their types.

    May be left out: `reward` (0: imitation), `truncated` (none), `episode`, `next_observation`. Without numbers a new episode begins after
    every end, and where an observation is not the next observation of the row before. Without next observations they are those of the next
    row of the episode; the last row of an episode that did not terminate is then left out and counted, since what followed it is not
    known, and the row before it is where the episode was truncated. An end that is both is an end: `terminated` alone.

    Actions that are counted may be [N,1], as d3rlpy keeps them: they become [N]. Flags are 0 and 1 of any type.

    Errors, as the pieces are read: `InputError` for a column that is missing or unknown, for other numbers of rows and shapes, for what is
    no real number and no flag, for an episode that goes on after another one, and for no rows.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = pieces
        self.columns: tuple[Column, ...] = ()
        """Known once the first piece was read."""
        self.left_out = 0
        """Rows whose next observation is not known."""
        self.missing: list[str] = []
        """Columns that were not given."""
        self.nonfinite: dict[str, list[int]] = {}
        """Of columns that hold NaN or infinity: in how many rows, and in which first."""
        self.marked = False
        """Whether the rows themselves say anywhere that an episode ended: by a flag, or by another number."""
        self.read = self.kept = 0
        """Rows so far."""
        self._given: list[str] = []
        self._episode = 0
        self._before: int | None = None
        self._over: set[int | None] = set()

    def __iter__(self) -> Iterator[dict[str, Array]]:
        held: dict[str, Array] = {}
        for piece in self.pieces:
            rows = self._typed(piece)
            if not len(rows["terminated"]):
                continue
            joined = {name: np.concatenate([held[name], rows[name]]) for name in rows} if held else rows
            # what becomes of a row is known with the two after it
            ready = max(0, len(joined["terminated"]) - 2)
            if ready:
                yield self._settled(joined, ready)
            held = {name: values[ready:] for name, values in joined.items()}
        if held:
            yield self._settled(held, len(held["terminated"]))
        if not self.kept:
            lost = "; without next_observation single steps are no transitions" if self.left_out else ""
            raise InputError(f"a dataset has no rows; accepted: one or more{lost}")

    def told(self) -> dict[str, Any]:
        """For the card: what was left out, was not there, or is not finite; and whether nothing in it ends an episode."""
        found = {"left_out": self.left_out, "missing": self.missing, "nonfinite": self.nonfinite, "unmarked": not self.marked}
        return {name: value for name, value in found.items() if value}

    def _typed(self, piece: Piece) -> dict[str, Array]:
        """A piece in the types of its columns; a column that was not given stays away, but for rewards and flags."""
        full = {name: np.asarray(array) for name, array in piece.items()}
        if not self.columns:
            self._look(full)
        if list(full) != self._given:
            raise InputError(f"a dataset has columns {', '.join(full)} after {', '.join(self._given)}; accepted: the same in every part")
        rows = len(full["observation"])
        for name, array in full.items():
            if array.ndim == 0 or len(array) != rows:
                raise InputError(f"column '{name}' has {len(array) if array.ndim else 'no'} rows; accepted: {rows}, as observation has")
        typed: dict[str, Array] = {}
        for column in self.columns:
            if column.name in full:
                array = full[column.name]
                single = column.name in _FLAGS or (column.name == "action" and not column.shape)
                if single and array.size == rows:
                    array = array.reshape(rows)
                if array.shape[1:] != column.shape:
                    raise InputError(f"column '{column.name}' has shape {list(array.shape)}; accepted: {[rows, *column.shape]}")
                typed[column.name] = self._cast(array, column)
            elif column.name in ("reward", "truncated"):
                typed[column.name] = np.zeros(rows, column.dtype)
        typed["truncated"] = typed["truncated"] & ~typed["terminated"]
        self.marked |= bool((typed["terminated"] | typed["truncated"]).any())
        self.read += rows
        return typed

    def _look(self, full: dict[str, Array]) -> None:
        """Reads the columns off the first piece."""
        for name in full:
            if name not in _KNOWN:
                raise InputError(f"unknown column '{name}' of a dataset; {nearest(name, _KNOWN)}")
        for name in NEEDED:
            if name not in full:
                raise InputError(f"column '{name}' is missing of a dataset; needed: {', '.join(NEEDED)}")
        for name, values in full.items():
            if not values.ndim or values.dtype.kind not in "fiub":
                raise InputError(f"column '{name}' is {values.dtype} of shape {list(values.shape)}; accepted: real numbers, a row each")
        observation, action = full["observation"], full["action"]
        seen = "uint8" if observation.dtype == np.uint8 else "float32"
        counted = np.issubdtype(action.dtype, np.integer)
        shape = () if counted and action.shape[1:] == (1,) else action.shape[1:]
        self.columns = transition_columns(observation.shape[1:], seen, shape, "int64" if counted else "float32")
        self._given = list(full)
        self.missing = [name for name in ("reward", "next_observation") if name not in full]

    def _cast(self, array: Array, column: Column) -> Array:
        if column.dtype == "bool" and (odd := (array != 0) & (array != 1)).any():
            at = int(odd.argmax())
            raise InputError(f"column '{column.name}' is {array[at]} in row {self.read + at}; accepted: 0 and 1")
        with np.errstate(over="ignore", invalid="ignore"):
            typed = array.astype(column.dtype, copy=False)
        if typed.dtype.kind == "f":
            bad = ~np.isfinite(typed)
            if bad.any():
                at = bad.reshape(len(bad), -1).any(1).nonzero()[0]
                found = self.nonfinite.setdefault(column.name, [0, self.read + int(at[0])])
                found[0] += len(at)
        return typed

    def _settled(self, rows: dict[str, Array], ready: int) -> dict[str, Array]:
        """The first `ready` rows of some, with all that is known of them: of row i, what follows from the rows i + 1 and i + 2."""
        terminated, truncated = rows["terminated"], rows["truncated"].copy()
        same = ~(terminated | truncated)[:-1]
        if "episode" in rows:
            same &= rows["episode"][1:] == rows["episode"][:-1]
        elif "next_observation" in rows:
            equal = rows["next_observation"][:-1] == rows["observation"][1:]
            same &= equal.all(tuple(range(1, equal.ndim)))
        if "truncated" not in self._given:
            truncated[:-1] |= ~(same | terminated[:-1])
        kept = np.ones(len(terminated), bool)
        if "next_observation" not in rows:
            kept = np.append(same, False) | terminated
            truncated[:-1] |= same & ~kept[1:]
            after = np.arange(len(terminated))
            after[:-1] += same
            rows = {**rows, "next_observation": rows["observation"][after]}
        done = kept[:ready]
        found = {**rows, "truncated": truncated, "episode": self._numbered(rows.get("episode"), same, ready)}
        self.left_out += ready - int(done.sum())
        self.kept += int(done.sum())
        return {name: values[:ready][done] for name, values in found.items()}

    def _numbered(self, given: Array | None, same: Array, ready: int) -> Array:
        """[ready] the numbers of episodes: as they were given, or counted."""
        if given is None:
            number = self._episode + np.append(0, np.cumsum(~same))
            self._episode = int(number[min(ready, len(same))])
            return number
        self.marked |= bool((given[1:ready] != given[: ready - 1]).any() or (self._before is not None and given[0] != self._before))
        for value in given[:ready][np.append(True, given[1:ready] != given[: ready - 1])].tolist():
            if value != self._before:
                if value in self._over:
                    raise InputError(f"episode {value} goes on after another one; accepted: the rows of an episode one behind the other")
                self._over.add(self._before)
                self._before = value
        return given


def gathered(settled: Settled) -> dict[str, Array]:
    """{dtype: [N,width]} tables in memory."""
    found: dict[str, list[Array]] = {}
    for rows in settled:
        for dtype, block in blocks(settled.columns, rows).items():
            found.setdefault(dtype, []).append(block)
    return {dtype: pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for dtype, pieces in found.items()}


def stored(settled: Settled, place: Path, card: Mapping[str, Any]) -> None:
    """Writes the files of a dataset's folder, piece by piece."""
    place.mkdir(parents=True, exist_ok=True)
    files: dict[str, BinaryIO] = {}
    try:
        for rows in settled:
            for dtype, block in blocks(settled.columns, rows).items():
                if dtype not in files:
                    files[dtype] = (place / f"{dtype}.npy").open("wb")
                    _head(files[dtype], dtype, 0, block.shape[1])
                block.tofile(files[dtype])
        for dtype, width in widths_of(settled.columns).items():
            files[dtype].seek(0)
            _head(files[dtype], dtype, settled.kept, width)
    finally:
        for file in files.values():
            file.close()
    write_card(place, settled.columns, {**card, **settled.told()})


def write_card(place: Path, columns: tuple[Column, ...], card: Mapping[str, Any]) -> None:
    """Writes what a dataset's folder tells of itself."""
    told = {"columns": [[column.name, list(column.shape), column.dtype] for column in columns], "card": card}
    (place / CARD).write_text(json.dumps(told, indent=1), encoding="utf-8")


def blocks(columns: tuple[Column, ...], rows: Piece) -> dict[str, Array]:
    """{dtype: [n,width]} rows side by side."""
    count = len(rows["terminated"])
    tables = {dtype: np.empty((count, width), dtype) for dtype, width in widths_of(columns).items()}
    views = Tables(columns, tables).views
    for column in columns:
        views[column.name][...] = rows[column.name]
    return tables


def _head(file: BinaryIO, dtype: str, rows: int, width: int) -> None:
    """The head of an `.npy` file, of the same length for any number of rows: NumPy leaves room for it to grow."""
    np.lib.format.write_array_header_1_0(file, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, width)})
