"""Algorithms as plain functions of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting
from unipg.errors import InputError
from unipg.estimator import Planning, PolicyGradient, Term
from unipg.estimator.advantages import Advantage
from unipg.estimator.policy_gradient import check_log_probs
from unipg.shapes import Bool, Float, Int
from unipg.trajectories import Evaluation, Source, Trajectories


def loss_function(algorithm: Algorithm, max_new_tokens: int) -> Callable[..., Float[Tensor, ""]]:
    """`f(log_prob, mask, reward, …) -> loss` of a whole batch, every term included.

    Arguments of f, by name: `log_prob [B,T]` with the graph, `mask [B,T]` bool, `reward [B]`; and where the algorithm reads them
    `group [B]`; `demonstration`, `completion` (given ones, whose score is the reward) and `mismatched` (those of other prompts) `[B]` bool,
    all else being rollouts; and `[B,T]` each: `old_log_prob`, `behaviour_log_prob`, `anchor_log_prob`, `entropy`,
    `old_entropy`, `value`, `old_value`, and `action` (tokens) with `present` (not padding) for algorithms that compare what rows hold;
    `annotations`, lists of `B` facts by name (`stratum`, `tool_calls`, `answer` …), for those that read them.
    The gradient is that of `unipg train` on the same batch. `planning` says where training stands, which schedules read, and keeps what
    an algorithm remembers over batches: `Planning(Progress(step, total), memory=…)`; without it every call is the first step of one.
    Errors: `InputError` for an algorithm that reads whole next-token distributions, which these arguments do not hold, or selects tokens by
    asking the policy.
    """
    setting = Setting(max_new_tokens=max_new_tokens)
    objective = algorithm.terms(setting)
    if objective.readings:
        raise InputError(f"algorithm '{algorithm.name}' reads whole next-token distributions, which a function of log_prob has not")
    for term in objective.terms:
        _check_selection(algorithm, term)

    def f(
        log_prob: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        reward: Float[Tensor, " B"],
        *,
        group: Int[Tensor, " B"] | None = None,
        demonstration: Bool[Tensor, " B"] | None = None,
        completion: Bool[Tensor, " B"] | None = None,
        mismatched: Bool[Tensor, " B"] | None = None,
        entropy: Float[Tensor, "B T"] | None = None,
        value: Float[Tensor, "B T"] | None = None,
        old_value: Float[Tensor, "B T"] | None = None,
        annotations: dict[str, list[Any]] | None = None,
        planning: Planning | None = None,
        **log_probs: Tensor,
    ) -> Float[Tensor, ""]:
        planning = planning or Planning()
        source = torch.full((len(mask),), int(Source.ROLLOUT), device=mask.device)
        kinds = {Source.DEMONSTRATION: demonstration, Source.PREFERENCE: completion, Source.MISMATCHED: mismatched}
        for kind, rows in kinds.items():
            source = source if rows is None else torch.where(rows, int(kind), source)
        told = _checked_annotations(annotations, len(mask))
        batch = _carrier(mask, reward=reward, group=group, source=source, value=old_value, annotations=told, **log_probs)
        return objective(Evaluation(log_prob, entropy, value), algorithm.prepare(batch, setting, planning), planning)

    return f


def advantage_function(algorithm: Algorithm, max_new_tokens: int | None = None) -> Callable[..., Float[Tensor, "B T"]]:
    """`f(reward [B], mask [B,T], group [B]) -> advantage [B,T]` of the algorithm's policy gradient on rollouts; 0 where the mask is 0.

    What the algorithm does to the reward first is done here too; `max_new_tokens` is the limit that a penalty on length begins at.
    Raises InputError for an algorithm whose advantage depends on the current policy, or on more than these three, and for one that this is
    only a part of: with other policy gradients beside it, gates on rows, or a choice among rows and tokens.
    """
    term = _whole_rollout_term(algorithm)
    if term.advantage.is_dynamic:
        raise InputError(f"the advantage of '{algorithm.name}' depends on the current policy; use loss_function")
    if more := (term.advantage.reads | algorithm.reads) - {"reward", "mask", "group"}:
        also = "log-probabilities" if algorithm.reads else "old_value" if more == {"value"} else "annotations"
        raise InputError(
            f"the advantage of '{algorithm.name}' takes more than reward, mask and group: use loss_function, which takes {also} too"
        )
    setting = Setting(max_new_tokens=max_new_tokens or 1)
    if max_new_tokens is None and algorithm.penalises_length:
        raise InputError(
            f"the reward of '{algorithm.name}' has a penalty on length, which depends on the limit: give max_new_tokens, or turn it off"
        )

    def f(reward: Float[Tensor, " B"], mask: Bool[Tensor, "B T"], group: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B T"]:
        batch = algorithm.prepare(_carrier(mask, reward=reward, group=group), setting, Planning())
        return torch.where(batch.mask, term.advantage(batch), 0)

    return f


def per_token_function(algorithm: Algorithm) -> Callable[..., Float[Tensor, "B T"]]:
    """`f(log_prob, old_log_prob, advantage, mask) -> loss [B,T]` per token, before any aggregation: for frameworks that bring their own
    advantages and reduce themselves. Mask and reference are the algorithm's; the gradient flows through `log_prob` alone.

    Raises InputError for an algorithm that this is only a part of: with other policy gradients beside it, gates on rows, or a choice among
    the rows and tokens of a batch; and for log-probabilities that are not finite where the mask is 1.
    """
    term = _whole_rollout_term(algorithm)

    def f(
        log_prob: Float[Tensor, "B T"],
        old_log_prob: Float[Tensor, "B T"],
        advantage: Float[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T"]:
        mask = mask.bool()
        quiet = torch.where(mask, old_log_prob, 0)
        batch = _carrier(mask, old_log_prob=quiet, behaviour_log_prob=quiet, anchor_log_prob=quiet)
        for name, given_log_prob in (("log_prob", log_prob), ("old_log_prob", quiet)):
            check_log_probs(given_log_prob, batch, name)
        given = dataclasses.replace(term, advantage=Given(torch.where(mask, advantage, 0)))
        loss, _ = given.per_token(Evaluation(torch.where(mask, log_prob, 0)), batch, "given", Planning())
        return loss

    return f


@dataclasses.dataclass(frozen=True, eq=False)
class Given(Advantage):
    """Advantages worked out elsewhere."""

    values: Tensor
    dynamic = True  # asked for with every call, never planned

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Tensor:
        return self.values


def _whole_rollout_term(algorithm: Algorithm) -> PolicyGradient:
    """The algorithm's policy gradient on rollouts, where that is all of what moves the policy by rewards or data."""
    gradients = [(name, term) for name, term in algorithm.terms(Setting()).named() if isinstance(term, PolicyGradient)]
    mine = [term for _, term in gradients if Source.ROLLOUT in term.rows]
    if not mine:
        raise InputError(f"algorithm '{algorithm.name}' has no policy gradient on rollouts")
    term = mine[0]
    _check_selection(algorithm, term)
    lost = ""
    if term.tokens or algorithm.selects:
        lost = "chooses its rows and tokens from whole batches, with their rewards"
    elif len(gradients) > 1:
        lost = f"is a sum of policy gradients ({', '.join(name for name, _ in gradients)})"
    elif term.row_weight is not None:
        lost = f"weighs its rows by what it finds in whole batches ({term.row_weight})"
    if lost:
        raise InputError(f"algorithm '{algorithm.name}' {lost}: use loss_function")
    return term


def _check_selection(algorithm: Algorithm, term: Term) -> None:
    if term.tokens and type(algorithm).select is not Algorithm.select:
        raise InputError(
            f"algorithm '{algorithm.name}' selects tokens by asking the policy, which a function of log_prob cannot: train with unipg"
        )


def _checked_annotations(annotations: Any, rows: int) -> dict[str, list[Any]]:
    if annotations is None:
        return {}
    accepted = f"lists of {rows} facts by name, one for each row"
    if not isinstance(annotations, Mapping):
        raise InputError(f"annotations is a {type(annotations).__name__}; accepted: {accepted}")
    for name, column in annotations.items():
        if not isinstance(column, list | tuple) or len(column) != rows:
            what = f"{len(column)} values" if isinstance(column, list | tuple) else f"a {type(column).__name__}"
            raise InputError(f"annotations['{name}'] is {what}; accepted: {accepted}")
    return {str(name): list(column) for name, column in annotations.items()}


def _carrier(mask: Tensor, **fields: Any) -> Trajectories:
    nothing = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
    return Trajectories(**{"action": nothing, "mask": mask.bool()} | fields)
