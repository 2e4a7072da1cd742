"""The engine-mismatch study: trajectories drawn by an engine that is not quite the trainer's policy, with and without a correction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.errors import InputError
from unipg.estimator import (
    Corrected,
    Everything,
    Mask,
    MismatchMask,
    Objective,
    PolicyGradient,
    Reference,
    SequenceCorrected,
    SequenceMismatchMask,
)
from unipg.lab.exact import ExactProblem
from unipg.lab.gradients import Sampler
from unipg.lab.strings import TabularPolicy
from unipg.lab.study import Result, Told, adapted, examine
from unipg.trajectories import Source

LIMIT = 2.0
"""C of every truncation and of the token mask."""
SEQUENCE_LIMIT = 1.2
"""C of the sequence mask, whose geometric mean varies less than a token's ratio."""


# ---------------------------------------------------------------------------------------------------- engines


@dataclass(frozen=True)
class Engine:
    """What an engine does to the policy's logits `[S,A]` before it samples; here: nothing."""

    @property
    def name(self) -> str:
        return "exact"

    def logits(self, logits: Tensor) -> Tensor:
        return logits

    def log_prob(self, problem: ExactProblem) -> Tensor:
        """[N,T] log-probability of every action under the engine, as it would record it; −inf for one that it never takes."""
        with torch.no_grad():
            engine = problem.policy.twin()
            engine.logits.copy_(self.logits(problem.policy.logits))
            return _log_prob(engine, problem)


@dataclass(frozen=True)
class Rounded(Engine):
    """Logits in bfloat16: 8 bits of mantissa."""

    @property
    def name(self) -> str:
        return "bf16"

    def logits(self, logits: Tensor) -> Tensor:
        return logits.to(torch.bfloat16).to(logits.dtype)


@dataclass(frozen=True)
class Tempered(Engine):
    """Another temperature than the trainer's."""

    temperature: float = 0.7

    @property
    def name(self) -> str:
        return f"T = {self.temperature:g}"

    def logits(self, logits: Tensor) -> Tensor:
        return logits / self.temperature


@dataclass(frozen=True)
class TopK(Engine):
    """Only the k likeliest actions of each state: the others have probability 0, which no weight can make up for."""

    k: int = 3

    @property
    def name(self) -> str:
        return f"top-{self.k}"

    def logits(self, logits: Tensor) -> Tensor:
        least = logits.topk(min(self.k, logits.shape[-1]), -1).values[..., -1:]
        return torch.where(logits >= least, logits, -torch.inf)


ENGINES: tuple[Engine, ...] = (Engine(), Rounded(), Tempered(0.5), Tempered(1.5), TopK(3))


def _log_prob(policy: TabularPolicy, problem: ExactProblem) -> Tensor:
    """As `problem.log_prob`, but −inf (an action that is cut away) may stand where the policy acts."""
    table = torch.log_softmax(policy.logits.detach(), -1)
    rows = problem.rows
    chosen = table[policy.states(rows)].gather(-1, torch.where(rows.mask, rows.action, 0).unsqueeze(-1)).squeeze(-1)
    return torch.where(rows.mask, chosen, 0)


# ---------------------------------------------------------------------------------------------------- corrections


@dataclass(frozen=True)
class Correction:
    """What is done about a mismatch: a weight on the rollouts' reference, a mask, both or neither."""

    name: str
    weight: type[Corrected] | None = None
    limit: float | None = None
    mask: Mask = Everything()

    def __call__(self, objective: Objective) -> Objective:
        """The objective with every policy gradient over rollouts corrected."""
        return Objective(tuple(self._of(t) if isinstance(t, PolicyGradient) and Source.ROLLOUT in t.rows else t for t in objective.terms))

    def _of(self, term: PolicyGradient) -> PolicyGradient:
        reference: Reference = term.reference if self.weight is None else self.weight(term.reference, self.limit)
        mask = term.mask if isinstance(self.mask, Everything) else term.mask & self.mask
        return dataclasses.replace(term, reference=reference, mask=mask)


CORRECTIONS: tuple[Correction, ...] = (
    Correction("none"),
    Correction("token weight, no limit", Corrected, None),
    Correction("token TIS", Corrected, LIMIT),
    Correction("token weight and mask (MIS)", Corrected, None, MismatchMask(1 / LIMIT, LIMIT)),
    Correction("sequence weight, no limit", SequenceCorrected, None),
    Correction("sequence TIS", SequenceCorrected, LIMIT),
    Correction("sequence mask, no weight", None, None, SequenceMismatchMask(1 / SEQUENCE_LIMIT, SEQUENCE_LIMIT)),
)


def run_mismatch(
    algorithms: Sequence[Algorithm],
    problem: ExactProblem,
    *,
    group_size: int = 8,
    batches: int = 400,
    engines: Sequence[Engine] = ENGINES,
    corrections: Sequence[Correction] = CORRECTIONS,
    seed: int = 0,
    progress: Told | None = None,
) -> list[Result]:
    """Every algorithm with every engine and correction, on policy (pi_old = pi_theta), against its exact gradient.

    `Result.series` is "engine / correction". Errors: `InputError` for an algorithm without rollouts.
    """
    for algorithm in algorithms:
        if not algorithm.uses_rollouts:
            raise InputError(f"algorithm '{algorithm.name}' draws no rollouts: no engine can disagree with it")
    cases = [(a, e, c) for a in algorithms for e in engines for c in corrections]
    samplers = {engine: Sampler.of(problem, behaviour_log_prob=engine.log_prob(problem)) for engine in engines}
    results = []
    for number, (plain, engine, correction) in enumerate(cases):
        algorithm = adapted(plain, group_size, None)
        objective = correction(algorithm.terms(Setting(max_new_tokens=problem.horizon)))
        series = f"{engine.name} / {correction.name}"
        results.append(
            examine(algorithm, problem, samplers[engine], batches, seed=seed, group_size=group_size, objective=objective, series=series)
        )
        if progress:
            progress((number + 1) / len(cases))
    return results
