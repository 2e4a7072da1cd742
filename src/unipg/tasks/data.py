"""Tasks from rows: JSON Lines, JSON and Parquet files, and datasets of the Hugging Face hub."""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unipg.errors import InputError, missing_package, nearest
from unipg.hub import impatient
from unipg.loading import IN_MEMORY, Live, check_named
from unipg.tasks.base import Item, Messages, ScoredCompletion, Verifier, stable
from unipg.tasks.tools import Tool, checked_conversation
from unipg.tasks.verifiers import NEED_REFERENCE, normalised, verifier_named

_SUFFIXES = (".json", ".jsonl", ".parquet")

Row = tuple[str, dict[str, Any]]
"""Where a row came from (`train.jsonl line 7`), and its columns."""
Preferences = Literal["none", "pairs", "unpaired", "scored"]
"""Which given completions a row holds; see `data_task`."""
Prompt = str | Messages
Completions = tuple[ScoredCompletion, ...]

_PROMPT = "prompt"
_OTHER_PROMPTS = frozenset({"question", "instruction", "query", "input", "problem"})
"""What some call their column of prompts."""


@dataclass
class DataTask:
    """Items read from rows."""

    name: str
    items: tuple[Item, ...]
    verifier: Verifier
    tools: tuple[Tool, ...] = ()
    """Those that rollouts may call."""


def data_task(
    source: str,
    *,
    split: str = "train",
    subset: str | None = None,
    prompt: str = _PROMPT,
    demonstration: str | None = None,
    answer: str | None = None,
    system: str | None = None,
    verifier: str | Verifier | None = None,
    limit: int | None = None,
    name: str | None = None,
    preferences: Preferences = "none",
    chosen: str = "chosen",
    rejected: str = "rejected",
    completion: str = "completion",
    label: str = "label",
    completions: str = "completions",
    scores: str = "scores",
) -> DataTask:
    """A task with one item per row of a file or a hub dataset.

    `source` is a file if it ends with `.jsonl`, `.json` or `.parquet`, begins with `./`, `../`, `/` or `~/`, or is an existing path with a
    separator; otherwise it names a hub dataset, of which `subset` and `split` choose a part. Parquet and the hub need the extra `data`.
    Rows that are in memory are given by `live_rows`.

    Columns: `prompt` holds text or a list of chat messages; `demonstration` text, the messages of an answer that calls tools
    (`tools.checked_conversation`), or a list of either, and null or an empty list for a row without one; `answer` text or a number. The
    whole row becomes `Item.fields`. `system` is put before every prompt as a system message. `verifier` is a callable or a name for
    `verifier_named`; by default `exact_match` where there is an answer column; a task with neither can be learned from but not scored.
    `limit` keeps the first rows only; the later ones are not read.

    `preferences` fills `Item.completions` from columns of these names, which the arguments of the same names rename:

        pairs      `chosen`, `rejected`       scores 1 and 0, in this order
        unpaired   `completion`, `label`      score 1 for a label of true or 1, 0 for false or 0
        scored     `completions`, `scores`    two or more texts and as many finite numbers

    A completion is text, or a list of chat messages: one of the assistant, alone or after those of the prompt. Pairs in rows without the
    column `prompt` are whole conversations: what they begin with in common is the prompt, whole messages or, of texts, whole words.

    Errors: `InputError`, one line with the file and the line or row, for a file that is missing, empty or not in its format, a hub dataset
    that cannot be loaded, a column that is missing (with the nearest names), an empty prompt, demonstration or completion, a wrong type,
    a label that is neither 0 nor 1, scores that are not finite or not as many as the completions, and conversations without a prompt.
    """
    if preferences not in get_args(Preferences):
        raise InputError(f"preferences is {preferences!r}; {nearest(str(preferences), get_args(Preferences))}")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    if isinstance(verifier, str):
        if verifier in NEED_REFERENCE and answer is None:
            raise InputError(f"the verifier '{verifier}' compares with a reference answer: set 'answer' to the column that holds it")
        verifier = verifier_named(verifier)
    elif verifier is None:
        verifier = unscored if answer is None else verifier_named("exact_match")
    check_named(source, "the data")
    rows: Iterator[Row]
    if isinstance(source, Live):
        rows, title = (_record(dict(row), f"row {number}") for number, row in enumerate(source.value, 1)), "data"
    elif is_local(source):
        path = Path(source).expanduser()
        if split != "train" or subset is not None:
            raise InputError(f"{path} is a file: it has no subsets, and no split but 'train'")
        rows, title = _file_rows(path), path.stem
    else:
        rows, title = _hub_rows(source, subset, split), f"{source}/{subset}" if subset else source
    given: dict[str, Callable[..., tuple[Prompt, Completions]]] = {
        "none": _prompt_alone,
        "pairs": functools.partial(_pair, chosen=chosen, rejected=rejected),
        "unpaired": functools.partial(_labelled, completion=completion, label=label),
        "scored": functools.partial(_scored, completions=completions, scores=scores),
    }
    item = functools.partial(_item, given=given[preferences], prompt=prompt, demonstration=demonstration, answer=answer, system=system)
    items = tuple(item(index, row) for index, row in enumerate(itertools.islice(rows, limit)))
    if not items:
        raise InputError(f"{source} is empty: it has no rows")
    _check_differences(items)
    return DataTask(name or title, items, verifier)


def _check_differences(items: Sequence[Item]) -> None:
    """Completions of one prompt that are the same text teach nothing: said where there are some, refused where there is nothing else."""
    compared = [item for item in items if len(item.completions) > 1]
    same = [item for item in compared if len({completion.text for completion in item.completions}) == 1]
    if same and len(same) == len(compared):
        raise InputError(f"{same[0].place}: the completions are the same text, here and in every other row, so there is nothing to prefer")
    if same:
        warnings.warn(
            f"{same[0].place}: the completions are the same text, as in {len(same)} of {len(compared)} rows: they teach nothing",
            stacklevel=3,
        )


def live_rows(rows: Any) -> Live:
    """Rows in memory in place of a file's name: a list of dicts, or a `datasets.Dataset`; recorded by their number and a checksum.

    Errors: `InputError` for anything else, naming the first row that is no mapping.
    """
    what = f"data is a {type(rows).__name__}"
    if isinstance(rows, Mapping):
        raise InputError(f"{what} with the keys {', '.join(map(str, list(rows)[:5]))}; accepted: one split of it, or a list of dicts")
    if not hasattr(rows, "__len__") or not hasattr(rows, "__iter__"):
        raise InputError(f"{what}; accepted: a file's or a data set's name, a list of dicts, a datasets.Dataset")
    digest = hashlib.sha256()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{what}, and its row {number} holds {_kind(row)}; accepted: rows with named columns, as dicts")
        digest.update(json.dumps(dict(row), skipkeys=True, default=stable).encode() + b"\n")
    if not len(rows):
        raise InputError("data is empty: it has no rows")
    return Live(f"{IN_MEMORY}{len(rows)} rows, {digest.hexdigest()[:12]}", rows)


def with_system(prompt: Prompt, system: str | None, place: str) -> Prompt:
    """`prompt` after a system message; unchanged if `system` is None.

    Errors: `InputError` naming `place` if the prompt has a system message of its own.
    """
    if system is None:
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if any(message["role"] == "system" for message in messages):
        raise InputError(f"{place}: the prompt has a system message of its own; leave 'system' unset")
    return [{"role": "system", "content": system}, *messages]


def unscored(answer: str, item: Item) -> float:
    """The verifier of a task that has none."""
    raise InputError(
        "the task has no verifier: set 'answer' to the column with the reference answers, or 'verifier' (from Python: reward=)"
    )


def is_local(source: str) -> bool:
    looks = source.endswith(_SUFFIXES) or source.startswith(("./", "../", "~/")) or os.path.isabs(source)
    return looks or (any(mark in source for mark in {"/", os.sep}) and Path(source).exists())


def _file_rows(path: Path) -> Iterator[Row]:
    readers = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise InputError(f"cannot read {path}: a data file must end with {', '.join(_SUFFIXES)}")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*") if p.suffix in readers] if path.parent.is_dir() else []
        raise InputError(f"no such file: {path}{'; ' + nearest(path.name, siblings) if siblings else ''}")
    return readers[path.suffix](path)


def _json_lines(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    place = f"{path} line {number}"
                    yield _record(_json(line.rstrip("\n"), place), place)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text after line {number} ({error.reason})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _json_list(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not text.strip():
        return
    rows = _json(text, str(path))
    if not isinstance(rows, list):
        raise InputError(f"{path}: holds {_kind(rows)}; it must be a list of objects, or name it .jsonl if it has one object a line")
    for number, row in enumerate(rows, 1):
        yield _record(row, f"{path} row {number}")


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if " line " not in place else ""
        raise InputError(f"{place}: invalid JSON, {error.msg} ({line}column {error.colno})") from error


def _record(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{place}: holds {_kind(row)}; each row must be an object with named columns")
    return place, row


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing_package("datasets", "data", what) from error
    return datasets


def _parquet_rows(path: Path) -> Iterator[Row]:
    package = _datasets(f"reading {path}")
    try:
        rows = package.Dataset.from_parquet(str(path))
    except Exception as error:
        raise InputError(f"{path}: not readable as Parquet ({type(error).__name__}: {_first_line(error)})") from error
    for number, row in enumerate(rows, 1):
        yield f"{path} row {number}", row


def _hub_rows(source: str, subset: str | None, split: str) -> Iterator[Row]:
    package = _datasets(f"the hub dataset '{source}'")
    title = f"{source}/{subset}" if subset else source
    away = ""
    try:
        with impatient(source) as away:
            rows = package.load_dataset(source, subset, split=split)
    except Exception as error:
        missing = away and isinstance(error, OSError)
        why = f"the hub cannot be reached ({away})" if missing else f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(f"cannot load the hub dataset '{title}', split '{split}': {why}") from error
    for number, row in enumerate(rows, 1):
        yield f"{title} [{split}] row {number}", row


def _first_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:  # the outermost error of `datasets` says only that something failed
        cause = cause.__cause__
    return normalised(str(cause))[:300]


def _item(
    index: int,
    row: Row,
    *,
    given: Callable[..., tuple[Prompt, Completions]],
    prompt: str,
    demonstration: str | None,
    answer: str | None,
    system: str | None,
) -> Item:
    place, columns = row
    question, completions = given(columns, place, prompt)
    return Item(
        index,
        with_system(question, system, place),
        () if demonstration is None else _demonstrations(_cell(columns, demonstration, place), f"{place}: column '{demonstration}'"),
        None if answer is None else _answer(_cell(columns, answer, place), f"{place}: column '{answer}'"),
        columns,
        place,
        completions,
    )


def _cell(columns: dict[str, Any], name: str, place: str) -> Any:
    if name not in columns:
        raise InputError(f"{place}: there is no column '{name}'; {nearest(name, columns)}")
    check_text(columns[name], f"{place}: column '{name}'")
    return columns[name]


def check_text(value: Any, where: str) -> None:
    """Refuses half of a character (a lone surrogate), which JSON may hold and no tokenizer takes, in any text of a value."""
    broken = next((letter for text in _texts(value) for letter in text if "\ud800" <= letter <= "\udfff"), None)
    if broken is not None:
        raise InputError(f"{where} holds half of a character (the surrogate U+{ord(broken):04X}), which no tokenizer takes")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a cell that is not plain ASCII."""
    if isinstance(value, str):
        if not value.isascii():
            yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _prompt_alone(columns: dict[str, Any], place: str, prompt: str) -> tuple[Prompt, Completions]:
    return _prompt(_cell(columns, prompt, place), f"{place}: column '{prompt}'"), ()


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"{where}: the prompt is empty")
        return value
    if not isinstance(value, list):
        raise InputError(f"{where} holds {_kind(value)}; a prompt must be text or a list of messages with role and content")
    messages = _messages(value, where)
    if not any(message["content"].strip() for message in messages):
        raise InputError(f"{where}: the prompt is empty")
    return messages


def _messages(value: list[Any], where: str) -> Messages:
    messages: Messages = []
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise InputError(f"{where}: message {len(messages) + 1} must be an object with the texts role and content")
        messages.append({key: text for key, text in message.items() if text is not None})  # Arrow fills absent keys with null
    return messages


def _pair(columns: dict[str, Any], place: str, prompt: str, *, chosen: str, rejected: str) -> tuple[Prompt, Completions]:
    names = (chosen, rejected)
    values = [_cell(columns, name, place) for name in names]
    if prompt == _PROMPT and prompt not in columns:
        question, values = _split_off_prompt(columns, values, names, place)
    else:
        question, _ = _prompt_alone(columns, place, prompt)
    texts = [_completion(value, question, f"{place}: column '{name}'") for name, value in zip(names, values, strict=True)]
    return question, (ScoredCompletion(texts[0], 1.0), ScoredCompletion(texts[1], 0.0))


def _split_off_prompt(columns: dict[str, Any], values: list[Any], names: tuple[str, str], place: str) -> tuple[Prompt, list[Any]]:
    """The longest common beginning of two conversations, and what follows it in each."""
    question: Prompt
    if all(isinstance(value, list) for value in values):
        first, second = (_messages(value, f"{place}: column '{name}'") for name, value in zip(names, values, strict=True))
        question = first[: _alike(first, second)]
    elif all(isinstance(value, str) for value in values):
        if _OTHER_PROMPTS & columns.keys() or difflib.get_close_matches(_PROMPT, columns, cutoff=0.85):
            _cell(columns, _PROMPT, place)  # the prompts have another name, so these are no conversations
        # back to the last white space: a word that begins alike and goes on differently is no part of it
        words = re.match(r"(.*\S)\s", values[0][: _alike(*values)], re.DOTALL)
        question = words[1] if words else ""
    else:
        kinds = [_kind(value) for value in values]
        raise InputError(
            f"{place}: column '{names[0]}' holds {kinds[0]} and '{names[1]}' {kinds[1]}; "
            f"without a column '{_PROMPT}' both must be text, or both a list of messages"
        )
    if not question:
        raise InputError(
            f"{place}: there is no column '{_PROMPT}', and '{names[0]}' and '{names[1]}' begin with nothing in common that could be it; "
            f"{nearest(_PROMPT, columns)}"
        )
    return question, [value[len(question) :] for value in values]


def _alike(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many characters or messages two texts or conversations begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _labelled(columns: dict[str, Any], place: str, prompt: str, *, completion: str, label: str) -> tuple[Prompt, Completions]:
    question, _ = _prompt_alone(columns, place, prompt)
    text = _completion(_cell(columns, completion, place), question, f"{place}: column '{completion}'")
    value = _cell(columns, label, place)
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        shown = value if isinstance(value, int | float) else _kind(value)
        raise InputError(f"{place}: column '{label}' holds {shown}; a label must be true, false, 1 or 0")
    return question, (ScoredCompletion(text, float(value)),)


def _scored(columns: dict[str, Any], place: str, prompt: str, *, completions: str, scores: str) -> tuple[Prompt, Completions]:
    question, _ = _prompt_alone(columns, place, prompt)
    values, numbers = _cell(columns, completions, place), _cell(columns, scores, place)
    for name, value, what in ((completions, values, "completions"), (scores, numbers, "scores")):
        if not isinstance(value, list):
            raise InputError(f"{place}: column '{name}' holds {_kind(value)}; it must be a list of {what}")
    if len(values) != len(numbers) or len(values) < 2:
        raise InputError(
            f"{place}: column '{completions}' holds {len(values)} completions and '{scores}' {len(numbers)} scores; "
            "there must be equally many, at least 2"
        )
    texts = [_completion(value, question, f"{place}: column '{completions}'") for value in values]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            shown = number if isinstance(number, float) else _kind(number)
            raise InputError(f"{place}: column '{scores}' holds {shown}; a score must be a finite number")
    return question, tuple(ScoredCompletion(text, float(number)) for text, number in zip(texts, numbers, strict=True))


def _completion(value: Any, question: Prompt, where: str) -> str:
    """A completion's text, without the prompt's messages where it repeats them."""
    if isinstance(value, list):
        messages = _messages(value, where)
        own = [{"role": "user", "content": question}] if isinstance(question, str) else question
        if messages[: len(own)] == own:
            messages = messages[len(own) :]
        if [message["role"] for message in messages] != ["assistant"]:
            raise InputError(f"{where}: after the prompt there must be exactly one message, of the assistant")
        value = messages[0]["content"]
    if not isinstance(value, str):
        raise InputError(f"{where} holds {_kind(value)}; a completion must be text or a list of messages with one of the assistant")
    if not value.strip():
        raise InputError(f"{where}: a completion is empty")
    return value


def _demonstrations(value: Any, where: str) -> tuple[str | Messages, ...]:
    one = not isinstance(value, list) or any(isinstance(part, dict) for part in value)
    return tuple(_demonstration(part, where) for part in ([] if value is None else [value] if one else value))


def _demonstration(value: Any, where: str) -> str | Messages:
    if isinstance(value, list):
        return checked_conversation(value, where)
    if not isinstance(value, str):
        raise InputError(f"{where} holds {_kind(value)}; a demonstration must be text or a list of texts, or of messages")
    if not value.strip():
        raise InputError(f"{where}: a demonstration is empty; write null for a row without one")
    return value


def _answer(value: Any, where: str) -> str:
    if not isinstance(value, str | int | float):
        raise InputError(f"{where} holds {_kind(value)}; a reference answer must be text or a number")
    return str(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
