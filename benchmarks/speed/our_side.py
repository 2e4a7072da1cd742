"""unipg in the language benchmark: its own trainer, experience and optimiser, timed from the call for rollouts to the end of the step."""

from __future__ import annotations

import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from work import (
    CLIP,
    LEARNING_RATE,
    PROOF_RATE,
    STANDARD_EPSILON,
    Line,
    Meter,
    Order,
    Work,
    cpu_seconds,
    force_end,
    load,
    memory_mb,
    one_thread,
    save_weights,
)

from unipg.algorithms.language.grpo import GRPO
from unipg.estimator import GroupStandardized
from unipg.policies import packing
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.policies.proof import TRUSTED
from unipg.rollouts import conversations, generation, prompts
from unipg.rollouts.base import Demand
from unipg.rollouts.generation import Completion, ContinuousBatch
from unipg.rollouts.prompts import PromptRollouts
from unipg.rollouts.text import SamplingRecipe
from unipg.samplers import UniformSampler
from unipg.tasks.base import Item
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe
from unipg.training.trainer import Trainer, TrainingRecipe
from unipg.trajectories import Source, Trajectories


@dataclass(frozen=True)
class Matched(GRPO):
    """GRPO with TRL's number under the standard deviation."""

    @property
    def advantage(self) -> GroupStandardized:
        return GroupStandardized(eps=STANDARD_EPSILON)


class Questions:
    """The work's prompts as a task."""

    def __init__(self, work: Work) -> None:
        self.name, self.work = work.name, work
        self.items = [Item(i, text) for i, text in enumerate(work.prompt_texts)]

    def verifier(self, answer: str, item: Item) -> float:
        return self.work.reward(str(item.prompt), answer)


class Rollouts(PromptRollouts):
    """Waits until the next step is wanted."""

    line: Line | None = None
    meter: Meter

    def collect(self, policy: Any, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        if self.line is not None:
            if not self.line.wait():
                sys.exit(0)
            self.meter.begin()
        return self.meter.generated(super().collect)(policy, demand)


class Told(Observer):
    """Reports each finished step."""

    def __init__(self, line: Line, meter: Meter) -> None:
        self.line, self.meter = line, meter

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        told = {"active": metrics.get("rows/active_fraction", 1.0)}
        self.line.tell({**self.meter.end(), "peak_mb": memory_mb("VmHWM"), "base_mb": self.meter.base, **told})


def force_lengths(work: Work) -> None:
    """Request i ends with its `lengths[i]`-th token, and not before."""
    lengths, draw = work.lengths(), ContinuousBatch._draw

    def forced(self: ContinuousBatch, slots: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        if self.proven is TRUSTED:  # the trials of a model's proof are no work that is measured
            return draw(self, slots, logits)
        rows = [self._rows[slot] for slot in slots]
        last = torch.tensor([row is not None and row.sampled + 1 == lengths[row.request] for row in rows])
        return draw(self, slots, force_end(logits, last))

    ContinuousBatch._draw = forced  # type: ignore[method-assign]


def give_completions(work: Work, tokenizer: Any) -> None:
    """Instead of sampling."""
    answers = work.completions()
    stored = {
        tuple(tokenizer.encode(text)): [
            Completion(a, [0.0] * len(a), True, [True] * len(a)) for a in answers[i * work.rollouts :][: work.rollouts]
        ]
        for i, text in enumerate(work.prompt_texts)
    }
    conversations.sample = lambda model, asked, **_: [stored[tuple(p)] for p in asked]  # type: ignore[assignment]


def trainer_for(order: Order, folder: Path, line: Line | None) -> Trainer:
    work, setting = order.work, order.setting
    model, tokenizer = load(work, Path(order.folder))
    policy = CausalLanguageModel(model, tokenizer)
    if order.given:
        give_completions(work, tokenizer)
    else:
        force_lengths(work)
    task = Questions(work)
    experience = Rollouts(
        task,
        UniformSampler(work.prompts, 0),
        prompts=work.prompts,
        sampling=SamplingRecipe(max_new_tokens=work.longest, batch_rows=work.slots),
    )
    meter = Meter()
    experience.line, experience.meter = line, meter
    kl = setting.get("kl", 0.0)
    trainer = Trainer(
        Matched(rollouts=work.rollouts, kl=kl, clip_low=CLIP, clip_high=CLIP),
        policy,
        experience,
        folder=folder,
        training=TrainingRecipe(
            iterations=1 if order.proof else 10_000,
            prompts=work.prompts,
            micro_batch_tokens=setting.get("micro_batch_tokens", 16384),
            save_every=10_000,
        ),
        optimizer=OptimizerRecipe(learning_rate=PROOF_RATE if order.proof else LEARNING_RATE, clip_norm=None if order.proof else 1.0),
        anchor=policy.frozen_copy() if kl else None,
        observer=Told(line, meter) if line is not None else Observer(),
    )
    if order.proof:
        trainer.learner.optimizer = torch.optim.SGD(policy.module.parameters(), PROOF_RATE)
    if setting.get("keep_all"):  # nothing is skipped
        object.__setattr__(trainer.objective, "touched_rows", lambda batch: torch.ones(len(batch), dtype=torch.bool))
    return trainer


def generation_alone(order: Order, line: Line) -> None:
    work = order.work
    model, tokenizer = load(work, Path(order.folder))
    force_lengths(work)
    meter = Meter()
    asked = [tokenizer.encode(text) for text in work.prompt_texts]
    model.eval()
    while line.wait():
        meter.begin()
        meter.generated(generation.sample)(
            model, asked, rollouts=work.rollouts, max_new_tokens=work.longest, end_tokens=[1], pad_token=0, batch_rows=work.slots
        )
        line.tell({**meter.end(), "peak_mb": memory_mb("VmHWM"), "base_mb": meter.base})


def layouts(order: Order, line: Line) -> None:
    """An update's forward and backward pass as the planner has it, and forced into each layout."""
    work = order.work
    model, tokenizer = load(work, Path(order.folder))
    policy = CausalLanguageModel(model, tokenizer)
    batch = given_batch(work, tokenizer)
    none, common = torch.zeros(len(batch), dtype=torch.long), packing.shared_prefixes(batch)
    planner = packing.plan
    ways: dict[str, Any] = {
        "padded": lambda b, hidden: None,
        "packed": lambda b, hidden: packing.layout_of(b, none),
        **({"shared": lambda b, hidden: packing.layout_of(b, packing.shared_prefixes(b))} if bool(common.any()) else {}),
        "planned": planner,
    }
    layout = {name: plan(batch, work.hidden) for name, plan in ways.items()}
    tokens = {name: tokens_of(one, batch) for name, one in layout.items()}
    chosen = next(n for n in ways if (layout[n] is None) == (layout["planned"] is None) and tokens[n] == tokens["planned"])
    order_of = deque(ways)
    factor = torch.linspace(-1, 1, batch.mask.numel()).reshape(batch.mask.shape)
    gradients: dict[str, torch.Tensor] = {}

    def once(name: str) -> float:
        packing.plan = ways[name]
        model.zero_grad(set_to_none=True)
        began = cpu_seconds()
        (factor * policy.evaluate(batch, entropy=True).log_prob).sum().backward()
        taken = cpu_seconds() - began
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
        return taken

    while line.wait():
        order_of.rotate(1)
        seconds = {name: once(name) for name in order_of}
        padded = gradients["padded"]
        apart = max(float((g - padded).norm() / padded.norm()) for g in gradients.values())
        line.tell({**seconds, "ways": list(ways), "tokens": tokens, "chosen": chosen, "difference": apart})


def given_batch(work: Work, tokenizer: Any) -> Trajectories:
    """The work's prompts and given completions."""
    asked = [tokenizer.encode(text) for text in work.prompt_texts for _ in range(work.rollouts)]
    answers = work.completions()
    group = [i for i in range(work.prompts) for _ in range(work.rollouts)]
    return prompts.pack(asked, answers, [True] * len(answers), pad_token=0, group=group, source=Source.ROLLOUT, reward=[0.0] * len(answers))


def tokens_of(layout: packing.Layout | None, batch: Trajectories) -> int:
    """Tokens that go through the layers."""
    return len(batch) * (batch.mask.shape[1] - 1) if layout is None else len(layout)


def side(order: Order, line: Line | None) -> None:
    alone = {"rollout": generation_alone, "layouts": layouts}.get(order.work.measured)
    if alone is not None and line is not None:
        alone(order, line)
        return
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(order, Path(folder), line)
        trainer.train()
        if order.proof:
            save_weights(trainer.policy.model, order.proof)  # type: ignore[attr-defined]


if __name__ == "__main__":
    one_thread()
    asked_for = Order.read(sys.argv[1])
    side(asked_for, None if asked_for.proof else Line())
