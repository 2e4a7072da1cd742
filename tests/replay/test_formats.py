"""The same rows from whatever they lie in; and one line for what they cannot be read from."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from unipg.errors import InputError
from unipg.replay import Ring, Transitions, formats, open_data, pieces, save_data, transition_columns
from unipg.replay.cards import Episodes, References, facts
from unipg.replay.formats import cache_folder

NAMES = ("observation", "next_observation", "action", "reward", "terminated", "truncated", "episode")
D4RL = {
    "observation": "observations", "next_observation": "next_observations", "action": "actions", "reward": "rewards",
    "terminated": "terminals", "truncated": "timeouts",
}  # fmt: skip
HORIZON = 7


def walk(episodes: int = 9, seed: int = 0) -> dict[str, np.ndarray]:
    """Episodes of a random walk: the odd ones terminate before the horizon, the even ones are cut there."""
    draw = np.random.default_rng(seed)
    parts: list[dict[str, np.ndarray]] = []
    for number in range(episodes):
        length = 1 + number % HORIZON if number % 2 else HORIZON
        path = draw.standard_normal((length + 1, 3)).astype(np.float32)
        last = np.arange(length) == length - 1
        ends = {"terminated": last & bool(number % 2), "truncated": last & (number % 2 == 0), "episode": np.full(length, number)}
        action = draw.uniform(-2, 2, (length, 2)).astype(np.float32)
        parts.append({"observation": path[:-1], "next_observation": path[1:], "action": action, "reward": path[1:, 0], **ends})
    return {name: np.concatenate([part[name] for part in parts]) for name in NAMES}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pieces, "PIECE", 16)


def hdf5(path: Path, rows: dict[str, np.ndarray], but: tuple[str, ...] = ()) -> Path:
    with h5py.File(path, "w") as file:
        for name, theirs in D4RL.items():
            if name not in but:
                file[theirs] = rows[name]
        file["infos/qpos"] = rows["observation"]
        file["metadata/algorithm"] = "SAC"
    return path


def robomimic(path: Path, rows: dict[str, np.ndarray], successors: bool = True) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        group.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1})
        for number in reversed(range(rows["episode"].max() + 1)):  # as text demo_10 comes before demo_2
            at = rows["episode"] == number
            demo = group.create_group(f"demo_{number}")
            demo["actions"], demo["rewards"], demo["dones"] = rows["action"][at], rows["reward"][at], rows["terminated"][at].astype(int)
            for where, name in (("obs", "observation"), ("next_obs", "next_observation"))[: 1 + successors]:
                demo[f"{where}/object"], demo[f"{where}/eef_pos"] = rows[name][at][:, 1:], rows[name][at][:, :1]
                demo[f"{where}/agentview_image"] = np.zeros((at.sum(), 8, 8, 3), np.uint8)
    return path


def hdf5_of(path: Path, columns: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return path


def parquet(path: Path, rows: dict[str, np.ndarray]) -> Path:
    columns = {name: pa.array(list(values) if values.ndim > 1 else values) for name, values in rows.items()}
    pyarrow.parquet.write_table(pa.table({**columns, "infos/comment": pa.array(["x"] * len(rows["reward"]))}), path, row_group_size=11)
    return path


def as_npz(path: Path, rows: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(path, **rows)  # type: ignore[arg-type]
    return path


def as_folder(path: Path, rows: dict[str, np.ndarray]) -> Path:
    Transitions.of(rows).save(path.with_suffix(""))
    return path.with_suffix("")


def as_minari(path: Path, rows: dict[str, np.ndarray]) -> str:
    save_data(Transitions.of(rows), "minari:walk/all-v0")
    return "minari:walk/all-v0"


WHOLE: dict[str, tuple[str, Callable[..., Any]]] = {
    "npz": ("data.npz", as_npz),
    "npz, D4RL's names": ("data.npz", lambda path, rows: as_npz(path, {D4RL.get(k, k): v for k, v in rows.items() if k != "episode"})),
    "hdf5": ("data.hdf5", hdf5),
    "robomimic": ("data.h5", robomimic),
    "parquet": ("data.parquet", parquet),
    "folder": ("data.folder", as_folder),
    "minari": ("", as_minari),
}


@pytest.mark.parametrize("mapped", [False, True], ids=["in memory", "mapped"])
@pytest.mark.parametrize("kind", WHOLE)
def test_the_same_rows_come_from_everywhere(kind: str, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if mapped:
        monkeypatch.setattr(formats, "SMALL", 0)
    rows = walk(23)
    name, write = WHOLE[kind]
    told: list[float] = []
    data = open_data(write(tmp_path / name, rows), progress=told.append)
    for name in NAMES:
        np.testing.assert_array_equal(data.column(name), rows[name])
    assert told == sorted(told)
    assert kind == "folder" or told[-1] == 1
    assert mapped <= (isinstance(data.column("reward").base, np.memmap) or kind == "folder")


def test_a_conversion_is_made_once_and_again_for_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "SMALL", 0)
    path = hdf5(tmp_path / "data.hdf5", walk(9))
    first = facts(open_data(path))
    assert len(list(cache_folder().iterdir())) == 1
    told: list[float] = []
    assert facts(open_data(path, progress=told.append)) == first
    assert told == []  # nothing is read again
    hdf5(path, walk(9, seed=1))
    assert facts(open_data(path))["sha256"] != first["sha256"]


def test_an_interrupted_conversion_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "SMALL", 0)
    path = hdf5(tmp_path / "data.hdf5", walk(9))

    def stop(done: float) -> None:
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_data(path, progress=stop)
    assert list(cache_folder().iterdir()) == []
    name = f"data-{formats._known([path], None)[1]}"
    (cache_folder() / f"{name}.999999999.writing").mkdir()  # what a kill leaves
    (cache_folder() / f"{name}.{os.getppid()}.writing").mkdir()  # another process that is at it
    assert len(open_data(path)) == len(walk(9)["reward"])
    assert {place.name for place in cache_folder().iterdir()} == {name, f"{name}.{os.getppid()}.writing"}


def test_rows_behind_a_time_out_are_of_another_episode(tmp_path: Path) -> None:
    """D4RL without next observations: the last row of what a time-out cuts is dropped, and counted; pairs are real."""
    rows = walk(23)
    data = open_data(hdf5(tmp_path / "data.hdf5", rows, but=("next_observation",)))
    cut = rows["truncated"].sum()
    assert data.card["left_out"] == cut == 12
    kept = ~rows["truncated"]
    for name in ("observation", "action", "reward", "terminated"):
        np.testing.assert_array_equal(data.column(name), rows[name][kept])
    real = ~data.column("terminated")
    np.testing.assert_array_equal(data.column("next_observation")[real], rows["next_observation"][kept][real])


def test_a_file_without_time_outs_shows_them_where_observations_do_not_follow(tmp_path: Path) -> None:
    rows = walk(23)
    data = open_data(hdf5(tmp_path / "data.hdf5", rows, but=("truncated",)))
    np.testing.assert_array_equal(data.column("truncated")[:-1], rows["truncated"][:-1])
    np.testing.assert_array_equal(data.column("episode"), rows["episode"])


@pytest.mark.parametrize("write", [as_npz, hdf5_of, parquet], ids=["npz", "hdf5", "parquet"])
def test_dones_of_a_replay_buffer_are_ends_of_either_kind(write: Callable[..., Path], tmp_path: Path) -> None:
    """Both flags at a time-out, as Stable-Baselines3 keeps them: terminal is what is done and no time-out."""
    rows = walk(23)
    kept = {name: values for name, values in rows.items() if name != "terminated"}
    kept["dones"] = (rows["terminated"] | rows["truncated"]).astype(np.float32)
    data = open_data(write(tmp_path / f"data.{'hdf5' if write is hdf5_of else 'npz' if write is as_npz else 'parquet'}", kept))
    for name in ("terminated", "truncated"):
        np.testing.assert_array_equal(data.column(name), rows[name])


@pytest.mark.parametrize("write", [as_npz, hdf5_of, parquet], ids=["npz", "hdf5", "parquet"])
def test_a_column_is_known_or_refused_in_every_format(write: Callable[..., Path], tmp_path: Path) -> None:
    """A time-out flag that is misspelt would make one episode of all; infos and metadata are left alone."""
    rows = walk(23)
    path = tmp_path / f"data.{'hdf5' if write is hdf5_of else 'npz' if write is as_npz else 'parquet'}"
    flags = {"terminated": "terminations", "truncated": "truncations"}  # Minari's
    kept = {flags.get(name, name): values for name, values in rows.items() if name != "episode"}
    data = open_data(write(path, {**kept, "infos/qpos": rows["observation"], "metadata/step": rows["reward"]}))
    for name in NAMES:
        np.testing.assert_array_equal(data.column(name), rows[name])
    kept["episode_terminals"] = (rows["terminated"] | kept.pop("truncations")).astype(np.float32)  # d3rlpy's: of either kind
    np.testing.assert_array_equal(open_data(write(path, kept)).column("truncated"), rows["truncated"])
    kept["timeout"] = kept.pop("episode_terminals")
    with pytest.raises(InputError, match=r"unknown column 'timeout' of a dataset; did you mean 'timeouts'.*infos/… and metadata/…"):
        open_data(write(path, kept))


@pytest.mark.parametrize("write", [as_npz, hdf5_of], ids=["npz", "hdf5"])
def test_what_is_no_column_by_its_length_is_left_alone(write: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / ("data.hdf5" if write is hdf5_of else "data.npz")
    assert len(open_data(write(path, {**walk(), "version": np.array(1.5), "frames": np.zeros(3)}))) == len(walk()["reward"])


def test_arrays_that_are_stored_column_by_column_are_read(tmp_path: Path) -> None:
    rows = walk(23)
    turned = {name: np.asfortranarray(values) if values.ndim > 1 else values for name, values in rows.items()}
    data = open_data(as_npz(tmp_path / "data.npz", turned))
    for name in NAMES:
        np.testing.assert_array_equal(data.column(name), rows[name])


def test_robomimics_numbers_without_a_width_are_read_and_images_told_of(tmp_path: Path) -> None:
    rows = walk(12)
    path = robomimic(tmp_path / "data.hdf5", rows)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for where in ("obs", "next_obs"):
                flat = demo[f"{where}/eef_pos"][:, 0]
                del demo[f"{where}/eef_pos"]
                demo[f"{where}/eef_pos"] = flat
        empty = file["data"].create_group("demo_99")  # of a recording that was broken off
        for name, shape in (("actions", (0, 2)), ("rewards", (0,)), ("obs/object", (0, 2)), ("obs/eef_pos", (0,))):
            empty[name] = np.zeros(shape)
        empty["next_obs"] = empty["obs"]
    data = open_data(path)
    np.testing.assert_array_equal(data.column("observation"), rows["observation"])
    np.testing.assert_array_equal(data.column("next_observation"), rows["next_observation"])
    assert data.card["entries"] == [["eef_pos", [1]], ["object", [2]]]
    assert data.card["unread"] == {"agentview_image": [8, 8, 3]}


def test_robomimics_demonstrations_need_no_successors_and_entries_can_be_chosen(tmp_path: Path) -> None:
    rows = walk(12)
    data = open_data(robomimic(tmp_path / "data.hdf5", rows, successors=False))
    assert data.card["left_out"] == 6
    assert data.card["environment"] == {"id": "Lift"}
    assert data.card["entries"] == [["eef_pos", [1]], ["object", [2]]]
    one = open_data(robomimic(tmp_path / "one.hdf5", rows), entries=["object"])
    np.testing.assert_array_equal(one.column("observation"), rows["observation"][:, 1:])
    with pytest.raises(InputError, match="no vector 'objct'; did you mean 'object'"):
        open_data(tmp_path / "one.hdf5", entries=["objct"])


class Reaching(gymnasium.Env):
    """A Dict of observations, as goals have them, beside a number that counts."""

    observation_space = spaces.Dict(
        {
            "observation": spaces.Box(-9, 9, (2,)),
            "desired_goal": spaces.Box(-9, 9, (1,)),
            "achieved_goal": spaces.Box(-9, 9, (1,)),
            "gear": spaces.Discrete(3, start=1),
        }
    )
    action_space: spaces.Space = spaces.Discrete(4, start=-1)


def test_a_dict_is_read_in_the_order_in_which_controllers_read_it(tmp_path: Path) -> None:
    from unipg.policies.actor_critic import ActorCriticRecipe

    space = Reaching.observation_space
    space.seed(0)
    steps = 5
    seen = [space.sample() for _ in range(steps + 1)]
    together = {name: np.stack([each[name] for each in seen]) for name in space.spaces}
    actions = np.array([-1, 0, 2, 1, -1])
    episode = EpisodeBuffer(
        observations=together, actions=actions, rewards=[1.0] * steps, terminations=[False] * steps,
        truncations=[False] * (steps - 1) + [True],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of authors, and of an environment that Gymnasium does not know
        theirs = minari.create_dataset_from_buffers("reach/all-v0", [episode], observation_space=space, action_space=Reaching.action_space)
    theirs.storage.update_metadata({"ref_min_score": 1.0, "ref_max_score": 3.0})
    data = open_data("minari:reach/all-v0")
    policy = ActorCriticRecipe([4]).build(space, Reaching.action_space, 0)
    stored = policy.flatten(together)
    np.testing.assert_array_equal(data.column("observation"), stored[:-1])
    np.testing.assert_array_equal(data.column("next_observation"), stored[1:])
    assert data.column("action").tolist() == actions.tolist()
    assert [name for name, _ in data.card["entries"]] == ["achieved_goal", "desired_goal", "gear", "observation"]
    assert data.card["environment"]["action"] == {"type": "discrete", "n": 4, "start": -1}
    assert data.card["references"] == {"min": 1.0, "max": 3.0, "horizon": None, "label": "Minari"}
    some = open_data("minari:reach/all-v0", entries=["observation", "desired_goal"])
    np.testing.assert_array_equal(some.column("observation"), stored[:-1][:, [1, 3, 4]])
    assert len(open_data(tmp_path / "minari" / "reach" / "all-v0")) == steps  # its folder, by its path
    with pytest.raises(InputError, match="no entry 'goal'; did you mean"):
        open_data("minari:reach/all-v0", entries=["goal"])


def test_minari_keeps_rows_card_and_references(tmp_path: Path) -> None:
    card = {
        "name": "walks", "mix": "random", "references": {"min": 0.0, "max": 2.0, "horizon": 7, "label": "local"},
        "environment": {"id": "Pendulum-v1", "action": {"type": "box", "shape": [2], "low": [-2.0, None], "high": [2.0, None]}},
    }  # fmt: skip
    data = Transitions.of(walk(), card)
    save_data(data, "minari:walk/kept-v0")
    again = open_data("minari:walk/kept-v0")
    assert facts(again) == facts(data)
    assert again.card == card
    theirs = minari.load_dataset("walk/kept-v0")
    assert theirs.spec.env_spec.id == "Pendulum-v1"
    assert theirs.action_space == spaces.Box(np.array([-2, -np.inf], np.float32), np.array([2, np.inf], np.float32))
    np.testing.assert_allclose(minari.get_normalized_score(theirs, np.array([0.0, 1.0, 2.0])), [0, 0.5, 1])
    assert sum(len(each.actions) for each in theirs) == len(data)
    assert all(len(each.observations) == len(each.actions) + 1 for each in theirs)
    with pytest.raises(InputError, match="exists: nothing is written over"):
        save_data(data, "minari:walk/kept-v0")
    with pytest.raises(InputError, match="does not take the name"):
        save_data(data, "minari:walk kept")
    shuffled = Transitions.of({name: values[np.argsort(walk()["reward"])] for name, values in walk().items() if name != "episode"})
    broken = Transitions.of({**{name: shuffled.column(name) for name in NAMES}, "episode": np.zeros(len(shuffled), int)})
    with pytest.raises(InputError, match="do not follow each other"):
        save_data(broken, "minari:walk/broken-v0")
    assert not (tmp_path / "minari" / "walk" / "broken-v0").exists()


def test_minaris_remote_datasets_are_loaded_by_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    from minari.storage import hosting

    asked: list[str] = []

    def download(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        save_data(Transitions.of(walk()), f"minari:{name}")

    monkeypatch.setattr(hosting, "download_dataset", download)
    monkeypatch.setattr("unipg.hub._unreachable", lambda: "")
    assert len(open_data("minari:far/away-v0")) == len(walk()["reward"])
    assert asked == ["far/away-v0"]
    open_data("minari:far/away-v0")
    assert asked == ["far/away-v0"]  # it is here now


@pytest.mark.parametrize("streams", [1, 3])
def test_a_runs_buffer_comes_episode_by_episode_in_the_environments_units(streams: int, tmp_path: Path) -> None:
    from unipg.policies.actor_critic import ActorCriticRecipe

    space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
    policy = ActorCriticRecipe([4], kind="squashed").build(spaces.Box(-9, 9, (3,)), space, 0)
    policy.save(tmp_path / "model")
    ring = Ring(tmp_path, transition_columns((3,), "float32", (2,), "float32"), 40, slack=5, identity="Walk-v0")
    draw = np.random.default_rng(0)
    actions, episodes = [], []
    for step in range(60 // streams):
        action = draw.uniform(-1.1, 1.1, (streams, 2)).astype(np.float32)
        episode = np.arange(streams) + streams * (step // 4)
        end = np.full(streams, step % 4 == 3)
        seen = np.full((streams, 3), step, np.float32)
        ring.append(
            observation=seen, next_observation=seen + 1, action=action, reward=seen[:, 0], terminated=end, truncated=~end & False,
            episode=episode,
        )  # fmt: skip
        actions.append(policy.environment_action(action))
        episodes.append(episode)
    ring.flush()
    data = open_data(tmp_path)
    assert data.card["gone"] == 20
    assert data.card["environment"]["action"] == {"type": "box", "shape": [2], "low": [-2.0, 0.0], "high": [2.0, 10.0]}
    number, given = np.concatenate(episodes)[-40:], np.concatenate(actions)[-40:]
    order = np.argsort(number, kind="stable")
    np.testing.assert_array_equal(data.column("action"), given[order])
    np.testing.assert_array_equal(data.column("episode"), number[order])
    assert (Episodes.of(data).length <= 4).all()


def test_actions_of_a_runs_buffer_that_count_are_in_the_environments_numbering(tmp_path: Path) -> None:
    from unipg.policies.actor_critic import ActorCriticRecipe

    ActorCriticRecipe([4]).build(spaces.Box(-9, 9, (1,)), spaces.Discrete(3, start=5), 0).save(tmp_path / "model")
    ring = Ring(tmp_path, transition_columns((1,), "float32", (), "int64"), 4, identity="Count-v0")
    zero, no = np.zeros((3, 1), np.float32), np.zeros(3, bool)
    ring.append(
        observation=zero, next_observation=zero, action=np.array([0, 2, 1]), reward=zero[:, 0], terminated=no, truncated=no,
        episode=np.zeros(3, int),
    )  # fmt: skip
    assert open_data(tmp_path).column("action").tolist() == [5, 7, 6]


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda place: place / "none.npz", "does not exist; accepted: .npz, .hdf5"),
    "a folder": (lambda place: place, "the folder holds none"),
    "a kind": (lambda place: _text(place / "data.csv"), r"ends in '.csv'; .*accepted: .h5, .hdf5, .npz, .parquet"),
    "no bytes": (lambda place: _text(place / "data.npz", ""), "is empty: a file of 0 bytes"),
    "no NPZ": (lambda place: _text(place / "data.npz"), "cannot be read as NPZ"),
    "no HDF5": (lambda place: _text(place / "data.hdf5"), "cannot be read as HDF5"),
    "no Parquet": (lambda place: _text(place / "data.parquet"), "cannot be read as Parquet"),
    "objects": (lambda place: as_npz(place / "data.npz", {**walk(), "action": np.array([None] * 48)}), "array of object"),
    "rows": (lambda place: as_npz(place / "data.npz", {**walk(), "action": np.zeros((3, 2))}), "different numbers of rows: .*action"),
    "a top": (lambda place: _hdf5(place / "data.h5", "frames"), "has frames at its top; accepted: D4RL's observations"),
    "many names": (
        lambda place: hdf5_of(place / "data.h5", {f"actions_{k}": np.zeros(3) for k in range(99)}),
        r"has actions_0, (actions_\d+, ){6}actions_\d+ … at its top",
    ),
    "lists": (lambda place: _ragged(place / "data.parquet"), "column 'action' has lists of different lengths from row 0 on"),
    "names": (lambda place: as_npz(place / "data.npz", {**walk(), "rewards": walk()["reward"]}), "name one column twice"),
    "a NaN": (
        lambda place: as_npz(place / "data.npz", {**walk(), "reward": np.where(np.arange(48) == 9, np.nan, 0)}), "not finite in row 9 "
    ),
    "Minari": (lambda place: "minari:no name", "Minari cannot load it"),
    "a ring": (lambda place: _text(place / "replay.bin").parent, "is not a replay buffer"),
}  # fmt: skip


def _text(path: Path, text: str = "something else") -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _hdf5(path: Path, name: str) -> Path:
    with h5py.File(path, "w") as file:
        file[name] = np.zeros(3)
    return path


def _ragged(path: Path) -> Path:
    table = {"observation": [[0.0]] * 2, "action": [[0.0], [0.0, 1.0]], "reward": [0.0] * 2, "terminated": [True] * 2}
    pyarrow.parquet.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_one_line_with_its_place(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipg.hub._unreachable", lambda: "no network")
    make, message = BAD[kind]
    place = make(tmp_path)
    with pytest.raises(InputError, match=message) as found:
        open_data(place)
    assert str(found.value).startswith(f"the dataset '{place}'")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("module", "place"), [("h5py", "x.hdf5"), ("pyarrow", "x.parquet"), ("minari", "minari:x/y-v0")])
def test_a_package_that_is_missing_is_named(module: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"needs the package '{module}'; install it with: pip install 'unipg\[offline\]'"):
        open_data(place if ":" in place else _text(tmp_path / place))


def test_nothing_is_written_over(tmp_path: Path) -> None:
    data = Transitions.of(walk(), {"name": "walks"})
    for place in (tmp_path / "data.npz", tmp_path / "folder"):
        save_data(data, place)
        with pytest.raises(InputError, match="exists: nothing is written over"):
            save_data(Transitions.of(walk(2)), place)
        assert open_data(place).card == {"name": "walks"}
        assert facts(open_data(place)) == facts(data)
    (tmp_path / "other").mkdir()
    for name, message in (("other", "exists"), ("data.csv", "accepted: an .npz file")):
        with pytest.raises(InputError, match=message):
            save_data(data, tmp_path / name)
    one, again = tmp_path / "data.npz", tmp_path / "again.npz"
    save_data(data, again)
    assert one.read_bytes() == again.read_bytes()


def test_a_damaged_folder_is_told(tmp_path: Path) -> None:
    Transitions.of(walk()).save(tmp_path / "data")
    whole = (tmp_path / "data" / "float32.npy").read_bytes()
    (tmp_path / "data" / "float32.npy").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="is damaged"):
        open_data(tmp_path / "data")


@pytest.mark.parametrize("kind", ["npz", "parquet", "folder"])
def test_a_byte_that_has_changed_is_no_traceback(kind: str, tmp_path: Path) -> None:
    """Wherever it is: the rows are there, others or not; or the error is one line."""
    name, write = WHOLE[kind]
    place = write(tmp_path / name, walk(23))
    files = [place] if place.is_file() else sorted(place.iterdir())
    draw = np.random.default_rng(0)
    refused: list[str] = []
    for path in files:
        whole = path.read_bytes()
        for at in draw.integers(len(whole), size=60).tolist():
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
            try:
                data = open_data(place)
                assert len(data.draw(torch.arange(len(data)))["reward"]) == len(data)
            except InputError as error:
                refused.append(str(error))
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError):
            open_data(place)
        path.write_bytes(whole)
    assert refused
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize("card", ["[]", "3", "{", '{"references": {"min": 1}}', '{"references": [1, 2]}'])
def test_a_card_that_is_none_is_refused(card: str, tmp_path: Path) -> None:
    path = as_npz(tmp_path / "data.npz", {**walk(), "card": np.array(card)})
    with pytest.raises(InputError, match="card"):
        References.of(open_data(path).card)


def test_draws_from_a_mapped_folder_are_those_from_memory(tmp_path: Path) -> None:
    data = Transitions.of(walk(50))
    data.save(tmp_path / "data")
    index = torch.randint(len(data), (64,), generator=torch.Generator().manual_seed(0))
    one, other = data.draw(index), open_data(tmp_path / "data").draw(index)
    assert all(torch.equal(one[name], other[name]) for name in NAMES)
