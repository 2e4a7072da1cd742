"""The docs say what the code does."""

import re
import runpy
from pathlib import Path

import pytest

from unipg.algorithms import registered
from unipg.cli import main
from unipg.laws import LAWS
from unipg.reports.explain import explanation, reference

ROOT = Path(__file__).parent.parent


def test_the_algorithm_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8") == reference(registered()), "run: make docs"


def test_the_page_of_claims_is_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == generate["claims"](ROOT / "benchmarks" / "results"), "run: make docs"
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (ROOT / "docs" / picture).is_file()
    scripts = {algorithm.claim for algorithm in registered().values() if algorithm.claim}
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("name", registered())
def test_explain_says_everything(name, capsys) -> None:
    assert main(["explain", name]) == 0
    text = capsys.readouterr().out
    algorithm = registered()[name]
    assert algorithm.paper in text
    assert algorithm.equation in text
    for parameter in re.findall(r"`algorithm\.(\w+)`", text):
        assert hasattr(algorithm(), parameter)
    assert explanation(algorithm) in (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")


def test_the_live_table_as_json(capsys) -> None:
    import json

    assert main(["algorithms", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in rows} == set(registered())
    assert all(set(r) == {"name", "mask", "reference", "advantage", "likelihood", "data", "source"} for r in rows)
    assert all(all(r.values()) for r in rows)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("law", LAWS)
def test_the_part_in_the_laws_page_keeps_the_laws(law) -> None:
    text = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.S)[0]
    names: dict = {"__name__": "laws_page"}
    exec(code.replace("from __future__ import annotations", ""), names)
    LAWS[law](names["Mine"]())
    assert law in text
