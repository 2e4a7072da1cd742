"""The one loop: collect, prepare, step, evaluate, save; for every method, for text and for control."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from unipg.algorithms.base import Algorithm, Setting, check_feed, check_without_prompts
from unipg.errors import InputError
from unipg.estimator import Objective
from unipg.estimator.policy_gradient import corrected
from unipg.files import write_file, write_folder, writing
from unipg.policies.base import Policy
from unipg.policies.spaces import kinds_with
from unipg.policies.weights import check_finite, fingerprint
from unipg.rollouts.base import Experience, Interrupted
from unipg.training.checkpoints import read_checkpoint, write_checkpoint
from unipg.training.collapse import Finding, Watch
from unipg.training.diagnostics import UpdateDiagnostics
from unipg.training.distribution import Workers
from unipg.training.feeds.base import Feed
from unipg.training.feeds.dataset import Dataset, DatasetRecipe
from unipg.training.feeds.generated import Generating
from unipg.training.feeds.joined import Joined
from unipg.training.feeds.mixed import Mixed
from unipg.training.feeds.replay import Replay, ReplayRecipe
from unipg.training.feeds.rollouts import Rollouts
from unipg.training.feeds.staged import HandedOver
from unipg.training.folder import check_free, locked, untouched
from unipg.training.learner import Learning, NonFinite
from unipg.training.observer import Observer, Observers, Stopped
from unipg.training.optimization import OptimizerRecipe, TrainingRecipe
from unipg.training.stages import Stages
from unipg.training.state import restore, state_of
from unipg.training.tracking import Tracker
from unipg.training.weights import Weights

__all__ = ["NonFinite", "Observer", "Stopped", "Trainer", "TrainingRecipe"]


SUMMED = frozenset({"tokens/update", "trust_region/rejected"})
"""Of what a step tells: what is summed over the steps of an iteration."""
ROUNDS_TOLD = 16
"""Rounds between two signs of life, of iterations that have many."""
BRIEF = 0.1
"""Seconds within which collecting a batch is not worth being interrupted."""
TROUBLE = "verifier-error.txt"
"""File of a run folder that says why answers could not be scored."""


class Trainer:
    """Trains `policy` with `algorithm` on `experience`.

        Trainer(GRPO(), policy, experience, folder=Path("runs/mine")).train()

    The folder receives metrics, checkpoints and the final model; see `Tracker` and `write_checkpoint`. While a run is at work no other may
    write to it, and nothing in it is written over that is not this run's. Making a trainer writes nothing: what a run cannot have is an
    `InputError` before there is a folder.
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
        replay: ReplayRecipe | None = None,
        dataset: DatasetRecipe | None = None,
    ) -> None:
        self.algorithm, self.policy, self.experience, self.anchor = algorithm, policy, experience, anchor
        self.training = training or TrainingRecipe()
        self.folder, self.seed, self.identity = folder, seed, identity
        self.observer = observer if isinstance(observer, Observer) else Observers([] if observer is None else [observer])
        self.workers = workers or Workers()
        self.tracker = tracker or (Tracker(folder) if self.workers.leads else None)
        self.setting = Setting(experience.max_new_tokens, policy.counts_actions, policy.actions_per_step, not experience.has_prompts)
        self.learned = algorithm.learned(self.setting)
        if self.training.overlap:
            self._check_overlap()
            limit = self.training.overlap_limit
            self.learned = tuple(dataclasses.replace(made, objective=corrected(made.terms, limit)) for made in self.learned)
        recipe = optimizer or OptimizerRecipe()
        self._check_needs(Objective(tuple(term for made in self.learned for term in made.terms.terms)), recipe)
        recipe.check_learners({made.role for made in self.learned})
        self.workers.share([*policy.module.parameters(), *policy.module.buffers()])
        self.weights = Weights(policy)
        self.memory: dict[str, Any] = {}
        self.diagnostics = UpdateDiagnostics()
        self.learners: list[Learning] = []
        self.feed = self._build_feed(replay, dataset)
        for made in self.learned:
            learning = Learning(
                self.feed.fitted(made),
                algorithm,
                policy,
                self.weights,
                training=self.training,
                recipe=recipe.of(made.role).settled(algorithm, policy, controller=not experience.has_prompts, own=made.optimizer),
                workers=self.workers,
                seed=seed,
                folder=folder,
                steps=self.feed.steps(made),
                memory=self.memory,
                diagnostics=self.diagnostics,
                keeps_records=self.feed.keeps_records,
                neighbours=self.feed.neighbours,
            )
            self.learners.append(learning)
        self.learner = next((found for found in self.learners if found.spec.role == "policy"), self.learners[0])
        """The one whose objective is the policy's, where there are several."""
        self.stages = Stages(self)
        self.watch = Watch.of(algorithm, policy)
        self.watch.listeners.append(self.observer.warning)
        self.iteration = self.round = self.position = self.step = 0
        """Where the run stands: iteration, its round, updates in that round; and updates so far."""
        self.gathered = False
        """Whether the round has gathered what it adds."""
        self.seconds = 0.0
        self.row: dict[str, Any] = {}
        self.evaluated_at = -1
        self._saved: tuple[int, ...] | None = None
        """Iteration, round and position of the last checkpoint of this process."""
        self.begun = False
        """Whether the folder holds this run already: after the first call of `train`, or `resume`."""
        self.stop_requested = False
        self.brief = False
        """Whether the last batch was collected in next to no time: the next one is then waited for, also by who asks the run to stop."""
        self.ended = ""
        """Why the run ends before its last iteration (`finish`)."""
        self.stop_after_steps: int | None = None

    # ------------------------------------------------------------------------------------------------ what the parts need

    def _check_needs(self, objective: Objective, optimizer: OptimizerRecipe) -> None:
        if not self.experience.has_prompts:
            check_without_prompts(self.algorithm)
        elif self.algorithm.acts:
            raise InputError(f"algorithm '{self.algorithm.name}' trains controllers; accepted: an environment")
        reads = objective.reads | self.algorithm.reads
        who = f"algorithm '{self.algorithm.name}'"
        if "anchor_log_prob" in reads and self.anchor is None and not self.experience.anchored:
            raise InputError(f"{who} measures a KL and needs an anchor policy")
        if ("value" in reads or objective.reads_value) and not self.policy.has_value:
            raise InputError(f"{who} needs a critic: build the policy with one")
        if (objective.reads_entropy or "old_entropy" in reads) and not self.policy.has_entropy:
            weight = getattr(self.algorithm, "entropy", 0.0)
            asks, without = (f"algorithm.entropy is {weight:g}", "0, or ") if weight else (f"{who} reads the policy's entropy", "")
            raise InputError(
                f"{asks}, but {self.policy.called} has none in closed form; accepted: {without}controller.kind "
                f"{kinds_with('has_entropy')}, or actions that can be counted"
            )
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

    def _build_feed(self, replay: ReplayRecipe | None, dataset: DatasetRecipe | None) -> Feed:
        check_feed(self.algorithm, replay is not None, dataset is not None)
        if dataset is not None and self.algorithm.mixes:
            return Mixed(self, dataset)
        if not self.algorithm.replays:
            return Generating(self) if any(made.data is not None for made in self.learned) else Rollouts(self)
        if dataset is None:
            return Replay(self, replay or ReplayRecipe())
        if replay is not None:
            return Joined(self, replay, dataset)
        return HandedOver(self, dataset) if any(made.collects for made in self.learned) else Dataset(self, dataset)

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
            self.feed.open()
            status = "failed"
            self.observer.start(self)
            if missed := self.stages.unreached():
                self.observer.note(missed)
            try:
                last = self._train()
                status = "finished"
            except Stopped:
                status = "stopped"
                raise
            finally:
                self.feed.close()  # and whatever runs beside this process
                self.observer.stop(status)
            return last

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Keeps other runs out of the folder, which is made where there is none."""
        if self.workers.leads:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder) if self.workers.leads else nullcontext():
            yield

    def finish(self, why: str) -> None:
        """Ends the run after the iteration that is going on, as if it had been the last; `why` is one line for the user and run.json."""
        if not self.ended:
            self.ended = why
            self.observer.note(f"ended early: {why}")

    def _train(self) -> dict[str, Any]:
        last: dict[str, Any] = {}
        while self.iteration < self.training.iterations and not self._ending():
            began = time.perf_counter()
            if not self.feed.begun:
                self.stages.begin()
                self._evaluate_if_due()
                if self._ending():
                    break
                self.stages.restore()
                # where this iteration can be repeated from, should its collection be stopped: a copy of running environments may cost as
                # much as a short window of them, which is waited for instead
                state = None if self.brief else state_of(self)
                try:
                    self.feed.begin()
                except Interrupted:
                    assert state is not None
                    self._write(state)
                    raise Stopped from None
                played = not (self.experience.has_prompts or self.training.overlap)
                self.brief = played and time.perf_counter() - began < BRIEF
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

    # ------------------------------------------------------------------------------------------------ updates

    def _update(self) -> None:
        began = time.perf_counter()
        feed = self.feed
        if self.round == self.position == 0 and not self.gathered:
            self.diagnostics.forget()
        while self.round < feed.rounds:
            if not self.gathered:
                feed.gather(self.round)
                self.gathered = True
            updates = feed.updates(self.round)
            while self.position < updates:
                self._step(feed)
                self.position += 1
                self.step += 1
                if self.stop_after_steps is not None and self.step >= self.stop_after_steps:
                    self.stop_requested = True
                if feed.rounds == 1:
                    self.observer.phase("update", self.position / updates)
                    if self.position < updates:
                        self._stop_here()
            self.round, self.position, self.gathered = self.round + 1, 0, False
            if feed.rounds > 1:
                if self.round % ROUNDS_TOLD == 0:
                    self.observer.phase("update", self.round / feed.rounds)
                if self.round < feed.rounds:
                    self._stop_here()
        for learner in self.learners:
            learner.forget_gradients()
        self.learner.check_weights()
        self.row["time/update"] = self.row.get("time/update", 0.0) + time.perf_counter() - began - feed.seconds

    def _step(self, feed: Feed) -> None:
        """One update: the learners whose turn it is, on the same rows."""
        batch = feed.draw(self.round, self.position)
        now = feed.now(batch)
        try:
            for learner in feed.due(self.round, self.position):
                displaced = feed.displaced if learner.direction.displaces else ()
                told = learner.optimise(batch, (self.iteration, self.position), now, displaced)
                for name in told.keys() & SUMMED:
                    told[name] += self.row.get(name, 0.0)
                self.row |= told
                feed.stepped(learner)
        except InputError:
            self.learner.check_weights()  # where an earlier step has spoilt them, that is what to say
            raise

    def _stop_here(self) -> None:
        """Ends the run between two updates where it was asked to."""
        if self._stopping():
            self.learner.check_weights()
            self.save_checkpoint()
            raise Stopped

    def _stopping(self) -> bool:
        return self._agreed(self.stop_requested)

    def _ending(self) -> bool:
        return self._agreed(bool(self.ended))

    def _agreed(self, asked: bool) -> bool:
        """Whether any worker was asked: all of them must agree, or they would wait for each other for ever."""
        return asked if self.workers.world == 1 else bool(self.workers.sum(torch.tensor(float(asked))) > 0)

    def _finish_iteration(self, seconds: float) -> dict[str, Any]:
        self.seconds += seconds
        self.row |= self.diagnostics.metrics()
        self.row |= self.feed.finish() | self.stages.metrics()
        skipped: dict[str, int] = {}
        for learner in self.learners:
            for why, count in learner.skipped.items():
                if count:
                    key = f"{learner.prefix}steps/skipped_{why}"
                    skipped[key] = skipped.get(key, 0) + count
        row = {"iteration": self.iteration, "step": self.step, "seconds": self.seconds, **self.row, **skipped}
        if self.tracker:
            self.tracker.metrics(row)
            self.tracker.histograms(self.iteration, self.diagnostics.histograms())
            self.watch.read(row)
        self.feed.learnt()
        self.row = {}
        self.iteration += 1
        self.round = self.position = 0
        self.observer.iteration(self.iteration, self.training.iterations, row)
        if self.iteration % self.training.save_every == 0:
            self.save_checkpoint()
        return row

    # ------------------------------------------------------------------------------------------------ evaluation

    def _evaluate_if_due(self) -> None:
        every = self.training.evaluate_every
        due = self.iteration == 0 or (every > 0 and self.iteration % every == 0) or self.stages.ends
        ends = self.iteration == self.training.iterations or bool(self.ended)
        if not (due or ends) or self.evaluated_at == self.iteration or not self.workers.leads:
            return
        began = time.perf_counter()
        try:
            results = self.experience.evaluate(self.policy, self.seed, self._evaluation_progress)
        except Interrupted:
            self.save_checkpoint()
            raise Stopped from None
        self.seconds += time.perf_counter() - began
        self.evaluated_at = self.iteration
        if due:  # what is evaluated because the run ends here decides nothing: a longer one would not have it
            self.stages.evaluated(results)
        if results and self.tracker:
            self.tracker.evaluation(self.iteration, self.step, time.perf_counter() - began, results)
            self.observer.evaluation(results)
        for result in results:
            if result.trouble:
                self.tell_trouble(result.trouble, "", f"the evaluation of {result.task}")

    def tell_trouble(self, trouble: str, broken: str, where: str) -> None:
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
            moment = state["iteration"], state["round"], state["position"]
            self.feed.flush()
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
