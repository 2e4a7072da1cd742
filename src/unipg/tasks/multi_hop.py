"""Questions of several hops over generated documents, which a policy searches with a tool.

A world is a set of invented entities and functional relations between them, written down as one document for each fact and others that
share its words. Nothing in it can be known beforehand: answers must be looked up.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
import torch

from unipg.arguments import CheckedArguments
from unipg.errors import InputError, missing_package
from unipg.seeding import derived_seed, generator
from unipg.tasks.base import Item, Messages, Verifier
from unipg.tasks.tools import Call, Tool, assistant, tool_from
from unipg.tasks.verifiers import qa_match

RELATIONS = (
    "capital",
    "mentor",
    "river",
    "founder",
    "rival",
    "emblem",
    "guardian",
    "successor",
    "birthplace",
    "anthem",
    "harbour",
    "festival",
)
MOST_QUESTIONS = 5_000_000
"""Questions of one number of hops that a world may have."""
NOTHING = "nothing found"


@dataclass
class MultiHopRecipe(CheckedArguments):
    """Questions of several hops over a generated world, with a search tool: set `task.tools: [search]`.

    Training and evaluation share the world and never a question: each belongs to one `split`.

    Errors: `InputError` for a value out of range, when the recipe is read; for more questions than there are, by `build`.
    """

    size: int = 500
    """How many questions, the same number of each entry of `hops`."""
    hops: tuple[int, ...] = (1, 2)
    """How many facts a question needs."""
    seed: int = 0
    """Which questions of the split, and their order."""
    split: Literal["train", "held_out"] = "train"
    """Which of the world's questions."""
    held_out: float = 0.2
    """Share of the world's questions that are held out, in (0, 1)."""
    world: int = 0
    """Seed of the entities, facts and documents."""
    entities: int = 40
    """Entities of the world."""
    relations: int = 4
    """Relations, each of which leads from every entity to another one."""
    distractors: int = 1
    """Documents beside each fact's that share its words and do not tell it."""
    results: int = 1
    """Documents that a search gives."""
    demonstrations: float = 0.0
    """Share of the questions that carry a demonstration, in [0, 1]."""
    demonstration_hops: int | None = None
    """Most look-ups in a demonstration, which answers right all the same; default: as many as the question needs."""
    complete: float = 0.0
    """Share of the demonstrations that make every look-up all the same, in [0, 1]."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("size", 1, None),
            ("entities", 3, 10_000),
            ("relations", 1, len(RELATIONS)),
            ("distractors", 0, 10),
            ("results", 1, 20),
            ("demonstration_hops", 0, None),
        ):
            value = getattr(self, name)
            if value is not None and (value < least or (most is not None and value > most)):
                accepted = f"{least} or more" if most is None else f"{least} to {most}"
                raise InputError(f"{name} is {value}; accepted: {accepted}")
        if not self.hops or any(not 1 <= count <= 4 for count in self.hops) or len(set(self.hops)) < len(self.hops):
            raise InputError(f"hops is {list(self.hops)}; accepted: different numbers from 1 to 4")
        if self.entities * self.relations ** max(self.hops) > MOST_QUESTIONS:
            raise InputError(f"entities, relations and hops make more than {MOST_QUESTIONS:,} questions; accepted: a smaller world")
        for name in ("demonstrations", "complete"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it is a share and must be in [0, 1]")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; it is a share and must be between 0 and 1")

    def build(self) -> MultiHopTask:
        """The task."""
        world = World(self.world, self.entities, self.relations, self.distractors)
        search = SearchIndex(world.documents, self.results)
        items = _Questions(self, world, search).items()
        name = f"{self.hops[0]}_hop" if len(self.hops) == 1 else "multi_hop"
        return MultiHopTask(name, items, offers={"search": tool_from(search.search)})


@dataclass
class MultiHopTask:
    """Questions whose answers must be looked up; `offers` the tool `search`."""

    name: str
    items: Sequence[Item]
    verifier: Verifier = qa_match
    offers: dict[str, Tool] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()
    """Those that rollouts may call."""


class World:
    """Entities with invented names, one fact for each entity and relation, and the documents that tell them."""

    def __init__(self, seed: int, entities: int, relations: int, distractors: int) -> None:
        self.relations = RELATIONS[:relations]
        self.names = _names(entities, seed)
        draw = generator(seed, "facts", entities)
        # a shift by 1 to N − 1: nothing leads to itself
        shift = torch.randint(1, entities, (relations, entities), generator=draw)
        self.target: list[list[int]] = ((torch.arange(entities) + shift) % entities).tolist()
        self.documents = [self.fact(r, e) for r in range(relations) for e in range(entities)]
        for number in range(distractors):
            others = torch.randint(entities, (relations, entities), generator=generator(seed, "distractors", number)).tolist()
            self.documents += [self._distractor(number, r, e, others[r][e]) for r in range(relations) for e in range(entities)]

    def fact(self, relation: int, entity: int) -> str:
        """The document that tells where a relation leads from an entity."""
        # the name twice: of two documents with the same words, the search prefers the one that is about it
        name = self.names[entity]
        return f"{name}: the {self.relations[relation]} of {name} is {self.names[self.target[relation][entity]]}."

    def _distractor(self, number: int, relation: int, entity: int, other: int) -> str:
        name, noun, elsewhere = self.names[entity], self.relations[relation], self.names[other]
        # all are longer than a fact's document, so that the search ranks them behind it
        forms = (
            f"People from {name} like to compare their {noun} with things seen in {elsewhere}.",
            f"Long ago {elsewhere} sent letters to {name} about the {noun}, which nobody answered.",
            f"Every year songs about {name} and its {noun} are sung near {elsewhere} by travellers.",
        )
        return forms[number % len(forms)]


class SearchIndex:
    """BM25 over documents, built at the first search and not kept when it is copied to another process."""

    def __init__(self, documents: Sequence[str], results: int) -> None:
        if importlib.util.find_spec("bm25s") is None:
            raise missing_package("bm25s", "tools", "the tool 'search'")
        self.documents, self.results = list(documents), results
        self._index: Any = None

    def search(self, query: str) -> str:
        """Searches the documents and gives those that match best.

        Args:
            query: The words to look for
        """
        words = _words(query)
        if not words:
            return NOTHING
        if self._index is None:
            import bm25s

            self._index = bm25s.BM25()
            self._index.index([_words(text) for text in self.documents], show_progress=False)
        scores = self._index.get_scores(words)
        best = numpy.argsort(-scores, kind="stable")[: self.results]
        return "\n".join(self.documents[place] for place in best.tolist() if scores[place] > 0) or NOTHING

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_index": None}


def _words(text: str) -> list[str]:
    import bm25s

    found: list[list[str]] = bm25s.tokenize([text], return_ids=False, show_progress=False)
    return found[0]


def _names(count: int, seed: int) -> list[str]:
    """Different pronounceable names of two syllables."""
    first, vowels, last = "bdfgklmnprstvz", "aeiou", "lmnrsk"
    made = ["".join(p).capitalize() for p in itertools.product(first, vowels, first, vowels, last)]
    order = torch.randperm(len(made), generator=generator(seed, "names")).tolist()
    return [made[place] for place in order[:count]]


class _Questions:
    """Draws a recipe's questions from a world and writes them down."""

    def __init__(self, recipe: MultiHopRecipe, world: World, search: SearchIndex) -> None:
        self.recipe, self.world, self.search = recipe, world, search

    def items(self) -> tuple[Item, ...]:
        recipe, size = self.recipe, self.recipe.size
        counts = [size // len(recipe.hops) + (place < size % len(recipe.hops)) for place in range(len(recipe.hops))]
        drawn = [(hops, number) for hops, count in zip(recipe.hops, counts, strict=True) for number in self._draw(hops, count)]
        order = torch.randperm(size, generator=generator(recipe.seed, "order")).tolist()
        carriers = torch.randperm(size, generator=generator(recipe.seed, "demonstrations")).tolist()
        chosen = carriers[: round(recipe.demonstrations * size)]
        whole, shown = frozenset(chosen[: round(recipe.complete * len(chosen))]), frozenset(chosen)
        return tuple(self._item(i, drawn[place], i in shown, i in whole) for i, place in enumerate(order))

    def _draw(self, hops: int, count: int) -> list[int]:
        """`count` questions of the split, as numbers that say start and path."""
        recipe = self.recipe
        total = recipe.entities * recipe.relations**hops
        order = torch.randperm(total, generator=generator(recipe.seed, "questions", hops)).tolist()
        found = list(itertools.islice((q for q in order if self._held_out(hops, q) == (recipe.split == "held_out")), count))
        if len(found) < count:
            raise InputError(
                f"multi_hop: there are {len(found)} questions of {hops} hops in the split {recipe.split}, and size asks for {count} of "
                "them: lower size, or raise entities or relations"
            )
        return found

    def _held_out(self, hops: int, number: int) -> bool:
        # decided by the question itself, whatever the seed of the recipe
        return derived_seed(self.recipe.world, "split", hops, number) < self.recipe.held_out * 2**63

    def _item(self, index: int, question: tuple[int, int], shown: bool, whole: bool) -> Item:
        world, recipe = self.world, self.recipe
        hops, number = question
        entity, path = number % recipe.entities, []
        number //= recipe.entities
        for _ in range(hops):
            path.append(number % recipe.relations)
            number //= recipe.relations
        visited = [entity]
        for relation in path:
            visited.append(world.target[relation][visited[-1]])
        asked = world.names[entity]
        for relation in path:
            asked = f"the {world.relations[relation]} of {asked}"
        facts = {"hops": hops, "path": [world.relations[r] for r in path], "entities": [world.names[e] for e in visited]}
        expected = world.names[visited[-1]]
        demonstrations: tuple[str | Messages, ...] = ()
        if shown:
            most = hops if whole or recipe.demonstration_hops is None else min(hops, recipe.demonstration_hops)
            demonstrations = (self._demonstration(path[:most], visited, expected),)
        place = f"multi_hop {recipe.split} item {index}"
        return Item(index, f"What is {asked}?", demonstrations, expected, facts, place)

    def _demonstration(self, path: Sequence[int], visited: Sequence[int], expected: str) -> str | Messages:
        """One search for each relation of `path`, then the answer."""
        messages: Messages = []
        for relation, entity in zip(path, visited, strict=False):
            query = f"{self.world.relations[relation]} of {self.world.names[entity]}"
            messages.append(assistant("", [Call("search", {"query": query})]))
            messages.append({"role": "tool", "content": self.search.search(query)})
        return [*messages, assistant(expected)] if messages else expected
