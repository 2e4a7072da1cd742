"""The study behind `unipg lab`: every algorithm under every condition, against the exact gradient of the objective it claims to follow."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, algorithm_named, registered
from unipg.algorithms.sets import DIVERSITIES, ScoresSets, numbered
from unipg.errors import InputError
from unipg.estimator import Objective
from unipg.lab.exact import ExactProblem
from unipg.lab.gradients import Draw, Sampler, Weights, ascent_directions, study_batches
from unipg.lab.measures import Measurement, measure
from unipg.lab.strings import TabularPolicy
from unipg.seeding import derived_seed, generator

GROUPS_PER_CONTEXT = 2
LAG_STEP = 0.1
"""Length, in the policy's logits, of one of the exact gradient steps that pi_old lies behind."""
SUCCESS_THRESHOLD = 0.75
"""For algorithms that count successes: the lab's rewards are graded, and only the right answer is a success."""
Told = Callable[[float], None]


@dataclass(frozen=True)
class Conditions:
    """Lists whose every combination is studied."""

    group_sizes: tuple[int, ...] = (8,)
    lags: tuple[int, ...] = (0, 4)
    """How many exact gradient steps the sampling policy lies behind the one that is updated."""
    clips: tuple[float | None, ...] = (None,)
    """Distance from 1 that a ratio may go, both ways; None for each algorithm's own."""
    noises: tuple[float, ...] = (0.0,)
    """Probability that a trajectory is scored 1 − R instead of R."""
    batches: int = 400

    def __post_init__(self) -> None:
        for name, accepted in (
            ("group_sizes", (1, None)),
            ("lags", (0, None)),
            ("clips", (0, 1)),
            ("noises", (0, 0.5)),
        ):
            low, high = accepted
            values = getattr(self, name)
            wrong = [v for v in values if v is not None and not (low <= v and (high is None or v <= high))]
            if wrong or not values:
                what = f"{low} or more" if high is None else f"from {low} to {high}"
                raise InputError(f"{name} holds {wrong[0] if wrong else 'nothing'}; accepted: numbers {what}")
        if self.batches < 2:
            raise InputError(f"batches is {self.batches}; accepted: 2 or more (an interval needs a few hundred)")


@dataclass(frozen=True)
class Result:
    """One algorithm under one condition."""

    name: str
    objective: str
    """What it claims to follow, and is compared with."""
    group_size: int
    lag: int
    clip: float | None
    noise: float
    batches: int
    measured: Measurement
    reward_cosine: float
    """Cosine of the mean gradient with that of the expected reward, whatever the objective."""
    ess: float
    """Effective sample size of the weights on the tokens that carry an advantage, as a share of them, in (0, 1]."""
    masked: float
    """Share of tokens that a stabilisation mask silences."""
    series: str = ""
    """What sets several results of one name apart: a correction, an engine."""

    def as_json(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "measured"}
        for f in dataclasses.fields(self.measured):
            value = getattr(self.measured, f.name)
            plain[f.name] = value._asdict() if hasattr(value, "_asdict") else value
        return plain


def claimed_objective(algorithm: Algorithm, problem: ExactProblem) -> tuple[str, list[Tensor]]:
    """What the algorithm claims to follow: a name, and the exact gradients whose non-negative combinations are right directions.

    Rollouts alone: E[R], less the KL penalty where one is set; where sets of them are scored E[F], unless diversity is a function of
    anyone's. Demonstrations alone: their likelihood. Both: the common objective J_mu = E[R] − mu · KL(pi_beta || pi) at whatever mu fits
    best, for each hybrid weighs the two in its own way.
    """
    penalty = getattr(algorithm, "kl", 0.0) or getattr(algorithm, "kl_in_reward", 0.0)
    follows: Callable[[TabularPolicy], Tensor] = problem.expected_reward
    name = "E[R]"
    if isinstance(algorithm, ScoresSets) and algorithm.diversity in DIVERSITIES:
        follows, name = functools.partial(expected_score, algorithm, problem), "E[F]"
    reward = problem.gradient(lambda policy: follows(policy) - penalty * problem.divergence_from_anchor(policy))
    name = f"{name} − KL" if penalty else name
    if algorithm.demonstrations == "none":
        return name, [reward]
    likelihood = problem.gradient(problem.demonstration_likelihood)
    return ("J_mu", [reward, likelihood]) if algorithm.uses_rollouts else ("likelihood", [likelihood])


def expected_score(algorithm: ScoresSets, problem: ExactProblem, policy: TabularPolicy) -> Tensor:
    """[] E[F] of the sets that the algorithm draws among the rollouts of a context, with the graph; see `ScoresSets.expected_score`."""
    rows, probability = problem.rows, problem.probability(policy)
    signature = numbered(algorithm.signatures(rows), rows.mask.any(1))
    each = [
        algorithm.expected_score(rows.total_reward()[mine], probability[mine], signature[mine])
        for mine in (problem.context == context for context in range(problem.contexts))
    ]
    return torch.stack(each).mean()


def instances(names: Sequence[str] = (), problem: ExactProblem | None = None) -> list[Algorithm]:
    """The named algorithms with their defaults; by default all that learn from rollouts or demonstrations, less those that
    refuse the rewards of `problem`.

    Errors: `InputError` for one that learns from given completions: what they were drawn from has no place in the lab's problems.
    """
    reward = torch.zeros(1) if problem is None else problem.rows.total_reward()
    unit = bool(((reward >= 0) & (reward <= 1)).all())
    fitting = [k for k in registered(answers=True).values() if k.completions == "none" and (unit or not k.unit_rewards)]
    kinds = [algorithm_named(name) for name in names] if names else fitting
    for kind in kinds:
        if not kind.learns_from_answers():
            raise InputError(f"algorithm '{kind.name}' trains networks of a controller, which the lab's problems have not; see unipg.laws")
        if kind.completions != "none":
            raise InputError(f"algorithm '{kind.name}' learns from given completions, which the lab does not draw; see unipg diff")
    return [kind() for kind in kinds]


def adapted(algorithm: Algorithm, group_size: int, clip: float | None) -> Algorithm:
    """The algorithm in the lab: as many rollouts as every other one, the clip range where it has one, and a threshold for success."""
    fields = {f.name for f in dataclasses.fields(algorithm)}
    changes: dict[str, Any] = {}
    if algorithm.uses_rollouts:
        changes["rollouts"] = group_size
    if algorithm.counts_successes and "success_threshold" in fields:
        changes["success_threshold"] = SUCCESS_THRESHOLD
    if clip is not None and takes_clip(algorithm):
        changes |= {"clip_low": clip, "clip_high": clip}
    return dataclasses.replace(algorithm, **changes)


def takes_clip(algorithm: Algorithm) -> bool:
    return {"clip_low", "clip_high"} <= {f.name for f in dataclasses.fields(algorithm)}


def draw_for(algorithm: Algorithm, problem: ExactProblem, noise: float = 0.0) -> Draw:
    """What one batch holds: each context `GROUPS_PER_CONTEXT` times, with the algorithm's rollouts and a demonstration if it wants one."""
    rollouts = algorithm.rollouts if algorithm.uses_rollouts else 0
    return Draw(GROUPS_PER_CONTEXT * problem.contexts, rollouts, algorithm.demonstrations != "none", noise)


def run_study(
    algorithms: Sequence[Algorithm], problem: ExactProblem, conditions: Conditions, *, seed: int = 0, progress: Told | None = None
) -> list[Result]:
    """Every algorithm under every combination of conditions. `progress` is told the finished share in [0, 1].

    All algorithms see the same samples where they ask for the same ones. A clip range is varied only where the algorithm has one.
    Errors: `InputError` for conditions that an algorithm refuses (a group too small).
    """
    cases = list(_cases(algorithms, conditions))
    samplers = {lag: Sampler.of(problem, problem.lagged(lag, LAG_STEP) if lag else None) for lag in conditions.lags}
    results = []
    for number, (algorithm, size, lag, clip, noise) in enumerate(cases):
        results.append(
            examine(
                adapted(algorithm, size, clip),
                problem,
                samplers[lag],
                conditions.batches,
                seed=seed,
                group_size=size,
                lag=lag,
                clip=clip,
                noise=noise,
            )
        )
        if progress:
            progress((number + 1) / len(cases))
    return results


def _cases(algorithms: Sequence[Algorithm], conditions: Conditions) -> Iterator[tuple[Algorithm, int, int, float | None, float]]:
    for algorithm in algorithms:
        clips = conditions.clips if takes_clip(algorithm) else (None,)
        sizes = conditions.group_sizes if algorithm.uses_rollouts else conditions.group_sizes[:1]
        for case in itertools.product(sizes, conditions.lags, clips, conditions.noises):
            yield algorithm, *case


def examine(
    algorithm: Algorithm,
    problem: ExactProblem,
    sampler: Sampler,
    batches: int,
    *,
    seed: int = 0,
    group_size: int = 0,
    lag: int = 0,
    clip: float | None = None,
    noise: float = 0.0,
    objective: Objective | None = None,
    series: str = "",
) -> Result:
    """One algorithm (or another `objective` in its place) measured on `batches` independent batches."""
    claim, basis = claimed_objective(algorithm, problem)
    random = generator(seed, "lab", problem.name, group_size, lag, noise)
    draw = draw_for(algorithm, problem, noise)
    objective, planned = study_batches(algorithm, problem, sampler, draw, batches, random, objective)
    seen: list[Weights] = []
    gradients = ascent_directions(objective, problem.policy, planned, seen=seen)
    measured = measure(gradients, basis, derived_seed(seed, "lab bootstrap"))
    reward = problem.gradient(problem.expected_reward)
    cosine = torch.nn.functional.cosine_similarity(gradients.mean(0), reward, dim=0)
    ess, masked = _weight_facts(seen)
    return Result(algorithm.name, claim, group_size, lag, clip, noise, batches, measured, float(cosine), ess, masked, series=series)


def _weight_facts(seen: list[Weights]) -> tuple[float, float]:
    """ESS share (Σw)² / (n · Σw²) of the weights on the n tokens that carry an advantage; share of masked tokens."""
    weight = torch.cat([w.weight[w.advantage != 0] for w in seen])
    stable = torch.cat([w.stable for w in seen])
    squares = float((weight**2).sum())
    ess = float(weight.sum()) ** 2 / (len(weight) * squares) if squares else 0.0
    return ess, float((~stable).double().mean()) if len(stable) else 0.0
