"""Environments that give what they must not: one line that names them; and those that fail by themselves, whose traceback stays."""

from __future__ import annotations

import multiprocessing.connection
import sys
import time
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from unipg.cli import main
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts.base import Demand, Vines
from unipg.rollouts.environments import EnvironmentRecipe

BOX = spaces.Box(-1, 1, (2,), np.float32)


class Wrong(gymnasium.Env):
    """Right for two steps, and then as `how` says."""

    action_space = spaces.Discrete(2)

    def __init__(self, how: str = "") -> None:
        self.how = how
        if how == "init":
            raise RuntimeError("no licence")
        kinds: dict[str, spaces.Space] = {
            "empty": spaces.Dict({}),
            "place": spaces.Discrete(5, start=1),
            "text in a Dict": spaces.Dict(a=BOX),
        }
        self.observation_space = kinds.get(how, BOX)

    def seen(self, late: bool = False) -> Any:
        if self.how == "place":
            return 7 if late else 1
        seen = np.zeros(3 if late and self.how == "shape" else 1 if late and self.how == "one number" else 2, np.float32)
        return {"a": seen} if self.how == "text in a Dict" else seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.seen() if self.how == "old reset" else (self.seen(), {})

    def step(self, action: Any) -> Any:
        self.time += 1
        late = self.time > 2
        if late and self.how == "raise":
            np.linalg.inv(np.zeros((2, 2)))
        if late and self.how == "exit":
            sys.exit(0)
        reward = {"array": np.array([2.0]), "text": "1", "text in a Dict": "1"}.get(self.how, 1.0) if late else 1.0
        return (self.seen(late), reward, False, {}) if late and self.how == "old step" else (self.seen(late), reward, False, False, {})


gymnasium.register("Wrong-v0", entry_point=Wrong, max_episode_steps=8)
GIVEN = {
    "shape": r"the observation has the shape \[3\]; accepted: \[2\]",
    "one number": r"the observation has the shape \[1\]; accepted: \[2\]",
    "old step": "not enough values to unpack .*; accepted: what gymnasium.Env says of reset and step",
    "array": r"the reward is array\(\[2\.\]\); accepted: a number",
    "text": "the reward is '1'; accepted: a number",
    "text in a Dict": "the reward is '1'; accepted: a number",
    "exit": r"its code ends the process \(SystemExit: 0\)",
}


def played(how: str, what: str, **settings: Any) -> None:
    recipe = EnvironmentRecipe(id="Wrong-v0", count=2, steps=6, evaluation_episodes=2, options={"how": how}, **settings)
    environments = recipe.build(0)
    policy = ActorCriticRecipe([4]).build(environments.observation_space, environments.action_space, 0)
    if what == "vine":
        environments.collect(policy, Demand(iteration=0, value=True, vines=Vines(states=1, count=2)))
    elif what == "window":
        environments.collect(policy, Demand(iteration=0, value=True))
    elif what == "evaluation":
        environments.evaluate(policy, 0)
    else:
        stepper = environments.stepper(policy)
        for _ in range(5):
            stepper.step(np.zeros(2, np.int64))


pytestmark = [pytest.mark.filterwarnings("ignore:.*(WARN|ERROR):UserWarning")]


@pytest.mark.parametrize("what", ["window", "vine", "evaluation", "run"])
@pytest.mark.parametrize("how", GIVEN)
def test_what_cannot_be_used_is_one_line(how: str, what: str) -> None:
    with pytest.raises(InputError, match=rf"^in environment 'Wrong-v0', .*{what}.*: .*{GIVEN[how]}") as found:
        played(how, what)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("how", ["shape", "old step", "text"])
def test_in_processes_of_their_own_too(how: str, late: bool, monkeypatch) -> None:
    """Also where nobody looks before the process has told its error and is gone."""
    wait = multiprocessing.connection.wait

    def waited(*given: Any) -> Any:
        time.sleep(0.1 if late else 0)
        return wait(*given)

    monkeypatch.setattr(multiprocessing.connection, "wait", waited)
    with pytest.raises(InputError, match=rf"^in environment 'Wrong-v0', at step 2 of the window: .*{GIVEN[how]}"):
        played(how, "window", processes=2)


@pytest.mark.parametrize(
    ("what", "where"),
    [
        ("window", "row 0 at step 3 of the window"),
        ("evaluation", "row 0 at step 3 of an episode"),
        ("run", "row 0 at step 2 of its episode"),
        ("vine", "step 2 of an episode"),
    ],
)
def test_a_number_that_its_space_does_not_have(what: str, where: str) -> None:
    with pytest.raises(
        InputError, match=rf"'Wrong-v0' gave an observation that its space does not have, in {where}.*: 7; accepted: 1 to 5$"
    ):
        played("place", what)


@pytest.mark.parametrize("what", ["window", "vine", "evaluation", "run"])
def test_its_own_errors_keep_their_traceback(what: str) -> None:
    with pytest.raises(np.linalg.LinAlgError) as found:
        played("raise", what)
    (note,) = found.value.__notes__
    assert note.startswith("in environment 'Wrong-v0', ")
    with pytest.raises(RuntimeError, match="no licence") as found:
        played("init", what)
    assert found.value.__notes__ == ["in environment 'Wrong-v0', which is made with options {'how': 'init'}"]


def test_an_observation_of_nothing() -> None:
    with pytest.raises(InputError, match=r"in environment 'Wrong-v0', which is made .*empty Dict observation space is not allowed"):
        played("empty", "window")


def test_a_reset_of_the_old_form() -> None:
    with pytest.raises(InputError, match="in environment 'Wrong-v0', at a reset: what it gave cannot be used"):
        played("old reset", "window")


def test_an_environment_that_exits_does_not_end_a_run_as_if_it_were_done(tmp_path, capsys) -> None:
    (tmp_path / "r.yaml").write_text(
        f"algorithm: ppo\noutput: {tmp_path}/run\nthreads: 1\n"
        "environment: {id: Wrong-v0, count: 2, steps: 8, options: {how: exit}}\ntraining: {iterations: 1}\n"
    )
    assert main(["train", str(tmp_path / "r.yaml")]) == 2
    assert "in environment 'Wrong-v0', in an evaluation: its code ends the process" in capsys.readouterr().err
