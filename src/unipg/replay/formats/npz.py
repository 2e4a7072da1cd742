"""Datasets in one NPZ file: an array for each column, and the card as text."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from unipg.errors import InputError
from unipg.files import check_output, generator, write_file
from unipg.replay.tables import Array
from unipg.replay.transitions import Transitions

CARD = "card"


def read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays by column, and the card. Errors: `InputError` for what is no such file."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        card = json.loads(str(arrays.pop(CARD))) if CARD in arrays else {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot be read as NPZ: {error}") from None
    return arrays, card


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
