"""Kinds of critics: found by name in recipes and in Python, refused in one line where they do not fit."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from unipg.algorithms import A2C, DQN, PPO, SAC
from unipg.algorithms.base import Setting
from unipg.critics.kinds import Critic, Squared, critic_of
from unipg.critics.kinds.base import Judged
from unipg.errors import InputError
from unipg.training.recipe import build_algorithm, recipe_from


@dataclass(frozen=True)
class OfStates(Critic):
    judges: ClassVar[tuple[Judged, ...]] = ("states",)
    kind: Literal["of_states"] = field(default="of_states", kw_only=True)


@pytest.mark.parametrize("given", [None, "squared", {"kind": "squared"}, Squared()])
def test_a_critic_is_found_by_its_kind(given: Any) -> None:
    assert critic_of(given) == Squared()
    if given is not None:
        assert build_algorithm({"name": "sac", "critic": given}) == SAC()


def test_a_recipe_keeps_the_kind() -> None:
    recipe = recipe_from({"algorithm": {"name": "dqn", "critic": "squared"}, "environment": {"id": "CartPole-v1"}})
    assert recipe.as_dict()["algorithm"]["critic"] == {"kind": "squared"}
    assert recipe_from(recipe.as_dict()).identity() == recipe.identity()


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ("squard", "algorithm.critic.kind 'squard' does not exist; did you mean 'squared'"),
        ({"members": 5}, "algorithm.critic is {'members': 5}; accepted: a kind (squared"),
        ({"kind": "squared", "membrs": 5}, "algorithm.critic.membrs: this key does not exist"),
        (5, "algorithm.critic is 5; accepted: a kind (squared"),
    ],
)
def test_what_is_no_kind_is_one_line(critic: Any, message: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as error:
        build_algorithm({"name": "ppo", "critic": critic})
    assert message in str(error.value)


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_a_critic_of_states_cannot_judge_actions(algorithm: Any) -> None:
    with pytest.raises(InputError, match=r"of_states', which judges states, but '.*' has a critic of actions; accepted: squared"):
        algorithm(critic=OfStates()).networks(True)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_language_models_have_one_value(algorithm: Any) -> None:
    algorithm(critic=OfStates()).learners(Setting(acts=True))
    with pytest.raises(InputError, match="the critic of a language model gives one value; accepted: squared"):
        algorithm(critic=OfStates()).learners(Setting())
