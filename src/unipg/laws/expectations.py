"""The law of exactness: expectations over every batch of a problem that is small enough to enumerate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from unipg.algorithms.base import Algorithm
from unipg.lab.strings import BigramPolicy, StringProblem
from unipg.laws.cases import SETTING, LawBroken
from unipg.laws.checks import TOLERANCE, gradient, prepared
from unipg.trajectories import Source

PROMPT = 1
"""The token that an answer follows; with it the first token has a distribution of its own where answers end after 1."""


@dataclass(frozen=True)
class SmallProblem:
    """Every answer of at most two tokens out of {0, 1} to one prompt, with a reward for each in lexicographic order."""

    rewards: tuple[float, ...]
    ends: bool = False
    """Whether an answer stops after the token 1: then answers are 00, 01 and 1, of two lengths."""

    def strings(self) -> StringProblem:
        def reward(prompt: int, answer: tuple[int, ...]) -> float:
            return self.rewards[2 * answer[0] + (answer[1] if len(answer) == 2 else 0)]

        return StringProblem(vocabulary=2, prompts=(PROMPT,), length=2, reward=reward, end=1 if self.ends else None)

    def describe(self) -> str:
        said = [f"{''.join(map(str, a))}: {self.strings().reward(PROMPT, a):g}" for a in self.strings().answers()]
        return f"answers and rewards {{{', '.join(said)}}}"


def small_problems(algorithm: Algorithm) -> list[SmallProblem]:
    """One with answers of one length, one with answers of two lengths."""
    if algorithm.counts_successes:
        return [SmallProblem((1, 0, 0, 1)), SmallProblem((1, 0, 0), ends=True)]
    return [SmallProblem((0, 0.2, 0.5, 1)), SmallProblem((1, 0.2, 0.5), ends=True)]


def expected_gradient(
    algorithm: Algorithm,
    problem: StringProblem,
    policy: BigramPolicy,
    anchor: BigramPolicy | None = None,
    reward: Callable[[Tensor], Tensor] = lambda reward: reward,
) -> Tensor:
    """[V·V] gradient of the loss in the logits, averaged over every batch of one group that the policy can draw, on policy.

    `anchor`: where a KL is measured from, by default the policy itself. `reward` may replace the rewards `[B]`.
    """
    answers = problem.answers()
    size = max(2, algorithm.needs_group) if algorithm.uses_rollouts else 0
    if size:
        algorithm = dataclasses.replace(algorithm, rollouts=size)
    demonstrations = [problem.best_answer(PROMPT)] if algorithm.demonstrations != "none" else []
    with torch.no_grad():
        probability = problem.probabilities(policy, PROMPT)
    total = torch.zeros(policy.logits.numel(), dtype=torch.float64)
    given = _given(algorithm, problem)
    for chosen, completions in itertools.product(itertools.product(range(len(answers)), repeat=size), given):
        rows = [(PROMPT, answers[i]) for i in chosen] + [(PROMPT, d) for d in demonstrations] + completions
        kinds = [Source.ROLLOUT] * size + [Source.DEMONSTRATION] * len(demonstrations) + [Source.PREFERENCE] * len(completions)
        batch = problem.batch(rows, [0] * len(rows), kinds)
        worth = batch.total_reward()
        if algorithm.completions in ("pairs", "unpaired"):  # what counts is which is better
            worth = (worth == worth.max()).double()
        with torch.no_grad():
            log_prob = policy.evaluate(batch).log_prob
            other = (anchor or policy).evaluate(batch).log_prob
            entropy = policy.evaluate(batch, entropy=True).entropy
        batch = batch.replace(
            reward=reward(worth),
            old_log_prob=log_prob,
            behaviour_log_prob=log_prob,
            old_entropy=entropy,
            anchor_log_prob=other,
            value=torch.zeros_like(log_prob),
        )
        objective, ready = prepared(algorithm, batch, policy=policy)
        total += float(probability[list(chosen)].prod()) * gradient(objective, policy, ready)[: len(total)]
    return total


def _given(algorithm: Algorithm, problem: StringProblem) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Every set of given completions: all pairs of a better and a worse answer. One empty set where none are given."""
    if algorithm.completions == "none":
        return [[]]
    rows = [(PROMPT, answer) for answer in problem.answers()]
    return [[a, b] for a, b in itertools.product(rows, rows) if problem.reward(*a) > problem.reward(*b)]


def exactness(algorithm: Algorithm, seed: int = 0, *, problem: SmallProblem | None = None) -> float:
    """3. On a problem that can be enumerated, the expected gradient points exactly along the gradient of the expected reward; an
    algorithm that states a bias (`Algorithm.bias`) must have one; a penalty against the anchor lowers the KL to it. Returns the smallest
    cosine.

    `problem`: one to look at instead of one with answers of one length and one with answers of two; a stated bias need not show there.
    """
    policy = BigramPolicy(2, seed)
    cosines = {}
    for small in [problem] if problem else small_problems(algorithm):
        try:
            cosines[small] = _cosine(algorithm, small.strings(), policy)
        except Exception as error:
            raise LawBroken(f"exactness: {type(error).__name__} ({error}); example: {small.describe()}") from error
    small, cosine = min(cosines.items(), key=lambda item: item[1])
    if not algorithm.bias and not cosine > 1 - TOLERANCE:
        said = f"the expected gradient has cosine {cosine:.6g} to the exact one, and no bias is stated"
        raise LawBroken(f"exactness: {said}; example: {small.describe()}" + (f", seed {seed}" if seed else ""))
    if not problem and not any(cosines.values()):
        raise LawBroken(f"exactness: the expected gradient is 0, so no step would learn anything; example: {small.describe()}")
    if algorithm.bias and not problem and cosine > 1 - TOLERANCE:
        raise LawBroken("exactness: a bias is stated, but the expected gradient points exactly along the exact one")
    if algorithm.completions != "none" and not cosine > 0:
        raise LawBroken(f"exactness: from pairs of a better and a worse answer, a step lowers the expected reward (cosine {cosine:.3f})")
    if algorithm.uses_rollouts and "anchor_log_prob" in algorithm.terms(SETTING).reads | algorithm.reads:
        _penalty_lowers_the_divergence(algorithm, small, policy, seed)
    return cosine


def _cosine(algorithm: Algorithm, problem: StringProblem, policy: BigramPolicy) -> float:
    found = expected_gradient(algorithm, problem, policy)
    if algorithm.demonstrations != "required" or algorithm.uses_rollouts:
        loss = -problem.expected_reward(policy)
    else:
        loss = -problem.probabilities(policy, PROMPT)[problem.answers().index(problem.best_answer(PROMPT))].log()
    (exact,) = torch.autograd.grad(loss, policy.logits)
    if float(exact.abs().max()) < 1e-12:  # all answers are worth the same: nothing may move
        return 1.0 if float(found.abs().max()) < 1e-12 else 0.0
    return float(cosine_similarity(found, exact.flatten(), dim=0))


def _penalty_lowers_the_divergence(algorithm: Algorithm, small: SmallProblem, policy: BigramPolicy, seed: int) -> None:
    """What the anchor adds to the expected gradient, rewards aside, must point along the gradient of KL(pi || anchor)."""
    problem, anchor = small.strings(), BigramPolicy(2, seed + 1)

    def worthless(reward: Tensor) -> Tensor:
        return torch.zeros_like(reward)

    far = expected_gradient(algorithm, problem, policy, anchor, worthless)
    added = far - expected_gradient(algorithm, problem, policy, None, worthless)
    with torch.no_grad():
        log_anchor = problem.probabilities(anchor, PROMPT).log()
    probability = problem.probabilities(policy, PROMPT)
    (exact,) = torch.autograd.grad((probability * (probability.log() - log_anchor)).sum(), policy.logits)
    cosine = float(cosine_similarity(added, exact.flatten(), dim=0))
    if not cosine > 0:
        where = f"the penalty's expected gradient has cosine {cosine:.3f} to that of the KL to the anchor"
        raise LawBroken(f"exactness: {where}, so a step raises the KL instead of lowering it; example: {small.describe()}")
