"""Whose an error is that comes up while environments run: theirs, which keeps its traceback; or what they gave, which gets one line."""

from __future__ import annotations

import math
import types
from numbers import Real
from typing import Any

import numpy as np

from unipg.errors import InputError, Interrupted, one_line, shown

_CARRIERS = ("gymnasium", "numpy", "contextlib", "copy", "unipg.rollouts", "unipg.networks.encoders")
"""Modules that only pass on what environments give: an error in nothing but these is of what was given."""
_WORLDS = "gymnasium.envs."
_MAKING = ("gymnasium.envs.registration",)
_RAISED_ELSEWHERE = "_raise_if_errors"
"""Where Gymnasium raises again, with its traceback told, what an environment in a process of its own has raised."""


class Unusable(TypeError):
    """What an environment gave and nobody can use; the message says what, and what is accepted."""


def number(reward: Any) -> float:
    """A reward as a number; None, as some environments say it, is NaN. `Unusable` for text, and for arrays of one number or more."""
    if reward is None:
        return math.nan
    if isinstance(reward, Real):
        return float(reward)
    array = np.asarray(reward)
    if array.shape or array.dtype.kind not in "fiub":
        raise Unusable(f"the reward is {shown(reward)}; accepted: a number")
    return float(array)


def check_shape(observation: Any, shape: tuple[int, ...] | None) -> None:
    """`Unusable` for an array of another shape than its space, which NumPy might repeat; None: whoever reads it looks."""
    if shape is not None and getattr(observation, "shape", shape) != shape:
        raise Unusable(f"the observation has the shape {list(observation.shape)}; accepted: {list(shape)}")


def check_given(error: Exception) -> None:
    """`Unusable` in place of an error that no environment's code has raised."""
    if not isinstance(error, Unusable | InputError) and not any(map(_owner, _frames(error))):
        raise Unusable(f"what it gave cannot be used ({one_line(error)}); accepted: what gymnasium.Env says of reset and step") from error


def blame(error: BaseException, name: str, where: str) -> None:
    """Called with an error that came up in environment `name`: what its own code raised is given the line where that was, and goes on as it
    is. `InputError` in its place where it gave what cannot be used, or meant to end the process.
    """
    if isinstance(error, InputError | Interrupted):
        return
    place = f"in environment '{name}', {where}"
    try:
        if isinstance(error, Exception):
            check_given(error)
    except Unusable as found:
        error = found
    if isinstance(error, Unusable):
        raise InputError(f"{place}: {error}") from error
    if not isinstance(error, SystemExit):
        error.add_note(place)
    elif "ours" not in map(_owner, _frames(error)):
        raise InputError(f"{place}: its code ends the process ({one_line(error)}); accepted: environments that end episodes") from error


def _frames(error: BaseException) -> list[types.FrameType]:
    found, at = [], error.__traceback__
    while at is not None:
        found.append(at.tb_frame)
        at = at.tb_next
    return found


def _owner(frame: types.FrameType) -> str:
    """Whose code a frame is: an environment's or its wrapper's (`world`), ours around it, or what carries things between (empty)."""
    module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_name
    if name == _RAISED_ELSEWHERE or (module.startswith(_WORLDS) and not module.startswith(_MAKING)):
        return "world"
    if any(module == carrier or module.startswith(f"{carrier}.") for carrier in _CARRIERS):
        return ""
    if module.startswith("unipg.") and not module.startswith("unipg.environments."):
        return "" if name in ("flatten", "flatten_one") else "ours"
    return "world"
