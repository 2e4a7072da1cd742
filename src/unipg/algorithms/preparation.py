"""Whole-batch work that several algorithms share: success rates, gates, dynamic sampling, over-length penalties."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator import Planning
from unipg.estimator.advantages import group_statistics
from unipg.trajectories import Source, Trajectories

AnswersCompared = Literal["auto", "text", "tokens"]
"""What of a rollout is compared with others: annotated text, tokens; auto: text where there is any."""
NO_ANSWER = "<none>"
"""Stands for an answer that could not be extracted: one class of answers."""


def everywhere(columns: Sequence[Tensor], planning: Planning) -> tuple[list[Tensor], slice]:
    """Each `[n]` column joined over all workers, and where this worker's entries are."""
    device = columns[0].device
    parts = planning.gather([column.cpu() for column in columns])
    start = sum(len(part[0]) for part in parts[: planning.rank])
    joined = [torch.cat(column).to(device) for column in zip(*parts, strict=True)]
    return joined, slice(start, start + len(columns[0]))


def successes(batch: Trajectories, threshold: float | None) -> Tensor:
    """[B] bool: rows that succeeded: reward above `threshold`, or equal to 1 where all rewards are 0 or 1."""
    reward = batch.total_reward()
    rollouts = batch.rows_from(Source.ROLLOUT)
    if threshold is not None:
        return reward > threshold
    odd = rollouts & (reward != 0) & (reward != 1)
    if odd.any():
        value = float(reward[odd][0])
        raise InputError(f"a gate counts successes, but a reward of {value:g} is neither 0 nor 1: set algorithm.success_threshold")
    return reward == 1


def success_rate(batch: Trajectories, threshold: float | None) -> Tensor:
    """[B] share of each row's group's rollouts that succeeded, in [0, 1]; 0 for a group without rollouts."""
    assert batch.group is not None
    won = successes(batch, threshold).to(torch.float64)
    return group_statistics(won, batch.group, batch.rows_from(Source.ROLLOUT)).mean


def with_demonstration(batch: Trajectories) -> Tensor:
    """[B] bool: rows whose group has a demonstration with at least one token."""
    assert batch.group is not None
    demonstrated = (batch.rows_from(Source.DEMONSTRATION) & batch.mask.any(1)).to(torch.float64)
    return group_statistics(demonstrated, batch.group).mean > 0


def prompt_of(batch: Trajectories, row: int) -> str:
    """How an error names the prompt of a row."""
    assert batch.group is not None
    prompts = batch.annotations.get("prompt")
    text = "" if not prompts or prompts[row] is None else f" ({str(prompts[row])[:80]!r})"
    return f"prompt {int(batch.group[row])}{text}"


def groups_with_signal(batch: Trajectories) -> Tensor:
    """[B] bool: rows of groups whose rollouts' rewards are not all equal."""
    assert batch.group is not None
    stats = group_statistics(batch.total_reward(), batch.group, batch.rows_from(Source.ROLLOUT))
    return stats.squares > 0


def overlong_penalty(batch: Trajectories, limit: int, buffer: int, factor: float = 1.0) -> Trajectories:
    """DAPO's soft over-length punishment, added to the reward of each row of length L (policy tokens).

        0 for L <= limit − buffer;   factor · (limit − buffer − L) / buffer up to `limit`;   −factor beyond

    `limit`, `buffer` in tokens. Source: arXiv 2503.14476, eq. 13.
    """
    length = batch.mask.sum(1)
    over = (limit - buffer - length).to(torch.float32) / max(1, buffer)
    penalty = factor * over.clamp(-1.0, 0.0)
    reward = batch.reward if batch.reward is not None else torch.zeros_like(penalty)
    return batch.replace(reward=reward + penalty.to(reward.dtype))


def check_pairs(batch: Trajectories) -> Trajectories:
    """The batch with `planned["chosen"]` [B], 1 on the chosen of each pair; refuses a prompt without exactly one chosen, one rejected."""
    assert batch.group is not None
    given = batch.rows_from(Source.PREFERENCE)
    check_completions(batch, given)
    reward = batch.require("reward", "a preference")
    chosen = given & (reward == 1)
    for kind, rows in (("chosen", chosen), ("rejected", given & (reward == 0))):
        counted = group_statistics(rows.double(), batch.group, given)
        lacking = given & ((counted.mean * counted.count).round() != 1)
        if lacking.any():
            row = int(lacking.nonzero()[0])
            raise InputError(
                f"{prompt_of(batch, row)} needs exactly one {kind} completion, and has {int(counted.mean[row] * counted.count[row])}"
            )
    return batch.with_planned(chosen=chosen.double())


def check_completions(batch: Trajectories, rows: Tensor) -> None:
    """Refuses an empty completion among `rows [B]`: it has no likelihood."""
    empty = rows & ~batch.mask.any(1)
    if empty.any():
        raise InputError(f"{prompt_of(batch, int(empty.nonzero()[0]))} has an empty completion")


def answers_of(batch: Trajectories, compared: AnswersCompared, extract: str | None, who: str) -> list[Hashable]:
    """What each row answers: `annotations["answer"]`, of which `extract` may take a part, or its tokens; `who` compares them."""
    texts = batch.annotations.get("answer")
    if compared == "tokens" or (compared == "auto" and texts is None):
        return [tuple(row[mine].flatten().tolist()) for row, mine in zip(batch.action, batch.mask, strict=True)]
    if texts is None:
        raise InputError(
            f"{who} compares answers, and the batch has no annotation 'answer'; accepted: one text per row, or answers: tokens"
        )
    if len(texts) != len(batch):
        raise InputError(f"there are {len(texts)} answers for {len(batch)} rewards; accepted: one per row")
    return [final_answer(text, extract) for text in texts]


def final_answer(text: str | None, extract: str | None) -> str:
    """The part of an answer's text that is compared: the last match of the regular expression `extract`; "<none>" where there is none."""
    if text is None or extract is None:
        return NO_ANSWER if text is None or not text.strip() else text.strip()
    found = list(re.finditer(extract, text))
    return NO_ANSWER if not found else (found[-1].group(1 if found[-1].re.groups else 0) or NO_ANSWER).strip()


def check_extract(extract: str | None) -> None:
    """Refuses what is no regular expression."""
    try:
        re.compile(extract or "")
    except re.error as error:
        raise InputError(f"algorithm.extract is no regular expression: {error}") from error
