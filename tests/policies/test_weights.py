"""Weights that are no numbers: found, named, refused wherever a model is loaded."""

import math

import pytest
import torch
from torch import nn

from unipg.cli import main
from unipg.errors import InputError
from unipg.policies.causal_lm import ScratchModel, build_model, load_model, train_tokenizer
from unipg.policies.reward_model import build_reward_model, load_reward_model
from unipg.policies.weights import all_finite, check_finite, fingerprint, nonfinite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_kind_of_no_number_is_found(dtype, bad) -> None:
    tensors = [torch.ones(3, dtype=dtype), torch.full((2, 2), torch.finfo(dtype).max, dtype=dtype), torch.arange(3), torch.ones(0)]
    assert all_finite(tensors)
    assert nonfinite(enumerate(tensors)) == ""
    tensors[1][0, 1] = bad
    assert not all_finite(tensors)
    what = "nan" if math.isnan(bad) else "infinity"
    assert nonfinite((f"layer{n}", t) for n, t in enumerate(tensors)) == (
        f"'layer1' is not finite ({what}; 1 of its 4 numbers, in 1 of 4 tensors)"
    )


def test_no_parameters_are_finite() -> None:
    assert all_finite([])
    check_finite(nn.Module(), "it")


@pytest.mark.parametrize("kind", ["causal", "reward"])
def test_a_model_with_such_weights_is_not_loaded(kind, tmp_path, capsys) -> None:
    tokenizer = train_tokenizer(["1 + 2 = 3"] * 3, 270)
    sizes = ScratchModel(hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=64)
    model = build_model(sizes, tokenizer) if kind == "causal" else build_reward_model(sizes, tokenizer)
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3, 4] = math.nan
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"model '{tmp_path}' cannot be used: '{name}' is not finite \(nan; 1 of its 2048 numbers"):
        (load_model if kind == "causal" else load_reward_model)(str(tmp_path))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path), "--task", "chain_sum", "--items", "1"]) == 2
    said = capsys.readouterr().err.strip()
    assert f"'{name}' is not finite" in said
    assert "\n" not in said


def test_a_frozen_model_is_known_again_and_what_is_trained_is_left_out() -> None:
    def made(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 2)).requires_grad_(False)

    one, other = made(), made()
    assert fingerprint(one) == fingerprint(other)
    other[1].weight.mul_(1.001)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) != fingerprint(made(1))
    other[1].requires_grad_(True)
    trained = fingerprint(other)
    other[1].weight.data.mul_(2)
    assert fingerprint(other) == trained


def test_adapters_with_such_weights_are_neither_evaluated_nor_trained_on(tmp_path, capsys) -> None:
    peft = pytest.importorskip("peft")
    tokenizer = train_tokenizer(["1 + 2 = 3"] * 3, 270)
    base = build_model(ScratchModel(hidden_size=32, layers=1, heads=2, intermediate_size=64, max_positions=64), tokenizer)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        next(p for name, p in adapted.named_parameters() if "down_proj.lora_B" in name)[0, 0] = math.inf
    adapted.save_pretrained(tmp_path / "adapters")
    tokenizer.save_pretrained(tmp_path / "adapters")
    recipe = tmp_path / "recipe.yaml"
    task = "{multi_hop: {size: 3, demonstrations: 1.0}}"
    recipe.write_text(f"algorithm: sft\noutput: {tmp_path}/run\npolicy: {{model: {tmp_path}/adapters}}\ntask: {task}\n")
    evaluate = ["evaluate", str(tmp_path / "adapters"), "--task", "chain_sum", "--items", "1"]
    for command in (evaluate, ["train", str(recipe)]):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err.strip()
        assert "mlp.down_proj.lora_B.default.weight' is not finite (infinity; 1 of its 64 numbers" in said
        assert "\n" not in said
    assert not (tmp_path / "run").exists()
