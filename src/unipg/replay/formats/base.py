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
    "terminals": "terminated", "timeouts": "truncated",
}  # fmt: skip
"""D4RL's names."""
DONES = "dones"
KNOWN = (*ALIASES, *ALIASES.values(), "episode", DONES)
"""Names of columns that are read where a file has others too."""


@dataclass(frozen=True)
class Source:
    """Rows that can be read once, from the first to the last."""

    pieces: Iterable[Piece]
    rows: int
    """How many there are."""
    card: dict[str, Any] = field(default_factory=dict)


def named(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A piece's columns by our names. `dones`, of replay buffers, are ends of either kind: what is no time-out terminates."""
    rest = {name: values for name, values in columns.items() if name != DONES}
    found = {ALIASES.get(name, name): values for name, values in rest.items()}
    if len(found) < len(rest):
        raise InputError(f"columns {', '.join(columns)} name one column twice; accepted: {', '.join(ALIASES.values())}")
    if DONES in columns and "terminated" not in found:
        ended = np.asarray(columns[DONES]).astype(bool)
        found["terminated"] = ended & ~np.asarray(found.get("truncated", False)).astype(bool)
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
