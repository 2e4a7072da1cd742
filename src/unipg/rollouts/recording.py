"""Films of a controller's episodes: pictures that the environment draws of itself, written as they come, without a screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from unipg.errors import InputError, missing_package, one_line, spoken

if TYPE_CHECKING:
    import gymnasium

PICTURES = "rgb_array"
"""Gymnasium's name of the render mode that gives arrays."""
RATE = 30.0
"""Pictures per second of environments that do not say."""
KINDS = (".mp4", ".gif")
EPISODES = 3
"""Of a film for which nobody asks for more."""


def check_film(path: Path) -> None:
    """Refuses a file whose ending is no film's, and a library that is missing: before anything is played."""
    option = spoken(f"--record {path}", f"record='{path}'")
    if path.suffix.lower() not in KINDS:
        raise InputError(f"{option} ends in '{path.suffix}'; accepted: a name that ends in {' or '.join(KINDS)}")
    needed = {"imageio": "imageio"} | ({"imageio_ffmpeg": "imageio-ffmpeg"} if path.suffix.lower() == ".mp4" else {})
    for module, package in needed.items():
        if find_spec(module) is None:
            raise missing_package(package, "video", option)


@contextmanager
def without_screen() -> Iterator[None]:
    """While it lasts, what draws needs no screen and plays no sound; settings of the user's own stay."""
    own = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        own["MUJOCO_GL"] = "egl"
    new = [name for name in own if name not in os.environ]
    os.environ.update({name: own[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


class Film:
    """A film that is being written to `path`, whose ending says which kind; complete once the block that it opens ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()
            if error is None:
                _sign(self.path)

    def add(self, environments: gymnasium.vector.VectorEnv, name: str) -> None:
        """The picture of the first of several environments as it stands. Errors: `InputError` where `name` draws none."""
        try:
            (picture, *_) = environments.render() or (None,)
        except Exception as error:  # whatever a renderer raises
            hint = "; MuJoCo draws by MUJOCO_GL=egl, osmesa or glfw" if "mujoco" in type(environments.envs[0].unwrapped).__module__ else ""  # type: ignore[attr-defined]
            raise InputError(f"environment '{name}' cannot be drawn: {one_line(error)}{hint}") from error
        if not (isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3):
            raise InputError(f"environment '{name}' cannot be drawn: its render() gave no picture [H,W,3], but a {type(picture).__name__}")
        if self._writer is None:
            self._writer = self._opened(float(environments.metadata.get("render_fps") or RATE))
        height, width = picture.shape[:2]
        # the codec wants even sides
        self._writer.append_data(np.pad(picture.astype(np.uint8, copy=False), ((0, height % 2), (0, width % 2), (0, 0)), "edge"))

    def _opened(self, rate: float) -> Any:
        from imageio import v2 as imageio

        if self.path.suffix.lower() == ".gif":
            return imageio.get_writer(self.path, mode="I", duration=1000 / rate, loop=0)
        return imageio.get_writer(self.path, fps=rate, macro_block_size=2)


def _sign(path: Path) -> None:
    """Says at the end of a film what wrote it, in the format's own way, so that it alone may be written over (`files.check_output`)."""
    text = b"Software\0unipg evaluate"
    with path.open("r+b") as file:
        if path.suffix.lower() == ".mp4":
            file.seek(0, os.SEEK_END)
            file.write((8 + len(text)).to_bytes(4, "big") + b"free" + text)  # a box that players skip
        else:
            file.seek(-1, os.SEEK_END)  # the trailer, behind which nothing may stand
            file.write(b"\x21\xfe" + bytes([len(text)]) + text + b"\x00\x3b")  # a comment


def check_drawn(name: str, entry: Any) -> None:
    """Refuses an environment that says that it draws no pictures; `entry`: its class, or what makes it."""
    metadata = getattr(entry, "metadata", None)
    modes = metadata.get("render_modes", []) if isinstance(metadata, dict) else None
    if modes is not None and PICTURES not in modes:
        has = ", ".join(map(str, modes)) or "none"
        raise InputError(f"environment '{name}' draws no pictures: its render modes are: {has}; accepted for a film: one with {PICTURES}")
