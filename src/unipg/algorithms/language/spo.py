"""SPO (arXiv 2509.13232): one response per prompt, against a success rate that is tracked for each prompt over the whole run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Evaluate, Setting, register, setting
from unipg.algorithms.rates import TRACKED
from unipg.errors import InputError
from unipg.estimator import OldPolicy, Planning, PolicyGradient, RatioClip, TokenMean
from unipg.estimator.baselines import RowsWhitened
from unipg.estimator.policy_gradient import check_rewards
from unipg.samplers import PrioritizedSampler, Sampler, UniformSampler
from unipg.samplers.priority import TRACKER
from unipg.trajectories import Source, Trajectories

BASELINE = "spo/baseline"
Key = int | str | tuple[int, ...]
"""A prompt: its item's number, its text, or its tokens."""


@register
@dataclass(frozen=True)
class SPO(Algorithm):
    """No groups: the baseline of a prompt is its tracked success rate v = alpha / (alpha + beta) BEFORE the response at hand, and the
    advantage R − v is whitened over the batch, each trajectory once.

    After the updates of an iteration, with the response y of the prompt's previous visit, row by row in the batch's order:

        D = mean over tokens |log pi_last(y) − log pi_now(y)|,   rho = clamp(2^(−D / half_life), rho_min, rho_max)
        alpha ← rho · alpha + R,   beta ← rho · beta + (1 − R)

    The same table decides how often a prompt is asked (`PrioritizedSampler`). A prompt is known by `annotations["item"]`, else by its text,
    else by its tokens.
    """

    name = "spo"
    title = "Single-stream policy optimisation"
    paper = "arXiv 2509.13232"
    equation = "coefficient = 1_Clip(0.2, 0.28, 10) · ((R − v) − mean) / (std + 1e-8) · r;  token mean"
    bias = "Dividing by the batch's standard deviation; prompts are sampled by priority, without correction."
    deviations = (
        "A prompt that occurs twice in a batch is updated twice, in order, the second time with D = 0; in the released code the last wins.",
        "D is the mean absolute log-ratio, as in the released code; the paper calls it KL. The upper clamp 0.96 is the code's too.",
        "A first visit has D = 0, so rho = rho_max.",
        "Without offline scores every prompt starts from alpha = beta = 0.5 and is sampled as one of value 0.5.",
    )
    claim = "benchmarks/claims/spo.py"
    unit_rewards = True
    learning_rate = TRACKED
    tracks_prompts = True

    rollouts: int = setting(1, "rollouts per prompt", "arXiv 2509.13232")
    sampler: Literal["priority", "uniform"] = setting("priority", "which prompts are asked", "arXiv 2509.13232")
    exploration: float = setting(0.05, "added to each prompt's priority sqrt(v (1 − v))", "arXiv 2509.13232")
    count_power: float = setting(0.0, "priorities are divided by the effective number of observations to this power", "released code: 0")
    tracker: Literal["beta", "ema"] = setting("beta", "beta: rewards in [0, 1]; ema: any rewards, v ← v + (R − v) / (rho n + 1)")
    forgetting: Literal["kl", "constant"] = setting("kl", "rho from how far the policy has moved, or rho_min always", "arXiv 2509.13232")
    rho_min: float = setting(0.875, "smallest share of what is known that is kept", "released code")
    rho_max: float = setting(0.96, "largest share of what is known that is kept", "released code")
    half_life: float = setting(0.06, "distance D of the policies, in nats per token, at which rho would be a half", "released code")
    initial_responses: int = setting(0, "scores of each prompt in initial_scores; 0 for none", "released code: 8")
    initial_scores: str | None = setting(
        None, "JSON file with the scores of responses of the initial policy, by prompt: its text or its item's number"
    )
    register_unknown: bool = setting(True, "start the tracker of a prompt that has no initial scores at 0.5; off: an error")
    whiten: Literal["row", "token"] = setting(
        "row", "what counts in mean and std: rows, or their tokens (arXiv 2608.24870)", "released code"
    )
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "released code")
    clip_high: float = setting(0.28, "distance above 1 that the ratio may go", "released code")
    clip_dual: float | None = setting(10.0, "bound on the ratio itself where the advantage is negative; null for none", "released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rho_min <= self.rho_max < 1:
            raise InputError(f"algorithm.rho_min is {self.rho_min} and rho_max {self.rho_max}; accepted: 0 < rho_min <= rho_max < 1")
        if not self.half_life > 0:
            raise InputError(f"algorithm.half_life is {self.half_life}; accepted: a number above 0")
        if self.exploration < 0 or not 0 <= self.count_power <= 1:
            raise InputError(f"algorithm.exploration is {self.exploration} and count_power {self.count_power}; accepted: >= 0, and [0, 1]")
        if (self.initial_responses > 0) != (self.initial_scores is not None) or self.initial_responses < 0:
            raise InputError("algorithm.initial_responses and initial_scores go together: how many scores of each prompt, and the file")

    def objective(self, setting: Setting) -> PolicyGradient:
        return PolicyGradient(
            mask=RatioClip(self.clip_low, self.clip_high, self.clip_dual),
            reference=OldPolicy(),
            advantage=RowsWhitened(BASELINE, self.whiten),
            aggregate=TokenMean(),
        )

    def build_sampler(self, size: int, seed: int, prompts: Callable[[], Sequence[str]] = tuple) -> Sampler:
        if self.sampler == "uniform":
            return UniformSampler(size, seed)
        unknown = 0.5 if self.register_unknown else None
        sampler = PrioritizedSampler(size, seed, exploration=self.exploration, power=self.count_power, unknown=unknown)
        if self.initial_scores is not None:  # so that the first batch is drawn by what is known already
            table = self._initial(Path(self.initial_scores))
            texts = prompts() if any(isinstance(key, str) for key in table) else ()
            sampler.learn(table | {item: table[text] for item, text in enumerate(texts) if item not in table and text in table})
        return sampler

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        check_rewards(batch)
        live, reward = _live(batch), batch.total_reward()
        if self.tracker == "beta" and bool((wrong := live & ((reward < 0) | (reward > 1))).any()):
            row = int(wrong.nonzero()[0])
            raise InputError(f"the reward of row {row} is {float(reward[row]):g}; accepted for tracker beta: 0 to 1; else set tracker: ema")
        if TRACKER not in planning.memory and self.initial_scores is not None:
            planning.memory[TRACKER] = self._initial(Path(self.initial_scores))
        table = planning.memory.get(TRACKER, {})
        rows = zip(prompt_keys(batch, table), batch.annotations.get("prompt", [None] * len(batch)), live.tolist(), strict=True)
        baseline = [self._known(table, key, text)["value"] if alive else 0.0 for key, text, alive in rows]
        return batch.replace(
            planned={**batch.planned, BASELINE: torch.tensor(baseline, dtype=torch.float64, device=batch.mask.device).reshape(-1)}
        )

    def _known(self, table: Mapping[Key, dict[str, Any]], key: Key, text: str | None) -> dict[str, Any]:
        """What is known of a prompt: by its key, or, where only initial scores are, by its text."""
        known = table.get(key) or (None if text is None else table.get(text))
        if known is None and not self.register_unknown:
            raise InputError(f"prompt {key!r} has no tracked value; accepted: those in initial_scores, or set register_unknown")
        return known or {"value": 0.5, "count": 1.0, "visits": 0}

    def _initial(self, path: Path) -> dict[Key, dict[str, Any]]:
        """A table from a file: {prompt: [scores]}; a score above 0 is a success."""
        try:
            scores: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"algorithm.initial_scores '{path}' cannot be read: {error}") from error
        table: dict[Key, dict[str, Any]] = {}
        for key, given in scores.items():
            if len(given) != self.initial_responses:
                raise InputError(
                    f"'{path}': prompt '{key}' has {len(given)} scores; accepted: initial_responses ({self.initial_responses})"
                )
            alpha, beta = initial_counts(sum(score > 0 for score in given), len(given), self.rho_min)
            table[int(key) if key.isdigit() else key] = {"value": alpha / (alpha + beta), "count": alpha + beta, "visits": 0}
        return table

    # ------------------------------------------------------------------------------------------------ after the updates

    def learn(self, batch: Trajectories, planning: Planning, evaluate: Evaluate) -> dict[str, float]:
        if batch.observation is not None:
            raise InputError("SPO tracks prompts, and this batch has observations; accepted: language tasks")
        table = dict(planning.memory.get(TRACKER, {}))
        keys, adaptive = prompt_keys(batch, table), self.forgetting == "kl"
        rows = _live(batch).nonzero().squeeze(-1)
        again = [key for key in dict.fromkeys(keys[row] for row in rows.tolist()) if "log_prob" in table.get(key, {})]
        moved = dict(zip(again, _distances([table[key] for key in again], batch.mask.device, evaluate), strict=True)) if adaptive else {}
        stored = _responses(batch.select(rows), evaluate) if adaptive and len(rows) else [{} for _ in range(len(rows))]
        reward, prompts = batch.total_reward().double().tolist(), batch.annotations.get("prompt", [None] * len(batch))
        visits = [(keys[row], reward[row], {**kept, "prompt": prompts[row]}) for row, kept in zip(rows.tolist(), stored, strict=True)]
        rates: list[float] = []
        first, seen = 0, set[Key]()
        for told, distances in planning.gather((visits, moved)):
            for key, earned, kept in told:
                entry = self._known(table, key, kept["prompt"])
                rho = self.forgotten(0.0 if key in seen else distances.get(key, 0.0))
                seen.add(key)
                rates.append(rho)
                first += entry["visits"] == 0
                value, count = observed(entry["value"], entry["count"], rho, earned)
                table[key] = {"value": value, "count": count, "visits": entry["visits"] + 1, **kept}
        if len(rates) == 1:
            warnings.warn("SPO whitens over the batch: a single trajectory has advantage 0", stacklevel=2)
        if not rates:
            return {}
        planning.memory[TRACKER] = table
        clamped = sum(rate in (self.rho_min, self.rho_max) for rate in rates)
        return {
            "tracker/value": sum(e["value"] for e in table.values()) / len(table),
            "tracker/count": sum(e["count"] for e in table.values()) / len(table),
            "tracker/rho": sum(rates) / len(rates),
            "tracker/clamped_fraction": clamped / len(rates),
            "tracker/first_visit_fraction": first / len(rates),
        }

    def forgotten(self, distance: float) -> float:
        """rho for a policy that has moved by D = `distance`."""
        if self.forgetting == "constant":
            return self.rho_min
        return min(max(2.0 ** (-distance / self.half_life), self.rho_min), self.rho_max)


def observed(value: float, count: float, rho: float, reward: float) -> tuple[float, float]:
    """Value and effective count after one more reward: alpha ← rho alpha + R, beta ← rho beta + 1 − R, with alpha = value · count.

    The same as v ← v + (R − v) / (rho n + 1), n ← rho n + 1, which any reward may have. n goes to 1 / (1 − rho).
    """
    kept = rho * count
    return value + (reward - value) / (kept + 1), kept + 1


def initial_counts(successes: int, responses: int, rho_min: float) -> tuple[float, float]:
    """alpha and beta from the successes among the responses of the initial policy: N (s + 0.5) / (n + 1), N = 1 / (1 − rho_min)."""
    if responses == 0:
        return 0.5, 0.5
    scale = 1 / (1 - rho_min) / (responses + 1)
    return scale * (successes + 0.5), scale * (responses - successes + 0.5)


def prompt_keys(batch: Trajectories, table: Mapping[Key, dict[str, Any]]) -> list[Key]:
    """[B] the prompt of each row. Refuses a number that stands for two prompts."""
    assert batch.present is not None
    nothing = [None] * len(batch)
    items, texts = batch.annotations.get("item", nothing), batch.annotations.get("prompt", nothing)
    keys: list[Key] = []
    seen: dict[Key, str] = {}
    for row, (item, text) in enumerate(zip(items, texts, strict=True)):
        if item is None and text is None:
            begin = int(batch.mask[row].int().argmax()) if bool(batch.mask[row].any()) else len(batch.mask[row])
            keys.append(tuple(batch.action[row, :begin][batch.present[row, :begin]].flatten().tolist()))
            continue
        keys.append(text if item is None else int(item))
        before = seen.setdefault(keys[-1], table.get(keys[-1], {}).get("prompt") or text)
        if text is not None and before is not None and before != text:
            raise InputError(
                f"item {item} stands for two prompts, {str(before)[:60]!r} and {str(text)[:60]!r}; accepted: a number for each"
            )
    return keys


def _live(batch: Trajectories) -> Tensor:
    """[B] bool: rollouts in which the policy did anything."""
    return batch.rows_from(Source.ROLLOUT) & batch.mask.any(1)


def _responses(batch: Trajectories, evaluate: Evaluate) -> list[dict[str, Tensor]]:
    """What is kept of each row until its prompt is visited again: tokens, which are the policy's, and log-probabilities now."""
    assert batch.present is not None
    log_prob, ends = evaluate(batch).log_prob, batch.present.sum(1).tolist()
    fields = {"action": batch.action, "mask": batch.mask, "log_prob": log_prob}
    return [{name: tensor[row, :end].cpu().clone() for name, tensor in fields.items()} for row, end in enumerate(ends)]


def _distances(entries: Sequence[Mapping[str, Tensor]], device: torch.device, evaluate: Evaluate) -> list[float]:
    """D of each kept response: mean over its tokens of |log pi then − log pi now|."""
    if not entries:
        return []

    def padded(name: str) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([entry[name] for entry in entries], batch_first=True).to(device)

    ends = torch.tensor([len(entry["mask"]) for entry in entries], device=device)
    mask, log_prob = padded("mask"), padded("log_prob")
    present = torch.arange(mask.shape[1], device=device) < ends.unsqueeze(1)
    now = evaluate(Trajectories(action=padded("action"), mask=mask, present=present)).log_prob
    gap = torch.where(mask, (log_prob - now).abs().double(), 0)
    return (gap.sum(1) / mask.sum(1)).tolist()
