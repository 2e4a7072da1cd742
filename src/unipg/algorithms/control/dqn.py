"""Deep Q-learning: values of actions, learned from replayed transitions; the best one is taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Algorithm, KindOfCritic, Setting, SeveralSteps, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import Bootstrapped, Copied, Lagged, Network
from unipg.errors import InputError
from unipg.estimator import Progress


@register
@dataclass(frozen=True)
class DQN(KindOfCritic, SeveralSteps, Algorithm):
    """Q learns what the best action is worth, by a copy of itself that is renewed now and then. There is no other policy than to take the
    best action, and any other with probability epsilon while it is learned."""

    name = "dqn"
    title = "Deep Q-network"
    paper = "Mnih et al. 2015, doi 10.1038/nature14236; double: arXiv 1509.06461"
    equation = "Q(s, a) → r + gamma · max_a' Q_copy(s', a');  double: Q_copy(s', argmax_a' Q(s', a'))"
    deviations = (
        "Adam and a Huber loss of the whole error, as Stable-Baselines3; the paper has RMSprop and clips the error, which is the same "
        "gradient.",
        "The copy is renewed after so many updates; Stable-Baselines3 counts steps of the environments: its 10,000 are 2,500 updates here, "
        "at one update in four steps.",
    )
    bias = "No gradient of the expected return: a regression of action values, whose best action is taken."
    replays = True
    controllers = ("greedy",)
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (64, 64), "activation": "relu", "init": "torch"}
    replay: ClassVar[Mapping[str, Any]] = {"batch": 32, "warmup": 100, "updates_per_step": 0.25}

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    discount: float = setting(0.99, "discount per step", "Mnih et al. 2015, extended data table 1")
    double: bool = setting(False, "whether the network itself chooses the action that its copy values", "arXiv 1509.06461")
    copy_every: int = setting(2500, "updates between two copies of the network", "Mnih et al. 2015: 10,000 of the network's updates")
    epsilon: float = setting(1.0, "probability of any action, at the start", "Mnih et al. 2015, extended data table 1")
    final_epsilon: float = setting(0.05, "… and at the end, to which it falls linearly", "Stable-Baselines3; the paper: 0.1")
    exploration: float = setting(0.1, "share of the run after which epsilon is at its end", "Stable-Baselines3")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "discount", "epsilon", "final_epsilon", "exploration")
        if not self.exploration:
            raise InputError("algorithm.exploration is 0; accepted: above 0, at most 1")
        check_counts(self, "copy_every")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {"q": self.critic_of_actions().action_values(), "q_lagged": Lagged("q")}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        critic = self.critic_of_actions()
        target = Bootstrapped(critic.target_value("q_lagged"), self.discount, critic.greedy("q" if self.double else "q_lagged"))
        follow = (Copied("q", "q_lagged", self.copy_every),)
        regression = critic.regression("q", target, "huber")
        return (Learner("critic", ("q",), regression, then=follow, optimizer={"learning_rate": 1e-4, "clip_norm": 10.0}),)

    def explores(self, progress: Progress) -> float:
        share = min(1.0, progress.fraction / self.exploration)
        return self.epsilon + share * (self.final_epsilon - self.epsilon)
