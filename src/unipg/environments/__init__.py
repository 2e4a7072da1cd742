"""Worlds that the package brings itself, registered with Gymnasium: `unipg.environments:unipg/Bandit-v0` in a recipe.

Belongs here: environments, and experts for them. Does not belong here: how they are stepped and what is recorded (`rollouts/`).
"""

from gymnasium.envs.registration import register

register(id="unipg/Bandit-v0", entry_point="unipg.environments.bandit:Bandit")

register(id="unipg/FourRooms-v0", entry_point="unipg.environments.four_rooms:FourRooms")
"""Two equally short ways: on which sets of episodes that differ can be told from ones that do not."""
