"""Writes the page: one self-contained HTML file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy

from unipg.files import Command, check_output, generator_tag, write_output
from unipg.reports import page, panels, theme
from unipg.reports.charts import MOST_POINTS, finite, thinned
from unipg.reports.run import Run, read_runs

NO_NETWORK = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
"""The browser itself then refuses to load anything, whatever a run's text contains."""
FILMS = "; img-src data: blob: 'self' file:; media-src 'self' file:"
"""What a page with recordings may load beside: files of its own place."""
THINNED = '<p class="soft">Of long curves the lowest and the highest point of each stretch of iterations are drawn.</p>'


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Writes the report of one run folder, or of several side by side, and returns where it is.

    The file is replaced only once it is complete, and only where unipg wrote it. Raises `InputError` for a folder that is not a run's, for
    a file in it that cannot be read, and for an output that cannot be written or holds something else.
    """
    check_output(Path(output), "report")
    found = read_runs([Path(folder) for folder in runs])
    return write_output(Path(output), render(found, Path(output).parent), "report")


def render(runs: Sequence[Run], beside: Path | None = None) -> str:
    """The whole page as text; `beside`: the folder that it is going to lie in, to which links to recordings are relative."""
    clocks = [_clocks(run) for run in runs]
    charts = page.Charts()
    films = page.recordings(runs, beside)
    body, links = _body(runs, charts, films)
    title = runs[0].label if len(runs) == 1 else " · ".join(run.label for run in runs)
    top = f"""{page.header(runs)}
<nav aria-label="Sections">{links}</nav>
{page.clock_choice(clocks) if charts.collected else ""}{THINNED if max(len(run.clock) for run in runs) > MOST_POINTS else ""}"""
    return document(f"{title} · unipg report", f"{top}\n{body}", charts, clocks, films=bool(films))


def document(
    title: str,
    main: str,
    charts: page.Charts | None = None,
    clocks: Sequence[Any] = (),
    *,
    command: Command = "report",
    films: bool = False,
) -> str:
    """A self-contained page around ready HTML; `charts` are those that its figures stand for; without any, no script is embedded.

    `command`: whose page it is, which is written into it. `films`: whether it shows files that lie beside it.
    """
    from plotly.offline import get_plotlyjs

    scripts = ""
    if charts is not None:
        data = page.embedded([{"data": c.data, "layout": c.layout, "height": c.height} for c in charts.collected])
        scripts = f"""<noscript><p class="notes">The charts need JavaScript; tables and answers do not.</p></noscript>
<script type="application/json" id="charts">{data}</script>
<script type="application/json" id="clocks">{page.embedded(list(clocks))}</script>
<script>{get_plotlyjs()}</script>
<script>{theme.SCRIPT}</script>"""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{generator_tag(command)}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK.replace("; img-src data: blob:", FILMS) if films else NO_NETWORK}">
<title>{escape(title)}</title>
<style>{theme.STYLE}</style>
</head>
<body>
<main>
{main}
</main>
{scripts}
</body>
</html>
"""


def _body(runs: Sequence[Run], charts: page.Charts, films: str) -> tuple[str, str]:
    """Every section that has something to show, and the links to them."""
    contents = {
        ("results", "Results"): page.results(runs),
        ("recording", "Recording"): films,
        ("learning", "Learning"): charts.grid(panels.learning_charts(runs)),
        ("gate", "Gate between demonstrations and rollouts"): charts.grid(panels.gate_charts(runs)),
        ("distributions", "Distributions"): charts.grid(panels.distribution_charts(runs)),
        ("ratios", "Importance ratios and masks"): charts.grid(panels.ratio_charts(runs)),
        ("critic", "Critic"): charts.grid(panels.critic_charts(runs)),
        ("decoder", "Decoder"): charts.grid(panels.decoder_charts(runs)),
        ("replay", "Replay"): charts.grid(panels.replay_charts(runs)),
        ("components", "Components"): charts.grid(panels.component_charts(runs)),
        ("optimisation", "Optimisation"): charts.grid(panels.optimisation_charts(runs)),
        ("tools", "Tool calls"): charts.grid(panels.tool_charts(runs)),
        ("strata", "Strata"): charts.grid(panels.strata_charts(runs)),
        ("sets", "Sets"): charts.grid(panels.set_charts(runs)),
        ("curvature", "Curvature"): charts.grid(panels.curvature_charts(runs)),
        ("sampling", "Sampling"): charts.grid(panels.sampling_charts(runs)),
        ("time", "Time"): charts.grid(panels.time_charts(runs)),
        ("others", "Other measurements"): charts.grid(panels.other_charts(runs), "grid small"),
        ("answers", "Sampled answers"): page.answers(runs),
        ("recipe", "Recipe" if len(runs) == 1 else "Recipes"): page.recipe(runs),
        ("facts", "Where it comes from"): page.facts(runs),
    }
    filled = {place: text for place, text in contents.items() if text}
    links = "".join(f'<a href="#{identity}">{escape(title)}</a>' for identity, title in filled)
    return "\n".join(page.section(identity, title, text) for (identity, title), text in filled.items()), links


def _clocks(run: Run) -> dict[str, dict[str, list[float | None]]]:
    """Steps and minutes by iteration, for the axis that the reader chooses: of metrics lines and of evaluations."""
    ticks = [(float(iteration), step, seconds) for iteration, (step, seconds) in run.clock.items()]
    known = [(step, seconds) for _, step, seconds in ticks if math.isfinite(step + seconds)]
    steps, seconds = zip((0.0, 0.0), *known, strict=True)
    evaluated = [(float(e.iteration), e.step, float(numpy.interp(e.step, steps, seconds)) if known else math.nan) for e in run.evaluations]
    taken = run.metrics.get(panels.STEPS)
    if taken is None:
        return {"metrics": _clock(ticks, []), "evaluations": _clock(evaluated, [])}
    played = dict(zip(taken.iterations, taken.values, strict=True))
    begun = [(-1.0, 0.0), *sorted((float(i), value) for i, value in played.items())]
    iterations, values = zip(*begun, strict=True)  # an evaluation comes before the iteration whose number it has
    return {
        "metrics": _clock(ticks, [played.get(int(i), math.nan) for i, _, _ in ticks]),
        "evaluations": _clock(evaluated, [float(numpy.interp(i - 1, iterations, values)) for i, _, _ in evaluated]),
    }


def _clock(ticks: Sequence[tuple[float, float, float]], played: Sequence[float]) -> dict[str, list[float | None]]:
    """Columns of `(iteration, step, seconds)` and environment steps, thinned; those only that never run backwards."""
    iterations, steps, seconds = (list(column) for column in zip(*ticks, strict=True)) if ticks else ([], [], [])
    shown = thinned(iterations)
    table = {"iteration": finite(iterations[i] for i in shown)}
    columns = (("environment steps", played), ("optimiser steps", steps), ("minutes", [second / 60 for second in seconds]))
    for name, column in columns:
        if len(column) == len(ticks) and all(map(math.isfinite, column)) and all(a <= b for a, b in pairwise(column)):
            table[name] = finite(column[i] for i in shown)
    return table
