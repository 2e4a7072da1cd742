"""Rows of files and hub datasets."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unipg.errors import InputError
from unipg.tasks.base import Item
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
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]
    return calls


def test_a_hub_dataset(hub: list[tuple[Any, ...]]) -> None:
    task = data_task("openai/gsm8k", subset="main", split="test", prompt="question", answer="solution", limit=2)
    assert hub == [("openai/gsm8k", "main", "test")]
    assert task.name == "openai/gsm8k/main"
    assert [item.expected for item in task.items] == ["2", "4"]
    assert task.items[1].place == "openai/gsm8k/main [test] row 2"
    assert data_task("gsm8k", prompt="question").name == "gsm8k"


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
