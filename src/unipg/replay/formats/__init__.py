"""Datasets by their place, whatever they lie in; one module for each format.

Belongs here: how files of others and of our own become columns. Does not belong here: what the columns mean (`pieces.py`), and what may be
wrong with them (`checks.py`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from unipg.errors import InputError, nearest, one_line
from unipg.hub import in_home
from unipg.replay.formats import hdf5, minari, npz, parquet, run
from unipg.replay.formats.base import Source
from unipg.replay.pieces import CARD, Piece, Settled
from unipg.replay.transitions import Transitions

SMALL = 128 << 20
"""Bytes of a file whose rows are read into memory; those of a larger one are converted once and mapped."""
KINDS = (".npz", ".hdf5", ".h5", ".parquet")
_SAMPLES = 64
_SAMPLE = 1 << 16
_FORM = "2"
"""Of what a conversion makes: another number makes it anew."""

Progress = Callable[[float], None]


def open_data(
    place: str | Path, *, entries: Sequence[str] | None = None, finite: bool = True, progress: Progress | None = None
) -> Transitions:
    """A dataset by its place:

        a folder         that `Transitions.save` has written, a run with a replay buffer, or one of Minari's
        .npz             a column an array, by our names or D4RL's
        .hdf5, .h5       in D4RL's layout or robomimic's
        .parquet         one row a transition
        minari:NAME      one of Minari's, downloaded where it is not here

    `entries`: of observations that have several by name, those that are wanted; they follow each other in sorted order. Rows of a file of
    more than 128 MiB are converted once, piece by piece, into a folder of the user's cache, which is then mapped. `progress` is told the
    finished share of what is read. `finite`: refuse NaN and infinity.

    Errors: `InputError`, one line, for a place that holds no dataset, or one that cannot be used.
    """
    text = in_home(os.fspath(place))
    path = Path(text)
    try:
        if path.is_dir() and (path / CARD).is_file():
            if entries is not None:
                raise InputError("entries are asked for, but its observations are one array; accepted: none")
            data = Transitions.open(path)
        else:
            source, size, key = _source(text, path, entries)
            rows = Settled(_counted(source, progress))
            data = Transitions.settled(rows, source.card) if size <= SMALL else _converted(rows, source, path.stem or "data", key)
        return data.check_finite() if finite else data
    except InputError as error:
        raise InputError(f"the dataset '{place}': {error}") from error


def check_free(place: str | Path) -> None:
    """Refuses a place that `save_data` does not write to; ask before the work whose result it is to hold."""
    text = in_home(os.fspath(place))
    if text.startswith(minari.PREFIX):
        minari.check_free(text.removeprefix(minari.PREFIX))
    elif not text.endswith(".npz") and Path(text).suffix:
        raise InputError(f"a dataset cannot be written to '{place}'; accepted: an .npz file, a folder, or minari:NAME")
    elif Path(text).exists():
        raise InputError(f"'{place}' exists: nothing is written over; accepted: another name")


def save_data(data: Transitions, place: str | Path) -> None:
    """Writes a dataset where its place says: an .npz file, compressed; a folder that can be mapped; or minari:NAME.

    Errors: `InputError` for another place, and where something is already: nothing is written over.
    """
    check_free(place)
    text = in_home(os.fspath(place))
    if text.startswith(minari.PREFIX):
        minari.write(data, text.removeprefix(minari.PREFIX))
    elif text.endswith(".npz"):
        npz.write(data, Path(text))
    else:
        data.save(Path(text))


def _source(text: str, path: Path, entries: Sequence[str] | None) -> tuple[Source, int, str]:
    """What to read, how many bytes it has, and what it is known by."""
    if text.startswith(minari.PREFIX):
        found, folder = minari.read(text.removeprefix(minari.PREFIX), entries)
        return found, *_known([folder], entries)
    if path.is_dir():
        if (path / run.NAME).is_file():
            return _plain(run.read(path), entries), *_known([path / run.NAME], entries)
        if (path / "data" / "metadata.json").is_file():
            return minari.read(path, entries)[0], *_known([path / "data"], entries)
        raise InputError("the folder holds none; accepted: one that unipg wrote, a run with a replay buffer, or one of Minari's")
    if not path.is_file():
        raise InputError(f"does not exist; accepted: {', '.join(KINDS)}, a folder, or minari:NAME")
    if path.suffix not in KINDS:
        raise InputError(f"its name ends in '{path.suffix}'; {nearest(path.suffix, KINDS)}, a folder, or minari:NAME")
    if not path.stat().st_size:
        raise InputError("is empty: a file of 0 bytes; accepted: one with rows")
    if path.suffix in (".hdf5", ".h5"):
        return hdf5.read(path, entries), *_known([path], entries)
    return _plain((npz if path.suffix == ".npz" else parquet).read(path), entries), *_known([path], entries)


def _plain(source: Source, entries: Sequence[str] | None) -> Source:
    if entries is not None:
        raise InputError("entries are asked for, but its observations are one array; accepted: none")
    return source


def _known(places: Sequence[Path], entries: Sequence[str] | None) -> tuple[int, str]:
    """Bytes of files, and a checksum of names, sizes, times and a sample of what they hold."""
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*"))) if file.is_file()]
    found = hashlib.sha256(f"{_FORM} {entries}".encode())
    for file in files:
        stat = file.stat()
        found.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        with file.open("rb") as content:
            for k in range(_SAMPLES):
                content.seek(max(0, stat.st_size - _SAMPLE) * k // (_SAMPLES - 1))
                found.update(content.read(_SAMPLE))
    return sum(file.stat().st_size for file in files), found.hexdigest()[:16]


def _counted(source: Source, progress: Progress | None) -> Iterator[Piece]:
    """The pieces; whatever a library says of a damaged file is one line."""
    done, pieces = 0, iter(source.pieces)
    while True:
        try:
            piece = next(pieces, None)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"cannot be read from row {done} on: {one_line(error)}") from error
        if piece is None:
            return
        yield piece
        done += len(piece["action"]) if "action" in piece else 0
        if progress is not None:
            progress(done / max(1, source.rows))


def cache_folder() -> Path:
    """Where conversions are kept: `unipg/datasets` of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unipg" / "datasets"


def _converted(settled: Settled, source: Source, name: str, key: str) -> Transitions:
    """The mapped folder of what was converted before, or is now; another process that does the same is no harm."""
    target = cache_folder() / f"{name}-{key}"
    if not target.is_dir():
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        try:
            Transitions.settled(settled, source.card, unfinished)
            if not target.is_dir():
                unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            for left in target.parent.glob(f"{target.name}.*"):  # of processes that were killed
                if not _lives(left.name.split(".")[-1 if left.suffix != ".writing" else -2]):
                    shutil.rmtree(left, ignore_errors=True)
    return Transitions.open(target)


def _lives(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:
        pass
    return True
