"""GRPO in a plain loop over a Hugging Face model: the floor. Generates with `generate`, pads, and takes logits of the completions alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from work import (
    CLIP,
    LEARNING_RATE,
    PROOF_RATE,
    STANDARD_EPSILON,
    ForcedLengths,
    Line,
    Meter,
    Order,
    Work,
    memory_mb,
    one_thread,
    save_weights,
)
from work import load as load_model


def generate(model: Any, prompts: Tensor, lengths: Sequence[int], limit: int, rows: int) -> list[list[int]]:
    """[B,P] prompts of one length; completions with their end token, `rows` at a time."""
    found: list[list[int]] = []
    model.eval()
    for begin in range(0, len(prompts), rows):
        part, forced = prompts[begin : begin + rows], lengths[begin : begin + rows]
        out = model.generate(
            input_ids=part,
            attention_mask=torch.ones_like(part),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=limit,
            logits_processor=[ForcedLengths(part.shape[1], forced)],
        )
        found += [row[part.shape[1] :][:length].tolist() for row, length in zip(out, forced, strict=True)]
    model.train()
    return found


def advantages(rewards: Tensor, rollouts: int) -> Tensor:
    grouped = rewards.view(-1, rollouts)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + STANDARD_EPSILON)).flatten()


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    prompts: Tensor,
    answers: list[list[int]],
    rewards: Tensor,
    rollouts: int,
    rows: int,
    clip_norm: float,
) -> None:
    """One optimiser step: sums over micro-batches of `rows` rows of −min(r·Â, clip(r)·Â), a mean over each row's tokens and over rows."""
    advantage = advantages(rewards, rollouts)
    optimizer.zero_grad(set_to_none=True)
    for begin in range(0, len(answers), rows):
        part = answers[begin : begin + rows]
        longest = max(map(len, part))
        answer = torch.tensor([a + [0] * (longest - len(a)) for a in part])
        mask = torch.arange(longest) < torch.tensor([[len(a)] for a in part])
        context = prompts[begin : begin + rows]
        tokens = torch.cat([context, answer], 1)
        seen = torch.cat([torch.ones_like(context, dtype=torch.bool), mask], 1)
        logits = model(input_ids=tokens, attention_mask=seen.long(), logits_to_keep=longest + 1, use_cache=False).logits[:, :-1]
        log_prob = torch.log_softmax(logits, -1).gather(-1, answer.unsqueeze(-1)).squeeze(-1)
        ratio = torch.exp(log_prob - log_prob.detach())
        a = advantage[begin : begin + rows].unsqueeze(1)
        loss = -torch.min(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a)
        ((loss * mask).sum(1) / mask.sum(1)).sum().div(len(answers)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()


def side(order: Order, line: Line) -> None:
    work: Work = order.work
    model, tokenizer = load_model(work, Path(order.folder))
    model.train()
    texts = [t for t in work.prompt_texts for _ in range(work.rollouts)]
    prompts = torch.tensor([tokenizer.encode(t) for t in texts])
    rows = order.setting.get("rows", work.rows)
    meter = Meter()
    sampled: Callable[..., Any] = meter.generated(generate)

    def collect() -> tuple[list[list[int]], Tensor]:
        answers = work.completions() if order.given else sampled(model, prompts, work.lengths(), work.longest, work.slots)
        said = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return answers, torch.tensor([work.reward(p, a) for p, a in zip(texts, said, strict=True)])

    if order.proof:
        answers, rewards = collect()
        update(model, torch.optim.SGD(model.parameters(), PROOF_RATE), prompts, answers, rewards, work.rollouts, rows, float("inf"))
        save_weights(model, order.proof)
        return
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
    while line.wait():
        meter.begin()
        answers, rewards = collect()
        if work.measured != "rollout":
            update(model, optimizer, prompts, answers, rewards, work.rollouts, rows, 1.0)
        line.tell({**meter.end(), "peak_mb": memory_mb("VmHWM"), "base_mb": meter.base})


if __name__ == "__main__":
    one_thread()
    side(Order.read(sys.argv[1]), Line())
