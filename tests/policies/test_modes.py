"""No dropout, recomputed activations, weights in float32 below half precision, adapters that are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from unipg.errors import InputError
from unipg.policies.causal_lm import CausalLanguageModel, Lora, ScratchModel, build_model, train_tokenizer
from unipg.policies.recipe import ModelRecipe
from unipg.training.recipe import load_recipe
from unipg.training.run import build
from unipg.training.trainer import Trainer
from unipg.trajectories import Trajectories

TEXTS = [f"What is {a} + {b}? {a + b}" for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 270)


@pytest.fixture(params=["gpt2", "llama"])
def start(request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, data and a verifier beside it: GPT-2 has dropout of its own."""
    (tmp_path / "evens.py").write_text("def evens(answer, item):\n    return float(len(answer) % 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    sizes = ScratchModel(architecture=request.param, hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=64)
    build_model(sizes, tokenizer).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    lines = [{"question": f"What is {a} + 2?", "answer": str(a + 2), "solution": f"{a + 2}"} for a in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "start"


def trainer(start: Path, name: str, *overrides: str, algorithm: str = "{name: grpo, rollouts: 4}") -> Trainer:
    folder = start.parent
    columns = "prompt: question, answer: answer, demonstration: solution, verifier: 'evens:evens'"
    (folder / "recipe.yaml").write_text(
        f"algorithm: {algorithm}\noutput: {folder / name}\npolicy: {{model: {start}}}\n"
        f"task: {{data: {{source: {folder / 'data.jsonl'}, {columns}}}}}\n"
        "rollouts: {max_new_tokens: 6}\ntraining: {iterations: 2, prompts: 4}\noptimizer: {learning_rate: 1.0e-2}\n"
    )
    recipe = load_recipe(str(folder / "recipe.yaml"), list(overrides))
    made = recipe.build_algorithm()
    policy, experience = build(recipe, made, torch.device("cpu"))
    return Trainer(made, policy, experience, folder=Path(recipe.output), training=recipe.training, optimizer=recipe.optimizer, seed=0)


def rows() -> Trajectories:
    action = torch.randint(3, 260, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(action, dtype=torch.bool)
    mask[:, :4] = False
    return Trajectories(action=action, mask=mask, present=torch.ones_like(mask), group=torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("lora", [None, "policy.lora={r: 2, dropout: 0.5}"])
@pytest.mark.parametrize("recomputed", ["false", "true"])
def test_the_policy_that_is_updated_is_the_one_that_was_asked(start: Path, lora: str | None, recomputed: str) -> None:
    """With any number of optimiser steps: old and new log-probabilities are the same before the first of them."""
    for minibatches in (1, 2):
        more = [lora] if lora else []
        made = trainer(
            start, f"m{minibatches}", f"training.minibatches={minibatches}", f"policy.gradient_checkpointing={recomputed}", *more
        )
        began = made.policy.evaluate(rows()).log_prob.detach()
        assert torch.equal(made.policy.evaluate(rows()).log_prob, began)
        row = made.train()
        assert row["mismatch/log_ratio"] < 1e-5
        again = made.policy.evaluate(rows()).log_prob
        assert torch.equal(again, made.policy.evaluate(rows()).log_prob)
        assert not torch.equal(again, began)


@pytest.mark.parametrize("start", ["llama"], indirect=True)
@pytest.mark.parametrize("minibatches", [1, 2])
def test_activations_are_recomputed_wherever_that_is_asked_for(start: Path, minibatches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, forward = 0, modeling_llama.LlamaMLP.forward

    def counted(self: Any, x: Any) -> Any:
        nonlocal passes
        passes += torch.is_grad_enabled()
        return forward(self, x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", counted)
    found = []
    for on in ("false", "true"):
        made = trainer(start, f"again-{on}", f"policy.gradient_checkpointing={on}", f"training.minibatches={minibatches}")
        passes = 0
        made.train()
        found.append((passes, [p.detach().clone() for p in made.policy.module.parameters()]))
    assert found[1][0] == 2 * found[0][0] > 0
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_is_computed_with_and_weights_stay_float32(start: Path) -> None:
    moved = {}
    before = load_file(start / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        made = trainer(start, dtype, f"policy.dtype={dtype}", "optimizer.learning_rate=1e-6", algorithm="sft")
        seen: list[torch.dtype] = []
        made.policy.model.base_model.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out.last_hidden_state.dtype))
        block = next(m for name, m in made.policy.model.named_modules() if name.endswith(("mlp.c_fc", "mlp.up_proj")))
        products: list[torch.dtype] = []
        block.register_forward_hook(lambda m, i, out, products=products: products.append(out.dtype))
        made.train()
        assert set(products) == {getattr(torch, dtype)}
        after = load_file(made.folder / "model" / "model.safetensors")
        assert {t.dtype for t in after.values()} == {torch.float32}
        moved[dtype] = {name: (after[name] - before[name]).sign() for name in after}
        most = max(float((after[n] - before[n]).abs().max()) for n in after)
        assert 5e-7 < most < 1e-5
    same = sum(int((moved["float32"][n] == moved["bfloat16"][n]).sum()) for n in before)
    assert same > 0.9 * sum(t.numel() for t in before.values())


def test_half_precision_gradients_and_adapters(start: Path) -> None:
    """Below adapters the frozen weights are bfloat16; the adapters, and every critic, are float32."""
    exact = trainer(start, "exact", "policy.lora={r: 2}", algorithm="{name: ppo, rollouts: 4}")
    half = trainer(start, "half", "policy.lora={r: 2}", "policy.dtype=bfloat16", algorithm="{name: ppo, rollouts: 4}")
    kinds = {(p.requires_grad, p.dtype) for p in half.policy.module.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    slopes = []
    for made in (exact, half):
        made.policy.module.load_state_dict(exact.policy.module.state_dict(), strict=True)
        now = made.policy.evaluate(rows(), value=True, entropy=True)
        assert now.log_prob.dtype == torch.float32
        (now.log_prob.sum() + now.value.sum()).backward()  # type: ignore[union-attr]
        slopes.append(torch.cat([p.grad.flatten() for p in made.policy.module.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*slopes, dim=0) > 0.99
    half.train()


def test_half_precision_weights_are_not_trained(start: Path, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="float16, in which small gradients are 0; accepted: float32, bfloat16, float64"):
        ModelRecipe(model=str(start), dtype="float16")
    made = trainer(start, "x")
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16)
    with pytest.raises(InputError, match="trained weights are bfloat16, in which small steps are lost"):
        Trainer(made.algorithm, CausalLanguageModel(model, tokenizer), made.experience, folder=start.parent / "y")


def test_adapters_are_trained_on(start: Path, tokenizer: Any) -> None:
    lora = "policy.lora={r: 2, alpha: 8}"
    first = trainer(start, "first", lora)
    untrained = first.policy.frozen_copy()
    first.train()
    adapter = first.folder / "model"
    expected = first.policy.evaluate(rows()).log_prob.detach()
    assert (expected - untrained.evaluate(rows()).log_prob).abs().max() > 1e-3
    for more in ([], [lora]):
        second = trainer(adapter, "second", *more, f"task.data.source={start.parent / 'data.jsonl'}")
        assert torch.equal(second.policy.evaluate(rows()).log_prob, expected)
        anchor = second.policy.frozen_copy()
        assert torch.equal(anchor.evaluate(rows()).log_prob, expected)  # the policy as it was at the start
        shared = {id(p) for p in anchor.module.parameters()} & {id(p) for p in second.policy.module.parameters()}
        assert len(shared) == sum(not p.requires_grad for p in second.policy.module.parameters())
        with torch.no_grad():
            for p in second.policy.module.parameters():
                if p.requires_grad:
                    p.add_(0.1)
        assert torch.equal(anchor.evaluate(rows()).log_prob, expected)
        assert not torch.equal(second.policy.evaluate(rows()).log_prob, expected)
    with pytest.raises(InputError, match=r"policy.lora.r is 4, but the adapters .* have 2; accepted: 2, or no policy.lora"):
        ModelRecipe(model=str(adapter), lora=Lora(r=4, alpha=8)).build(list, temperature=1.0, value_head=False, device="cpu", seed=0)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        ModelRecipe(model=str(adapter)).build(list, temperature=1.0, value_head=False, device="cpu", seed=0)
