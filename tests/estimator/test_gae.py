"""Second opinion on generalised advantage estimation: the defining sum, row by row, against the vectorised recursion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unipg.estimator import GAE
from unipg.estimator.advantages import discounted_sums, generalized_advantage
from unipg.trajectories import Trajectories

number = st.floats(-5, 5, width=32)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Tensor]:
    rows, steps = draw(st.integers(1, 4)), draw(st.integers(1, 9))

    def table(cell: st.SearchStrategy, dtype: torch.dtype) -> Tensor:
        cells = draw(st.lists(cell, min_size=rows * steps, max_size=rows * steps))
        return torch.tensor(cells, dtype=dtype).reshape(rows, steps)

    floats = {name: table(number, torch.float64) for name in ("reward", "value", "bootstrap_value")}
    seldom = st.sampled_from([False, False, False, True])
    return floats | {
        "terminated": table(seldom, torch.bool),
        "truncated": table(seldom, torch.bool),
        "mask": ~table(seldom, torch.bool),
    }


def by_definition(row: dict[str, list], gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma·lam)^l delta_{t+l} over the policy's own steps, up to the first end after t."""
    live = [t for t, m in enumerate(row["mask"]) if m]
    advantage = [0.0] * len(row["mask"])
    for start in range(len(live)):
        total = 0.0
        for distance, t in enumerate(live[start:]):
            last_of_window = t == live[-1]
            if row["terminated"][t]:
                after = 0.0
            elif row["truncated"][t] or last_of_window:
                after = row["bootstrap_value"][t]
            else:
                after = row["value"][live[start + distance + 1]]
            total += (gamma * lam) ** distance * (row["reward"][t] + gamma * after - row["value"][t])
            if row["terminated"][t] or row["truncated"][t]:
                break
        advantage[live[start]] = total
    return advantage


@settings(deadline=None)
@given(windows(), st.floats(0, 1), st.floats(0, 1))
def test_the_recursion_is_the_defining_sum(window: dict[str, Tensor], gamma: float, lam: float) -> None:
    got = generalized_advantage(gamma=gamma, lam=lam, **window)
    for i in range(len(window["mask"])):
        expected = by_definition({name: tensor[i].tolist() for name, tensor in window.items()}, gamma, lam)
        torch.testing.assert_close(got[i], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@settings(deadline=None)
@given(windows(), st.floats(0, 1), st.floats(0, 1))
def test_garbage_where_the_policy_did_not_act_changes_nothing(window: dict[str, Tensor], gamma: float, lam: float) -> None:
    spoilt = {
        name: torch.where(window["mask"], t, math.nan) if t.is_floating_point() else t | ~window["mask"] for name, t in window.items()
    }
    spoilt["mask"] = window["mask"]
    assert torch.equal(generalized_advantage(gamma=gamma, lam=lam, **window), generalized_advantage(gamma=gamma, lam=lam, **spoilt))


@settings(deadline=None)
@given(windows(), st.floats(0, 1))
def test_with_lambda_one_the_target_is_the_discounted_return(window: dict[str, Tensor], gamma: float) -> None:
    """A + V = the discounted sum of rewards up to the end, and the bootstrap value behind a cut; the critic in between cancels."""
    advantage = generalized_advantage(gamma=gamma, lam=1.0, **window)
    returns = generalized_advantage(gamma=gamma, lam=1.0, **window | {"value": torch.zeros_like(window["value"])})
    mask = window["mask"]
    torch.testing.assert_close((advantage + window["value"])[mask], returns[mask], rtol=1e-9, atol=1e-9)


def test_the_part_reads_the_same_recursion_from_a_batch() -> None:
    """Two steps, then a terminated one; then a step cut by the window. By hand with gamma = 0.5, lam = 0.5."""
    batch = Trajectories(
        action=torch.zeros(1, 4, dtype=torch.int64),
        mask=torch.tensor([[True, True, True, True]]),
        step_reward=torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
        terminated=torch.tensor([[False, False, True, False]]),
        truncated=torch.zeros(1, 4, dtype=torch.bool),
        value=torch.tensor([[10.0, 20.0, 30.0, 40.0]]),
        bootstrap_value=torch.tensor([[0.0, 0.0, 0.0, 50.0]]),
    )
    delta = [1 + 10 - 10, 2 + 15 - 20, 3 + 0 - 30, 4 + 25 - 40]
    expected = [delta[0] + (delta[1] + delta[2] / 4) / 4, delta[1] + delta[2] / 4, delta[2], delta[3]]
    assert GAE(gamma=0.5, lam=0.5, normalize=False)(batch).tolist() == [expected]


@pytest.mark.parametrize("steps", [1, 2, 3, 64, 127, 128, 129])
def test_the_scan_by_doubling_is_the_loop_over_time(steps: int) -> None:
    source = torch.Generator().manual_seed(steps)
    term = torch.randn(3, steps, generator=source, dtype=torch.float64)
    decay = 0.99 * (torch.rand(3, steps, generator=source) > 0.1).double()
    before = term.clone(), decay.clone()
    running, expected = torch.zeros(3, dtype=torch.float64), torch.empty_like(term)
    for t in reversed(range(steps)):
        running = term[:, t] + decay[:, t] * running
        expected[:, t] = running
    torch.testing.assert_close(discounted_sums(term, decay), expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(term, before[0])
    assert torch.equal(decay, before[1])
