"""Questions over a generated world: answers, documents, search, splits and demonstrations agree."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from unipg.errors import InputError
from unipg.tasks.base import Item
from unipg.tasks.multi_hop import NOTHING, MultiHopRecipe, SearchIndex, World
from unipg.tasks.tools import (
    Call,
    checked_conversation,
    run_call,
    tools_named,
)
from unipg.tasks.verifiers import qa_match
from unipg.training.recipe import typed

SMALL: dict[str, Any] = {"entities": 12, "relations": 3, "size": 20}


def rest() -> str:
    """Rests."""
    return "rested"


def test_questions_answers_and_documents_agree() -> None:
    task = MultiHopRecipe(**SMALL, hops=(1, 2, 3)).build()
    world = World(0, 12, 3, 1)
    facts = {tuple(d.rstrip(".").split(": the ")[1].split(" is ")) for d in world.documents[: 12 * 3]}
    told = dict(facts)
    assert [item.fields["hops"] for item in task.items].count(1) == 7
    for item in task.items:
        asked = item.prompt.removeprefix("What is ").removesuffix("?")
        parts = asked.split(" of ")
        here = parts[-1]
        for relation in reversed(parts[:-1]):
            here = told[f"{relation.removeprefix('the ')} of {here}"]
        assert here == item.expected
        assert task.verifier(f"The {here.upper()}.", item) == 1.0
        assert task.verifier("nobody", item) == 0.0
    assert all(name != told[f"{r} of {name}"] for name in world.names for r in world.relations)
    assert len(set(world.names)) == 12


@pytest.mark.parametrize(("entities", "relations", "distractors"), [(12, 3, 1), (60, 6, 3), (200, 12, 2)])
def test_the_right_search_finds_the_fact_before_its_distractors(entities: int, relations: int, distractors: int) -> None:
    world = World(3, entities, relations, distractors)
    assert len(world.documents) == entities * relations * (1 + distractors)
    index = SearchIndex(world.documents, 1)
    for relation in range(relations):
        for entity in range(0, entities, 7):
            query = f"{world.relations[relation]} of {world.names[entity]}"
            assert index.search(query) == world.fact(relation, entity)
    assert index.search("xyzzy") == NOTHING
    assert index.search("the of") == NOTHING
    assert index.search("") == NOTHING
    three = SearchIndex(world.documents, 3).search(world.names[0]).split("\n")
    assert len(three) == 3
    assert all(world.names[0] in text for text in three)


def test_the_index_is_built_late_and_not_carried_along() -> None:
    index = SearchIndex(["a fact about Zorv"], 1)
    assert index._index is None
    assert index.search("zorv") == "a fact about Zorv"
    assert index._index is not None
    again = pickle.loads(pickle.dumps(index))
    assert again._index is None
    assert again.search("zorv") == "a fact about Zorv"


def test_a_task_with_tools_can_be_sent_to_another_process() -> None:
    task = MultiHopRecipe(**SMALL, demonstrations=1.0).build()
    task.tools = tools_named(["search", "calculator", f"{__name__}:rest"], task.offers)
    again = pickle.loads(pickle.dumps(task))
    assert again.items == task.items
    call = Call("search", {"query": task.items[0].prompt})
    assert run_call(again.tools, call, 5) == run_call(task.tools, call, 5)
    assert run_call(again.tools, call, 5)[0] == "ok"


def test_no_question_is_in_both_splits_whatever_the_seeds() -> None:
    def prompts(split: str, seed: int) -> set[str]:
        return {
            i.prompt
            for i in MultiHopRecipe(entities=12, relations=3, size=30, hops=(2,), split=split, seed=seed, held_out=0.5).build().items
        }

    train = set().union(*(prompts("train", seed) for seed in range(5)))
    held = set().union(*(prompts("held_out", seed) for seed in range(5)))
    assert len(train) > 40
    assert len(held) > 40
    assert not train & held
    assert prompts("train", 1) != prompts("train", 2)


def test_the_same_seeds_make_the_same_task_and_another_world_another() -> None:
    def built(**changes: Any) -> Any:
        return MultiHopRecipe(**{**SMALL, "demonstrations": 0.5, **changes}).build().items

    assert built() == built()
    assert [i.prompt for i in built()] == [i.prompt for i in built(demonstrations=0.0)]
    assert built()[0].prompt.split()[-1] != built(world=1)[0].prompt.split()[-1]


def test_demonstrations_make_too_few_searches() -> None:
    def lookups(**changes: Any) -> list[tuple[int, int]]:
        items = MultiHopRecipe(entities=12, relations=3, size=40, demonstrations=1.0, **changes).build().items
        return [
            (item.fields["hops"], 0 if isinstance(d, str) else sum(m["role"] == "tool" for m in d))
            for item in items
            for d in item.demonstrations
        ]

    assert set(lookups()) == {(1, 1), (2, 2)}
    assert set(lookups(demonstration_hops=1)) == {(1, 1), (2, 1)}
    assert set(lookups(demonstration_hops=0)) == {(1, 0), (2, 0)}
    mixed = lookups(demonstration_hops=1, complete=0.5)
    assert set(mixed) == {(1, 1), (2, 1), (2, 2)}
    assert len(mixed) == 40
    (first, *_) = MultiHopRecipe(**SMALL, hops=(2,), demonstrations=1.0).build().items
    turns = checked_conversation(first.demonstrations[0], "it")
    assert turns == first.demonstrations[0]
    assert turns[-1]["content"] == first.expected
    assert turns[3]["content"].endswith(f"is {first.expected}.")
    assert len([i for i in MultiHopRecipe(**SMALL, demonstrations=0.25).build().items if i.demonstrations]) == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 0}, "size is 0; accepted: 1 or more"),
        ({"relations": 13}, "relations is 13; accepted: 1 to 12"),
        ({"hops": [0]}, r"hops is \[0\]; accepted: different numbers from 1 to 4"),
        ({"hops": [1, 1]}, "different numbers"),
        ({"entities": 10_000, "relations": 12, "hops": [4]}, "more than 5,000,000 questions"),
        ({"complete": 1.5}, "complete is 1.5; it is a share"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"split": "test"}, "split: 'test' does not exist; accepted: held_out, train"),
        ({"size": 1000}, r"there are \d+ questions of 1 hops in the split train, and size asks for 500"),
    ],
)
def test_impossible_worlds(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        typed(MultiHopRecipe, {"entities": 12, "relations": 3, **values}, "task.multi_hop").build()


def test_search_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"the tool 'search' needs the package 'bm25s'.*unipg\[tools\]"):
        MultiHopRecipe().build()


def test_qa_match() -> None:
    item = Item(0, "q", expected="The Zorv-Malk")
    assert [qa_match(text, item) for text in ("zorv malk", "Zorv-Malk.", "zorvmalk", "a zorv malk!")] == [1.0, 1.0, 0.0, 1.0]
    with pytest.raises(InputError, match="'qa_match' needs a reference answer"):
        qa_match("x", Item(0, "q"))
