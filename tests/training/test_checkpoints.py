"""Checkpoints: plain values alone, a seal that tells damage, two that are kept, and no code that runs from a folder."""

import os
import pickle
import random
import shutil
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from enum import Enum, IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch

from unipg.errors import InputError
from unipg.rollouts.base import Pickled
from unipg.training import signing
from unipg.training.checkpoints import DAMAGED, NAME, PREVIOUS, random_states, read_checkpoint, restore_random_states, write_checkpoint
from unipg.training.plain import TAG


class Kind(IntEnum):
    ONE = 1


class Word(str, Enum):  # noqa: UP042  (whose `str` is its name)
    YES = "yes"


STATE = {
    "iteration": 3,
    "numbers": [1, 2.5, float("inf"), 1j, True, None, "text", b"bytes"],
    "nested": {"a": ({1, 2}, frozenset({"x"}), [(), {}]), 7: {(0, "key"): [torch.float32, torch.Size([2, 3])]}},
    "deque": deque([1, 2, 3], 5),
    "tensors": {"x": torch.arange(6).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16), "empty": torch.zeros(0)},
    "arrays": [np.arange(6, dtype=np.uint32).reshape(2, 3), np.array(1.5), np.zeros((0, 2), bool), np.arange(4)[::2]],
    "taken": {TAG: "a user's own word"},
}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b)) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
    return a == b


def test_every_plain_value_comes_back_as_it_was(tmp_path) -> None:
    write_checkpoint(tmp_path, STATE)
    found = read_checkpoint(tmp_path)
    assert same(found, STATE)
    found["arrays"][0][0, 0] = 1  # writable, as it was
    torch.load(tmp_path / NAME, weights_only=True)  # torch's own reader takes it too


def test_numbers_of_other_classes_become_numbers(tmp_path) -> None:
    write_checkpoint(tmp_path, {"iteration": 0, "x": [np.float32(1.5), np.int64(2), np.bool_(True), Kind.ONE, Word.YES, np.str_("a")]})
    assert same(read_checkpoint(tmp_path)["x"], [1.5, 2, True, 1, "yes", "a"])


def test_what_a_module_says_of_its_versions_is_kept(tmp_path) -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    write_checkpoint(tmp_path, {"iteration": 0, "module": state})
    found = read_checkpoint(tmp_path)["module"]
    assert type(found) is OrderedDict
    assert found._metadata == state._metadata


@pytest.mark.parametrize(
    "value",
    [object(), print, defaultdict(list), Counter("a"), np.array(["a"]), np.array([None]), torch.Generator(), Path("x")],
    ids=lambda v: type(v).__name__,
)
def test_anything_else_is_refused_by_its_place_before_anything_is_written(value, tmp_path) -> None:
    with pytest.raises(InputError, match=r"the checkpoint cannot hold memory.table\[1\].x, a .*; accepted in what is saved: tensors"):
        write_checkpoint(tmp_path, {"memory": {"table": [0, {"x": value}]}})
    assert not os.listdir(tmp_path)


def test_global_random_states_come_back(tmp_path) -> None:
    write_checkpoint(tmp_path, {"iteration": 0, "random": random_states()})

    def drawn() -> list:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    expected = drawn()
    restore_random_states(read_checkpoint(tmp_path)["random"])
    assert drawn() == expected


# ---------------------------------------------------------------------------------------------------- damage


def written(folder: Path, *iterations: int) -> None:
    for iteration in iterations:
        write_checkpoint(folder, {"iteration": iteration, "x": torch.full((50,), float(iteration))})


def test_two_are_kept_and_a_flipped_bit_anywhere_is_found(tmp_path) -> None:
    """Any byte: of the tensors, of the archive around them, of its padding, of the seal."""
    run = tmp_path / "run"
    run.mkdir()
    written(run, 1, 2, 3)
    assert sorted(os.listdir(run)) == sorted([NAME, PREVIOUS])
    good = (run / NAME).read_bytes()
    for place in [*range(0, len(good), 97), *range(len(good) - 200, len(good))]:
        broken = bytearray(good)
        broken[place] ^= 1 << (place % 8)
        (run / NAME).write_bytes(broken)
        with pytest.warns(UserWarning, match=rf"'{run / NAME}' is damaged: .*: the run goes on from the checkpoint before it, iteration 2"):
            assert read_checkpoint(run)["iteration"] == 2
        assert (run / DAMAGED).read_bytes() == broken
        assert not (run / NAME).exists()  # the next checkpoint must not push the good one out
    written(run, 3)
    assert (read_checkpoint(run)["iteration"], sorted(os.listdir(run))) == (3, sorted([NAME, PREVIOUS, DAMAGED]))


@pytest.mark.parametrize("length", [0, 1, 50, -1, -200])
def test_a_file_that_is_cut_off_is_found(tmp_path, length) -> None:
    written(tmp_path, 1, 2)
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:length])
    with pytest.warns(UserWarning, match="is damaged: it is cut off"):
        assert read_checkpoint(tmp_path)["iteration"] == 1


def test_without_a_good_one_both_are_named(tmp_path) -> None:
    written(tmp_path, 1, 2)
    for name in (NAME, PREVIOUS):
        broken = bytearray((tmp_path / name).read_bytes())
        broken[300] ^= 1
        (tmp_path / name).write_bytes(broken)
    with pytest.raises(
        InputError, match=rf"cannot be continued: the checkpoint '.*{NAME}' is damaged: .*, and the checkpoint '.*{PREVIOUS}'"
    ):
        read_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([NAME, PREVIOUS])
    with pytest.raises(InputError, match="nothing to resume"):
        read_checkpoint(tmp_path / "nowhere")


def test_a_kill_between_the_two_renamings_leaves_the_previous_one(tmp_path) -> None:
    written(tmp_path, 1, 2)
    os.replace(tmp_path / NAME, tmp_path / PREVIOUS)
    assert read_checkpoint(tmp_path)["iteration"] == 2
    written(tmp_path, 3)
    os.remove(tmp_path / NAME)
    assert read_checkpoint(tmp_path)["iteration"] == 2


def test_a_checkpoint_of_before_is_said_to_be_one(tmp_path) -> None:
    torch.save({"iteration": 1}, tmp_path / NAME)
    with pytest.raises(InputError, match="is a checkpoint of an earlier version, in a form that is not read any more"):
        read_checkpoint(tmp_path)


# ---------------------------------------------------------------------------------------------------- code in a folder


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_place_of_a_checkpoint_is_not_run(tmp_path) -> None:
    """Also one with a seal that fits: a checksum says that nothing was damaged, not who wrote it."""
    from unipg.training import checkpoints

    mark = tmp_path / "ran"
    (tmp_path / NAME).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(InputError, match="cannot be continued"):
        read_checkpoint(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "encoded", lambda state, pickled: {"iteration": 1, "x": Evil(mark)})
        write_checkpoint(tmp_path, {})
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(InputError, match=f"{NAME}' cannot be read: "):
        read_checkpoint(tmp_path)
    assert not mark.exists()


def environments(folder: Path) -> list[Path]:
    return list(folder.glob("environments-*"))


def test_pickles_are_kept_apart_and_their_writer_is_known(tmp_path, monkeypatch) -> None:
    write_checkpoint(tmp_path, {"iteration": 1, "experience": [{"environments": Pickled(b"one")}, {"environments": Pickled(b"")}]})
    (file,) = environments(tmp_path)
    assert b"one" in file.read_bytes()
    assert b"one" not in (tmp_path / NAME).read_bytes()
    assert read_checkpoint(tmp_path)["experience"] == [{"environments": Pickled(b"one")}, {"environments": Pickled(b"")}]
    assert signing.key_file().stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert not any(found["environments"].own for found in read_checkpoint(tmp_path)["experience"])
    write_checkpoint(tmp_path, {"iteration": 2, "x": Pickled(b"two")})  # makes the other user's key
    assert read_checkpoint(tmp_path)["x"].own


def test_pickles_that_were_changed_are_damage(tmp_path) -> None:
    """Signed by this user once, and something else since; also where the checksum in the checkpoint is made to fit."""
    for iteration in (1, 2, 3):
        write_checkpoint(tmp_path, {"iteration": iteration, "x": Pickled(b"number %d" % iteration)})
    assert len(environments(tmp_path)) == 2  # of the two checkpoints
    file = next(f for f in environments(tmp_path) if b"number 3" in f.read_bytes())
    file.write_bytes(file.read_bytes().replace(b"number 3", b"number 4"))
    with pytest.warns(UserWarning, match=f"needs '{file.name}', which is damaged"):
        assert read_checkpoint(tmp_path)["x"] == Pickled(b"number 2")
    file.unlink()
    os.replace(tmp_path / DAMAGED, tmp_path / NAME)
    with pytest.warns(UserWarning, match=f"needs '{file.name}', which is missing"):
        assert read_checkpoint(tmp_path)["iteration"] == 2


def test_a_signature_fits_its_own_bytes_alone(monkeypatch, tmp_path) -> None:
    signed = signing.signature(b"data")
    assert signing.is_own(b"data", signed)
    assert not signing.is_own(b"dato", signed)
    assert not signing.is_own(b"data", signing.NO_SIGNATURE)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    assert signing.signature(b"data") == signing.NO_SIGNATURE
    assert not signing.is_own(b"data", signing.NO_SIGNATURE)


def test_a_copied_folder_stays_ones_own(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_checkpoint(run, {"iteration": 1, "x": Pickled(b"one")})
    shutil.copytree(run, tmp_path / "copy")
    with warnings.catch_warnings(action="error"):
        assert read_checkpoint(tmp_path / "copy")["x"].own
