"""Kinds of charts, as plain Plotly specifications: lines, quantile fans, heat-maps of histograms, stacked bars, evaluations.

The page's script adds fonts and colours of the axes, so that a chart follows the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from unipg.reports.run import Histogram, Run, Series
from unipg.reports.statistics import smooth

COLOURS = ("#2f7ed8", "#e8710a", "#1a9e77", "#9a6ae0", "#d6409f", "#b08800", "#1797b5", "#d64545")
"""Readable on white and on near-black; runs beyond the last one start again from the first."""
DASHES = ("solid", "dot", "dash", "longdash", "dashdot", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
MOST_POINTS = 1000
MOST_COLUMNS = 200
MOST_BINS = 50
FEWEST_TO_SMOOTH = 12
HEIGHT = 300


@dataclass
class Chart:
    """One figure of the page."""

    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = HEIGHT


@dataclass(frozen=True)
class Panel:
    """One chart of metrics over the run: which `keys` (and what each is called), and how to read it."""

    title: str
    keys: dict[str, str]
    caption: str
    percent: bool = False
    """Drawn in percent as long as every value lies in [0, 1]."""
    band: bool = False
    """Whether the spread around the smoothed line is shown."""
    unit: str = ""


@dataclass(frozen=True)
class Curve:
    """One line: of which run, and what it is called beside the run's name."""

    run: int
    label: str
    series: Series


def finite(values: Iterable[float | None]) -> list[float | None]:
    """Six significant digits, and a gap for what cannot be drawn: JSON has neither NaN nor infinity."""
    return [float(f"{value:.6g}") if value is not None and math.isfinite(value) else None for value in values]


def colour(index: int) -> str:
    """The colour of run `index`, or of curve `index` when there is one run."""
    return COLOURS[index % len(COLOURS)]


def faded(hex_colour: str, opacity: float) -> str:
    """The same colour, see-through."""
    red, green, blue = (int(hex_colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Indices of at most `most` points and the two ends: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(values) <= most:
        return list(range(len(values)))
    chosen = {0, len(values) - 1}
    stretches = most // 2
    for k in range(stretches):
        stretch = range(k * len(values) // stretches, (k + 1) * len(values) // stretches)
        chosen |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(chosen)


def titled(title: str, runs: Sequence[Run], index: int) -> str:
    """The title of a chart that shows one run."""
    return title if len(runs) == 1 else f"{title} · {runs[index].label}"


def curves(runs: Sequence[Run], keys: dict[str, str]) -> list[Curve]:
    """The metrics of `keys` (key to label) of which a run has any finite value."""
    return [
        Curve(index, label, run.metrics[key])
        for key, label in keys.items()
        for index, run in enumerate(runs)
        if key in run.metrics and any(map(math.isfinite, run.metrics[key].values))
    ]


def line_chart(runs: Sequence[Run], drawn: Sequence[Curve], panel: Panel, height: int = HEIGHT) -> list[Chart]:
    """Raw values as faint points under a smoothed line; no chart if there is nothing to draw.

    Several runs have one colour each (and one dash a metric); the metrics of a single run have one colour each.
    """
    if not drawn:
        return []
    labels = list(dict.fromkeys(curve.label for curve in drawn))
    percent = panel.percent and all(0 <= v <= 1 for curve in drawn for v in curve.series.values if math.isfinite(v))
    data: list[dict[str, Any]] = []
    for number, curve in enumerate(drawn):
        rank = labels.index(curve.label)
        names = [runs[curve.run].label] * (len(runs) > 1) + [curve.label] * (len(labels) > 1)
        trace = {
            "type": "scatter",
            "name": escape(" · ".join(names) or curve.label),
            "meta": {"run": curve.run},
            "legendgroup": str(number),
            "hovertemplate": "%{y:.1%}" if percent else "%{y:.4g}",
        }
        shade = colour(rank if len(runs) == 1 else curve.run)
        dash = "solid" if len(runs) == 1 else DASHES[rank % len(DASHES)]
        data += _line(curve.series, trace, shade, dash, panel.band)
    axis: dict[str, Any] = {"title": {"text": panel.unit}} | ({"tickformat": ".0%", "rangemode": "tozero"} if percent else {})
    return [Chart(panel.title, panel.caption, data, {"yaxis": axis, "showlegend": len(drawn) > 1}, height)]


def _line(series: Series, trace: dict[str, Any], shade: str, dash: str, band: bool) -> list[dict[str, Any]]:
    kept = [i for i, value in enumerate(series.values) if math.isfinite(value)]
    x, y = [series.iterations[i] for i in kept], [series.values[i] for i in kept]
    line = {"color": shade, "dash": dash, "width": 2}
    shown = thinned(y)
    raw = trace | {"x": [x[i] for i in shown], "y": finite(y[i] for i in shown)}
    if len(y) < FEWEST_TO_SMOOTH:
        return [raw | {"mode": "lines+markers", "line": line, "marker": {"size": 6}}]
    middle = smooth(y)
    traces = [raw | {"mode": "markers", "marker": {"color": shade, "size": 4, "opacity": 0.3}, "showlegend": False}]
    shown = thinned(middle)
    if band:
        spread = [math.sqrt(square) for square in smooth([(a - b) ** 2 for a, b in zip(y, middle, strict=True)])]
        around = [middle[i] + spread[i] for i in shown] + [middle[i] - spread[i] for i in reversed(shown)]
        outline = {"x": [x[i] for i in shown + shown[::-1]], "y": finite(around), "mode": "lines", "line": {"width": 0}, "fill": "toself"}
        traces.append(trace | outline | {"fillcolor": faded(shade, 0.15), "hoverinfo": "skip", "hovertemplate": None, "showlegend": False})
    smoothed = {"x": [x[i] for i in shown], "y": finite(middle[i] for i in shown), "mode": "lines", "line": line}
    traces.append(trace | smoothed | {"hovertemplate": trace["hovertemplate"] + " (smoothed)"})
    return traces


def evaluation_chart(runs: Sequence[Run], task: str, metric: str, percent: bool, caption: str) -> Chart:
    """The metric over the run, with its intervals."""
    data = []
    number = "%{y:.1%}" if percent else "%{y:.4g}"
    low_high = "[%{customdata[0]:.1%}, %{customdata[1]:.1%}]" if percent else "[%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
    for index, run in enumerate(runs):
        found = [
            (evaluations.iteration, result.metrics[metric])
            for evaluations in run.evaluations
            for result in evaluations.results
            if result.task == task and metric in result.metrics and math.isfinite(result.metrics[metric]["value"])
        ]
        if not found:
            continue
        values = [point["value"] for _, point in found]
        low, high = ([point.get(end, point["value"]) for _, point in found] for end in ("low", "high"))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(run.label if len(runs) > 1 else metric),
                "meta": {"run": index},
                "x": [iteration for iteration, _ in found],
                "y": finite(values),
                "error_y": {
                    "type": "data",
                    "array": finite(h - v for h, v in zip(high, values, strict=True)),
                    "arrayminus": finite(v - w for w, v in zip(low, values, strict=True)),
                    "thickness": 1.5,
                    "width": 4,
                },
                "customdata": [list(pair) for pair in zip(finite(low), finite(high), strict=True)],
                "hovertemplate": f"{number} {low_high}",
                "line": {"color": colour(index), "width": 2},
                "marker": {"size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
            }
        )
    axis = {"tickformat": ".0%", "rangemode": "tozero"} if percent else {}
    return Chart(f"{metric} on {task}", caption, data, {"yaxis": axis, "showlegend": len(runs) > 1})


def fan_charts(runs: Sequence[Run], title: str, caption: str, outer: tuple[str, str], inner: tuple[str, str], lines: dict[str, str]) -> list[Chart]:
    """Quantiles on a log axis, one chart a run: bands between the keys of `outer` and of `inner`, and `lines` (key to label)."""
    charts = []
    for index, run in enumerate(runs):
        data: list[dict[str, Any]] = []
        for opacity, (low, high) in ((0.14, outer), (0.28, inner)):
            data += _fan_band(run, index, low, high, faded(colour(index), opacity))
        for rank, curve in enumerate(curves([run], lines)):
            line = {"color": colour(index), "dash": DASHES[rank % len(DASHES)], "width": 2 if rank == 0 else 1.2}
            data.append(_positive(curve.series, index) | {"name": curve.label, "line": line})
        if any(trace["y"] for trace in data):
            axis = {"type": "log", "tickformat": ".3~g", "nticks": 8}
            charts.append(Chart(titled(title, runs, index), caption, data, {"yaxis": axis, "showlegend": True}))
    levels = [math.log10(y) for chart in charts for trace in chart.data for y in trace["y"]]
    for chart in charts:  # one scale for all runs, or side by side they mislead
        slack = max(0.02, 0.05 * (max(levels) - min(levels)))
        chart.layout["yaxis"]["range"] = finite([min(levels) - slack, max(levels) + slack])
    return charts


def _positive(series: Series, run: int) -> dict[str, Any]:
    kept = [i for i, value in enumerate(series.values) if math.isfinite(value) and value > 0]
    shown = [kept[i] for i in thinned([series.values[i] for i in kept])]
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": {"run": run},
        "x": [series.iterations[i] for i in shown],
        "y": finite(series.values[i] for i in shown),
        "hovertemplate": "%{y:.4g}",
    }


def _fan_band(run: Run, index: int, low: str, high: str, fill: str) -> list[dict[str, Any]]:
    if not curves([run], {low: low}) or not curves([run], {high: high}):
        return []
    edge = {"line": {"width": 0}, "legendgroup": low}
    label = f"{low.rpartition('/')[2]} to {high.rpartition('/')[2]}"
    bottom = _positive(run.metrics[low], index) | edge | {"name": low.rpartition("/")[2], "showlegend": False}
    top = _positive(run.metrics[high], index) | edge | {"name": label, "fill": "tonexty", "fillcolor": fill}
    return [bottom, top] if bottom["y"] and top["y"] else []


def heat_maps(runs: Sequence[Run], name: str, title: str, caption: str) -> list[Chart]:
    """Histograms over the iterations, one chart a run, all with the same bins: the darker, the more of the values of that iteration."""
    edges = _common_edges([histogram for run in runs for histogram in run.histograms.get(name, ())])
    charts = []
    for index, run in enumerate(runs):
        rows = [(h.iteration, _shares(h, edges)) for h in run.histograms.get(name, ()) if sum(h.counts) > 0]
        if not rows:
            continue
        size = math.ceil(len(rows) / MOST_COLUMNS)
        columns = [rows[start : start + size] for start in range(0, len(rows), size)]
        shares = [[sum(bins) / len(column) for bins in zip(*(bins for _, bins in column), strict=True)] for column in columns]
        data = {
            "type": "heatmap",
            "x": finite(sum(iteration for iteration, _ in column) / len(column) for column in columns),
            "y": finite(edges),
            "z": [finite(share or None for share in bins) for bins in zip(*shares, strict=True)],
            "zmin": 0,
            "hovertemplate": "iteration %{x}<br>near %{y:.3g}<br>%{z:.1%} of the values<extra></extra>",
            "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        }
        layout = {"xaxis": {"title": {"text": "iteration"}}, "hovermode": "closest"}
        charts.append(Chart(titled(title, runs, index), caption, [data], layout))
    return charts


def _common_edges(histograms: Sequence[Histogram]) -> list[float]:
    """Their own edges where all agree on a few, otherwise even bins over where 99.8 % of the values lie; always finite."""
    all_edges = {tuple(_closed(histogram.edges)) for histogram in histograms if sum(histogram.counts) > 0}
    if len(all_edges) == 1 and len(edges := all_edges.pop()) <= MOST_BINS + 1:
        return list(edges)
    weighed = sorted(
        ((low + high) / 2, low, high, count)
        for histogram in histograms
        for low, high, count in zip((e := _closed(histogram.edges)), e[1:], histogram.counts, strict=False)
        if count > 0
    )
    total, below = sum(count for *_, count in weighed), 0.0
    lowest, highest = math.inf, -math.inf
    for _, low, high, count in weighed:
        if below + count > 0.001 * total and below < 0.999 * total:
            lowest, highest = min(lowest, low), max(highest, high)
        below += count
    return [lowest + (highest - lowest) * k / MOST_BINS for k in range(MOST_BINS + 1)] if lowest < highest else [lowest - 0.5, lowest + 0.5]


def _closed(edges: Sequence[float]) -> list[float]:
    """Infinite outer edges moved to one bin's width from their neighbour."""
    inner = [edge for edge in edges if math.isfinite(edge)] or [0.0]
    width = (inner[-1] - inner[0]) / (len(inner) - 1) if len(inner) > 1 else 1.0
    return [inner[0] - width if edge == -math.inf else inner[-1] + width if edge == math.inf else edge for edge in edges]


def _shares(histogram: Histogram, edges: Sequence[float]) -> list[float]:
    """The histogram's shares in other bins, each of its own bins spread evenly; what lies outside is counted in the bins at the ends."""
    import numpy

    own = _closed(histogram.edges)
    below = numpy.concatenate([[0.0], numpy.cumsum(histogram.counts)]) / sum(histogram.counts)
    inside = numpy.interp(edges, own, below)
    inside[0], inside[-1] = 0.0, 1.0
    return [float(share) for share in numpy.diff(inside)]


def stacked_bars(runs: Sequence[Run], parts: dict[str, str], title: str, caption: Callable[[Run], str], unit: str) -> list[Chart]:
    """Mean of each of `parts` (key to label) in an iteration, stacked, one chart a run; neighbouring iterations share a bar in long runs."""
    charts = []
    for index, run in enumerate(runs):
        drawn = curves([run], parts)
        iterations = sorted({i for curve in drawn for i in curve.series.iterations})
        if not iterations:
            continue
        size = math.ceil(len(iterations) / MOST_COLUMNS)
        bins = [iterations[start : start + size] for start in range(0, len(iterations), size)]
        data = []
        for curve in drawn:
            value = {i: v for i, v in zip(curve.series.iterations, curve.series.values, strict=True) if math.isfinite(v)}
            data.append(
                {
                    "type": "bar",
                    "name": escape(curve.label),
                    "x": finite(sum(group) / len(group) for group in bins),
                    "y": finite(sum(value.get(i, 0.0) for i in group) / len(group) for group in bins),
                    "marker": {"color": colour(list(parts.values()).index(curve.label)), "line": {"width": 0}},
                    "hovertemplate": "%{y:.3g} s",
                }
            )
        layout = {
            "barmode": "stack",
            "bargap": 0.05,
            "showlegend": True,
            "yaxis": {"title": {"text": unit}},
            "xaxis": {"title": {"text": "iteration"}},
        }
        charts.append(Chart(titled(title, runs, index), caption(run), data, layout))
    return charts
