"""The suite as a third party meets it: a class in a test file, collected by pytest."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from unipg.algorithms import registered
from unipg.algorithms.control.reinforce import Reinforce
from unipg.errors import InputError
from unipg.estimator import Constant, EntropyBonus, LeaveOneOut, Outcome, RatioClip, SequenceMeanTokenMean, Stepwise, Uniform
from unipg.laws import Case, LawBroken, LawSuite, Row, cases, exactness, learning, search, split, trial
from unipg.trajectories import Source


class TestParts(LawSuite):
    likelihoods = (Stepwise(),)
    advantages = (Outcome(),)
    algorithms = (Reinforce(signed=True),)
    leaves_out: ClassVar = {"learning": "every registered algorithm learns in test_laws", "resume": "likewise"}
    examples = 5


def test_a_failing_suite_says_so_in_one_sentence(tmp_path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "import torch\n"
        "from dataclasses import dataclass\n"
        "from unipg.estimator import Aggregate\n"
        "from unipg.laws import LawSuite\n"
        "@dataclass(frozen=True)\n"
        "class PerWidth(Aggregate):\n"
        "    def weights(self, mask, total):\n"
        "        return mask.double() / mask.shape[1] / total\n"
        "class TestMine(LawSuite):\n"
        "    aggregates = [PerWidth()]\n"
        "    examples = 20\n"
    )
    out = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "split", "-p", "no:cacheprovider", str(tmp_path)], capture_output=True, text=True
    )
    assert out.returncode == 1
    assert "test_law[PerWidth-split]" in out.stdout
    assert "LawBroken: split: more columns of padding" in out.stdout
    assert "example: 1 group x 1 rollout, lengths [1]" in out.stdout


def test_import_needs_neither_pytest_nor_hypothesis() -> None:
    code = "import sys, unipg.laws; print([m for m in ('pytest', 'hypothesis') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_without_hypothesis_there_is_one_clear_line(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(InputError, match=r"pip install 'unipg\[dev\]'"):
        search("split", Reinforce())


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "lists nothing to check"),
        ({"masks": [Outcome()]}, "masks lists .*accepted: Mask values"),
        ({"masks": [RatioClip()], "leaves_out": {"splitt": ""}}, "splitt"),
    ],
)
def test_a_suite_that_cannot_work_is_refused(attributes, words) -> None:
    with pytest.raises(InputError, match=words):
        type("TestMine", (LawSuite,), attributes).subjects()


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(InputError, match="law 'splits' does not exist"):
        search("splits", Reinforce())


def test_what_a_trial_is_made_of() -> None:
    assert trial(SequenceMeanTokenMean(), "long rows count less").bias == "long rows count less"
    offline = trial(Uniform(), "weights are no importance weights")
    assert not offline.uses_rollouts
    assert exactness(offline) < 1
    assert exactness(trial(Constant(), demonstrations=True)) > 1 - 1e-10
    assert learning(trial(Constant(), demonstrations=True)) >= 0.9
    assert exactness(trial(0.01 * EntropyBonus(), "the entropy is rewarded")) < 1
    with pytest.raises(InputError, match="part is 3; expected Part"):
        trial(3).terms(None)  # type: ignore[arg-type]


def test_a_search_always_finds_the_same_example() -> None:
    @dataclass(frozen=True)
    class Ordered(LeaveOneOut):
        def __call__(self, batch, now=None, planning=None):
            return torch.arange(len(batch)).double().unsqueeze(1).expand(batch.mask.shape)

    def sentence() -> str:
        with pytest.raises(LawBroken) as caught:
            search("split", trial(Ordered()), 20)
        return str(caught.value)

    assert sentence() == sentence()


def test_a_part_that_remembers_between_calls_is_found() -> None:
    first: list[bool] = []

    @dataclass(frozen=True)
    class Remembers(Outcome):
        def __call__(self, batch, now=None, planning=None):
            found = super().__call__(batch, now, planning)
            if not first and bool((found * batch.mask).any()):
                first.append(True)
                return 2 * found
            return found

    with pytest.raises(LawBroken, match=r"^split: .* outlives a batch"):
        search("split", trial(Remembers()), 20)


def test_a_case_says_what_it_is() -> None:
    rows = (Row(0, Source.ROLLOUT, 1, (1, 0, 1), 1.0), Row(0, Source.DEMONSTRATION, 1, (1,), 1.0), Row(1, Source.ROLLOUT, 2, (), 0.5))
    case = Case(rows, seed=2, cut=((0,), (2, 1)), workers=2)
    assert case.describe("cut", "workers", "columns") == (
        "2 groups x 1 rollout x [1, 0] demonstrations, lengths [2, 1, 0], turns ['101', '1', ''], rewards [1, 1, 0.5], seed 2, "
        "cut [[0], [2, 1]], 2 workers"
    )
    batch = case.batch()
    assert batch.mask.sum(1).tolist() == [2, 1, 0]
    assert batch.terminated.sum(1).tolist() == [1, 1, 0]
    split(trial(Outcome()), case=case)


def test_generated_cases_cover_what_they_promise() -> None:
    from hypothesis import HealthCheck, given, settings

    seen: list[Case] = []

    @settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(cases(registered()["luffy"](), "split"))
    def collect(case: Case) -> None:
        seen.append(case)

    collect()
    rows = [row for case in seen for row in case.rows]
    assert {case.workers for case in seen} == {1, 2, 3, 4}
    assert {row.length for row in rows} >= {0, 1, 2, 3, 4}
    assert {len({r.group for r in case.rows}) for case in seen} == {1, 2, 3}
    assert {row.source for row in rows} == {Source.ROLLOUT, Source.DEMONSTRATION}
    assert any(0 in row.turns for row in rows)
    assert any(case.columns for case in seen)
    assert any(case.order and list(case.order) != sorted(case.order) for case in seen)
    assert any(case.workers == 1 and len(case.cut) > 1 for case in seen)
    for case in seen:
        assert not case.cut or sorted(i for piece in case.cut for i in piece) == list(range(len(case.rows)))


def test_the_code_of_the_laws_page_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "laws.md").read_text(encoding="utf-8")
    names: dict = {"__name__": "laws_page"}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block.replace("examples=200", "examples=5"), names)
    assert set(names["TestMine"].subjects()) == {"MedianBaseline", "mine"}
