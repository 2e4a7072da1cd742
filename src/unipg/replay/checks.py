"""What ruins offline learning and can be seen in the rows: each finding is one line with its place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unipg.errors import InputError, nearest
from unipg.networks.encoders import encoder_from
from unipg.replay.cards import Episodes, References, digest, environment_of, rewarded
from unipg.replay.pieces import PIECE
from unipg.replay.tables import Array
from unipg.replay.transitions import Transitions

NEARLY = 1e-4
"""Standard deviation, in units of the mean's size, below which a number hardly moves; and what two observations may differ by that are
one, in units of a number's standard deviation: rounding."""
LARGE, SMALL = 100.0, 0.01
"""Rewards whose largest size is beyond these are in a unit that no method's defaults are for."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or looks so."""

    kind: str
    """By which it can be ignored: a name of `KINDS`."""
    where: str
    """Row, episode or column."""
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.text}"


@dataclass(frozen=True)
class _Seen:
    """A dataset, its episodes, what is known of its environment, and the spread of its observations."""

    data: Transitions
    episodes: Episodes
    environment: Mapping[str, Any]
    mean: Array
    std: Array

    @property
    def horizon(self) -> int | None:
        """Steps after which the environment cuts an episode, where that is known."""
        return self.environment.get("horizon")


def check(data: Transitions, environment: Mapping[str, Any] | None = None, ignore: tuple[str, ...] = ()) -> list[Finding]:
    """All findings, but for kinds to be ignored. `environment`: what is known of it (`horizon`, `action`), over what the card tells;
    `observation`, `action` as `training.collecting.environment_told` has them.

    Errors: `InputError` for a kind that does not exist.
    """
    for kind in ignore:
        if kind not in KINDS:
            raise InputError(f"findings of the kind '{kind}' do not exist; {nearest(kind, KINDS)}")
    known = {**environment_of(data.card), **(environment or {})}
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is a finding
        seen = _Seen(data, Episodes.of(data), known, *_moments(data.column("observation")))
        return [finding for kind, look in KINDS.items() if kind not in ignore for finding in look(seen)]


def misfit(action: Array, told: Mapping[str, Any]) -> str | None:
    """What actions [N,…] `are` or `have` that an environment's do not, as a card or `policies.spaces.described` tells of these; None where
    they are alike, or nothing is known."""
    real = "low" in told
    if not (real or "n" in told or str(told.get("type")).lower().replace("_", "") in ("multidiscrete", "multibinary")):
        return None
    shape = list(told.get("shape", ()))
    fits = math.prod(shape) == math.prod(action.shape[1:])
    if real == (action.dtype.kind == "i"):
        whole = fits and not real and all((action[piece] % 1 == 0).all() for piece in _pieces(len(action)))
        return f"are {action.dtype}; accepted: {'real' if real else 'whole'} numbers" + (
            ", as actions.astype('int64') makes of these" * whole
        )
    return None if fits else f"have shape {list(action.shape[1:])}; accepted: {shape}"


def _pieces(rows: int) -> Iterator[slice]:
    for start in range(0, rows, PIECE):
        yield slice(start, min(rows, start + PIECE))


def _in_all(count: int, what: str = "rows") -> str:
    return f" ({count} {what} in all)" if count > 1 else ""


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation [O] of each number of observations where it is finite, float64, from differences to the first row."""
    first = np.where(np.isfinite(values[0]), values[0], 0).astype(np.float64)
    total, squares, count = np.zeros_like(first), np.zeros_like(first), np.zeros_like(first)
    for piece in _pieces(len(values)):
        off = values[piece] - first
        finite = np.isfinite(off)
        off = np.where(finite, off, 0)
        total, squares, count = total + off.sum(0), squares + (off**2).sum(0), count + finite.sum(0)
    count = np.where(count, count, np.nan)  # nothing is known of a number that never is finite
    mean = total / count
    return first + mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


def _finite(seen: _Seen) -> Iterator[Finding]:
    for name, (count, row) in seen.data.card.get("nonfinite", {}).items():
        yield Finding("finite", f"row {row}", f"column '{name}' is not finite{_in_all(count)}")


def _card(seen: _Seen) -> Iterator[Finding]:
    card = seen.data.card
    if "sha256" in card and card["sha256"] != digest(seen.data):
        yield Finding(
            "card",
            "card",
            "its sha256 is not that of the rows: they were changed after the card was written, and the returns that it tells may be wrong",
        )
    references = References.of(card)
    if references and references.horizon and seen.horizon and references.horizon != seen.horizon:
        yield Finding(
            "card", "card", f"its reference returns are of episodes of {references.horizon} steps, the environment's have {seen.horizon}: "
            "scores would be of another scale"
        )  # fmt: skip


def _timeouts(seen: _Seen) -> Iterator[Finding]:
    """Episodes that terminated just when their time was up."""
    found = seen.episodes
    longest = int(found.length.max())
    limit = seen.horizon or longest
    at = (found.length == limit).nonzero()[0]
    ended = at[found.ends[at] == 2]
    # one or two of many may well have terminated in their last step
    enough = 2 * len(ended) > len(at) if seen.horizon else len(ended) == len(at) > 2 and longest > 1 and not (found.ends == 1).any()
    if len(ended) and enough:
        limited = f"the limit of {limit} steps" if seen.horizon else f"{limit} steps (none lasted longer, none was truncated)"
        row = found.start[ended[0]] + limit - 1
        yield Finding(
            "timeouts", f"row {row}", f"{len(ended)} of {len(at)} episodes that lasted {limited} are marked as terminated: time-outs "
            "taken for terminals? A value of 0 would be learned for what follows"
        )  # fmt: skip


def _across(seen: _Seen) -> Iterator[Finding]:
    """Next observations that are not those of the same episode's next row, or are the first of another episode."""
    data, found = seen.data, seen.episodes
    if (found.length == 1).all():  # nothing can be said of their order
        return
    observation, after = data.column("observation"), data.column("next_observation")
    last = np.zeros(len(data), bool)
    last[found.start + found.length - 1] = True
    wrong, crossing = [], []
    for piece in _pieces(len(data) - 1):
        following = slice(piece.start + 1, piece.stop + 1)
        apart = np.abs(after[piece] - observation[following].astype(np.float64))
        known = np.isfinite(apart)  # of a number that is not finite nothing can be said
        off = known & (apart > NEARLY * (seen.std + np.abs(seen.mean)))
        same, known = ~off.reshape(len(off), -1).any(1), known.reshape(len(off), -1).all(1)
        ends = last[piece]
        wrong.append((~ends & ~same).nonzero()[0] + piece.start)
        crossing.append((ends & same & known & ~data.column("terminated")[piece]).nonzero()[0] + piece.start)
    for rows, text in (
        (crossing, "its next observation is the first of another episode{}; a value would be learned from there"),
        (wrong, "its next observation is not the observation of the episode's next row{}"),
    ):
        if count := sum(map(len, rows)):
            yield Finding("across", f"row {np.concatenate(rows)[0]}", text.format(_in_all(count)))


def _lengths(seen: _Seen) -> Iterator[Finding]:
    found, horizon = seen.episodes, seen.horizon
    if horizon and (long := (found.length > horizon).nonzero()[0]).size:
        yield Finding(
            "lengths", f"episode {long[0]} (row {found.start[long[0]]})", f"has {found.length[long[0]]} steps, more than the environment's "
            f"{horizon}{_in_all(len(long), 'episodes')}: ends are missing, or mean something else"
        )  # fmt: skip
    elif len(found.length) == 1 and (not found.ends[0] or seen.data.card.get("unmarked")):
        yield Finding("lengths", "row 0", f"no episode ever ends: all {len(seen.data)} rows are one; where the next begins is not known")
    elif len(seen.data) > 1 and (found.length == 1).all() and (horizon or 2) > 1:
        yield Finding(
            "lengths", "row 0", f"all {len(seen.data)} episodes have one step: rows out of order, or ends that mean something else?"
        )
    elif (horizon or 2) > 1 and 2 * len(single := ((found.length == 1) & (found.ends != 2)).nonzero()[0]) > len(found.length) > 1:
        yield Finding(
            "lengths", f"row {found.start[single[0]]}", f"{len(single)} of {len(found.length)} episodes are one step that does not "
            "terminate: rows out of order, or ends that mean something else?"
        )  # fmt: skip


def _observations(seen: _Seen) -> Iterator[Finding]:
    """As `train` refuses them."""
    shape, told = seen.data.column("observation").shape[1:], seen.environment.get("observation")
    try:
        wanted = shape if told is None else tuple(encoder_from(told, torch.Generator()).stored.shape)
    except (KeyError, TypeError, ValueError):  # a card of somebody else's, who tells it in other words
        return
    if shape != wanted:
        yield Finding("observations", "column 'observation'", f"has shape {list(shape)}; the environment's have {list(wanted)}")


def _actions(seen: _Seen) -> Iterator[Finding]:
    told, action = seen.environment.get("action", {}), seen.data.column("action")
    if (why := misfit(action, told)) is not None:
        yield Finding("actions", "column 'action'", f"the actions {why}")
        return
    if action.dtype.kind == "f" and "low" in told:
        low, high = (
            np.array([side if bound is None else bound for bound in told[name]]) for name, side in (("low", -np.inf), ("high", np.inf))
        )
        half = np.where(np.isfinite(high - low), (high - low) / 2, 1.0)
        least, most = low - NEARLY * half, high + NEARLY * half
        bounds = f"[{', '.join(f'{b:g}' for b in low)}] to [{', '.join(f'{b:g}' for b in high)}]"
    elif action.dtype.kind == "i" and "n" in told:
        least, most = np.array(told["start"]), np.array(told["start"] + told["n"] - 1)
        bounds = f"{least} to {most}"
    else:
        return
    if action.ndim > 1:
        least, most = least.reshape(action.shape[1:]), most.reshape(action.shape[1:])
    outside = 0
    first, largest = -1, np.zeros(least.shape)
    for piece in _pieces(len(action)):
        values = action[piece]
        off = ((values < least) | (values > most)).reshape(len(values), -1).any(1)
        if off.any() and first < 0:
            first = piece.start + int(off.argmax())
        outside += int(off.sum())
        largest = np.maximum(largest, np.abs(values).max(0))
    if outside:
        shown = np.array2string(action[first], precision=4)
        yield Finding("actions", f"row {first}", f"the action {shown} is outside {bounds}{_in_all(outside)}")
    elif action.dtype.kind == "f" and (largest <= 1 + NEARLY).all() and (np.isfinite(half) & (np.maximum(-low, high) > 1.05)).any():
        yield Finding(
            "actions", "column 'action'", f"no action is larger than {float(largest.max()):.4g}, and the bounds are {bounds}: are they "
            "in units of the bounds instead of the environment's?"
        )  # fmt: skip


def _constant(seen: _Seen) -> Iterator[Finding]:
    mean, std = seen.mean.reshape(-1), seen.std.reshape(-1)
    for what, where in (("constant", std == 0), ("nearly constant", (std > 0) & (std < NEARLY * np.abs(mean)))):
        at = where.nonzero()[0]
        if len(at) and seen.data.column("observation").dtype != np.uint8:
            shown = ", ".join(f"{k} ({mean[k]:.4g} ± {std[k]:.2g})" for k in at[:8]) + (" …" if len(at) > 8 else "")
            risk = "" if what == "constant" else "; normalised, its rounding becomes a signal"
            yield Finding("constant", "column 'observation'", f"{what} in the dimensions {shown}{risk}")
    action = seen.data.column("action")
    if len(action) > 1:
        low, high = action.min(0), action.max(0)
        if len(at := (np.atleast_1d(low == high)).nonzero()[0]):
            yield Finding("constant", "column 'action'", f"constant in the dimensions {', '.join(map(str, at.tolist()))}")


def _duplicates(seen: _Seen) -> Iterator[Finding]:
    data, found = seen.data, seen.episodes
    known: dict[bytes, int] = {}
    pairs = []
    columns = [data.column(name) for name in ("observation", "action", "reward")]
    for number, (start, length) in enumerate(zip(found.start.tolist(), found.length.tolist(), strict=True)):
        if length == 1:  # a small world has the same step often
            continue
        content = hashlib.blake2b(digest_size=16)
        for column in columns:
            content.update(np.ascontiguousarray(column[start : start + length]).data)
        if (earlier := known.setdefault(content.digest(), number)) != number:
            pairs.append((number, start, earlier))
    if pairs:
        number, start, earlier = pairs[0]
        yield Finding("duplicates", f"episode {number} (row {start})", f"is episode {earlier} again{_in_all(len(pairs), 'episodes')}")


def _rewards(seen: _Seen) -> Iterator[Finding]:
    reward = seen.data.column("reward")
    reward = reward[np.isfinite(reward)]
    if not (rewarded(seen.data) and len(reward)):
        return
    low, high = float(reward.min()), float(reward.max())
    # where episodes differ in length, or end, a reward of one value tells the long ones from the short
    same = low == 0 or not ((seen.episodes.ends == 2).any() or np.ptp(seen.episodes.length))
    if low == high and len(reward) > 1 and same:
        yield Finding("rewards", "column 'reward'", f"all rewards are {low:g}")
    elif not SMALL <= (most := max(-low, high)) <= LARGE:
        yield Finding(
            "rewards", "column 'reward'", f"the largest reward is of size {most:.3g}; defaults of learning rates and temperatures are for "
            "about 1: set dataset.reward_scale"
        )  # fmt: skip


KINDS: dict[str, Callable[[_Seen], Iterator[Finding]]] = {
    "finite": _finite,
    "card": _card,
    "timeouts": _timeouts,
    "across": _across,
    "lengths": _lengths,
    "observations": _observations,
    "actions": _actions,
    "constant": _constant,
    "duplicates": _duplicates,
    "rewards": _rewards,
}
"""What is looked for."""
