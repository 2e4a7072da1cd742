"""Language experience: a sampler chooses items, the engine answers them, the verifier scores the answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from unipg.errors import InputError
from unipg.policies import weights
from unipg.policies.base import Policy
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.policies.reward_model import SequenceScorer
from unipg.rollouts.anchors import AnchorCache
from unipg.rollouts.base import FRESH, Completions, Demand, EvaluationResult, Experience
from unipg.rollouts.conversations import (
    Answer,
    Conversations,
    conversations,
    demonstrated_facts,
    sample_answers,
    told_text,
    tool_facts,
    tool_metrics,
)
from unipg.rollouts.evaluation import EvaluationRecipe, evaluate_pairs, evaluate_task
from unipg.rollouts.generation import Completion, ContinuousBatch
from unipg.rollouts.scoring import RewardSource
from unipg.rollouts.text import SamplingRecipe, answer_with_end, check_room, decode, end_tokens, prompt_text, prompt_tokens
from unipg.rollouts.windows import Slot, advance
from unipg.samplers.base import Sampler, UniformSampler
from unipg.seeding import generator, seed_everything
from unipg.tasks.base import Item, Messages, Task, Verifier, fingerprint
from unipg.tasks.tools import final_text, tools_of
from unipg.tasks.verifiers import score
from unipg.trajectories import Source, Trajectories

Spoken = Callable[[Task], Conversations | None]
"""How the tools of a task are used by the policy at hand; None for a task without tools."""


@dataclass
class Stream:
    """A task with its own order of items, and how many of them each iteration takes."""

    task: Task
    sampler: Sampler
    prompts: int


@dataclass(frozen=True)
class Given:
    """An answer that is there already: a demonstration, or a completion with a score."""

    item: Item
    prompt: list[int]
    group: int
    text: str
    source: Source
    reward: float = 0.0
    number: int = 0
    """Which of the item's completions it is."""
    messages: Messages | None = None
    """All of its turns, where it calls tools; `text` is then the last one's."""


@dataclass(frozen=True)
class Sampled:
    """A rollout that is not scored yet."""

    item: Item
    prompt: list[int]
    group: int
    completion: Completion
    answer: Answer | None = None
    """Which part of it is judged and how it used its tools, where there are any."""


class PromptRollouts(Experience):
    """Prompts of a task, answered by a causal language model and scored by the task's verifier.

    `demonstrations`: a stream of its own for demonstrations, in groups of their own; otherwise each prompt brings its own. `features`:
    further verifiers whose values of each rollout become `planned["feature/<name>"]`. `rewards`: what scores rollouts, where it is more
    than the task's verifier.
    """

    def __init__(
        self,
        task: Task,
        sampler: Sampler,
        *,
        prompts: int,
        sampling: SamplingRecipe | None = None,
        evaluation: EvaluationRecipe | None = None,
        evaluation_tasks: Sequence[Task] = (),
        demonstrations: Stream | None = None,
        features: Mapping[str, Verifier] | None = None,
        rewards: RewardSource | None = None,
    ) -> None:
        if prompts < 1:
            raise InputError(f"training.prompts is {prompts}; accepted: 1 or more per iteration")
        self.demonstrations, self.features, self.rewards = demonstrations, dict(features or {}), rewards
        self.anchors: AnchorCache | None = None
        self.task, self.sampler, self.prompts = task, sampler, prompts
        self.sampling = sampling or SamplingRecipe()
        self.evaluation = evaluation or EvaluationRecipe()
        self.evaluation_tasks = list(evaluation_tasks)
        self.max_new_tokens = self.sampling.max_new_tokens
        self.failures = 0
        self.tools = tools_of(task) or None
        self.slots: list[Slot] = []  # responses that go on in the next collection
        self.waiting: list[Slot] = []  # the rest of a prompt's rollouts, for which there was no slot

    @property
    def keeps_unfinished(self) -> bool:
        return self.tools is None

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, CausalLanguageModel | SequenceScorer)
        if demand.window is not None:
            return self._windowed(policy, demand)
        wanted = max(1, round(self.prompts * demand.share))
        first = (demand.iteration * 1000 + demand.round) * self.prompts * 2
        spoken = self._spoken(policy)
        drawn = self._draw(policy, Stream(self.task, self.sampler, wanted), first, demand, spoken)
        items, prompts, groups = drawn
        batches: list[Trajectories] = []
        metrics: dict[str, float] = {}
        if demand.rollouts:
            assert isinstance(policy, CausalLanguageModel)
            batch, metrics = self._rollouts(policy, items, prompts, groups, demand, spoken(self.task))
            batches.append(batch)
        given: list[Given] = []
        if demand.demonstrations:
            own = self.demonstrations
            if own is None:
                given += self._demonstrations(*drawn, demand)
            elif demand.round == 0:  # a batch that is topped up has its demonstrations already
                start = -1 - (demand.iteration + 1) * own.prompts * max(2, demand.workers)
                given += self._demonstrations(*self._draw(policy, own, start, demand, spoken), demand)
        if demand.completions != "none":
            given += self._completions(*drawn, demand)
        if given:
            batch, more = self._given(policy, given, demand, spoken)
            metrics |= more
            batches.append(batch)
        if not batches:
            raise InputError(
                f"no prompt of task '{self.task.name}' in this batch has a demonstration, and the algorithm trains on nothing else"
            )
        return Trajectories.join(batches), metrics

    def _spoken(self, policy: CausalLanguageModel | SequenceScorer) -> Spoken:
        """How each task's tools are used, found once for a collection: it costs several renderings of a chat template."""
        found: dict[int, Conversations | None] = {}

        def of(task: Task) -> Conversations | None:
            if id(task) not in found:
                found[id(task)] = conversations(policy.model, policy.tokenizer, task, self.sampling)
            return found[id(task)]

        return of

    def _draw(
        self, policy: CausalLanguageModel | SequenceScorer, stream: Stream, first: int, demand: Demand, spoken: Spoken
    ) -> tuple[list[Item], list[list[int]], list[int]]:
        """This worker's share of a stream's next items, their prompts' tokens, and a number for each group from `first` on."""
        chosen = stream.sampler.choose(stream.prompts)[demand.worker :: demand.workers]
        items = [stream.task.items[i] for i in chosen]
        groups = [first + demand.worker + i * demand.workers for i in range(len(items))]
        tools = spoken(stream.task)
        prompts = [tools.prompt(i) if tools else prompt_tokens(policy.tokenizer, i, self.sampling.chat_template) for i in items]
        check_room(policy.model, items, prompts, self.max_new_tokens)
        return items, prompts, groups

    def _rollouts(
        self,
        policy: CausalLanguageModel,
        items: list[Item],
        prompts: list[list[int]],
        groups: list[int],
        demand: Demand,
        tools: Conversations | None,
    ) -> tuple[Trajectories, dict[str, float]]:
        tokenizer = policy.tokenizer
        with policy.sampling() as model:
            if tools:
                tools.check_room(items, [len(prompt) for prompt in prompts])
            answers = sample_answers(
                model,
                tokenizer,
                prompts,
                self.sampling,
                tools,
                rollouts=demand.rollouts,
                temperature=policy.temperature,
                generator=generator(demand.seed, "sample", demand.iteration, demand.round, demand.worker, device=model.device),
                should_stop=demand.should_stop,
            )
        rows = [
            Sampled(item, prompt, number, answer.completion, answer)
            for item, prompt, number, mine in zip(items, prompts, groups, answers, strict=True)
            for answer in mine
        ]
        return self._scored(policy, rows, demand)

    def _windowed(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        """One more window of every slot. Finished responses made room for new ones before; their number, prompts times rollouts, stays."""
        if not isinstance(policy, CausalLanguageModel):
            raise InputError(f"a window needs a policy that generates token by token, not {type(policy).__name__}")
        assert demand.window is not None
        tokenizer, limit = policy.tokenizer, self.max_new_tokens
        if demand.window > limit:
            warnings.warn(
                f"the window of {demand.window} new tokens is longer than rollouts.max_new_tokens ({limit}): it never cuts", stacklevel=2
            )
        slots, waiting = self._refilled(policy, demand)
        rows = min(len(slots), self.sampling.batch_rows)
        with policy.sampling() as model:
            engine = ContinuousBatch(
                model,
                max_new_tokens=limit,
                end_tokens=end_tokens(model, tokenizer, self.sampling.chat_template),
                pad_token=tokenizer.pad_token_id,
                temperature=policy.temperature,
                generator=generator(demand.seed, "sample", demand.iteration, demand.round, demand.worker, device=model.device),
                batch_rows=self.sampling.batch_rows,
                decoding=self.sampling.decoding,
            )
            slots = advance(engine, slots, demand.window, limit, demand.should_stop)
        done = [slot for slot in slots if slot.finished(limit)]
        going = [slot for slot in slots if not slot.finished(limit)]
        batches: list[Trajectories] = []
        new = sum(slot.fresh for slot in slots)
        metrics = {
            "decode/steps": float(engine.steps),
            "decode/utilization": new / (engine.steps * rows),
            "window/cut_fraction": len(going) / len(slots),
            "window/oldest": float(demand.iteration - min(slot.born for slot in slots)),
        }
        if done:
            batch, told = self._scored(policy, [Sampled(s.item, s.prompt, s.group, s.completion) for s in done], demand)
            batches.append(batch)
            metrics |= told | {"window/per_response": sum(slot.windows for slot in done) / len(done)}
        if going:
            batches.append(self._unfinished(policy, going))
        batch = Trajectories.join(batches)
        steps = torch.arange(batch.mask.shape[1])
        begin = torch.tensor([len(slot.prompt) + slot.start for slot in [*done, *going]]).unsqueeze(1)
        self.slots, self.waiting = going, waiting
        return batch.with_planned(**{FRESH: batch.mask & (steps >= begin)}), metrics | {"tokens/rollout": float(new)}

    def _refilled(self, policy: CausalLanguageModel, demand: Demand) -> tuple[list[Slot], list[Slot]]:
        """This worker's slots, all of them taken, and the rollouts of the last prompt that wait for one.

        Workers draw as many prompts as they need: each takes its share of every draw, so that no two of them ask the same.
        """
        wanted = len(range(demand.worker, self.prompts, demand.workers)) * demand.rollouts
        if not wanted:
            raise InputError(f"training.prompts is {self.prompts}: a worker has no response to work on; accepted: {demand.workers} or more")
        ready = [*self.slots, *self.waiting]
        missing = -(-(wanted - len(ready)) // demand.rollouts)
        if missing > 0:
            first = demand.iteration * 1000 * self.prompts * 2
            drawn = self._draw(policy, Stream(self.task, self.sampler, missing * demand.workers), first, demand, self._spoken(policy))
            for item, prompt, group in zip(*drawn, strict=True):
                ready += [Slot(item, prompt, group, demand.iteration)] * demand.rollouts
        return ready[:wanted], ready[wanted:]

    def _unfinished(self, policy: CausalLanguageModel, slots: list[Slot]) -> Trajectories:
        """Rows that go on elsewhere: without reward, and with neither `terminated` nor `truncated`."""
        rows = [Sampled(s.item, s.prompt, s.group, s.completion) for s in slots]
        batch = sampled_rows(policy.tokenizer, rows, [0.0] * len(rows), [decode(policy.tokenizer, row.completion) for row in rows])
        return batch.replace(truncated=torch.zeros_like(batch.mask))

    def _scored(self, policy: CausalLanguageModel, rows: list[Sampled], demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        """The rows of finished rollouts, with what verifiers and features found."""
        tokenizer = policy.tokenizer
        flat = [row.completion for row in rows]
        found = [row.answer or Answer(row.completion, decode(tokenizer, row.completion)) for row in rows]
        answers = [answer.text for answer in found]
        seed_everything(demand.seed, "verify", demand.iteration, demand.round, demand.worker)
        asked = [row.item for row in rows]
        components: dict[str, list[float]] = {}
        if self.rewards is None:
            rewards, failures = score(self.task.verifier, answers, asked, self.sampling.verifier_seconds)
        else:
            rewards, components, failures = self.rewards(asked, answers, [c.ended for c in flat])
        self.failures += failures.count
        self.trouble = self.trouble or failures.trouble
        features = {}
        for name, verifier in self.features.items():
            values, missed = score(verifier, answers, asked, self.sampling.verifier_seconds)
            self.failures += missed.count
            self.trouble = self.trouble or missed.trouble
            features[f"feature/{name}"] = torch.tensor(values, dtype=torch.float32)
        batch = sampled_rows(tokenizer, rows, rewards, answers, **tool_facts(found))
        lengths = [sum(c.chosen) for c in flat]
        metrics = {
            "length/mean": sum(lengths) / len(lengths),
            "length/max": float(max(lengths)),
            "length/truncated_fraction": sum(not c.ended for c in flat) / len(flat),
            "tokens/rollout": float(sum(len(c.tokens) for c in flat)),
            "verifier/failures": float(failures.count),
            "verifier/raised_fraction": failures.kinds.get("raised", 0) / len(rows),
        }
        told = {f"reward/{name}": values for name, values in components.items()} | {k: v.tolist() for k, v in features.items()}
        opinions = {name: [v for v in values if not math.isnan(v)] for name, values in told.items()}
        metrics |= {name: sum(values) / len(values) for name, values in opinions.items() if values}
        return batch.replace(planned=features), metrics | tool_metrics(found, self.tools)

    def _demonstrations(self, items: list[Item], prompts: list[list[int]], groups: list[int], demand: Demand) -> list[Given]:
        """One of each item's demonstrations, where it has any."""
        given = []
        for item, prompt, group in zip(items, prompts, groups, strict=True):
            if item.demonstrations:
                draw = generator(demand.seed, "demonstration", item.index, demand.iteration)
                shown = item.demonstrations[int(torch.randint(len(item.demonstrations), (), generator=draw))]
                turns = None if isinstance(shown, str) else shown
                given.append(Given(item, prompt, group, final_text(shown), Source.DEMONSTRATION, messages=turns))
        if demand.score_demonstrations and given:
            rewards, _ = score(self.task.verifier, [g.text for g in given], [g.item for g in given], self.sampling.verifier_seconds)
            given = [replace(g, reward=reward) for g, reward in zip(given, rewards, strict=True)]
        return given

    def _completions(self, items: list[Item], prompts: list[list[int]], groups: list[int], demand: Demand) -> list[Given]:
        """Every given completion of each item; with single ones, the next prompt's completion too, as one that does not belong."""
        given: list[Given] = []
        for item, prompt, group in zip(items, prompts, groups, strict=True):
            given += [Given(item, prompt, group, c.text, Source.PREFERENCE, c.score, number) for number, c in enumerate(item.completions)]
        if demand.completions == "unpaired":
            if len(items) < 2:
                raise InputError("single completions are compared with those of other prompts; accepted: training.prompts of 2 or more")
            others = [*items[1:], items[0]]
            given += [
                Given(item, prompt, group, other.completions[0].text, Source.MISMATCHED)
                for item, other, prompt, group in zip(items, others, prompts, groups, strict=True)
            ]
        return given

    def _given(
        self, policy: CausalLanguageModel | SequenceScorer, given: list[Given], demand: Demand, spoken: Spoken
    ) -> tuple[Trajectories, dict[str, float]]:
        """Rows of answers that are there already."""
        in_turns = any(g.messages for g in given)
        shown_by = self.demonstrations.task if self.demonstrations else self.task
        tools = spoken(shown_by) if in_turns else None
        rows = [self.answer_tokens(policy.tokenizer, g, tools) for g in given]
        cut = sum(not ended for _, _, ended in rows)
        called = {"tool_calls": [demonstrated_facts(g.messages or []) for g in given]} if in_turns else {}
        batch = pack(
            [g.prompt for g in given],
            [tokens for tokens, _, _ in rows],
            [ended for _, _, ended in rows],
            chosen=[chosen for _, chosen, _ in rows],
            pad_token=policy.tokenizer.pad_token_id,
            group=[g.group for g in given],
            source=Source.DEMONSTRATION,
            reward=[g.reward for g in given],
            annotations=facts([g.item for g in given], [g.text for g in given], **called),
        )
        batch = batch.replace(source=torch.tensor([int(g.source) for g in given]))
        if self.anchors is not None:
            batch = batch.replace(anchor_log_prob=self.anchors.place([(g.item.index, g.number) for g in given], batch.mask))
        return batch, {"demonstrations/truncated": float(cut)} if cut else {}

    def answer_tokens(self, tokenizer: Any, given: Given, tools: Conversations | None = None) -> tuple[list[int], list[bool], bool]:
        """The tokens of a given answer with its end token, which of them are the policy's, and whether all of them fit."""
        limit, item = self.max_new_tokens, given.item
        if given.messages is None:
            tokens = answer_with_end(tokenizer, given.text, item.place or f"item {item.index}", self.sampling.chat_template)
            chosen = [True] * len(tokens)
        else:
            if tools is None:
                where = item.place or f"item {item.index}"
                raise InputError(f"the demonstration of {where} calls tools, but its task has none: set task.tools")
            tokens, chosen = tools.demonstrated(item, given.messages)
            tools.check_room([item], [len(given.prompt) + len(tokens) - 1])
        own = sum(chosen)
        if own <= limit:
            return tokens, chosen, True
        if self.sampling.long_demonstrations == "error":
            what = "demonstration" if given.source == Source.DEMONSTRATION else "completion"
            raise InputError(
                f"the {what} of {item.place or f'item {item.index}'} has {own - 1} tokens and its end token, more than "
                f"rollouts.max_new_tokens ({limit}): raise the limit, or set rollouts.long_demonstrations to truncate"
            )
        kept = list(accumulate(map(int, chosen))).index(limit) + 1
        return tokens[:kept], chosen[:kept], False

    def keep_anchors(self, anchors: AnchorCache) -> None:
        """From now on, rows of given completions carry the anchor's log-probabilities."""
        self.anchors, self.anchored = anchors, True

    def every_completion(self, policy: CausalLanguageModel | SequenceScorer) -> Iterator[tuple[tuple[int, int], Trajectories]]:
        """Each given completion of the task by (item, number), as a batch of one row."""
        for item in self.task.items:
            prompt = prompt_tokens(policy.tokenizer, item, self.sampling.chat_template)
            check_room(policy.model, [item], [prompt], self.max_new_tokens)
            for number, completion in enumerate(item.completions):
                given = Given(item, prompt, 0, completion.text, Source.PREFERENCE, completion.score, number)
                tokens, _, ended = self.answer_tokens(policy.tokenizer, given)
                row = pack(
                    [prompt], [tokens], [ended], pad_token=policy.tokenizer.pad_token_id, group=[0], source=Source.PREFERENCE, reward=[0.0]
                )
                yield (item.index, number), row

    @property
    def learns(self) -> bool:
        return not isinstance(self.sampler, UniformSampler)

    def update(self, batch: Trajectories, memory: Mapping[str, Any]) -> None:
        self.sampler.update(batch, memory)

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        results = []
        for number, task in enumerate(self.evaluation_tasks):

            def share(done: float, number: int = number) -> None:
                if progress is not None:
                    progress((number + done) / len(self.evaluation_tasks))

            if isinstance(policy, SequenceScorer):
                results.append(evaluate_pairs(policy, task, self.evaluation, self.sampling, share))
            elif isinstance(policy, CausalLanguageModel):
                results.append(evaluate_task(policy, task, self.evaluation, self.sampling, seed, share))
        return results

    def fingerprint(self) -> dict[str, str]:
        found = {"task": fingerprint(self.task.items)}
        if self.demonstrations is not None:
            found["demonstrations.task"] = fingerprint(self.demonstrations.task.items)
        for model in self.rewards.models if self.rewards is not None else ():
            found[f"the reward model '{model.name}'"] = weights.fingerprint(model.policy.module)
        return found

    def state_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = {} if self.demonstrations is None else {"demonstrations": self.demonstrations.sampler.state_dict()}
        work = {"slots": self.slots, "waiting": self.waiting}
        own |= {name: [{**vars(slot), "item": slot.item.index} for slot in slots] for name, slots in work.items() if slots}
        return {"sampler": self.sampler.state_dict(), "failures": self.failures, **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.failures = state["failures"]
        if self.demonstrations is not None:
            self.demonstrations.sampler.load_state_dict(state["demonstrations"])
        items = {item.index: item for item in self.task.items}
        self.slots, self.waiting = (
            [Slot(**{**slot, "item": items[slot["item"]]}) for slot in state.get(name, [])] for name in ("slots", "waiting")
        )

    def texts(self) -> list[str]:
        """Prompts, given answers and expected ones: what a tokenizer built from scratch learns from."""
        items = [*self.task.items, *(self.demonstrations.task.items if self.demonstrations else [])]
        shown = ([text for d in item.demonstrations for text in told_text(d)] for item in items)
        given = ((*own, *(c.text for c in item.completions), item.expected) for own, item in zip(shown, items, strict=True))
        return [t for item, texts in zip(items, given, strict=True) for t in (prompt_text(item), *texts) if t]


def check_given(task: Task, completions: Completions) -> None:
    """Refuses a task whose items do not have the given completions that an algorithm learns from, naming the first."""
    wanted = {
        "pairs": "one chosen and one rejected completion (scores 1 and 0)",
        "unpaired": "one completion that was liked or not (score 1 or 0)",
        "scored": "2 or more completions with scores",
    }
    for item in task.items if completions != "none" else []:
        scores = sorted(c.score for c in item.completions)
        fits = {"pairs": scores == [0.0, 1.0], "unpaired": scores in ([0.0], [1.0]), "scored": len(scores) > 1}
        if not fits[completions]:
            has = f"has {len(scores)} with scores {[round(s, 4) for s in scores]}" if scores else "has none"
            raise InputError(
                f"{item.place or f'item {item.index}'} {has}; the algorithm needs {wanted[completions]}: set preferences: {completions} "
                "in the task"
            )


def sampled_rows(tokenizer: Any, rows: Sequence[Sampled], rewards: list[float], answers: list[str], **more: list[Any]) -> Trajectories:
    """Rollouts as padded `[B,T]` tensors; `more`: further annotations."""
    completions = [row.completion for row in rows]
    return pack(
        [row.prompt for row in rows],
        [c.tokens for c in completions],
        [c.ended for c in completions],
        chosen=[c.chosen for c in completions],
        pad_token=tokenizer.pad_token_id,
        group=[row.group for row in rows],
        source=Source.ROLLOUT,
        reward=rewards,
        behaviour_log_prob=[c.log_probs for c in completions],
        annotations=facts([row.item for row in rows], answers, **more),
    )


def facts(items: Sequence[Item], answers: list[str], **more: list[Any]) -> dict[str, list[Any]]:
    """Annotations of rows that answer `items`."""
    return {
        "prompt": [prompt_text(item) for item in items],
        "answer": answers,
        "expected": [item.expected for item in items],
        "item": [item.index for item in items],
        **more,
    }


def pack(
    prompts: list[list[int]],
    answers: list[list[int]],
    ended: list[bool],
    *,
    pad_token: int,
    group: list[int],
    source: Source,
    reward: list[float],
    chosen: list[list[bool]] | None = None,
    behaviour_log_prob: list[list[float]] | None = None,
    annotations: dict[str, list[Any]] | None = None,
) -> Trajectories:
    """Token lists as padded `[B,T]` tensors: prompt and answer in one row, mask on the answer, or on what is `chosen` of it."""
    rows = len(prompts)
    width = max((len(p) + len(a) for p, a in zip(prompts, answers, strict=True)), default=1)
    action = torch.full((rows, width), pad_token)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    present = torch.zeros_like(mask)
    terminated, truncated = torch.zeros_like(mask), torch.zeros_like(mask)
    log_prob = None if behaviour_log_prob is None else torch.zeros(rows, width)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        begin, end = len(prompt), len(prompt) + len(answer)
        action[row, :end] = torch.tensor([*prompt, *answer])
        mask[row, begin:end] = True if chosen is None else torch.tensor(chosen[row], dtype=torch.bool)
        present[row, :end] = True
        if answer:
            (terminated if ended[row] else truncated)[row, end - 1] = True
        if log_prob is not None and behaviour_log_prob is not None:
            log_prob[row, begin:end] = torch.tensor(behaviour_log_prob[row])
    return Trajectories(
        action=action,
        mask=mask,
        present=present,
        group=torch.tensor(group, dtype=torch.long),
        source=torch.full((rows,), int(source)),
        reward=torch.tensor(reward, dtype=torch.float32),
        terminated=terminated,
        truncated=truncated,
        behaviour_log_prob=log_prob,
        annotations=annotations or {},
    )
