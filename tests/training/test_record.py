"""`unipg evaluate --record`: what is in the film is what was played, without a screen; and what is said where there is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from unipg.cli import main
from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCriticRecipe
from unipg.rollouts import recording
from unipg.rollouts.environments import EnvironmentRecipe, evaluate_controller
from unipg.training.evaluate import evaluate_model

imageio = pytest.importorskip("imageio.v2")
pytest.importorskip("imageio_ffmpeg")


class Painted(gymnasium.Env):
    """Draws how many steps it took, 40 a step, on 31 by 21 pixels; episodes of four steps, paid with what its actions are."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (gymnasium's own way)
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = None, broken: bool = False) -> None:
        self.render_mode, self.broken = render_mode, broken

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return np.zeros(2, np.float32), float(action[0]), self.time == 4, False, {}

    def render(self) -> Any:
        if self.broken:
            raise RuntimeError("no\nscreen")
        return np.full((21, 31, 3), 40 * self.time, np.uint8) if self.render_mode == "rgb_array" else None


class Plain(Painted):
    metadata = {"render_modes": ["human"]}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()


gymnasium.register("Painted-v0", Painted)
gymnasium.register("Unpainted-v0", Plain)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    (folder / "r.yaml").write_text(
        f"algorithm: ppo\noutput: {folder}/run\nthreads: 1\nenvironment: {{id: Painted-v0, count: 2, steps: 8, evaluation_episodes: 2}}\n"
        "controller: {hidden: [4]}\ntraining: {iterations: 1}\n",
        encoding="utf-8",
    )
    assert main(["train", str(folder / "r.yaml")]) == 0
    return folder / "run"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg leaves the pipes of its reader open
@pytest.mark.parametrize("kind", ["mp4", "gif"])
def test_every_picture_of_every_episode_is_in_it(run: Path, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Reset, four steps, the last one's picture too, twice; sides made even; and it may be written again, but over nothing else."""
    path = tmp_path / f"film.{kind}"
    for _ in range(2):
        assert main(["evaluate", str(run), "--episodes", "2", "--record", str(path)]) == 0
    assert str(path) in capsys.readouterr().out.replace("\n", "")
    pictures = imageio.mimread(path)
    assert [round(float(p.mean()) / 40) for p in pictures] == [0, 1, 2, 3, 4] * 2
    assert pictures[0].shape[:2] == (22, 32)
    assert os.listdir(tmp_path) == [path.name]
    path.write_bytes(b"mine")
    assert main(["evaluate", str(run), "--record", str(path)]) == 2
    assert path.read_bytes() == b"mine"


def test_the_numbers_are_of_the_film(run: Path, tmp_path: Path) -> None:
    (found,) = evaluate_model(str(run), record=str(tmp_path / "film.gif"))
    assert found.metrics["length"] == {"value": 4.0, "low": 4.0, "high": 4.0, "n": 3}
    assert len(imageio.mimread(tmp_path / "film.gif")) == 15
    plain = evaluate_model(str(run), episodes=3)[0].metrics["return"]["value"]
    assert found.metrics["return"]["value"] == pytest.approx(plain)


def test_the_policy_plays_as_asked(run: Path) -> None:
    """The same observation always: the most likely action gives the same return, a drawn one does not."""
    (likely,) = evaluate_model(str(run), episodes=8)
    (drawn,), (again,) = (evaluate_model(str(run), episodes=8, sample=True) for _ in range(2))
    assert likely.metrics["return"]["low"] == likely.metrics["return"]["high"]
    assert drawn.metrics["return"]["low"] < drawn.metrics["return"]["high"]
    assert drawn.metrics == again.metrics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--record", "film.avi"], "--record film.avi ends in '.avi'; accepted: a name that ends in .mp4 or .gif"),
        (["--record", "film"], "--record film ends in ''; accepted: a name that ends in .mp4 or .gif"),
    ],
)
def test_other_endings_are_named(run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", str(run), *options]) == 2
    assert capsys.readouterr().err.strip() == f"unipg: {message}"


def test_a_missing_library_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "find_spec", lambda name: None if name == "imageio_ffmpeg" else object())
    with pytest.raises(
        InputError, match=r"record='a\.mp4' needs the package 'imageio-ffmpeg'; install it with: pip install 'unipg\[video\]'"
    ):
        evaluate_model(str(run), record="a.mp4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "{id: Unpainted-v0}",
            "environment 'Unpainted-v0' draws no pictures: its render modes are: human; accepted for a film: one with rgb",
        ),
        ("{id: Painted-v0, options: {broken: true}}", "environment 'Painted-v0' cannot be drawn: RuntimeError: no screen"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run: Path, change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "r.yaml").write_text(f"algorithm: ppo\nenvironment: {change}\n", encoding="utf-8")
    assert main(["evaluate", str(run), "--record", str(tmp_path / "f.gif"), "--recipe", str(tmp_path / "r.yaml")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"unipg: {message}")
    assert "\n" not in told
    assert not (tmp_path / "f.gif").exists()


@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLander-v3", "Hopper-v5"])
def test_gymnasiums_own_are_drawn_without_a_screen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    if name.startswith("Hopper"):
        pytest.importorskip("mujoco")
        pytest.importorskip("OpenGL.EGL", exc_type=Exception)  # a machine without EGL has no way to draw
    elif name.startswith("Lunar"):
        pytest.importorskip("Box2D")
    recipe = EnvironmentRecipe(name, evaluation_episodes=1, evaluation_steps=5)
    environments = recipe.build(0)
    policy = ActorCriticRecipe([4]).build(environments.observation_space, environments.action_space, 0)
    with pytest.warns(UserWarning, match="cut after 5 steps"), recording.without_screen(), recording.Film(tmp_path / "f.gif") as film:
        evaluate_controller(policy, recipe, 0, film=film)
    pictures = imageio.mimread(tmp_path / "f.gif")
    assert float(np.std(pictures[0])) > 0
