"""CoPG on sequences: a tiny language model learns from fixed pairs of scored answers, beside DPO and IPO on the same pairs.

The toy is string operations; the score of an answer is its share of right letters. One answer of each pair is drawn from the base model,
the other from the base model at a higher temperature. CoPG sees the scores, DPO and IPO see which answer of a pair has the higher one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from copg import Share
from harness import Check, Claim, Method, Runs, Told, by_seed, check, gains, main
from string_operations import BASE, COMPETENT, LENGTH, StringTask, Toy, post_training_tasks, train_base

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.policies.base import Policy
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.rollouts.base import EvaluationResult
from unipg.rollouts.generation import Completion, sample
from unipg.rollouts.prompts import PromptRollouts, pack
from unipg.rollouts.text import SamplingRecipe, decode, end_tokens, prompt_tokens
from unipg.samplers.base import UniformSampler
from unipg.seeding import generator
from unipg.tasks.base import Item, ScoredCompletion
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Trainer, TrainingRecipe
from unipg.trajectories import Source, Trajectories

LIMIT = LENGTH + 1
"""Tokens of an answer, its end included."""
MISSING = 0.25
"""What a letter too many or too few costs beside its place."""


def letters_right(answer: str, item: Item) -> float:
    """The share of right letters in their places, minus a little for each letter too many or too few; at most 1."""
    assert item.expected is not None
    given, expected = answer.split(), item.expected.split()
    right = sum(a == b for a, b in zip(given, expected, strict=False))
    return right / len(expected) - MISSING * abs(len(given) - len(expected))


# ---------------------------------------------------------------------------------------------------------------------- answers


def draw_answers(
    policy: CausalLanguageModel, items: Sequence[Item], rollouts: int, temperature: float, draw: torch.Generator
) -> list[list[Completion]]:
    """Answers of a model to each item."""
    with policy.sampling() as model:
        return sample(
            model,
            [prompt_tokens(policy.tokenizer, item, "never") for item in items],
            rollouts=rollouts,
            max_new_tokens=LIMIT,
            end_tokens=end_tokens(model, policy.tokenizer),
            pad_token=policy.tokenizer.pad_token_id,
            temperature=temperature,
            generator=draw,
        )


def rows_of(tokenizer: Any, items: Sequence[Item], answers: Sequence[Completion]) -> Trajectories:
    """Answers as rows."""
    return pack(
        [prompt_tokens(tokenizer, item, "never") for item in items],
        [answer.tokens for answer in answers],
        [answer.ended for answer in answers],
        pad_token=tokenizer.pad_token_id,
        group=list(range(len(items))),
        source=Source.ROLLOUT,
        reward=[0.0] * len(items),
    )


def log_probs_of(policy: Policy, batch: Trajectories) -> torch.Tensor:
    """[B] log-probability of each row's answer, in evaluation mode without gradient."""
    was_training = policy.module.training
    policy.module.eval()
    with torch.no_grad():
        total = policy.evaluate(batch).log_prob.sum(1).double()
    policy.module.train(was_training)
    return total


Measure = Callable[[CausalLanguageModel, Sequence[Item], Sequence[Completion], Trajectories], dict[str, float]]
"""What is measured of a policy and its answers to the held-out prompts, one each."""


class Offline(PromptRollouts):
    """Given answers to learn from. A held-out evaluation draws an answer to each held-out prompt and keeps what `measure` says of them."""

    def __init__(self, task: StringTask, held_out: Sequence[Item], toy: Toy, seed: int, measure: Measure) -> None:
        super().__init__(
            task,
            UniformSampler(len(task.items), seed),
            prompts=toy.prompts,
            sampling=SamplingRecipe(max_new_tokens=LIMIT, long_demonstrations="truncate"),  # an answer without end stays without
        )
        self.held_out, self.measure = held_out, measure
        self.points: list[dict[str, float]] = []

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        assert isinstance(policy, CausalLanguageModel)
        answers = [each[0] for each in draw_answers(policy, self.held_out, 1, 1.0, generator(seed, "held-out answers"))]
        batch = rows_of(policy.tokenizer, self.held_out, answers)
        self.points.append(self.measure(policy, self.held_out, answers, batch))
        return []


def told_of_answers(base: CausalLanguageModel) -> Measure:
    """Score, share of wholly right answers, and the divergence from the base model, estimated on the answers."""

    def measure(policy: CausalLanguageModel, items: Sequence[Item], answers: Sequence[Completion], batch: Trajectories) -> dict[str, float]:
        texts = [decode(policy.tokenizer, answer) for answer in answers]
        scores = [letters_right(text, item) for text, item in zip(texts, items, strict=True)]
        return {
            "score": sum(scores) / len(scores),
            "right": sum(score == 1.0 for score in scores) / len(scores),
            "kl": float((log_probs_of(policy, batch) - log_probs_of(base, batch)).mean()),
        }

    return measure


def train_offline(
    toy: Toy, algorithm: Algorithm, policy: Policy, anchor: Policy | None, experience: PromptRollouts, seed: int, told: Told
) -> None:
    """Trains with the library's loop."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            algorithm,
            policy,
            experience,
            folder=Path(folder),
            training=TrainingRecipe(toy.steps, toy.prompts, save_every=toy.steps, evaluate_every=toy.window),
            optimizer=OptimizerRecipe(toy.learning_rate),
            anchor=anchor,
            seed=seed,
            observer=Share(told),
        ).train()


def curves_of(toy: Toy, points: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By measure, then by step."""
    steps = [*range(0, toy.steps, toy.window), toy.steps]
    return {name: {str(step): point[name] for step, point in zip(steps, points, strict=True)} for name in points[0]}


# ---------------------------------------------------------------------------------------------------------------------- the claim


@dataclass(frozen=True)
class Setup:
    """The toy, and what is particular to this claim."""

    toy: Toy = field(
        default_factory=lambda: Toy(
            base_frequencies=COMPETENT, base_steps=50, steps=250, window=50, learning_rate=3e-4, held_out=100, items=2000
        )
    )
    """A base model that was stopped early, and two passes over the pairs."""
    pairs: int = 2
    """Of each prompt."""
    temperatures: tuple[float, float] = (1.0, 1.5)
    """What the first and the second answer of a pair are drawn at, from the base model."""
    betas: tuple[float, ...] = (0.03, 0.1, 0.3)


Data = list[list[ScoredCompletion]]


def pairs_of(setup: Setup, base: CausalLanguageModel, items: Sequence[Item], seed: int) -> list[Item]:
    """Each item as often as it has pairs, with the two answers of a pair and their scores."""
    drawn = [
        draw_answers(base, items, setup.pairs, temperature, generator(seed, "offline answers", temperature))
        for temperature in setup.temperatures
    ]
    found = []
    for number, item in enumerate(items):
        for pair in zip(*(answers[number] for answers in drawn), strict=True):
            texts = [decode(base.tokenizer, completion) for completion in pair]
            scored = tuple(ScoredCompletion(text, letters_right(text, item)) for text in texts)
            found.append(replace(item, index=len(found), completions=scored))
    return found


def labelled(items: Sequence[Item]) -> list[Item]:
    """Labels instead of scores: 1 for the better of a pair; ties are left out."""
    found = []
    for item in items:
        first, second = item.completions
        if first.score != second.score:
            labels = tuple(replace(c, score=float(c.score > other.score)) for c, other in ((first, second), (second, first)))
            found.append(replace(item, index=len(found), completions=labels))
    return found


NAMES = {"copg": "CoPG", "dpo": "DPO", "ipo": "IPO"}


def claim(setup: Setup) -> Claim:
    toy = setup.toy
    trained = {f"{name}-{beta:g}": algorithm_named(name)(beta=beta) for name in NAMES for beta in setup.betas}  # type: ignore[call-arg]
    made: dict[int, tuple[CausalLanguageModel, list[Item], list[Item]]] = {}

    def ready(seed: int) -> tuple[CausalLanguageModel, list[Item], list[Item]]:
        """Base model, pairs and held-out prompts of a seed."""
        if seed not in made:
            base = train_base(toy, seed, lambda share: None)[0]
            train, held_out = post_training_tasks(toy, seed)
            made.clear()
            made[seed] = (base, pairs_of(setup, base, train.items, seed), [item for task in held_out for item in task.items])
        return made[seed]

    def run(name: str, seed: int, told: Told) -> dict[str, Any]:
        base, items, held_out = ready(seed)
        scores = [c.score for item in items for c in item.completions]
        ties = 1 - len(labelled(items)) / len(items)
        if name == BASE:
            experience = Offline(StringTask("pairs", items), held_out, toy, seed, told_of_answers(base))
            experience.evaluate(base, seed)
            first, second = (sum(scores[place::2]) / len(items) for place in (0, 1))
            data = {"pairs": len(items), "ties": ties, "score of the first": first, "score of the second": second}
            return {**experience.points[0], "data": data}
        algorithm = trained[name]
        given = items if algorithm.completions == "scored" else labelled(items)
        policy = CausalLanguageModel(base.frozen_copy().model.requires_grad_(True), base.tokenizer)
        experience = Offline(StringTask("pairs", given), held_out, toy, seed, told_of_answers(base))
        train_offline(toy, algorithm, policy, base.frozen_copy(), experience, seed, told)
        curves = curves_of(toy, experience.points)
        return {**experience.points[-1], "curve": curves["score"], "curves": curves}

    def best(runs: Runs, name: str) -> dict[int, float]:
        """The score by seed at the beta whose mean over seeds is the highest."""
        scores = [by_seed(runs, f"{name}-{beta:g}") for beta in setup.betas]
        return max((s for s in scores if s), key=lambda s: sum(s.values()) / len(s), default={})

    def checks(runs: Runs) -> list[Check | None]:
        pieces = [
            check(f"score at each one's best beta: CoPG ≥ {NAMES[other]}", gains(best(runs, "copg"), best(runs, other)), lambda d: d >= 0)
            for other in ("ipo", "dpo")
        ]
        for name in NAMES:
            for less, more in itertools.pairwise(setup.betas):
                kls = [by_seed(runs, f"{name}-{beta:g}", "kl") for beta in (less, more)]
                pieces.append(check(f"KL of {NAMES[name]}: beta {less:g} > beta {more:g}", gains(*kls), lambda d: d > 0))
        return pieces

    def told(runs: Runs) -> dict[str, list[str]]:
        lines = [f"seed {run['seed']}: " + ", ".join(f"{k} {v:g}" for k, v in run["data"].items()) for run in runs if "data" in run]
        return {"The pairs": lines}

    def draw(axes: Any, runs: Runs) -> None:
        names = list(dict.fromkeys(run["method"] for run in runs))
        for name in NAMES:
            mine = [n for n in names if n.startswith(name)]
            points = [(mean(runs, n, "kl"), mean(runs, n, "score")) for n in mine]
            axes.plot(*zip(*points, strict=True), marker="o", label=NAMES[name])
        axes.set(xlabel="KL(pi || base), nats", title="score against divergence, one point for each beta")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    methods = {BASE: Method("base model", cost=0.3, always=True)}
    for name, algorithm in trained.items():
        short, _, beta = name.partition("-")
        methods[name] = Method(f"{NAMES[short]}, beta {beta}", {"algorithm": repr(algorithm)})
    return Claim(
        name="copg-sequence",
        title="CoPG, DPO and IPO on the same scored pairs of short answers" + ("" if setup == Setup() else ", sizes changed"),
        source="arXiv 2406.19185",
        methods=methods,
        run=run,
        checks=checks,
        columns={"score": "score", "right": "wholly right", "kl": "KL(pi || base)"},
        about=(
            f"Score: share of right letters of answers drawn at temperature 1 to {toy.held_out} fresh prompts of each operation, minus "
            f"{MISSING:g} for each letter too many or too few. KL: estimated on the same answers, nats per answer."
        ),
        setup=asdict(setup),
        told=told,
        panels=[draw],
    )


def mean(runs: Runs, method: str, name: str) -> float:
    values = list(by_seed(runs, method, name).values())
    return sum(values) / len(values)


def build(chosen: argparse.Namespace) -> Claim:
    if not chosen.quick:
        return claim(Setup())
    sizes = {"steps": 6, "window": 3, "items": 60, "prompts": 8, "held_out": 10, "base_steps": 30, "base_prompts": 32}
    return claim(Setup(toy=replace(Setup().toy, **sizes)))


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
