"""Language experience: a sampler chooses items, the engine answers them, the verifier scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from unipg.errors import InputError
from unipg.policies.base import Policy
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.rollouts.base import Demand, EvaluationResult, Experience
from unipg.rollouts.evaluation import EvaluationRecipe, evaluate_task
from unipg.rollouts.generation import sample
from unipg.rollouts.text import SamplingRecipe, check_room, decode, end_tokens, prompt_text, prompt_tokens
from unipg.samplers.base import Sampler
from unipg.seeding import generator, seed_everything
from unipg.tasks.base import Item, Task
from unipg.tasks.verifiers import score
from unipg.trajectories import Source, Trajectories


class PromptRollouts(Experience):
    """Prompts of a task, answered by a causal language model and scored by the task's verifier."""

    def __init__(
        self,
        task: Task,
        sampler: Sampler,
        *,
        prompts: int,
        sampling: SamplingRecipe | None = None,
        evaluation: EvaluationRecipe | None = None,
        evaluation_tasks: Sequence[Task] = (),
    ) -> None:
        if prompts < 1:
            raise InputError(f"training.prompts is {prompts}; accepted: 1 or more per iteration")
        self.task, self.sampler, self.prompts = task, sampler, prompts
        self.sampling = sampling or SamplingRecipe()
        self.evaluation = evaluation or EvaluationRecipe()
        self.evaluation_tasks = list(evaluation_tasks)
        self.max_new_tokens = self.sampling.max_new_tokens
        self.failures = 0

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        assert isinstance(policy, CausalLanguageModel)
        wanted = max(1, round(self.prompts * demand.share))
        chosen = self.sampler.choose(wanted)[demand.worker :: demand.workers]
        items = [self.task.items[i] for i in chosen]
        first = (demand.iteration * 1000 + demand.round) * self.prompts * 2 + demand.worker
        groups = [first + i * demand.workers for i in range(len(items))]
        prompts = [prompt_tokens(policy.tokenizer, item, self.sampling.chat_template) for item in items]
        check_room(policy.model, items, prompts, self.max_new_tokens)
        batches: list[Trajectories] = []
        metrics: dict[str, float] = {}
        if demand.rollouts:
            batch, metrics = self._rollouts(policy, items, prompts, groups, demand)
            batches.append(batch)
        if demand.demonstrations:
            batch, more = self._demonstrations(policy, items, prompts, groups, demand)
            metrics |= more
            if len(batch):
                batches.append(batch)
        if not batches:
            raise InputError(
                f"no prompt of task '{self.task.name}' in this batch has a demonstration, and the algorithm trains on nothing else"
            )
        return Trajectories.join(batches), metrics

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
        owners = [i for i in range(len(items)) for _ in range(demand.rollouts)]
        flat = [c for group in completions for c in group]
        answers = [decode(tokenizer, c) for c in flat]
        seed_everything(demand.seed, "verify", demand.iteration, demand.round, demand.worker)
        rewards, failures = score(self.task.verifier, answers, [items[i] for i in owners], self.sampling.verifier_seconds)
        self.failures += failures.count
        batch = pack(
            [prompts[i] for i in owners],
            [c.tokens for c in flat],
            [c.ended for c in flat],
            pad_token=tokenizer.pad_token_id,
            group=[groups[i] for i in owners],
            source=Source.ROLLOUT,
            reward=rewards,
            behaviour_log_prob=[c.log_probs for c in flat],
            annotations={
                "prompt": [prompt_text(items[i]) for i in owners],
                "answer": answers,
                "expected": [items[i].expected for i in owners],
                "item": [items[i].index for i in owners],
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
        return batch, metrics

    def _demonstrations(
        self, policy: CausalLanguageModel, items: list[Item], prompts: list[list[int]], groups: list[int], demand: Demand
    ) -> tuple[Trajectories, dict[str, float]]:
        tokenizer, limit = policy.tokenizer, self.max_new_tokens
        rows: list[tuple[list[int], list[int], bool, int, Item, str]] = []
        cut = 0
        for item, prompt, group in zip(items, prompts, groups, strict=True):
            if not item.demonstrations:
                continue
            choice = int(
                torch.randint(len(item.demonstrations), (), generator=generator(demand.seed, "demonstration", item.index, demand.iteration))
            )
            text = item.demonstrations[choice]
            tokens = tokenizer.encode(text, add_special_tokens=False)
            ended = len(tokens) < limit
            if ended:
                tokens = [*tokens, tokenizer.eos_token_id]
            elif self.sampling.long_demonstrations == "error":
                raise InputError(
                    f"the demonstration of {item.place or f'item {item.index}'} has {len(tokens)} tokens and its end token, more than "
                    f"rollouts.max_new_tokens ({limit}): raise the limit, or set rollouts.long_demonstrations to truncate"
                )
            else:
                tokens, cut = tokens[:limit], cut + 1
            rows.append((prompt, tokens, ended, group, item, text))
        rewards = [0.0] * len(rows)
        if demand.score_demonstrations and rows:
            rewards, _ = score(self.task.verifier, [r[5] for r in rows], [r[4] for r in rows], self.sampling.verifier_seconds)
        metrics = {"demonstrations/truncated": float(cut)} if cut else {}
        batch = pack(
            [r[0] for r in rows],
            [r[1] for r in rows],
            [r[2] for r in rows],
            pad_token=tokenizer.pad_token_id,
            group=[r[3] for r in rows],
            source=Source.DEMONSTRATION,
            reward=rewards,
            annotations={
                "prompt": [prompt_text(r[4]) for r in rows],
                "answer": [r[5] for r in rows],
                "expected": [r[4].expected for r in rows],
                "item": [r[4].index for r in rows],
            },
        )
        return batch, metrics

    def update(self, batch: Trajectories) -> None:
        self.sampler.update(batch)

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        assert isinstance(policy, CausalLanguageModel)
        results = []
        for number, task in enumerate(self.evaluation_tasks):

            def share(done: float, number: int = number) -> None:
                if progress is not None:
                    progress((number + done) / len(self.evaluation_tasks))

            results.append(evaluate_task(policy, task, self.evaluation, self.sampling, seed, share))
        return results

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict(), "failures": self.failures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        self.failures = state["failures"]

    def texts(self) -> list[str]:
        """Prompts, demonstrations and expected answers: what a tokenizer built from scratch learns from."""
        return [t for item in self.task.items for t in (prompt_text(item), *item.demonstrations, item.expected) if t]


def pack(
    prompts: list[list[int]],
    answers: list[list[int]],
    ended: list[bool],
    *,
    pad_token: int,
    group: list[int],
    source: Source,
    reward: list[float],
    behaviour_log_prob: list[list[float]] | None = None,
    annotations: dict[str, list[Any]] | None = None,
) -> Trajectories:
    """Token lists as padded `[B,T]` tensors: prompt and answer in one row, mask on the answer."""
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
        mask[row, begin:end] = True
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
