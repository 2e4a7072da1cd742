"""Classes that people construct in Python: an argument that is misspelt, or of another type, is told as a recipe tells it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from unipg.errors import InputError, nearest, shown


class _Signature:
    """What `inspect` and editors show of a class: its fields, which they would not find behind `__new__`."""

    def __get__(self, instance: object, kind: type) -> inspect.Signature:
        if instance is not None:  # that of an object is its `__call__`'s
            raise AttributeError("__signature__")
        return _accepted(kind).signature


class CheckedArguments:
    """Base of dataclasses: constructing one, `dataclasses.replace` too, refuses arguments in one line.

    Errors: `InputError` for a name that is no argument, with the nearest; for too many values; for a value that is not of its type.
    """

    __signature__ = _Signature()

    if not TYPE_CHECKING:  # type checkers see the dataclass's own `__init__`

        def __new__(cls, *values: Any, **named: Any) -> Any:
            if values or named:  # not so where an object is copied or unpickled
                _check(cls, values, named)
            return super().__new__(cls)


class _Accepted(NamedTuple):
    signature: inspect.Signature
    names: tuple[str, ...]
    hints: Mapping[str, Any]
    open: bool
    """Whether there may be arguments without a name of their own."""


@functools.cache
def _accepted(kind: type) -> _Accepted:
    owner = next(base for base in kind.__mro__ if "__init__" in vars(base))
    signature = inspect.Signature()
    if owner is not object:
        whole = inspect.signature(kind.__init__)  # type: ignore[misc]
        signature = whole.replace(parameters=list(whole.parameters.values())[1:], return_annotation=inspect.Signature.empty)
    parameters = signature.parameters.values()
    written = vars(owner).get("__dataclass_params__")
    hints: dict[str, Any] = {}
    if written is not None and written.init:
        try:
            hints = typing.get_type_hints(kind)
        except Exception:  # of classes inside a function there may be no names to look up: their values are not judged
            hints = {}
    return _Accepted(
        signature,
        tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)),
        hints,
        any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters),
    )


def _check(kind: type, values: tuple[Any, ...], named: dict[str, Any]) -> None:
    accepted = _accepted(kind)
    given = dict(zip(accepted.names, values, strict=False))
    if not accepted.open:
        for name in named:
            if name not in accepted.names:
                raise InputError(f"{kind.__name__}: '{name}' does not exist; {nearest(name, accepted.names)}")
        if len(given) < len(values) or not given.keys().isdisjoint(named):
            try:
                accepted.signature.bind_partial(*values, **named)
            except TypeError as error:
                raise InputError(f"{kind.__name__}: {error}; accepted: {', '.join(accepted.names) or 'no values'}") from None
    for name, value in (given | named).items():
        hint = accepted.hints.get(name, Any)
        if type(value) is not hint and not fits(hint, value):
            options = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
            named_ones = [option for option in options if option is not type(None)]
            names = [one for option in named_ones for one in get_args(option)]
            if all(get_origin(option) is Literal for option in named_ones) and isinstance(value, str):
                raise InputError(f"{kind.__name__}: {name} '{value}' does not exist; {nearest(value, names)}")
            raise InputError(f"{kind.__name__}: {name} is {shown(value)}; expected {type_name(hint)}")


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a type; so is every value of one that can only be known by using it (lists of something, functions …)."""
    for option in get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,):
        if get_origin(option) is Literal:
            found = any(isinstance(value, type(one)) and value == one for one in get_args(option))
        elif not isinstance(option, type) or get_origin(option) is not None:
            return True
        elif option in (int, float):
            found = isinstance(value, Integral if option is int else Real) and not isinstance(value, bool)
        else:
            try:
                found = isinstance(value, option)
            except TypeError:  # a protocol that cannot be asked
                return True
        if found:
            return True
    return False


def type_name(hint: Any) -> str:
    """A type in a user's words."""
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " or ".join(str(a) for a in get_args(hint))
    if get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(o) for o in get_args(hint))
    if hint is Any:
        return "anything"
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (list, tuple):
        count = f"{len(inner)} " if origin is tuple and Ellipsis not in inner else ""
        return f"a list of {count}{_several(inner[0])}" if inner and inner[0] is not Any else "a list"
    if origin in (dict, Mapping):
        return f"a section of {_several(inner[1])}" if inner and inner[1] is not Any else "a section with keys"
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint)
    return plain or (hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", ""))


def _several(hint: Any) -> str:
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "sections"
    return {int: "whole numbers", float: "numbers", str: "texts"}.get(hint) or type_name(hint)
