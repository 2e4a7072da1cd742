"""A tiny language recipe that trains in a second."""

import json
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve additions with their demonstrations."""
    path = tmp_path / "train.jsonl"
    items = [{"q": f"{a} + {b} =", "a": str(a + b)} for a in range(1, 5) for b in range(3)]
    path.write_text("".join(json.dumps(i) + "\n" for i in items), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, rows: Path):
    """Writes a recipe with the given changes and returns its path; the run goes to `tmp_path / "run"`."""

    def write(**changes) -> str:
        values = {
            "algorithm": {"name": "hpt", "rollouts": 4},
            "output": str(tmp_path / "run"),
            "threads": 1,
            "policy": {
                "scratch": {"hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "vocabulary": 270, "max_positions": 64}
            },
            "task": {"data": {"source": str(rows), "prompt": "q", "answer": "a", "demonstration": "a", "verifier": "exact_match"}},
            "rollouts": {"max_new_tokens": 4},
            "training": {"iterations": 3, "prompts": 4},
            "optimizer": {"learning_rate": 0.01},
        }
        for key, value in changes.items():
            before = values.get(key)
            values[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) and key != "algorithm" else value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(path)

    return write
