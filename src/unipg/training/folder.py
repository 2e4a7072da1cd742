"""The run folder: which run may write to it now, and what in it no other run may write over."""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unipg.errors import InputError, spoken
from unipg.files import writing

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
CHECKPOINTS = ("checkpoint.pt", "checkpoint-previous.pt")
BEST = "best"
EVALUATED = "evaluated"
"""Policies by the iteration that they were measured at."""
LINES = ("metrics.jsonl", "histograms.jsonl", "evaluations.jsonl")


def untouched() -> str:
    """What to do where a run's file cannot be written."""
    return f"; the last good checkpoint is untouched: make room and continue with {spoken('--resume', 'resume=True')}"


_held: dict[Path, list[int]] = {}
"""Locks of this process: by which thread, and how often."""
_descriptors: dict[Path, int] = {}
_guard = threading.Lock()


def _forget() -> None:
    """A forked child holds none of its parent's locks, and must not keep them alive."""
    for descriptor in _descriptors.values():
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of an existing folder; `InputError` with the process that is in it, where there is one.

    The system drops the lock with the process, however that ends. Where the file system has no locks, the process that the file names
    decides: it must live, and have begun when the file says. The same thread may lock a folder again.
    """
    path = folder.resolve() / LOCK
    with _guard:
        mine = _held.get(path)
        if mine is not None and mine[0] != threading.get_ident():
            raise _refusal(folder, {"pid": os.getpid()})
        if mine is None:
            descriptor = _taken(folder, path)
            if descriptor is not None:
                _descriptors[path] = descriptor
            mine = _held[path] = [threading.get_ident(), 0]
        mine[1] += 1
    try:
        yield
    finally:
        with _guard:
            mine[1] -= 1
            if not mine[1] and _held.get(path) is mine:
                del _held[path]
                with suppress(OSError):
                    path.unlink()
                with suppress(OSError, KeyError):
                    os.close(_descriptors.pop(path))


def _taken(folder: Path, path: Path) -> int | None:
    """The descriptor that holds the system's lock; None where the file alone is the lock."""
    while fcntl is not None:
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            holder = _written(path)
            raise _refusal(folder, holder) from None
        except OSError:  # this file system has no such locks
            os.close(descriptor)
            break
        with suppress(OSError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                os.truncate(descriptor, 0)
                os.write(descriptor, _myself())
                return descriptor
        os.close(descriptor)  # whoever held it has just removed the file: another one is the lock now
    _take_by_name(folder, path)
    return None


def _take_by_name(folder: Path, path: Path) -> None:
    while True:
        try:
            with writing(path):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except InputError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
        else:
            os.write(descriptor, _myself())
            os.close(descriptor)
            return
        holder = _read(path)
        if _lives(holder):
            raise _refusal(folder, holder)
        stale = path.with_name(f"{LOCK}.{os.getpid()}")
        with suppress(FileNotFoundError):  # another process was quicker
            path.rename(stale)
            stale.unlink()


def _myself() -> bytes:
    now = datetime.datetime.now().isoformat(sep=" ", timespec="minutes")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "began": _began(os.getpid()), "since": now}).encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _written(path: Path) -> dict[str, Any]:
    """What a lock says once it says anything: between taking it and writing who has it lies a moment."""
    until = time.monotonic() + 1.0
    while not (found := _read(path)) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process that a lock names is there; where that cannot be known, it is."""
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    if holder.get("host") != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    began = _began(pid)
    return not began or not holder.get("began") or began == holder["began"]


def _began(pid: int) -> str:
    """When a process began, in the system's own count, so that another one with its number is told apart; empty where that is not known."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "ended" if state == "Z" else rest[18]


def _refusal(folder: Path, holder: dict[str, Any]) -> InputError:
    pid, host = holder.get("pid", "unknown"), holder.get("host")
    there = f" on {host}" if host and host != socket.gethostname() else ""
    since = f" since {holder['since']}" if holder.get("since") else ""
    return InputError(
        f"the run folder '{folder}' is in use{since}: another run, process {pid}{there}, writes to it; wait for it, stop it, or give "
        f"another folder (if there is no such process, delete '{folder / LOCK}')"
    )


def holds_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CHECKPOINTS)


def trained(folder: Path, but: str = "") -> str:
    """The first thing in a folder, `but` for one, that training has made and that a new run would write over; empty where there is none."""
    for name in (*CHECKPOINTS, "model", BEST, "critic", LINES[0]):
        if name == but:
            continue
        path = folder / name
        if path.is_dir() or (path.is_file() and path.stat().st_size):
            return name
    return ""


def check_free(folder: Path) -> None:
    """Refuses a folder in which a new run would write over anything; what a run left that failed in its first iteration is nothing."""
    found = trained(folder) or next((name for name in LINES if not _own_lines(folder / name)), "")
    if found:
        raise InputError(
            f"the folder '{folder}' holds '{found}' already: nothing is written over; accepted: another folder, or to continue the run "
            "that is in it"
        )


def _own_lines(path: Path) -> bool:
    """Whether every line of a file, but for a last one that a kill has cut off, is one of a run's."""
    if not path.is_file():
        return not path.exists()
    *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        return all("iteration" in json.loads(line) for line in lines) and (bool(lines) or not last or last.startswith('{"iteration"'))
    except (ValueError, TypeError):
        return False
