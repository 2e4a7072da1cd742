"""Behaviour cloning: the actions of the data are made likely, whatever they earned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Algorithm, Setting, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics.regression import REPLAYED
from unipg.estimator import Constant, PolicyGradient


@register
@dataclass(frozen=True)
class BC(Algorithm):
    """The formula with an advantage of 1, divided by the policy itself: maximum likelihood of the recorded actions."""

    name = "bc"
    title = "Behaviour cloning"
    paper = "Pomerleau 1989"
    equation = "∇_theta log pi_theta(a|s),  (s, a) from the data"
    bias = "It follows the likelihood of the data, not the reward."
    replays = True
    offline = True
    imitates = True
    acts = True
    controllers = ("squashed", "gaussian", "auto")
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (256, 256), "activation": "relu", "init": "torch", "normalize": True}

    rollouts: int = setting(1, "read of prompts alone; nothing is collected")

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        cloned = PolicyGradient(rows=REPLAYED, advantage=Constant(1.0))
        return (Learner("policy", ("actor",), cloned, optimizer={"learning_rate": 3e-4, "clip_norm": None}),)
