"""Language experience: a sampler chooses items, the engine answers them, the verifier scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from unipg.errors import InputError
from unipg.policies.base import Policy
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.policies.reward_model import SequenceScorer
from unipg.rollouts.anchors import AnchorCache
from unipg.rollouts.base import Completions, Demand, EvaluationResult, Experience
from unipg.rollouts.evaluation import EvaluationRecipe, evaluate_pairs, evaluate_task
from unipg.rollouts.generation import Completion, sample
from unipg.rollouts.scoring import RewardSource
from unipg.rollouts.text import SamplingRecipe, check_room, decode, end_tokens, prompt_text, prompt_tokens
from unipg.samplers.base import Sampler
from unipg.seeding import generator, seed_everything
from unipg.tasks.base import Item, Task, Verifier
from unipg.tasks.verifiers import score
from unipg.trajectories import Source, Trajectories


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


@dataclass(frozen=True)
class Sampled:
    """A rollout that is not scored yet."""

    item: Item
    prompt: list[int]
    group: int
    completion: Completion


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

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, CausalLanguageModel | SequenceScorer)
        wanted = max(1, round(self.prompts * demand.share))
        first = (demand.iteration * 1000 + demand.round) * self.prompts * 2
        drawn = self._draw(policy, Stream(self.task, self.sampler, wanted), first, demand)
        items, prompts, groups = drawn
        batches: list[Trajectories] = []
        metrics: dict[str, float] = {}
        if demand.rollouts:
            assert isinstance(policy, CausalLanguageModel)
            batch, metrics = self._rollouts(policy, items, prompts, groups, demand)
            batches.append(batch)
        given: list[Given] = []
        if demand.demonstrations:
            own = self.demonstrations
            if own is None:
                given += self._demonstrations(*drawn, demand)
            elif demand.round == 0:  # a batch that is topped up has its demonstrations already
                start = -1 - (demand.iteration + 1) * own.prompts * max(2, demand.workers)
                given += self._demonstrations(*self._draw(policy, own, start, demand), demand)
        if demand.completions != "none":
            given += self._completions(*drawn, demand)
        if given:
            batch, more = self._given(policy, given, demand)
            metrics |= more
            batches.append(batch)
        if not batches:
            raise InputError(
                f"no prompt of task '{self.task.name}' in this batch has a demonstration, and the algorithm trains on nothing else"
            )
        return Trajectories.join(batches), metrics

    def _draw(
        self, policy: CausalLanguageModel | SequenceScorer, stream: Stream, first: int, demand: Demand
    ) -> tuple[list[Item], list[list[int]], list[int]]:
        """This worker's share of a stream's next items, their prompts' tokens, and a number for each group from `first` on."""
        chosen = stream.sampler.choose(stream.prompts)[demand.worker :: demand.workers]
        items = [stream.task.items[i] for i in chosen]
        groups = [first + demand.worker + i * demand.workers for i in range(len(items))]
        prompts = [prompt_tokens(policy.tokenizer, item, self.sampling.chat_template) for item in items]
        check_room(policy.model, items, prompts, self.max_new_tokens)
        return items, prompts, groups

    def _rollouts(
        self, policy: CausalLanguageModel, items: list[Item], prompts: list[list[int]], groups: list[int], demand: Demand
    ) -> tuple[Trajectories, dict[str, float]]:
        tokenizer = policy.tokenizer
        with policy.sampling() as model:
            completions = sample(
                model,
                prompts,
                rollouts=demand.rollouts,
                max_new_tokens=self.max_new_tokens,
                end_tokens=end_tokens(model, tokenizer),
                pad_token=tokenizer.pad_token_id,
                temperature=policy.temperature,
                generator=generator(demand.seed, "sample", demand.iteration, demand.round, demand.worker, device=model.device),
                batch_rows=self.sampling.batch_rows,
                should_stop=demand.should_stop,
            )
        rows = [
            Sampled(item, prompt, number, completion)
            for item, prompt, number, mine in zip(items, prompts, groups, completions, strict=True)
            for completion in mine
        ]
        return self._scored(policy, rows, demand)

    def _scored(self, policy: CausalLanguageModel, rows: list[Sampled], demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        """The rows of finished rollouts, with what verifiers and features found."""
        tokenizer = policy.tokenizer
        flat = [row.completion for row in rows]
        answers = [decode(tokenizer, c) for c in flat]
        seed_everything(demand.seed, "verify", demand.iteration, demand.round, demand.worker)
        asked = [row.item for row in rows]
        components: dict[str, list[float]] = {}
        if self.rewards is None:
            rewards, failures = score(self.task.verifier, answers, asked, self.sampling.verifier_seconds)
        else:
            rewards, components, failures = self.rewards(asked, answers, [c.ended for c in flat])
        self.failures += failures.count
        features = {}
        for name, verifier in self.features.items():
            values, missed = score(verifier, answers, asked, self.sampling.verifier_seconds)
            self.failures += missed.count
            features[f"feature/{name}"] = torch.tensor(values, dtype=torch.float32)
        batch = pack(
            [row.prompt for row in rows],
            [c.tokens for c in flat],
            [c.ended for c in flat],
            chosen=[c.chosen for c in flat],
            pad_token=tokenizer.pad_token_id,
            group=[row.group for row in rows],
            source=Source.ROLLOUT,
            reward=rewards,
            behaviour_log_prob=[c.log_probs for c in flat],
            annotations={
                "prompt": [prompt_text(item) for item in asked],
                "answer": answers,
                "expected": [item.expected for item in asked],
                "item": [item.index for item in asked],
            },
        )
        lengths = [len(c.tokens) for c in flat]
        metrics = {
            "length/mean": sum(lengths) / len(lengths),
            "length/max": float(max(lengths)),
            "length/truncated_fraction": sum(not c.ended for c in flat) / len(flat),
            "tokens/rollout": float(sum(lengths)),
            "verifier/failures": float(failures.count),
        }
        told = {f"reward/{name}": values for name, values in components.items()} | {k: v.tolist() for k, v in features.items()}
        metrics |= {name: sum(values) / len(values) for name, values in told.items()}
        return batch.replace(planned=features), metrics

    def _demonstrations(self, items: list[Item], prompts: list[list[int]], groups: list[int], demand: Demand) -> list[Given]:
        """One of each item's demonstrations, where it has any."""
        given = []
        for item, prompt, group in zip(items, prompts, groups, strict=True):
            if item.demonstrations:
                draw = generator(demand.seed, "demonstration", item.index, demand.iteration)
                text = item.demonstrations[int(torch.randint(len(item.demonstrations), (), generator=draw))]
                given.append(Given(item, prompt, group, text, Source.DEMONSTRATION))
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
        self, policy: CausalLanguageModel | SequenceScorer, given: list[Given], demand: Demand
    ) -> tuple[Trajectories, dict[str, float]]:
        """Rows of answers that are there already."""
        rows = [self.answer_tokens(policy.tokenizer, g) for g in given]
        cut = sum(not ended for _, ended in rows)
        batch = pack(
            [g.prompt for g in given],
            [tokens for tokens, _ in rows],
            [ended for _, ended in rows],
            pad_token=policy.tokenizer.pad_token_id,
            group=[g.group for g in given],
            source=Source.DEMONSTRATION,
            reward=[g.reward for g in given],
            annotations={
                "prompt": [prompt_text(g.item) for g in given],
                "answer": [g.text for g in given],
                "expected": [g.item.expected for g in given],
                "item": [g.item.index for g in given],
            },
        )
        batch = batch.replace(source=torch.tensor([int(g.source) for g in given]))
        if self.anchors is not None:
            batch = batch.replace(anchor_log_prob=self.anchors.place([(g.item.index, g.number) for g in given], batch.mask))
        return batch, {"demonstrations/truncated": float(cut)} if cut else {}

    def answer_tokens(self, tokenizer: Any, given: Given) -> tuple[list[int], bool]:
        """The tokens of a given answer with its end token, and whether all of them fit."""
        limit, item = self.max_new_tokens, given.item
        tokens = tokenizer.encode(given.text, add_special_tokens=False)
        if len(tokens) < limit:
            return [*tokens, tokenizer.eos_token_id], True
        if self.sampling.long_demonstrations == "error":
            what = "demonstration" if given.source == Source.DEMONSTRATION else "completion"
            raise InputError(
                f"the {what} of {item.place or f'item {item.index}'} has {len(tokens)} tokens and its end token, more than "
                f"rollouts.max_new_tokens ({limit}): raise the limit, or set rollouts.long_demonstrations to truncate"
            )
        return tokens[:limit], False

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
                tokens, ended = self.answer_tokens(policy.tokenizer, given)
                row = pack(
                    [prompt], [tokens], [ended], pad_token=policy.tokenizer.pad_token_id, group=[0], source=Source.PREFERENCE, reward=[0.0]
                )
                yield (item.index, number), row

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

    def state_dict(self) -> dict[str, Any]:
        own = {} if self.demonstrations is None else {"demonstrations": self.demonstrations.sampler.state_dict()}
        return {"sampler": self.sampler.state_dict(), "failures": self.failures, **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.failures = state["failures"]
        if self.demonstrations is not None:
            self.demonstrations.sampler.load_state_dict(state["demonstrations"])

    def texts(self) -> list[str]:
        """Prompts, given answers and expected ones: what a tokenizer built from scratch learns from."""
        items = [*self.task.items, *(self.demonstrations.task.items if self.demonstrations else [])]
        given = ((*item.demonstrations, *(c.text for c in item.completions), item.expected) for item in items)
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
