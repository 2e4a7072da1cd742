"""Mirror descent policy optimisation, off policy: a pathwise gradient near an earlier copy of the policy; soft actor-critic at one end."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Algorithm, KindOfCritic, Setting, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import (
    Bootstrapped,
    Copied,
    Drawn,
    Exact,
    Lagged,
    Likeliness,
    Network,
    Polyak,
    Surprise,
)
from unipg.critics.regression import REPLAYED
from unipg.estimator import Enumerated, Pathwise, PolicyGradient, Progress

ADAM = {"learning_rate": 3e-4, "clip_norm": None}


@register
@dataclass(frozen=True)
class OffPolicyMDPO(KindOfCritic, Algorithm):
    """E[Q_1 − lambda · log pi_k] − c · KL(pi ‖ pi_k), pi_k a copy of the policy every m updates; fresh actions at replayed observations.

    c = 1/t_k = `kl`, lambda = `temperature`, m = `every`. Of one state the best policy is ∝ pi_k^(1 − lambda/c) · exp(Q/c). With
    c = lambda pi_k drops out, and it is soft actor-critic with one critic in the policy's loss, to the bit; lambda = 0 is hard MDPO.
    `tsallis` puts log_q, of each action dimension, in the place of both logarithms. Actions that can be counted are summed over.
    """

    name = "mdpo_off_policy"
    title = "Mirror descent policy optimisation, off policy"
    paper = "arXiv 2005.09814"
    equation = "∇_theta E[Q_1(s, a_theta) − c · log pi_theta(a_theta|s) − (lambda − c) · log pi_k(a_theta|s)],  Q_k as in sac"
    deviations = (
        "Q_1 alone drives the policy, as in the released code; the least of the critics counts in the targets.",
        "The critics are those of `sac`, with lagged copies of their own; the released code has a network of state values between them.",
        "The released code adds 0.001 · (mean² + log_std²) to the policy's loss, which the paper does not mention: left out.",
        "Exploration draws from the policy, as in the paper; the released code takes the most likely ones (`deterministic_exploration`).",
        "With tsallis = 1 the logarithm has no floor; the released code clamps it at log 1e-6, where its gradient is then 0.",
    )
    claim = "benchmarks/claims/mdpo.py"
    replays = True
    controllers = ("squashed", "gaussian", "auto")
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (256, 256), "activation": "relu", "init": "torch"}

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    discount: float = setting(0.99, "discount per step", "released code")
    tau: float = setting(0.005, "share of the critics that their lagged copies take over at each update", "released code")
    temperature: float = setting(0.2, "lambda: weight of the entropy", "arXiv 2005.09814, appendix")
    kl: float = setting(1.0, "c = 1/t_k: weight of the KL to pi_k; smaller ones make larger steps", "released code, README")
    every: int = setting(1000, "m: updates between copies of the policy", "released code")
    tsallis: float = setting(1.0, "q_T of Tsallis' logarithm, in [1, 2]; 1: the logarithm, KL", "arXiv 2005.09814, section 5: per task")
    floor: float = setting(1e-6, "densities below count as this in Tsallis' logarithm; 0 for none", "released code")
    critics: int = setting(2, "critics, of whose values the least counts in targets", "released code")
    deterministic_exploration: bool = setting(False, "collect with the most likely actions after the warm-up, as the released code does")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "discount", "tau", "floor")
        check_range(self, 0, float("inf"), "temperature")
        check_range(self, 1, float("inf"), "every", "critics")
        check_range(self, 1, 2, "tsallis")
        if self.temperature > self.kl:
            what = f"algorithm.temperature, {self.temperature:g}, is above algorithm.kl, {self.kl:g}"
            warnings.warn(f"{what}: the policy is pushed away from its own earlier copy; usual: at most kl", stacklevel=2)

    @property
    def _on_copy(self) -> float:
        """The weight of log pi_k in the advantage. 0 exactly where c = lambda: the copy is then not asked, and −inf · 0 cannot arise."""
        return self.tsallis * (self.kl - self.temperature)

    def networks(self, counted: bool) -> Mapping[str, Network]:
        copy = {"actor_k": Lagged("actor")} if self._on_copy else {}
        return {"q": self.critic_of_actions().action_values(self.critics), "q_lagged": Lagged("q"), **copy}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        over = Exact() if setting.counted else Drawn()
        critic = self.critic_of_actions()
        target = Bootstrapped(critic.target_value("q_lagged") + Surprise(self.temperature), self.discount, over)
        deformed = {"tsallis": self.tsallis, "floor": self.floor}
        own = Surprise(self.kl) if self.tsallis == 1 else -self.kl * Likeliness("actor", **deformed)
        advantage = critic.value("q", "first") + own
        then: tuple[Copied, ...] = ()
        if self._on_copy:
            advantage += self._on_copy * Likeliness("actor_k", **deformed)
            then = (Copied("actor", "actor_k", every=self.every),)
        how = Enumerated(through=self.tsallis != 1) if setting.counted else Pathwise()
        policy = PolicyGradient(rows=REPLAYED, advantage=advantage, likelihood=how)
        return (
            Learner("critic", ("q",), critic.regression("q", target), then=(Polyak("q", "q_lagged", self.tau),), optimizer=ADAM),
            Learner("policy", ("actor",), policy, then=then, optimizer=ADAM),
        )

    def explores(self, progress: Progress) -> float | None:
        return 0.0 if self.deterministic_exploration else None
