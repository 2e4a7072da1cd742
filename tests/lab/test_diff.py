"""`unipg diff`: the parts that differ, and gradients against closed forms."""

import json
import math

import pytest
import torch

from unipg import Source
from unipg.algorithms import Setting, registered
from unipg.cli import main
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.lab.diff import compare_parts, layer_group, measure, shared_batch


def difference(first, second, seed=0):
    policy = BigramPolicy(4, seed=seed)
    experience = StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2), prompts=10)
    batch = shared_batch(first, second, policy, experience, seed)
    return measure(first, second, policy, batch, 2), batch


def test_an_algorithm_does_not_differ_from_itself() -> None:
    found, _ = difference(registered()["hpt"](), registered()["hpt"]())
    assert found.total.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.total.norm_ratio == 1.0
    assert found.rows == []
    assert {p["same"] for p in found.parts} == {"yes"}


def test_a_longer_constant_shortens_the_gradient_and_turns_nothing() -> None:
    dr_grpo = registered()["dr_grpo"]
    found, _ = difference(dr_grpo(length=2), dr_grpo(length=8))
    assert found.total.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.total.norm_ratio == pytest.approx(0.25, abs=1e-12)
    assert [p["part"] for p in found.parts if p["same"] == "no"] == ["aggregate"]


def test_reinforcement_and_supervision_push_other_rows() -> None:
    found, batch = difference(registered()["rloo"](), registered()["sft"]())
    assert {r.source for r in found.rows} <= {"rollout", "demonstration"}
    for row in found.rows:
        assert (row.first == 0) == (row.source == "demonstration")
        assert (row.second == 0) == (row.source == "rollout")
    demonstrations = batch.rows_from(Source.DEMONSTRATION)
    assert found.batch == {
        "rollouts": int((~demonstrations).sum()), "demonstrations": int(demonstrations.sum()), "tokens": int(batch.mask.sum()),
    }  # fmt: skip
    assert math.isclose(sum(found.positions), 1.0)
    assert math.isclose(sum(found.by_sign.values()), 1.0)


def test_the_measured_gradient_is_that_of_the_coefficients() -> None:
    """The cosine from parameters equals the one worked out from −sum c·∇log pi by hand."""
    first, second = registered()["grpo"](), registered()["dr_grpo"]()
    policy = BigramPolicy(4, seed=3)
    experience = StringExperience(StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2), prompts=10)
    batch = shared_batch(first, second, policy, experience, 3)
    found = measure(first, second, policy, batch, 2)
    gradients = []
    for algorithm in (first, second):
        advantage = algorithm.terms(Setting(2)).terms[0].advantage(batch)
        per_row = 1 / len(batch) / 2  # every row has two tokens, and the constant is two as well
        policy.module.zero_grad()
        (-(per_row * advantage * policy.evaluate(batch).log_prob)[batch.mask]).sum().backward()
        gradients.append(policy.logits.grad.flatten().clone())
    a, b = gradients
    assert found.total.cosine == pytest.approx(float(torch.nn.functional.cosine_similarity(a, b, dim=0)), abs=1e-12)
    assert found.total.norm_ratio == pytest.approx(float(b.norm() / a.norm()), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.model.layers.3.self_attn.q_proj.weight", "layers.3"),
        ("model.transformer.h.0.attn.c_attn.weight", "h.0"),
        ("model.model.embed_tokens.weight", "embed_tokens"),
        ("model.lm_head.weight", "lm_head"),
        ("value_head.weight", "value_head"),
    ],
)
def test_layer_groups(name, group) -> None:
    assert layer_group(name) == group


def test_every_pair_has_a_comparison_of_parts() -> None:
    for first in registered().values():
        for second in registered().values():
            same = {p["part"] for p in compare_parts(first(), second(), Setting(4)) if p["same"] == "yes"}
            assert (len(same) == 10) == (first is second)


def test_the_command_writes_a_page_and_its_numbers(tmp_path, capsys) -> None:
    assert main(["diff", "grpo", "sft", "--output", str(tmp_path / "d.html")]) == 0
    assert "cosine" in capsys.readouterr().out
    text = (tmp_path / "d.html").read_text(encoding="utf-8")
    assert "GroupStandardized" in text
    numbers = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert numbers["first"] == "grpo"
    assert -1 <= numbers["total"]["cosine"] <= 1


def test_on_a_recipe(tmp_path, capsys) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"{i} + 1 =", "a": str(i + 1)}) + "\n" for i in range(8)), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "algorithm: hpt\nthreads: 1\npolicy: {scratch: {hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, vocabulary: 270}}\n"
        f"task: {{data: {{source: {rows}, prompt: q, answer: a, demonstration: a}}}}\n"
        "rollouts: {max_new_tokens: 4}\ntraining: {prompts: 4}\n",
        encoding="utf-8",
    )
    assert main(["diff", "hpt", "ppo", "--on", str(recipe)]) == 0
    assert "layers.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["grop", "sft"], "did you mean 'grpo'"),
        (["grpo", "sft", "--on", "nowhere.yaml"], "does not exist"),
        (["grpo", "sft", "--on", "."], "is not a run folder"),
    ],
)
def test_bad_input_gets_one_line(arguments, said, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["diff", *arguments]) == 2
    assert said in capsys.readouterr().err
