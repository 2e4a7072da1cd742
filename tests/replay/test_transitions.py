"""Rows that are given become transitions: what was left out is found, and what cannot be known is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipg.errors import InputError
from unipg.replay import Transitions, pieces
from unipg.replay.cards import Episodes, References, facts
from unipg.replay.pieces import Settled, gathered

ENDS = ("goes on", "terminated", "truncated", "both")
NAMES = ("observation", "next_observation", "action", "reward", "terminated", "truncated", "episode")


def stitched(episodes: list[tuple[int, str]]) -> dict[str, np.ndarray]:
    """Episodes (length, end) one behind the other: row t of episode e shows (e, t) and leads to (e, t + 1)."""
    rows: list[dict[str, Any]] = []
    for number, (length, end) in enumerate(episodes):
        for t in range(length):
            last = t == length - 1
            rows.append(
                {
                    "observation": [number, t], "next_observation": [number, t + 1], "action": [t / 8], "reward": 1 + t,
                    "terminated": last and end in ("terminated", "both"), "truncated": last and end in ("truncated", "both"),
                    "episode": number,
                }
            )  # fmt: skip
    kinds = {"terminated": bool, "truncated": bool, "episode": np.int64}
    return {name: np.array([row[name] for row in rows], kinds.get(name, np.float32)) for name in NAMES}


EPISODES = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(ENDS)), min_size=1, max_size=6)


def made(columns: dict[str, np.ndarray], size: int = 10**6) -> tuple[Settled, dict[str, np.ndarray]]:
    """All rows of pieces of `size` rows."""
    rows = len(columns["observation"])
    settled = Settled({name: values[start : start + size] for name, values in columns.items()} for start in range(0, rows, size))
    tables = gathered(settled)
    data = Transitions(settled.columns, tables, settled.told())
    return settled, {name: data.column(name) for name in NAMES}


@settings(deadline=None)
@given(EPISODES, st.integers(1, 7))
def test_two_stitched_episodes_never_touch(episodes: list[tuple[int, str]], size: int) -> None:
    """Without next observations, whatever the rows are cut into: the pairs are real, the last row of an episode that did not terminate
    is dropped and counted, and the row before it is where the episode was truncated."""
    whole = stitched(episodes)
    unknown = sum(end in ("goes on", "truncated") for _, end in episodes)
    if unknown == len(whole["reward"]):
        with pytest.raises(InputError, match="single steps are no transitions"):
            made({name: values for name, values in whole.items() if name != "next_observation"}, size)
        return
    settled, found = made({name: values for name, values in whole.items() if name != "next_observation"}, size)
    assert settled.left_out == unknown
    assert len(found["reward"]) == len(whole["reward"]) - unknown
    ended = found["terminated"]
    assert (found["next_observation"][~ended] == found["observation"][~ended] + [0, 1]).all()
    for number, (length, end) in enumerate(episodes):
        mine = found["episode"] == number
        ends = end in ("terminated", "both")
        assert mine.sum() == length - (not ends)
        if mine.any():
            assert found["terminated"][mine].tolist() == [False] * (mine.sum() - 1) + [ends]
            assert found["truncated"][mine].tolist() == [False] * (mine.sum() - 1) + [not ends]  # an end that is both is an end


@settings(deadline=None)
@given(EPISODES, st.integers(1, 7), st.booleans(), st.booleans())
def test_episodes_end_where_observations_do_not_follow(episodes: list[tuple[int, str]], size: int, flags: bool, numbers: bool) -> None:
    """With next observations no row is lost; episodes end where another observation follows, and that is no terminal."""
    whole = stitched(episodes)
    left = {name: values for name, values in whole.items() if (flags or name != "truncated") and (numbers or name != "episode")}
    settled, found = made(left, size)
    assert settled.left_out == 0
    for name in ("observation", "next_observation", "action", "reward", "terminated", "episode"):
        np.testing.assert_array_equal(found[name], whole[name])
    last = np.append(whole["episode"][1:] != whole["episode"][:-1], False)
    expected = whole["truncated"] if flags else last
    np.testing.assert_array_equal(found["truncated"], expected & ~whole["terminated"])


def test_what_the_pieces_are_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stitched([(5, "truncated"), (1, "goes on"), (3, "terminated"), (9, "both"), (2, "truncated")])
    one = Transitions.of({name: values for name, values in whole.items() if name != "next_observation"})
    monkeypatch.setattr(pieces, "PIECE", 4)
    several = Transitions.of({name: values for name, values in whole.items() if name != "next_observation"})
    assert facts(one) == facts(several)
    assert one.card == several.card == {"left_out": 3, "missing": ["next_observation"]}


def test_rewards_may_be_missing_and_the_card_says_so() -> None:
    whole = stitched([(3, "terminated")])
    del whole["reward"]
    data = Transitions.of(whole)
    assert data.card["missing"] == ["reward"]
    assert data.column("reward").tolist() == [0, 0, 0]


def test_counted_actions_may_be_a_column() -> None:
    """As d3rlpy keeps them; real actions of one number stay what they are."""
    whole = stitched([(3, "terminated"), (4, "truncated")])
    data = Transitions.of({**whole, "action": np.arange(7)[:, None]})
    assert data.column("action").tolist() == list(range(7))
    assert Transitions.of(whole).column("action").shape == (7, 1)
    assert Transitions.of({**whole, "action": np.zeros((7, 2), int)}).column("action").shape == (7, 2)


def test_scaling_rewards_changes_nothing_else() -> None:
    whole = stitched([(3, "terminated"), (4, "truncated")])
    one, other = Transitions.of(whole), Transitions.of({**whole, "reward": whole["reward"] * 8})
    for name in NAMES:
        factor = 8 if name == "reward" else 1
        np.testing.assert_array_equal(one.column(name) * factor, other.column(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": None}, "column 'observation' is missing"),
        ({"terminated": None}, "column 'terminated' is missing"),
        ({"rewards": np.zeros(7)}, "unknown column 'rewards' of a dataset; did you mean 'reward'"),
        ({"action": np.zeros((6, 1))}, "column 'action' has 6 rows; accepted: 7, as observation has"),
        ({"next_observation": np.zeros((7, 3))}, r"column 'next_observation' has shape \[7, 3\]; accepted: \[7, 2\]"),
        ({"action": np.array(["a"] * 7)}, "column 'action' is <U1"),
        ({"reward": np.zeros(7, np.complex64)}, "column 'reward' is complex64 of .*; accepted: real numbers"),
        ({"terminated": np.array([0, 0, 0.5, 0, 0, 0, 1])}, "column 'terminated' is 0.5 in row 2; accepted: 0 and 1"),
        ({"truncated": np.array([0, 0, 0, 0, 0, np.nan, 1])}, "column 'truncated' is nan in row 5; accepted: 0 and 1"),
        ({"reward": np.array([0, 0, np.nan, 0, np.inf, 0, 0])}, r"column 'reward' is not finite in row 2 \(2 rows in all\)"),
        ({"observation": np.full((7, 2), 1e300)}, r"column 'observation' is not finite in row 0 \(7 rows in all\)"),
        ({"episode": np.array([0, 0, 1, 1, 0, 0, 0])}, "episode 0 goes on after another one"),
        ({name: np.zeros((0, 2)) for name in NAMES}, "has no rows"),
    ],
)
def test_bad_columns_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    columns = {**stitched([(3, "terminated"), (4, "truncated")]), **change}
    with pytest.raises(InputError, match=message):
        Transitions.of({name: values for name, values in columns.items() if values is not None})


def test_episodes_and_their_returns() -> None:
    data = Transitions.of(stitched([(3, "terminated"), (4, "truncated"), (2, "goes on")]))
    found = Episodes.of(data)
    assert found.length.tolist() == [3, 4, 2]
    assert found.returns.tolist() == [6, 10, 3]
    assert found.ends.tolist() == [2, 1, 0]
    told = facts(data)
    assert told["returns"] == {"mean": 8.0, "std": 2.0, "min": 6.0, "max": 10.0}  # of whole episodes
    assert told["ended"] == {"cut off": 1, "truncated": 1, "terminated": 1}


def test_a_checksum_is_of_every_column() -> None:
    whole = stitched([(3, "terminated"), (4, "truncated")])
    sums = {facts(Transitions.of(whole))["sha256"]}
    for name in NAMES:
        changed = {key: values.copy() for key, values in whole.items()}
        changed[name][-1] = ~changed[name][-1] if changed[name].dtype == bool else changed[name][-1] + 1
        sums.add(facts(Transitions.of(changed))["sha256"])
    assert len(sums) == 1 + len(NAMES)


def test_random_is_worth_0_and_the_expert_100() -> None:
    references = References(-1240, -147, 200)
    assert references.score(-1240) == 0
    assert references.score(-147) == 100
    assert references.score(-693.5) == 50
    assert References.of({"references": {"min": -1240, "max": -147, "horizon": 200, "label": "local"}}) == references
    assert References.of({}) is None
    for low, high in ((1, 1), (2, 1), (float("nan"), 1)):
        with pytest.raises(InputError, match="reference returns are"):
            References(low, high)


def test_drawn_rows_are_those_that_are_asked_for() -> None:
    whole = stitched([(3, "terminated"), (4, "truncated")])
    data = Transitions.of(whole)
    drawn = data.draw(torch.tensor([6, 0, 6]))
    for name in NAMES:
        np.testing.assert_array_equal(drawn[name].numpy(), whole[name][[6, 0, 6]])
    for index in ([7], [-1]):
        with pytest.raises(IndexError, match="there are 7"):
            data.draw(torch.tensor(index))
