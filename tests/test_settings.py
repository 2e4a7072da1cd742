"""The list of every key: complete, up to date, and what the first check of a recipe reads before torch is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unipg import settings
from unipg.cli import main
from unipg.errors import InputError
from unipg.settings import check_settings, every_key, keys_of, read_settings, up_to_date
from unipg.training.described import described
from unipg.training.recipe import load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


def test_it_is_up_to_date() -> None:
    assert every_key() == json.loads(json.dumps(described())), "run `make docs`"


def test_every_key_has_a_meaning() -> None:
    bare = [f"{section}.{name}" for section, keys in every_key().items() for name, key in keys.items() if not key["meaning"]]
    assert bare == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_accepts_what_the_recipes_say(path: Path) -> None:
    check_settings(read_settings(path))


@pytest.mark.parametrize(
    "override",
    [
        "trainin.iterations=3",
        "training.iteration=3",
        "policy.lora.rank=3",
        "algorithm=grp",
        "algorithm.klr=1",
        "policy.kind=casual",
        "task=3",
    ],
)
def test_it_says_what_the_types_would_say(override: str) -> None:
    path = str(RECIPES[0].parent / "grpo.yaml")
    with pytest.raises(InputError) as first:
        check_settings(read_settings(path, [override]))
    with pytest.raises(InputError) as second:
        load_recipe(path, [override])
    assert str(first.value) == str(second.value)


def test_sections_in_lists_are_named_by_their_place() -> None:
    with pytest.raises(InputError, match=r"evaluation.tasks\[1\].reasoning_gim: this key does not exist; did you mean 'reasoning_gym'"):
        check_settings({"evaluation": {"tasks": [{"reasoning_gym": {"name": "x"}}, {"reasoning_gim": {}}]}})


def test_mistakes_are_told_without_torch() -> None:
    recipe = str(RECIPES[0].parent / "grpo.yaml")
    code = (
        "import sys; from unipg.cli import main; "
        f"code = main(['train', {recipe!r}, 'training.iteration=3']); print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", str(not up_to_date()), "False"] or not up_to_date()


def test_whoever_writes_an_algorithm_runs_it_before_the_list_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "KEYS", tmp_path / "settings.json")
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "algorithm.py").write_text("")
    assert up_to_date()
    monkeypatch.setattr(settings, "LATER", -3600.0)
    assert not up_to_date()


def test_keys_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys"]) == 0
    assert "algorithm.grpo" not in capsys.readouterr().out
    assert main(["keys", "policy"]) == 0
    out = capsys.readouterr().out
    assert "policy.lora\n  r: a whole number = 16" in out
    assert main(["keys", "grpo", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"algorithm.grpo"}
    assert main(["keys", "polcy"]) == 2
    assert "did you mean 'policy'" in capsys.readouterr().err
    assert set(keys_of(None)) == {name for name in every_key() if not name.startswith("algorithm.")}
