"""Environments in numbers: the same afterwards, to the bit; and what is more than numbers is known to be."""

from __future__ import annotations

import io
import random
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.registration import register
from gymnasium.vector import VectorEnv

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts import making
from unipg.rollouts.base import Demand, Pickled
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.rollouts.snapshots import MOST_THINGS, NotNumbers, Snapshots, put
from unipg.training.checkpoints import read_checkpoint, write_checkpoint


def made(name: str, vectorized: bool | None, seed: int) -> VectorEnv:
    environments, _ = making.made(EnvironmentRecipe(name, count=3, vectorized=vectorized), 3)
    environments.reset(seed=seed)
    return environments


def played(environments: VectorEnv, actions: list) -> list:
    return [[np.array(part) for part in environments.step(action)[:4]] for action in actions]


@pytest.mark.parametrize(
    ("name", "vectorized"),
    [
        ("CartPole-v1", True),
        ("CartPole-v1", False),
        ("Pendulum-v1", False),
        ("Acrobot-v1", False),
        ("MountainCarContinuous-v0", False),
        ("FrozenLake-v1", False),
    ],
)
def test_a_new_environment_with_the_numbers_is_the_old_one(name, vectorized, tmp_path) -> None:
    running = made(name, vectorized, 3)
    running.action_space.seed(0)
    actions = [running.action_space.sample() for _ in range(300)]
    played(running, actions[:150])
    snapshot = Snapshots(made(name, vectorized, 0)).take(running)
    write_checkpoint(tmp_path, {"iteration": 1, "environments": snapshot})  # numbers are plain values
    expected = played(running, actions[150:])
    for other in (made(name, vectorized, 7), running):  # in a new process, and stepping back
        put(read_checkpoint(tmp_path)["environments"], other)
        found = played(other, actions[150:])
        assert all(np.array_equal(a, b) for one, two in zip(expected, found, strict=True) for a, b in zip(one, two, strict=True))


class Part:
    def __init__(self, size: int = 2) -> None:
        self.size, self.whole = size, None


class World:
    """Everything that may be in an environment and is numbers; `change` makes it another one."""

    def __init__(self, change: bool = False) -> None:
        seed = 5 if change else 0
        self.scalars = [np.float32(seed + 1.5), np.int8(seed), True, None, seed + 0.1, 1j * seed]
        self.arrays = {
            "c": np.arange(6.0).reshape(2, 3) + seed,
            "f": np.asfortranarray(np.arange(6).reshape(2, 3) + seed),
            3: np.zeros((0, 2)),
        }
        self.view = (np.arange(6.0) + seed).reshape(3, 2).T
        self.text = np.array(["a", "bc"])
        self.queue = deque([1, [seed]], maxlen=4)
        self.same = self.also = [seed, (seed, Part(seed))]
        self.grows = list(range(seed))
        self.part = Part(seed)
        self.part.whole = self  # a circle
        self.generators = [np.random.default_rng(seed), np.random.Generator(np.random.MT19937(seed)), random.Random(seed)]
        self.legacy = np.random.RandomState(seed)
        self.late = np.random.default_rng(seed) if change else None
        self.method, self.function, self.kind = self.look, len, Part
        count = [seed]
        self.closure = lambda: count[0]
        if change:
            self.more = np.ones(3)
            del self.text
            self.text = np.array(["a", "bc"])

    def look(self) -> float:
        return float(self.view.sum())


def test_everything_that_is_numbers_comes_back(tmp_path) -> None:
    one = World(change=True)
    snapshot = Snapshots(World()).take(one)
    write_checkpoint(tmp_path, {"iteration": 1, "x": snapshot})
    other = World()
    kept = other.part, other.closure
    put(read_checkpoint(tmp_path)["x"], other)
    assert [(type(a), a) for a in other.scalars] == [(type(a), a) for a in one.scalars]
    assert list(other.arrays) == list(one.arrays)
    for key, array in one.arrays.items():
        assert np.array_equal(other.arrays[key], array)
        assert (other.arrays[key].dtype, other.arrays[key].strides) == (array.dtype, array.strides)
    assert np.array_equal(other.view, one.view)
    assert other.view.flags.f_contiguous
    assert (other.queue, other.queue.maxlen, other.grows) == (one.queue, 4, list(range(5)))
    assert other.same is other.also
    assert other.same[1][1].size == 5
    assert other.part.whole is other
    assert (other.part, other.closure) == kept
    assert other.closure() == 5
    assert other.look() == one.look() == other.method()
    assert list(vars(other)) == list(vars(one))
    for a, b in zip((*one.generators[:2], one.late, one.legacy), (*other.generators[:2], other.late, other.legacy), strict=True):
        assert a.random() == b.random()
    assert one.generators[2].random() == other.generators[2].random()


class Slotted:
    __slots__ = ("x",)

    def __init__(self) -> None:
        self.x = 1


class Listed(list):
    """Holds something beside its `__dict__`."""


def bound(world: World) -> None:
    world.appends = [].append


def shared(world: World) -> None:
    world.one = np.zeros(4)
    world.two = world.one[:2]


CHANGES: dict[str, tuple[str, Callable[[World], Any]]] = {
    "a lock": ("lock is a _thread.lock", lambda w: setattr(w, "lock", threading.Lock())),
    "an open file": ("file is a _io.BytesIO", lambda w: setattr(w, "file", io.BytesIO())),
    "an iterator": ("numbers is a builtins.list_iterator", lambda w: setattr(w, "numbers", iter([1]))),
    "slots": ("slotted is a .*Slotted", lambda w: setattr(w, "slotted", Slotted())),
    "what C keeps": ("listed is a .*Listed", lambda w: setattr(w, "listed", Listed())),
    "a set": ("several is a builtins.set", lambda w: setattr(w, "several", {1})),
    "text": ("mood is not what it is in a new one", lambda w: setattr(w, "mood", "dark")),
    "another function": ("function is not what it is in a new one", lambda w: setattr(w, "function", max)),
    "a method of something": ("appends is not what it is in a new one", bound),
    "a part of an array": ("two shares its memory with another array", shared),
    "every second number": ("half is an array .*part of something else", lambda w: setattr(w, "half", np.arange(4)[::2])),
    "objects": ("objects is an array", lambda w: setattr(w, "objects", np.array([None]))),
    "keys": ("table is a builtins.dict", lambda w: setattr(w, "table", {(1, 2): 3})),
    "too much": (f"more than {MOST_THINGS:,} things", lambda w: setattr(w, "much", [[] for _ in range(MOST_THINGS)])),
    "what a new one has not": (r"a new one has no .*Part in the same place", lambda w: setattr(w, "extra", Part())),
    "what is one in a new one": (r"no .*Part in the same place", lambda w: setattr(w, "also", [0, (0, Part())])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_more_than_numbers_is_named(change) -> None:
    said, make = CHANGES[change]
    world = World()
    make(world)
    with pytest.raises(NotNumbers, match=said):
        Snapshots(World()).take(world)


def test_what_an_object_raises_when_it_is_looked_at_says_so_too() -> None:
    class Hidden(type):
        def __getattribute__(cls, name: str) -> Any:
            raise RuntimeError("hands off")

    class Strange(metaclass=Hidden):
        pass

    world = World()
    world.strange = Strange()
    with pytest.raises(NotNumbers, match="hands off"):
        Snapshots(World()).take(world)


def test_a_snapshot_changes_numbers_and_nothing_else() -> None:
    """What a file says cannot put text, functions or objects of other classes into an environment."""
    honest = Snapshots(World()).take(World(change=True))
    other = World()
    texts = {name: value for name, value in vars(other).items() if isinstance(value, str) or callable(value)}
    put(honest, other)
    assert all(getattr(other, name) is value for name, value in texts.items())
    for node in (["object", "os.system", []], ["generator", "Generator", {}], ["getattr", []], ["object", f"{World.__module__}.Part", []]):
        with pytest.raises(NotNumbers):
            put(node, World())


# ------------------------------------------------------------------------------------------------ in a run's state


def talking(**options: Any) -> Any:
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    class Talking(CartPoleEnv):
        """Its mood is text, which no number says."""

        mood = ""

        def step(self, action):
            self.mood = "up" if action else "down"
            return super().step(action)

    return Talking(**options)


register("Talking-v0", talking)


def rollouts(name: str) -> tuple[Any, Any]:
    environments = EnvironmentRecipe(name, count=2, steps=20, vectorized=False).build(0)
    return environments, ActorCriticRecipe([8]).build(environments.observation_space, environments.action_space, 0)


def test_what_is_more_than_numbers_is_pickled_with_one_warning() -> None:
    environments, policy = rollouts("Talking-v0")
    environments.collect(policy, Demand(0))
    with pytest.warns(UserWarning, match=r"'Talking-v0' is more than its numbers \(.*mood is not .*\) and is kept as a pickle") as told:
        state = environments.state_dict()
    assert len(told) == 1
    assert isinstance(state["environments"], Pickled)
    assert isinstance(environments.state_dict()["environments"], Pickled)  # and no second warning
    expected = environments.collect(policy, Demand(1))[0].observation
    again, _ = rollouts("Talking-v0")
    again.load_state_dict(state)
    assert np.array_equal(again.collect(policy, Demand(1))[0].observation, expected)


def test_environments_that_are_other_ones_by_now_are_refused(tmp_path: Path) -> None:
    environments, policy = rollouts("CartPole-v1")
    environments.collect(policy, Demand(0))
    state = environments.state_dict()
    other, _ = rollouts("Pendulum-v1")
    with pytest.raises(InputError, match="environment 'Pendulum-v1' is not what it was when the checkpoint was written: a new one has no"):
        other.load_state_dict(state)
