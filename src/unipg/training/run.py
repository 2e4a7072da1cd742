"""From a recipe to a finished run folder: builds what the recipe names, trains, and records how it went."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from unipg.algorithms.base import Algorithm, Setting
from unipg.critics.kinds.martingale import ContinuousCritic
from unipg.errors import InputError, spoken
from unipg.files import write_file, write_folder, writing
from unipg.hub import check_place
from unipg.networks.perceptron import COPIES, check_memory
from unipg.policies.actor_critic import ActorCritic, Wanted
from unipg.policies.base import Policy
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.replay.cards import References
from unipg.rollouts.anchors import ANCHORS, AnchorCache
from unipg.rollouts.base import Experience
from unipg.rollouts.environments import EnvironmentRollouts
from unipg.rollouts.evaluation import unseen
from unipg.rollouts.prompts import PromptRollouts, Stream, check_given
from unipg.rollouts.scoring import RewardRecipe, RewardSource, scored_alike
from unipg.rollouts.text import prompt_text
from unipg.rollouts.wrappers import wraps
from unipg.samplers import UniformSampler
from unipg.seeding import derived_seed
from unipg.tasks.tools import TAGS
from unipg.tasks.verifiers import verifier_named
from unipg.training.distribution import Workers
from unipg.training.feeds.replay import ReplayRecipe, ring_of
from unipg.training.folder import BEST, EVALUATED, LOCK, holds_checkpoint, locked, trained, untouched
from unipg.training.observer import Observer, Observers, Stopped
from unipg.training.observers import BestModel, EvaluatedModels
from unipg.training.recipe import DemonstrationsRecipe, Recipe, identity_of
from unipg.training.record import RunRecord, earlier
from unipg.training.state import difference
from unipg.training.tracking import Tracker
from unipg.training.trainer import Trainer
from unipg.trajectories import Source


def run_recipe(
    recipe: Recipe, *, resume: bool = False, trust: bool = False, observer: Observer | None = None, command: str = ""
) -> dict[str, Any]:
    """Trains what the recipe says into its output folder, and returns the last metrics row.

    `resume`: continue the run that is in the folder. `trust`: load what another user's or machine's run has pickled, which runs code.

    Raises InputError for anything wrong with the recipe, its data or the folder, and Stopped after Ctrl-C (checkpoint written).
    """
    folder, observer = Path(recipe.output), observer or Observer()
    recipe = scored(recipe, observer)
    workers = Workers.from_environment()
    with ExitStack() as stack:

        def claimed() -> bool:
            if folder.is_dir():
                stack.enter_context(locked(folder))
            return _continues(folder, resume)

        goes_on = _leader_says(workers, claimed)
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        if recipe.optimizer.warmup > recipe.training.total_steps:
            warnings.warn(
                f"optimizer.warmup is {recipe.optimizer.warmup}, but the run has {recipe.training.total_steps} optimiser steps: the "
                "learning rate never gets to its highest",
                stacklevel=2,
            )
        device = pick_device(recipe.device)
        algorithm = recipe.build_algorithm()
        _check_updates(recipe, algorithm)
        _check_step(recipe, algorithm)
        if recipe.demonstrations is not None and algorithm.demonstrations == "none":
            raise InputError(f"demonstrations: algorithm '{algorithm.name}' takes none; accepted: no such section, or demonstrations: null")
        policy, experience = build(recipe, algorithm, device)
        asked, control = recipe.optimizer.learning_rate, recipe.environment is not None
        if control:
            observer = Observers([observer, BestModel("return")])
        if recipe.training.keep_evaluated:
            observer = Observers([observer, EvaluatedModels()])
        learned = algorithm.learned(_setting(experience))
        recipe.optimizer.check_learners({made.role for made in learned})
        own = [made.optimizer for made in learned if not made.direction.owns_step]
        if not algorithm.replays and all(settings == own[0] for settings in own):
            settings = own[0] if own else None
            recipe = dataclasses.replace(recipe, optimizer=recipe.optimizer.settled(algorithm, policy, controller=control, own=settings))
        collects = algorithm.replays and (recipe.dataset is None or recipe.replay is not None)
        if collects and not goes_on and isinstance(policy, ActorCritic) and isinstance(experience, EnvironmentRollouts):
            ring_of(recipe.replay or ReplayRecipe(), folder, policy, experience, recipe.training).check_room()
        trainer = Trainer(
            algorithm,
            policy,
            experience,
            folder=folder,
            training=recipe.training,
            optimizer=recipe.optimizer,
            anchor=_anchor(recipe, algorithm, policy, experience),
            seed=recipe.seed,
            observer=observer,
            workers=workers,
            identity=recipe.identity(),
            replay=recipe.replay,
            dataset=recipe.dataset,
        )
        if workers.leads:
            _make_folder(folder)
            stack.enter_context(locked(folder))
            _continues(folder, resume)  # another run may have been here since
        if again := not goes_on and workers.leads and _unfinished(folder):
            _check_same(folder, recipe)
        record = RunRecord(folder, recipe, algorithm, policy, command, device, continues=goes_on, writes=workers.leads)
        if not goes_on:  # whatever fails from here on leaves a folder in which the run can be started again
            stack.enter_context(record.kept())
        _ask_anchor(recipe, trainer)
        if workers.leads:
            names, project = recipe.logging.trackers, recipe.logging.project
            trainer.tracker = Tracker(folder, names, project=project, config=recipe.as_dict())
        used = None if trainer.learner.direction.owns_step else trainer.learner.recipe.rate
        record.content["learning_rate"] = {"used": used, "asked": asked}
        if goes_on:
            trainer.resume(trust=trust)
        record.follow(trainer)
        if goes_on:
            stack.enter_context(record.kept())
        if trainer.tracker is not None:
            write_file(folder / "recipe.yaml", recipe.as_yaml(), untouched)
            if again:  # what a run that was killed before its first checkpoint has written
                trainer.tracker.rewind(0, -1)
                for measured in (BEST, EVALUATED):
                    shutil.rmtree(folder / measured, ignore_errors=True)
            if not goes_on and recipe.policy is not None and recipe.policy.scratch is not None:
                write_folder(folder / "initial", policy.save)
        stack.enter_context(_stopping(trainer))
        return trainer.train()


def scored(recipe: Recipe, observer: Observer | None = None) -> Recipe:
    """With the reference returns of the dataset's card, where the recipe has none of its own. `observer` is told how far reading is."""
    if recipe.dataset is None or recipe.environment is None or recipe.environment.references is not None:
        return recipe
    told = None if observer is None else lambda done: observer.phase("dataset", done)
    found = References.of(recipe.dataset.open(recipe.dataset.path, told).card)
    return dataclasses.replace(recipe, environment=dataclasses.replace(recipe.environment, references=found))


def _leader_says(workers: Workers, decide: Callable[[], bool]) -> bool:
    """What one worker finds of the folder, for all of them; or its refusal."""
    if workers.world == 1:
        return decide()
    found, refused = False, ""
    if workers.leads:
        try:
            found = decide()
        except InputError as error:
            refused = str(error)
    found, refused = workers.gather((found, refused))[0]
    if refused:
        raise InputError(refused)
    return found


def build(recipe: Recipe, algorithm: Algorithm, device: torch.device) -> tuple[Policy, Experience]:
    """The policy and the source of experience that a recipe names."""
    if recipe.environment is not None:
        if algorithm.wraps and recipe.controller.model is None:
            raise InputError(
                f"algorithm '{algorithm.name}' changes what a trained controller does; accepted: `controller: {{model: RUN}}`, a run or "
                "its model folder"
            )
        environments = recipe.environment.build(recipe.seed)
        spaces, normalized = (environments.observation_space, environments.action_space), environments.normalized
        controller = recipe.controller.build(*spaces, recipe.seed, normalized=normalized, wanted=wanted_of(algorithm))
        if device.type == "cpu":
            moved = sum(parameter.numel() for parameter in controller.module.parameters() if parameter.requires_grad)
            check_memory(moved, "the controller's networks", COPIES - 1)
        controller.module.to(device)
        _check_minibatches(recipe, algorithm)
        return controller, environments
    assert recipe.policy is not None
    assert recipe.task is not None
    if algorithm.scores != (recipe.policy.kind == "reward"):
        fits = "reward" if algorithm.scores else "causal"
        raise InputError(f"policy.kind is '{recipe.policy.kind}'; accepted for algorithm '{algorithm.name}': {fits}")
    recipe.policy.critic_folder("value" in algorithm.terms(Setting()).reads)
    for name in (recipe.policy.model, recipe.policy.anchor):
        if name is not None:
            check_place(name)
    for reward in recipe.reward.models:
        check_place(reward.model, runs=True)
    task = recipe.task.build()
    check_given(task, algorithm.completions)
    more, seconds = recipe.demonstrations, recipe.rollouts.verifier_seconds
    if algorithm.needs_demonstrations and more is None and not any(item.demonstrations for item in task.items):
        raise InputError(
            f"algorithm '{algorithm.name}' learns from demonstrations, but no item of task '{task.name}' has one: set "
            "task.reasoning_gym.demonstrations, task.multi_hop.demonstrations or task.data.demonstration, or add a `demonstrations` stream"
        )
    rewards = None if recipe.reward == RewardRecipe() else RewardSource(recipe.reward, task.verifier, seconds, device)
    if rewards is not None and rewards.functions is not None:
        rewards.functions.check(task.items)
    experience = PromptRollouts(
        task,
        algorithm.build_sampler(len(task.items), recipe.seed, lambda: [prompt_text(item) for item in task.items]),
        prompts=recipe.training.prompts,
        sampling=recipe.rollouts,
        evaluation=recipe.evaluation,
        evaluation_tasks=[scored_alike(unseen(t.build(), task), recipe.reward.functions) for t in recipe.evaluation.tasks],
        demonstrations=None if more is None else _stream(more, recipe.seed),
        features={name: verifier_named(spec) for name, spec in recipe.task.features.items()},
        rewards=rewards,
    )
    value_head = "value" in algorithm.terms(_setting(experience)).reads
    tags = TAGS if experience.tools else ()
    policy = recipe.policy.build(
        experience.texts, temperature=recipe.rollouts.temperature, value_head=value_head, device=device, seed=recipe.seed, tags=tags
    )
    return policy, experience


def wanted_of(algorithm: Algorithm) -> Wanted:
    """What an algorithm asks of its controller."""
    kinds, own, steps = algorithm.controllers, algorithm.controller, algorithm.by_step
    critic = (not algorithm.replays or algorithm.values_states) and steps is None
    return Wanted(
        algorithm.name,
        kinds,  # type: ignore[arg-type]
        critic=critic,
        heads=algorithm.heads,
        networks=algorithm.networks,
        steps=steps,
        wraps=algorithm.wraps,
        **own,
    )


def _check_updates(recipe: Recipe, algorithm: Algorithm) -> None:
    """Warns where the warm-up is longer than the run."""
    if not algorithm.replays or recipe.environment is None or recipe.dataset is not None:
        return
    replay, steps = (recipe.replay or ReplayRecipe()).settled(algorithm.replay), recipe.environment.count * recipe.environment.steps
    if replay.updates(total := steps * recipe.training.iterations) == 0:
        warnings.warn(
            f"nothing will be learned: the run has {total} steps of environments, and the first update comes after replay.warmup, "
            f"{replay.warmup} steps",
            stacklevel=3,
        )


def _check_step(recipe: Recipe, algorithm: Algorithm) -> None:
    """Warns where a critic counts other times than the environment's steps were set to; units may differ, so it may be meant."""
    critic = getattr(algorithm, "critic", None)
    if recipe.environment is None or not isinstance(critic, ContinuousCritic) or critic.dt == 1:  # the step itself is the unit then
        return
    from unipg.environments.timed import TimeStep

    set_by = [wrap for wrap in wraps(recipe.environment.wrappers) if wrap.wrapper is TimeStep and "dt" in wrap.arguments]
    if set_by and critic.dt != (dt := set_by[-1].arguments["dt"]):
        warnings.warn(
            f"algorithm.critic.dt is {critic.dt}, but {set_by[-1].place}, TimeStep, makes steps of dt {dt}: in one unit of time they are "
            "equal, else beta, trace and lam are of other times than the environment's",
            stacklevel=3,
        )


def _check_minibatches(recipe: Recipe, algorithm: Algorithm) -> None:
    """Warns where rows are a controller's episodes, and windows may hold too few of them for every optimiser step."""
    environment, parts = recipe.environment, recipe.training.minibatches
    assert environment is not None
    if algorithm.terms(Setting(acts=True)).reach != "step" and environment.count < parts:
        warnings.warn(
            f"training.minibatches is {parts}, but a batch may hold no more than {environment.count} episodes (environment.count), rows "
            f"of '{algorithm.name}' here: optimiser steps without any are left out",
            stacklevel=2,
        )


def _stream(recipe: DemonstrationsRecipe, seed: int) -> Stream:
    """Demonstrations from elsewhere, in an order of their own."""
    task = recipe.task.build()
    bare = next((item for item in task.items if not item.demonstrations), None)
    if bare is not None:
        raise InputError(f"demonstrations.task: {bare.place or f'item {bare.index}'} has no demonstration")
    return Stream(task, UniformSampler(len(task.items), derived_seed(seed, "demonstrations")), recipe.prompts)


def _setting(experience: Experience) -> Any:
    from unipg.algorithms.base import Setting

    return Setting(experience.max_new_tokens, acts=not experience.has_prompts)


def _anchor(recipe: Recipe, algorithm: Algorithm, policy: Policy, experience: Experience) -> Policy | None:
    """The frozen policy that a KL is measured against, where the algorithm has any."""
    reads = algorithm.terms(_setting(experience)).reads | algorithm.reads
    if "anchor_log_prob" not in reads:
        return None
    if recipe.policy is None or not isinstance(policy, CausalLanguageModel):
        raise InputError(f"algorithm '{algorithm.name}' with a KL penalty needs an anchor, which only language recipes have")
    return recipe.policy.build_anchor(policy)


def _ask_anchor(recipe: Recipe, trainer: Trainer) -> None:
    """Where an anchor is asked about given completions alone, they are asked once, and the policy itself is not kept."""
    anchor, experience, folder = trainer.anchor, trainer.experience, trainer.folder
    if anchor is None or trainer.algorithm.sources() != (Source.PREFERENCE,) or not isinstance(experience, PromptRollouts):
        return
    policy, cache = trainer.policy, Path(recipe.anchor_cache) if recipe.anchor_cache else folder
    assert isinstance(policy, CausalLanguageModel)
    total = sum(len(item.completions) for item in experience.task.items)

    def computed() -> AnchorCache:
        rows = experience.every_completion(policy)
        return AnchorCache.of(anchor, rows, cache, total=total, progress=lambda done: trainer.observer.phase("anchor", done))

    if trainer.workers.leads:
        experience.keep_anchors(computed())
    trainer.workers.wait()
    if not trainer.workers.leads:
        experience.keep_anchors(computed())
    trainer.anchor = None


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device '{name}' does not exist; accepted: auto, cpu, cuda, cuda:0 …") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{name}' is not available: torch sees no GPU; accepted here: auto, cpu")
    return device


def is_free(folder: Path) -> bool:
    """Whether a new run may be written to the folder."""
    try:
        return not _continues(folder, resume=False)
    except InputError:
        return False


def _continues(folder: Path, resume: bool) -> bool:
    """Whether there is a checkpoint to continue from. A run that ended before its first one starts again: nothing is lost."""
    beside = (ANCHORS, LOCK)
    started = folder.exists() and (not folder.is_dir() or any(not f.name.startswith(beside) for f in folder.iterdir()))
    if not resume:
        if started and not _untrained(folder):
            raise InputError(
                f"the run folder '{folder}' already exists: use {spoken('--resume', 'resume=True')} to continue it, or output=… for "
                "another place"
            )
        return False
    if not folder.is_dir():
        raise InputError(f"there is nothing to resume: the run folder '{folder}' does not exist")
    if holds_checkpoint(folder):
        return True
    if started and not (folder / "recipe.yaml").is_file() and not _untrained(folder):
        raise InputError(f"there is nothing to resume: '{folder}' holds no run")
    return False


def _untrained(folder: Path) -> bool:
    """Whether a folder holds a run that ended, however that was, before its first iteration did. It is locked, so no run is in it now."""
    return _unfinished(folder) and not trained(folder, but=BEST)


def _unfinished(folder: Path) -> bool:
    """Whether a folder holds a run that has not come to its end."""
    record = earlier(folder / "run.json")
    return "unipg" in record.get("versions", ()) and record.get("status") != "finished"


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Refuses to begin another recipe's run again over what it has written, where that is any iteration's."""
    if not trained(folder, but=BEST) or not (folder / "recipe.yaml").is_file():
        return
    before, now = identity_of(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))), recipe.identity()
    if before != now:
        raise InputError(f"the run in '{folder}' is that of another recipe: {difference(before, now)}")


def _make_folder(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()


@contextmanager
def _stopping(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the loop to stop at the next safe place; a second Ctrl-C stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received = [signal.SIGINT]

    def ask(number: int, frame: types.FrameType | None) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_requested = True
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Stopped as stopped:
        stopped.signal = received[-1]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
