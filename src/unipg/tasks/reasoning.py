"""Tasks that the package `reasoning-gym` generates and scores."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, overload

import numpy
import torch

from unipg.errors import InputError, nearest
from unipg.seeding import derived_seed, generator
from unipg.tasks.base import Item, ScoredCompletion
from unipg.tasks.data import with_system
from unipg.tasks.near_misses import near_misses
from unipg.tasks.tools import Tool
from unipg.tasks.verifiers import normalised

Preferences = Literal["none", "pairs", "unpaired", "scored"]
MOST_TRIES, FEW = 32, 4
"""Items whose answers are looked at, and different answers among them up to which a dataset's questions are a choice between those."""
_PART = "mixture_part"
"""Field of an item: which dataset of the mixture it came from."""

_ITERATE_OVER_SETS = frozenset(
    {
        "codeio",
        "intermediate_integration",
        "isomorphic_strings",
        "knight_swap",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)
"""Datasets of reasoning-gym 0.1.25 whose items change with the interpreter's hash seed."""


@dataclasses.dataclass
class ReasoningGymTask:
    """Procedurally generated items, scored by the package's own scorer."""

    name: str
    items: Sequence[Item]
    verifier: ReasoningGymVerifier
    tools: tuple[Tool, ...] = ()
    """Those that rollouts may call."""


class ReasoningGymVerifier:
    """The scorer of the dataset an item came from, in [0, 1].

    The answer is stripped of white space at its ends. With `binary`, the reward is 1.0 iff the score is at least 1, else 0.0: without it,
    most datasets give a small score (0.01, 0.05, or a share of matching text) to a wrong answer. A scorer that raises on a malformed answer
    gives 0.0, provided that it accepts the reference answer.
    """

    def __init__(self, datasets: Sequence[Any], binary: bool = True) -> None:
        self.datasets, self.binary = tuple(datasets), binary

    def __call__(self, answer: str, item: Item) -> float:
        dataset = self.datasets[item.fields[_PART]]
        try:
            score = float(dataset.score_answer(answer.strip(), item.fields))
        except Exception:
            if item.expected is None:
                raise
            dataset.score_answer(item.expected, item.fields)  # raises if the answer is not to blame
            return 0.0
        return float(score >= 1) if self.binary else score


def reasoning_gym_task(
    name: str | Sequence[dict[str, Any]],
    size: int = 500,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    demonstrations: float = 0.0,
    binary: bool = True,
    system: str | None = None,
    preferences: Preferences = "none",
) -> ReasoningGymTask:
    """A task of `size` items from one dataset of reasoning-gym, or from a mixture of several.

    `name` is a dataset's name with its `config`, or a list of `{"name": …, "weight": 1.0, "config": {…}}`; each dataset of a mixture gets
    its weight's share of the items, to within one item, in an order drawn from `seed`. The share `demonstrations` of the items, in [0, 1],
    carries its reference answer as a demonstration; the items with one at a lower share keep it at a higher share. `system` is put before
    every question as a system message. `binary`: see `ReasoningGymVerifier`. `preferences`: given completions of each item: the reference
    answer and a near miss of it (`pairs`; see `near_misses`), one of the two (`unpaired`), or the reference answer and several near misses
    with the scorer's own values (`scored`). Answers of other items take their place where a dataset has few answers (true or false), or
    where the scorer calls no near miss wrong.

    Items are generated when first asked for and then kept. They depend on `seed` and their index alone. The package's own seed is derived
    from `seed` rather than equal to it: item i of the package's seed s is item i − 1 of its seed s + 1, so that training with seed 0 and
    evaluating with seed 1 would share nearly all items.

    Errors: `InputError` for an unknown dataset or configuration key (with the nearest names), a value the dataset refuses, a demonstration
    wanted from a dataset without reference answers, a size below 1, a share outside [0, 1], a weight that is not above 0; and for a dataset
    whose items depend on the interpreter's hash seed unless it runs with `PYTHONHASHSEED=0`.
    """
    if size < 1:
        raise InputError(f"size is {size}; it must be at least 1")
    if not 0 <= demonstrations <= 1:
        raise InputError(f"demonstrations is {demonstrations}; it is the share of items that carry one and must be in [0, 1]")
    if isinstance(name, str):
        parts = [_Part(name, 1.0, dict(config or {}))]
    elif config:
        raise InputError("config belongs to one dataset: in a mixture, write it beside the dataset's name")
    else:
        parts = [_part(entry, place) for place, entry in enumerate(name)]
    if not parts:
        raise InputError("the mixture of reasoning-gym datasets is empty")
    datasets = [_dataset(part, size, seed, place) for place, part in enumerate(parts)]
    owners = _apportioned([part.weight for part in parts], size, seed)
    order = torch.randperm(size, generator=generator(seed, "demonstrations")).tolist()
    demonstrated = frozenset(order[: round(demonstrations * size)])
    names = [part.name for part in parts]
    items = _Generated(names, datasets, owners, demonstrated, seed, system, preferences)
    for first in {owner: place for place, owner in reversed(list(enumerate(owners)))}.values():
        items[first]  # a dataset that cannot give what is asked says so now, not in the middle of a run
    return ReasoningGymTask("+".join(names), items, ReasoningGymVerifier(datasets, binary))


@dataclasses.dataclass(frozen=True)
class _Part:
    name: str
    weight: float
    config: dict[str, Any]


def _part(entry: Any, place: int) -> _Part:
    who = f"dataset {place + 1} of the mixture"
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InputError(f"{who} must be an object with a name, and optionally weight and config")
    for key in entry:
        if key not in ("name", "weight", "config"):
            raise InputError(f"{who} has an unknown key '{key}'; {nearest(str(key), ['name', 'weight', 'config'])}")
    weight, config = entry.get("weight", 1.0), entry.get("config") or {}
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise InputError(f"{who} has weight {weight!r}; it must be a number above 0")
    if not isinstance(config, dict):
        raise InputError(f"{who} has config {config!r}; it must be an object with the dataset's settings")
    return _Part(entry["name"], float(weight), config)


def _dataset(part: _Part, size: int, seed: int, place: int) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    name, config = part.name, part.config
    accepted = sorted(set(DATASETS) - {"composite"})  # a mixture is written as a list
    if name not in accepted:
        raise InputError(f"reasoning-gym has no dataset '{name}'; {nearest(name, accepted)}")
    if name in _ITERATE_OVER_SETS and sys.flags.hash_randomization:
        raise InputError(f"the items of reasoning-gym's '{name}' change with Python's hash seed: start Python with PYTHONHASHSEED=0")
    keys = {field.name for field in dataclasses.fields(DATASETS[name][1])} - {"size", "seed"}
    for key in config:
        if key in ("size", "seed"):
            raise InputError(f"reasoning-gym dataset '{name}': '{key}' is set for the task, not in config")
        if key not in keys:
            raise InputError(f"reasoning-gym dataset '{name}' has no setting '{key}'; {nearest(str(key), keys)}")
    # below 2³¹ − size: the package adds the index, and NumPy takes 32 bits
    own_seed = derived_seed(seed, "reasoning_gym", place) % (2**31 - size)
    try:
        return create_dataset(name, size=size, seed=own_seed, **config)
    except Exception as error:
        said = normalised(str(error)) or type(error).__name__
        raise InputError(f"reasoning-gym dataset '{name}' refuses its config {config}: {said}") from error


def _apportioned(weights: list[float], size: int, seed: int) -> list[int]:
    """[size] index of the dataset of each item: counts by largest remainder, order drawn from `seed`."""
    exact = [weight / sum(weights) * size for weight in weights]
    counts = [math.floor(count) for count in exact]
    by_remainder = sorted(range(len(weights)), key=lambda part: counts[part] - exact[part])
    for part in by_remainder[: size - sum(counts)]:
        counts[part] += 1
    owners = [part for part, count in enumerate(counts) for _ in range(count)]
    return [owners[place] for place in torch.randperm(size, generator=generator(seed, "mixture")).tolist()]


class _Generated(Sequence[Item]):
    """Items made when first asked for."""

    def __init__(
        self,
        names: list[str],
        datasets: list[Any],
        owners: list[int],
        demonstrated: frozenset[int],
        seed: int,
        system: str | None,
        preferences: Preferences,
    ) -> None:
        self.names, self.datasets, self.owners, self.demonstrated = names, datasets, owners, demonstrated
        self.seed, self.system, self.preferences = seed, system, preferences
        self.made: dict[int, Item] = {}
        self.answers: dict[int, list[str]] = {}
        """Some answers of each dataset, by its place in the mixture."""

    def __len__(self) -> int:
        return len(self.owners)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if place not in self.made:
            self.made[place] = self._make(place)
        return self.made[place]

    def _make(self, index: int) -> Item:
        part = self.owners[index]
        name = self.names[part]
        place = f"reasoning-gym {name} item {index}"
        entry = self._entry(part, index, place)
        expected = None if entry["answer"] is None else str(entry["answer"])
        if index in self.demonstrated and expected is None:
            raise InputError(f"{place}: the dataset '{name}' has no reference answers, so its items cannot carry demonstrations")
        item = Item(
            index,
            with_system(entry["question"], self.system, place),
            (expected,) if index in self.demonstrated and expected is not None else (),
            expected,
            {**entry, _PART: part},
            place,
        )
        return item if self.preferences == "none" else dataclasses.replace(item, completions=self._completions(item))

    def _entry(self, part: int, index: int, place: str) -> Any:
        try:
            with _global_random(derived_seed(self.seed, "reasoning_gym", part, index)):
                return self.datasets[part][index]
        except Exception as error:
            said = normalised(str(error)) or type(error).__name__
            raise InputError(f"{place}: the dataset cannot generate it with its config: {said}") from error

    def _completions(self, item: Item) -> tuple[ScoredCompletion, ...]:
        """The reference answer and wrong ones: near misses, and where there are none the answers of other items of the same dataset."""
        if item.expected is None:
            raise InputError(f"{item.place}: the dataset has no reference answers, so there is nothing to prefer")
        wanted = 3 if self.preferences == "scored" else 1
        draw = generator(self.seed, "preferences", item.index)
        verifier = ReasoningGymVerifier(self.datasets, binary=False)
        best = verifier(item.expected, item)
        others: list[str] = []
        for text in self._wrong(item, item.expected, draw):
            if text not in (item.expected, *others) and verifier(text, item) < best:
                others.append(text)
            if len(others) == wanted:
                break
        if not others:
            raise InputError(f"{item.place}: no answer is known that its dataset scores lower, so there is nothing to prefer")
        if self.preferences == "scored":
            return tuple(ScoredCompletion(text, verifier(text, item)) for text in (item.expected, *others))
        both = (ScoredCompletion(item.expected, 1.0), ScoredCompletion(others[0], 0.0))
        return both if self.preferences == "pairs" else (both[int(torch.randint(2, (), generator=draw))],)

    def _wrong(self, item: Item, expected: str, draw: torch.Generator) -> Iterator[str]:
        """Answers that may be wrong, the nearest first: of a dataset that knows few answers the others, else near misses."""
        part = item.fields[_PART]
        if part not in self.answers:
            places = range(min(MOST_TRIES, len(self)))
            self.answers[part] = sorted({str(self._entry(part, place, item.place)["answer"]) for place in places})
        known = self.answers[part]
        others = (known[place] for place in torch.randperm(len(known), generator=draw).tolist())
        few = len(known) <= FEW
        yield from itertools.chain(others, near_misses(expected, draw)) if few else itertools.chain(near_misses(expected, draw), others)


@contextmanager
def _global_random(seed: int) -> Iterator[None]:
    """Seeds the global generators inside, and puts them back: some datasets draw from them, and one re-seeds NumPy's."""
    python, array = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)  # noqa: NPY002
