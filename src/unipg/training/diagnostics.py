"""Raw diagnostics of a batch and of its updates: what the ratios, masks, advantages and rewards looked like before any truncation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unipg.estimator.advantages import GAE, group_statistics, settled
from unipg.estimator.policy_gradient import LOG_RATIO_LIMIT, Record
from unipg.rollouts.base import FRESH
from unipg.trajectories import Source, Trajectories

QUANTILES = {"q01": 0.01, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q99": 0.99}
BINS = 20
MOST_VALUES = 1 << 20
"""Ratios kept for quantiles; more are thinned evenly."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges."""

    name: str
    edges: list[float]
    counts: list[int]


@dataclass
class UpdateDiagnostics:
    """Gathers the estimator's records over the micro-batches of one iteration."""

    records: list[Record] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)
    """Sum over its tokens, and their number, of each micro-batch; read by `metrics` alone, so that no step waits for them."""
    counts: list[Tensor] = field(default_factory=list)
    mismatches: list[Tensor] = field(default_factory=list)
    """log pi_theta − log pi_behaviour of sampled tokens, before the first step on a batch."""

    recording: bool = True
    """Whether the terms of the next update are recorded."""

    def forget(self) -> None:
        """Begins anew."""
        for kept in (self.records, self.entropies, self.counts, self.mismatches):
            kept.clear()

    def add_mismatch(self, log_prob: Tensor, batch: Trajectories) -> None:
        if batch.behaviour_log_prob is not None:
            sampled = batch.mask & batch.rows_from(Source.ROLLOUT).unsqueeze(1) & batch.planned.get(FRESH, batch.mask)
            self.mismatches.append((log_prob.detach() - batch.behaviour_log_prob)[sampled])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {**vars(self), "records": [vars(record) for record in self.records]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """What `state_dict` was taken of, on any device."""
        self.forget()
        for name in ("entropies", "counts", "mismatches"):
            getattr(self, name).extend(tensor.to(device) for tensor in state[name])
        for record in state["records"]:
            there = {name: record[name].to(device) for name in ("log_ratio", "advantage", "stable")}
            facts = {name: value.to(device) for name, value in record["facts"].items()}
            self.records.append(Record(record["term"], **there, facts=facts, shapes=record["shapes"]))

    def add_entropy(self, entropy: Tensor | None, mask: Tensor) -> None:
        if entropy is not None:
            self.entropies.append(torch.where(mask, entropy.detach(), 0).sum())
            self.counts.append(mask.sum())

    def by_term(self) -> dict[str, list[Record]]:
        terms: dict[str, list[Record]] = {}
        for record in self.records:
            terms.setdefault(record.term, []).append(record)
        return terms

    def metrics(self) -> dict[str, float]:
        """Importance-ratio quantiles and effective sample size, share of tokens that each mask silenced by side, advantages."""
        out: dict[str, float] = {}
        if self.counts and (tokens := int(torch.stack(self.counts).sum())):
            out["entropy"] = float(torch.stack(self.entropies).double().sum()) / tokens
        if self.mismatches and len(mismatch := torch.cat(self.mismatches).float()):
            out["mismatch/log_ratio"] = float(mismatch.abs().mean())
            out["mismatch/ratio_max"] = float(mismatch.max().exp())
        for number, (name, records) in enumerate(self.by_term().items()):
            log_ratio = torch.cat([r.log_ratio for r in records]).float()
            advantage = torch.cat([r.advantage for r in records]).float()
            if len(log_ratio):
                stable = torch.cat([r.stable for r in records])
                prefix = f"mask/{name}"
                blocked = ~stable
                out[f"{prefix}/blocked_positive"] = float((blocked & (advantage > 0)).float().mean())
                out[f"{prefix}/blocked_negative"] = float((blocked & (advantage < 0)).float().mean())
                out[f"{prefix}/overflow"] = float((log_ratio > LOG_RATIO_LIMIT).float().mean())
            elif not any(r.facts for r in records) and not len(advantage):
                continue
            for fact in records[0].facts:
                told = torch.cat([r.facts[fact] for r in records]).float()
                if len(told):
                    out[f"{name}/{fact}"] = float(told.mean())
                    if fact in records[0].shapes:
                        out[f"{name}/{fact}_std"] = float(told.std(correction=0))
                        out |= {f"{name}/{fact}_min": float(told.min()), f"{name}/{fact}_max": float(told.max())}
            if len(advantage):
                out[f"advantage/{name}/mean"] = float(advantage.mean())
                out[f"advantage/{name}/std"] = float(advantage.std(correction=0))
            if number == 0 and len(log_ratio):
                out |= ratio_metrics(log_ratio)
        return out

    def histograms(self) -> list[Histogram]:
        shown = []
        for name, records in self.by_term().items():
            advantage = torch.cat([r.advantage for r in records]).float()
            if len(advantage):
                shown.append(histogram(f"advantage/{name}", advantage))
            told = {fact: torch.cat([r.facts[fact] for r in records]).float() for fact in records[0].shapes}
            shown += [histogram(f"{name}/{fact}", values) for fact, values in told.items()]
        first = next(iter(self.by_term().values()), [])
        if first and len(log_ratio := torch.cat([r.log_ratio for r in first]).float()):
            shown.append(histogram("log_ratio", log_ratio))
        return shown


def ratio_metrics(log_ratio: Tensor) -> dict[str, float]:
    """Quantiles and maximum of pi_theta / pi_old over tokens, and the effective sample size (sum w)² / (n · sum w²) in (0, 1]."""
    stride = max(1, len(log_ratio) // MOST_VALUES)
    ordered = log_ratio[::stride].sort().values
    out = {f"ratio/{name}": float(ordered[round(q * (len(ordered) - 1))].exp()) for name, q in QUANTILES.items()}
    out["ratio/max"] = float(log_ratio.max().exp())
    weight = torch.exp(log_ratio.double() - log_ratio.max().double())
    out["ratio/ess"] = float(weight.sum() ** 2 / (len(weight) * (weight**2).sum()))
    return out


def batch_metrics(batch: Trajectories) -> tuple[dict[str, float], list[Histogram]]:
    """Rewards and groups of a fresh batch; rollouts that a window cut off have no reward yet."""
    rollouts = batch.rows_from(Source.ROLLOUT) & (settled(batch).any(1) | ~batch.mask.any(1))
    if batch.reward is None or not rollouts.any():
        return {}, []
    assert batch.group is not None
    reward = batch.reward.float()
    stats = group_statistics(reward, batch.group, rollouts)
    _, first = _first_of_each(batch.group[rollouts])
    mean = stats.mean[rollouts][first]
    signal = (stats.squares > 0)[rollouts][first]
    chosen = reward[rollouts]
    metrics = {
        "reward/mean": float(chosen.mean()),
        "reward/std": float(chosen.std(correction=0)),
        "reward/max": float(chosen.max()),
        "groups/no_signal_fraction": float((~signal).float().mean()),
        "groups/all_zero_fraction": float((mean == 0).float().mean()),
    }
    return metrics, [histogram("reward", chosen), histogram("success_rate", mean)]


def value_metrics(batch: Trajectories, gae: GAE) -> dict[str, float]:
    """A critic of states beside the lambda-returns G that it is trained on: both means, and 1 − Var(G − V) / Var(G) where G varies."""
    value = batch.require("value", "value_metrics")
    predicted = value[batch.mask].double()
    told = predicted + gae.raw(batch)[batch.mask].double()
    metrics = {"values/predicted": float(predicted.mean()), "values/lambda_return": float(told.mean())}
    if (spread := float(told.var(correction=0))) > 0:
        metrics["values/explained_variance"] = 1 - float((told - predicted).var(correction=0)) / spread
    return metrics


def _first_of_each(group: Tensor) -> tuple[Tensor, Tensor]:
    groups, inverse = group.unique(return_inverse=True)
    first = torch.full((len(groups),), len(group), dtype=torch.long, device=group.device)
    first = first.scatter_reduce(0, inverse, torch.arange(len(group), device=group.device), "amin")
    return groups, first


def histogram(name: str, values: Tensor) -> Histogram:
    values = values[torch.isfinite(values)].float().cpu()
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, BINS, low, high)
    edges = torch.linspace(low, high, BINS + 1)
    return Histogram(name, [round(e, 6) for e in edges.tolist()], [int(c) for c in counts.tolist()])
