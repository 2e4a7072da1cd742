"""Critics in continuous time, as `unipg lab --problem sde` shows them: a chart for each diffusion, a picture, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rich.table import Table

from unipg.lab.continuous import METHODS, Judged
from unipg.lab.diffusions import DIFFUSIONS
from unipg.reports import page
from unipg.reports.charts import SYMBOLS, Chart, colour, finite
from unipg.statistics import Interval

ERROR = "error of the values / size of the values"
SCHEMES = {"exact": "exact sampler", "euler": "Euler-Maruyama"}
MARKERS = "osD^P"
WIDE = 120
"""Columns of a terminal that has room for both."""
COLUMNS = (
    "Columns of numbers: dt, the time between two looks at a path. Root mean square error of the values over that of the exact ones, mean "
    "over batches. condition: of the linear system, the worst of all batches."
)


def _lines(judged: Sequence[Judged], diffusion: str) -> list[tuple[int, str, str, list[Judged]]]:
    """Number of the method, its name, the scheme, and its results by falling dt."""
    return [
        (i, method, scheme, sorted(mine, key=lambda j: -j.dt))
        for i, method in enumerate(METHODS)
        for scheme in SCHEMES
        if (mine := [j for j in judged if (j.diffusion, j.method, j.scheme) == (diffusion, method, scheme)])
    ]


def charts(judged: Sequence[Judged]) -> list[Chart]:
    """Error over dt of every method; one chart a diffusion."""
    made = []
    for diffusion in dict.fromkeys(j.diffusion for j in judged):
        data: list[dict[str, Any]] = []
        for i, method, scheme, mine in _lines(judged, diffusion):
            exact = scheme == "exact"
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": escape(METHODS[method][0]),
                    "legendgroup": method,
                    "showlegend": exact,
                    "x": finite(j.dt for j in mine),
                    "y": finite(j.error.value for j in mine),
                    "error_y": {
                        "type": "data",
                        "array": finite(j.error.high - j.error.value for j in mine),
                        "arrayminus": finite(j.error.value - j.error.low for j in mine),
                        "thickness": 1.2,
                        "width": 3,
                    },
                    "hovertemplate": f"{escape(METHODS[method][0])}, {SCHEMES[scheme]}<br>dt %{{x}}: %{{y:.3f}}<extra></extra>",
                    "line": {"color": colour(i), "width": 1.6, "dash": "solid" if exact else "dot"},
                    "marker": {"size": 7, "symbol": SYMBOLS[i] if exact else f"{SYMBOLS[i]}-open", "color": colour(i)},
                }
            )
        layout = {
            "showlegend": True,
            "xaxis": {"title": {"text": "dt"}, "type": "log", "autorange": "reversed"},
            "yaxis": {"title": {"text": ERROR}, "type": "log", "tickformat": ".2~g", "nticks": 8},
        }
        caption = (
            "Finer to the right; 1 is as wrong as values of 0. Solid: paths drawn exactly; dotted: by Euler-Maruyama. The mean square of "
            "TD errors measures the noise of the dynamics, and flattens the values as dt shrinks; the others stay or improve."
        )
        made.append(Chart(DIFFUSIONS[diffusion]().title.capitalize(), caption, data, layout, 420))
    return made


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def numbers(judged: Sequence[Judged]) -> str:
    """Every number as a table of the page."""
    rows = [
        [
            escape(DIFFUSIONS[j.diffusion]().title),
            escape(METHODS[j.method][0]),
            SCHEMES[j.scheme],
            *(f'<td class="number">{cell}</td>' for cell in (f"{j.dt:g}", _shown(j.error), f"{j.condition:.3g}")),
        ]
        for j in judged
    ]
    return page.table(("diffusion", "method", "paths", "dt", "error", "condition"), rows)


def table(judged: Sequence[Judged], width: int) -> Table:
    """For the terminal: methods of each diffusion by dt; those of Euler-Maruyama only where there is room."""
    steps, wide = sorted({j.dt for j in judged}, reverse=True), width >= WIDE
    both = " Exactly drawn paths; in brackets those of Euler-Maruyama." if wide else ""
    made = Table(title="error of the values, by dt", title_justify="left", box=None, padding=(0, 1, 0, 0), caption_justify="left")
    made.caption = COLUMNS + both
    for column in ("diffusion", "method"):
        made.add_column(column, no_wrap=True)
    for column in (*(f"{dt:g}" for dt in steps), "condition"):
        made.add_column(column, justify="right", no_wrap=True)
    for diffusion in dict.fromkeys(j.diffusion for j in judged):
        by_scheme = {(method, scheme): mine for _, method, scheme, mine in _lines(judged, diffusion)}
        for method in METHODS:
            exact, euler = (by_scheme[method, scheme] for scheme in SCHEMES)
            cells = [f"{a.error.value:.3f}" + (f" ({b.error.value:.3f})" if wide else "") for a, b in zip(exact, euler, strict=True)]
            made.add_row(diffusion, method, *cells, f"{max(j.condition for j in (*exact, *euler)):.3g}")
    return made


def draw_on(axes: Any, judged: Sequence[Judged], diffusion: str) -> None:
    """The same chart on matplotlib axes."""
    for i, method, scheme, mine in _lines(judged, diffusion):
        spread = [[j.error.value - j.error.low for j in mine], [j.error.high - j.error.value for j in mine]]
        exact = scheme == "exact"
        axes.errorbar(
            [j.dt for j in mine],
            [j.error.value for j in mine],
            yerr=spread,
            color=colour(i),
            marker=MARKERS[i],
            markerfacecolor=colour(i) if exact else "none",
            linestyle="-" if exact else ":",
            label=METHODS[method][0] if exact else None,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("dt (solid: drawn exactly; dotted: Euler-Maruyama)")
    axes.set_ylabel(ERROR)
    axes.set_title(DIFFUSIONS[diffusion]().title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
