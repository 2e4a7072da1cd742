"""Sequence classifiers as policies: the score is the model's own, and the gradient that of Bradley and Terry's likelihood."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unipg.algorithms import Setting, registered
from unipg.errors import InputError
from unipg.estimator import Planning
from unipg.policies.causal_lm import Lora, ScratchModel, build_model, train_tokenizer
from unipg.policies.recipe import ModelRecipe
from unipg.policies.reward_model import SequenceScorer, build_reward_model, is_reward_model, load_reward_model, scored
from unipg.rollouts.prompts import pack
from unipg.trajectories import Source, Trajectories

ARCHITECTURES = ("qwen3", "llama", "gpt2", "bert")
"""The last one looks both ways and pools at the first token: only its attention mask hides padding."""
ROWS = ([5, 9, 30], [41, 42, 7, 8, 0]), ([5, 9, 30], [60, 0]), ([70, 80], [11, 12, 13, 0]), ([70, 80], [90, 91, 92, 93, 94, 0])
"""Prompts and answers of two pairs, the chosen of each first; token 0 ends an answer."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["the red fox, 1 + 2 = 3"], 270)


def sizes(architecture: str = "qwen3") -> ScratchModel:
    return ScratchModel(architecture, hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=64, vocabulary=270)


def scorer(tokenizer: Any, architecture: str = "qwen3", seed: int = 0) -> SequenceScorer:
    """In float64, with weights large enough for scores to differ."""
    torch.manual_seed(seed)
    model = build_reward_model(sizes(architecture), tokenizer).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return SequenceScorer(model, tokenizer)


def batch_of(tokenizer: Any, rows: Any = ROWS) -> Trajectories:
    return pack(
        [prompt for prompt, _ in rows],
        [answer for _, answer in rows],
        [True] * len(rows),
        pad_token=tokenizer.pad_token_id,
        group=[number // 2 for number in range(len(rows))],
        source=Source.PREFERENCE,
        reward=[float(number % 2 == 0) for number in range(len(rows))],
    )


def plain(model: Any, tokens: list[int]) -> Tensor:
    """The score of one row without any padding, by the model alone."""
    return model(input_ids=torch.tensor([tokens])).logits[0, 0]


def value(score: Tensor) -> float:
    return float(score.detach())


def gradients(policy: SequenceScorer, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*policy.model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradient_is_that_of_bradley_and_terrys_likelihood(tokenizer: Any, architecture: str) -> None:
    policy = scorer(tokenizer, architecture)
    algorithm, setting, planning = registered()["bradley_terry"](), Setting(max_new_tokens=8), Planning()
    objective = algorithm.terms(setting)
    batch = objective.prepare(algorithm.prepare(batch_of(tokenizer), setting, planning), planning)
    with torch.no_grad():
        now = policy.evaluate(batch)

    scores = [plain(policy.model, [*prompt, *answer]) for prompt, answer in ROWS]
    margins = torch.stack([scores[0] - scores[1], scores[2] - scores[3]])
    exact = gradients(policy, -torch.nn.functional.logsigmoid(margins).mean())
    assert max(float(g.abs().max()) for g in exact.values()) > 1e-3
    for planned in (objective.plan(batch, planning), objective.plan(batch, planning, now)):
        ours = gradients(policy, objective.loss(policy.evaluate(planned), planned, planning))
        for name, gradient in exact.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_score_stands_at_the_last_policy_position(tokenizer: Any, architecture: str) -> None:
    policy, batch = scorer(tokenizer, architecture), batch_of(tokenizer)
    found = policy.evaluate(batch, entropy=True).detach()
    assert found.entropy is not None
    assert not found.entropy.any()
    for row, (prompt, answer) in enumerate(ROWS):
        last = len(prompt) + len(answer) - 1
        assert float(found.log_prob[row, last]) == pytest.approx(value(plain(policy.model, [*prompt, *answer])), abs=1e-12)
        assert int(found.log_prob[row].count_nonzero()) == 1
    assert found.log_prob.sum(1).unique().numel() == len(ROWS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_stands_in_the_padding_changes_nothing(tokenizer: Any, architecture: str) -> None:
    policy, batch = scorer(tokenizer, architecture), batch_of(tokenizer)
    scores = policy.evaluate(batch).log_prob.sum(1)
    wide = torch.nn.functional.pad
    assert batch.present is not None
    present = wide(batch.present, (0, 3))
    for rubbish in (-1, 10**9, 17):
        action = torch.where(present, wide(batch.action, (0, 3)), rubbish)
        padded = Trajectories(action=action, mask=wide(batch.mask, (0, 3)), present=present)
        torch.testing.assert_close(policy.evaluate(padded).log_prob.sum(1), scores, rtol=0, atol=1e-12)
    for row in range(len(batch)):
        torch.testing.assert_close(policy.evaluate(batch.select([row]).trim()).log_prob.sum(1), scores[row : row + 1], rtol=0, atol=1e-12)


def test_an_end_token_that_is_padding_too_is_passed_over_as_everywhere_else(tokenizer: Any) -> None:
    policy = scorer(tokenizer)
    policy.model.config.pad_token_id = 0
    scores = policy.evaluate(batch_of(tokenizer)).log_prob.detach().sum(1)
    for score, (prompt, answer) in zip(scores.tolist(), ROWS, strict=True):
        assert score == pytest.approx(value(plain(policy.model, [*prompt, *answer[:-1]])), abs=1e-12)


def test_a_row_in_which_the_policy_did_nothing_has_no_score_and_a_graph(tokenizer: Any) -> None:
    policy, batch = scorer(tokenizer), batch_of(tokenizer, [([5, 9], [])])
    total = policy.evaluate(batch).log_prob.sum()
    assert value(total) == 0
    assert all(not g.any() for g in gradients(policy, total).values())


def test_what_a_reward_model_does_not_have_is_refused(tokenizer: Any) -> None:
    policy, batch = scorer(tokenizer), batch_of(tokenizer)
    assert (policy.has_value, policy.memoryless) == (False, False)
    with pytest.raises(InputError, match="a critic needs a policy over tokens"):
        policy.evaluate(batch, value=True)
    with pytest.raises(InputError, match="str needs a policy over tokens; a reward model gives one score"):
        policy.evaluate(batch, readings=["entropy"])  # type: ignore[list-item]


def test_scores_of_texts_and_of_tokens(tokenizer: Any) -> None:
    policy = scorer(tokenizer)
    texts = ["the fox", "a", "1 + 2 = 3, and the red fox"]
    exact = [value(plain(policy.model, tokenizer.encode(text))) for text in texts]
    policy.model.train()
    for rows in (1, 2, 64):
        assert policy.score(texts, rows) == pytest.approx(exact, abs=1e-12)
        assert policy.score([tokenizer.encode(text) for text in texts], rows) == pytest.approx(exact, abs=1e-12)
    assert policy.model.training
    assert policy.score([]) == []
    with pytest.raises(InputError, match="row 1 of 2 to score has no tokens"):
        policy.score(["a", ""])
    told: list[float] = []
    scored(policy, [([5, 6], 0)] * 5, 2, told.append)
    assert told == [0.4, 0.8, 1.0]


def test_the_classifier_knows_which_token_is_padding(tokenizer: Any) -> None:
    model = build_reward_model(sizes(), tokenizer).double().eval()
    model.config.pad_token_id = None
    policy = SequenceScorer(model, tokenizer)
    assert model.config.pad_token_id == policy.pad_token == tokenizer.pad_token_id
    assert len(policy.score([[5, 6], [7]])) == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_scores_the_same_in_plain_transformers(tokenizer: Any, architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    policy = scorer(tokenizer, architecture)
    policy.save(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float64).eval()
    other = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = ["the fox", "the red fox, 1 + 2"]
    with torch.no_grad():
        theirs = model(**other(texts, return_tensors="pt", padding=True)).logits[:, 0].tolist()
    assert theirs == pytest.approx(policy.score(texts), abs=1e-12)
    assert len(set(theirs)) == 2
    again = SequenceScorer(load_reward_model(str(tmp_path / "model"), "float64", trained=True), other)
    assert again.score(texts) == pytest.approx(policy.score(texts), abs=1e-12)
    assert is_reward_model(str(tmp_path / "model"))


# where it comes from


@pytest.fixture(scope="module")
def causal(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    build_model(sizes(), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def built(recipe: ModelRecipe, seed: int = 0) -> Any:
    return recipe.build(lambda: ["the red fox"], temperature=1.0, value_head=False, device="cpu", seed=seed)


def test_a_causal_model_is_a_start_with_a_new_head(causal: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    policy = built(ModelRecipe(kind="reward", model=str(causal)))
    assert isinstance(policy, SequenceScorer)
    trunk = AutoModelForCausalLM.from_pretrained(causal).model.state_dict()
    for name, weight in policy.model.model.state_dict().items():
        assert torch.equal(weight, trunk[name])
    assert policy.model.score.weight.shape == (1, 16)
    assert policy.model.score.weight.std() > 0
    assert "MISSING" not in capfd.readouterr().err  # transformers warns of the head that is new on purpose
    assert torch.equal(policy.model.score.weight, built(ModelRecipe(kind="reward", model=str(causal))).model.score.weight)
    assert not torch.equal(policy.model.score.weight, built(ModelRecipe(kind="reward", model=str(causal)), 1).model.score.weight)


def test_a_new_head_is_not_taken_for_a_trained_one(causal: Path) -> None:
    assert not is_reward_model(str(causal))
    with pytest.raises(InputError, match="is no reward model; accepted: a sequence classifier with one output"):
        load_reward_model(str(causal), trained=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_scratch_reward_model(architecture: str) -> None:
    policy = built(ModelRecipe(kind="reward", scratch=sizes(architecture), dtype="float64"))
    assert isinstance(policy, SequenceScorer)
    assert policy.model.config.num_labels == 1
    assert not policy.module.training  # there is no dropout in what is trained
    assert next(policy.module.parameters()).dtype == torch.float64


def test_adapters_bring_their_head(causal: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    policy = built(ModelRecipe(kind="reward", model=str(causal), lora=Lora(r=2)))
    trained = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert any("score" in name for name in trained)
    assert all("lora" in name or "score" in name for name in trained)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if name in trained:
                parameter.add_(0.3 * torch.randn_like(parameter))
    policy.save(tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert is_reward_model(str(tmp_path))
    again = SequenceScorer(load_reward_model(str(tmp_path), trained=True), policy.tokenizer)
    assert again.score(["the fox", "a"]) == pytest.approx(policy.score(["the fox", "a"]), abs=1e-6)


def test_what_is_no_reward_model_is_refused_in_one_line(tokenizer: Any, causal: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    def refused(message: str, name: Path, **options: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            load_reward_model(str(name), **options)
        assert "\n" not in str(caught.value)

    two = AutoModelForSequenceClassification.from_pretrained(causal, num_labels=2)
    two.save_pretrained(tmp_path / "two")
    refused("two' has 2 outputs; accepted for a reward model: 1", tmp_path / "two")
    with pytest.raises(InputError, match="this one has 2"):
        SequenceScorer(two, tokenizer)
    refused("nowhere' does not exist", tmp_path / "nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "no such model"}))
    refused(r"the reward model '.*odd' cannot be loaded: ", tmp_path / "odd")
    assert not is_reward_model(str(tmp_path / "odd"))
    assert not is_reward_model(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="architecture 'gpt_neox_japanese' has no sequence classifier"):
        build_reward_model(sizes("gpt_neox_japanese"), tokenizer)


def test_a_reward_model_has_no_anchor() -> None:
    with pytest.raises(InputError, match=r"policy\.anchor is set, but a reward model has no probabilities"):
        ModelRecipe(kind="reward", scratch=sizes(), anchor="elsewhere")
