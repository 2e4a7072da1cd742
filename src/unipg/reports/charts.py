"""Kinds of charts, as plain Plotly specifications: lines, quantile fans, heat-maps of histograms, stacked bars, evaluations.

The page's script adds fonts and colours of the axes, so that a chart follows the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from typing import Any

import numpy

from unipg.reports.run import Histogram, Run, Series
from unipg.statistics import local_band, smooth

COLOURS = ("#2f7ed8", "#e8710a", "#1a9e77", "#9a6ae0", "#d6409f", "#b08800", "#1797b5", "#d64545")
"""Readable on white and on near-black; runs beyond the last one start again from the first."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
MOST_POINTS = 1000
MOST_COLUMNS = 200
MOST_BINS = 50
FEWEST_TO_SMOOTH = 40
HEIGHT = 300


@dataclass
class Chart:
    """One figure of the page."""

    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = HEIGHT


@dataclass
class Group:
    """The same chart of several runs, side by side."""

    title: str
    caption: str
    charts: list[Chart]


@dataclass(frozen=True)
class Panel:
    """Metrics over the run that belong in one chart: which `keys` (and what each is called), and how to read it."""

    title: str
    keys: dict[str, str]
    caption: str
    percent: bool = False
    """Drawn in percent as long as every value lies in [0, 1]."""
    band: bool = False
    """Whether the middle 80 % of the points around are shown too."""
    smoothed: bool = True
    """Off for what is set rather than measured, and for what is read for its jumps."""
    unit: str = ""
    ticks: str = ""
    """How numbers are written on the vertical axis (d3 format), where the usual way does not suit."""


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


def one_each(runs: Sequence[Run], title: str, caption: str, charts: dict[int, Chart]) -> list[Chart | Group]:
    """Charts that show one run each, by its index: as they are for a single run, a group for several."""
    if len(runs) > 1:
        for index, chart in charts.items():
            chart.title = runs[index].label
        return [Group(title, caption, list(charts.values()))] if charts else []
    for chart in charts.values():
        chart.title, chart.caption = title, f"{chart.caption} {caption}".strip()
    return list(charts.values())


def curves(runs: Sequence[Run], keys: dict[str, str]) -> list[Curve]:
    """The metrics of `keys` (key to label) of which a run has any finite value."""
    return [
        Curve(index, label, run.metrics[key])
        for key, label in keys.items()
        for index, run in enumerate(runs)
        if key in run.metrics and any(map(math.isfinite, run.metrics[key].values))
    ]


def line_charts(runs: Sequence[Run], drawn: Sequence[Curve], panel: Panel, height: int = HEIGHT) -> list[Chart]:
    """Raw values as faint points under a smoothed line; nothing if there is nothing to draw.

    The metrics of a single run share a chart and have one colour each; with several runs each metric has its own chart, and each run its
    colour.
    """
    labels = list(dict.fromkeys(curve.label for curve in drawn))
    if len(runs) > 1 and len(set(panel.keys.values())) > 1:
        return [
            chart
            for label in labels
            for chart in line_charts(
                runs, [c for c in drawn if c.label == label], replace(panel, title=f"{panel.title}: {label}", keys={}), height
            )
        ]
    percent = panel.percent and all(0 <= v <= 1 for curve in drawn for v in curve.series.values if math.isfinite(v))
    data: list[dict[str, Any]] = []
    for number, curve in enumerate(drawn):
        trace = {
            "type": "scatter",
            "name": escape(runs[curve.run].label if len(runs) > 1 else curve.label),
            "meta": {"run": curve.run, "clock": "metrics"},
            "legendgroup": str(number),
            "hovertemplate": "%{y:.1%}" if percent else "%{y:.4g}",
        }
        data += _line(curve.series, trace, colour(number if len(runs) == 1 else curve.run), panel)
    axis: dict[str, Any] = {"title": {"text": panel.unit}, "tickformat": panel.ticks}
    axis |= {"tickformat": ".3~p"} if percent else {}
    values = {v for curve in drawn for v in curve.series.values if math.isfinite(v)}
    if percent or len(values) == 1:  # around a single value the axis would go from 1 below to 1 above it
        axis["rangemode"] = "tozero"
    layout = {"yaxis": axis, "showlegend": len(drawn) > 1 or len(set(panel.keys.values())) > 1}
    return [Chart(panel.title, panel.caption, data, layout, height + _legend_height(data, 62 if height == HEIGHT else 40))] if data else []


def _legend_height(data: Sequence[dict[str, Any]], letters: int = 62) -> int:
    """Room for the lines that a legend of many or long names takes beyond its first."""
    return 19 * (sum(len(trace["name"]) + 8 for trace in data if trace.get("showlegend", True)) // letters)


def _line(series: Series, trace: dict[str, Any], shade: str, panel: Panel) -> list[dict[str, Any]]:
    kept = [i for i, value in enumerate(series.values) if math.isfinite(value)]
    x, y = [series.iterations[i] for i in kept], [series.values[i] for i in kept]
    shown = thinned(y)
    raw = trace | {"x": [x[i] for i in shown], "y": finite(y[i] for i in shown)}
    if not panel.smoothed or len(y) < FEWEST_TO_SMOOTH:
        few = len(y) < FEWEST_TO_SMOOTH
        return [raw | {"mode": "lines+markers" if few else "lines", "line": {"color": shade, "width": 2 if few else 1.3}}]
    weight = min(0.95, 1 - 30 / len(y))
    middle = _centred(y, weight)
    traces = [raw | {"mode": "markers", "marker": {"color": shade, "size": 4, "opacity": 0.3}, "showlegend": False}]
    shown = thinned(middle)
    if panel.band:
        half = round(1 / (1 - weight))
        low, high = local_band(y, window=2 * half)
        ends = [min(i + half, len(y) - 1) for i in shown]  # a window ends half its width after its middle
        outline = {
            "x": [x[i] for i in shown + shown[::-1]],
            "y": finite([low[i] for i in ends] + [high[i] for i in reversed(ends)]),
            "mode": "lines",
            "line": {"width": 0},
            "fill": "toself",
            "fillcolor": faded(shade, 0.18),
            "hoverinfo": "skip",
            "showlegend": False,
        }
        traces.append({key: value for key, value in trace.items() if key != "hovertemplate"} | outline)
    smoothed = {"x": [x[i] for i in shown], "y": finite(middle[i] for i in shown), "mode": "lines", "line": {"color": shade, "width": 2}}
    traces.append(trace | smoothed | {"hovertemplate": trace["hovertemplate"] + " (smoothed)"})
    return traces


def _centred(values: Sequence[float], weight: float) -> list[float]:
    """The moving average taken forwards and backwards, so that it lags nowhere; each way counts by how much it has seen."""
    ahead, back = smooth(values, weight), smooth(values[::-1], weight)[::-1]
    seen = [1 - weight ** (i + 1) for i in range(len(values))]
    return [(a * s + b * t) / (s + t) for a, b, s, t in zip(ahead, back, seen, seen[::-1], strict=True)]


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
                "meta": {"run": index, "clock": "evaluations"},
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
    axis = {"tickformat": ".3~p", "rangemode": "tozero"} if percent else {}
    if len({y for trace in data for y in trace["y"]}) == 1:  # around a single value the axis would go from 1 below to 1 above it
        axis["rangemode"] = "tozero"
    return Chart(f"{metric} on {task}", caption, data, {"yaxis": axis, "showlegend": len(runs) > 1}, HEIGHT + _legend_height(data))


def fan_charts(
    runs: Sequence[Run], title: str, caption: str, bands: Sequence[tuple[str, str]], lines: dict[str, str]
) -> list[Chart | Group]:
    """Quantiles on a log axis, one chart a run: `bands` between two keys each, the outermost first, and `lines` (key to label)."""
    charts = {}
    for index, run in enumerate(runs):
        data: list[dict[str, Any]] = []
        for rank, (low, high) in enumerate(bands):
            data += _fan_band(run, index, low, high, faded(colour(index), 0.14 * (rank + 1)))
        for rank, curve in enumerate(curves([run], lines)):
            line = {"color": colour(index), "dash": "dot" if rank else "solid", "width": 1.2 if rank else 2}
            data.append(_positive(curve.series, index) | {"name": curve.label, "line": line})
        if any(trace["y"] for trace in data):
            axis = {"type": "log", "tickformat": ".3~g", "nticks": 8}
            charts[index] = Chart(title, "", data, {"yaxis": axis, "xaxis": {}, "showlegend": True})
    levels = [math.log10(y) for chart in charts.values() for trace in chart.data for y in trace["y"]]
    for chart in charts.values():
        slack = max(0.02, 0.05 * (max(levels) - min(levels)))
        chart.layout["yaxis"]["range"] = finite([min(levels) - slack, max(levels) + slack])  # one scale, or side by side they mislead
    _share_iterations(charts.values())
    return one_each(runs, title, caption, charts)


def _positive(series: Series, run: int) -> dict[str, Any]:
    kept = [i for i, value in enumerate(series.values) if math.isfinite(value) and value > 0]
    shown = [kept[i] for i in thinned([series.values[i] for i in kept])]
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": {"run": run, "clock": "metrics"},
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


def heat_maps(runs: Sequence[Run], name: str, title: str, caption: str) -> list[Chart | Group]:
    """Histograms over the iterations, one chart a run, all with the same bins and colours: the stronger, the more of the values."""
    edges = _common_edges([histogram for run in runs for histogram in run.histograms.get(name, ())])
    charts = {}
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
        charts[index] = Chart(title, "", [data], layout)
    drawn = [chart.data[0] for chart in charts.values()]
    most = max((share for trace in drawn for bins in trace["z"] for share in bins if share), default=1.0)
    for trace in drawn:
        trace["zmax"] = most
    _share_iterations(charts.values())
    return one_each(runs, title, caption, charts)


def _share_iterations(charts: Iterable[Chart]) -> None:
    """One range of iterations for all of them, so that a shorter run looks shorter."""
    charts = list(charts)
    ends = [x for chart in charts for trace in chart.data for x in trace["x"]]
    for chart in charts:
        chart.layout["xaxis"]["range"] = [min(ends) - 0.5, max(ends) + 0.5]


def _common_edges(histograms: Sequence[Histogram]) -> list[float]:
    """Their own edges where all agree on a few, otherwise even bins over where 99.8 % of the values lie; always finite."""
    all_edges = {tuple(_closed(histogram.edges)) for histogram in histograms if sum(histogram.counts) > 0}
    if len(all_edges) == 1 and len(edges := all_edges.pop()) <= MOST_BINS + 1:
        return list(edges)
    weighed = sorted(
        ((low + high) / 2, low, high, count)
        for histogram in histograms
        for (low, high), count in zip(pairwise(_closed(histogram.edges)), histogram.counts, strict=True)
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
    own = _closed(histogram.edges)
    below = numpy.concatenate([[0.0], numpy.cumsum(histogram.counts)]) / sum(histogram.counts)
    inside = numpy.interp(edges, own, below)
    inside[0], inside[-1] = 0.0, 1.0
    return [float(share) for share in numpy.diff(inside)]


def stacked_bars(runs: Sequence[Run], drawn: Sequence[Curve], title: str, caption: str, own: dict[int, str]) -> list[Chart | Group]:
    """Mean seconds of each curve in an iteration, stacked, one chart a run with its `own` caption; in long runs neighbours share a bar."""
    labels = list(dict.fromkeys(curve.label for curve in drawn))
    charts = {}
    for index in range(len(runs)):
        parts = [curve for curve in drawn if curve.run == index]
        iterations = sorted({i for curve in parts for i in curve.series.iterations})
        if not iterations:
            continue
        size = math.ceil(len(iterations) / MOST_COLUMNS)
        bins = [iterations[start : start + size] for start in range(0, len(iterations), size)]
        data = []
        for curve in parts:
            value = {i: v for i, v in zip(curve.series.iterations, curve.series.values, strict=True) if math.isfinite(v)}
            data.append(
                {
                    "type": "bar",
                    "name": escape(curve.label),
                    "x": [(group[0] + group[-1]) / 2 for group in bins],
                    "width": [group[-1] - group[0] + 1 for group in bins],
                    "y": finite(sum(value.get(i, 0.0) for i in group) / len(group) for group in bins),
                    "marker": {"color": colour(labels.index(curve.label)), "line": {"width": 0}},
                    "hovertemplate": "%{y:.3g} s",
                }
            )
        layout = {
            "barmode": "stack",
            "showlegend": True,
            "yaxis": {"title": {"text": "seconds"}},
            "xaxis": {"title": {"text": "iteration"}},
        }
        charts[index] = Chart(title, own.get(index, ""), data, layout)
    tallest = max((sum(heights) for chart in charts.values() for heights in zip(*(t["y"] for t in chart.data), strict=True)), default=0.0)
    for chart in charts.values():
        chart.layout["yaxis"]["range"] = [0, 1.05 * tallest]
    _share_iterations(charts.values())
    return one_each(runs, title, caption, charts)
