"""Small worlds written once over arrays of rows: as a Gymnasium environment, as many side by side, and as a source of data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from unipg.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class World:
    """Base class: where N episodes begin, what is seen of their states [N,S] float64, and where actions [N,A] lead. Everything random is
    drawn from the generator that is given, so equal generators make equal worlds."""

    horizon: ClassVar[int]
    """Steps after which an episode is cut, where nothing else is said."""

    @property
    def observation_space(self) -> spaces.Box:
        raise NotImplementedError(type(self).__name__)

    @property
    def action_space(self) -> spaces.Box:
        raise NotImplementedError(type(self).__name__)

    def begin(self, rows: int, draw: np.random.Generator) -> Array:
        """[N,S] first states."""
        raise NotImplementedError(type(self).__name__)

    def seen(self, state: Array, draw: np.random.Generator) -> Array:
        """[N,O] float32."""
        return state.astype(np.float32)

    def after(self, state: Array, action: Array, draw: np.random.Generator) -> tuple[Array, Array, Array]:
        """The next states [N,S], the rewards [N] and which episodes have terminated [N]."""
        raise NotImplementedError(type(self).__name__)

    def _actions(self, action: Any, rows: int) -> Array:
        """[N,A] float64. `InputError` for another shape."""
        found, size = np.asarray(action, np.float64), self.action_space.shape
        if found.shape != (rows, *size):
            raise InputError(f"{type(self).__name__} was given actions {list(found.shape[1:])}; accepted: {list(size)}, one for each row")
        return found


class One(gymnasium.Env[Array, Array]):
    """A world of one row."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.observation_space, self.action_space = world.observation_space, world.action_space
        self.state = np.zeros((1, 0))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.world.begin(1, self.np_random)
        return self.world.seen(self.state, self.np_random)[0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        actions = self.world._actions(np.asarray(action)[None], 1)
        self.state, reward, terminated = self.world.after(self.state, actions, self.np_random)
        return self.world.seen(self.state, self.np_random)[0], float(reward[0]), bool(terminated[0]), False, {}


class Many(VectorEnv[Array, Array, Array]):
    """`num_envs` rows of a world at once, each reset in the step that ends its episode. One generator draws for all of them."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012  (Gymnasium's own way)

    def __init__(self, world: World, num_envs: int, max_episode_steps: int | None = None) -> None:
        self.world, self.num_envs = world, num_envs
        self.max_episode_steps = world.horizon if max_episode_steps is None else max_episode_steps
        self.single_observation_space, self.single_action_space = world.observation_space, world.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.state = np.zeros((num_envs, 0))
        self.steps = np.zeros(num_envs, np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = self.world.begin(self.num_envs, self.np_random), np.zeros(self.num_envs, np.int64)
        return self.world.seen(self.state, self.np_random), {}

    def step(self, action: Any) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        world, draw = self.world, self.np_random
        self.state, reward, terminated = world.after(self.state, world._actions(action, self.num_envs), draw)
        self.steps += 1
        truncated = self.steps >= self.max_episode_steps
        seen, ended, infos = world.seen(self.state, draw), terminated | truncated, {}
        if ended.any():
            infos = {"final_obs": seen, "_final_obs": ended}
            self.state, self.steps = self.state.copy(), np.where(ended, 0, self.steps)
            self.state[ended] = world.begin(int(ended.sum()), draw)
            seen = seen.copy()
            seen[ended] = world.seen(self.state[ended], draw)
        return seen, reward, terminated, truncated, infos


Behaviour = Callable[[Array, int, np.random.Generator], Array]
"""`behaviour(state [N,S], step, draw)`: the actions [N,A] of N episodes that are all at that step."""


def collected(world: World, behaviour: Behaviour, episodes: int, seed: int) -> dict[str, Array]:
    """Whole episodes of a behaviour: the columns of `replay.transition_columns`, in time order within an episode, actions in the world's
    units. `InputError` for fewer than one episode."""
    check_episodes(episodes)
    draw = np.random.default_rng(seed)
    number, state = np.arange(episodes), world.begin(episodes, draw)
    seen, pieces = world.seen(state, draw), []
    for step in itertools.count():
        action = behaviour(state, step, draw).astype(np.float32)
        state, reward, terminated = world.after(state, action.astype(np.float64), draw)
        following = world.seen(state, draw)
        truncated = np.full(len(number), step + 1 >= world.horizon) & ~terminated
        pieces.append(transitions(seen, following, action, reward, terminated, truncated, number))
        live = ~(terminated | truncated)
        number, state, seen = number[live], state[live], following[live]
        if not len(number):
            break
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    order = np.argsort(joined["episode"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


def transitions(
    observation: Array, next_observation: Array, action: Array, reward: Array, terminated: Array, truncated: Array, episode: Array
) -> dict[str, Array]:
    """The columns of `replay.transition_columns`, in their types."""
    return {
        "observation": observation.astype(np.float32),
        "next_observation": next_observation.astype(np.float32),
        "action": action.astype(np.float32),
        "reward": reward.astype(np.float32),
        "terminated": terminated.astype(bool),
        "truncated": truncated.astype(bool),
        "episode": episode.astype(np.int64),
    }


def check_episodes(episodes: int) -> None:
    """Refuses fewer than one."""
    if episodes < 1:
        raise InputError(f"{episodes} episodes were asked for; accepted: 1 or more")
