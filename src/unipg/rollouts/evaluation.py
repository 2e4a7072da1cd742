"""Held-out performance with intervals, on named tasks: pass@1, pass@k and maj@k of a language model, accuracy of a reward model."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unipg.arguments import CheckedArguments
from unipg.errors import InputError
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.policies.reward_model import SequenceScorer
from unipg.rollouts.base import EvaluationResult
from unipg.rollouts.conversations import Answer, Talk, conversations, sample_answers
from unipg.rollouts.scoring import RewardModel
from unipg.rollouts.text import SamplingRecipe, check_room, prompt_text, prompt_tokens
from unipg.seeding import generator
from unipg.statistics import Interval, majority_at_k, mean_interval, pass_at_k, wilson_interval
from unipg.tasks.base import Task
from unipg.tasks.verifiers import Failures, score


@dataclass(frozen=True)
class EvaluationRecipe(CheckedArguments):
    """How held-out performance is measured."""

    items: int = 200
    """Held-out items of each task."""
    samples: int = 0
    """Sampled answers per item, for pass@k and maj@k; 0 for greedy pass@1 alone."""
    k: tuple[int, ...] = (1,)
    """The k of pass@k and maj@k; at most `samples`."""
    temperature: float = 1.0
    """Of the sampled answers."""
    shown: int = 8
    """Answers kept for the report."""

    def __post_init__(self) -> None:
        if self.samples and (bad := [k for k in self.k if not 1 <= k <= self.samples]):
            raise InputError(f"evaluation.k holds {bad[0]}; accepted: from 1 to evaluation.samples ({self.samples})")
        if self.samples < 0 or self.shown < 0:
            raise InputError("evaluation.samples and evaluation.shown must not be negative")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError(f"evaluation.temperature is {self.temperature}; accepted: above 0")
        if self.items < 1:
            raise InputError(f"evaluation.items is {self.items}; accepted: 1 or more")


def evaluate_task(
    policy: CausalLanguageModel,
    task: Task,
    recipe: EvaluationRecipe,
    sampling: SamplingRecipe,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> EvaluationResult:
    """Greedy pass@1; and, with samples, pass@1, unbiased pass@k and maj@k over them. Every metric has a 95 % interval over items.

    For a task with tools, also how the greedy answers used them: calls of one answer, the share of calls that gave a result, and the share
    of answers that ended at the limit of turns.
    """
    items = list(task.items[: recipe.items])
    tokenizer = policy.tokenizer
    tools = conversations(policy.model, tokenizer, task, sampling)
    prompts = [tools.prompt(item) if tools else prompt_tokens(tokenizer, item, sampling.chat_template) for item in items]
    check_room(policy.model, items, prompts, sampling.max_new_tokens)
    if tools:
        tools.check_room(items, [len(prompt) for prompt in prompts])
    parts = 2 if recipe.samples else 1

    def answers(rollouts: int, greedy: bool, part: int) -> tuple[list[list[Answer]], list[list[float]], Failures]:
        with policy.sampling() as model:
            found = sample_answers(
                model,
                tokenizer,
                prompts,
                sampling,
                tools,
                rollouts=rollouts,
                temperature=recipe.temperature,
                generator=generator(seed, "evaluate", task.name, device=model.device),
                greedy=greedy,
                progress=None if progress is None else lambda done: progress((part + done) / parts),
            )
        flat, failures = score(
            task.verifier,
            [answer.text for group in found for answer in group],
            [item for item, group in zip(items, found, strict=True) for _ in group],
            sampling.verifier_seconds,
        )
        return found, [flat[i : i + rollouts] for i in range(0, len(flat), rollouts)], failures

    found, rewards, failures = answers(1, True, 0)
    failed, trouble = failures.count, failures.trouble
    broken = failures.kinds.get("raised", 0) == len(items)
    greedy = [r[0] for r in rewards]
    metrics = {"pass@1 (greedy)": _share(greedy)} | _tool_use([group[0] for group in found])
    samples = [
        {"prompt": prompt_text(item), "answer": group[0].text, "expected": item.expected, "reward": reward}
        | ({"transcript": group[0].transcript, "tool_calls": group[0].talk.calls} if group[0].talk else {})
        for item, group, reward in zip(items[: recipe.shown], found, greedy, strict=False)
    ]
    if recipe.samples:
        found, rewards, more = answers(recipe.samples, False, 1)
        failed += more.count
        trouble = trouble or more.trouble
        texts = [[answer.text for answer in group] for group in found]
        correct = [[r >= 1 for r in group] for group in rewards]
        metrics["pass@1 (sampled)"] = _share([sum(group) / len(group) for group in rewards])
        for k in recipe.k:
            if k > 1:
                metrics[f"pass@{k}"] = _share([pass_at_k(recipe.samples, sum(group), k) for group in correct])
                metrics[f"maj@{k}"] = _share([majority_at_k(t, c, k) for t, c in zip(texts, correct, strict=True)])
    if failed:
        metrics["verifier failures"] = {"value": float(failed), "n": float(len(items) * (1 + recipe.samples))}
    return EvaluationResult(task.name, metrics, samples, trouble, broken)


def evaluate_pairs(
    scorer: SequenceScorer,
    task: Task,
    recipe: EvaluationRecipe,
    sampling: SamplingRecipe,
    progress: Callable[[float], None] | None = None,
) -> EvaluationResult:
    """How a reward model ranks given completions, over the pairs of one prompt's completions whose own scores differ.

        accuracy   share of pairs in which the better completion has the higher score; equal scores count half
        margin     score of the better completion − score of the worse one

    Both are means over items of the means over an item's pairs, with a 95 % interval over items. Of the samples, `answer` is the
    completion with the higher score, and `expected` the better one.

    Errors: `InputError` for a task in which no item has two completions of different scores.
    """
    items = [item for item in task.items[: recipe.items] if len({c.score for c in item.completions}) > 1]
    if not items:
        raise InputError(f"task '{task.name}' has no completions of one prompt to compare: set its `preferences` to pairs or scored")
    model = RewardModel(scorer, "policy", layout=sampling.chat_template, batch_rows=sampling.batch_rows)
    owners = [item for item in items for _ in item.completions]
    scores = iter(model(owners, [c.text for item in items for c in item.completions], progress=progress))
    right, margins = [], []
    samples: list[dict[str, Any]] = []
    for item in items:
        judged = [(completion, next(scores)) for completion in item.completions]
        found = [mine - yours for (a, mine), (b, yours) in itertools.permutations(judged, 2) if a.score > b.score]
        right.append(sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in found) / len(found))
        margins.append(sum(found) / len(found))
        if len(samples) < recipe.shown:
            answer, best = max(judged, key=lambda pair: pair[1])[0], max(item.completions, key=lambda c: c.score)
            samples.append({"prompt": prompt_text(item), "answer": answer.text, "expected": best.text, "reward": right[-1]})
    return EvaluationResult(task.name, {"accuracy": _share(right), "margin": mean_interval(margins).as_metric()}, samples)


def _tool_use(found: list[Answer]) -> dict[str, dict[str, float]]:
    """What the answers did with their tools; empty where they had none."""
    talks: list[Talk] = [answer.talk for answer in found if answer.talk]
    if not talks:
        return {}
    counts = [float(len(talk.calls)) for talk in talks]
    outcomes = [float(call["outcome"] == "ok") for talk in talks for call in talk.calls]
    metrics = {"tool calls": mean_interval(counts).as_metric(), "turn limit fraction": _share([float(talk.at_limit) for talk in talks])}
    return metrics | ({"tool calls ok fraction": _share(outcomes)} if outcomes else {})


def unseen(task: Task, trained_on: Task) -> Task:
    """The task without the items whose prompt also occurs among the training prompts."""
    known = {prompt_text(item) for item in trained_on.items}
    items = [item for item in task.items if prompt_text(item) not in known]
    if not items:
        raise InputError(f"every held-out item of '{task.name}' is also a training prompt: give it another seed, or a larger size")
    kept = copy.copy(task)
    kept.items = items
    return kept


def _share(rewards: list[float]) -> dict[str, float]:
    """Mean over items with its interval: Wilson's where every value is 0 or 1, else a bootstrap, which has no width where all are equal."""
    binary = all(r in (0.0, 1.0) for r in rewards)
    interval: Interval = wilson_interval(round(sum(rewards)), len(rewards)) if binary else mean_interval(rewards)
    return interval.as_metric()
