"""A batch as a stream of tokens gives what the padded batch gives: log-probabilities, entropies, gradients."""

import itertools
import json

import pytest
import torch

from unipg import Trajectories
from unipg.policies import packing
from unipg.policies.causal_lm import CausalLanguageModel, Critic, Lora, ScratchModel, add_lora, build_model, recompute_activations

VOCABULARY = 40


class Tokenizer:
    eos_token_id, pad_token_id = 0, 1

    def __len__(self) -> int:
        return VOCABULARY

    def save_pretrained(self, folder) -> None:
        pass


def policy(architecture: str = "gpt2", critic: Critic | None = None, **sizes) -> CausalLanguageModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32, "max_positions": 64, **sizes}
    model = build_model(ScratchModel(architecture, **sizes), Tokenizer()).double().eval()
    made = CausalLanguageModel(model, Tokenizer(), temperature=0.9, critic=critic)
    if critic:
        torch.nn.init.normal_(made._value_head.weight)
    return made


def batch(rows: list[tuple[int, int, list[int]]], seed: int = 0) -> Trajectories:
    """Rows of (group, prompt tokens, turns): the prompt is the group's; of the turns, 1 is the policy's token and 0 the environment's."""
    draw = torch.Generator().manual_seed(seed)
    width = max(prompt + len(turns) for _, prompt, turns in rows)
    action = torch.randint(2, VOCABULARY, (len(rows), width), generator=draw)
    mask, present = torch.zeros(len(rows), width, dtype=torch.bool), torch.zeros(len(rows), width, dtype=torch.bool)
    prompts: dict[int, torch.Tensor] = {}
    for number, (group, prompt, turns) in enumerate(rows):
        action[number, :prompt] = prompts.setdefault(group, torch.randint(2, VOCABULARY, (width,), generator=draw))[:prompt]
        present[number, : prompt + len(turns)] = True
        mask[number, prompt : prompt + len(turns)] = torch.tensor(turns, dtype=torch.bool)
    return Trajectories(action=action, mask=mask, present=present, group=torch.tensor([row[0] for row in rows]))


ROWS = [
    *[(0, 7, [1] * n) for n in (3, 12, 1, 5)],
    *[(1, 4, turns) for turns in ([1, 1, 0, 0, 1], [0, 1, 1], [1], [0, 0])],
    (2, 9, [1, 1, 1]),
    *[(3, 2, [1] * n) for n in (9, 2)],
]
LAYOUTS = {"packed": lambda b: torch.zeros(len(b), dtype=torch.long), "shared": packing.shared_prefixes}


@pytest.fixture(params=LAYOUTS)
def forced(request, monkeypatch):
    """Runs every batch in one layout, whatever the planner thinks."""
    monkeypatch.setattr(packing, "plan", lambda b, hidden: packing.layout_of(b, LAYOUTS[request.param](b)))
    return request.param


def evaluated(model: CausalLanguageModel, given: Trajectories, packs: bool) -> list[torch.Tensor]:
    """Log-probabilities, entropies, values, and the gradient of a function of all three."""
    model._packs = packs
    now = model.evaluate(given, entropy=True, value=model.has_value)
    factor = torch.linspace(-1, 2, now.log_prob.numel(), dtype=torch.float64).reshape(now.log_prob.shape)
    loss = (factor * (now.log_prob + 0.3 * now.entropy + (now.value if model.has_value else 0))).sum()
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss, parameters)
    return [now.log_prob, now.entropy, *([now.value] if model.has_value else []), torch.cat([s.flatten() for s in slopes])]


def same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        one, other = one.detach(), other.detach()
        assert float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.mark.parametrize("critic", [None, "shared", "detached", "separate"])
def test_equal_to_padded_in_float64(forced, critic) -> None:
    model, given = policy(critic=critic), batch(ROWS)
    assert model._packs
    same(evaluated(model, given, True), evaluated(model, given, False), 1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_equal_on_random_batches(forced, seed) -> None:
    draw = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=draw))

    rows = []
    for group in range(integer(1, 4)):
        prompt = integer(1, 9)
        rows += [(group, prompt, [integer(0, 4) > 0 for _ in range(integer(1, 10))]) for _ in range(integer(1, 4))]
    order = torch.randperm(len(rows), generator=draw).tolist()
    given = batch([rows[i] for i in order], seed)
    model = policy()
    same(evaluated(model, given, True)[:1], evaluated(model, given, False)[:1], 1e-12)
    if bool(given.mask.any()):
        same(evaluated(model, given, True), evaluated(model, given, False), 1e-10)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "qwen2", "gemma"])
def test_equal_for_other_architectures(forced, architecture) -> None:
    """Their norms compute in float32 whatever the weights are."""
    model, given = policy(architecture), batch(ROWS)
    assert model._packs
    same(evaluated(model, given, True), evaluated(model, given, False), 1e-6)


def test_grouped_key_heads(forced) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    model = CausalLanguageModel(LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes)).double().eval(), Tokenizer())
    assert model._packs
    same(evaluated(model, batch(ROWS), True), evaluated(model, batch(ROWS), False), 1e-6)


def test_activation_checkpointing(forced) -> None:
    model, given = policy(), batch(ROWS)
    expected = evaluated(model, given, False)
    recompute_activations(model.model)
    model.model.train()
    for module in model.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    same(evaluated(model, given, True), expected, 1e-10)


def test_adapters(forced) -> None:
    pytest.importorskip("peft")
    base = build_model(ScratchModel("qwen3", 16, 2, 2, 32, 64), Tokenizer()).double().eval()
    model = CausalLanguageModel(add_lora(base, Lora(r=2)), Tokenizer())
    assert model._packs
    same(evaluated(model, batch(ROWS), True), evaluated(model, batch(ROWS), False), 1e-6)


def test_rubbish_in_padding_changes_nothing(forced) -> None:
    model, given = policy(), batch(ROWS)
    dirty = given.replace(action=torch.where(given.present, given.action, 10**9))
    assert torch.equal(model.evaluate(dirty).log_prob, model.evaluate(given).log_prob)


def test_shared_prefixes() -> None:
    given = batch([(0, 5, [1, 1]), (0, 5, [1]), (1, 4, [1]), (2, 3, [0, 1]), (2, 3, [0, 1]), (3, 2, [1]), (3, 2, [1])])
    given.action[6, 1] = given.action[5, 1] + 1  # a group whose prompts differ from the second token on
    given.action[4, 3] = given.action[3, 3]  # the environment said the same to both
    assert packing.shared_prefixes(given).tolist() == [5, 5, 0, 4, 4, 1, 1]


def test_the_stream_holds_each_prompt_once() -> None:
    given = batch([(0, 20, [1] * 3), (0, 20, [1] * 5), (0, 20, [1])])
    assert len(packing.layout_of(given, packing.shared_prefixes(given))) == 20 + 2 + 4 + 0
    assert len(packing.layout_of(given, torch.zeros(3, dtype=torch.long))) == 22 + 24 + 20


def test_the_planner() -> None:
    """Shares long prompts, packs skewed lengths, leaves alone what is uniform; shares nothing where completions outweigh the prompt."""

    def kind(rows: list[tuple[int, int, list[int]]], hidden: int = 64) -> str:
        given = batch(rows)
        layout = packing.plan(given, hidden)
        shared = packing.layout_of(given, packing.shared_prefixes(given))
        return (
            "padded" if layout is None else "shared" if len(layout) == len(shared) < len(given.present.nonzero()) - len(given) else "packed"
        )

    assert kind([(g, 256, [1] * 32) for g in range(2) for _ in range(8)]) == "shared"
    assert kind([(g, 4, [1] * n) for g, n in enumerate([100, 5, 7, 3, 20, 9])]) == "packed"
    assert kind([(g, 4, [1] * 32) for g in range(8)]) == "padded"
    assert kind([(g, 4, [1] * 128) for g in range(2) for _ in range(8)]) == "padded"
    assert kind([(g, 32, [1] * 128) for g in range(2) for _ in range(8)], hidden=1024) == "shared"


@pytest.mark.parametrize("budget", [1, 7, 20, 1000])
def test_micro_batches_hold_every_row_once_and_keep_the_budget(budget) -> None:
    model, given = policy(), batch(ROWS)
    cuts = model.cuts(given, budget)
    assert sorted(itertools.chain(*(c.tolist() for c in cuts))) == list(range(len(given)))
    for cut in cuts:
        piece = given.select(cut)
        units, unit = piece.group.unique(return_inverse=True)
        assert len(cut) == 1 or int(model.cost_together(piece, unit, len(units)).sum()) <= budget
    together = model.cuts(given, budget, together=True)
    assert all(
        len({g for g in given.group.tolist() if g in set(given.group[c].tolist())} - set(given.group[c].tolist())) == 0 for c in together
    )
    assert sum(len(given.group[c].unique()) for c in together) == 4


def test_balanced() -> None:
    assert [sum((9, 8, 7, 3, 2, 1)[i] for i in chosen) for chosen in packing.balanced([9, 8, 7, 3, 2, 1], 10)] == [10, 10, 10]
    assert packing.balanced([], 10) == []
    assert packing.balanced([50, 1], 10) == [[0], [1]]


def test_what_cannot_run_packed_stays_as_it_is() -> None:
    for architecture in ("mistral", "gemma2"):  # a window of the past; another attention
        model = policy(architecture)
        assert not model._packs
        assert model.model.config._attn_implementation in ("sdpa", "eager")


def test_a_saved_model_knows_nothing_of_it(tmp_path) -> None:
    model = policy("qwen3")
    assert model._packs
    model.save(tmp_path)
    assert packing.ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    assert model.frozen_copy()._packs


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_flex_attention_sees_what_the_buckets_see(forced, architecture) -> None:
    """Forward only: on a CPU FlexAttention has no gradient."""
    model = policy(architecture)
    given = batch(ROWS)
    with torch.no_grad():
        expected = model.evaluate(given, entropy=True)
        model._flex = True
        found = model.evaluate(given, entropy=True)
    assert not expected.log_prob.equal(torch.zeros_like(expected.log_prob))
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=0, atol=1e-10)


def test_flex_attention_is_for_gpus() -> None:
    model = policy("qwen3")
    assert not model._flex
    assert not packing.flexible(model._trunk)
