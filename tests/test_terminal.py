"""What users wrote is shown as it is, and never read as the terminal's markup."""

from __future__ import annotations

import io
from types import SimpleNamespace

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


def shown(monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, tuple]], *, live: bool = False, seconds: float = 0.0) -> str:
    """What is printed of some calls of a display."""
    console = plain_console()
    console.file = out = io.StringIO()
    console._force_terminal = live
    console.width = 200
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", seconds)
    run = SimpleNamespace(iteration=0, training=SimpleNamespace(iterations=4))
    with TrainingDisplay(console, "run") as display:
        display.start(run)  # type: ignore[arg-type]
        for name, arguments in told:
            getattr(display, name)(*arguments)
    return out.getvalue()


def test_a_controllers_line_has_return_critic_loss_and_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"return/last_100": -1234.5, "critic/loss": 0.25, "loss": 80.0, "environment/steps": steps, "time/rollout": 1.0, "time/update": 3.0}
        for steps in (1000.0, 3000.0)
    ]
    text = shown(monkeypatch, [("iteration", (1, 4, rows[0])), ("iteration", (2, 4, rows[1]))])
    first, second = text.strip().split("\n")
    assert "return -1,234  critic loss 0.25  steps/s 250  steps 1,000" in first
    assert "steps/s 500  steps 3,000" in second
    assert "loss 80" not in text


@pytest.mark.parametrize("live", [False, True])
def test_a_long_iteration_says_how_far_it_is(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, [("iteration", (1, 4, {"reward/mean": 0.5})), ("phase", ("update", 0.25))], live=live)
    assert ("1/4" if live else "run 1/4  iteration 2: 25%") in text
    far = shown(monkeypatch, [("iteration", (1, 4, {"reward/mean": 0.5})), ("phase", ("update", 0.75))], live=live)
    assert "2/4" not in far  # what is not finished is not counted
    assert shown(monkeypatch, [("phase", ("update", 0.25))], seconds=1000.0) == ""
