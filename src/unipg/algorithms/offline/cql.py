"""CQL: soft actor-critic whose critics are held down where the data have no action."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unipg.algorithms.base import Setting, check_above_zero, check_counts, check_range, register, setting
from unipg.algorithms.control.sac import SAC
from unipg.algorithms.learners import Learner
from unipg.critics import Expectation, Likeliest, Network, Number
from unipg.critics.conservative import Conservative, Gap, MultiplierLoss
from unipg.estimator import Advantage, Likelihood

ADAM = {"learning_rate": 1e-4, "clip_norm": None}


@register
@dataclass(frozen=True)
class CQL(SAC):
    """Q's squared errors, and what a soft maximum over all actions is above the data's own: the values of what was not tried stay low."""

    name = "cql"
    title = "Conservative Q-learning"
    paper = "arXiv 2006.04779"
    equation = (
        "∇_theta E[min_k Q_k(s, a_theta) − alpha · log pi_theta(a_theta|s)],  "
        "Q_k: (Q_k(s, a) − r − gamma · min Q_lagged(s', mode of pi))² + conservative · (log sum_a' exp Q_k(s, a') − Q_k(s, a))"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "CQL(H); the sum over real actions is importance-sampled as in the released code; a terminal state counts as the one before.",
        "The weight is fixed unless a threshold is given, as in the released code; d3rlpy's default learns it (threshold 10).",
        "Actions that can be counted have soft actor-critic's policy; d3rlpy's discrete CQL is double Q-learning.",
    )
    bias = "The critics' values stand for returns and are too low on purpose, and the states are those of the data."
    offline = True

    conservative: float = setting(5.0, "weight of the soft maximum above the data", "released code")
    draws: int = setting(10, "actions of each of three kinds in the soft maximum", "arXiv 2006.04779, appendix F")
    threshold: float | None = setting(
        None, "of the soft maximum above the data, for which a multiplier of its weight is learned; null: 1", "arXiv 2006.04779, eq. 30"
    )
    initial_multiplier: float = setting(1.0, "that multiplier at the start", "d3rlpy 2.8.1")
    soft: bool = setting(False, "whether targets draw their action and have its entropy", "released code: no entropy")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "conservative")
        check_counts(self, "draws")
        check_above_zero(self, "initial_multiplier")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        learned = {} if self.threshold is None else {"multiplier": Number(self.initial_multiplier)}
        return {**super().networks(counted), **learned}

    def worth(self, value: Advantage, alpha: float | str) -> Advantage:
        return super().worth(value, alpha) if self.soft else value

    def actions(self, setting: Setting) -> tuple[Expectation, Expectation, Likelihood]:
        over, after, likelihood = super().actions(setting)
        return over, after if self.soft or setting.counted else Likeliest(), likelihood

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        gap, multiplier = Gap("q", 0 if setting.counted else self.draws), None if self.threshold is None else "multiplier"
        *temperature, critic, policy = super().learners(setting)
        # twice: the squared error is halved in a regression, and the paper's is whole
        both = 2.0 * critic.terms + Conservative(weight=self.conservative, gap=gap, multiplier=multiplier)
        learned = (
            ()
            if self.threshold is None
            else (MultiplierLoss(weight=self.conservative, of="multiplier", gap=gap, threshold=self.threshold),)
        )
        return (
            *(dataclasses.replace(learner, optimizer=ADAM) for learner in temperature),
            *(Learner("multiplier", ("multiplier",), loss, optimizer=ADAM) for loss in learned),
            dataclasses.replace(critic, objective=both),
            dataclasses.replace(policy, optimizer=ADAM),
        )
