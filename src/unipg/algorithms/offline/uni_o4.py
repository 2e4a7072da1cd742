"""Uni-O4: PPO from a cloned policy on the data's states, whose old policy moves when a model of the environment says that it pays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unipg.algorithms.base import Algorithm, Setting, check_above_zero, check_counts, check_range, register, setting
from unipg.algorithms.learners import Learner
from unipg.critics import (
    ActionValues,
    Another,
    Apart,
    Bootstrapped,
    Copied,
    DualValue,
    Dynamics,
    DynamicsLoss,
    Elected,
    Expectile,
    Follows,
    Gated,
    Imagined,
    Lagged,
    Network,
    Polyak,
    Redrawn,
    Regression,
    StateValue,
    Unacted,
    Value,
)
from unipg.critics.regression import REPLAYED
from unipg.estimator import GAE, Constant, EntropyBonus, NamedPolicy, OldPolicy, PolicyGradient, RatioClip, ValueLoss, Whitened
from unipg.estimator.parts import Linear

ADAM = {"learning_rate": 1e-4, "clip_norm": None}
STEADY = 0.02
"""Share of the improvement within which the clip distance shrinks, by that share: 200 of 10,000 steps, as in the released code."""


@register
@dataclass(frozen=True)
class UniO4(Algorithm):
    """Critics, clones and a model of the environment are learned from the data; then each clone is improved by PPO on fresh actions of its
    old policy in the data's states, which it replaces where rollouts in the model find it better. The best member acts."""

    name = "uni_o4"
    title = "Unified online and offline on-policy optimisation (Uni-O4)"
    paper = "arXiv 2311.03351"
    equation = "1_Clip · (min Q(s, a) − V(s), whitened) · r · ∇_theta log pi(a|s),  s from the data, a ~ pi_old,  r = pi / pi_old"
    bias = "The advantage is that of frozen critics, whitened over the batch, and the states are those of the data."
    deviations: ClassVar[tuple[str, ...]] = (
        "A time limit bootstraps; the released code takes it for an end.",
        "Members draw the same rows and the same noise of their actions.",
        "The divergence that keeps members apart is summed over the action's dimensions; diversity: heuristic is the released default.",
        "Both policies of a gate are scored from the same states by the same noise, so no score is kept from earlier states.",
        "Terminal steps are learned by the model; the released code knows each environment's. All members of the model are used, by turns.",
        "The member that the model finds best acts; the released code plays the last three.",
    )
    claim = "benchmarks/claims/uni_o4.py"
    replays = True
    offline = True
    acts = True
    values_states = True
    controllers: ClassVar[tuple[str, ...]] = ("bounded_spread",)
    controller: ClassVar[Mapping[str, Any]] = {"hidden": (256, 256, 256), "activation": "relu", "init": "orthogonal"}
    replay: ClassVar[Mapping[str, Any]] = {"batch": 512}

    rollouts: int = setting(1, "read of prompts alone; nothing is collected")
    members: int = setting(4, "n: policies that are cloned and improved, each by itself", "arXiv 2311.03351")
    diversity: Literal["kl", "heuristic", "none"] = setting("kl", "what clones have beside the likelihood; none with one member")
    alpha: float = setting(0.1, "weight of that", "released code")
    discount: float = setting(0.99, "discount per step", "released code")
    expectile: float = setting(0.7, "tau of V over the data's actions", "released code")
    tau: float = setting(0.005, "share of Q that its lagged copy takes over at each update", "released code: every second one")
    critics: int = setting(2, "critics, of whose values the least counts", "released code")
    critic_iterations: int = setting(10, "iterations (dataset.updates) in which critics learn", "released code: 2 million updates")
    clone_iterations: int = setting(5, "iterations of cloning", "released code: 400,000 updates")
    model_iterations: int = setting(5, "iterations of the model", "released code: until its error no longer falls")
    model_members: int = setting(5, "networks of the model", "released code: the best 5 of 7")
    model_hidden: tuple[int, ...] | None = setting(None, "their hidden layers; null: the policy's own", "released code: four of 200")
    model_decay: float = setting(5e-5, "weight of their squared weights", "released code: 2.5e-5 to 1e-4, by layer")
    clip: float = setting(0.25, "distance from 1 that the ratio may go", "released code")
    gate: Literal["model", "always", "never"] = setting(
        "model", "when the old policy is replaced: as the model finds, or each time, or never"
    )
    gate_every: int = setting(100, "updates between two looks at it", "released code")
    offline_iterations: int | None = setting(
        None, "of improvement, before PPO goes on with fresh batches; null: to the end, nothing is played"
    )
    rollout: int = setting(50, "steps of the model in which policies are scored", "released code: 1000, on hard tasks 2 to 200")

    lam: float = setting(0.95, "GAE's lambda, online", "released code")
    online_clip: float = setting(0.05, "distance from 1 that the ratio may go, online", "released code")
    value_clip: float | None = setting(0.05, "how far V may move from the old one, online; null for no clipping", "released code")
    online_epochs: int = setting(10, "passes over each batch, online", "released code: 5 to 30, by task")
    online_minibatches: int = setting(16, "steps in each of these", "released code: 128 steps of environments in each")
    entropy: float = setting(0.01, "weight of the entropy bonus, online", "released code")
    online_value: Literal["kept", "fresh"] = setting("kept", "V at the start of online steps: that of the data, or drawn anew")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 0, 1, "discount", "tau", "clip", "lam", "online_clip")
        check_range(self, 0, math.inf, "alpha", "model_decay", "entropy")
        check_above_zero(self, "expectile", most=1)
        check_counts(self, "members", "critics", "critic_iterations", "clone_iterations", "model_iterations", "model_members")
        check_counts(self, "gate_every", "rollout", "online_epochs", "online_minibatches")
        if self.offline_iterations is not None:
            check_counts(self, "offline_iterations")

    @property
    def policies(self) -> tuple[str, ...]:
        """The members' networks; of one alone what acts."""
        return ("actor",) if self.members == 1 else tuple(f"member_{k + 1}" for k in range(self.members))

    @property
    def learned_at(self) -> int:
        """The iteration at which improvement begins."""
        return max(self.critic_iterations, self.clone_iterations, self.model_iterations)

    @property
    def played_at(self) -> float:
        """That at which environments are played."""
        return math.inf if self.offline_iterations is None else self.learned_at + self.offline_iterations

    def networks(self, counted: bool) -> Mapping[str, Network]:
        apart = {name: Another() for name in self.policies if name != "actor"}
        old = {f"{name}_old": Lagged(name) for name in self.policies}
        model = Dynamics(self.model_members, None if self.model_hidden is None else tuple(self.model_hidden))
        return {"q": ActionValues(self.critics), "q_lagged": Lagged("q"), "model": model, **apart, **old}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        value = DualValue(of="critic", toward=Value("q_lagged"), shape=Expectile(self.expectile))
        target = Bootstrapped(StateValue("critic"), self.discount, Unacted())
        lag, first = (Polyak("q", "q_lagged", self.tau),), (0, self.critic_iterations)
        return (
            Learner("value", ("critic",), value, span=first, optimizer=ADAM),
            Learner("critic", ("q",), Regression(of="q", target=target), then=lag, span=first, optimizer=ADAM),
            Learner(
                "model",
                ("model",),
                DynamicsLoss(decay=self.model_decay),
                span=(0, self.model_iterations),
                optimizer={**ADAM, "learning_rate": 1e-3},
            ),
            *map(self.cloned, self.policies),
            *map(self.improved, self.policies),
            *self.online(),
        )

    def cloned(self, of: str) -> Learner:
        """Maximum likelihood of the data's actions, and distance from the other members."""
        others = tuple(name for name in self.policies if name != of)
        weight = 1 + self.alpha if others and self.diversity == "heuristic" else 1.0
        terms: Any = PolicyGradient(rows=REPLAYED, advantage=Constant(weight), likelihood=NamedPolicy(of), name=f"clone_{of}")
        if others and self.diversity == "kl" and self.alpha:
            terms += Apart(of=of, others=others, weight=self.alpha, name=f"apart_{of}")
        then = [Copied(of, f"{of}_old")] + ([Copied(of, "actor")] if of == self.policies[0] != "actor" else [])
        return Learner(f"clone_{of}", (of,), terms, role="clone", span=(0, self.clone_iterations), then=tuple(then), optimizer=ADAM)

    def improved(self, of: str) -> Learner:
        """PPO from the clone, once everything that it asks has been learned."""
        clip, old, first = Linear(self.clip, self.clip * (1 - STEADY), STEADY), f"{of}_old", of == self.policies[0]
        term = Redrawn(
            by=old,
            mask=RatioClip(clip, clip),
            reference=OldPolicy(),
            advantage=Whitened(Value("q") + -1.0 * StateValue("critic")),
            likelihood=NamedPolicy(of),
            surrogate="ratio",
            name=f"improve_{of}",
        )
        optimizer = {"learning_rate": 1e-4, "clip_norm": 0.5, "schedule": "linear"}
        span = (self.learned_at, self.played_at)
        return Learner(
            "policy" if first else f"policy_{of}", (of,), term, role="policy", span=span, then=self.follow(of), optimizer=optimizer
        )

    def follow(self, of: str) -> tuple[Follows, ...]:
        """When the old policy is replaced, and after the last member which one acts."""
        old, score = f"{of}_old", Imagined(Value("q"), steps=self.rollout)
        moves: dict[str, tuple[Follows, ...]] = {
            "model": (Gated(of, old, self.gate_every, score),),
            "always": (Copied(of, old, self.gate_every),),
        }
        elect = () if of != self.policies[-1] or of == "actor" else (Elected(of, "actor", self.gate_every, score, self.policies),)
        return moves.get(self.gate, ()) + elect

    def online(self) -> tuple[Learner, ...]:
        """PPO, as it is for anybody, from the policy and the V that the data have left."""
        if self.played_at == math.inf:
            return ()
        gae, clip = GAE(gamma=self.discount, lam=self.lam), self.online_clip
        policy: Any = PolicyGradient(mask=RatioClip(clip, clip), reference=OldPolicy(), advantage=gae)
        policy = policy + self.entropy * EntropyBonus() if self.entropy else policy
        own: dict[str, Any] = {"span": (self.played_at, math.inf), "collects": True}
        own |= {"epochs": self.online_epochs, "minibatches": self.online_minibatches}
        adam = {"eps": 1e-5, "clip_norm": 0.5, "schedule": "linear"}
        value, fresh = ValueLoss(gae=gae, clip=self.value_clip), self.online_value == "fresh"
        return (
            Learner("online", ("actor",), policy, optimizer={"learning_rate": 3e-5, **adam}, **own),
            Learner("online_value", ("critic",), value, optimizer={"learning_rate": 2e-4, **adam}, renews=fresh, **own),
        )
