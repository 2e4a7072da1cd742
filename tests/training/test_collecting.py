"""Datasets of a run: who acted, when in the run that was, and what scores are measured against."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unipg.cli import main
from unipg.errors import InputError
from unipg.replay import Transitions, open_data
from unipg.replay.cards import Episodes, References, digest
from unipg.replay.checks import check
from unipg.training import collecting
from unipg.training.collecting import Part, collect_dataset, references_from, trained_run
from unipg.training.observers import measured_returns
from unipg.training.trainer import Trainer

RECIPE = """
algorithm: {name: sac, discount: 0.9}
output: OUTPUT
environment: {id: Pendulum-v1, count: 2, steps: 40, evaluation_episodes: 2, options: {max_episode_steps: 20}}
controller: {hidden: [8]}
replay: {warmup: 20, batch: 16, updates_per_step: 0.25, capacity: 1000}
training: {iterations: 5}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a recipe was trained to for its data; its evaluations are then written anew, as those of one that learned."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE.replace("OUTPUT", str(folder / "sac")), encoding="utf-8")
    found = trained_run(str(folder / "recipe.yaml"))
    assert found == folder / "sac"
    assert sorted(int(place.name) for place in (found / "evaluated").iterdir()) == [0, 1, 2, 3, 4, 5]
    before = (found / "run.json").read_text(encoding="utf-8")
    assert trained_run(str(folder / "recipe.yaml")) == found
    assert (found / "run.json").read_text(encoding="utf-8") == before  # it is not trained again
    return learned(found)


def learned(run: Path) -> Path:
    """The run, with evaluations of one that learned."""
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, value in zip(rows, (-150.0, -140.0, -90.0, -20.0, -60.0, 50.0), strict=True):
        row["results"][0]["metrics"]["return"]["value"] = value
    (run / "evaluations.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return run


REFERENCES = References(-150, 50)


def collected(run: Path, mix: str, **more: Any) -> Transitions:
    return collect_dataset(run, mix=mix, references=REFERENCES, **{"episodes": 3} | more)


def test_medium_is_the_policy_that_came_nearest_to_its_share_of_the_way(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random returns about −115 here, the last policy 50: half of the way is nearest to −20, a third to −60, a tenth to −90."""
    for share, iteration in ((0.5, 3), (1 / 3, 4), (0.1, 2)):
        [part] = collected(run, "medium", medium=share).card["parts"]
        measured = measured_returns(run)[iteration]["return"]
        assert part["checkpoint"] == {"iteration": iteration, "step": iteration * 80, "measured return": measured}
    [part] = collected(run, "expert").card["parts"]
    assert part["checkpoint"] == {"iteration": 5, "step": 400, "measured return": 50.0}
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="medium is"):
            collected(run, "medium", medium=share)


def test_a_card_tells_all_that_made_the_rows(run: Path) -> None:
    data = collected(run, "random", seed=3)
    card = data.card
    assert card["sha256"] == digest(data)
    assert (card["transitions"], card["episodes"], card["seed"], card["mix"]) == (60, 3, 3, "random")
    assert card["ended"] == {"cut off": 0, "truncated": 3, "terminated": 0}
    found = Episodes.of(data).returns
    assert card["returns"] == {"mean": found.mean(), "std": found.std(), "min": found.min(), "max": found.max()}
    assert card["references"] == {"min": -150, "max": 50, "horizon": 20, "label": "local"}
    assert card["score"] == {"mean": (found.mean() + 150) / 2, "label": "local"}
    assert card["environment"]["id"] == "Pendulum-v1"
    assert card["environment"]["horizon"] == 20
    assert card["environment"]["action"]["low"] == [-2.0]
    assert {"unipg", "torch", "gymnasium", "numpy"} <= card["versions"].keys()
    assert check(data) == []
    assert json.loads(json.dumps(card)) == card


def test_the_seed_decides_the_rows_and_parts_differ(run: Path) -> None:
    sums = [collected(run, mix, seed=seed).card["sha256"] for mix, seed in (("expert", 0), ("expert", 0), ("expert", 1), ("medium", 0))]
    assert sums[0] == sums[1]
    assert len(set(sums)) == 3
    mixed = collect_dataset(run, mix="random=2,expert=3", references=REFERENCES)
    assert [(part["behaviour"], part["transitions"]) for part in mixed.card["parts"]] == [("random", 40), ("expert", 60)]
    np.testing.assert_array_equal(mixed.column("episode"), np.arange(5).repeat(20))
    alone = collected(run, "expert")
    np.testing.assert_array_equal(mixed.column("observation")[40:], alone.column("observation"))


def test_medium_replay_is_the_buffer_until_medium_was_reached(run: Path) -> None:
    data = collected(run, "medium-replay", medium=0.5)
    everything = open_data(run)
    assert len(data) == 3 * 80
    assert len(everything) == 5 * 80
    number = everything.column("episode")
    early = np.isin(number, np.unique(data.column("episode")))
    np.testing.assert_array_equal(data.column("observation"), everything.column("observation")[early])
    assert (np.diff(data.column("episode")) >= 0).all()  # environments side by side took turns
    assert (Episodes.of(data).length == 20).all()
    assert check(data, ignore=("rewards",)) == []


def test_medium_replay_ends_where_medium_was_reached_in_every_environment(tmp_path: Path) -> None:
    """Two environments side by side, 3 iterations of 30 steps, episodes of 20: four whole episodes of each, and half of the one after."""
    recipe = RECIPE.replace("OUTPUT", str(tmp_path / "sac")).replace("steps: 40", "steps: 30")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    data = collected(learned(trained_run(str(tmp_path / "recipe.yaml"))), "medium-replay", medium=0.5)
    assert Episodes.of(data).length.tolist() == [20] * 8 + [10] * 2


def test_medium_expert_has_as_many_transitions_of_both(run: Path) -> None:
    parts = collected(run, "medium-expert").card["parts"]
    assert [(part["behaviour"], part["transitions"]) for part in parts] == [("medium", 60), ("expert", 60)]


def test_a_part_that_is_longer_is_cut_where_the_other_ends() -> None:
    no = np.zeros(5, bool)
    rows = {"reward": np.arange(5.0), "terminated": np.array([False, True, False, False, True]), "truncated": no}
    for kept, truncated in ((2, False), (3, True), (5, False)):
        found = Part(rows, {}).cut(kept).rows
        assert found["reward"].tolist() == list(range(kept))
        assert found["truncated"][-1] == truncated
    assert not rows["truncated"].any()


def test_references_are_measured_where_none_are_given(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 random episodes, and of 4 of the last policy, whose rewards are shifted: an expert, or none. Then data of theirs scores 0 and
    100 in the mean, but for the luck of other episodes."""
    played, shift = collecting.Behaviours._played, {"random": 0.0, "expert": 1000.0}

    def shifted(self: Any, name: str, *rest: Any) -> dict[str, np.ndarray]:
        rows = played(self, name, *rest)
        return {**rows, "reward": rows["reward"] + np.float32(shift[name])}

    monkeypatch.setattr(collecting, "REFERENCE_EPISODES", 4)
    monkeypatch.setattr(collecting.Behaviours, "_played", shifted)
    for mix, score in (("random", 0), ("expert", 100)):
        card = collect_dataset(run, mix=mix, episodes=4).card
        assert card["references"]["horizon"] == 20
        assert card["score"]["mean"] == pytest.approx(score, abs=1)
    shift["expert"] = -1000
    with pytest.raises(InputError, match="it is no expert"):
        collect_dataset(run, mix="random", episodes=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix": "expret"}, "mix is 'expret'; did you mean 'expert'"),
        ({"mix": "random=2,replay=3"}, "mix has 'replay'; accepted: expert, medium, random"),
        ({"mix": "random=-3"}, "mix has 'random=-3'; accepted: 1 episode or more of each"),
        ({"mix": "random=2,expert=0"}, "mix has 'expert=0'; accepted: 1 episode or more of each"),
        ({"mix": "random=2", "episodes": 3}, "the mix has its own numbers"),
        ({"mix": "random", "episodes": 0}, "episodes is 0"),
    ],
)
def test_bad_mixes_are_refused(options: dict[str, Any], message: str, run: Path) -> None:
    with pytest.raises(InputError, match=message):
        collect_dataset(run, **{"references": REFERENCES} | options)


@pytest.mark.parametrize("text", ["1", "a,b", "1,2,3", "2,1"])
def test_references_are_two_numbers(text: str) -> None:
    with pytest.raises(InputError, match=r"references are|reference returns are"):
        references_from(text)


def test_commands_from_a_run_to_a_checked_dataset(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "data.npz")
    asked = ["data", "collect", str(run), "--mix", "random", "--episodes", "4", "--references=-150,50"]
    assert main([*asked, "--out", place]) == 0
    told = capsys.readouterr().out
    assert "Pendulum-v1 random: 80 transitions, 4 episodes, return" in told
    assert f"next     unipg data check {place}" in told
    assert main(["data", "check", place]) == 0
    assert "nothing found in 80 transitions" in capsys.readouterr().out
    assert main(["data", "show", place]) == 0
    assert "reward            float32 []" in capsys.readouterr().out
    assert main(["data", "show", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
    rows = {column.name: open_data(place).column(column.name) for column in open_data(place).columns}
    broken = {**rows, "action": rows["action"] * 2, "reward": np.where(rows["reward"] < -5, np.nan, rows["reward"])}
    np.savez(tmp_path / "broken.npz", **broken)  # type: ignore[arg-type]
    assert main(["data", "check", str(tmp_path / "broken.npz"), "--environment", "Pendulum-v1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[2] for line in lines[:-1]] == ["finite", "actions"]
    assert all(line.startswith(f"{tmp_path / 'broken.npz'}: ") for line in lines[:-1])
    assert main(["data", "check", str(tmp_path / "broken.npz"), "--ignore", "finite"]) == 0
    del rows["reward"]
    np.savez(tmp_path / "bare.npz", **rows)  # type: ignore[arg-type]
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "bare.npz")]) == 0
    assert "nothing found in 80 transitions; there are no rewards" in capsys.readouterr().out
    assert main(["data", "show", str(tmp_path / "bare.npz")]) == 0
    shown = capsys.readouterr().out
    assert "rewards           none are given" in shown
    assert "return" not in shown
    for arguments, message in (
        (["data", "check", str(tmp_path / "none.npz")], "does not exist"),
        (["data", "check", place, "--ignore", "nothing"], "do not exist"),
        ([*asked, "--out", str(tmp_path / "data.csv")], "cannot be written"),
        ([*asked, "--out", str(tmp_path / "broken.npz")], "exists: nothing is written over"),
        (["data", "collect", str(tmp_path), "--out", str(tmp_path / "new.npz")], "holds no run"),
        (["data"], "required"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_training_that_is_stopped_goes_on_with_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, place = tmp_path / "recipe.yaml", tmp_path / "data.npz"
    recipe.write_text(RECIPE.replace("OUTPUT", str(tmp_path / "sac")), encoding="utf-8")
    command = ["data", "collect", str(recipe), "--mix", "random", "--episodes", "1", "--references=-150,50", "--out", str(place)]
    finished = Trainer._finish_iteration

    def stopped(self: Trainer, seconds: float) -> dict[str, Any]:
        row = finished(self, seconds)
        self.stop_requested = self.iteration == 2
        return row

    monkeypatch.setattr(Trainer, "_finish_iteration", stopped)
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert not place.exists()
    monkeypatch.undo()
    assert main(command) == 0
    assert len(open_data(place)) == 20
    assert [each["iteration"] for each in measured_returns(tmp_path / "sac")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", ["folder", "minari:pendulum/random-v0"])
def test_a_collection_may_go_to_a_folder_or_to_minari(
    place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    asked = ["data", "collect", str(run), "--mix", "random", "--episodes", "2", "--references=-150,50", "--out", place]
    assert main(asked) == 0
    data = open_data(place)
    assert data.card["sha256"] == digest(data)
    assert main(asked) == 2
    assert "exists: nothing is written over" in capsys.readouterr().err


def test_a_run_that_kept_too_little_is_told(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "sac")
    shutil.rmtree(tmp_path / "sac" / "evaluated")
    with pytest.raises(InputError, match="a run with training"):
        collected(tmp_path / "sac", "medium")
    assert len(collected(tmp_path / "sac", "expert")) == 60
