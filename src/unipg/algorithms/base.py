"""What an algorithm is: parts, whole-batch work, and what it needs from the run; and the registry that finds them all."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np

from unipg.algorithms.learners import Learner, told_apart
from unipg.algorithms.rates import REWARDED, LearningRate
from unipg.arguments import CheckedArguments
from unipg.critics.kinds import Critic, Squared, critic_of
from unipg.critics.networks import Network
from unipg.errors import InputError, nearest
from unipg.estimator import Objective, Planning, PolicyGradient, Progress, Term, kl_in_reward
from unipg.estimator.likelihoods import Reading
from unipg.estimator.penalties import KLEstimator
from unipg.loading import callable_named, live_function
from unipg.replay import Transitions
from unipg.rollouts.base import Completions, Vines
from unipg.samplers import Sampler, UniformSampler
from unipg.trajectories import Evaluation, Source, Trajectories

REDRAWN = "redrawn"
"""Planned [B,T] bool: steps whose state is a dataset's and whose action the policy has drawn; what followed is not known of them."""


class Evaluate(Protocol):
    """Any rows under the policy as it is now, without gradient: `evaluate(rows).log_prob` is [B,T], and `readings` are read off."""

    def __call__(self, batch: Trajectories, *, readings: Sequence[Reading] = ()) -> Evaluation: ...


@dataclass(frozen=True)
class Setting:
    """Facts of the run that an algorithm's parts may depend on."""

    max_new_tokens: int = 1
    """Limit on the policy's tokens (or steps) in one trajectory."""
    counted: bool = False
    """Whether the policy's actions can be counted."""
    actions: int = 1
    """How many actions there are, or how many numbers one has."""
    acts: bool = False
    """Whether the policy acts in environments, rather than answering prompts."""

    @property
    def highest_entropy(self) -> float:
        """In nats, of actions that can be counted, or of real ones in [−1, 1]."""
        return math.log(self.actions) if self.counted else self.actions * math.log(2)


def setting(default: Any, help: str, source: str = "") -> Any:
    """A hyper-parameter: its default, what it means, and where the default comes from."""
    return dataclasses.field(default=default, metadata={"help": help, "source": source})


NEVER_NEGATIVE = (
    *("kl", "kl_in_reward", "weight", "sft_weight", "on_policy_weight", "desirable_weight", "undesirable_weight", "overlong_factor"),
    *(
        "poly_scale",
        "clip_low",
        "clip_high",
        "weight_low",
        "weight_high",
        "value_clip",
        "shape",
        "max_sampling_rounds",
        "overlong_buffer",
        "length",
    ),
)
"""Hyper-parameters that mean the same wherever an algorithm has them, and that would turn its purpose round below 0."""


@dataclass(frozen=True)
class Algorithm(CheckedArguments):
    """Base class. A subclass says its parts in `objective` and, where it needs any, its whole-batch work in `prepare`."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    equation: ClassVar[str] = ""
    """The coefficient on ∇log pi, and what is summed."""
    deviations: ClassVar[tuple[str, ...]] = ()
    """Where paper and released code differ, and which one the default follows."""
    bias: ClassVar[str] = ""
    """Why the expected gradient does not point along that of the expected reward (or of the demonstrations' likelihood); empty: it does."""
    claim: ClassVar[str] = ""
    """The script that checks the published claim."""
    demonstrations: ClassVar[Literal["none", "optional", "required"]] = "none"
    uses_rollouts: ClassVar[bool] = True
    completions: ClassVar[Completions] = "none"
    """The given completions that it learns from."""
    scores_demonstrations: ClassVar[bool] = False
    """Whether the demonstrations' own rewards are read."""
    counts_successes: ClassVar[bool] = False
    """Whether rewards must be 0 or 1 unless a threshold is given."""
    unit_rewards: ClassVar[bool] = False
    """Whether rewards outside [0, 1] are refused by default."""
    needs_group: ClassVar[int] = 1
    """Fewest rollouts per prompt for which the advantage means anything."""
    learns_from_equals: ClassVar[bool] = False
    """Whether a prompt whose rollouts all earn the same teaches something, though the advantage compares them."""
    learning_rate: ClassVar[LearningRate] = REWARDED
    """What `optimizer.learning_rate: auto` is, and why."""

    tracks_prompts: ClassVar[bool] = False
    """Whether it remembers what it knows of each prompt."""

    selects: ClassVar[bool] = False
    """Whether `prepare` leaves rows or tokens out of the batch."""

    scores: ClassVar[bool] = False
    """Whether what it trains gives a score to a whole answer (a reward model) instead of a probability to each token."""

    replays: ClassVar[bool] = False
    """Whether it learns from transitions that are kept (a recipe's `replay` section), rather than from each batch of rollouts once."""

    offline: ClassVar[bool] = False
    """Whether it is made for transitions that are given (a recipe's `dataset` section): it collects none unless a recipe says `replay`."""

    values_states: ClassVar[bool] = False
    """Whether, though it replays, it trains the controller's own critic of states, as those that learn from rollouts do."""

    imitates: ClassVar[bool] = False
    """Whether it follows the actions of its data, whatever they earned."""

    acts: ClassVar[bool] = False
    """Whether it is for policies that act in environments alone."""

    wraps: ClassVar[bool] = False
    """Whether it changes what a trained controller does (`controller.model`, of any of its kinds), and trains nothing of that itself."""

    controllers: ClassVar[tuple[str, ...]] = ()
    """Kinds of actions that it can train (`controller.kind`), `auto` for those that can be counted; the first that fits is the default.
    None: any that have probabilities."""
    controller: ClassVar[Mapping[str, Any]] = {}
    """Its own `hidden`, `activation` and `init` of a controller, where the recipe says nothing."""
    replay: ClassVar[Mapping[str, Any]] = {}
    """Its own `batch`, `warmup` and `updates_per_step` of a recipe's `replay` section, where that says nothing."""

    rollouts: int = setting(8, "rollouts per prompt")

    @property
    def by_step(self) -> int | None:
        """Steps of an episode, for each of which a controller has an actor of its own, and no critic of states; None: one for all."""
        return None

    @property
    def mixes(self) -> bool:
        """Whether rows of a dataset are added to each batch of rollouts, as many as there are steps in that."""
        return False

    @property
    def redraws(self) -> bool:
        """Whether each of those rows comes a second time, its action drawn by the policy (`REDRAWN`)."""
        return False

    def parts_of(self, data: Transitions) -> np.ndarray | None:
        """[N] which of K parts each row of a dataset is of, 0 … K − 1: a batch has as many rows of each. None: there is one part."""
        return None

    @property
    def heads(self) -> tuple[int, int]:
        """(members, numbers of each) of a controller's critic of states; see `Critic.heads`."""
        return 1, 1

    @classmethod
    def sources(cls) -> tuple[Source, ...]:
        """The rows that it is made for."""
        some = {
            Source.ROLLOUT: cls.uses_rollouts and not cls.replays,
            Source.DEMONSTRATION: cls.demonstrations != "none",
            Source.PREFERENCE: cls.completions != "none",
            Source.MISMATCHED: cls.completions == "unpaired",
            Source.REPLAY: cls.replays,
        }
        return tuple(source for source, wanted in some.items() if wanted)

    def __post_init__(self) -> None:
        if self.uses_rollouts and self.rollouts < self.needs_group:
            raise InputError(f"algorithm.rollouts is {self.rollouts}; accepted for {self.name}: {self.needs_group} or more per prompt")
        if self.rollouts < 0:
            raise InputError(f"algorithm.rollouts is {self.rollouts}; accepted: 0 or more")
        given = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None}
        check_range(self, 0, math.inf, *sorted(given & set(NEVER_NEGATIVE)))
        check_range(self, 0, 0.5, *(given & {"label_smoothing"}))

    @classmethod
    def learns_from_answers(cls) -> bool:
        """Whether any policy will do, language models too: it keeps no transitions and names no networks."""
        return not cls.replays and not any(learner.trains for learner in cls().learners(Setting()))

    @property
    def penalises_length(self) -> bool:
        """Whether `prepare` adds a penalty to the reward that depends on the limit on new tokens."""
        return False

    @property
    def needs_demonstrations(self) -> bool:
        """Whether a task without any demonstration is refused before a run begins."""
        return self.demonstrations == "required"

    def objective(self, setting: Setting) -> Objective | Term:
        """The four parts, and the terms that are added to them."""
        raise NotImplementedError(type(self).__name__)

    def networks(self, counted: bool) -> Mapping[str, Network]:
        """The networks that it needs beside the policy's actor, by name. `counted`: whether actions can be counted."""
        return {}

    def learners(self, setting: Setting) -> tuple[Learner, ...]:
        """What it trains, in the order of the steps. By default `objective` alone moves everything that the policy trains."""
        return (Learner("policy", (), self.objective(setting)),)

    def explores(self, progress: Progress) -> float | None:
        """How much is explored beside the policy's own draws: epsilon of greedy actions, the noise of deterministic ones; None for their
        own, 0 for none, and the most likely actions. `progress` counts steps of the environments."""
        return None

    @property
    def steps_ahead(self) -> tuple[int, float]:
        """Rewards that a kept transition's return sums before a value takes over, and the discount between them; see `SeveralSteps`."""
        return 1, 1.0

    def learned(self, setting: Setting) -> tuple[Learner, ...]:
        """Its learners, their terms told apart by name."""
        return told_apart(self.learners(setting))

    def terms(self, setting: Setting) -> Objective:
        """The objective of its learner `policy`, or of its only one."""
        learners = self.learned(setting)
        return next((learner for learner in learners if learner.role == "policy"), learners[0]).terms

    def keep(self, batch: Trajectories) -> Trajectories:
        """Rows of a fresh batch that are worth training on; the loop samples on while groups are missing (dynamic sampling)."""
        return batch

    @property
    def most_sampling_rounds(self) -> int:
        """How often the loop may sample to fill a batch when `keep` drops groups."""
        return 1

    @property
    def window(self) -> int | None:
        """Most new tokens of a response in one collection; unfinished ones go on in the next. None: every response is finished."""
        return None

    @property
    def vines(self) -> Vines | None:
        """Of environments: whole episodes, and several ways on from states of theirs, which can be compared; None for windows."""
        return None

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        """Whole-batch work before advantages: gates, reward shaping, selection.

        Of a controller the rows are episodes, as far as the window shows them, where any part of the objective looks at whole rows
        (`Part.joint`); else they are the environments' windows, with several episodes in one.
        """
        return batch

    @property
    def proposes(self) -> bool:
        """Whether rollouts come from a frozen copy of the policy instead of the policy itself; `adopts` says when it is renewed."""
        return False

    def adopts(self, batch: Trajectories, planning: Planning) -> bool:
        """Whether the proposal becomes the current policy before the next batch is collected; asked after each prepared batch."""
        return False

    def select(self, batch: Trajectories, planning: Planning, evaluate: Evaluate) -> Trajectories:
        """The batch of one optimiser step, with what the current policy has a say in planned: which tokens may move it.

        `evaluate`: see `Evaluate`. The result has the rows of `batch`, in their order.
        """
        return batch

    def learn(self, batch: Trajectories, planning: Planning, evaluate: Evaluate) -> dict[str, float]:
        """What it learns after the updates of an iteration, kept in `planning.memory`; returns metrics. `evaluate`: see `Evaluate`."""
        return {}

    def build_sampler(self, size: int, seed: int, prompts: Callable[[], Sequence[str]] = tuple) -> Sampler:
        """What chooses among the `size` items of a recipe's task; `prompts`: their texts, made when asked for."""
        return UniformSampler(size, seed)

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        """What is worth plotting of a prepared batch beside the diagnostics that every algorithm has."""
        return {}

    @property
    def reads(self) -> frozenset[str]:
        """Fields that `prepare` itself reads."""
        return frozenset()


@dataclass(frozen=True)
class KLInReward:
    """A mixin, named before `Algorithm`: a KL penalty against the anchor in the reward of each token."""

    kl_in_reward: float = setting(0.0, "weight of the KL estimate subtracted from each token's reward; 0 for none")
    kl_estimator: KLEstimator = setting("k1", "estimate used in the reward: k1, k2 or k3")

    def prepare(self, batch: Trajectories, setting: Setting, planning: Planning) -> Trajectories:
        return kl_in_reward(batch, self.kl_in_reward, self.kl_estimator) if self.kl_in_reward else batch

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"old_log_prob", "anchor_log_prob"}) if self.kl_in_reward else frozenset()


@dataclass(frozen=True)
class KindOfCritic:
    """A mixin, named before `Algorithm`, for one whose critic may be of another kind than a regression by the squared error."""

    if TYPE_CHECKING:
        critic: Critic = Squared()
    else:
        critic: Critic | str | Mapping[str, Any] = setting(
            Squared(), "kind of the critic: what it is trained on, and its members; a name, or a section with `kind`"
        )

    def __post_init__(self) -> None:
        object.__setattr__(self, "critic", critic_of(self.critic))
        super().__post_init__()  # type: ignore[misc]

    @property
    def heads(self) -> tuple[int, int]:
        return self.critic.heads

    def critic_of_states(self, acts: bool) -> Critic:
        """Refused where the critic is a language model's head of one number. `acts`: whether the policy is a controller."""
        self.critic.check("states", self.name)  # type: ignore[attr-defined]
        if not acts and self.critic.kind != "squared":
            raise InputError(
                f"algorithm.critic.kind is '{self.critic.kind}', but the critic of a language model gives one value; accepted: squared, or "
                "a recipe with an environment"
            )
        return self.critic

    @property
    def steps_ahead(self) -> tuple[int, float]:
        ahead, discount = super().steps_ahead  # type: ignore[misc]
        return ahead, self.critic.discount(discount)

    def metrics(self, batch: Trajectories) -> dict[str, float]:
        found: dict[str, float] = super().metrics(batch)  # type: ignore[misc]
        return found | self.critic.metrics(batch, getattr(self, "gamma", 1.0))

    def critic_of_actions(self) -> Critic:
        self.critic.check("actions", self.name)  # type: ignore[attr-defined]
        return self.critic


@dataclass(frozen=True)
class SeveralSteps:
    """A mixin, named before `Algorithm`, for one with a `discount` gamma: returns of kept transitions over several steps.

    r_t + gamma·r_{t+1} + … + gamma^{m−1}·r_{t+m−1} + gamma^m · (what follows), m ≤ n: fewer where the episode ends, or the buffer does.
    """

    n_step: int = setting(1, "rewards in a return before a value takes over; more than 1 is not corrected for older actions", "Sutton 1988")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        check_counts(self, "n_step")  # type: ignore[arg-type]

    @property
    def steps_ahead(self) -> tuple[int, float]:
        return self.n_step, self.discount  # type: ignore[attr-defined]


def check_range(algorithm: Algorithm, least: float, most: float, *names: str) -> None:
    """Refuses hyper-parameters that are not numbers in [least, most], or not finite."""
    for name in names:
        value = getattr(algorithm, name)
        if not (least <= value <= most and math.isfinite(value)):
            accepted = f"a number in [{least:g}, {most:g}]" if math.isfinite(most) else f"{least:g} or more"
            raise InputError(f"algorithm.{name} is {value}; accepted: {accepted}")


def check_counts(algorithm: Algorithm, *names: str) -> None:
    """Refuses hyper-parameters below 1."""
    for name in names:
        if (value := getattr(algorithm, name)) < 1:
            raise InputError(f"algorithm.{name} is {value}; accepted: 1 or more")


def check_above_zero(algorithm: Algorithm, *names: str, most: float = math.inf) -> None:
    """Refuses hyper-parameters that are not finite numbers above 0, at most `most`."""
    for name in names:
        value = getattr(algorithm, name)
        if not (0 < value <= most and math.isfinite(value)):
            limit = f", at most {most:g}" if math.isfinite(most) else ""
            raise InputError(f"algorithm.{name} is {value}; accepted: a finite number above 0{limit}")


def check_feed(algorithm: Algorithm, replay: bool, dataset: bool) -> None:
    """Refuses sections of a recipe, `replay` and `dataset`, that an algorithm does not learn from, or that it lacks."""
    who = f"algorithm '{algorithm.name}'"
    for section, given in (("replay", replay), ("dataset", dataset)):
        if given and not algorithm.replays and not (section == "dataset" and algorithm.mixes):
            names = ", ".join(name for name, kind in registered().items() if kind.replays)
            raise InputError(
                f"{section} is given, but {who} learns from each batch of rollouts once; accepted: leave it out, or one of {names}"
            )
    if algorithm.mixes and not dataset:
        raise InputError(f"{who} adds rows of a dataset to what it collects; accepted: `dataset: {{path: FILE}}`")
    if algorithm.offline and not (replay or dataset):
        raise InputError(f"{who} learns from transitions that are given; accepted: `dataset: {{path: FILE}}`, or `replay` to collect them")


def check_without_prompts(algorithm: Algorithm) -> None:
    """Refuses an algorithm that environments have nothing for: no prompts, so no groups, demonstrations or completions, and no anchor."""
    why = _why_prompts(algorithm)
    if why:
        accepted = [name for name, kind in registered().items() if name != algorithm.name and not _why_prompts(kind())]
        settings = "" if _why_prompts(type(algorithm)()) else "its default settings, or "
        raise InputError(f"algorithm '{algorithm.name}' {why}; accepted for environments: {settings}{', '.join(accepted)}")


def _why_prompts(algorithm: Algorithm) -> str:
    """What it needs prompts for; empty where it does without."""
    if algorithm.demonstrations != "none" and not algorithm.offline:
        return "learns from demonstrations, which environments do not give"
    if algorithm.completions != "none":
        return "learns from given completions, which environments do not have"
    objective = algorithm.terms(Setting(acts=True))
    if (algorithm.needs_group > 1 or objective.compares) and algorithm.vines is None:
        return "compares several rollouts of one prompt, but each episode of an environment starts by itself: a group of one"
    if algorithm.tracks_prompts:
        return "tracks prompts, which environments do not have"
    if "anchor_log_prob" in objective.reads | algorithm.reads:
        return "measures a KL against an anchor, which only language recipes have"
    if algorithm.window is not None:
        return f"has a window of {algorithm.window} tokens, but rows of environments are windows already (environment.steps)"
    return ""


A = TypeVar("A", bound=type[Algorithm])
_REGISTRY: dict[str, type[Algorithm]] = {}


def register(algorithm: A) -> A:
    """Class decorator. Refuses a second algorithm under a name that is taken."""
    name = algorithm.name
    if name in _REGISTRY and _REGISTRY[name].__qualname__ != algorithm.__qualname__:
        raise InputError(f"algorithm '{name}' is already registered by {_REGISTRY[name].__module__}")
    _REGISTRY[name] = algorithm
    return algorithm


def recorded_name(algorithm: Algorithm) -> str:
    """What a recipe calls it: its name, or `module:Class` of one that is not of this package."""
    kind = type(algorithm)
    return kind.name if kind.__module__.startswith("unipg.") else live_function(kind)


def registered(*, answers: bool = False) -> Mapping[str, type[Algorithm]]:
    """Every algorithm by name, in alphabetical order; with `answers` those alone that can learn from answers to prompts."""
    import unipg.algorithms as package

    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return {name: kind for name, kind in sorted(_REGISTRY.items()) if not answers or kind.learns_from_answers()}


def algorithm_named(name: str) -> type[Algorithm]:
    """A registered algorithm, or anyone's: `module:Class`, of a module that can be imported, of the current folder too."""
    if ":" in name:
        kind = callable_named(name, "algorithm", classes=True)
        if not (isinstance(kind, type) and issubclass(kind, Algorithm)):
            raise InputError(f"algorithm '{name}' is no subclass of unipg.Algorithm")
        return kind
    table = registered()
    if name not in table:
        raise InputError(f"algorithm '{name}' does not exist; {nearest(name, table)}")
    return table[name]


def table_row(algorithm: type[Algorithm]) -> dict[str, str]:
    """One row of the live table: name, the four parts, the data, and the paper."""
    objective = algorithm().terms(Setting())
    gradients = [t for t in objective.terms if isinstance(t, PolicyGradient)]

    def column(part: str) -> str:
        if not gradients:  # a method of values alone
            return objective.terms[0].symbol() if part == "advantage" else "none"
        return " | ".join(dict.fromkeys(t.shown(part) for t in gradients))

    data = " + ".join(dict.fromkeys(_data_of(t) for t in gradients or objective.terms))
    return {
        "name": algorithm.name,
        "mask": column("mask"),
        "reference": column("reference"),
        "advantage": column("advantage"),
        "likelihood": column("likelihood"),
        "data": data,
        "source": algorithm.paper,
    }


def _data_of(term: Term) -> str:
    return "+".join(f"{s.name.lower()}s" for s in term.rows)


def hyper_parameters(algorithm: type[Algorithm]) -> list[dict[str, str]]:
    """Every hyper-parameter with its default, meaning and source."""
    return [
        {
            "name": f.name,
            "type": str(f.type),
            "default": f.default.kind if isinstance(f.default, Critic) else repr(f.default),
            "help": f.metadata.get("help", ""),
            "source": f.metadata.get("source", ""),
        }
        for f in dataclasses.fields(algorithm)
    ]


def documentation(algorithm: type[Algorithm]) -> str:
    return inspect.cleandoc(algorithm.__doc__ or "")
