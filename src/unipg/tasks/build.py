"""The sections of a recipe that describe a task: plain values, checked when they are read, built when they are needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unipg.arguments import CheckedArguments
from unipg.errors import InputError
from unipg.tasks.data import DataTask, Preferences, data_task
from unipg.tasks.reasoning import ReasoningGymTask, reasoning_gym_task


@dataclass
class ReasoningGymRecipe(CheckedArguments):
    """Procedural problems with a scorer, from the package reasoning-gym.

    Errors: `InputError` for a value out of range, when the recipe is read; those of `reasoning_gym_task`, by `build`.
    """

    name: str | list[dict[str, Any]]
    """A dataset of reasoning-gym (`leg_counting`), or a mixture: a list of `{name, weight, config}`."""
    size: int = 500
    """How many items, at least 1."""
    seed: int = 0
    """Which items: training and evaluation need different seeds."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of the one dataset (`{max_animals: 3}`); a mixture has them beside each name."""
    demonstrations: float = 0.0
    """Share of the items that carry their reference answer as a demonstration, in [0, 1]."""
    binary: bool = True
    """Reward 1 for a full score and 0 for anything less; otherwise the scorer's own value in [0, 1]."""
    system: str | None = None
    """System message before every question."""
    preferences: Preferences = "none"
    """Given completions of each item: the reference answer against another item's, one of the two, or several with the scorer's values."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size is {self.size}; it must be at least 1")
        if not 0 <= self.demonstrations <= 1:
            raise InputError(f"demonstrations is {self.demonstrations}; it is a share of the items and must be in [0, 1]")

    def build(self) -> ReasoningGymTask:
        """The task."""
        return reasoning_gym_task(
            self.name, self.size, self.seed, self.config, self.demonstrations, self.binary, self.system, self.preferences
        )


PREFERENCE_COLUMNS = {"pairs": ("chosen", "rejected"), "unpaired": ("completion", "label"), "scored": ("completions", "scores")}
"""What each kind of preference data reads."""


@dataclass
class DataRecipe(CheckedArguments):
    """Rows of a file or of a hub dataset.

    Errors: `InputError` for a value out of range, when the recipe is read; those of `data_task`, by `build`.
    """

    source: str
    """A `.jsonl`, `.json` or `.parquet` file, or the name of a hub dataset (`openai/gsm8k`)."""
    split: str = "train"
    """Split of a hub dataset; a slice such as `train[:100]` too."""
    subset: str | None = None
    """Subset (configuration) of a hub dataset, where it has several (`main`)."""
    prompt: str = "prompt"
    """Column with the prompt: text, or a list of chat messages."""
    demonstration: str | None = None
    """Column with good answers: text, a list of texts, or null in a row without one."""
    answer: str | None = None
    """Column with the reference answer: text or a number."""
    system: str | None = None
    """System message before every prompt."""
    verifier: str | None = None
    """`exact_match`, `math_verify`, or `package.module:function`; by default `exact_match` where there is an answer column."""
    limit: int | None = None
    """Keep the first rows only, at least 1."""
    name: str | None = None
    """What reports call the task; by default the name of the file or dataset."""
    preferences: Preferences = "none"
    """Given completions to learn from: `pairs` (`chosen`, `rejected`), `unpaired` (`completion`, `label`) or `scored` (`completions`,
    `scores`). Without the column `prompt`, what both conversations of a pair begin with is the prompt."""
    chosen: str = "chosen"
    """Column with the better completion of a pair: text, or messages."""
    rejected: str = "rejected"
    """Column with the worse completion of a pair: text, or messages."""
    completion: str = "completion"
    """Column with a completion that was liked or not: text, or messages."""
    label: str = "label"
    """Column that says whether the completion was liked: true or 1, false or 0."""
    completions: str = "completions"
    """Column with a list of at least two completions."""
    scores: str = "scores"
    """Column with the completions' scores: as many finite numbers."""

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise InputError("source is empty; it must be a file or the name of a hub dataset")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}; it must be at least 1")
        for kind, columns in PREFERENCE_COLUMNS.items():
            renamed = next((name for name in columns if getattr(self, name) != name), None)
            if renamed and kind != self.preferences:
                raise InputError(f"{renamed} is set, but preferences is {self.preferences}: this column is read with preferences: {kind}")

    def build(self) -> DataTask:
        """The task, with every row read and checked."""
        return data_task(
            self.source,
            split=self.split,
            subset=self.subset,
            prompt=self.prompt,
            demonstration=self.demonstration,
            answer=self.answer,
            system=self.system,
            verifier=self.verifier,
            limit=self.limit,
            name=self.name,
            preferences=self.preferences,
            **{name: getattr(self, name) for columns in PREFERENCE_COLUMNS.values() for name in columns},
        )
