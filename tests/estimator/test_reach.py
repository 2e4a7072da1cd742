"""A part that says it looks at single steps gives the same for rows that are cut into them; others are never asked to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from unipg.estimator import (
    Advantage,
    Aggregate,
    BySuccess,
    Constant,
    EntropyBonus,
    GroupCentered,
    KLPenalty,
    Mask,
    Outcome,
    Planning,
    PolicyGradient,
    RatioClip,
    Reference,
    SequenceClip,
    SequenceMean,
    Term,
    TokenMean,
    TokenProbability,
    ValueLoss,
)
from unipg.estimator.references import Corrected, CurrentPolicy, SequenceCorrected
from unipg.trajectories import Evaluation, Trajectories


def classes(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("unipg.estimator."):  # those of critics are tried on rows of controllers
            yield kind
        yield from classes(kind)


def of_steps(base: type) -> list[Any]:
    """Every part of a kind, with its defaults, that says it looks at steps."""
    found = []
    for kind in dict.fromkeys(classes(base)):
        needed = [f for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
        if not needed and (part := kind()).reach == "step":
            found.append(part)
    return found


def batch() -> Trajectories:
    """Rows of 5, 2, 1 and 4 steps."""
    draw = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(4, 5, generator=draw, dtype=torch.float64)

    mask = torch.arange(5) < torch.tensor([[5], [2], [1], [4]])
    return Trajectories(
        action=torch.zeros(4, 5, dtype=torch.long),
        mask=mask,
        reward=torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64),
        old_log_prob=noise() - 3,
        behaviour_log_prob=noise() - 3,
        anchor_log_prob=noise() - 3,
        value=noise(),
    )


def now() -> Evaluation:
    draw = torch.Generator().manual_seed(1)
    log_prob, entropy, value = (torch.randn(4, 5, generator=draw, dtype=torch.float64) for _ in range(3))
    return Evaluation(log_prob - 3, entropy.abs(), value)


def cut(found: Evaluation, mask: Tensor) -> Evaluation:
    return found.map(lambda tensor: tensor[mask].unsqueeze(1))


def check(part: Any, call: Callable[[Trajectories, Evaluation], Tensor]) -> None:
    whole, steps = batch(), batch().as_steps()
    expected, found = call(whole, now()), call(steps, cut(now(), whole.mask))
    torch.testing.assert_close(found.squeeze(1), expected[whole.mask], rtol=0, atol=1e-12, msg=lambda text: f"{part}: {text}")


def advantages(rows: Trajectories) -> Tensor:
    """The same for a step wherever it stands."""
    return torch.sin(7 * rows.require("value", "the test"))


def test_masks() -> None:
    parts = of_steps(Mask)
    assert len(parts) >= 3
    for part in [*parts, RatioClip() & RatioClip(0.1, 0.1)]:
        check(part, lambda rows, at, part=part: part(at.log_prob - rows.old_log_prob, advantages(rows), rows))


def test_references() -> None:
    parts = of_steps(Reference)
    assert len(parts) >= 6
    for part in parts:
        check(part, lambda rows, at, part=part: part(at.log_prob, rows))


def test_aggregates() -> None:
    assert of_steps(Aggregate) == [TokenMean()]
    check(TokenMean(), lambda rows, at: TokenMean()(rows.mask))


def test_advantages_of_the_current_policy() -> None:
    parts = [part for part in of_steps(Advantage) if part.is_dynamic]
    assert TokenProbability() in parts
    for part in [*parts, 0.5 * Constant() + TokenProbability()]:
        check(part, lambda rows, at, part=part: part(rows, at))


def test_terms() -> None:
    for part in (KLPenalty(), EntropyBonus()):
        assert part.reach == "step"
        check(part, lambda rows, at, part=part: part.per_token(at, rows, "term", Planning())[0])
    assert ValueLoss().reach == "step"


@pytest.mark.parametrize(
    "part",
    [
        SequenceClip(),
        RatioClip() & SequenceClip(),
        SequenceMean(),
        SequenceCorrected(),
        Corrected(SequenceMean()),
        Outcome(),
        BySuccess(),
        0.5 * Constant() + Outcome(),
        GroupCentered(),
    ],
)
def test_what_is_made_of_a_part_that_looks_at_rows_does_too(part: Any) -> None:
    assert part.reach == "row"


def test_terms_look_as_far_as_their_parts() -> None:
    made = PolicyGradient(advantage=Constant())
    assert made.reach == "step"
    assert dataclasses.replace(made, advantage=Outcome()).reach == "row"
    assert dataclasses.replace(made, reference=Corrected(CurrentPolicy())).reach == "step"
    assert (made + dataclasses.replace(made, mask=SequenceClip())).reach == "row"

    class Silent(Term):
        """A term that says nothing of itself."""

    assert Silent().reach == "row"
    assert not made.compares
    assert (made + PolicyGradient(advantage=0.1 * GroupCentered() + Outcome())).compares
