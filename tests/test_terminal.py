"""What users wrote is shown as it is, and never read as the terminal's markup."""

from __future__ import annotations

import io

import pytest

from unipg import terminal
from unipg.rollouts.base import EvaluationResult
from unipg.terminal import TrainingDisplay, evaluation_progress, evaluation_table, plain_console

NASTY = "[/INST] [bold] [link=x] :smile: [not closed"


@pytest.mark.parametrize("live", [False, True])
def test_texts_of_users_are_no_markup(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    console = plain_console()
    console.file = out = io.StringIO()
    console._force_terminal = live
    console.width = 200
    result = EvaluationResult(NASTY, {NASTY: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3.0}}, [])
    console.print(evaluation_table([result]))
    with TrainingDisplay(console, NASTY) as display:
        display.phase(NASTY, 0.5)
        display.evaluation([result])
        monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.0)
        display.iteration(1, 2, {"reward/mean": 0.5})
    with evaluation_progress(console) as progress:
        progress(NASTY, 0.5)
    assert out.getvalue().count(NASTY) >= 4
