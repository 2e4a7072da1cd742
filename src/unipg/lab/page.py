"""What `unipg lab` leaves behind: a self-contained HTML page, a PNG, a JSON table; and the table on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from unipg.files import Content, check_output, generator, write_output
from unipg.lab import charts, values_page
from unipg.lab.continuous import Diffusions, Judged
from unipg.lab.control import ControlProblem
from unipg.lab.exact import ExactProblem
from unipg.lab.grid import Grid
from unipg.lab.study import Result
from unipg.reports import page
from unipg.reports.html import document
from unipg.statistics import Interval

FILES = ("lab.html", "lab.png", "lab.json")
MOST_ROWS = 10
"""Combinations of the grid shown on the terminal; the page has them all."""
AXES = {"group_size": "rollouts", "lag": "lag", "clip": "clip", "noise": "noise"}
HEAD = ("method", "compared with", "condition", "cosine", "bias", "signal to noise", "one batch", "ESS", "masked", "scale")


@dataclass(frozen=True)
class Findings:
    """Everything that one call of `unipg lab` measured."""

    problem: ExactProblem | ControlProblem | Diffusions
    command: str
    seed: int
    study: list[Result] = field(default_factory=list)
    mismatch: list[Result] = field(default_factory=list)
    grid: Grid | None = None
    values: list[Judged] = field(default_factory=list)
    """Critics of diffusions."""


def write(findings: Findings, folder: Path) -> list[Path]:
    """Writes lab.html, lab.png and lab.json; each is replaced only once it is complete, and only where unipg wrote it.

    Raises `InputError` for a folder that cannot be written, or holds something else under these names.
    """
    title = f"unipg lab: {findings.problem.title}"

    def png(path: Path) -> None:
        charts.draw_png(path, title, findings.study, findings.mismatch, findings.grid, findings.values)

    check_folder(folder)
    contents: tuple[Content, ...] = (render(findings), png, json.dumps(as_json(findings), indent=1, allow_nan=False))
    return [write_output(folder / name, content, "lab") for name, content in zip(FILES, contents, strict=True)]


def check_folder(folder: Path) -> None:
    """Refuses a folder in which `write` would write over what unipg did not write."""
    for name in FILES:
        check_output(folder / name, "lab")


def as_json(findings: Findings) -> dict[str, Any]:
    """Every number, with NaN and infinity as null."""
    problem = findings.problem
    content: dict[str, Any] = {
        "generator": generator("lab"),
        "command": findings.command,
        "seed": findings.seed,
        "problem": {"name": problem.name, "title": problem.title, "contexts": problem.contexts, "trajectories": problem.trajectories},
        "study": [r.as_json() for r in findings.study],
        "mismatch": [r.as_json() for r in findings.mismatch],
    }
    if findings.grid:
        grid = findings.grid
        content["grid"] = {"start": grid.start, "refused": grid.refused, "results": [r.as_json() for r in grid.results]}
    if findings.values:
        content["values"] = [j.as_json() for j in findings.values]
    return _finite(content)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def render(findings: Findings) -> str:
    """The whole page as text."""
    drawn = page.Charts()
    sections = _sections(findings, drawn)
    links = "".join(f'<a href="#{identity}">{escape(title)}</a>' for identity, title, _ in sections)
    body = "\n".join(page.section(identity, title, text) for identity, title, text in sections)
    problem = findings.problem
    outcome = problem.outcome[:1].upper() + problem.outcome[1:]
    what = "Critics against the exact value" if findings.values else "Gradient estimators against the exact gradient"
    top = f'<h1>{what}</h1>\n<p class="outcome">{escape(outcome)}</p>'
    return document(f"unipg lab · {problem.name}", f'{top}\n<nav aria-label="Sections">{links}</nav>\n{body}', drawn, command="lab")


def _sections(findings: Findings, drawn: page.Charts) -> list[tuple[str, str, str]]:
    sections = []
    if findings.values:
        sections.append(("values", "Error of the values over dt", drawn.grid(values_page.charts(findings.values))))
        sections.append(("numbers", "Numbers", values_page.numbers(findings.values)))
    if findings.study:
        main = drawn.figure(charts.bias_variance(findings.study))
        sections.append(("study", "Bias and variance", main + drawn.grid(charts.directions(findings.study))))
        if swept := charts.sweeps(findings.study):
            sections.append(("sweeps", "Along the conditions", drawn.grid(swept)))
    if findings.mismatch:
        sections.append(("mismatch", "Engines that disagree with the trainer", drawn.grid(charts.mismatch_charts(findings.mismatch))))
    if findings.grid:
        sections.append(
            ("grid", "Every combination of parts", drawn.figure(charts.grid_chart(findings.grid)) + _grid_tables(findings.grid))
        )
    if rows := [*findings.study, *findings.mismatch]:
        sections.append(("numbers", "Numbers", LEGEND + page.table(HEAD, (_html_row(r) for r in rows))))
    facts = [["command", f"<code>{escape(findings.command)}</code>"], ["seed", str(findings.seed)]]
    sections.append(("facts", "Where it comes from", page.table(["what", "value"], facts)))
    return sections


LEGEND = """<p class="soft">Cosine and bias: of the mean gradient, against the objective that the method claims to follow: E[R], the
score E[F] of sets of rollouts, the likelihood of the demonstrations, or, for methods that use both, J_mu = E[R] −
mu · KL(demonstrator || policy) at the mu that fits best.
Signal to noise: of one batch. One batch: mean cosine of a single batch's gradient. ESS: effective sample size of the weights on tokens
that carry an advantage. Masked: share of tokens silenced. Scale: weight of each exact gradient in the mean one. Intervals are 95 %, from a
bootstrap over batches. Critics are given the exact values of the sampling policy; every method has equally many rollouts per prompt.</p>"""


def _row(result: Result) -> tuple[str, ...]:
    m = result.measured
    where = result.series or charts.condition(result)
    scale = " + ".join(f"{s:.3g}" for s in m.scale)
    shown = [*(_shown(i) for i in (m.cosine, m.bias, m.snr)), f"{m.batch_cosine.value:.3f}"]
    return (result.name, result.objective, where, *shown, f"{result.ess:.1%}", f"{result.masked:.1%}", scale)


def _html_row(result: Result) -> list[str]:
    words, numbers = _row(result)[:3], _row(result)[3:]
    return [*(escape(cell) for cell in words), *(f'<td class="number">{escape(cell)}</td>' for cell in numbers)]


def _shown(interval: Interval) -> str:
    if not math.isfinite(interval.value):
        return "–"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _grid_tables(grid: Grid) -> str:
    head = ["rank", "published", "mask", "reference", "advantage", "aggregate", "bias", "noise", "learnt"]
    rows = [[escape(cell) for cell in cells] for cells in _grid_rows(grid)]
    refused = "".join(f"<li>{count} × {escape(reason)}</li>" for reason, count in grid.refused.items())
    why = f"<h3>Refused by their parts</h3><ul>{refused}</ul>" if refused else ""
    return f"<details><summary>All {len(rows)} combinations, best first</summary>{page.table(head, rows)}</details>{why}"


def _grid_rows(grid: Grid) -> list[list[str]]:
    return [
        [
            str(r.rank),
            ", ".join(r.published),
            *r.combination.symbols().values(),
            _shown(r.measured.bias),
            f"{charts.noise_of(r):.3f}",
            f"{r.learnt:.3f} ± {r.learnt_error:.3f}",
        ]
        for r in grid.results
    ]


STUDY_COLUMNS = (
    "cosine: between expected and exact gradient. bias: length of their difference over that of the exact one. S/N: length of the expected "
    "gradient over the standard deviation of one batch's. ESS: effective share of the samples. masked: share of tokens that may not move "
    "the policy. lag: gradient steps that the sampling policy lies behind. target: what the exact gradient is of."
)
MISMATCH_COLUMNS = "bias: length of the difference from the exact gradient over that of the exact one; in brackets signal to noise."
GRID_COLUMNS = "bias and noise: against the exact gradient; learnt: reward after a short run."


def terminal_tables(findings: Findings, width: int) -> list[Table]:
    """One table a part, and one for each algorithm of the mismatch study."""
    tables = [_study_table(findings.study, width)] if findings.study else []
    tables += [_mismatch_table(name, findings.mismatch) for name in dict.fromkeys(r.name for r in findings.mismatch)]
    if findings.values:
        tables.append(values_page.table(findings.values, width))
    if findings.grid:
        grid = findings.grid
        shown = [r for r in _grid_rows(grid) if int(r[0]) <= MOST_ROWS or r[1]]
        table = Table(
            title=f"{len(grid.results)} combinations; the best {MOST_ROWS} and the published", title_justify="left", **_legend(GRID_COLUMNS)
        )
        for column in ("rank", "published", "parts", "bias", "noise", "learnt"):
            table.add_column(column, overflow="fold")
        for rank, names, mask, reference, advantage, aggregate, bias, noise, learnt in shown:
            parts = " · ".join((mask, reference, advantage, aggregate))
            table.add_row(rank, names, parts, bias.split(" ")[0], noise, learnt.split(" ")[0])
        tables.append(table)
    return tables


def _legend(text: str) -> dict[str, Any]:
    """What the columns mean, below a table."""
    return {"caption": text, "caption_justify": "left"}


def _study_table(results: Sequence[Result], width: int) -> Table:
    """Conditions that are the same for all have no column; intervals only where there is room."""
    table = Table(title="against the exact gradient", title_justify="left", box=None, padding=(0, 1, 0, 0), **_legend(STUDY_COLUMNS))
    varied = {axis: name for axis, name in AXES.items() if len({getattr(r, axis) for r in results}) > 1}
    for column in ("method", "target"):
        table.add_column(column, no_wrap=True)
    for column in (*varied.values(), "cosine", "bias", "S/N", "ESS", "masked"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in results:
        conditions = ["own" if getattr(r, axis) is None else f"{getattr(r, axis):g}" for axis in varied]
        shown = [_shown(i) if width >= 140 else _shown(i).split(" ")[0] for i in (r.measured.cosine, r.measured.bias, r.measured.snr)]
        table.add_row(r.name, r.objective, *conditions, *shown, f"{r.ess:.0%}", f"{r.masked:.0%}")
    return table


def _mismatch_table(name: str, results: Sequence[Result]) -> Table:
    """Corrections by engines."""
    mine = {(charts.correction_of(r), charts.engine_of(r)): r for r in results if r.name == name}
    engines = list(dict.fromkeys(engine for _, engine in mine))
    table = Table(title=f"{name}: bias (signal/noise) by engine and correction", title_justify="left", **_legend(MISMATCH_COLUMNS))
    table.add_column("correction", no_wrap=True)
    for engine in engines:
        table.add_column(engine, justify="right")
    for correction in dict.fromkeys(correction for correction, _ in mine):
        cells = [mine[correction, engine].measured for engine in engines]
        table.add_row(correction, *(f"{m.bias.value:.3f} ({m.snr.value:.2f})" for m in cells))
    return table
