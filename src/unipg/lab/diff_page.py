"""`unipg diff` on the terminal and as a page."""

from __future__ import annotations

import math
from html import escape

from rich.console import Group
from rich.table import Table
from rich.text import Text

from unipg.lab.diff import Difference, GroupDifference
from unipg.reports import page
from unipg.reports.html import document

MEANING = (
    "cosine 1: the same direction, only the length differs (a learning rate could make up for it); 0: unrelated; below 0: opposed",
    "norm ratio: |gradient of B| / |gradient of A|, before any clipping",
)


def tables(difference: Difference) -> Group:
    """Parts, gradients and rows as terminal tables."""
    a, b = difference.first, difference.second
    parts = Table(title=f"A = {a}, B = {b}: parts", title_justify="left", show_lines=True)
    for column in ("part", a, b, ""):
        parts.add_column(column, overflow="fold")
    for row in difference.parts:
        parts.add_row(row["part"], row["first"], row["second"], "" if row["same"] == "yes" else "differs")
    batch = ", ".join(f"{value:.0f} {name}" for name, value in difference.batch.items())
    noted = [Text(f"note: {note}") for note in difference.notes]
    if not difference.groups:
        return Group(parts, *noted)
    gradients = Table(
        title=f"gradients on the same batch ({batch})", title_justify="left", caption="\n".join(MEANING), caption_justify="left"
    )
    for column in ("parameters", "count", "cosine", "norm ratio B/A"):
        gradients.add_column(column, justify="left" if column == "parameters" else "right")
    for group in (difference.total, *difference.groups):
        gradients.add_row(*_cells(group), style="bold" if group is difference.total else "")
    most = Table(title=f"rows on which they differ most: {difference.rows_are}", title_justify="left")
    asked = any(r.prompt for r in difference.rows)
    for column in ("source", "reward", a, b, "share", *(["prompt"] if asked else []), "answer" if asked else "row"):
        most.add_column(column, justify="right" if column in ("reward", a, b, "share") else "left", overflow="fold")
    for r in difference.rows:
        prompt = [_cut(r.prompt, 40)] if asked else []
        numbers = f"{r.reward:g}", f"{r.first:+.3g}", f"{r.second:+.3g}", f"{r.share:.1%}"
        most.add_row(r.source, *numbers, *prompt, _cut(r.answer, 30))
    return Group(parts, gradients, *([most] if difference.rows else []), *noted)


def _cells(group: GroupDifference) -> list[str]:
    cosine = "–" if math.isnan(group.cosine) else f"{group.cosine:.4f}"
    ratio = "–" if math.isnan(group.norm_ratio) else f"{group.norm_ratio:.4g}"
    return [group.name, f"{group.parameters:,}", cosine, ratio]


def render(difference: Difference) -> str:
    """The page as text."""
    a, b = escape(difference.first), escape(difference.second)
    total = difference.total
    over = "all" if total.name == "all" else f"{total.name}'s"
    outcome = (
        f"cosine {_cells(total)[2]}, norm ratio {_cells(total)[3]} over {over} {total.parameters:,} parameters"
        if difference.groups
        else "their gradients cannot be compared"
    )
    parts = page.table(
        ["part", a, b, ""],
        (
            [
                escape(r["part"]),
                f'<td class="text"><code>{escape(r["first"])}</code></td>',
                f'<td class="text"><code>{escape(r["second"])}</code></td>',
                "same" if r["same"] == "yes" else "<strong>differs</strong>",
            ]
            for r in difference.parts
        ),
    )
    gradients = page.table(
        ["parameters", "count", "cosine", "norm ratio B/A"], ([escape(c) for c in _cells(g)] for g in (total, *difference.groups))
    )
    rows = page.table(
        ["source", "reward", a, b, "share", "prompt", "answer"],
        (
            [
                escape(r.source),
                f"{r.reward:g}",
                f"{r.first:+.3g}",
                f"{r.second:+.3g}",
                f"{r.share:.1%}",
                f'<td class="text">{escape(r.prompt)}</td>',
                f'<td class="text">{escape(r.answer)}</td>',
            ]
            for r in difference.rows
        ),
    )
    shares = [f"{share:.0%}" for share in difference.positions]
    places = page.table([f"{10 * i}–{10 * i + 10} %" for i in range(10)], [shares]) if shares else ""
    by_sign = difference.by_sign
    signs = page.table([escape(s) for s in by_sign], [[f"{share:.0%}" for share in by_sign.values()]]) if by_sign else ""
    told = "".join(f"<li>{escape(note)}</li>" for note in difference.notes)
    notes = "".join(f'<p class="soft">{escape(text[:1].upper() + text[1:])}.</p>' for text in MEANING)
    body = "\n".join(
        (
            page.section("parts", "Parts", parts),
            page.section("notes", "Take note", f"<ul>{told}</ul>" if told else ""),
            page.section("gradients", "Gradients on the same batch", gradients + notes if difference.groups else ""),
            page.section("rows", f"Rows on which they differ most: {difference.rows_are}", rows if difference.rows else ""),
            page.section("positions", "Share of the difference along the answer, from its beginning to its end", places),
            page.section("signs", "Share of the difference by what A does to the token", signs),
        )
    )
    main = f'<h1>A = {a}, B = {b}</h1><p class="outcome">{outcome}.</p>\n{body}'
    return document(f"unipg diff {a} {b}", main, command="diff")


def _cut(text: str, most: int) -> str:
    """The beginning of a text, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
