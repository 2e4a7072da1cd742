"""The last transitions of a run, in a memory-mapped file of its folder, so that a checkpoint records a position and no rows.

Row number p (counted from the first one ever) lies in physical row p mod (capacity + slack). Rows outlive a killed process: they are the
operating system's from the moment they are written. The slack keeps the rows of a checkpoint while the run goes on beyond it.
"""

from __future__ import annotations

import functools
import itertools
import json
import mmap
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError, nearest
from unipg.files import writing
from unipg.replay.tables import Array, Column, Tables, widths_of

NAME = "replay.bin"
_MAGIC = b"unipg replay 1\n\0"
_FIXED = len(_MAGIC) + 16
"""Bytes before the header's JSON: the magic, how many rows were ever written, and the length of the JSON."""
_PAGE = 4096
_BLOCK = 1024
"""Rows of a checksum."""
_LARGEST = 2**63 - 1


class Ring:
    """The last `capacity` rows that were appended; any of them can be drawn, by its age.

    `folder`: where `replay.bin` is made at the first `append` (or found by `load_state_dict`); None keeps the rows in memory. `slack`: rows
    that may be appended after a checkpoint before the oldest row that it needs is overwritten; with two checkpoints kept, twice what is
    appended between two of them. `identity`: whose rows these are (an environment's name), for `load_state_dict` to compare.

    The columns of one dtype are one table, so that a draw is one gather for each dtype. The whole file is allocated when it is made, where
    the system can (`posix_fallocate`); elsewhere it is sparse, and a disk that runs full later kills the process (SIGBUS).

    Errors: `InputError` for columns with one name, for a capacity below 1 and a slack below 0.
    """

    def __init__(self, folder: Path | None, columns: Sequence[Column], capacity: int, *, slack: int = 0, identity: str = "") -> None:
        names = [column.name for column in columns]
        if not names or len(set(names)) < len(names):
            raise InputError(f"columns are {', '.join(names) or 'none'}; accepted: one or more, each with a name of its own")
        if capacity < 1 or slack < 0:
            raise InputError(f"a replay buffer has capacity {capacity} and slack {slack}; accepted: at least 1, at least 0")
        self.path = None if folder is None else Path(folder) / NAME
        self.columns, self.capacity, self.slack, self.identity = tuple(columns), capacity, slack, identity
        self.position = 0
        """Rows ever appended: the number of the next one."""
        self._token = secrets.token_hex(16)
        self._closed = False
        self._sums: dict[int, list[int]] = {}
        """Of each block of rows, by its number, a checksum of each table; up to the row `_summed`."""
        self._summed = 0
        self._kinds = [(column.name, column.shape, np.dtype(column.dtype)) for column in columns]
        self._names = dict.fromkeys(names).keys()
        self._forget()
        if self._bytes(self._needed) > _LARGEST:
            raise InputError(f"a replay buffer of {self._needed} rows has {self._bytes(self._needed)} bytes; accepted: at most {_LARGEST}")

    @classmethod
    def found(cls, path: Path) -> Ring:
        """The ring in a file that a run has written, with its newest rows. They can be drawn; none can be appended.

        Errors: `InputError` for a file that is none, or is cut off.
        """
        if not path.is_file():
            raise InputError(f"'{path}' does not exist: the run keeps no transitions")
        ring = cls(path.parent, [Column("any")], 1)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            written, begin, header = ring._read_header(file, size)
            columns = [Column(name, tuple(shape), dtype) for name, shape, dtype in header["columns"]]
            slack = header["rows"] - header["capacity"]
            ring = cls(path.parent, columns, header["capacity"], slack=slack, identity=header["identity"])
            if size != begin + ring._bytes(ring._rows):
                raise InputError(f"'{path}' is cut off or damaged: it has {size} bytes of {begin + ring._bytes(ring._rows)}")
            ring._use_map(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), begin)
        ring.position = written
        return ring

    def __len__(self) -> int:
        return min(self.position, self.capacity)

    def check_room(self) -> None:
        """Refuses a file that its disk has no room for, as the first `append` would, but before anything is written."""
        if self.path is None:
            return
        there = next(folder for folder in self.path.absolute().parents if folder.exists())
        size = len(self._header(self._rows)) + self._bytes(self._rows)
        if size > (free := shutil.disk_usage(there).free):
            raise InputError(f"the disk of '{self.path}' has {_gigabytes(free)} of room{self._hint(size)}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(column.width * np.dtype(column.dtype).itemsize for column in self.columns)

    # rows

    def append(self, **rows: Array) -> None:
        """Adds rows, [N,…] of every column; all or, where any is refused, none.

        Errors: `InputError` for a column that is missing or unknown, for another shape, for values that the column's dtype cannot hold, for
        more rows than the capacity, and for a file that cannot be made (a full disk).
        """
        if rows.keys() != self._names:
            self._refuse_names(rows)
        arrays: dict[str, Array] = {}
        count = -1
        for name, shape, dtype in self._kinds:
            array = np.asarray(rows[name])
            if count < 0 and array.ndim:
                count = array.shape[0]
            if array.shape != (count, *shape):
                accepted = [count if count >= 0 else "rows", *shape]
                raise InputError(f"column '{name}' was given shape {list(array.shape)}; accepted: {accepted}")
            if array.dtype != dtype and not _fits(array, dtype):
                raise InputError(f"column '{name}' was given {array.dtype} values that {dtype} cannot hold")
            arrays[name] = array
        if count > self.capacity:
            raise InputError(f"{count} rows were appended at once; accepted: at most the capacity, {self.capacity}")
        if not self._laid.views:
            self._make()
        after = self.position + count
        if self._written[0] < after:  # before the rows: a kill between the two must not hide which rows are gone
            self._written[0] = after
        start = self.position % self._rows
        stop = start + count
        if stop <= self._rows:
            for name, array in arrays.items():
                self._laid.views[name][start:stop] = array
        else:
            first = self._rows - start
            for name, array in arrays.items():
                self._laid.views[name][start:] = array[:first]
                self._laid.views[name][: count - first] = array[first:]
        self.position = after

    def draw(self, index: Tensor, *names: str) -> dict[str, Tensor]:
        """Copies of the rows at `index` [N], int64 in [0, len): 0 is the oldest. [N,…] of every column, or of `names` alone.

        Errors: `IndexError` for an index outside.
        """
        where = self._physical(index)
        return self._laid.draw(where, names)

    def ages(self, index: Tensor) -> Tensor:
        """[N] how many rows were appended after each."""
        return len(self) - 1 - index

    def _physical(self, index: Tensor) -> Array:
        """[N] where rows lie in the tables."""
        length = len(self)
        if not self._laid.views:
            raise IndexError("nothing can be drawn: the replay buffer is empty or closed")
        if index.dtype != torch.int64:
            raise IndexError(f"the index holds {index.dtype}; accepted: torch.int64")
        places = index.numpy()
        if places.size and int(places.view(np.uint64).max()) >= length:  # a negative number is a large one
            raise IndexError(f"rows {places.min()} to {places.max()} were asked for; there are {length}, from 0 on")
        start = (self.position - length) % self._rows
        if start:
            places = places + start
            if start + length > self._rows:
                places = np.where(places >= self._rows, places - self._rows, places)
        return places

    # checkpoints

    def flush(self) -> None:
        """Brings what was written to the disk, where a loss of power does not reach it; call it before a checkpoint is renamed."""
        if self._map is not None:
            with writing(self._file()):
                self._map.flush()

    def state_dict(self) -> dict[str, Any]:
        """Plain values: where the ring stands and which file is its own; the rows too where there is no file."""
        state = {"position": self.position, "token": self._token, **self._layout()}
        if self.path is None and self._laid.views:
            state["rows"] = self.draw(torch.arange(len(self)))
        elif self._laid.views:
            self._sum()
            state["sums"] = {"first": min(self._sums, default=0), "of": list(self._sums.values())}
        return state

    def _sum(self) -> None:
        """Takes the rows that were appended since the last call into the checksums of their blocks, and forgets those of rows that are
        gone. Reads nothing else: a checkpoint costs what was written since the one before."""
        oldest = self.position - len(self)
        start = max(self._summed, oldest - oldest % _BLOCK)
        while start < self.position:
            block = start // _BLOCK
            stop = min((block + 1) * _BLOCK, self.position)
            self._sums[block] = self._checksums(start, stop, self._sums.get(block))
            start = stop
        self._summed = self.position
        for block in [block for block in self._sums if (block + 1) * _BLOCK <= oldest]:
            del self._sums[block]

    def _checksums(self, start: int, stop: int, before: list[int] | None = None) -> list[int]:
        """Of rows number `start` to `stop` in each table, going on from those of the rows before them."""
        found = before or [0] * len(self._laid.tables)
        first, count = start % self._rows, stop - start
        for piece in (slice(first, first + count), slice(0, max(0, first + count - self._rows))):
            found = [zlib.crc32(table[piece].data, sum) for (table, _), sum in zip(self._laid.tables, found, strict=True)]
        return found

    def _verify(self, sums: dict[str, Any] | None, position: int) -> None:
        """Refuses rows that are not those that a checkpoint at `position` knew, but for a block that the run has begun to write over since.

        The state of an earlier version has none: they are taken anew.
        """
        self._sums, self._summed = {}, 0
        if sums is None:
            return
        self._summed = position
        alive = int(self._written[0]) - self._rows
        for block, known in enumerate(sums["of"], sums["first"]):
            start, stop = block * _BLOCK, min((block + 1) * _BLOCK, position)
            if start >= alive and self._checksums(start, stop) != known:
                raise InputError(
                    f"'{self.path}' is damaged: transitions {start} to {stop - 1} are not what the run had written; accepted: a copy "
                    "of the file as it was, or a new run"
                )
            self._sums[block] = known

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where `state` was taken, with the rows that the file held then, which are compared with their checksums.

        Errors: `InputError`, with nothing changed, for a state of other columns, capacity or identity; and for a file that is missing, cut
        off, damaged, another run's, older than the state, or that has gone on by more than the slack.
        """
        self._compare(state, "the checkpoint's replay buffer")
        position, token = int(state["position"]), str(state["token"])
        if self.path is not None and position:
            self._open(position, token, state.get("sums"))
        else:
            self._forget()
            self._sums, self._summed = {}, 0
        if "rows" in state:
            self.position = position - min(position, self.capacity)
            self.append(**{name: rows.numpy() for name, rows in state["rows"].items()})
        self.position, self._token, self._closed = position, token, False

    def close(self) -> None:
        """Lets go of the file. Nothing can be appended or drawn any more, until `load_state_dict` opens it again."""
        self._forget()
        self._closed = True

    def _compare(self, found: dict[str, Any], place: str) -> None:
        """Refuses what was written for another ring."""
        mine = self._layout()
        for key, what in (("identity", "transitions of"), ("capacity", "a capacity of")):
            if found[key] != mine[key]:
                raise InputError(f"{place} has {what} {found[key]!r}; accepted: {mine[key]!r}, as this run has")
        columns = [[f"{name} {dtype}{shape}" for name, shape, dtype in of["columns"]] for of in (found, mine)]
        for number, (there, here) in enumerate(itertools.zip_longest(*columns, fillvalue="nothing")):
            if there != here:
                raise InputError(f"{place} has {there} as column {number + 1}; accepted: {here}, as this run has")

    def _layout(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "capacity": self.capacity,
            "columns": [[column.name, list(column.shape), column.dtype] for column in self.columns],
        }

    # the file

    @property
    def _needed(self) -> int:
        return self.capacity + self.slack

    def _file(self) -> Path:
        assert self.path is not None
        return self.path

    def _header(self, rows: int) -> bytes:
        text = json.dumps({"token": self._token, "rows": rows, **self._layout()}).encode()
        whole = _MAGIC + struct.pack("<qq", 0, len(text)) + text
        return whole + bytes(-len(whole) % _PAGE)

    def _bytes(self, rows: int) -> int:
        """Size of the tables of so many rows, each table beginning at a page."""
        return sum(_paged(rows * width * np.dtype(dtype).itemsize) for dtype, width in self._widths())

    def _widths(self) -> list[tuple[str, int]]:
        """The tables in the order of the file: dtype, and numbers in a row."""
        return list(widths_of(self.columns).items())

    def _forget(self) -> None:
        self._map: mmap.mmap | None = None
        self._rows = self._needed
        """Physical rows."""
        self._written = np.zeros(1, np.int64)
        self._laid = Tables(self.columns, {})

    def _make(self) -> None:
        """Makes room for the rows: a file that takes its name once it is whole, or memory."""
        if self._closed:
            raise RuntimeError("the replay buffer is closed")
        if self.path is None:
            return self._use(np.zeros(self._bytes(self._rows), np.uint8), 0)
        path, header = self.path, self._header(self._rows)
        size = len(header) + self._bytes(self._rows)
        if path.exists() and not _is_ring(path):
            raise InputError(f"'{path}' exists, and is no replay buffer: nothing is written over; accepted: another folder")
        unfinished = path.with_name(f"{NAME}.writing")
        try:
            with writing(path, self._hint(size)):
                path.parent.mkdir(parents=True, exist_ok=True)
                with unfinished.open("w+b") as file:
                    file.write(header)
                    file.flush()
                    _allocate(file.fileno(), size)
                    mapped = mmap.mmap(file.fileno(), size)
                unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        self._use_map(mapped, len(header))

    def _hint(self, size: int) -> str:
        need = f"{self._rows} transitions of {self.row_bytes} bytes need {_gigabytes(size)}"
        return f"; {need}: make room, or lower the buffer's capacity (replay.capacity)"

    def _open(self, position: int, token: str, sums: dict[str, Any] | None) -> None:
        """Takes the file of a checkpoint, once everything about it is as it must be."""
        path = self._file()
        if not path.is_file():
            raise InputError(f"'{path}' does not exist: it holds the replay buffer that the checkpoint goes on with")
        with writing(path), path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            written, begin, header = self._read_header(file, size)
            self._compare(header, f"'{path}'")
            if header["token"] != token:
                raise InputError(f"'{path}' is the replay buffer of another run than the checkpoint's")
            rows = header["rows"]
            if size != begin + self._bytes(rows):
                raise InputError(f"'{path}' is cut off or damaged: it has {size} bytes of {begin + self._bytes(rows)}")
            beyond = written - position
            if rows < self._needed:
                raise InputError(
                    f"'{path}' has room for {rows - self.capacity} transitions beyond its capacity, and {self.slack} are needed now; "
                    "accepted: no more transitions between two checkpoints than when the run was begun"
                )
            if beyond < 0:
                raise InputError(f"'{path}' is older than the checkpoint: it holds {written} transitions of {position}")
            if beyond > rows - min(position, self.capacity):
                raise InputError(
                    f"'{path}' has gone on by {beyond} transitions since the checkpoint, and the oldest of those that the checkpoint "
                    "needs are overwritten"
                )
            mapped = mmap.mmap(file.fileno(), size)
        before = dict(vars(self))
        self._forget()
        self._rows = rows
        self._use_map(mapped, begin)
        try:
            self._verify(sums, position)
        except InputError:
            vars(self).update(before)
            raise

    def _read_header(self, file: BinaryIO, size: int) -> tuple[int, int, dict[str, Any]]:
        """How many rows were ever written, where the tables begin, and what the header says."""
        head = file.read(_FIXED)
        if len(head) < _FIXED or not head.startswith(_MAGIC):
            raise InputError(f"'{self.path}' is not a replay buffer, or its beginning is damaged")
        written, length = struct.unpack_from("<qq", head, len(_MAGIC))
        try:
            header = json.loads(file.read(max(0, min(length, size))))
            if header.keys() != {"token", "rows", *self._layout()}:
                raise KeyError
        except (ValueError, KeyError, AttributeError):
            raise InputError(f"'{self.path}' is damaged: its header cannot be read") from None
        return written, _paged(_FIXED + length), header

    def _use_map(self, mapped: mmap.mmap, begin: int) -> None:
        self._map = mapped
        self._written = np.frombuffer(mapped, "<i8", 1, len(_MAGIC))
        self._use(mapped, begin)

    def _use(self, buffer: Any, begin: int) -> None:
        """Lays the tables and their columns over a buffer."""
        tables: dict[str, Array] = {}
        for dtype, width in self._widths():
            tables[dtype] = np.frombuffer(buffer, dtype, self._rows * width, begin).reshape(self._rows, width)
            begin += _paged(tables[dtype].nbytes)
        self._laid = Tables(self.columns, tables)

    def _refuse_names(self, rows: dict[str, Array]) -> NoReturn:
        unknown = [name for name in rows if name not in self._names]
        if unknown:
            raise InputError(f"unknown column '{unknown[0]}'; {nearest(unknown[0], self._names)}")
        missing = [name for name in self._names if name not in rows]
        raise InputError(f"column '{missing[0]}' is missing; needed: {', '.join(self._names)}")


@functools.cache
def _casts(given: np.dtype[Any], kept: np.dtype[Any]) -> str:
    """Whether values of a dtype can be kept as another one: `always`, `never`, or as they are (`integers` that may be too large)."""
    if not np.can_cast(given, kept, "same_kind"):
        return "never"
    whole = np.issubdtype(kept, np.integer) and not np.can_cast(given, kept)
    return "integers" if whole else "always"


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    casts = _casts(array.dtype, dtype)
    return casts == "always" or (casts == "integers" and bool((array.astype(dtype) == array).all()))


def _paged(size: int) -> int:
    return size + -size % _PAGE


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size} bytes"


def _is_ring(path: Path) -> bool:
    with writing(path), path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _allocate(descriptor: int, size: int) -> None:
    """Grows a file, with its blocks where the system can give them beforehand: a write to a mapped hole of a full disk kills."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
