"""The front door in Python: `train` builds a recipe from its arguments and runs it; a `Run` is what it leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Never, overload

from unipg.errors import InputError, nearest
from unipg.hub import in_home

if TYPE_CHECKING:  # torch is loaded when something is trained
    import numpy as np

    from unipg.algorithms.base import Algorithm
    from unipg.policies.actor_critic import ActorCriticRecipe
    from unipg.policies.base import Policy
    from unipg.policies.recipe import ModelRecipe
    from unipg.replay import Transitions
    from unipg.rollouts.base import EvaluationResult
    from unipg.rollouts.environments import EnvironmentRecipe
    from unipg.rollouts.scoring import RewardRecipe
    from unipg.rollouts.text import SamplingRecipe
    from unipg.tasks.build import DataRecipe
    from unipg.training.feeds.dataset import DatasetRecipe
    from unipg.training.feeds.replay import ReplayRecipe
    from unipg.training.observer import Observer
    from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
    from unipg.training.recipe import DemonstrationsRecipe, HeldOutRecipe, LoggingRecipe, Recipe, TaskRecipe

Section = Mapping[str, Any]
"""A section of a recipe as plain values; docs/guide.md lists the keys."""
Rows = Sequence[Mapping[str, Any]]
"""Rows in memory; a `datasets.Dataset` is one too."""
Reward = Callable[..., Any] | str
"""`(answer, item) -> number`, `(completions, **columns) -> list of numbers`, or a name: `exact_match`, `package.module:function`."""

KEYWORDS = (
    "model", "data", "reward", "environment", "iterations", "policy", "task", "demonstrations", "rollouts", "evaluation", "replay",
    "dataset", "controller", "training", "optimizer", "logging", "output", "seed", "threads", "device", "anchor_cache", "observers",
    "resume", "trust", "progress",
)  # fmt: skip


def train(
    algorithm: Algorithm | str | Section,
    *,
    model: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | Rows | Section | DataRecipe | Any = None,
    reward: Reward | Sequence[Reward | tuple[Reward, float]] | Section | RewardRecipe | None = None,
    environment: str | Section | EnvironmentRecipe | None = None,
    iterations: int | None = None,
    policy: Section | ModelRecipe | None = None,
    task: Section | TaskRecipe | None = None,
    demonstrations: Section | DemonstrationsRecipe | None = None,
    rollouts: Section | SamplingRecipe | None = None,
    evaluation: Section | HeldOutRecipe | None = None,
    replay: Section | ReplayRecipe | None = None,
    dataset: str | os.PathLike[str] | Transitions | Section | DatasetRecipe | None = None,
    controller: Section | ActorCriticRecipe | None = None,
    training: Section | TrainingRecipe | None = None,
    optimizer: Section | OptimizerRecipe | None = None,
    logging: Section | LoggingRecipe | None = None,
    output: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    anchor_cache: str | os.PathLike[str] | None = None,
    observers: Observer | Sequence[Observer] | Sequence[Any] = (),
    resume: bool = False,
    trust: bool = False,
    progress: bool = True,
    **misspelt: Never,
) -> Run:
    """Trains as `unipg train` does, from values instead of a file: the same loop, run folder, lock, resume and report.

        run = train(GRPO(), model="Qwen/Qwen3-0.6B", data="train.jsonl", reward=my_reward)
        run = train(PPO(gamma=0.99), environment="CartPole-v1", iterations=200)

    Every section of a recipe is a keyword that takes its typed value or a dict; and, shorter:

        model        policy.model: a hub name or a folder
        data         task.data: a file, a hub data set, a list of dicts, a `datasets.Dataset`, or the section with `source` and column names
        reward       what scores answers: one function or name, several, each alone or as (function, weight), or the section
        environment  environment.id
        dataset      dataset.path: a file's name, or `unipg.replay.Transitions`
        iterations   training.iterations

    A reward is ours, `(answer, item) -> number`, or TRL's, `(completions, **columns) -> list of numbers`, told by its parameter
    `completions`. With preference algorithms `data` is read as what they learn from (`pairs`, `unpaired`, `scored`).

    `output`: the run folder; by default the first that is free of runs/NAME, runs/NAME-2 …. `resume`: go on with the run in `output`;
    `trust`: load what another user's run has pickled, which runs code. `observers`: see `unipg.training.Observer`. `progress`: show how
    far it is.

    Python values cannot be written to recipe.yaml: a function is recorded as `module:name` where an import finds it, else by its bare name;
    rows by their number and a checksum. Another process goes on with such a run by the same call with `resume=True`.

    Errors: `InputError`, one line, for anything wrong with the arguments, data or folder. Ctrl-C (in the main thread) raises `Stopped` with
    the checkpoint written.
    """
    if misspelt:
        name = next(iter(misspelt))
        raise InputError(f"{name}: this keyword does not exist; {nearest(name, KEYWORDS)}")
    sections: dict[str, Any] = {
        "policy": policy, "task": task, "demonstrations": demonstrations, "rollouts": rollouts, "evaluation": evaluation,
        "environment": environment, "replay": replay, "dataset": dataset, "controller": controller, "training": training,
        "optimizer": optimizer, "logging": logging, "seed": seed, "threads": threads, "device": device, "anchor_cache": anchor_cache,
    }  # fmt: skip
    with quiet():
        sections["dataset"] = _dataset(dataset)
        recipe = _recipe(algorithm, sections, model=model, data=data, reward=reward, iterations=iterations, output=output, resume=resume)
        return Run(recipe)._train(observers, resume=resume, trust=trust, progress=progress)


def _dataset(given: Any) -> Any:
    """The section that a place, or transitions in memory, stand for; anything else as it is."""
    from unipg.replay import Transitions
    from unipg.training.feeds.dataset import live_data

    if isinstance(given, str | os.PathLike | Transitions):
        given = {"path": given}
    if isinstance(given, Mapping):
        given = {
            k: live_data(v) if isinstance(v, Transitions) else os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in given.items()
        }
    return given


def load_run(folder: str | os.PathLike[str]) -> Run:
    """The run in a folder, of `train` or of the command line.

    Errors: `InputError` for a folder without one.
    """
    from unipg.training.recipe import load_recipe

    place = Path(in_home(os.fspath(folder)))
    if not (place / "recipe.yaml").is_file():
        raise InputError(f"'{place}' holds no run (there is no recipe.yaml); accepted: a run folder")
    recipe = load_recipe(place / "recipe.yaml")
    return Run(dataclasses.replace(recipe, output=str(place)))


class Run:
    """A run: its folder and recipe, what it measured, and the policy that it trained.

    `recipe`: what was asked for, with the Python values of this process where `train` was given any.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __repr__(self) -> str:
        record = self.record
        return f"<Run '{self.folder}': {record.get('algorithm', '?')}, {record.get('status', 'not started')}>"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.recipe.output)

    @property
    def record(self) -> dict[str, Any]:
        """run.json: how the run ended, versions, machine."""
        try:
            found = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def status(self) -> str:
        """`finished`, `running`, `interrupted` or `failed`."""
        return str(self.record.get("status", "not started"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row an iteration, as in metrics.jsonl: `[row["reward/mean"] for row in run.metrics]`."""
        return self._lines("metrics.jsonl")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """One row an evaluation of the run, as in evaluations.jsonl."""
        return self._lines("evaluations.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    @cached_property
    def policy(self) -> TrainedPolicy:
        """The trained policy, read from the run folder when first asked for."""
        with quiet():
            return TrainedPolicy(self.folder, self.recipe)

    def evaluate(
        self,
        *tasks: str | Rows | Section | TaskRecipe | Any,
        items: int | None = None,
        samples: int | None = None,
        k: Sequence[int] | None = None,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        episodes: int | None = None,
        sample: bool = False,
        record: str | os.PathLike[str] | None = None,
        checkpoint: Literal["last", "best"] = "last",
        seed: int = 0,
        device: str | None = None,
    ) -> list[EvaluationResult]:
        """The saved policy's performance with intervals, as `unipg evaluate` measures it.

        `tasks`: files or rows with the columns of the run's own data, names of reasoning-gym tasks with their options
        (`chain_sum:{max_digits: 2}`), or sections of a recipe; by default the held-out tasks of the run. Rows without a verifier of
        their own are scored by the run's reward functions.
        A controller plays `episodes` in its environment, and takes no tasks: with the most likely actions, or with `sample` as in training;
        `record`: filmed into an .mp4 or .gif. `checkpoint`: the best policy that the run has measured (`training.evaluate_every`), not
        its last; the episodes are others than those it was measured by.
        """
        from unipg.training.evaluate import evaluate_model

        wanted = [self._held_out(task) for task in tasks]
        recipe = self.recipe
        if wanted:
            recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, tasks=[]))
        self._check_model()
        with quiet():
            return evaluate_model(
                str(self.folder),
                tasks=wanted,
                recipe=recipe,
                items=items,
                samples=samples,
                k=None if k is None else tuple(k),
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                episodes=episodes,
                sample=sample,
                record=None if record is None else os.fspath(record),
                checkpoint=checkpoint,
                seed=seed,
                device=device or recipe.device,
            )

    def export(
        self,
        format: Literal["onnx", "torchscript"] = "onnx",
        *,
        output: str | os.PathLike[str] | None = None,
        checkpoint: Literal["last", "best"] = "last",
    ) -> Path:
        """A controller's most likely action as one file, from the environment's observations to its actions; see `unipg export`."""
        from unipg.training.export import export_model

        self._check_model()
        return export_model(str(self.folder), format, output=None if output is None else os.fspath(output), checkpoint=checkpoint)[0]

    def _held_out(self, task: Any) -> str | TaskRecipe:
        from unipg.tasks.data import is_local
        from unipg.training.recipe import TaskRecipe, typed

        if isinstance(task, TaskRecipe):
            return task
        if isinstance(task, Mapping):
            return typed(TaskRecipe, _with_values(task), "task")
        if isinstance(task, os.PathLike):
            task = os.fspath(task)
        own = self.recipe.task
        if isinstance(task, str) and (":{" in task or not is_local(task) or own is None or own.data is None):
            return task
        source = _live_source(task)
        data = (
            {"source": source} if own is None or own.data is None else dataclasses.replace(own.data, source=source, limit=None, name=None)
        )
        return typed(TaskRecipe, {"data": data, "tools": own.tools if own else []}, "task")

    def report(self) -> Path:
        """Writes the report, one self-contained HTML page, into the run folder; returns its path."""
        from unipg.reports import write_report

        return write_report([self.folder], self.folder / "report.html")

    def resume(
        self,
        iterations: int | None = None,
        *,
        observers: Observer | Sequence[Observer] | Sequence[Any] = (),
        trust: bool = False,
        progress: bool = True,
    ) -> Run:
        """Goes on where the run stopped, for as long as its recipe says; `iterations`: train until there are that many of them in all.
        The other arguments are those of `train`.

        Errors: `InputError` where the run was given Python values in another process: `train(…, resume=True)` with the same ones goes on.
        """
        if iterations is not None:
            self.recipe = dataclasses.replace(self.recipe, training=dataclasses.replace(self.recipe.training, iterations=iterations))
        with quiet():
            return self._train(observers, resume=True, trust=trust, progress=progress)

    def _check_model(self) -> None:
        if not (self.folder / "model").is_dir():
            raise InputError(f"the run in '{self.folder}' has no model yet: it is {self.status}; accepted: a finished run")

    def _train(self, observers: Any, *, resume: bool, trust: bool, progress: bool) -> Run:
        from unipg.terminal import TrainingDisplay, plain_console
        from unipg.training.observer import Observers, Stopped
        from unipg.training.run import run_recipe

        own = list(observers) if isinstance(observers, Iterable) else [observers]
        shown = progress and os.environ.get("RANK", "0") == "0"
        display = TrainingDisplay(plain_console(), self.recipe.build_algorithm().name) if shown else None
        told = Observers(own if display is None else [display, *own])
        self.__dict__.pop("policy", None)
        try:
            with display or nullcontext():
                command = f"unipg.train(…) in {sys.argv[0] or 'an interpreter'}"
                run_recipe(self.recipe, resume=resume, trust=trust, observer=told, command=command)
        except Stopped as stopped:
            stopped.args = (f"stopped; nothing is lost: the same call with output='{self.folder}', resume=True continues",)
            raise
        return self


class TrainedPolicy:
    """The policy of a run, ready to act or to write."""

    policy: Policy
    """The policy itself; of a language model `policy.model` and `policy.tokenizer` are those of transformers."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        from unipg.policies.actor_critic import ActorCritic, is_controller
        from unipg.policies.causal_lm import CausalLanguageModel, load_model, load_tokenizer
        from unipg.policies.reward_model import is_reward_model
        from unipg.training.run import pick_device

        place = folder / "model"
        if not place.is_dir():
            raise InputError(f"the run in '{folder}' has no model yet; accepted: a finished run")
        self.folder, self.recipe = folder, recipe
        if is_controller(place):
            self.policy = ActorCritic.load(place)
        elif is_reward_model(str(place)):
            raise InputError(f"the run in '{folder}' trained a reward model, which neither acts nor writes; run.evaluate() measures it")
        else:
            model = load_model(str(place)).to(pick_device(recipe.device))
            self.policy = CausalLanguageModel(model, load_tokenizer(str(place)), temperature=recipe.rollouts.temperature)
        self.policy.module.eval().requires_grad_(False)

    def act(self, observation: Any, *, sample: bool = False) -> np.ndarray:
        """A controller's action for an observation [O…], or actions [N,…] for several [N,O…], ready for `environment.step`.

        The most likely one, or with `sample` a random one, drawn from torch's global generator. Errors: `InputError` for a language model,
        for an observation of another shape or that is not finite, and with `sample` for a policy that draws none (DQN's).
        """
        import torch

        from unipg.policies.actor_critic import ActorCritic

        if not isinstance(self.policy, ActorCritic):
            raise InputError(f"the run in '{self.folder}' trained a language model, which does not act; accepted: policy.generate(prompt)")
        rows, one = self.policy.encoder.read(observation)
        noise = None
        if sample:
            self.policy.check_draws("sample is True")
            source = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            noise = self.policy.noise(1, len(rows), source)[0]
        actions = self.policy.outward()(rows, self.policy.actor()(rows, noise))
        return actions[0] if one else actions

    @overload
    def generate(
        self, prompts: str, *, max_new_tokens: int | None = None, sample: bool = False, temperature: float | None = None
    ) -> str: ...

    @overload
    def generate(
        self, prompts: Sequence[Any], *, max_new_tokens: int | None = None, sample: bool = False, temperature: float | None = None
    ) -> Any: ...

    def generate(self, prompts: Any, *, max_new_tokens: int | None = None, sample: bool = False, temperature: float | None = None) -> Any:
        """A language model's answer to a prompt, text or a list of chat messages; a list of prompts gives a list of answers.

        Prompts go through what they went through in training: system message, chat template, tools. The most likely tokens; with `sample`
        random ones, at the run's temperature or the one given, drawn from torch's global generator.

        Errors: `InputError` for a controller, an empty prompt, and one that leaves no room in the model's context.
        """
        import torch

        from unipg.policies.causal_lm import CausalLanguageModel
        from unipg.rollouts.conversations import conversations, sample_answers
        from unipg.rollouts.text import check_room, prompt_tokens
        from unipg.tasks.base import Item
        from unipg.tasks.data import DataTask, check_text, unscored, with_system

        if not isinstance(self.policy, CausalLanguageModel):
            raise InputError(f"the run in '{self.folder}' trained a controller, which writes nothing; accepted: policy.act(observation)")
        if temperature is not None and not (sample and temperature > 0):
            raise InputError(f"temperature is {temperature}; accepted: above 0, with sample=True")
        if not isinstance(prompts, str | Sequence):
            raise InputError(f"the prompts are {prompts!r}; accepted: text, chat messages, or a list of either")
        one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping))
        asked = [prompts] if one else list(prompts)
        section = self.recipe.task
        parts = () if section is None else (section.data, section.reasoning_gym, section.multi_hop)
        system = next((getattr(part, "system", None) for part in parts if part is not None), None)
        items = []
        for number, prompt in enumerate(asked):
            if not prompt or not isinstance(prompt, str | list):
                raise InputError(f"prompt {number + 1} is {prompt!r}; accepted: text, or a list of chat messages")
            check_text(prompt, f"prompt {number + 1}")
            own = not isinstance(prompt, str) and any(message.get("role") == "system" for message in prompt)
            place = f"prompt {number + 1}"
            items.append(Item(number, prompt if own else with_system(prompt, system, place), place=place))
        sampling = self.recipe.rollouts
        if max_new_tokens is not None:
            sampling = dataclasses.replace(sampling, max_new_tokens=max_new_tokens)
        task = section.build() if section is not None and section.tools else DataTask("prompts", tuple(items), unscored)
        model, tokenizer = self.policy.model, self.policy.tokenizer
        tools = conversations(model, tokenizer, task, sampling)
        tokens = [tools.prompt(item) if tools else prompt_tokens(tokenizer, item, sampling.chat_template) for item in items]
        check_room(model, items, tokens, sampling.max_new_tokens)
        with self.policy.sampling() as sampler:
            found = sample_answers(
                sampler,
                tokenizer,
                tokens,
                sampling,
                tools,
                rollouts=1,
                temperature=temperature or self.policy.temperature,
                generator=torch.Generator(device=model.device).manual_seed(int(torch.randint(2**62, ()))) if sample else None,
                greedy=not sample,
            )
        answers = [group[0].text for group in found]
        return answers[0] if one else answers


# ---------------------------------------------------------------------------------------------------- from arguments to a recipe


def _recipe(
    algorithm: Any, sections: dict[str, Any], *, model: Any, data: Any, reward: Any, iterations: Any, output: Any, resume: bool
) -> Recipe:
    from unipg.training.recipe import build_algorithm, recipe_from

    if isinstance(algorithm, type):
        raise InputError(f"algorithm is the class {algorithm.__name__}; accepted: {algorithm.__name__}(), with its settings")
    method = build_algorithm(algorithm)
    values = {name: _with_values(section) for name, section in sections.items() if section is not None}
    values["algorithm"] = algorithm
    if isinstance(values.get("environment"), str):
        values["environment"] = {"id": values["environment"]}
    if values.get("environment") is not None:
        given = {"model": model, "data": data, "reward": reward}
        extra = next((name for name, value in given.items() if value is not None), None)
        if extra is not None:
            instead = "; a saved controller is controller={'model': …}" if extra == "model" else ""
            raise InputError(f"{extra} is given, but an environment has none; accepted: leave it out{instead}")
    if model is not None:
        _put(values, "policy", "model", os.fspath(model) if isinstance(model, str | os.PathLike) else model, "model")
    if iterations is not None:
        _put(values, "training", "iterations", iterations, "iterations")
    if data is not None:
        _put(values, "task", "data", _data(data, method), "data")
    if reward is not None:
        values["reward"] = _reward(reward)
    values["output"] = _folder(method.name, resume) if output is None else output
    return recipe_from(values)


def _put(values: dict[str, Any], section: str, key: str, value: Any, shorthand: str) -> None:
    """Sets one key of a section, which may be there already, but not with this key."""
    before = values.get(section)
    if before is None:
        values[section] = {key: value}
    elif isinstance(before, dict) and before.get(key) is None:
        values[section] = {**before, key: value}
    elif dataclasses.is_dataclass(before) and not isinstance(before, type) and section == "training":
        values[section] = dataclasses.replace(before, **{key: value})
    else:
        raise InputError(f"{shorthand} is given twice, also as {section}.{key}; accepted: one of them")


def _data(data: Any, algorithm: Algorithm) -> Any:
    """The section task.data, with what the algorithm says about the columns."""
    from unipg.tasks.build import DataRecipe

    if isinstance(data, DataRecipe):
        return data
    section = dict(_with_values(data)) if isinstance(data, Mapping) and "source" in data else {"source": _live_source(data)}
    if algorithm.completions != "none":
        section.setdefault("preferences", algorithm.completions)
    if algorithm.demonstrations == "required" and not algorithm.uses_rollouts:
        section.setdefault("demonstration", "completion")
    return section


def _live_source(data: Any) -> Any:
    from unipg.tasks.data import live_rows

    return data if isinstance(data, str) else os.fspath(data) if isinstance(data, os.PathLike) else live_rows(data)


def _reward(reward: Any) -> Any:
    """The section reward: functions alone, unless it is a section already."""
    from unipg.rollouts.scoring import RewardRecipe

    if isinstance(reward, RewardRecipe):
        return reward
    if isinstance(reward, Mapping):
        return _with_values(reward)
    functions: list[dict[str, Any]] = []
    names: list[str] = []
    several = reward if isinstance(reward, list) or (isinstance(reward, tuple) and not _weighs(reward)) else [reward]
    for one in several:
        function, weight = one if isinstance(one, tuple) and _weighs(one) else (one, 1.0)
        if not callable(function) and not isinstance(function, str):
            raise InputError(f"reward holds {function!r}; accepted: a function, a name, or (function, weight)")
        title = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
        title = title.rpartition(":")[2].rpartition(".")[2].strip("<>")  # of a lambda
        names.append(title)
        number = names.count(title)
        functions.append({"function": _live(function), "weight": weight, "name": title if number == 1 else f"{title}-{number}"})
    return {"verifier": 0.0, "functions": functions}


def _weighs(pair: Any) -> bool:
    return len(pair) == 2 and isinstance(pair[1], int | float) and not isinstance(pair[1], bool)


def _live(function: Any) -> Any:
    from unipg.loading import live_function

    return function if isinstance(function, str) or not callable(function) else live_function(function)


def _with_values(section: Any) -> Any:
    """Plain values of a section, with rows and functions made fit for a recipe wherever one takes their names."""
    if isinstance(section, Mapping):
        found = {}
        for key, value in section.items():
            if key == "source" and value is not None:
                found[key] = _live_source(value)
            elif key in ("verifier", "function"):
                found[key] = _live(value)
            elif key == "tools" and isinstance(value, list | tuple):
                found[key] = [_live(tool) for tool in value]
            elif key == "wrappers" and isinstance(value, list | tuple):
                found[key] = [
                    {k: _live(v) if k == "path" else v for k, v in each.items()} if isinstance(each, Mapping) else _live(each)
                    for each in value
                ]
            elif key == "features" and isinstance(value, Mapping):
                found[key] = {name: _live(feature) for name, feature in value.items()}
            else:
                found[key] = _with_values(value)
        return found
    if isinstance(section, list | tuple):
        return [_with_values(value) for value in section]
    return section


def _folder(name: str, resume: bool) -> str:
    """The first run folder of an algorithm that is free."""
    from unipg.training.run import is_free

    if resume:
        raise InputError("resume is True, but nothing says of which run; accepted: output=… with its folder")
    place, number = Path("runs") / name, 1
    while not is_free(place) and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        number += 1
        place = Path("runs") / f"{name}-{number}"
    return str(place)


@contextmanager
def quiet() -> Iterator[None]:
    """Turns off the bars that transformers shows while it reads and writes models: ours say what matters."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
