"""The run folder: one run at a time, nothing written over, nothing lost on a full disk, and a failed first batch blocks nothing."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from unipg.algorithms import algorithm_named
from unipg.cli import main
from unipg.errors import InputError
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe, folder
from unipg.training.checkpoints import read_checkpoint
from unipg.training.folder import LOCK, locked
from unipg.training.learner import NonFinite
from unipg.training.tracking import Tracker
from unipg.training.trainer import Stopped

HOLDER = """
import sys, time
from pathlib import Path
from unipg.training import folder
if sys.argv[2] == "names":
    folder.fcntl = None
with folder.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


KILLED = """
import os, sys
from unipg.cli import main
from unipg.training.trainer import Trainer
Trainer._update = lambda self: os._exit(9)
main(["train", sys.argv[1]])
"""


def refused(capsys, *arguments: str) -> str:
    """The one line that a refused command prints; exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    assert "Traceback" not in printed
    return printed


def trainer(place: Path, iterations: int = 3, **options) -> Trainer:
    options.setdefault("optimizer", OptimizerRecipe(learning_rate=0.1))
    return Trainer(
        algorithm_named("rloo")(),
        BigramPolicy(4, seed=1),
        StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2))),
        folder=place,
        training=TrainingRecipe(iterations=iterations),
        **options,
    )


# ---------------------------------------------------------------------------------------------------- one run at a time


@pytest.fixture(params=["system", "names"])
def holder(request, tmp_path, monkeypatch):
    """Another process that is in the folder; by the system's locks, and where there are none."""
    if request.param == "names":
        monkeypatch.setattr(folder, "fcntl", None)
    run = tmp_path / "run"
    run.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run), request.param], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_is_one_runs_while_it_lives_and_free_once_it_was_killed(holder, recipe, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    with (
        pytest.raises(InputError, match=rf"'{run}' is in use since .*: another run, process {holder.pid}, writes to it") as caught,
        locked(run),
    ):
        pass
    assert "\n" not in str(caught.value)
    for begin in (lambda made: made.train(), lambda made: made.resume()):
        with pytest.raises(InputError, match=f"process {holder.pid}"):
            begin(trainer(run))
    path = recipe()
    for more in ([], ["--resume"]):
        assert f"process {holder.pid}" in refused(capsys, "train", path, *more)
    assert os.listdir(run) == [LOCK]
    holder.kill()
    holder.wait()
    trainer(run).train()
    assert LOCK not in os.listdir(run)


def test_a_number_that_another_process_has_by_now_is_no_lock(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder, "fcntl", None)
    held = folder._myself()
    for change in ({"began": "1"}, {"pid": 2**22 + 1}, {"pid": "?"}):  # of this number, but begun at another time; of no number
        (tmp_path / LOCK).write_text(json.dumps({**json.loads(held), **change}))
        with locked(tmp_path):
            pass
        assert not os.listdir(tmp_path)
    (tmp_path / LOCK).write_text(json.dumps({**json.loads(held), "host": "elsewhere", "began": "1"}))
    with (
        pytest.raises(InputError, match=rf"process {os.getpid()} on elsewhere, .*if there is no such process, delete '.*{LOCK}'"),
        locked(tmp_path),
    ):
        pass


def test_a_thread_may_lock_again_and_another_may_not(tmp_path) -> None:
    said = []

    def other() -> None:
        try:
            with locked(tmp_path):
                said.append("in")
        except InputError as error:
            said.append(str(error))

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(os.listdir(tmp_path)) == 1
    assert f"process {os.getpid()}" in said[0]
    other()
    assert said[1] == "in"


def test_a_child_of_a_killed_run_does_not_hold_its_lock(tmp_path) -> None:
    code = HOLDER.replace('print("held", flush=True)', 'import os\n    child = os.fork()\n    if child: print("held", child, flush=True)')
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "system"], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline().split()[1])
    process.kill()
    process.wait()
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


# ---------------------------------------------------------------------------------------------------- nothing is written over


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", "my own notes\n"),
        ("evaluations.jsonl", '{"mine": 1}\n'),
        ("histograms.jsonl", "no JSON"),
        ("checkpoint.pt", "x"),
        ("checkpoint-previous.pt", "x"),
        ("model/thesis.tex", "years of work"),
        ("critic/a", "x"),
    ],
)
def test_a_trainer_writes_over_nothing_of_others(name, content, tmp_path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(InputError, match=rf"the folder '{tmp_path}' holds '{name.split('/')[0]}' already: nothing is written over"):
        trainer(tmp_path).train()
    assert path.read_text() == content
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [name]


def test_a_trainer_does_not_begin_where_another_has_been(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")  # what no run writes is in nobody's way
    first = trainer(tmp_path)
    first.stop_after_steps = 1
    with pytest.raises(Stopped):
        first.train()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"nothing is written over.*or to continue the run"):
        trainer(tmp_path).train()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    first.stop_requested, first.stop_after_steps = False, None
    first.train()  # the same run goes on
    second = trainer(tmp_path, iterations=5)
    second.resume()
    second.train()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_reports_and_evaluations_write_over_their_own_alone(recipe, rows, tmp_path, capsys) -> None:
    assert main(["train", recipe(training={"iterations": 1}), "--report"]) == 0
    run = tmp_path / "run"
    evaluate = ["evaluate", str(run), "--task", f"{rows}:{{prompt: q, answer: a}}", "--items", "1", "--json"]
    for command, path in ((["report", str(run), "--output"], tmp_path / "page.html"), (evaluate, tmp_path / "found.json")):
        assert main([*command, str(path)]) == 0
        assert main([*command, str(path)]) == 0
        path.write_text("years of work")
        assert f"'{path}' exists, and `unipg {command[0]}` did not write it" in refused(capsys, *command, str(path))
        assert path.read_text() == "years of work"
        assert "the disk is full: '/dev/full'" in refused(capsys, *command, "/dev/full")
    assert main(["report", str(run)]) == 0  # its own, of `--report`
    (run / "report.html").write_text("mine")
    assert "report.html' exists" in refused(capsys, "report", str(run))
    assert "report.html' exists" in refused(capsys, "train", recipe(training={"iterations": 2}), "--resume", "--report")
    assert (run / "report.html").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------- a full disk


def no_room(*_, **__) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_room_in_rust(*_, **__) -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("where", "name", "how", "file"),
    [
        (os, "fsync", no_room, "checkpoint.pt"),
        (Tracker, "_append", None, "metrics.jsonl"),
        (CausalLanguageModel, "save", no_room_in_rust, "model"),
        (CausalLanguageModel, "save_critic", no_room, "critic"),
    ],
)
def test_a_full_disk_anywhere_is_one_line_and_the_last_checkpoint_is_whole(
    where, name, how, file, recipe, tmp_path, capsys, monkeypatch
) -> None:
    """At the second checkpoint, the second line of metrics, the model at the end; with room again the run goes on to the same numbers."""
    path = recipe(algorithm={"name": "grpo", "rollouts": 2})
    assert main(["train", path, f"output={tmp_path / 'straight'}"]) == 0
    run, real = tmp_path / "run", getattr(where, name)

    def later(*arguments, **options):
        if (run / "checkpoint.pt").exists():
            if how is not None:
                how()
            elif arguments[1] == file:  # it leads to where nothing fits
                (run / file).rename(run / "kept")
                (run / file).symlink_to("/dev/full")
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(where, name, later)
        said = refused(capsys, "train", path)
    assert said.startswith(f"unipg: the disk is full: '{run / file}' cannot be written")
    assert said.endswith("the last good checkpoint is untouched: make room and continue with --resume")
    if name == "_append":
        os.replace(run / "kept", run / "metrics.jsonl")
    assert not [p for p in run.rglob("*") if "writing" in p.name or p.name.startswith(".")]
    assert read_checkpoint(run)["iteration"] >= 1
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert main(["train", path, "--resume"]) == 0
    ours, theirs = (read_checkpoint(place)["module"] for place in (run, tmp_path / "straight"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3


# ---------------------------------------------------------------------------------------------------- weights that are no numbers


@pytest.mark.parametrize("skip", ["stop", "skip"])
def test_weights_that_are_no_numbers_stop_a_run_before_they_are_kept(skip, recipe, tmp_path, capsys) -> None:
    """A rate that carries weights out of what float32 holds, in the last step: no gradient is ever seen to be wrong."""
    optimizer = {"learning_rate": 1e38, "on_nonfinite": skip}
    path = recipe(training={"iterations": 3, "prompts": 4, "epochs": 2}, optimizer=optimizer)
    said = refused(capsys, "train", path)
    assert "the weights are no numbers any more after optimiser step " in said
    assert "(iteration 0): 'model.model." in said
    assert "optimizer.learning_rate, 1e+38, may be too large" in said
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    assert main(["train", recipe(training={"iterations": 1})]) == 0


class Blown(torch.optim.SGD):
    """Makes a weight infinite in its third step."""

    steps = 0

    def step(self, closure=None):
        super().step()
        Blown.steps += 1
        if Blown.steps == 3:
            self.param_groups[0]["params"][0].data[1, 2] = math.inf


def test_the_tensor_and_the_step_are_named_and_the_last_checkpoint_is_from_before(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Blown, "steps", 0)
    made = trainer(tmp_path, iterations=5)
    made.learner.optimizer = Blown(made.policy.module.parameters(), lr=0.1)
    with pytest.raises(NonFinite, match=r"after optimiser step 2 \(iteration 2\): 'logits' is not finite \(infinity; 1 of its 16 numbers"):
        made.train()
    kept = read_checkpoint(tmp_path)
    assert kept["iteration"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in kept["module"].values())


def test_a_run_does_not_begin_with_such_weights(tmp_path) -> None:
    made = trainer(tmp_path)
    made.policy.module["logits"].data[0, 0] = math.nan
    with pytest.raises(InputError, match="the policy cannot be used: 'logits' is not finite"):
        made.train()
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------------------------------------- a failed first batch


@pytest.mark.parametrize("how", ["verifier", "anchor", "killed", "interrupted", "evaluation"])
def test_a_run_that_fails_before_its_first_iteration_is_done_blocks_nothing(how, recipe, rows, tmp_path, capsys, monkeypatch) -> None:
    """Whatever it has written: recipe, model before training, held-out results, trackers' files, dumped batches."""
    (tmp_path / "hopeless.py").write_text("def judge(answer, item):\n    return float('nan')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "held.jsonl").write_text('{"q": "9 + 1 =", "a": "10"}\n', encoding="utf-8")
    held = {"items": 1, "tasks": [{"data": {"source": str(tmp_path / "held.jsonl"), "prompt": "q", "answer": "a"}}]}
    path = recipe(evaluation=held, logging={"trackers": ["tensorboard"]}, algorithm={"name": "grpo", "rollouts": 2, "kl": 0.1})
    run = tmp_path / "run"

    def fails(*_, **__) -> None:
        raise KeyboardInterrupt if how == "interrupted" else RuntimeError("broken")

    if how == "verifier":
        assert "gave nan" in refused(capsys, "train", path, "task.data.verifier=hopeless:judge")
    else:
        place = {"anchor": "unipg.training.run._ask_anchor", "evaluation": "unipg.rollouts.prompts.PromptRollouts.evaluate"}
        with monkeypatch.context() as patched:
            patched.setattr(place.get(how, "unipg.training.feeds.rollouts.Rollouts.begin"), fails)
            if how == "killed":
                assert subprocess.run([sys.executable, "-c", KILLED, path], stdout=subprocess.DEVNULL).returncode == 9
            elif how == "interrupted":
                assert main(["train", path]) == 130
            else:
                with pytest.raises(RuntimeError, match="broken"):
                    main(["train", path])
    assert json.loads((run / "run.json").read_text())["status"] == {"killed": "running", "interrupted": "interrupted"}.get(how, "failed")
    assert main(["train", path]) == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert len((run / "evaluations.jsonl").read_text().splitlines()) == 2
    assert "already exists" in refused(capsys, "train", path)


def test_a_trainers_folder_is_free_again_after_a_failed_first_batch(tmp_path, monkeypatch) -> None:
    def broken(*_, **__) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", broken)
        with pytest.raises(RuntimeError, match="broken"):
            trainer(tmp_path).train()
    assert os.listdir(tmp_path) == ["histograms.jsonl"]
    trainer(tmp_path).train()
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "histograms.jsonl").read_text().splitlines()]
    assert lines == sorted(lines)
    assert lines.count(0) == lines.count(1)


def test_two_runs_that_begin_at_once_do_not_share_a_folder(recipe, tmp_path) -> None:
    path = recipe(training={"iterations": 5})
    command = [sys.executable, "-m", "unipg.cli", "train", path]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1].strip() for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    (first,) = (process.pid for process in both if process.returncode == 0)
    (line,) = (text for text in said if text.startswith("unipg: "))
    assert f"process {first}, writes to it" in line or "already exists" in line
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in metrics] == list(range(5))


def test_a_lock_that_was_just_taken_is_waited_for(tmp_path) -> None:
    """Its holder is told although the file is still empty when it is first looked at."""
    import fcntl

    place = tmp_path / "run.lock"
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    later = threading.Timer(0.1, lambda: os.write(descriptor, b'{"pid": 4711}'))
    later.start()
    try:
        with pytest.raises(InputError, match="process 4711"), locked(tmp_path):
            pass
    finally:
        later.join()
        os.close(descriptor)
