"""Kinds of actions by name: of a space, and of a saved policy's description."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from unipg.errors import InputError, nearest, shown
from unipg.policies.actions import (
    Actions,
    BoundedActions,
    BoundedSpreadActions,
    BoxActions,
    DeterministicActions,
    DiscreteActions,
    GreedyActions,
    Kind,
    LatentActions,
    MultiBinaryActions,
    MultiDiscreteActions,
    SpreadActions,
    SquashedActions,
)
from unipg.policies.mixtures import MixtureActions, SquashedMixtureActions

if TYPE_CHECKING:
    import gymnasium

_KINDS: dict[str, type[Actions]] = {
    kind.type: kind
    for kind in (
        DiscreteActions,
        GreedyActions,
        MultiDiscreteActions,
        MultiBinaryActions,
        BoxActions,
        BoundedActions,
        BoundedSpreadActions,
        SpreadActions,
        SquashedActions,
        LatentActions,
        DeterministicActions,
        MixtureActions,
        SquashedMixtureActions,
    )
}
_OF_A_BOX: dict[str, type[BoxActions]] = {
    "auto": BoxActions,
    "gaussian": BoxActions,
    "spread": SpreadActions,
    "squashed": SquashedActions,
    "bounded": BoundedActions,
    "bounded_spread": BoundedSpreadActions,
    "latent": LatentActions,
    "deterministic": DeterministicActions,
    "mixture": MixtureActions,
    "squashed_mixture": SquashedMixtureActions,
}


def kinds_with(what: Literal["has_entropy", "has_kl"]) -> str:
    """The kinds of real actions that have it, for messages."""
    return ", ".join(name for name, kind in _OF_A_BOX.items() if name != "auto" and getattr(kind, what))


def actions_of(space: gymnasium.Space, kind: Kind = "auto", **own: Any) -> Actions:
    """The actions of ONE environment's space: Discrete, MultiDiscrete, MultiBinary, or a Box of real numbers.

    `kind` says what is made of it. `greedy` wants Discrete, all others but `auto` a Box; `own`: settings of the kind itself. A bound that
    is the largest number of the space's dtype, or its negative, is no bound. Anything else is an `InputError`.
    """
    from gymnasium import spaces

    if kind not in get_args(Kind):
        raise InputError(f"actions of the kind '{kind}' do not exist; {nearest(kind, get_args(Kind))}")
    if isinstance(space, spaces.Discrete) and kind in ("auto", "greedy"):
        discrete = GreedyActions if kind == "greedy" else DiscreteActions
        return discrete(int(space.n), int(space.start), str(space.dtype))
    if isinstance(space, spaces.MultiDiscrete) and kind == "auto":
        counts, start = (tuple(map(int, np.ravel(values))) for values in (space.nvec, space.start))
        return MultiDiscreteActions(counts, start, tuple(space.shape), str(space.dtype))
    if isinstance(space, spaces.MultiBinary) and kind == "auto":
        return MultiBinaryActions(tuple(space.shape), str(space.dtype))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and kind in _OF_A_BOX:
        most = float(np.finfo(space.dtype).max)
        low, high = (
            tuple(math.copysign(math.inf, b) if abs(b) >= most else b for b in map(float, bound.reshape(-1)))
            for bound in (space.low, space.high)
        )
        return _OF_A_BOX[kind](tuple(space.shape), low, high, str(space.dtype), **own)
    accepted = {"auto": "Discrete, MultiDiscrete, MultiBinary, or a Box of real numbers", "greedy": "Discrete"}
    policy = "" if kind == "auto" else f", of which a {kind} policy can make nothing"
    raise InputError(f"the environment's actions are {space}{policy}; accepted: {accepted.get(kind, 'a Box of real numbers')}")


def described(actions: Actions) -> dict[str, Any]:
    """Plain values that `actions_from` reads; a bound that is infinite, which JSON has no word for, is null."""
    values = {each.name: getattr(actions, each.name) for each in fields(actions)}  # type: ignore[arg-type]
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    for side in ("low", "high"):
        if side in values:
            values[side] = [b if math.isfinite(b) else None for b in values[side]]
    return {"type": actions.type, **values}


def told(actions: Actions) -> str:
    """In words, for messages: its kind, and all that tells it from others of that kind. Bounds that are the same everywhere come once."""
    values = described(actions)
    kind = "gaussian" if values.pop("type") == BoxActions.type else actions.type.replace("_", " ")
    for name, value in values.items():
        if name in ("low", "high", "start", "counts") and isinstance(value, list) and len(set(value)) == 1:
            values[name] = value[0]
    each = (f"{name} {value if isinstance(value, str) else 'none' if value is None else shown(value)}" for name, value in values.items())
    return f"{kind} actions ({', '.join(each)})"


def actions_from(type: str, **values: Any) -> Actions:
    """What `described` wrote. Raises KeyError or TypeError for anything else."""
    kind = _KINDS[type]
    if issubclass(kind, BoxActions):
        values["dtype"]  # without it, bounds were no units
        for side, limit in (("low", -math.inf), ("high", math.inf)):
            values[side] = [limit if b is None else b for b in values[side]]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
