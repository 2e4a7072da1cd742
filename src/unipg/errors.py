"""The one error a user meets for bad input, which names the place and the accepted values; and what stops work on request."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_typed_command = False


@contextmanager
def command_line() -> Iterator[None]:
    """While a command is what the user has typed: `spoken` says so."""
    global _typed_command
    before, _typed_command = _typed_command, True
    try:
        yield
    finally:
        _typed_command = before


def spoken(command: str, python: str) -> str:
    """What a message asks for, in the words of the command line (`--resume`) or of Python (`resume=True`): those that the user is using."""
    return command if _typed_command else python


class InputError(ValueError):
    """Bad input from outside (recipe, file, data, arguments). The command line prints it as one line and exits with code 2."""


class Interrupted(Exception):
    """Raised inside a collection or an evaluation when the user asked to stop; it is given up and can be repeated exactly."""


def nearest(name: str, accepted: Iterable[str]) -> str:
    """`did you mean 'a'? accepted: a, b, c`: the closest accepted name first, then the whole list."""
    names = sorted(str(item) for item in accepted)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(item) for item in close)}? " if close else ""
    return f"{hint}accepted: {', '.join(names) or 'none'}"


def missing_package(package: str, extra: str, what: str) -> InputError:
    """The error for an optional dependency that is not installed."""
    return InputError(f"{what} needs the package '{package}'; install it with: pip install 'unipg[{extra}]'")


def one_line(error: BaseException) -> str:
    """`ValueError: what it says`, in one short line; whatever the error's own text does."""
    try:
        text = " ".join(str(error).split())[:200]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_MEMORY_TEXT = re.compile(r"can't allocate memory|(out of|not enough) memory|_ALLOC_FAILED|Storage size calculation overflowed")


def memory_is_full(error: BaseException) -> bool:
    """Whether an error says that something does not fit into memory, of the machine or of its GPU."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MEMORY_TEXT.search(str(error)) is not None)


LARGEST = 2**63 - 1
"""Largest whole number that a recipe may hold."""


def shown(value: Any) -> str:
    """A value in an error, in one line, however long it is."""
    if isinstance(value, int) and abs(value) > LARGEST:  # some are too long to be written out at all
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    if "\n" in text:  # of arrays
        text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}…"
