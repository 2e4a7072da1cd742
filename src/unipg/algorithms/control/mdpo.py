"""Mirror descent policy optimisation, on policy: several plain steps on each batch, held near the policy that drew it by an exact KL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unipg.algorithms.base import Algorithm, Setting, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import Copied, ExactKL, Lagged, Network
from unipg.errors import InputError
from unipg.estimator import GAE, OldPolicy, PolicyGradient, Tightening, ValueLoss

ADAM = {"learning_rate": 3e-4, "eps": 1e-5, "clip_norm": 0.5}


@register
@dataclass(frozen=True)
class MDPO(Algorithm):
    """The unclipped ratio, less KL(pi ‖ pi_k) / t_k in closed form, pi_k the policy before the iteration; then the critic's passes.

    m = `steps`, t_k = `step_size`, which falls linearly. At the first step of a batch the KL has no gradient: m = 1 is plain GAE.
    """

    name = "mdpo"
    title = "Mirror descent policy optimisation, on policy"
    paper = "arXiv 2005.09814"
    equation = "coefficient = Â_GAE · r,  r = pi_theta / pi_k;  − (1/t_k) · KL(pi_theta(·|s) ‖ pi_k(·|s)),  m steps an iteration"
    bias = "The advantage is whitened with statistics of the sampled batch, and a learned critic with lam < 1 is biased."
    deviations = (
        "pi_0 is a copy of the policy; the released code draws its first batch from a network with weights of its own.",
        "t_k = t_0 · (1 − k/K), as the paper has it; `annealing: released` is the code's 1 − (k − 1)/K. Neither falls below t_0/K.",
        "Where all advantages are equal they count as 0; the released code divides by their standard deviation, without an epsilon.",
    )
    claim = "benchmarks/claims/mdpo.py"
    acts = True

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    gamma: float = setting(0.99, "discount per step", "released code")
    lam: float = setting(0.95, "GAE's lambda", "released code")
    normalize_advantage: bool = setting(True, "whiten the advantage over the batch", "released code")
    steps: int = setting(10, "m: the policy's steps on each batch, all of it each time", "arXiv 2005.09814, section 5")
    step_size: float | None = setting(1.0, "t_0, of which 1/t_k weighs the KL; null: infinite, no KL at all", "released code")
    annealing: Literal["linear", "released", "constant"] = setting("linear", "what becomes of t_k: see deviations; constant: stays t_0")
    value_clip: float | None = setting(0.2, "how far the value may move from the old one; null for no clipping", "released code")
    critic_epochs: int = setting(5, "the critic's passes over each batch", "released code")
    critic_minibatches: int = setting(16, "the critic's steps in each of these", "released code: 128 of 2048 rows each")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam")
        check_range(self, 1, float("inf"), "steps", "critic_epochs", "critic_minibatches")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise InputError(f"algorithm.step_size is {self.step_size}; accepted: a finite number above 0, or null for no KL")

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {} if self.step_size is None else {"actor_k": Lagged("actor")}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage)
        policy: Any = PolicyGradient(reference=OldPolicy(), advantage=gae, surrogate="ratio")
        then: tuple[Copied, ...] = ()
        if self.step_size is not None:
            falling = Tightening(self.step_size, self.steps, lead=float(self.annealing == "released"))
            policy += ExactKL(to="actor_k", weight=1 / self.step_size if self.annealing == "constant" else falling)
            then = (Copied("actor", "actor_k", every=self.steps),)
        value, epochs, parts = ValueLoss(gae=gae, clip=self.value_clip), self.critic_epochs, self.critic_minibatches
        return (
            Learner("policy", ("actor",), policy, epochs=self.steps, minibatches=1, then=then, optimizer=ADAM),
            Learner("critic", ("critic",), value, epochs=epochs, minibatches=parts, optimizer=ADAM),
        )
