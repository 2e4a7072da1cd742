"""Datasets, where other libraries have gone wrong: episode ends (A), normalisation (E), scores (F), offline data and imitation (I)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg.errors import InputError
from unipg.front import Run, train
from unipg.policies.actor_critic import ActorCritic
from unipg.replay import Transitions, open_data, save_data
from unipg.replay.cards import Episodes, References
from unipg.rollouts.collecting import bystander, collect_episodes
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.training.collecting import collect_dataset

MIX = Path(__file__).parents[2] / "benchmarks" / "data" / "pendulum-mix.npz"
NAMES = ("observation", "next_observation", "action", "reward", "terminated", "truncated", "episode")


class Forever(gymnasium.Env):
    """One state, one reward, and never an end of its own."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space: spaces.Space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.ones(1, np.float32), 1.0, False, False, {}


class Luck(gymnasium.Env):
    """One step; N(0, 1), whatever is done and whatever the seed: nobody is any good at it."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space: spaces.Space = spaces.Box(-1.0, 1.0, (1,))
    draw = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.ones(1, np.float32), float(self.draw.standard_normal()), True, False, {}


gymnasium.register("DataForever-v0", entry_point=Forever, max_episode_steps=5)
gymnasium.register("DataLuck-v0", entry_point=Luck)


def learned(folder: Path, data: Transitions, environment: Any, algorithm: Any = "td3_bc", **more: Any) -> Run:
    folder.mkdir(exist_ok=True)
    save_data(data, folder / "data.npz")
    dataset = {"path": str(folder / "data.npz"), "batch": 16, "updates": 100} | more.pop("dataset", {})
    sections: dict[str, Any] = {"controller": {"hidden": [4]}, "training": {"iterations": 1}} | more
    return train(
        algorithm, environment=environment, dataset=dataset, output=str(folder / "run"), threads=1, progress=False, **sections,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- A


@pytest.mark.parametrize(("spoilt", "value"), [(False, 10.0), (True, 3.57)], ids=["time limits", "taken for terminals"])
def test_a_time_limit_in_data_is_no_end_of_the_world(spoilt: bool, value: float, tmp_path: Path) -> None:
    """Reward 1 for ever at discount 0.9 is worth 10; where limits of 5 steps are terminals it is the fixed point of one state,
    V = 1 + 0.9 · 4/5 · V: 3.57."""
    recipe = EnvironmentRecipe("DataForever-v0", vectorized=False)
    rows = collect_episodes(recipe, bystander(recipe, 0), 40, 0, uniform=True)
    if spoilt:
        rows |= {"terminated": rows["truncated"], "truncated": rows["terminated"]}
    algorithm = {"name": "td3_bc", "discount": 0.9, "tau": 0.5}
    own = {"learners": {"critic": {"learning_rate": 0.05}}}
    found = learned(
        tmp_path, Transitions.of(rows), {"id": "DataForever-v0", "evaluation_episodes": 1}, algorithm, optimizer=own,
        dataset={"updates": 200, "batch": 64},
    )  # fmt: skip
    policy = ActorCritic.load(tmp_path / "run" / "model", found.recipe.build_algorithm().networks(False))
    policy.load_critic(tmp_path / "run" / "critic")
    values = policy.network("q")(torch.cat([policy.read(torch.ones(1, 1)), torch.zeros(1, 1)], 1)).detach()
    assert values.flatten().tolist() == pytest.approx([value, value], abs=0.5)


def test_a_step_of_data_is_the_environments_own() -> None:
    """The kept mix: rewards belong to the state that was left and the action that was taken, and angles follow each other as physics says.
    The last row of an episode leads to its true final observation, not to the next episode's first."""
    data = open_data(MIX)
    seen, after = data.column("observation").astype(np.float64), data.column("next_observation").astype(np.float64)
    force = data.column("action")[:, 0].astype(np.float64)
    angle, speed = np.arctan2(seen[:, 1], seen[:, 0]), seen[:, 2]
    np.testing.assert_allclose(data.column("reward"), -(angle**2 + 0.1 * speed**2 + 0.001 * force**2), rtol=1e-4, atol=1e-4)
    faster = np.clip(speed + (15 * np.sin(angle) + 3 * force) * 0.05, -8, 8)
    np.testing.assert_allclose(after[:, 2], faster, rtol=1e-4, atol=1e-4)
    turned = angle + faster * 0.05
    np.testing.assert_allclose(after[:, :2], np.stack([np.cos(turned), np.sin(turned)], 1), atol=1e-4)
    found = Episodes.of(data)
    assert (found.length == 200).all()
    assert data.column("truncated").sum() == 60
    assert not data.column("terminated").any()


# ---------------------------------------------------------------------------------------------------------------- E


def test_statistics_of_data_are_saved_and_stand_still(tmp_path: Path) -> None:
    """Every number in units of its own: of scales 1 and 1000 alike, and one that never changes is bounded. Acting is the same after a
    load, and evaluating changes nothing."""
    draw = np.random.default_rng(0)
    walk = np.concatenate([draw.standard_normal((201, 2)) * [1, 1000], np.full((201, 1), 0.1)], 1).astype(np.float32)
    last = np.arange(200) == 199
    data = Transitions.of(
        {"observation": walk[:-1], "next_observation": walk[1:], "action": draw.uniform(-2, 2, (200, 1)), "reward": walk[1:, 0],
         "terminated": ~last & False, "truncated": last}
    )  # fmt: skip
    run = learned(tmp_path, data, {"id": "Pendulum-v1", "evaluation_episodes": 1}, "bc", dataset={"updates": 3})
    policy = ActorCritic.load(tmp_path / "run" / "model")
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    read = policy.read(torch.from_numpy(walk[:-1]))
    assert read.std(0)[:2].tolist() == pytest.approx([1, 1], abs=0.01)
    assert read[:, 2].abs().max() < 1
    actions = run.policy.act(walk[:100])
    run.evaluate(episodes=1)
    again = ActorCritic.load(tmp_path / "run" / "model")
    assert all(torch.equal(value, before[name]) for name, value in again.module.state_dict().items())
    np.testing.assert_array_equal(again.outward()(walk[:100], again.actor()(walk[:100], None)), actions)


# ---------------------------------------------------------------------------------------------------------------- F


def test_the_best_of_many_noisy_evaluations_is_not_what_is_told(tmp_path: Path) -> None:
    """Nobody is any good, and of 21 evaluations of 5 episodes the best is about 0.8. The run tells it beside the last, and of how many it
    is the highest; `evaluate` plays other episodes, where the best policy is as good as any."""
    zero, ends = np.ones((8, 1), np.float32), np.ones(8, bool)
    data = Transitions.of(
        {"observation": zero, "next_observation": zero, "action": zero / 2, "reward": zero[:, 0], "terminated": ends},
        {"references": {"min": -1.0, "max": 1.0, "label": "local"}},
    )
    run = learned(
        tmp_path, data, {"id": "DataLuck-v0", "evaluation_episodes": 5}, "bc", dataset={"updates": 1},
        training={"iterations": 20, "evaluate_every": 1},
    )  # fmt: skip
    told = run.record["evaluations"]
    assert told["n"] == len(run.evaluations) == 21
    assert told["best"]["return"] == max(row["results"][0]["metrics"]["return"]["value"] for row in run.evaluations) > 0.5
    assert told["last"]["return"] == run.evaluations[-1]["results"][0]["metrics"]["return"]["value"]
    assert told["last"]["iteration"] == 20
    assert told["best"]["score (local)"] == pytest.approx(50 * (told["best"]["return"] + 1))
    [fresh] = run.evaluate(checkpoint="best", episodes=400)
    assert abs(fresh.metrics["return"]["value"]) < 0.2
    assert fresh.metrics["score (local)"]["value"] == pytest.approx(50 * (fresh.metrics["return"]["value"] + 1))


def test_episodes_of_selection_and_of_the_test_are_others_and_those_of_data_too(tmp_path: Path) -> None:
    """Pendulum's first observations: no start state is shared, with the same seed everywhere."""
    starts: dict[str, set[tuple[float, ...]]] = {}

    class Seen(gymnasium.Wrapper):
        def reset(self, **options: Any) -> Any:
            found = self.env.reset(**options)
            starts[where].add(tuple(found[0].tolist()))
            return found

    environment = {"id": "Pendulum-v1", "evaluation_episodes": 6, "options": {"max_episode_steps": 3}, "wrappers": [Seen]}
    where = "selection"
    starts[where] = set()
    data = Transitions.of({name: open_data(MIX).column(name)[:400] for name in NAMES})
    run = learned(tmp_path, data, environment, "bc", dataset={"updates": 1})
    where = "test"
    starts[where] = set()
    run.evaluate(episodes=6)
    where = "data"
    starts[where] = set()
    recipe = EnvironmentRecipe("Pendulum-v1", options={"max_episode_steps": 3}, wrappers=run.recipe.environment.wrappers)  # type: ignore[union-attr]
    collect_episodes(recipe, bystander(recipe, 0), 6, 0)
    assert all(len(some) >= 6 for some in starts.values())
    for one, other in (("selection", "test"), ("selection", "data"), ("test", "data")):
        assert not starts[one] & starts[other]


def test_scores_of_another_horizon_are_not_told(tmp_path: Path) -> None:
    data = Transitions.of({name: open_data(MIX).column(name)[:400] for name in NAMES}, open_data(MIX).card)
    environment = {"id": "Pendulum-v1", "evaluation_episodes": 2}
    run = learned(tmp_path, data, environment, "bc", dataset={"updates": 1})
    assert run.recipe.environment is not None
    metrics = run.evaluations[-1]["results"][0]["metrics"]
    assert metrics["score (local)"]["value"] == pytest.approx(References(-1240, -147).score(metrics["return"]["value"]))
    assert run.resume(2, progress=False).status == "finished"  # the same recipe, whose references come from the card again
    environment["options"] = {"max_episode_steps": 100}
    with pytest.warns(UserWarning, match="the reference returns are of episodes of 200 steps, and these have 100: there is no score"):
        short = learned(tmp_path / "short", data, environment, "bc", dataset={"updates": 1})
    assert "score (local)" not in short.evaluations[-1]["results"][0]["metrics"]


# ---------------------------------------------------------------------------------------------------------------- I


def test_every_row_reaches_the_learner_as_often_as_chance_says(tmp_path: Path) -> None:
    """Rows seen after k draws of N: N · (1 − (1 − 1/N)^k); the last step of every episode among them in the end."""
    from unipg.policies.actor_critic import ActorCriticRecipe
    from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
    from unipg.training.feeds.dataset import Dataset, DatasetRecipe
    from unipg.training.recipe import build_algorithm
    from unipg.training.run import wanted_of

    rows, batch, updates = 400, 20, 100
    data = {name: open_data(MIX).column(name)[:rows].copy() for name in NAMES}
    data["reward"] = np.arange(rows, dtype=np.float32)
    save_data(Transitions.of(data), tmp_path / "data.npz")
    algorithm = build_algorithm("bc")
    experience = EnvironmentRecipe("Pendulum-v1", 1).build(0)
    policy = ActorCriticRecipe([4]).build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    recipe = DatasetRecipe(str(tmp_path / "data.npz"), batch=batch, updates=updates)
    made = Trainer(
        algorithm, policy, experience, folder=tmp_path, training=TrainingRecipe(iterations=1), optimizer=OptimizerRecipe(), dataset=recipe,
    )  # fmt: skip
    feed = made.feed
    assert isinstance(feed, Dataset)
    feed.begin()
    seen: set[float] = set()
    counts = []
    for number in range(updates):
        drawn = feed.draw(number, 0)
        assert drawn.step_reward is not None
        seen |= set(drawn.step_reward[:, 0].tolist())
        counts.append(len(seen))
    draws = batch * np.arange(1, updates + 1)
    expected = rows * (1 - (1 - 1 / rows) ** draws)
    spread = np.sqrt(np.maximum(expected * (1 - expected / rows), 1))
    assert (np.abs(counts - expected) < 5 * spread).all()
    for number in range(updates, 3 * updates):
        seen |= set(feed.draw(number, 0).step_reward[:, 0].tolist())  # type: ignore[index]
    assert {199.0, 399.0} <= seen


def test_reward_units_reach_no_return_that_is_told(tmp_path: Path) -> None:
    """Learned from in other units: the card's returns, and the evaluation's, are the environment's own."""
    data = open_data(MIX)
    kept = Transitions.of({name: data.column(name)[:400] for name in NAMES}, data.card)
    own = []
    for scale in (1.0, 0.125):
        place = tmp_path / str(scale)
        run = learned(place, kept, {"id": "Pendulum-v1", "evaluation_episodes": 2}, "bc", dataset={"updates": 2, "reward_scale": scale})
        own.append(run.evaluations[-1]["results"][0]["metrics"])
        assert run.recipe.dataset is not None
        assert run.recipe.dataset.reward_scale == scale
        assert open_data(place / "data.npz").column("reward").min() < -10
    assert own[0] == own[1]
    assert own[0]["return"]["value"] < -400


def test_data_without_rewards_are_for_imitation(tmp_path: Path) -> None:
    rows = {name: open_data(MIX).column(name)[:400] for name in NAMES if name != "reward"}
    environment = {"id": "Pendulum-v1", "evaluation_episodes": 1}
    assert learned(tmp_path / "bc", Transitions.of(rows), environment, "bc", dataset={"updates": 2}).status == "finished"
    with pytest.raises(InputError, match="has no rewards, which algorithm 'td3_bc' learns from"):
        learned(tmp_path / "td3", Transitions.of(rows), environment, "td3_bc")


def test_steps_in_are_steps_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minari's episodes have one observation more than actions, or are refused; none is lost on the way there and back."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    data = open_data(MIX)
    save_data(data, "minari:pendulum/mix-v0")
    assert len(open_data("minari:pendulum/mix-v0")) == len(data) == 12_000
    with h5py.File(tmp_path / "minari" / "pendulum" / "mix-v0" / "data" / "main_data.hdf5", "r+") as file:
        shorter = file["episode_3/observations"][:-1]
        del file["episode_3/observations"]
        file["episode_3/observations"] = shorter
    with pytest.raises(InputError, match="episode 3 has 200 observations, 200 actions and 200 rewards; accepted: one observation more"):
        open_data("minari:pendulum/mix-v0")


def test_environments_of_two_versions_are_never_one_dataset(tmp_path: Path) -> None:
    """The version is in the name in every card, and rows of other sizes are refused."""
    data = open_data(MIX)
    assert data.card["environment"]["id"] == "Pendulum-v1"
    with pytest.raises(InputError, match=r"observations of .* have shape \[3\]; accepted for environment 'MountainCarContinuous-v0'"):
        learned(tmp_path, data, {"id": "MountainCarContinuous-v0", "references": {"min": 0.0, "max": 1.0}}, "bc")


def test_counted_actions_of_others_are_learned_from_or_refused(tmp_path: Path) -> None:
    """[N,1], as d3rlpy keeps them, are the same rows as [N]; real numbers are refused with what would make whole ones of them."""
    draw = np.random.default_rng(0)
    rows = {"observation": draw.standard_normal((40, 4)), "next_observation": draw.standard_normal((40, 4)), "reward": np.ones(40)}
    rows |= {"terminated": np.arange(40) % 10 == 9, "action": draw.integers(0, 2, 40)}
    environment = {"id": "CartPole-v1", "evaluation_episodes": 1}
    losses = []
    for place, action in (("flat", rows["action"]), ("column", rows["action"][:, None])):
        np.savez(tmp_path / f"{place}.npz", **{**rows, "action": action})  # type: ignore[arg-type]
        run = learned(tmp_path / place, open_data(tmp_path / f"{place}.npz"), environment, "bc", dataset={"updates": 3})
        losses.append(run.metrics[-1]["loss"])
    assert losses[0] == losses[1]
    real = Transitions.of({**rows, "action": rows["action"].astype(np.float32)})
    with pytest.raises(InputError, match=r"are float32; accepted: whole numbers, as actions.astype\('int64'\) makes of these"):
        learned(tmp_path / "real", real, environment, "bc")
    two = Transitions.of({**rows, "action": np.eye(2, dtype=int)[rows["action"]]})
    with pytest.raises(InputError, match=r"the actions of .* have shape \[2\]; accepted: \[\]"):
        learned(tmp_path / "two", two, environment, "bc")


def test_a_collected_card_is_what_json_can_hold(tmp_path: Path) -> None:
    """Of spaces with numbers that are not finite too: a card that cannot be read again is none."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"algorithm: ppo\noutput: {tmp_path / 'run'}\nenvironment: {{id: CartPole-v1, count: 2, steps: 16, evaluation_episodes: 1}}\n"
        "controller: {hidden: [4]}\ntraining: {iterations: 1}\n",
        encoding="utf-8",
    )
    from unipg.training.collecting import trained_run

    run = trained_run(str(recipe))
    data = collect_dataset(run, mix="random", episodes=3, references=References(0, 500))
    save_data(data, tmp_path / "data.npz")
    again = open_data(tmp_path / "data.npz")
    assert json.loads(json.dumps(data.card, allow_nan=False)) == again.card
    assert again.card["environment"]["action"] == {"type": "discrete", "n": 2, "start": 0, "dtype": "int64"}
