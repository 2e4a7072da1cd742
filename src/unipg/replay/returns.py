"""Returns over several steps, from single steps as a ring holds them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.replay.ring import Ring
from unipg.replay.transitions import Transitions


class Steps(NamedTuple):
    """What follows each of N rows, up to `m` steps on: target = reward + factor · V(next_observation of `last`)."""

    reward: Tensor
    """[N] Σ_{k<m} discount^k reward_k"""
    factor: Tensor
    """[N] discount^m, and 0 where the last step terminated."""
    last: Tensor
    """[N] index of the last of the m rows, whose `next_observation` is the one to go on from."""


def n_step(kept: Ring | Transitions, index: Tensor, n: int, discount: float, streams: int = 1) -> Steps:
    """Discounted sums over at most `n` steps from the rows at `index` [N].

    `streams`: environments whose rows were appended in turn, so that what follows a row is `streams` rows on. A window ends with a step
    that terminated or was truncated, before a row of another episode (an environment that was begun again, a row that was left out), and
    with the newest rows that are kept; it has m ≤ n steps then, and its factor is discount^m.

    Errors: `InputError` for n or streams below 1 and a discount outside [0, 1]; `IndexError` for an index outside. Source: Sutton 1988.
    """
    if n < 1 or streams < 1 or not 0 <= discount <= 1:
        raise InputError(
            f"returns are over n = {n} steps with discount {discount} and {streams} streams; accepted: at least 1, from 0 to 1, at least 1"
        )
    start = index.numpy()
    at = start[:, None] + streams * np.arange(n)
    within = at < len(kept)
    rows = kept.draw(torch.from_numpy(np.where(within, at, start[:, None]).reshape(-1)), "reward", "terminated", "truncated", "episode")
    reward, terminated, truncated, episode = (column.numpy().reshape(at.shape) for column in rows.values())
    goes_on = within & (episode == episode[:, :1])
    goes_on[:, 1:] &= ~(terminated | truncated)[:, :-1]
    counts = np.logical_and.accumulate(goes_on, 1)
    steps = counts.sum(1)
    power = (discount ** np.arange(n + 1.0)).astype(reward.dtype)
    total = (np.where(counts, reward, 0) * power[:n]).sum(1)
    factor = np.where((terminated & counts).any(1), 0, power[steps])
    return Steps(*(torch.from_numpy(found) for found in (total, factor, start + streams * (steps - 1))))
