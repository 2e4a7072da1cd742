"""Datasets in Parquet: one row a transition, a column for each of ours; vectors are lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unipg.errors import InputError, missing_package, one_line
from unipg.replay.formats.base import ALIASES, Source, named, read_columns
from unipg.replay.pieces import PIECE, Piece
from unipg.replay.tables import Array


def read(path: Path) -> Source:
    """Columns by our names or D4RL's; those of infos/… and metadata/… are left alone."""
    parquet = _library()
    try:
        with parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            rows = file.metadata.num_rows
    except Exception as error:  # whatever Arrow and what reads names for it say of a damaged file
        raise InputError(f"cannot be read as Parquet: {one_line(error)}") from None
    columns, _ = read_columns(dict.fromkeys(there, (rows,)))
    if not columns:
        names = ", ".join(dict.fromkeys(ALIASES.values()))
        raise InputError(f"has the columns {', '.join(there) or 'none'}; accepted: {names}, episode, or D4RL's names")
    return Source(_pieces(path, columns), rows, {})


def _library() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as absent:
        raise missing_package("pyarrow", "offline", "a dataset in Parquet") from absent
    return pyarrow.parquet


def _pieces(path: Path, columns: list[str]) -> Iterator[Piece]:
    row = 0
    with _library().ParquetFile(path) as file:
        for batch in file.iter_batches(PIECE, columns=columns):
            yield named({name: _array(batch.column(name), name, row) for name in columns})
            row += batch.num_rows


def _array(column: Any, name: str, row: int) -> Array:
    """[n] or [n,…] of a column of numbers or of lists of them, all of one length."""
    sizes: list[int] = []
    rows = len(column)
    while hasattr(column, "flatten"):
        if column.null_count:
            break
        inner = column.flatten()
        size, rest = divmod(len(inner), len(column))
        if rest or any(len(each) != size for each in (column[:1], column[-1:]) for each in each.to_pylist()):
            raise InputError(f"column '{name}' has lists of different lengths from row {row} on; accepted: one length")
        sizes, column = [*sizes, size], inner
    if column.null_count:
        raise InputError(f"column '{name}' has nothing in {column.null_count} of its rows from {row} on; accepted: numbers")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(rows, *sizes)
