"""Collapse said out loud: what goes wrong with a run shows in its metrics, and is told once for each kind, with what usually helps.

Nothing here changes a run. What is judged is a mean over the last iterations beside one over the first, so that one odd batch says nothing;
a policy that has solved its task also leaves no signal and no entropy, and that is told as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unipg.algorithms.base import Algorithm
from unipg.policies.base import Policy

WINDOW, FIRST = 10, 3
"""Iterations whose mean is judged, and those at the start that they are compared with."""
NO_SIGNAL = 0.9
"""Share of the prompts whose rollouts all earned the same."""
NO_ENTROPY = 0.02
"""Nats per token or step."""
AT_LIMIT = 0.95
"""Share of the answers that ended at the limit of new tokens."""
FALLEN = 0.5
"""Part of its first value that the reward has lost."""
SURE = 3.0
"""Standard errors by which it must have fallen."""
SOLVED = 0.9
"""Share of the best reward."""
RATIO, LEFT = 10.0, 0.05
"""99th percentile of pi_theta / pi_old, and share of the samples that count (`ratio/ess`)."""
GRADIENT, LONG = 100.0, 50.0
"""Times the usual length, and the length itself, from which a gradient is said to explode."""
STUCK = 0.05
"""Share of the latent actions' standard deviations at a limit."""
SKIPPED = 0.2
"""Share of the optimiser steps that were not applied."""
STILL = 100
"""Steps in a row without any gradient."""
OFTEN, RECENT = 3, 5
"""Iterations of the last few in which a ratio or a gradient must be too large."""

LOWER = "a lower optimizer.learning_rate"


@dataclass(frozen=True)
class Finding:
    """What was found, and where."""

    kind: str
    """no_signal, solved, entropy, length, reward, ratio, gradient, latent, still, or verifier: answers that could not be scored."""
    iteration: int
    text: str
    """In one line, with what usually helps."""
    collapse: bool = True
    """Whether something is wrong; a task that is solved is none."""

    def __str__(self) -> str:
        return f"{'warning' if self.collapse else 'note'}, iteration {self.iteration}: {self.text}"


class Watch:
    """Reads the metrics rows of a run in their order, and finds each kind of collapse once.

    `compares`: whether prompts whose rollouts all earn the same teach nothing. `samples`: whether the policy learns from its own rollouts.
    `counts`: whether its actions can be counted; an entropy of densities has no smallest value. `given`: whether what it learns from is
    given once for all, where a policy that has stopped does not get going again.
    """

    def __init__(self, *, compares: bool, samples: bool = True, counts: bool = True, given: bool = False) -> None:
        self.compares, self.samples, self.counts, self.given = compares, samples, counts, given
        self.found: list[Finding] = []
        self.listeners: list[Callable[[Finding], None]] = []
        """Are told of each finding when it is made."""
        self._series: dict[str, list[float]] = {}

    @classmethod
    def of(cls, algorithm: Algorithm, policy: Policy) -> Watch:
        compares = algorithm.needs_group > 1 and not algorithm.learns_from_equals
        return cls(compares=compares, samples=algorithm.uses_rollouts, counts=not policy.has_densities, given=algorithm.offline)

    def tell(self, finding: Finding) -> None:
        """Something found elsewhere, once for its kind."""
        if finding.kind not in {known.kind for known in self.found}:
            self.found.append(finding)
            for listener in self.listeners:
                listener(finding)

    def read(self, row: Mapping[str, Any], *, again: bool = False) -> list[Finding]:
        """What this iteration's row shows for the first time. `again`: of a run that is resumed, where everyone was told."""
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._series.setdefault(name, []).append(float(value))
        known = {finding.kind for finding in self.found}
        fresh = []
        for judge in (self._reward, self._no_signal, self._entropy, self._length, self._ratio, self._gradient, self._latent, self._still):
            shown = judge(row)
            if shown is not None and shown[0] not in known:
                kind, text = shown
                fresh.append(Finding(kind, int(row["iteration"]), text, collapse=kind != "solved"))
        self.found += fresh
        for finding in [] if again else fresh:
            for told in self.listeners:
                told(finding)
        return fresh

    # ------------------------------------------------------------------------------------------------ what is compared

    def _values(self, name: str) -> list[float]:
        return self._series.get(name, [])

    def _first(self, name: str) -> float:
        values = self._values(name)[:FIRST]
        return sum(values) / len(values)

    def _last(self, name: str) -> float | None:
        """Mean of the last iterations; None while there are too few, or where the metric is not of this iteration."""
        values = self._values(name)[-WINDOW:]
        return sum(values) / WINDOW if len(values) == WINDOW else None

    @property
    def _earned(self) -> str:
        """What is earned: rewards of text, or returns of episodes."""
        return "return/mean" if self._values("return/mean") else "reward/mean"

    def _solved(self) -> bool:
        """Whether nearly all that can be earned is."""
        mean, most = self._last("reward/mean"), self._last("reward/max")
        return mean is not None and most is not None and most > 0 and mean >= SOLVED * most

    def _grown(self) -> bool:
        """Whether more is earned than at the start, and no less than before."""
        values, mean = self._values(self._earned), self._last(self._earned)
        if mean is None or mean <= self._first(self._earned):
            return False
        best = max(sum(values[start : start + WINDOW]) / WINDOW for start in range(len(values) - WINDOW + 1))
        return mean >= best - (1 - SOLVED) * abs(best)

    # ------------------------------------------------------------------------------------------------ the kinds

    def _reward(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        name = self._earned
        mean, values = self._last(name), self._values(name)[-WINDOW:]
        if not self.samples or mean is None or name not in row or len(self._values(name)) < WINDOW + FIRST:
            return None
        first = self._first(name)
        error = math.sqrt(sum((value - mean) ** 2 for value in values) / (WINDOW - 1) / WINDOW)
        if first - mean < max(FALLEN * abs(first), SURE * error) or first == mean:
            return None
        what = "the return" if name.startswith("return") else "the reward"
        return "reward", (
            f"{what} has fallen from {first:.3g} to {mean:.3g}: the policy forgets what it could. What usually helps: {LOWER}, a KL "
            "penalty to the start (kl), more rollouts in each step"
        )

    def _no_signal(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        share = self._last("groups/no_signal_fraction")
        if not self.compares or share is None or share < NO_SIGNAL:
            return None
        where = f"in {share:.0%} of the prompts all rollouts earn the same"
        if self._solved():
            return (
                "solved",
                f"{where}, nearly the best there is ({self._last('reward/mean'):.3g}): the task is solved, more training is idle",
            )
        none = self._last("groups/all_zero_fraction")
        if none is not None and none >= NO_SIGNAL / 2:
            return "no_signal", (
                f"{where}, {none:.0%} of them nothing, so that there is nothing to learn from. What usually helps: demonstrations "
                f"(sft first, or hpt), easier prompts, more rollouts per prompt; {LOWER} where it earned more before"
            )
        return "no_signal", (
            f"{where}, so that there is nothing to learn from. What usually helps: harder prompts, a finer reward, a higher "
            f"rollouts.temperature, more rollouts per prompt; {LOWER} where they differed before"
        )

    def _entropy(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        mean = self._last("entropy")
        if not self.samples or not self.counts or mean is None or self._last(self._earned) is None or mean > NO_ENTROPY:
            return None
        if self._first("entropy") < 5 * NO_ENTROPY or self._solved() or (self._earned == "return/mean" and self._grown()):
            return None
        return "entropy", (
            f"the entropy is {mean:.2g} nats, from {self._first('entropy'):.2g} at the start: the policy always does the same and finds "
            f"nothing new. What usually helps: an entropy bonus (algorithm.entropy), {LOWER}, a KL penalty to the start (kl)"
        )

    def _length(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        share = self._last("length/truncated_fraction")
        if not self.samples or share is None or share < AT_LIMIT or self._solved() or self._grown():
            return None
        return "length", (
            f"{share:.0%} of the answers end at the limit of new tokens. What usually helps: a larger rollouts.max_new_tokens, "
            f"demonstrations of answers that end, a penalty on length (algorithm dapo); {LOWER} where answers ended before"
        )

    def _latent(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        share = self._last("latent_pull/at_limit")
        if share is None or share < STUCK:
            return None
        return "latent", (
            f"{share:.0%} of the latent actions' standard deviations are at a limit (0.001 or 10), where they hardly move. What usually "
            f"helps: another weight of the entropy bonus (algorithm.entropy) or of the pull to 0 (algorithm.pull), {LOWER}"
        )

    def _still(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        steps = row.get("steps/still", 0)
        if not self.given or steps < STILL:
            return None
        return "still", (
            f"the policy receives no gradient, for {steps:.0f} steps now: every action of the data has a weight of 0. What usually helps: "
            "a lower lambda (algorithm.lam), rewards of another scale (dataset.reward_scale)"
        )

    def _ratio(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        names = ("ratio/q99", "ratio/ess")
        tops, left = (self._values(name)[-RECENT:] for name in names)
        wrong = [top > RATIO or share < LEFT for top, share in zip(tops, left, strict=False)]
        if not self.samples or sum(wrong) < OFTEN or len(self._values(names[0])) < WINDOW:
            return None
        return "ratio", (
            f"pi_theta / pi_old is {tops[-1]:.3g} at its 99th percentile, and {left[-1]:.0%} of the samples count: the steps on one batch "
            f"lead far from what sampled it. What usually helps: {LOWER}, fewer training.epochs or minibatches, a clip"
        )

    def _gradient(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        lengths = [value for value in self._values("gradient_norm") if value > 0]
        usual = sorted(lengths[: 2 * WINDOW])[len(lengths[: 2 * WINDOW]) // 2] if len(lengths) > WINDOW else math.inf
        high = [value for value in lengths[-RECENT:] if value > max(LONG, GRADIENT * usual)]
        if len(high) >= OFTEN:
            return "gradient", (
                f"the gradient's norm is {high[-1]:.3g}, where {usual:.3g} was usual. What usually helps: {LOWER}, a warm-up "
                "(optimizer.warmup), a smaller optimizer.clip_norm, skip_norm"
            )
        skipped = sum(row.get(f"steps/skipped_{why}", 0) for why in ("large", "nonfinite"))
        if row.get("step", 0) >= 2 * WINDOW and skipped >= SKIPPED * row["step"]:
            return "gradient", (
                f"{skipped:.0f} of {row['step']} optimiser steps were skipped, since their gradient was too large or not finite. What "
                f"usually helps: {LOWER}, a warm-up (optimizer.warmup), a larger optimizer.skip_norm"
            )
        return None
