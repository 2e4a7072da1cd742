"""Trust region policy optimisation: the natural gradient of the importance-weighted return, inside a KL ball."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from unipg.algorithms.base import Algorithm, Setting, check_above_zero, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.errors import InputError
from unipg.estimator import GAE, OldPolicy, PolicyGradient, ValueLoss
from unipg.estimator.directions import Natural


@register
@dataclass(frozen=True)
class TRPO(Algorithm):
    """One step a batch along F⁻¹g, as long as the mean KL allows and shortened until the surrogate improves; then the critic's passes."""

    name = "trpo"
    title = "Trust region policy optimisation"
    paper = "arXiv 1502.05477"
    equation = "coefficient = Â_GAE · r;  step = shrink^k · sqrt(2 max_kl / xᵀFx) · x,  x = F⁻¹ E[Â ∇log pi]"
    bias = "The advantage is whitened with statistics of the sampled batch, and a learned critic with lam < 1 is biased."
    deviations = (
        "xᵀFx in the length of the step has the damping in it, as in Stable-Baselines3 contrib; the paper leaves it out.",
        "The trust region is KL(old ‖ new), the paper's; Stable-Baselines3 contrib measures KL(new ‖ old).",
    )
    claim = "benchmarks/claims/control_curves.py"
    acts = True
    controller: ClassVar[dict[str, Any]] = {"hidden": (64, 64), "activation": "tanh"}

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    gamma: float = setting(0.99, "discount per step")
    lam: float = setting(0.95, "GAE's lambda", "Stable-Baselines3 contrib")
    normalize_advantage: bool = setting(True, "whiten the advantage over the batch", "Stable-Baselines3 contrib")
    max_kl: float = setting(0.01, "largest mean KL(old ‖ new) of a step, in nats", "arXiv 1502.05477, appendix E")
    damping: float = setting(0.1, "multiple of the identity that is added to the Fisher matrix", "Stable-Baselines3 contrib")
    cg_iterations: int = setting(15, "products with the Fisher matrix in the conjugate gradients", "Stable-Baselines3 contrib")
    shrink: float = setting(0.8, "factor of the step from one try of the line search to the next", "Stable-Baselines3 contrib")
    tries: int = setting(10, "tries of the line search; without success there is no step", "Stable-Baselines3 contrib")
    critic_epochs: int = setting(10, "the critic's passes over each batch", "Stable-Baselines3 contrib")
    critic_minibatches: int = setting(16, "the critic's steps in each of these", "Stable-Baselines3 contrib: 128 of 2048 rows each")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam")
        check_range(self, 0, math.inf, "damping")
        check_above_zero(self, "max_kl")
        check_counts(self, "cg_iterations", "tries", "critic_epochs", "critic_minibatches")
        if not 0 < self.shrink < 1:
            raise InputError(f"algorithm.shrink is {self.shrink}; accepted: a number between 0 and 1, without these")

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage)
        policy = PolicyGradient(reference=OldPolicy(), advantage=gae, surrogate="ratio")
        natural = Natural(self.max_kl, self.damping, self.cg_iterations, self.shrink, self.tries)
        adam = {"learning_rate": 1e-3, "clip_norm": None}
        return (
            Learner("policy", ("actor",), policy, natural, epochs=1, minibatches=1),
            Learner(
                "critic", ("critic",), ValueLoss(gae=gae), epochs=self.critic_epochs, minibatches=self.critic_minibatches, optimizer=adam
            ),
        )
