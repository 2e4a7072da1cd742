"""Against enumeration, hand-worked numbers and identities."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipg.errors import InputError
from unipg.statistics import (
    interquartile_mean,
    local_band,
    majority_at_k,
    mean_interval,
    paired_difference,
    pass_at_k,
    smooth,
    student_interval,
    wilson_interval,
)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_is_accurate_where_binomials_overflow_floats() -> None:
    assert pass_at_k(4000, 3, 1) == pytest.approx(3 / 4000, rel=1e-15)
    # one right answer among n is in a subset of k with probability k/n
    assert pass_at_k(4000, 1, 2000) == 0.5
    # without replacement, two right answers: 1 − (n−k)(n−k−1) / n(n−1)
    assert pass_at_k(4000, 2, 1000) == pytest.approx(1 - 3000 * 2999 / (4000 * 3999), rel=1e-15)


@pytest.mark.parametrize(("n", "c", "k", "said"), [(4, 1, 5, "k is 5"), (4, 1, 0, "k is 0"), (4, 5, 1, "5 of 4"), (4, -1, 1, "-1 of 4")])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pass_at_k(n, c, k)


def majority_by_enumeration(answers: list[str], rewards: list[float], k: int) -> float:
    mean_of = {a: statistics.fmean(r for b, r in zip(answers, rewards, strict=True) if a == b) for a in answers}
    outcomes = []
    for subset in itertools.combinations(answers, k):
        counts = {a: subset.count(a) for a in subset}
        outcomes.append(statistics.fmean(mean_of[a] for a, count in counts.items() if count == max(counts.values())))
    return statistics.fmean(outcomes)


@given(
    rows=st.lists(st.tuples(st.sampled_from("abcde"), st.floats(-2, 2)), min_size=1, max_size=9),
    data=st.data(),
)
@settings(deadline=None, max_examples=80)
def test_majority_at_k_is_the_mean_over_all_subsets(rows: list[tuple[str, float]], data: st.DataObject) -> None:
    answers, rewards = [a for a, _ in rows], [r for _, r in rows]
    k = data.draw(st.integers(1, len(rows)))
    assert majority_at_k(answers, rewards, k) == pytest.approx(majority_by_enumeration(answers, rewards, k), abs=1e-11)


def test_majority_of_all_answers_counts_ties_by_their_mean() -> None:
    assert majority_at_k(["4", "4", "5"], [1, 1, 0]) == 1.0
    assert majority_at_k(["4", "5", "5"], [1, 0, 0]) == 0.0
    assert majority_at_k(["4", "4", "5", "5", "6"], [1, 1, 0, 0, 1]) == 0.5


def test_majority_takes_answers_that_differ_in_space_or_case_as_one() -> None:
    assert majority_at_k(["New  York", "new york\n", "Paris"], [1, 1, 0]) == 1.0
    assert majority_at_k(["New York", "newyork", "Paris", "Paris"], [1, 1, 0, 0]) == 0.0


def test_majority_at_one_is_the_mean_reward_of_many_answers() -> None:
    rewards = [i % 3 == 0 for i in range(1200)]
    assert majority_at_k([str(i % 7) for i in range(1200)], rewards, 1) == pytest.approx(statistics.fmean(rewards), abs=1e-10)


def test_majority_at_two_of_two_classes() -> None:
    # 3 right, 2 wrong of 5: both right 3/10, one of each 6/10 counts half, both wrong 1/10
    assert majority_at_k(["r", "r", "r", "w", "w"], [1, 1, 1, 0, 0], 2) == pytest.approx(0.3 + 0.6 / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "rewards", "k", "said"),
    [
        (["a"], [1, 0], None, "1 answers but 2 rewards"),
        (["a", "b"], [1, 0], 3, "k is 3"),
        ([], [], None, "at least one"),
        (["a", "b"], [1, math.nan], None, r"rewards\[1\] is nan"),
    ],
)
def test_majority_refuses(answers: list[str], rewards: list[float], k: int | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        majority_at_k(answers, rewards, k)


def test_wilson_interval_by_hand() -> None:
    # p̂ = 0.7, z² = 3.841459: centre (0.7 + 0.192073) / 1.384146, half-width 1.959964·√(0.021 + 0.009604) / 1.384146
    got = wilson_interval(7, 10)
    assert got.value == 0.7
    assert (got.low, got.high) == (pytest.approx(0.396774, abs=2e-5), pytest.approx(0.892210, abs=2e-5))
    assert got.n == 10


def test_wilson_interval_at_its_ends() -> None:
    z2 = statistics.NormalDist().inv_cdf(0.975) ** 2
    none, every = wilson_interval(0, 20), wilson_interval(20, 20)
    assert (none.low, none.high) == (0.0, pytest.approx(z2 / (20 + z2)))
    assert (every.low, every.high) == (pytest.approx(20 / (20 + z2)), 1.0)


@given(n=st.integers(1, 200), data=st.data())
def test_wilson_bounds_solve_the_score_equation(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    share, low, high, _ = wilson_interval(successes, n, confidence=0.9)
    z = statistics.NormalDist().inv_cdf(0.95)
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-12)
    assert low <= share <= high


@pytest.mark.parametrize(("successes", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (0, 0, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(InputError):
        wilson_interval(successes, n, confidence)


def test_mean_interval_has_the_width_of_the_standard_error() -> None:
    values = numpy.random.default_rng(0).normal(3.0, 2.0, 400)
    got = mean_interval(values)
    half = 1.959964 * values.std() / math.sqrt(400)
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert got.n == 400


def test_mean_interval_of_two_values_is_their_range() -> None:
    # a resample is (0,0), (0,1), (1,0) or (1,1): each end has a quarter of the mass
    assert mean_interval([0.0, 1.0]) == (0.5, 0.0, 1.0, 2)


def test_mean_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = numpy.random.default_rng(1)
    covered = sum(low <= 0.0 <= high for _, low, high, _ in (mean_interval(random.normal(size=60), resamples=400) for _ in range(300)))
    assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062), (3, 4.30265), (5, 2.77645), (10, 2.26216), (31, 2.04227), (100, 1.98422)])
def test_student_interval_has_the_tables_quantiles(n, quantile) -> None:
    values = numpy.random.default_rng(n).normal(3, 2, n)
    got = student_interval(values)
    assert (got.value, got.n) == (pytest.approx(values.mean()), n)
    assert got.high - got.value == pytest.approx(quantile * values.std(ddof=1) / math.sqrt(n), rel=1e-5)
    assert got.value - got.low == pytest.approx(got.high - got.value)


def test_student_interval_of_few_values_covers_the_mean_as_often_as_it_says() -> None:
    random = numpy.random.default_rng(0)
    covered = sum(low <= 0.0 <= high for _, low, high, _ in (student_interval(random.normal(size=3)) for _ in range(2000)))
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_student_interval_of_one_value_has_no_ends() -> None:
    assert student_interval([2.0]).as_metric() == {"value": 2.0, "n": 1}


def test_mean_interval_depends_on_its_seed_alone() -> None:
    values = numpy.random.default_rng(2).normal(size=50)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_mean_interval_in_blocks_covers_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = numpy.random.default_rng(3).normal(size=50)
    whole = mean_interval(values)
    monkeypatch.setattr("unipg.statistics._BLOCK", 50 * 7)  # 2000 is no multiple of 7
    # the generator fills the blocks from the same stream
    assert mean_interval(values) == whole


def test_one_value_says_nothing_of_the_spread() -> None:
    value, low, high, n = mean_interval([0.25])
    assert (value, n) == (0.25, 1)
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("values", "said"), [([], "at least one"), ([1.0, math.inf], r"values\[1\] is inf"), ([[1.0]], "list of at least")]
)
def test_mean_interval_refuses(values: list, said: str) -> None:
    with pytest.raises(InputError, match=said):
        mean_interval(values)


def test_confidence_outside_its_range_is_refused() -> None:
    with pytest.raises(InputError, match="confidence is 95"):
        mean_interval([1.0, 2.0], confidence=95)


def test_paired_difference_is_blind_to_what_items_share() -> None:
    random = numpy.random.default_rng(4)
    items = random.normal(0, 100, 200)
    gain = random.normal(1, 0.5, 200)
    got = paired_difference(items + gain, items)
    assert got.value == pytest.approx(gain.mean())
    assert 0 < got.low < 1 < got.high
    assert (got.low, got.high) == pytest.approx(mean_interval(gain)[1:3])


def test_paired_difference_needs_pairs() -> None:
    with pytest.raises(InputError, match="a has 2 values and b 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean([100.0, 1, 2, 3, 4, 5, 6, -100]).value == statistics.fmean([2, 3, 4, 5])
    assert interquartile_mean([9.0, 1, 2, 3, 90]).value == pytest.approx((2 + 3 + 9) / 3)
    assert interquartile_mean([1.0, 2, 30]).value == 11.0


def test_interquartile_mean_pools_tasks_and_resamples_within_them() -> None:
    # every seed gives the same score on a task: whatever is drawn, the pool is the same
    scores = numpy.tile([0.0, 1.0, 5.0, 90.0], (3, 1))
    assert interquartile_mean(scores) == (3.0, 3.0, 3.0, 3)


def test_interquartile_mean_interval_holds_the_value_and_shrinks() -> None:
    few, many = (interquartile_mean(numpy.random.default_rng(5).normal(size=n)) for n in (8, 800))
    assert few.low <= few.value <= few.high
    assert many.high - many.low < 0.3 * (few.high - few.low)


def test_interquartile_mean_refuses_three_dimensions() -> None:
    with pytest.raises(InputError, match=r"\[2, 2, 2\]"):
        interquartile_mean(numpy.zeros((2, 2, 2)))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.floats(0, 0.99))
def test_smooth_is_the_weighted_mean_it_says(values: list[float], weight: float) -> None:
    for t, got in enumerate(smooth(values, weight), 1):
        weights = [weight ** (t - i) for i in range(1, t + 1)]
        want = math.fsum(w * x for w, x in zip(weights, values, strict=False)) / math.fsum(weights)
        assert got == pytest.approx(want, abs=1e-8)


def test_smooth_skips_what_is_not_finite() -> None:
    clean = smooth([1.0, 3.0, 2.0], 0.5)
    got = smooth([math.nan, 1.0, math.inf, 3.0, math.nan, 2.0], 0.5)
    assert math.isnan(got[0])
    assert got[1:] == [clean[0], clean[0], clean[1], clean[1], clean[2]]


@pytest.mark.parametrize("weight", [1.0, -0.1, math.nan])
def test_smooth_refuses_a_weight_outside_its_range(weight: float) -> None:
    with pytest.raises(InputError, match="smoothing weight"):
        smooth([1.0], weight)


def test_local_band_is_the_quantiles_of_the_window() -> None:
    low, high = local_band([5.0, 1.0, 3.0, math.nan, 9.0], window=3, low=0.0, high=1.0)
    assert low == [5, 1, 1, 1, 3]
    assert high == [5, 5, 5, 3, 9]
    assert local_band([0.0, 10.0], window=2, low=0.1, high=0.9) == ([0.0, 1.0], [0.0, 9.0])


def test_local_band_without_a_finite_value_is_nan() -> None:
    low, high = local_band([math.nan, 2.0], window=1)
    assert math.isnan(low[0])
    assert math.isnan(high[0])
    assert (low[1], high[1]) == (2.0, 2.0)


@pytest.mark.parametrize(("window", "low", "high"), [(0, 0.1, 0.9), (5, 0.9, 0.1), (5, -0.1, 0.9), (5, 0.1, 1.1)])
def test_local_band_refuses(window: int, low: float, high: float) -> None:
    with pytest.raises(InputError, match="band"):
        local_band([1.0], window, low, high)
