"""Names that are a folder here or a repository of the Hugging Face hub: which of them is meant, and no waiting for a hub that is away."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unipg.errors import InputError, one_line, spoken

SECONDS = 3.0
"""How long the hub may take to answer at all."""
CONFIGURATIONS = ("config.json", "adapter_config.json")
KEPT = {"last": "model", "best": "best"}
"""What a run folder keeps of its policy, and where."""
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


def in_home(name: str) -> str:
    """A path that begins with `~` is in the user's home, also where no shell says so; every other name as it is."""
    return os.path.expanduser(name) if name.startswith("~") else name


def is_repository(name: str) -> bool:
    """Whether it can only be, or may be, the name of a repository: `name` or `owner/name`, and nothing of that name is here."""
    return _REPOSITORY.fullmatch(name) is not None and not name.startswith("runs/") and not Path(name).exists()


def is_checkpoint(name: str) -> bool:
    """Whether it is a folder with a checkpoint, or may be a repository's name."""
    return is_repository(name) or _holds_checkpoint(Path(name))


def _holds_checkpoint(folder: Path) -> bool:
    return any((folder / file).is_file() for file in CONFIGURATIONS)


def check_folder(name: str, runs: bool = False) -> None:
    """Refuses what is no repository's name and no folder with a checkpoint: the hub is not asked for it. `runs`: a run folder would do."""
    if not is_checkpoint(name):
        path = Path(name)
        what = "has no config.json" if path.is_dir() else "does not exist" if not path.exists() else "is not a folder"
        if (path / "recipe.yaml").is_file():
            model = path / "model"
            what = f"is a run: its model is in '{model}'" if _holds_checkpoint(model) else "is a run that has no model yet"
        folders = "a run folder, a folder written by save_pretrained," if runs else "a folder written by save_pretrained,"
        raise InputError(f"the model folder '{name}' {what}; accepted: {folders} or a hub name (owner/name)")


def check_place(name: str, runs: bool = False) -> None:
    """Refuses what is not here and no repository's name: a typing error, which can be told before anything heavy is imported or read."""
    if not Path(name).exists():
        check_folder(name, runs)


def saved_model(name: str, checkpoint: str = "last") -> str:
    """Where the checkpoint is: a run folder keeps its last one in `model`, and its best one, where it was measured, in `best`.

    Errors: `InputError` for a checkpoint that is neither, and for the best one of what keeps none.
    """
    if checkpoint not in KEPT:
        raise InputError(f"{spoken('--checkpoint', 'checkpoint')} is '{checkpoint}'; accepted: {', '.join(KEPT)}")
    inside = Path(name) / KEPT[checkpoint]
    if checkpoint != "last" and not inside.is_dir():
        raise InputError(
            f"'{name}' keeps no {checkpoint} model; accepted: last, or a control run, which keeps the best of those it measured"
        )
    return str(inside) if inside.is_dir() else name


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Around whatever loads `name` by one of the hub's libraries: at once from its cache, or not at all, where it cannot be reached.

    Raises InputError, one line that begins with `what` and ends with why.
    """
    why = ""
    try:
        with impatient(name) as why:
            yield
    except InputError:
        raise
    except Exception as error:
        if why and is_repository(name) and isinstance(error, OSError):  # what its libraries raise for what they cannot find
            raise InputError(
                f"{what} '{name}' is neither here nor in the hub's cache, and the hub cannot be reached ({why}); accepted: what is here"
            ) from error
        raise InputError(f"{what} '{name}' cannot be loaded: {first_line(error)}") from error


@contextmanager
def impatient(name: str, *, asks: bool | None = None) -> Iterator[str]:
    """The hub's own offline mode while it cannot be reached and `name` may have to be asked there; gives why, or an empty text.

    `asks`: whether it is asked; None: where `name` may be a repository's."""
    if asks is None:
        asks = is_repository(name) or (Path(name) / "adapter_config.json").is_file()  # the base of an adapter may be there
    why = _unreachable() if asks else ""
    if not why:
        yield why
        return
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = before


@functools.cache
def _unreachable() -> str:
    """Why the hub cannot be reached, asked once; empty where it can."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found = [f"no answer in {SECONDS:g} seconds"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
            found[0] = ""
        except Exception as error:
            found[0] = one_line(error)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name may take longer than any time limit on the connection
    asking.start()
    asking.join(SECONDS)
    return found[0]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for one-line messages."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
