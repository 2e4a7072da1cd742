"""What turns an environment's observations into the vectors that perceptrons read.

Two forms travel from environments to networks: a flat row of numbers, of which some count (`Flat`), and an image (`Image`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from unipg.errors import InputError, nearest
from unipg.networks.perceptron import Initialisation, initialise

if TYPE_CHECKING:
    import gymnasium

MOST_VALUES = 100_000
"""Most values of a number that counts: each is an input of the network."""
MOST_CHANNELS = 32
"""Most channels that an image is taken to have where nobody says."""
Channels = Literal["auto", "first", "last"]
"""Where an image's channels are; `auto`: on the first or last axis, whichever is shorter than both others."""
ACCEPTED = "Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these without images"

Observation = dict[str, Any]
"""A space in plain values, as `observation_of` gives them: what a saved policy is built from without its environment."""
_Host = Callable[[np.ndarray], np.ndarray]


class Stored(NamedTuple):
    """How an observation is kept: its shape, and its type in NumPy's words."""

    shape: tuple[int, ...]
    dtype: str


class Leaf(NamedTuple):
    """A part of an observation that is an array by itself: its keys joined by dots, its shape, and its type in NumPy's words."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Encoder(nn.Module):
    """Observations of one space: how they are stored, and the vector [N,size] that a network reads of them."""

    space: Observation
    size: int
    stored: Stored

    @abstractmethod
    def flatten(self, observation: Any) -> np.ndarray:
        """[N,…] as they are stored: the observations of N environments side by side, as a vector environment gives them."""

    def flatten_one(self, observation: Any) -> np.ndarray:
        """[…] as it is stored: an observation by itself."""
        return self.flatten(_mapped(lambda leaf: np.array(leaf)[None], observation))[0]

    def read(self, observation: Any) -> tuple[np.ndarray, bool]:
        """[N,…] as they are stored, of one observation or of several that a person gives, and whether it was one.

        Errors: `InputError` for another shape or entries, numbers that are not finite, or do not count where they must, or are no bytes.
        """
        one = {_is_one(*leaf) for leaf in _leaves(self.space, observation, "the observation")}
        if len(one) > 1:
            raise InputError("the observation has entries for one and entries for several; accepted: one kind")
        alone = one.pop()
        stored = self.flatten(_mapped(lambda leaf: np.asarray(leaf)[None] if alone else np.asarray(leaf), observation))
        return stored, alone

    def outside(self, stored: np.ndarray) -> np.ndarray | None:
        """[…] of […,O] as stored: observations that count beyond what their space has; None where there are none."""
        return None

    def told(self, stored: np.ndarray) -> str:
        """Of an observation [O] that is `outside`: the first number that is, and what is accepted."""
        raise ValueError(f"{type(self).__name__} counts nothing")

    @abstractmethod
    def stack(self, leaves: Sequence[Tensor]) -> Tensor:
        """`flatten` of tensors, for any N: the space's leaves [N,…], in the order of `leaves`."""

    def leaves(self) -> list[Leaf]:
        """What an observation is made of, in the order in which it is stored; of a space that is no Dict, one."""
        return list(_named(self.space, ()))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[N,…] as stored to [N,size]."""

    @abstractmethod
    def on_the_host(self) -> _Host:
        """The same of NumPy arrays: a copy of what there is to learn, as it is now."""


def _mapped(change: Callable[[Any], Any], observation: Any) -> Any:
    return {k: _mapped(change, v) for k, v in observation.items()} if isinstance(observation, Mapping) else change(observation)


def _leaves(space: Observation, observation: Any, what: str) -> Iterator[tuple[Observation, Any, str]]:
    if space["type"] != "dict":
        yield space, observation, what
        return
    if not isinstance(observation, Mapping) or observation.keys() != space["entries"].keys():
        has = ", ".join(map(str, observation)) or "none" if isinstance(observation, Mapping) else type(observation).__name__
        raise InputError(f"{what} has entries {has}; accepted: {', '.join(space['entries'])}")
    for key, entry in space["entries"].items():
        yield from _leaves(entry, observation[key], f"entry '{key}' of {what}")


def _is_one(space: Observation, observation: Any, what: str) -> bool:
    """Whether a leaf is that of one observation; refuses what is none."""
    shape = tuple(space["shape"])
    try:
        array = np.asarray(observation)
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} is not made of numbers of one shape; accepted: {list(shape)}") from error
    if shape not in (array.shape, array.shape[1:]) or array.ndim > len(shape) + 1:
        raise InputError(
            f"{what} has the shape {list(array.shape)}; accepted: {list(shape)}, or several: [{', '.join(map(str, ('N', *shape)))}]"
        )
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} holds a number that is not finite")
    one = array.shape == shape
    if space["type"] == "counted":
        first = np.array(space["start"]).reshape(shape)
        last = first + np.array(space["counts"]).reshape(shape) - 1
        wrong = (numbers < first) | (numbers > last) | (numbers % 1 != 0)
        if wrong.any():
            limits = [f"{low} to {high}" for low, high in zip(first.reshape(-1).tolist(), last.reshape(-1).tolist(), strict=True)]
            raise InputError(f"{what} holds {numbers[wrong][0]:g}; accepted: whole numbers, {', '.join(dict.fromkeys(limits))}")
    if space["type"] == "image" and array.dtype != np.uint8 and ((numbers % 1 != 0) | (numbers < 0) | (numbers > 255)).any():
        raise InputError(f"{what} is an image of numbers that are no bytes; accepted: whole numbers, 0 to 255")
    return one


@dataclass(frozen=True)
class _Entry:
    """One leaf of a flat space: where it lies in an observation, and for each of its numbers how many values it counts (0: a real number)
    and which is the first."""

    path: tuple[str, ...]
    counts: tuple[int, ...]
    start: tuple[int, ...]


class Flat(Encoder):
    """Numbers side by side, float32; those that count, such as a Discrete's, are stored as their place from 0 and read as one-hot.

    A Dict's entries follow each other in the sorted order of their keys.
    """

    column: Tensor
    level: Tensor

    def __init__(self, space: Observation) -> None:
        super().__init__()
        self.space = space
        self._entries = list(_entries(space, ()))
        counts = [n for entry in self._entries for n in entry.counts]
        self.stored = Stored((len(counts),), "float32")
        self.size = sum(max(1, n) for n in counts)
        self.plain = not any(counts)
        """Whether every number is read as it is."""
        self._limits = np.array([n or np.inf for n in counts], np.float32)
        starts = [np.array(entry.start, np.int64) for entry in self._entries]
        self._starts = [start if start.any() else None for start in starts]
        column = [k for k, n in enumerate(counts) for _ in range(max(1, n))]
        level = [float(v) if n else math.nan for n in counts for v in range(max(1, n))]
        # each column that is read: of which number, and the value that it stands for (NaN: any)
        self.register_buffer("column", torch.tensor(column), persistent=False)
        self.register_buffer("level", torch.tensor(level), persistent=False)

    def flatten(self, observation: Any) -> np.ndarray:
        if not self._entries[0].path and self._starts[0] is None:
            return np.ascontiguousarray(observation, np.float32).reshape(len(observation), -1)
        parts = []
        for entry, start in zip(self._entries, self._starts, strict=True):
            part = observation
            for key in entry.path:
                part = part[key]
            flat = np.asarray(part).reshape(len(part), -1)
            parts.append(flat if start is None else flat - start)
        return np.concatenate(parts, 1, dtype=np.float32, casting="unsafe")

    def outside(self, stored: np.ndarray) -> np.ndarray | None:
        if self.plain:
            return None
        bad = self._beyond(stored)
        return np.asarray(bad.any(-1)) if bad.any() else None

    def _beyond(self, stored: np.ndarray) -> np.ndarray:
        return (stored >= self._limits) | ((stored < 0) & (self._limits < np.inf))

    def told(self, stored: np.ndarray) -> str:
        at = int(self._beyond(stored).nonzero()[0][0])
        first = np.concatenate([entry.start for entry in self._entries])[at]
        return f"{stored[at] + first:g}; accepted: {first} to {first + self._limits[at] - 1:g}"

    def stack(self, leaves: Sequence[Tensor]) -> Tensor:
        parts = []
        for leaf, start in zip(leaves, self._starts, strict=True):
            flat = leaf.flatten(1) if leaf.ndim > 1 else leaf.unsqueeze(1)
            parts.append((flat if start is None else flat - torch.from_numpy(start)).float())
        return torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return x
        x = x[:, self.column]
        return torch.where(self.level.isnan(), x, (x == self.level).to(x.dtype))

    def on_the_host(self) -> _Host:
        if self.plain:
            return lambda x: x
        column, level = self.column.cpu().numpy().copy(), self.level.cpu().numpy().copy()
        real = np.isnan(level)

        def encode(x: np.ndarray) -> np.ndarray:
            x = x[:, column]
            return np.where(real, x, x == level)

        return encode


class Image(Encoder):
    """An image of bytes [H,W,C] or [C,H,W], stored as [C,H,W] uint8; divided by 255 here and nowhere else.

    Three convolutions and a layer of 512 (Mnih et al. 2015, as Stable-Baselines3's NatureCNN); for images with a side under 36, where
    these do not fit, one convolution and a layer of 128 (Young and Tian 2019, arXiv 1903.03176). ReLU after each.
    """

    def __init__(self, space: Observation, init: Initialisation, source: torch.Generator) -> None:
        super().__init__()
        self.space = space
        shape, self._last = list(space["shape"]), space["channels"] == "last"
        channels, *sides = shape[-1:] + shape[:-1] if self._last else shape
        self.stored = Stored((channels, *sides), "uint8")
        nature = min(sides) >= 36
        kernels = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if nature else [(16, 3, 1)]
        self.size = 512 if nature else 128
        if min(sides) < 3:
            raise InputError(f"the environment's images are {shape}, channels {space['channels']}; accepted: sides of at least 3")
        layers: list[nn.Conv2d | nn.Linear] = []
        for out, kernel, stride in kernels:
            layers.append(nn.utils.skip_init(nn.Conv2d, channels, out, kernel, stride))
            channels, sides = out, [(side - kernel) // stride + 1 for side in sides]
        layers.append(nn.utils.skip_init(nn.Linear, channels * math.prod(sides), self.size))
        for layer in layers:
            initialise(layer, init, math.sqrt(2), source)
        self._strides = [stride for *_, stride in kernels]
        self.layers = nn.ModuleList(layers)

    def flatten(self, observation: Any) -> np.ndarray:
        image = np.asarray(observation)
        return np.ascontiguousarray(np.moveaxis(image, -1, 1) if self._last else image, np.uint8)

    def stack(self, leaves: Sequence[Tensor]) -> Tensor:
        (image,) = leaves
        return image.movedim(-1, 1) if self._last else image

    def forward(self, x: Tensor) -> Tensor:
        return self._encode(x, [(layer.weight, layer.bias) for layer in cast("Iterator[nn.Conv2d]", iter(self.layers))])

    def _encode(self, x: Tensor, layers: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        *convolutions, (weight, bias) = layers
        x = x.to(weight.dtype) / 255
        for (kernel, offset), stride in zip(convolutions, self._strides, strict=True):
            x = conv2d(x, kernel, offset, stride).relu()
        return linear(x.flatten(1), weight, bias).relu()

    def on_the_host(self) -> _Host:
        kept = [tuple(p.detach().float().cpu().clone() for p in layer.parameters()) for layer in self.layers]
        copies = cast("list[tuple[Tensor, Tensor | None]]", kept)

        @torch.no_grad()
        def encode(x: np.ndarray) -> np.ndarray:
            return self._encode(torch.from_numpy(x), copies).numpy()

        return encode


def observation_of(space: gymnasium.Space, channels: Channels = "auto", what: str = "the environment's observations") -> Observation:
    """A space of observations in plain values. `channels`: where an image has them, a Box of bytes with three axes.

    `InputError` for an image whose channels may be on either side, and for what no encoder reads: Text, Graph, Sequence, images in a Dict.
    """
    from gymnasium import spaces

    if channels not in get_args(Channels):
        raise InputError(f"channels '{channels}' do not exist; {nearest(str(channels), get_args(Channels))}")
    shape = list(map(int, space.shape or ()))
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(shape) == 3:
        return {"type": "image", "shape": shape, "channels": _channels(shape, what) if channels == "auto" else channels}
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return {"type": "vector", "shape": shape, **_dtype(space, "float32")}
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        numbers = (space.n, space.start) if isinstance(space, spaces.Discrete) else (space.nvec, space.start)
        counts, start = (list(map(int, np.ravel(each))) for each in numbers)
        if max(counts) > MOST_VALUES:
            raise InputError(f"{what} are {space}, each value an input of its own; accepted: at most {MOST_VALUES} values")
        return {"type": "counted", "shape": shape, "counts": counts, "start": start, **_dtype(space, "int64")}
    if isinstance(space, spaces.Dict) and space.spaces:
        entries = {key: observation_of(entry, channels, f"entry '{key}' of {what}") for key, entry in sorted(space.spaces.items())}
        for key, entry in entries.items():
            if entry["type"] == "image":
                raise InputError(
                    f"entry '{key}' of {what} is an image {entry['shape']} in a Dict; accepted: {ACCEPTED}, or the image alone "
                    "(gymnasium's FilterObservation chooses entries)"
                )
        return {"type": "dict", "entries": entries}
    raise InputError(f"{what} are {space}; accepted: {ACCEPTED}")


def _dtype(space: gymnasium.Space, usual: str) -> dict[str, str]:
    """In which an environment gives its numbers, where it is not what is `usual`; what is stored and read of them is the same."""
    return {} if str(space.dtype) == usual else {"dtype": str(space.dtype)}


def alike(one: Observation, other: Observation) -> bool:
    """Whether two spaces are read alike: the same but for the dtypes in which environments give their numbers."""
    return _untyped(one) == _untyped(other)


def _untyped(space: Observation) -> Observation:
    if space["type"] == "dict":
        return {**space, "entries": {key: _untyped(entry) for key, entry in space["entries"].items()}}
    return {name: value for name, value in space.items() if name != "dtype"}


def _channels(shape: list[int], what: str) -> str:
    for where, mine, others in (("last", shape[2], shape[:2]), ("first", shape[0], shape[1:])):
        if mine < min(others) and mine <= MOST_CHANNELS:
            return where
    raise InputError(f"{what} are images {shape} whose channels may be on any axis; accepted: to be told which, channels: first or last")


def _named(space: Observation, path: tuple[str, ...]) -> Iterator[Leaf]:
    if space["type"] == "dict":
        for key, entry in sorted(space["entries"].items()):
            yield from _named(entry, (*path, key))
    else:
        usual = {"image": "uint8", "counted": "int64"}.get(space["type"], "float32")
        yield Leaf(".".join(path) or "observation", tuple(space["shape"]), space.get("dtype", usual))


def _entries(space: Observation, path: tuple[str, ...]) -> Iterator[_Entry]:
    if space["type"] == "dict":
        for key, entry in sorted(space["entries"].items()):
            yield from _entries(entry, (*path, key))
    elif space["type"] == "vector":
        size = math.prod(space["shape"])
        yield _Entry(path, (0,) * size, (0,) * size)
    else:
        yield _Entry(path, tuple(space["counts"]), tuple(space["start"]))


def encoder_from(space: Observation, source: torch.Generator, *, init: Initialisation = "torch") -> Encoder:
    """The encoder of a described space; what it learns with is initialised from `source`, by `orthogonal` with gain sqrt(2)."""
    return Image(space, init, source) if space["type"] == "image" else Flat(space)


def encoder_for(space: gymnasium.Space, source: torch.Generator, *, channels: Channels = "auto", init: Initialisation = "torch") -> Encoder:
    """The encoder of ONE environment's observations. Errors: as `observation_of`."""
    return encoder_from(observation_of(space, channels), source, init=init)
