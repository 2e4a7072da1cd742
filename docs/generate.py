"""Writes what is derived from code and results: the algorithm reference, the page of claims, the keys of recipes (`unipg keys`), and what
type checkers know of algorithms.

`make docs` runs it; a test checks that all are up to date.
"""

import json
from pathlib import Path
from typing import Any

from unipg import algorithms as package
from unipg.algorithms import registered
from unipg.reports.explain import reference
from unipg.settings import KEYS
from unipg.training.described import described

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "benchmarks" / "results"
HEAD = """# Published claims, run again

Each claim of a paper that a laptop can test, on a toy, with the library's own loop: what held, what did not, and by how much. A piece that
does not hold is a finding, not an error. Intervals are 95 % over seeds. The scripts are in `benchmarks/claims/`;
[their page](../benchmarks/README.md) says how to run one. Written by `docs/generate.py` from the kept results.
"""


def claims(results: Path) -> str:
    """The page of claims, from every kept result that has pieces to check."""
    kept = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(results.glob("*.json"))]
    found = [(path, claim) for path, claim in kept if claim.get("assertions")]
    overview = ["| claim | source | pieces that hold |", "|---|---|---|"]
    sections = []
    for path, claim in found:
        held = sum(piece["passed"] for piece in claim["assertions"])
        overview.append(f"| [{claim['claim']}](#{path.stem}) | {claim['source']} | {held} of {len(claim['assertions'])} |")
        sections.append(section(path, claim))
    return "\n".join([HEAD, *overview, "", *sections])


def section(path: Path, claim: dict[str, Any]) -> str:
    place = f"../benchmarks/results/{path.stem}"
    lines = [f'## {claim["claim"]} <a id="{path.stem}"></a>', "", f"{claim['source']}; {claim['date'][:10]}, `{claim['command']}`."]
    lines += [f"Scores, settings and machine: [{path.stem}.md]({place}.md).", "", "| piece | mean over seeds | |", "|---|---|---|"]
    for piece in claim["assertions"]:
        verdict = "holds" if piece["passed"] else "**does not hold**"
        spread = "" if piece["low"] is None else f" [{piece['low']:.3f}, {piece['high']:.3f}]"  # one seed has none
        lines.append(f"| {piece['claim']} | {piece['value']:.3f}{spread}, n = {piece['n']} | {verdict} |")
    figure = [f"![{claim['claim']}]({place}.png)", ""] if path.with_suffix(".png").is_file() else []
    return "\n".join([*lines, "", *figure])


def stub() -> str:
    """`unipg/algorithms/__init__.pyi`: the classes that the package finds by itself."""
    kinds = sorted(registered().values(), key=lambda kind: (kind.__module__, kind.__name__))
    own = [f"from unipg.algorithms.base import {name} as {name}" for name in package._OWN]
    return "\n".join(
        ["# Written by docs/generate.py.", *own, *(f"from {k.__module__} import {k.__name__} as {k.__name__}" for k in kinds), ""]
    )


PAGES = {
    FOLDER.parent / "src" / "unipg" / "algorithms" / "__init__.pyi": stub,
    FOLDER / "algorithms.md": lambda: reference(registered()),
    FOLDER / "claims.md": lambda: claims(RESULTS),
    KEYS: lambda: json.dumps(described(), indent=1, ensure_ascii=False) + "\n",
}

if __name__ == "__main__":
    for target, text in PAGES.items():
        target.write_text(text(), encoding="utf-8")
        print(target)
