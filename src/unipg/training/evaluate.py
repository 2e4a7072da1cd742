"""Evaluation of a saved model, on named tasks or in its environment: what `unipg evaluate` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from unipg.errors import InputError, spoken
from unipg.files import check_output, write_output
from unipg.hub import check_folder, check_place, in_home, saved_model
from unipg.policies.actor_critic import ActorCriticRecipe, is_controller
from unipg.policies.causal_lm import CausalLanguageModel, load_model, load_tokenizer
from unipg.policies.reward_model import SequenceScorer, is_reward_model, load_reward_model
from unipg.rollouts.base import EvaluationResult
from unipg.rollouts.environments import EnvironmentRecipe, evaluate_controller
from unipg.rollouts.evaluation import EvaluationRecipe, evaluate_pairs, evaluate_task
from unipg.rollouts.recording import EPISODES, Film, check_film, without_screen
from unipg.rollouts.scoring import RewardFunctionRecipe, scored_alike
from unipg.rollouts.text import SamplingRecipe
from unipg.seeding import derived_seed
from unipg.settings import parse_value
from unipg.training.recipe import Recipe, TaskRecipe, check_threads, load_recipe, typed
from unipg.training.run import pick_device, scored

UNSEEN_SEED = 1_000_000
"""Seed of a procedural task that names none: far from the seeds that recipes train on."""


def evaluate_model(
    model: str,
    *,
    tasks: Sequence[str | TaskRecipe] = (),
    recipe: str | Recipe | None = None,
    items: int | None = None,
    samples: int | None = None,
    k: tuple[int, ...] | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    episodes: int | None = None,
    sample: bool = False,
    record: str | None = None,
    checkpoint: str = "last",
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[EvaluationResult]:
    """Results of a hub model, a model folder or a run folder, one per task. A reward model is evaluated on preferences (`evaluate_pairs`),
    a controller in its environment (`evaluate_controller`).

    `tasks`: names of reasoning-gym tasks or data files, each with YAML options behind a colon, or sections of a recipe. `recipe`: take the
    held-out tasks and the sampling settings of a recipe, or its environment; a run folder's own recipe is taken unasked. Arguments that
    are given win over it. `episodes` are those of a controller. `progress` is told the task and its finished share.
    """
    if threads is not None:
        check_threads(threads)
        torch.set_num_threads(threads)
    check_place(model, runs=True)
    place, own = saved_model(model, checkpoint), Path(model) / "recipe.yaml"
    if own.is_file():
        check_folder(place, runs=True)
    if is_controller(folder := Path(place)):
        language = {"tasks": tasks or None, "items": items, "samples": samples, "k": k, "temperature": temperature}
        _refuse(f"'{model}' is a controller, which acts in an environment", **language, max_new_tokens=max_new_tokens)
        film = None if record is None else Path(in_home(record))
        return [_evaluate_controller(folder, recipe, episodes, seed, device, progress, sample, film)]
    _refuse(f"'{model}' is no controller", episodes=episodes, sample=sample or None, record=record)
    evaluation, sampling = EvaluationRecipe(), SamplingRecipe()
    wanted: list[TaskRecipe] = []
    functions: list[RewardFunctionRecipe] = []
    if recipe is not None or own.is_file():  # a run folder knows how its model samples
        held = recipe if isinstance(recipe, Recipe) else load_recipe(recipe or own)
        evaluation, sampling = held.evaluation, held.rollouts
        functions = held.reward.functions
        wanted += held.evaluation.tasks if recipe is not None or not tasks else []
    changes: dict[str, Any] = {"items": items, "samples": samples, "temperature": temperature, "k": k}
    if samples and k is None:
        changes["k"] = tuple(sorted({1, samples}))
    plain = EvaluationRecipe(**{f.name: getattr(evaluation, f.name) for f in dataclasses.fields(EvaluationRecipe)})
    evaluation = dataclasses.replace(plain, **{name: value for name, value in changes.items() if value is not None})
    if max_new_tokens is not None:
        sampling = dataclasses.replace(sampling, max_new_tokens=max_new_tokens)
    wanted += [task_from_text(task, evaluation.items) if isinstance(task, str) else task for task in tasks]
    if not wanted:
        kinds = "a reasoning-gym task or a data file"
        give = spoken(f"--task NAME ({kinds}), --recipe FILE, or a run folder with held-out tasks", f"a task ({kinds}, or rows)")
        raise InputError(f"nothing to evaluate on: give {give}")
    built = [scored_alike(task.build(), functions) for task in wanted]
    scorer = is_reward_model(place)
    if scorer:
        given = {"samples": samples, "k": k, "temperature": temperature, "max_new_tokens": max_new_tokens}
        _refuse(f"'{model}' is a reward model, which gives scores and no answers", **given)
    network, tokenizer = (load_reward_model(place, trained=True) if scorer else load_model(place)), load_tokenizer(place)
    policy = (SequenceScorer if scorer else CausalLanguageModel)(network.to(pick_device(device)), tokenizer)
    results = []
    for task in built:

        def told(done: float, name: str = task.name) -> None:
            if progress is not None:
                progress(name, done)

        if isinstance(policy, SequenceScorer):
            results.append(evaluate_pairs(policy, task, evaluation, sampling, told))
        else:
            results.append(evaluate_task(policy, task, evaluation, sampling, seed, told))
    return results


def environment_of(folder: Path, recipe: str | Recipe | None) -> EnvironmentRecipe:
    """Where a saved controller acts: as a recipe says, by default that of the run that it is in."""
    own = folder.resolve().parent / "recipe.yaml"
    if recipe is None and not own.is_file():
        asked = spoken("--recipe FILE", "recipe=FILE")
        raise InputError(f"'{folder}' does not say which environment it acts in: give {asked} with one, or the run folder")
    held = recipe if isinstance(recipe, Recipe) else load_recipe(recipe or own)
    with suppress(InputError):  # the data may be elsewhere by now: then there is no score
        held = scored(held)
    if held.environment is None:
        raise InputError(f"'{recipe or own}' has no environment for the controller in '{folder}'; accepted: a control recipe")
    return held.environment


def _evaluate_controller(
    folder: Path,
    recipe: str | Recipe | None,
    episodes: int | None,
    seed: int,
    device: str,
    progress: Callable[[str, float], None] | None,
    sample: bool,
    record: Path | None,
) -> EvaluationResult:
    """A saved controller in the environment of a recipe: by default that of the run that it is in."""
    if record is not None:
        check_film(record)
        check_output(record, "evaluate")
    environment = environment_of(folder, recipe)
    if episodes is not None and episodes < 1:
        raise InputError(f"{spoken('--episodes', 'episodes')} is {episodes}; accepted: 1 or more")
    episodes = episodes or (environment.evaluation_episodes if record is None else EPISODES)
    environment = dataclasses.replace(environment, count=1, evaluation_episodes=episodes)
    rollouts = environment.build(seed)
    spaces = rollouts.observation_space, rollouts.action_space
    controller = ActorCriticRecipe(model=str(folder)).build(*spaces, seed, normalized=rollouts.normalized)
    controller.module.to(pick_device(device))
    if sample:
        controller.check_draws(f"{spoken('--sample', 'sample')} is given")
    told = None if progress is None else lambda done: progress(environment.id, done)
    seed = derived_seed(seed, "test")  # other episodes than the best model was chosen by
    if record is None:
        return evaluate_controller(controller, environment, seed, told, sample=sample)
    found: list[EvaluationResult] = []

    def filmed(place: Path) -> None:
        with Film(place) as film:
            found.append(evaluate_controller(controller, environment, seed, told, sample=sample, film=film))

    with without_screen():
        write_output(record, filmed, "evaluate")
    return found[0]


def _refuse(why: str, **options: Any) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        typed_as = "task" if given[0] == "tasks" else given[0].replace("_", "-")
        raise InputError(f"{why}: {spoken(f'--{typed_as}', given[0])} does not apply")


def task_from_text(text: str, items: int) -> TaskRecipe:
    """`chain_sum`, `chain_sum:{max_digits: 2}`, `answers.jsonl:{prompt: question, answer: solution}`.

    Options of a procedural task are its own settings, beside `size`, `seed`, `binary`, `system` and `preferences`; those of a file are its
    columns. Either takes `tools`, as a recipe's task does.
    """
    name, colon, rest = text.partition(":{")
    place = spoken(f"--task {name}", f"task '{name}'")
    options: Any = parse_value("{" + rest, place) if colon else {}
    if not isinstance(options, dict):
        raise InputError(f"{place}: options are written {{key: value}}")
    tools = {"tools": options.pop("tools")} if "tools" in options else {}
    if name.endswith((".jsonl", ".json", ".parquet")) or "/" in name:
        return typed(TaskRecipe, {"data": {"source": name, **options}, **tools}, place)
    own = {key: options.pop(key) for key in ("size", "seed", "binary", "system", "preferences") if key in options}
    section = {"name": name, "size": items, "seed": UNSEEN_SEED, "config": options, **own}
    return typed(TaskRecipe, {"reasoning_gym": section, **tools}, place)
