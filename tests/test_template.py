"""The template of a part, tested as the part that is made from it should be."""

import importlib.util
import sys
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
