"""The settings of recipes before anything heavy is imported: YAML with bases and overrides, and every key with its default and meaning.

`settings.json` beside this file is written by `make docs` from the recipes' own types (`training/recipe.py`), which check everything else.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from unipg.errors import InputError, nearest, shown
from unipg.hub import in_home

LATER = 60.0
"""Seconds by which files of one checkout or installation may differ in age."""
KEYS = Path(__file__).with_name("settings.json")


@functools.cache
def every_key() -> dict[str, dict[str, dict[str, Any]]]:
    """By section (`training`, `policy.lora`, `algorithm.grpo`; "" for the recipe itself), each key's `type`, `default` and `meaning`; its
    `section` where it is one, and `accepted` where there are few values."""
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(KEYS.read_text(encoding="utf-8"))
    return found


def unknown_key(place: str, accepted: Iterable[str]) -> InputError:
    """The error for a key that does not exist."""
    return InputError(f"{place}: this key does not exist; {nearest(place.rpartition('.')[2], list(accepted))}")


def up_to_date() -> bool:
    """Whether no code is newer than the list of keys: whoever writes an algorithm runs it before `make docs`."""
    written = KEYS.stat().st_mtime + LATER
    return all(path.stat().st_mtime <= written for path in KEYS.parent.rglob("*.py"))


def check_settings(values: dict[str, Any], section: str = "", place: str = "") -> None:
    """Refuses keys and names that do not exist, and sections that are none."""
    keys = every_key()[section]
    for name, value in values.items():
        here = f"{place}.{name}" if place else str(name)
        if name not in keys:
            raise unknown_key(here, keys)
        key = keys[name]
        if here == "algorithm":
            _check_algorithm(value)
        elif "section" in key and value is not None:
            for number, part in enumerate(value) if isinstance(value, list) else [(-1, value)]:
                where = here if number < 0 else f"{here}[{number}]"
                if not isinstance(part, dict):
                    raise InputError(f"{where}: expected a section with keys, got {shown(part)}")
                check_settings(part, key["section"], where)
        elif isinstance(value, str) and "accepted" in key and value not in key["accepted"]:
            raise InputError(f"{here}: '{value}' does not exist; {nearest(value, key['accepted'])}")


def _check_algorithm(value: Any) -> None:
    known = {name.removeprefix("algorithm."): keys for name, keys in every_key().items() if name.startswith("algorithm.")}
    named = {"name": value} if isinstance(value, str) else value
    if not isinstance(named, dict) or "name" not in named:
        raise InputError("algorithm: give a name, or a mapping with `name` and hyper-parameters")
    name = str(named["name"])
    if ":" in name:  # anyone's: its class checks its settings
        return
    if name not in known:
        raise InputError(f"algorithm '{name}' does not exist; {nearest(name, known)}")
    for key in named:
        if key != "name" and key not in known[name]:
            raise unknown_key(f"algorithm.{key}", known[name])


def keys_of(section: str | None) -> dict[str, dict[str, dict[str, Any]]]:
    """The keys of a section and of those inside it; without a section, of the whole recipe.

    Errors: `InputError` for a section that does not exist.
    """
    known = every_key()
    if section is None:
        return {name: keys for name, keys in known.items() if not name.startswith("algorithm.")}
    section = f"algorithm.{section}" if f"algorithm.{section}" in known else section
    found = {name: keys for name, keys in known.items() if name == section or name.startswith(f"{section}.")}
    if not found or not section:
        close = difflib.get_close_matches(section, known, n=1)
        raise InputError(f"section '{section}' does not exist; {nearest(close[0] if close else section, [name for name in known if name])}")
    return found


def read_settings(path: Path | str, overrides: Iterable[str] | None = None) -> dict[str, Any]:
    """The plain values of a recipe, those of its `base` under them and `dotted.key=value` overrides on top."""
    values = _read(Path(path), ())
    for override in overrides or []:
        _override(values, override)
    return values


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() and path.parent != Path() else Path("recipes")
        known = [str(p) for p in sorted(folder.glob("*.yaml"))]
        raise InputError(f"the recipe '{path}' does not exist" + (f"; {nearest(str(path), known)}" if known else ""))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"'{path}'{where} is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"'{path}' is {'empty' if values is None else 'not a mapping of keys'}; a recipe starts with `algorithm:`")
    base = values.pop("base", None)
    if base is None:
        return values
    if path.resolve() in seen:
        raise InputError(f"'{path}' is its own base")
    return _merged(_read(path.parent / in_home(str(base)), (*seen, path.resolve())), values)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, section by section."""
    both = dict(under)
    for key, value in over.items():
        before = both.get(key)
        both[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everyone means it, and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' stands twice in a section", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_value(text: str, where: str) -> Any:
    """A YAML value from the command line."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = getattr(error, "problem", None)
        raise InputError(f"{where}: '{text[:80]}' is not valid YAML{f': {reason}' if reason else ''}") from error


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"override '{text}' is not of the form dotted.key=value")
    *path, last = key.split(".")
    place = values
    for name in path:
        if place.get(name) is None:
            place[name] = {}
        if isinstance(place[name], str) and name == "algorithm":
            place[name] = {"name": place[name]}
        if not isinstance(place[name], dict):
            raise InputError(f"override '{text}': '{name}' holds a value, not a section")
        place = place[name]
    place[last] = parse_value(value, f"override '{key}'")


def numbers_in(value: Any) -> Iterator[int | float]:
    """Every number in a value."""
    if isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
