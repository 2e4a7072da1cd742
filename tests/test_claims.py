"""The scripts of benchmarks/claims run, continue where they stopped, and write what they promise. Their numbers are not tested here."""

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unipg import InputError
from unipg.policies.causal_lm import ScratchModel

CLAIMS = Path(__file__).parents[1] / "benchmarks" / "claims"
MODEL = ScratchModel("llama", hidden_size=16, layers=1, heads=1, intermediate_size=16, max_positions=16)
TINY = {"steps": 4, "items": 40, "prompts": 4, "held_out": 3, "window": 4, "base_steps": 3, "base_prompts": 8, "model": MODEL}


@pytest.fixture(scope="module")
def scripts() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of benchmarks/claims as the scripts themselves do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CLAIMS))
        yield importlib.import_module


@pytest.fixture(scope="module")
def strings(scripts: Callable[[str], ModuleType]) -> ModuleType:
    return scripts("string_operations")


@pytest.fixture(scope="module")
def harness(scripts: Callable[[str], ModuleType]) -> ModuleType:
    return scripts("harness")


@pytest.fixture(scope="module")
def hpt(scripts: Callable[[str], ModuleType]) -> ModuleType:
    return scripts("hpt")


@pytest.mark.parametrize(
    ("operation", "right"), [("copy", "a b h c"), ("reverse", "c h b a"), ("shift", "b c a d"), ("reverse-shift", "d a c b")]
)
def test_operations(strings: ModuleType, operation: str, right: str) -> None:
    letters = ["abcdefgh".index(letter) for letter in "abhc"]
    assert strings.spelled(strings.answer(strings.OPERATIONS.index(operation), letters)) == right


def test_tasks_of_the_toy(strings: ModuleType) -> None:
    toy = strings.Toy(base_steps=20, held_out=50)
    task, held_out = strings.post_training_tasks(toy, seed=3)
    base = strings.base_task(toy, seed=3)
    assert len(task.items) == 2000
    assert len({item.prompt for item in task.items}) == 2000
    assert not {item.prompt for item in task.items} & {item.prompt for t in held_out for item in t.items}
    assert [{item.prompt.split()[1] for item in t.items} for t in held_out] == [{operation} for operation in strings.OPERATIONS]
    assert {item.prompt.split()[1] for item in base.items} == {"copy", "reverse"}

    def wrong_letters(item: object) -> int:
        return sum(a != b for a, b in zip(item.demonstrations[0].split(), item.expected.split(), strict=True))

    wrong = [wrong_letters(item) for item in task.items]
    assert set(wrong) == {0, 1}
    assert sum(wrong) / 2000 == pytest.approx(0.2, abs=0.04)  # 4.5 standard deviations
    assert sum(map(wrong_letters, base.items)) / len(base.items) == pytest.approx(0.1, abs=0.03)
    assert {wrong_letters(item) for t in held_out for item in t.items} == {0}


def test_every_word_is_one_of_16_tokens_and_only_the_end_is_dropped(strings: ModuleType) -> None:
    tokenizer = strings.word_tokenizer()
    task, _ = strings.post_training_tasks(strings.Toy(items=100), seed=0)
    assert len(tokenizer) == 16
    unknown = tokenizer.convert_tokens_to_ids("<unknown>")
    for item in task.items:
        assert len(tokenizer.encode(item.prompt)) == 7
        assert unknown not in tokenizer.encode(item.prompt) + tokenizer.encode(item.demonstrations[0])
    everything = list(range(16))
    shown = tokenizer.decode(everything, skip_special_tokens=True).split()
    assert shown == [tokenizer.convert_ids_to_tokens(i) for i in everything if i != tokenizer.eos_token_id]


def test_the_whole_claim_in_small(
    hpt: ModuleType, harness: ModuleType, strings: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim, store = hpt.claim(strings.Toy(**TINY)), tmp_path / "claim.jsonl"
    methods = ["base", *hpt.TRAININGS]
    assert list(claim.methods) == methods
    runs = harness.run_table(claim, methods, [0], store, "abc")
    store.write_text("".join(store.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    continued = harness.run_table(hpt.claim(strings.Toy(**TINY)), methods, [0], store, "abc")
    assert "7 of 8 runs were finished before" in capsys.readouterr().out
    assert continued[:-1] == runs[:-1]
    measured = {"seconds", "cpu_seconds"}
    assert {k: v for k, v in continued[-1].items() if k not in measured} == {k: v for k, v in runs[-1].items() if k not in measured}

    command = ["python", "benchmarks/claims/hpt.py", "--seeds", "1"]
    result = harness.write_results(tmp_path / "claim", claim, harness.facts(claim, command, "abc", False), runs)
    kept = json.loads((tmp_path / "claim.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(result))
    assert kept["command"] == "python benchmarks/claims/hpt.py --seeds 1"
    assert kept["machine"]["threads"] == torch.get_num_threads()
    by_name = {run["method"]: run for run in kept["runs"]}
    assert list(by_name) == methods
    rollouts = {name: run["rollouts"] for name, run in by_name.items()}
    assert rollouts == {"base": 0, "sft": 0, "dr_grpo": 128, "grpo": 128, "sft_then_grpo": 96, "luffy": 112, "srft": 112, "hpt": 128}
    assert by_name["sft"]["optimiser_steps"] == by_name["hpt"]["optimiser_steps"] == 4
    for run in kept["runs"]:
        assert 0 <= run["score"] <= 1
        assert run["score"] == pytest.approx(sum(run["operations"].values()) / 4, abs=1e-5)
        assert set(run["operations"]) == set(strings.OPERATIONS)
        assert run["curve"][str(TINY["base_steps"] if run["method"] == "base" else TINY["steps"])] == run["score"]
    assert [0 <= share <= 1 for share in by_name["hpt"]["offline_fraction"]] == [True]
    assert by_name["sft"]["offline_fraction"] == [None]
    assert len(kept["assertions"]) == len(hpt.CLAIMS) + 1

    page = (tmp_path / "claim.md").read_text(encoding="utf-8")
    assert all(training.title in page and training.normalisation in page for training in hpt.TRAININGS.values())
    assert page.count("PASS") + page.count("FAIL") >= len(kept["assertions"])
    assert (tmp_path / "claim.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in page + (tmp_path / "claim.json").read_text(encoding="utf-8")


def test_stored_runs_of_other_settings_do_not_count(hpt: ModuleType, harness: ModuleType, strings: ModuleType, tmp_path: Path) -> None:
    store = tmp_path / "claim.jsonl"
    claim = hpt.claim(strings.Toy(**TINY))
    line = {"identity": harness.identity(claim, "sft", "abc"), "method": "sft", "seed": 0}
    store.write_text(json.dumps(line) + "\n" + json.dumps(line)[:20], encoding="utf-8")  # the second was cut by a kill
    assert set(harness.stored(claim, store, "abc")) == {("sft", 0)}
    assert not harness.stored(claim, store, "abd")
    assert not harness.stored(hpt.claim(strings.Toy(**TINY | {"steps": 5})), store, "abc")


def test_curves(strings: ModuleType) -> None:
    shares: list[float] = []
    curve = strings.Curve(shares.append, [1.0, 3.0])
    curve.iteration(1, 2, {"reward/mean": 1.0})
    curve.iteration(2, 2, {"reward/mean": 2.0})
    assert shares == [0.25, 1.0]
    curve.rows += [{}, {}, {"reward/mean": 4.0}]
    assert curve.windows("reward/mean", 2) == [1.5, None, 4.0]
    assert strings.while_training({"0": 0.0, "10": 1.0, "20": 1.0}) == pytest.approx(0.75)


def test_several_toys_have_a_base_model_each(strings: ModuleType) -> None:
    toys = {"easy": strings.Toy(**TINY), "hard": strings.Toy(**TINY | {"base_frequencies": (0.0, 0.0, 1.0, 1.0)})}
    sft = strings.Training("SFT", ((strings.algorithm("sft"), 1.0),), toy="hard")
    claim = strings.claim_on(toys, {"hard/sft": sft}, name="two", title="two toys", source="none", checks=lambda runs: [])
    assert list(claim.methods) == ["easy/base", "hard/base", "hard/sft"]
    bases = [claim.run(name, 0, lambda share: None) for name in ("easy/base", "hard/base")]
    shares: list[float] = []
    trained = claim.run("hard/sft", 0, shares.append)
    assert trained["curve"]["0"] == bases[1]["score"]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert claim.methods["hard/base"].always
    assert not claim.methods["hard/sft"].always


def test_a_number_is_found_by_its_key_or_a_path(harness: ModuleType) -> None:
    run = {"error_0.1": 1.0, "operations": {"copy": 2.0}}
    assert [harness.number(run, name) for name in ("error_0.1", "operations.copy", "operations.shift")] == [1.0, 2.0, None]


def test_a_table_of_any_numbers(harness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The harness knows nothing of training: any function of method and seed will do, with or without curves."""

    def run(method: str, seed: int, told: Callable[[float], None]) -> dict[str, object]:
        told(0.5)
        return {"error": {"a": 1.0, "b": 0.25}[method] + seed, "detail": {"size": 10 * seed}}

    claim = harness.Claim(
        "numbers",
        "Numbers of any kind",
        "none",
        {"a": harness.Method("The first", always=True), "b": harness.Method("The second", note="a note")},
        run,
        lambda runs: [
            harness.check("a > b", harness.difference(runs, "a", "b", "error"), lambda d: d > 0),
            harness.check("size of b > 5", harness.by_seed(runs, "b", "detail.size"), lambda size: size > 5),
            harness.check("about a method that did not run", harness.difference(runs, "a", "c", "error"), lambda d: d > 0),
        ],
        columns={"error": "error", "detail.size": "size"},
    )
    result = harness.write_results(
        tmp_path / "n", claim, harness.facts(claim, ["x"], "", False), harness.run_table(claim, ["a", "b"], [0, 1], tmp_path / "n.jsonl")
    )
    first, second = result["assertions"]
    assert (first["value"], first["n"], first["passed"]) == (0.75, 2, True)
    assert (second["value"], second["passed"]) == (5.0, False)
    assert second["per_seed"] == {"0": {"value": 0, "passed": False}, "1": {"value": 10, "passed": True}}
    page = (tmp_path / "n.md").read_text(encoding="utf-8")
    assert "| The second | 0.750 [0.250, 1.250] | 5 |" in page
    assert "| size of b > 5 | 5.000 [0.000, 10.000] | FAIL | 0.000 (FAIL), 10.000 |" in page
    assert "- The second: a note" in page
    script = str(CLAIMS / "hpt.py")
    arguments = ["--methods", "b", "--seeds", "1", "--output", str(tmp_path / "again")]
    assert harness.main(script, "Numbers.", lambda options: claim, arguments) == 0
    assert "FAIL  size of b > 5" in capsys.readouterr().out
    assert {run["method"] for run in json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))["runs"]} == {"a", "b"}
    assert not (tmp_path / "again.jsonl").exists()


def _run(method: str, seed: int, score: float, offline: float | None = None) -> dict[str, object]:
    return {"method": method, "seed": seed, "score": score, "offline_fraction": [0.9, offline]}


def _checked(script: ModuleType, runs: list[dict[str, object]]) -> list[dict[str, Any]]:
    """Pieces about methods that did not run are left out."""
    return [piece for piece in script.checks(runs) if piece is not None]


def test_assertions_on_the_mean_and_on_each_seed(hpt: ModuleType) -> None:
    ours = [_run("hpt", 0, 0.98, 0.0), _run("hpt", 1, 0.9, 0.06)]
    others = [_run("sft", 0, 0.8), _run("sft", 1, 0.81), _run("luffy", 0, 0.9), _run("luffy", 1, 0.1)]
    sft, luffy, offline = _checked(hpt, ours + others)
    assert (sft["value"], sft["passed"]) == (pytest.approx(0.135), True)
    assert [piece["passed"] for piece in sft["per_seed"].values()] == [True, False]
    assert (luffy["value"], luffy["passed"]) == (pytest.approx(0.44), True)
    assert [piece["passed"] for piece in luffy["per_seed"].values()] == [False, True]
    assert (offline["value"], offline["passed"]) == (pytest.approx(0.03), True)
    assert [piece["passed"] for piece in offline["per_seed"].values()] == [True, False]
    assert _checked(hpt, others) == []
    for theirs, passed in ((0.99, True), (0.991, False)):  # at least 0.03 below, whatever floating point makes of 0.96 − 0.99
        piece, _ = _checked(hpt, [_run("hpt", 0, 0.96, 0.0), _run("sft_then_grpo", 0, theirs)])
        assert piece["passed"] is piece["per_seed"]["0"]["passed"] is passed


def test_bad_arguments(hpt: ModuleType, harness: ModuleType, strings: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def main(*arguments: str) -> int:
        return harness.main(str(CLAIMS / "hpt.py"), hpt.__doc__, hpt.build, arguments, options=hpt.options)

    assert main("--methods", "hpt,sftt") == 2
    assert "benchmarks/claims/hpt.py: --methods: 'sftt' does not exist; did you mean 'sft'" in capsys.readouterr().err
    assert main("--seeds", "0") == 2
    assert main("--steps", "2") == 2
    assert "--steps is 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="--steps is 2"):
        strings.Toy(steps=2)


@pytest.mark.parametrize(("name", "pieces"), [("chord", 6), ("otr", 4)])
def test_claims_on_two_toys_in_small(
    scripts: Callable[[str], ModuleType], harness: ModuleType, strings: ModuleType, name: str, pieces: int, tmp_path: Path
) -> None:
    script = scripts(name)
    toys = {key: dataclasses.replace(toy, **TINY) for key, toy in strings.two_toys(True, "llama").items()}
    claim = script.claim(toys)
    runs = harness.run_table(claim, list(claim.methods), [0], tmp_path / "claim.jsonl")
    assert [run["method"] for run in runs] == ["T1/base", "T2/base", *script.TRAININGS]
    result = harness.write_results(tmp_path / name, claim, harness.facts(claim, ["x"], "", False), runs)
    assert len(result["assertions"]) == pieces
    assert script.claim(strings.two_toys(True, "gpt2")).name == f"{name}-gpt2"
    full = strings.two_toys(False, "llama")
    assert (full["T1"], full["T2"].steps, full["T2"].base_frequencies) == (strings.Toy(), 300, (1.0, 0.5, 0.12, 0.12))


def _shares(method: str, known: float, unknown: float) -> dict[str, Any]:
    operations = {"copy": known, "reverse": known, "shift": unknown, "reverse-shift": unknown}
    return {"method": method, "seed": 0, "score": (known + unknown) / 2, "operations": operations}


def test_pieces_of_chord(scripts: Callable[[str], ModuleType]) -> None:
    """The numbers of the published toy hold; each piece fails when its own number moves."""
    table = {
        "T1/grpo": (0.94, 0.0),
        "T1/sft": (0.8, 0.8),
        "T1/chord_mu": (0.98, 0.98),
        "T1/chord_phi": (0.95, 0.0),
        "T2/grpo": (0.99, 0.99),
        "T2/sft": (0.79, 0.79),
        "T2/chord_phi": (0.98, 0.98),
    }

    def passed(**changed: tuple[float, float]) -> list[bool]:
        changes = {key.replace("__", "/"): value for key, value in changed.items()}
        return [p["passed"] for p in _checked(scripts("chord"), [_shares(m, *shares) for m, shares in (table | changes).items()])]

    assert passed() == [True] * 6
    assert passed(T1__sft=(0.9, 0.9)) == [False, True, True, True, True, True]
    assert passed(T1__grpo=(0.99, 0.5)) == [True, False, True, True, True, True]
    assert passed(T2__sft=(0.9, 0.9)) == [True, True, False, True, True, True]
    assert passed(T2__grpo=(1.0, 1.0)) == [True] * 6  # 0.02 is within
    assert passed(T2__grpo=(0.95, 0.95)) == [True, True, True, False, True, True]
    assert passed(T2__chord_phi=(0.96, 0.96)) == [True, True, True, False, False, True]
    assert passed(T1__chord_phi=(0.95, 0.1)) == [True, True, True, True, True, False]


def test_pieces_of_otr(scripts: Callable[[str], ModuleType]) -> None:
    table = {"T1/sft": (0.8, 0.8), "T1/otr": (0.99, 0.58), "T2/base": (0.88, 0.88), "T2/sft": (0.79, 0.79), "T2/otr": (1.0, 1.0)}

    def passed(**changed: tuple[float, float]) -> list[bool]:
        changes = {key.replace("__", "/"): value for key, value in changed.items()}
        return [p["passed"] for p in _checked(scripts("otr"), [_shares(m, *shares) for m, shares in (table | changes).items()])]

    assert passed() == [True] * 4
    assert passed(T2__otr=(0.9, 0.9)) == [False, True, True, True]
    assert passed(T2__base=(0.79, 0.79)) == [True, False, True, True]
    assert passed(T1__otr=(0.99, 0.99)) == [True, True, False, True]
    assert passed(T1__otr=(0.85, 0.5)) == [True, True, True, False]


@pytest.mark.parametrize(
    ("name", "methods", "pieces"),
    [
        ("copg", 6, 5),
        ("copg_sequence", 10, 8),
        ("rpo", 4, 6),
        ("rpo_sequence", 5, 8),
        ("d3s", 5, 7),
        ("copo", 4, 1),
        ("spo", 7, 2),
        ("stratified_grpo", 14, 3),
        ("capo", 16, 8),
        ("recursive", 4, 5),
        ("recursive_control", 8, 3),
        ("polychromic", 5, 10),
        ("prdc", 4, 3),
        ("hnpg", 5, 3),
        ("cdsa", 11, 8),
    ],
)
def test_other_claims_in_small(
    scripts: Callable[[str], ModuleType], harness: ModuleType, name: str, methods: int, pieces: int, tmp_path: Path
) -> None:
    script = scripts(name)
    arguments = ["--quick", "--output", str(tmp_path / name)]
    options = getattr(script, "options", lambda parser: None)
    assert harness.main(str(CLAIMS / f"{name}.py"), script.__doc__, script.build, arguments, options=options) == 0
    kept = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert len({run["method"] for run in kept["runs"]}) == len(kept["runs"]) == methods
    assert len(kept["assertions"]) == pieces
    assert kept["claim"]


@pytest.mark.parametrize(
    ("name", "arguments", "pieces"),
    [
        ("odice", ["--methods", "orthogonal,true"], 3),
        ("dual_rl", ["--methods", "bc,iql,chi_square_0.8"], 2),
        ("dual_rl", ["--part", "recoil"], 2),
        ("uni_o4", ["--methods", "clone,model"], 1),
        ("offline_table", ["--methods", "unipg/bc,unipg/odice"], 0),
    ],
)
def test_claims_on_the_pendulums_data_in_small(
    scripts: Callable[[str], ModuleType], harness: ModuleType, name: str, arguments: list[str], pieces: int, tmp_path: Path
) -> None:
    script = scripts(name)
    options = getattr(script, "options", lambda parser: None)
    given = ["--quick", *arguments, "--output", str(tmp_path / name)]
    assert harness.main(str(CLAIMS / f"{name}.py"), script.__doc__, script.build, given, options=options) == 0
    kept = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert len(kept["assertions"]) == pieces
    assert all(abs(run["score"]) < 60 for run in kept["runs"])  # in units of the references: returns are below −600


def test_the_bandit_of_copg(scripts: Callable[[str], ModuleType]) -> None:
    bandit = scripts("copg").Bandit()
    assert bandit.regret(bandit.anchor) == pytest.approx(0.29187, abs=5e-6)
    best = torch.log_softmax(bandit.reward / bandit.beta, -1)
    assert bandit.regret(best) == pytest.approx(0.0, abs=1e-14)
    assert bandit.regret(torch.tensor([0.705, 0.259, 0.036]).log()) > 0
    arms, labels = bandit.data(seed=0)
    assert [(arms[:, 0] == arm).double().mean().item() for arm in range(3)] == pytest.approx([0.1, 0.2, 0.7], abs=0.02)
    unequal = arms[:, 0] < arms[:, 1]  # the first is the better arm
    share = torch.sigmoid(bandit.reward[arms[unequal, 0]] - bandit.reward[arms[unequal, 1]]).mean().item()
    assert labels[unequal, 0].mean().item() == pytest.approx(share, abs=0.04)
    assert (labels.sum(1) == 1).all()


def test_the_bandit_of_rpo(scripts: Callable[[str], ModuleType]) -> None:
    rpo = scripts("rpo")
    problem = rpo.Problem.draw(rpo.Bandit(), seed=0)
    assert problem.reward.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert problem.covered.sum() == 15
    assert problem.covered[problem.chosen].all()
    assert problem.covered[problem.rejected].all()
    assert (problem.chosen != problem.rejected).all()
    assert problem.reward[problem.covered].min() > problem.reward[~problem.covered].max()
    facts = problem.facts(problem.anchor, 0.1)
    assert facts["dpo_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert facts["chosen"] == facts["kl"] == 0.0
    assert facts["uncovered"] == pytest.approx(1 - problem.anchor.exp()[problem.covered].sum().item(), abs=1e-12)


def test_scores_and_labels_of_short_answers(scripts: Callable[[str], ModuleType], strings: ModuleType) -> None:
    sequence = scripts("copg_sequence")
    item = strings.item(0, 5, 0.0, 0, "test")
    right = item.expected.split()
    assert sequence.letters_right(" ".join(right), item) == 1.0
    assert sequence.letters_right(" ".join([*right[:3], "="]), item) == 0.75
    assert sequence.letters_right(" ".join([*right, "a"]), item) == 0.75
    assert sequence.letters_right("", item) == -1.0
    scored = [sequence.ScoredCompletion("x", score) for score in (0.5, 0.75, 0.5)]
    items = [dataclasses.replace(item, index=i, completions=(scored[a], scored[b])) for i, (a, b) in enumerate([(0, 2), (0, 1), (1, 2)])]
    assert [[c.score for c in i.completions] for i in sequence.labelled(items)] == [[0.0, 1.0], [1.0, 0.0]]


def test_the_counting_toy_of_tppo(scripts: Callable[[str], ModuleType], harness: ModuleType, tmp_path: Path) -> None:
    tppo = scripts("tppo")
    toy = tppo.Toy(smallest=1, largest=2, limit=3)
    policy = tppo.Counter(toy)
    with torch.no_grad():
        policy.logits[:, tppo.END] = torch.tensor([0.1, 0.2, 9.0, -0.4, -0.5, 0.6], dtype=torch.float64)
    p = torch.sigmoid(torch.tensor([0.1, 0.2, 9.0, -0.4, -0.5, 0.6], dtype=torch.float64)).tolist()
    assert policy.success() == pytest.approx(((1 - p[0]) * p[1] + (1 - p[3]) * (1 - p[4]) * p[5]) / 2, abs=1e-15)
    assert tppo.utilization(3, 1, seed=0) == 1.0
    assert harness.main(str(CLAIMS / "tppo.py"), tppo.__doc__, tppo.build, ["--quick", "--output", str(tmp_path / "tppo")]) == 0
    kept = json.loads((tmp_path / "tppo.json").read_text(encoding="utf-8"))
    assert [run["method"] for run in kept["runs"]] == list(tppo.METHODS)
    assert all(max(map(int, run["success"])) >= 200 for run in kept["runs"])
    assert len(kept["assertions"]) in (3, 4)  # a short run may not reach 0.5


def test_windows_of_the_counting_toy(scripts: Callable[[str], ModuleType]) -> None:
    """Answers go on where they were cut, for the same prompt; finished ones make room."""
    tppo = scripts("tppo")
    toy = tppo.Toy(slots=16)
    policy, counting = tppo.Counter(toy), tppo.Counting(toy)
    before = torch.zeros(16, dtype=torch.long)
    for iteration in range(8):
        finished, prompt = counting.finished.clone(), counting.prompt.clone()
        batch, metrics = counting.collect(policy, tppo.Demand(iteration, window=5))
        fresh, length = batch.planned["fresh"].sum(1), batch.mask.sum(1)
        assert torch.equal(length - fresh, torch.where(finished, 0, before))
        assert torch.equal(counting.prompt[~finished], prompt[~finished])
        assert metrics["decode/steps"] == fresh.max()
        ends = (batch.terminated | batch.truncated).any(1)
        assert torch.equal(ends, counting.finished)
        assert (fresh[~ends] == 5).all()
        assert (length[batch.truncated.any(1)] == toy.limit).all()
        won = batch.terminated.any(1) & (length == counting.prompt + toy.smallest + 1)
        assert torch.equal(batch.reward, won.double())
        before = length


TINY_RECIPE = """
algorithm: {name: hpt, rollouts: 2}
threads: 1
policy: {model: none}
task: {data: {source: ROWS.jsonl, prompt: q, answer: a, demonstration: a}}
rollouts: {max_new_tokens: 2}
evaluation: {items: 3, tasks: [{data: {source: HELD.jsonl, prompt: q, answer: a}}]}
training: {iterations: 5, prompts: 4}
"""


def test_defaults_run_both_forms_with_nothing_overridden_but_their_length(
    scripts: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = scripts("defaults")
    for name, count in (("ROWS", 8), ("HELD", 3)):
        lines = [json.dumps({"q": f"{name} {number} =", "a": str(number)}) for number in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    text = TINY_RECIPE.replace("ROWS", str(tmp_path / "ROWS")).replace("HELD", str(tmp_path / "HELD"))
    scratch = "{scratch: {hidden_size: 16, layers: 1, heads: 1, intermediate_size: 16, vocabulary: 262, max_positions: 32}}"
    files = {
        "demo-warm-start": text.replace("{name: hpt, rollouts: 2}", "sft").replace("{model: none}", scratch),
        "demo": text,
        "rloo": text.replace("{name: hpt, rollouts: 2}", "{name: rloo, rollouts: 3}"),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
    monkeypatch.setattr(defaults, "RECIPES", tmp_path)
    monkeypatch.setattr(defaults, "MODEL", tmp_path / "start")
    model = defaults.start(quick=False)
    assert defaults.start(quick=False) == model  # it is there already
    shares: list[float] = []
    recipe, demo, short = (
        defaults.trained(*run, shares.append, model, 24) for run in (("recipe/rloo", 0), ("demo/rloo", 0), ("demo/hpt", 1))
    )
    assert [run["iterations"] for run in (recipe, demo, short)] == [2, 1, 1]  # 12 and 32 rollouts in each
    assert recipe["rate"] == pytest.approx(3.0)
    assert short["rate"] == pytest.approx(10.0)
    for run in (recipe, demo, short):
        assert run["score"] == pytest.approx(run["after"] - run["before"])
        assert list(run["tasks"]) == ["HELD"]
    assert shares == [0.5, 1.0, 1.0, 1.0]
    names = defaults.build.__globals__["registered"]()
    chosen = {name for name, kind in names.items() if defaults.online(kind)}
    assert {"grpo", "ppo", "hpt", "chord", "spo"} <= chosen
    assert not chosen & {"sft", "dpo", "otr", "bradley_terry", "stratified_grpo"}
    runs = [{"method": "demo/a", "seed": seed, "score": score} for seed, score in enumerate((0.1, -0.02, 0.0))]
    (piece,) = defaults.checks(runs)
    assert piece["passed"]
    assert [seed["passed"] for seed in piece["per_seed"].values()] == [True, False, False]
