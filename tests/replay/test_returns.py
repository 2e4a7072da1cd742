"""Returns over n steps against brute force, at every start, cut and place of the write cursor."""

import itertools

import numpy as np
import pytest
import torch

from unipg.errors import InputError
from unipg.replay import Ring, n_step, transition_columns

COLUMNS = transition_columns((), "float32", (), "float32")
EPISODES = itertools.count()


def row(reward: float, terminated: bool, truncated: bool, episode: int) -> dict[str, np.ndarray]:
    one = {"observation": 0.0, "next_observation": 0.0, "action": 0.0, "reward": reward}
    flags = {"terminated": np.array([terminated]), "truncated": np.array([truncated]), "episode": np.array([episode])}
    return {**{name: np.array([value]) for name, value in one.items()}, **flags}


def ring_of(rows, capacity: int = 100, slack: int = 0) -> Ring:
    ring = Ring(None, COLUMNS, capacity, slack=slack)
    for one in rows:
        ring.append(**row(*one))
    return ring


def played(count: int, streams: int, generator: torch.Generator) -> list[tuple[float, bool, bool, int]]:
    """Rows of environments stepped in turn, whose episodes end at random in either way or both."""
    episode = [next(EPISODES) for _ in range(streams)]
    rows = []
    for number in range(count):
        chance = torch.rand(3, generator=generator)
        terminated, truncated = (bool(c < 0.2) for c in chance[:2])
        rows.append((float(chance[2]), terminated, truncated, episode[number % streams]))
        if terminated or truncated:
            episode[number % streams] = next(EPISODES)
    return rows


def brute(rows, start: int, n: int, discount: float, streams: int) -> tuple[float, float, int]:
    total, factor, at = 0.0, 1.0, start
    for _ in range(n):
        reward, terminated, truncated, _ = rows[at]
        total += factor * reward
        factor *= discount
        if terminated:
            return total, 0.0, at
        if truncated or at + streams >= len(rows):
            break
        at += streams
    else:
        at -= streams
    return total, factor, at


@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_every_start_cut_and_cursor_is_as_brute_force_says(n, streams) -> None:
    generator = torch.Generator().manual_seed(n)
    for slack, capacity in ((0, 13), (4, 13), (0, 200)):
        for count in {1, max(1, n - 1), n, 2 * n + 3, 13, 14, 27, 60}:
            rows = played(count, streams, generator)
            ring = ring_of(rows, capacity, slack)
            kept = rows[-capacity:]
            index = torch.arange(len(ring))
            found = n_step(ring, index, n, 0.9, streams)
            right = [brute(kept, start, n, 0.9, streams) for start in range(len(kept))]
            assert found.last.tolist() == [last for _, _, last in right]
            assert torch.allclose(found.reward, torch.tensor([total for total, _, _ in right]))
            assert torch.allclose(found.factor, torch.tensor([factor for _, factor, _ in right]))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("cut", ["none", "terminated", "truncated", "both", "newest"])
def test_sum_factor_and_last_row_after_m_steps(m, cut) -> None:
    """Rewards 1, 2, 4, 8 at discount ½ add 1 a step."""
    flags = {"terminated": (True, False), "truncated": (False, True), "both": (True, True)}.get(cut, (False, False))
    length = m if cut == "newest" else 6
    ring = ring_of([(2.0**k, *(flags if k == m - 1 else (False, False)), 0) for k in range(length)])
    found = n_step(ring, torch.tensor([0]), m if cut == "none" else 6, 0.5)
    assert found.reward.tolist() == [m]
    assert found.factor.tolist() == [0.0 if flags[0] else 0.5**m]
    assert found.last.tolist() == [m - 1]


def test_two_episodes_are_what_each_is_alone() -> None:
    first, second = [(1.0, False, False, 0), (2.0, False, True, 0)], [(100.0, False, False, 1), (200.0, True, False, 1)]
    both = n_step(ring_of([*first, *second]), torch.arange(4), 3, 0.9)
    alone = [n_step(ring_of(rows), torch.arange(2), 3, 0.9) for rows in (first, second)]
    assert torch.equal(both.reward, torch.cat([one.reward for one in alone]))
    assert torch.equal(both.factor, torch.cat([one.factor for one in alone]))


def test_what_is_behind_a_cut_does_not_leak_in() -> None:
    nan = float("nan")
    ring = ring_of([(1.0, False, False, 0), (1.0, True, False, 0), (nan, False, False, 1), (nan, False, False, 1)])
    found = n_step(ring, torch.tensor([0, 1]), 4, 1.0)
    assert found.reward.tolist() == [2.0, 1.0]
    assert found.factor.tolist() == [0.0, 0.0]


def test_a_window_ends_before_another_episode_though_no_flag_says_so() -> None:
    """An environment that could not be saved begins anew after a resume; and a row was left out, so that the turns have shifted."""
    begun_again = ring_of([(1.0, False, False, 0), (1.0, False, False, 0), (1.0, False, False, 1)])
    assert n_step(begun_again, torch.arange(3), 3, 0.5).last.tolist() == [1, 1, 2]
    turns = [(1.0, False, False, number % 3) for number in range(12)]
    del turns[7]
    found = n_step(ring_of(turns), torch.arange(11), 4, 0.5, streams=3)
    for start, last in enumerate(found.last.tolist()):
        assert {turns[at][3] for at in range(start, last + 1, 3)} == {turns[start][3]}
    assert found.last.tolist() == [6, 4, 5, 6, 4, 5, 6, 10, 8, 9, 10]


@pytest.mark.parametrize(("n", "discount", "streams"), [(0, 0.9, 1), (1, 1.1, 1), (1, -0.1, 1), (1, 0.9, 0)])
def test_impossible_settings_are_refused(n, discount, streams) -> None:
    with pytest.raises(InputError, match="accepted: at least 1, from 0 to 1, at least 1"):
        n_step(ring_of([(1.0, False, False, 0)]), torch.tensor([0]), n, discount, streams)
