"""Rollouts in Gymnasium environments, many side by side, for policies that act on observations."""

from __future__ import annotations

import math
import pickle
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from unipg.arguments import CheckedArguments
from unipg.critics.members import MEMBERS, MEMBERS_AFTER
from unipg.errors import InputError, one_line, spoken
from unipg.estimator.policy_gradient import check_log_probs
from unipg.policies.actor_critic import Controller
from unipg.policies.base import Policy
from unipg.replay.cards import References
from unipg.rollouts.base import Demand, EvaluationResult, Experience, Interrupted, Pickled
from unipg.rollouts.blame import blame
from unipg.rollouts.making import first_line, made, step_limit
from unipg.rollouts.playing import at_once, check_counts, not_finite, play, resets_in_same_step
from unipg.rollouts.recording import Film
from unipg.rollouts.rewards import RewardScale
from unipg.rollouts.snapshots import NotNumbers, Snapshots, pickled, put
from unipg.rollouts.stepping import Episodes, Stepper
from unipg.rollouts.wrappers import check_wrappers
from unipg.seeding import derived_seed, generator
from unipg.statistics import Interval, student_interval, wilson_interval
from unipg.trajectories import Trajectories

if TYPE_CHECKING:
    import gymnasium

    from unipg.rollouts.vines import Vineyard

RECENT = 100
"""Finished episodes that the running mean `return/last_100` looks back on."""
SIDE_BY_SIDE = 64
"""Evaluation episodes that run at the same time."""
EVALUATION_STEPS = 10_000
"""Most steps of an evaluation episode where neither the environment nor the recipe has a limit."""
_SEEDS = 2**31
"""Environments written in C take seeds of 31 bits."""


@dataclass(frozen=True)
class EnvironmentRecipe(CheckedArguments):
    """Which environment, how many of it, and how long a window is collected."""

    id: str
    """Gymnasium's name, `CartPole-v1`; `module:Name-v0` imports the module that registers it first."""
    count: int = 8
    """Environments that run side by side: rows of a batch."""
    steps: int = 128
    """Steps of each environment in one batch. Episodes go on across batches."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment (`max_episode_steps: 200`)."""
    evaluation_episodes: int = 20
    """Episodes of an evaluation, with the most likely actions."""
    evaluation_steps: int | None = None
    """Most steps of an evaluation episode, which is cut there. null: the environment's own limit; where it has none, 10,000."""
    vectorized: bool | None = None
    """True: the environment's own array implementation; False: one object per row, stepped in turn; null: the first where there is one, and
    no wrapper."""
    wrappers: list[Any] = field(default_factory=list)
    """Put around every environment, in evaluations too, the first innermost: dotted paths, or {path: …, argument: …}."""
    backend: Literal["gymnasium", "envpool"] = "gymnasium"
    """Whose environment it is. envpool: EnvPool's of the same name, stepped in C++, whose settings `options` then are."""
    processes: int | None = None
    """How many processes work at a time; each environment then has one of its own. For steps of a millisecond and more; null: none."""

    normalize_rewards: bool = False
    """Train on rewards in units of the running standard deviation of the discounted return, which the run keeps. Returns that are told, and
    evaluations, are of the environment's own rewards."""
    reward_discount: float = 0.99
    """Discount of that return: the algorithm's own is usual."""
    references: References | None = None
    """Returns that score 0 and 100, for normalised scores in evaluations. null: those of the dataset's card, where there is one."""

    def __post_init__(self) -> None:
        for name in ("count", "steps", "evaluation_episodes", "evaluation_steps", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"environment.{name} is {value}; accepted: 1 or more")
        if not 0 <= self.reward_discount <= 1:
            raise InputError(f"environment.reward_discount is {self.reward_discount}; accepted: a number in [0, 1]")
        check_wrappers(self.wrappers)
        if self.wrappers and self.vectorized:
            raise InputError(
                "environment.vectorized is true, but environment.wrappers are put around single environments; accepted: false, null"
            )
        if self.backend == "envpool" and (self.vectorized is False or self.wrappers):
            given, accepted = ("wrappers are given", "none") if self.wrappers else ("vectorized is false", "true, null")
            raise InputError(f"environment.{given}, but EnvPool has arrays alone; accepted: {accepted}")
        if self.processes is not None and self.processes > self.count:
            raise InputError(f"environment.processes is {self.processes}; accepted: at most environment.count, {self.count}")
        if self.processes is not None and (self.backend == "envpool" or self.vectorized):
            what = "EnvPool's have threads (environment.options.num_threads)" if self.backend == "envpool" else "arrays are in one process"
            raise InputError(f"environment.processes is {self.processes}, but {what}; accepted: null")

    def check_kept(self, who: str) -> None:
        """Refuses what cannot be where rewards are kept for later."""
        if self.normalize_rewards:
            raise InputError(
                f"environment.normalize_rewards is true, but {who} keeps rewards, whose unit would change once they are stored; "
                "accepted: false"
            )

    def check_vines(self) -> None:
        """Refuses what cannot be where there are vines (`rollouts.base.Vines`) in the place of windows."""
        if self.normalize_rewards:
            raise InputError(
                "environment.normalize_rewards is true, but sets of episodes are scored by rewards as they are; accepted: false"
            )
        if self._elsewhere:
            raise InputError(
                f"environment.{self._elsewhere}, but vines are of environments that are saved here; accepted: gymnasium without processes"
            )

    def check_ahead(self) -> None:
        """Refuses what cannot be where windows are collected in another process (`training.overlap`)."""
        if self._elsewhere:
            raise InputError(
                f"environment.{self._elsewhere}, but training.overlap sends environments to another process with each demand; accepted: "
                "gymnasium without processes, or training.overlap: false"
            )

    @property
    def _elsewhere(self) -> str:
        """Why environments are not objects of this process; empty where they are."""
        if self.backend == "envpool":
            return "backend is envpool"
        return "" if self.processes is None else f"processes is {self.processes}"

    def build(self, seed: int) -> EnvironmentRollouts:
        """The environments, not yet reset. `seed` decides their start states."""
        return EnvironmentRollouts(self, seed)


class EnvironmentRollouts(Experience):
    """Windows of `steps` steps from `count` environments that go on from call to call.

    After an episode ends the environment resets itself. Where it does so in the same step, every step is the policy's; where it takes a
    step of its own for it (`NEXT_STEP`, most array implementations), that step has `mask` 0.

    `state_dict` holds the running environments, so that a resumed run goes on with the same numbers: as their numbers alone, where they
    are no more than that (`snapshots`), else pickled, which is warned of once, because unpickling runs code. Environments that cannot be
    pickled either (Box2D's) are warned of once too; after a resume their episodes start afresh.
    """

    has_prompts = False

    def __init__(self, recipe: EnvironmentRecipe, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed
        self.max_new_tokens = recipe.steps
        self._environments: Any
        self._environments, self.normalized = made(recipe, recipe.count)
        """`normalized`: whether the environment came with a running normaliser, which is off: the policy must keep one in its place."""
        self._observation: np.ndarray | None = None
        self._steps = 0
        self._scale = RewardScale(recipe.count, recipe.reward_discount) if recipe.normalize_rewards else None
        self._forget_episodes()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._kept: dict[str, Any] = {}
        self._here: Any = None
        """Of environments in other processes: as many in this one, which stand for them where they are saved."""
        self._stepper: Stepper | None = None
        """Where they are stepped one step at a time, instead of in windows."""
        self._vineyard: Vineyard | None = None
        """Of episodes and vines, where these are asked for instead of windows."""
        self._picklable = True
        self._snapshots: Snapshots | None = None
        self._numbers = True
        """Whether the environments are no more than their numbers, as far as is known."""

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which makes environments of its own, and learns again what a new one looks like."""
        return {**vars(self), "_environments": None, "_snapshots": None, "_here": None, "_vineyard": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._environments, _ = made(self.recipe, self.recipe.count)

    def _forget_episodes(self) -> None:
        self._resetting = np.zeros(self.recipe.count, bool)  # rows whose next step is only a reset
        self._return = np.zeros(self.recipe.count)
        self._length = np.zeros(self.recipe.count, np.int64)
        if self._scale is not None:
            self._scale.returns = np.zeros(self.recipe.count)

    @property
    def observation_space(self) -> gymnasium.Space:
        """Of one environment."""
        return self._environments.single_observation_space

    @property
    def action_space(self) -> gymnasium.Space:
        """Of one environment."""
        return self._environments.single_action_space

    def collect(self, policy: Policy, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        """The next window [count, steps], a row for each environment; always a whole one, whatever `demand.share` says. With `demand.vines`
        whole episodes of at most `steps` steps, and vines.

        `behaviour_log_prob` and `old_log_prob` are the same numbers: the network that acts is the one that is trained. With
        `demand.value`, `bootstrap_value` holds the critic's value of the final observation at each truncated step, and of the next
        observation where the window cuts an episode.

        Metrics: `return/mean`, `length/mean` and `return/episodes` of the episodes that ended in this window (no means without any),
        `return/last_100`, and `environment/steps`, the policy's steps since the start. Returns are not discounted.

        `Interrupted` leaves the environments somewhere in the window: restore a `state_dict` from before the call to repeat it.
        """
        policy = _controller(policy, self.recipe.id, self.normalized)
        if demand.vines is not None:
            return self._grown(policy, demand)
        if demand.demonstrations:
            raise InputError(f"environment '{self.recipe.id}' gives no demonstrations; take an algorithm that needs none")
        if self._scale is not None and demand.workers > 1:
            raise InputError(
                "environment.normalize_rewards is true, but each worker would have a unit of its own; accepted: one worker, false"
            )
        rows, steps = self.recipe.count, self.recipe.steps

        def stop() -> None:
            if demand.should_stop():
                raise Interrupted

        if self._observation is None:
            with at_once(stop):
                self._observation = self._started(policy, demand.worker)
        current = self._observation
        observation = np.empty((steps, *current.shape), current.dtype)
        reward = np.empty((steps, rows), np.float32)
        terminated, truncated = np.empty((steps, rows), bool), np.empty((steps, rows), bool)
        actions: list[np.ndarray] = []
        finals: list[tuple[int, int, np.ndarray]] = []  # row, step, observation after it
        noise = policy.noise(steps, rows, generator(demand.seed, "act", demand.iteration, demand.round, demand.worker))
        act, give, flatten = policy.actor(), policy.outward(), policy.flatten
        same_step = resets_in_same_step(self._environments)
        t = 0
        try:
            with at_once(stop):
                for t in range(steps):
                    stop()
                    observation[t] = current
                    actions.append(act(current, noise[t]))
                    given = give(current, actions[-1])
                    following, reward[t], terminated[t], truncated[t], infos = self._environments.step(given)
                    current = flatten(following)
                    if same_step and truncated[t].any():
                        last, cut = infos["final_obs"], truncated[t] & ~terminated[t]
                        finals += [(row, t, policy.flatten_one(last[row])) for row in np.flatnonzero(cut).tolist()]
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            self._check_finite(observation[: t + 1], reward[:t], [])  # what follows from NaN may be refused: NaN came before
            blame(error, self.recipe.id, f"at step {t} of the window")
            raise
        ended = terminated | truncated
        truncated &= ~terminated  # an end is an end, also at the limit
        if not same_step:  # the next observation is still of the same episode
            finals = [(row, t, (observation[t + 1] if t + 1 < steps else current)[row]) for t, row in np.argwhere(truncated).tolist()]
        mask = np.ones((steps, rows), bool)
        if not same_step:
            mask = ~np.concatenate([self._resetting[None], ended[:-1]])
            self._resetting = ended[-1]
        finals += [(row, steps - 1, current[row]) for row in np.flatnonzero(mask[-1] & ~ended[-1]).tolist()]
        self._observation = current
        self._check_finite(observation, reward, finals, mask)
        check_counts(policy, self.recipe.id, observation, mask, lambda step, row: f"row {row} at step {step} of the window")
        for row, step, after in finals:
            check_counts(
                policy, self.recipe.id, after[None], None, lambda _, row=row, step=step: f"row {row} after step {step} of the window"
            )
        metrics = self._count_episodes(reward, ended, mask)
        if self._scale is not None:
            reward = self._scale(reward, ended, mask)
            metrics["environment/reward_unit"] = self._scale.unit
        fields = {
            "action": np.stack(actions),
            "mask": mask,
            "observation": observation,
            "step_reward": reward,
            "terminated": terminated,
            "truncated": truncated,
        }
        tensors: dict[str, Any] = {name: torch.from_numpy(array.swapaxes(0, 1).copy()).to(policy.device) for name, array in fields.items()}
        batch = Trajectories(**tensors)
        return _evaluated(batch, policy, finals if demand.value else None), metrics

    def _grown(self, policy: Controller, demand: Demand) -> tuple[Trajectories, dict[str, float]]:
        """Whole episodes and vines (`vines.py`) from environments that start afresh: nothing goes on from call to call."""
        recipe = self.recipe

        def stop() -> None:
            if demand.should_stop():
                raise Interrupted

        vineyard = self._vines()
        try:
            with at_once(stop):
                found = vineyard.collect(policy, demand, self.seed, stop)
        except (Exception, SystemExit) as error:
            blame(error, recipe.id, "in an episode or a vine")
            raise
        self._steps += found.steps
        returns, lengths = zip(*found.told, strict=True)
        self._recent.extend(returns)
        metrics = {
            "return/episodes": float(len(returns)),
            "return/mean": float(np.mean(returns)),
            "length/mean": float(np.mean(lengths)),
            f"return/last_{RECENT}": float(np.mean(self._recent)),
            "environment/steps": float(self._steps),
            "vines/replayed_steps": float(found.replayed),
            **found.shares,
        }
        return _evaluated(found.batch().to(policy.device), policy, found.finals(demand.value)), metrics

    def _vines(self) -> Vineyard:
        from unipg.rollouts.vines import Vineyard

        recipe = self.recipe
        recipe.check_vines()

        def one() -> Any:
            alone: Any = made(replace(recipe, vectorized=False), 1)[0]
            return alone.envs[0]

        if self._vineyard is None:
            self._vineyard = Vineyard(one, recipe.count, recipe.id, recipe.steps)
        return self._vineyard

    def check(self, policy: Policy, demand: Demand) -> None:
        """Of vines: whether an environment can be saved and restored is found by trying, on a new one."""
        if demand.vines is None:
            return
        vineyard = self._vines()
        try:
            vineyard.check(_controller(policy, self.recipe.id, self.normalized), demand.vines)
        except (Exception, SystemExit) as error:
            blame(error, self.recipe.id, "when it was tried whether it can be saved and restored")
            raise

    def check_ahead(self) -> None:
        self.recipe.check_ahead()
        try:
            standing = self._new()
            try:
                Snapshots(self._new()).take(standing)
            except NotNumbers:
                pickled(standing)
        except Exception as error:  # whatever a foreign object raises
            raise InputError(
                f"environment '{self.recipe.id}' cannot be saved ({first_line(error)}), and training.overlap sends it to another process "
                "with each demand; accepted: training.overlap: false"
            ) from error

    def stepper(self, policy: Controller, worker: int = 0) -> Stepper:
        """These environments one step at a time, from where they stand; one that has not started is reset first."""
        self.recipe.check_kept("whoever steps environments one by one")
        if self._stepper is None:
            if self._observation is None:
                self._observation = self._started(policy, worker)
            episodes = Episodes(self.recipe.count, RECENT)
            self._stepper = Stepper(self._environments, self.recipe.id, policy, self._observation, episodes)
            if self._kept:
                self._stepper.load_state_dict(self._kept)
        return self._stepper

    def _started(self, policy: Controller, worker: int) -> np.ndarray:
        """Where the environments stand after a reset."""
        seed = derived_seed(self.seed, "environments", worker, self._steps) % _SEEDS
        try:
            return policy.flatten(self._environments.reset(seed=seed)[0])
        except (Exception, SystemExit) as error:
            blame(error, self.recipe.id, "at a reset")
            raise

    def _check_finite(
        self, observation: np.ndarray, reward: np.ndarray, finals: list[tuple[int, int, np.ndarray]], mask: np.ndarray | None = None
    ) -> None:
        """Refuses NaN and infinity in [T,N,…] from the environment, naming row and step; `finals`: observations after a step."""
        for what, values in (("observation", observation), ("reward", reward)):
            if values.dtype.kind != "f":
                continue
            bad = ~np.isfinite(values)
            bad = bad.any(2) if bad.ndim > 2 else bad
            if mask is not None:
                bad &= mask
            if bad.any():
                step, row = np.argwhere(bad)[0]
                raise not_finite(self.recipe.id, what, values[step, row], f"row {row} at step {step} of the window")
        for row, step, after in finals:
            if not np.isfinite(after).all():
                raise not_finite(self.recipe.id, "observation", after, f"row {row} after step {step} of the window")

    def _count_episodes(self, reward: np.ndarray, ended: np.ndarray, mask: np.ndarray) -> dict[str, float]:
        """Metrics of a window [T,N]; keeps the sums of the episodes that go on."""
        reward = np.where(mask, reward, 0).astype(np.float64)
        since = np.zeros(reward.shape[1], int)
        returns: list[float] = []
        lengths: list[int] = []

        def add(row: int, until: int) -> None:
            self._return[row] += reward[since[row] : until, row].sum()
            self._length[row] += mask[since[row] : until, row].sum()
            since[row] = until

        for t, row in np.argwhere(ended):  # in order of time
            add(row, t + 1)
            returns.append(float(self._return[row]))
            lengths.append(int(self._length[row]))
            self._return[row] = self._length[row] = 0
        for row in range(reward.shape[1]):
            add(row, len(reward))
        self._recent.extend(returns)
        self._steps += int(mask.sum())
        metrics = {"return/episodes": float(len(returns)), "environment/steps": float(self._steps)}
        if returns:
            metrics |= {"return/mean": float(np.mean(returns)), "length/mean": float(np.mean(lengths))}
        if self._recent:
            metrics[f"return/last_{RECENT}"] = float(np.mean(self._recent))
        return metrics

    def evaluate(self, policy: Policy, seed: int, progress: Callable[[float], None] | None = None) -> list[EvaluationResult]:
        """Undiscounted return and length of `evaluation_episodes` fresh episodes with the policy's most likely actions.

        See `evaluate_controller`.
        """
        return [evaluate_controller(policy, self.recipe, seed, progress)]

    def state_dict(self) -> dict[str, Any]:
        """`environments` are a snapshot, or `Pickled` (None where they cannot be, or have not started); everything else plain values."""
        if self._stepper is not None:
            return {"environments": self._saved(), **self._stepper.state_dict()}
        return {
            "environments": self._saved() if self._observation is not None else None,
            "observation": torch.from_numpy(self._observation.copy()) if self._observation is not None else None,
            "resetting": self._resetting.tolist(),
            "return": self._return.tolist(),
            "length": self._length.tolist(),
            "recent": list(self._recent),
            "steps": self._steps,
        } | ({} if self._scale is None else {"rewards": self._scale.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["resetting"]) != self.recipe.count:
            raise InputError(f"environment.count is {self.recipe.count} but the checkpoint holds {len(state['resetting'])} environments")
        if "episodes" in state:
            self._load_stepper(state)
            return
        self._steps = state["steps"]
        self._recent = deque(state["recent"], RECENT)
        if self._scale is not None:
            self._scale.load_state_dict(state["rewards"])
        if state["environments"] is None:
            self._observation = None
            self._forget_episodes()
            return
        self._go_on(state["environments"])
        self._observation = state["observation"].numpy().copy()
        self._resetting = np.array(state["resetting"], bool)
        self._return = np.array(state["return"])
        self._length = np.array(state["length"], np.int64)

    def _load_stepper(self, state: dict[str, Any]) -> None:
        """What the next `stepper` goes on from."""
        self._stepper, self._kept = None, {name: value for name, value in state.items() if name != "environments"}
        if state["environments"] is None:  # they could not be saved: their episodes start afresh
            self._observation, self._kept = None, {"episodes": state["episodes"]}
            return
        self._go_on(state["environments"])
        self._observation = state["observation"].numpy().copy()

    def _saved(self) -> list[Any] | Pickled | None:
        """The environments as they stand: in numbers, pickled, or not at all, with a warning at every descent."""
        why, lost = "", ""
        if not self._picklable:
            return None
        try:
            standing = self._fetched()
        except NotNumbers as error:  # of other processes there are pickles alone
            standing, lost = None, str(error)
        if self._numbers and standing is not None:
            try:
                if self._snapshots is None:
                    self._snapshots = Snapshots(self._new())
                return self._snapshots.take(standing)
            except NotNumbers as error:
                self._numbers, self._snapshots, why = False, None, str(error)
        try:
            if standing is None:
                raise NotNumbers(lost)
            found = Pickled(pickled(standing))
        except Exception as error:  # whatever a foreign object raises, training goes on
            self._picklable = False
            warnings.warn(
                f"environment '{self.recipe.id}' cannot be saved ({first_line(error)}); after a resume its episodes start afresh",
                stacklevel=3,
            )
            return None
        if why:
            warnings.warn(
                f"environment '{self.recipe.id}' is more than its numbers ({why}) and is kept as a pickle beside the checkpoint: a run "
                f"that is moved to another user or machine can be continued there with {spoken('--trust', 'trust=True')} alone",
                stacklevel=3,
            )
        return found

    def _fetched(self) -> Any:
        """The environments, from other processes as copies in this one. Raises `NotNumbers` where these cannot be had."""
        if self.recipe.processes is None:
            return self._environments
        self._here = self._here or self._new()
        self._here.envs = self._environments.fetch()
        return self._here

    def _new(self) -> Any:
        """Environments of the same kind that were reset, in this process."""
        try:
            environments, _ = made(replace(self.recipe, processes=None, vectorized=self._arrays), self.recipe.count)
            environments.reset(seed=0)
        except Exception as error:
            raise NotNumbers(one_line(error)) from error
        return environments

    @property
    def _arrays(self) -> bool | None:
        """Of environments in one process; those in several are no arrays."""
        return self.recipe.vectorized if self.recipe.processes is None else False

    def _go_on(self, saved: list[Any] | Pickled) -> None:
        """Goes on from environments that were saved."""
        apart = self.recipe.processes is not None
        standing = self._new() if apart else self._environments
        if isinstance(saved, Pickled):
            standing = pickle.loads(saved.data)
        else:
            if self._observation is None and not apart:
                standing.reset(seed=0)
            try:
                put(saved, standing)
            except NotNumbers as error:
                raise InputError(f"environment '{self.recipe.id}' is not what it was when the checkpoint was written: {error}") from error
        if not apart:
            self._environments = standing
            return
        self._environments.terminate()  # they may be in the middle of a step
        self._environments, _ = made(self.recipe, self.recipe.count)
        self._environments.replace(standing.envs)


def evaluate_controller(
    policy: Policy,
    recipe: EnvironmentRecipe,
    seed: int,
    progress: Callable[[float], None] | None = None,
    *,
    sample: bool = False,
    film: Film | None = None,
) -> EvaluationResult:
    """Undiscounted return and length of `recipe.evaluation_episodes` fresh episodes with the policy's most likely actions, or with `sample`
    with random ones, as in training. `film`: they are played one after the other, and filmed.

    They run in environments of their own, each of which plays a number of episodes that is fixed beforehand. Rewards are the environment's
    own, also where it is wrapped by NormalizeReward. An episode longer than `recipe.evaluation_steps` is cut there: then `cut fraction` is
    measured too, and a warning says so. `progress` is told the finished share, also now and then; what it raises ends the evaluation.
    """
    episodes = recipe.evaluation_episodes
    told = progress or (lambda _: None)
    done = 0.0

    def tell(share: float) -> None:
        nonlocal done
        done = share
        told(share)

    with at_once(lambda: told(done)):
        rows = min(episodes, SIDE_BY_SIDE) if film is None else 1
        environments, normalized = made(recipe, rows, own_rewards=True, pictures=film is not None)
        controller, seed = _controller(policy, recipe.id, normalized), derived_seed(seed, "evaluation") % _SEEDS
        source = generator(seed, "evaluation", "act")
        seen = None if film is None else lambda: film.add(environments, recipe.id)
        try:
            found = play(
                environments,
                controller,
                episodes,
                seed,
                tell,
                name=recipe.id,
                most_steps=_most_steps(recipe),
                source=source,
                sample=sample,
                seen=seen,
            )
        except (Exception, SystemExit) as error:
            blame(error, recipe.id, "in an evaluation")
            raise
        finally:
            environments.close()
    intervals = {"return": student_interval(found.returns), "length": student_interval(found.lengths)}
    if any(found.cut):
        intervals["cut fraction"] = wilson_interval(round(sum(found.cut)), len(found.cut))
    if (references := recipe.references) is not None and _comparable(references, recipe):
        earned = intervals["return"]
        low, value, high = map(references.score, (earned.low, earned.value, earned.high))
        intervals[f"score ({references.label})"] = Interval(value, low, high, earned.n)
    metrics = {name: interval.as_metric() for name, interval in intervals.items()}
    return EvaluationResult(recipe.id, metrics, how="" if sample else controller.how_evaluated)


def _comparable(references: References, recipe: EnvironmentRecipe) -> bool:
    """Whether episodes are as long as those of the references; a warning where they are not."""
    limit = step_limit(recipe)
    if references.horizon is None or limit is None or references.horizon == limit:
        return True
    warnings.warn(
        f"environment '{recipe.id}': the reference returns are of episodes of {references.horizon} steps, and these have {limit}: there is "
        "no score",
        stacklevel=3,
    )
    return False


def _most_steps(recipe: EnvironmentRecipe) -> float:
    """Where an evaluation episode is cut; infinite where the environment sees to it itself."""
    if recipe.evaluation_steps is not None:
        return recipe.evaluation_steps
    own = step_limit(recipe)
    return EVALUATION_STEPS if own is None or own < 1 else math.inf


def _controller(policy: Policy, environment: str, normalized: bool) -> Controller:
    """The policy as a controller; of an environment that has lost its normaliser, one that keeps the statistics itself."""
    if not isinstance(policy, Controller):
        raise InputError(f"environments need a policy that acts on observations, such as ActorCritic, not {type(policy).__name__}")
    if normalized and not policy.normalizes:
        raise InputError(
            f"environment '{environment}' is wrapped by NormalizeObservation, whose statistics are in no saved model and not shared with "
            "evaluations; accepted: a policy that keeps them (controller.normalize_observations: true), or an environment without it"
        )
    return policy


def _evaluated(batch: Trajectories, policy: Controller, finals: list[tuple[int, int, np.ndarray]] | None) -> Trajectories:
    """The batch with log-probabilities, and with values where `finals` (row, step, observation after it) are given.

    One pass over the window: as exact as a pass per step, and several times cheaper.
    """
    with torch.no_grad():
        now = policy.evaluate(batch, value=finals is not None)
    check_log_probs(now.log_prob, batch, "behaviour_log_prob")
    batch = batch.replace(behaviour_log_prob=now.log_prob, old_log_prob=now.log_prob, value=now.value)
    if now.value is None:
        return batch
    bootstrap = torch.zeros_like(now.value)
    members = None if now.values is None else now.values[..., 0]
    after_members = None if members is None else torch.zeros_like(members)
    if finals:
        row, step = (torch.tensor([final[k] for final in finals], device=bootstrap.device) for k in (0, 1))
        after = torch.from_numpy(np.stack([final[2] for final in finals])).to(bootstrap.device)
        bootstrap[row, step] = policy.value(after)
        if after_members is not None:
            after_members[row, step] = policy.values(after)
    if members is not None and after_members is not None:
        batch = batch.with_planned(**{MEMBERS: members, MEMBERS_AFTER: after_members})
    return batch.replace(bootstrap_value=bootstrap)
