"""Minari's datasets, local and remote by their name: episodes of T + 1 observations and T steps."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unipg.errors import InputError, missing_package, one_line
from unipg.hub import impatient
from unipg.replay.cards import Episodes, References, environment_of
from unipg.replay.formats.base import Source, chosen, flattener, space_told
from unipg.replay.pieces import Piece
from unipg.replay.tables import Array
from unipg.replay.transitions import Transitions

PREFIX = "minari:"
"""How the name of one of Minari's datasets begins: minari:pendulum/mix-v0."""

EPISODES = 256
"""That are written at a time."""


def _library() -> Any:
    try:
        import h5py  # noqa: F401  (what it keeps its episodes in)
        import minari
    except ModuleNotFoundError as absent:
        raise missing_package("minari", "offline", "a dataset of Minari's") from absent
    return minari


def read(name: str | Path, entries: Sequence[str] | None = None) -> tuple[Source, Path]:
    """Of a name, which is downloaded where it is not here, or of a folder; and the folder that it is in.

    `entries`: of a Dict of observations; by default all.

    A Dict's entries follow each other in the sorted order of their names (desired_goal among them), as controllers read them.
    """
    minari = _library()
    from minari.storage.datasets_root_dir import get_dataset_path

    why = ""
    try:
        if isinstance(name, Path):
            found = minari.MinariDataset(name / "data")
        else:
            with impatient(name, asks=not Path(get_dataset_path(name)).exists()) as why:
                found = minari.load_dataset(name, download=True)
    except Exception as error:  # of whichever of the libraries that it downloads by
        reason = f"it is not here, and the hub cannot be reached ({why})" if why else one_line(error)
        raise InputError(f"Minari cannot load it: {reason}") from error
    space = chosen(found.observation_space, entries, "its observations")
    flatten, order = flattener(space, "its observations")
    environment: dict[str, Any] = {"action": space_told(found.action_space)}
    if found.spec.env_spec is not None:
        environment |= {"id": found.spec.env_spec.id, "horizon": found.spec.env_spec.max_episode_steps}
    card: dict[str, Any] = {"name": found.spec.dataset_id, "entries": order, "environment": environment}
    told = found.storage.metadata
    if told.get("ref_max_score") is not None and told.get("ref_min_score") is not None:
        limits = {"min": float(told["ref_min_score"]), "max": float(told["ref_max_score"])}
        card["references"] = {
            **limits,
            "horizon": environment.get("horizon"),
            "label": "D4RL-ref" if found.spec.namespace == "D4RL" else "Minari",
        }
    if "unipg" in told:
        card = json.loads(told["unipg"])
    return Source(_pieces(found, flatten, entries), int(found.total_steps), card), Path(found.storage.data_path)


def _pieces(found: Any, flatten: Any, entries: Sequence[str] | None) -> Iterator[Piece]:
    for number, episode in enumerate(found.iterate_episodes()):
        steps = len(episode.actions)
        observations = episode.observations
        if entries is not None:
            observations = {name: observations[name] for name in entries}
        seen = flatten(observations)
        if not len(seen) - 1 == steps == len(episode.rewards) == len(episode.terminations) == len(episode.truncations):
            raise InputError(
                f"episode {episode.id} has {len(seen)} observations, {steps} actions and {len(episode.rewards)} rewards; accepted: one "
                "observation more than actions, and as many of all others"
            )
        if not isinstance(episode.actions, np.ndarray):
            raise InputError(f"its actions are {type(episode.actions).__name__}; accepted: arrays")
        columns = {"observation": seen[:-1], "next_observation": seen[1:], "action": _flat(episode.actions), "reward": episode.rewards}
        flags = {"terminated": episode.terminations, "truncated": episode.truncations}
        yield {**columns, **flags, "episode": np.full(steps, number)}


def check_free(name: str) -> None:
    """Refuses a name that Minari has a dataset by already, and one that it does not take."""
    _library()
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        parse_dataset_id(name)
    except Exception as error:
        raise InputError(f"minari:{name}: Minari does not take the name; accepted: NAMESPACE/NAME-v0") from error
    if Path(get_dataset_path(name)).exists():
        raise InputError(f"minari:{name} exists: nothing is written over; accepted: another name or version")


def write(data: Transitions, name: str) -> None:
    """A new dataset of Minari's, whole or not at all: observations as one vector, the card in its metadata, references as Minari's own.

    Errors: `InputError` for rows that are not whole stretches of episodes: Minari keeps T + 1 observations of T steps.
    """
    minari = _library()
    from gymnasium import spaces
    from minari.storage.datasets_root_dir import get_dataset_path

    seen = data.column("observation")
    image = seen.dtype == np.uint8
    observations = spaces.Box(0, 255, seen.shape[1:], np.uint8) if image else spaces.Box(-np.inf, np.inf, seen.shape[1:], np.float32)
    told: dict[str, Any] = {"unipg": json.dumps(data.card)}
    if references := References.of(data.card):
        told |= {"ref_min_score": references.min, "ref_max_score": references.max}
    found = None
    try:
        episodes = _episodes(data)
        while some := list(itertools.islice(episodes, EPISODES)):
            if found is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of authors and permanent links, which nobody here knows
                    found = minari.create_dataset_from_buffers(
                        name, some, _environment(data), observation_space=observations, action_space=_actions(data),
                        algorithm_name=data.card.get("mix"), description=data.card.get("name"), jpeg_encoding=False,
                    )  # fmt: skip
            else:
                found.update_dataset_from_buffer(some)
        assert found is not None
        found.storage.update_metadata(told)
    except BaseException:
        shutil.rmtree(get_dataset_path(name), ignore_errors=True)
        raise


def _environment(data: Transitions) -> str | None:
    """The name of the environment, where Gymnasium knows it."""
    import gymnasium

    name = str(environment_of(data.card).get("id"))
    return name if name in gymnasium.registry else None


def _actions(data: Transitions) -> Any:
    """The space of the actions, as the card tells, or as wide as they are."""
    from gymnasium import spaces

    action = data.column("action")
    told = environment_of(data.card).get("action", {})
    if action.dtype.kind == "f":
        bounds = [
            np.array([b if b is not None else sign * np.inf for b in told.get(side, [None] * action.shape[1])], np.float32)
            for side, sign in (("low", -1), ("high", 1))
        ]
        return spaces.Box(bounds[0], bounds[1])
    least = int(told.get("start", action.min()))
    if action.ndim == 1:
        return spaces.Discrete(int(told.get("n", action.max() + 1 - least)), start=least)
    return spaces.MultiDiscrete(action.max(0) + 1)


def _episodes(data: Transitions) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    found = Episodes.of(data)
    for number, (start, length) in enumerate(zip(found.start.tolist(), found.length.tolist(), strict=True)):
        rows = {column.name: data.column(column.name)[start : start + length] for column in data.columns}
        if not np.array_equal(rows["next_observation"][:-1], rows["observation"][1:]):
            raise InputError(f"the rows of episode {number} (row {start} on) do not follow each other; accepted: whole episodes")
        ended = rows["truncated"].copy()
        ended[-1] |= not rows["terminated"][-1]
        yield EpisodeBuffer(
            id=number,
            observations=np.concatenate([rows["observation"], rows["next_observation"][-1:]]),
            actions=rows["action"],
            rewards=rows["reward"],
            terminations=rows["terminated"],
            truncations=ended,
        )


def _flat(actions: Array) -> Array:
    return actions.reshape(len(actions), -1) if actions.ndim > 1 else actions
