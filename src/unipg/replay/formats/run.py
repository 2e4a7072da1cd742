"""The replay buffer of a run, as a dataset: its rows episode by episode, actions in the environment's units again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unipg.errors import InputError
from unipg.replay.formats.base import Source
from unipg.replay.pieces import PIECE, Piece
from unipg.replay.ring import NAME, Ring
from unipg.replay.tables import Array


def read(folder: Path, first: int | None = None) -> Source:
    """All rows that the buffer still holds, or, as they were gathered, the `first` so many. `gone` in the card: how many came before them.

    Errors: `InputError` for a run without a buffer or a model, which says what the units of its actions are.
    """
    ring = Ring.found(folder / NAME)
    try:
        config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["actions"]
    except (OSError, ValueError, KeyError):
        raise InputError("the run has no model yet, which says what the units of its actions are; accepted: a finished run") from None
    told = {"type": "discrete", "n": config["n"], "start": config["start"]} if "n" in config else {"type": config["type"]}
    if "low" in config:
        told = {"type": "box", **{name: config[name] for name in ("shape", "low", "high")}}
    card = {"layout": "run", "gone": ring.position - len(ring), "environment": {"id": ring.identity, "action": told}}
    rows = len(ring) if first is None else min(first, len(ring))
    return Source(_pieces(ring, rows, _outward(config)), rows, card)


def _pieces(ring: Ring, count: int, outward: Callable[[Array], Array]) -> Iterator[Piece]:
    episode = ring.draw(torch.arange(count), "episode")["episode"].numpy()
    order = torch.from_numpy(np.argsort(episode, kind="stable"))  # environments side by side take turns
    for start in range(0, count, PIECE):
        rows = {name: tensor.numpy() for name, tensor in ring.draw(order[start : start + PIECE]).items()}
        yield {**rows, "action": outward(rows["action"])}


def _outward(config: dict[str, Any]) -> Callable[[Array], Array]:
    """What the environment was given for the actions of a controller, by its description: in its bounds, in its numbering."""
    if config["type"] == "latent":
        raise InputError("its actions are latent: what the environment was given for them is not kept; accepted: another kind of actions")
    if "low" not in config:
        start = np.array(config.get("start", 0))
        return lambda action: action + start.astype(action.dtype)
    low, high = (
        np.array([limit if bound is None else bound for bound in config[side]]) for side, limit in (("low", -np.inf), ("high", np.inf))
    )
    bounded = np.isfinite(low) & np.isfinite(high)
    middle, half = (np.where(bounded, each, least) for each, least in ((low / 2 + high / 2, 0.0), (high / 2 - low / 2, 1.0)))
    return lambda action: (middle + half * action).clip(low, high).astype(config["dtype"])
