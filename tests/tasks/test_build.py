"""The recipe's sections: read from plain values, checked, built."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from unipg.errors import InputError
from unipg.tasks.build import DataRecipe, ReasoningGymRecipe
from unipg.training.recipe import typed


def parsed(kind: type, values: dict[str, Any]) -> Any:
    """`values` as the recipe loader reads them."""
    return typed(kind, values, "task")


def test_every_setting_of_a_procedural_task_reaches_it() -> None:
    recipe = parsed(
        ReasoningGymRecipe,
        {
            "name": "puzzle24",
            "size": 7,
            "seed": 4,
            "config": {"max_value": 6},
            "demonstrations": 1.0,
            "binary": False,
            "system": "Be brief.",
        },
    )
    task = recipe.build()
    item = task.items[0]
    assert (task.name, len(task.items)) == ("puzzle24", 7)
    assert item.demonstrations == (item.expected,)
    assert item.prompt[0] == {"role": "system", "content": "Be brief."}
    assert task.verifier("1 + 1", item) == 0.01
    assert max(item.fields["metadata"]["numbers"]) <= 6
    other = parsed(ReasoningGymRecipe, {"name": "puzzle24", "size": 7, "seed": 5, "config": {"max_value": 6}}).build()
    assert [i.expected for i in other.items] != [i.expected for i in task.items]


def test_a_mixture_is_written_as_a_list() -> None:
    mixture = [{"name": "leg_counting", "weight": 3, "config": {"max_animals": 3}}, {"name": "spell_backward"}]
    task = parsed(ReasoningGymRecipe, {"name": mixture, "size": 4}).build()
    assert [item.fields["mixture_part"] for item in task.items].count(0) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 0}, "size is 0"),
        ({"demonstrations": -0.1}, r"demonstrations is -0.1"),
        ({"demonstrations": math.nan}, "demonstrations is nan"),
    ],
)
def test_a_procedural_task_checks_its_values_when_it_is_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ReasoningGymRecipe(name="leg_counting", **values)


def test_every_setting_of_a_data_task_reaches_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": f"{n}?", "good": str(n), "a": n}) + "\n" for n in range(5)))
    values = {"source": str(path), "prompt": "q", "demonstration": "good", "answer": "a", "system": "Be brief.", "limit": 3}
    task = parsed(DataRecipe, values | {"verifier": "math:isclose", "name": "numbers"}).build()
    assert (task.name, len(task.items)) == ("numbers", 3)
    assert task.items[2].prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2?"}]
    assert (task.items[2].demonstrations, task.items[2].expected) == (("2",), "2")
    assert task.verifier is math.isclose


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        ({"preferences": "pairs", "chosen": "good", "rejected": "bad"}, [("g", 1.0), ("b", 0.0)]),
        ({"preferences": "unpaired", "completion": "good", "label": "liked"}, [("g", 0.0)]),
        ({"preferences": "scored", "completions": "all", "scores": "worth"}, [("x", 1.0), ("y", 2.0)]),
        ({"preferences": "none"}, []),
        ({}, []),
    ],
)
def test_preference_columns_reach_a_data_task(tmp_path: Path, values: dict[str, Any], scores: list[tuple[str, float]]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "good": "g", "bad": "b", "liked": 0, "all": ["x", "y"], "worth": [1, 2]}))
    task = parsed(DataRecipe, {"source": str(path)} | values).build()
    assert [(c.text, c.score) for c in task.items[0].completions] == scores


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"preferences": "pair"}, "task.preferences: 'pair' does not exist; did you mean 'pairs'"),
        ({"chosen": "good"}, "task: chosen is set, but preferences is none: this column is read with preferences: pairs"),
        ({"preferences": "pairs", "scores": "worth"}, "scores is set, but preferences is pairs: .* preferences: scored"),
    ],
)
def test_preference_columns_are_checked_when_they_are_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parsed(DataRecipe, {"source": "a.jsonl"} | values)


def test_split_and_subset_of_a_data_task_reach_it(tmp_path: Path) -> None:
    for values, said in (({"split": "test"}, "no split"), ({"subset": "main"}, "no subsets")):
        with pytest.raises(InputError, match=said):
            parsed(DataRecipe, {"source": str(tmp_path / "rows.jsonl")} | values).build()


@pytest.mark.parametrize(("values", "said"), [({"source": " "}, "source is empty"), ({"source": "a.jsonl", "limit": 0}, "limit is 0")])
def test_a_data_task_checks_its_values_when_it_is_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DataRecipe(**values)
