"""What a batch of language experience holds: rollouts, given completions, demonstrations of another stream, features, kept anchors."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from unipg import Source
from unipg.errors import InputError
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model, train_tokenizer
from unipg.rollouts.anchors import AnchorCache
from unipg.rollouts.base import Demand
from unipg.rollouts.prompts import PromptRollouts, Stream, check_given
from unipg.rollouts.text import SamplingRecipe
from unipg.samplers import UniformSampler
from unipg.tasks.base import Item, ScoredCompletion
from unipg.tasks.data import DataTask
from unipg.tasks.verifiers import exact_match


def task(name: str, size: int = 6, kind: str = "none") -> DataTask:
    def completions(i: int) -> tuple[ScoredCompletion, ...]:
        texts = (f"right {i}", f"wrong answer {i}", "neither")
        scores = {"none": (), "pairs": (1.0, 0.0), "unpaired": (float(i % 2),), "scored": (0.3, -1.0, 2.5)}[kind]
        return tuple(ScoredCompletion(text, score) for text, score in zip(texts, scores, strict=False))

    items = tuple(Item(i, f"{name} {i} =", (f"shown {i}",), f"right {i}", completions=completions(i)) for i in range(size))
    return DataTask(name, items, exact_match)


@pytest.fixture(scope="module")
def policy() -> CausalLanguageModel:
    torch.manual_seed(0)
    texts = [t for i in range(6) for t in (f"ask {i} =", f"right {i}", f"wrong answer {i}", "neither", f"shown {i}")]
    tokenizer = train_tokenizer(texts, 300)
    return CausalLanguageModel(build_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), tokenizer), tokenizer)


def experience(given: DataTask, prompts: int = 3, **options) -> PromptRollouts:
    return PromptRollouts(given, UniformSampler(len(given.items)), prompts=prompts, sampling=SamplingRecipe(max_new_tokens=12), **options)


def test_pairs(policy) -> None:
    batch, _ = experience(task("ask", kind="pairs")).collect(policy, Demand(0, rollouts=0, completions="pairs"))
    assert batch.source.tolist() == [int(Source.PREFERENCE)] * 6
    assert batch.reward.tolist() == [1.0, 0.0] * 3
    assert batch.group[0::2].tolist() == batch.group[1::2].tolist()
    assert len(batch.group.unique()) == 3
    for row, text in enumerate(batch.annotations["answer"]):
        tokens = batch.action[row][batch.mask[row]].tolist()
        assert tokens[-1] == policy.tokenizer.eos_token_id
        assert policy.tokenizer.decode(tokens[:-1]) == text


def test_single_completions_come_with_those_of_other_prompts(policy) -> None:
    batch, _ = experience(task("ask", kind="unpaired")).collect(policy, Demand(0, rollouts=0, completions="unpaired"))
    other = batch.rows_from(Source.MISMATCHED)
    assert other.tolist() == [False] * 3 + [True] * 3
    answers, prompts = batch.annotations["answer"], batch.annotations["prompt"]
    assert answers[3:] == [answers[1], answers[2], answers[0]]
    assert prompts[3:] == prompts[:3]
    with pytest.raises(InputError, match=r"training.prompts of 2 or more"):
        experience(task("ask", kind="unpaired"), prompts=1).collect(policy, Demand(0, rollouts=0, completions="unpaired"))


def test_scored_completions_keep_their_scores(policy) -> None:
    batch, _ = experience(task("ask", kind="scored")).collect(policy, Demand(0, rollouts=0, completions="scored"))
    torch.testing.assert_close(batch.reward, torch.tensor([0.3, -1.0, 2.5] * 3))


def test_workers_share_the_prompts(policy) -> None:
    whole, _ = experience(task("ask", kind="pairs")).collect(policy, Demand(1, rollouts=0, completions="pairs"))
    parts = [
        experience(task("ask", kind="pairs")).collect(policy, Demand(1, rollouts=0, completions="pairs", worker=w, workers=2))[0]
        for w in range(2)
    ]
    assert sorted(a for p in parts for a in p.annotations["answer"]) == sorted(whole.annotations["answer"])
    assert sorted(g for p in parts for g in p.group.tolist()) == sorted(whole.group.tolist())


def test_a_stream_of_demonstrations_has_its_own_prompts_groups_and_epochs(policy) -> None:
    def made() -> PromptRollouts:
        return experience(task("ask"), demonstrations=Stream(task("elsewhere", size=4), UniformSampler(4, seed=7), 3))

    one = made()
    demand = Demand(0, rollouts=2, demonstrations=True)
    batch, _ = one.collect(policy, demand)
    shown = batch.rows_from(Source.DEMONSTRATION)
    assert int(shown.sum()) == 3
    assert not set(batch.group[shown].tolist()) & set(batch.group[~shown].tolist())
    assert all(p.startswith("elsewhere") for p, s in zip(batch.annotations["prompt"], shown.tolist(), strict=True) if s)
    state = one.state_dict()
    again = made()
    again.load_state_dict(state)
    later = [e.collect(policy, Demand(1, rollouts=1, demonstrations=True))[0] for e in (one, again)]
    assert later[0].annotations == later[1].annotations
    seen = [a for b in (batch, later[0]) for a, p in zip(b.annotations["answer"], b.annotations["prompt"], strict=True) if "elsewhere" in p]
    assert len(set(seen[:4])) == 4  # every one once before any comes again
    topped_up, _ = one.collect(policy, Demand(2, round=1, rollouts=1, demonstrations=True))
    assert not topped_up.rows_from(Source.DEMONSTRATION).any()
    assert not set(later[0].group.tolist()) & set(batch.group.tolist())


def test_features_of_rollouts(policy) -> None:
    batch, metrics = experience(task("ask"), features={"length": lambda answer, item: float(len(answer))}).collect(
        policy, Demand(0, rollouts=2)
    )
    expected = [float(len(a)) for a in batch.annotations["answer"]]
    assert batch.planned["feature/length"].tolist() == expected
    assert metrics["feature/length"] == pytest.approx(sum(expected) / len(expected))


def test_anchors_are_computed_once_and_are_those_of_the_anchor(policy, tmp_path, monkeypatch) -> None:
    made = experience(task("ask", kind="pairs"))
    shares: list[float] = []
    made.keep_anchors(AnchorCache.of(policy, made.every_completion(policy), tmp_path, total=12, progress=shares.append))
    assert shares[-1] == 1.0
    batch, _ = made.collect(policy, Demand(0, rollouts=0, completions="pairs"))
    with torch.no_grad():
        expected = policy.evaluate(batch).log_prob
    torch.testing.assert_close(batch.anchor_log_prob, expected, rtol=1e-5, atol=1e-6)
    files = list(tmp_path.iterdir())
    assert len(files) == 1

    def asked(*args, **options):
        raise AssertionError("the anchor was asked again")

    with monkeypatch.context() as patched:
        patched.setattr(CausalLanguageModel, "evaluate", asked)
        AnchorCache.of(policy, made.every_completion(policy), tmp_path, total=12)
    other = policy.frozen_copy()
    with torch.no_grad():
        next(other.model.parameters()).add_(0.5)
    changed = AnchorCache.of(other, made.every_completion(policy), tmp_path, total=12)
    assert len(list(tmp_path.iterdir())) == 2
    assert not torch.allclose(changed.log_probs[0, 0], made.anchors.log_probs[0, 0])


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "of before"])
def test_kept_anchors_that_are_damaged_are_computed_again(damage, policy, tmp_path) -> None:
    made = experience(task("ask", kind="pairs"))
    expected = AnchorCache.of(policy, made.every_completion(policy), tmp_path, total=12).log_probs
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "of before":
        save_file(load_file(path), path)
    else:
        path.write_bytes(content if damage == "a flipped bit" else content[:-4])
    with pytest.warns(UserWarning, match=f"'{path}' is damaged, or of an earlier version: .* are computed again"):
        found = AnchorCache.of(policy, made.every_completion(policy), tmp_path, total=12).log_probs
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    AnchorCache.of(policy, made.every_completion(policy), tmp_path, total=12)  # and kept again


def test_an_impossible_completion_is_named(policy, tmp_path, monkeypatch) -> None:
    made = experience(task("ask", kind="pairs"))
    real = CausalLanguageModel.evaluate

    def impossible(self, batch, **options):
        now = real(self, batch, **options)
        now.log_prob.masked_fill_(batch.mask, -torch.inf)
        return now

    monkeypatch.setattr(CausalLanguageModel, "evaluate", impossible)
    with pytest.raises(InputError, match=r"completion \d of item \d has probability 0 under the anchor"):
        AnchorCache.of(policy, made.every_completion(policy), tmp_path, total=12)


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("none", "pairs", "item 0 has none; the algorithm needs one chosen and one rejected"),
        ("scored", "pairs", r"has 3 with scores \[-1.0, 0.3, 2.5\]"),
        ("pairs", "unpaired", "needs one completion that was liked or not"),
        ("unpaired", "scored", "needs 2 or more completions with scores: set preferences: scored"),
    ],
)
def test_the_wrong_kind_of_completions(kind, wanted, message) -> None:
    with pytest.raises(InputError, match=message):
        check_given(task("ask", kind=kind), wanted)


def test_a_long_completion(policy) -> None:
    made = PromptRollouts(task("ask", kind="pairs"), UniformSampler(6), prompts=2, sampling=SamplingRecipe(max_new_tokens=3))
    with pytest.raises(InputError, match=r"the completion of item \d has \d+ tokens and its end token, more than"):
        made.collect(policy, Demand(0, rollouts=0, completions="pairs"))
