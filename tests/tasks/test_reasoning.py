"""Procedural tasks: what is generated, who carries a demonstration, how it is scored."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipg.errors import InputError
from unipg.tasks import reasoning
from unipg.tasks.reasoning import reasoning_gym_task

MIXTURE: list[dict[str, Any]] = [
    {"name": "leg_counting", "weight": 2, "config": {"max_animals": 3}},
    {"name": "spell_backward"},
    {"name": "leg_counting", "config": {"min_animals": 5, "max_animals": 6}},
]


def refused(said: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=said) as caught:
        reasoning_gym_task(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_an_item_is_an_entry_of_the_package() -> None:
    task = reasoning_gym_task("leg_counting", size=5, seed=3, config={"min_animals": 1, "max_animals": 2})
    assert (task.name, len(task.items)) == ("leg_counting", 5)
    for index, item in enumerate(task.items):
        assert item.index == index
        assert item.place == f"reasoning-gym leg_counting item {index}"
        assert (item.prompt, item.expected) == (item.fields["question"], item.fields["answer"])
        animals = item.fields["metadata"]["animals"]
        legs = {"starfish": 5, "insect": 6, "spider": 8, "crab": 10, "shrimp": 10, "lobster": 10, "scorpion": 8}
        known = sum(legs[a] * n for a, n in animals.items() if a in legs)
        assert len(animals) <= 2
        assert int(item.expected or 0) >= known
        assert item.demonstrations == ()


def test_items_depend_on_seed_and_index_alone() -> None:
    first, again = (reasoning_gym_task("spell_backward", size=20, seed=1) for _ in range(2))
    backwards = [again.items[index] for index in reversed(range(20))][::-1]
    assert list(first.items) == backwards
    assert list(reasoning_gym_task("spell_backward", size=20, seed=2).items) != backwards


def test_neighbouring_seeds_do_not_share_items() -> None:
    # item i of the package's seed s is item i − 1 of its seed s + 1
    questions = [{item.prompt for item in reasoning_gym_task("base_conversion", size=40, seed=seed).items} for seed in (0, 1)]
    assert len(questions[0] & questions[1]) <= 2


def test_a_dataset_that_draws_from_the_global_generator_is_reproducible_and_leaves_it_alone() -> None:
    random.seed(1)
    numpy.random.seed(1)  # noqa: NPY002
    expected = random.Random(1).random(), numpy.random.RandomState(1).random()
    first = list(reasoning_gym_task("list_functions", size=80).items)
    pooled = list(reasoning_gym_task("pool_matrix", size=3).items)
    assert (random.random(), numpy.random.random()) == expected  # noqa: NPY002
    assert list(reasoning_gym_task("list_functions", size=80).items) == first
    assert list(reasoning_gym_task("pool_matrix", size=3).items) == pooled


def test_items_can_be_sliced_and_counted_from_the_end() -> None:
    items = reasoning_gym_task("leg_counting", size=6).items
    assert items[1:4] == [items[1], items[2], items[3]]
    assert items[-1] is items[5]
    with pytest.raises(IndexError):
        items[6]


def test_a_system_message_goes_before_the_question() -> None:
    item = reasoning_gym_task("leg_counting", size=1, system="Answer with a number.").items[0]
    assert item.prompt == [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": item.fields["question"]},
    ]


@given(share=st.floats(0, 1), more=st.floats(0, 1), size=st.integers(1, 40), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=25)
def test_the_chosen_share_carries_its_answer_and_grows_by_adding(share: float, more: float, size: int, seed: int) -> None:
    low, high = sorted([share, more])
    carriers = []
    for part in (low, high):
        items = reasoning_gym_task("spell_backward", size, seed, demonstrations=part).items
        assert all(item.demonstrations in ((), (item.expected,)) for item in items)
        carriers.append({item.index for item in items if item.demonstrations})
        assert abs(len(carriers[-1]) - part * size) <= 0.5
    assert carriers[0] <= carriers[1]


def test_the_share_is_spread_over_the_task() -> None:
    items = reasoning_gym_task("spell_backward", 200, 0, demonstrations=0.5).items
    assert 30 <= sum(bool(item.demonstrations) for item in items[:100]) <= 70


# scoring


def test_a_reward_is_binary_unless_asked_otherwise() -> None:
    binary, graded = (reasoning_gym_task("puzzle24", size=1, binary=flag) for flag in (True, False))
    item = binary.items[0]
    assert (binary.verifier("1 + 1", item), graded.verifier("1 + 1", graded.items[0])) == (0.0, 0.01)
    assert item.expected is not None
    assert binary.verifier(item.expected, item) == graded.verifier(item.expected, graded.items[0]) == 1.0


def test_white_space_around_an_answer_is_not_scored() -> None:
    task = reasoning_gym_task("leg_counting", size=1)
    item = task.items[0]
    assert task.verifier(f" {item.expected}\n", item) == 1.0
    assert task.verifier(f"{item.expected} legs", item) == 0.0
    assert task.verifier("", item) == 0.0


def test_a_malformed_answer_is_wrong_even_where_the_scorer_raises() -> None:
    task = reasoning_gym_task("prime_factorization", size=1)
    item = task.items[0]
    with pytest.raises(ValueError, match="invalid literal"):
        task.verifier.datasets[0].score_answer("two times two", item.fields)
    assert task.verifier("two times two", item) == 0.0
    assert task.verifier(item.expected or "", item) == 1.0


def test_a_scorer_that_refuses_the_reference_answer_too_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    task = reasoning_gym_task("leg_counting", size=1)

    def broken(answer: str, entry: dict[str, Any]) -> float:
        raise RuntimeError("broken")

    monkeypatch.setattr(task.verifier.datasets[0], "score_answer", broken)
    with pytest.raises(RuntimeError, match="broken"):
        task.verifier("4", task.items[0])


def test_a_scorer_that_raises_where_there_is_no_reference_answer() -> None:
    task = reasoning_gym_task("boxnet", size=1)
    assert task.items[0].expected is None
    with pytest.raises(TypeError):
        task.verifier("null", task.items[0])


# mixtures


def test_a_mixture_has_its_weights_shares() -> None:
    task = reasoning_gym_task(MIXTURE, size=41, seed=5)
    assert task.name == "leg_counting+spell_backward+leg_counting"
    parts = [item.fields["mixture_part"] for item in task.items]
    counts = Counter(parts)
    # 20.5, 10.25 and 10.25 of 41: the largest remainder gets the odd one
    assert (counts[0], counts[1], counts[2]) == (21, 10, 10)
    assert parts != sorted(parts)
    assert all(item.fields["metadata"]["source_dataset"] == MIXTURE[part]["name"] for item, part in zip(task.items, parts, strict=True))
    sizes = [{len(item.fields["metadata"]["animals"]) for item, p in zip(task.items, parts, strict=True) if p == part} for part in (0, 2)]
    assert max(sizes[0]) <= 3
    assert min(sizes[1]) >= 4  # the package may draw an animal twice


def test_a_mixture_is_scored_by_each_items_own_dataset() -> None:
    task = reasoning_gym_task(MIXTURE, size=12)
    assert [task.verifier(item.expected or "", item) for item in task.items] == [1.0] * 12


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), size=st.integers(1, 50))
def test_counts_are_within_one_of_their_shares(weights: list[float], size: int) -> None:
    counts = Counter(reasoning._apportioned(weights, size, seed=0))
    assert sum(counts.values()) == size
    for part, weight in enumerate(weights):
        assert abs(counts[part] - weight / sum(weights) * size) < 1 + 1e-9


# errors


def test_an_unknown_dataset_names_the_nearest() -> None:
    refused("no dataset 'leg_countin'; did you mean 'leg_counting'", "leg_countin")
    refused("no dataset 'composite'", "composite")


def test_an_unknown_setting_names_the_nearest() -> None:
    refused("'leg_counting' has no setting 'max_animal'; did you mean 'max_animals'", "leg_counting", config={"max_animal": 3})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"min_animals": 5, "max_animals": 2}, "'leg_counting' refuses its config .*: max_animals must be"),
        ({"max_animals": "many"}, "'leg_counting' refuses its config .*'many'"),
        ({"size": 3}, "'size' is set for the task, not in config"),
        ({"seed": 3}, "'seed' is set for the task, not in config"),
    ],
)
def test_a_setting_that_is_refused(config: dict[str, Any], said: str) -> None:
    refused(said, "leg_counting", config=config)


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ([], "mixture of reasoning-gym datasets is empty"),
        (["leg_counting"], "dataset 1 of the mixture must be an object with a name"),
        ([{"weight": 1}], "dataset 1 of the mixture must be an object with a name"),
        ([*MIXTURE, {"name": "leg_counting", "wieght": 2}], "dataset 4 of the mixture has an unknown key 'wieght'; did you mean 'weight'"),
        ([{"name": "leg_counting", "weight": 0}], "dataset 1 of the mixture has weight 0"),
        ([{"name": "leg_counting", "weight": "much"}], "dataset 1 of the mixture has weight 'much'"),
        ([{"name": "leg_counting", "weight": float("nan")}], "has weight nan"),
        ([{"name": "leg_counting", "config": [3]}], r"dataset 1 of the mixture has config \[3\]"),
    ],
)
def test_a_mixture_that_is_refused(mixture: list[Any], said: str) -> None:
    refused(said, mixture)


def test_one_config_for_a_mixture_is_refused() -> None:
    refused("write it beside the dataset's name", MIXTURE, config={"max_animals": 3})


@pytest.mark.parametrize(("options", "said"), [({"size": 0}, "size is 0"), ({"demonstrations": 1.1}, "demonstrations is 1.1")])
def test_a_value_out_of_range(options: dict[str, Any], said: str) -> None:
    refused(said, "leg_counting", **options)


def test_a_demonstration_that_does_not_exist_is_refused_at_once() -> None:
    assert reasoning_gym_task("rubiks_cube", size=2).items[0].expected is None
    refused("'rubiks_cube' has no reference answers", "rubiks_cube", size=2, demonstrations=1.0)


def test_a_dataset_that_cannot_generate_its_items_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from reasoning_gym.factory import DATASETS

    def fails(self: Any, index: int) -> dict[str, Any]:
        raise IndexError("Cannot choose\nfrom an empty sequence")

    monkeypatch.setattr(DATASETS["leg_counting"][0], "__getitem__", fails)
    refused("leg_counting item 0: the dataset cannot generate it with its config: Cannot choose from an empty", "leg_counting")


@pytest.mark.parametrize("name", sorted(reasoning._ITERATE_OVER_SETS))
def test_a_dataset_that_changes_with_the_hash_seed_needs_a_fixed_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning, "sys", SimpleNamespace(flags=SimpleNamespace(hash_randomization=1)))
    refused("start Python with PYTHONHASHSEED=0", name, size=1)
    monkeypatch.setattr(reasoning, "sys", SimpleNamespace(flags=SimpleNamespace(hash_randomization=0)))
    assert reasoning_gym_task(name, size=1).items[0].prompt
