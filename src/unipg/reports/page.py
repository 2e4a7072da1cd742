"""The page's words and tables: every piece of HTML but the charts' insides. All text that comes from a run is escaped here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from unipg.reports.charts import Chart, colour
from unipg.reports.run import Run
from unipg.reports.text import change, duration, is_percent, measured, metrics_of, number, outcome, overlap, points_of, tasks_of

MOST_PROMPTS = 30
BADGES = {"finished": "good", "running": "part", "interrupted": "part", "failed": "bad"}


class Charts:
    """Collects the charts of the page: places go into the text, data into one script at its end."""

    def __init__(self) -> None:
        self.collected: list[Chart] = []

    def figure(self, chart: Chart) -> str:
        """The chart's place in the page, with title and caption."""
        self.collected.append(chart)
        title = escape(chart.title)
        caption = f"<figcaption>{escape(chart.caption)}</figcaption>" if chart.caption else ""
        place = f'<div class="plot" role="img" aria-label="{title}" style="min-height:{chart.height}px"></div>'
        return f"<figure><h3>{title}</h3>{place}{caption}</figure>"

    def grid(self, charts: Sequence[Chart], kind: str = "grid") -> str:
        """Charts side by side where the window is wide enough."""
        return f'<div class="{kind}">{"".join(map(self.figure, charts))}</div>'


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
    return f'<span class="swatch" style="background:{colour(index)}"></span>{escape(runs[index].label)}'


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
    done, planned = max(run.clock, default=0), run.info.get("iterations")
    if run.status == "finished" or not isinstance(planned, int):
        return ""
    return f'<p class="soft">Written up to iteration {done} of {planned}.</p>'


def _notes(runs: Sequence[Run]) -> str:
    notes = [f"{f'{run.label}: ' if len(runs) > 1 else ''}{note}" for run in runs for note in run.notes]
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes" role="note"><strong>Take note</strong><ul>{items}</ul></div>' if notes else ""


def results(runs: Sequence[Run]) -> str:
    """Every evaluation metric at the first and the last evaluation."""
    rows = []
    for task in tasks_of(runs):
        for metric in metrics_of(runs, task):
            row = [escape(task), escape(metric)]
            for run in runs:
                row += _before_after(metric, points_of(run, task, metric))
            rows.append(row)
    if not rows:
        return ""
    columns = ["before", "after", "change"]
    head = ["task", "metric", *(columns if len(runs) == 1 else (f"{labelled(runs, i)}<br>{name}" for i in range(len(runs)) for name in columns))]
    note = (
        '<p class="soft">Value and 95 % interval at the first and the last evaluation. Where the intervals overlap the change may be chance; '
        "that they do not is strong evidence of a real one.</p>"
    )
    return table(head, rows) + note + _answers_counted(runs)


def _answers_counted(runs: Sequence[Run]) -> str:
    counts = {}
    for task in tasks_of(runs):
        found = [point.get("n", math.nan) for run in runs for metric in metrics_of(runs, task) for point in points_of(run, task, metric)[-1:]]
        sizes = sorted({int(n) for n in found if math.isfinite(n)})
        if sizes:
            counts[task] = " to ".join(dict.fromkeys((str(sizes[0]), str(sizes[-1]))))
    return f'<p class="soft">Measured on {escape(", ".join(f"n = {n} ({task})" for task, n in counts.items()))}.</p>' if counts else ""


def _before_after(metric: str, points: Sequence[dict[str, float]]) -> list[str]:
    if not points:
        return ["–", "–", "–"]
    cells = [f'<td class="number">{escape(measured(metric, point))}</td>' for point in points]
    if len(points) == 1:
        return [cells[0], "–", "–"]
    moved, first, last = change(metric, points[0], points[-1]), points[0], points[-1]
    kind = "" if overlap(first, last) else " good" if last["value"] > first["value"] else " bad" if last["value"] < first["value"] else ""
    return [cells[0], cells[-1], f'<td class="number{kind}">{escape(moved) or "–"}</td>']


def clock_choice(clocks: Sequence[dict[str, list[float]]]) -> str:
    """Lets the reader choose what the charts' horizontal axis counts; empty where there is no choice."""
    names = [name for name in ("iteration", "optimiser steps", "minutes") if all(name in clock for clock in clocks)]
    choices = "".join(
        f'<label><input type="radio" name="clock" value="{name}"{" checked" if name == "iteration" else ""}> {name}</label>' for name in names
    )
    return f"<fieldset><legend>Horizontal axis of the line charts:</legend>{choices}</fieldset>" if len(names) > 1 else ""


def answers(runs: Sequence[Run]) -> str:
    """Sampled answers to the same prompts at the first and the last evaluation."""
    return "".join(_answers_to(runs, task) for task in tasks_of(runs))


def _answers_to(runs: Sequence[Run], task: str) -> str:
    scored = any(map(is_percent, metrics_of(runs, task)))
    stages: list[tuple[int, str, dict[str, list[dict[str, Any]]]]] = []  # run, where in it, samples by prompt
    for index, run in enumerate(runs):
        found = [(e.iteration, r.samples) for e in run.evaluations for r in e.results if r.task == task and r.samples]
        for iteration, samples in [found[0], found[-1]] if len(found) > 1 else found:
            by_prompt: dict[str, list[dict[str, Any]]] = {}
            for sample in samples:
                by_prompt.setdefault(_text(sample.get("prompt")), []).append(sample)
            stages.append((index, f"iteration {iteration}", by_prompt))
    count = {prompt: sum(prompt in by_prompt for *_, by_prompt in stages) for *_, found_prompts in stages for prompt in found_prompts}
    prompts = sorted(count, key=lambda prompt: -count[prompt])  # those that were asked everywhere first
    blocks = [_prompt(runs, prompt, stages, scored) for prompt in prompts[:MOST_PROMPTS]]
    rest = f'<p class="soft">{len(prompts) - MOST_PROMPTS} more prompts are in evaluations.jsonl.</p>' if len(prompts) > MOST_PROMPTS else ""
    return f"<h3>{escape(task)}</h3>{''.join(blocks)}{rest}" if blocks else ""


def _prompt(runs: Sequence[Run], prompt: str, stages: Sequence[tuple[int, str, dict[str, list[dict[str, Any]]]]], scored: bool) -> str:
    expected = [_text(s["expected"]) for *_, found in stages for s in found.get(prompt, ()) if s.get("expected") not in (None, "")]
    answer = f"<p>Expected: <code>{escape(expected[0])}</code></p>" if expected else ""
    cells = []
    for index, where, found in stages:
        place = f"{labelled(runs, index)} · {where}" if len(runs) > 1 else where
        cells += [_answer(sample, place, scored) for sample in found.get(prompt, ())] or [_not_asked(place)]
    kind = "answers single" if len(stages) == 1 else "answers"
    return f'<div class="prompt"><pre>{escape(prompt)}</pre>{answer}<div class="{kind}">{"".join(cells)}</div></div>'


def _answer(sample: dict[str, Any], place: str, scored: bool) -> str:
    kind, mark = _mark(sample.get("reward"), scored)
    where = f'<div class="where"><span>{place}</span><span class="mark">{escape(mark)}</span></div>'
    return f'<div class="answer {kind}">{where}<pre>{escape(_text(sample.get("answer")))}</pre></div>'


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
    texts = "".join(
        f"<details><summary>Full recipe{f' · {escape(run.label)}' if len(runs) > 1 else ''}</summary><pre>{escape(run.recipe)}</pre></details>"
        for run in written
    )
    return differences + texts


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
    "iterations": lambda run: f"{max(run.clock, default=0)} of {run.info['iterations']}" if "iterations" in run.info else "",
    "seed": lambda run: _text(run.info.get("seed")),
    "started": lambda run: _text(run.info.get("started")),
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
