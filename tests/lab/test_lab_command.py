"""`unipg lab` from the command line: files, tables, bad input; the grid and the mismatch study on a small scale."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from unipg import Constant, CurrentPolicy, Everything, InputError, LeaveOneOut, SequenceMeanTokenSum, Uniform
from unipg.cli import main
from unipg.lab import counting
from unipg.lab.gradients import Draw, Sampler, ascent_directions, study_batches
from unipg.lab.grid import Combination, Learning, _Shared, chosen_parts, default_parts, published, run_grid
from unipg.lab.mismatch import CORRECTIONS, Engine, Tempered, TopK, run_mismatch
from unipg.lab.run import split_names
from unipg.lab.study import instances
from unipg.seeding import generator

PROBLEM = counting()


def lab(folder: Path, *arguments: str) -> int:
    return main(["lab", "--output", str(folder), *arguments])


def test_study_from_the_command_line(tmp_path, capsys) -> None:
    arguments = ["--algorithms", "rloo,grpo,hpt", "--batches", "6", "--group-sizes", "2,4", "--clip", "0.1,0.2", "--noise", "0,0.1"]
    assert lab(tmp_path / "out", *arguments) == 0
    printed = capsys.readouterr().out
    assert "grpo" in printed
    assert "J_mu" in printed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["lab.html", "lab.json", "lab.png"]
    content = json.loads((tmp_path / "out" / "lab.json").read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(text))
    assert content["problem"]["trajectories"] == 120
    assert len(content["study"]) == 2 * 2 * 2 * (1 + 2 + 1)
    one = content["study"][0]
    assert {"name", "objective", "cosine", "bias", "variance", "snr", "ess", "masked", "scale", "norm", "lag"} <= set(one)
    assert one["cosine"]["low"] <= one["cosine"]["value"] <= one["cosine"]["high"]
    assert content["command"].startswith("unipg lab --output")
    page = (tmp_path / "out" / "lab.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    for title in ("Bias and variance of every method", "Bias by rollouts per prompt", "Noise by clip range", "share of wrong scores"):
        assert title in page
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S).group(1))
    assert len(charts) == 1 + 2 * 3  # no charts by method: so many conditions could not be told apart
    assert {trace["name"] for trace in charts[0]["data"]} == {"rloo", "grpo", "hpt"}
    assert sum(trace["showlegend"] for trace in charts[0]["data"]) == 3
    by_clip = next(chart for chart in charts if chart["layout"]["xaxis"]["title"]["text"] == "clip range")
    assert [(trace["name"], trace["x"]) for trace in by_clip["data"]] == [("grpo", [0.1, 0.2])]
    assert (tmp_path / "out" / "lab.png").read_bytes()[:4] == b"\x89PNG"


def test_mismatch_and_grid_from_the_command_line(tmp_path, capsys) -> None:
    arguments = ["--mismatch", "--grid", "--batches", "5", "--algorithms", "rloo", "--masks", "Everything"]
    arguments += [
        "--references",
        "CurrentPolicy,Uniform",
        "--advantages",
        "LeaveOneOut,GroupCentered",
        "--aggregates",
        "SequenceMeanTokenSum",
    ]
    assert lab(tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert "sequence TIS" in printed
    content = json.loads((tmp_path / "lab.json").read_text(encoding="utf-8"))
    assert len(content["mismatch"]) == 5 * 7
    assert [r["published"] for r in content["grid"]["results"] if r["advantage"] == "LeaveOneOut"] == [["rloo"]]
    assert content["grid"]["refused"] == {"Uniform is for data whose sampling policy is unknown, not for rollouts": 2}
    assert content["study"] == []
    assert "The design space" in (tmp_path / "lab.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithms", "grpoo"], "algorithm 'grpoo' does not exist; did you mean 'grpo'"),
        (["--vocabulary", "9"], "strings are too many to enumerate; the limit is 100000"),
        (["--problem", "tree", "--length", "30"], "are too many to enumerate; the limit is 100000"),
        (["--problem", "strigs"], "did you mean 'strings'"),
        (["--group-sizes", "1", "--algorithms", "grpo"], "accepted for grpo: 2 or more"),
        (["--group-sizes", "two"], "--group-sizes is 'two'; accepted: whole numbers"),
        (["--lags", "-1"], "lags holds -1"),
        (["--noise", "0.9"], "from 0 to 0.5"),
        (["--batches", "1"], "accepted: 2 or more"),
        (["--mismatch", "--lags", "0"], "--lags does not apply to --mismatch"),
        (["--mismatch", "--algorithms", "sft"], "'sft' draws no rollouts"),
        (["--grid", "--clip", "0.2"], "--clip does not apply to --grid"),
        (["--grid", "--group-sizes", "2,4"], "--group-sizes holds 2 values; --grid takes one"),
        (["--grid", "--masks", "RatioClp"], "mask 'RatioClp' does not exist; did you mean"),
        (["--grid", "--references", "Uniform"], "the parts refuse every combination: Uniform is for data"),
        (["--grid", "--algorithms", "rloo"], "--algorithms does not apply to --grid"),
        (["--masks", "Everything"], "belong to --grid"),
        (["extra"], "unrecognized argument 'extra'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, message) -> None:
    assert lab(tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert lab(tmp_path / "file", "--algorithms", "rloo", "--batches", "2") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_names_with_settings_are_not_cut() -> None:
    assert split_names("A, RatioClip(low=0.2, high=0.28),B,") == ["A", "RatioClip(low=0.2, high=0.28)", "B"]
    found = chosen_parts(PROBLEM, {"mask": ["RatioClip(low=0.2, high=0.28)"], "aggregate": ["TokenMean"]})
    assert [m.symbol() for m in found["mask"]] == ["RatioClip(low=0.2, high=0.28)"]
    assert len(found["reference"]) == len(default_parts(PROBLEM)["reference"])


def test_grid_measures_what_the_objective_gives() -> None:
    """Sharing samples, advantages and weights between combinations changes no gradient; RLOO's own combination is unbiased."""
    parts = default_parts(PROBLEM)
    sampler = Sampler.of(PROBLEM, PROBLEM.lagged(4, 0.1))
    raw = Draw(6, 4, demonstrations=False)(PROBLEM, sampler, 5, generator(0, "grid test"))
    shared = _Shared(PROBLEM, raw)
    for index in range(12):
        combination = Combination(*(parts[kind][index % len(parts[kind])] for kind in ("mask", "reference", "advantage", "aggregate")))
        if combination.reference.offline:
            continue
        objective = combination.objective()
        planned = [objective.plan(objective.prepare(batch)) for batch in raw]
        expected = ascent_directions(objective, PROBLEM.policy, planned)
        torch.testing.assert_close(shared.directions(combination, objective), expected, rtol=0, atol=1e-14)


def test_grid_ranks_and_marks() -> None:
    parts = {
        "mask": [Everything()],
        "reference": [CurrentPolicy(), Uniform()],
        "advantage": [LeaveOneOut(), Constant(1.0)],
        "aggregate": [SequenceMeanTokenSum()],
    }
    grid = run_grid(PROBLEM, parts, lag=0, batches=150, learning=Learning(iterations=3, seeds=2))
    assert sum(grid.refused.values()) == 2
    best, worst = grid.results
    assert (best.rank, best.published, worst.rank, worst.published) == (1, ("rloo",), 2, ())
    assert best.measured.bias.low == 0
    assert worst.measured.bias.value > 0.5  # Â = 1 on rollouts is noise around 0
    assert best.learnt > grid.start + 0.05 > worst.learnt


def test_every_pure_rollout_method_is_marked() -> None:
    marked = {name for names in published(PROBLEM).values() for name in names}
    assert {"rloo", "reinforce", "grpo", "gspo", "cispo", "cispo_masked", "dr_grpo", "dapo", "reinforce_plus_plus", "ppo"} <= marked
    assert not marked & {"sft", "dft", "hpt", "luffy", "srft"}


def test_corrections_against_engines() -> None:
    """The truth of the study in one table: sequence weights repair a temperature, nothing repairs a missing action."""
    engines = (Engine(), Tempered(0.5), TopK(3))
    corrections = [c for c in CORRECTIONS if c.name in ("none", "token TIS", "sequence weight, no limit")]
    found = run_mismatch(instances(["rloo"]), PROBLEM, group_size=4, batches=80, engines=engines, corrections=corrections)
    results = {r.series: r.measured for r in found}
    assert results["T = 0.5 / none"].bias.low > 0.2
    assert results["T = 0.5 / sequence weight, no limit"].bias.low == 0
    assert results["T = 0.5 / token TIS"].bias.high < results["T = 0.5 / none"].bias.low
    assert results["T = 0.5 / sequence weight, no limit"].snr.high < results["T = 0.5 / none"].snr.low
    assert all(results[s].bias.low > 0.2 for s in results if s.startswith("top-3"))
    same = [results[s] for s in results if s.startswith("exact")]
    assert all(m.norm == pytest.approx(same[0].norm, abs=1e-12) for m in same)
    assert all(math.isfinite(m.snr.value) for m in results.values())


def test_mismatch_needs_rollouts() -> None:
    with pytest.raises(InputError, match="'dft' draws no rollouts"):
        run_mismatch(instances(["dft"]), PROBLEM)


def test_study_batches_of_a_mismatched_sampler_carry_both_records() -> None:
    log_prob = PROBLEM.log_prob().detach() - 0.01
    algorithm = instances(["rloo"])[0]
    sampler = Sampler.of(PROBLEM, behaviour_log_prob=log_prob)
    _, planned = study_batches(algorithm, PROBLEM, sampler, Draw(3, 2, demonstrations=False), 2, generator(0))
    mask = planned[0].mask
    torch.testing.assert_close(
        (planned[0].old_log_prob - planned[0].behaviour_log_prob)[mask], torch.full_like(log_prob[0, :1], 0.01).expand(int(mask.sum()))
    )
