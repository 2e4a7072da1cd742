"""CAPO (arXiv 2510.00819): tokens whose own step would move objective or policy too far are left out of each update."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Evaluate, Setting, register, setting
from unipg.algorithms.control.reinforce import Reinforce
from unipg.algorithms.language.dr_grpo import DrGRPO
from unipg.algorithms.language.grpo import GRPO
from unipg.algorithms.preparation import everywhere
from unipg.errors import InputError
from unipg.estimator import Planning, PolicyGradient, TokenMean
from unipg.estimator.aggregation import AggregateName, aggregate_named
from unipg.estimator.curvature import ADVANTAGE, AdamModel, LastLayerStep
from unipg.trajectories import Trajectories

KEPT, ROWS, STATE = "capo/kept", "capo/rows", "capo"
SMALLEST = torch.finfo(torch.float32).tiny


@register
@dataclass(frozen=True)
class CAPO(Algorithm):
    """GRPO, Dr. GRPO or REINFORCE on the tokens whose own step, by the curvature of the last layer (`LastLayerStep`), stays in a band:

        m_F < delta_f  (predicted shift of the policy)   and   −delta_h < m_H < delta_h  (predicted change of the objective)

    at the learning rate of the moment. Other tokens are not counted: a row's mean is over its kept tokens, the mean of rows over all rows.
    Thresholds do not transfer between models, widths and learning rates: m_F grows with lr² and, with Adam, with the width squared, not
    with the gradient. So a threshold left at null is the one that would have rejected `reject` of the tokens with an advantage of the
    update before (of the batch itself where there is none) at today's learning rate: it cuts the tail, and bounds nothing. 0 is no test.
    Too tight a threshold is far worse than none: where every token with an advantage is rejected `patience` times in a row, training stops
    with an error.
    """

    name = "capo"
    title = "Curvature-aware policy optimisation"
    paper = "arXiv 2510.00819"
    equation = (
        "coefficient = 1_Clip · 1[m_F < delta_F] · 1[|m_H| < delta_H] · (R_j − mean_G R) / (std_G R + 1e-6) · r;  "
        "mean over rows of the mean over kept tokens"
    )
    bias = "Tokens with large steps are left out, the others of their row count for more; dividing by the group's standard deviation."
    deviations = (
        "Published thresholds (delta_f, delta_h): CAPO 1e-4, 0.01; Dr.CAPO (base: dr_grpo) 1e-3, 5e-4; ReinCAPO (base: reinforce) 1e-5, "
        "0.1, for one 7B model; the default, a share of rejected tokens, is the library's.",
        "The released code pairs each token with the hidden state after it; here it is the state that its logits were computed from.",
        "The paper's band for m_H has two bounds of its own; the released recipes, and this, have a symmetric one.",
        "A sampled token outside the largest top_k logits is added to them; in the released code it has no row of its own.",
        "The advantage stands for advantage times ratio: exact for the first step on a batch, as in the published runs. The released code "
        "adds 1e-4 to the standard deviation.",
        "Rows of the optimiser model that no kept token has in its support keep their state.",
    )
    claim = "benchmarks/claims/capo.py"
    needs_group = 2

    rollouts: int = setting(8, "rollouts per prompt, at least 2", "released recipes")
    base: Literal["grpo", "dr_grpo", "reinforce"] = setting("grpo", "whose advantage, mask and aggregate are used", "arXiv 2510.00819")
    delta_f: float | None = setting(None, "largest m_F, in nats; 0 for no test, null for one that follows `reject`", "published: 1e-4")
    delta_h: float | None = setting(None, "largest |m_H|, in rewards; 0 for no test, null for one that follows `reject`", "published: 0.01")
    reject: float = setting(0.03, "share of the tokens that a threshold of null is to reject", "published: 8 % at most, then below 2 %")
    symmetric: bool = setting(True, "reject m_H below −delta_h; off: below 0", "released recipes")
    model: Literal["adam", "sgd"] = setting("adam", "what the optimiser is taken to be", "released recipes")
    betas: tuple[float, float] = setting((0.9, 0.999), "of the modelled Adam")
    eps: float = setting(1e-8, "of the modelled Adam")
    top_k: int | None = setting(
        None, "vocabulary rows in the model, of the largest logits; null for all: exact, but costly", "released code: 50"
    )
    patience: int = setting(3, "updates in a row that may reject every token with an advantage")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go (not with reinforce)", "released recipes")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go (not with reinforce)", "released recipes")
    aggregate: AggregateName | None = setting(None, "how tokens are averaged; null: as the base does")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("delta_f", "delta_h"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"algorithm.{name} is {value}; accepted: above 0, 0 for no test, null for one that follows `reject`")
        if not 0 <= self.reject < 1:
            raise InputError(f"algorithm.reject is {self.reject}; accepted: a share of the tokens in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas) or not 0 < self.eps < math.inf:
            raise InputError(f"algorithm.betas is {self.betas} and eps {self.eps}; accepted: two numbers in [0, 1), and above 0")
        if self.patience < 1 or (self.top_k is not None and self.top_k < 1):
            raise InputError(f"algorithm.patience is {self.patience} and top_k {self.top_k}; accepted: 1 or more, top_k null for all")

    @property
    def tests(self) -> bool:
        """Whether any token may be rejected."""
        return self.delta_f != 0 or self.delta_h != 0

    def objective(self, setting: Setting) -> PolicyGradient:
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        base: Algorithm = Reinforce(signed=False) if self.base == "reinforce" else {"grpo": GRPO, "dr_grpo": DrGRPO}[self.base](**clips)
        gradient = base.objective(setting)
        assert isinstance(gradient, PolicyGradient)
        if self.aggregate is not None:
            gradient = dataclasses.replace(gradient, aggregate=aggregate_named(self.aggregate, setting.max_new_tokens))
        if not self.tests:
            return gradient
        # means over rows are over all of them, those without kept tokens too
        return dataclasses.replace(gradient, tokens=KEPT, row_weight=None if isinstance(gradient.aggregate, TokenMean) else ROWS)

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        ones = torch.ones(len(batch), dtype=torch.float64, device=batch.mask.device)
        return batch.with_planned(**{ROWS: ones}) if self.tests else batch

    # ------------------------------------------------------------------------------------------------ before each update

    def select(self, batch: Trajectories, planning: Planning, evaluate: Evaluate) -> Trajectories:
        if not self.tests:
            return batch
        advantage = batch.require(ADVANTAGE, self.name)
        if bool((bad := batch.mask & ~torch.isfinite(advantage)).any()):
            row, step = (int(i) for i in bad.nonzero()[0])
            raise InputError(f"the advantage is {float(advantage[row, step])} at row {row}, position {step}; accepted: finite numbers")
        state: dict[str, Any] = dict(planning.memory.get(STATE, {}))
        if not state:
            self._compare(planning.optimizer)
        rate, carries = planning.progress.learning_rate, (advantage != 0)[batch.mask]
        adam = AdamModel(self.betas, self.eps, **state.get("adam", {})) if self.model == "adam" else None
        usual = state.get("usual")
        if usual is None and None in (self.delta_f, self.delta_h):
            found = steps_of(LastLayerStep(rate, adam, self.top_k), batch, evaluate)
            usual = self._usual(everywhere([*found, carries], planning)[0], rate)
        reading = LastLayerStep(rate, adam, self.top_k, *self._thresholds(usual, rate), self.symmetric)
        gain, shift = steps_of(reading, batch, evaluate)
        by_shift, by_gain = reading.keeps(gain, shift)
        kept = batch.mask.masked_scatter(batch.mask, by_shift & by_gain)
        known, _ = everywhere([gain, shift, carries, by_shift, by_gain], planning)
        if adam is not None:
            state["adam"] = reading.learnt(planning.reduce, planning.gather).state()
        # while Adam has no state its step is the gradient itself: another scale than that of all later steps
        state["usual"] = None if adam is not None and adam.steps == 0 else self._usual(known, rate) or usual
        state["told"] = [*state.get("told", []), told(reading, *known)]
        self._check(state, reading, *known)
        planning.memory[STATE] = state
        rows, kept_rows = planning.reduce(torch.stack([t.any(1).sum().double() for t in (batch.mask, kept)])).tolist()
        share = torch.full((len(batch),), kept_rows / max(1.0, rows), dtype=torch.float64, device=kept.device)
        return batch.with_planned(**{KEPT: kept, ROWS: share})

    def _usual(self, known: Sequence[Tensor], rate: float) -> dict[str, float] | None:
        """What all but `reject` of the tokens with an advantage stay within, at a learning rate of 1; None where there are none."""
        gain, shift, carries = known[:3]
        count = int(carries.sum())
        if not count or rate == 0:
            return None
        place = math.ceil((1 - self.reject) * count - 1e-9) - 1
        gain, shift = (values[carries].sort().values[max(0, place)] for values in (gain.abs(), shift))
        return {"gain": float(gain) / rate, "shift": float(shift) / rate**2}

    def _thresholds(self, usual: dict[str, float] | None, rate: float) -> tuple[float | None, float | None]:
        """Of m_F and m_H; None for no test."""
        follow: tuple[float | None, float | None] = (None, None)
        if usual is not None and rate > 0:  # a little above: equal values stay together whatever rounding does, those of 0 too
            follow = usual["shift"] * rate**2 * (1 + 1e-6) + SMALLEST, usual["gain"] * rate * (1 + 1e-6) + SMALLEST
        shift, gain = (value if delta is None else delta or None for delta, value in zip((self.delta_f, self.delta_h), follow, strict=True))
        return shift, gain

    def _check(self, state: dict[str, Any], reading: LastLayerStep, gain: Tensor, shift: Tensor, carries: Tensor, *passed: Tensor) -> None:
        """Counts the updates in a row that leave nothing to learn from."""
        stays = carries & passed[0] & passed[1]
        state["stuck"] = state.get("stuck", 0) + 1 if bool(carries.any()) and not bool(stays.any()) else 0
        if state["stuck"] >= self.patience:
            least = f"at least {float(shift[carries].min()):.3g} and {float(gain[carries].abs().min()):.3g}"
            raise InputError(
                f"CAPO rejected every token with an advantage in {state['stuck']} updates in a row: their m_F and |m_H| are {least}, but "
                f"delta_f is {reading.largest_shift} and delta_h {reading.largest_gain}; accepted: larger ones, 0 for no test, or null"
            )

    def _compare(self, optimizer: Mapping[str, Any]) -> None:
        """Warns, once a run, of a model of another optimiser than the run's."""
        if not optimizer:
            return
        real = {"adamw": "adam"}.get(optimizer["kind"], optimizer["kind"])
        settings = (tuple(optimizer["betas"]), optimizer["eps"])
        if real != self.model or (real == "adam" and settings != (tuple(self.betas), self.eps)):
            warnings.warn(
                f"CAPO models {self.model} (betas {self.betas}, eps {self.eps}), but the run's optimiser is {optimizer['kind']} "
                f"{settings}: what it predicts is not what happens; set algorithm.model, betas and eps",
                stacklevel=2,
            )

    # ------------------------------------------------------------------------------------------------ after the updates

    def learn(self, batch: Trajectories, planning: Planning, evaluate: Evaluate) -> dict[str, float]:
        state = planning.memory.get(STATE, {})
        updates: list[dict[str, float]] = state.get("told", [])
        if not updates:
            return {}
        planning.memory[STATE] = {**state, "told": []}
        values = {name: [update[name] for update in updates if name in update] for name in dict.fromkeys(n for u in updates for n in u)}
        return {f"curvature/{name}": max(found) if name.endswith("_max") else sum(found) / len(found) for name, found in values.items()}


def steps_of(reading: LastLayerStep, batch: Trajectories, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
    """[N] each: m_H and m_F where the policy acted."""
    if not bool(batch.mask.any()):
        nothing = torch.zeros(0, dtype=torch.float64, device=batch.mask.device)
        return nothing, nothing
    read = evaluate(batch, readings=(reading,)).reading(reading)
    return read["predicted_gain"][batch.mask], read["predicted_shift"][batch.mask]


def told(reading: LastLayerStep, gain: Tensor, shift: Tensor, carries: Tensor, by_shift: Tensor, by_gain: Tensor) -> dict[str, float]:
    """What is worth plotting of one update: shares of tokens that each test rejected, quantiles of m_F and m_H, thresholds."""
    if not len(gain):
        return {}
    kept = by_shift & by_gain
    thresholds = {"delta_f": reading.largest_shift, "delta_h": reading.largest_gain}
    found = {"rejected": ~kept, "rejected_by_shift": ~by_shift, "rejected_by_gain": ~by_gain}
    shares = {name: float(where.double().mean()) for name, where in found.items()}
    for name, values in (("shift", shift), ("gain", gain)):
        ordered = values.sort().values
        shares |= {f"{name}_q{round(100 * q):02d}": float(ordered[round(q * (len(ordered) - 1))]) for q in (0.01, 0.5, 0.99)}
        if bool(kept.any()):
            shares[f"{name}_kept_max"] = float(values[kept].max())
    return shares | {name: value for name, value in thresholds.items() if value is not None}
