"""Arguments that do not exist or are of another type, in Python, in one line."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from unipg import InputError, PolicyGradient, RatioClip, TokenMean
from unipg.algorithms import GRPO, SFT, Algorithm, registered
from unipg.arguments import CheckedArguments, fits, type_name
from unipg.estimator import Linear
from unipg.training import OptimizerRecipe, TrainingRecipe


@pytest.mark.parametrize("kind", registered().values(), ids=str)
def test_every_algorithm_says_what_is_near(kind: type[Algorithm]) -> None:
    for name in (f.name for f in dataclasses.fields(kind)):
        with pytest.raises(InputError, match=rf"^{kind.__name__}: '{name}x' does not exist; did you mean .*'{name}'") as found:
            kind(**{f"{name}x": 1})
        assert "\n" not in str(found.value)
    assert pickle.loads(pickle.dumps(kind())) == copy.deepcopy(kind()) == kind()


@pytest.mark.parametrize(
    ("kind", "values", "named", "said"),
    [
        (GRPO, (), {"rollouts": "4"}, "GRPO: rollouts is '4'; expected a whole number"),
        (GRPO, ("4",), {}, "GRPO: rollouts is '4'; expected a whole number"),
        (GRPO, (), {"rollouts": 4.5}, "GRPO: rollouts is 4.5; expected a whole number"),
        (GRPO, (), {"rollouts": True}, "GRPO: rollouts is True; expected a whole number"),
        (GRPO, (), {"rollouts": None}, "GRPO: rollouts is None; expected a whole number"),
        (GRPO, (), {"clip_dual": "3"}, "GRPO: clip_dual is '3'; expected a number or null"),
        (GRPO, (), {"kl_estimator": "k1"}, "GRPO: kl_estimator 'k1' does not exist; did you mean 'k[23]' or 'k[23]'. accepted: k2, k3"),
        (GRPO, (8,), {"rollouts": 8}, "GRPO: multiple values for argument 'rollouts'; accepted: rollouts, clip_low"),
        (GRPO, tuple(range(9)), {}, "GRPO: too many positional arguments; accepted: rollouts, clip_low"),
        (RatioClip, (), {"hihg": 0.3}, "RatioClip: 'hihg' does not exist; did you mean 'high'"),
        (RatioClip, ("a",), {}, "RatioClip: low is 'a'; expected a number"),
        (TokenMean, (3,), {}, "TokenMean: too many positional arguments; accepted: no values"),
        (PolicyGradient, (), {"mask": 3}, "PolicyGradient: mask is 3; expected Mask"),
        (Linear, (), {"form": 1.0}, "Linear: 'form' does not exist"),
        (OptimizerRecipe, (), {"learning_rat": 1.0}, "OptimizerRecipe: 'learning_rat' does not exist; did you mean 'learning_rate'"),
        (OptimizerRecipe, (), {"learning_rate": "x"}, "OptimizerRecipe: learning_rate is 'x'; expected a number or auto"),
        (TrainingRecipe, (), {"iterations": "9"}, "TrainingRecipe: iterations is '9'; expected a whole number"),
    ],
)
def test_one_line(kind: type, values: tuple[Any, ...], named: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        kind(*values, **named)


def test_replace() -> None:
    assert dataclasses.replace(GRPO(rollouts=4), kl=0.1) == GRPO(rollouts=4, kl=0.1)
    with pytest.raises(InputError, match=r"^GRPO: 'rolouts' does not exist"):
        dataclasses.replace(GRPO(), rolouts=4)


def test_editors_see_the_fields() -> None:
    assert list(inspect.signature(GRPO).parameters) == [f.name for f in dataclasses.fields(GRPO)]
    assert inspect.signature(SFT).parameters["rollouts"].default == SFT().rollouts
    assert list(inspect.signature(Linear(0.0, 1.0)).parameters) == ["progress"]


def test_numbers_of_numpy_are_numbers() -> None:
    assert GRPO(rollouts=np.int64(4), kl=np.float32(0.5)) == GRPO(rollouts=4, kl=0.5)  # type: ignore[arg-type]


def test_classes_of_ones_own() -> None:
    @dataclass(frozen=True)
    class Mine(GRPO, ABC):
        extra: Unknown = 1  # type: ignore[name-defined]  # a name that cannot be looked up is not judged

    assert Mine(extra="anything").extra == "anything"
    with pytest.raises(InputError, match=r"^Mine: 'exta' does not exist; did you mean 'extra'"):
        Mine(exta=1)  # type: ignore[call-arg]

    class Constructed(CheckedArguments):
        def __init__(self, one: int, **others: int) -> None:
            self.sum = one + sum(others.values())

    assert Constructed(1, two=2).sum == 3

    class Empty(CheckedArguments):
        pass

    with pytest.raises(InputError, match=r"^Empty: 'a' does not exist; accepted: none"):
        Empty(a=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (list[int] | None, "a list of whole numbers or null"),
        (tuple[int, ...], "a list of whole numbers"),
        (tuple[float, float], "a list of 2 numbers"),
        (str | list[str], "text or a list of texts"),
        (list[dict[str, Any]], "a list of sections"),
        (list[Any], "a list"),
        (dict[str, Any], "a section with keys"),
        (Mapping[str, float], "a section of numbers"),
        (dict[str, dict[str, Any]], "a section of sections"),
        (Any, "anything"),
    ],
)
def test_types_are_told_in_words(hint: Any, said: str) -> None:
    assert type_name(hint) == said


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [1, np.int32(1)], [True, 1.0, "1", None]),
        (float, [1, 1.0, np.float64(1)], [True, "1", None]),
        (bool, [True, False], [1, "true"]),
        (str | None, ["", None], [1]),
        (list[int], [[1], "anything"], []),
        (Any, [1, None], []),
    ],
)
def test_what_fits(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(fits(hint, value) for value in good)
    assert not any(fits(hint, value) for value in bad)
