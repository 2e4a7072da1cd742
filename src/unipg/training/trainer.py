"""The one loop: collect, prepare, step, evaluate, save; for every method, for text and for control."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting, check_without_prompts
from unipg.errors import InputError
from unipg.estimator import Objective
from unipg.estimator.policy_gradient import check_log_probs, corrected
from unipg.files import write_file, write_folder, writing
from unipg.policies.base import Policy
from unipg.policies.weights import check_finite, fingerprint
from unipg.rollouts.base import Demand, Experience, Interrupted
from unipg.seeding import generator
from unipg.training.checkpoints import read_checkpoint, write_checkpoint
from unipg.training.collapse import Finding, Watch
from unipg.training.collection import Collected, CollectionProcess, collect
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.folder import check_free, locked, untouched
from unipg.training.learner import Learner, NonFinite
from unipg.training.observer import Observer, Observers, Stopped
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.state import restore, state_of
from unipg.training.tracking import Tracker
from unipg.trajectories import Trajectories

__all__ = ["NonFinite", "Observer", "Stopped", "Trainer", "TrainingRecipe"]


TROUBLE = "verifier-error.txt"
"""File of a run folder that says why answers could not be scored."""


class Trainer:
    """Trains `policy` with `algorithm` on `experience`.

        Trainer(GRPO(), policy, experience, folder=Path("runs/mine")).train()

    The folder receives metrics, checkpoints and the final model; see `Tracker` and `write_checkpoint`. While a run is at work no other may
    write to it, and nothing in it is written over that is not this run's.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        policy: Policy,
        experience: Experience,
        *,
        folder: Path,
        training: TrainingRecipe | None = None,
        optimizer: OptimizerRecipe | None = None,
        anchor: Policy | None = None,
        seed: int = 0,
        tracker: Tracker | None = None,
        observer: Any = None,
        workers: Workers | None = None,
        identity: str = "",
    ) -> None:
        self.algorithm, self.policy, self.experience, self.anchor = algorithm, policy, experience, anchor
        self.training = training or TrainingRecipe()
        self.folder, self.seed, self.identity = folder, seed, identity
        self.observer = observer if isinstance(observer, Observer) else Observers([] if observer is None else [observer])
        self.workers = workers or Workers()
        self.tracker = tracker
        if self.workers.leads:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            self.tracker = tracker or Tracker(folder)
        self.setting = Setting(max_new_tokens=experience.max_new_tokens)
        recipe = (optimizer or OptimizerRecipe()).settled(algorithm, policy, controller=not experience.has_prompts)
        objective = algorithm.terms(self.setting)
        if self.training.overlap:
            self._check_overlap()
            objective = corrected(objective, self.training.overlap_limit)
        self._check_needs(objective, recipe)
        self.workers.share([*policy.module.parameters(), *policy.module.buffers()])
        self.learner = Learner(
            algorithm,
            policy,
            objective,
            training=self.training,
            recipe=recipe,
            workers=self.workers,
            seed=seed,
            folder=folder,
        )
        self.watch = Watch.of(algorithm, policy)
        self.watch.listeners.append(self.observer.warning)
        self.iteration = self.position = 0
        self.seconds = 0.0
        self.batch: Trajectories | None = None
        self._shuffled: tuple[int, Trajectories, Trajectories] | None = None
        self.proposal: Policy | None = None
        if algorithm.proposes or self.training.overlap:
            self.proposal = policy.proposal()
            self.proposal.module.eval().requires_grad_(False)
        self.proposed_at = 0
        self.ahead: CollectionProcess | None = None
        self.unlearned: Trajectories | None = None  # what samplers have yet to learn from, while a batch is collected ahead
        self.row: dict[str, Any] = {}
        self.evaluated_at = -1
        self._saved: tuple[int, int] | None = None
        """Iteration and position of the last checkpoint of this process."""
        self.begun = False
        """Whether the folder holds this run already: after the first call of `train`, or `resume`."""
        self.stop_requested = False
        self.ended = ""
        """Why the run ends before its last iteration (`finish`)."""
        self.stop_after_steps: int | None = None

    # ------------------------------------------------------------------------------------------------ what the parts need

    def _check_needs(self, objective: Objective, optimizer: OptimizerRecipe) -> None:
        if not self.experience.has_prompts:
            check_without_prompts(self.algorithm)
        reads = objective.reads | self.algorithm.reads
        who = f"algorithm '{self.algorithm.name}'"
        if "anchor_log_prob" in reads and self.anchor is None and not self.experience.anchored:
            raise InputError(f"{who} measures a KL and needs an anchor policy")
        if ("value" in reads or objective.reads_value) and not self.policy.has_value:
            raise InputError(f"{who} needs a critic: build the policy with one")
        if "value" in reads and optimizer.critic_learning_rate is not None and not self.policy.critic_parameters:
            raise InputError(
                "optimizer.critic_learning_rate is set, but the critic is no model of its own; accepted: null, or a language policy whose "
                "critic is detached or separate"
            )
        if self.algorithm.window is not None:
            given = self.algorithm.demonstrations != "none" or self.algorithm.completions != "none"
            if given or self.algorithm.most_sampling_rounds > 1 or not self.experience.keeps_unfinished:
                raise InputError(
                    f"algorithm.window is {self.algorithm.window}: only rollouts of a language model, without tools, given completions and "
                    "dynamic sampling, go on from one iteration to the next; accepted here: null"
                )

    def _check_groups(self, batch: Trajectories) -> None:
        """Of rows that came without prompts that they answer: whether there is anything to compare where something is compared."""
        assert batch.group is not None
        compares = self.algorithm.needs_group > 1 or self.objective.compares
        if compares and len(batch.group.unique()) == len(batch):
            raise InputError(f"algorithm '{self.algorithm.name}' compares the rows of a group, but each row of this batch is one by itself")

    def _check_overlap(self) -> None:
        algorithm = self.algorithm
        if not algorithm.uses_rollouts or algorithm.proposes:
            why = "keeps a proposal of its own to sample from" if algorithm.proposes else "does not sample"
            raise InputError(f"training.overlap is true, but algorithm '{algorithm.name}' {why}; accepted here: false")
        if algorithm.most_sampling_rounds > 1 and self.workers.world > 1:
            raise InputError("training.overlap cannot top up batches over several workers; accepted with dynamic sampling: one worker")

    @property
    def objective(self) -> Objective:
        return self.learner.objective

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.learner.optimizer

    @property
    def step(self) -> int:
        """Optimiser steps taken so far."""
        return self.learner.step

    # ------------------------------------------------------------------------------------------------ the loop

    def train(self) -> dict[str, Any]:
        """Runs to the end, or raises Stopped after writing a checkpoint when `stop_requested` was set. Returns the last metrics row.

        Errors: `InputError` while another run writes to the folder, where the folder holds another run's work (`resume` continues it), and
        for a folder that cannot be written, a full disk included: the last good checkpoint is then untouched.
        """
        with self._at_work():
            check_finite(self.policy.module, "the policy")
            if not self.begun and self.workers.leads:
                check_free(self.folder)
                if self.tracker:
                    self.tracker.rewind(0, -1)  # what a run that failed in its first iteration has left
            self.begun = True
            status = "failed"
            self.observer.start(self)
            try:
                last = self._train()
                status = "finished"
            except Stopped:
                status = "stopped"
                raise
            finally:
                self.observer.stop(status)
            return last

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Keeps other runs out of the folder, and ends what runs beside this process."""
        with locked(self.folder) if self.workers.leads else nullcontext():
            try:
                yield
            finally:
                if self.ahead is not None:
                    self.ahead.close()
                    self.ahead = None

    def finish(self, why: str) -> None:
        """Ends the run after the iteration that is going on, as if it had been the last; `why` is one line for the user and run.json."""
        if not self.ended:
            self.ended = why
            self.observer.note(f"ended early: {why}")

    def _train(self) -> dict[str, Any]:
        last: dict[str, Any] = {}
        while self.iteration < self.training.iterations and not self._ending():
            began = time.perf_counter()
            if self.batch is None:
                self._evaluate_if_due()
                if self._ending():
                    break
                state = state_of(self)  # where this iteration can be repeated from, should its collection be stopped
                try:
                    self._collect()
                except Interrupted:
                    self._write(state)
                    raise Stopped from None
            self._update()
            last = self._finish_iteration(time.perf_counter() - began)
            if self._stopping():
                self.save_checkpoint()
                raise Stopped
        self._evaluate_if_due()
        self.save_checkpoint()
        if self.tracker:
            self.tracker.close()
        if self.workers.leads:
            write_folder(self.folder / "model", self.policy.save, untouched)
            write_folder(self.folder / "critic", self.policy.save_critic, untouched)
        self.workers.wait()
        return last

    def _look(self) -> None:
        """A batch that nothing is learned from but what the policy must know of its inputs first."""
        looked = collect(self.algorithm, self.experience, self.policy, self._demand(-1), self.workers.sum)
        self.policy.observe(looked.batch.to(self.policy.device), self.workers.sum)
        if self.proposal is not None:
            self._renew_proposal()

    def _collect(self) -> None:
        if self.policy.must_observe:
            self._look()
        collected = self._rollouts()
        metrics = collected.metrics
        if self.tracker:
            self.tracker.histograms(self.iteration, collected.histograms)
        if collected.trouble:
            broken = self.iteration == 0 and metrics.get("verifier/raised_fraction") == 1
            self._tell_trouble(collected.trouble, "every rollout" if broken else "", "the rollouts")
        batch = collected.batch.to(self.policy.device)
        if self.policy.memoryless and not self.learner.cuts_steps:
            batch = batch.as_episodes()  # its rows may be windows with several of them
            self._check_groups(batch)
        batch = self._prepare(batch)
        metrics |= self.algorithm.metrics(batch)
        if self.algorithm.proposes and self.algorithm.adopts(batch, self.learner.planning()):
            self._renew_proposal()
            metrics["proposal/adopted"] = 1.0
        self.row = metrics
        live = batch.mask.any(1)
        if not bool(live.all()):  # nothing is left in them to learn from, and no aggregate counts them
            batch = batch.select(live)
        self.batch = batch.as_steps() if self.learner.cuts_steps else batch
        self.position = 0

    def _rollouts(self) -> Collected:
        """The fresh batch of this iteration; with `overlap` that of the process that collected it during the last one."""
        if not self.training.overlap:
            return collect(self.algorithm, self.experience, self.proposal or self.policy, self._demand(self.iteration), self.workers.sum)
        if self.ahead is None:
            assert self.proposal is not None
            self.ahead = CollectionProcess(self.algorithm, self.experience, self.proposal)
            self.proposal = self.ahead.policy
        if not self.ahead.busy:  # the first iteration, or the first after a resume
            self.ahead.start(self._demand(self.iteration), self.experience.state_dict())
        began = time.perf_counter()
        collected, state = self.ahead.result(lambda: self.stop_requested and self.workers.world == 1)
        waited = {"time/waited_for_rollouts": time.perf_counter() - began, "staleness/steps": float(self.step - self.proposed_at)}
        collected.metrics |= waited
        self.experience.load_state_dict(state)
        if self.unlearned is not None:
            self.experience.update(self.unlearned, self.learner.memory)
        self._renew_proposal()  # also in the last iteration: the run may be continued with more of them
        if self.iteration + 1 < self.training.iterations:
            self.ahead.start(self._demand(self.iteration + 1), self.experience.state_dict())
        return collected

    def _demand(self, iteration: int) -> Demand:
        return Demand(
            iteration=iteration,
            rollouts=self.algorithm.rollouts if self.algorithm.uses_rollouts else 0,
            demonstrations=self.algorithm.demonstrations != "none",
            score_demonstrations=self.algorithm.scores_demonstrations,
            completions=self.algorithm.completions,
            value=self.policy.has_value,
            window=self.algorithm.window,
            seed=self.seed,
            worker=self.workers.rank,
            workers=self.workers.world,
            should_stop=lambda: self.stop_requested and self.workers.world == 1,
        )

    def _renew_proposal(self) -> None:
        assert self.proposal is not None
        self.proposal.follow(self.policy)
        self.proposed_at = self.step

    def _prepare(self, batch: Trajectories) -> Trajectories:
        """Whole-batch work: what planning reads, the algorithm's own, advantages, then log-probabilities under frozen policies."""
        planning = self.learner.planning()
        reads = self.objective.reads | self.algorithm.reads
        first = self.algorithm.reads | (reads & {"value"})
        if first & {"old_entropy", "value"} and self.training.steps_per_batch > 1:
            first |= reads & {"old_log_prob"}  # of the same pass
        batch = self._frozen(batch, first)
        batch = self.objective.prepare(self.algorithm.prepare(batch, self.setting, planning), planning)
        if self.training.steps_per_batch == 1:
            reads = reads - {"old_log_prob"}  # the policy has not moved: the ratio is 1 to the last bit
        return self._frozen(batch, reads, None if self.objective.reach == "batch" else self.objective.touched_rows(batch))

    def _frozen(self, batch: Trajectories, fields: frozenset[str], rows: Tensor | None = None) -> Trajectories:
        """The batch with the named log-probabilities, entropies and values, taken without gradient by old policy, critic and anchor.

        `rows [B]`: only those are evaluated; the others cannot move the policy.
        """
        sources = {"old_log_prob": "log_prob", "old_entropy": "entropy", "value": "value"}
        missing = [name for name in sources if name in fields and getattr(batch, name) is None]
        if missing:
            now = self.learner.frozen(self.policy, batch, rows, value="value" in missing, entropy="old_entropy" in missing)
            batch = batch.replace(**{name: getattr(now, sources[name]) for name in missing})
        if "anchor_log_prob" in fields and batch.anchor_log_prob is None:
            assert self.anchor is not None
            batch = batch.replace(anchor_log_prob=self.learner.frozen(self.anchor, batch, rows).log_prob)
            check_log_probs(batch.require("anchor_log_prob", "the anchor"), batch, "anchor_log_prob")
        return batch

    # ------------------------------------------------------------------------------------------------ updates

    def _update(self) -> None:
        assert self.batch is not None
        began = time.perf_counter()
        if self.position == 0:
            self.learner.diagnostics = UpdateDiagnostics()
        while self.position < self.training.steps_per_batch:
            try:
                told = self.learner.optimise(self._minibatch(self.batch))
            except InputError:
                self.learner.check_weights()  # where an earlier step has spoilt them, that is what to say
                raise
            if "tokens/update" in told:
                told["tokens/update"] += self.row.get("tokens/update", 0.0)
            self.row |= told
            self.position += 1
            if self.stop_after_steps is not None and self.step >= self.stop_after_steps:
                self.stop_requested = True
            self.observer.phase("update", self.position / self.training.steps_per_batch)
            if self.position < self.training.steps_per_batch and self._stopping():
                self.learner.check_weights()
                self.save_checkpoint()
                raise Stopped
        self.learner.forget_gradients()
        self.learner.check_weights()
        self.row["time/update"] = self.row.get("time/update", 0.0) + time.perf_counter() - began

    def _stopping(self) -> bool:
        return self._agreed(self.stop_requested)

    def _ending(self) -> bool:
        return self._agreed(bool(self.ended))

    def _agreed(self, asked: bool) -> bool:
        """Whether any worker was asked: all of them must agree, or they would wait for each other for ever."""
        return asked if self.workers.world == 1 else bool(self.workers.sum(torch.tensor(float(asked))) > 0)

    def _minibatch(self, batch: Trajectories) -> Trajectories:
        """The rows of the current optimiser step: a share of a permutation that seed, iteration and epoch decide.

        Of rows, or of whole groups where an advantage looks at them.
        """
        parts = self.training.minibatches
        if parts == 1:
            return batch
        epoch, part = divmod(self.position, parts)
        if self.objective.reach == "group":  # a pair that is torn apart would be compared with nothing
            assert batch.group is not None
            groups, unit = batch.group.unique(return_inverse=True)
            order = torch.randperm(len(groups), generator=generator(self.seed, "order", self.iteration, epoch))
            return batch.select(torch.isin(unit, order.to(unit.device).tensor_split(parts)[part]))
        if self._shuffled is None or self._shuffled[0] != epoch or self._shuffled[1] is not batch:
            order = torch.randperm(len(batch), generator=generator(self.seed, "order", self.iteration, epoch))
            self._shuffled = epoch, batch, batch.select(order.to(batch.mask.device))
        size, larger = divmod(len(batch), parts)  # the first `larger` parts have one row more
        start = part * size + min(part, larger)
        return self._shuffled[2].window(start, start + size + (part < larger))

    def _finish_iteration(self, seconds: float) -> dict[str, Any]:
        assert self.batch is not None
        self.seconds += seconds
        self.row |= self.learner.diagnostics.metrics()
        self.row |= self.algorithm.learn(self.batch, self.learner.planning(), self.learner.evaluate)
        self.policy.observe(self.batch, self.workers.sum)
        skipped = {f"steps/skipped_{why}": count for why, count in self.learner.skipped.items() if count}
        row = {"iteration": self.iteration, "step": self.step, "seconds": self.seconds, **self.row, **skipped}
        if self.tracker:
            self.tracker.metrics(row)
            self.tracker.histograms(self.iteration, self.learner.diagnostics.histograms())
            self.watch.read(row)
        if not self.training.overlap:
            self.experience.update(self.batch, self.learner.memory)
        elif self.experience.learns:
            self.unlearned = self.batch
        self.batch, self._shuffled, self.row = None, None, {}
        self.iteration += 1
        self.observer.iteration(self.iteration, self.training.iterations, row)
        if self.iteration % self.training.save_every == 0:
            self.save_checkpoint()
        return row

    # ------------------------------------------------------------------------------------------------ evaluation

    def _evaluate_if_due(self) -> None:
        ends = self.iteration in (0, self.training.iterations) or bool(self.ended)
        due = ends or (self.training.evaluate_every > 0 and self.iteration % self.training.evaluate_every == 0)
        if not due or self.evaluated_at == self.iteration or not self.workers.leads:
            return
        began = time.perf_counter()
        try:
            results = self.experience.evaluate(self.policy, self.seed, self._evaluation_progress)
        except Interrupted:
            self.save_checkpoint()
            raise Stopped from None
        self.seconds += time.perf_counter() - began
        self.evaluated_at = self.iteration
        if results and self.tracker:
            self.tracker.evaluation(self.iteration, self.step, time.perf_counter() - began, results)
            self.observer.evaluation(results)
        for result in results:
            if result.trouble:
                self._tell_trouble(result.trouble, "", f"the evaluation of {result.task}")

    def _tell_trouble(self, trouble: str, broken: str, where: str) -> None:
        """Keeps in the run folder why answers could not be scored, and says so once; ends a run in which none could be."""
        path = self.folder / TROUBLE
        if self.workers.leads and not path.exists():
            write_file(path, f"iteration {self.iteration}, {where}\n{trouble}\n", untouched)
        first = trouble.splitlines()[0]
        if broken:
            raise InputError(f"the verifier raised an error for {broken}; the first: {first}; its traceback is in {path}")
        self.watch.tell(
            Finding("verifier", self.iteration, f"answers of {where} could not be scored and count as 0; the first: {first} (see {path})")
        )

    def _evaluation_progress(self, done: float) -> None:
        self.observer.phase("evaluate", done)
        if self.stop_requested and self.workers.world == 1:
            raise Interrupted

    # ------------------------------------------------------------------------------------------------ state

    def save_checkpoint(self) -> None:
        self._write(state_of(self))

    def _write(self, state: dict[str, Any]) -> None:
        if self.workers.leads:
            moment = state["iteration"], state["position"]
            write_checkpoint(self.folder, state, again=self._saved == moment)
            self._saved = moment
            self.observer.checkpoint(self.folder)
        self.workers.wait()

    def resume(self, *, trust: bool = False) -> None:
        """Takes up the folder's last good checkpoint; `train` then goes on from there.

        `trust`: load what another user's run, or another machine's, has pickled, which runs code from it. Errors: `InputError` for a
        checkpoint of another recipe, of other data, or of more iterations than are wanted, and where there is none that is good.
        """
        with self._at_work():
            restore(self, read_checkpoint(self.folder), trust=trust)
            if self.tracker and self.workers.leads:
                self.tracker.rewind(self.iteration, self.evaluated_at)
                for row in self.tracker.rows():
                    self.watch.read(row, again=True)
        self.begun = True

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Of what the run draws from and is measured against, by name: what must be the same when it is continued."""
        own = {} if self.anchor is None else {"the anchor": fingerprint(self.anchor.module)}
        return self.experience.fingerprint() | own
