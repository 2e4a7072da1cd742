"""HPT, hybrid post-training (arXiv 2509.04419): reinforcement where the model sometimes succeeds, supervision where it never does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.preparation import prompt_of, success_rate, with_demonstration
from unipg.algorithms.rates import GATED
from unipg.errors import InputError
from unipg.estimator import (
    UNION,
    Constant,
    ConstantLength,
    EntropyBonus,
    Everything,
    GroupCentered,
    GroupStandardized,
    Objective,
    OldPolicy,
    Outcome,
    Planning,
    PolicyGradient,
    RatioClip,
    ShapedUniform,
    TokenMean,
)
from unipg.trajectories import Source, Trajectories

DEMONSTRATIONS = (Source.DEMONSTRATION,)
OFF_POLICY_SHARE = (
    "The off-policy loss is a mean over the demonstrations of all prompts, as SFT's is, so that the gate's weights compare prompts; in the "
    "released code a demonstration is one row beside the rollouts of its prompt, and counts 1 / (rollouts + 1) of them."
)


@register
@dataclass(frozen=True)
class HPT(Algorithm):
    """The gate: P = share of a prompt's rollouts that succeed. P > gamma: its rollouts train by the clip-free, centred policy gradient
    and the demonstration is not used. Otherwise the rollouts are dropped and the demonstration trains by SFT.

    Both losses are means over ALL prompts of the step, gated or not, so their scale does not depend on how many were gated.
    """

    name = "hpt"
    title = "Hybrid post-training"
    paper = "arXiv 2509.04419"
    equation = "P > gamma: (R_j − mean_G R) · r, sum / limit on new tokens;  else: 1 on the demonstration, token mean"
    bias = "Gated prompts follow the demonstration instead of the reward; the entropy bonus is added."
    deviations: ClassVar[tuple[str, ...]] = (
        "The paper's equation 11 prints a clip and a division by the std; the released scripts run neither: clip and use_std, default off.",
        "The released code averages SFT per micro-batch and sums RL over the padded width, so their ratio depends on the batch; here both "
        "are global means (see the docstring). sft_over: 'gated' divides SFT by the gated demonstrations' tokens alone, as the code does.",
    )
    claim = "benchmarks/claims/hpt.py"
    demonstrations = "required"
    counts_successes = True
    learning_rate = GATED

    rollouts: int = setting(8, "rollouts per prompt", "arXiv 2509.04419")
    gamma: float = setting(0.0, "supervise where the success rate is at most this; −1: never, 1: always", "0 for Qwen2.5, 2/8 for Llama")
    on_missing_demo: Literal["error", "rl", "skip"] = setting("error", "what to do with a prompt that is gated but has no demonstration")
    success_threshold: float | None = setting(None, "reward above which a rollout succeeds; null: rewards must be 0 or 1")
    sft_weight: float = setting(1.0, "weight of the SFT loss", "1.0; 0.3 for Qwen2.5-Math-1.5B")
    sft_over: Literal["all", "gated"] = setting("all", "whose tokens the SFT loss is averaged over: all demonstrations or the gated")
    clip: bool = setting(False, "clip the ratio of the rollouts", "released scripts: off; equation 11: on")
    use_std: bool = setting(False, "divide the advantage by the group's standard deviation", "released scripts: off; equation 11: on")
    entropy: float = setting(0.001, "weight of the entropy bonus over all rows that train", "released scripts")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.gamma <= 1:
            raise InputError(f"algorithm.gamma is {self.gamma}; accepted: a success rate in [0, 1], or −1 for never supervising")

    @property
    def needs_demonstrations(self) -> bool:
        return False  # `on_missing_demo` says what becomes of a prompt without one

    def objective(self, setting: Setting) -> Objective:
        rollouts = PolicyGradient(
            mask=RatioClip() if self.clip else Everything(),
            reference=OldPolicy(),
            advantage=GroupStandardized() if self.use_std else GroupCentered(),
            aggregate=ConstantLength(setting.max_new_tokens),
            row_weight="gate/rollouts",
            name="rollouts",
        )
        sft = PolicyGradient(
            advantage=Constant(1.0),
            aggregate=TokenMean(),
            rows=DEMONSTRATIONS,
            row_weight="gate/sft",
            count_weightless=self.sft_over == "all",
            name="sft",
        )
        objective = rollouts + self.sft_weight * sft
        if not self.entropy:
            return objective
        bonus = EntropyBonus(rows=UNION, aggregate=TokenMean(), row_weight="gate/any", count_weightless=False)
        return objective + self.entropy * bonus

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        rate = success_rate(batch, self.success_threshold)
        gates = self.gates(rate)
        lacking = (gates["sft"] + gates.get("off_policy", torch.zeros_like(rate)) > 0) & ~with_demonstration(batch)
        if lacking.any():
            if self.on_missing_demo == "error":
                row = int(lacking.nonzero()[0])
                raise InputError(
                    f"{prompt_of(batch, row)} has no demonstration, and only {float(rate[row]):.0%} of its rollouts succeeded: "
                    "add one, or set algorithm.on_missing_demo to rl or skip"
                )
            instead = 1.0 if self.on_missing_demo == "rl" else 0.0
            gates["rollouts"] = torch.where(lacking, instead, gates["rollouts"])
        on = batch.rows_from(Source.ROLLOUT)
        weights = {f"gate/{k}": torch.where(on == (k == "rollouts"), w, 0) for k, w in gates.items()}
        weights["gate/any"] = (torch.stack(list(weights.values())).sum(0) > 0).double()
        return batch.replace(planned={**batch.planned, **weights, "success_rate": rate})

    def gates(self, rate: Tensor) -> dict[str, Tensor]:
        """[B] weights of each row's group in the `rollouts` and the `sft` loss, from its success rate."""
        learns = (rate > self.gamma + 1e-9).double()
        return {"rollouts": learns, "sft": 1 - learns}

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        demonstrations = batch.rows_from(Source.DEMONSTRATION)
        gated = batch.planned["gate/sft"][demonstrations]
        return {"gate/offline_fraction": float(gated.mean()) if len(gated) else 0.0}


@register
@dataclass(frozen=True)
class ThreeWayHPT(HPT):
    """As HPT, but prompts with gamma < P <= gamma_off_policy train on the demonstration as an off-policy sample (LUFFY's loss)."""

    name = "hpt_three_way"
    title = "Hybrid post-training, three-way gate"
    paper = "released code of arXiv 2509.04419 (switch_gate_off)"
    deviations = (*HPT.deviations, OFF_POLICY_SHARE)
    equation = "P <= gamma: SFT;  gamma < P <= gamma_off_policy: R · f'(pi_theta) · pi_theta on the demonstration;  else: rollouts"
    scores_demonstrations = True

    gamma_off_policy: float = setting(0.25, "success rate up to which the demonstration is an off-policy sample")
    shape: float = setting(0.1, "probability scale of LUFFY's reshaping", "arXiv 2504.14945")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma <= self.gamma_off_policy <= 1:
            raise InputError(f"algorithm.gamma_off_policy is {self.gamma_off_policy}; accepted: from gamma ({self.gamma}) to 1")

    def objective(self, setting: Setting) -> Objective:
        return super().objective(setting) + PolicyGradient(
            reference=ShapedUniform(self.shape),
            advantage=Outcome(),  # the demonstration stands alone in its group, whose statistics are then mean 0, std 1
            aggregate=ConstantLength(setting.max_new_tokens),
            rows=DEMONSTRATIONS,
            row_weight="gate/off_policy",
            name="off_policy",
        )

    def gates(self, rate: Tensor) -> dict[str, Tensor]:
        learns = (rate > self.gamma_off_policy + 1e-9).double()
        sft = (rate <= self.gamma + 1e-9).double()
        return {"rollouts": learns, "sft": sft, "off_policy": 1 - learns - sft}


SOFT_GATES = ((0.0, 0.0, 1.0), (0.125, 0.5, 0.5), (0.25, 1.0, 0.25), (0.5, 0.5, 0.125), (1.0, 0.25, 0.0), (1.0, 0.125, 0.0))
"""(rollouts, off-policy, SFT) weights for 0, 1, 2 … of 8 correct rollouts, then (1, 0, 0). The released table is indexed by a count that
includes the demonstration itself, so its row 1 is this row 0."""


@register
@dataclass(frozen=True)
class SoftHPT(HPT):
    """As HPT, but every prompt mixes rollouts, demonstration by SFT and demonstration by LUFFY's loss, with weights that follow P."""

    name = "hpt_soft"
    title = "Hybrid post-training, soft gate"
    paper = "released code of arXiv 2509.04419 (unify_strategy: soft)"
    deviations = (
        *HPT.deviations,
        OFF_POLICY_SHARE,
        "The demonstration's advantage is its reward minus the mean of the ROLLOUTS, as in the released code, of which this is a part; the "
        "table's LUFFY row, and algorithm luffy by default, take the mean over rollouts and demonstration.",
    )
    equation = "alpha(P) · rollouts + omega(P) · off-policy demonstration + beta(P) · SFT"
    scores_demonstrations = True

    off_policy: bool = setting(True, "use the demonstration as an off-policy sample too; off: the released soft_type 2")
    shape: float = setting(0.1, "probability scale of LUFFY's reshaping", "arXiv 2504.14945")

    def objective(self, setting: Setting) -> Objective:
        objective = super().objective(setting)
        if not self.off_policy:
            return objective
        return objective + PolicyGradient(
            reference=ShapedUniform(self.shape),
            advantage=GroupStandardized() if self.use_std else GroupCentered(),
            aggregate=ConstantLength(setting.max_new_tokens),
            rows=DEMONSTRATIONS,
            row_weight="gate/off_policy",
            name="off_policy",
        )

    def gates(self, rate: Tensor) -> dict[str, Tensor]:
        table = torch.tensor([*SOFT_GATES, (1.0, 0.0, 0.0)], dtype=torch.float64, device=rate.device)
        on, off, sft = table[(rate * 8).round().long().clamp_max(len(SOFT_GATES))].unbind(-1)
        return {"rollouts": on, "sft": sft} | ({"off_policy": off} if self.off_policy else {})
