"""Generative online reinforcement learning: PPO in the latent space of a frozen generative decoder, which is refitted between stages."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unipg.algorithms.base import Algorithm, Setting, check_above_zero, check_counts, check_range, register, setting
from unipg.algorithms.learners import Generated, Learner
from unipg.critics import Decoder, LatentPull, Network
from unipg.errors import InputError
from unipg.estimator import GAE, Constant, Denoised, EntropyBonus, OldPolicy, Planning, PolicyGradient, RatioClip, ValueLoss
from unipg.trajectories import Trajectories


@register
@dataclass(frozen=True)
class GoRL(Algorithm):
    """The actor draws z from a Gaussian, a flow or a diffusion g makes u = g(s, z) of it, the environment is given tanh(u).

    Given g, the environment that z acts in is one like any other: PPO needs neither g's likelihood nor its gradient. After a stage g is
    trained afresh on the (s, u) of the stage's best actor, by a denoising bound (supervised, no policy gradient: the row of `sft` on data
    of its own), from noise that does not know the z of a pair: N(0, I) then gives all that behaviour, of which a new actor finds the best.
    """

    name = "gorl"
    title = "Generative online reinforcement learning"
    paper = "arXiv 2512.02581"
    equation = (
        "coefficient = 1_Clip · Â_GAE · r,  r = pi_theta(z|s) / pi_old(z|s);  + value loss − entropy + c_z · (mu² + sigma²);  "
        "decoder: −∇ E_{t, e ~ N(0, I)} |v(s, x_t, t) − (e − u)|²"
    )
    bias = "The advantage is whitened with statistics of the sampled batch, a learned critic with lam < 1 is biased, and mu, sigma shrink."
    deviations = (
        "Advantages are taken once, when a batch is collected, and whitened over it; the released code takes them anew in each minibatch.",
        "A time limit bootstraps; the released code leaves out the truncated step, and collects its data without time limits.",
        "Actor and critic have the same hidden layers; the released ones are 4 x 32 and 5 x 256.",
        "A diffusion is trained on levels 1 … K − 1; level 0 has no noise, and is drawn in the released code to no end.",
        "No decoder is fitted after the last stage, which nothing would follow.",
    )
    claim = "benchmarks/claims/gorl.py"
    acts = True
    controllers = ("latent",)
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (64, 64), "activation": "silu"}

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    stages: tuple[int, ...] = setting(
        (60, 60, 30, 30), "iterations of each stage; one for the decoder between them; the last goes on", "code"
    )
    gamma: float = setting(0.995, "discount per step", "released code")
    lam: float = setting(0.95, "GAE's lambda", "released code")
    normalize_advantage: bool = setting(True, "whiten the advantage over the batch", "released code")
    reward_scale: float = setting(10.0, "what rewards are multiplied by before advantages", "released code, for rewards in [0, 1]")
    clip: float = setting(0.15, "distance from 1 that the ratio may go in the first stage", "released code")
    clip_later: float = setting(0.3, "the same in later stages", "released code")
    value_weight: float = setting(0.5, "weight of the critic's loss ½ (V − target)²", "released code: 0.25 without the ½")
    entropy: float = setting(0.01, "weight of the entropy bonus, that of z", "released code")
    pull: float = setting(5e-4, "c_z: weight of mu² + sigma² in the first stage", "released code")
    pull_later: float = setting(1e-3, "the same in later stages", "released code")
    decoder: Literal["flow", "diffusion"] = setting("flow", "g: flow matching, or noise prediction with DDIM", "arXiv 2512.02581")
    decoder_hidden: tuple[int, ...] = setting((64, 64, 64, 64), "hidden layers of the decoder", "released code")
    decoder_steps: int = setting(10, "steps of its sampler", "released code")
    schedule: Literal["cosine", "linear"] = setting("cosine", "noise of a diffusion that is fitted", "released code")
    batches: int = setting(20, "batches of rollouts that the decoder's data are made of", "released code")
    pairs: int = setting(10_000_000, "most (s, u) of these that are kept", "released code")
    decoder_batch: int = setting(8192, "pairs of an update of the decoder", "released code")
    decoder_epochs: int = setting(50, "most passes over its data", "released code")
    patience: int = setting(20, "passes without a smaller validation error that end them", "released code")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "gamma", "lam", "clip", "clip_later")
        check_range(self, 0, math.inf, "value_weight", "entropy", "pull", "pull_later")
        check_above_zero(self, "reward_scale")
        check_counts(self, "batches", "decoder_batch", "decoder_epochs", "patience")
        if self.pairs < 2:
            raise InputError(f"algorithm.pairs is {self.pairs}; accepted: 2 or more, one of them for validation")
        for name, what in (("stages", "iterations of one stage or more"), ("decoder_hidden", "widths of layers")):
            numbers = getattr(self, name)
            if any(number < 1 for number in numbers) or (name == "stages" and not numbers):
                raise InputError(f"algorithm.{name} is {list(numbers)}; accepted: {what}, each at least 1")

    def _generated(self) -> Generated:
        sizes = {"batches": self.batches, "most": self.pairs, "batch": self.decoder_batch, "epochs": self.decoder_epochs}
        return Generated(**sizes, patience=self.patience, schedule=self.schedule)

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {} if counted else {"decoder": Decoder(self.decoder, tuple(self.decoder_hidden), self.decoder_steps)}

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        return batch.replace(step_reward=self.reward_scale * batch.require("step_reward", self.name))

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        gae = GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage)
        found, start = [], 0
        for stage, length in enumerate(self.stages):
            clip, pull = (self.clip_later, self.pull_later) if stage else (self.clip, self.pull)
            policy = PolicyGradient(mask=RatioClip(clip, clip), reference=OldPolicy(), advantage=gae) + self.value_weight * ValueLoss(
                gae=gae
            )
            policy += self.entropy * EntropyBonus() + pull * LatentPull()
            end = start + length if stage + 1 < len(self.stages) else math.inf
            name, optimizer = f"policy_{stage}" if stage else "policy", {"clip_norm": 1.0 if stage else 0.5}
            turns: dict[str, Any] = {"renews": stage > 0, "keeps_best": True, "role": "policy", "optimizer": optimizer}
            found.append(Learner(name, ("actor", "critic"), policy, span=(start, end), **turns))
            if end < math.inf:
                fit = PolicyGradient(advantage=Constant(), likelihood=Denoised("decoder"))
                turns = {
                    "renews": True,
                    "role": "decoder",
                    "data": self._generated(),
                    "optimizer": {"learning_rate": 3e-4, "clip_norm": None},
                }
                found.append(Learner(f"decoder_{stage}", ("decoder",), fit, span=(end, end + 1), **turns))
                start = int(end) + 1
        return tuple(found)
