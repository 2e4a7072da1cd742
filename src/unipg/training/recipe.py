"""Recipes: a YAML file becomes typed values, with errors that name the place, and a trainer."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from unipg.algorithms.base import Algorithm, Setting, algorithm_named, check_feed, check_without_prompts, recorded_name
from unipg.arguments import CheckedArguments, type_name
from unipg.critics.kinds import Critic, kind_in
from unipg.errors import LARGEST, InputError, nearest, shown
from unipg.estimator import Objective, Term
from unipg.hub import in_home
from unipg.loading import Live
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.policies.recipe import ModelRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.rollouts.evaluation import EvaluationRecipe
from unipg.rollouts.scoring import RewardRecipe
from unipg.rollouts.text import SamplingRecipe
from unipg.settings import numbers_in, read_settings, unknown_key
from unipg.tasks.build import DataRecipe, ReasoningGymRecipe
from unipg.tasks.multi_hop import MultiHopRecipe
from unipg.tasks.tools import tools_named
from unipg.training.feeds.dataset import DatasetRecipe
from unipg.training.feeds.kept import check_once
from unipg.training.feeds.replay import ReplayRecipe
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.tracking import check_trackers
from unipg.trajectories import Source

T = TypeVar("T")
LANGUAGE = ("policy", "task", "reward", "demonstrations", "rollouts", "evaluation", "anchor_cache")
"""Sections that only language recipes have."""
CONTROL = ("environment", "replay", "dataset", "controller")
"""Sections that only control recipes have."""
_INSTEAD = {"policy": "`controller`, which says what acts", "evaluation": "environment.evaluation_episodes"}
"""What stands in a control recipe for a section of language recipes."""
_FREE = frozenset({"output", "logging", "threads", "evaluation", "anchor_cache"})
_FREE_IN = {
    "training": frozenset({"iterations", "save_every", "evaluate_every", "keep_evaluated"}),
    "dataset": frozenset({"path", "demonstrations"}),  # whose rows are compared, wherever they are
    "environment": frozenset({"evaluation_episodes", "evaluation_steps", "references"}),
}
"""Keys that may be others when a run is continued."""

MOST_ROWS = 10_000_000
"""Of an iteration; a slip of the keyboard more would draw prompts for hours before anything is seen."""


@dataclass(frozen=True)
class LoggingRecipe(CheckedArguments):
    """Where numbers go beside the run folder's own files."""

    trackers: list[str] = field(default_factory=list)
    """Any of tensorboard, wandb, trackio."""
    project: str = "unipg"
    """What trackers file the run under."""

    def __post_init__(self) -> None:
        check_trackers(self.trackers)


@dataclass(frozen=True)
class TaskRecipe(CheckedArguments):
    """What is asked: give exactly one of `reasoning_gym`, `data` and `multi_hop`."""

    reasoning_gym: ReasoningGymRecipe | None = None
    data: DataRecipe | None = None
    multi_hop: MultiHopRecipe | None = None
    tools: list[str] = field(default_factory=list)
    """What rollouts may call: `calculator`, `search` where the task offers it, or functions `package.module:function`."""
    features: dict[str, str] = field(default_factory=dict)
    """Named measurements of each rollout, beside its reward: `exact_match`, `math_verify` or `package.module:function`."""

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.reasoning_gym, self.data, self.multi_hop)) != 1:
            raise InputError("task: give exactly one of `reasoning_gym`, `data` and `multi_hop`")

    def build(self) -> Any:
        recipe = self.reasoning_gym or self.data or self.multi_hop
        assert recipe is not None
        task = recipe.build()
        task.tools = tools_named(self.tools, getattr(task, "offers", None))
        return task


@dataclass(frozen=True)
class DemonstrationsRecipe(CheckedArguments):
    """A stream of demonstrations with its own prompts and its own epochs, mixed into every iteration."""

    task: TaskRecipe
    """Where they come from: its items must have demonstrations."""
    prompts: int = 8
    """Demonstrations per iteration."""

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise InputError(f"demonstrations.prompts is {self.prompts}; accepted: 1 or more per iteration")


@dataclass(frozen=True)
class HeldOutRecipe(EvaluationRecipe):
    """Held-out measurement during training."""

    tasks: list[TaskRecipe] = field(default_factory=list)
    """Held-out tasks; none: no evaluation."""


@dataclass(frozen=True)
class Recipe(CheckedArguments):
    """A whole run. Language: `policy`, `task`, `rollouts`, `evaluation`. Control: `environment`, `controller`."""

    algorithm: Any
    """A name, or a mapping with `name` and hyper-parameters."""
    output: str = "runs/latest"
    """The run folder; it must not hold anything yet but a run that failed in its first iteration, unless the run is resumed."""
    seed: int = 0
    """Of every draw: data, sampling, order of rows, initial weights."""
    threads: int | None = None
    """CPU threads of torch; default: torch's own."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto: a GPU where there is one."""
    policy: ModelRecipe | None = None
    task: TaskRecipe | None = None
    reward: RewardRecipe = field(default_factory=RewardRecipe)
    """What scores rollouts: by default the task's own verifier alone."""
    demonstrations: DemonstrationsRecipe | None = None
    """Demonstrations from elsewhere; default: those of the task's own prompts."""
    rollouts: SamplingRecipe = field(default_factory=SamplingRecipe)
    evaluation: HeldOutRecipe = field(default_factory=HeldOutRecipe)
    environment: EnvironmentRecipe | None = None
    replay: ReplayRecipe | None = None
    """Of algorithms that learn from kept transitions; null: its defaults."""
    dataset: DatasetRecipe | None = None
    """Transitions that are given, in the place of those that are kept; null: the environment's own."""
    controller: ActorCriticRecipe = field(default_factory=ActorCriticRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    anchor_cache: str | None = None
    """Folder where the anchor's log-probabilities of given completions are kept, for other runs too; default: the run folder."""
    logging: LoggingRecipe = field(default_factory=LoggingRecipe)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", in_home(self.output))
        if self.anchor_cache is not None:
            object.__setattr__(self, "anchor_cache", in_home(self.anchor_cache))
        if not self.output.strip():
            raise InputError("output is empty; accepted: a folder for the run")
        if self.threads is not None:
            check_threads(self.threads)
        if self.environment is not None:
            self._check_control()
        language = self.policy is not None or self.task is not None
        if not language and self.environment is None:
            raise InputError("give either `policy` and `task` (language) or `environment` (control)")
        if language and (self.policy is None or self.task is None):
            raise InputError(f"a language recipe needs both `policy` and `task`; `{'task' if self.task is None else 'policy'}` is missing")
        if self.optimizer.critic_learning_rate is not None and (self.policy is None or self.policy.critic == "shared"):
            shared = "policy.critic is 'shared'; accepted: null, or policy.critic: detached or separate"
            why = shared if self.policy else "a controller's actor and critic take their steps together; accepted: null"
            raise InputError(f"optimizer.critic_learning_rate is set, but {why}")

    def _check_control(self) -> None:
        """Refuses what would be read of prompts alone."""
        for f in dataclasses.fields(self):
            if f.name in LANGUAGE and f.name != "anchor_cache":
                default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
                if getattr(self, f.name) != default:
                    raise _of_language(f.name)
        if self.training.prompts != TrainingRecipe().prompts:
            raise InputError("training.prompts is of language recipes; accepted with an environment: environment.count and .steps")

    def build_algorithm(self) -> Algorithm:
        algorithm = build_algorithm(self.algorithm)
        if self.environment is not None:
            check_without_prompts(algorithm)
        elif algorithm.acts:
            raise InputError(f"algorithm '{algorithm.name}' trains controllers; accepted: a control recipe, with `environment`")
        # its parts check their own settings
        algorithm.terms(Setting(self.rollouts.max_new_tokens, acts=self.environment is not None))
        self._check_replay(algorithm)
        if self.environment is not None:
            self._check_rows(algorithm)
            if algorithm.vines is not None:
                self.environment.check_vines()
            elif self.training.overlap:
                self.environment.check_ahead()
        most = self.training.prompts * max(1, algorithm.rollouts if algorithm.uses_rollouts else 0)
        if self.environment is not None:
            most = self.environment.count * self.environment.steps
        if most > MOST_ROWS:
            raise InputError(f"an iteration would have {most} rows; accepted: at most {MOST_ROWS}")
        rows = self._rows(algorithm)
        if rows is not None and self.training.minibatches > rows:
            raise InputError(
                f"training.minibatches is {self.training.minibatches}, but an iteration has {rows} rows; accepted: at most so many"
            )
        return algorithm

    def _check_replay(self, algorithm: Algorithm) -> None:
        if algorithm.replays and self.environment is None:
            raise InputError(f"algorithm '{algorithm.name}' learns from kept transitions of an environment; accepted: a control recipe")
        check_feed(algorithm, self.replay is not None, self.dataset is not None)
        if algorithm.replays:
            assert self.environment is not None
            self.environment.check_kept(f"algorithm '{algorithm.name}'")
            (self.replay or ReplayRecipe()).settled(algorithm.replay)
            check_once(self.training)

    def _check_rows(self, algorithm: Algorithm) -> None:
        """Refuses optimiser steps that may have fewer rows than a term compares: as many as environments, if no episode ends."""
        assert self.environment is not None
        count = self.environment.count
        for learner in algorithm.learned(Setting(acts=True)):
            parts = learner.minibatches or self.training.minibatches
            least = max(term.least_rows for term in learner.terms.terms)
            if least > 1 and count < least * parts:
                critic = getattr(algorithm, "critic", None)
                who = f"algorithm '{algorithm.name}'" if critic is None else f"algorithm.critic.kind '{critic}'"
                raise InputError(
                    f"environment.count is {count} and training.minibatches {parts}, so that an optimiser step may have no more than "
                    f"{count // parts} of the {least} rows that {who} compares; accepted: environment.count of at least {least * parts}, "
                    "or fewer minibatches"
                )

    def _rows(self, algorithm: Algorithm) -> int | None:
        """Most rows of an iteration, where the recipe says how many."""
        if self.environment is not None:
            return self.environment.count * self.environment.steps
        own = algorithm.sources()
        return self.training.prompts * algorithm.rollouts if own == (Source.ROLLOUT,) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        plain = dataclasses.asdict(dataclasses.replace(self, algorithm=None))
        algorithm = self.build_algorithm()
        plain["algorithm"] = {"name": recorded_name(algorithm), **dataclasses.asdict(algorithm)}
        if self.environment is None:
            plain = {k: v for k, v in plain.items() if k not in CONTROL}
        else:
            plain = {k: v for k, v in plain.items() if k not in LANGUAGE}
        return _plain(plain)

    def as_yaml(self) -> str:
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    def identity(self) -> str:
        """What must be the same for a checkpoint to be continued: everything but where and how results are written, and how long."""
        return identity_of(self.as_dict())


def _of_language(section: str) -> InputError:
    instead = _INSTEAD.get(section, "leave it out")
    return InputError(f"{section} is of language recipes, but this one has an environment; accepted: {instead}")


def identity_of(recipe: dict[str, Any]) -> str:
    """`Recipe.identity` of what `Recipe.as_dict` gave, or a run's recipe.yaml holds."""
    plain = {name: value for name, value in recipe.items() if name not in _FREE}
    for section in (name for name in plain.keys() & _FREE_IN if plain[name] is not None):
        plain[section] = {name: value for name, value in plain[section].items() if name not in _FREE_IN[section]}
    return yaml.safe_dump(plain, sort_keys=True)


def check_threads(threads: int) -> None:
    """Refuses numbers of threads that torch cannot start: far more than there are cores end the process."""
    most = max(64, 4 * (os.cpu_count() or 1))
    if not 1 <= threads <= most:
        raise InputError(f"threads is {threads}; accepted here: 1 to {most}")


def build_algorithm(section: Any) -> Algorithm:
    """The algorithm of a recipe's `algorithm` key, or the one that is there in its place."""
    if isinstance(section, Algorithm):
        for f in dataclasses.fields(section):
            if any(math.isnan(number) for number in numbers_in(getattr(section, f.name))):
                raise InputError(f"algorithm.{f.name} is {shown(getattr(section, f.name))}; accepted: a number")
        return section
    if isinstance(section, str):
        section = {"name": section}
    if isinstance(section, Term | Objective):
        raise InputError(
            "algorithm is an objective, which says nothing of its data; accepted: a name, or an `Algorithm` whose `objective` "
            'gives it (see the guide, "An algorithm of one\'s own")'
        )
    if not isinstance(section, dict) or "name" not in section:
        raise InputError("algorithm: give a name, or a mapping with `name` and hyper-parameters")
    kind = algorithm_named(str(section["name"]))
    return typed(kind, {k: v for k, v in section.items() if k != "name"}, "algorithm")


def load_recipe(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """A recipe from a YAML file, with `dotted.key=value` overrides applied.

    A recipe may start from another with `base: file.yaml`, a path relative to itself: sections are merged key by key.
    """
    return recipe_from(read_settings(path, overrides))


def recipe_from(values: dict[str, Any]) -> Recipe:
    """A recipe from its sections: plain values, or the typed ones."""
    if values.get("environment") is not None and values.get("policy") is not None:  # before its own keys are looked at
        raise _of_language("policy")
    recipe = typed(Recipe, values, "")
    recipe.build_algorithm()
    return recipe


def typed(kind: type[T], values: Any, where: str) -> T:
    """`kind(**values)` with every key known and every value of its type; nested sections become their own dataclasses."""
    if not isinstance(values, dict) and where == "environment":
        raise InputError(
            "environment: give a name (`CartPole-v1`; `module:Name-v0` for one that your module registers), or a section with `id`; got "
            f"{shown(values)}"
        )
    if not isinstance(values, dict):
        raise InputError(f"{where or 'the recipe'}: expected a section with keys, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            raise unknown_key(f"{prefix}{key}", fields)
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values:
            raise InputError(f"{prefix}{name}: this key is missing")
    arguments = {name: _value(hints[name], value, f"{prefix}{name}") for name, value in values.items()}
    own = {name: value for name, value in arguments.items() if hints[name] is not Any}  # what is read later is checked then
    for name, value in own.items():
        for number in numbers_in(value):
            if isinstance(number, int) and abs(number) > LARGEST:
                raise InputError(f"{prefix}{name} is {shown(number)}; accepted: whole numbers of at most 63 bits")
    try:
        made = kind(**arguments)
        for name, value in own.items():
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers_in(value)):
                raise InputError(f"{prefix}{name} is {shown(value)}; accepted: finite numbers")
        return made
    except InputError as error:
        text = str(error)
        known = not where or text.startswith((where, where.rsplit(".", 1)[-1]))
        raise error if known else InputError(f"{where}: {text}") from None


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or an error that names the place."""
    options = list(get_args(hint)) if get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    value = _number(value)
    if isinstance(value, float) and value.is_integer() and int in options and float not in options:
        value = int(value)  # 1e6
    if isinstance(value, Live) and str in options:
        return value
    if isinstance(value, tuple) and any(get_origin(option) is list for option in options):
        value = list(value)
    if value is None:
        if type(None) in options or hint is Any:
            return None
        raise InputError(f"{where}: a value is missing; expected {_expected(options)}")
    if hint is Any:
        return value
    sections = [o for o in options if dataclasses.is_dataclass(o)]
    if Critic in sections and not isinstance(value, Critic):
        return typed(*kind_in(value, where), where)
    if sections:
        return value if isinstance(value, sections[0]) else typed(sections[0], value, where)  # type: ignore[arg-type]
    for option in options:
        if get_origin(option) is list and isinstance(value, list) and dataclasses.is_dataclass(inner := get_args(option)[0]):
            return [_value(inner, item, f"{where}[{i}]") for i, item in enumerate(value)]
        if get_origin(option) is list and get_args(option) == (Any,) and isinstance(value, list):
            return value  # whoever reads it checks it
        if get_origin(option) is list and get_args(option) == (str,) and isinstance(value, list):
            return [_value(str, item, f"{where}[{i}]") for i, item in enumerate(value)]
        if get_origin(option) is dict and get_args(option) == (str, str) and isinstance(value, dict):
            return {str(key): _value(str, item, f"{where}.{key}") for key, item in value.items()}
        if get_origin(option) is Literal and isinstance(value, str) and value not in get_args(option):
            others = [type_name(o) for o in options if o is not option and o is not type(None)]
            raise InputError(f"{where}: '{value}' does not exist; {nearest(value, [*others, *map(str, get_args(option))])}")
    return _coerce(hint, value, where)


def _expected(options: list[Any]) -> str:
    """A type in the words of recipes, in which objects are sections."""
    if Critic in options:
        return "a name or a section with `kind`"
    return " or ".join("a section with keys" if dataclasses.is_dataclass(option) else type_name(option) for option in options)


def _coerce(hint: Any, value: Any, where: str) -> Any:
    """Leaf values through jsonargparse's type rules."""
    from jsonargparse import ArgumentError, ArgumentParser

    if isinstance(value, bool) and hint in (int, float):
        raise InputError(f"{where}: expected {type_name(hint)}, got {value!r}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        return parser.parse_object({"value": value}).value
    except (ArgumentError, TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: expected {type_name(hint)}, got {shown(value)}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, str) else _number(value)


def _number(value: Any) -> Any:
    """NumPy's numbers, and other people's, as Python's."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return value
