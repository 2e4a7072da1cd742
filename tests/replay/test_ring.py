"""A ring holds the last rows and no others, whole, also after a kill; a file that is not its own is refused in one line."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from unipg.errors import InputError
from unipg.replay import Column, Ring, transition_columns

COLUMNS = transition_columns((2,), "float32", (), "int64")
LENGTH = 5
"""Steps of an episode."""


def labelled(start: int, count: int, streams: int = 1) -> dict[str, np.ndarray]:
    """Rows `start` and on of environments stepped in turn: an observation is (episode, step); episodes end in both ways, by turns."""
    number = np.arange(start, start + count)
    step, episode = number // streams % LENGTH, number // streams // LENGTH * streams + number % streams
    last, odd = step == LENGTH - 1, episode % 2 == 1
    return {
        "observation": np.stack([episode, step], 1).astype(np.float32),
        "next_observation": np.stack([episode, step + 1], 1).astype(np.float32),
        "action": number % 3,
        "reward": number.astype(np.float32),
        "terminated": last & ~odd,
        "truncated": last & odd,
        "episode": episode,
    }


def filled(folder: Path | None, count: int, capacity: int, slack: int = 0, piece: int = 7) -> Ring:
    ring = Ring(folder, COLUMNS, capacity, slack=slack)
    go_on(ring, count, piece)
    return ring


def go_on(ring: Ring, count: int, piece: int = 7) -> None:
    end = ring.position + count
    while ring.position < end:
        ring.append(**labelled(ring.position, min(piece, end - ring.position, ring.capacity)))


def assert_holds(ring: Ring, position: int) -> None:
    """The rows that can be drawn are the last ones before `position`, bit for bit, and no others."""
    count = min(position, ring.capacity)
    assert (ring.position, len(ring)) == (position, count)
    drawn, right = ring.draw(torch.arange(count)), labelled(position - count, count)
    assert drawn.keys() == right.keys()
    for name, rows in right.items():
        assert drawn[name].dtype == torch.from_numpy(rows).dtype
        assert drawn[name].numpy().tobytes() == rows.tobytes(), name


@pytest.mark.parametrize("slack", [0, 4])
@pytest.mark.parametrize("count", [1, 9, 10, 11, 13, 14, 15, 23, 117])
@pytest.mark.parametrize("piece", [1, 3, 10])
def test_rows_that_can_be_drawn_are_the_last_ones_and_no_others(count, piece, slack, tmp_path) -> None:
    for folder in (None, tmp_path):
        ring = filled(folder, count, 10, slack, piece)
        assert_holds(ring, count)
        rows = ring.draw(torch.tensor([len(ring) - 1, 0, 0]))
        assert torch.equal(rows["observation"][:, 0], rows["next_observation"][:, 0])
        assert torch.equal(rows["observation"][:, 1] + 1, rows["next_observation"][:, 1])
        assert rows["episode"].tolist() == rows["observation"][:, 0].tolist()
        assert rows["reward"].tolist() == [count - 1, max(0, count - 10), max(0, count - 10)]
        assert ring.ages(torch.tensor([0, len(ring) - 1])).tolist() == [len(ring) - 1, 0]
        for outside in (-1, len(ring), 2**40):
            with pytest.raises(IndexError, match=f"there are {len(ring)}, from 0 on"):
                ring.draw(torch.tensor([0, outside]))


def test_nothing_is_drawn_from_an_empty_ring_or_a_closed_one(tmp_path) -> None:
    closed = filled(tmp_path / "closed", 3, 4)
    closed.close()
    for ring in (Ring(tmp_path / "empty", COLUMNS, 4), closed):
        for index in ([0], []):
            with pytest.raises(IndexError, match="empty or closed"):
                ring.draw(torch.tensor(index, dtype=torch.int64))
    assert os.listdir(tmp_path) == ["closed"]
    with pytest.raises(IndexError, match=r"torch.int32; accepted: torch.int64"):
        filled(None, 3, 4).draw(torch.tensor([0], dtype=torch.int32))


def test_a_closed_ring_does_not_begin_its_file_again(tmp_path) -> None:
    ring = filled(tmp_path, 3, 4)
    before = (tmp_path / "replay.bin").read_bytes()
    ring.close()
    with pytest.raises(RuntimeError, match="closed"):
        ring.append(**labelled(3, 1))
    assert (tmp_path / "replay.bin").read_bytes() == before


def test_drawn_rows_are_copies_and_names_choose_columns() -> None:
    ring = filled(None, 23, 10)
    index = torch.tensor([3, 9, 3])
    whole, some = ring.draw(index), ring.draw(index, "reward", "observation")
    assert list(some) == ["reward", "observation"]
    for name, rows in some.items():
        assert torch.equal(rows, whole[name])
    for rows in (*whole.values(), *some.values()):
        rows.zero_()
    assert_holds(ring, 23)


def test_images_stay_bytes_beside_flags_and_whole_numbers(tmp_path) -> None:
    columns = (*transition_columns((3, 4, 6), "uint8", (2, 2), "float32"), Column("lives", (), "uint8"), Column("room", (), "int16"))
    ring = Ring(tmp_path, columns, 5, slack=2)
    assert ring.row_bytes == 2 * 72 + 4 * 4 + 4 + 1 + 1 + 8 + 1 + 2
    image = np.arange(11 * 72, dtype=np.int64).reshape(11, 3, 4, 6).astype(np.uint8)
    for row in range(11):
        part = slice(row, row + 1)
        flags = {"terminated": np.array([row % 2 == 0]), "truncated": np.array([row % 3 == 0])}
        ring.append(
            observation=image[part],
            next_observation=255 - image[part],
            action=np.full((1, 2, 2), row / 7),
            reward=[row],
            episode=[2**40 + row],
            lives=np.uint8([255]),
            room=[299],
            **flags,
        )
    drawn = ring.draw(torch.arange(5))
    assert np.array_equal(drawn["observation"].numpy(), image[6:])
    assert np.array_equal(drawn["next_observation"].numpy(), 255 - image[6:])
    assert drawn["observation"].dtype == torch.uint8
    assert drawn["lives"].tolist() == [255] * 5
    assert drawn["room"].tolist() == [299] * 5
    assert drawn["episode"].tolist() == [2**40 + row for row in range(6, 11)]
    assert torch.equal(drawn["action"], (torch.arange(6, 11).double() / 7).float().view(5, 1, 1).expand(5, 2, 2))
    assert drawn["terminated"].tolist() == [True, False, True, False, True]
    assert drawn["truncated"].tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rewards": [0.0]}, "unknown column 'rewards'; did you mean 'reward'"),
        ({"reward": None}, "column 'reward' is missing; needed: observation, next_observation, action, reward"),
        ({"reward": np.zeros((1, 1))}, r"column 'reward' was given shape \[1, 1\]; accepted: \[1\]"),
        ({"reward": np.zeros(2)}, r"column 'reward' was given shape \[2\]; accepted: \[1\]"),
        ({"observation": np.zeros(2)}, r"column 'observation' was given shape \[2\]; accepted: \[2, 2\]"),
        ({"observation": np.float32(0)}, r"column 'observation' was given shape \[\]; accepted: \['rows', 2\]"),
        ({"action": np.zeros(1)}, "column 'action' was given float64 values that int64 cannot hold"),
        ({"terminated": np.zeros(1)}, "column 'terminated' was given float64 values that bool cannot hold"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_the_ring_as_it_was(change, says) -> None:
    ring = filled(None, 13, 10)
    rows = {name: value for name, value in {**labelled(13, 1), **change}.items() if value is not None}
    with pytest.raises(InputError, match=f"^{says}"):
        ring.append(**rows)
    assert_holds(ring, 13)


def test_values_and_numbers_of_rows_that_cannot_be_held_are_refused() -> None:
    ring = Ring(None, [Column("room", (), "int16"), Column("pixel", (), "uint8")], 3)
    with pytest.raises(InputError, match="'room' was given int64 values that int16 cannot hold"):
        ring.append(room=np.array([2**15]), pixel=np.uint8([0]))
    with pytest.raises(InputError, match="'pixel' was given int64 values that uint8 cannot hold"):
        ring.append(room=np.array([1]), pixel=np.array([-1]))
    with pytest.raises(InputError, match=r"^4 rows were appended at once; accepted: at most the capacity, 3$"):
        ring.append(room=np.zeros(4, np.int16), pixel=np.zeros(4, np.uint8))
    assert len(ring) == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Column("x", (), "float31"), r"column 'x' has dtype 'float31'; did you mean 'float32'"),
        (lambda: Column("x", (3, 0)), r"column 'x' has shape \[3, 0\]; accepted: sizes of at least 1"),
        (lambda: Ring(None, [], 3), "columns are none; accepted: one or more"),
        (lambda: Ring(None, [Column("x"), Column("x")], 3), "columns are x, x"),
        (lambda: Ring(None, [Column("x")], 0), "a replay buffer has capacity 0 and slack 0; accepted: at least 1"),
        (lambda: Ring(None, [Column("x")], 1, slack=-1), "a replay buffer has capacity 1 and slack -1; accepted: at least 1"),
        (lambda: Ring(None, [Column("x")], 2**62), "a replay buffer of 4611686018427387904 rows has"),
    ],
)
def test_impossible_layouts_are_refused(make, says) -> None:
    with pytest.raises(InputError, match=f"^{says}"):
        make()


def test_as_many_rows_are_seen_as_uniform_draws_see() -> None:
    ring, draws = filled(None, 2500, 1000, piece=500), 1500
    index = torch.randint(0, len(ring), (draws,), generator=torch.Generator().manual_seed(1))
    seen = len(ring.draw(index, "reward")["reward"].unique())
    assert abs(seen - 1000 * (1 - (1 - 1 / 1000) ** draws)) < 40  # four standard deviations


# checkpoints


@pytest.mark.parametrize("before", [1, 9, 10, 14, 15, 33])
@pytest.mark.parametrize("beyond", [0, 1, 4])
@pytest.mark.parametrize("folder", [True, False])
def test_a_ring_goes_on_from_its_checkpoint_however_far_it_has_gone(before, beyond, folder, tmp_path) -> None:
    place = tmp_path if folder else None
    ring = filled(place, before, 10, 4)
    ring.flush()
    state = ring.state_dict()
    go_on(ring, beyond)
    again = Ring(place, COLUMNS, 10, slack=4)
    again.load_state_dict(state)
    assert_holds(again, before)
    go_on(again, 17)
    assert_holds(again, before + 17)
    assert again.state_dict()["token"] == ring.state_dict()["token"]


def test_rows_that_a_checkpoint_needs_and_the_run_wrote_over_are_missed(tmp_path) -> None:
    ring = filled(tmp_path, 33, 10, 4)
    previous = ring.state_dict()
    go_on(ring, 4)
    newest = ring.state_dict()
    again = Ring(tmp_path, COLUMNS, 10, slack=4)
    again.load_state_dict(previous)
    again.load_state_dict(newest)
    go_on(ring, 1)
    early = filled(tmp_path / "early", 3, 10, 4)
    state = early.state_dict()
    go_on(early, 11)  # the file was not full: there was more room than the slack
    young = Ring(tmp_path / "early", COLUMNS, 10, slack=4)
    young.load_state_dict(state)
    assert_holds(young, 3)
    says = (
        r"replay.bin' has gone on by 5 transitions since the checkpoint, and the oldest of those that the checkpoint needs are overwritten"
    )
    with pytest.raises(InputError, match=says):
        again.load_state_dict(previous)
    assert_holds(again, 37)
    for _ in range(2):  # what was written before the kill counts, not only what was since
        again = Ring(tmp_path, COLUMNS, 10, slack=4)
        again.load_state_dict(newest)
        with pytest.raises(InputError, match=says):
            again.load_state_dict(previous)
        assert_holds(again, 37)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from test_ring import filled, go_on
for folder, count in json.loads(sys.argv[1]):
    ring = filled(Path(folder), count, 50, 20)
    ring.flush()
    Path(folder, "state.json").write_text(json.dumps(ring.state_dict()))
    go_on(ring, 20, piece=3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_rows_of_its_checkpoint(tmp_path) -> None:
    runs = []
    for count in (30, 50, 64, 185):
        (tmp_path / str(count)).mkdir()
        runs.append((str(tmp_path / str(count)), count))
    paths = [str(Path(__file__).parent), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(runs)], env=env, timeout=60)
    assert done.returncode == -signal.SIGKILL
    for folder, count in runs:
        ring = Ring(Path(folder), COLUMNS, 50, slack=20)
        ring.load_state_dict(json.loads(Path(folder, "state.json").read_text()))
        assert_holds(ring, count)
        go_on(ring, 70)
        assert_holds(ring, count + 70)


# files


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def replaced(path: Path) -> None:
    path.unlink()
    filled(path.parent, 40, 10, 4)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.unlink(), "does not exist: it holds the replay buffer that the checkpoint goes on with"),
        (lambda path: cut(path, 0), "is not a replay buffer, or its beginning is damaged"),
        (lambda path: cut(path, 100), "is damaged: its header cannot be read"),
        (lambda path: cut(path, path.stat().st_size - 1), r"is cut off or damaged: it has 16383 bytes of 16384"),
        (lambda path: path.write_bytes(b"my thesis " * 2000), "is not a replay buffer"),
        (replaced, "is the replay buffer of another run than the checkpoint's"),
    ],
)
def test_a_file_that_cannot_be_gone_on_with_is_refused_and_left_alone(harm, says, tmp_path) -> None:
    ring = filled(tmp_path, 33, 10, 4)
    state, path = ring.state_dict(), tmp_path / "replay.bin"
    ring.close()
    harm(path)
    before = path.read_bytes() if path.exists() else None
    again = filled(None, 3, 10, 4)
    again.path = path
    with pytest.raises(InputError, match=f"^'{path}' {says}") as caught:
        again.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert before == (path.read_bytes() if path.exists() else None)
    assert_holds(again, 3)


@pytest.mark.parametrize(("before", "after"), [(900, 0), (2500, 0), (3500, 700), (9000, 2000)])
def test_one_bit_that_has_changed_is_noticed_wherever_it_is(before, after, tmp_path) -> None:
    """Checkpoints on the way, each of which takes in no more than is new; the rows that the last one needs, and those that it does not."""
    ring = filled(tmp_path, before // 3, 2000, 4000, piece=97)
    ring.state_dict()
    go_on(ring, before - ring.position, 97)
    state = ring.state_dict()
    go_on(ring, after, 97)
    ring.close()
    begin = (tmp_path / "replay.bin").stat().st_size - ring._bytes(6000)
    wide = sum(c.width for c in COLUMNS if c.dtype == "float32") * 4
    oldest = before - min(before, 2000)
    for row in {oldest, oldest + 1, (oldest + before) // 2, before - 1}:
        place = begin + row % 6000 * wide + 2
        flip(tmp_path / "replay.bin", place)
        again = Ring(tmp_path, COLUMNS, 2000, slack=4000)
        with pytest.raises(InputError, match=r"replay.bin' is damaged: transitions \d+ to \d+ are not what the run had written"):
            again.load_state_dict(state)
        assert len(again) == 0
        flip(tmp_path / "replay.bin", place)
    flip(tmp_path / "replay.bin", begin + before % 6000 * wide)  # of a row that comes later
    again.load_state_dict(state)
    assert_holds(again, before)
    go_on(again, 300)
    more = again.state_dict()
    again.close()
    again.load_state_dict(more)
    assert_holds(again, before + 300)


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_a_checkpoint_of_before_there_were_checksums_is_gone_on_with(tmp_path) -> None:
    ring = filled(tmp_path, 1500, 2000, 4000)
    state = {name: value for name, value in ring.state_dict().items() if name != "sums"}
    ring.close()
    ring.load_state_dict(state)
    go_on(ring, 100)
    state = ring.state_dict()
    ring.close()
    ring.load_state_dict(state)
    assert_holds(ring, 1600)


def test_a_file_older_than_the_checkpoint_is_refused(tmp_path) -> None:
    ring = filled(tmp_path, 33, 10, 4)
    early = (tmp_path / "replay.bin").read_bytes()
    go_on(ring, 3)
    state = ring.state_dict()
    (tmp_path / "replay.bin").write_bytes(early)
    with pytest.raises(InputError, match=r"replay.bin' is older than the checkpoint: it holds 33 transitions of 36"):
        Ring(tmp_path, COLUMNS, 10, slack=4).load_state_dict(state)


@pytest.mark.parametrize(
    ("columns", "capacity", "slack", "identity", "says"),
    [
        (COLUMNS, 11, 4, "Pendulum-v1", "has a capacity of 10; accepted: 11, as this run has"),
        (COLUMNS, 10, 4, "Hopper-v5", "has transitions of 'Pendulum-v1'; accepted: 'Hopper-v5', as this run has"),
        (
            transition_columns((3,), "float32", (), "int64"),
            10,
            4,
            "Pendulum-v1",
            r"has observation float32\[2\] as column 1; accepted: observation float32\[3\], as this run has",
        ),
        (COLUMNS[:-1], 10, 4, "Pendulum-v1", r"has episode int64\[\] as column 7; accepted: nothing"),
        ((*COLUMNS, Column("cost")), 10, 4, "Pendulum-v1", r"has nothing as column 8; accepted: cost float32\[\]"),
        (COLUMNS, 10, 9, "Pendulum-v1", "has room for 4 transitions beyond its capacity, and 9 are needed now"),
    ],
)
def test_another_layout_is_refused(columns, capacity, slack, identity, says, tmp_path) -> None:
    ring = Ring(tmp_path, COLUMNS, 10, slack=4, identity="Pendulum-v1")
    ring.append(**labelled(0, 3))
    other = Ring(tmp_path, columns, capacity, slack=slack, identity=identity)
    before = (tmp_path / "replay.bin").read_bytes()
    with pytest.raises(InputError, match=says):
        other.load_state_dict(ring.state_dict())
    with pytest.raises(InputError, match=says):  # the file says so by itself
        other.load_state_dict({**ring.state_dict(), **other._layout()})
    assert (tmp_path / "replay.bin").read_bytes() == before
    assert len(other) == 0


def test_less_slack_than_the_file_has_is_enough(tmp_path) -> None:
    state = filled(tmp_path, 33, 10, 4).state_dict()
    again = Ring(tmp_path, COLUMNS, 10, slack=1)
    again.load_state_dict(state)
    assert_holds(again, 33)
    go_on(again, 40)
    assert_holds(again, 73)


def test_a_new_run_takes_the_place_of_one_that_came_to_nothing_but_of_nothing_else(tmp_path) -> None:
    filled(tmp_path, 33, 10, 4)
    empty = Ring(tmp_path, COLUMNS, 20)
    again = Ring(tmp_path, COLUMNS, 20)
    again.load_state_dict(empty.state_dict())  # of a run that had no rows yet
    go_on(again, 25)
    assert_holds(again, 25)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "replay.bin").write_text("my thesis")
    with pytest.raises(InputError, match=r"replay.bin' exists, and is no replay buffer: nothing is written over"):
        filled(tmp_path / "other", 1, 10)
    assert (tmp_path / "other" / "replay.bin").read_text() == "my thesis"


def test_a_full_disk_is_said_with_the_size_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    ring = Ring(tmp_path / "deep", COLUMNS, 10**6, slack=2000)
    says = r"^the disk is full: '.*replay.bin' cannot be written \(.*\); 1002000 transitions of 38 bytes need 0.04 GB: make room"
    with pytest.raises(InputError, match=says):
        ring.append(**labelled(0, 1))
    assert not os.listdir(tmp_path / "deep")
    monkeypatch.undo()
    go_on(ring, 3)
    assert_holds(ring, 3)


def test_where_files_cannot_be_allocated_beforehand_they_are_sparse(tmp_path, monkeypatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert_holds(filled(tmp_path, 33, 10, 4), 33)


def test_a_file_holds_rows_and_a_page_of_its_own(tmp_path) -> None:
    ring = Ring(tmp_path, COLUMNS, 100_000)
    ring.append(**labelled(0, 1))
    pages = 4096 * (1 + 3)  # the header, and the rest of the last page of each of three tables
    assert 100_000 * ring.row_bytes < (tmp_path / "replay.bin").stat().st_size <= 100_000 * ring.row_bytes + pages
