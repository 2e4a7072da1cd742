"""What methods share that carry one direction from step to step around any score-function estimator."""

from dataclasses import dataclass
from typing import Literal

from unipg.algorithms.base import Algorithm, Setting, check_above_zero, check_counts, check_range, setting
from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.estimator import GAE, Outcome, PolicyGradient, ValueLoss
from unipg.estimator.aggregation import AggregateName, aggregate_named
from unipg.estimator.directions import Recursive


@dataclass(frozen=True)
class RecursiveGradient(Algorithm):
    """Base class: `direction` says what becomes of the gradient of `estimator`."""

    paper = "arXiv 2302.01734"
    claim = "benchmarks/claims/recursive.py"

    rollouts: int = setting(8, "rollouts per prompt; no group is needed")
    step: float = setting(0.1, "gamma_0: length of the first step", "the authors' code, where it is tuned for each environment")
    momentum: float = setting(1.0, "eta_0, in (0, 1]: share of the new gradient at the start", "the authors' code")
    estimator: Literal["auto", "gae", "outcome"] = setting(
        "auto", "gae: returns against a critic of its own; outcome: the reward of a row; auto: gae in environments, else outcome"
    )
    gamma: float = setting(0.99, "discount per step, of gae", "the authors' code")
    lam: float = setting(1.0, "GAE's lambda", "the authors' code")
    baseline: float = setting(0.0, "constant that is subtracted from an outcome")
    critic_epochs: int = setting(10, "the critic's passes over each batch, of gae")
    critic_minibatches: int = setting(8, "the critic's steps in each of these")
    aggregate: AggregateName = setting(
        "sequence_mean_token_sum", "how tokens are averaged; of gae all steps weigh the same, as in the code"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam")
        check_above_zero(self, "step")
        check_above_zero(self, "momentum", most=1)
        check_counts(self, "critic_epochs", "critic_minibatches")
        if self.estimator not in ("auto", "gae", "outcome"):
            raise InputError(f"algorithm.estimator is '{self.estimator}'; accepted: auto, gae, outcome")

    def direction(self) -> Recursive:
        raise NotImplementedError(type(self).__name__)

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        if self.estimator == "outcome" or (self.estimator == "auto" and not setting.acts):
            outcome = PolicyGradient(advantage=Outcome(self.baseline), aggregate=aggregate_named(self.aggregate, setting.max_new_tokens))
            return (Learner("policy", (), outcome, self.direction(), epochs=1, minibatches=1),)
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=False)
        adam = {"learning_rate": 1e-3, "clip_norm": None}
        return (
            Learner("policy", ("actor",), PolicyGradient(advantage=gae), self.direction(), epochs=1, minibatches=1),
            Learner(
                "critic", ("critic",), ValueLoss(gae=gae), epochs=self.critic_epochs, minibatches=self.critic_minibatches, optimizer=adam
            ),
        )
