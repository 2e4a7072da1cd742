"""Every key of a recipe described from its types: what `unipg keys` shows and the first check of a recipe reads (`unipg/settings.json`)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from typing import Any, Literal, cast, get_args, get_origin

from unipg.algorithms.base import registered
from unipg.arguments import type_name
from unipg.critics.kinds import Critic, kinds
from unipg.training.recipe import Recipe

Sections = dict[str, dict[str, dict[str, Any]]]


def described() -> Sections:
    """By section, each key with its `type`, `default` and `meaning`; see `settings.every_key`."""
    found: Sections = {}
    _describe(Recipe, "", found, {})
    for name, kind in registered().items():
        hints = typing.get_type_hints(kind)
        found[f"algorithm.{name}"] = {
            f.name: _key(hints[f.name], f, f.metadata["help"] + (f" ({source})" if (source := f.metadata["source"]) else ""))
            for f in dataclasses.fields(kind)
        }
    for name, critic in kinds().items():
        _describe(critic, f"critic.{name}", found, {})
    return found


def _describe(kind: Any, section: str, found: Sections, seen: dict[Any, str]) -> None:
    """The keys of a dataclass; those of the sections inside it once for each type."""
    seen[kind] = section
    meanings, hints = _meanings(kind), typing.get_type_hints(kind)
    keys: dict[str, dict[str, Any]] = {}
    found[section] = keys
    for f in dataclasses.fields(kind):
        key = _key(hints[f.name], f, meanings.get(f.name, ""))
        inner = next(filter(None, map(_section, _options(hints[f.name]))), None)
        if inner is not None:
            path = f"{section}.{f.name}" if section else f.name
            if inner not in seen:
                _describe(inner, path, found, seen)
            key = {"type": "sections" if "list" in str(hints[f.name]) else "section", "section": seen[inner]}
            key["meaning"] = meanings.get(f.name) or inspect.cleandoc(inner.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        keys[f.name] = key


def _key(hint: Any, f: dataclasses.Field[Any], meaning: str) -> dict[str, Any]:
    default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    if isinstance(default, Critic):
        return {"type": "a kind, or a section with `kind`", "meaning": meaning, "default": default.kind, "accepted": list(kinds())}
    key: dict[str, Any] = {"type": type_name(hint), "meaning": meaning}
    if default is not dataclasses.MISSING:
        key["default"] = list(default) if isinstance(default, tuple) else default
    options = _options(hint)
    if all(get_origin(o) is Literal or o is type(None) for o in options):
        key["accepted"] = [value for o in options for value in get_args(o)]
    return key


def _options(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (typing.Union, types.UnionType) else [hint]


def _section(option: Any) -> Any:
    """The dataclass that an option is, or a list of; None for neither."""
    inner = get_args(option)[0] if get_origin(option) is list else option
    return inner if dataclasses.is_dataclass(inner) else None


def _meanings(kind: Any) -> dict[str, str]:
    """What stands behind each field of a dataclass and of those that it extends."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cast(type, base)))).body
        for field, after in itertools.pairwise(cast(ast.ClassDef, tree).body):
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(said, str):
                found[field.target.id] = " ".join(said.split())
    return found
