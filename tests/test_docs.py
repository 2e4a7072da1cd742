"""The docs say what the code does."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

from unipg.algorithms import registered
from unipg.cli import main
from unipg.laws import LAWS
from unipg.reports.explain import explanation, reference

ROOT = Path(__file__).parent.parent


def test_the_algorithm_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8") == reference(registered()), "run: make docs"


def test_what_type_checkers_know_of_algorithms_is_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    stub = ROOT / "src" / "unipg" / "algorithms" / "__init__.pyi"
    assert stub.read_text(encoding="utf-8") == generate["stub"](), "run: make docs"


def test_the_page_of_claims_is_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == generate["claims"](ROOT / "benchmarks" / "results"), "run: make docs"
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (ROOT / "docs" / picture).is_file()
    scripts = {algorithm.claim for algorithm in registered().values() if algorithm.claim}
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("name", registered())
def test_explain_says_everything(name, capsys) -> None:
    assert main(["explain", name]) == 0
    text = capsys.readouterr().out
    algorithm = registered()[name]
    assert algorithm.paper in text
    assert algorithm.equation in text
    for parameter in re.findall(r"`algorithm\.(\w+)`", text):
        assert hasattr(algorithm(), parameter)
    assert explanation(algorithm) in (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")


def test_the_live_table_as_json(capsys) -> None:
    assert main(["algorithms", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["name"] for r in rows} == set(registered())
    assert all(set(r) == {"name", "mask", "reference", "advantage", "likelihood", "data", "source"} for r in rows)
    assert all(all(r.values()) for r in rows)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)\)", prose):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("law", LAWS)
def test_the_part_in_the_laws_page_keeps_the_laws(law) -> None:
    text = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.S)[0]
    names: dict = {"__name__": "laws_page"}
    exec(code.replace("from __future__ import annotations", ""), names)
    LAWS[law](names["Mine"]())
    assert law in text


def test_the_five_commands_of_the_control_page_run(tmp_path, monkeypatch) -> None:
    """As they stand there, but for the length of the training and the installation; then what uses the file that they leave."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "control.md").read_text(encoding="utf-8")
    install, recipe, *commands = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert install.startswith("pip install 'unipg[")
    name, content = re.fullmatch(r"cat > (\S+) <<'END'\n(.*)END\n", recipe, re.S).groups()
    Path(name).write_text(content, encoding="utf-8")
    short = ["training.iterations=1", "environment.steps=20", "environment.evaluation_episodes=1", "replay.warmup=5", "replay.batch=4"]
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "unipg"
        assert main([*arguments, *{"train": short, "evaluate": ["--episodes", "1"]}.get(arguments[0], [])]) == 0
    assert Path("runs/pendulum/recording.mp4").stat().st_size > 10_000
    code = re.findall(r"```python\n(.*?)```", text, re.S)[0]
    names: dict = {}
    exec(code, names)
    assert -2000 < names["total"] < 0


BLOCKS = [
    pytest.param(page, code, id=f"{page}-{number}")
    for page in ("README.md", "docs/guide.md")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S))
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with what the docs take for granted: data files, and a tiny model under the name of a large one."""
    from unipg.policies.causal_lm import ScratchModel, build_model, train_tokenizer

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["What is 2 + 3?", "Hello"], 270)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    model = build_model(ScratchModel(hidden_size=16, layers=1, heads=2, intermediate_size=32, vocabulary=270, max_positions=128), tokenizer)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "Qwen" / "Qwen3-0.6B")
    for name, shift in (("train.jsonl", 0), ("held_out.jsonl", 100)):
        rows = [{"prompt": f"What is {a + shift} + 1?", "answer": str(a + shift + 1)} for a in range(4)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_python_in_the_docs_runs_as_printed(place, page, code) -> None:
    """Fewer iterations are the only change."""
    log_prob = (-torch.rand(4, 3)).requires_grad_()
    names = {
        "__name__": "block",
        "tokens": torch.zeros(4, 3, dtype=torch.long),
        "mask": torch.ones(4, 3, dtype=torch.bool),
        "group": torch.tensor([0, 0, 1, 1]),
        "reward": torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "old": log_prob.detach(),
        "anchor": log_prob.detach() - 0.1,
        "log_prob": log_prob,
        "entropy": torch.ones(4, 3),
    }
    exec(re.sub(r"\biterations=\d+", "iterations=1", code), names)
