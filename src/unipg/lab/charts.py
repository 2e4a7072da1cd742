"""The pictures of `unipg lab`, as plain Plotly specifications for the page and with matplotlib for the PNG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from unipg.files import generator
from unipg.lab import values_page
from unipg.lab.continuous import Judged
from unipg.lab.grid import Grid, GridResult
from unipg.lab.study import Result
from unipg.reports.charts import COLOURS, SYMBOLS, Chart, colour, finite
from unipg.statistics import Interval

BIAS = "bias: share of the mean gradient that points elsewhere"
NOISE = "noise of one batch / length of the mean gradient"
AXES = {
    "group_size": "rollouts per prompt",
    "lag": "lag of the sampling policy, in steps",
    "clip": "clip range",
    "noise": "share of wrong scores",
}


MOST_CONDITIONS = 4
PLACES = (("top", "center", (0, 12)), ("bottom", "center", (0, -12)), ("middle", "right", (9, 0)), ("middle", "left", (-9, 0)))
"""Where the names of neighbouring marks stand, in turn."""


def noise_of(result: Result | GridResult) -> float:
    """Standard deviation of one batch's gradient over the length of the mean; NaN where the mean is 0."""
    value = result.measured.variance.value
    return math.sqrt(value) if math.isfinite(value) else math.nan


def condition(result: Result) -> str:
    """`8 rollouts, lag 4, clip 0.2, noise 0.1`: what differs from the plainest case is said."""
    parts = [f"{result.group_size} rollouts", f"lag {result.lag}" if result.lag else "on policy"]
    parts += [f"clip {result.clip:g}"] if result.clip is not None else []
    parts += [f"{result.noise:.0%} of scores wrong"] if result.noise else []
    return ", ".join(parts)


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _hover(result: Result) -> str:
    m = result.measured
    mu = f"<br>mu of the nearest J_mu: {m.scale[1] / m.scale[0]:.3g}" if len(m.scale) == 2 and m.scale[0] > 0 else ""
    return (
        f"<b>{escape(result.name)}</b> {escape(result.series)}<br>{condition(result)}<br>compared with {escape(result.objective)}"
        f"<br>cosine {_interval(m.cosine)}<br>bias {_interval(m.bias)}<br>signal to noise {_interval(m.snr)}"
        f"<br>effective sample size {result.ess:.1%}, masked {result.masked:.1%}{mu}"
    )


def _spread(intervals: Sequence[Interval]) -> dict[str, Any]:
    return {
        "type": "data",
        "array": finite(i.high - i.value for i in intervals),
        "arrayminus": finite(i.value - i.low for i in intervals),
        "thickness": 1.2,
        "width": 3,
    }


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each name: all combinations differ for as long as there are any left."""
    return {name: (colour(i), SYMBOLS[(i + i // len(COLOURS)) % len(SYMBOLS)]) for i, name in enumerate(names)}


def lines_over_lags(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Results that differ in their lag alone, by method; those without any signal are left out."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for r in results:
        if math.isfinite(noise_of(r)):
            groups.setdefault((r.name, r.group_size, r.clip, r.noise), []).append(r)
    return [(key[0], group) for key, group in groups.items()]


def bias_variance(results: Sequence[Result]) -> Chart:
    """All methods in one picture: bias to the right, noise upwards; a line joins what differs in the lag alone."""
    looks = _looks(list(dict.fromkeys(r.name for r in results)))
    data: list[dict[str, Any]] = []
    for name, group in lines_over_lags(results):
        shade, symbol = looks[name]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(name),
                "legendgroup": name,
                "showlegend": all(trace["legendgroup"] != name for trace in data),
                "x": finite(r.measured.bias.value for r in group),
                "y": finite(noise_of(r) for r in group),
                "error_x": _spread([r.measured.bias for r in group]),
                "text": [_hover(r) for r in group],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": shade, "width": 1, "dash": "dot"},
                "marker": {"size": 10, "symbol": [symbol if r.lag == 0 else f"{symbol}-open" for r in group], "color": shade},
            }
        )
    layout = {
        "hovermode": "closest",
        "showlegend": True,
        "legend": {"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top"},
        "xaxis": {"title": {"text": BIAS}, "range": [-0.03, 1.05], "zeroline": True},
        "yaxis": {"title": {"text": NOISE}, "type": "log", "tickformat": ".2~g", "nticks": 10},
    }
    caption = (
        "Each mark is one method under one condition. Left is right on average: at 0 the mean gradient points exactly along the gradient "
        "of the objective that the method claims to follow, at 1 none of it does. Low is steady: below 1 a single batch already shows more "
        "signal than noise. Full marks are on policy; open marks were sampled by an older policy, and a dotted line joins the two."
    )
    return Chart("Bias and variance of every method", caption, data, layout, 620)


def directions(results: Sequence[Result]) -> list[Chart]:
    """Bias and signal-to-noise ratio by method, one colour a condition; nothing where there are too many of them to tell apart."""
    names = list(dict.fromkeys(r.name for r in results))[::-1]
    conditions = list(dict.fromkeys(condition(r) for r in results))
    if len(conditions) > MOST_CONDITIONS:
        return []
    charts = []
    for title, field, caption in (
        ("Bias by method", "bias", "How much of the mean gradient points elsewhere than the method's own objective, with 95 % intervals."),
        ("Signal to noise by method", "snr", "Length of the mean gradient over the noise of one batch: how much one batch is worth."),
    ):
        data = []
        for index, where in enumerate(conditions):
            mine = [r for r in results if condition(r) == where and math.isfinite(getattr(r.measured, field).value)]
            values = [getattr(r.measured, field) for r in mine]
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": escape(where),
                    "x": finite(v.value for v in values),
                    "y": [r.name for r in mine],
                    "error_x": _spread(values),
                    "text": [_hover(r) for r in mine],
                    "hovertemplate": "%{text}<extra></extra>",
                    "marker": {"size": 8, "color": colour(index), "symbol": SYMBOLS[index % len(SYMBOLS)]},
                }
            )
        axis = {"type": "category", "categoryarray": names, "categoryorder": "array"}
        layout = {"hovermode": "closest", "showlegend": True, "yaxis": axis, "xaxis": {"rangemode": "tozero"}}
        charts.append(Chart(title, caption, data, layout, 90 + 26 * len(names)))
    return charts


def sweeps(results: Sequence[Result]) -> list[Chart]:
    """Bias and noise along every condition that was given at least two values (a lag at least three), the others at their first."""
    charts = []
    for axis, label in AXES.items():
        values = sorted({getattr(r, axis) for r in results if getattr(r, axis) is not None})
        if len(values) < (3 if axis == "lag" else 2):
            continue
        some = []
        for name in dict.fromkeys(r.name for r in results):
            mine = [r for r in results if r.name == name]
            held = {a: getattr(mine[0], a) for a in AXES if a != axis}
            if axis == "clip":  # without a lag no ratio leaves its range
                held["lag"] = max(r.lag for r in mine)
            some += [r for r in mine if getattr(r, axis) is not None and all(getattr(r, a) == v for a, v in held.items())]
        for title, what in (("Bias", BIAS), ("Noise", NOISE)):
            charts.append(_sweep(some, axis, label, title, what))
    return charts


def _sweep(results: Sequence[Result], axis: str, label: str, title: str, what: str) -> Chart:
    looks = _looks(list(dict.fromkeys(r.name for r in results)))
    data: list[dict[str, Any]] = []
    for name, (shade, symbol) in looks.items():
        mine = sorted((r for r in results if r.name == name), key=lambda r: getattr(r, axis))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(name),
                "x": [getattr(r, axis) for r in mine],
                "y": finite(r.measured.bias.value if title == "Bias" else noise_of(r) for r in mine),
                **({"error_y": _spread([r.measured.bias for r in mine])} if title == "Bias" else {}),
                "text": [_hover(r) for r in mine],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": shade, "width": 1.5},
                "marker": {"size": 7, "symbol": symbol},
            }
        )
    layout = {
        "hovermode": "closest",
        "showlegend": True,
        "xaxis": {"title": {"text": label}},
        "yaxis": {"title": {"text": title.lower()}, "rangemode": "tozero"},
    }
    caption = f"Vertical: {what}. Other conditions are held at the first of their values{', the lag at its largest' * (axis == 'clip')}."
    return Chart(f"{title} by {label}", caption, data, layout, 420 + 6 * len(data))


def mismatch_charts(results: Sequence[Result]) -> list[Chart]:
    """For each algorithm: bias and noise by engine, one colour a correction."""
    charts = []
    for name in dict.fromkeys(r.name for r in results):
        mine = [r for r in results if r.name == name]
        for title, field in (("bias", "bias"), ("signal to noise", "snr")):
            data = []
            for index, correction in enumerate(dict.fromkeys(correction_of(r) for r in mine)):
                some = [r for r in mine if correction_of(r) == correction]
                values = [getattr(r.measured, field) for r in some]
                data.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "name": escape(correction),
                        "x": [engine_of(r) for r in some],
                        "y": finite(v.value for v in values),
                        "error_y": _spread(values),
                        "text": [_hover(r) for r in some],
                        "hovertemplate": "%{text}<extra></extra>",
                        "offsetgroup": str(index),
                        "marker": {"size": 8, "color": colour(index), "symbol": SYMBOLS[index % len(SYMBOLS)]},
                    }
                )
            layout = {
                "hovermode": "closest",
                "scattermode": "group",
                "showlegend": True,
                "xaxis": {"type": "category"},
                "yaxis": {"title": {"text": title}, "rangemode": "tozero"},
            }
            caption = f"{name} on policy, but the trajectories were drawn by the engine named below; colours are corrections. " + (
                "Lower is better: 0 is the right direction." if field == "bias" else "Higher is better: what a correction costs in noise."
            )
            charts.append(Chart(f"{name}: {title} by engine", caption, data, layout, 460))
    return charts


def engine_of(result: Result) -> str:
    return result.series.split(" / ")[0]


def correction_of(result: Result) -> str:
    return result.series.split(" / ")[1]


def grid_chart(grid: Grid) -> Chart:
    """The whole design space: every combination by bias and noise, coloured by what it learnt; published methods are named."""
    data = []
    low, high = colour_range(grid)
    for title, mine in (
        ("combination", [r for r in grid.results if not r.published]),
        ("published", [r for r in grid.results if r.published]),
    ):
        named = title == "published"
        mine = [r for r in mine if math.isfinite(noise_of(r))]
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text" if named else "markers",
                "name": title,
                "x": finite(r.measured.bias.value for r in mine),
                "y": finite(noise_of(r) for r in mine),
                "text": [", ".join(r.published) for r in mine],
                "textposition": [f"{v} {h}" for v, h, _ in itertools.islice(itertools.cycle(PLACES), len(mine))],
                "customdata": [_grid_hover(r) for r in mine],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {
                    "size": 15 if named else 8,
                    "symbol": "star" if named else "circle",
                    "opacity": 1 if named else 0.75,
                    "color": finite(r.learnt for r in mine),
                    "coloraxis": "coloraxis",
                    "line": {"width": 1, "color": "#59636e"},
                },
            }
        )
    layout = {
        "hovermode": "closest",
        "showlegend": True,
        "xaxis": {"title": {"text": BIAS}, "range": [-0.03, 1.05]},
        "yaxis": {"title": {"text": NOISE}, "type": "log", "tickformat": ".2~g", "nticks": 10},
        "coloraxis": {
            "cmin": low,
            "cmax": high,
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": "reward learnt"}, "thickness": 12, "outlinewidth": 0},
        },
    }
    caption = (
        "Every combination of mask, reference, advantage and aggregate that its parts do not refuse: bias to the right, noise upwards, "
        f"colour the exact expected reward after a short training run that starts at {grid.start:.3f}; the lowest quarter "
        "shares the darkest colour. Stars are the parts of published methods, without what those do beside (dynamic sampling, penalties)."
    )
    return Chart("The design space", caption, data, layout, 640)


def colour_range(grid: Grid) -> tuple[float, float]:
    """From the lowest quarter of what was learnt to the most, so that a few failures do not make all others look alike."""
    learnt = sorted(r.learnt for r in grid.results)
    return learnt[len(learnt) // 4], learnt[-1]


def _grid_hover(result: GridResult) -> str:
    parts = "<br>".join(f"{kind}: {escape(symbol)}" for kind, symbol in result.combination.symbols().items())
    head = f"<b>{escape(', '.join(result.published))}</b><br>" if result.published else ""
    return (
        f"{head}rank {result.rank}<br>{parts}<br>bias {_interval(result.measured.bias)}"
        f"<br>noise {noise_of(result):.3f}<br>learnt {result.learnt:.3f} ± {result.learnt_error:.3f}"
    )


# ---------------------------------------------------------------------------------------------------- the PNG

MARKERS = ("o", "s", "D", "^", "P", "X", "*", "p")


def draw_png(
    path: Path, title: str, study: Sequence[Result], mismatch: Sequence[Result], grid: Grid | None, judged: Sequence[Judged] = ()
) -> None:
    """The main picture of each part that was run, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r.name for r in mismatch))
    diffusions = list(dict.fromkeys(j.diffusion for j in judged))
    count = bool(study) + len(names) + bool(grid) + len(diffusions)
    figure = Figure(figsize=(11, 6.5 * count), layout="constrained")
    axes = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    figure.suptitle(title)
    if study:
        _draw_study(axes.pop(0), study)
    for name in names:
        _draw_mismatch(axes.pop(0), name, [r for r in mismatch if r.name == name])
    if grid:
        _draw_grid(axes.pop(0), figure, grid)
    for name in diffusions:
        values_page.draw_on(axes.pop(0), judged, name)
    figure.savefig(path, dpi=130, format="png", metadata={"Software": generator("lab")})


def _draw_study(axes: Any, results: Sequence[Result]) -> None:
    looks = {
        name: (colour(i), MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]) for i, name in enumerate(dict.fromkeys(r.name for r in results))
    }
    for name, group in lines_over_lags(results):
        shade, marker = looks[name]
        axes.plot([r.measured.bias.value for r in group], [noise_of(r) for r in group], ":", color=shade, linewidth=1)
        for r in group:
            bias = r.measured.bias
            spread = [[bias.value - bias.low], [bias.high - bias.value]]
            face = shade if r.lag == 0 else "none"
            axes.errorbar([bias.value], [noise_of(r)], xerr=spread, color=shade, marker=marker, markerfacecolor=face, markersize=8)
    for name, (shade, marker) in looks.items():
        axes.plot([], [], color=shade, marker=marker, linestyle="none", label=name)
    _bias_noise(axes, "Bias and variance of every method (full marks: on policy; open: sampled by an older policy)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _draw_mismatch(axes: Any, name: str, results: Sequence[Result]) -> None:
    engines = list(dict.fromkeys(engine_of(r) for r in results))
    corrections = list(dict.fromkeys(correction_of(r) for r in results))
    for i, correction in enumerate(corrections):
        mine = [r for r in results if correction_of(r) == correction]
        x = [engines.index(engine_of(r)) + 0.8 * ((i + 0.5) / len(corrections) - 0.5) for r in mine]
        bias = [r.measured.bias for r in mine]
        spread = [[b.value - b.low for b in bias], [b.high - b.value for b in bias]]
        axes.errorbar(x, [b.value for b in bias], yerr=spread, fmt=MARKERS[i % len(MARKERS)], color=colour(i), label=correction)
    axes.set_xticks(range(len(engines)), engines)
    axes.set_ylabel("bias")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{name}: bias by engine and correction")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_grid(axes: Any, figure: Any, grid: Grid) -> None:
    shown = [r for r in grid.results if math.isfinite(noise_of(r))]
    low, high = colour_range(grid)
    for mine, style in (
        ([r for r in shown if not r.published], {"s": 30, "marker": "o", "alpha": 0.75}),
        ([r for r in shown if r.published], {"s": 170, "marker": "*", "edgecolors": "black"}),
    ):
        if not mine:
            continue
        x, y = [r.measured.bias.value for r in mine], [noise_of(r) for r in mine]
        marks = axes.scatter(x, y, c=[r.learnt for r in mine], vmin=low, vmax=high, cmap="viridis", **style)
        for r, a, b, (_, horizontal, shift) in zip(mine, x, y, itertools.cycle(PLACES), strict=False):
            anchor = {"right": "left", "left": "right"}.get(horizontal, "center")
            axes.annotate(", ".join(r.published), (a, b), textcoords="offset points", xytext=shift, ha=anchor, va="center", fontsize=8)
    figure.colorbar(marks, ax=axes, label="exact expected reward learnt")
    _bias_noise(axes, "The design space (stars: published methods)")


def _bias_noise(axes: Any, title: str) -> None:
    axes.set_xlabel(BIAS)
    axes.set_ylabel(NOISE)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_title(title)
    axes.grid(alpha=0.3, which="both")
