"""Checkpoints: one file, written under a temporary name and renamed, so that a kill at any moment leaves the last good one."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy
import torch

from unipg.errors import InputError

NAME = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replaces the folder's checkpoint, or leaves the old one untouched if anything fails (a full disk)."""
    temporary = folder / f"{NAME}.writing"
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / NAME)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise InputError(f"the checkpoint cannot be written to '{folder}': {error}; the last good one is untouched") from error


def read_checkpoint(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    if not path.is_file():
        raise InputError(f"there is nothing to resume: '{path}' does not exist")
    try:
        # our own file: it holds plain values, tensors and the pickled state of environments
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise InputError(f"the checkpoint '{path}' cannot be read: {error}") from error
    return state


def random_states() -> dict[str, Any]:
    """The states of every global random generator."""
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),  # noqa: NPY002  (user code may use the global generator)
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
