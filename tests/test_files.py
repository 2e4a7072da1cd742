"""What is written: whole or not at all, never over what unipg did not write, and a full disk is called full."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from unipg.cli import main
from unipg.errors import InputError
from unipg.files import check_output, disk_is_full, generator, generator_tag, write_file, write_folder, write_output, writing

OWN = json.dumps({"generator": generator("evaluate"), "x": 1}, indent=1)


def full(*_) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_own_files_are_written_again_and_no_others(tmp_path) -> None:
    path = tmp_path / "deep" / "table.json"
    write_output(path, OWN, "evaluate")
    write_output(path, OWN.replace("1", "2"), "evaluate")
    assert json.loads(path.read_text())["x"] == 2
    path.write_text("my thesis")
    with pytest.raises(InputError, match=r"table.json' exists, and `unipg evaluate` did not write it: nothing is written over"):
        write_output(path, OWN, "evaluate")
    assert path.read_text() == "my thesis"
    path.write_text("")  # made beforehand, as mktemp does
    write_output(path, OWN, "evaluate")
    assert path.read_text() == OWN
    assert os.listdir(path.parent) == ["table.json"]


def test_a_link_stays_a_link_and_devices_are_written_to(tmp_path) -> None:
    (tmp_path / "real.json").write_text(OWN)
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_output(tmp_path / "link.json", OWN.replace("1", "2"), "evaluate")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["x"] == 2
    write_output(Path("/dev/null"), OWN, "evaluate")
    with pytest.raises(InputError, match=r"^the disk is full: '/dev/full' cannot be written \(No space left on device\)$"):
        write_output(Path("/dev/full"), OWN, "evaluate")


def test_what_cannot_be_finished_leaves_what_was_there(tmp_path) -> None:
    path = write_file(tmp_path / "a.txt", "before")
    with pytest.raises(InputError, match=f"the disk is full: '{path}'"):
        write_file(path, full)
    with pytest.raises(ZeroDivisionError):
        write_file(path, lambda place: place.write_text("half") / 0)
    assert path.read_text() == "before"
    folder = tmp_path / "model"
    write_folder(folder, lambda place: write_file(place / "weights", "before"))
    with pytest.raises(InputError, match=r"the disk is full.*; free some$"):
        write_folder(folder, lambda place: (write_file(place / "weights", "after"), full()), "; free some")
    assert (folder / "weights").read_text() == "before"
    (tmp_path / "model.writing").mkdir()  # by a kill
    write_folder(folder, lambda place: write_file(place / "weights", "after"))
    assert (folder / "weights").read_text() == "after"
    write_folder(tmp_path / "none", lambda place: None)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "model"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "whatever the system calls it"),
        OSError(errno.EDQUOT, "too much"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_known_whoever_says_it(error, tmp_path) -> None:
    assert disk_is_full(error)
    with pytest.raises(InputError, match=r"^the disk is full"), writing(tmp_path):
        raise RuntimeError("file write failed") from error
    assert not disk_is_full(OSError(errno.EACCES, "no"))


def test_other_errors_are_not_dressed_up(tmp_path) -> None:
    with pytest.raises(InputError, match="x' cannot be written: Permission denied"), writing(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(ValueError, match="mine"), writing(tmp_path):
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["diff", "grpo", "rloo", "--output"], ["page.html", "page.json"]),
        (
            ["lab", "--algorithms", "grpo", "--problem", "bandit", "--batches", "2", "--lags", "0", "--output"],
            ["lab.html", "lab.png", "lab.json"],
        ),
    ],
)
def test_commands_write_over_their_own_results_and_no_others(command, names, tmp_path, capsys) -> None:
    place = tmp_path / (names[0] if command[0] == "diff" else "")
    assert main([*command, str(place)]) == 0
    assert all((tmp_path / name).stat().st_size for name in names)
    assert main([*command, str(place)]) == 0
    for name in names:
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text("years of work")
        capsys.readouterr()
        assert main([*command, str(place)]) == 2
        assert f"{name}' exists, and `unipg {command[0]}` did not write it: nothing is written over" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == "years of work"
        (tmp_path / name).write_bytes(kept)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_full_disk_ends_any_command_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("unipg.cli._algorithms", full)
    assert main(["algorithms"]) == 2
    assert capsys.readouterr().err == "unipg: the disk is full\n"


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda _: torch.empty(2**50), r"RuntimeError: .*allocate \d+ bytes.*"),
        (lambda _: torch.empty(2**61, 2**61), "RuntimeError: Storage size calculation overflowed.*"),
        (lambda _: np.empty(2**50), "MemoryError: Unable to allocate 8.00 PiB .*"),
    ],
)
def test_a_full_memory_ends_any_command_in_one_line(allocate, said, monkeypatch, capsys) -> None:
    monkeypatch.setattr("unipg.cli._algorithms", allocate)
    assert main(["algorithms"]) == 2
    assert re.fullmatch(f"unipg: the memory is full: {said}; smaller networks or batches, or .*\n", capsys.readouterr().err)


def test_other_errors_of_a_command_keep_their_traceback(monkeypatch) -> None:
    def broken(options) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("unipg.cli._algorithms", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        main(["algorithms"])


def test_a_folder_is_no_output(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot be written: it is a folder"):
        check_output(tmp_path, "report")


def test_what_another_command_wrote_is_not_written_over(tmp_path) -> None:
    path = tmp_path / "page"
    for text in (f"<head>{generator_tag('report')}</head>", json.dumps({"generator": generator("lab")})):
        path.write_text(text)
        with pytest.raises(InputError, match="`unipg evaluate` did not write it"):
            check_output(path, "evaluate")
    check_output(path, "lab")
