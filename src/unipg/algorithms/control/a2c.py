"""Advantage actor-critic: one step on every short window of many environments; for control and for language."""

from dataclasses import dataclass

from unipg.algorithms.base import Algorithm, KindOfCritic, Setting, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.estimator import GAE, CurrentPolicy, EntropyBonus, PolicyGradient


@register
@dataclass(frozen=True)
class A2C(KindOfCritic, Algorithm):
    """The plain policy gradient with a learned baseline: every window (`environment.steps`) is used once, for actor and critic together."""

    name = "a2c"
    title = "Advantage actor-critic"
    paper = "arXiv 1602.01783"
    equation = "coefficient = Â,  Â = Σ_k gamma^k r_{t+k} + gamma^n V(s_{t+n}) − V(s_t) to the window's end;  + value loss − entropy bonus"
    bias = "A learned critic stands for what comes after the window, and token_mean weights windows by their lengths."
    deviations = (
        "Synchronous: one worker's windows are one batch (the paper's A3C has asynchronous workers); settings of Stable-Baselines3.",
        "RMSprop adds eps to the root of the mean square, as torch does: inside the root (TensorFlow) the first steps are smaller.",
    )
    claim = "benchmarks/claims/control_curves.py"

    rollouts: int = setting(1, "rollouts per prompt; no group is needed")
    gamma: float = setting(0.99, "discount per step")
    lam: float = setting(1.0, "GAE's lambda; 1: the returns over the window", "arXiv 1602.01783")
    normalize_advantage: bool = setting(False, "whiten the advantage over the batch", "Stable-Baselines3")
    value_weight: float = setting(1.0, "weight of the critic's loss, ½ (V − return)²", "Stable-Baselines3: 0.5 of the whole square")
    entropy: float = setting(0.0, "weight of the entropy bonus", "Stable-Baselines3; 0.01 in arXiv 1602.01783")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam")
        check_range(self, 0, float("inf"), "value_weight")

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage)
        critic = self.critic_of_states(setting.acts)
        objective = PolicyGradient(reference=CurrentPolicy(), advantage=critic.advantage(gae)) + self.value_weight * critic.state_loss(gae)
        objective = objective + self.entropy * EntropyBonus() if self.entropy else objective
        rmsprop = {"kind": "rmsprop", "learning_rate": 7e-4, "eps": 1e-5, "clip_norm": 0.5}
        return (Learner("policy", (), objective, optimizer=rmsprop),)
