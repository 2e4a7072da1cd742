"""Estimates with their uncertainty, and smoothing: what stands behind the numbers and lines of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy
from numpy.typing import ArrayLike, NDArray

from unipg.errors import InputError

Floats = NDArray[numpy.float64]

_BLOCK = 2**22
"""Resampled values held at once."""


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    value: float
    low: float
    """NaN, like `high`, where a single observation says nothing of the spread."""
    high: float
    n: int
    """Independent observations behind it (items, seeds, pairs)."""

    def as_metric(self) -> dict[str, float]:
        """`value`, `low`, `high` and `n`; without the ends where there are none."""
        return {name: number for name, number in self._asdict().items() if not math.isnan(number) or name == "value"}


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k answers is right, estimated without bias from n answers of which c are right.

        pass@k = 1 − C(n − c, k) / C(n, k)

    Computed in integers and divided once, so the result is the nearest float for any n.

    Errors: `InputError` unless 1 ≤ k ≤ n and 0 ≤ c ≤ n. Source: Chen et al. 2021, arXiv 2107.03374, eq. 1.
    """
    _check_k(k, n)
    if not 0 <= c <= n:
        raise InputError(f"{c} of {n} answers right is impossible")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def majority_at_k(answers: Sequence[str], rewards: Sequence[float], k: int | None = None) -> float:
    """Expected reward of the most common of k answers, over all ways to take k of the n given without replacement (default k = n).

    Answers that differ in white space or case only are one. A class of equal answers has the mean reward of its members; a tie for
    the most common is broken at random, so it counts the mean over the tied classes:

        maj@k = C(n, k)⁻¹ · Σ over subsets of size k of mean {r_j : class j has the subset's highest count}

    The sum is exact but for rounding. For each highest count m a recursion over the classes adds up, for the subsets in which no class
    has more than m, the total weight and the total reward of the classes with exactly m, by subset size and by number of such classes;
    about n·k²·log k steps. Subset weights are binomial probabilities at p = k/n, which stay below 1 where binomial coefficients overflow.

    `answers`, `rewards`: `[n]`, the extracted answers and their scores. Errors: `InputError` for lengths that differ, a reward that is not
    finite, and k outside [1, n]. Source: self-consistency, Wang et al. 2022, arXiv 2203.11171; the tie rule is ours.
    """
    scores = _finite(rewards, "rewards")
    if len(answers) != len(scores):
        raise InputError(f"{len(answers)} answers but {len(scores)} rewards")
    n = len(answers)
    k = n if k is None else k
    _check_k(k, n)
    classes: dict[str, list[float]] = {}
    for answer, reward in zip(answers, scores.tolist(), strict=True):
        classes.setdefault(" ".join(answer.split()).casefold(), []).append(reward)
    sizes = [len(members) for members in classes.values()]
    means = [math.fsum(members) / len(members) for members in classes.values()]
    if k == n:
        top = [mean for size, mean in zip(sizes, means, strict=True) if size == max(sizes)]
        return math.fsum(top) / len(top)
    taken = {size: _binomial(size, k / n) for size in {*sizes, n}}
    total = sum(_winners(sizes, means, taken, k, highest) for highest in range(1, min(k, max(sizes)) + 1))
    return min(max(float(total / taken[n][k]), min(means)), max(means))


def _winners(sizes: list[int], means: list[float], taken: dict[int, Floats], k: int, highest: int) -> float:
    """Weight times mean reward of the winners, over subsets of size k whose highest count is `highest`."""
    ties = k // highest
    weight, reward = numpy.zeros((2, ties + 1, k + 1))  # [number of classes with the highest count, subset size]
    weight[0, 0] = 1.0
    for size, mean in zip(sizes, means, strict=True):
        odds = taken[size]
        next_weight, next_reward = numpy.zeros_like(weight), numpy.zeros_like(reward)
        for count in range(min(size, highest - 1, k) + 1):
            next_weight[:, count:] += odds[count] * weight[:, : k + 1 - count]
            next_reward[:, count:] += odds[count] * reward[:, : k + 1 - count]
        if size >= highest:
            before = weight[:-1, : k + 1 - highest]
            next_weight[1:, highest:] += odds[highest] * before
            next_reward[1:, highest:] += odds[highest] * (reward[:-1, : k + 1 - highest] + mean * before)
        weight, reward = next_weight, next_reward
    return float((reward[1:, k] / numpy.arange(1, ties + 1)).sum())


def _binomial(n: int, p: float) -> Floats:
    """[n+1] probabilities of 0 … n successes, for 0 < p < 1."""
    x = numpy.arange(n + 1)
    ways = numpy.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(n + 1)])
    return numpy.exp(ways + x * math.log(p) + (n - x) * math.log1p(-p))


def mean_interval(values: ArrayLike, seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """The mean of `values [n]` over items, with a percentile bootstrap interval: items are resampled with replacement.

    For successes and failures take `wilson_interval`: when all values are equal, this interval has no width.

    Errors: `InputError` for no values, a value that is not finite, a confidence outside (0, 1).
    Source: Efron 1979, Annals of Statistics 7(1).
    """
    data = _finite(values, "values")
    return _bootstrap(data[:, None], lambda sample: sample.mean((-2, -1)), seed, confidence, resamples)


def student_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean m of `values [n]` with Student's interval, m ± t · s/√n, t the quantile of n − 1 degrees of freedom at (1 + confidence)/2.

    Of few values it holds what it says, where `mean_interval` is too narrow. One value alone has no ends (NaN).

    Errors: those of `mean_interval`. Source: Student 1908, Biometrika 6(1).
    """
    data = _finite(values, "values")
    _check_confidence(confidence)
    n, mean = len(data), float(data.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, n)
    half = _student_quantile((1 + confidence) / 2, n - 1) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _student_quantile(p: float, df: int) -> float:
    """t with P(T ≤ t) = p > 1/2, by bisection: for whole df the distribution function is a finite sum (Abramowitz and Stegun 26.7.3)."""

    def inside(t: float) -> float:
        """P(−t ≤ T ≤ t)"""
        angle = math.atan2(t, math.sqrt(df))
        cosine, term, total = math.cos(angle), 1.0, 0.0
        if df % 2:
            term = cosine
            for k in range(1, df - 1, 2):
                total += term
                term *= cosine**2 * (k + 1) / (k + 2)
            return 2 / math.pi * (angle + math.sin(angle) * total)
        for k in range(0, df - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        return math.sin(angle) * total

    low, high = 0.0, 1.0
    while inside(high) < 2 * p - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 2 * p - 1 else (low, middle)
    return high


def paired_difference(a: ArrayLike, b: ArrayLike, seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """The mean of `a − b` over items that both were measured on (`[n]` each), with a percentile bootstrap interval over the pairs.

    What the items have in common cancels, so it is narrower than the difference of two intervals. Errors: those of `mean_interval`, and
    `InputError` for lengths that differ.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if len(first) != len(second):
        raise InputError(f"a has {len(first)} values and b {len(second)}; pairs need equally many")
    return mean_interval(first - second, seed, confidence, resamples)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The proportion p̂ = successes/n with Wilson's score interval; it has a width even at 0 and n successes.

        (p̂ + z²/2n ± z·√(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n),   z the normal quantile at (1 + confidence)/2

    Errors: `InputError` unless 0 ≤ successes ≤ n, n ≥ 1 and 0 < confidence < 1. Source: Wilson 1927, JASA 22(158).
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes in {n} trials is impossible")
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at the ends the formula gives 0 and 1 but for rounding
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return Interval(share, low, high, n)


def interquartile_mean(values: ArrayLike, seed: int = 0, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """The mean of the middle half of `values`, with a percentile bootstrap interval over seeds.

    Of N sorted scores the lowest and highest ⌊N/4⌋ are left out. `values`: `[S]` one score per seed, or `[S,M]` seeds by tasks; the
    mean is taken over all S·M scores, and seeds are resampled within each task.

    Errors: those of `mean_interval`, and `InputError` for another number of dimensions. Source: Agarwal et al. 2021, arXiv 2108.13264.
    """
    data = numpy.asarray(values, dtype=numpy.float64)
    if data.ndim not in (1, 2):
        raise InputError(f"values has the shape {list(data.shape)}; it must be [seeds] or [seeds, tasks]")
    data = _finite(data.ravel(), "values").reshape(len(data), -1)
    cut = data.size // 4

    def middle(sample: Floats) -> Floats:
        return numpy.sort(sample.reshape(*sample.shape[:-2], -1))[..., cut : data.size - cut].mean(-1)

    return _bootstrap(data, middle, seed, confidence, resamples)


def _bootstrap(data: Floats, statistic: Callable[[Floats], Floats], seed: int, confidence: float, resamples: int) -> Interval:
    """`statistic` of `data [n,M]`; each column's n rows are resampled on their own."""
    _check_confidence(confidence)
    n, columns = data.shape
    value = float(statistic(data))
    if n == 1:
        return Interval(value, math.nan, math.nan, 1)
    random = numpy.random.default_rng(seed)
    block = max(1, _BLOCK // data.size)
    drawn: list[Floats] = []
    for start in range(0, resamples, block):
        rows = random.integers(n, size=(min(block, resamples - start), n, columns))
        drawn.append(statistic(data[rows, numpy.arange(columns)]))
    low, high = numpy.quantile(numpy.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), n)


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average of `values [T]` without the pull towards zero at its start.

        m_t = weight · m_{t−1} + (1 − weight) · x_t,  m_0 = 0;   y_t = m_t / (1 − weight^t)

    A value that is not finite is skipped: t does not advance and y stays as it was (NaN before the first finite value).

    Errors: `InputError` unless 0 ≤ weight < 1. Source: Kingma & Ba 2014, arXiv 1412.6980, section 3.
    """
    if not 0 <= weight < 1:
        raise InputError(f"the smoothing weight is {weight}; it must be in [0, 1)")
    average, remaining, current = 0.0, 1.0, math.nan
    smoothed = []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            remaining *= weight
            current = average / (1 - remaining)
        smoothed.append(current)
    return smoothed


def local_band(values: Sequence[float], window: int = 20, low: float = 0.1, high: float = 0.9) -> tuple[list[float], list[float]]:
    """The quantiles `low` and `high` of the last `window` of `values [T]` at each place, as two lists `[T]`.

    The first places have a shorter window; values that are not finite are left out of it (NaN for a window without a finite one).

    Errors: `InputError` unless window ≥ 1 and 0 ≤ low ≤ high ≤ 1.
    """
    if window < 1 or not 0 <= low <= high <= 1:
        raise InputError(f"a band of the quantiles {low} and {high} over {window} values is impossible")
    data = numpy.asarray(values, dtype=numpy.float64)
    lower, upper = [], []
    for end in range(1, len(data) + 1):
        seen = data[max(0, end - window) : end]
        seen = seen[numpy.isfinite(seen)]
        ends = numpy.quantile(seen, [low, high]).tolist() if len(seen) else [math.nan, math.nan]
        lower.append(ends[0])
        upper.append(ends[1])
    return lower, upper


def _finite(values: ArrayLike, name: str) -> Floats:
    data = numpy.asarray(values, dtype=numpy.float64)
    if data.ndim != 1 or not data.size:
        raise InputError(f"{name} has the shape {list(data.shape)}; it must be a list of at least one number")
    odd = numpy.flatnonzero(~numpy.isfinite(data))
    if odd.size:
        raise InputError(f"{name}[{odd[0]}] is {data[odd[0]]}; every value must be finite")
    return data


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise InputError(f"k is {k} but there are {n} answers; k must be in [1, {n}]")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; it must be in (0, 1)")
