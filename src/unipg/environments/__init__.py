"""Worlds that the package brings itself, registered with Gymnasium: `unipg.environments:unipg/Bandit-v0` in a recipe.

Belongs here: environments, and experts for them. Does not belong here: how they are stepped and what is recorded (`rollouts/`).
"""

from gymnasium.envs.registration import register

register(id="unipg/Bandit-v0", entry_point="unipg.environments.bandit:Bandit")

register(id="unipg/FourRooms-v0", entry_point="unipg.environments.four_rooms:FourRooms")
"""Two equally short ways: on which sets of episodes that differ can be told from ones that do not."""

register(
    id="unipg/LineWorld-v0",
    entry_point="unipg.environments.line_world:LineWorld",
    vector_entry_point="unipg.environments.line_world:LineWorlds",
    max_episode_steps=40,
)
"""A line with a stretch in which a data set has only steps the wrong way (`line_world.collect`)."""

register(
    id="unipg/Road-v0",
    entry_point="unipg.environments.road:RoadWorld",
    vector_entry_point="unipg.environments.road:RoadWorlds",
    max_episode_steps=60,
)
"""A quarter of a circle with a ditch on either side; `road.collect` has the driver's episodes."""

register(
    id="unipg/Lock-v0",
    entry_point="unipg.environments.lock:LockWorld",
    vector_entry_point="unipg.environments.lock:LockWorlds",
)
"""A combination lock that only its last step pays; `lock.collect` has episodes of one who knows it but for lapses."""

register(id="unipg/PointMaze-v0", entry_point="unipg.environments.point_maze:PointMaze", max_episode_steps=300)
"""Gymnasium-Robotics' point mazes (`pip install 'unipg[robotics]'`); `point_maze.collect` has episodes of one who knows the way."""
