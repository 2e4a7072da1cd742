"""Imports point one way, the estimator is light, and the README's code runs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "unipg"
LAYERS = (
    {"arguments", "errors", "files", "hub", "loading", "settings", "shapes", "seeding"},
    {"trajectories"},
    {"estimator", "networks", "statistics", "replay"},
    {"critics"},
    {"policies", "tasks", "samplers", "rollouts", "environments"},
    {"algorithms"},
    {"training"},
    {"lab", "laws", "reports", "terminal", "interop"},
    {"front"},
    {"cli", "cli_data"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def imported(path: Path) -> set[str]:
    """First rooms of `unipg` that a file imports, at module level or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" if node.module == "unipg" else node.module for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("unipg.") and name.split(".")[1] in RANK}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert room in RANK, f"'{room}' has no place in the house: see DESIGN in CONTRIBUTING.md"
    for other in imported(path):
        assert RANK[other] <= RANK[room], f"{path.name} imports {other}, which stands above {room}"
    own = {
        "estimator": {"estimator", "trajectories", "shapes", "arguments", "errors", "loading"},
        "networks": {"networks", "errors", "seeding", "shapes"},
    }
    assert imported(path) <= own.get(room, set(RANK))


def test_import_loads_nothing_heavy() -> None:
    heavy = ("transformers", "reasoning_gym", "gymnasium", "plotly", "matplotlib", "datasets")
    code = f"import sys, unipg; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_readmes_composition_runs() -> None:
    import torch

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "mine =" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    log_prob = (-torch.rand(4, 3)).requires_grad_()
    names = {
        "tokens": torch.zeros(4, 3, dtype=torch.long),
        "mask": torch.ones(4, 3, dtype=torch.bool),
        "group": torch.tensor([0, 0, 1, 1]),
        "reward": torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "old": log_prob.detach(),
        "anchor": log_prob.detach() - 0.1,
        "log_prob": log_prob,
        "entropy": torch.ones(4, 3),
    }
    exec(code, names)
    assert log_prob.grad.norm() > 0
