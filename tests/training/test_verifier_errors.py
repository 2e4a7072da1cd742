"""A verifier that raises: its first traceback is in the run folder, its text in the terminal, and a run without any score fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unipg.cli import main

TINY = "{hidden_size: 16, layers: 1, heads: 2, intermediate_size: 16, max_positions: 64}"
SOURCE = """
def always(answer, item):
    raise ValueError("no [/such] key")

def sometimes(answer, item):
    if item.index:
        raise KeyError("half")
    return float(len(answer) % 2)
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "broken_verifiers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"prompt": f"What is {n}?", "answer": str(n)} for n in range(2)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"algorithm: {{name: grpo, rollouts: 4}}\noutput: {tmp_path / 'run'}\npolicy: {{scratch: {TINY}}}\n"
        f"task: {{data: {{source: {tmp_path / 'data.jsonl'}, answer: answer, verifier: 'broken_verifiers:always'}}}}\n"
        "rollouts: {max_new_tokens: 4}\ntraining: {iterations: 2, prompts: 2}\n"
    )
    return tmp_path / "recipe.yaml"


def test_a_run_in_which_every_answer_raised_ends_with_2(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overlap in ("false", "true"):
        assert main(["train", str(recipe), f"training.overlap={overlap}"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "the verifier raised an error for every rollout" in said
        assert "ValueError: no [/such] key" in said
        kept = (recipe.parent / "run" / "verifier-error.txt").read_text()
        assert "broken_verifiers.py" in kept
        assert 'raise ValueError("no [/such] key")' in kept
        assert not (recipe.parent / "run" / "model").exists()
    # mended, the same run starts again
    assert main(["train", str(recipe), "task.data.verifier=exact_match"]) == 0


def test_some_answers_that_cannot_be_scored_are_told_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "task.data.verifier=broken_verifiers:sometimes"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("could not be scored and count as 0") == 1
    assert "KeyError: 'half'" in out
    run = recipe.parent / "run"
    assert "KeyError: 'half'" in (run / "verifier-error.txt").read_text()
    (warning,) = [w for w in json.loads((run / "run.json").read_text())["warnings"] if w["kind"] == "verifier"]
    assert "the rollouts" in warning["text"]


def test_an_evaluation_in_which_every_answer_raised_ends_with_2(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe), "task.data.verifier=exact_match"]) == 0
    data = recipe.parent / "data.jsonl"
    for verifier, code, said in (("always", 2, "raised an error for every answer"), ("sometimes", 0, "could not be scored")):
        capsys.readouterr()
        task = f"{data}:{{answer: answer, verifier: 'broken_verifiers:{verifier}'}}"
        assert main(["evaluate", str(recipe.parent / "run"), "--task", task, "--max-new-tokens", "4"]) == code
        out, err = capsys.readouterr()
        assert said in " ".join((err if code else out).split())
