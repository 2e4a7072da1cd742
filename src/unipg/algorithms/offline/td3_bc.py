"""TD3+BC: the deterministic policy gradient, held to the actions of the data by how far away they are."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Setting, check_range, register, setting
from unipg.algorithms.control.td3 import TD3
from unipg.algorithms.learners import Learner
from unipg.critics.regression import REPLAYED
from unipg.estimator import ActionError, Pathwise, PolicyGradient

ADAM = {"learning_rate": 3e-4, "clip_norm": None}


@register
@dataclass(frozen=True)
class TD3BC(TD3):
    """The policy climbs the first critic, in units of that critic's own size, and stays near the recorded action of each state."""

    name = "td3_bc"
    title = "TD3 with behaviour cloning"
    paper = "arXiv 2106.06860"
    equation = "alpha / mean|Q_1(s, a_theta)| · ∇_theta Q_1(s, a_theta(s)) − ∇_theta mean_d (a_theta(s) − a)²"
    deviations: ClassVar[tuple[str, ...]] = (
        "The squared distance is a mean over the action's dimensions, as in the authors' code.",
        "Observations are in units of their standard deviation over the whole dataset; the code adds 1e-3 to it.",
        "mean|Q_1| counts as at least 1e-8; the code divides by 0.",
    )
    offline = True
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (256, 256), "activation": "relu", "init": "torch", "normalize": True}
    replay: ClassVar[Mapping[str, Any]] = {}

    alpha: float = setting(2.5, "size that values are brought to, beside the distance of actions", "arXiv 2106.06860, section 5")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, float("inf"), "alpha")

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        critic, policy = super().learners(setting)
        value = self.critic_of_actions().value("q", "first")
        improve = PolicyGradient(rows=REPLAYED, advantage=value, likelihood=Pathwise(scale=self.alpha))
        return (
            dataclasses.replace(critic, optimizer=ADAM),
            dataclasses.replace(policy, objective=improve + self.constraint(), optimizer=ADAM),
        )

    def constraint(self) -> ActionError:
        """What holds the policy to the data."""
        return ActionError(rows=REPLAYED)
