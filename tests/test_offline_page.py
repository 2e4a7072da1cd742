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
SHORT = {
    "data collect": ["--references=-1800,-100"],  # so short a run makes no expert
    "data check": [],
    "train offline.yaml": ["training.iterations=1", "dataset.updates=8", "environment.evaluation_episodes=1", "threads=1"],
    "data estimate": ["--updates", "10", "--threads", "1"],
    "train online.yaml": ["training.iterations=1", "environment.steps=8", "environment.evaluation_episodes=1", "threads=1"],
}
"""What is said behind a command here, so that it ends soon."""


def test_data_are_made_and_checked_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    install, *blocks = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    assert install == "pip install 'unipg[control,offline]'\n"
    for block in blocks:
        if written := re.fullmatch(r"cat > (\S+) <<'END'\n(.*)END\n", block, re.S):
            name, content = written.groups()
            for whole, short in SHORTER.items() if name == "pendulum.yaml" else ():
                assert whole in content
                content = content.replace(whole, short)
            Path(name).write_text(content, encoding="utf-8")
        else:
            command = shlex.split(block)[1:]
            told = next(short for start, short in SHORT.items() if " ".join(command).startswith(start))
            assert main([*command, *told]) == 0
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
