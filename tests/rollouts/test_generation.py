"""Continuous batching samples what one row alone would: distribution, log-probabilities, greedy answers, several turns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from unipg.errors import InputError
from unipg.policies import packing
from unipg.policies.decoding import proof_of
from unipg.policies.fixed import FixedCache
from unipg.policies.slots import ROOM
from unipg.rollouts import generation
from unipg.rollouts.base import Interrupted
from unipg.rollouts.generation import Completion, ContinuousBatch, sample

VOCABULARY = 24
ENDS = [0, 2, 3]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "gpt2": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 5},  # its cache forgets: rows cannot join
    "bloom": {},  # takes no position ids
    "diffllama": {},  # attention does more than its interface says
}
SHARING: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "qwen3": {}, "gpt2": {}, "granite": {"attention_multiplier": 0.2}}
"""Architectures that can share prompts while they decode."""


def build(architecture: str = "qwen3", *, vocabulary: int = VOCABULARY, scale: float = 0.3, positions: int = 64) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[architecture](
        **{
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 48,
            "max_position_embeddings": positions,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "tie_word_embeddings": False,
        }
        | {**SHARING, **ARCHITECTURES}[architecture]
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, scale)
    if proof_of(model).packs:  # as a policy does
        packing.enable(model.base_model)
    return model


def make_prompts(count: int, longest: int = 8, vocabulary: int = VOCABULARY) -> list[list[int]]:
    source = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest + 1, (count,), generator=source).tolist()
    return [torch.randint(1, vocabulary, (n,), generator=source).tolist() for n in lengths]


def draw(model: Any, prompts: list[list[int]], *, seed: int = 0, **options: Any) -> list[list[Completion]]:
    defaults: dict[str, Any] = {"rollouts": 3, "max_new_tokens": 20, "end_tokens": ENDS, "pad_token": 1, "batch_rows": 8}
    return sample(model, prompts, generator=torch.Generator().manual_seed(seed), **(defaults | options))


@torch.no_grad()
def full_forward(model: Any, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> Tensor:
    """[T] log pi of the tokens after the prompt, in one forward without a cache."""
    logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1)


def watch(model: Any) -> list[tuple[int, int]]:
    """[rows, columns] of the input of every forward from now on."""
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    return shapes


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that whatever attention sees before it was written shows."""
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *shape: self.new_full(shape, math.nan))


@pytest.fixture(params=["growing", "shared", "fixed", "whole"])
def decoding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of holding the cache, taken where nothing else is said."""
    for function in (generation.sample.__wrapped__, generation.ContinuousBatch.__init__):
        monkeypatch.setitem(function.__kwdefaults__, "decoding", request.param)
    return str(request.param)


def test_sampled_distribution_is_the_models_with_refill_active(decoding: str) -> None:
    model = build(vocabulary=4, scale=0.15)
    prompts, limit, temperature, rollouts = [[1, 2, 3, 1, 1], [3, 1], [2, 2]], 3, 0.7, 1500
    shapes = watch(model)
    groups = draw(
        model,
        prompts,
        rollouts=rollouts,
        max_new_tokens=limit,
        end_tokens=[0],
        temperature=temperature,
        batch_rows=600,
        max_total_tokens=64,
    )
    if decoding != "whole":
        decodes = [i for i, (_, columns) in enumerate(shapes) if columns == 1]
        assert any(decodes[0] < i < decodes[-1] for i, (_, columns) in enumerate(shapes) if columns > 1)
    for prompt, group in zip(prompts, groups, strict=True):
        sequences: list[list[int]] = [[]]
        finished: list[list[int]] = []
        while sequences:
            sequences = [[*s, token] for s in sequences for token in range(4)]
            finished += [s for s in sequences if s[-1] == 0 or len(s) == limit]
            sequences = [s for s in sequences if s[-1] != 0 and len(s) < limit]
        assert len(finished) == 1 + 3 + 9 * 4
        expected = {tuple(s): rollouts * math.exp(full_forward(model, prompt, s, temperature).sum()) for s in finished}
        assert sum(expected.values()) == pytest.approx(rollouts, rel=1e-4)
        observed = Counter(tuple(c.tokens) for c in group)
        assert set(observed) <= set(expected)
        common = [s for s in expected if expected[s] >= 5]
        cells = [(observed[s], expected[s]) for s in common]
        cells.append((rollouts - sum(o for o, _ in cells), rollouts - sum(e for _, e in cells)))
        chi_square = sum((o - e) ** 2 / e for o, e in cells)
        freedom = len(cells) - 1
        assert freedom > 10
        # Wilson and Hilferty's normal deviate of a chi-square variable
        deviate = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
        assert abs(deviate) < 3.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 1.6])
@pytest.mark.usefixtures("poisoned")
@pytest.mark.usefixtures("decoding")
def test_log_probs_are_those_of_a_full_forward(architecture: str, temperature: float) -> None:
    # the context holds exactly the longest prompt and answer: free slots must not run out of it either
    model, prompts = build(architecture, positions=8 + 20), make_prompts(24)
    groups = draw(model, prompts, temperature=temperature)
    lengths = set()
    for prompt, group in zip(prompts, groups, strict=True):
        assert len(group) == 3
        for c in group:
            lengths.add(len(c.tokens))
            assert c.chosen == [True] * len(c.tokens)
            assert c.ended == (c.tokens[-1] in ENDS)
            assert c.ended or len(c.tokens) == 20
            assert not set(c.tokens[:-1]) & set(ENDS)
            torch.testing.assert_close(torch.tensor(c.log_probs), full_forward(model, prompt, c.tokens, temperature), atol=1e-5, rtol=1e-5)
    assert len(lengths) > 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("decoding")
def test_greedy_answers_are_those_of_every_prompt_alone(architecture: str) -> None:
    model, prompts = build(architecture), make_prompts(30)
    groups = draw(model, prompts, rollouts=1, greedy=True, max_new_tokens=12)
    for prompt, (completion,) in zip(prompts, groups, strict=True):
        alone: list[int] = []
        while len(alone) < 12 and not (alone and alone[-1] in ENDS):
            with torch.no_grad():
                alone.append(int(model(input_ids=torch.tensor([prompt + alone]), use_cache=False).logits[0, -1].argmax()))
        assert completion.tokens == alone
        assert completion.log_probs == [0.0] * len(alone)


def test_a_prompt_is_prefilled_once_and_decode_steps_follow_the_sum_of_lengths() -> None:
    model = build(vocabulary=64, scale=0.01, positions=128)  # nearly uniform: lengths are geometric
    prompts = make_prompts(60, vocabulary=64)
    shapes = watch(model)
    groups = draw(model, [[1, *p] for p in prompts], rollouts=4, max_new_tokens=80, end_tokens=list(range(8)), batch_rows=16)
    lengths = [len(c.tokens) for group in groups for c in group]
    decodes = [rows for rows, columns in shapes if columns == 1]
    assert sum(rows for rows, columns in shapes if columns > 1) == len(prompts)
    assert max(decodes) <= 16
    # every token after a row's first is one row of one decode step
    needed = sum(n - 1 for n in lengths)
    assert needed <= sum(decodes) < 1.1 * needed
    assert len(decodes) < 1.25 * needed / 16 + max(lengths)
    batch_after_batch = sum(max(lengths[i : i + 16]) - 1 for i in range(0, len(lengths), 16))
    assert len(decodes) < 0.6 * batch_after_batch


def test_cache_columns_follow_the_live_rows() -> None:
    model = build(positions=512)
    widths: list[int] = []
    attention = model.model.layers[0].self_attn
    attention.register_forward_hook(
        lambda _, args, kwargs, out: widths.append(kwargs["past_key_values"].get_seq_length()), with_kwargs=True
    )
    groups = draw(model, make_prompts(100), rollouts=2)
    assert sum(len(c.tokens) for group in groups for c in group) > 500
    assert max(widths) <= 8 + 20


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.usefixtures("decoding")
def test_rows_go_on_after_environment_tokens(architecture: str) -> None:
    model, prompts = build(architecture, positions=128), make_prompts(16)
    spoken: dict[int, list[tuple[list[int], list[int] | None]]] = {}

    def environment(request: int, tokens: list[int]) -> list[int] | None:
        turns = spoken.setdefault(request, [])
        # different requests have different numbers of turns; an end token of the environment ends nothing
        answer = None if len(turns) == request % 4 else [5, *[7] * (request % 3), 0][: len(turns) + 1 + request % 3]
        turns.append((tokens, answer))
        return answer

    groups = draw(model, prompts, max_new_tokens=14, on_stop=environment)
    ended_after: Counter[int] = Counter()
    for i, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        for j, c in enumerate(group):
            turns = spoken.get(i * 3 + j, [])
            assert sum(c.chosen) <= 14
            assert len(c.tokens) == len(c.log_probs) == len(c.chosen)
            expected = full_forward(model, prompt, c.tokens)
            expected[~torch.tensor(c.chosen)] = 0
            torch.testing.assert_close(torch.tensor(c.log_probs), expected, atol=1e-5, rtol=1e-5)
            chosen = [True] * len(c.tokens)
            for tokens, answer in turns:
                assert tokens[-1] in ENDS
                assert c.tokens[: len(tokens)] == tokens
                if answer is not None and len(tokens) < len(c.tokens):
                    assert c.tokens[len(tokens) : len(tokens) + len(answer)] == answer
                    chosen[len(tokens) : len(tokens) + len(answer)] = [False] * len(answer)
            assert c.chosen == chosen
            own_ends = sum(token in ENDS for token, own in zip(c.tokens, c.chosen, strict=True) if own)
            assert own_ends == len(turns)
            assert c.ended == (bool(turns) and turns[-1][1] is None)
            if c.ended:
                ended_after[len(turns)] += 1
    assert len(ended_after) >= 3


@pytest.mark.usefixtures("decoding")
def test_limits_of_continued_rows() -> None:
    model, prompts = build(positions=256), make_prompts(20)
    groups = draw(model, prompts, max_new_tokens=30, max_total_tokens=24, on_stop=lambda request, tokens: [5, 6, 7])
    totals = set()
    for prompt, group in zip(prompts, groups, strict=True):
        for c in group:
            total = len(prompt) + len(c.tokens)
            totals.add(total)
            assert not c.ended
            assert c.chosen[-1]
            # full, or stopped where three more tokens and one of the policy do not fit
            assert total == 24 or (c.tokens[-1] in ENDS and 24 - 4 < total < 24)
    assert {24, 23, 22, 21} <= totals
    for group in draw(model, prompts, max_new_tokens=6, on_stop=lambda request, tokens: []):
        assert [(len(c.tokens), all(c.chosen), c.ended) for c in group] == [(6, True, False)] * 3
    with pytest.raises(InputError, match="fewer than max_total_tokens"):
        draw(model, [[1] * 5], max_total_tokens=5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.usefixtures("decoding")
def test_groups_larger_than_the_batch_and_requests_that_come_late() -> None:
    model, prompts = build(), make_prompts(5)
    prompts[1] = [5] * 30  # joins rows that are much shorter
    (large,) = draw(model, [prompts[0]], rollouts=21)
    assert len(large) == 21
    batch = ContinuousBatch(
        model, max_new_tokens=20, end_tokens=ENDS, pad_token=1, generator=torch.Generator().manual_seed(0), batch_rows=8
    )
    batch.add(prompts[0], range(100, 106))
    finished = batch.step() | batch.step()
    for number, prompt in enumerate(prompts[1:]):
        batch.add(prompt, range(10 * number, 10 * number + 5))
        finished |= batch.step()
    while batch.busy:
        finished |= batch.step()
    owners = dict.fromkeys(range(100, 106), prompts[0]) | {10 * n + j: prompts[n + 1] for n in range(4) for j in range(5)}
    assert finished.keys() == owners.keys()
    for request, c in finished.items():
        torch.testing.assert_close(torch.tensor(c.log_probs), full_forward(model, owners[request], c.tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("decoding")
def test_the_generator_alone_decides() -> None:
    model, prompts = build(), make_prompts(12)
    torch.manual_seed(1)
    first = draw(model, prompts, seed=5)
    torch.manual_seed(2)
    assert draw(model, prompts, seed=5) == first
    assert draw(model, prompts, seed=6) != first


def test_fixed_decoding_stays_in_place_and_grows_only_for_longer_rows() -> None:
    model = build()
    batch = ContinuousBatch(
        model, max_new_tokens=20, end_tokens=[], pad_token=1, generator=torch.Generator().manual_seed(0), batch_rows=4, decoding="fixed"
    )
    batch.add([3, 4], range(2))
    batch.step()
    cache = batch._cache
    assert isinstance(cache, FixedCache)
    places = [layer.keys.data_ptr() for layer in cache.cache.layers]
    batch.add([3, 4, 5], range(2, 6))
    for _ in range(30):
        batch.step()
    assert batch._cache is cache
    assert [layer.keys.data_ptr() for layer in cache.cache.layers] == places
    assert [tuple(layer.keys.shape[::2]) for layer in cache.cache.layers] == [(2, 64)] * len(places)
    batch.add([5] * 50, [9])
    finished = batch.run()
    assert batch._cache is cache
    assert [tuple(layer.keys.shape[::2]) for layer in cache.cache.layers] == [(2, 128)] * len(places)
    torch.testing.assert_close(torch.tensor(finished[9].log_probs), full_forward(model, [5] * 50, finished[9].tokens), atol=1e-5, rtol=1e-5)


def exact(model: Any) -> Any:
    """In float64 throughout: these architectures' norms compute in float32 whatever the weights are."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "variance_epsilon"):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model.double()


@pytest.mark.parametrize("architecture", SHARING)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("talks", [False, True])
@pytest.mark.usefixtures("poisoned")
def test_shared_prompts_change_nothing(architecture: str, dtype: torch.dtype, tolerance: float, talks: bool) -> None:
    model = build(architecture, positions=128)
    model = exact(model) if dtype == torch.float64 else model
    prompts, groups = make_prompts(14, longest=30), [5, 1, 8, 2, 3, 3, 1, 9, 4, 6, 2, 7, 1, 3]
    prompts[3] = [5]
    owner = [i for i, count in enumerate(groups) for _ in range(count)]
    finished: dict[str, dict[int, Completion]] = {}
    for decoding in ("growing", "shared"):
        turns: Counter[int] = Counter()

        def environment(request: int, tokens: list[int], turns: Counter[int] = turns) -> list[int] | None:
            turns[request] += 1
            return [5, 7, 0][: request % 4] if turns[request] <= request % 3 else None

        batch = ContinuousBatch(
            model,
            max_new_tokens=24,
            end_tokens=ENDS,
            pad_token=1,
            generator=torch.Generator().manual_seed(0),
            batch_rows=12,
            max_total_tokens=60,
            on_stop=environment if talks else None,
            decoding=decoding,  # type: ignore[arg-type]
        )
        shapes = watch(model)
        for i, prompt in enumerate(prompts):
            batch.add(prompt, [request for request, j in enumerate(owner) if j == i], limit=24 - i % 3)
        finished[decoding] = batch.run()
        assert (batch._cache.prompts is not None) == (decoding == "shared")  # type: ignore[union-attr]
        rows = [count for count, columns in shapes if columns == 1]
        assert sum(columns > 1 for _, columns in shapes) > 3  # refilled
        assert any(now < before for before, now in pairwise(rows))  # compacted
    assert finished["shared"].keys() == set(range(len(owner)))
    for request, c in finished["shared"].items():
        assert c.tokens == finished["growing"][request].tokens
        assert c.chosen == finished["growing"][request].chosen
        expected = full_forward(model, prompts[owner[request]], c.tokens)
        assert expected.dtype == dtype
        expected[~torch.tensor(c.chosen)] = 0
        torch.testing.assert_close(torch.tensor(c.log_probs, dtype=dtype), expected, atol=tolerance, rtol=tolerance)


def stored(batch: ContinuousBatch) -> int:
    """Columns of one row that the first layer has memory for."""

    def columns(cache: Any) -> int:
        shape = cache.cache.layers[0].stores[0].shape
        return int(shape[0] * shape[2])

    cache: Any = batch._cache
    return columns(cache) + (columns(cache.prompts.store) if cache.prompts else 0)


def test_a_shared_prompt_is_stored_once_and_stores_shrink() -> None:
    model, length, rollouts = build(positions=256), 200, 8
    batch = ContinuousBatch(
        model, max_new_tokens=40, end_tokens=[], pad_token=1, generator=torch.Generator().manual_seed(0), batch_rows=24, decoding="shared"
    )
    for i in range(3):
        batch.add([4 + i] * length, range(i * rollouts, (i + 1) * rollouts), limit=40 if i == 2 else 10)
    found = []
    while batch.busy:
        batch.step()
        found.append((batch._live, stored(batch)))
    assert max(size for _, size in found) <= 3 * length + 24 * (10 + ROOM)
    assert found[0][1] < 24 * length / 4
    # of three prompts one is left, and of 24 rows a third
    assert max(size for live, size in found[15:]) <= length + 8 * (40 + ROOM)


def test_prompts_come_and_go_with_their_rows() -> None:
    """Rows of many prompts pass through few slots: only what live rows and those of one prefill need is held."""
    model = build(positions=128)
    batch = ContinuousBatch(
        model, max_new_tokens=20, end_tokens=[], pad_token=1, generator=torch.Generator().manual_seed(0), batch_rows=8, decoding="shared"
    )
    for i in range(30):
        batch.add([4 + i % 9] * 60, [2 * i, 2 * i + 1], limit=3 + i % 7)
    most = 0
    while batch.busy:
        batch.step()
        most = max(most, stored(batch))
    assert most <= 8 * 60 + 8 * (20 + ROOM)


def test_a_group_that_starts_in_parts_has_one_prompt() -> None:
    model, prompt = build(positions=128), [6] * 50
    batch = ContinuousBatch(
        model, max_new_tokens=20, end_tokens=[], pad_token=1, generator=torch.Generator().manual_seed(0), batch_rows=8, decoding="shared"
    )
    batch.add([4] * 50, range(4), limit=5)
    batch.add([5] * 50, range(4, 8), limit=12)
    batch.add(prompt, range(10, 18), limit=18)  # four of them find room after 5 tokens, four after 12
    held = []
    finished = {}
    while batch.busy:
        finished |= batch.step()
        held.append(batch._cache.prompts.now.layers[0][0].shape[0])  # type: ignore[union-attr]
    assert set(held) == {1, 2}
    for request in range(10, 18):
        c = finished[request]
        torch.testing.assert_close(torch.tensor(c.log_probs), full_forward(model, prompt, c.tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["mistral", "bloom", "diffllama", "plain SDPA"])
def test_what_cannot_share_prompts_decodes_without(architecture: str) -> None:
    model = build(architecture if architecture in ARCHITECTURES else "llama")
    if architecture == "plain SDPA":
        packing.disable(model.base_model)
    batch = ContinuousBatch(
        model, max_new_tokens=9, end_tokens=ENDS, pad_token=1, generator=torch.Generator().manual_seed(0), batch_rows=8, decoding="shared"
    )
    prompts = make_prompts(6)
    for i, prompt in enumerate(prompts):
        batch.add(prompt, range(3 * i, 3 * i + 3))
    for request, c in batch.run().items():
        torch.testing.assert_close(torch.tensor(c.log_probs), full_forward(model, prompts[request // 3], c.tokens), atol=1e-5, rtol=1e-5)
    assert getattr(batch._cache, "prompts", None) is None


@pytest.mark.parametrize(
    ("length", "rollouts", "alone", "shares"),
    [(8, 8, 0, False), (64, 8, 0, True), (512, 1, 0, False), (200, 2, 0, True), (64, 8, 24, False), (200, 8, 6, True)],
)
def test_prompts_are_shared_where_that_is_faster(length: int, rollouts: int, alone: int, shares: bool) -> None:
    """`alone`: prompts of one row each beside 32 rows in groups."""
    batch = ContinuousBatch(build(positions=600), max_new_tokens=2, end_tokens=[], pad_token=1)
    for i in range(32 // rollouts):
        batch.add([4] * length, range(i * rollouts, (i + 1) * rollouts))
    for i in range(alone):
        batch.add([4] * length, [100 + i])
    batch.step()
    assert (batch._cache.prompts is not None) == shares  # type: ignore[union-attr]


def test_stopping_and_progress() -> None:
    model, prompts = build(), make_prompts(12)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        draw(model, prompts, should_stop=lambda: next(asked))
    shares: list[float] = []
    tell: Callable[[float], None] = shares.append
    draw(model, prompts, progress=tell)
    assert shares == sorted(set(shares))
    assert len(shares) > 5
    assert shares[-1] == 1.0


@pytest.mark.parametrize("wrong", [{"rollouts": 0}, {"batch_rows": 0}, {"max_new_tokens": 0}])
def test_impossible_values_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="accepted: 1 or more"):
        draw(build(), [[1, 2]], **wrong)


def test_no_prompts_no_completions() -> None:
    assert draw(build(), []) == []
