"""Learning rates that fit: what `optimizer.learning_rate: auto` is for an algorithm and the size of a policy.

Adam makes a step of the learning rate's size in every weight, however small or noisy the gradient is. So what fits depends on how much of a
batch's gradient is signal, which is a matter of the algorithm, and on how much there is to lose, which is a matter of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unipg.errors import InputError

SMALL, LARGE = 10_000_000, 300_000_000
"""Parameters of the models that the two rates of an algorithm are for."""
ADAPTERS = 10.0
"""Adapters of a large model take this times the rate of its weights. Source: Schulman et al. 2025, "LoRA without regret"."""


@dataclass(frozen=True)
class LearningRate:
    """AdamW's highest learning rate: `small` for models of at most 10 M parameters, `large` for pretrained ones of 300 M or more.

    Between them the rate falls along a straight line in logarithms of rate and parameters. `why`: what speaks for these.
    """

    small: float
    large: float
    why: str

    def __post_init__(self) -> None:
        if not self.small >= self.large > 0:
            raise InputError(f"LearningRate(small={self.small}, large={self.large}); accepted: both above 0, large at most small")

    def at(self, parameters: int, adapters: bool = False) -> float:
        """The rate, in two digits, for a policy of so many parameters, of which only adapters are trained where `adapters` says so."""
        large = min(self.small, self.large * ADAPTERS) if adapters else self.large
        share = min(1.0, max(0.0, math.log(max(1, parameters) / SMALL) / math.log(LARGE / SMALL)))
        return float(f"{self.small * (large / self.small) ** share:.2g}")


DEMONSTRATED = LearningRate(
    1e-3,
    1e-5,
    "A demonstration says of every token which one is right, so the gradients of different batches agree.",
)
GATED = LearningRate(
    1e-3,
    5e-6,
    "Supervision wherever no rollout succeeds brings back what a step has broken. The demo, 400 iterations, ends at 40 % with 5e-4, at "
    "50 % with 1e-3, at 48 % with 2e-3; 5e-6 is the released scripts' rate.",
)
REWARDED = LearningRate(
    3e-4,
    1e-6,
    "A reward judges whole answers of the policy's own: most of a batch's gradient is noise, of which Adam makes steps as large as of "
    "signal, and nothing leads back to what a model could do before. On the demo's task GRPO learns at 3e-4, loses at 1e-3 as much as it "
    "learns and at 2e-3 all that the model could; 1e-6 is what most published recipes have.",
)
TRACKED = LearningRate(
    1.5e-4,
    1e-6,
    "One response of a prompt says little by itself: a batch needs several times the prompts of a method with groups for the same signal. "
    "1e-6 is the released recipe's rate.",
)
PREFERRED = LearningRate(
    1e-4,
    5e-7,
    "The loss compares two given answers, and is lowered as well by making both unlikely: a large step does that to the whole language.",
)
IMITATED = LearningRate(
    3e-4,
    5e-6,
    "The preferred answer is imitated as well, which keeps it likely while the comparison pushes.",
)
CONTROLLED = LearningRate(
    1e-3,
    1e-4,
    "Small networks from scratch, and batches of thousands of steps.",
)
"""That of controllers, whatever the algorithm."""
