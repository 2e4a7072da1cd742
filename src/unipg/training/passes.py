"""Passes over a batch without gradient, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unipg.estimator.likelihoods import Reading
from unipg.policies.base import Policy
from unipg.trajectories import Evaluation, Trajectories


@torch.no_grad()
def said_of(
    policy: Policy,
    batch: Trajectories,
    tokens: int,
    rows: Tensor | None = None,
    *,
    value: bool = False,
    entropy: bool = False,
    readings: Sequence[Reading] = (),
) -> Evaluation:
    """[B,T] what a policy says of a batch, at most so many `tokens` at a time; 0 in rows that are left out."""
    chosen = torch.arange(len(batch), device=batch.mask.device) if rows is None else rows.nonzero().squeeze(-1)
    batch, size = batch.select(chosen), batch.mask.shape
    whole = Evaluation(*(torch.zeros(size, device=batch.mask.device) if asked else None for asked in (True, entropy, value)))  # type: ignore[arg-type]

    def put(all_rows: Tensor | None, piece: Tensor, index: Tensor) -> Tensor:
        all_rows = torch.zeros(size, dtype=piece.dtype, device=piece.device) if all_rows is None else all_rows.to(piece.dtype)
        all_rows[chosen[index], : piece.shape[1]] = piece
        return all_rows

    for index in policy.cuts(batch, tokens):
        now = policy.evaluate(batch.select(index).trim(), value=value, entropy=entropy, readings=readings)
        for name in ("log_prob", "entropy", "value"):
            if (read := getattr(now, name)) is not None:
                setattr(whole, name, put(getattr(whole, name), read, index))
        for reading, named in now.read.items():
            kept = whole.read.setdefault(reading, {})
            kept |= {name: put(kept.get(name), read, index) for name, read in named.items()}
    return whole
