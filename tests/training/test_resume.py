"""What a run may be continued with: the same data, more iterations, its own environments; and kills at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import pytest
import torch
import yaml

from unipg.algorithms import algorithm_named
from unipg.algorithms.control.ppo import PPO
from unipg.cli import main
from unipg.errors import InputError
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.tasks.base import Item, ScoredCompletion, fingerprint
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe, checkpoints
from unipg.training.checkpoints import NAME, PREVIOUS, read_checkpoint
from unipg.training.trainer import Observer, Stopped


def refused(capsys, *arguments: str) -> str:
    """The one line that a refused command prints; exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    assert "Traceback" not in printed
    return printed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder)["module"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class Notes(Observer):
    """An observer that keeps what it is told in words."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text):
        self.notes.append(text)


def trainer(place: Path, iterations: int, overlap: bool = False, anchor: int | None = None, **options) -> Trainer:
    return Trainer(
        algorithm_named("grpo")(kl=0.0 if anchor is None else 0.1),
        BigramPolicy(4, seed=1),
        StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2), prompts=6),
        folder=place,
        training=TrainingRecipe(iterations=iterations, epochs=2, overlap=overlap),
        optimizer=OptimizerRecipe(**{"learning_rate": 0.1, **options}),
        anchor=None if anchor is None else BigramPolicy(4, seed=anchor).frozen_copy(),
        observer=Notes(),
        seed=3,
    )


# ---------------------------------------------------------------------------------------------------- more iterations


@pytest.mark.parametrize(("overlap", "stop"), [(False, None), (False, 3), (True, None)])
def test_a_run_that_is_made_longer_is_the_longer_run(overlap, stop, tmp_path) -> None:
    """Finished, or stopped within an iteration; where nothing is scheduled over the whole run, to the last bit."""
    straight = trainer(tmp_path / "straight", 5, overlap)
    straight.train()
    first = trainer(tmp_path / "run", 3, overlap)
    first.stop_after_steps = stop
    if stop is None:
        first.train()
    else:
        with pytest.raises(Stopped):
            first.train()
    second = trainer(tmp_path / "run", 5, overlap)
    second.resume()
    assert second.observer.notes == [
        "training.iterations was 3 and is 5: what is scheduled over the whole run now ends at optimiser step 10 instead of 6; the learning "
        "rate is constant (0.1)"
    ]
    second.train()
    assert torch.equal(second.policy.logits, straight.policy.logits)


@pytest.mark.parametrize(
    ("schedule", "stop", "said"),
    [
        ("linear", None, "the learning rate goes on at 0.05, where the linear schedule had ended at 0"),
        ("cosine", None, "the learning rate goes on at 0.05, where the cosine schedule had ended at 0"),
        ("linear", 2, "the learning rate goes on at 0.0833, where the linear schedule had come to 0.0667"),
    ],
)
def test_what_a_schedule_makes_of_it_is_said(schedule, stop, said, tmp_path) -> None:
    first = trainer(tmp_path, 3, schedule=schedule)
    first.stop_after_steps = stop
    try:
        first.train()
    except Stopped:
        assert stop
    second = trainer(tmp_path, 6, schedule=schedule)
    second.resume()
    assert second.observer.notes[0].endswith(f"now ends at optimiser step 12 instead of 6; {said}")
    assert second.train()["learning_rate"] == pytest.approx(second.learner.recipe.learning_rate_at(11, 12))


def test_a_run_may_be_made_shorter_but_not_than_it_is(tmp_path) -> None:
    first = trainer(tmp_path, 5)
    first.stop_after_steps = 5  # in the middle of the third iteration
    with pytest.raises(Stopped):
        first.train()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"training.iterations is 2, but the run in '.*' is in iteration 3 already; accepted: 3 or more"):
        trainer(tmp_path, 2).resume()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    shorter = trainer(tmp_path, 3)
    shorter.resume()
    shorter.train()
    assert (shorter.iteration, shorter.step) == (3, 6)


def test_longer_on_the_command_line(recipe, tmp_path, capsys) -> None:
    path = recipe(training={"iterations": 2})
    assert main(["train", path]) == 0
    run = tmp_path / "run"
    assert main(["train", path, "--resume"]) == 0
    assert "finished: nothing left to do" in " ".join(capsys.readouterr().out.split())
    assert main(["train", path, "--resume", "training.iterations=4"]) == 0
    assert "training.iterations was 2 and is 4" in capsys.readouterr().out
    assert [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["iterations"], len(record["resumed"])) == ("finished", 4, 1)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["iterations"] == 4
    assert main(["train", path, f"output={tmp_path / 'straight'}", "training.iterations=4"]) == 0
    assert equal(weights(run), weights(tmp_path / "straight"))
    before = (run / "run.json").read_text()
    assert "training.iterations is 3, but the run in" in refused(capsys, "train", path, "--resume", "training.iterations=3")
    assert (run / "run.json").read_text() == before


# ---------------------------------------------------------------------------------------------------- the same data


def test_a_run_goes_on_with_the_same_data_or_not_at_all(recipe, rows, tmp_path, capsys) -> None:
    streams = tmp_path / "stream.jsonl"
    streams.write_bytes(rows.read_bytes())
    own = {"prompts": 2, "task": {"data": {"source": str(streams), "prompt": "q", "answer": "a", "demonstration": "a"}}}
    path = recipe(training={"iterations": 2}, algorithm="sft", demonstrations=own)
    assert main(["train", path]) == 0
    run = tmp_path / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    more = ["--resume", "training.iterations=3"]
    for file, name in ((rows, "task"), (streams, "demonstrations.task")):
        kept = file.read_text()
        for changed in (kept + '{"q": "9 + 9 =", "a": "18"}\n', kept.replace('"4"', '"5"'), "\n".join(reversed(kept.splitlines()))):
            file.write_text(changed)
            said = refused(capsys, "train", path, *more)
            assert f"{name} has changed since the run in '{run}' was started (12 items, " in said
            assert f"then, {len(changed.splitlines())} items, " in said
        file.write_text(kept.replace('", "a"', '" ,  "a"'))  # says the same
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert main(["train", path, *more]) == 0


def test_everything_that_an_item_says_counts() -> None:
    one = Item(0, "q", ("d",), "e", {"more": [1, {2, 3}, b"x"]}, "place", (ScoredCompletion("c", 1.0),))
    base = fingerprint([one])
    assert base == fingerprint([Item(0, "q", ("d",), "e", {"more": [1, {3, 2}, b"x"]}, "elsewhere", (ScoredCompletion("c", 1.0),))])
    others = [
        Item(0, "Q", one.demonstrations, "e", one.fields, "", one.completions),
        Item(0, [{"role": "user", "content": "q"}], one.demonstrations, "e", one.fields, "", one.completions),
        Item(0, "q", ("d", "d"), "e", one.fields, "", one.completions),
        Item(0, "q", one.demonstrations, None, one.fields, "", one.completions),
        Item(0, "q", one.demonstrations, "e", {"more": [1, {2, 3}, b"y"]}, "", one.completions),
        Item(0, "q", one.demonstrations, "e", one.fields, "", (ScoredCompletion("c", 0.0),)),
    ]
    found = {fingerprint([other]) for other in others}
    assert len(found | {base, fingerprint([one, one]), fingerprint([])}) == len(others) + 3


def test_another_anchor_is_refused(tmp_path) -> None:
    first = trainer(tmp_path, 4, anchor=5)
    first.stop_after_steps = 4
    with pytest.raises(Stopped):
        first.train()
    with pytest.raises(InputError, match="the anchor has changed since the run in"):
        trainer(tmp_path, 4, anchor=6).resume()
    trainer(tmp_path, 4, anchor=5).resume()


# ---------------------------------------------------------------------------------------------------- environments


def talking(**options):
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    class Talking(CartPoleEnv):
        """Its mood is text, which no number says."""

        mood = ""

        def step(self, action):
            self.mood = "up" if action else "down"
            return super().step(action)

    return Talking(**options)


gymnasium.register("Talker-v0", talking)


def controller(place: Path, name: str = "CartPole-v1") -> Trainer:
    experience = EnvironmentRecipe(name, 2, 16, evaluation_episodes=2, vectorized=False).build(0)
    policy = ActorCriticRecipe(hidden=[8]).build(experience.observation_space, experience.action_space, 0)
    return Trainer(PPO(), policy, experience, folder=place, training=TrainingRecipe(iterations=4))


@pytest.mark.filterwarnings("ignore:environment 'Talker-v0' is more than its numbers")
@pytest.mark.parametrize("name", ["CartPole-v1", "Talker-v0"])
def test_pickled_environments_of_others_are_loaded_only_where_they_are_trusted(name, tmp_path, monkeypatch) -> None:
    straight = controller(tmp_path / "straight", name)
    straight.train()
    first = controller(tmp_path / "run", name)
    first.stop_after_steps = 2
    with pytest.raises(Stopped):
        first.train()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    second = controller(tmp_path / "run", name)
    if name == "CartPole-v1":  # no more than its numbers: nothing in the folder is pickled
        assert not list((tmp_path / "run").glob("*.pkl"))
        second.resume()
        second.train()
        assert equal(second.policy.module.state_dict(), straight.policy.module.state_dict())
        return
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match=r"was not written by this user here, .*which runs whatever code is in them; .*add trust=True$"):
        second.resume()
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    second.resume(trust=True)
    second.train()
    assert equal(second.policy.module.state_dict(), straight.policy.module.state_dict())


# ---------------------------------------------------------------------------------------------------- kills

WRITING = """
import os, sys, time
from unipg.training import checkpoints
fsync, calls = os.fsync, [0]
def slow(descriptor):
    calls[0] += 1
    if calls[0] >= int(sys.argv[1]):  # within writing a checkpoint, before or after a renaming
        print("writing", flush=True)
        time.sleep(60)
    fsync(descriptor)
checkpoints.os.fsync = slow
from unipg.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("call", [1, 3, 4])
def test_a_kill_within_writing_a_checkpoint_loses_nothing(call, recipe, tmp_path) -> None:
    """Odd calls stand before the renamings, even ones behind; the first before there is any checkpoint."""
    path = recipe(training={"iterations": 4})
    straight = tmp_path / "straight"
    assert main(["train", path, f"output={straight}"]) == 0
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(call), "train", path], stdout=subprocess.PIPE, text=True)
    assert any(line == "writing\n" for line in process.stdout)
    process.kill()
    process.wait()
    process.stdout.close()
    run = tmp_path / "run"
    assert (run / f"{NAME}.writing").exists() == (call % 2 == 1)
    assert (run / NAME).exists() == (call > 1)
    assert main(["train", path, "--resume"]) == 0
    assert equal(weights(run), weights(straight))
    assert [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    assert sorted(p.name for p in run.glob("checkpoint*")) == sorted([NAME, PREVIOUS])


def test_a_kill_between_the_renamings_loses_one_iteration_at_most(recipe, tmp_path, monkeypatch) -> None:
    path = recipe(training={"iterations": 4})
    assert main(["train", path, f"output={tmp_path / 'straight'}"]) == 0
    replace = os.replace

    def killed(source, target) -> None:
        if Path(target).name == NAME and Path(target).with_name(PREVIOUS).exists():
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.os, "replace", killed)
        assert main(["train", path]) == 130
    assert not (tmp_path / "run" / NAME).exists()
    assert main(["train", path, "--resume"]) == 0
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "straight"))


def test_kills_at_random_moments_change_nothing(recipe, tmp_path) -> None:
    """kill -9, again and again, wherever the run is: building, sampling, stepping, writing."""
    path = recipe(training={"iterations": 40, "epochs": 2}, algorithm={"name": "grpo", "rollouts": 2})
    assert main(["train", path, f"output={tmp_path / 'straight'}"]) == 0
    draw, run = random.Random(), tmp_path / "run"
    for least in (0, 5, 12):
        more = ["--resume"] if run.exists() else []
        process = subprocess.Popen([sys.executable, "-m", "unipg.cli", "train", path, *more], stdout=subprocess.DEVNULL)
        metrics = run / "metrics.jsonl"
        while process.poll() is None and least and not (metrics.is_file() and metrics.read_bytes().count(b"\n") > least):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2 if least else 6))
        process.kill()
        process.wait()
    assert main(["train", path, *(["--resume"] if run.exists() else [])]) == 0
    assert equal(weights(run), weights(tmp_path / "straight"))
    straight, ours = (
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds" and not key.startswith("time/")}
            for line in (place / "metrics.jsonl").read_text().splitlines()
        ]
        for place in (tmp_path / "straight", run)
    )
    assert ours == straight


def test_the_two_checkpoints_are_of_two_moments(tmp_path) -> None:
    """Though the last iteration is saved twice: when it is done, and when it was evaluated."""
    trainer(tmp_path, 3).train()
    assert [checkpoints._read(tmp_path / name)["iteration"] for name in (NAME, PREVIOUS)] == [3, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_says_who_asked(number, code, recipe, tmp_path, monkeypatch, capsys) -> None:
    path = recipe(training={"iterations": 4})
    from unipg.training.feeds.rollouts import Rollouts

    collect = Rollouts.begin

    def asked(self) -> None:
        collect(self)
        if self.run.iteration == 1:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(Rollouts, "begin", asked)
        assert main(["train", path]) == code
    assert "stopped; nothing is lost. Continue with:" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert main(["train", path, "--resume"]) == 0
