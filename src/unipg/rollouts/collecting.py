"""Whole episodes that are kept: how data sets for offline learning are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.blame import blame
from unipg.rollouts.environments import EVALUATION_STEPS, SIDE_BY_SIDE, EnvironmentRecipe
from unipg.rollouts.making import made, step_limit
from unipg.rollouts.playing import at_once
from unipg.rollouts.stepping import Episodes, Stepper
from unipg.seeding import derived_seed, generator

Array = np.ndarray
_SEEDS = 2**31
_BLOCK = 256
"""Steps whose random numbers are drawn at once."""


def with_limit(recipe: EnvironmentRecipe) -> EnvironmentRecipe:
    """The same environments, whose episodes end: where nothing else limits them, after `evaluation_steps` or 10,000 steps."""
    own = step_limit(recipe)
    if (own is not None and own >= 1) or recipe.backend == "envpool":
        return recipe
    most = recipe.evaluation_steps or EVALUATION_STEPS
    return replace(recipe, vectorized=False, options={**recipe.options, "max_episode_steps": most})


def bystander(recipe: EnvironmentRecipe, seed: int) -> ActorCritic:
    """An untrained controller for the spaces of an environment, by which random actions are drawn and observations stored."""
    experience = replace(recipe, count=1, processes=None).build(seed)
    return ActorCriticRecipe([1]).build(experience.observation_space, experience.action_space, seed)


def collect_episodes(
    recipe: EnvironmentRecipe,
    policy: ActorCritic,
    episodes: int,
    seed: int,
    *,
    uniform: bool = False,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Array]:
    """The transitions [N,…] of `episodes` whole episodes, one episode after the other, in the columns of `replay.transition_columns`.

    Actions are drawn as in training, or `uniform` from their whole space, and kept in the environment's units as it was given them; rewards
    are its own, also where it is wrapped by NormalizeReward. The episodes are shared out among the environments beforehand: the first to
    finish would be the short ones. `progress` is told the finished share; what it raises ends the collection.

    Errors: `InputError` for a policy that draws no actions, for numbers of the environment that are not finite.
    """
    if episodes < 1:
        raise InputError(f"episodes is {episodes}; accepted: 1 or more")
    if not uniform:
        policy.check_draws("actions are to be drawn as in training")
    rows = min(episodes, SIDE_BY_SIDE)
    left = np.full(rows, episodes // rows)
    left[: episodes % rows] += 1
    source = generator(seed, "collect", "act")
    act, give = policy.actor(), policy.outward()
    draw = policy.actions.random if uniform else policy.noise
    kept: list[dict[str, Array]] = []
    told, done = progress or (lambda _: None), 0

    with at_once(lambda: told(done / episodes)):
        environments, _ = made(with_limit(recipe), rows, own_rewards=True)
        try:
            first = policy.flatten(environments.reset(seed=derived_seed(seed, "collect") % _SEEDS)[0])
            stepper = Stepper(environments, recipe.id, policy, first, Episodes(rows, 1))
            step = 0
            while left.any():
                if step % _BLOCK == 0:
                    random = draw(_BLOCK, rows, source)
                action = random[step % _BLOCK] if uniform else act(stepper.observation, random[step % _BLOCK])
                step += 1
                given = give(stepper.observation, action)
                found = stepper.step(given)
                at = np.arange(rows) if found.live is None else found.live.nonzero()[0]
                wanted = left[at] > 0
                taken = (given.reshape(rows, -1) if given.ndim > 1 else given)[at]
                columns = {"observation": found.observation, "next_observation": found.next_observation, "action": taken}
                columns |= {name: getattr(found, name) for name in ("reward", "terminated", "truncated", "episode")}
                kept.append({name: values[wanted] for name, values in columns.items()})
                ended = at[wanted & (found.terminated | found.truncated)]
                left[ended] -= 1
                done += len(ended)
                told(done / episodes)
        except (Exception, SystemExit) as error:
            blame(error, recipe.id, "while its episodes are kept")
            raise
        finally:
            environments.close()
    columns = {name: np.concatenate([each[name] for each in kept]) for name in kept[0]}
    order = np.argsort(columns["episode"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    columns["episode"] = np.unique(columns["episode"], return_inverse=True)[1].astype(np.int64)
    columns["reward"] = columns["reward"].astype(np.float32)
    return columns
