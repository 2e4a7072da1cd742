"""The scripts of benchmarks/claims run, continue where they stopped, and write what they promise. Their numbers are not tested here."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from unipg import InputError
from unipg.policies.causal_lm import ScratchModel

CLAIMS = Path(__file__).parents[1] / "benchmarks" / "claims"
MODEL = ScratchModel("llama", hidden_size=16, layers=1, heads=1, intermediate_size=16, max_positions=16)
TINY = {"steps": 4, "items": 40, "prompts": 4, "held_out": 3, "window": 4, "base_steps": 3, "base_prompts": 8, "model": MODEL}


@pytest.fixture(scope="module")
def hpt() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claim_hpt", CLAIMS / "hpt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("operation", "right"), [("copy", "a b h c"), ("reverse", "c h b a"), ("shift", "b c a d"), ("reverse-shift", "d a c b")]
)
def test_operations(hpt: ModuleType, operation: str, right: str) -> None:
    letters = ["abcdefgh".index(letter) for letter in "abhc"]
    assert hpt.spelled(hpt.answer(hpt.OPERATIONS.index(operation), letters)) == right


def test_tasks_of_the_toy(hpt: ModuleType) -> None:
    toy = hpt.Toy(base_steps=20, held_out=50)
    task, held_out = hpt.post_training_tasks(toy, seed=3)
    base = hpt.base_task(toy, seed=3)
    assert len(task.items) == 2000
    assert len({item.prompt for item in task.items}) == 2000
    assert not {item.prompt for item in task.items} & {item.prompt for t in held_out for item in t.items}
    assert [{item.prompt.split()[1] for item in t.items} for t in held_out] == [{operation} for operation in hpt.OPERATIONS]
    assert {item.prompt.split()[1] for item in base.items} == {"copy", "reverse"}

    def wrong_letters(item: object) -> int:
        return sum(a != b for a, b in zip(item.demonstrations[0].split(), item.expected.split(), strict=True))

    wrong = [wrong_letters(item) for item in task.items]
    assert set(wrong) == {0, 1}
    assert sum(wrong) / 2000 == pytest.approx(0.2, abs=0.04)  # 4.5 standard deviations
    assert sum(map(wrong_letters, base.items)) / len(base.items) == pytest.approx(0.1, abs=0.03)
    assert {wrong_letters(item) for t in held_out for item in t.items} == {0}


def test_every_word_is_one_of_16_tokens_and_only_the_end_is_dropped(hpt: ModuleType) -> None:
    tokenizer = hpt.word_tokenizer()
    task, _ = hpt.post_training_tasks(hpt.Toy(items=100), seed=0)
    assert len(tokenizer) == 16
    unknown = tokenizer.convert_tokens_to_ids("<unknown>")
    for item in task.items:
        assert len(tokenizer.encode(item.prompt)) == 7
        assert unknown not in tokenizer.encode(item.prompt) + tokenizer.encode(item.demonstrations[0])
    everything = list(range(16))
    shown = tokenizer.decode(everything, skip_special_tokens=True).split()
    assert shown == [tokenizer.convert_ids_to_tokens(i) for i in everything if i != tokenizer.eos_token_id]


def test_the_whole_claim_in_small(hpt: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy, store, methods = hpt.Toy(**TINY), tmp_path / "claim.jsonl", list(hpt.METHODS)
    runs = hpt.run_all(toy, methods, [0], store, "abc")
    store.write_text("".join(store.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    continued = hpt.run_all(toy, methods, [0], store, "abc")
    assert "7 of 8 runs were finished before" in capsys.readouterr().out
    assert continued[:-1] == runs[:-1]
    measured = {"seconds", "cpu_seconds"}
    assert {k: v for k, v in continued[-1].items() if k not in measured} == {k: v for k, v in runs[-1].items() if k not in measured}

    result = hpt.write_results(tmp_path / "claim", hpt.facts(toy, ["--seeds", "1"], "abc", False), runs, methods)
    kept = json.loads((tmp_path / "claim.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(result))
    assert kept["command"] == "python benchmarks/claims/hpt.py --seeds 1"
    assert kept["machine"]["threads"] == torch.get_num_threads()
    by_name = {run["method"]: run for run in kept["runs"]}
    assert list(by_name) == ["base", *methods]
    rollouts = {name: run["rollouts"] for name, run in by_name.items()}
    assert rollouts == {"base": 0, "sft": 0, "dr_grpo": 128, "grpo": 128, "sft_then_grpo": 96, "luffy": 112, "srft": 112, "hpt": 128}
    assert by_name["sft"]["optimiser_steps"] == by_name["hpt"]["optimiser_steps"] == 4
    for run in kept["runs"]:
        assert 0 <= run["score"] <= 1
        assert run["score"] == pytest.approx(sum(run["operations"].values()) / 4, abs=1e-5)
        assert set(run["operations"]) == set(hpt.OPERATIONS)
        assert run["curve"][str(TINY["base_steps"] if run["method"] == "base" else TINY["steps"])] == run["score"]
    assert [0 <= share <= 1 for share in by_name["hpt"]["offline_fraction"]] == [True]
    assert by_name["sft"]["offline_fraction"] == [None]
    assert len(kept["assertions"]) == len(hpt.CLAIMS) + 1

    page = (tmp_path / "claim.md").read_text(encoding="utf-8")
    assert all(hpt.METHODS[name].title in page for name in methods)
    assert page.count("PASS") + page.count("FAIL") >= len(kept["assertions"])
    assert (tmp_path / "claim.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in page + (tmp_path / "claim.json").read_text(encoding="utf-8")


def test_stored_runs_of_other_settings_do_not_count(hpt: ModuleType, tmp_path: Path) -> None:
    store = tmp_path / "claim.jsonl"
    toy = hpt.Toy(**TINY)
    line = {"identity": hpt._identity(toy, "sft", "abc"), "method": "sft", "seed": 0}
    store.write_text(json.dumps(line) + "\n" + json.dumps(line)[:20], encoding="utf-8")  # the second was cut by a kill
    assert set(hpt._stored(store, toy, "abc")) == {("sft", 0)}
    assert not hpt._stored(store, toy, "abd")
    assert not hpt._stored(store, hpt.Toy(**TINY | {"steps": 5}), "abc")


def test_curves(hpt: ModuleType) -> None:
    curve = hpt.Curve(lambda: None, [{"reward/mean": 1.0}, {"reward/mean": 2.0}, {}, {}, {"reward/mean": 4.0}])
    assert curve.windows("reward/mean", 2) == [1.5, None, 4.0]
    assert hpt._while_training({"0": 0.0, "10": 1.0, "20": 1.0}) == pytest.approx(0.75)


def _run(method: str, seed: int, score: float, offline: float | None = None) -> dict[str, object]:
    return {"method": method, "seed": seed, "score": score, "offline_fraction": [0.9, offline]}


def test_assertions_on_the_mean_and_on_each_seed(hpt: ModuleType) -> None:
    ours = [_run("hpt", 0, 0.98, 0.0), _run("hpt", 1, 0.9, 0.06)]
    others = [_run("sft", 0, 0.8), _run("sft", 1, 0.81), _run("luffy", 0, 0.9), _run("luffy", 1, 0.1)]
    sft, luffy, offline = hpt.assertions(ours + others)
    assert (sft["value"], sft["passed"]) == (pytest.approx(0.135), True)
    assert [piece["passed"] for piece in sft["per_seed"].values()] == [True, False]
    assert (luffy["value"], luffy["passed"]) == (pytest.approx(0.44), True)
    assert [piece["passed"] for piece in luffy["per_seed"].values()] == [False, True]
    assert (offline["value"], offline["passed"]) == (pytest.approx(0.03), True)
    assert [piece["passed"] for piece in offline["per_seed"].values()] == [True, False]
    assert hpt.assertions(others) == []
    for theirs, passed in ((0.99, True), (0.991, False)):  # at least 0.03 below, whatever floating point makes of 0.96 − 0.99
        piece, _ = hpt.assertions([_run("hpt", 0, 0.96, 0.0), _run("sft_then_grpo", 0, theirs)])
        assert piece["passed"] is piece["per_seed"]["0"]["passed"] is passed


def test_bad_arguments(hpt: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert hpt.main(["--methods", "hpt,sftt"]) == 2
    assert "did you mean 'sft'" in capsys.readouterr().err
    assert hpt.main(["--seeds", "0"]) == 2
    with pytest.raises(InputError, match="--steps is 2"):
        hpt.Toy(steps=2)
