"""Datasets in one NPZ file: an array for each column, and the card as text."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from unipg.errors import InputError, one_line
from unipg.files import generator, write_file
from unipg.replay.formats.base import BESIDE, Source, named, read_columns
from unipg.replay.pieces import PIECE, Piece
from unipg.replay.tables import Array
from unipg.replay.transitions import Transitions

CARD = "card"
_SUFFIX = ".npy"


def read(path: Path) -> Source:
    """Columns by our names or D4RL's, read side by side: only an array that is stored column by column is held whole.

    Errors: `InputError` for what is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(_SUFFIX)]
            shapes = {}
            for name in members:
                if not name.startswith(BESIDE):
                    with archive.open(name) as file:
                        shapes[name.removesuffix(_SUFFIX)] = _head(file)[0]
            card = json.loads(str(np.load(path)[CARD])) if CARD in shapes else {}
        if not isinstance(card, dict):
            raise ValueError(f"its card is {type(card).__name__}; accepted: an object")
    except Exception as error:  # of zipfile, zlib and NumPy, which raise what they like of a damaged file
        raise InputError(f"cannot be read as NPZ: {one_line(error)}") from None
    shapes.pop(CARD, None)
    columns, rows = read_columns(shapes)
    return Source(_pieces(path, columns), rows, card)


def _pieces(path: Path, names: list[str]) -> Iterator[Piece]:
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        files = {name: stack.enter_context(archive.open(name + _SUFFIX)) for name in names}
        heads = {name: _head(file) for name, file in files.items()}
        whole = {name: _turned(file, name, *heads[name][:2]) for name, file in files.items() if heads[name][2]}
        rows = min((shape[0] for shape, *_ in heads.values() if shape), default=0)
        for start in range(0, rows, PIECE):
            piece = {name: array[start : start + PIECE] for name, array in whole.items()}
            for name, file in files.items():
                shape, dtype, columns_first = heads[name]
                if not columns_first:
                    piece[name] = _numbers(file, name, start, (min(PIECE, rows - start), *shape[1:]), dtype)
            yield named({name: piece[name] for name in names})


def _numbers(file: Any, name: str, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """The next numbers of a file, in a shape."""
    data = file.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    try:
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError:
        raise InputError(f"column '{name}' is cut off after row {start}") from None


def _turned(file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """All of an array that is stored column by column, as it comes of a transposition."""
    return _numbers(file, name, 0, shape[::-1], dtype).T


def _head(file: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape and dtype of an array, whose numbers then follow, and whether column by column. ValueError for one that is not numbers."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = reader(file)
    if dtype.hasobject:
        raise ValueError(f"an array of {dtype} is no column; accepted: numbers")
    return shape, dtype, columns_first and len(shape) > 1


def write(data: Transitions, path: Path) -> None:
    """Compressed, and the same bytes for the same rows and card; whole or not at all."""

    def put(place: Path) -> None:
        arrays: dict[str, Any] = {column.name: data.column(column.name) for column in data.columns}
        arrays[CARD] = np.array(json.dumps(data.card))
        with place.open("wb") as file:
            np.savez_compressed(file, **arrays)
        with zipfile.ZipFile(place, "a") as archive:  # says at its end what wrote it
            archive.comment = json.dumps({"generator": generator("data")}).encode()

    write_file(path, put)
