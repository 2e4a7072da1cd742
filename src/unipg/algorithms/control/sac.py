"""Soft actor-critic: the pathwise gradient of twin critics and of the policy's entropy, from replayed transitions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Algorithm, KindOfCritic, Setting, SeveralSteps, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import (
    Bootstrapped,
    Drawn,
    Exact,
    Expectation,
    Lagged,
    Network,
    Number,
    Polyak,
    Surprise,
    TemperatureLoss,
)
from unipg.critics.regression import REPLAYED
from unipg.errors import InputError
from unipg.estimator import Advantage, Enumerated, Likelihood, Pathwise, PolicyGradient

ADAM = {"learning_rate": 3e-4, "clip_norm": None}


@register
@dataclass(frozen=True)
class SAC(KindOfCritic, SeveralSteps, Algorithm):
    """The policy maximises E[min Q(s, a) − alpha · log pi(a|s)]; alpha is learned so that the entropy comes to a target, or fixed.

    Actions that can be counted are summed over instead of drawn (arXiv 1910.07207).
    """

    name = "sac"
    title = "Soft actor-critic"
    paper = "arXiv 1801.01290; 1812.05905"
    equation = (
        "∇_theta E[min_k Q_k(s, a_theta) − alpha · log pi_theta(a_theta|s)],  Q_k → r + gamma · (min_k Q_lagged − alpha · log pi)(s', a')"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "The temperature is stepped before critic and policy, which read the new one; Stable-Baselines3 reads that of before the step.",
        "Only terminal states end a return: an episode that a time limit cuts is bootstrapped.",
        "Returns over several steps (n_step) have the entropy of their last state alone, as in Stable-Baselines3.",
    )
    bias = "The critics' values stand for returns, and the states are those of the buffer, not those that the policy comes to."
    replays = True
    controllers: ClassVar[tuple[str, ...]] = ("squashed", "auto")
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (256, 256), "activation": "relu", "init": "torch"}

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    discount: float = setting(0.99, "discount per step", "arXiv 1801.01290, Table 1")
    tau: float = setting(0.005, "share of the critics that their lagged copies take over at each update", "arXiv 1801.01290, Table 1")
    temperature: float | None = setting(None, "fixed weight alpha of the entropy; null: learned")
    initial_temperature: float = setting(1.0, "alpha at the start where it is learned")
    target_entropy: float | None = setting(
        None, "entropy in nats that alpha is learned for; null: minus the number of action dimensions, or 0.98 · log n of n actions"
    )
    critics: int = setting(2, "critics, of whose values the least counts", "arXiv 1801.01290, section 4.2")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "discount", "tau")
        if self.temperature is not None:
            check_range(self, 0, math.inf, "temperature")
        check_counts(self, "critics")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        learned = {"temperature": Number(self.initial_temperature)} if self.temperature is None else {}
        return {"q": self.critic_of_actions().action_values(self.critics), "q_lagged": Lagged("q"), **learned}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        alpha = "temperature" if self.temperature is None else self.temperature
        critic, (over, after, likelihood) = self.critic_of_actions(), self.actions(setting)
        target = Bootstrapped(self.worth(critic.target_value("q_lagged"), alpha), self.discount, after)
        policy = PolicyGradient(rows=REPLAYED, advantage=critic.value("q") + Surprise(alpha), likelihood=likelihood)
        temperature = TemperatureLoss(of="temperature", target_entropy=self._target(setting), over=over)
        return (
            *([Learner("temperature", ("temperature",), temperature, optimizer=ADAM)] if self.temperature is None else []),
            Learner("critic", ("q",), critic.regression("q", target), then=(Polyak("q", "q_lagged", self.tau),), optimizer=ADAM),
            Learner("policy", ("actor",), policy, optimizer=ADAM),
        )

    def worth(self, value: Advantage, alpha: float | str) -> Advantage:
        """What targets read of the next action: its value, and its entropy by the weight alpha."""
        return value + Surprise(alpha)

    def actions(self, setting: Setting) -> tuple[Expectation, Expectation, Likelihood]:
        """Over which of the policy's actions expectations are taken, here and in targets, and how they are differentiated."""
        return (Exact(), Exact(), Enumerated()) if setting.counted else (Drawn(), Drawn(), Pathwise())

    def _target(self, setting: Setting) -> float:
        most = setting.highest_entropy
        if self.target_entropy is None:
            return 0.98 * most if setting.counted else -float(setting.actions)
        if self.target_entropy >= most:
            raise InputError(f"algorithm.target_entropy is {self.target_entropy}; accepted: below {most:.4g}, the most there can be")
        return self.target_entropy
