"""`unipg export`: an exported file gives the actions that are played, at every batch size; and what is said where it cannot be."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from unipg.cli import main
from unipg.critics import Decoder
from unipg.errors import InputError
from unipg.policies import export as module
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe, Wanted
from unipg.policies.export import NOTE, export

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BOX = spaces.Box(np.float32([-2, -100, 0]), np.float32([2, 100, 0.01]))
UNEVEN = spaces.Box(np.float32([[-1, 0], [-np.inf, 5]]), np.float32([[3, 0.5], [np.inf, 6]]))
DICT = spaces.Dict(
    {
        "b": spaces.Discrete(4, start=2),
        "a": spaces.Dict({"x": BOX, "w": spaces.MultiDiscrete([3, 2], start=[-1, 5])}),
        "c": spaces.MultiBinary(3),
    }
)
CASES: dict[str, tuple[spaces.Space, spaces.Space, dict[str, Any]]] = {
    "normalised, uneven bounds": (BOX, UNEVEN, {"normalize_observations": True}),
    "a Dict of everything": (DICT, spaces.MultiDiscrete([3, 4], start=[1, 0]), {}),
    "images": (spaces.Box(0, 255, (12, 14, 3), np.uint8), spaces.Discrete(5, start=-2), {}),
    "squashed": (BOX, spaces.Box(-2, 6, (2,), np.float64), {"kind": "squashed"}),
    "deterministic": (BOX, spaces.Box(-2, 6, (2,), np.float32), {"kind": "deterministic"}),
    "bounded": (BOX, spaces.Box(-2, 6, (2,), np.float32), {"kind": "bounded"}),
    "decoded": (BOX, spaces.Box(-2, 6, (2,), np.float32), {"kind": "latent"}),
    "greedy": (spaces.Discrete(6), spaces.Discrete(5), {"kind": "greedy"}),
    "doubles": (spaces.Box(-np.inf, np.inf, (11,), np.float64), spaces.Box(-1, 1, (3,), np.float32), {"normalize_observations": True}),
    "dtypes": (
        spaces.Dict(
            {
                "bytes": spaces.Box(0, 255, (4,), np.uint8),
                "flags": spaces.MultiBinary([2, 2]),
                "half": spaces.Box(-1, 1, (2,), np.float16),
                "places": spaces.MultiDiscrete([3, 2], dtype=np.int32, start=[-1, 5]),
                "true": spaces.Box(0, 1, (2,), bool),
            }
        ),
        spaces.Discrete(5),
        {},
    ),
    "yes or no": (BOX, spaces.MultiBinary([2, 3]), {}),
}
ONNX = ("normalised, uneven bounds", "a Dict of everything", "images", "decoded", "doubles", "dtypes")
"""Exporting to ONNX takes seconds."""


def built(case: str) -> tuple[ActorCritic, spaces.Space]:
    """A policy whose actions differ from observation to observation, with statistics where it keeps some."""
    observation, action, settings = CASES[case]
    wanted = Wanted(networks=lambda counted: {"decoder": Decoder("flow", (8,), 3)}) if case == "decoded" else None
    policy = ActorCriticRecipe([16], **settings).build(observation, action, 0, wanted=wanted)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=source)
    if policy.module.normalizer is not None:
        policy.module.normalizer.update(torch.from_numpy(policy.flatten(several(observation, 50))))
    return policy, observation


def several(space: spaces.Space, rows: int) -> Any:
    batched = batch_space(space, rows)
    batched.seed(rows)
    return batched.sample()


def leaves(observation: Any) -> list[np.ndarray]:
    if isinstance(observation, dict):
        return [leaf for key in sorted(observation) for leaf in leaves(observation[key])]
    return [np.asarray(observation)]


def of_onnx(path: Path) -> Callable[[list[np.ndarray]], np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    told = json.loads(session.get_modelmeta().custom_metadata_map["unipg"])
    names = [each["name"] for each in told["inputs"]]
    assert [each.name for each in session.get_inputs()] == names
    return lambda given: session.run(["action"], dict(zip(names, given, strict=True)))[0]


def of_torchscript(path: Path) -> Callable[[list[np.ndarray]], np.ndarray]:
    note = {NOTE: ""}
    loaded = torch.jit.load(path, _extra_files=note)
    assert json.loads(note[NOTE])["outputs"][0]["name"] == "action"
    return lambda given: loaded(*map(torch.from_numpy, given)).numpy()


@pytest.mark.parametrize(("case", "format"), [*((case, "torchscript") for case in CASES), *((case, "onnx") for case in ONNX)])
def test_an_exported_actor_gives_the_actions_that_are_played(case: str, format: Any, tmp_path: Path) -> None:
    policy, space = built(case)
    path = tmp_path / "actor"
    told = export(policy, path, format)
    act = (of_onnx if format == "onnx" else of_torchscript)(path)
    for rows in (1, 2, 7, 300):
        observation = several(space, rows)
        seen = policy.flatten(observation)
        expected = policy.outward()(seen, policy.actor()(seen, None))
        found = act(leaves(observation))  # as the environment gives them
        assert found.dtype == expected.dtype == np.dtype(told["outputs"][0]["dtype"])
        assert found.shape == expected.shape == (rows, *told["outputs"][0]["shape"][1:])
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(found, expected)
    assert len(np.unique(expected, axis=0)) > 1


def test_a_saved_policy_keeps_its_dtypes_and_goes_on_where_they_are_others(tmp_path: Path) -> None:
    policy, space = built("doubles")
    policy.save(tmp_path)
    kept = ActorCritic.load(tmp_path)
    assert [leaf.dtype for leaf in kept.encoder.leaves()] == ["float64"]
    single = spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    on = ActorCriticRecipe(model=str(tmp_path)).build(single, CASES["doubles"][1], 0)
    assert [leaf.dtype for leaf in on.encoder.leaves()] == ["float32"]
    assert on.observation == {"type": "vector", "shape": [11]}


def test_exporting_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    policy, _ = built("squashed")
    policy.module.train()
    export(policy, tmp_path / "a.pt", "torchscript")
    assert policy.module.training
    assert all(parameter.requires_grad for parameter in policy.module.parameters())


pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # which is what was asked for


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "r.yaml").write_text(
        f"algorithm: ppo\noutput: {folder}/run\nthreads: 1\nenvironment: {{id: Pendulum-v1, count: 2, steps: 8, evaluation_episodes: 1}}\n"
        "controller: {hidden: [4]}\ntraining: {iterations: 1}\n",
        encoding="utf-8",
    )
    assert main(["train", str(folder / "r.yaml")]) == 0
    return folder / "run"


def test_the_command_writes_what_a_run_plays(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Into the run folder by default; again over its own file, but over no other."""
    for _ in range(2):
        assert main(["export", str(run), "--format", "torchscript"]) == 0
    shown = capsys.readouterr().out
    assert "observation [N, 3] float32" in shown
    assert "action [N, 1] float32" in shown
    policy = ActorCritic.load(run / "model")
    observation = several(spaces.Box(-1, 1, (3,), np.float32), 5)
    found = torch.jit.load(io.BytesIO((run / "actor.pt").read_bytes()))(torch.from_numpy(observation)).numpy()
    np.testing.assert_allclose(found, policy.environment_action(policy.actor()(policy.flatten(observation), None)), rtol=1e-5)
    other = tmp_path / "mine.pt"
    other.write_bytes(b"mine")
    assert main(["export", str(run), "--format", "torchscript", "--output", str(other)]) == 2
    assert other.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onx"], "format 'onx' does not exist; did you mean 'onnx'? accepted: onnx, torchscript"),
        (["--checkpoint", "first"], "--checkpoint is 'first'; accepted: last, best"),
    ],
)
def test_wrong_options_are_one_line(run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(run), *options]) == 2
    assert capsys.readouterr().err.strip().endswith(message)


def test_what_keeps_no_best_model_is_named(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(run / "model"), "--checkpoint", "best"]) == 2
    assert "keeps no best model; accepted: last, or a control run" in capsys.readouterr().err


def test_a_missing_package_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^the format onnx needs the package 'onnx'; install it with: pip install 'unipg\[export\]'$"):
        export(built("squashed")[0], run / "a.onnx", "onnx")


def test_a_language_model_is_told_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    assert main(["export", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.endswith(f"AutoModelForCausalLM.from_pretrained('{tmp_path / 'run' / 'model'}'); accepted: a controller")
    assert "\n" not in told
