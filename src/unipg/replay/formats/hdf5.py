"""Datasets in HDF5: D4RL's layout, flat arrays with stitched episodes; and robomimic's, a group for each demonstration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unipg.errors import InputError, missing_package, nearest, one_line
from unipg.replay.formats.base import Source, named, read_columns
from unipg.replay.pieces import PIECE, Piece
from unipg.replay.tables import Array

_DEMONSTRATION = re.compile(r"demo_(\d+)")


def read(path: Path, entries: Sequence[str] | None = None) -> Source:
    """Either layout, told by what is in the file. `entries`: of robomimic's observations; by default all that are vectors of numbers."""
    h5py = _library()
    try:
        with h5py.File(path, "r") as file:
            if "data" in file and any(_DEMONSTRATION.fullmatch(name) for name in file["data"]):
                return _demonstrations(path, file, entries)
            if entries is not None:
                raise InputError("entries are asked for, but its observations are one array; accepted: none")
            return _flat(path, file)
    except OSError as error:
        raise InputError(f"cannot be read as HDF5: {one_line(error)}") from None


def _library() -> Any:
    try:
        import h5py
    except ModuleNotFoundError as absent:
        raise missing_package("h5py", "offline", "a dataset in HDF5") from absent
    return h5py


def _flat(path: Path, file: Any) -> Source:
    """D4RL's. `timeouts` are rows after which another episode follows: with `next_observations` they are kept and truncated, without, what
    followed them is not known."""
    if "observations" not in file and "observation" not in file:
        top = ", ".join(list(file)[:8]) + " …" * (len(file) > 8) or "nothing"
        raise InputError(f"has {top} at its top; accepted: D4RL's observations, actions …, or robomimic's data/demo_0 …")
    shapes: dict[str, tuple[int, ...]] = {}
    file.visititems(lambda name, found: shapes.update({name: found.shape}) if hasattr(found, "shape") else None)
    columns, rows = read_columns(shapes)
    return Source(_flat_pieces(path, columns), rows, {"layout": "D4RL"})


def _flat_pieces(path: Path, columns: list[str]) -> Iterator[Piece]:
    with _library().File(path, "r") as file:
        for start in range(0, len(file[columns[0]]), PIECE):
            yield named({name: file[name][start : start + PIECE] for name in columns})


def _demonstrations(path: Path, file: Any, entries: Sequence[str] | None) -> Source:
    """robomimic's. `dones` terminate, as its own learners read them; a demonstration that ends without one is truncated."""
    group = file["data"]
    names = sorted((name for name in group if _DEMONSTRATION.fullmatch(name)), key=lambda name: int(name.removeprefix("demo_")))
    seen = group[names[0]].get("obs", {})
    sizes = {name: tuple(array.shape[1:]) or (1,) for name, array in seen.items() if array.ndim in (1, 2) and array.dtype != np.uint8}
    for name in entries or ():
        if name not in sizes:
            raise InputError(f"its observations have no vector '{name}'; {nearest(name, sizes)}")
    taken = sorted(sizes if entries is None else entries)
    if not taken:
        raise InputError(f"its observations are {', '.join(seen) or 'none'}, without a vector; accepted: data/demo_0/obs with vectors")
    told: dict[str, Any] = {"layout": "robomimic", "entries": [[name, list(sizes[name])] for name in taken]}
    if beside := {name: list(array.shape[1:]) for name, array in seen.items() if name not in taken}:
        told["unread"] = beside
    if "env_args" in group.attrs:
        told["environment"] = {"id": json.loads(group.attrs["env_args"]).get("env_name")}
    return Source(_demonstration_pieces(path, names, taken), sum(len(group[name]["actions"]) for name in names), told)


def _demonstration_pieces(path: Path, names: list[str], entries: list[str]) -> Iterator[Piece]:
    with _library().File(path, "r") as file:
        for name in names:
            demo = file["data"][name]
            rows = len(demo["actions"])
            columns = {"observation": _joined(demo["obs"], entries, rows, f"data/{name}/obs"), "action": demo["actions"][:]}
            if "next_obs" in demo:
                columns["next_observation"] = _joined(demo["next_obs"], entries, rows, f"data/{name}/next_obs")
            if "rewards" in demo:
                columns["reward"] = demo["rewards"][:]
            ended = demo["dones"][:] if "dones" in demo else np.zeros(rows, bool)
            cut = np.zeros(rows, bool)
            cut[-1:] = ended[-1:] == 0
            number = np.full(rows, int(name.removeprefix("demo_")))
            yield {**columns, "terminated": ended, "truncated": cut, "episode": number}


def _joined(group: Any, entries: list[str], rows: int, place: str) -> Array:
    """[N,O] entries side by side. `InputError` where they are not one for each action."""
    for name in entries:
        if name not in group or len(group[name]) != rows:
            has = f"{len(group[name])} rows" if name in group else "no rows"
            raise InputError(f"'{place}/{name}' has {has}; accepted: {rows}, one for each action")
    parts = [group[name][:] for name in entries]
    return np.concatenate([part[:, None] if part.ndim == 1 else part for part in parts], 1, dtype=np.float32, casting="unsafe")
