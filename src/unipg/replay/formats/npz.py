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
from unipg.files import check_output, generator, write_file
from unipg.replay.formats.base import Source, named
from unipg.replay.pieces import PIECE, Piece
from unipg.replay.transitions import Transitions

CARD = "card"
_SUFFIX = ".npy"


def read(path: Path) -> Source:
    """Columns by our names or D4RL's, read side by side: no column is held whole. Errors: `InputError` for what is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(_SUFFIX)]
            shapes = {}
            for name in members:
                with archive.open(name) as file:
                    shapes[name.removesuffix(_SUFFIX)] = _head(file)
            card = json.loads(str(np.load(path)[CARD])) if CARD in shapes else {}
        if not isinstance(card, dict):
            raise ValueError(f"its card is {type(card).__name__}; accepted: an object")
    except Exception as error:  # of zipfile, zlib and NumPy, which raise what they like of a damaged file
        raise InputError(f"cannot be read as NPZ: {one_line(error)}") from None
    shapes.pop(CARD, None)
    rows = {shape[0] if shape else 0 for shape, *_ in shapes.values()}
    if len(rows) > 1:
        told = ", ".join(f"{name} {list(shape)}" for name, (shape, *_) in shapes.items())
        raise InputError(f"its columns have different numbers of rows: {told}; accepted: as many of each")
    return Source(_pieces(path, list(shapes)), rows.pop() if rows else 0, card)


def _pieces(path: Path, names: list[str]) -> Iterator[Piece]:
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        files = {name: stack.enter_context(archive.open(name + _SUFFIX)) for name in names}
        heads = {name: _head(file) for name, file in files.items()}
        rows = min((shape[0] for shape, *_ in heads.values()), default=0)
        for start in range(0, rows, PIECE):
            piece = {}
            for name, file in files.items():
                shape, dtype = heads[name]
                taken = (min(PIECE, rows - start), *shape[1:])
                data = file.read(int(np.prod(taken, dtype=np.int64)) * dtype.itemsize)
                try:
                    piece[name] = np.frombuffer(data, dtype).reshape(taken)
                except ValueError:
                    raise InputError(f"column '{name}' is cut off after row {start}") from None
            yield named(piece)


def _head(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an array, whose numbers then follow. ValueError for one that is not numbers row by row."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = reader(file)
    if dtype.hasobject or (columns_first and len(shape) > 1):
        raise ValueError(f"an array of {dtype}{', column by column,' if columns_first else ''} is no column; accepted: numbers, row by row")
    return shape, dtype


def write(data: Transitions, path: Path) -> None:
    """Compressed, and the same bytes for the same rows and card; whole or not at all, and never over what unipg did not write."""

    def put(place: Path) -> None:
        arrays: dict[str, Any] = {column.name: data.column(column.name) for column in data.columns}
        arrays[CARD] = np.array(json.dumps(data.card))
        with place.open("wb") as file:
            np.savez_compressed(file, **arrays)
        with zipfile.ZipFile(place, "a") as archive:  # says at its end what wrote it
            archive.comment = json.dumps({"generator": generator("data")}).encode()

    check_output(path, "data")
    write_file(path, put)
