"""What IQL, XQL and f-DVL have in common: V of the data's own actions, Q from V, and the actions weighed by how far Q is above V."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Algorithm, Setting, check_above_zero, check_counts, check_range, setting
from unipg.algorithms.learners import Learner
from unipg.critics import (
    ActionValues,
    Bootstrapped,
    DualValue,
    Exponential,
    Lagged,
    Network,
    Polyak,
    Regression,
    Shape,
    StateValue,
    StateValues,
    Unacted,
    Value,
)
from unipg.critics.regression import REPLAYED
from unipg.estimator import PolicyGradient
from unipg.estimator.advantages import Advantage

ADAM = {"learning_rate": 3e-4, "clip_norm": None}


@dataclass(frozen=True)
class InSample(Algorithm):
    """Base class. Its learners in their order: V by `shape` from the lagged Q, the policy by the new V, Q from the new V."""

    replays = True
    offline = True
    acts = True
    controllers: ClassVar[tuple[str, ...]] = ("bounded", "gaussian", "squashed", "auto")
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (256, 256), "activation": "relu", "init": "orthogonal"}
    norm: ClassVar[bool] = False
    """Whether V has layer normalisation."""

    rollouts: int = setting(1, "read of prompts alone; nothing is collected")
    discount: float = setting(0.99, "discount per step", "arXiv 2110.06169, appendix B")
    tau: float = setting(0.005, "share of the critics that their lagged copies take over at each update", "arXiv 2110.06169, appendix B")
    critics: int = setting(2, "critics, of whose values the least counts", "arXiv 2110.06169, section 4.3")
    temperature: float = setting(3.0, "what advantages are multiplied by in the exponent of the weights", "arXiv 2110.06169, appendix B")
    most: float | None = setting(100.0, "largest weight of an action; null: none", "arXiv 2110.06169, released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "discount", "tau")
        check_range(self, 0, float("inf"), "temperature")
        check_counts(self, "critics")
        if self.most is not None:
            check_above_zero(self, "most")

    def shape(self) -> Shape:
        """What V is of the values of a state's actions."""
        raise NotImplementedError(type(self).__name__)

    def regression(self, target: Bootstrapped) -> Regression:
        """How Q follows its target."""
        return Regression(of="q", target=target)

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {"q": ActionValues(self.critics), "q_lagged": Lagged("q"), "v": StateValues(norm=self.norm)}

    @property
    def advantage(self) -> Advantage:
        """Q_lagged(s, a) − V(s)."""
        return Value("q_lagged") + -1.0 * StateValue("v")

    def policy(self) -> PolicyGradient:
        weight = Exponential(self.advantage, self.temperature, self.most)
        return PolicyGradient(rows=REPLAYED, advantage=weight)

    def critic(self) -> Any:
        """What Q is trained on."""
        return self.regression(Bootstrapped(StateValue("v"), self.discount, Unacted()))

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        value = DualValue(of="v", toward=Value("q_lagged"), shape=self.shape())
        return (
            Learner("value", ("v",), value, optimizer=ADAM),
            Learner("policy", ("actor",), self.policy(), optimizer=ADAM),
            Learner("critic", ("q",), self.critic(), then=(Polyak("q", "q_lagged", self.tau),), optimizer=ADAM),
        )
