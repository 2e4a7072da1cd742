"""Actions in the policy's units and in the environment's: scaled to the bounds, clipped inside them, of the space's own dtype."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from gymnasium import spaces

from unipg.errors import InputError
from unipg.policies.actions import (
    Actions,
    BoxActions,
    DeterministicActions,
    DiscreteActions,
    GreedyActions,
    MultiBinaryActions,
    MultiDiscreteActions,
    SquashedActions,
)
from unipg.policies.spaces import actions_from, actions_of, described

FAR = np.array([[-1e9], [-1.0], [-0.5], [0.0], [0.25], [1.0], [1e9]], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-2.0, 2.0), (0.0, 0.1), (0.0, 0.01), (100.0, 200.0), (-7.0, -3.0), (5.0, 5.0)])
def test_the_bounds_are_one_unit_from_the_middle(low: float, high: float, dtype: type) -> None:
    space = spaces.Box(low, high, (1,), dtype)
    given = actions_of(space).for_environment(FAR)
    assert given.dtype == dtype
    assert all(space.contains(action) for action in given)
    assert given[0] == given[1] == space.low[0]
    assert given[-2] == given[-1] == space.high[0]
    expected = [low + (high - low) * (a + 1) / 2 for a in (-0.5, 0.0, 0.25)]
    assert given[2:5, 0].astype(float) == pytest.approx(expected, rel=2e-3 if dtype == np.float16 else 1e-6)


def test_a_dimension_without_two_bounds_is_as_it_is() -> None:
    low, high = np.array([-np.inf, -np.inf, 3.0, 0.0], np.float32), np.array([np.inf, 2.0, np.inf, 10.0], np.float32)
    space = spaces.Box(low, high, dtype=np.float32)
    given = actions_of(space).for_environment(np.array([[5.0, 5.0, 1.0, 0.2], [-5.0, -5.0, 7.0, -0.2]], np.float32))
    assert given.tolist() == [[5.0, 2.0, 3.0, 6.0], [-5.0, -5.0, 7.0, 4.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_the_largest_number_is_no_bound(dtype: type) -> None:
    most = np.finfo(dtype).max
    space = spaces.Box(-most, most, (2,), dtype)
    actions = actions_of(space)
    assert actions == BoxActions((2,), (-math.inf,) * 2, (math.inf,) * 2, np.dtype(dtype).name)
    given = actions.for_environment(np.array([[0.5, 3e38]], np.float32))
    assert given[0, 0] == 0.5
    assert space.contains(given[0])


def test_shapes_are_the_environments() -> None:
    space = spaces.Box(np.array([[0.0], [-4.0]]), np.array([[1.0], [4.0]]), dtype=np.float64)
    given = actions_of(space).for_environment(np.array([[1.0, 0.5]], np.float32))
    assert given.tolist() == [[[1.0], [2.0]]]
    assert space.contains(given[0])
    scalar = spaces.Box(0.0, 2.0, (), np.float32)
    assert actions_of(scalar).for_environment(np.array([[0.0]], np.float32)).tolist() == [1.0]


def test_discrete_actions_are_numbered_as_the_space_is() -> None:
    space = spaces.Discrete(4, start=-2)
    given = actions_of(space).for_environment(np.arange(4))
    assert given.tolist() == [-2, -1, 0, 1]
    assert all(space.contains(action) for action in given)
    assert DiscreteActions(3, dtype="int32").for_environment(np.arange(3)).dtype == np.int32


@pytest.mark.parametrize(
    "actions",
    [
        DiscreteActions(3, 1),
        GreedyActions(3, -1, "int32"),
        MultiDiscreteActions((2, 3), (0, 1), (1, 2)),
        MultiBinaryActions((2, 2)),
        BoxActions((2,), (-1.0, -math.inf), (1.0, math.inf), "float64"),
        SquashedActions((2,), (-1.0, 0.0), (1.0, 0.5), "float16"),
        DeterministicActions((1,), (-1.0,), (1.0,), exploration=0.3),
    ],
)
def test_what_is_described_comes_back(actions: Actions) -> None:
    assert json.loads(json.dumps(described(actions))) == described(actions)
    again = actions_from(**described(actions))
    assert again == actions
    assert getattr(again, "exploration", None) == getattr(actions, "exploration", None)


def test_other_spaces_are_named() -> None:
    for space in (spaces.Box(0, 3, (2,), np.int64), spaces.Tuple([spaces.Discrete(2)])):
        with pytest.raises(InputError, match="accepted: Discrete, MultiDiscrete, MultiBinary, or a Box of real"):
            actions_of(space)
