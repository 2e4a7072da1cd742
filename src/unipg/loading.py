"""Python callables by dotted path: verifiers, tools, divergences, strata of anyone's."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import types
from collections.abc import Callable
from typing import Any

from unipg.errors import InputError, nearest, one_line


def callable_named(spec: str, what: str) -> Callable[..., Any]:
    """The callable that `package.module:function` or `package.module.function` names; modules of the current folder are found too.

    `what` says in errors what it is for. Errors: `InputError` with the nearest names for an unknown module or attribute, for a module that
    fails while it is imported, for a class, and for what cannot be called.
    """
    module_name, _, path = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if not module_name or not path:
        raise InputError(f"unknown {what} {spec!r}; accepted: package.module:function")
    found: Any = module_named(module_name, f"{what} {spec!r}")
    for part in path.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name))]
            raise InputError(f"{what} {spec!r}: '{module_name}' has no '{part}'; {nearest(part, public)}")
        found = getattr(found, part)
    if isinstance(found, type) or not callable(found):
        raise InputError(f"{what} {spec!r} is a {type(found).__name__}; it must be a function")
    function: Callable[..., Any] = found
    return function


def module_named(name: str, who: str) -> types.ModuleType:
    """The module of that dotted name, of the current folder too; `who` begins every error."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # a console script does not search the current folder; last, so that it shadows nothing
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(f"{who}: importing '{name}' failed: {one_line(error)}") from error
        parent, _, last = error.name.rpartition(".")
        path = getattr(sys.modules.get(parent), "__path__", []) if parent else [folder]
        hint = nearest(last, [module.name for module in pkgutil.iter_modules(path)])
        where = f"in '{parent}'" if parent else "installed or in the current folder"
        raise InputError(f"{who}: there is no module '{last}' {where}; {hint}") from error
    except Exception as error:
        raise InputError(f"{who}: importing '{name}' failed: {one_line(error)}") from error
