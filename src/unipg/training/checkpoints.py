"""Checkpoints: sealed files of tensors and plain values, of which the last two are kept.

Each is written under a temporary name and renamed, so that a kill at any moment leaves the last good one. A seal at its end, a checksum of
all that is before it, tells a damaged file. Reading one runs no code; what can only be pickled (some environments) is in a file of its own.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch

from unipg.errors import InputError, one_line
from unipg.files import writing
from unipg.rollouts.base import Pickled
from unipg.training.folder import CHECKPOINTS, untouched
from unipg.training.plain import decoded, encoded
from unipg.training.signing import is_own, signature

NAME, PREVIOUS = CHECKPOINTS
DAMAGED = "checkpoint-damaged.pt"
PICKLES = "environments-{}.pkl"
"""What can only be pickled, by the beginning of its checksum."""
_NONE = "0" * 64
_SEAL = re.compile(rb"\nunipg checkpoint 1 ([0-9a-f]{64}) ([0-9a-f]{64})\n")
_SEAL_BYTES = len(b"\nunipg checkpoint 1 " + _NONE.encode() * 2 + b" \n")
_PICKLED = re.compile(rb"unipg environments 1 ([0-9a-f]{64})\n")
_PICKLED_BYTES = len(b"unipg environments 1 " + _NONE.encode() + b"\n")
_ZIP_END_BYTES = 22
_LENGTH = 8
"""Bytes of the length before each pickle."""


class _Damaged(Exception):
    """A checkpoint that cannot be used; the message says why."""


class _Hashed:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch tells of it in words of its own
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(folder: Path, state: dict[str, Any], *, again: bool = False) -> None:
    """Replaces the folder's checkpoint, which becomes the previous one; both are untouched if anything fails (a full disk).

    `again`: the checkpoint is of the same moment, so the previous one stays.
    Errors: `InputError` for a file that cannot be written, and for a value that is neither a tensor nor plain, by its place in `state`.
    """
    pickled: list[bytes] = []
    content = encoded(state, pickled)
    temporary = folder / f"{NAME}.writing"
    try:
        with writing(folder / NAME, untouched):
            kept = _write_pickles(folder, pickled) if pickled else _NONE
            with temporary.open("wb") as file:
                hashed = _Hashed(file)
                try:
                    torch.save(content, hashed)  # type: ignore[arg-type]
                except RuntimeError as error:
                    raise hashed.error or error from error
                hashed.digest.update(kept.encode())
                file.write(f"\nunipg checkpoint 1 {hashed.digest.hexdigest()} {kept}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            if (folder / NAME).exists() and not again:
                os.replace(folder / NAME, folder / PREVIOUS)
            os.replace(temporary, folder / NAME)
            _settle(folder)
    finally:
        temporary.unlink(missing_ok=True)
    needed = {PICKLES.format(found[:16]) for found in (kept, _pickles_of(folder / PREVIOUS))}
    for path in folder.glob(PICKLES.format("*")):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Makes the renaming survive a loss of power, where folders can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_pickles(folder: Path, pickled: list[bytes]) -> str:
    """Writes what can only be pickled, signed by this user, and returns the file's checksum."""
    data = b"".join(len(item).to_bytes(_LENGTH, "big") + item for item in pickled)
    whole = b"unipg environments 1 " + signature(data).encode() + b"\n" + data
    found = hashlib.sha256(whole).hexdigest()
    path = folder / PICKLES.format(found[:16])
    temporary = path.with_suffix(".writing")
    try:
        with temporary.open("wb") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _pickles_of(path: Path) -> str:
    """The checksum of the pickles that a checkpoint needs."""
    try:
        with path.open("rb") as file:
            file.seek(-_SEAL_BYTES, os.SEEK_END)
            seal = _SEAL.fullmatch(file.read())
    except OSError:
        return _NONE
    return seal[2].decode() if seal else _NONE


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The folder's last good checkpoint, without running code from it: what is pickled comes as `Pickled`, with whose it is.

    A damaged one is put aside as `checkpoint-damaged.pt`, with a warning, and the previous one is read. Errors: `InputError` where there is
    none that is good.
    """
    why: list[str] = []
    for name in CHECKPOINTS:
        path = folder / name
        if not path.is_file():
            continue
        try:
            state = _read(path)
        except _Damaged as error:
            why.append(f"'{path}' {error}")
            continue
        if why:
            os.replace(folder / NAME, folder / DAMAGED)
            warnings.warn(
                f"{why[0]}: the run goes on from the checkpoint before it, iteration {state.get('iteration')} (the damaged one is now "
                f"'{DAMAGED}')",
                stacklevel=2,
            )
        return state
    if not why:
        raise InputError(f"there is nothing to resume: '{folder / NAME}' does not exist")
    raise InputError(f"the run cannot be continued: the checkpoint {', and the checkpoint '.join(why)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = _checked(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        pickled = [] if kept == _NONE else _read_pickles(path.parent, kept)
        state: dict[str, Any] = decoded(content, pickled)
    except (_Damaged, InputError):
        raise
    except Exception as error:
        raise _Damaged(f"cannot be read: {one_line(error)}") from error
    return state


def _checked(path: Path) -> str:
    """Compares a checkpoint with its seal; returns the checksum of the pickles that belong to it."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = size - _SEAL_BYTES
        while left > 0 and (piece := file.read(min(left, 1 << 22))):
            digest.update(piece)
            left -= len(piece)
        seal = _SEAL.fullmatch(file.read())
    if seal is None:
        if _ends_as_zip(path):
            raise InputError(
                f"'{path}' is a checkpoint of an earlier version, in a form that is not read any more: continue it with that version, or "
                "start the run again"
            )
        raise _Damaged("is damaged: it is cut off, or its end has changed")
    digest.update(seal[2])
    if digest.hexdigest().encode() != seal[1]:
        raise _Damaged("is damaged: its checksum is not that of its content")
    return seal[2].decode()


def _ends_as_zip(path: Path) -> bool:
    """Whether a file is what `torch.save` alone writes, whole."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, _ZIP_END_BYTES), os.SEEK_END)
        return file.read().startswith(b"PK\x05\x06")


def _read_pickles(folder: Path, kept: str) -> list[Pickled]:
    path = folder / PICKLES.format(kept[:16])
    if not path.is_file():
        raise _Damaged(f"needs '{path.name}', which is missing")
    whole = path.read_bytes()
    head = _PICKLED.fullmatch(whole[:_PICKLED_BYTES])
    if head is None or hashlib.sha256(whole).hexdigest() != kept:
        raise _Damaged(f"needs '{path.name}', which is damaged: its checksum is not that of its content")
    data, found = whole[_PICKLED_BYTES:], []
    own, start = is_own(data, head[1].decode()), 0
    while start < len(data):
        end = start + _LENGTH + int.from_bytes(data[start : start + _LENGTH], "big")
        found.append(Pickled(data[start + _LENGTH : end], own))
        start = end
    return found


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
