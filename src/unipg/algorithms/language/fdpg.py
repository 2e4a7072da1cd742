"""f-DPG (arXiv 2302.08215): towards any target distribution that can be evaluated up to a constant, down any f-divergence."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preparation import successes
from unipg.errors import InputError, nearest
from unipg.estimator import Planning, PolicyGradient, SequenceMeanTokenSum
from unipg.estimator.divergences import FDivergence, divergence_named, sequence_log_prob
from unipg.estimator.parts import Reduce, alone
from unipg.estimator.policy_gradient import check_log_probs
from unipg.estimator.references import SequenceRatio
from unipg.trajectories import Trajectories

FEATURE = "feature/"
"""Planned `[B]` values of the features of a row stand under this prefix."""
PARTITION, PSEUDO_REWARDS, LAMBDA = "fdpg/partition", "fdpg/pseudo_rewards", "fdpg/lambda"
SILENT, COMPARISON, DECIDED = "fdpg/silent_batches", "fdpg/comparison", "fdpg/decided"
NEWTON_STEPS, CONVERGED, RESIDUAL = 100, 1e-12, 1e-5
"""Of the fit of lambda: most steps, the error of the moments at which it stops, and the largest one that it is accepted with."""


@register
@dataclass(frozen=True)
class FDPG(Algorithm):
    """Descends D_f(pi_theta || p), p = P / Z, for a target P that is only known up to a constant; each prompt has its own Z.

    `target` says what P is; a(y) is the anchor, by default the model as it is at the start:

        rlhf             a(y) · exp(reward / beta): what RLHF with a KL penalty of weight beta aims at
        pointwise        a(y) · 1{reward = 1}, or 1{every feature of `moments` = 1}
        distributional   a(y) · exp(sum_k lambda_k phi_k(y)), lambda such that E_p[phi] = `moments`; features are planned as `feature/NAME`

    A product of experts a(y) · prod_k pi_k(y)^w_k is `rlhf` with beta 1 and the reward sum_k w_k log pi_k(y). With `reverse_kl` and `rlhf`
    it is REINFORCE with the KL in the reward; with `kl` it is distributional policy gradient (DPG, GDC).
    """

    name = "fdpg"
    title = "f-divergence policy gradient"
    paper = "arXiv 2302.08215"
    equation = "coefficient = pi_theta(y) / q(y) · (−f'(pi_theta(y) Z / P(y)) − b), of whole rows;  mean over rows, then prompts"
    bias = (
        "It follows D_f(pi || p) to a target distribution, not the expected reward alone; Z and lambda are estimates, which for other "
        "divergences than reverse_kl shift the pseudo-reward."
    )
    deviations = (
        "The baseline is the mean of the pseudo-rewards of the most recent whole batches that hold 1024, as they were when each batch was "
        "prepared; the released code renews it with every minibatch, so its gradient depends on how a batch is cut.",
        "A target that excludes a sample makes the released loss NaN under reverse_kl and reverse_chi2: an error here, unless "
        "log_ratio_max is given.",
        "lambda is fitted by Newton's method, the released code takes 1000 gradient steps of 0.05 to the same optimum.",
        "The released code's branch for adaptive proposals does not run; here it follows the paper's algorithm.",
        "max_z lowers a prompt's largest single estimates of Z to one level, such that their running mean is max_z.",
    )
    claim = "benchmarks/claims/fdpg.py"
    needs_group = 2
    learns_from_equals = True

    rollouts: int = setting(8, "rollouts per prompt, at least 2: the first estimate of Z", "released code: 1024")
    divergence: str = setting(
        "js", "kl: KL(p||pi), reverse_kl, js, tv, chi2, reverse_chi2, alpha(0.5), or module:function giving f'(log t)", "released code"
    )
    target: Literal["rlhf", "pointwise", "distributional"] = setting("rlhf", "what the target distribution is made of")
    beta: float = setting(0.1, "rlhf: temperature of the reward, the weight of the KL to the anchor in what RLHF maximises")
    success_threshold: float | None = setting(None, "pointwise: reward above which a rollout is allowed; null: rewards must be 0 or 1")
    moments: dict[str, float] | None = setting(None, "target moment of each feature, by name", "GDC, arXiv 2012.11635")
    conditional: bool = setting(True, "each prompt has its own Z; off: all rows share one")
    log_z: float | None = setting(None, "log Z where it is known, 0 for a normalised target; null: estimated")
    max_z: float | None = setting(None, "bound on the estimate of Z; null for none", "released code: none")
    skip_limit: int = setting(100, "batches in a row without any sample that the target allows, after which to stop with an error")
    baseline_window: int = setting(1024, "pseudo-rewards of earlier batches that the baseline averages; 0 for no baseline", "released code")
    log_ratio_max: float | None = setting(None, "bound on log(pi / p), for divergences whose f' has none; null: an error where it matters")
    weight_max: float | None = setting(None, "bound on pi(y) / q(y) of a row; null for none", "released code: none")
    proposal: Literal["online", "adaptive"] = setting("online", "sample from the policy, or from a frozen copy that follows it")
    proposal_every: int = setting(16, "adaptive: optimiser steps after which the copy is renewed if the policy is closer", "released code")
    proposal_window: int = setting(256, "adaptive: fewest samples over which KL(p||pi) and KL(p||q) are compared", "released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        divergence_named(self.divergence)
        positive = ("beta", "max_z", "skip_limit", "log_ratio_max", "proposal_every", "proposal_window")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"algorithm.{name} is {value}; accepted: a number above 0")
        if self.log_z is not None and not math.isfinite(self.log_z):
            raise InputError(f"algorithm.log_z is {self.log_z}; accepted: a finite number, or null for an estimate")
        if self.baseline_window < 0:
            raise InputError(f"algorithm.baseline_window is {self.baseline_window}; accepted: 0 or more")
        if self.target == "distributional" and not self.moments:
            raise InputError("algorithm.moments is empty; a distributional target needs {feature: moment}")
        if self.target == "rlhf" and self.moments:
            raise InputError("algorithm.moments belongs to the targets distributional and pointwise; the target is rlhf")
        if self.target == "pointwise" and any(moment != 1 for moment in (self.moments or {}).values()):
            raise InputError(f"algorithm.moments is {self.moments}; accepted for a pointwise target: 1.0 for every feature")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            reference=SequenceRatio("behaviour_log_prob", self.weight_max),
            advantage=self.advantage,
            aggregate=SequenceMeanTokenSum(),
            row_weight="target/weight",
            name="fdpg",
        )

    @property
    def advantage(self) -> FDivergence:
        return FDivergence(divergence_named(self.divergence), self.log_ratio_max)

    @property
    def proposes(self) -> bool:
        return self.proposal == "adaptive"

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"anchor_log_prob", "behaviour_log_prob", self._policy_field})

    @property
    def _policy_field(self) -> str:
        """What the policy's own log-probability is when a batch is prepared; online it is what the sampler recorded."""
        return "old_log_prob" if self.proposes else "behaviour_log_prob"

    # ------------------------------------------------------------------------------------------------ whole-batch work

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        for name in sorted(self.reads - {"anchor_log_prob"}):
            check_log_probs(batch.require(name, self.name), batch, name)
        live, memory = batch.mask.any(1), planning.memory
        log_proposal, log_policy = (self._row_log_prob(batch, name) for name in ("behaviour_log_prob", self._policy_field))
        log_target = torch.where(live, self._log_target(batch, log_proposal, live, planning), 0)
        if self.log_z is None:
            log_z = self._log_partition(batch, log_target - log_proposal, live, planning)
        else:
            log_z = torch.full_like(log_target, self.log_z)
        known = live & torch.isfinite(log_z)
        log_z = torch.where(known, log_z, 0)
        reward = self.advantage.pseudo_reward(log_policy, log_target, log_z)
        counted = known & torch.isfinite(reward)
        earlier = memory.get(PSEUDO_REWARDS, [])
        count, total = (sum(column) for column in zip(*earlier, strict=True)) if earlier else (0.0, 0.0)
        baseline = total / count if count else 0.0
        fresh = planning.reduce(torch.stack([counted.sum().double(), torch.where(counted, reward, 0).sum()])).tolist()
        memory[PSEUDO_REWARDS] = _recent([*earlier, fresh], self.baseline_window)
        weight = self._row_weight(batch, live, planning)
        planned = {
            "target/log_prob": log_target,
            "target/log_partition": log_z,
            "target/baseline": torch.full_like(log_z, baseline),
            "target/weight": torch.where(known, weight, 0),
            **{f"target/lambda/{k}": torch.full_like(log_z, v) for k, v in (memory.get(LAMBDA) or {}).items()},
        }
        self._check_support(known, live, planning)
        if self.proposes:
            self._compare(planned["target/weight"], log_target - log_z, log_proposal, log_policy, planning)
        return batch.replace(planned={**batch.planned, **planned})

    def _row_log_prob(self, batch: Trajectories, name: str) -> Tensor:
        return sequence_log_prob(batch.require(name, self.name), batch)

    def _row_weight(self, batch: Trajectories, live: Tensor, planning: Planning) -> Tensor:
        """[B] what turns the mean over rows into the mean over prompts of the mean over a prompt's rows: 1 where all have equally many."""
        assert batch.group is not None
        groups, index = batch.group.unique(return_inverse=True)
        size = torch.zeros(len(groups), dtype=torch.float64, device=live.device).index_add(0, index, live.double())
        rows, prompts = planning.reduce(torch.stack([size.sum(), (size > 0).sum().double()]))
        return rows / (prompts * size[index].clamp_min(1)).clamp_min(1)

    def _check_support(self, known: Tensor, live: Tensor, planning: Planning) -> None:
        """Counts batches in a row in which no prompt has a Z above 0, and refuses to go on for ever."""
        some, rows = planning.reduce(torch.stack([known.sum(), live.sum()]).double()).tolist()
        silent = 0 if some else planning.memory.get(SILENT, 0) + (rows > 0)
        planning.memory[SILENT] = silent
        if silent > self.skip_limit:
            raise InputError(
                f"the target excluded every sample of {silent} batches in a row (algorithm.skip_limit is {self.skip_limit}): the model "
                "must be able to produce what the target allows"
            )

    # ------------------------------------------------------------------------------------------------ the target

    def _log_target(self, batch: Trajectories, log_proposal: Tensor, live: Tensor, planning: Planning) -> Tensor:
        """[B] log P."""
        log_anchor = self._row_log_prob(batch, "anchor_log_prob")
        if self.target == "rlhf":
            return log_anchor + batch.total_reward().double() / self.beta
        if not self.moments:
            return log_anchor + successes(batch, self.success_threshold).double().log()
        features = self._features(batch, live)
        if LAMBDA not in planning.memory:
            odd = planning.reduce((live.unsqueeze(1) & (features != 0) & (features != 1)).sum())
            if all(moment == 1 for moment in self.moments.values()) and not odd:
                planning.memory[LAMBDA] = None  # a pointwise constraint: lambda would be infinite
            elif self.target == "pointwise":
                raise InputError(f"a pointwise target needs features that are 0 or 1; one of {', '.join(self.moments)} has another value")
            else:
                planning.memory[LAMBDA] = self._fitted(batch, log_anchor - log_proposal, features, live, planning)
        weights = planning.memory[LAMBDA]
        if weights is None:
            return log_anchor + (features == 1).all(1).double().log()
        return log_anchor + features @ features.new_tensor(list(weights.values()))

    def _features(self, batch: Trajectories, live: Tensor) -> Tensor:
        """[B,K] the features that have a moment, in its order."""
        assert self.moments is not None
        have = [key.removeprefix(FEATURE) for key in batch.planned if key.startswith(FEATURE)]
        for name in self.moments:
            if name not in have:
                raise InputError(f"algorithm.moments names '{name}', but the batch has no '{FEATURE}{name}' planned; {nearest(name, have)}")
        extra = [name for name in have if name not in self.moments]
        if extra:
            raise InputError(f"algorithm.moments has no moment for the feature '{extra[0]}'; give one for each of: {', '.join(have)}")
        features = torch.stack([batch.planned[FEATURE + name].double() for name in self.moments], 1)
        features = torch.where(live.unsqueeze(1), features, 0)
        if not bool(torch.isfinite(features).all()):
            row, column = (int(i) for i in (~torch.isfinite(features)).nonzero()[0])
            value = float(features[row, column])
            raise InputError(f"the feature '{list(self.moments)[column]}' of row {row} is {value}; accepted: finite numbers")
        return features

    def _fitted(self, batch: Trajectories, log_weight: Tensor, features: Tensor, live: Tensor, planning: Planning) -> dict[str, float]:
        """lambda for which the moments under p, by importance sampling from the batch with weights a·exp(lambda·phi) / q, are `moments`.

        Damped Newton on the convex dual, mean_c log Z_c(lambda) − lambda·moments.
        """
        assert self.moments is not None
        wanted = features.new_tensor(list(self.moments.values()))
        index, keys = self._contexts(batch, live)
        within, across = (alone, planning.reduce) if self.conditional else (planning.reduce, alone)
        features, log_weight = features[live], log_weight[live]
        weights, error, contexts = torch.zeros_like(wanted), torch.full_like(wanted, math.inf), len(keys)
        count = across(torch.tensor(float(contexts), dtype=torch.float64)).clamp_min(1)

        def by_context(values: Tensor) -> Tensor:
            return within(values.new_zeros(contexts, *values.shape[1:]).index_add(0, index, values))

        for _ in range(NEWTON_STEPS):
            tilted = log_weight + features @ weights
            log_sum = _log_sums(tilted, index, contexts, within)[index]
            share = torch.where(torch.isfinite(log_sum), torch.exp(tilted - torch.where(torch.isfinite(log_sum), log_sum, 0)), 0)
            moments = by_context(share.unsqueeze(1) * features)
            squares = by_context(share[:, None, None] * features.unsqueeze(1) * features.unsqueeze(2))
            error = across(moments.sum(0)) / count - wanted
            if float(error.abs().max()) < CONVERGED:
                break
            curvature = across((squares - moments.unsqueeze(1) * moments.unsqueeze(2)).sum(0)) / count
            step = torch.linalg.pinv(curvature, hermitian=True, rtol=1e-10) @ error
            reach = float(planning.reduce((features @ step).abs().amax() if len(features) else step.new_zeros(())))
            weights = weights - step * (math.log1p(reach) / reach if reach > 0 else 1.0)
        if float(error.abs().max()) < RESIDUAL:
            return dict(zip(self.moments, weights.tolist(), strict=True))
        residual = ", ".join(f"{name}: {gap:+.3g}" for name, gap in zip(self.moments, error.tolist(), strict=True))
        raise InputError(
            f"algorithm.moments cannot be reached on the {int(planning.reduce(live.sum()))} samples of the first batch: after "
            f"{NEWTON_STEPS} steps they miss by {residual}; accepted: moments between those of samples that the model produces"
        )

    # ------------------------------------------------------------------------------------------------ the partition function

    def _contexts(self, batch: Trajectories, live: Tensor) -> tuple[Tensor, list[Hashable]]:
        """The context of each live row, [n] indices into the list of contexts: its prompt's text, or its group where it has none."""
        if not self.conditional:
            return torch.zeros(int(live.sum()), dtype=torch.long, device=live.device), ["all"]
        assert batch.group is not None
        prompts = batch.annotations.get("prompt", [None] * len(batch))
        pairs = zip(prompts, batch.group.tolist(), live.tolist(), strict=True)
        keys: list[Hashable] = [group if prompt is None else prompt for prompt, group, lives in pairs if lives]
        place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return torch.tensor([place[key] for key in keys], dtype=torch.long, device=live.device), list(place)

    def _log_partition(self, batch: Trajectories, log_weight: Tensor, live: Tensor, planning: Planning) -> Tensor:
        """[B] log of the running mean of P / q over all samples of the row's context so far, this batch's included; −inf where it is 0.

        A context's samples are those of all workers: each keeps the same table.
        """
        index, keys = self._contexts(batch, live)
        table: dict[Hashable, tuple[float, float]] = planning.memory.get(PARTITION, {})
        values = log_weight[live]
        mine = torch.bincount(index, minlength=len(keys)).tolist()
        if self.max_z is not None:
            values = self._bounded(values, index, keys, table, planning)
        sums = _log_sums(values, index, len(keys)).tolist()
        fresh: dict[Hashable, tuple[float, float]] = {}
        for told in planning.gather(dict(zip(keys, zip(sums, mine, strict=True), strict=True))):
            for key, (log_sum, count) in told.items():
                so_far, counted = fresh.get(key) or table.get(key, (-math.inf, 0.0))
                both = torch.tensor([so_far, log_sum], dtype=torch.float64)
                fresh[key] = float(torch.logaddexp(*both)), counted + count
        planning.memory[PARTITION] = {**table, **fresh}
        log_means = torch.tensor([fresh[key][0] - math.log(fresh[key][1]) for key in keys], dtype=torch.float64, device=live.device)
        log_z = torch.full_like(log_weight, -math.inf)
        log_z[live] = log_means[index]
        return log_z

    def _bounded(
        self, values: Tensor, index: Tensor, keys: list[Hashable], table: Mapping[Hashable, tuple[float, float]], planning: Planning
    ) -> Tensor:
        """[n] log P / q with the largest of each context, over all workers, lowered to one level, so that its running mean is at most
        `max_z`."""
        assert self.max_z is not None
        mine = {key: values[index == context].tolist() for context, key in enumerate(keys)}
        parts: list[dict[Hashable, list[float]]] = planning.gather(mine)
        values, scale = values.clone(), math.log(self.max_z)
        for context, key in enumerate(keys):
            log_sum, counted = table.get(key, (-math.inf, 0.0))
            before = sum(len(part.get(key, ())) for part in parts[: planning.rank])
            together = values.new_tensor([value for part in parts for value in part.get(key, ())]) - scale
            room = values.new_tensor(counted + len(together) - math.exp(log_sum - scale))
            values[index == context] = _shrunk(together, room)[before : before + len(mine[key])] + scale
        return values

    # ------------------------------------------------------------------------------------------------ the proposal

    def _compare(self, weight: Tensor, log_p: Tensor, log_proposal: Tensor, log_policy: Tensor, planning: Planning) -> None:
        """Remembers how this batch's samples compare KL(p||pi) with KL(p||q), by importance sampling."""
        share = torch.where(weight > 0, weight * torch.exp(log_p - log_proposal), 0)
        sums = [torch.where(share > 0, share * (log_p - log_other), 0).sum() for log_other in (log_policy, log_proposal)]
        entry = planning.reduce(torch.stack([(weight > 0).sum().double(), share.sum(), *sums])).tolist()
        planning.memory[COMPARISON] = _recent([*planning.memory.get(COMPARISON, []), entry], self.proposal_window)

    def adopts(self, batch: Trajectories, planning: Planning) -> bool:
        """Every `proposal_every` optimiser steps: whether the target is closer to the policy than to the proposal."""
        memory, step = planning.memory, planning.progress.step
        if not self.proposes or step - memory.get(DECIDED, 0) < self.proposal_every:
            return False
        memory[DECIDED] = step
        _, _, policy, proposal = (sum(column) for column in zip(*memory[COMPARISON], strict=True))
        better = policy < proposal
        if better:
            memory[COMPARISON] = []  # what follows is drawn from another proposal
        return better

    # ------------------------------------------------------------------------------------------------ what is plotted

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        """Divergences between target and policy from this batch's samples, each with a normal 95 % interval that takes Z as known.

        Of r = pi / q and w = p / q:  KL(p||pi): w log(p/pi) − w + r;  TV: |w − r| / 2;  JS (at most log 2): half of
        w log(p/pi) − (w + r) log((1 + p/pi) / 2).  No summand is negative, and w − r is 0 on average.
        """
        weight, live = batch.planned["target/weight"], batch.mask.any(1)
        known = weight > 0
        found = {"target/skipped_fraction": float((live & ~known).sum()) / max(1, int(live.sum()))}
        found |= {k: float(v[0]) for k, v in batch.planned.items() if k.startswith("target/lambda/") and len(v)}
        if not bool(known.any()):
            return found
        log_z = batch.planned["target/log_partition"][known]
        log_p = batch.planned["target/log_prob"][known] - log_z
        log_proposal, log_policy = (self._row_log_prob(batch, name)[known] for name in ("behaviour_log_prob", self._policy_field))
        w, r, log_u = torch.exp(log_p - log_proposal), torch.exp(log_policy - log_proposal), log_p - log_policy
        surplus = torch.where(w > 0, w * log_u, 0)
        mean_log = torch.nn.functional.softplus(log_u) - math.log(2)
        summands = {"kl": surplus - w + r, "tv": (w - r).abs() / 2, "js": (surplus - (w + r) * mean_log) / 2}
        for name, values in summands.items():
            value, half = _mean(weight[known] * values)
            found |= {f"target/{name}": value, f"target/{name}_low": value - half, f"target/{name}_high": value + half}
        found["target/ess"] = float(w.sum() ** 2 / (len(w) * (w**2).sum())) if bool((w > 0).any()) else 0.0
        found["target/log_partition"] = float(log_z.mean())
        return found


def _log_sums(values: Tensor, index: Tensor, count: int, reduce: Reduce = alone) -> Tensor:
    """[C] log of the sum of exp(values [n]) by index, over all workers where `reduce` sums over them; −inf for an empty sum."""
    top = values.new_full((count,), -math.inf).scatter_reduce(0, index, values, "amax")
    shift = torch.where(torch.isfinite(top), top, 0)
    log_sum = shift + values.new_zeros(count).index_add(0, index, torch.exp(values - shift[index])).log()
    some = torch.isfinite(log_sum)
    workers, total = reduce(torch.stack([some.double(), torch.where(some, log_sum, 0)]))
    middle = total / workers.clamp_min(1)  # workers hold alike samples: no sum is far from the others
    return middle + reduce(torch.exp(log_sum - middle)).log()


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean of [n] values and half the width of its normal 95 % interval; NaN for a single value."""
    half = 1.959964 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), half


def _shrunk(values: Tensor, room: Tensor) -> Tensor:
    """[n] logs of estimates with the largest lowered to one level, such that the estimates sum to at most `room`."""
    estimates = values.exp()
    if not len(values) or float(estimates.sum()) <= float(room):
        return values
    estimates = estimates.clamp_max(float(room))  # the level is no higher, and no estimate infinite
    ordered = estimates.sort(descending=True).values
    smaller = ordered.sum() - ordered.cumsum(0)
    levels = (room - smaller) / torch.arange(1, len(values) + 1, device=values.device)
    fits = levels >= torch.cat([ordered[1:], ordered.new_zeros(1)])
    return values.clamp_max(float(levels[fits][0].log()))


def _recent(entries: Sequence[list[float]], size: float) -> list[list[float]]:
    """The most recent batches that together hold `size` samples; an entry begins with its number of them."""
    kept: list[list[float]] = []
    for entry in reversed(entries):
        if sum(e[0] for e in kept) >= size:
            break
        kept.insert(0, entry)
    return kept
