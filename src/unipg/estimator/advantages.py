"""Advantages `Â`: how good the action was, given what was expected.

An advantage is called as `advantage(batch)` on the WHOLE rollout batch and returns `[B,T]` (a row's advantage is spread over its tokens).
Those that depend on the current policy (`dynamic = True`) are called again for every micro-batch as `advantage(batch, now)` with the
detached current evaluation. They look at their own row alone, unless `joint` says otherwise: at single steps, or further, and then the
loop gives them whole groups, or the whole batch of an optimiser step. Advantages form an algebra: `0.7 * A + 0.3 * B`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.likelihoods import Reading
from unipg.estimator.parts import Joint, Neighbours, Part, Progress, Reduce, Weight, alone, furthest, no_neighbours, shown_weight, weight_at
from unipg.shapes import Bool, Float, Int
from unipg.trajectories import Evaluation, Source, Trajectories

ROLLOUTS = (Source.ROLLOUT,)
DEMONSTRATIONS = (Source.DEMONSTRATION,)
PREFERENCES = (Source.PREFERENCE,)
TINY = 1e-20
"""Added to variances of advantages that may be of any size."""
ROUNDING = 1e-12
"""Relative error of a mean of equal float64 values, with room to spare."""
UNION = (Source.ROLLOUT, Source.DEMONSTRATION)


Bootstrap = Literal["given", "copied"]


@dataclass(frozen=True)
class Planning:
    """What planning knows beside the batch: progress, and how counts are summed over workers."""

    progress: Progress = Progress()
    reduce: Reduce = alone
    seed: int = 0
    """Of draws that parts make themselves."""
    memory: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What outlives a batch, by name: running averages, trackers per prompt. Saved with the checkpoint; whoever owns an entry writes it,
    in `Algorithm.prepare` or `Algorithm.learn`. Plain values and tensors, replaced rather than changed in place."""
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Every worker's value, in the order of ranks: for order statistics, and for what all must remember. All workers must call it."""
    rank: int = 0
    """This worker's place in that order."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run's optimiser by name (`kind`, `betas`, `eps` …); empty where no loop says."""
    neighbours: Callable[[], Neighbours] = no_neighbours
    """All that the run learns from, where that is a dataset: made when it is first asked for, and not saved."""


@dataclass(frozen=True)
class Advantage(Part):
    """Base class."""

    dynamic: ClassVar[bool] = False
    """Whether it depends on the current policy."""
    """`joint` says how far a dynamic one looks when it is called again. One that is called on the whole rollout batch alone says "step"
    where it follows the ends of episodes inside a row, "row" where a row counts as a whole."""
    compares: ClassVar[bool] = False
    """Whether it compares the rows of a group with each other: groups of one row then have nothing to say."""

    @property
    def is_dynamic(self) -> bool:
        return self.dynamic

    @property
    def is_comparison(self) -> bool:
        return self.compares

    @property
    def held(self) -> bool:
        """Whether it is of the networks as they are when its learner begins on a batch: after what the learners before it have changed,
        before what itself does. The loop then asks once, with whole rows; a dynamic one."""
        return False

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What must be read off the next-token distributions."""
        return ()

    @property
    def weighs_entropy(self) -> bool:
        """Whether an entropy bonus of fixed weight is in it: how large the entropy is, is then told of it."""
        return False

    def facts(self, batch: Trajectories, now: Evaluation) -> dict[str, Tensor]:
        """Detached values `[B]` by name whose means over the rows are worth plotting (`margin`, `accuracy`); NaN where a row has none."""
        return {}

    @property
    def reads_entropy(self) -> bool:
        return self.needs_entropy

    @property
    def reads(self) -> frozenset[str]:
        return self.needs

    @property
    def noise(self) -> frozenset[str]:
        """Observations at which it draws actions of its own, by field."""
        return frozenset()

    @property
    def spans(self) -> bool:
        """Whether a dynamic one compares the steps of a whole optimiser step; see `Term.spans`."""
        return False

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T ..."]:
        raise NotImplementedError(type(self).__name__)

    def __add__(self, other: Advantage) -> Advantage:
        return Combination(((1.0, self), *(other.terms if isinstance(other, Combination) else ((1.0, other),))))

    def __rmul__(self, factor: Weight) -> Advantage:
        return Combination(((factor, self),))

    __mul__ = __rmul__


@dataclass(frozen=True)
class Combination(Advantage):
    """sum_k w_k · A_k, with constant or scheduled weights."""

    terms: tuple[tuple[Weight, Advantage], ...]

    @property
    def is_dynamic(self) -> bool:
        return any(a.is_dynamic for _, a in self.terms)

    @property
    def reach(self) -> Joint:
        return furthest(a.reach for _, a in self.terms)

    @property
    def is_comparison(self) -> bool:
        return any(a.is_comparison for _, a in self.terms)

    @property
    def readings(self) -> tuple[Reading, ...]:
        return tuple(r for _, a in self.terms for r in a.readings)

    @property
    def held(self) -> bool:
        return any(a.held for _, a in self.terms)

    @property
    def reads_entropy(self) -> bool:
        return any(a.reads_entropy for _, a in self.terms)

    @property
    def noise(self) -> frozenset[str]:
        return frozenset().union(*(a.noise for _, a in self.terms))

    @property
    def spans(self) -> bool:
        return any(a.spans for _, a in self.terms)

    @property
    def weighs_entropy(self) -> bool:
        return any(a.weighs_entropy for _, a in self.terms)

    def facts(self, batch: Trajectories, now: Evaluation) -> dict[str, Tensor]:
        return {name: value for _, a in self.terms for name, value in a.facts(batch, now).items()}

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(a.reads for _, a in self.terms))

    def symbol(self) -> str:
        shown = " + ".join(a.symbol() if w == 1 else f"{shown_weight(w)} {a.symbol()}" for w, a in self.terms)
        return shown.replace("+ -1 ", "− ").replace("+ -", "− ")

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T ..."]:
        planning = planning or Planning()
        values = [a(batch, now, planning) if w == 1 else weight_at(w, planning.progress) * a(batch, now, planning) for w, a in self.terms]
        return values[0] + values[1] if len(values) == 2 else torch.stack(values).sum(0)

    def __add__(self, other: Advantage) -> Advantage:
        more = other.terms if isinstance(other, Combination) else ((1.0, other),)
        return Combination(self.terms + more)

    def __rmul__(self, factor: Weight) -> Advantage:
        if not isinstance(factor, float | int) or not all(isinstance(w, float | int) for w, _ in self.terms):
            return Combination(((factor, self),))
        return Combination(tuple((factor * w, a) for w, a in self.terms))

    __mul__ = __rmul__


def spread(rows: Float[Tensor, " B"], batch: Trajectories) -> Float[Tensor, "B T"]:
    """A value per row on each of its tokens."""
    return rows.unsqueeze(1).expand(batch.mask.shape)


@dataclass(frozen=True)
class Constant(Advantage):
    """Â = value. With demonstrations this is maximum likelihood (SFT)."""

    joint: ClassVar[Joint] = "step"
    value: float = 1.0

    def symbol(self) -> str:
        return f"{self.value:g}"

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        return torch.full(batch.mask.shape, self.value, dtype=torch.float64, device=batch.mask.device)


@dataclass(frozen=True)
class Outcome(Advantage):
    """Â = R, the trajectory's total reward; minus a constant `baseline`."""

    minor: ClassVar[frozenset[str]] = frozenset({"baseline"})
    baseline: float = 0.0

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        return spread(batch.total_reward() - self.baseline, batch)


@dataclass(frozen=True)
class GroupAdvantage(Advantage):
    """Base of advantages relative to the group (the rows that answer the same prompt).

    `over`: whose rewards make the statistics; rows of other sources get a value from the same statistics. A group of one has no
    statistics: there mean 0 and std 1 are used, so Â = R, as the released code of GRPO-type trainers does.
    """

    compares: ClassVar[bool] = True
    minor: ClassVar[frozenset[str]] = frozenset({"over", "eps", "unbiased"})
    over: tuple[Source, ...] = ROLLOUTS

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        assert batch.group is not None
        return spread(self.of_rewards(batch.total_reward(), batch.group, batch.rows_from(*self.over)), batch)

    def of_rewards(self, reward: Float[Tensor, " B"], group: Int[Tensor, " B"], counted: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        """[B] advantages from rewards alone; `counted` rows make the statistics."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class GroupCentered(GroupAdvantage):
    """Â_j = R_j − mean_G R (Dr. GRPO: no division by the standard deviation)."""

    def of_rewards(self, reward: Float[Tensor, " B"], group: Int[Tensor, " B"], counted: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        stats = group_statistics(reward, group, counted)
        return reward - torch.where(stats.count > 1, stats.mean, 0)


@dataclass(frozen=True)
class GroupStandardized(GroupAdvantage):
    """Â_j = (R_j − mean_G R) / (std_G R + eps), GRPO's advantage.

    A std of 0 counts as 1: rewards that are all equal give 0, and a row that does not count in the statistics (a right demonstration
    beside rollouts that all fail) about its distance from the mean, as in the released code of LUFFY and HPT.
    `unbiased`: divide the variance by n − 1, as the released code does; False for n.
    """

    eps: float = 1e-6
    unbiased: bool = True

    def of_rewards(self, reward: Float[Tensor, " B"], group: Int[Tensor, " B"], counted: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        stats = group_statistics(reward, group, counted)
        several = stats.count > 1
        std = (stats.squares / (stats.count - int(self.unbiased)).clamp_min(1)).sqrt()
        scaled = (reward - stats.mean) / (torch.where(std > 0, std, 1) + self.eps)
        return torch.where(several, scaled, reward)


@dataclass(frozen=True)
class LeaveOneOut(GroupAdvantage):
    """Â_j = R_j − mean_{k≠j} R_k: an unbiased baseline, since it does not look at its own sample (RLOO, arXiv 2402.14740)."""

    def of_rewards(self, reward: Float[Tensor, " B"], group: Int[Tensor, " B"], counted: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        stats = group_statistics(reward, group, counted)
        others = stats.count - counted.to(reward.dtype)
        # from the mean of all, which is exact where all rewards are equal: then so is the 0
        return torch.where(others > 0, (reward - stats.mean) * (stats.count / others.clamp_min(1)), reward)


@dataclass(frozen=True)
class GroupStatistics:
    """[B] per row: number, mean and summed squared deviation of its group's counted rewards."""

    count: Tensor
    mean: Tensor
    squares: Tensor


def group_statistics(reward: Float[Tensor, " B"], group: Int[Tensor, " B"], counted: Bool[Tensor, " B"] | None = None) -> GroupStatistics:
    """Statistics of each row's group, in any row order. Rewards of rows that do not count may hold anything."""
    counted = torch.ones_like(group, dtype=torch.bool) if counted is None else counted
    groups, index = group.unique(return_inverse=True)
    reward = torch.where(counted, reward, 0)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(len(groups), dtype=reward.dtype, device=reward.device).index_add(0, index, values)[index]

    count = total(counted.to(reward.dtype))
    mean = total(reward) / count.clamp_min(1)
    # a group whose rewards are all equal must give exactly 0, which a rounded mean does not
    low = torch.full_like(mean, torch.inf).scatter_reduce(0, index, torch.where(counted, reward, torch.inf), "amin")[index]
    high = torch.full_like(mean, -torch.inf).scatter_reduce(0, index, torch.where(counted, reward, -torch.inf), "amax")[index]
    mean = torch.where(low == high, low, mean)
    squares = total(torch.where(counted, (reward - mean) ** 2, 0))
    return GroupStatistics(count, mean, squares)


def whiten(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], reduce: Reduce = alone, eps: float = 1e-8) -> Float[Tensor, "B T"]:
    """(x − mean) / sqrt(var + eps) over all masked-in entries of all workers, with the unbiased variance; 0 elsewhere."""
    x = torch.where(mask, values, 0).double()
    moments = reduce(torch.stack([mask.sum().double(), x.sum()]))
    count, mean = moments[0].clamp_min(1), moments[1] / moments[0].clamp_min(1)
    squares = reduce(torch.where(mask, (x - mean) ** 2, 0).sum())
    scale = (squares / (count - 1).clamp_min(1) + eps).rsqrt()
    return torch.where(mask & has_spread(squares, mean, count), (x - mean) * scale, 0).to(values.dtype)


def has_spread(squares: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Whether the summed squared deviations of float64 values are more than rounding: values that are all equal have none, and must give
    an advantage of exactly 0, which a rounded mean does not; an optimiser such as Adam makes a whole step of any number but 0."""
    return squares > count * (ROUNDING * mean) ** 2


def policy_steps_first(mask: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """[B,T] column order that puts each row's policy steps first, in time order: recursions then skip environment tokens."""
    return torch.sort((~mask).to(torch.uint8), dim=1, stable=True).indices


def rewards_per_step(batch: Trajectories) -> Float[Tensor, "B T"]:
    """[B,T] step rewards with the outcome added at the last policy step; 0 where the policy did not act."""
    given = [tensor for tensor in (batch.step_reward, batch.reward) if tensor is not None] or [batch.require("reward", "the advantage")]
    dtype = torch.promote_types(given[0].dtype, given[-1].dtype)
    steps = torch.zeros(batch.mask.shape, dtype=dtype, device=batch.mask.device)
    if batch.step_reward is not None:
        steps = torch.where(batch.mask, batch.step_reward.to(dtype), steps)
    if batch.reward is not None:
        outcome = torch.where(batch.mask.any(1), batch.reward, 0).to(dtype)
        steps = steps.scatter_add(1, batch.last_step().unsqueeze(1), outcome.unsqueeze(1))
    return steps


def generalized_advantage(
    reward: Float[Tensor, "B T"],
    value: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
    *,
    terminated: Bool[Tensor, "B T"] | None = None,
    truncated: Bool[Tensor, "B T"] | None = None,
    bootstrap_value: Float[Tensor, "B T"] | None = None,
    bootstrap: Bootstrap = "given",
) -> Float[Tensor, "B T"]:
    """Generalised advantage estimation over each row's policy steps (environment tokens between them are skipped).

        delta_t = r_t + gamma · V_{t+1} − V_t,     A_t = delta_t + gamma · lam · A_{t+1}

    After a terminated step V_{t+1} = 0; after a truncated step, and at the end of the window, V_{t+1} = `bootstrap_value` (0 if not
    given); in all three A_{t+1} = 0. With `bootstrap` "copied", V_{t+1} = V_t at the end of a window that goes on elsewhere: where neither
    `terminated` nor `truncated` says that it ended; without both, every row is taken to be whole.
    Source: Schulman et al. 2016, arXiv 1506.02438; copied: arXiv 2506.15050 (EGAE).
    """
    order = policy_steps_first(mask)
    zero = torch.zeros_like(value)
    no = torch.zeros_like(mask)

    def ordered(tensor: Tensor | None, default: Tensor) -> Tensor:
        return torch.where(mask, default if tensor is None else tensor, default).gather(1, order)

    r, v, boot = ordered(reward, zero), ordered(value, zero), ordered(bootstrap_value, zero)
    end, cut, live = ordered(terminated, no), ordered(truncated, no), mask.gather(1, order)
    last = live & ~torch.cat([live[:, 1:], no[:, :1]], 1)
    if bootstrap == "copied" and not (terminated is None and truncated is None):
        boot = torch.where(last & ~cut, v, boot)
    following = live & ~last & ~end & ~cut
    next_value = torch.where(following, torch.cat([v[:, 1:], zero[:, :1]], 1), torch.where(end, zero, boot))
    delta = torch.where(live, r + gamma * next_value - v, 0)
    decay = following.to(delta.dtype) * (gamma * lam)
    return torch.zeros_like(delta).scatter(1, order, discounted_sums(delta, decay))


def values_after(
    value: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    terminated: Bool[Tensor, "B T"] | None = None,
    truncated: Bool[Tensor, "B T"] | None = None,
    bootstrap_value: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """[B,T] V_{t+1} of each policy step, with its graph: that of the row's next policy step; 0 after a terminated step; `bootstrap_value`
    after a truncated one and at the end of the row (0 if not given), as `generalized_advantage` has it. 0 where the policy did not act."""
    order = policy_steps_first(mask)
    zero, no = torch.zeros_like(value), torch.zeros_like(mask)

    def ordered(tensor: Tensor | None, default: Tensor) -> Tensor:
        return torch.where(mask, default if tensor is None else tensor, default).gather(1, order)

    v, boot, live = ordered(value, zero), ordered(bootstrap_value, zero), mask.gather(1, order)
    end, cut = ordered(terminated, no), ordered(truncated, no)
    following = live & torch.cat([live[:, 1:], no[:, :1]], 1) & ~end & ~cut
    after = torch.where(following, torch.cat([v[:, 1:], zero[:, :1]], 1), torch.where(end, zero, boot))
    return torch.zeros_like(after).scatter(1, order, torch.where(live, after, 0))


def discounted_sums(term: Float[Tensor, "B T"], decay: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """A_t = x_t + d_t · A_{t+1} with A_T = 0, for every t at once: a scan by doubling, log2(T) steps instead of T.

    After k steps A_t sums the terms t … t + 2^k − 1 and d_t is the product of their decays. Source: Hillis and Steele 1986.
    """
    total, reach = term.clone(), 1
    while reach < term.shape[1]:
        total[:, :-reach] += decay[:, :-reach] * total[:, reach:]
        decay = torch.cat([decay[:, :-reach] * decay[:, reach:], torch.zeros_like(decay[:, -reach:])], 1)
        reach *= 2
    return total


def settled(batch: Trajectories) -> Bool[Tensor, "B T"]:
    """[B,T] bool: policy steps whose trajectory ends in the same row, at or after them; all where the batch says nothing of ends."""
    if batch.terminated is None and batch.truncated is None:
        return batch.mask
    ends = torch.zeros_like(batch.mask)
    for flag in (batch.terminated, batch.truncated):
        ends = ends if flag is None else ends | (flag & batch.mask)
    return batch.mask & (ends.flip(1).cumsum(1).flip(1) > 0)


@dataclass(frozen=True)
class GAE(Advantage):
    """Generalised advantage estimation against the critic's values; see `generalized_advantage`.

    `normalize`: whiten over all policy tokens of the batch, or over those that the planned [B,T] bool tensor `tokens` names. `bootstrap`:
    what stands for the value after a window that goes on elsewhere: `bootstrap_value`, or the last value copied. The value target is Â
    (before whitening) + V.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"value"})
    joint: ClassVar[Joint] = "step"
    minor: ClassVar[frozenset[str]] = frozenset({"bootstrap"})
    gamma: float = 1.0
    lam: float = 0.95
    normalize: bool = True
    bootstrap: Bootstrap = "given"
    tokens: str | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
            raise InputError(f"GAE(gamma={self.gamma}, lam={self.lam}); accepted: both in [0, 1]")

    def raw(self, batch: Trajectories) -> Float[Tensor, "B T"]:
        """[B,T] without whitening."""
        value = batch.require("value", "GAE")

        def find() -> Tensor:
            if bool((bad := batch.mask & ~torch.isfinite(value)).any()):
                row, step = (int(i) for i in bad.nonzero()[0])
                raise InputError(f"value is {float(value[row, step])} at row {row}, position {step}; accepted: finite numbers")
            return self._of(batch, value, batch.bootstrap_value)

        # run once for the advantage and its value target
        fields = (batch.reward, batch.step_reward, value, batch.mask, batch.terminated, batch.truncated, batch.bootstrap_value)
        found: Tensor = batch.derived(("gae", self.gamma, self.lam, self.bootstrap), fields, find)
        return found

    def _of(self, batch: Trajectories, value: Tensor, after: Tensor | None) -> Float[Tensor, "B T"]:
        return generalized_advantage(
            rewards_per_step(batch).to(value.dtype),
            value,
            batch.mask,
            self.gamma,
            self.lam,
            terminated=batch.terminated,
            truncated=batch.truncated,
            bootstrap_value=after,
            bootstrap=self.bootstrap,
        )

    def of_members(self, batch: Trajectories, value: Float[Tensor, "B T K"], after: Float[Tensor, "B T K"]) -> Float[Tensor, "B T K"]:
        """Without whitening, of each of K critics by its own values; their mean is that of the mean value."""
        each = [self._of(batch, v.contiguous(), b.contiguous()) for v, b in zip(value.unbind(-1), after.unbind(-1), strict=True)]
        return torch.stack(each, -1)

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        advantage = self.raw(batch)
        if not self.normalize:
            return advantage
        counted = batch.mask if self.tokens is None else batch.mask & batch.require(self.tokens, "GAE")
        return whiten(advantage, counted, (planning or Planning()).reduce)


@dataclass(frozen=True)
class BatchWhitened(Advantage):
    """REINFORCE++: reward-to-go of each token, (G_t − mean) / std over all policy tokens of the BATCH, not of the group.

    `gamma` discounts over policy tokens. Source: arXiv 2501.03262.
    """

    joint: ClassVar[Joint] = "step"
    gamma: float = 1.0

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        reward = rewards_per_step(batch)
        to_go = generalized_advantage(
            reward,
            torch.zeros_like(reward),
            batch.mask,
            self.gamma,
            1.0,
            terminated=batch.terminated,
            truncated=batch.truncated,
        )
        return whiten(to_go, batch.mask, (planning or Planning()).reduce)


@dataclass(frozen=True)
class Held(Advantage):
    """Another advantage, taken once when its learner begins on a batch (`Advantage.held`): not at each of the points of a line search."""

    of: Advantage

    @property
    def held(self) -> bool:
        return True

    @property
    def is_dynamic(self) -> bool:
        return True

    @property
    def reach(self) -> Joint:
        return self.of.reach

    @property
    def noise(self) -> frozenset[str]:
        return self.of.noise

    @property
    def reads(self) -> frozenset[str]:
        return self.of.reads

    def symbol(self) -> str:
        return self.of.symbol()

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        return self.of(batch, now, planning).detach()


@dataclass(frozen=True)
class Whitened(Advantage):
    """(A − mean) / std of an advantage that depends on networks, over the steps of an optimiser step; 0 where they are all equal."""

    dynamic: ClassVar[bool] = True
    of: Advantage

    @property
    def reach(self) -> Joint:
        return self.of.reach

    @property
    def spans(self) -> bool:
        return True

    @property
    def reads(self) -> frozenset[str]:
        return self.of.reads

    @property
    def noise(self) -> frozenset[str]:
        return self.of.noise

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        return whiten(self.of(batch, now, planning).detach(), batch.mask, (planning or Planning()).reduce, eps=TINY)


@dataclass(frozen=True)
class EntropyScaled(Advantage):
    """Â = scale · exp(sign · H_i), H_i the mean token entropy of the row under the current policy, detached.

    SRFT's row weights: 0.5·exp(−H) on demonstrations, 0.1·exp(+H) on correct rollouts. Source: arXiv 2506.19767.
    """

    dynamic: ClassVar[bool] = True
    needs_entropy: ClassVar[bool] = True
    scale: float = 0.5
    sign: Literal[-1, 1] = -1

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        if now is None:
            raise InputError("EntropyScaled depends on the current policy: call it with `now`")
        entropy = torch.where(batch.mask, now.entropy_of("EntropyScaled").detach(), 0)
        mean = entropy.sum(1) / batch.mask.sum(1).clamp_min(1)
        return spread(self.scale * torch.exp(self.sign * mean), batch)


@dataclass(frozen=True)
class TokenProbability(Advantage):
    """Â = 1, or 1 − p with `complement`; 0 where p > `cutoff`. p = pi_theta(a_t) under the current policy, detached.

    Over `Uniform` (weight p) the complement gives coefficient p·(1 − p): tokens that the policy is sure of, either way, do not move it.
    Source: arXiv 2508.11408 (phi of CHORD; the cutoff is in its released code).
    """

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    minor: ClassVar[frozenset[str]] = frozenset({"cutoff"})
    complement: bool = True
    cutoff: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.cutoff <= 1:
            raise InputError(f"TokenProbability.cutoff is {self.cutoff}; accepted: a probability in (0, 1], 1 for none")

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        if now is None:
            raise InputError("TokenProbability depends on the current policy: call it with `now`")
        log_prob = now.log_prob.detach()
        weight = -torch.expm1(log_prob) if self.complement else torch.ones_like(log_prob)
        return torch.where(log_prob > math.log(self.cutoff), 0, weight)


@dataclass(frozen=True)
class ReadAdvantage(Advantage):
    """Â = what a `Reading` calls `value`, detached."""

    dynamic: ClassVar[bool] = True
    joint: ClassVar[Joint] = "step"
    reading: Reading
    value: str

    @property
    def readings(self) -> tuple[Reading, ...]:
        return (self.reading,)

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        if now is None:
            raise InputError("ReadAdvantage depends on the current policy: call it with `now`")
        return now.reading(self.reading)[self.value].detach()


@dataclass(frozen=True)
class BySuccess(Advantage):
    """Â = `success`'s value where R > `threshold`, `failure`'s elsewhere."""

    minor: ClassVar[frozenset[str]] = frozenset({"threshold"})
    success: Advantage = Constant(1.0)
    failure: Advantage = Constant(-1.0)
    threshold: float = 0.0

    @property
    def is_dynamic(self) -> bool:
        return self.success.is_dynamic or self.failure.is_dynamic

    @property
    def reach(self) -> Joint:
        return furthest((self.joint, self.success.reach, self.failure.reach))

    @property
    def is_comparison(self) -> bool:
        return self.success.is_comparison or self.failure.is_comparison

    @property
    def readings(self) -> tuple[Reading, ...]:
        return self.success.readings + self.failure.readings

    @property
    def reads_entropy(self) -> bool:
        return self.success.reads_entropy or self.failure.reads_entropy

    @property
    def reads(self) -> frozenset[str]:
        return self.success.reads | self.failure.reads

    def __call__(self, batch: Trajectories, now: Evaluation | None = None, planning: Planning | None = None) -> Float[Tensor, "B T"]:
        good = (batch.total_reward() > self.threshold).unsqueeze(1)
        return torch.where(good, self.success(batch, now, planning), self.failure(batch, now, planning))


__all__ = [
    "DEMONSTRATIONS",
    "GAE",
    "PREFERENCES",
    "ROLLOUTS",
    "UNION",
    "Advantage",
    "BatchWhitened",
    "BySuccess",
    "Combination",
    "Constant",
    "EntropyScaled",
    "GroupAdvantage",
    "GroupCentered",
    "GroupStandardized",
    "LeaveOneOut",
    "Outcome",
    "Planning",
    "ReadAdvantage",
    "TokenProbability",
]
