"""The recipes whose rollouts call tools: one after the other, twice the same, and what mistakes in them get."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unipg.cli import main
from unipg.errors import InputError
from unipg.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("task.tools=[serch]", r"tool 'serch' does not exist; did you mean 'search'\?"),
        ("rollouts.tools.turns=0", "rollouts.tools.turns is 0; accepted: 1 or more"),
        ("rollouts.tools.seconds=0", "rollouts.tools.seconds is 0.0; accepted: above 0"),
        ("rollouts.tools.result_tokens=0", "rollouts.tools.result_tokens is 0; accepted: 1 or more"),
        ("rollouts.tools.row_tokens=1", "rollouts.tools.row_tokens is 1; accepted: 2 or more"),
        ("rollouts.tools.turn=1", "rollouts.tools.turn: this key does not exist; did you mean 'turns'"),
        ("task.reasoning_gym={name: leg_counting}", "task: give exactly one of `reasoning_gym`, `data` and `multi_hop`"),
    ],
)
def test_mistakes_in_a_recipe_are_named(change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe(ROOT / "recipes" / "tools-warm-start.yaml", [change]).task.build()


def test_the_recipes_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["training.iterations=2", "training.prompts=4", "training.evaluate_every=0", "optimizer.warmup=0", "evaluation.items=3"]
    warm = ["policy.scratch.hidden_size=32", "policy.scratch.layers=1", "policy.scratch.heads=2", "task.multi_hop.size=40"]
    recipes = ROOT / "recipes"
    assert main(["train", str(recipes / "tools-warm-start.yaml"), *small, *warm, f"output={tmp_path / 'warm'}"]) == 0
    model = f"policy.model={tmp_path / 'warm' / 'model'}"
    assert main(["train", str(recipes / "tools-grpo.yaml"), *small, model, "algorithm.rollouts=4", f"output={tmp_path / 'rl'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert all("tools/calls" in line for line in lines)
    assert main(["evaluate", str(tmp_path / "rl"), "--items", "3"]) == 0
    assert main(["report", str(tmp_path / "rl")]) == 0
    page = (tmp_path / "rl" / "report.html").read_text()
    assert 'id="tools"' in page
    assert "Tool calls per rollout" in page


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    scratch = "policy.scratch={hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64}"
    small = ["training.prompts=3", "training.iterations=3", "optimizer.warmup=0", "evaluation.tasks=[]", "task.multi_hop.size=30", scratch]
    runs = []
    for name in ("one", "two"):
        options = [*small, "algorithm={name: grpo, rollouts: 3}", f"output={tmp_path / name}"]
        assert main(["train", str(ROOT / "recipes" / "tools-warm-start.yaml"), *options]) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        runs.append([{k: v for k, v in line.items() if not k.startswith(("time/", "seconds"))} for line in lines])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 3
