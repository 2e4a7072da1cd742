"""Files that are written: complete or not at all, never over what unipg did not write; and a full disk is called full."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from unipg.errors import InputError, one_line

Hint = str | Callable[[], str]
"""What ends the line of a file that cannot be written."""
Command = Literal["report", "evaluate", "export", "lab", "diff", "data"]
HEAD = 4096
"""First bytes of a page, a JSON file or a PNG, or last ones of a film, among which it says what wrote it."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_TEXT = re.compile("|".join(rf"{re.escape(os.strerror(code))}|\(os error {code}\)" for code in FULL))
_SYSTEM_TEXT = re.compile(r"os error \d+|file write failed|PytorchStreamWriter|Error while serializing")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that there is no room left; libraries wrap what the system says in their own."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in FULL) or _FULL_TEXT.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def writing(path: Path, hint: Hint = "") -> Iterator[None]:
    """Turns whatever the system refuses while `path` is written into one line: `InputError`, with `hint` at its end."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        ending = hint if isinstance(hint, str) else hint()
        if disk_is_full(error):
            raise InputError(f"the disk is full: '{path}' cannot be written ({os.strerror(errno.ENOSPC)}){ending}") from error
        if isinstance(error, OSError) or _SYSTEM_TEXT.search(str(error)):
            reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            raise InputError(f"'{path}' cannot be written: {reason}{ending}") from error
        raise


def generator(command: Command) -> str:
    """What every page, table and picture says it was written by."""
    return f"unipg {command}"


def generator_tag(command: Command) -> str:
    """The same in the head of a page."""
    return f'<meta name="generator" content="{generator(command)}">'


def check_output(path: Path, command: Command) -> None:
    """Refuses a file that holds anything which this command did not write; ask before the work whose result it is to hold."""
    if path.is_dir():
        raise InputError(f"'{path}' cannot be written: it is a folder; accepted: the name of a file")
    with writing(path):
        if not path.is_file() or not path.stat().st_size:
            return
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(0, path.stat().st_size - HEAD))
            head += file.read()
    name = generator(command)
    if not any(mark.encode() in head for mark in (generator_tag(command), f'"generator": "{name}"', f"Software\0{name}")):
        raise InputError(f"'{path}' exists, and `{name}` did not write it: nothing is written over; accepted: another name")


Content = str | Callable[[Path], object]
"""Text, or what writes to the path that it is given."""


def write_output(path: Path, content: Content, command: Command) -> Path:
    """Writes a result that somebody asked for, where nothing else is in the way; see `check_output`."""
    check_output(path, command)
    return write_file(path, content)


def write_file(path: Path, content: Content, hint: Hint = "") -> Path:
    """Writes a file, which is replaced once it is complete. Devices and pipes (`/dev/stdout`) are written to as they are.

    Errors: `InputError` for one that cannot be written, with `hint` at its end.
    """

    def put(place: Path) -> None:
        if isinstance(content, str):
            place.write_text(content, encoding="utf-8", errors="replace")
        else:
            content(place)

    with writing(path, hint):
        if path.exists() and not path.is_file():
            put(path)
            return path
        target = path.resolve()  # behind a link the file is replaced, not the link
        unfinished = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            put(unfinished)
            unfinished.replace(target)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
    return path


def write_folder(folder: Path, save: Callable[[Path], object], hint: Hint = "") -> None:
    """Lets `save` fill a folder beside `folder`, which takes its place once it is complete; nothing where `save` writes nothing."""
    unfinished, old = folder.with_name(f"{folder.name}.writing"), folder.with_name(f"{folder.name}.old")
    try:
        with writing(folder, hint):
            for left in (unfinished, old):  # by a kill
                if left.exists():
                    shutil.rmtree(left)
            save(unfinished)
            if not unfinished.exists():
                return
            if folder.exists():
                folder.rename(old)
            unfinished.rename(folder)
    finally:
        for left in (unfinished, old):
            shutil.rmtree(left, ignore_errors=True)
