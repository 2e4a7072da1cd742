"""Datasets made here, from a recipe or a run: what `unipg data collect` does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unipg.errors import InputError, nearest
from unipg.networks.encoders import observation_of
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.spaces import actions_of, described
from unipg.replay import Transitions
from unipg.replay.cards import References, facts
from unipg.replay.formats import run as runs
from unipg.replay.pieces import Settled
from unipg.rollouts.collecting import bystander, collect_episodes, with_limit
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.rollouts.making import step_limit
from unipg.seeding import derived_seed
from unipg.training.folder import EVALUATED
from unipg.training.observer import Observer
from unipg.training.observers import measured_returns
from unipg.training.recipe import Recipe, load_recipe
from unipg.training.record import versions
from unipg.training.run import run_recipe

PLAYED = ("random", "medium", "expert")
"""Behaviours whose episodes are played."""
MIXES = (*PLAYED, "medium-replay", "medium-expert")
REFERENCE_EPISODES = 100
"""Episodes that each reference return is the mean of."""
Told = Callable[[str, float], None]
"""Told what is being done, and which share of it is finished."""


def collect_dataset(
    run: str | Path,
    *,
    mix: str,
    episodes: int | None = None,
    seed: int = 0,
    medium: float = 1 / 3,
    references: References | None = None,
    progress: Told | None = None,
) -> Transitions:
    """A dataset of the environment of a run, by its folder (`trained_run`), with its card.

    `mix`: random (uniform actions), medium (actions drawn from the policy whose evaluation came nearest to `medium` of the way from random
    to the last), expert (the last policy), medium-replay (everything in the replay buffer until medium was reached), medium-expert (as many
    transitions of both); or several with episodes of their own, `random=25,medium=25,expert=10`. `episodes`: of each behaviour that is
    played; default 100. `references`: of scores; by default the mean returns of 100 random and of 100 expert episodes.

    `seed` decides start states and actions, which are others than those of the run's training and evaluations. Errors: `InputError` for a
    mix that does not exist, and for what the run did not keep.
    """
    behaviours = Behaviours(Path(run), seed, medium, progress or (lambda *_: None))
    parts = _parts(mix, 100 if episodes is None else episodes, given=episodes is not None)
    horizon = step_limit(with_limit(behaviours.environment))
    measured = behaviours.references() if references is None else dataclasses.replace(references, horizon=horizon)
    made = [behaviours.part(name, count) for name, count in parts]
    if mix == "medium-expert":
        least = min(len(part.rows["reward"]) for part in made)
        made = [part.cut(least) for part in made]
    rows = _joined([part.rows for part in made])
    data = Transitions.of(rows)
    told = facts(data)
    card = {
        "name": f"{behaviours.environment.id} {mix}",
        "mix": mix,
        **told,
        "score": {"mean": measured.score(told["returns"]["mean"]), "label": measured.label} if told["returns"] else None,
        "references": dataclasses.asdict(measured),
        "environment": environment_told(behaviours.environment),
        "parts": [part.card for part in made],
        "seed": seed,
        "versions": versions(),
    }
    return Transitions.of(rows, card)


@dataclass(frozen=True)
class Part:
    """What one behaviour did: transitions [N,…] by column, and what is told of them."""

    rows: dict[str, np.ndarray]
    card: dict[str, Any]

    def cut(self, rows: int) -> Part:
        """The first so many transitions; an episode that is cut off by it is truncated there."""
        kept = {name: values[:rows].copy() for name, values in self.rows.items()}
        if rows < len(self.rows["reward"]):
            kept["truncated"][-1] = not kept["terminated"][-1]
        return Part(kept, self.card | {"transitions": rows})


class Behaviours:
    """Whoever acts in the environment of a run: nobody, and its policies."""

    def __init__(self, folder: Path, seed: int, medium: float, progress: Told) -> None:
        if not 0 < medium < 1:
            raise InputError(f"medium is {medium}; accepted: a share of the way from random to expert, between 0 and 1")
        recipe = load_recipe(folder / "recipe.yaml")
        assert recipe.environment is not None
        self.folder, self.seed, self.medium, self.progress = folder, seed, medium, progress
        self.environment: EnvironmentRecipe = recipe.environment
        self.nobody = bystander(self.environment, seed)
        self._random: float | None = None

    def references(self) -> References:
        """Mean returns of random episodes, and of the last policy's."""
        found = []
        for name in ("random", "expert"):
            rows = self._played(name, REFERENCE_EPISODES, "reference", f"{name} reference")
            found.append(float(facts(Transitions.of(rows))["returns"]["mean"]))
        if found[1] <= found[0]:
            raise InputError(f"the last policy of '{self.folder}' returns {found[1]:.4g}, random actions {found[0]:.4g}: it is no expert")
        return References(found[0], found[1], step_limit(with_limit(self.environment)))

    def part(self, name: str, episodes: int) -> Part:
        """`episodes` episodes of a behaviour that is played; or what the replay buffer holds."""
        if name == "medium-replay":
            return self._replayed()
        rows = self._played(name, episodes, "data", name)
        told = facts(Transitions.of(rows))
        card = {"behaviour": name, **{key: told[key] for key in ("transitions", "episodes", "returns")}}
        return Part(rows, card | self._checkpoint(name))

    def _played(self, name: str, episodes: int, purpose: str, title: str) -> dict[str, np.ndarray]:
        seed = derived_seed(self.seed, purpose, name)
        policy = self.nobody if name == "random" else self._policy(self._place(name))
        return collect_episodes(
            self.environment, policy, episodes, seed, uniform=name == "random", progress=lambda done: self.progress(title, done)
        )

    def _policy(self, place: Path) -> ActorCritic:
        experience = dataclasses.replace(self.environment, count=1, processes=None).build(self.seed)
        spaces = experience.observation_space, experience.action_space
        return ActorCriticRecipe(model=str(place)).build(*spaces, self.seed, normalized=experience.normalized)

    def _place(self, name: str) -> Path:
        return self.folder / "model" if name == "expert" else self.folder / EVALUATED / str(self._medium()["iteration"])

    def _checkpoint(self, name: str) -> dict[str, Any]:
        """Of which moment of the run a behaviour is."""
        if name == "random":
            return {}
        at = self._medium() if name.startswith("medium") else measured_returns(self.folder)[-1]
        return {"checkpoint": {"iteration": at["iteration"], "step": self._steps(at["iteration"]), "measured return": at["return"]}}

    def _medium(self) -> dict[str, Any]:
        """The evaluation that came nearest to the wanted share of the way, of those whose policies are kept."""
        measured = measured_returns(self.folder)
        kept = [each for each in measured if (self.folder / EVALUATED / str(each["iteration"])).is_dir()]
        if len(kept) < 3:
            raise InputError(
                f"the run in '{self.folder}' keeps {len(kept)} policies of its evaluations, and medium is one between the first and the "
                "last; accepted: a run with training.keep_evaluated: true and training.evaluate_every: 1 or more"
            )
        if self._random is None:
            rows = self._played("random", REFERENCE_EPISODES, "reference", "random reference")
            self._random = float(facts(Transitions.of(rows))["returns"]["mean"])
        wanted = self._random + self.medium * (measured[-1]["return"] - self._random)
        return min(kept[1:-1], key=lambda each: abs(each["return"] - wanted))

    def _steps(self, iteration: int) -> int:
        """Of environments, in so many iterations."""
        return iteration * self.environment.steps * self.environment.count

    def _replayed(self) -> Part:
        held, at = runs.read(self.folder), self._medium()
        steps = self._steps(at["iteration"])
        if (gone := held.card["gone"]) or steps > held.rows:
            raise InputError(
                f"the replay buffer of '{self.folder}' holds {held.rows} transitions, and {gone} before them are gone: not all of the "
                f"{steps} until medium was reached; accepted: a run with replay.capacity of at least its steps"
            )
        data = Transitions.settled(Settled(runs.read(self.folder, steps).pieces)).check_finite()
        rows, told = {column.name: data.column(column.name) for column in data.columns}, facts(data)
        card = {"behaviour": "medium-replay", **{key: told[key] for key in ("transitions", "episodes", "returns")}}
        return Part(rows, card | self._checkpoint("medium-replay"))


def environment_told(recipe: EnvironmentRecipe) -> dict[str, Any]:
    """An environment in plain values: what a card tells, and what `replay.checks` compares rows with."""
    experience = dataclasses.replace(recipe, count=1, processes=None).build(0)
    return {
        "id": recipe.id,
        "options": recipe.options,
        "wrappers": [str(each) for each in recipe.wrappers],
        "horizon": step_limit(with_limit(recipe)),
        "observation": observation_of(experience.observation_space),
        "action": described(actions_of(experience.action_space)),
    }


def references_from(text: str) -> References:
    """`MIN,MAX`."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise InputError(f"references are '{text}'; accepted: two numbers, MIN,MAX") from None
    return References(low, high)


def trained_run(source: str, observer: Observer | None = None) -> Path:
    """A run folder; or that of a recipe, which is trained now where it has not been, with the policies of its evaluations kept.

    Errors: `InputError` for what has no environment, for a run that is not finished, and as `run_recipe`.
    """
    place = Path(source)
    if place.is_dir():
        if not (place / "recipe.yaml").is_file():
            raise InputError(f"'{source}' holds no run (there is no recipe.yaml); accepted: a run folder, or a recipe")
        recipe, folder = load_recipe(place / "recipe.yaml"), place
    else:
        recipe = load_recipe(source)
        folder = Path(recipe.output)
    if recipe.environment is None:
        raise InputError(f"'{source}' has no environment to collect from; accepted: a control recipe or its run")
    if not place.is_dir() and not (folder / "model").is_dir():
        run_recipe(_keeping(recipe), observer=observer, resume=(folder / "recipe.yaml").is_file())
    if not (folder / "model").is_dir():
        raise InputError(f"the run in '{folder}' has no model yet; accepted: a finished run")
    return folder


def _keeping(recipe: Recipe) -> Recipe:
    every = recipe.training.evaluate_every or max(1, recipe.training.iterations // 20)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, keep_evaluated=True, evaluate_every=every))


def _parts(mix: str, episodes: int, given: bool) -> list[tuple[str, int]]:
    """Behaviours of a mix and their numbers of episodes."""
    if mix == "medium-expert":
        return [("medium", episodes), ("expert", episodes)]
    if mix in MIXES:
        return [(mix, episodes)]
    found = [re.fullmatch(r"\s*([a-z-]+)=(-?\d+)\s*", part) for part in mix.split(",")]
    if not all(found) or "=" not in mix:
        raise InputError(f"mix is '{mix}'; {nearest(mix, MIXES)}; or several, random=25,medium=25,expert=10")
    if given:
        raise InputError("episodes is given, but the mix has its own numbers of episodes; accepted: one of them")
    parts = [(each[1], int(each[2])) for each in found if each]
    for name, count in parts:
        if name not in PLAYED:
            raise InputError(f"mix has '{name}'; {nearest(name, PLAYED)}")
        if count < 1:
            raise InputError(f"mix has '{name}={count}'; accepted: 1 episode or more of each")
    return parts


def _joined(parts: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Rows of several parts, one behind the other, with episodes numbered through."""
    begun, numbered = 0, []
    for rows in parts:
        episode = np.unique(rows["episode"], return_inverse=True)[1] + begun
        begun = int(episode.max()) + 1
        numbered.append({**rows, "episode": episode})
    return {name: np.concatenate([rows[name] for rows in numbered]) for name in numbered[0]}
