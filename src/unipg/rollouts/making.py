"""How the environments of a recipe are made: as objects in turn, as arrays, in processes of their own, or by EnvPool."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unipg.errors import InputError, missing_package, nearest
from unipg.loading import module_named
from unipg.rollouts.blame import blame
from unipg.rollouts.recording import PICTURES, check_drawn
from unipg.rollouts.wrappers import show_own_rewards, take_normalizers, wraps
from unipg.settings import unknown_key

if TYPE_CHECKING:
    import gymnasium

    from unipg.rollouts.environments import EnvironmentRecipe


def made(
    recipe: EnvironmentRecipe, rows: int, *, own_rewards: bool = False, pictures: bool = False
) -> tuple[gymnasium.vector.VectorEnv, bool]:
    """`rows` environments, and whether they had running normalisers of observations, which are off. `own_rewards`: those of rewards too.

    `pictures`: objects that draw themselves, and take a step of their own to reset, so that an episode's last picture can be seen.
    Errors: `InputError` for anything that is wrong with the recipe.
    """
    try:
        import gymnasium
    except ModuleNotFoundError as absent:
        raise missing_package("gymnasium", "control", f"environment '{recipe.id}'") from absent
    if recipe.backend == "envpool":
        if pictures:
            raise InputError(f"environment '{recipe.id}' is EnvPool's, which is not filmed; accepted: environment.backend: gymnasium")
        from unipg.rollouts.pools import Pool

        return Pool(recipe.id, rows, recipe.options), False
    spec = _spec(recipe)
    if recipe.processes is not None and not pictures:
        return _in_processes(recipe, spec, rows, recipe.processes, own_rewards)
    arrays = spec.vector_entry_point is not None and not recipe.wrappers if recipe.vectorized is None else recipe.vectorized
    if pictures:
        check_drawn(recipe.id, _entry(spec.entry_point))
        recipe, arrays = replace(recipe, options={**recipe.options, "render_mode": PICTURES}), False
    if arrays and spec.vector_entry_point is None:
        raise InputError(f"environment.vectorized is true but '{recipe.id}' has no array implementation; accepted: false, null")
    limit = recipe.options.get("max_episode_steps")
    if limit is not None and not (isinstance(limit, int) and (limit >= 1 or (limit == -1 and not arrays))):
        unlimited = "" if arrays else ", or -1 for no limit"
        raise InputError(f"environment.options.max_episode_steps is {limit!r}; accepted: whole numbers of at least 1{unlimited}")
    reset = gymnasium.vector.AutoresetMode.NEXT_STEP if pictures else gymnasium.vector.AutoresetMode.SAME_STEP
    environments: gymnasium.vector.VectorEnv
    with _refusing(recipe, spec.vector_entry_point if arrays else spec.entry_point):
        if arrays:
            environments = gymnasium.make_vec(spec, rows, vectorization_mode="vector_entry_point", **recipe.options)
        else:
            from unipg.rollouts.rows import Rows

            environments = Rows([lambda: _one(recipe, spec)] * rows, reset)
    if environments.metadata.get("autoreset_mode") not in (
        gymnasium.vector.AutoresetMode.NEXT_STEP,
        gymnasium.vector.AutoresetMode.SAME_STEP,
    ):
        raise InputError(f"the array implementation of '{recipe.id}' does not reset itself; set environment.vectorized to false")
    found = take_normalizers(environments, recipe.id)
    if own_rewards:
        show_own_rewards(environments)
    return environments, found


def step_limit(recipe: EnvironmentRecipe) -> int | None:
    """Steps after which an episode is cut by its environment; None for never."""
    import gymnasium

    if recipe.backend == "envpool":
        from unipg.rollouts.pools import LIMIT, UNLIMITED, pool_settings

        own: Any = recipe.options.get(LIMIT, pool_settings(recipe.id, recipe.options)[LIMIT])
        return own if own < UNLIMITED else None
    return recipe.options.get("max_episode_steps", gymnasium.spec(recipe.id.rpartition(":")[2]).max_episode_steps)


def _in_processes(
    recipe: EnvironmentRecipe, spec: Any, rows: int, at_once: int, own_rewards: bool
) -> tuple[gymnasium.vector.VectorEnv, bool]:
    from unipg.rollouts.processes import Processes

    def one() -> tuple[gymnasium.Env, bool]:
        environment = _one(recipe, spec)
        found = take_normalizers(environment, recipe.id)
        if own_rewards:
            show_own_rewards(environment)
        return environment, found

    with _refusing(recipe, spec.entry_point):
        first, found = one()
        first.close()
        return Processes(recipe.id, lambda: one()[0], rows, at_once), found


def _one(recipe: EnvironmentRecipe, spec: Any) -> gymnasium.Env:
    """One environment in its wrappers."""
    import gymnasium

    return functools.reduce(
        lambda environment, wrapper: wrapper(environment), wraps(recipe.wrappers), gymnasium.make(spec, **recipe.options)
    )


def _spec(recipe: EnvironmentRecipe) -> Any:
    import gymnasium

    module, _, name = recipe.id.rpartition(":")
    if module:
        module_named(module, f"environment '{recipe.id}'")
    if name not in gymnasium.registry:
        raise InputError(f"environment '{recipe.id}' does not exist; {nearest(name, gymnasium.registry)}")
    return gymnasium.spec(name)


@contextmanager
def _refusing(recipe: EnvironmentRecipe, entry: Any) -> Iterator[None]:
    """Where environments are made: what goes wrong is an `InputError`. `entry`: what makes one."""
    import gymnasium

    try:
        yield
    except InputError:
        raise
    except (ImportError, TypeError, ValueError, gymnasium.error.Error) as error:
        if isinstance(error, TypeError):
            _check_options(recipe, entry)
        raise InputError(f"environment '{recipe.id}' with options {recipe.options} cannot be made: {first_line(error)}") from error
    except (Exception, SystemExit) as error:
        blame(error, recipe.id, f"which is made with options {recipe.options}")
        raise


def _check_options(recipe: EnvironmentRecipe, entry: Any) -> None:
    """Refuses an option that the environment has no argument for; where its arguments cannot be read, nothing is known."""
    try:
        parameters = inspect.signature(_entry(entry)).parameters
    except (TypeError, ValueError):
        return
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in recipe.options:
            if name not in parameters:
                raise unknown_key(f"environment.options.{name}", [p for p in parameters if p not in ("self", "num_envs")])


def _entry(entry: Any) -> Any:
    """What makes an environment, of its name or itself."""
    from gymnasium.envs.registration import load_env_creator

    return load_env_creator(entry) if isinstance(entry, str) else entry


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
