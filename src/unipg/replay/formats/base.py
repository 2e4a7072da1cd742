"""What a format gives: pieces of columns, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unipg.errors import InputError, nearest
from unipg.networks.encoders import Flat, observation_of
from unipg.replay.pieces import Piece
from unipg.replay.tables import Array

ALIASES = {
    "observations": "observation", "next_observations": "next_observation", "actions": "action", "rewards": "reward",
    "terminals": "terminated", "terminations": "terminated", "timeouts": "truncated", "truncations": "truncated",
}  # fmt: skip
"""D4RL's names, and those of Minari's flags."""
DONES, EPISODES = "dones", "episode_terminals"
"""Ends of either kind: of replay buffers, where nothing says which terminate; of d3rlpy, beside those that do."""
KNOWN = (*ALIASES, *dict.fromkeys(ALIASES.values()), "episode", DONES, EPISODES)
"""Names of columns that are read."""
BESIDE = ("infos/", "metadata/")
"""How names begin of what is left alone."""


@dataclass(frozen=True)
class Source:
    """Rows that can be read once, from the first to the last."""

    pieces: Iterable[Piece]
    rows: int
    """How many there are."""
    card: dict[str, Any] = field(default_factory=dict)


def read_columns(shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[str], int]:
    """Which arrays of a file are columns, by names and shapes, and how many rows they have; `BESIDE` and other lengths are left alone.

    Errors: `InputError` for columns of different lengths, and for another array as long as they are: it may be a flag that is misspelt.
    """
    columns = [name for name in shapes if name in KNOWN]
    rows = {shapes[name][0] if shapes[name] else 0 for name in columns}
    if len(rows) > 1:
        told = ", ".join(f"{name} {list(shapes[name])}" for name in columns)
        raise InputError(f"its columns have different numbers of rows: {told}; accepted: as many of each")
    for name, shape in shapes.items():
        if name not in KNOWN and not name.startswith(BESIDE) and shape and (not rows or shape[0] in rows):
            raise InputError(
                f"unknown column '{name}' of a dataset; {nearest(name, KNOWN)}, and infos/… and metadata/…, which are left alone"
            )
    return columns, rows.pop() if rows else 0


def named(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A piece's columns by our names. `dones` are ends of either kind: what is no time-out terminates. What `episode_terminals` ends and
    does not terminate is truncated."""
    rest = {name: np.asarray(values) for name, values in columns.items() if name not in (DONES, EPISODES)}
    found = {ALIASES.get(name, name): values for name, values in rest.items()}
    if len(found) < len(rest):
        raise InputError(f"columns {', '.join(columns)} name one column twice; accepted: {', '.join(dict.fromkeys(ALIASES.values()))}")
    if DONES in columns and "terminated" not in found:
        done = np.asarray(columns[DONES])
        cut = found.get("truncated", np.zeros(done.shape, bool)).reshape(done.shape).astype(bool)
        found["terminated"] = np.where(cut, np.zeros_like(done), done)  # the numbers themselves, so that one that is no flag is seen
    if EPISODES in columns:
        ended = np.asarray(columns[EPISODES])
        cut = found.get("truncated", np.zeros(ended.shape, bool)).reshape(ended.shape)
        found["truncated"] = np.where(cut == 0, ended, cut)
    return found


def space_told(space: Any) -> dict[str, Any]:
    """A Gymnasium space of actions in plain values: bounds, null for none; or what is counted, and from where."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        bounds = {
            side: [float(b) if np.isfinite(b) else None for b in bound.reshape(-1)]
            for side, bound in (("low", space.low), ("high", space.high))
        }
        return {"type": "box", "shape": list(space.shape), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "discrete", "n": int(space.n), "start": int(space.start)}
    return {"type": type(space).__name__, "shape": list(space.shape or ())}


def chosen(space: Any, entries: Sequence[str] | None, what: str) -> Any:
    """A space of observations with those `entries` of a Dict alone, in sorted order, as controllers read a Dict; None: all of them."""
    from gymnasium import spaces

    if entries is None:
        return space
    if not isinstance(space, spaces.Dict):
        raise InputError(f"entries {', '.join(entries)} are asked for, but {what} are {space}; accepted: none")
    for name in entries:
        if name not in space.spaces:
            raise InputError(f"{what} have no entry '{name}'; {nearest(name, space.spaces)}")
    return spaces.Dict({name: space[name] for name in entries})


def flattener(space: Any, what: str) -> tuple[Callable[[Any], Array], list[list[Any]]]:
    """What turns [N,…] observations of a space into rows as controllers store them, and the entries in their order with their sizes."""
    told = observation_of(space, what=what)
    if told["type"] == "image":
        last = told["channels"] == "last"
        return lambda images: np.ascontiguousarray(np.moveaxis(images, -1, 1) if last else images), [["image", list(told["shape"])]]
    encoder = Flat(told)
    return encoder.flatten, [[leaf.name, list(leaf.shape)] for leaf in encoder.leaves()]
