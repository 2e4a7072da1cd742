"""Values that a checkpoint may hold: tensors and plain values, so that reading one never runs code from it."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import numpy
import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.rollouts.base import Pickled

TAG = "__unipg__"
"""Key of a dictionary that stands for a value which is none of those that are written as they are."""
_AS_THEY_ARE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size, torch.device)


def encoded(value: Any, pickled: list[bytes], where: str = "") -> Any:
    """The value in tensors and plain values alone; `pickled` receives what can only be unpickled, to be kept elsewhere.

    Subclasses of numbers become numbers. Errors: `InputError` that names the place of a value of any other class.
    """
    if isinstance(value, Tensor) or type(value) in _AS_THEY_ARE:
        return value
    if type(value) is OrderedDict:  # of a module, with what it says of its versions
        same = OrderedDict((key, encoded(item, pickled, f"{where}.{key}")) for key, item in value.items())
        same.__dict__.update(value.__dict__)
        return same
    if type(value) is dict:
        items = [(encoded(key, pickled, where), encoded(item, pickled, f"{where}.{key}")) for key, item in value.items()]
        return {TAG: "dict", "items": items} if TAG in value else dict(items)
    if type(value) in (list, tuple):
        if all(type(item) in _AS_THEY_ARE for item in value):
            return value
        return type(value)(encoded(item, pickled, f"{where}[{number}]") for number, item in enumerate(value))
    if type(value) in (set, frozenset):
        return {TAG: type(value).__name__, "items": [encoded(item, pickled, where) for item in value]}
    if type(value) is deque:
        return {TAG: "deque", "items": [encoded(item, pickled, where) for item in value], "most": value.maxlen}
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
        flat = numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8)
        return {TAG: "array", "dtype": value.dtype.str, "shape": list(value.shape), "bytes": torch.from_numpy(flat.copy())}
    if isinstance(value, numpy.generic) and value.dtype.kind in "biufcSU":
        return value.item()
    if isinstance(value, str):
        return str.__str__(value)  # an Enum's own `str` is its name
    for plain in (int, float, complex, bytes):
        if isinstance(value, plain):
            return plain(value)  # type: ignore[arg-type]
    if isinstance(value, Pickled):
        pickled.append(value.data)
        return {TAG: "pickled", "number": len(pickled) - 1}
    raise InputError(
        f"the checkpoint cannot hold {where.lstrip('.') or 'the state'}, a {type(value).__module__}.{type(value).__qualname__}; accepted "
        "in what is saved: tensors, arrays, numbers, text, and lists, tuples, sets and dictionaries of them"
    )


def decoded(value: Any, pickled: list[Pickled]) -> Any:
    """What `encoded` was given."""
    if isinstance(value, OrderedDict):
        same = OrderedDict((key, decoded(item, pickled)) for key, item in value.items())
        same.__dict__.update(value.__dict__)
        return same
    if isinstance(value, dict):
        kind = value.get(TAG)
        if kind is None:
            return {decoded(key, pickled): decoded(item, pickled) for key, item in value.items()}
        if kind == "array":
            return value["bytes"].numpy().view(numpy.dtype(value["dtype"])).reshape(value["shape"]).copy()
        if kind == "pickled":
            return pickled[value["number"]]
        if kind == "dict":
            return {decoded(key, pickled): decoded(item, pickled) for key, item in value["items"]}
        items = [decoded(item, pickled) for item in value["items"]]
        if kind == "deque":
            return deque(items, value["most"])
        return {"set": set, "frozenset": frozenset}[kind](items)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value)(decoded(item, pickled) for item in value)
    return value
