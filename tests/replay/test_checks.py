"""Each fault that ruins offline learning is found where it is, and nothing is found where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unipg.errors import InputError
from unipg.replay import Transitions, open_data
from unipg.replay.cards import digest, facts, quantiles
from unipg.replay.checks import KINDS, check
from unipg.replay.pieces import Settled, pieces_of

HORIZON = 50
ENVIRONMENT = {
    "horizon": HORIZON, "observation": {"type": "vector", "shape": [3]},
    "action": {"type": "box", "shape": [2], "low": [-2.0, 0.0], "high": [2.0, 3.0]},
}  # fmt: skip
NAMES = ("observation", "next_observation", "action", "reward", "terminated", "truncated", "episode")
MIX = Path(__file__).parents[2] / "benchmarks" / "data" / "pendulum-mix.npz"
Rows = dict[str, np.ndarray]


def sound(seed: int = 0) -> Rows:
    """Eight episodes, of which every other one terminates early."""
    draw = np.random.default_rng(seed)
    parts = []
    for number in range(8):
        length = 20 + number if number % 2 else HORIZON
        path = draw.standard_normal((length + 1, 3)).cumsum(0).astype(np.float32)
        last = np.arange(length) == length - 1
        action = draw.uniform([-2, 0], [2, 3], (length, 2)).astype(np.float32)
        flags = {"terminated": last & bool(number % 2), "truncated": last & (number % 2 == 0), "episode": np.full(length, number)}
        parts.append({"observation": path[:-1], "next_observation": path[1:], "action": action, "reward": path[1:, 0], **flags})
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


def ends_of(rows: Rows) -> np.ndarray:
    return np.append(rows["episode"][1:] != rows["episode"][:-1], True).nonzero()[0]


def time_outs_as_terminals(rows: Rows) -> Rows:
    return {**rows, "terminated": rows["terminated"] | rows["truncated"], "truncated": np.zeros_like(rows["truncated"])}


def across(rows: Rows) -> Rows:
    after = rows["next_observation"].copy()
    at = ends_of(rows)[:-1]
    after[at] = rows["observation"][at + 1]
    return {**rows, "next_observation": after}


def stale(rows: Rows) -> Rows:
    """The last row of a window repeats its observation."""
    after = rows["next_observation"].copy()
    after[[7, 90]] = rows["observation"][[7, 90]]
    return {**rows, "next_observation": after}


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Rows], Rows]:
    return lambda rows: {**rows, name: change(rows[name])}


def column(k: int, value: float, noise: float = 0.0) -> Callable[[Rows], Rows]:
    def made(rows: Rows) -> Rows:
        draw = np.random.default_rng(0).standard_normal(len(rows["reward"]) + 1) * noise + value
        first = np.append(0, ends_of(rows)[:-1] + 1)
        after = draw[1:].copy()
        seen = np.append(draw[0], after[:-1])
        seen[first] = value
        filled = {name: rows[name].copy() for name in ("observation", "next_observation")}
        filled["observation"][:, k], filled["next_observation"][:, k] = seen, after
        return {**rows, **filled}

    return made


def twice(rows: Rows) -> Rows:
    again = {name: values[rows["episode"] == 1] for name, values in rows.items()}
    return {name: np.concatenate([rows[name], again[name] + (7 if name == "episode" else 0)]) for name in NAMES}


def shuffled(rows: Rows) -> Rows:
    """All but a few at the beginning."""
    order = np.arange(len(rows["reward"]))
    np.random.default_rng(0).shuffle(order[6:])
    return {name: values[order] for name, values in rows.items() if name != "episode"}


def unmarked(rows: Rows) -> Rows:
    no = np.zeros(len(rows["reward"]), bool)
    return {name: values for name, values in rows.items() if name not in ("episode", "next_observation")} | {
        "terminated": no, "truncated": no
    }  # fmt: skip


FAULTS: dict[str, tuple[Callable[[Rows], Rows], str, str]] = {
    "time-outs as terminals": (time_outs_as_terminals, "timeouts", "row 49: timeouts: 4 of 4 episodes that lasted the limit of 50 steps"),
    "next observations across episodes": (across, "across", "row 49: across: its next observation is the first of another episode (4 rows"),
    "stale next observations": (stale, "across", "row 7: across: its next observation is not the observation of the episode's next row (2"),
    "actions out of bounds": (changed("action", lambda a: a * 1.5), "actions", "is outside [-2, 0] to [2, 3] ("),
    "actions in units of their bounds": (changed("action", lambda a: a / [2, 3]), "actions", "actions: no action is larger"),
    "actions of another space": (changed("action", lambda a: a[:, :1]), "actions", "the actions have shape [1]; accepted: [2]"),
    "NaN": (changed("reward", lambda r: np.where(np.arange(len(r)) % 100 == 60, np.nan, r)), "finite", "row 60: finite: column 'reward'"),
    "a constant dimension": (column(1, 7.0), "constant", "column 'observation': constant: constant in the dimensions 1 (7 ± 0)"),
    "a nearly constant dimension": (column(2, 5.0, 1e-5), "constant", "nearly constant in the dimensions 2 (5 ± 1e-05)"),
    "a constant action": (changed("action", lambda a: a * [1, 0] + [0, 1]), "constant", "'action': constant: constant in the dimensions 1"),
    "an episode twice": (twice, "duplicates", "episode 8 (row 296): duplicates: is episode 1 again"),
    "rewards of nothing": (changed("reward", lambda r: r * 0), "rewards", "all rewards are 0"),
    "large rewards": (changed("reward", lambda r: r * 1000), "rewards", "the largest reward is of size"),
    "small rewards": (changed("reward", lambda r: r * 1e-4), "rewards", "the largest reward is of size"),
    "no ends": (unmarked, "lengths", "episode 0 (row 0): lengths: has 295 steps, more than the environment's 50"),
    "observations of another space": (
        lambda rows: {**rows, "observation": rows["observation"][:, :2], "next_observation": rows["next_observation"][:, :2]},
        "observations", "column 'observation': observations: has shape [2]; the environment's have [3]",
    ),
    "rows out of order": (shuffled, "lengths", "episodes are one step that does not terminate: rows out of order, or ends that mean"),
    "ends everywhere": (
        changed("episode", lambda e: np.arange(len(e))), "lengths", "all 296 episodes have one step: rows out of order, or ends that mean",
    ),
}  # fmt: skip


def found_in(rows: Rows, environment: dict[str, Any] | None = None, ignore: tuple[str, ...] = ()) -> list[str]:
    data = Transitions.settled(Settled(pieces_of(rows)), {"environment": ENVIRONMENT})
    return [str(finding) for finding in check(data, environment, ignore)]


@pytest.mark.parametrize("seed", range(5))
def test_sound_rows_give_no_finding(seed: int) -> None:
    assert found_in(sound(seed)) == []
    assert found_in({name: values for name, values in sound(seed).items() if name != "next_observation"}) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_its_place(fault: str) -> None:
    spoil, kind, message = FAULTS[fault]
    lines = found_in(spoil(sound()))
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert f": {kind}: " in lines[0]
    assert "\n" not in lines[0]
    data = Transitions.settled(Settled(pieces_of(spoil(sound()))), {"environment": ENVIRONMENT})
    assert check(data, ignore=(kind,)) == []


def test_every_kind_has_a_fault() -> None:
    assert {kind for _, kind, _ in FAULTS.values()} | {"card"} == set(KINDS)


def test_a_card_is_of_its_rows_and_its_references_of_the_horizon() -> None:
    """Scores of one horizon are no scores of another."""
    rows = sound()
    references = {"min": 0.0, "max": 1.0, "horizon": HORIZON, "label": "local"}
    card = {"sha256": digest(Transitions.of(rows)), "references": references, "environment": ENVIRONMENT}
    assert check(Transitions.of(rows, card)) == []
    rows["reward"] = rows["reward"] + 1
    [finding] = check(Transitions.of(rows, card))
    assert str(finding).startswith("card: card: its sha256 is not that of the rows")
    [finding] = check(Transitions.of(sound(), card), {"horizon": 2 * HORIZON}, ignore=("timeouts",))
    assert "of episodes of 50 steps, the environment's have 100" in finding.text


def test_what_is_known_of_the_environment_comes_from_the_card_or_the_caller() -> None:
    rows = time_outs_as_terminals(sound())
    bare = Transitions.of(rows)
    [finding] = check(bare)
    assert finding.text.startswith(
        "4 of 4 episodes that lasted 50 steps (none lasted longer, none was truncated) are marked as terminated: "
    )
    few = Transitions.of({**sound(), "terminated": rows["terminated"]})
    assert check(few, {"horizon": HORIZON + 1}) == []
    one = sound()
    one["terminated"][49] = True  # one of four terminated in its last step: it happens
    assert found_in(one) == []


def test_rows_without_rewards_have_none_to_find() -> None:
    rows = sound()
    del rows["reward"]
    assert found_in(rows) == []


@pytest.mark.parametrize("successors", [True, False])
def test_rows_without_an_end_are_told_whoever_cut_the_last_one(successors: bool) -> None:
    """Without next observations the reader truncates before the row that it leaves out: that is no end of the rows' own."""
    whole = {name: values[:50] for name, values in sound().items() if name != "episode" and (successors or name != "next_observation")}
    no = np.zeros(50, bool)
    data = Transitions.of({**whole, "terminated": no, "truncated": no})
    assert [str(finding) for finding in check(data)] == [
        f"row 0: lengths: no episode ever ends: all {49 + successors} rows are one; where the next begins is not known"
    ]
    assert check(Transitions.of(whole)) == []  # the same, and its last row says that it is


def test_a_number_that_is_not_finite_is_one_finding() -> None:
    for value in (np.nan, np.inf):
        rows = sound()
        rows["observation"] = rows["observation"].copy()
        rows["observation"][5, 1] = value
        assert found_in(rows) == ["row 5: finite: column 'observation' is not finite"]
        rows["observation"][:, 1] = value
        assert found_in(rows) == ["row 0: finite: column 'observation' is not finite (296 rows in all)"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_counted_up_without_a_warning(value: float) -> None:
    """Warnings are errors here; on a terminal they would stand among the findings."""
    rows = {**sound(), "reward": np.full(296, value)}
    data = Transitions.settled(Settled(pieces_of(rows)), {"environment": ENVIRONMENT})
    assert [finding.kind for finding in check(data)] == ["finite"]
    assert quantiles(data.column("reward")) == {}
    assert facts(data)["transitions"] == 296


def test_one_reward_everywhere_counts_where_episodes_differ() -> None:
    """1 a step is the commonest reward of all; where all episodes are alike it tells nothing."""
    rows = {**sound(), "reward": np.ones(296)}
    assert found_in(rows) == []
    alike = {name: values[:50] for name, values in rows.items()}
    assert found_in(alike) == ["column 'reward': rewards: all rewards are 1"]


def test_actions_of_another_kind_are_told_as_training_refuses_them() -> None:
    rows = {**sound(), "action": (np.arange(296) % 3).astype(np.float32)}
    counted = {"action": {"type": "discrete", "n": 3, "start": 0}}
    [line] = found_in(rows, counted)
    assert line == "column 'action': actions: the actions are float32; accepted: whole numbers, as actions.astype('int64') makes of these"
    [line] = found_in({**rows, "action": rows["action"] / 2}, counted)
    assert line.endswith("the actions are float32; accepted: whole numbers")
    [line] = found_in({**rows, "action": np.tile([0, 1], (296, 1))}, counted, ignore=("constant",))
    assert line.endswith("the actions have shape [2]; accepted: []")


def test_counted_actions_are_those_of_the_environment() -> None:
    rows = {**sound(), "action": np.arange(296) % 3 + 5}
    action = {"type": "discrete", "n": 3, "start": 5}
    assert found_in(rows, {"action": action}) == []
    [line] = found_in(rows, {"action": action | {"start": 4}})
    assert line == "row 2: actions: the action 7 is outside 4 to 6 (98 rows in all)"


def test_a_kind_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="kind 'timeout' do not exist; did you mean 'timeouts'"):
        check(Transitions.of(sound()), ignore=("timeout",))


def test_the_kept_mix_is_sound_and_what_its_card_says() -> None:
    data = open_data(MIX)
    assert check(data) == []
    assert data.card["references"] == {"min": -1240.0, "max": -147.0, "horizon": 200, "label": "local"}
    assert [(part["behaviour"], part["episodes"]) for part in data.card["parts"]] == [("random", 25), ("medium", 25), ("expert", 10)]
