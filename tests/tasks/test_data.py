"""Rows of files and hub datasets."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from unipg.errors import InputError
from unipg.tasks.base import Item, ScoredCompletion
from unipg.tasks.data import data_task
from unipg.tasks.verifiers import exact_match, score

ROWS: list[dict[str, Any]] = [
    {"question": "1 + 1 = ?", "solution": "2", "good": "It is 2.", "level": 1},
    {"question": "2 + 2 = ?", "solution": 4, "good": ["4", "four"], "level": 2},
    {"question": "3 + 3 = ?", "solution": 6.5, "good": None, "level": 3},
    {"question": "4 + 4 = ?", "solution": "8", "good": [], "level": 4},
]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refused(said: str, source: str, **arguments: Any) -> None:
    with pytest.raises(InputError, match=said) as caught:
        data_task(source, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_rows_become_items(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sums.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(ROWS))
    else:
        write(path, *ROWS)
    task = data_task(str(path), prompt="question", answer="solution", demonstration="good")
    kind = "row" if suffix == "json" else "line"
    assert task.name == "sums"
    assert task.items == (
        Item(0, "1 + 1 = ?", ("It is 2.",), "2", ROWS[0], f"{path} {kind} 1"),
        Item(1, "2 + 2 = ?", ("4", "four"), "4", ROWS[1], f"{path} {kind} 2"),
        Item(2, "3 + 3 = ?", (), "6.5", ROWS[2], f"{path} {kind} 3"),
        Item(3, "4 + 4 = ?", (), "8", ROWS[3], f"{path} {kind} 4"),
    )
    assert task.verifier is exact_match


def test_columns_that_are_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    task = data_task(write(tmp_path / "a.jsonl", {"prompt": "p", "answer": None, "demonstration": 3}))
    assert (task.items[0].expected, task.items[0].demonstrations) == (None, ())


def test_blank_lines_count_as_lines_but_hold_no_row(tmp_path: Path) -> None:
    task = data_task(write(tmp_path / "a.jsonl", {"prompt": "a"}, "", "   ", {"prompt": "b"}))
    assert [(item.index, item.prompt, item.place.rpartition(" ")[2]) for item in task.items] == [(0, "a", "1"), (1, "b", "4")]


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "\xc3\xa9t\xc3\xa9"}\n')
    assert data_task(str(path)).items[0].prompt == "été"


@given(prompts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_survives(tmp_path: Path, prompts: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    for ascii_only in (True, False):
        try:
            lines = "\n".join(json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in prompts)
            path.write_text(lines, encoding="utf-8", newline="\n")
        except UnicodeEncodeError:  # a lone surrogate has no UTF-8
            continue
        assert [item.prompt for item in data_task(str(path)).items] == prompts


def test_limit_reads_no_further(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "a"}, {"prompt": "b"}, "broken")
    assert [item.prompt for item in data_task(source, limit=2).items] == ["a", "b"]
    refused("line 3", source, limit=3)


def test_chat_messages_and_a_system_message(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "name": None},
        {"role": "user", "content": "1 + 1?"},
    ]
    source = write(tmp_path / "a.jsonl", {"prompt": chat}, {"prompt": "plain"})
    system = {"role": "system", "content": "Be brief."}
    plain, with_system = data_task(source), data_task(source, system="Be brief.")
    clean = [chat[0], {"role": "assistant", "content": "Hello"}, chat[2]]
    assert [item.prompt for item in plain.items] == [clean, "plain"]
    assert [item.prompt for item in with_system.items] == [[system, *clean], [system, {"role": "user", "content": "plain"}]]


def test_two_system_messages_are_refused(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "Hi"}]
    source = write(tmp_path / "a.jsonl", {"prompt": chat})
    assert data_task(source).items[0].prompt == chat
    refused("a.jsonl line 1: the prompt has a system message of its own", source, system="Be brief.")


# verifiers


def test_the_verifier_scores_the_items(tmp_path: Path) -> None:
    task = data_task(write(tmp_path / "a.jsonl", *ROWS), prompt="question", answer="solution", name="sums of mine")
    assert task.name == "sums of mine"
    assert score(task.verifier, [" 2 ", "4", "6", "8"], task.items)[0] == [1.0, 1.0, 0.0, 1.0]


def test_a_callable_verifier_sees_the_whole_row(tmp_path: Path) -> None:
    def by_level(answer: str, item: Item) -> float:
        return float(item.fields["level"])

    task = data_task(write(tmp_path / "a.jsonl", *ROWS), prompt="question", verifier=by_level)
    assert [task.verifier("", item) for item in task.items] == [1, 2, 3, 4]


def test_a_task_without_a_verifier_says_so_when_it_is_scored(tmp_path: Path) -> None:
    task = data_task(write(tmp_path / "a.jsonl", {"prompt": "a"}))
    with pytest.raises(InputError, match="no verifier: set 'answer'"):
        score(task.verifier, ["x"], task.items)


def test_a_verifier_without_its_column_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "a"})
    refused("'exact_match' compares with a reference answer: set 'answer'", source, verifier="exact_match")
    refused("'math_verify' compares with a reference answer: set 'answer'", source, verifier="math_verify")
    refused("did you mean 'exact_match'", source, verifier="exactmatch")


# errors


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "a"', r"a.jsonl line 2: invalid JSON, .*\(column 15\)"),
        ('["a"]', "a.jsonl line 2: holds a list; each row must be an object"),
        ("7", "a.jsonl line 2: holds a number"),
        ({"promt": "a", "id": 3}, "a.jsonl line 2: there is no column 'prompt'; did you mean 'promt'.*accepted: id, promt"),
        ({"prompt": " \n"}, "a.jsonl line 2: column 'prompt': the prompt is empty"),
        ({"prompt": []}, "a.jsonl line 2: column 'prompt': the prompt is empty"),
        ({"prompt": [{"role": "user", "content": " "}]}, "a.jsonl line 2: column 'prompt': the prompt is empty"),
        ({"prompt": 5}, "a.jsonl line 2: column 'prompt' holds a number; a prompt must be text or a list of messages"),
        ({"prompt": None}, "a.jsonl line 2: column 'prompt' holds null"),
        ({"prompt": {"role": "user"}}, "a.jsonl line 2: column 'prompt' holds an object"),
        ({"prompt": ["a"]}, "message 1 must be an object with the texts role and content"),
        ({"prompt": [{"role": "user", "content": "a"}, {"role": "user"}]}, "message 2 must be an object"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 must be an object"),
    ],
)
def test_a_bad_prompt_is_named_with_its_line(tmp_path: Path, row: Any, said: str) -> None:
    refused(said, write(tmp_path / "a.jsonl", {"prompt": "fine"}, row))


@pytest.mark.parametrize(
    ("good", "said"),
    [
        (5, "line 1: column 'good' holds a number; a demonstration must be text or a list of texts"),
        (["a", 5], "line 1: column 'good' holds a number"),
        (["a", None], "line 1: column 'good' holds null"),
        ("", "line 1: column 'good': a demonstration is empty; write null"),
        (["a", " "], "line 1: column 'good': a demonstration is empty"),
    ],
)
def test_a_bad_demonstration_is_named_with_its_line(tmp_path: Path, good: Any, said: str) -> None:
    refused(said, write(tmp_path / "a.jsonl", {"prompt": "a", "good": good}), demonstration="good")


def test_a_row_without_the_demonstration_column(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "a", "good": "b"}, {"prompt": "a", "gold": "b"})
    refused("line 2: there is no column 'good'; did you mean 'gold'", source, demonstration="good")


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (["a"], "a list"), ({"a": 1}, "an object")])
def test_a_bad_reference_answer_is_named_with_its_line(tmp_path: Path, value: Any, kind: str) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": value})
    refused(f"line 1: column 'answer' holds {kind}; a reference answer must be text or a number", source, answer="answer")


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"prompt": "a"})
    (tmp_path / "notes.txt").touch()
    refused("no such file: .*trian.jsonl; did you mean 'train.jsonl'.* accepted: train.jsonl$", str(tmp_path / "trian.jsonl"))
    refused("no such file: .*nowhere/a.json$", str(tmp_path / "nowhere" / "a.json"))
    refused("no such file: no-such-file.jsonl", "no-such-file.jsonl")


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", ""), ("a.json", "[]")])
def test_an_empty_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    refused(f"{name} is empty", str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"prompt": "a"},\n {"prompt": }]', r"a.json: invalid JSON, .*\(line 2 column 13\)"),
        ('{"prompt": "a"}', "a.json: holds an object; it must be a list of objects"),
        ('[{"prompt": "a"}, 3]', "a.json row 2: holds a number"),
    ],
)
def test_a_bad_json_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    refused(said, str(tmp_path / "a.json"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_that_is_not_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'[{"prompt": "\xff\xfe"}]')
    refused(f"{name}: not UTF-8 text", str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_that_may_not_be_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / name, {"prompt": "a"})

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Path, "read_text", denied)
    refused(f"cannot read .*{name}: Permission denied", source)


def test_a_local_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\na\n")
    refused("a.csv: a data file must end with .json, .jsonl, .parquet", str(tmp_path / "a.csv"))
    refused("must end with", str(tmp_path))


def test_a_file_has_no_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "a"})
    refused("no split but 'train'", source, split="test")
    refused("no subsets", source, subset="main")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(tmp_path: Path, limit: int) -> None:
    refused(f"limit is {limit}", write(tmp_path / "a.jsonl", {"prompt": "a"}), limit=limit)


# preferences


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def completions(source: str, **arguments: Any) -> list[list[tuple[str, float]]]:
    return [[(c.text, c.score) for c in item.completions] for item in data_task(source, **arguments).items]


def test_pairs_have_the_chosen_first(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1", "chosen": "2", "rejected": "3"}, {"prompt": "2 + 2", "chosen": [said("4")], "rejected": "5"}]
    source = write(tmp_path / "a.jsonl", *rows)
    task = data_task(source, preferences="pairs")
    assert task.items[0] == Item(
        0, "1 + 1", fields=rows[0], place=f"{source} line 1", completions=(ScoredCompletion("2", 1.0), ScoredCompletion("3", 0.0))
    )
    assert completions(source, preferences="pairs")[1] == [("4", 1.0), ("5", 0.0)]
    assert completions(source) == [[], []]


def test_labels_are_scores_of_one_and_zero(tmp_path: Path) -> None:
    labels = [True, False, 1, 0, 1.0]
    source = write(tmp_path / "a.jsonl", *({"prompt": "p", "completion": [said(f"c{n}")], "label": x} for n, x in enumerate(labels)))
    assert completions(source, preferences="unpaired") == [[(f"c{n}", float(x))] for n, x in enumerate(labels)]


def test_scored_completions_keep_their_order(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "p", "completions": ["a", [said("b")], "c"], "scores": [0, -2.5, 7]})
    assert completions(source, preferences="scored") == [[("a", 0.0), ("b", -2.5), ("c", 7.0)]]


def test_every_column_of_preferences_can_be_renamed(tmp_path: Path) -> None:
    row = {"q": "p", "good": "g", "bad": "b", "text": "t", "liked": False, "all": ["x", "y"], "worth": [1, 2]}
    source = write(tmp_path / "a.jsonl", row)
    assert completions(source, prompt="q", preferences="pairs", chosen="good", rejected="bad") == [[("g", 1.0), ("b", 0.0)]]
    assert completions(source, prompt="q", preferences="unpaired", completion="text", label="liked") == [[("t", 0.0)]]
    assert completions(source, prompt="q", preferences="scored", completions="all", scores="worth") == [[("x", 1.0), ("y", 2.0)]]


def test_completions_may_repeat_the_prompts_messages(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "chosen": [said("Hi", "user"), said("Hello")], "rejected": [said("Hi", "user"), said("Go")]},
        {
            "prompt": [said("s", "system"), said("Hi", "user")],
            "chosen": [said("s", "system"), said("Hi", "user"), said("Hello")],
            "rejected": "Go",
        },
    ]
    source = write(tmp_path / "a.jsonl", *rows)
    assert completions(source, preferences="pairs") == [[("Hello", 1.0), ("Go", 0.0)]] * 2
    assert [item.prompt for item in data_task(source, preferences="pairs").items] == [row["prompt"] for row in rows]


def test_what_conversations_begin_with_is_the_prompt(tmp_path: Path) -> None:
    start = [said("Hi", "user"), said("Hello"), said("1 + 1?", "user")]
    source = write(tmp_path / "a.jsonl", {"chosen": [*start, said("2")], "rejected": [*start, said("3")]})
    task = data_task(source, preferences="pairs", system="Be brief.")
    assert task.items[0].prompt == [said("Be brief.", "system"), *start]
    assert completions(source, preferences="pairs") == [[("2", 1.0), ("3", 0.0)]]


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Human: Hi\n\nAssistant: Yes", "Human: Hi\n\nAssistant: No", "Human: Hi\n\nAssistant:"),
        ("What? Yes, sure", "What? Yes, surely", "What? Yes,"),  # a word that begins alike is no part of the prompt
        ("What? a", "What? a b", "What?"),
        ("What?\n \na", "What?\n \nb", "What?"),
    ],
)
def test_what_texts_begin_with_is_the_prompt(tmp_path: Path, chosen: str, rejected: str, prompt: str) -> None:
    source = write(tmp_path / "a.jsonl", {"chosen": chosen, "rejected": rejected})
    [item] = data_task(source, preferences="pairs").items
    assert item.prompt == prompt
    assert [prompt + c.text for c in item.completions] == [chosen, rejected]


@given(
    prompt=st.text("ab \n", max_size=8).map(lambda text: "x" + text.rstrip()),
    answers=st.lists(st.text("abc \n", min_size=1, max_size=8).filter(str.strip), min_size=2, max_size=2),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
def test_a_prompt_that_is_split_off_loses_nothing(tmp_path: Path, prompt: str, answers: list[str]) -> None:
    first, second = whole = [f"{prompt} {answer}" for answer in answers]
    assume(not first.startswith(second.rstrip()) and not second.startswith(first.rstrip()))
    source = write(tmp_path / "a.jsonl", {"chosen": first, "rejected": second})
    [item] = data_task(source, preferences="pairs").items
    assert isinstance(item.prompt, str)
    assert [item.prompt + c.text for c in item.completions] == whole
    assert item.prompt.startswith(prompt)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "line 2: there is no column 'rejected'; accepted: chosen, prompt"),
        ({"prompt": "p", "choosen": "a", "rejected": "b"}, "line 2: there is no column 'chosen'; did you mean 'choosen'"),
        ({"prompt": "p", "chosen": None, "rejected": "b"}, "line 2: column 'chosen' holds null; a completion must be text or a list"),
        ({"prompt": "p", "chosen": "a", "rejected": 3}, "line 2: column 'rejected' holds a number; a completion must be text"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "line 2: column 'rejected': a completion is empty"),
        ({"prompt": "p", "chosen": [said(" ")], "rejected": "b"}, "line 2: column 'chosen': a completion is empty"),
        (
            {"prompt": "p", "chosen": [said("a", "user")], "rejected": "b"},
            "column 'chosen': after the prompt there must be exactly one message",
        ),
        ({"prompt": "p", "chosen": [said("a"), said("b")], "rejected": "b"}, "column 'chosen': after the prompt there must be exactly one"),
        ({"prompt": "p", "chosen": [], "rejected": "b"}, "column 'chosen': after the prompt there must be exactly one message"),
        ({"prompt": "p", "chosen": ["a"], "rejected": "b"}, "column 'chosen': message 1 must be an object"),
        # whole conversations
        ({"promt": "p", "chosen": "a x", "rejected": "a y"}, "line 2: there is no column 'prompt'; did you mean 'promt'"),
        (
            {"question": "p", "chosen": "a x", "rejected": "a y"},
            "line 2: there is no column 'prompt'; accepted: chosen, question, rejected",
        ),
        (
            {"chosen": "x a", "rejected": "y a"},
            "line 2: there is no column 'prompt', and 'chosen' and 'rejected' begin with nothing in common",
        ),
        ({"chosen": "xa", "rejected": "xb"}, "begin with nothing in common"),
        ({"chosen": [said("x")], "rejected": [said("y")]}, "begin with nothing in common"),
        (
            {"chosen": "a x", "rejected": [said("y")]},
            "line 2: column 'chosen' holds text and 'rejected' a list; without a column 'prompt' both",
        ),
        (
            {"chosen": [said("q", "user"), said("a")], "rejected": [said("q", "user"), said("a")]},
            "'chosen': after the prompt there must be",
        ),
        ({"chosen": "a b", "rejected": "a "}, "line 2: column 'rejected': a completion is empty"),
    ],
)
def test_a_bad_pair_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    refused(message, write(tmp_path / "a.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"}, row), preferences="pairs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 2}, "line 1: column 'label' holds 2; a label must be true, false, 1 or 0"),
        ({"label": 0.5}, "column 'label' holds 0.5"),
        ({"label": None}, "column 'label' holds null"),
        ({"label": "true"}, "column 'label' holds text"),
        ({"completion": ""}, "line 1: column 'completion': a completion is empty"),
        ({"completion": None}, "line 1: column 'completion' holds null"),
        ({"prompt": None}, "line 1: column 'prompt' holds null"),
    ],
)
def test_a_bad_label_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    refused(message, write(tmp_path / "a.jsonl", {"prompt": "p", "completion": "a", "label": True} | change), preferences="unpaired")


@pytest.mark.parametrize("column", ["prompt", "completion", "label"])
def test_a_missing_column_of_single_completions(tmp_path: Path, column: str) -> None:
    row = {"prompt": "p", "completion": "a", "label": True}
    row.pop(column)
    refused(f"line 1: there is no column '{column}'", write(tmp_path / "a.jsonl", row), preferences="unpaired")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [1]}, "line 1: column 'completions' holds 2 completions and 'scores' 1 scores; there must be equally many, at least 2"),
        ({"scores": [1], "completions": ["a"]}, "holds 1 completions and 'scores' 1 scores; there must be equally many, at least 2"),
        ({"scores": [1, math.nan]}, "line 1: column 'scores' holds nan; a score must be a finite number"),
        ({"scores": [1, -math.inf]}, "column 'scores' holds -inf"),
        ({"scores": [1, None]}, "column 'scores' holds null"),
        ({"scores": [1, True]}, "column 'scores' holds true or false"),
        ({"scores": [1, "2"]}, "column 'scores' holds text"),
        ({"scores": 1}, "column 'scores' holds a number; it must be a list of scores"),
        ({"scores": None}, "column 'scores' holds null; it must be a list"),
        ({"completions": "ab"}, "column 'completions' holds text; it must be a list of completions"),
        ({"completions": ["a", None]}, "column 'completions' holds null; a completion must be text"),
        ({"completions": ["a", " "]}, "column 'completions': a completion is empty"),
    ],
)
def test_bad_scores_are_named_with_their_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    refused(
        message, write(tmp_path / "a.jsonl", {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]} | change), preferences="scored"
    )


def test_a_kind_of_preferences_that_does_not_exist(tmp_path: Path) -> None:
    refused("preferences is 'pair'; did you mean 'pairs'", write(tmp_path / "a.jsonl", {"prompt": "p"}), preferences="pair")


def test_preferences_need_no_verifier_and_may_have_one(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b", "answer": "a"})
    task = data_task(source, preferences="pairs", answer="answer")
    assert [task.verifier(c.text, task.items[0]) for c in task.items[0].completions] == [1.0, 0.0]
    assert len(data_task(source, preferences="pairs").items[0].completions) == 2


def test_preferences_of_a_parquet_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "a.parquet"
    rows = [
        {
            "prompt": f"{n}",
            "chosen": [said(f"{n}", "user"), {"role": "assistant", "content": f"good {n}"}],
            "rejected": [said(f"{n}", "user"), {"role": "assistant", "content": f"bad {n}"}],
            "completions": ["a", "b"],
            "scores": [0.5, n],
            "label": n == 0,
        }
        for n in range(2)
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    assert completions(str(path), preferences="pairs") == [[(f"good {n}", 1.0), (f"bad {n}", 0.0)] for n in range(2)]
    assert completions(str(path), preferences="scored")[1] == [("a", 0.5), ("b", 1.0)]
    assert completions(str(path), preferences="unpaired", completion="chosen") == [[("good 0", 1.0)], [("good 1", 0.0)]]
    refused("row 1: there is no column 'rejectd'; did you mean 'rejected'", str(path), preferences="pairs", rejected="rejectd")


# the extra


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands for the package `datasets`, whose hub cannot be reached in a test; the calls it got."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, subset: str | None, split: str) -> list[dict[str, Any]]:
        calls.append((name, subset, split))
        if name == "nobody/nothing":
            try:
                raise FileNotFoundError("no such\n dataset")
            except FileNotFoundError as error:
                raise RuntimeError("failed") from error
        return [row | {"worse": "no idea"} for row in ROWS]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]
    return calls


def test_a_hub_dataset(hub: list[tuple[Any, ...]]) -> None:
    task = data_task("openai/gsm8k", subset="main", split="test", prompt="question", answer="solution", limit=2)
    assert hub == [("openai/gsm8k", "main", "test")]
    assert task.name == "openai/gsm8k/main"
    assert [item.expected for item in task.items] == ["2", "4"]
    assert task.items[1].place == "openai/gsm8k/main [test] row 2"
    assert data_task("gsm8k", prompt="question").name == "gsm8k"


def test_preferences_of_a_hub_dataset(hub: list[tuple[Any, ...]]) -> None:
    source = "trl-lib/ultrafeedback_binarized"
    names = {"prompt": "question", "preferences": "pairs", "chosen": "question", "rejected": "worse"}
    task = data_task(source, split="test", **names)  # type: ignore[arg-type]
    assert [(c.text, c.score) for c in task.items[0].completions] == [("1 + 1 = ?", 1.0), ("no idea", 0.0)]
    assert hub == [(source, None, "test")]
    refused(rf"{source} \[train\] row 2: column 'solution' holds a number; a completion", source, **(names | {"rejected": "solution"}))


def test_a_hub_dataset_that_cannot_be_loaded(hub: list[tuple[Any, ...]]) -> None:
    refused("cannot load the hub dataset 'nobody/nothing', split 'train': RuntimeError: no such dataset$", "nobody/nothing")


def test_a_path_that_exists_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[tuple[Any, ...]]) -> None:
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refused("must end with", "openai/gsm8k")
    assert hub == []


@pytest.mark.parametrize("source", ["openai/gsm8k", "a.parquet"])
def test_without_the_extra(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(rf"{source}.* needs the package 'datasets'.*unipg\[data\]", source)


def test_a_parquet_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "sums.parquet"
    rows = [
        {"prompt": [{"role": "user", "content": f"{n} + {n} = ?"}], "answer": 2 * n, "good": [str(2 * n)] if n else None} for n in range(3)
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    task = data_task(str(path), answer="answer", demonstration="good")
    assert [item.expected for item in task.items] == ["0", "2", "4"]
    assert [item.demonstrations for item in task.items] == [(), ("2",), ("4",)]
    assert task.items[2].prompt == rows[2]["prompt"]
    assert task.items[2].place == f"{path} row 3"
    refused("row 1: there is no column 'answr'; did you mean 'answer'", str(path), answer="answr")


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    refused("a.parquet: not readable as Parquet", str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("value", ["a \ud83d b", ["x", "\ude00"]])
def test_half_a_character_is_named(tmp_path, value) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"q": "fine", "a": "1", "d": "🙂"}, {"q": "fine", "a": "1", "d": value}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError, match=r"data.jsonl line 2: column 'd' holds half of a character \(the surrogate U\+D"):
        data_task(str(path), prompt="q", answer="a", demonstration="d")
