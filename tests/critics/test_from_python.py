"""A critic as people write it in Python: by its kind, as a mapping, or the class itself."""

from __future__ import annotations

import dataclasses

import pytest

from unipg import InputError
from unipg.algorithms import registered
from unipg.critics.kinds import Squared, critic_of

PPO = registered()["ppo"]


def test_every_way_of_saying_it_is_one_algorithm() -> None:
    ggd = {"kind": "generalized_gaussian", "members": 5}
    assert PPO(critic=ggd) == PPO(critic=critic_of(ggd))
    assert PPO(critic="squared") == PPO(critic=Squared()) == PPO()
    again = PPO(**dataclasses.asdict(PPO(critic=ggd)))
    assert again == PPO(critic=ggd)
    assert dataclasses.replace(again, clip_low=0.1).critic == again.critic


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("squard", "algorithm.critic.kind 'squard' does not exist; did you mean 'squared'?"),
        ({"members": 5}, "algorithm.critic is {'members': 5}; accepted: a kind"),
        (3, "algorithm.critic is 3; accepted: a kind"),
        ({"kind": "squared", "members": 5}, "Squared: 'members' does not exist"),
    ],
)
def test_what_is_no_critic(given, said) -> None:
    with pytest.raises(InputError) as found:
        PPO(critic=given)
    assert str(found.value).startswith(said)
