"""Hybrid natural policy gradient: on-policy steps whose critics and directions are of offline data too."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from unipg.algorithms.base import REDRAWN, Algorithm, Setting, check_above_zero, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import Bootstrapped, Drawn, Expected, GAEOf, Network, Planned, Regression, Value, ValuesByStep
from unipg.critics.regression import REPLAYED
from unipg.errors import InputError
from unipg.estimator import ROLLOUTS, Held, Objective, OldPolicy, Planning, PolicyGradient
from unipg.estimator.advantages import generalized_advantage, rewards_per_step
from unipg.estimator.directions import Natural
from unipg.replay import Transitions
from unipg.trajectories import Source, Trajectories

RETURN = "return_to_go"
BOTH = (*ROLLOUTS, *REPLAYED)


@register
@dataclass(frozen=True)
class HNPG(Algorithm):
    """Of each step h of an episode a policy and a critic f_h of its own, without discount. Backwards, f_h is fitted to fresh returns and,
    by f_{h+1}, to the data; then each policy takes a natural gradient step of fresh rows and of states of the data, at actions of its own.
    """

    name = "hnpg"
    title = "Hybrid natural policy gradient"
    paper = "arXiv 2311.08384"
    equation = (
        "f_h ← argmin mean_off (f − r − f_{h+1}(s', a'))² + mix · mean_on (f − G)²;  "
        "step along F⁻¹ E_on+off[Â ∇log pi_h],  Â_on = GAE, Â_off = f_h(s, a) − V_h(s), a ~ pi_h"
    )
    bias = "Half of the states are those of the data, and critics with lam < 1 are biased."
    deviations: ClassVar[tuple[str, ...]] = (
        "Actions of the policy at states of the data, as in the released code (offline_actions); the paper takes the data's.",
        "The line search asks for a tenth of the promised improvement, whatever the KL, as in the code; the paper's is bounded: bound_kl.",
        "Conjugate gradients stop at a residual of 1e-10 of the first, the code's at 1e-10; numbers are float32.",
    )
    claim = "benchmarks/claims/hnpg.py"
    acts = True
    controllers: ClassVar[tuple[str, ...]] = ("spread",)
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (16, 16), "activation": "tanh", "init": "torch"}

    rollouts: int = setting(1, "read of prompts alone; environments start each episode by themselves")
    horizon: int = setting(1, "H, steps of every episode; the last number of an observation says which one it is of")
    hybrid: bool = setting(True, "learn of the data too; without, it is TRPO with critics of observed returns, by step")
    mix: float = setting(1.0, "weight of fresh returns beside the data in the critics' loss", "the paper, table 1")
    lam: float = setting(0.97, "GAE's lambda, without discount", "the paper, table 1")
    critic_steps: int = setting(30, "Adam's steps on each critic, from a fresh state, in each iteration", "the authors' code")
    value_draws: int = setting(10, "actions whose mean value is V_h(s)", "the authors' code")
    offline_actions: Literal["policy", "data"] = setting("policy", "policy: drawn anew at the data's states; data: as recorded")
    max_kl: float = setting(0.01, "length of a step: KL(old ‖ new) in nats, to second order", "the paper, table 1")
    damping: float = setting(0.1, "multiple of the identity that is added to the Fisher matrix", "the authors' code")
    cg_iterations: int = setting(10, "products with the Fisher matrix in the conjugate gradients", "the authors' code")
    bound_kl: bool = setting(False, "accept a step by KL <= max_kl and any improvement, not by a tenth of that promised")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "lam")
        check_range(self, 0, math.inf, "mix", "damping")
        check_above_zero(self, "max_kl")
        check_counts(self, "horizon", "critic_steps", "value_draws", "cg_iterations")

    @classmethod
    def sources(cls) -> tuple[Source, ...]:
        return BOTH

    @property
    def by_step(self) -> int:
        return self.horizon

    @property
    def mixes(self) -> bool:
        return self.hybrid

    @property
    def redraws(self) -> bool:
        return self.offline_actions == "policy"

    def networks(self, counted: bool) -> Mapping[str, Network]:
        return {"q": ValuesByStep(self.horizon)}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        natural = Natural(self.max_kl, self.damping, self.cg_iterations, 0.5, 10, None if self.bound_kl else 0.1)
        backwards = (
            Learner(f"critic_{h}", (f"q_{h}",), self._fit(f"fit/{h}"), role="critic", epochs=self.critic_steps, minibatches=1, afresh=True,
                    optimizer={"learning_rate": 3e-4, "clip_norm": None})
            for h in reversed(range(self.horizon))
        )  # fmt: skip
        then = (
            Learner(f"policy_{h}", (f"actor_{h}",), self._improve(f"improve/{h}"), natural, role="policy", epochs=1, minibatches=1)
            for h in range(self.horizon)
        )
        return (*backwards, *then)

    def _fit(self, steps: str) -> Objective:
        """The critics' loss: a mean over the fresh rows of these steps, and one over the data's."""
        fresh = Regression(of="q", target=Planned(RETURN), rows=ROLLOUTS, weight=2 * self.mix, tokens=steps)
        known = Regression(of="q", target=Bootstrapped(Value("q"), 1.0), weight=2.0, tokens=steps)
        return Objective((fresh, known) if self.hybrid else (fresh,))

    def _improve(self, steps: str) -> Objective:
        """The surrogate: one mean over all rows of these steps."""
        value = Expected(Value("q"), Drawn(count=self.value_draws))
        advantages = {ROLLOUTS: GAEOf(value, 1.0, self.lam), REPLAYED: Value("q") + -1.0 * value}
        rows = advantages if self.hybrid else (ROLLOUTS,)
        return Objective(
            tuple(
                PolicyGradient(
                    reference=OldPolicy(), advantage=Held(advantages[some]), surrogate="ratio", rows=some, counted=BOTH, tokens=steps
                )
                for some in rows
            )
        )

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        """Which critic and which policy a step is for, and the return that followed it. Errors: `InputError` for episodes of another
        length, naming the step."""
        step = batch.require("observation", self.name)[..., -1]
        ended = batch.require("terminated", self.name) | batch.require("truncated", self.name)
        fresh = batch.rows_from(Source.ROLLOUT).unsqueeze(1) & batch.mask
        self._check(step[fresh].cpu().numpy(), ended[fresh].cpu().numpy(), "what was collected", whole=True)
        redrawn = batch.planned.get(REDRAWN, torch.zeros_like(batch.mask))
        skipped = batch.rows_from(Source.REPLAY).unsqueeze(1) & ~redrawn if self.redraws else torch.zeros_like(redrawn)
        planned = {f"fit/{h}": (step == h) & ~redrawn for h in range(self.horizon)}
        planned |= {f"improve/{h}": (step == h) & ~skipped for h in range(self.horizon)}
        reward = rewards_per_step(batch)
        planned[RETURN] = generalized_advantage(reward, torch.zeros_like(reward), batch.mask, 1.0, 1.0, terminated=ended)
        nothing_follows = batch.require("terminated", self.name) | (step == self.horizon - 1)
        return batch.replace(terminated=nothing_follows).with_planned(**planned)

    def parts_of(self, data: Transitions) -> np.ndarray:
        step = data.column("observation")[:, -1]
        self._check(step, data.column("terminated") | data.column("truncated"), "the dataset")
        return step.astype(np.int64)

    def _check(self, step: np.ndarray, ended: np.ndarray, what: str, whole: bool = False) -> None:
        """Refuses steps and ends [N] that are not those of episodes of H steps; `whole`: and episodes of which some steps are elsewhere."""
        wanted = f"accepted: whole episodes of {self.horizon} steps (algorithm.horizon), whose number is the last of an observation"
        if (odd := ~np.isin(step, np.arange(self.horizon))).any():
            raise InputError(f"{what} has a step {step[odd][0]:g}; {wanted}")
        for h in range(self.horizon):
            if not (step == h).any():
                raise InputError(f"{what} has no step {h}; {wanted}")
            if (ended[step == h] != (h == self.horizon - 1)).any():
                raise InputError(f"{what} has an episode that {'goes on after' if h == self.horizon - 1 else 'ends at'} step {h}; {wanted}")
            if whole and (step == h).sum() != (step == 0).sum():
                raise InputError(f"{what} has {(step == 0).sum()} steps 0 and {(step == h).sum()} steps {h}; {wanted} (environment.steps)")
