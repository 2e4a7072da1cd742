"""Datasets by their place, whatever they lie in; one module for each format.

Belongs here: how files of others and of our own become columns. Does not belong here: what the columns mean (`transitions.py`), and what
may be wrong with them (`checks.py`).
"""

from __future__ import annotations

from pathlib import Path

from unipg.errors import InputError
from unipg.files import check_output
from unipg.replay.formats import npz
from unipg.replay.transitions import Transitions


def open_data(place: str | Path) -> Transitions:
    """A dataset by its place: a folder that `Transitions.save` has written, or an NPZ file with the columns' names."""
    path = Path(place)
    if path.is_dir():
        return Transitions.open(path)
    if not path.is_file():
        raise InputError(f"the dataset '{place}' does not exist; accepted: an .npz file, or a dataset's folder")
    try:
        return Transitions.of(*npz.read(path))
    except InputError as error:
        raise InputError(f"the dataset '{place}': {error}") from None


def check_free(place: str | Path) -> None:
    """Refuses a place that `save_data` does not write to; ask before the work whose result it is to hold."""
    if Path(place).suffix != ".npz":
        raise InputError(f"a dataset cannot be written to '{place}'; accepted: an .npz file")
    check_output(Path(place), "data")


def save_data(data: Transitions, place: str | Path) -> None:
    """Writes a dataset where its place says: an NPZ file."""
    npz.write(data, Path(place))
