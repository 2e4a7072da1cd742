"""Over-optimisation on sequences: DPO beside RPO on noisy preferences that cover only part of the answers, under a hidden gold score.

The toy is string operations; the gold score of an answer is its share of right letters. Pairs are drawn from the base model, of answers
with four letters of which at least half are right; which one is preferred is drawn from sigmoid(sharpness · difference of their gold
scores). A reward model fitted to the same pairs is the proxy. Watched during training: gold and proxy score of generations, the
log-probability of the chosen answers, the divergence from the base model, and how many generations leave what the pairs cover.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from copg_sequence import (
    LIMIT,
    MISSING,
    Measure,
    Offline,
    curves_of,
    draw_answers,
    letters_right,
    log_probs_of,
    rows_of,
    told_of_answers,
    train_offline,
)
from harness import Check, Claim, Method, Runs, Told, by_seed, check, difference, main
from rpo import panel
from string_operations import BASE, COMPETENT, LENGTH, StringTask, Toy, post_training_tasks, train_base

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.policies.reward_model import SequenceScorer, load_reward_model
from unipg.rollouts.generation import Completion
from unipg.rollouts.prompts import PromptRollouts
from unipg.rollouts.text import SamplingRecipe, decode
from unipg.samplers.base import UniformSampler
from unipg.seeding import generator, seed_everything
from unipg.tasks.base import Item, ScoredCompletion
from unipg.trajectories import Trajectories

ETAS = {"dpo": 0.0, "rpo-0.05": 0.05, "rpo-0.2": 0.2, "rpo-1": 1.0}
TRIES = 16
"""Answers drawn to each prompt in search of a pair."""


@dataclass(frozen=True)
class Setup:
    """The toy, and what is particular to this claim."""

    toy: Toy = field(
        default_factory=lambda: Toy(
            base_frequencies=COMPETENT, base_steps=50, steps=300, window=50, learning_rate=5e-4, held_out=100, items=400
        )
    )
    """A base model that was stopped early, and few pairs, seen many times."""
    beta: float = 0.1
    sharpness: float = 4.0
    covered: float = 0.5
    """Least gold score of an answer in a pair."""
    proxy_steps: int = 100
    """Of the reward model."""


def is_covered(setup: Setup, text: str, item: Item) -> bool:
    return len(text.split()) == LENGTH and letters_right(text, item) >= setup.covered


@dataclass(frozen=True)
class Preferences:
    """Labelled pairs, as items with a chosen and a rejected completion."""

    items: list[Item]
    chosen: list[Completion]
    wrong: float
    """Share of the labels that prefer the answer with the lower gold score; of the pairs whose scores differ."""


def preferences_of(setup: Setup, base: CausalLanguageModel, items: Sequence[Item], seed: int) -> Preferences:
    """A pair of different covered answers to each prompt for which the base model finds two, and drawn labels."""
    answers = draw_answers(base, items, TRIES, 1.0, generator(seed, "pairs"))
    draw = generator(seed, "labels")
    found, chosen = [], []
    wrong = unequal = 0
    for item, tries in zip(items, answers, strict=True):
        texts = {decode(base.tokenizer, answer): answer for answer in tries if answer.ended}
        covered = [text for text in texts if is_covered(setup, text, item)][:2]
        if len(covered) < 2:
            continue
        first, second = (letters_right(text, item) for text in covered)
        won = float(torch.rand((), generator=draw)) < float(torch.sigmoid(torch.tensor(setup.sharpness * (first - second))))
        best, other = covered if won else reversed(covered)
        unequal += first != second
        wrong += letters_right(best, item) < letters_right(other, item)
        found.append(replace(item, index=len(found), completions=(ScoredCompletion(best, 1.0), ScoredCompletion(other, 0.0))))
        chosen.append(texts[best])
    return Preferences(found, chosen, wrong / max(1, unequal))


def proxy_of(setup: Setup, base: CausalLanguageModel, pairs: Preferences, seed: int) -> SequenceScorer:
    """A reward model that starts from the base model and is fitted to the pairs."""
    seed_everything(seed, "proxy")
    with tempfile.TemporaryDirectory() as folder:
        base.save(Path(folder))
        scorer = SequenceScorer(load_reward_model(folder), base.tokenizer)
    toy = replace(setup.toy, steps=setup.proxy_steps)
    experience = PromptRollouts(
        StringTask("pairs", pairs.items),
        UniformSampler(len(pairs.items), seed),
        prompts=toy.prompts,
        sampling=SamplingRecipe(max_new_tokens=LIMIT),
    )
    train_offline(toy, algorithm_named("bradley_terry")(), scorer, None, experience, seed, lambda share: None)
    return scorer


def agreement(proxy: SequenceScorer, base: CausalLanguageModel, items: Sequence[Item], seed: int) -> float:
    """Share of fresh pairs of the base model's answers, of different gold scores, that the proxy orders as the gold score does."""
    drawn = draw_answers(base, items, 2, 1.0, generator(seed, "agreement"))
    gaps = []
    for place in (0, 1):
        answers = [pair[place] for pair in drawn]
        gold = [letters_right(decode(base.tokenizer, a), item) for a, item in zip(answers, items, strict=True)]
        gaps.append((torch.tensor(gold), log_probs_of(proxy, rows_of(base.tokenizer, items, answers))))
    gold_gap, proxy_gap = (first - second for first, second in zip(*gaps, strict=True))
    unequal = gold_gap != 0
    return float((gold_gap * proxy_gap > 0)[unequal].double().mean())


@dataclass
class Ready:
    """What the methods of one seed share."""

    base: CausalLanguageModel
    pairs: Preferences
    proxy: SequenceScorer
    held_out: list[Item]

    def measure(self, setup: Setup) -> Measure:
        """Everything that is watched."""
        gold = told_of_answers(self.base)
        chosen = rows_of(self.base.tokenizer, self.pairs.items, self.pairs.chosen)
        before = log_probs_of(self.base, chosen)

        def measure(
            policy: CausalLanguageModel, items: Sequence[Item], answers: Sequence[Completion], batch: Trajectories
        ) -> dict[str, float]:
            texts = [decode(policy.tokenizer, answer) for answer in answers]
            inside = sum(is_covered(setup, text, item) for text, item in zip(texts, items, strict=True))
            return {
                **gold(policy, items, answers, batch),
                "proxy": float(log_probs_of(self.proxy, batch).mean()),
                "chosen": float((log_probs_of(policy, chosen) - before).mean()),
                "uncovered": 1 - inside / len(items),
            }

        return measure


def algorithm(setup: Setup, name: str) -> Algorithm:
    if not ETAS[name]:
        return algorithm_named("dpo")(beta=setup.beta)  # type: ignore[call-arg]
    return algorithm_named("regularized_preference_optimization")(beta=setup.beta, eta=ETAS[name])  # type: ignore[call-arg]


def claim(setup: Setup) -> Claim:
    toy = setup.toy
    made: dict[int, Ready] = {}

    def ready(seed: int) -> Ready:
        if seed not in made:
            base = train_base(toy, seed, lambda share: None)[0]
            train, held_out = post_training_tasks(toy, seed)
            pairs = preferences_of(setup, base, train.items, seed)
            made.clear()
            made[seed] = Ready(base, pairs, proxy_of(setup, base, pairs, seed), [item for task in held_out for item in task.items])
        return made[seed]

    def run(name: str, seed: int, told: Told) -> dict[str, Any]:
        here = ready(seed)
        base = here.base
        experience = Offline(StringTask("pairs", here.pairs.items), here.held_out, toy, seed, here.measure(setup))
        if name == BASE:
            experience.evaluate(base, seed)
            agreed = agreement(here.proxy, base, here.held_out, seed)
            data = {"pairs": len(here.pairs.items), "wrong labels": here.pairs.wrong, "agreement of the proxy with gold": agreed}
            return {**experience.points[0], "data": data}
        policy = CausalLanguageModel(base.frozen_copy().model.requires_grad_(True), base.tokenizer)
        train_offline(toy, algorithm(setup, name), policy, base.frozen_copy(), experience, seed, told)
        curves = curves_of(toy, experience.points)
        return {**experience.points[-1], "best": max(curves["score"].values()), "curve": curves["score"], "curves": curves}

    def checks(runs: Runs) -> list[Check | None]:
        pieces = []
        for name, eta in list(ETAS.items())[1:]:
            pieces.append(check(f"gold score: RPO ({eta:g}) > DPO", difference(runs, name, "dpo"), lambda d: d > 0))
        for (less, low), (more, high) in itertools.pairwise(ETAS.items()):
            what = f"log pi(chosen): eta {high:g} > eta {low:g}"
            pieces.append(check(what, difference(runs, more, less, "chosen"), lambda d: d > 0))
        pieces.append(check("generations not covered: DPO > RPO (0.2)", difference(runs, "dpo", "rpo-0.2", "uncovered"), lambda d: d > 0))
        lost = {seed: by_seed(runs, "dpo", "best")[seed] - last for seed, last in by_seed(runs, "dpo").items()}
        pieces.append(check("over-optimisation: DPO's best gold score during training − its last > 0.02", lost, lambda d: d > 0.02))
        return pieces

    def told(runs: Runs) -> dict[str, list[str]]:
        lines = [f"seed {run['seed']}: " + ", ".join(f"{k} {v:g}" for k, v in run["data"].items()) for run in runs if "data" in run]
        return {"Pairs and proxy": lines}

    methods = {BASE: Method("base model", cost=0.5, always=True)}
    methods |= {
        name: Method(f"RPO, eta {eta:g}" if eta else "DPO (eta 0)", {"algorithm": repr(algorithm(setup, name))})
        for name, eta in ETAS.items()
    }

    return Claim(
        name="rpo-sequence",
        title="DPO and RPO on noisy preferences with partial coverage, short answers" + ("" if setup == Setup() else ", sizes changed"),
        source="arXiv 2405.16436",
        methods=methods,
        run=run,
        checks=checks,
        columns={
            "score": "gold score",
            "best": "best gold score while training",
            "proxy": "proxy score",
            "chosen": "log pi − log pi_0 of the chosen",
            "kl": "KL(pi || pi_0)",
            "uncovered": "generations not covered",
        },
        about=(
            f"Gold score: share of right letters of answers drawn at temperature 1 to {toy.held_out} fresh prompts of each operation, less "
            f"{MISSING:g} for each letter too many or too few. Proxy: mean score of the reward model on the same answers, up to a "
            "constant. KL: estimated on the same answers, nats per answer. Not covered: answers without four letters, or with fewer than "
            f"{setup.covered:g} of them right. Chosen: of the training pairs, nats per answer."
        ),
        setup=asdict(setup),
        told=told,
        panels=[
            panel("chosen", "log pi − log pi_0 of the chosen"),
            panel("proxy", "proxy score of generations"),
            panel("kl", "KL(pi || pi_0)"),
        ],
    )


def build(chosen: argparse.Namespace) -> Claim:
    if not chosen.quick:
        return claim(Setup())
    sizes = {"steps": 6, "window": 3, "items": 60, "prompts": 4, "held_out": 10, "base_steps": 40, "base_prompts": 32}
    return claim(Setup(toy=replace(Setup().toy, **sizes), covered=0.0, proxy_steps=4))


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:]))
