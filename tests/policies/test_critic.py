"""Three kinds of critic: what they compute, what their losses move, what is saved, and what a run makes of them."""

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from unipg import InputError, Trajectories
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.language.tppo import TPPO
from unipg.cli import main
from unipg.estimator import GAE, OldPolicy, PolicyGradient, ValueLoss
from unipg.policies import packing
from unipg.policies.causal_lm import CausalLanguageModel, Lora, ScratchModel, add_lora, build_model, train_tokenizer
from unipg.policies.recipe import ModelRecipe
from unipg.rollouts.prompts import PromptRollouts
from unipg.rollouts.text import SamplingRecipe
from unipg.samplers import UniformSampler
from unipg.seeding import generator
from unipg.tasks.base import Item
from unipg.tasks.data import DataTask
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.recipe import typed
from unipg.training.trainer import NonFinite, Stopped
from unipg.trajectories import Evaluation

CRITICS = ("shared", "detached", "separate")
INDEPENDENT = ("detached", "separate")
RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"ask {i} =" for i in range(9)], 300)


def model_of(tokenizer, architecture: str = "qwen3"):
    """A random model, a quarter of whose tokens end the answer."""
    torch.manual_seed(0)
    model = build_model(ScratchModel(architecture, 16, 2, 2, 32, 64), tokenizer)
    model.generation_config.eos_token_id = list(range(0, 300, 4))
    return model


@pytest.fixture
def policy(tokenizer):
    """Builds a policy with a critic; its head is random where asked, since one of 0 passes no gradient on to a trunk."""

    def build(critic="separate", *, random_head: bool = False, lora: bool = False, double: bool = False, architecture: str = "qwen3"):
        model = model_of(tokenizer, architecture)
        model = model.double() if double else model
        made = CausalLanguageModel(add_lora(model, Lora(r=2)) if lora else model, tokenizer, temperature=0.9, critic=critic)
        if random_head:
            torch.nn.init.normal_(made._value_head.weight, generator=generator(0, "head"))
        return made

    return build


def batch() -> Trajectories:
    """Rows of different lengths, of two groups with the same prompt each."""
    draw = torch.Generator().manual_seed(0)
    action = torch.randint(2, 250, (6, 12), generator=draw)
    action[:3, :4], action[3:, :5] = action[0, :4].clone(), action[3, :5].clone()
    steps, last = torch.arange(12), torch.tensor([[11], [6], [4], [9], [5], [7]])
    present = steps <= last
    begin = torch.tensor([[4]] * 3 + [[5]] * 3)
    mask = present & (steps >= begin)
    return Trajectories(
        action=action,
        mask=mask,
        present=present,
        terminated=mask & (steps == last),
        group=torch.tensor([0, 0, 0, 1, 1, 1]),
        reward=torch.tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.2]),
    )


def gradients(policy: CausalLanguageModel, *, of_policy: float, of_critic: float) -> dict[str, torch.Tensor | None]:
    """Of a weighted sum of PPO's two losses; None where there is none."""
    given = batch()
    with torch.no_grad():
        given = given.replace(value=policy.evaluate(given, value=True).value)
    both = {PolicyGradient(reference=OldPolicy(), advantage=GAE()): of_policy, ValueLoss(): of_critic}
    terms = [weight * term for term, weight in both.items() if weight]
    objective = terms[0] if len(terms) == 1 else terms[0] + terms[1]
    now = policy.evaluate(given, value=bool(of_critic))
    policy.module.zero_grad()
    objective(now, given).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in policy.module.named_parameters()}


def of_the_model(found: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    return {name: slope for name, slope in found.items() if name.startswith("model.")}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        (a is None and other[name] is None) or (a is not None and other[name] is not None and torch.equal(a, other[name]))
        for name, a in one.items()
    )


# ---------------------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("lora", [False, True])
def test_a_new_critic_is_0_everywhere(policy, critic, lora) -> None:
    found = policy(critic, lora=lora).evaluate(batch(), value=True)
    assert found.value.shape == batch().mask.shape
    assert not found.value.any()


def test_all_three_start_from_the_same_value(policy) -> None:
    """A copy of the trunk is the trunk, before either has moved."""
    found = [policy(critic, random_head=True).evaluate(batch(), value=True).value for critic in CRITICS]
    assert found[0].abs().max() > 0.1
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_value_is_the_head_of_the_critics_own_trunk(policy) -> None:
    """Worked out row by row without padding, after the two trunks have gone different ways."""
    made, given = policy(random_head=True, double=True), batch()
    with torch.no_grad():
        for parameter in made._critic_trunk.parameters():
            parameter.mul_(1.3)
        log_prob = policy(double=True).evaluate(given).log_prob
        now = made.evaluate(given, value=True)
        for row in range(len(given)):
            tokens = given.action[row, : int(given.present[row].sum())]
            hidden = made._critic_trunk(input_ids=tokens[None, :-1], use_cache=False).last_hidden_state[0]
            value = hidden @ made._value_head.weight[0] + made._value_head.bias
            mine = given.mask[row, 1 : len(tokens)]
            # the model's norms compute in float32
            torch.testing.assert_close(now.value[row, 1 : len(tokens)][mine], value[mine], rtol=1e-6, atol=1e-6)
    assert torch.equal(now.log_prob, log_prob)


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("lora", [False, True])
def test_packed_values_and_their_gradients_are_those_of_the_padded_batch(policy, monkeypatch, layout, lora) -> None:
    """GPT-2 computes in float64 throughout; the norms of Qwen3, which takes adapters without a warning, in float32."""
    made, given = policy(random_head=True, lora=lora, double=True, architecture="qwen3" if lora else "gpt2"), batch()
    made.module.eval()
    with torch.no_grad():
        for name, parameter in made._critic_state().items():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1, name), dtype=parameter.dtype))
    prefix = {"packed": lambda b: torch.zeros(len(b), dtype=torch.long), "shared": packing.shared_prefixes}[layout]
    monkeypatch.setattr(packing, "plan", lambda b, hidden: packing.layout_of(b, prefix(b)))
    found = []
    for packs in (True, False):
        made._packs = packs
        value = made.evaluate(given, value=True).value
        factor = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
        slopes = torch.autograd.grad((factor * value).sum(), made.critic_parameters)
        found.append([value.detach(), torch.cat([s.flatten() for s in slopes])])
    for packed, padded in zip(*found, strict=True):
        assert float(padded.norm()) > 0
        assert float((packed - padded).norm()) <= (1e-6 if lora else 1e-10) * float(padded.norm())


def test_the_critic_runs_only_when_values_are_asked_for(policy) -> None:
    made, calls = policy(), []
    made._critic_trunk.register_forward_hook(lambda *_: calls.append(1))
    made.evaluate(batch(), entropy=True)
    assert not calls
    made.evaluate(batch(), value=True)
    assert len(calls) == 1


@pytest.mark.parametrize("critic", CRITICS)
def test_a_model_that_does_more_to_its_logits(tokenizer, critic) -> None:
    """Gemma 2 caps its logits: they are not one projection, and there is no packing."""
    torch.manual_seed(0)
    made = CausalLanguageModel(build_model(ScratchModel("gemma2", 16, 1, 2, 32, 64), tokenizer), tokenizer, critic=critic)
    made.model.config.final_logit_softcapping = 0.01
    capped = CausalLanguageModel(made.model, tokenizer, critic=critic)
    assert capped._trunk is None
    torch.nn.init.ones_(capped._value_head.weight)
    torch.nn.init.normal_(capped._value_head.weight, generator=generator(0, "head"))
    now = capped.evaluate(batch(), value=True)
    hidden = capped.model.model(input_ids=torch.where(batch().present, batch().action, 0)[:, :-1], use_cache=False).last_hidden_state
    expected = torch.where(batch().mask[:, 1:], capped._value_head(hidden).squeeze(-1), 0)
    torch.testing.assert_close(now.value[:, 1:], expected)
    assert expected.abs().max() > 0.1


# ---------------------------------------------------------------------------------------------------- what a loss moves


@pytest.mark.parametrize("critic", INDEPENDENT)
@pytest.mark.parametrize("lora", [False, True])
def test_neither_loss_changes_the_other_models_gradient_by_a_bit(policy, critic, lora) -> None:
    made = policy(critic, random_head=True, lora=lora)
    both, policy_alone, critic_alone = (gradients(made, of_policy=p, of_critic=c) for p, c in ((1.0, 0.5), (1.0, 0.0), (0.0, 0.5)))
    assert equal(of_the_model(both), of_the_model(policy_alone))
    names = set(made._critic_state())
    assert equal({n: both[n] for n in names}, {n: critic_alone[n] for n in names})
    trained = {n for n, p in made.module.named_parameters() if p.requires_grad}
    assert all(float(both[n].abs().max()) > 0 for n in ("value_head.weight", "value_head.bias"))
    assert any(float(both[n].abs().max()) > 0 for n in trained if n.startswith("model."))
    moved = [n for n in trained & names if n.startswith("critic.") and float(both[n].abs().max()) > 0]
    assert bool(moved) == (critic == "separate")


def test_a_shared_critic_does(policy) -> None:
    made = policy("shared", random_head=True)
    both, alone = (of_the_model(gradients(made, of_policy=1.0, of_critic=weight)) for weight in (0.5, 0.0))
    assert not equal(both, alone)


@pytest.mark.parametrize("critic", CRITICS)
def test_the_critics_parameters(policy, critic) -> None:
    made = policy(critic)
    count = {"shared": 0, "detached": 2, "separate": 2 + len(list(made._trunk.parameters()))}[critic]
    assert len(made.critic_parameters) == count
    mine = {p.data_ptr() for p in made.critic_parameters}
    assert not mine & {p.data_ptr() for p in made.model.parameters()}


def test_adapters_of_its_own_on_the_same_base(policy) -> None:
    made = policy(lora=True)
    own = {name for name in made._critic_state() if name.startswith("critic.")}
    assert own
    assert all("lora_" in name for name in own)
    base = {p.data_ptr() for p in made.model.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in made._critic_trunk.parameters() if not p.requires_grad} <= base
    assert not {p.data_ptr() for p in made.critic_parameters} & {p.data_ptr() for p in made.model.parameters()}
    twin = made.twin()  # the copy shares its base too, with nobody else
    theirs = {p.data_ptr() for p in twin.model.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in twin._critic_trunk.parameters() if not p.requires_grad} <= theirs
    assert not theirs & base
    with made.model.disable_adapter(), torch.no_grad():  # as the anchor does
        for parameter in made.critic_parameters:
            parameter.add_(0.1)
    assert made.evaluate(batch(), value=True).value.abs().max() > 0


def test_recomputed_activations_give_the_same_gradient(tokenizer) -> None:
    recipe = {"scratch": {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 32, "max_positions": 64}, "critic": "separate"}
    found = []
    for again in (False, True):
        made = typed(ModelRecipe, {**recipe, "gradient_checkpointing": again}, "policy").build(
            lambda: ["ask 1 ="], temperature=1.0, value_head=True, device="cpu", seed=3
        )
        made.module.train()
        torch.nn.init.normal_(made._value_head.weight, generator=generator(0, "head"))
        found.append(gradients(made, of_policy=1.0, of_critic=0.5))
    for name, slope in found[0].items():
        torch.testing.assert_close(found[1][name], slope, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------------- copies and files


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("lora", [False, True])
def test_proposals_and_anchors_have_none(policy, critic, lora) -> None:
    made = policy(critic, lora=lora)
    proposal = made.proposal()
    assert not proposal.has_value
    assert set(proposal.module.state_dict()) == {n for n in made.module.state_dict() if n.startswith("model.")}
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.add_(0.1)
    assert not torch.equal(proposal.evaluate(batch()).log_prob, made.evaluate(batch()).log_prob)
    proposal.follow(made)
    assert torch.equal(proposal.evaluate(batch()).log_prob, made.evaluate(batch()).log_prob)
    with pytest.raises(InputError, match="built without a critic"):
        proposal.evaluate(batch(), value=True)
    assert made.has_value
    assert not made.frozen_copy().has_value


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("lora", [False, True])
def test_saved_beside_the_model_and_read_again(policy, critic, lora, tmp_path) -> None:
    made = policy(critic, random_head=True, lora=lora)
    with torch.no_grad():
        for parameter in made._critic_state().values():
            parameter.mul_(1.1)
    made.save(tmp_path / "model")
    made.save_critic(tmp_path / "critic")
    assert not list((tmp_path / "model").glob("critic*"))
    other = policy(critic, lora=lora)
    assert not torch.equal(other.evaluate(batch(), value=True).value, made.evaluate(batch(), value=True).value)
    other.load_critic(tmp_path / "critic")
    assert torch.equal(other.evaluate(batch(), value=True).value, made.evaluate(batch(), value=True).value)
    policy(None).save_critic(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_no_critic_of_this_kind_is_refused(policy, tmp_path) -> None:
    with pytest.raises(InputError, match=r"holds no critic\.safetensors; accepted: a folder that save_critic wrote"):
        policy().load_critic(tmp_path)
    policy("detached").save_critic(tmp_path)
    with pytest.raises(InputError, match="holds a critic of another kind or size than this policy's, which is separate"):
        policy().load_critic(tmp_path)
    with pytest.raises(InputError, match="which is none"):
        policy(None).load_critic(tmp_path)


# ---------------------------------------------------------------------------------------------------- the loop


def odd(answer: str, item: Item) -> float:
    return float(len(answer) % 2)


def run(algorithm, policy: CausalLanguageModel, folder: Path, optimizer: OptimizerRecipe | None = None, **training) -> Trainer:
    task = DataTask("ask", tuple(Item(i, f"ask {i} {'=' * (i % 3 + 1)}") for i in range(9)), odd)
    source = PromptRollouts(task, UniformSampler(9, seed=5), prompts=4, sampling=SamplingRecipe(max_new_tokens=6, verifier_seconds=60.0))
    recipe = TrainingRecipe(**{"iterations": 3, "minibatches": 2} | training)
    rates = optimizer or OptimizerRecipe(learning_rate=0.01, critic_learning_rate=None if policy.critic == "shared" else 0.03)
    return Trainer(algorithm, policy, source, folder=folder, training=recipe, optimizer=rates, seed=3)


def weights(policy: CausalLanguageModel, begins: str = "") -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.module.state_dict().items() if name.startswith(begins)}


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("algorithm", [PPO(rollouts=2), TPPO(rollouts=2, window=2, value_warmup=2)], ids=lambda a: a.name)
def test_stopping_anywhere_and_continuing_gives_the_same_weights(policy, tmp_path, algorithm, critic, stop) -> None:
    straight = run(algorithm, policy(critic), tmp_path / "straight")
    straight.train()
    first = run(algorithm, policy(critic), tmp_path / "stopped")
    first.stop_after_steps = stop
    with pytest.raises(Stopped):
        first.train()
    second = run(algorithm, policy(critic), tmp_path / "stopped")
    second.resume()
    second.train()
    assert equal(weights(second.policy), weights(straight.policy))
    assert not equal(weights(second.policy), weights(policy(critic)))
    assert (tmp_path / "stopped" / "critic" / "critic.safetensors").read_bytes() == (
        tmp_path / "straight" / "critic" / "critic.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("critic", INDEPENDENT)
def test_the_warm_up_of_tppo_leaves_the_policy_as_it_was(policy, tmp_path, critic, decay) -> None:
    """To the bit, whatever the weight decay: a policy without gradient is not stepped on."""
    made = policy(critic)
    before = weights(made)
    trainer = run(
        TPPO(rollouts=2, window=3, value_warmup=6), made, tmp_path, OptimizerRecipe(learning_rate=0.01, weight_decay=decay), iterations=3
    )
    row = trainer.train()
    assert equal({n: t for n, t in before.items() if n.startswith("model.")}, weights(made, "model."))
    assert row["gradient_norm"] == 0.0
    assert row["critic/gradient_norm"] > 0
    begins = {"detached": ("value_head.",), "separate": ("value_head.", "critic.")}[critic]
    for name in begins:
        assert not equal({n: t for n, t in before.items() if n.startswith(name)}, weights(made, name))


def test_a_shared_critic_moves_the_policy_during_the_warm_up(policy, tmp_path) -> None:
    made = policy("shared")
    before = weights(made, "model.")
    run(TPPO(rollouts=2, window=3, value_warmup=6), made, tmp_path).train()
    assert not equal(before, weights(made, "model."))


@pytest.mark.parametrize("critic", INDEPENDENT)
def test_the_policy_takes_the_steps_it_would_take_with_any_critics_loss(policy, tmp_path, critic) -> None:
    """Its advantages read the values, so the critic's learning rate is 0: a loss a thousand times larger then changes nothing, also
    where gradients are clipped."""
    found = []
    for weight in (0.5, 500.0):
        made = policy(critic, random_head=True)
        rates = OptimizerRecipe(learning_rate=0.01, critic_learning_rate=0.0, clip_norm=1e-3)
        row = run(PPO(rollouts=2, value_weight=weight), made, tmp_path / str(weight), rates).train()
        found.append((weights(made, "model."), row["gradient_norm"], row["critic/gradient_norm"]))
    assert equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert found[1][2] == pytest.approx(1000 * found[0][2], rel=1e-4)
    assert not equal(found[0][0], weights(policy(critic), "model."))


def test_values_and_old_log_probs_come_of_one_pass(policy, tmp_path, monkeypatch) -> None:
    passes = []
    evaluate = CausalLanguageModel.evaluate

    def counted(self, given, **asked):
        passes.append((torch.is_grad_enabled(), asked["value"]))
        return evaluate(self, given, **asked)

    monkeypatch.setattr(CausalLanguageModel, "evaluate", counted)
    run(PPO(), policy(), tmp_path, iterations=1).train()
    assert passes == [(False, True), (True, True), (True, True)]


def one_step(policy, folder: Path, **optimizer) -> tuple[Trainer, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A step of plain SGD from random gradients: the trainer, the gradients, and how far each parameter went."""
    made = policy("separate")
    trainer = run(PPO(), made, folder, OptimizerRecipe(kind="sgd", **{"learning_rate": 1e-3, **optimizer}))
    named = dict(made.module.named_parameters())
    for name, parameter in named.items():
        parameter.grad = torch.randn(parameter.shape, generator=generator(0, name)) * (10 if name.startswith("model.") else 1)
    slopes, before = {n: p.grad.clone() for n, p in named.items()}, {n: p.detach().clone() for n, p in named.items()}
    return trainer, slopes, before


def step(trainer: Trainer, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    trainer.row = trainer.learner.guarded_step(batch())
    return {name: before[name] - p.detach() for name, p in trainer.policy.module.named_parameters()}


def halves(found: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.cat([t.flatten() for n, t in found.items() if n.startswith("model.") == mine]) for mine in (True, False))


def test_each_model_is_clipped_by_itself_and_has_its_own_rate(policy, tmp_path) -> None:
    trainer, slopes, before = one_step(policy, tmp_path, learning_rate=1.0, critic_learning_rate=0.25, clip_norm=1.0)
    moved = halves(step(trainer, before))
    norms = [float(half.norm()) for half in halves(slopes)]
    assert min(norms) > 1.0
    for rate, went, slope, norm in zip((1.0, 0.25), moved, halves(slopes), norms, strict=True):
        torch.testing.assert_close(went, rate * slope / norm, rtol=1e-3, atol=1e-6)
    assert [trainer.row["gradient_norm"], trainer.row["critic/gradient_norm"]] == pytest.approx(norms, rel=1e-5)
    assert [trainer.row["learning_rate"], trainer.row["critic/learning_rate"]] == [1.0, 0.25]


@pytest.mark.parametrize("spoiled", ["model.", "value_head."])
@pytest.mark.parametrize("how", ["nonfinite", "large"])
def test_a_gradient_that_is_not_applied_does_not_stop_the_other_model(policy, tmp_path, spoiled, how) -> None:
    trainer, _, before = one_step(policy, tmp_path, learning_rate=0.1, clip_norm=None, skip_norm=1e6, on_nonfinite="skip")
    for name, parameter in trainer.policy.module.named_parameters():
        if name.startswith(spoiled):
            parameter.grad.fill_(float("nan") if how == "nonfinite" else 1e7)
    of_model, of_critic = halves(step(trainer, before))
    assert bool(of_model.any()) == (spoiled != "model.")
    assert bool(of_critic.any()) == (spoiled == "model.")
    assert torch.isfinite(of_model).all()
    assert torch.isfinite(of_critic).all()
    assert trainer.learner.skipped == {"empty": 0, "large": 0, "nonfinite": 0} | {how: 1}


def test_a_run_stops_at_either(policy, tmp_path) -> None:
    for name, whose in (("model.", "policy"), ("value_head.", "critic")):
        trainer, _, before = one_step(policy, tmp_path / whose)
        next(p for n, p in trainer.policy.module.named_parameters() if n.startswith(name)).grad.fill_(float("inf"))
        with pytest.raises(NonFinite, match=f"the {whose}'s gradient at optimiser step 0"):
            trainer.learner.guarded_step(batch())
        assert all(torch.equal(p, before[n]) for n, p in trainer.policy.module.named_parameters())


def test_rates_follow_one_schedule() -> None:
    recipe = OptimizerRecipe(learning_rate=1.0, critic_learning_rate=4.0, schedule="linear", warmup=2)
    rates = [[recipe.learning_rate_at(step, 10, critic=critic) for step in (0, 1, 2, 6, 10)] for critic in (False, True)]
    assert rates == [[0.5, 1.0, 1.0, 0.5, 0.0], [2.0, 4.0, 4.0, 2.0, 0.0]]
    same = OptimizerRecipe(learning_rate=1.0, schedule="cosine")
    assert same.learning_rate_at(5, 10, critic=True) == same.learning_rate_at(5, 10)


# ---------------------------------------------------------------------------------------------------- recipes


@pytest.fixture
def recipe(tmp_path):
    """A tiny recipe with the given changes."""
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"q": f"{i} + 1 =", "a": str(i + 1)}) + "\n" for i in range(8)), encoding="utf-8")

    def write(algorithm="ppo", policy=None, **sections) -> str:
        values = {
            "algorithm": algorithm,
            "output": str(tmp_path / "run"),
            "threads": 1,
            "policy": {
                "scratch": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32, "vocabulary": 270},
                **(policy or {}),
            },
            "task": {"data": {"source": str(rows), "prompt": "q", "answer": "a", "verifier": "exact_match"}},
            "rollouts": {"max_new_tokens": 3},
            "training": {"iterations": 2, "prompts": 4},
            **sections,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(path)

    return write


def test_a_run_with_a_critic_of_its_own_while_the_next_batch_is_sampled(recipe, tmp_path) -> None:
    """The process that samples has no critic; a run that was stopped continues to the same weights."""
    path = recipe(
        policy={"critic": "separate"},
        training={"iterations": 2, "prompts": 4, "overlap": True},
        optimizer={"learning_rate": 0.01, "critic_learning_rate": 0.02},
    )
    assert main(["train", path]) == 0
    folder = tmp_path / "run"
    assert (folder / "critic" / "critic.safetensors").is_file()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["policy"]["critic"] > record["policy"]["parameters"] / 3
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (last["learning_rate"], last["critic/learning_rate"]) == (0.01, 0.02)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=False)
    assert any(name.startswith("critic.") for name in checkpoint["module"])
    assert not any(name.startswith(("critic.", "value_head.")) for name in checkpoint["feed"]["proposal"])


@pytest.mark.parametrize("critic", CRITICS)
def test_a_run_starts_from_the_critic_of_another(critic, recipe, tmp_path, capsys, monkeypatch) -> None:
    """With no learning at all it ends as that one did, and not as a new one starts."""
    (tmp_path / "half_right.py").write_text("def judge(answer, item):\n    return 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = {"data": {"source": str(tmp_path / "train.jsonl"), "prompt": "q", "answer": "a", "verifier": "half_right:judge"}}
    path = recipe(policy={"critic": critic}, optimizer={"learning_rate": 0.05}, task=task)
    assert main(["train", path]) == 0
    for number, place in enumerate((tmp_path / "run", tmp_path / "run" / "critic")):
        still = ["optimizer.learning_rate=0", f"policy.critic_from={place}", f"output={tmp_path}/{number}"]
        assert main(["train", path, *still]) == 0
        one, other = (load_file(folder / "critic" / "critic.safetensors") for folder in (tmp_path / "run", tmp_path / str(number)))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(bool(tensor.any()) for name, tensor in one.items() if name.startswith("value_head."))
    kind = "detached" if critic == "separate" else "separate"
    assert main(["train", path, f"policy.critic={kind}", f"policy.critic_from={tmp_path / 'run'}", f"output={tmp_path}/no"]) == 2
    assert f"holds a critic of another kind or size than this policy's, which is {kind}" in capsys.readouterr().err


def test_algorithms_without_a_critic_build_none(recipe, tmp_path) -> None:
    path = recipe({"name": "rloo", "rollouts": 2}, policy={"critic": "separate"}, optimizer={"critic_learning_rate": 0.1})
    assert main(["train", path]) == 0
    assert not (tmp_path / "run" / "critic").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["policy"]["critic"] == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["policy.critic=seperate"], "policy.critic: 'seperate' does not exist; did you mean 'separate'"),
        (["optimizer.critic_learning_rate=0.1"], "optimizer.critic_learning_rate is set, but policy.critic is 'shared'; accepted: null"),
        (["algorithm.name=grpo", "optimizer.critic_learning_rate=0.1"], "policy.critic is 'shared'; accepted: null, or policy.critic"),
        (["policy.critic=separate", "optimizer.critic_learning_rate=-1"], "optimizer.critic_learning_rate is -1.0; accepted: 0 or more"),
        (["policy.critic=detached", "policy.kind=reward"], "policy.critic is 'detached', but a reward model has no critic"),
        (["policy.critic_from=nowhere"], "policy.critic_from 'nowhere' holds no critic.safetensors; accepted: the folder of a run with a"),
        (["algorithm.name=grpo", "policy.critic_from=nowhere"], "policy.critic_from is set, but this algorithm has no critic; accepted"),
    ],
)
def test_bad_input(recipe, tmp_path, capsys, overrides, said) -> None:
    assert main(["train", recipe(), *overrides]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert said in errors[0]
    assert not (tmp_path / "run").exists()


def test_controllers_take_no_rate_for_the_critic(capsys) -> None:
    assert main(["train", str(RECIPES / "cartpole-ppo.yaml"), "optimizer.critic_learning_rate=0.1"]) == 2
    assert "a controller's actor and critic take their steps together; accepted: null" in capsys.readouterr().err


def test_a_rate_for_a_critic_that_is_no_model_of_its_own(policy, tmp_path) -> None:
    with pytest.raises(InputError, match="critic_learning_rate is set, but the critic is no model of its own; accepted: null"):
        run(PPO(), policy("shared"), tmp_path, OptimizerRecipe(critic_learning_rate=0.1))


def test_a_kind_that_does_not_exist(tokenizer) -> None:
    with pytest.raises(InputError, match="critic 'own' does not exist; accepted: detached, separate, shared"):
        CausalLanguageModel(model_of(tokenizer), tokenizer, critic="own")


def test_a_model_whose_trunk_is_no_part_of_its_own(tokenizer) -> None:
    model = model_of(tokenizer)
    model.base_model_prefix = "nothing"
    with pytest.raises(InputError, match="accepted here: shared, detached"):
        CausalLanguageModel(copy.copy(model), tokenizer, critic="separate")


def test_an_evaluation_without_values_trains_no_critic(policy) -> None:
    assert isinstance(policy().evaluate(batch()), Evaluation)
    assert policy().evaluate(batch()).value is None
