"""The state of a run: everything that a bit-identical continuation needs, the batch being re-used included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unipg.errors import InputError
from unipg.training.checkpoints import random_states, restore_random_states
from unipg.trajectories import Trajectories

if TYPE_CHECKING:
    from unipg.training.trainer import Trainer


def state_of(run: Trainer) -> dict[str, Any]:
    """What is saved. Holds references, not copies."""
    learner = run.learner
    return {
        "identity": run.identity,
        "iteration": run.iteration,
        "step": learner.step,
        "position": run.position,
        "seconds": run.seconds,
        "skipped": dict(learner.skipped),
        "evaluated_at": run.evaluated_at,
        "row": dict(run.row),
        "batch": None if run.batch is None else run.batch.to("cpu").state_dict(),
        "diagnostics": None if run.batch is None else learner.diagnostics,
        "unlearned": None if run.unlearned is None else run.unlearned.to("cpu").state_dict(),
        "proposed_at": run.proposed_at,
        "module": run.policy.module.state_dict(),
        "proposal": None if run.proposal is None else run.proposal.module.state_dict(),
        "memory": run.workers.gather(dict(learner.memory)),
        "optimizer": learner.optimizer.state_dict(),
        "experience": run.workers.gather(run.experience.state_dict()),
        "random": random_states(),
        "world": run.workers.world,
    }


def restore(run: Trainer, state: dict[str, Any]) -> None:
    """Puts a run where `state_of` found it; raises InputError, with nothing changed, when the state belongs to another run."""
    if state["identity"] != run.identity:
        raise InputError(f"the checkpoint in '{run.folder}' belongs to another recipe: {_difference(state['identity'], run.identity)}")
    if state["world"] != run.workers.world:
        raise InputError(f"the checkpoint was written by {state['world']} workers, but this run has {run.workers.world}")
    learner = run.learner
    run.policy.module.load_state_dict(state["module"])
    if run.proposal is not None:
        run.proposal.module.load_state_dict(state["proposal"])
    learner.memory = dict(state["memory"][run.workers.rank])
    learner.optimizer.load_state_dict(state["optimizer"])
    run.experience.load_state_dict(state["experience"][run.workers.rank])
    restore_random_states(state["random"])
    for name in ("iteration", "position", "seconds", "evaluated_at", "proposed_at"):
        setattr(run, name, state[name])
    learner.step, learner.skipped, run.row = state["step"], dict(state["skipped"]), dict(state["row"])
    if state["diagnostics"] is not None:
        learner.diagnostics = state["diagnostics"].to(run.policy.device)
    for name in ("batch", "unlearned"):
        setattr(run, name, None if state[name] is None else Trajectories(**state[name]).to(run.policy.device))


def _difference(old: str, new: str) -> str:
    """The first line in which two recipes differ."""
    before, after = old.splitlines(), new.splitlines()
    for a, b in zip(before, after, strict=False):
        if a != b:
            return f"it has '{a.strip()}' where this one has '{b.strip()}'"
    return "their lengths differ"
