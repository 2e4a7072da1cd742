"""Who wrote a file: a key of the user's own, kept outside every run folder, tells one's own files from those that came from elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

NO_SIGNATURE = "0" * 64
_BYTES = 32


def key_file() -> Path:
    """`$XDG_STATE_HOME/unipg/key`, by default `~/.local/state/unipg/key`."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "unipg" / "key"


def signature(data: bytes) -> str:
    """64 letters that only this user's key makes of `data`; `NO_SIGNATURE` where no key can be kept."""
    key = _key(make=True)
    return NO_SIGNATURE if key is None else _signed(key, data)


def is_own(data: bytes, signed: str) -> bool:
    """Whether this user's key made the signature."""
    key = _key(make=False)
    return key is not None and hmac.compare_digest(_signed(key, data), signed)


def _signed(key: bytes, data: bytes) -> str:
    return hmac.new(key, data, hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes | None:
    with suppress(OSError, RuntimeError):  # no home folder
        path = key_file()
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = path.with_name(f"key.{os.getpid()}")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
            with suppress(FileExistsError):  # another process was quicker
                os.link(fresh, path)
            fresh.unlink()
        key = path.read_bytes()
        if len(key) == _BYTES:
            return key
    return None
