"""One module an algorithm: its four parts on the first screen, then only what is its own.

Belongs here: compositions of parts, in a folder for each family, and `preparation.py`, whole-batch work that several of them share. Does
not belong here: loops, models, tasks. A new module is found by itself: `registered()` imports every module of these folders, and their
classes are this package's (`from unipg.algorithms import GRPO`). Type checkers read `__init__.pyi`, which `make docs` writes.
"""

from typing import Any

from unipg.algorithms.base import Algorithm as Algorithm
from unipg.algorithms.base import Setting as Setting
from unipg.algorithms.base import algorithm_named as algorithm_named
from unipg.algorithms.base import register as register
from unipg.algorithms.base import registered as registered
from unipg.algorithms.base import setting as setting
from unipg.errors import nearest

_OWN = ("Algorithm", "Setting", "algorithm_named", "register", "registered", "setting")


def _classes() -> dict[str, type[Algorithm]]:
    return {kind.__name__: kind for kind in registered().values() if kind.__module__.startswith(f"{__name__}.")}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted([*_OWN, *_classes()])
    if not name[0].isupper():  # a module of this folder, or nothing
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    classes = _classes()
    if name not in classes:
        raise AttributeError(f"module '{__name__}' has no '{name}'; {nearest(name, classes)}")
    return classes[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_classes()})
