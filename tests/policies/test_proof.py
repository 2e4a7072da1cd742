"""What an architecture is trusted with: each way that is used gives what plain forward passes of single rows give, or is not used."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from unipg.cli import main
from unipg.errors import InputError
from unipg.policies import proof as proofs
from unipg.policies.causal_lm import CausalLanguageModel
from unipg.policies.decoding import proof_of
from unipg.rollouts.generation import sample
from unipg.trajectories import Trajectories

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"num_key_value_heads": 4},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 16},
    "mistral": {"sliding_window": 8},
    "diffllama": {},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "head_dim": 8},
    "mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 32},
    "doge": {"keep_window_size": 16},
    "bert": {},
}
ALL = set(proofs.WAYS)
FAILS = {
    "llama": set(),
    "gpt2": set(),
    "gptj": {"packed", "branched", "shared"},  # has eager attention alone
    "gemma2": {"projection", "packed", "branched", "shared"},
    "mistral": {"packed", "branched", "shared"},
    "diffllama": {"shared"},
    "falcon_h1": {"packed", "branched", "shared"},
    "mamba": {"packed", "branched", "growing", "shared", "fixed"},
    "rwkv": {"packed", "branched", "growing", "shared", "fixed"},
    "doge": ALL - {"causal", "projection"},
    "bert": ALL,
}


class Tokenizer:
    eos_token_id, pad_token_id = 1, 0


def build(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**SIZES, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, **OPTIONS[kind], **options})
    return AutoModelForCausalLM.from_config(config).eval()


def grown(model: Any, factor: float = 6.0) -> Any:
    """As large as after training."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(factor)
    return model


@torch.no_grad()
def plain(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """[T] log-probabilities of an answer, by one forward pass of its row alone."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer][:-1]]), use_cache=False).logits[0, len(prompt) - 1 :].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)


def rows() -> list[tuple[int, list[int], list[int]]]:
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=draw).tolist()

    prompts = [tokens(40), tokens(28), tokens(12)]
    return [(i, prompts[i], tokens(n)) for i, lengths in enumerate([[9, 25, 14], [5, 20, 11, 3], [30]]) for n in lengths]


def batch_of(data: list[tuple[int, list[int], list[int]]]) -> Trajectories:
    width = max(len(prompt) + len(answer) for _, prompt, answer in data)
    action = torch.zeros(len(data), width, dtype=torch.long)
    mask, present = torch.zeros_like(action, dtype=torch.bool), torch.zeros_like(action, dtype=torch.bool)
    for i, (_, prompt, answer) in enumerate(data):
        action[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        mask[i, len(prompt) : len(prompt) + len(answer)] = True
        present[i, : len(prompt) + len(answer)] = True
    return Trajectories(action=action, mask=mask, present=present, group=torch.tensor([group for group, _, _ in data]))


def equal_to_plain(policy: CausalLanguageModel, data: list[tuple[int, list[int], list[int]]]) -> None:
    with torch.no_grad():
        found = policy.evaluate(batch_of(data)).log_prob
    for i, (_, prompt, answer) in enumerate(data):
        expected = plain(policy.model, prompt, answer)
        torch.testing.assert_close(found[i, len(prompt) : len(prompt) + len(answer)], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", FAILS)
def test_what_each_architecture_is_trusted_with(kind: str) -> None:
    proof = proof_of(build(kind))
    assert {way for way in proofs.WAYS if not proof.allows(way)} == FAILS[kind]


@pytest.mark.parametrize("kind", [kind for kind in FAILS if kind not in ("doge", "bert")])
def test_every_way_that_is_used_gives_what_plain_passes_give(kind: str) -> None:
    """Built while the model is new, looked at when its weights have grown, on rows beyond its windows."""
    model = build(kind)
    policy = CausalLanguageModel(model, Tokenizer())
    grown(model, 3 if kind == "mamba" else 6)
    equal_to_plain(policy, rows())
    prompts = list(dict.fromkeys(tuple(prompt) for _, prompt, _ in rows()))
    for decoding in ("growing", "shared", "fixed"):
        groups = sample(
            model,
            [list(p) for p in prompts],
            rollouts=4,
            max_new_tokens=24,
            end_tokens=[1],
            pad_token=0,
            batch_rows=7,
            generator=torch.Generator().manual_seed(3),
            decoding=decoding,  # type: ignore[arg-type]
        )
        for prompt, group in zip(prompts, groups, strict=True):
            for c in group:
                torch.testing.assert_close(torch.tensor(c.log_probs), plain(model, list(prompt), c.tokens), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "why"), [("doge", "depends on the padding after its row"), ("bert", "knows the tokens after it")])
def test_what_is_no_causal_model_is_refused(kind: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=f"type '{kind}' cannot be trained: the log-probability of a token {why} .by .* nats"):
        CausalLanguageModel(build(kind), Tokenizer())
    if kind == "doge":
        assert main(["check-model", kind]) == 2
        out, err = capsys.readouterr()
        assert "refused" in out
        assert err.count("\n") == 1


def test_an_encoder_that_is_told_to_be_a_decoder_is_taken() -> None:
    CausalLanguageModel(build("bert", is_decoder=True), Tokenizer())


@pytest.mark.parametrize("scaling", [{"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}])
def test_rotary_embeddings_that_follow_the_longest_row_hold_within_the_original_context(scaling: dict[str, Any]) -> None:
    model = grown(build("llama", max_position_embeddings=32, rope_parameters=scaling))
    policy = CausalLanguageModel(model, Tokenizer())
    assert policy.proof.bounded
    inside = [(0, [5, 6, 7], [8, 9, 10]), (0, [5, 6, 7], [*range(3, 31)]), (1, [3, 4], [5])]
    equal_to_plain(policy, inside)
    with pytest.raises(InputError, match=r"a row has 65 tokens, but .* original context of 32 alone"):
        policy.evaluate(batch_of(rows()))
    (group,) = sample(model, [[5, 6, 7]], rollouts=8, max_new_tokens=60, end_tokens=[], pad_token=0)
    for c in group:
        assert (len(c.tokens), c.ended) == (29, False)
        torch.testing.assert_close(torch.tensor(c.log_probs), plain(model, [5, 6, 7], c.tokens), atol=2e-4, rtol=1e-4)
    with pytest.raises(InputError, match="a prompt has 40 tokens"):
        sample(model, [[5] * 40], rollouts=1, max_new_tokens=3, end_tokens=[], pad_token=0)


def test_embeddings_stretched_once_for_all_have_no_limit() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    model = grown(build("llama", max_position_embeddings=128, rope_parameters=scaling))
    policy = CausalLanguageModel(model, Tokenizer())
    assert not policy.proof.bounded
    equal_to_plain(policy, rows())


def test_learned_positions_are_the_limit() -> None:
    with pytest.raises(InputError, match=r"a row has 70 tokens, but .* original context of 64 alone"):
        CausalLanguageModel(build("gpt2", max_position_embeddings=64), Tokenizer()).evaluate(batch_of([(0, [5] * 30, [6] * 40)]))


def test_eager_attention_is_proved_by_itself() -> None:
    model = build("llama")
    model.set_attn_implementation("eager")
    policy = CausalLanguageModel(grown(model), Tokenizer())
    assert model.config._attn_implementation == "eager"
    assert not policy.proof.packs
    assert policy.proof.allows("fixed")


def test_the_proof_leaves_no_trace_and_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(proofs, "_of_keys", {})
    model = build("mistral").train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first = proof_of(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert model.config._attn_implementation == "sdpa"

    def again(*_: Any) -> Any:
        raise AssertionError("tried again")

    monkeypatch.setattr(proofs, "_prove", again)
    assert proof_of(build("mistral", hidden_size=64, num_hidden_layers=3)) is first  # in this process
    monkeypatch.setattr(proofs, "_of_keys", {})
    assert proof_of(build("mistral")) == first  # from the folder
    (kept,) = (tmp_path / "unipg" / "proofs").iterdir()
    kept.write_text("{")
    monkeypatch.setattr(proofs, "_of_keys", {})
    with pytest.raises(AssertionError, match="tried again"):
        proof_of(build("mistral"))


def test_other_settings_of_an_architecture_are_other_proofs() -> None:
    assert not proof_of(build("mistral")).packs
    assert proof_of(build("mistral", sliding_window=None)).packs


def test_a_model_without_a_replica_is_tried_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "_built", lambda *_: (_ for _ in ()).throw(RuntimeError("no such sizes")))
    monkeypatch.setattr(proofs, "_read", lambda _: None)
    monkeypatch.setattr(proofs, "_write", lambda *_: None)
    monkeypatch.setattr(proofs, "_of_keys", {})
    proof = proof_of(grown(build("llama")))
    assert proof.replica == "the model itself"
    assert {way for way in proofs.WAYS if proof.allows(way)} == {"causal", "padded", "growing"}
    with pytest.raises(InputError, match="knows the tokens after it"):
        CausalLanguageModel(grown(build("bert")), Tokenizer())


def test_check_model_prints_the_proof(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    build("gpt2").save_pretrained(tmp_path)
    assert main(["check-model", str(tmp_path)]) == 0
    assert "at most 256 tokens" in capsys.readouterr().out
    assert main(["check-model", "llama", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["trials"]) == ALL
    assert found["longest"] is None
    assert main(["check-model", "lama"]) == 2
    assert "did you mean 'llama'" in capsys.readouterr().err
