"""The template of a part, tested as the part that is made from it should be."""

import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from unipg.errors import InputError
from unipg.laws import LawSuite
from unipg.trajectories import Trajectories

# In a project of your own this is `from my_project.parts import MarginClip`.
_SPEC = importlib.util.spec_from_file_location("template_part", Path(__file__).parent.parent / "examples" / "template_part.py")
template = importlib.util.module_from_spec(_SPEC)
sys.modules["template_part"] = template
_SPEC.loader.exec_module(template)
MarginClip = template.MarginClip


class TestMarginClip(LawSuite):
    masks = [MarginClip(), MarginClip(0.01)]  # noqa: RUF012 - what a reader would write
    examples = 15


def test_the_equation() -> None:
    """What the laws cannot know: that the mask is the one in the docstring."""
    ratio = torch.tensor([[1.0, 1.19, 1.21, 0.84, 0.83]], dtype=torch.float64)
    batch = Trajectories(action=torch.zeros(1, 5, dtype=torch.long), mask=torch.ones(1, 5, dtype=torch.bool))
    for sign in (-1.0, 1.0):
        stable = MarginClip(0.2)(ratio.log(), torch.full_like(ratio, sign), batch)
        assert stable.tolist() == [[True, True, False, True, False]]


def test_a_setting_that_makes_no_sense() -> None:
    with pytest.raises(InputError, match="margin is 0"):
        MarginClip(0)


CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", CONTRIBUTING, re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[1])


def test_the_algorithm_of_the_contributors_guide_passes_when_copied(tmp_path: Path) -> None:
    """Every law, its recipe, its row in the table: in a process of its own, because it registers itself."""
    (tmp_path / "my_method.py").write_text(block("python"), encoding="utf-8")
    recipes = Path(__file__).parent.parent / "recipes"
    (tmp_path / "my_method.yaml").write_text(block("yaml").replace("base/", f"{recipes}/base/"), encoding="utf-8")
    code = """
import my_method
from unipg.algorithms import registered
from unipg.cli import main
from unipg.laws import LAWS
from unipg.training.recipe import load_recipe
for law in LAWS.values():
    law(my_method.MyMethod())
assert load_recipe("my_method.yaml").build_algorithm().name == "my_method"
assert main(["explain", "my_method"]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Tokens of long answers weigh less" in done.stdout


def test_a_new_part_is_found() -> None:
    import unipg
    from unipg import estimator

    for module in (estimator.advantages, estimator.masks, estimator.references, estimator.aggregation, estimator.penalties):
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, estimator.Part) and kind.__module__ == module.__name__ and name[0] != "_":
                assert getattr(unipg, name) is kind
