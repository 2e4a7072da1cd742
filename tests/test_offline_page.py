"""docs/offline.md: the commands and the Python that make and check a dataset run as they stand there, on a shorter run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from unipg.cli import main
from unipg.replay import open_data
from unipg.replay.checks import KINDS

TEXT = (Path(__file__).parent.parent / "docs" / "offline.md").read_text(encoding="utf-8")
SHORTER = {"steps: 250": "steps: 20, evaluation_episodes: 1", "iterations: 40": "iterations: 3", "warmup: 500": "warmup: 10, batch: 8"}


def test_data_are_made_and_checked_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    install, *blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    assert install == "pip install 'unipg[control,offline]'\n"
    recipe = next(block for block in blocks if block.startswith("cat > pendulum.yaml"))
    name, content = re.fullmatch(r"cat > (\S+) <<'END'\n(.*)END\n", recipe, re.S).groups()  # type: ignore[union-attr]
    for whole, short in SHORTER.items():
        assert whole in content
        content = content.replace(whole, short)
    Path(name).write_text(content, encoding="utf-8")
    commands = [shlex.split(block) for block in blocks if block.startswith("unipg data")]
    assert [command[2] for command in commands] == ["collect", "check"]
    for command in commands:
        short = ["--references=-1800,-100"] if command[2] == "collect" else []  # so short a run makes no expert
        assert main([*command[1:], *short]) == 0
    data = open_data("mix.npz")
    assert [(part["behaviour"], part["episodes"]) for part in data.card["parts"]] == [("random", 25), ("medium", 25), ("expert", 10)]
    assert len(data) == 12_000


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", TEXT, re.S)[0]
    exec(code, {})
    assert capsys.readouterr().out == "398 2\n(398, 3)\n"


def test_every_kind_of_finding_is_explained() -> None:
    assert set(re.findall(r"^\| `([a-z]+)` \|", TEXT.partition("## Is it sound?")[2], re.M)) >= set(KINDS)
