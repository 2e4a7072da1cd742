"""Polychromic PPO (arXiv 2509.25424): vines from states of each episode, and an advantage that sets of them share for a few steps."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from unipg.algorithms.base import Algorithm, Setting, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.algorithms.preparation import answers_of
from unipg.algorithms.sets import ScoresSets
from unipg.critics import Copied, ExactKL, Lagged, Network
from unipg.errors import InputError
from unipg.estimator import GAE, OldPolicy, Planning, PolicyGradient, RatioClip, ValueLoss
from unipg.estimator.advantages import Advantage
from unipg.estimator.sets import OUTSIDE, SetAdvantage
from unipg.rollouts.base import Vines
from unipg.rollouts.vines import SIGNATURE, check_signature
from unipg.trajectories import Trajectories

ADAM = {"learning_rate": 2.5e-4, "eps": 1e-5, "clip_norm": 0.5}


@register
@dataclass(frozen=True)
class PolychromicPPO(ScoresSets, Algorithm):
    """PPO on whole episodes and on vines from their states; F = mean return · diversity of a set of vines, in the place of the advantage.

    A set's F − mean F of its state holds on the first `shared_steps` + 1 steps of each of its vines; elsewhere, and on vines in no set, GAE
    does. `environment.count` episodes an iteration, of at most `environment.steps` steps; the critic learns ordinary returns.
    """

    name = "polychromic_ppo"
    title = "Polychromic PPO"
    paper = "arXiv 2509.25424"
    equation = (
        "coefficient = 1_Clip · Â · r,  Â = poly_scale · mean_{g∋i} (F(g) − mean_g F) on a vine's first W+1 steps, else GAE;  "
        "F(g) = mean_g R · (distinct signatures of g) / n;  + kl · KL(pi_b(·|s) ‖ pi_theta(·|s))"
    )
    bias = (
        "It follows the objective of sets, not the expected return; that it holds for W + 1 steps is a rule for credit, and a learned "
        "critic is biased."
    )
    deviations = (
        "States of vines are at steps 0, L/p, 2L/p …; the paper does not say which. A vine in several sets gets their mean.",
        "Signatures are of a vine from its state on. d of a set whose members coincide is 1/n; `diversity: none_if_alike` has 0.",
        "GAE is not whitened, so that it has the unit of the set advantage; or over its own steps alone. The paper does not say.",
        "Learning rate 2.5e-4 for small networks; 1e-5 in the paper (CNN and GRU).",
    )
    claim = "benchmarks/claims/polychromic.py"
    acts = True
    controllers = ("auto",)
    unit_rewards = True
    needs_group = 1

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    vine_count: int = setting(8, "N: vines from each state", "arXiv 2509.25424")
    vine_states: int = setting(2, "p: states of each episode that vines begin at", "arXiv 2509.25424")
    shared_steps: int = setting(5, "W: a set's advantage holds on the first W + 1 steps of its vines", "arXiv 2509.25424")
    place: str = setting(
        "auto", "what a step counts as, hashable: package.module:function of (environment, info); auto: info['place'], else observation"
    )
    signature: str = setting(
        "set", "what of its places tells a vine from others: set, sequence, last; package.module:function of their list"
    )
    gamma: float = setting(1.0, "discount per step", "arXiv 2509.25424")
    lam: float = setting(0.95, "GAE's lambda", "arXiv 2509.25424")
    normalize_advantage: bool = setting(False, "whiten GAE over the steps on which it holds; then poly_scale must grow", "library's choice")
    clip_low: float = setting(0.2, "distance below 1 that the ratio may go", "arXiv 2509.25424")
    clip_high: float = setting(0.2, "distance above 1 that the ratio may go", "arXiv 2509.25424")
    kl: float = setting(0.01, "weight of KL(pi_b ‖ pi), exact; 0 for none", "arXiv 2509.25424: 0.005 to 0.1")
    value_clip: float | None = setting(None, "how far the value may move from the old one; null for no clipping")
    epochs: int = setting(2, "passes over each batch", "arXiv 2509.25424")
    minibatches: int = setting(4, "steps in each of these", "library's choice")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam")
        check_counts(self, "vine_states", "epochs", "minibatches")
        if self.shared_steps < 0:
            raise InputError(f"algorithm.shared_steps is {self.shared_steps}; accepted: 0 or more")
        check_signature(self.vines)

    @property
    def members(self) -> int:
        return self.vine_count

    @property
    def vines(self) -> Vines:
        return Vines(self.vine_states, self.vine_count, self.place, self.signature)

    @property
    def advantage(self) -> Advantage:
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage, tokens=OUTSIDE)
        return SetAdvantage(gae, self.poly_scale, self.shared_steps)

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {"actor_b": Lagged("actor")} if self.kl else {}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        passes: dict[str, Any] = {"epochs": self.epochs, "minibatches": self.minibatches, "optimizer": ADAM}
        mask = RatioClip(self.clip_low, self.clip_high)
        policy: Any = PolicyGradient(mask=mask, reference=OldPolicy(), advantage=self.advantage, surrogate="ratio")
        then: tuple[Copied, ...] = ()
        if self.kl:
            policy += ExactKL(of="actor_b", to="actor", weight=self.kl)
            then = (Copied("actor", "actor_b", every=self.epochs * self.minibatches),)
        value: Any = ValueLoss(gae=GAE(gamma=self.gamma, lam=self.lam), clip=self.value_clip)
        return (Learner("policy", ("actor",), policy, then=then, **passes), Learner("critic", ("critic",), value, **passes))

    def signatures(self, batch: Trajectories) -> list[Hashable]:
        return batch.annotations.get(SIGNATURE) or answers_of(batch, "tokens", None, self.name)

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        signatures = self.signatures(batch)
        rows = batch.mask.any(1) & batch.mask.new_tensor([signature is not None for signature in signatures])
        batch = self.planned_sets(batch, signatures, rows, planning, self.shared_steps)
        return batch.replace(annotations={name: column for name, column in batch.annotations.items() if name != SIGNATURE})
