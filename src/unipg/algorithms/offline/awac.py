"""AWAC: the data's actions, weighed by how much better than the policy's own they are."""

from dataclasses import dataclass
from typing import ClassVar

from unipg.algorithms.base import Setting, register, setting
from unipg.algorithms.learners import Learner
from unipg.algorithms.offline.in_sample import ADAM, InSample
from unipg.critics import ActionValues, Bootstrapped, Drawn, Exact, Expected, Exponential, Lagged, Network, Polyak, Regression, Value
from unipg.critics.regression import REPLAYED
from unipg.estimator import PolicyGradient


@register
@dataclass(frozen=True)
class AWAC(InSample):
    """Weighted cloning by exp(temperature · (Q(s, a) − E_pi[Q(s, a')])), by the batch's mean weight; Q is the policy's own."""

    name = "awac"
    title = "Advantage-weighted actor-critic"
    paper = "arXiv 2006.09359"
    equation = (
        "softmax_batch(temperature · (min Q(s, a) − min Q(s, a'))) · B · ∇_theta log pi(a|s),  Q → r + gamma · min Q_lagged(s', a'),  "
        "each a' drawn from pi"
    )
    deviations: ClassVar[tuple[str, ...]] = (
        "Weights are divided by their mean over the batch, as in the released code; the paper's are the exponentials themselves.",
        "One action of the policy stands for its expectation, as in d3rlpy.",
    )
    bias = "The critics' values stand for returns, and the states are those of the data."

    temperature: float = setting(1.0, "1 / lambda: what advantages are multiplied by in the exponent", "arXiv 2006.09359, appendix")
    most: float | None = setting(None, "largest weight of an action; null: none", "arXiv 2006.09359")

    def networks(self, counted: bool) -> dict[str, Network]:
        return {"q": ActionValues(self.critics), "q_lagged": Lagged("q")}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        over = Exact() if setting.counted else Drawn()
        target = Bootstrapped(Value("q_lagged"), self.discount, over)
        better = Value("q") + -1.0 * Expected(Value("q"), over)
        weight = Exponential(better, self.temperature, self.most, normalised=True)
        return (
            Learner("critic", ("q",), Regression(of="q", target=target), then=(Polyak("q", "q_lagged", self.tau),), optimizer=ADAM),
            Learner("policy", ("actor",), PolicyGradient(rows=REPLAYED, advantage=weight), optimizer=ADAM),
        )
