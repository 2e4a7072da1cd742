"""Running environments in numbers, so that restoring them runs no code from a file; and pickled, where that is not all there is to them.

An environment that is made again has the same objects in the same places. Where all that differs between it and a running one are numbers,
arrays, containers of them and random generators, these are its snapshot, and putting them into a new one gives the running one again.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import io
import math
import pickle
import random
import re
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import numpy as np

from unipg.errors import one_line

Node = list[Any]
"""`[kind, …]` of plain values and arrays."""
Place = tuple[Any, ...]
_NUMBERS = (type(None), bool, int, float, complex)
_FUNCTIONS = (types.BuiltinFunctionType, types.FunctionType)
_FIXED = (str, bytes, type, types.ModuleType, *_FUNCTIONS, np.dtype, np.ufunc, re.Pattern, enum.Enum, PurePath)
"""What stays as it is in a new environment, and must be the same there."""
_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_MISSING = object()
MOST_THINGS = 20_000
"""Objects, lists and arrays; a pickle of more is made in less time."""


class NotNumbers(Exception):
    """An environment is more than its numbers; the message names the first thing that is."""


class Snapshots:
    """Snapshots of running environments. `new`: environments of the same kind that were reset; the first snapshot is tried on them.

    Raises `NotNumbers` where such environments are more than numbers.
    """

    def __init__(self, new: Any) -> None:
        self._fixed: dict[Place, Any] = {}
        self._new: Any = new
        with _foreign_objects():
            _Walk(self._fixed, learns=True).node(new, ())

    def take(self, environments: Any) -> Node:
        """The numbers of `environments`. Raises `NotNumbers` where they are not all, or do not make new environments the same."""
        with _foreign_objects():
            found = _Walk(self._fixed).node(environments, ())
            if self._new is not None:
                put(found, self._new)
                if not _same(_Walk(self._fixed).node(self._new, ()), found):
                    raise NotNumbers("a new one with its numbers differs from it")
                self._new = None
        return found


def put(snapshot: Node, environments: Any) -> None:
    """Makes environments of the same kind, which were reset, those that the snapshot was taken of; it changes numbers and nothing else.

    Raises `NotNumbers` where their objects are not in the same places.
    """
    with _foreign_objects():
        _Put().value(snapshot, environments)


class Copies:
    """Single environments as they stand, saved once and brought back as often as wanted, in this process.

    In numbers where they are no more than that, else pickled; nothing of a file is unpickled. `new`: makes one that was reset.
    """

    def __init__(self, new: Callable[[], Any]) -> None:
        self._new = new
        self._snapshots: Snapshots | None = None
        self._numbers = True
        self._spare: list[Any] = []

    def save(self, environment: Any) -> Node | bytes:
        """Raises `NotNumbers` where it can be saved in neither way."""
        if self._numbers:
            try:
                if self._snapshots is None:
                    self._snapshots = Snapshots(self._new())
                return self._snapshots.take(environment)
            except NotNumbers:
                self._numbers = False
        try:
            return pickled(environment)
        except Exception as error:
            raise NotNumbers(one_line(error)) from error

    def back(self, saved: Node | bytes) -> Any:
        """An environment of its own that stands where the saved one stood, its random generators included."""
        if isinstance(saved, bytes):
            return pickle.loads(saved)
        environment = self._spare.pop() if self._spare else self._new()
        put(saved, environment)
        return environment

    def done(self, environments: Iterable[Any]) -> None:
        """Environments that nobody needs any more; those made for numbers are written over."""
        if self._numbers:
            self._spare.extend(environments)


@contextmanager
def _foreign_objects() -> Iterator[None]:
    """What they raise when they are looked at says that there is more to them."""
    try:
        yield
    except NotNumbers:
        raise
    except Exception as error:
        raise NotNumbers(one_line(error)) from error


class _Walk:
    """Goes through everything that is reachable from an object, each thing once."""

    def __init__(self, fixed: dict[Place, Any], learns: bool = False) -> None:
        self.fixed, self.learns = fixed, learns
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # as long as the numbers are: an id is taken again once its object is gone
        self.owners: dict[int, np.ndarray] = {}
        """Whose memory the arrays are in."""

    def node(self, value: Any, place: Place) -> Node:
        kind = type(value)
        if kind in _NUMBERS:
            return ["number", value]
        if isinstance(value, np.generic) and value.dtype.kind in "biufc":
            return ["scalar", np.array(value)]
        if isinstance(value, _FIXED) or _is_specification(kind) or (kind is np.ndarray and value.dtype.kind in "SU"):
            self._check(value, place)
            if kind is not types.FunctionType or not value.__closure__:
                return ["fixed"]
        if kind is types.MethodType:
            self._check((value.__func__, self.numbers.get(id(value.__self__), _MISSING)), place)
            return ["fixed"]
        if id(value) in self.numbers:
            return ["again", self.numbers[id(value)]]
        self._remember(value)
        if kind is types.FunctionType:
            cells = value.__closure__
            return ["function", [self.node(cell.cell_contents, (*place, name)) for cell, name in zip(cells, _free(value), strict=True)]]
        if kind is np.ndarray:
            return self._array(value, place)
        if kind is np.random.Generator and type(value.bit_generator).__name__ in _GENERATORS:
            return ["generator", type(value.bit_generator).__name__, value.bit_generator.state]
        if kind is np.random.RandomState:
            return ["legacy", value.get_state(legacy=False)]
        if kind is random.Random:
            return ["random", value.getstate()]
        if kind in (list, tuple, deque):
            items = [self.node(item, (*place, number)) for number, item in enumerate(value)]
            return [kind.__name__, items, getattr(value, "maxlen", None)]
        if kind is dict and all(type(key) in (*_NUMBERS, str) for key in value):
            return ["dict", [[key, self.node(item, (*place, key))] for key, item in value.items()]]
        if _is_plain(kind):
            attributes = [[name, self.node(item, (*place, name))] for name, item in vars(value).items()]
            return ["object", f"{kind.__module__}.{kind.__qualname__}", attributes]
        raise NotNumbers(f"{_name(place)} is a {kind.__module__}.{kind.__qualname__}")

    def _remember(self, value: Any) -> None:
        self.numbers[id(value)] = len(self.kept)
        self.kept.append(value)
        if len(self.kept) > MOST_THINGS:
            raise NotNumbers(f"it is made of more than {MOST_THINGS:,} things")

    def _check(self, value: Any, place: Place) -> None:
        if self.learns:
            self.fixed[place] = value
        elif not _unchanged(value, self.fixed.get(place, _MISSING)):
            raise NotNumbers(f"{_name(place)} is not what it is in a new one")

    def _array(self, value: np.ndarray, place: Place) -> Node:
        owner: Any = value
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        order = "C" if value.flags.c_contiguous else "F" if value.flags.f_contiguous else ""
        if value.dtype.kind not in "biufc" or not order or not isinstance(owner, np.ndarray):
            raise NotNumbers(f"{_name(place)} is an array of {value.dtype} that is a part of something else")
        if id(owner) in self.owners:
            raise NotNumbers(f"{_name(place)} shares its memory with another array")
        self.owners[id(owner)] = owner
        return ["array", np.array(value, order="F" if order == "F" else "C"), order]


class _Put:
    """Puts the nodes of a walk into objects, in the walk's order."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.used: set[int] = set()

    def value(self, node: Node, old: Any) -> Any:
        kind = node[0]
        if kind == "number":
            return node[1]
        if kind == "scalar":
            return node[1][()]
        if kind == "fixed":
            return old
        if kind == "again":
            return self.seen[node[1]]
        number = len(self.seen)
        self.seen.append(None)
        fresh = self._fresh(old)
        if kind == "object":
            return self._object(node, old, number, fresh)
        if kind == "function":
            return self._function(node, old, number)
        if kind in ("list", "tuple", "deque", "dict"):
            return self._container(node, old, number)
        self.seen[number] = self._array(node, old if fresh else None) if kind == "array" else _generator(node, old if fresh else None)
        return self.seen[number]

    def _fresh(self, old: Any) -> bool:
        """Whether nothing was put into the thing yet: what is one there may be two here."""
        before = id(old) in self.used
        self.used.add(id(old))
        return not before

    def _array(self, node: Node, old: Any) -> np.ndarray:
        array, order = node[1], node[2]
        alike = isinstance(old, np.ndarray) and (old.shape, old.dtype) == (array.shape, array.dtype) and old.flags.writeable
        if alike and old.base is None and (old.flags.c_contiguous if order == "C" else old.flags.f_contiguous):
            old[...] = array
            return old
        return np.array(array, order="F" if order == "F" else "C")

    def _container(self, node: Node, old: Any, number: int) -> Any:
        kind, items = node[0], node[1]
        if kind == "dict":
            before = old if type(old) is dict else {}
            same: dict[Any, Any] = {}
            self.seen[number] = same
            same.update((key, self.value(item, before.get(key))) for key, item in items)
            return same
        olds = list(old) if type(old).__name__ == kind else []
        found = (self.value(item, olds[place] if place < len(olds) else None) for place, item in enumerate(items))
        if kind == "tuple":
            self.seen[number] = tuple(found)
        else:
            self.seen[number] = [] if kind == "list" else deque(maxlen=node[2])
            self.seen[number].extend(found)  # it may hold itself
        return self.seen[number]

    def _function(self, node: Node, old: Any, number: int) -> Any:
        self.seen[number] = old
        for cell, item in zip(old.__closure__, node[1], strict=True):
            cell.cell_contents = self.value(item, cell.cell_contents)
        return old

    def _object(self, node: Node, old: Any, number: int, fresh: bool) -> Any:
        kind = type(old)
        if not fresh or not _is_plain(kind) or f"{kind.__module__}.{kind.__qualname__}" != node[1]:
            raise NotNumbers(f"a new one has no {node[1]} in the same place")
        self.seen[number] = old
        attributes = vars(old)
        found = {name: self.value(item, attributes.get(name)) for name, item in node[2]}
        attributes.clear()
        attributes.update(found)
        return old


def _is_plain(kind: type) -> bool:
    """Whether all that an object of the class holds is in its `__dict__`: no slots, and nothing that C code keeps in it."""
    classes = kind.__mro__[:-1]
    python = all(not each.__dict__.get("__slots__") and each.__flags__ & 1 << 9 for each in classes)
    return python and bool(kind.__dictoffset__) and kind.__basicsize__ <= _Plain.__basicsize__ and not kind.__itemsize__


class _Plain:
    """What an object takes whose state is its `__dict__`."""


def _is_specification(kind: type) -> bool:
    """Of Gymnasium's descriptions of how an environment was made: text that nothing must change."""
    return getattr(kind, "__module__", "") == "gymnasium.envs.registration"


def _unchanged(value: Any, before: Any) -> bool:
    if value is before:
        return not isinstance(value, types.BuiltinFunctionType) or isinstance(value.__self__, types.ModuleType | type(None))
    if type(value) is not type(before):
        return False
    if isinstance(value, types.FunctionType):
        return value.__code__ is before.__code__ and value.__defaults__ == before.__defaults__
    if isinstance(value, np.ndarray):
        return np.array_equal(value, before)
    return _is_specification(type(value)) or bool(value == before)


def _free(function: types.FunctionType) -> tuple[str, ...]:
    return function.__code__.co_freevars


def _generator(node: Node, old: Any) -> Any:
    """A random generator in the node's state: `old`, where it is one of the kind."""
    if node[0] == "random":
        plain = random.Random()
        plain.setstate(node[1])
        return plain
    if node[0] == "legacy":
        legacy = np.random.RandomState()
        legacy.set_state(node[1])
        return legacy
    name = node[1]
    if node[0] != "generator" or name not in _GENERATORS:
        raise NotNumbers(f"there is no random generator {name}")
    alike = type(old) is np.random.Generator and type(old.bit_generator).__name__ == name
    made = old if alike else np.random.Generator(getattr(np.random, name)())
    made.bit_generator.state = node[2]
    return made


def _name(place: Place) -> str:
    return ".".join(map(str, place)) or "it"


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def pickled(environments: Any) -> bytes:
    """The environments as they stand; `pickle.loads` restores them, and runs code to do so."""
    buffer = io.BytesIO()
    _pickler()(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(environments)
    return buffer.getvalue()


@functools.cache
def _pickler() -> type[pickle.Pickler]:
    import cloudpickle  # type: ignore[import-untyped]
    from gymnasium.utils import EzPickle

    class Pickler(cloudpickle.Pickler):
        """cloudpickle, but an `EzPickle` is saved with all it holds: by itself it keeps only its constructor's arguments."""

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, EzPickle):
                return copyreg.__newobj__, (type(obj),), obj.__dict__, None, None, _set_attributes  # type: ignore[attr-defined]
            return super().reducer_override(obj)

    return Pickler


def _set_attributes(obj: object, attributes: dict[str, Any]) -> None:
    obj.__dict__.update(attributes)
