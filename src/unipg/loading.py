"""Python callables by dotted path: verifiers, tools, divergences, strata of anyone's; and values that are given in place of a name."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from unipg.errors import InputError, nearest, one_line

IN_MEMORY = "in memory: "
"""How the name of a value begins that no other process could find."""


class Live(str):
    """The name of a Python value, with the value: a recipe takes it wherever it takes the name, and records the name alone."""

    value: Any

    def __new__(cls, name: str, value: Any) -> Live:
        live = super().__new__(cls, name)
        live.value = value
        return live

    def __deepcopy__(self, memo: dict[int, Any]) -> Live:
        return self  # a data set, or a function with a model behind it


def live_function(function: Callable[..., Any]) -> Live:
    """A function in place of `package.module:function`, which it is called where an import would find it."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if module and path and module != "__main__":
        found: Any = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is function:
            return Live(f"{module}:{path}", function)
    return Live(IN_MEMORY + (path or type(function).__qualname__).rpartition("<locals>.")[2], function)


def name_of(function: Any) -> str:
    """What messages call a function: its name, or where a nameless one is written."""
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__qualname__", None) or getattr(function, "name", type(function).__qualname__)).rpartition("<locals>.")[2]
    code = getattr(function, "__code__", None)
    if name.rpartition(".")[2] != "<lambda>" or code is None:
        return name
    return f"the lambda in line {code.co_firstlineno} of {os.path.basename(code.co_filename)}"


def check_named(spec: str, what: str) -> None:
    """Refuses the name of a value that was in the memory of another process."""
    if spec.startswith(IN_MEMORY) and not isinstance(spec, Live):
        raise InputError(
            f"{what} '{spec}' was a Python value of the process that began this run, and is in no file; accepted: unipg.train(…) with the "
            "same value, and resume=True to go on"
        )


def callable_named(
    spec: str, what: str, *, classes: bool = False, names: Iterable[str] = (), fits: Callable[[Any], bool] = callable
) -> Callable[..., Any]:
    """The callable that `package.module:function` or `package.module.function` names; modules of the current folder are found too.

    `what` says in errors what it is for; `names`: what is accepted beside such a path; `fits`: which of a module's attributes are offered.
    Errors: `InputError` with the nearest names for an unknown name, module or attribute, for a module that fails while it is imported, for
    a class (but with `classes`), and for what cannot be called.
    """
    check_named(spec, what)
    if isinstance(spec, Live):
        live: Callable[..., Any] = spec.value
        return live
    module_name, _, path = spec.partition(":") if ":" in spec else spec.rpartition(".")
    if not module_name or not path:
        raise InputError(f"unknown {what} {spec!r}; {nearest(spec, [*names, 'package.module:function'])}")
    found: Any = module_named(module_name, f"{what} {spec!r}")
    for part in path.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_") and fits(getattr(found, name))]
            raise InputError(f"{what} {spec!r}: '{module_name}' has no '{part}'; {nearest(part, public)}")
        found = getattr(found, part)
    if (isinstance(found, type) and not classes) or not callable(found):
        raise InputError(f"{what} {spec!r} is a {type(found).__name__}; it must be a function{' or a class' if classes else ''}")
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
