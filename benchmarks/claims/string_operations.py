"""A toy that claims are measured on: string operations with a noisy expert.

A prompt is an operation and four letters of an alphabet of eight, the answer four letters. The base model knows some of the operations
(by default two of four; it never succeeds at the others); the demonstrations of post-training cover all four, but one in five has a wrong
letter. So reinforcement alone cannot find what the base model never does, and supervision alone is bounded by the expert's 80 %.

Every method runs through the library's own loop with its registered algorithm. `claim_on` makes a `harness.Claim` of `Training`s:

    TRAININGS = {"sft": Training("SFT", ((algorithm("sft"), 1.0),)), "mine": Training("Mine", ((algorithm("mine", beta=0.1), 1.0),))}
    claim = claim_on({"": Toy()}, TRAININGS, name="mine", title="…", source="arXiv …", checks=checks)

and gives each of them the score (share of right answers at temperature 1), the share of each operation, greedy answers, and cost.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import Claim, Method, Runs, Told, by_seed, rounded

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.errors import InputError
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model
from unipg.rollouts.base import EvaluationResult
from unipg.rollouts.evaluation import EvaluationRecipe
from unipg.rollouts.prompts import PromptRollouts
from unipg.rollouts.text import SamplingRecipe
from unipg.samplers.base import UniformSampler
from unipg.seeding import generator, seed_everything
from unipg.tasks.base import Item, Verifier
from unipg.tasks.verifiers import exact_match
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Observer, Trainer, TrainingRecipe

LETTERS = "abcdefgh"
OPERATIONS = ("copy", "reverse", "shift", "reverse-shift")
LENGTH = 4
BASE = "base"
SAMPLED, GREEDY = "pass@1 (sampled)", "pass@1 (greedy)"

# ---------------------------------------------------------------------------------------------------------------------- the task


@dataclass(frozen=True)
class Toy:
    """Sizes of the toy; the defaults are those of the claim."""

    steps: int = 400
    """Optimiser steps of each method."""
    prompts: int = 32
    """Prompts per step."""
    items: int = 2000
    """Fixed prompts of post-training, each with one demonstration."""
    wrong: float = 0.2
    """Share of the demonstrations with one wrong letter."""
    learning_rate: float = 1e-3
    held_out: int = 200
    """Fresh prompts of each operation that the score is taken on."""
    window: int = 50
    """Steps between held-out scores, and in one point of a curve."""
    base_steps: int = 400
    base_prompts: int = 128
    base_frequencies: tuple[float, ...] = (1.0, 0.25, 0.0, 0.0)
    """Of the operations in the base model's training data, up to a factor."""
    base_wrong: float = 0.1
    base_learning_rate: float = 3e-3
    weight_decay: float = 0.01
    model: ScratchModel = ScratchModel("llama", hidden_size=64, layers=2, heads=2, intermediate_size=256, max_positions=16)

    def __post_init__(self) -> None:
        if self.steps < 3:
            raise InputError(f"--steps is {self.steps}; accepted: 3 or more")


COMPETENT = (1.0, 0.5, 0.12, 0.12)
"""Of the operations in the training data of a base model that knows all of them."""
QUICK = {"steps": 12, "items": 200, "held_out": 20, "window": 4, "base_steps": 30}


def architecture_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--architecture", default=Toy.model.architecture, help="of transformers: llama, gpt2, qwen3 … (default %(default)s)"
    )


def model_of(architecture: str) -> ScratchModel:
    return dataclasses.replace(Toy.model, architecture=architecture)


def with_architecture(name: str, architecture: str) -> str:
    """A result's name: the default architecture is not in it."""
    return name if architecture == Toy.model.architecture else f"{name}-{architecture}"


def two_toys(quick: bool, architecture: str) -> dict[str, Toy]:
    """T1, whose base model knows two of the four operations; T2, whose base model is competent at all of them, with fewer steps."""
    sizes = (QUICK if quick else {}) | {"model": model_of(architecture)}
    return {"T1": Toy(**sizes), "T2": Toy(**({"steps": 300} | sizes), base_frequencies=COMPETENT)}


@dataclass
class StringTask:
    """Items of string operations, verified by exact match."""

    name: str
    items: Sequence[Item]
    verifier: Verifier = exact_match


def answer(operation: int, letters: Sequence[int]) -> list[int]:
    """The right answer: copy, reverse, shift each letter to the next (cyclically), or both."""
    turned = list(reversed(letters)) if operation in (1, 3) else list(letters)
    return [(letter + 1) % len(LETTERS) for letter in turned] if operation >= 2 else turned


def spelled(letters: Sequence[int]) -> str:
    return " ".join(LETTERS[i] for i in letters)


def item(index: int, code: int, wrong: float, seed: int, purpose: str) -> Item:
    """The item numbered `code` of all operations × strings; its demonstration has one wrong letter with probability `wrong`."""
    operation, rest = divmod(code, len(LETTERS) ** LENGTH)
    letters = [rest // len(LETTERS) ** place % len(LETTERS) for place in range(LENGTH)]
    right = answer(operation, letters)
    shown = list(right)
    draw = generator(seed, "demonstration of", purpose, index)
    if float(torch.rand((), generator=draw)) < wrong:
        place = int(torch.randint(LENGTH, (), generator=draw))
        shown[place] = (shown[place] + int(torch.randint(1, len(LETTERS), (), generator=draw))) % len(LETTERS)
    prompt = f"<bos> {OPERATIONS[operation]} {spelled(letters)} ="
    return Item(index, prompt, demonstrations=(spelled(shown),), expected=spelled(right))


def base_task(toy: Toy, seed: int) -> StringTask:
    """What the base model learns from: fresh items for each of its steps."""
    count, strings = toy.base_steps * toy.base_prompts, len(LETTERS) ** LENGTH
    draw = generator(seed, "base items")
    operations = torch.multinomial(torch.tensor(toy.base_frequencies), count, replacement=True, generator=draw)
    codes = operations * strings + torch.randint(strings, (count,), generator=draw)
    return StringTask(BASE, [item(i, code, toy.base_wrong, seed, BASE) for i, code in enumerate(codes.tolist())])


def post_training_tasks(toy: Toy, seed: int) -> tuple[StringTask, list[StringTask]]:
    """The fixed items of post-training, and for each operation held-out items that are none of them."""
    strings = len(LETTERS) ** LENGTH
    order = torch.randperm(len(OPERATIONS) * strings, generator=generator(seed, "items")).tolist()
    train = [item(i, code, toy.wrong, seed, "training") for i, code in enumerate(order[: toy.items])]
    held_out = []
    for number, operation in enumerate(OPERATIONS):
        codes = [code for code in order[toy.items :] if code // strings == number][: toy.held_out]
        held_out.append(StringTask(operation, [item(i, code, 0.0, seed, "held out") for i, code in enumerate(codes)]))
    return StringTask("strings", train), held_out


def word_tokenizer() -> Any:
    """One token per letter and operation, 16 in all.

    Padding is the end token and `<bos>` a plain word: decoding then drops nothing but the end, so exact match is exact.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "<unknown>", "<bos>", "=", *OPERATIONS, *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


# ---------------------------------------------------------------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Training:
    """Algorithms one after the other, all from the same base model."""

    title: str
    phases: tuple[tuple[Algorithm, float], ...]
    """Each algorithm with the share of all steps at which it ends. A new phase has a fresh optimiser. None at all is the base model."""
    normalisation: str = ""
    """How the losses are normalised."""
    toy: str = ""
    """Key of its toy, where a claim has several."""

    def steps(self, toy: Toy) -> list[tuple[Algorithm, int]]:
        """Each algorithm with its number of steps."""
        ends = [0, *(int(toy.steps * end) for _, end in self.phases)]
        return [(phase[0], after - before) for phase, before, after in zip(self.phases, ends, ends[1:], strict=False)]


def algorithm(name: str, **settings: Any) -> Algorithm:
    return algorithm_named(name)(**settings)


def base_phases(toy: Toy) -> list[tuple[Algorithm, int]]:
    return [(algorithm("sft"), toy.base_steps)]


# ---------------------------------------------------------------------------------------------------------------------- one run


@dataclass
class Curve(Observer):
    """An observer that keeps each step's metrics and the held-out scores, and passes progress on."""

    told: Told
    costs: Sequence[float]
    """Of each step, in any unit."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    """By number of steps done, then by operation: the sampled and the greedy share of right answers."""

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.rows.append(metrics)
        self.told(sum(self.costs[: len(self.rows)]) / sum(self.costs))

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self.scores[len(self.rows)] = {r.task: {name: r.metrics[name]["value"] for name in (SAMPLED, GREEDY)} for r in results}

    def windows(self, metric: str, size: int) -> list[float | None]:
        """Means of a metric over consecutive windows of steps; None where no step has it."""
        means: list[float | None] = []
        for start in range(0, len(self.rows), size):
            values = [row[metric] for row in self.rows[start : start + size] if metric in row]
            means.append(sum(values) / len(values) if values else None)
        return means


def while_training(curve: Mapping[str, float]) -> float:
    """The held-out score averaged over all steps, by the trapezoidal rule."""
    points = [(int(step), score) for step, score in curve.items()]
    area = sum((after - before) * (a + b) / 2 for (before, a), (after, b) in itertools.pairwise(points))
    return area / (points[-1][0] - points[0][0])


def _costs(phases: Sequence[tuple[Algorithm, int]], prompts: int) -> list[float]:
    """Expected time of each step; measured: a constant and a share per row."""
    return [30.0 + prompts * max(1, each.rollouts) for each, steps in phases for _ in range(steps)]


def _score(by_operation: dict[str, dict[str, float]], name: str = SAMPLED) -> float:
    return sum(values[name] for values in by_operation.values()) / len(by_operation)


def train(
    toy: Toy,
    policy: CausalLanguageModel,
    phases: list[tuple[Algorithm, int]],
    experience: PromptRollouts,
    learning_rate: float,
    seed: int,
    told: Told,
) -> dict[str, Any]:
    """Trains the policy phase by phase with the library's loop; scores, curves and what was used."""
    began, processor = time.perf_counter(), time.process_time()
    curve = Curve(told, _costs(phases, experience.prompts))
    rollouts = steps = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (each, iterations) in enumerate(phases):
            trainer = Trainer(
                each,
                policy,
                experience,
                folder=Path(folder) / str(number),
                training=TrainingRecipe(iterations, experience.prompts, save_every=iterations, evaluate_every=toy.window),
                optimizer=OptimizerRecipe(learning_rate, weight_decay=toy.weight_decay),
                seed=seed,
                observer=curve,
            )
            trainer.train()
            rollouts += iterations * experience.prompts * (each.rollouts if each.uses_rollouts else 0)
            steps += trainer.step - sum(trainer.learner.skipped.values())
    last = curve.scores[len(curve.rows)]
    scores = {str(step): _score(by_operation) for step, by_operation in curve.scores.items()}
    return {
        "score": _score(last),
        "operations": {operation: values[SAMPLED] for operation, values in last.items()},
        "greedy": _score(last, GREEDY),
        "while_training": while_training(scores),
        "curve": scores,
        "reward": curve.windows("reward/mean", toy.window),
        "offline_fraction": curve.windows("gate/offline_fraction", toy.window),
        "rollouts": rollouts,
        "optimiser_steps": steps,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - processor,
    }


def experience_of(toy: Toy, task: StringTask, prompts: int, held_out: list[StringTask], seed: int) -> PromptRollouts:
    return PromptRollouts(
        task,
        UniformSampler(len(task.items), seed),
        prompts=prompts,
        sampling=SamplingRecipe(max_new_tokens=LENGTH + 1),
        evaluation=EvaluationRecipe(items=toy.held_out, samples=1),
        evaluation_tasks=held_out,
    )


def train_base(toy: Toy, seed: int, told: Told) -> tuple[CausalLanguageModel, dict[str, Any]]:
    """The base model of a seed, which all methods start from, and its scores."""
    seed_everything(seed, BASE)
    tokenizer = word_tokenizer()
    model = build_model(toy.model, tokenizer)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # GPT-2's default is 0.1: what is trained would not be what was sampled
    policy = CausalLanguageModel(model, tokenizer)
    experience = experience_of(toy, base_task(toy, seed), toy.base_prompts, post_training_tasks(toy, seed)[1], seed)
    return policy, train(toy, policy, base_phases(toy), experience, toy.base_learning_rate, seed, told)


# ---------------------------------------------------------------------------------------------------------------------- the claim

COLUMNS = {
    "score": "score",
    **{f"operations.{operation}": operation for operation in OPERATIONS},
    "greedy": "greedy",
    "while_training": "while training",
    "rollouts": "rollouts",
    "optimiser_steps": "optimiser steps",
    "cpu_seconds": "seconds",
}
ABOUT = (
    "Score: share of right answers at temperature 1 on {held_out} fresh prompts of each operation. Greedy: the same prompts at temperature "
    "0. While training: the held-out score averaged over all steps, higher for a method that learns earlier; not part of the claim. "
    "Optimiser steps: those that moved the policy; a batch without any advantage moves nothing. Seconds: processor time, held-out scores "
    "every {window} steps included."
)


KNOWN, UNKNOWN = OPERATIONS[:2], OPERATIONS[2:]
"""To the base model, by default."""


def on_operations(runs: Runs, method: str, operations: Sequence[str]) -> dict[int, float]:
    """The method's score on some of the operations, by seed."""
    found = by_seed(runs, method, "operations")
    return {seed: rounded(sum(shares[name] for name in operations) / len(operations)) for seed, shares in found.items()}


def claim_on(toys: Mapping[str, Toy], trainings: Mapping[str, Training], **claim: Any) -> Claim:
    """The claim with the trainings as its methods, beside the base model of each toy.

    `toys`: by key; where there is more than one, a base model is called `<key>/base`. `claim`: the other fields of `harness.Claim`.
    """
    everything = {f"{key}/{BASE}" if key else BASE: Training("base model", (), toy=key) for key in toys}
    everything |= trainings
    bases: dict[tuple[str, int], tuple[CausalLanguageModel, dict[str, Any]]] = {}

    def base_of(key: str, seed: int, told: Told) -> tuple[CausalLanguageModel, dict[str, Any]]:
        if (key, seed) not in bases:
            bases[key, seed] = train_base(toys[key], seed, told)
        return bases[key, seed]

    def run(name: str, seed: int, told: Told) -> dict[str, Any]:
        training = everything[name]
        toy = toys[training.toy]
        if not training.phases:
            return base_of(training.toy, seed, told)[1]
        base, _ = base_of(training.toy, seed, lambda share: None)
        task, held_out = post_training_tasks(toy, seed)
        experience = experience_of(toy, task, toy.prompts, held_out, seed)
        return train(toy, copy.deepcopy(base), training.steps(toy), experience, toy.learning_rate, seed, told)

    def method(training: Training) -> Method:
        toy = toys[training.toy]
        phases, prompts = (training.steps(toy), toy.prompts) if training.phases else (base_phases(toy), toy.base_prompts)
        settings = {
            "toy": training.toy,
            "phases": [{"algorithm": a.name, "steps": n, "settings": dataclasses.asdict(a)} for a, n in training.steps(toy)],
        }
        cost = sum(_costs(phases, prompts))
        title = f"{training.toy}: {training.title}" if training.toy else training.title
        return Method(title, settings, training.normalisation, cost, always=not training.phases)

    some = next(iter(toys.values()))
    setup = {key: dataclasses.asdict(toy) for key, toy in toys.items()} if len(toys) > 1 else dataclasses.asdict(some)
    shared: dict[str, Any] = {
        "methods": {name: method(training) for name, training in everything.items()},
        "run": run,
        "columns": COLUMNS,
        "about": ABOUT.format(held_out=some.held_out, window=some.window),
        "setup": setup,
        "limits": (0.0, 1.0),
    }
    return Claim(**(shared | claim))
