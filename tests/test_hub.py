"""Names of models: what looks like a place here is never asked of a hub, and a hub that is away is not waited for."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unipg import InputError, hub
from unipg.cli import main
from unipg.hub import check_folder, check_place
from unipg.policies.causal_lm import load_model, load_tokenizer
from unipg.policies.check import proof_of_name
from unipg.policies.reward_model import is_reward_model, load_reward_model
from unipg.tasks.data import _hub_rows

HERE = [
    "runs/typo",
    "./x",
    "../x",
    "/nowhere/x",
    "~/x",
    "a/b/c",
    "my model",
    "models/",
    "-x/y",
    ".hidden",
    "x\\y",
    "https://hub/x",
    "a//b",
    "",
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub is asked for: nothing may be."""
    from huggingface_hub import constants, utils

    names: list[str] = []

    class Session:
        def head(self, url: str, **options: object) -> None:
            names.append(url)
            raise OSError("no network here")

    monkeypatch.setattr(utils, "get_session", Session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub._unreachable.cache_clear()
    yield names
    hub._unreachable.cache_clear()


@pytest.mark.parametrize("name", HERE)
def test_a_place_here_is_refused_without_asking(name: str, asked: list[str]) -> None:
    assert not hub.is_repository(name)
    assert not is_reward_model(name)
    for load in (load_model, load_tokenizer, load_reward_model):
        with pytest.raises(InputError, match=r"the model folder '.*' (does not exist|has no config\.json); accepted: a folder written by"):
            load(name)
    assert asked == []


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "owner_1/a.b-c"])
def test_a_repository_is_asked_for_once_and_not_waited_for(name: str, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    assert hub.is_repository(name)
    began = time.monotonic()
    assert not is_reward_model(name)
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError, match=r"is neither here nor in the hub's cache, and the hub cannot be reached \(OSError: no"):
            load(name)
    assert time.monotonic() - began < 5
    assert len(asked) == 1


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, utils

    class Silent:
        def head(self, url: str, **options: object) -> None:
            time.sleep(30)

    monkeypatch.setattr(utils, "get_session", Silent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.1)
    hub._unreachable.cache_clear()
    began = time.monotonic()
    with pytest.raises(InputError, match=r"the hub cannot be reached \(no answer in 0\.1 seconds\)"):
        load_tokenizer("some/typo")
    assert time.monotonic() - began < 5
    hub._unreachable.cache_clear()


def test_offline_mode_lasts_while_something_is_loaded(asked: list[str]) -> None:
    from huggingface_hub import constants

    with hub.impatient("some/typo") as why:
        assert why == "OSError: no network here"
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with hub.impatient(".") as why:
        assert why == ""


def test_what_is_here_is_loaded_without_asking(tmp_path: Path, asked: list[str]) -> None:
    from unipg.policies.causal_lm import ScratchModel, build_model, train_tokenizer

    tokenizer = train_tokenizer(["a b c"], 270)
    folder = tmp_path / "run" / "model"
    build_model(ScratchModel(hidden_size=16, layers=1, heads=2, intermediate_size=16, vocabulary=270), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert load_model(hub.saved_model(str(tmp_path / "run"))).config.hidden_size == 16
    assert asked == []
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "recipe.yaml").write_text("algorithm: ppo\n")
    with pytest.raises(InputError, match="is a run that has no model yet"):
        hub.check_folder(str(tmp_path / "bare"))


def test_a_hub_dataset_is_not_waited_for(asked: list[str]) -> None:
    pytest.importorskip("datasets")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"hub dataset 'some/typo', split 'train': the hub cannot be reached \(OSError: no network here\)"):
        list(_hub_rows("some/typo", None, "train"))
    assert time.monotonic() - began < 10


def test_the_command_line_answers_before_it_imports_torch(tmp_path: Path) -> None:
    code = "import sys, json; from unipg.cli import main; code = main(sys.argv[1:]); print(json.dumps([code, 'torch' in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code, "evaluate", "runs/typo"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(run.stdout) == [2, False]
    assert "the model folder 'runs/typo' does not exist" in run.stderr


def test_a_run_folder_is_offered_where_it_would_do(capsys: pytest.CaptureFixture) -> None:
    assert main(["evaluate", "runs/typo"]) == 2
    assert (
        "'runs/typo' does not exist; accepted: a run folder, a folder written by save_pretrained, or a hub name" in capsys.readouterr().err
    )
    with pytest.raises(InputError, match=r"does not exist; accepted: a folder written by save_pretrained, or a hub name"):
        check_place("runs/typo")


def test_a_run_without_a_model_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/recipe.yaml").touch()
    with pytest.raises(InputError, match="'run' is a run that has no model yet"):
        check_folder("run")
    Path("run/model").mkdir()
    Path("run/model/config.json").touch()
    with pytest.raises(InputError, match=r"'run' is a run: its model is in 'run/model'"):
        check_folder("run")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"base_model_name_or_path": "/gone/base"}', "belong to the model '/gone/base', which is not there"),
        ("{", "cannot be read: Expecting"),
        ("{}", "do not say which model they belong to"),
    ],
)
def test_adapters_without_their_model(config: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    for ask in (load_model, proof_of_name):
        with pytest.raises(InputError, match=f"^the adapters '{tmp_path}' {said}"):
            ask(str(tmp_path))
