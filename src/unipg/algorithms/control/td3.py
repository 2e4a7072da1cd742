"""TD3: the gradient through the action of a deterministic policy, against what makes critics promise too much."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Algorithm, KindOfCritic, Setting, SeveralSteps, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import Bootstrapped, Drawn, Lagged, Network, Polyak
from unipg.critics.regression import REPLAYED
from unipg.estimator import Pathwise, PolicyGradient, Progress

ADAM = {"learning_rate": 1e-3, "clip_norm": None}


@register
@dataclass(frozen=True)
class TD3(KindOfCritic, SeveralSteps, Algorithm):
    """The policy climbs the first critic through its own action. Three things keep the critics from promising too much: the least of two
    values in the target, noise on the target's action, and a policy that takes its step after every second one of the critics."""

    name = "td3"
    title = "Twin delayed deterministic policy gradient"
    paper = "arXiv 1802.09477"
    equation = "∇_theta Q_1(s, a_theta(s)),  Q_k → r + gamma · min_k Q_lagged(s', a_lagged(s') + clip(noise, ±limit))"
    deviations: ClassVar[tuple[str, ...]] = (
        "The critics' loss is the sum of squares, without the factor ½ of other methods here, as in the authors' code: Adam does not see "
        "the difference, optimizer.clip_norm does.",
        "Only terminal states end a return: an episode that a time limit cuts is bootstrapped.",
        "Sizes of networks, learning rate and batch are those of the paper, which Stable-Baselines3 has too; the authors' later code has "
        "two layers of 256 and 3e-4.",
    )
    bias = "The critics' values stand for returns, and the states are those of the buffer, not those that the policy comes to."
    replays = True
    controllers = ("deterministic",)
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (400, 300), "activation": "relu", "init": "torch"}
    replay: ClassVar[Mapping[str, Any]] = {"warmup": 100}

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    discount: float = setting(0.99, "discount per step", "arXiv 1802.09477, section 6")
    tau: float = setting(0.005, "share of the networks that their lagged copies take over", "arXiv 1802.09477, section 6")
    critics: int = setting(2, "critics, of whose values the least counts in the target", "arXiv 1802.09477, section 4.2")
    delay: int = setting(2, "updates of the critics for one of the policy and of all lagged copies", "arXiv 1802.09477, section 5.2")
    smoothing: float | None = setting(
        0.2, "std of the noise on the target's action, in units of half the distance between bounds; null: none", "section 5.3"
    )
    limit: float | None = setting(0.5, "most that this noise may be either way; null: no limit", "arXiv 1802.09477, section 5.3")
    exploration: float = setting(0.1, "std of the noise on collected actions, in the same units", "arXiv 1802.09477, section 6")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "discount", "tau")
        check_range(self, 0, math.inf, "exploration", *(name for name in ("smoothing", "limit") if getattr(self, name) is not None))
        check_counts(self, "critics", "delay")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {"q": self.critic_of_actions().action_values(self.critics), "q_lagged": Lagged("q"), "actor_lagged": Lagged("actor")}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        critic = self.critic_of_actions()
        target = Bootstrapped(critic.target_value("q_lagged"), self.discount, Drawn("actor_lagged", self.smoothing, self.limit))
        policy = PolicyGradient(rows=REPLAYED, advantage=critic.value("q", "first"), likelihood=Pathwise())
        follow = (Polyak("q", "q_lagged", self.tau), Polyak("actor", "actor_lagged", self.tau))
        return (
            Learner("critic", ("q",), 2.0 * critic.regression("q", target), optimizer=ADAM),
            Learner("policy", ("actor",), policy, every=self.delay, then=follow, optimizer=ADAM),
        )

    def explores(self, progress: Progress) -> float:
        return self.exploration
