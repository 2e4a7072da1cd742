"""What scores answers: the task's verifier, reward models, likelihoods under other models, and weighted sums of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unipg.arguments import CheckedArguments
from unipg.errors import InputError
from unipg.hub import in_home, saved_model
from unipg.policies.causal_lm import CausalLanguageModel, load_model, load_tokenizer
from unipg.policies.reward_model import SequenceScorer, is_reward_model, load_reward_model, scored
from unipg.rollouts.text import answer_with_end, prompt_tokens
from unipg.tasks.base import Item, Task, Verifier
from unipg.tasks.data import unscored
from unipg.tasks.verifiers import BatchFunction, Failures, score, verifier_named

Layout = Literal["auto", "never", "conversation"]
"""auto: the prompt through the tokenizer's chat template where it has one, the answer, the end token: rows as they are trained on here.
never: the same without a template. conversation: prompt and answer together through the template, with whatever it puts behind an answer,
as many published reward models were trained."""
VERIFIER = "verifier"


@dataclass(frozen=True)
class RewardModelRecipe(CheckedArguments):
    """A model that scores answers."""

    model: str
    """A hub name, a folder with a Hugging Face checkpoint, or a run folder."""
    kind: Literal["score", "likelihood"] = "score"
    """score: a sequence classifier with one output. likelihood: log-probability of the answer given the prompt under a causal model, in
    nats, summed over the answer's tokens (products of experts)."""
    weight: float = 1.0
    """Its factor in the sum of rewards; at 0 it is recorded and moves nothing."""
    name: str | None = None
    """What metrics call it; default: the last part of `model`."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of its weights."""
    batch_rows: int = 64
    """Most answers scored together."""
    max_tokens: int | None = None
    """Longest row of prompt and answer; of a longer one the beginning of the prompt is left out. Default: the model's context, and a
    longer row is refused."""
    chat_template: Layout = "auto"
    """How a row is laid out: auto, never (no template), or conversation (the template has the answer's turn too, as many published
    reward models were trained)."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", in_home(self.model))
        if not self.model.strip():
            raise InputError("model is empty; accepted: a hub name or a folder")
        if not math.isfinite(self.weight):
            raise InputError(f"weight is {self.weight}; accepted: a finite number")
        if self.batch_rows < 1:
            raise InputError(f"batch_rows is {self.batch_rows}; accepted: 1 or more")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise InputError(f"max_tokens is {self.max_tokens}; accepted: 2 or more")
        if self.kind == "likelihood" and self.chat_template == "conversation":
            raise InputError("chat_template: conversation does not say where the answer begins; accepted for a likelihood: auto, never")

    @property
    def title(self) -> str:
        """What metrics call it."""
        return self.name or Path(self.model).name

    def build(self, device: torch.device | str = "cpu") -> RewardModel:
        """The model, loaded and frozen."""
        place = saved_model(self.model)
        policy: SequenceScorer | CausalLanguageModel
        if self.kind == "score":
            model = load_reward_model(place, self.dtype, trust_remote_code=self.trust_remote_code, trained=True)
            policy = SequenceScorer(model.to(device), load_tokenizer(place, self.trust_remote_code))
        else:
            if is_reward_model(place, self.trust_remote_code):
                raise InputError(
                    f"'{self.model}' is a reward model without a likelihood; accepted: a causal language model, or kind: score"
                )
            model = load_model(place, self.dtype, trust_remote_code=self.trust_remote_code)
            policy = CausalLanguageModel(model.to(device), load_tokenizer(place, self.trust_remote_code))
        policy.module.eval().requires_grad_(False)
        return RewardModel(policy, self.title, layout=self.chat_template, max_tokens=self.max_tokens, batch_rows=self.batch_rows)


@dataclass(frozen=True)
class RewardFunctionRecipe(CheckedArguments):
    """A Python function that scores answers."""

    function: str
    """`exact_match`, `math_verify`, `qa_match` or `package.module:function`, with the signature `(answer, item)` or, as TRL has it,
    `(completions, **columns)`."""
    weight: float = 1.0
    """Its factor in the sum of rewards; at 0 it is recorded and moves nothing."""
    name: str | None = None
    """What metrics call it; default: the function's own name."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise InputError(f"weight is {self.weight}; accepted: a finite number")

    @property
    def title(self) -> str:
        """What metrics call it."""
        return self.name or self.function.rpartition(":")[2].strip().rpartition(".")[2]


@dataclass(frozen=True)
class RewardRecipe(CheckedArguments):
    """Where the reward of an answer comes from: a weighted sum of the task's verifier, of Python functions and of models."""

    verifier: float = 1.0
    """Weight of the task's own verifier; 0 leaves it out, and it is never called."""
    models: list[RewardModelRecipe] = field(default_factory=list)
    functions: list[RewardFunctionRecipe] = field(default_factory=list)
    """Python functions; held-out tasks without a verifier of their own are scored by their weighted sum."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.verifier):
            raise InputError(f"reward.verifier is {self.verifier}; accepted: a finite number")
        if not self.verifier and not self.models and not self.functions:
            raise InputError("reward: nothing scores the answers; accepted: a verifier weight other than 0, a function, or a model")
        names = [VERIFIER, *(f.title for f in self.functions), *(model.title for model in self.models)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"reward: two sources are called '{twice}'; give each a `name` of its own")


class RewardFunctions:
    """Python functions and their weighted sum, which is a verifier too."""

    def __init__(self, recipes: Sequence[RewardFunctionRecipe]) -> None:
        self.weights = {recipe.title: recipe.weight for recipe in recipes}
        self.verifiers = {recipe.title: verifier_named(recipe.function) for recipe in recipes}

    def check(self, items: Sequence[Item]) -> None:
        """Refuses rows that do not have the columns which the functions ask for."""
        for verifier in self.verifiers.values():
            if isinstance(verifier, BatchFunction):
                verifier.check(items)

    def components(self, answers: Sequence[str], items: Sequence[Item], seconds: float) -> tuple[dict[str, list[float]], Failures]:
        """The [B] rewards by name before weighting, NaN where a function has no opinion, and which calls failed."""
        found: dict[str, list[float]] = {}
        failures = Failures()
        for name, verifier in self.verifiers.items():
            found[name], missed = score(verifier, answers, items, seconds, gaps=True)
            failures.join(missed)
        return found, failures

    def __call__(self, answer: str, item: Item) -> float:
        return self.together([answer], [item], math.inf)[0][0]

    def together(self, answers: Sequence[str], items: Sequence[Item], seconds: float) -> tuple[list[float], Failures]:
        found, failures = self.components(answers, items, seconds)
        return weighted(found, self.weights, items), failures


def weighted(components: dict[str, list[float]], weights: dict[str, float], items: Sequence[Item]) -> list[float]:
    """[B] sums of weight · component, without components that are NaN.

    Errors: `InputError` for an item of which no component says anything.
    """
    sums = []
    for row, item in enumerate(items):
        told = {name: values[row] for name, values in components.items() if not math.isnan(values[row])}
        if not told:
            raise InputError(f"{_place(item)}: no reward function has an opinion (None) of its answer; accepted: a number from one of them")
        sums.append(math.fsum(weights[name] * value for name, value in told.items()))
    return sums


def scored_alike(task: Task, functions: Sequence[RewardFunctionRecipe]) -> Task:
    """The task, scored by the weighted sum of the functions where it has no verifier of its own."""
    if functions and task.verifier is unscored:
        verifier = RewardFunctions(functions)
        verifier.check(task.items)
        task.verifier = verifier
    return task


class RewardSource:
    """The reward of answers by a recipe: reward = sum of weight · component over the task's verifier, functions and models.

    `verifier`, `seconds`: the task's own, and its time limit for one answer. `device`: where the models are put; they are loaded once.
    """

    def __init__(self, recipe: RewardRecipe, verifier: Verifier, seconds: float = 10.0, device: torch.device | str = "cpu") -> None:
        self.recipe, self.verifier, self.seconds = recipe, verifier, seconds
        self.functions = RewardFunctions(recipe.functions) if recipe.functions else None
        self.models = [model.build(device) for model in recipe.models]

    def __call__(
        self, items: Sequence[Item], answers: Sequence[str], ended: Sequence[bool] | None = None
    ) -> tuple[list[float], dict[str, list[float]], Failures]:
        """[B] rewards, the [B] components by name before weighting (NaN: no opinion), and which calls of verifier and functions failed.

        `ended [B]`: answers that ended by themselves and so have an end token (default: all).

        Errors: `InputError` naming the source and the item for a score that is NaN or infinite, and for a row that does not fit.
        """
        components: dict[str, list[float]] = {}
        weights: dict[str, float] = {}
        failures = Failures()
        if self.recipe.verifier:
            weights[VERIFIER] = self.recipe.verifier
            components[VERIFIER], failures = score(self.verifier, answers, items, self.seconds)
        if self.functions is not None:
            found, missed = self.functions.components(answers, items, self.seconds)
            components |= found
            weights |= self.functions.weights
            failures.join(missed)
        for recipe, model in zip(self.recipe.models, self.models, strict=True):
            weights[model.name] = recipe.weight
            components[model.name] = model(items, answers, ended)
        return weighted(components, weights, items), components, failures


class RewardModel:
    """A frozen model that gives each answer one number: its score, or its log-likelihood.

    `layout`: see `Layout`. `max_tokens`: rows that are longer lose the beginning of their prompt; by default they are refused once they
    are longer than the model's context.
    """

    def __init__(
        self,
        policy: SequenceScorer | CausalLanguageModel,
        name: str,
        *,
        layout: Layout = "auto",
        max_tokens: int | None = None,
        batch_rows: int = 64,
    ) -> None:
        self.policy, self.name, self.layout, self.max_tokens, self.batch_rows = policy, name, layout, max_tokens, batch_rows
        if layout == "conversation" and not getattr(policy.tokenizer, "chat_template", None):
            raise InputError(f"the reward model '{name}' has no chat template; accepted for it: chat_template auto or never")
        context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
        self.limit = min((n for n in (max_tokens, context) if n is not None), default=None)

    def __call__(
        self,
        items: Sequence[Item],
        answers: Sequence[str],
        ended: Sequence[bool] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> list[float]:
        """[B] scores, or log-probabilities in nats. `ended [B]`: answers that have an end token (default: all)."""
        rows = []
        for item, answer, whole in zip(items, answers, [True] * len(items) if ended is None else ended, strict=True):
            tokens, begin = self._fitted(*row_tokens(self.policy.tokenizer, item, answer, whole, self.layout), item)
            rows.append((tokens, 0 if isinstance(self.policy, SequenceScorer) else begin))
        scores = scored(self.policy, rows, self.batch_rows, progress)
        for item, value in zip(items, scores, strict=True):
            if not math.isfinite(value):
                raise InputError(f"the reward model '{self.name}' gave {value} for {_place(item)}: a reward must be a finite number")
        return scores

    def _fitted(self, tokens: list[int], begin: int, item: Item) -> tuple[list[int], int]:
        over = 0 if self.limit is None else len(tokens) - self.limit
        if over <= 0:
            return tokens, begin
        what = f"{_place(item)}: prompt and answer have {len(tokens)} tokens, and the reward model '{self.name}' takes {self.limit}"
        if self.max_tokens is None:
            raise InputError(f"{what}: set max_tokens to leave out the beginning of long prompts")
        if over >= begin:
            raise InputError(f"{what}, which leaves nothing of the prompt: raise max_tokens, or lower rollouts.max_new_tokens")
        return tokens[over:], begin - over


def row_tokens(tokenizer: Any, item: Item, answer: str, ended: bool = True, layout: Layout = "auto") -> tuple[list[int], int]:
    """The tokens of a prompt with its answer, as reward models are trained on them, and where the answer begins."""
    if layout == "conversation":
        messages = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt
        turns = [*messages, {"role": "assistant", "content": answer}]
        begin = len(prompt_tokens(tokenizer, item, "auto"))
        return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)), begin
    prompt = prompt_tokens(tokenizer, item, layout)
    return [*prompt, *answer_with_end(tokenizer, answer, _place(item), layout, ended)], len(prompt)


def _place(item: Item) -> str:
    return item.place or f"item {item.index}"
