"""The state of a run: everything that a bit-identical continuation needs, the batch being re-used included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unipg.errors import InputError, spoken
from unipg.rollouts.base import Pickled
from unipg.training.checkpoints import random_states, restore_random_states

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer


def state_of(run: Trainer) -> dict[str, Any]:
    """What is saved. Holds references, not copies."""
    return {
        "identity": run.identity,
        "iterations": run.training.iterations,
        "fingerprint": run.workers.gather(run.fingerprint),
        "iteration": run.iteration,
        "round": run.round,
        "position": run.position,
        "gathered": run.gathered,
        "step": run.step,
        "seconds": run.seconds,
        "evaluated_at": run.evaluated_at,
        "row": dict(run.row),
        "diagnostics": run.diagnostics.state_dict() if run.feed.begun else None,
        "module": run.policy.module.state_dict(),
        "learners": {learner.name: learner.state_dict() for learner in run.learners},
        "memory": run.workers.gather(dict(run.memory)),
        "feed": run.feed.state_dict(),
        "stages": run.stages.state_dict(),
        "experience": run.workers.gather(run.experience.state_dict()),
        "random": random_states(),
        "world": run.workers.world,
    }


def restore(run: Trainer, state: dict[str, Any], *, trust: bool = False) -> None:
    """Puts a run where `state_of` found it; raises InputError, with nothing changed, when the state belongs to another run.

    `trust`: unpickle what another user's or machine's run has pickled, which runs code from it.
    """
    _check(run, state, trust)
    run.policy.module.load_state_dict(state["module"])
    for learner in run.learners:
        learner.load_state_dict(state["learners"][learner.name])
    run.memory.clear()
    run.memory.update(state["memory"][run.workers.rank])
    run.experience.load_state_dict(state["experience"][run.workers.rank])
    restore_random_states(state["random"])
    for name in ("iteration", "round", "position", "gathered", "step", "seconds", "evaluated_at"):
        setattr(run, name, state[name])
    run.row = dict(state["row"])
    run.feed.load_state_dict(state["feed"])
    run.stages.load_state_dict(state.get("stages", {"best": {}}))  # of a run from before there were any
    if state["diagnostics"] is not None:
        run.diagnostics.load_state_dict(state["diagnostics"], run.policy.device)
    if state["iterations"] != run.training.iterations:
        run.observer.note(_new_end(run, state["iterations"]))


def _check(run: Trainer, state: dict[str, Any], trust: bool) -> None:
    if state["identity"] != run.identity:
        raise InputError(f"the checkpoint in '{run.folder}' belongs to another recipe: {difference(state['identity'], run.identity)}")
    if state["world"] != run.workers.world:
        raise InputError(f"the checkpoint was written by {state['world']} workers, but this run has {run.workers.world}")
    begun = state["iteration"] + (state["diagnostics"] is not None)
    if run.training.iterations < begun:
        raise InputError(
            f"training.iterations is {run.training.iterations}, but the run in '{run.folder}' is in iteration {begun} already; accepted: "
            f"{begun} or more"
        )
    before, now = state["fingerprint"][run.workers.rank], run.fingerprint
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{name} has changed since the run in '{run.folder}' was started ({before.get(name, 'nothing')} then, "
                f"{now.get(name, 'nothing')} now): a run is continued with the same data; put them back, or start a new run"
            )
    if not trust and any(not found.own for found in _pickled(state["experience"])):
        raise InputError(
            f"the run in '{run.folder}' was not written by this user here, and to continue it its pickled environments must be loaded, "
            f"which runs whatever code is in them; if you trust where it comes from, add {spoken('--trust', 'trust=True')}"
        )


def _pickled(value: Any) -> Iterator[Pickled]:
    if isinstance(value, Pickled):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _pickled(item)


def _new_end(run: Trainer, planned: int) -> str:
    """What another number of iterations means for what is scheduled over the whole run."""
    learner = run.learner
    recipe, step, per_iteration = learner.recipe, learner.step, learner.total / run.training.iterations
    before, now = (recipe.learning_rate_at(step, round(count * per_iteration)) for count in (planned, run.training.iterations))
    rate = f"the learning rate goes on at {now:.3g}"
    if recipe.schedule in ("auto", "constant"):
        rate = f"the learning rate is constant ({now:.3g})"
    elif now != before:
        rate += f", where the {recipe.schedule} schedule had {'ended at' if step >= planned * per_iteration else 'come to'} {before:.3g}"
    return (
        f"training.iterations was {planned} and is {run.training.iterations}: what is scheduled over the whole run now ends at optimiser "
        f"step {learner.total} instead of {round(planned * per_iteration)}; {rate}"
    )


def difference(old: str, new: str) -> str:
    """The first line in which two recipes differ."""
    before, after = old.splitlines(), new.splitlines()
    for a, b in zip(before, after, strict=False):
        if a != b:
            return f"it has '{a.strip()}' where this one has '{b.strip()}'"
    return "their lengths differ"
