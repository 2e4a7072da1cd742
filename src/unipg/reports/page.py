"""The page's words and tables: every piece of HTML but the charts' insides. All text that comes from a run is escaped here."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from unipg.reports.charts import Chart, Group, colour
from unipg.reports.run import Run
from unipg.reports.text import (
    change,
    duration,
    is_better_higher,
    is_percent,
    measured,
    metrics_of,
    number,
    outcome,
    overlap,
    points_of,
    tasks_of,
)

MOST_PROMPTS = 30
CALL_FACTS = ("turn", "name", "arguments", "outcome", "result")
SHORT = 32
"""Letters up to which a run's name is not broken over lines."""
BADGES = {"finished": "good", "running": "part", "interrupted": "part", "failed": "bad"}


@dataclass(frozen=True)
class Stage:
    """The sampled answers of one run at one evaluation."""

    run: int
    place: str
    """Ready HTML: which run and when."""
    samples: dict[str, list[dict[str, Any]]]
    """By prompt."""


class Charts:
    """Collects the charts of the page: places go into the text, data into one script at its end."""

    def __init__(self) -> None:
        self.collected: list[Chart] = []

    def figure(self, chart: Chart) -> str:
        """The chart's place in the page, with title and caption."""
        self.collected.append(chart)
        title = escape(chart.title)
        place = f'<div class="plot" role="img" aria-label="{title}" style="min-height:{chart.height}px"></div>'
        return f"<figure><h3>{title}</h3>{place}{_caption(chart.caption)}</figure>"

    def grid(self, charts: Sequence[Chart | Group], kind: str = "grid") -> str:
        """Charts side by side where the window is wide enough; empty for none."""
        inside = "".join(self.group(chart) if isinstance(chart, Group) else self.figure(chart) for chart in charts)
        return f'<div class="{kind}">{inside}</div>' if inside else ""

    def group(self, group: Group) -> str:
        """The same chart of several runs under one title."""
        return (
            f'<figure class="wide"><h3>{escape(group.title)}</h3>{self.grid(group.charts, "grid small")}{_caption(group.caption)}</figure>'
        )


def _caption(text: str) -> str:
    unbroken = escape(text).replace(" %", "&nbsp;%")
    return f"<figcaption>{unbroken}</figcaption>" if text else ""


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def section(identity: str, title: str, body: str) -> str:
    """One part of the page; empty if there is nothing in it."""
    return f'<section id="{identity}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of ready HTML cells; a cell that begins with `<td` is taken as it is."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def labelled(runs: Sequence[Run], index: int) -> str:
    """The run's name with its colour, which the charts use too."""
    label = runs[index].label
    kind = "run" if len(label) <= SHORT else "long run"
    return f'<span class="{kind}"><span class="swatch" style="background:{colour(index)}"></span>{escape(label)}</span>'


def badge(status: str) -> str:
    return f'<span class="badge {BADGES.get(status, "part")}">{escape(status)}</span>'


def header(runs: Sequence[Run]) -> str:
    """What was run and how it came out."""
    if len(runs) == 1:
        run = runs[0]
        return (
            f"<h1>{escape(run.algorithm)} · {escape(run.name)} {badge(run.status)}</h1>"
            f'<p class="outcome">{escape(outcome(run))}.</p>{_progress(run)}{_notes(runs)}'
        )
    rows = [
        [labelled(runs, i), escape(run.algorithm), badge(run.status), f'<td class="text">{escape(outcome(run))}</td>']
        for i, run in enumerate(runs)
    ]
    return f"<h1>{len(runs)} runs compared</h1>{table(['run', 'algorithm', 'status', 'outcome'], rows)}{_notes(runs)}"


def _progress(run: Run) -> str:
    planned = f" of {run.info['iterations']}" if "iterations" in run.info else ""
    written = f"Last iteration written: {max(run.clock)}{escape(planned)}." if run.clock and run.status != "finished" else ""
    return f'<p class="soft">{written}</p>' if written else ""


def _notes(runs: Sequence[Run]) -> str:
    notes = [f"{f'{run.label}: ' if len(runs) > 1 else ''}{note}" for run in runs for note in run.notes]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes" role="note"><strong>Take note</strong><ul>{items}</ul></div>' if notes else ""


def results(runs: Sequence[Run]) -> str:
    """Every evaluation metric at the first and the last evaluation; several runs have a column each."""
    measurements = [(task, metric) for task in tasks_of(runs) for metric in metrics_of(runs, task)]
    if not measurements:
        return ""
    cells = [[_before_after(metric, points_of(run, task, metric)) for run in runs] for task, metric in measurements]
    if len(runs) == 1:
        head = ["task", "metric", f"before ({_when(runs[0], 0)})", f"after ({_when(runs[0], -1)})", "change"]
        columns = [[f'<td class="number">{cell}</td>' for cell in row[0]] for row in cells]
    else:
        moments = [f"{_when(run, 0)} → {_when(run, -1)}" if run.evaluations else "not evaluated" for run in runs]
        head = ["task", "metric", *(f"{labelled(runs, index)}<br>{moment}" for index, moment in enumerate(moments))]
        columns = [[f'<td class="number">{"<br>".join(filter(None, cell)) or "–"}</td>' for cell in row] for row in cells]
    rows = [[escape(task), escape(metric), *column] for (task, metric), column in zip(measurements, columns, strict=True)]
    note = (
        '<p class="soft">Value and 95 % interval at the first and at the last evaluation. Where the intervals overlap the change may be '
        "chance; where they do not, it hardly is.</p>"
    )
    return table(head, rows) + note + _answers_counted(runs) + "".join(_last_and_best(run, len(runs) > 1) for run in runs)


def _last_and_best(run: Run, several: bool) -> str:
    """Of a controller's evaluations, as its run.json has them; empty where it has none, or others."""
    try:
        found = run.info["evaluations"]
        last, best = (f"{number(found[name]['return'])} (iteration {int(found[name]['iteration'])})" for name in ("last", "best"))
        told = f"of {int(found['n'])} evaluations the last returned {last}, the best {best}"
    except (KeyError, TypeError, ValueError):
        return ""
    told = f"{run.label}: {told}" if several else told[0].upper() + told[1:]
    why = "The best was chosen by its number, which is likely too high: <code>unipg evaluate RUN --checkpoint best</code> plays others."
    return f'<p class="soft">{escape(told)}. {why}</p>'


def _when(run: Run, position: int) -> str:
    return f"iteration {run.evaluations[position].iteration}"


def _answers_counted(runs: Sequence[Run]) -> str:
    counts = {}
    for task in tasks_of(runs):
        found = [
            point.get("n", math.nan) for run in runs for metric in metrics_of(runs, task) for point in points_of(run, task, metric)[-1:]
        ]
        sizes = sorted({int(n) for n in found if math.isfinite(n)})
        if sizes:
            counts[task] = " to ".join(dict.fromkeys((str(sizes[0]), str(sizes[-1]))))
    return f'<p class="soft">Measured on {escape(", ".join(f"n = {n} ({task})" for task, n in counts.items()))}.</p>' if counts else ""


def _before_after(metric: str, points: Sequence[dict[str, float]]) -> tuple[str, str, str]:
    """First value, last value and change, as HTML; empty where there is none."""
    shown = [escape(measured(metric, point)) for point in points]
    if len(points) < 2:
        return shown[0] if shown else "", "", ""
    first, last = points[0], points[-1]
    difference = 0.0 if overlap(first, last) or not is_better_higher(metric) else last["value"] - first["value"]
    kind = "good" if difference > 0 else "bad" if difference < 0 else ""
    return shown[0], f"<strong>{shown[-1]}</strong>", f'<span class="{kind}">{escape(change(metric, first, last))}</span>'


def clock_choice(clocks: Sequence[dict[str, dict[str, list[float | None]]]]) -> str:
    """Lets the reader choose what the charts' horizontal axis counts, at first the steps of environments where there are any; empty where
    there is no choice."""
    tables = [table for clock in clocks for table in clock.values()]
    names = [name for name in ("environment steps", "iteration", "optimiser steps", "minutes") if all(name in table for table in tables)]
    choices = "".join(
        f'<label><input type="radio" name="clock" value="{name}"{" checked" if name == names[0] else ""}> {name}</label>' for name in names
    )
    return f"<fieldset><legend>Horizontal axis of the line charts:</legend>{choices}</fieldset>" if len(names) > 1 else ""


def answers(runs: Sequence[Run]) -> str:
    """Sampled answers to the same prompts at the first and the last evaluation."""
    return "".join(_answers_to(runs, task) for task in tasks_of(runs))


def _answers_to(runs: Sequence[Run], task: str) -> str:
    stages = [stage for index in range(len(runs)) for stage in _stages(runs, index, task)]
    asked = Counter(prompt for stage in stages for prompt in stage.samples)
    prompts = [prompt for prompt, _ in asked.most_common()]  # those that were asked everywhere first
    scored = any(map(is_percent, metrics_of(runs, task)))
    blocks = [_prompt(prompt, stages, scored) for prompt in prompts[:MOST_PROMPTS]]
    rest = (
        f'<p class="soft">{len(prompts) - MOST_PROMPTS} more prompts are in evaluations.jsonl.</p>' if len(prompts) > MOST_PROMPTS else ""
    )
    return f"<h3>{escape(task)}</h3>{''.join(blocks)}{rest}" if blocks else ""


def _stages(runs: Sequence[Run], index: int, task: str) -> list[Stage]:
    found = [
        (e.iteration, result.samples) for e in runs[index].evaluations for result in e.results if result.task == task and result.samples
    ]
    stages = []
    for iteration, samples in found[:1] + found[1:][-1:]:
        stage = Stage(index, f"{labelled(runs, index)} · " * (len(runs) > 1) + f"iteration {iteration}", {})
        for sample in samples:
            stage.samples.setdefault(_text(sample.get("prompt")), []).append(sample)
        stages.append(stage)
    return stages


def _prompt(prompt: str, stages: Sequence[Stage], scored: bool) -> str:
    expected = [_text(s["expected"]) for stage in stages for s in stage.samples.get(prompt, ()) if s.get("expected") not in (None, "")]
    answer = f"<p>Expected: <code>{escape(expected[0])}</code></p>" if expected else ""
    rows = []
    for _, of_run in groupby(stages, key=lambda stage: stage.run):
        cells = [
            f"<div>{''.join(_answer(s, stage.place, scored) for s in stage.samples.get(prompt, ())) or _not_asked(stage.place)}</div>"
            for stage in of_run
        ]
        rows.append(f'<div class="answers{" single" * (len(cells) == 1)}">{"".join(cells)}</div>')
    return f'<div class="prompt"><pre>{escape(prompt)}</pre>{answer}{"".join(rows)}</div>'


def _answer(sample: dict[str, Any], place: str, scored: bool) -> str:
    kind, mark = _mark(sample.get("reward"), scored)
    where = f'<div class="where"><span>{place}</span><span class="mark">{escape(mark)}</span></div>'
    text = escape(_text(sample.get("transcript") or sample.get("answer")))
    return f'<div class="answer {kind}">{where}<pre>{text}</pre>{_calls(sample.get("tool_calls"))}</div>'


def _calls(calls: Any) -> str:
    """A table of the tool calls of an answer; empty where there are none."""
    made = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    rows = [[f"<code>{escape(_one_line(call.get(name)))}</code>" for name in CALL_FACTS] for call in made]
    return f"<details><summary>{len(rows)} tool call{'s' * (len(rows) != 1)}</summary>{table(CALL_FACTS, rows)}</details>" if rows else ""


def _one_line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _not_asked(place: str) -> str:
    return f'<div class="answer"><div class="where"><span>{place}</span><span>not among the samples</span></div></div>'


def _mark(reward: Any, scored: bool) -> tuple[str, str]:
    """Right, partly right or wrong where rewards are scores in [0, 1]; otherwise the reward only."""
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        return "", "not scored"
    if not scored:
        return "", f"reward {number(reward)}"
    if reward >= 1:
        return "good", "✓ right"
    return ("part", f"≈ partly right ({number(reward)})") if reward > 0 else ("bad", "✗ wrong")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False, indent=1)


def recipe(runs: Sequence[Run]) -> str:
    """The recipes: what differs between runs first, full text folded."""
    written = [run for run in runs if run.recipe]
    if not written:
        return ""
    differences = ""
    if len(runs) > 1:
        settings = [_flat(run.recipe) for run in runs]
        keys = [key for key in dict.fromkeys(key for one in settings for key in one) if len({one.get(key) for one in settings}) > 1]
        rows = [[f"<code>{escape(key)}</code>", *(_setting(one.get(key)) for one in settings)] for key in keys]
        head = ["setting", *(labelled(runs, index) for index in range(len(runs)))]
        differences = table(head, rows) if rows else "<p>The recipes do not differ.</p>"
    texts = [
        f"<details><summary>Full recipe{f' · {escape(run.label)}' if len(runs) > 1 else ''}</summary>"
        f"<pre>{escape(run.recipe)}</pre></details>"
        for run in written
    ]
    return differences + "".join(texts)


def recordings(runs: Sequence[Run], beside: Path | None) -> str:
    """The films of the runs that have one, by their place relative to the page, or where it is not known to the run folder."""
    shown = []
    for index, run in enumerate(runs):
        if run.recording is None:
            continue
        place = run.recording.name if beside is None else Path(os.path.relpath(run.recording.resolve(), beside.resolve())).as_posix()
        link = escape(quote(place))
        name = f"Recorded episodes of {run.label}"
        film = (
            f'<video controls loop muted preload="metadata" src="{link}" aria-label="{escape(name)}"></video>'
            if run.recording.suffix == ".mp4"
            else f'<img src="{link}" alt="{escape(name)}">'
        )
        title = f"<h3>{labelled(runs, index)}</h3>" if len(runs) > 1 else ""
        shown.append(f'<figure class="film">{title}{film}</figure>')
    note = "Episodes of the trained policy, as filmed by <code>unipg evaluate --record</code> into the run folder, a file of its own there."
    return f'<p class="soft">{note}</p><div class="grid">{"".join(shown)}</div>' if shown else ""


def _setting(value: str | None) -> str:
    return '<td class="soft">not set</td>' if value is None else f'<td class="text"><code>{escape(value)}</code></td>'


def _flat(recipe: str) -> dict[str, str]:
    """`a.b.c` to value; a recipe that is not YAML counts as one setting."""
    import yaml

    def walk(value: Any, path: str) -> Iterable[tuple[str, str]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else str(key))
        else:
            yield path or "recipe", value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)

    try:
        return dict(walk(yaml.safe_load(recipe), "")) if recipe else {}
    except yaml.YAMLError:
        return {"recipe": recipe}


def _joined(key: str) -> Callable[[Run], str]:
    def facts(run: Run) -> str:
        value = run.info.get(key)
        items = value.items() if isinstance(value, dict) else ()
        return ", ".join(f"{name} {f'{inner:,}' if isinstance(inner, int) else inner}" for name, inner in items) or _text(value)

    return facts


def _took(run: Run) -> str:
    seconds = run.info.get("seconds")
    return duration(float(seconds)) if isinstance(seconds, int | float) else ""


FACTS: dict[str, Callable[[Run], str]] = {
    "algorithm": lambda run: run.algorithm,
    "status": lambda run: run.status,
    "iterations": lambda run: _text(run.info.get("iterations")),
    "last iteration written": lambda run: "" if run.status == "finished" else str(max(run.clock, default="")),
    "seed": lambda run: _text(run.info.get("seed")),
    "started": lambda run: _text(run.info.get("started")),
    "resumed": lambda run: ", ".join(map(str, run.info.get("resumed") or ())),
    "finished": lambda run: _text(run.info.get("finished")),
    "time taken": _took,
    "policy": _joined("policy"),
    "machine": _joined("machine"),
    "versions": _joined("versions"),
    "command": lambda run: _text(run.info.get("command")),
    "folder": lambda run: str(run.folder),
}


def facts(runs: Sequence[Run]) -> str:
    """Where, when and with what each run was made."""
    rows = []
    for name, fact in FACTS.items():
        values = [fact(run) for run in runs]
        if any(values):
            rows.append([escape(name), *(f'<td class="text">{escape(value) or "–"}</td>' for value in values)])
    return table(["", *(labelled(runs, index) for index in range(len(runs)))] if len(runs) > 1 else ["", ""], rows)
