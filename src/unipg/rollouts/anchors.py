"""Log-probabilities of given completions under the anchor: computed once, kept on disk, checked against what they were computed from."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unipg.errors import InputError
from unipg.files import write_file
from unipg.policies.base import Policy
from unipg.trajectories import Trajectories

Key = tuple[int, int]
"""Item, and number of its completion."""
BATCH_TOKENS = 16384
ANCHORS = "anchor-"
"""How the names of the files begin."""


class AnchorCache:
    """`[tokens]` log-probabilities of every given completion under a frozen policy, by item and number."""

    def __init__(self, log_probs: dict[Key, Tensor]) -> None:
        self.log_probs = log_probs

    def place(self, keys: Sequence[Key], mask: Tensor) -> Tensor:
        """[B,T] the kept values where `mask` is 1; NaN, which nothing may read, for rows that were not computed."""
        placed = torch.zeros(mask.shape)
        for row, key in enumerate(keys):
            kept = self.log_probs.get(key)
            placed[row, mask[row]] = torch.nan if kept is None else kept
        return placed

    @classmethod
    def of(
        cls,
        anchor: Policy,
        rows: Iterable[tuple[Key, Trajectories]],
        folder: Path,
        *,
        total: int,
        progress: Callable[[float], None] = lambda done: None,
    ) -> AnchorCache:
        """The kept values in `folder` if they were computed by this anchor on these rows, otherwise computed now and kept.

        The file's name is a fingerprint of the anchor's weights, its temperature and every row's tokens. `progress` is told the finished
        share of `total` rows. Errors: InputError for a completion that the anchor finds impossible (its log-probability is not finite).
        """
        rows = list(rows)
        fingerprint = _fingerprint(anchor, rows)
        path = folder / f"{ANCHORS}{fingerprint}.safetensors"
        kept = _read(path)
        if kept is None:
            kept = _computed(anchor, rows, total, progress)
            checksum = _checksum(kept)
            write_file(path, lambda place: save_file({"log_prob": kept}, place, {"sha256": checksum}))
        pieces = kept.split([int(row.mask.sum()) for _, row in rows])
        return cls({key: piece for (key, _), piece in zip(rows, pieces, strict=True)})


def _read(path: Path) -> Tensor | None:
    """The kept values; None where there are none, or where they are not what was written, which a warning says."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            kept: Tensor = file.get_tensor("log_prob")
            good = (file.metadata() or {}).get("sha256") == _checksum(kept)
    except (OSError, SafetensorError):
        good = False
    if not good:
        warnings.warn(f"'{path}' is damaged, or of an earlier version: the anchor's log-probabilities are computed again", stacklevel=3)
    return kept if good else None


def _checksum(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _fingerprint(anchor: Policy, rows: Sequence[tuple[Key, Trajectories]]) -> str:
    digest = hashlib.sha256(repr(getattr(anchor, "temperature", 1.0)).encode())
    state: dict[str, Any] = anchor.module.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for key, row in rows:
        digest.update(repr((key, row.action.tolist(), row.mask.tolist())).encode())
    return digest.hexdigest()[:24]


def _computed(anchor: Policy, rows: Sequence[tuple[Key, Trajectories]], total: int, progress: Callable[[float], None]) -> Tensor:
    """[sum of tokens] in the order of the rows; rows of similar length share a forward pass."""
    order = sorted(range(len(rows)), key=lambda i: rows[i][1].mask.shape[1])
    found: dict[int, Tensor] = {}
    begin = 0
    while begin < len(order):
        longest = rows[order[min(len(order), begin + 64) - 1]][1].mask.shape[1]
        chosen = order[begin : begin + max(1, min(64, BATCH_TOKENS // longest))]
        batch = Trajectories.join([rows[i][1] for i in chosen]).to(anchor.device)
        with torch.no_grad():
            log_prob = anchor.evaluate(batch).log_prob.float().cpu()
        for place, index in enumerate(chosen):
            values = log_prob[place][batch.mask[place].cpu()]
            if not bool(torch.isfinite(values).all()):
                item, number = rows[index][0]
                raise InputError(f"completion {number} of item {item} has probability 0 under the anchor: no KL to it is finite")
            found[index] = values
        begin += len(chosen)
        progress(begin / max(1, total))
    return torch.cat([found[i] for i in range(len(rows))])
