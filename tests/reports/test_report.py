"""The report page: built from small run folders, and looked at by its structure."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from unipg.errors import InputError
from unipg.reports import read_run, write_report
from unipg.reports.charts import thinned
from unipg.reports.page import embedded

RECIPE = "name: {name}\nalgorithm:\n  name: {algorithm}\n  clip: {clip}\nseed: 3\n"


class Page(HTMLParser):
    """Sections with their text, figure titles, attributes of all tags, and the data of the charts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.sections: dict[str, str] = {"": ""}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.titles: list[str] = []
        self.scripts: dict[str, str] = {}
        self._section = ""
        self._script: str | None = None
        self._in_title = False
        self.feed(self.raw)
        self.charts = json.loads(self.scripts["charts"])
        self.clocks = json.loads(self.scripts["clocks"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "section":
            self._section = found["id"] or ""
            self.sections[self._section] = ""
        if tag == "script":
            self._script = found.get("id") or "code"
            self.scripts.setdefault(self._script, "")
        if tag == "h3":
            self._in_title = True
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._section = ""
        if tag == "script":
            self._script = None
        if tag == "h3":
            self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data
            return
        self.sections[self._section] += data
        if self._in_title:
            self.titles[-1] += data

    def chart(self, title: str) -> dict[str, Any]:
        """The specification under the one figure with this title."""
        figures = re.findall(r"<h3>([^<]*)</h3><div class=\"plot\"", self.raw)
        assert figures.count(title) == 1, figures
        return self.charts[figures.index(title)]


def metrics_line(iteration: int, **more: Any) -> dict[str, Any]:
    return {"iteration": iteration, "step": 2 * (iteration + 1), "seconds": 30.0 * (iteration + 1), **more}


def full_line(iteration: int, gate: bool = True) -> dict[str, Any]:
    line = metrics_line(iteration)
    line |= {"reward/mean": iteration / 10, "reward/std": 0.4, "loss": -0.01 * iteration, "entropy": 1.0, "gradient_norm": 0.5}
    line |= {"learning_rate": 1e-6, "length/mean": 20.0, "length/truncated_fraction": 0.1, "groups/no_signal_fraction": 0.3}
    line |= {f"ratio/{name}": value for name, value in {"q01": 0.8, "q25": 0.95, "q50": 1.0, "q75": 1.05, "q99": 1.3, "max": 4.0}.items()}
    line |= {"ratio/ess": 0.9, "mask/policy/blocked_positive": 0.02, "mask/policy/blocked_negative": 0.01, "mask/policy/overflow": 0.0}
    line |= {"advantage/policy/mean": 0.0, "advantage/policy/std": 1.0, "kl/anchor": 0.001, "verifier/failures": 0}
    line |= {"time/rollout": 6.0, "time/update": 3.0, "time/evaluate": 1.0, "tokens/rollout": 600, "tokens/update": 900}
    line |= {"rows/active_fraction": 0.5, "curriculum/level": 1, "novelty": 7}
    return line | ({"gate/offline_fraction": 0.5} if gate else {})


def evaluation(iteration: int, value: float, samples: list[dict[str, Any]] | None = None, metric: str = "pass@1") -> dict[str, Any]:
    point = {"value": value, "low": value - 0.03, "high": value + 0.02, "n": 500}
    result = {"task": "chain_sum", "metrics": {metric: point}, "samples": samples or []}
    return {"iteration": iteration, "step": 2 * iteration, "seconds": 5.0, "results": [result]}


def sample(prompt: str, answer: str, reward: float | None) -> dict[str, Any]:
    return {"prompt": prompt, "answer": answer, "expected": "4", "reward": reward}


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")


def make_run(folder: Path, *, algorithm: str = "grpo", gate: bool = True, clip: float = 0.2, lines: int = 5) -> Path:
    folder.mkdir()
    info = {"name": folder.name, "algorithm": algorithm, "status": "finished", "seed": 3, "seconds": 3725, "iterations": lines}
    info |= {"command": "unipg train x.yaml", "versions": {"torch": "2.11"}, "machine": {"cpu": "c"}, "policy": {"parameters": 1200}}
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(name=folder.name, algorithm=algorithm, clip=clip), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", [full_line(i, gate) for i in range(lines)])
    names = ("success_rate", "reward", "advantage/policy", "log_ratio")
    write_lines(
        folder / "histograms.jsonl",
        [{"iteration": i, "name": name, "edges": [0, 0.5, 1], "counts": [3, 1]} for i in range(lines) for name in names],
    )
    before, after = [sample("2 + 2 = ?", "five", 0.0)], [sample("2 + 2 = ?", "four", 1.0), sample("1 + 3 = ?", "4?", 0.5)]
    write_lines(folder / "evaluations.jsonl", [evaluation(0, 0.312, before), evaluation(5, 0.84, after)])
    return folder


def report(tmp_path: Path, *folders: Path) -> Page:
    return Page(write_report(list(folders), tmp_path / "page.html"))


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return report(tmp_path, make_run(tmp_path / "first"))


# ---------------------------------------------------------------------------------------------------------------- one run


def test_headline_says_how_it_came_out(page: Page) -> None:
    top = page.sections[""]
    assert "grpo · first" in top
    assert "finished" in top
    assert "pass@1 on chain_sum: 31.2 % [28.2, 33.2] → 84.0 % [81.0, 86.0], +52.8 points." in top
    assert "intervals overlap" not in top
    assert "Take note" not in top


def test_overlapping_intervals_are_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "evaluations.jsonl", [evaluation(0, 0.50), evaluation(5, 0.52)])
    assert "+2.0 points (intervals overlap)" in report(tmp_path, run).sections["results"]


def test_a_fall_has_a_minus_sign_and_numbers_are_not_percent(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "evaluations.jsonl", [evaluation(0, 200.0, metric="return"), evaluation(5, 150.5, metric="return")])
    assert "return on chain_sum: 200 [200, 200] → 150.5 [150.5, 150.5], −49.5" in report(tmp_path, run).sections[""]


def test_every_section_is_there_in_order(page: Page) -> None:
    expected = ["results", "learning", "gate", "distributions", "ratios", "optimisation", "time", "others", "answers", "recipe", "facts"]
    assert list(page.sections)[1:] == expected
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in expected]


def test_every_chart_has_a_place_and_a_valid_specification(page: Page) -> None:
    import plotly.graph_objects as graph

    places = [attrs for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "plot"]
    assert len(places) == len(page.charts) > 20
    for chart in page.charts:
        graph.Figure(data=chart["data"], layout=chart["layout"])  # raises for a property that does not exist
        assert all(len(trace["y"]) > 0 for trace in chart["data"])


def test_charts_hold_the_numbers(page: Page) -> None:
    assert page.chart("Training reward")["data"][0]["y"] == [0, 0.1, 0.2, 0.3, 0.4]
    assert page.chart("Training reward")["data"][0]["x"] == [0, 1, 2, 3, 4]
    measured = page.chart("pass@1 on chain_sum")["data"][0]
    assert (measured["x"], measured["y"]) == ([0, 5], [0.312, 0.84])
    assert measured["error_y"]["array"] == pytest.approx([0.02, 0.02])
    assert measured["error_y"]["arrayminus"] == pytest.approx([0.03, 0.03])
    heat = page.chart("Success rate of the prompts")["data"][0]
    assert heat["z"] == [[0.75] * 5, [0.25] * 5]
    assert page.chart("Tokens per second")["data"][0]["y"] == [100] * 5
    fan = page.chart("Importance ratio")
    assert fan["layout"]["yaxis"]["type"] == "log"
    assert {trace["y"][0] for trace in fan["data"]} == {0.8, 0.95, 1.0, 1.05, 1.3, 4.0}


def test_time_adds_up(page: Page) -> None:
    assert "Altogether 50 s: rollout 60.0\xa0%, update 30.0\xa0%, evaluate 10.0\xa0%." in page.sections["time"]


def test_time_of_batches_collected_ahead_is_what_was_waited_for_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines = [metrics_line(i, **{"time/rollout": 9.0, "time/waited_for_rollouts": 1.0, "time/update": 2.0}) for i in range(3)]
    write_lines(folder / "metrics.jsonl", lines)
    told = report(tmp_path, folder).raw
    assert "Altogether" in told
    assert "rollout 7" not in told
    assert "waited_for_rollouts" in told


def test_sampling_and_curvature_have_sections_of_their_own(tmp_path: Path) -> None:
    sampling = {"decode/steps": 3.0, "decode/utilization": 0.8, "window/cut_fraction": 0.3, "window/oldest": 2.0}
    ahead = {"staleness/steps": 1.0, "mismatch/log_ratio": 0.02, "mismatch/ratio_max": 1.4}
    curvature = {"curvature/rejected": 0.03, "curvature/shift_q50": 1e-6, "curvature/delta_f": 1e-3, "curvature/gain_q50": 0.1}
    folder = make_run(tmp_path / "run")
    write_lines(folder / "metrics.jsonl", [metrics_line(i, **sampling, **ahead, **curvature) for i in range(3)])
    told = report(tmp_path, folder).raw
    for title in ("Decode steps", "Use of the decode slots", "Responses cut by the window", "Staleness", "Tokens rejected for their step"):
        assert f"<h3>{title}</h3>" in told
    assert not any(f"<h3>{key}</h3>" in told for key in (*sampling, *ahead, *curvature))


def test_evaluation_time_is_taken_from_the_evaluations_when_metrics_lack_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", [metrics_line(i, **{"time/rollout": 8.0}) for i in range(5)])
    assert "Altogether 50 s: rollout 80.0\xa0%, evaluate 20.0\xa0%." in report(tmp_path, run).sections["time"]


def test_unknown_metrics_are_shown_by_prefix(page: Page) -> None:
    others = page.sections["others"]
    assert page.chart("curriculum/level")["data"][0]["y"] == [1] * 5
    assert page.chart("novelty")["data"][0]["y"] == [7] * 5
    assert "no_signal" not in others


def test_the_clock_has_steps_and_minutes(page: Page) -> None:
    values = [attrs["value"] for tag, attrs in page.tags if tag == "input"]
    assert values == ["iteration", "optimiser steps", "minutes"]
    [clock] = page.clocks
    assert clock["metrics"] == {"iteration": [0, 1, 2, 3, 4], "optimiser steps": [2, 4, 6, 8, 10], "minutes": [0.5, 1, 1.5, 2, 2.5]}
    assert clock["evaluations"] == {"iteration": [0, 5], "optimiser steps": [0, 10], "minutes": [0, 2.5]}


def test_no_clock_that_runs_backwards(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", [full_line(i) | {"seconds": 10.0 - i} for i in range(5)])
    page = report(tmp_path, run)
    assert [attrs["value"] for tag, attrs in page.tags if tag == "input"] == ["iteration", "optimiser steps"]


def test_answers_stand_side_by_side_and_are_marked_in_words(page: Page) -> None:
    text = page.sections["answers"]
    assert text.index("2 + 2 = ?") < text.index("five") < text.index("four") < text.index("1 + 3 = ?")  # asked twice comes first
    assert re.search(r"iteration 0\s*✗ wrong\s*five", text)
    assert re.search(r"iteration 5\s*✓ right\s*four", text)
    assert re.search(r"iteration 0\s*not among the samples\s*iteration 5\s*≈ partly right \(0.5\)", text)
    kinds = [attrs["class"] for tag, attrs in page.tags if tag == "div" and (attrs.get("class") or "").startswith("answer ")]
    assert kinds == ["answer bad", "answer good", "answer part"]


def test_rewards_that_are_no_scores_are_not_called_right(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(
        run / "evaluations.jsonl", [evaluation(0, 180.0, [sample("start", "up", 180.0), sample("end", "?", None)], metric="return")]
    )
    text = report(tmp_path, run).sections["answers"]
    assert "reward 180" in text
    assert "not scored" in text
    assert "right" not in text


def test_facts_and_recipe(page: Page) -> None:
    facts = page.sections["facts"]
    for expected in ("unipg train x.yaml", "torch 2.11", "parameters 1,200", "1 h 2 min"):
        assert expected in facts
    assert "clip: 0.2" in page.sections["recipe"]


# ----------------------------------------------------------------------------------------------------- what may be absent


@pytest.mark.parametrize(
    ("section", "prefixes"),
    [
        ("gate", ("gate/",)),
        ("ratios", ("ratio/", "mask/")),
        ("time", ("time/",)),
        ("others", ("curriculum/", "novelty", "tokens/")),
        (
            "optimisation",
            ("loss", "entropy", "gradient", "learning", "length/", "groups/", "kl/", "verifier/", "rows/"),
        ),
    ],
)
def test_a_section_without_data_is_absent(tmp_path: Path, section: str, prefixes: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run")
    kept = [{key: value for key, value in full_line(i).items() if not key.startswith(prefixes)} for i in range(5)]
    write_lines(run / "metrics.jsonl", kept)
    evaluations = [evaluation(0, 0.3) | {"seconds": None}]
    write_lines(run / "evaluations.jsonl", evaluations)
    assert section not in report(tmp_path, run).sections


def test_metrics_alone_make_a_page(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    write_lines(run / "metrics.jsonl", [metrics_line(i, **{"reward/mean": i / 2}) for i in range(20)])
    page = report(tmp_path, run)
    assert set(page.sections) == {"", "learning", "facts"}
    assert (
        "No evaluation yet; mean training reward: 0.25 in the first tenth → 9.25 in the last tenth of the iterations." in page.sections[""]
    )


def test_evaluations_alone_make_a_page(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    write_lines(run / "evaluations.jsonl", [{"iteration": 0, "results": [{"task": "t", "metrics": {"pass@1": {"value": 0.5}}}]}])
    page = report(tmp_path, run)
    assert set(page.sections) == {"", "results", "learning", "facts"}
    assert "pass@1 on t: 50.0 % (evaluated once)." in page.sections[""]


def test_empty_files_make_a_page(tmp_path: Path) -> None:
    run = tmp_path / "started"
    run.mkdir()
    (run / "metrics.jsonl").touch()
    assert "Nothing has been measured yet" in report(tmp_path, run).sections[""]


# ------------------------------------------------------------------------------------------------------------- robustness


def test_text_from_the_run_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    run = make_run(tmp_path / "run")
    info = {"name": evil, "algorithm": evil, "status": evil, "command": evil, "versions": {evil: evil}}
    (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
    (run / "recipe.yaml").write_text(f"a: '{evil}'", encoding="utf-8")
    write_lines(run / "metrics.jsonl", [full_line(0) | {evil: 1.0, f"mask/{evil}/overflow": 0.0, f"time/{evil}": 1.0}])
    results = [{"task": evil, "metrics": {evil: {"value": 1}}, "samples": [sample(evil, evil, 1.0) | {"expected": evil}]}]
    write_lines(run / "evaluations.jsonl", [{"iteration": 0, "step": 0, "seconds": 1, "results": results}])
    write_lines(run / "histograms.jsonl", [{"iteration": 0, "name": evil, "edges": [0, 1], "counts": [1]}])
    other = make_run(tmp_path / "other")
    for page in (report(tmp_path, run), report(tmp_path, run, other)):
        assert [tag for tag, _ in page.tags if tag == "script"] == ["script"] * 4
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
        assert page.sections["answers"].count(evil) >= 4  # task, prompt, expected, answer
        labels = [trace.get("name", "") for chart in page.charts for trace in chart["data"]]
        assert not any("<" in label for label in labels)  # chart labels may hold markup


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert not re.search(r'src\s*=\s*["\']?(http|//)', page.raw)
    assert not re.search(r"<link\b[^>]*href", page.raw)
    assert not [attrs for _, attrs in page.tags if "src" in attrs]
    assert "@import" not in page.raw.partition("</style>")[0]
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_plotly_is_embedded_once_and_cannot_upload(page: Page) -> None:
    assert page.raw.count("* plotly.js v") == 1
    assert "showSendToCloud: false" in page.raw.rpartition("<script>")[2]


def test_a_cut_off_last_line_is_left_out_with_a_note(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "reward/mean": 0.')
    page = report(tmp_path, run)
    assert "The last line of metrics.jsonl (line 6) is cut off" in page.sections[""]
    assert page.chart("Training reward")["data"][0]["x"] == [0, 1, 2, 3, 4]


def test_a_letter_cut_in_half_counts_as_cut_off(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    whole = json.dumps(evaluation(9, 0.9) | {"note": "ü"}, ensure_ascii=False).encode()
    with (run / "evaluations.jsonl").open("ab") as file:
        file.write(whole[: whole.index("ü".encode()) + 1])
    assert "The last line of evaluations.jsonl (line 3) is cut off" in report(tmp_path, run).sections[""]


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    odd = [full_line(i) for i in range(60)]
    odd[1]["loss"], odd[2]["loss"], odd[3]["entropy"] = math.nan, -math.inf, None
    for line in odd:
        line |= {"ratio/q01": 0.0, "ratio/max": math.inf, "time/update": math.nan, "kl/anchor": math.nan}
    write_lines(run / "metrics.jsonl", odd)
    histograms: list[dict[str, Any]] = [
        {"iteration": 0, "name": "log_ratio", "edges": [-math.inf, -1, 1, math.inf], "counts": [1, 2, 1]},
        {"iteration": 1, "name": "log_ratio", "edges": [0, 0], "counts": [4]},
        {"iteration": 2, "name": "log_ratio", "edges": [0, 1], "counts": [0]},
        {"iteration": 3, "name": "log_ratio", "edges": [math.nan, 1], "counts": [1]},
    ]
    write_lines(run / "histograms.jsonl", histograms)
    points = {"pass@1": {"value": math.nan, "low": None, "n": 3}, "maj@1": {"value": 0.5, "low": -math.inf, "high": math.inf}}
    results = [{"task": "t", "metrics": points, "samples": [sample("p", "a", math.nan)]}]
    write_lines(run / "evaluations.jsonl", [{"iteration": i, "step": i, "seconds": None, "results": results} for i in range(2)])
    page = report(tmp_path, run)
    assert "loss was NaN or infinite in 2 iterations, the first of them 1" in page.sections[""]
    assert "entropy was NaN or infinite in iteration 3" in page.sections[""]
    assert page.chart("Loss")["data"][0]["x"][:3] == [0, 3, 4]
    assert "Divergence from the anchor" not in page.titles
    assert "not a number" in page.sections["results"]
    assert page.chart("maj@1 on t")["data"][0]["error_y"]["array"] == [None, None]
    assert "A histogram of log_ratio in iteration 3" in page.sections[""]
    for name in ("charts", "clocks"):
        json.loads(page.scripts[name], parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


def test_an_iteration_written_twice_counts_once_and_late(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [full_line(i) for i in range(3)] + [full_line(1) | {"reward/mean": 0.9}, full_line(2) | {"reward/mean": 0.95}]
    write_lines(run / "metrics.jsonl", lines)
    assert page_values(report(tmp_path, run), "Training reward") == [0.0, 0.9, 0.95]


def page_values(page: Page, title: str) -> list[float]:
    return page.chart(title)["data"][0]["y"]


def test_long_runs_are_thinned_without_losing_spikes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", [metrics_line(i, gradient_norm=1.0 if i != 12_345 else 99.0) for i in range(20_000)])
    edges = [k / 10 for k in range(11)]
    write_lines(run / "histograms.jsonl", [{"iteration": i, "name": "reward", "edges": edges, "counts": [1] * 10} for i in range(900)])
    page = report(tmp_path, run)
    assert 99.0 in page_values(page, "Gradient norm")
    assert "lowest and the highest point of each stretch" in page.sections[""]
    assert all(len(trace["y"]) < 2500 for chart in page.charts for trace in chart["data"])
    assert len(page.chart("Reward")["data"][0]["x"]) <= 200
    assert page.chart("Reward")["data"][0]["z"][0][0] == pytest.approx(0.1)


def test_thinned_keeps_ends_and_extremes() -> None:
    values = [math.sin(i / 7) for i in range(5000)]
    values[777], values[3111] = 9.0, -9.0
    kept = thinned(values, 100)
    assert kept == sorted(set(kept))
    assert len(kept) <= 102
    assert {0, 777, 3111, 4999} <= set(kept)
    assert thinned([1.0, 2.0], 100) == [0, 1]


def test_histograms_with_other_edges_are_brought_to_common_bins(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(
        run / "histograms.jsonl",
        [
            {"iteration": 0, "name": "reward", "edges": [0, 1, 2], "counts": [1, 1]},
            {"iteration": 1, "name": "reward", "edges": [0, 4], "counts": [10]},
        ],
    )
    heat = report(tmp_path, run).chart("Reward")["data"][0]
    edges, columns = heat["y"], list(zip(*heat["z"], strict=True))
    assert (edges[0], edges[-1]) == (0, 4)
    for column, mean in zip(columns, (1.0, 2.0), strict=True):
        shares = [share or 0 for share in column]
        assert sum(shares) == pytest.approx(1)
        assert sum(s * (a + b) / 2 for s, a, b in zip(shares, edges[:-1], edges[1:], strict=True)) == pytest.approx(mean)
    assert columns[0][-1] is None


def test_outliers_are_counted_at_the_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    usual = {"iteration": 0, "name": "log_ratio", "edges": [-1, 0, 1], "counts": [5000, 5000]}
    rare = {"iteration": 1, "name": "log_ratio", "edges": [-1, 1, 900, 1000], "counts": [9, 0, 1]}
    write_lines(run / "histograms.jsonl", [usual, rare])
    heat = report(tmp_path, run).chart("Log importance ratio")["data"][0]
    assert (heat["y"][0], heat["y"][-1]) == (-1, 1)
    assert heat["z"][-1][1] == pytest.approx(0.1 + 0.9 / 50)


def test_json_in_a_script_cannot_end_it() -> None:
    text = "</script><!--"
    assert "<" not in embedded({"a": text})
    assert json.loads(embedded({"a": text})) == {"a": text}


# ----------------------------------------------------------------------------------------------------------- several runs


def test_several_runs_share_charts_and_tables(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", algorithm="hpt", gate=False, clip=0.3)
    page = report(tmp_path, first, second)
    assert "2 runs compared" in page.sections[""]
    assert page.sections[""].count("+52.8 points") == 2
    reward = page.chart("Training reward")["data"]
    assert [trace["name"] for trace in reward] == ["a", "b"]
    assert reward[0]["line"]["color"] != reward[1]["line"]["color"]
    assert [trace["name"] for trace in page.chart("pass@1 on chain_sum")["data"]] == ["a", "b"]
    assert [trace["name"] for trace in page.chart("Offline fraction")["data"]] == ["a"]
    assert page.titles.count("a") == page.titles.count("b") >= 5  # heat-maps, fan and time, one each
    assert page.sections["results"].count("iteration 0 → iteration 5") == 2
    assert page.sections["answers"].count("✓ right") == 2
    assert len(page.clocks) == 2


def test_recipes_are_compared(tmp_path: Path) -> None:
    page = report(tmp_path, make_run(tmp_path / "a"), make_run(tmp_path / "b", algorithm="hpt", clip=0.3))
    table, _, texts = page.sections["recipe"].partition("Full recipe")
    assert "algorithm.clip" in table
    assert "0.2" in table
    assert "0.3" in table
    assert "seed" not in table
    assert texts.count("seed: 3") == 2


def test_runs_of_one_name_can_be_told_apart(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
    folders = [make_run(tmp_path / parent / "run") for parent in ("x", "y")]
    page = report(tmp_path, *folders, folders[0])
    names = [trace["name"] for trace in page.chart("Training reward")["data"]]
    assert len(set(names)) == 3
    assert all(name.startswith("run (") for name in names)


# ----------------------------------------------------------------------------------------------------------------- errors


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such run folder$"):
        write_report([tmp_path / "nowhere"], tmp_path / "page.html")
    with pytest.raises(InputError, match="no run folder given"):
        write_report([], tmp_path / "page.html")
    make_run(tmp_path / "inside")
    with pytest.raises(InputError, match=r"not a run folder: it holds neither metrics.jsonl nor evaluations.jsonl .*run.json.*/inside"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(InputError, match="a file, not a run folder"):
        write_report([tmp_path / "inside" / "run.json"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", '{"iteration": 0}\n{"iteration": 1, \n{"iteration": 2}\n', "metrics.jsonl line 2: not readable as JSON"),
        ("metrics.jsonl", '{"iteration": 0}\n\n[1]\n', "metrics.jsonl line 3: expected a JSON object, found list"),
        ("metrics.jsonl", '{"step": 0}\n', "metrics.jsonl line 1: 'iteration' must be a whole number, found None"),
        ("evaluations.jsonl", '{"iteration": 0, "results": [{"metrics": {}}]}\n', "evaluations.jsonl line 1: 'results' must be a list"),
        ("evaluations.jsonl", '{"iteration": 0, "results": [{"task": "t", "metrics": {"m": {"low": 1}}}]}\n', "a metric without 'value'"),
        ("histograms.jsonl", '{"iteration": 0, "edges": [0, 1], "counts": [1, 2]}\n', "must be one more than 'counts', found 2 and 2"),
        ("histograms.jsonl", '{"iteration": 0, "edges": [1, 0], "counts": [1]}\n', "'edges' must not fall"),
        ("histograms.jsonl", '{"iteration": 0, "edges": "x", "counts": [1]}\n', "'edges' must be a list of numbers"),
        ("run.json", "{\n1}", "run.json line 2: not readable as JSON"),
        ("run.json", "[]", "run.json: expected a JSON object, found list"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, message: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_run(run)
    assert "\n" not in str(caught.value)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        write_report([run], tmp_path / "taken" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_report([run], tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "run", "taken"]


def test_the_page_is_replaced_and_folders_are_made(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    output = tmp_path / "new" / "page.html"
    assert write_report([run], output) == output
    write_report([run], output)
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]


def test_the_report_draws_the_components_of_a_mixture(tmp_path: Path) -> None:
    shares = {"environment/steps": 9.0, "return/mean": -9.0, "return/episodes": 1.0, "return/last_100": -9.0}
    shares |= {f"router/share_{k}": 0.5 for k in range(2)} | {f"router/won_{k}": 0.5 for k in range(2)} | {"router/action_1_0": -0.3}
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"iteration": i, **shares}) for i in (1, 2)) + "\n")
    evaluated = {"task": "Pendulum-v1", "metrics": {"return": {"value": -9.0, "n": 4}}, "how": "the router's best component"}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps({"iteration": 2, "step": 2, "results": [evaluated]}) + "\n")
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    for title in ("Components", "Weights of the components", "Components whose action was best", "Mean action of the components"):
        assert re.search(rf"<h[23][^>]*>{title}</h", page), title
    assert "<h3>router/" not in page
    charts = json.loads(page.split('id="charts">')[1].split("</script>")[0])
    names = {line.get("name") for chart in charts for line in chart["data"]}
    assert {"component 0", "component 1", "component 1 · 0"} <= names
    assert any("evaluation on Pendulum-v1, the router" in str(name) and "best component" in str(name) for name in names)


def test_the_report_draws_tools_and_strata_and_shows_calls(tmp_path: Path) -> None:
    numbers = {"tools/calls": 1.5, "tools/calls/search": 1.0, "tools/calls/calculator": 0.5, "tools/ok_fraction": 0.9, "tools/turns": 2.5}
    strata = {"strata/per_prompt": 2.0, "strata/share_0_calls": 0.25, "strata/share_1_calls": 0.75, "strata/reward_1_calls": 0.5}
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"iteration": i, **numbers, **strata}) for i in (1, 2)) + "\n")
    call = {"turn": 0, "name": "search", "arguments": {"query": "<b>"}, "outcome": "ok", "result": "a fact"}
    sample = {"prompt": "What?", "answer": "Zorv", "expected": "Zorv", "reward": 1.0, "transcript": "<tool_call>…", "tool_calls": [call]}
    results = [{"task": "2_hop", "metrics": {"pass@1 (greedy)": {"value": 1.0, "n": 1}}, "samples": [sample]}]
    (tmp_path / "evaluations.jsonl").write_text(json.dumps({"iteration": 2, "step": 2, "results": results}) + "\n")
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    for title in ("Tool calls per rollout", "How calls end", "Turns", "Rollouts by stratum", "Reward by stratum", "Per prompt"):
        assert f"<h3>{title}</h3>" in page
    assert "<h3>tools/calls</h3>" not in page
    assert "&lt;tool_call&gt;…" in page
    assert "1 tool call</summary>" in page
    assert "<code>{&quot;query&quot;: &quot;&lt;b&gt;&quot;}</code>" in page
    charts = json.loads(page.split('id="charts">')[1].split("</script>")[0])
    assert {"all", "search", "calculator"} <= {line.get("name") for chart in charts for line in chart["data"]}


def test_the_report_draws_sets(tmp_path: Path) -> None:
    sets = {"sets/diversity": 0.6, "sets/score": 0.4, "sets/alike_fraction": 0.1, "sets/most_common_fraction": 0.5}
    sets |= {"vines/share_0-1-3": 0.6, "vines/share_0-2-3": 0.4}
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"iteration": i, **sets}) for i in (1, 2)) + "\n")
    page = write_report([tmp_path], tmp_path / "report.html").read_text()
    for title in ("How different a set's members are", "Sets of equals", "The most common signature", "Vines by signature"):
        assert f"<h3>{title}</h3>" in page.replace("&#x27;", "'")
    assert "<h3>sets/diversity</h3>" not in page


# ---------------------------------------------------------------------------------------------------------------- control


def control_line(iteration: int, replayed: bool = True) -> dict[str, Any]:
    line = metrics_line(iteration) | {"environment/steps": 1000.0 * (iteration + 1), "return/mean": -100.0 + iteration}
    line |= {"time/rollout": 1.0, "time/update": 3.0, "critic/loss": 9.0, "critic/learning_rate": 1e-3, "critic/gradient_norm": 2.0}
    line |= {"gradient_norm": 1.0, "learning_rate": 1e-3, "tokens/update": 500.0}
    if not replayed:
        return line | {"values/predicted": 1.0, "values/lambda_return": 2.0, "values/explained_variance": 0.25}
    line |= {"replay/size": 1000.0 * (iteration + 1), "replay/filled": 0.1 * (iteration + 1), "replay/age": 500.0 * (iteration + 1)}
    line |= {"replay/updates": [400.0, 900.0, 1400.0][iteration], "values/predicted": -40.0, "values/observed": -50.0}
    return line | {"regression/loss": 7.0 - iteration, "temperature_loss/temperature": 0.5, "temperature_loss/entropy": -1.0}


def control_run(folder: Path, replayed: bool = True) -> Path:
    make_run(folder, algorithm="sac" if replayed else "ppo")
    write_lines(folder / "metrics.jsonl", [control_line(i, replayed) for i in range(3)])
    write_lines(folder / "evaluations.jsonl", [evaluation(i, -120.0 + i, metric="return") for i in (0, 2, 3)])
    (folder / "histograms.jsonl").unlink()
    return folder


def test_returns_of_training_and_evaluation_share_a_chart_over_environment_steps(tmp_path: Path) -> None:
    page = report(tmp_path, control_run(tmp_path / "run"))
    training, evaluated = page.chart("Return")["data"]
    assert (training["name"], training["y"]) == ("training episodes", [-100, -99, -98])
    assert (evaluated["name"], evaluated["y"]) == ("evaluation on chain_sum", [-120, -118, -117])
    assert page.chart("Return")["layout"]["yaxis"]["title"]["text"] == "return of an episode"
    assert "return on chain_sum" not in page.titles
    choices = [attrs for tag, attrs in page.tags if tag == "input"]
    assert [attrs["value"] for attrs in choices if "checked" in attrs] == ["environment steps"]
    [clock] = page.clocks
    assert clock["metrics"]["environment steps"] == [1000, 2000, 3000]  # at the end of an iteration
    assert clock["evaluations"]["environment steps"] == [0, 2000, 3000]  # before the iteration of that number


def test_the_last_and_the_best_evaluation_are_told(tmp_path: Path) -> None:
    runs = [control_run(tmp_path / name) for name in ("one", "two", "odd")]
    for run, measured in zip(runs, ({"iteration": 3, "return": -117.0}, {"iteration": 2, "return": -1180.25}, None), strict=True):
        info = json.loads((run / "run.json").read_text())
        best = {"iteration": 2, "return": -90.5}
        info["evaluations"] = {"last": measured, "best": best, "n": 3} if measured else [1]
        (run / "run.json").write_text(json.dumps(info))
    alone = write_report(runs[:1], tmp_path / "alone.html").read_text()
    assert "Of 3 evaluations the last returned −117 (iteration 3), the best −90.5 (iteration 2). " in alone
    assert "--checkpoint best" in alone
    beside = write_report(runs, tmp_path / "beside.html").read_text()
    assert "one: of 3 evaluations the last returned −117 (iteration 3), the best −90.5 (iteration 2). " in beside
    assert "two: of 3 evaluations the last returned −1,180 (iteration 2), the best −90.5 (iteration 2). " in beside
    assert beside.count("--checkpoint best") == 2  # what cannot be read is left out
    assert "--checkpoint best" not in write_report([control_run(tmp_path / "none")], tmp_path / "none.html").read_text()


def test_a_replay_run_shows_critic_and_buffer(tmp_path: Path) -> None:
    page = report(tmp_path, control_run(tmp_path / "run"))
    assert page.chart("Critic loss")["data"][0]["y"] == [7, 6, 5]
    promised = page.chart("Promised and observed")
    assert {trace["name"]: trace["y"][0] for trace in promised["data"]} == {"critic": -40, "observed return": -50}
    assert page.chart("Temperature")["data"][0]["y"] == [0.5] * 3
    assert page.chart("Entropy")["data"][0]["y"] == [-1] * 3
    assert page.chart("Kept transitions")["data"][0]["y"] == [1000, 2000, 3000]
    assert page.chart("Age of what was drawn")["layout"]["yaxis"]["title"]["text"] == "steps"
    assert page.chart("Updates per environment step")["data"][0]["y"] == [0.4, 0.5, 0.5]
    assert page.chart("Environment steps per second")["data"][0]["y"] == [250] * 3
    assert page.chart("Gradient norm · critic")["data"][0]["y"] == [2] * 3
    assert not {"Tokens per second", "critic/loss", "critic/learning_rate", "environment/steps", "replay/updates"} & set(page.titles)


def test_a_run_without_replay_shows_what_its_critic_explains(tmp_path: Path) -> None:
    page = report(tmp_path, control_run(tmp_path / "run", replayed=False))
    assert page.chart("Variance explained by the critic")["data"][0]["y"] == [0.25] * 3
    assert {trace["name"] for trace in page.chart("Promised and observed")["data"]} == {"critic", "lambda-return"}
    assert page.chart("Critic loss")["data"][0]["y"] == [9] * 3
    assert "replay" not in page.sections


def test_controllers_side_by_side(tmp_path: Path) -> None:
    page = report(tmp_path, control_run(tmp_path / "a"), control_run(tmp_path / "b", replayed=False))
    assert [t["name"] for t in page.chart("Return")["data"]] == ["a, training", "b, training", "a, evaluation", "b, evaluation"]
    assert [trace["y"][0] for trace in page.chart("Critic loss")["data"]] == [7, 9]
    assert page.chart("Entropy")["data"][0]["name"] == "a"
    assert [(t["name"], t["y"]) for t in page.chart("Promised less observed")["data"]] == [("a", [10] * 3), ("b", [-1] * 3)]
    with_language = report(tmp_path, tmp_path / "a", make_run(tmp_path / "c"))
    choices = [attrs for tag, attrs in with_language.tags if tag == "input"]
    assert [attrs["value"] for attrs in choices if "checked" in attrs] == ["iteration"]  # one axis for all of them


@pytest.mark.parametrize(("name", "tag"), [("recording.mp4", "video"), ("recording.gif", "img")])
def test_a_recording_is_shown_from_where_it_lies(name: str, tag: str, tmp_path: Path) -> None:
    run = control_run(tmp_path / "my run")
    (run / name).write_bytes(b"film")
    page = report(tmp_path, run)
    [film] = [attrs for found, attrs in page.tags if found == tag]
    assert film["src"] == f"my%20run/{name}"
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    assert "media-src 'self' file:" in (policy or "")
    assert "http" not in (policy or "")
    assert page.sections["recording"]
    (run / name).unlink()
    assert "recording" not in report(tmp_path, run).sections
