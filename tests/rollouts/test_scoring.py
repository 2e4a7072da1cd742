"""What scores answers: sums of a verifier and models, each against the model called directly; and how reward models are evaluated."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from unipg.cli import main
from unipg.errors import InputError
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model, load_model, load_tokenizer, train_tokenizer
from unipg.policies.reward_model import SequenceScorer, build_reward_model
from unipg.rollouts.base import Demand
from unipg.rollouts.evaluation import EvaluationRecipe, evaluate_pairs
from unipg.rollouts.prompts import PromptRollouts, pack
from unipg.rollouts.scoring import RewardModel, RewardModelRecipe, RewardRecipe, RewardSource, row_tokens
from unipg.rollouts.text import SamplingRecipe, prompt_tokens
from unipg.samplers import UniformSampler
from unipg.statistics import mean_interval, wilson_interval
from unipg.tasks.base import Item, ScoredCompletion
from unipg.tasks.data import DataTask
from unipg.tasks.verifiers import exact_match
from unipg.training.evaluate import task_from_text
from unipg.training.recipe import typed
from unipg.trajectories import Source

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
ITEMS = [Item(0, "1 + 2 =", expected="3", place="a.jsonl line 1"), Item(1, "the red", expected="fox")]
ANSWERS = ["3", "hound and more"]


def tokenizer_of(chat: bool = False) -> Any:
    tokenizer = train_tokenizer(["the red fox and hound, 1 + 2 = 3", "the fox"], 300)
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer


def large(model: Any) -> Any:
    """Weights large enough for scores to differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def saved(folder: Path, kind: str = "score", chat: bool = False, positions: int = 64) -> str:
    tokenizer = tokenizer_of(chat)
    sizes = ScratchModel(hidden_size=16, layers=1, heads=2, intermediate_size=32, max_positions=positions)
    large((build_reward_model if kind == "score" else build_model)(sizes, tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    return {
        "score": saved(place / "score"),
        "chat": saved(place / "chat", chat=True),
        "likelihood": saved(place / "likelihood", "likelihood"),
        "short": saved(place / "short", positions=12),
    }


def plain(folder: str, tokens: list[int]) -> float:
    """The score of one row by transformers alone."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([tokens])).logits[0, 0])


def source(*models: RewardModelRecipe, verifier: float = 1.0) -> RewardSource:
    return RewardSource(RewardRecipe(verifier, list(models)), exact_match)


def never(answer: str, item: Item) -> float:
    raise AssertionError("the verifier was called")


def test_the_verifier_alone_is_the_default() -> None:
    rewards, components, failures = RewardSource(RewardRecipe(), exact_match)(ITEMS, ["3", "hound"])
    assert rewards == [1.0, 0.0]
    assert components == {"verifier": [1.0, 0.0]}
    assert failures.count == 0


def test_a_reward_is_the_weighted_sum_of_its_components(folders: dict[str, str]) -> None:
    recipes = (
        RewardModelRecipe(folders["score"], weight=0.5, dtype="float64"),
        RewardModelRecipe(folders["likelihood"], kind="likelihood", weight=-2.0, name="prior", dtype="float64"),
        RewardModelRecipe(folders["chat"], weight=0.0, name="watched"),
    )
    rewards, components, _ = source(*recipes, verifier=3.0)(ITEMS, ANSWERS)
    assert list(components) == ["verifier", "score", "prior", "watched"]
    assert components["verifier"] == [1.0, 0.0]
    for row in range(2):
        total = 3.0 * components["verifier"][row] + 0.5 * components["score"][row] - 2.0 * components["prior"][row]
        assert rewards[row] == pytest.approx(total, abs=1e-12)
    assert components["watched"][0] != 0


def test_a_verifier_of_weight_zero_is_never_called(folders: dict[str, str]) -> None:
    recipe = RewardRecipe(0.0, [RewardModelRecipe(folders["score"], weight=2.0)])
    rewards, components, failures = RewardSource(recipe, never)(ITEMS, ANSWERS)
    assert list(components) == ["score"]
    assert rewards == [2.0 * value for value in components["score"]]
    assert failures.count == 0


def test_failures_of_the_verifier_are_told(folders: dict[str, str]) -> None:
    def broken(answer: str, item: Item) -> float:
        raise ValueError("no")

    rewards, components, failures = RewardSource(RewardRecipe(models=[RewardModelRecipe(folders["score"])]), broken)(ITEMS, ANSWERS)
    assert failures.kinds == {"raised": 2}
    assert components["verifier"] == [0.0, 0.0]
    assert rewards == components["score"]


# models


@pytest.mark.parametrize("batch_rows", [1, 64])
def test_a_score_is_that_of_prompt_answer_and_end_token(folders: dict[str, str], batch_rows: int) -> None:
    tokenizer = tokenizer_of()
    scores = source(RewardModelRecipe(folders["score"], dtype="float64", batch_rows=batch_rows))(ITEMS, ANSWERS)[1]["score"]
    for item, answer, score in zip(ITEMS, ANSWERS, scores, strict=True):
        tokens = [*tokenizer.encode(item.prompt), *tokenizer.encode(answer), tokenizer.eos_token_id]
        assert score == pytest.approx(plain(folders["score"], tokens), abs=1e-12)
    assert scores[0] != scores[1]


def test_rows_are_laid_out_as_in_training(folders: dict[str, str]) -> None:
    tokenizer = tokenizer_of(chat=True)
    policy = SequenceScorer(RewardModelRecipe(folders["chat"], dtype="float64").build().policy.model, tokenizer)
    prompts = [prompt_tokens(tokenizer, item, "auto") for item in ITEMS]
    completions = [[*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id] for answer in ANSWERS]
    batch = pack(
        prompts, completions, [True] * 2, pad_token=tokenizer.pad_token_id, group=[0, 1], source=Source.PREFERENCE, reward=[1.0, 0.0]
    )
    trained = policy.evaluate(batch).log_prob.detach().sum(1).tolist()
    assert RewardModel(policy, "policy")(ITEMS, ANSWERS) == pytest.approx(trained, abs=1e-12)


def test_chat_templates(folders: dict[str, str]) -> None:
    tokenizer = tokenizer_of(chat=True)
    item = Item(0, [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}])
    end = [tokenizer.eos_token_id]
    start = "<system>1</system>\n<user>2</user>\n<assistant>"
    rows = {
        "auto": [*tokenizer.encode(start), *tokenizer.encode("fox"), *end],
        "conversation": tokenizer.encode(start + "fox</assistant>\n"),
    }
    for layout, tokens in rows.items():
        recipe = RewardModelRecipe(folders["chat"], dtype="float64", chat_template=layout)  # type: ignore[arg-type]
        found = source(recipe, verifier=0)([item], ["fox"])[1]["chat"]
        assert found == pytest.approx([plain(folders["chat"], tokens)], abs=1e-12)
    assert row_tokens(tokenizer, ITEMS[0], "3", layout="never") == row_tokens(tokenizer_of(), ITEMS[0], "3", layout="auto")
    assert row_tokens(tokenizer, item, "fox", layout="conversation")[1] == len(tokenizer.encode(start))
    with pytest.raises(InputError, match="is a conversation, but the tokenizer has no chat template"):
        source(RewardModelRecipe(folders["score"]), verifier=0)([item], ["fox"])
    with pytest.raises(InputError, match="'score' has no chat template; accepted for it: chat_template auto or never"):
        source(RewardModelRecipe(folders["score"], chat_template="conversation"))


def test_a_likelihood_sums_over_the_answers_tokens(folders: dict[str, str]) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of()
    model = AutoModelForCausalLM.from_pretrained(folders["likelihood"], dtype=torch.float64).eval()
    recipe = RewardModelRecipe(folders["likelihood"], kind="likelihood", dtype="float64")
    ended = [True, False]
    found = source(recipe)(ITEMS, ANSWERS, ended)[1]["likelihood"]
    for item, answer, value, whole in zip(ITEMS, ANSWERS, found, ended, strict=True):
        prompt = tokenizer.encode(item.prompt)
        tokens = [*prompt, *tokenizer.encode(answer), *([tokenizer.eos_token_id] if whole else [])]
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        exact = sum(float(log_probs[t - 1, tokens[t]]) for t in range(len(prompt), len(tokens)))
        assert value == pytest.approx(exact, abs=1e-10)


def test_an_answer_that_was_cut_has_no_end_token(folders: dict[str, str]) -> None:
    tokenizer = tokenizer_of()
    scores = source(RewardModelRecipe(folders["score"], dtype="float64"))(ITEMS, ANSWERS, [True, False])[1]["score"]
    assert scores[1] == pytest.approx(plain(folders["score"], [*tokenizer.encode("the red"), *tokenizer.encode(ANSWERS[1])]), abs=1e-12)


def test_an_empty_answer_is_scored_too(folders: dict[str, str]) -> None:
    tokenizer = tokenizer_of()
    for ended, end in ((True, [tokenizer.eos_token_id]), (False, [])):
        found = source(RewardModelRecipe(folders["score"], dtype="float64"))(ITEMS[:1], [""], [ended])[1]["score"]
        assert found == pytest.approx([plain(folders["score"], [*tokenizer.encode("1 + 2 ="), *end])], abs=1e-12)


def test_models_are_frozen_and_ready(folders: dict[str, str]) -> None:
    for model in source(RewardModelRecipe(folders["score"]), RewardModelRecipe(folders["likelihood"], kind="likelihood")).models:
        assert not model.policy.module.training
        assert not any(parameter.requires_grad for parameter in model.policy.module.parameters())


def test_no_answers_have_no_rewards(folders: dict[str, str]) -> None:
    assert source(RewardModelRecipe(folders["score"]))([], [])[:2] == ([], {"verifier": [], "score": []})


# errors


def test_rows_that_do_not_fit(folders: dict[str, str]) -> None:
    tokenizer = tokenizer_of()
    long = Item(7, "the red fox and hound, the red fox and hound", place="a.jsonl line 8")
    answer = tokenizer.encode(" the fox")
    with pytest.raises(InputError, match=r"a.jsonl line 8: .* have \d+ tokens, and the reward model 'short' takes 12: set max_tokens"):
        source(RewardModelRecipe(folders["short"]), verifier=0)([long], [" the fox"])
    found = source(RewardModelRecipe(folders["short"], max_tokens=10, dtype="float64"), verifier=0)([long], [" the fox"])[1]["short"]
    kept = [*tokenizer.encode(long.prompt), *answer, tokenizer.eos_token_id][-10:]
    assert found == pytest.approx([plain(folders["short"], kept)], abs=1e-12)
    with pytest.raises(InputError, match="takes 3, which leaves nothing of the prompt: raise max_tokens"):
        source(RewardModelRecipe(folders["short"], max_tokens=3), verifier=0)([long], ["fox and hound and fox"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_names_model_and_item(folders: dict[str, str], bad: float) -> None:
    rewards = source(RewardModelRecipe(folders["score"], name="judge"))
    with torch.no_grad():
        rewards.models[0].policy.model.score.weight.fill_(bad)
    with pytest.raises(InputError, match=r"the reward model 'judge' gave (nan|-?inf) for a.jsonl line 1: a reward must be a finite number"):
        rewards(ITEMS, ANSWERS)


def test_a_causal_model_gives_no_score_and_a_reward_model_no_likelihood(folders: dict[str, str]) -> None:
    with pytest.raises(InputError, match="likelihood' is no reward model"):
        source(RewardModelRecipe(folders["likelihood"]))
    with pytest.raises(InputError, match="score' is a reward model without a likelihood"):
        source(RewardModelRecipe(folders["score"], kind="likelihood"))
    with pytest.raises(InputError, match="nowhere' does not exist"):
        source(RewardModelRecipe("./nowhere"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"verifier": 0}, "reward: nothing scores the answers; accepted: a verifier weight other than 0, a function, or a model"),
        ({"verifier": math.inf}, "reward.verifier is inf"),
        ({"models": [{"model": "a/x"}, {"model": "b/x"}]}, "reward: two sources are called 'x'; give each a `name` of its own"),
        ({"models": [{"model": "a", "name": "verifier"}]}, "two sources are called 'verifier'"),
        ({"models": [{"model": "a", "kind": "scores"}]}, r"reward.models\[0\].kind: 'scores' does not exist; did you mean 'score'"),
        ({"models": [{"model": " "}]}, r"reward.models\[0\]: model is empty"),
        ({"models": [{"model": "a", "weight": math.nan}]}, "weight is nan; accepted: a finite number"),
        ({"models": [{"model": "a", "batch_rows": 0}]}, "batch_rows is 0"),
        ({"models": [{"model": "a", "max_tokens": 1}]}, "max_tokens is 1; accepted: 2 or more"),
        ({"models": [{"model": "a", "kind": "likelihood", "chat_template": "conversation"}]}, "does not say where the answer begins"),
        ({"models": [{"name": "a"}]}, r"reward.models\[0\].model: this key is missing"),
    ],
)
def test_a_recipe_is_checked_when_it_is_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        typed(RewardRecipe, values, "reward")
    assert "\n" not in str(caught.value)


# evaluation of reward models


class Lengths(SequenceScorer):
    """Scores a row by the number of its tokens."""

    def evaluate(self, batch: Any, **_: Any) -> Any:
        found = super().evaluate(batch)
        found.log_prob = torch.where(found.log_prob != 0, batch.present.sum(1, keepdim=True).double(), 0)
        return found


def lengths() -> Lengths:
    sizes = ScratchModel(hidden_size=16, layers=1, heads=2, intermediate_size=32, max_positions=64)
    tokenizer = train_tokenizer(["abc"], 260)  # every byte is a token
    return Lengths(large(build_reward_model(sizes, tokenizer)), tokenizer)


def task_of(*completions: Sequence[tuple[str, float]]) -> DataTask:
    items = (Item(n, f"p{n}", completions=tuple(ScoredCompletion(*c) for c in some)) for n, some in enumerate(completions))
    return DataTask("pairs", tuple(items), never)


def test_accuracy_and_margin_of_pairs() -> None:
    pairs = [(3, 1), (2, 5), (4, 1), (6, 2)]
    task = task_of(*([("c" * chosen, 1.0), ("r" * rejected, 0.0)] for chosen, rejected in pairs))
    told: list[float] = []
    found = evaluate_pairs(lengths(), task, EvaluationRecipe(shown=2), SamplingRecipe(), told.append)
    assert found.task == "pairs"
    assert found.metrics["accuracy"] == wilson_interval(3, 4)._asdict()
    assert found.metrics["margin"] == mean_interval([2, -3, 3, 4])._asdict()
    assert found.samples == [
        {"prompt": "p0", "answer": "ccc", "expected": "ccc", "reward": 1.0},
        {"prompt": "p1", "answer": "rrrrr", "expected": "cc", "reward": 0.0},
    ]
    assert told[-1] == 1.0
    assert evaluate_pairs(lengths(), task, EvaluationRecipe(items=1), SamplingRecipe()).metrics["accuracy"]["n"] == 1


def test_ties_count_half_and_several_completions_make_several_pairs() -> None:
    tie = [("aa", 1.0), ("bb", 0.0)]
    three = [("a", 0.1), ("bbbb", 0.7), ("cc", 0.7)]  # two pairs of different scores: margins 3 and 1
    four = [("a", 3.0), ("bb", 2.0), ("cc", 1.0)]  # margins -1, -1 and 0: accuracy 1/6
    equal = [("a", 1.0), ("bb", 1.0)]
    found = evaluate_pairs(lengths(), task_of(tie, three, equal, four), EvaluationRecipe(), SamplingRecipe())
    assert found.metrics["accuracy"] == mean_interval([0.5, 1.0, 0.5 / 3])._asdict()
    assert found.metrics["margin"] == mean_interval([0.0, 2.0, -2 / 3])._asdict()


def test_a_task_without_pairs_cannot_be_ranked() -> None:
    for task in (task_of([]), task_of([("a", 1.0)], [("b", 0.0)]), task_of([("a", 1.0), ("b", 1.0)])):
        with pytest.raises(InputError, match="task 'pairs' has no completions of one prompt to compare: set its `preferences`"):
            evaluate_pairs(lengths(), task, EvaluationRecipe(), SamplingRecipe())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["evaluate", *arguments]) == 2
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    return printed


def test_the_command_evaluates_a_folder_with_a_reward_model(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"q": f"{n} + 1 =", "good": f"{n + 1}", "rejected": "the fox"}) + "\n" for n in range(5)))
    task = f"{rows}:{{prompt: q, preferences: pairs, chosen: good}}"
    assert main(["evaluate", folders["score"], "--task", task, "--items", "4", "--json", str(tmp_path / "found.json")]) == 0
    assert "accuracy" in capsys.readouterr().out
    [result] = json.loads((tmp_path / "found.json").read_text())["results"]
    tokenizer = tokenizer_of()

    def score(prompt: str, answer: str) -> float:
        return plain(folders["score"], [*tokenizer.encode(prompt), *tokenizer.encode(answer), tokenizer.eos_token_id])

    margins = [score(f"{n} + 1 =", f"{n + 1}") - score(f"{n} + 1 =", "the fox") for n in range(4)]
    assert result["metrics"]["margin"]["value"] == pytest.approx(sum(margins) / 4, rel=1e-4)
    assert result["metrics"]["accuracy"]["value"] == sum(margin > 0 for margin in margins) / 4
    assert len(result["samples"]) == 4

    assert "reward model, which gives scores and no answers: --samples" in refused(
        capsys, folders["score"], "--task", task, "--samples", "4"
    )
    bare = f"{rows}:{{prompt: q}}"
    assert "has no completions of one prompt to compare" in refused(capsys, folders["score"], "--task", bare)
    assert "the task has no verifier" in refused(capsys, folders["likelihood"], "--task", task, "--max-new-tokens", "4")


def test_procedural_pairs_can_be_named_on_the_command_line() -> None:
    recipe = task_from_text("spell_backward:{preferences: pairs, max_word_len: 4}", 3).reasoning_gym
    assert recipe is not None
    assert (recipe.preferences, recipe.config, recipe.size) == ("pairs", {"max_word_len": 4}, 3)


def test_a_run_folder_keeps_its_model_inside(tmp_path: Path) -> None:
    saved(tmp_path / "run" / "model")
    source_of_run = source(RewardModelRecipe(str(tmp_path / "run"), dtype="float64"))
    assert [model.name for model in source_of_run.models] == ["run"]
    assert math.isfinite(source_of_run(ITEMS, ANSWERS)[1]["run"][0])


def test_rollouts_are_scored_by_the_source(folders: dict[str, str]) -> None:
    policy = CausalLanguageModel(load_model(folders["likelihood"]), load_tokenizer(folders["likelihood"]))
    task = DataTask("two", tuple(ITEMS), never)
    recipe = RewardRecipe(0.0, [RewardModelRecipe(folders["score"], weight=2.0, name="judge")])
    rewards = RewardSource(recipe, task.verifier)
    sampling = SamplingRecipe(max_new_tokens=6)
    experience = PromptRollouts(task, UniformSampler(2, 0), prompts=2, sampling=sampling, rewards=rewards)
    batch, metrics = experience.collect(policy, Demand(iteration=0, rollouts=3))
    assert batch.reward is not None
    assert batch.terminated is not None
    items = [ITEMS[index] for index in batch.annotations["item"]]
    scores = rewards.models[0](items, batch.annotations["answer"], batch.terminated.any(1).tolist())
    assert batch.reward.tolist() == pytest.approx([2.0 * score for score in scores], abs=1e-5)
    assert metrics["reward/judge"] == pytest.approx(float(batch.reward.mean()) / 2, abs=1e-5)
    assert batch.reward.unique().numel() > 1
