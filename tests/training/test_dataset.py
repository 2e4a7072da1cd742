"""Runs that learn from given transitions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unipg.errors import InputError
from unipg.front import train
from unipg.loading import live_function
from unipg.policies.actor_critic import ActorCritic
from unipg.replay import Transitions, open_data
from unipg.training.collapse import Finding
from unipg.training.observer import Observer, Stopped
from unipg.training.optimization import TrainingRecipe
from unipg.training.recipe import load_recipe, recipe_from
from unipg.training.run import build, run_recipe
from unipg.training.trainer import Trainer

ROWS = 60


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    ends = np.arange(ROWS) % 20 == 19
    return {
        "observation": draw.standard_normal((ROWS, 3)).astype(np.float32) * [1, 100, 0.01] + [0, 50, 0],
        "next_observation": draw.standard_normal((ROWS, 3)).astype(np.float32),
        "action": draw.uniform(-2, 2, (ROWS, 1)).astype(np.float32),
        "reward": draw.standard_normal(ROWS).astype(np.float32),
        "terminated": np.zeros(ROWS, bool),
        "truncated": ends,
        **changes,
    }


def run(folder: Path, data: dict[str, np.ndarray], *, dataset: dict | None = None, iterations: int = 1, **more):
    np.savez(folder / "data.npz", **data)
    given = {"path": str(folder / "data.npz"), "batch": 8, "updates": 5} | (dataset or {})
    environment = {"id": "Pendulum-v1", "evaluation_episodes": 1}
    return train(
        **{"algorithm": "td3_bc", "output": str(folder / "run"), "threads": 1} | more,
        environment=environment,
        dataset=given,
        controller={"hidden": [8]},
        training={"iterations": iterations, "evaluate_every": 0},
    )


def test_statistics_are_those_of_the_whole_dataset_and_stay(tmp_path: Path) -> None:
    run(tmp_path, arrays(), iterations=3)
    normalizer = ActorCritic.load(tmp_path / "run" / "model").module.normalizer
    seen = arrays()["observation"]
    assert float(normalizer.count) == ROWS
    torch.testing.assert_close(normalizer.mean, torch.from_numpy(seen.mean(0, dtype=np.float64)), rtol=1e-6, atol=1e-6)


class Notes(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, text: str) -> None:
        self.heard.append(text)

    def warning(self, finding: Finding) -> None:
        self.heard.append(str(finding))


@pytest.mark.parametrize(("algorithm", "told"), [("bc", 1), ("iql", 0)])
def test_rewards_that_an_imitation_is_given_are_told_of_once(tmp_path: Path, algorithm: str, told: int) -> None:
    notes = Notes()
    run(tmp_path, arrays(), algorithm=algorithm, iterations=2, observers=[notes])
    assert [("the rewards of" in text, text.count("\n")) for text in notes.heard] == [(True, 0)] * told


def test_recoil_needs_no_rewards_and_an_expert_of_the_same_spaces(tmp_path: Path) -> None:
    without = arrays()
    del without["reward"]
    expert, notes = str(tmp_path / "expert.npz"), Notes()
    recoil = {"algorithm": "recoil", "dataset": {"demonstrations": expert}}
    np.savez(expert, **without)
    run(tmp_path, without, **recoil, observers=[notes])
    assert notes.heard == []
    for wrong, told in (
        ({"action": np.zeros((ROWS, 2), np.float32)}, "shape"),
        ({name: rows[:0] for name, rows in without.items()}, "no rows"),
    ):
        np.savez(expert, **{**without, **wrong})
        with pytest.raises(InputError, match=told):
            run(tmp_path, without, **recoil, output=str(tmp_path / "other"))


def test_a_policy_without_any_gradient_is_told_of(tmp_path: Path) -> None:
    """Rewards so low that no residual is above 0: every weight is."""
    notes = Notes()
    run(tmp_path, arrays(), algorithm="odice", dataset={"reward_shift": -1000.0, "updates": 110}, iterations=2, observers=[notes])
    assert [text for text in notes.heard if "receives no gradient, for 110 steps" in text] == notes.heard != []


def test_a_number_that_hardly_changes_is_told_of(tmp_path: Path) -> None:
    still, notes = arrays(), [Notes(), Notes()]
    still["observation"] = still["observation"] * [1, 0, 1] + [0, 50, 0]
    for name, data, listener in zip(("moving", "still"), (arrays(), still), notes, strict=True):
        (tmp_path / name).mkdir()
        run(tmp_path / name, data, observers=[listener])
    assert notes[0].heard == []
    assert [text for text in notes[1].heard if "numbers 1 hardly change" in text] == notes[1].heard


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"action": np.full((ROWS, 1), 2.5, np.float32)}, "row 0"),
        ({"observation": np.full((ROWS, 3), np.nan, np.float32)}, "'observation' is not finite in row 0"),
        ({"observation": np.zeros((ROWS, 4), np.float32), "next_observation": np.zeros((ROWS, 4), np.float32)}, "shape [4]"),
        ({"action": np.zeros(ROWS, np.int64)}, "int64"),
        ({"reward": np.zeros(ROWS - 1, np.float32)}, "reward [59]"),
        ({"rewards": np.zeros(ROWS, np.float32)}, "name one column twice"),
    ],
)
def test_rows_that_are_not_of_the_environment_are_refused(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(InputError, match=told.replace("[", r"\[")):
        run(tmp_path, arrays(**changes))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"dataset": {"reward_scale": 0}}, "reward_scale is 0"),
        ({"dataset": {"updates": 0}}, "updates is 0"),
        ({"algorithm": "ppo"}, "one of"),
        ({"dataset": {"path": "nowhere.npz"}}, "does not exist"),
        ({"dataset": {"demonstrations": "more.npz"}}, "demonstrations is given"),
        ({"replay": {}}, "dataset.batch is given"),
        ({"replay": {}, "dataset": {"batch": None, "share": 1.0}}, "share is 1.0"),
    ],
)
def test_sections_that_do_not_fit_are_refused(tmp_path: Path, more: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        run(tmp_path, arrays(), **more)


def test_an_offline_algorithm_wants_data() -> None:
    with pytest.raises(InputError, match="dataset"):
        train("td3_bc", environment="Pendulum-v1", output="nowhere")


def test_scaling_rewards_changes_nothing_else(tmp_path: Path) -> None:
    """Of the weights of behaviour cloning, which reads no rewards, nothing at all."""
    weights = []
    for name, scale in (("plain", 1.0), ("scaled", 7.0)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, arrays(), algorithm="bc", dataset={"reward_scale": scale, "reward_shift": scale - 1})
        weights.append(ActorCritic.load(tmp_path / name / "run" / "model").module.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_folder_is_mapped_and_says_the_same(tmp_path: Path) -> None:
    data = Transitions.of(arrays(), {"environment": "Pendulum-v1"})
    data.save(tmp_path / "data")
    mapped = open_data(tmp_path / "data")
    assert mapped.card == {"environment": "Pendulum-v1"}
    assert mapped.fingerprint() == data.fingerprint()
    index = torch.tensor([3, 0, 59])
    for name, value in data.draw(index).items():
        assert torch.equal(value, mapped.draw(index, name)[name])


def test_a_time_limit_is_not_followed_by_the_next_episode() -> None:
    """Without next observations the last row of an episode that was cut is left out; a terminal one is kept."""
    given = arrays()
    del given["next_observation"]
    given["terminated"] = np.arange(ROWS) == 39
    data = Transitions.of(given)
    assert len(data) == ROWS - 2
    rows = data.column("episode")
    last = np.flatnonzero(np.diff(rows)).tolist()
    assert [int(data.column("terminated")[row]) for row in last] == [0, 1]
    middle = ~data.column("terminated")
    follow = given["observation"].astype(np.float32)
    assert all(np.any(np.all(follow == after, 1)) for after in data.column("next_observation")[middle])


def joined(folder: Path, name: str) -> Trainer:
    """A run that draws a quarter of its rows from the dataset and the others from what it keeps, rewards tenfold."""
    np.savez(folder / "data.npz", **arrays())
    environment = {"id": "Pendulum-v1", "count": 1, "steps": 6, "evaluation_episodes": 1}
    given = {"path": str(folder / "data.npz"), "share": 0.25, "reward_scale": 10.0}
    controller = {"hidden": [8], "kind": "deterministic"}
    values = {"algorithm": "td3_bc", "environment": environment, "dataset": given, "replay": {"batch": 8}, "controller": controller}
    recipe = recipe_from(values)
    algorithm = recipe.build_algorithm()
    policy, experience = build(recipe, algorithm, torch.device("cpu"))
    training = TrainingRecipe(iterations=3, save_every=1, evaluate_every=0)
    sections = {"replay": recipe.replay, "dataset": recipe.dataset, "training": training}
    return Trainer(algorithm, policy, experience, folder=folder / name, **sections)


def test_kept_rows_and_given_ones_make_up_a_batch(tmp_path: Path) -> None:
    feed = joined(tmp_path, "run").feed
    feed.begin()
    for round in range(3):
        feed.gather(round)
    batch = feed.draw(2, 0)
    own, given = (torch.from_numpy(rows) for rows in (feed.ring.draw(torch.arange(3))["reward"].numpy(), arrays()["reward"]))
    reward = batch.step_reward[:, 0]
    assert len(batch) == 8
    assert all(bool(torch.isclose(10 * own, each).any()) for each in reward[:6])
    assert all(bool(torch.isclose(10 * given, each).any()) for each in reward[6:])
    assert not any(bool(torch.isclose(10 * given, each).any()) for each in reward[:6])
    assert bool((batch.action.abs() <= 1).all())


def test_a_joined_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    straight = joined(tmp_path, "straight")
    straight.train()
    first = joined(tmp_path, "stopped")
    first.stop_after_steps = 8
    with pytest.raises(Stopped):
        first.train()
    second = joined(tmp_path, "stopped")
    second.resume()
    second.train()
    expected, found = (run.policy.module.state_dict() for run in (straight, second))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert straight.step == 18


def test_transitions_in_memory_are_taken_from_python(tmp_path: Path) -> None:
    """A place, or the rows themselves; recorded by their fingerprint, so that another process asks for them."""
    data = Transitions.of(arrays())
    data.save(tmp_path / "data")
    weights = []
    for name, given in (("rows", data), ("place", tmp_path / "data"), ("section", {"path": data})):
        train(
            "bc",
            environment={"id": "Pendulum-v1", "evaluation_episodes": 1},
            dataset=given,
            controller={"hidden": [8]},
            training={"iterations": 1, "evaluate_every": 0},
            output=str(tmp_path / name),
            threads=1,
        )
        weights.append(ActorCritic.load(tmp_path / name / "model").module.state_dict())
    assert all(torch.equal(value, other[key]) for key, value in weights[0].items() for other in weights[1:])
    with pytest.raises(InputError, match="in no file"):
        run_recipe(load_recipe(tmp_path / "rows" / "recipe.yaml"), resume=True)


def test_the_same_rows_elsewhere_are_the_same_run(tmp_path: Path) -> None:
    run(tmp_path, arrays())
    (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml", [f"dataset.path={tmp_path / 'moved.npz'}", "training.iterations=2"])
    run_recipe(recipe, resume=True)
    np.savez(tmp_path / "moved.npz", **arrays(reward=np.ones(ROWS, np.float32)))
    with pytest.raises(InputError, match="not the one that the run has learned from"):
        run_recipe(load_recipe(tmp_path / "run" / "recipe.yaml", [f"dataset.path={tmp_path / 'moved.npz'}"]), resume=True)


def raising() -> dict[str, np.ndarray]:
    raise ValueError("no rows today")


@pytest.mark.parametrize(("function", "told"), [(raising, "no rows today"), (lambda: [1, 2], "gave a list")])
def test_a_function_that_gives_no_data_is_one_line(tmp_path: Path, function, told: str) -> None:
    with pytest.raises(InputError, match=told):
        train("bc", environment="Pendulum-v1", dataset={"path": live_function(function)}, output=str(tmp_path / "run"), threads=1)


def test_prdc_goes_on_online_with_the_pairs_of_its_dataset(tmp_path: Path) -> None:
    environment = {"id": "Pendulum-v1", "count": 1, "steps": 6, "evaluation_episodes": 1}
    np.savez(tmp_path / "data.npz", **arrays())
    train(
        "prdc",
        environment=environment,
        dataset={"path": str(tmp_path / "data.npz")},
        replay={"batch": 8},
        controller={"hidden": [8]},
        training={"iterations": 1, "evaluate_every": 0},
        output=str(tmp_path / "run"),
        threads=1,
    )
