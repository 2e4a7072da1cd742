"""Closed-form oracles of Truncated PPO (arXiv 2506.15050), the slots that its responses live in, and its bad input."""

import copy
import dataclasses
import io
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipg import GAE, Evaluation, InputError, Planning, Trajectories, ValueLoss
from unipg.algorithms import Setting
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.language.grpo import GRPO
from unipg.algorithms.language.hpt import HPT
from unipg.algorithms.language.tppo import CRITIC, POLICY, TPPO
from unipg.estimator.advantages import generalized_advantage, settled
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model, train_tokenizer
from unipg.rollouts.base import FRESH, Demand, Experience
from unipg.rollouts.generation import ContinuousBatch
from unipg.rollouts.prompts import PromptRollouts
from unipg.rollouts.text import SamplingRecipe
from unipg.samplers import UniformSampler
from unipg.tasks.base import Item
from unipg.tasks.data import DataTask
from unipg.training import OptimizerRecipe, Trainer, TrainingRecipe
from unipg.training.distribution import Workers
from unipg.training.trainer import Stopped

SETTING = Setting(8)
VALUES = [0.2, 0.4, 0.5, 0.3]
EGAE = GAE(1.0, 0.95, normalize=False, bootstrap="copied")


def response(values: list[float], *, finished: bool = False, reward: float = 0.0) -> Trajectories:
    """A row of one prompt token and a response with these values before its tokens."""
    steps = torch.arange(len(values) + 1)
    mask = (steps > 0).unsqueeze(0)
    return Trajectories(
        action=torch.ones(mask.shape, dtype=torch.long),
        mask=mask,
        reward=torch.tensor([reward], dtype=torch.float64),
        terminated=mask & (steps == len(values)) & finished,
        truncated=torch.zeros_like(mask),
        value=torch.tensor([[float("nan"), *values]], dtype=torch.float64),
    )


def close(found: torch.Tensor, expected: list[float], atol: float = 1e-15) -> None:
    torch.testing.assert_close(found[0, 1:], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------------- 1, 2, 4. EGAE


def test_1_a_response_that_is_cut() -> None:
    close(EGAE(response(VALUES)), [0.1145, -0.09, -0.2, 0.0])
    close(dataclasses.replace(EGAE, lam=1.0)(response(VALUES)), [0.1, -0.1, -0.2, 0.0])


def test_2_a_finished_response_and_the_bug_of_a_zero_bootstrap() -> None:
    close(EGAE(response(VALUES, finished=True, reward=1.0)), [0.7146625, 0.54175, 0.465, 0.7])
    close(GAE(1.0, 0.95, normalize=False)(response(VALUES)), [-0.1427125, -0.36075, -0.485, -0.3])


def test_2_a_length_limit_zeroes_the_bootstrap_as_an_end_does() -> None:
    ended = response(VALUES, finished=True, reward=1.0)
    limited = ended.replace(terminated=ended.truncated, truncated=ended.terminated)
    assert torch.equal(EGAE(limited), EGAE(ended))


def test_discounting_leaves_the_last_token_gamma_minus_1_times_its_value() -> None:
    found = dataclasses.replace(EGAE, gamma=0.9)(response(VALUES))
    assert float(found[0, -1]) == pytest.approx((0.9 - 1) * 0.3, abs=1e-15)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0])
def test_4_a_constant_value_gives_no_signal_from_a_cut_response(value) -> None:
    assert not EGAE(response([value] * 6)).any()


flag, number = st.sampled_from([False, False, False, True]), st.floats(-3, 3, width=32)


@settings(deadline=None)
@given(st.lists(st.tuples(number, number, flag, flag, flag), min_size=1, max_size=9), st.floats(0, 1), st.floats(0, 1))
def test_egae_is_its_defining_sum(steps, gamma, lam) -> None:
    """A_t = sum (gamma lam)^k delta_{t+k} by plain loops; environment tokens in between are skipped."""
    reward, value, terminated, truncated, skipped = (torch.tensor([[step[i] for step in steps]]) for i in range(5))
    reward, value, mask = reward.double(), value.double(), ~skipped
    found = generalized_advantage(reward, value, mask, gamma, lam, terminated=terminated, truncated=truncated, bootstrap="copied")
    live = [t for t, step in enumerate(steps) if not step[4]]
    expected = [0.0] * len(steps)
    for place, start in enumerate(live):
        for k, t in enumerate(live[place:]):
            _, v, end, cut, _ = steps[t]
            following = 0.0 if end or cut else v if t == live[-1] else steps[live[place + k + 1]][1]
            expected[start] += (gamma * lam) ** k * (steps[t][0] + gamma * following - v)
            if end or cut:
                break
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_steps_are_settled_up_to_the_last_end_of_their_row() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    batch = Trajectories(action=mask.long(), mask=mask)
    assert torch.equal(settled(batch), mask)  # nothing is said of ends
    ends = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    expected = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    assert torch.equal(settled(batch.replace(terminated=ends)), expected)
    assert torch.equal(settled(batch.replace(truncated=ends, terminated=~mask)), expected)


# ---------------------------------------------------------------------------------------------------- what short windows cannot teach


def two_tokens(first: torch.Tensor, second: torch.Tensor, earned: torch.Tensor, gae: GAE) -> list[torch.Tensor]:
    """The expected gradients on the logits of the first and second token of answers of two tokens, in windows of one, against the exact
    critic: every window is enumerated, with its probability."""
    p, q, count = first.softmax(-1), second.softmax(-1), len(first)
    after = (q * earned).sum(-1)  # V of the state behind the first token
    before = (p * after).sum()
    ones = torch.ones(count, 1, dtype=torch.bool)
    cut = Trajectories(
        action=torch.arange(count).unsqueeze(1),
        mask=ones,
        reward=torch.zeros(count, dtype=torch.float64),
        terminated=~ones,
        value=before.detach().expand(count, 1),
        bootstrap_value=after.detach().unsqueeze(1),
    )
    one, other = (index.reshape(-1) for index in torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij"))
    whole = Trajectories(
        action=torch.stack([one, other], 1),
        mask=torch.ones(count**2, 2, dtype=torch.bool),
        reward=earned.reshape(-1),
        terminated=torch.tensor([[False, True]]).expand(count**2, 2),
        value=torch.stack([before.expand(count), after], 1).detach()[one],
    )
    ready = (
        TPPO(window=1).prepare(cut, SETTING, Planning()),
        TPPO(window=1).prepare(whole.with_planned(**fresh_second(whole)), SETTING, Planning()),
    )
    assert ready[0].planned[POLICY].all()
    assert ready[1].planned[POLICY].tolist() == [[False, True]] * count**2
    on_first, on_second = gae(ready[0])[:, 0], gae(ready[1])[:, 1]
    likely = (p.detach() * on_first * p.log()).sum() + ((p.unsqueeze(1) * q).detach() * on_second.reshape(count, count) * q.log()).sum()
    return list(torch.autograd.grad(likely, [first, second]))


def fresh_second(whole: Trajectories) -> dict[str, torch.Tensor]:
    return {FRESH: torch.tensor([[False, True]]).expand(len(whole), 2)}


@pytest.mark.parametrize("lam", [0.95, 1.0])
def test_a_token_before_a_cut_is_never_judged_and_those_after_it_are_judged_exactly(lam) -> None:
    """Nature of the method: with the critic's true value at the cut the gradient of both tokens is that of the expected reward; with the
    copied one the first token's is 0, whatever it leads to."""
    draw = torch.Generator().manual_seed(0)
    first, second, earned = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((3,), (3, 3), (3, 3)))
    first.requires_grad_()
    second.requires_grad_()
    expected = torch.autograd.grad((first.softmax(-1).unsqueeze(1) * second.softmax(-1) * earned).sum(), [first, second])
    assert expected[0].norm() > 0.05
    true = two_tokens(first, second, earned, GAE(1.0, lam, normalize=False))
    torch.testing.assert_close(true, list(expected), rtol=0, atol=1e-15)
    copied = two_tokens(first, second, earned, GAE(1.0, lam, normalize=False, bootstrap="copied"))
    assert torch.equal(copied[0], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(copied[1], expected[1], rtol=0, atol=1e-15)


def test_so_success_ends_at_the_share_of_first_tokens_that_were_right_from_the_start() -> None:
    """One answer of nine is right: copied values end at 1/3, true ones at 1."""
    earned = torch.zeros(3, 3, dtype=torch.float64)
    earned[0, 0] = 1.0
    for gae, ends in ((EGAE, 1 / 3), (dataclasses.replace(EGAE, bootstrap="given"), 1.0)):
        first, second = torch.zeros(3, dtype=torch.float64, requires_grad=True), torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        for _ in range(150):
            gradients = two_tokens(first, second, earned, gae)
            with torch.no_grad():
                for logits, gradient in zip((first, second), gradients, strict=True):
                    logits += 20 * gradient
        assert float((first.softmax(-1)[0] * second.softmax(-1)[0, 0]).detach()) == pytest.approx(ends, abs=2e-3)


# ---------------------------------------------------------------------------------------------------- the loss by hand


def mixed() -> tuple[Trajectories, Evaluation, torch.Tensor, torch.Tensor]:
    """A finished response of two windows, and one that is cut; the present policy has moved from the old one."""
    batch = Trajectories.join([response(VALUES, finished=True, reward=1.0), response([0.1, 0.6, 0.2])])
    assert batch.present is not None
    batch = batch.replace(mask=batch.mask & batch.present)
    draw = torch.Generator().manual_seed(0)
    log_prob, value = (torch.randn(2, 5, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    old = (log_prob + 0.3 * torch.randn(2, 5, dtype=torch.float64, generator=draw)).detach()
    fresh = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]]).bool()
    return batch.replace(old_log_prob=old, planned={FRESH: fresh}), Evaluation(log_prob, value=value), log_prob, value


def loss_of(tppo: TPPO, batch: Trajectories, now: Evaluation) -> torch.Tensor:
    return tppo.terms(SETTING)(now, tppo.prepare(batch, SETTING, Planning()))


def test_the_loss_takes_and_counts_the_windows_tokens_and_the_finished_responses() -> None:
    batch, now, log_prob, value = mixed()
    loss = loss_of(TPPO(value_weight=0.5), batch, now)
    advantage = torch.zeros(2, 5, dtype=torch.float64)
    advantage[0, 3:] = torch.tensor([0.465, 0.7], dtype=torch.float64)
    advantage[1, 2] = 0.2 - 0.6  # and 0 for the last token
    kept = batch.planned[FRESH]
    ratio = (log_prob - batch.old_log_prob).exp()
    clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    expected = -clipped[kept].sum() / 4 + 0.5 * (0.5 * (value[0, 1:] - 1.0) ** 2).sum() / 4
    for found, right in zip(torch.autograd.grad(loss, (log_prob, value)), torch.autograd.grad(expected, (log_prob, value)), strict=True):
        torch.testing.assert_close(found, right, rtol=0, atol=1e-14)


def test_rewards_of_unfinished_responses_are_ignored() -> None:
    batch, now, log_prob, value = mixed()
    slopes = torch.autograd.grad(loss_of(TPPO(), batch, now), (log_prob, value))
    batch.reward[1] = 100.0
    again = torch.autograd.grad(loss_of(TPPO(), batch, now), (log_prob, value))
    assert all(torch.equal(a, b) for a, b in zip(slopes, again, strict=True))


def test_whitening_counts_the_tokens_that_train_the_policy() -> None:
    batch = mixed()[0]
    ready = TPPO(normalize_advantage=True).prepare(batch, SETTING, Planning())
    found = TPPO(normalize_advantage=True).terms(SETTING).prepare(ready).planned["policy_gradient/advantage"][ready.planned[POLICY]]
    raw = torch.tensor([0.465, 0.7, 0.2 - 0.6, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found, (raw - raw.mean()) / (raw.var() + 1e-8).sqrt(), rtol=0, atol=1e-14)


def test_without_windows_all_tokens_are_fresh() -> None:
    batch = mixed()[0].replace(planned={})
    ready = TPPO().prepare(batch, SETTING, Planning())
    assert torch.equal(ready.planned[POLICY], batch.mask)


# ---------------------------------------------------------------------------------------------------- a language model in windows


@pytest.fixture(scope="module")
def fixed() -> CausalLanguageModel:
    """A random model, a quarter of whose tokens end the answer."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([f"ask {i} =" for i in range(9)], 300)
    model = build_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), tokenizer)
    model.generation_config.eos_token_id = list(range(0, 300, 4))
    return CausalLanguageModel(model, tokenizer, critic="shared")


@pytest.fixture
def policy(fixed: CausalLanguageModel) -> CausalLanguageModel:
    return twin(fixed)


def twin(policy: CausalLanguageModel) -> CausalLanguageModel:
    made = CausalLanguageModel(copy.deepcopy(policy.model), policy.tokenizer, critic="shared")
    made.module.load_state_dict(policy.module.state_dict())
    return made


def odd(answer: str, item: Item) -> float:
    return float(len(answer) % 2)


def experience(prompts: int = 4, limit: int = 6, items: int = 9, **sampling) -> PromptRollouts:
    task = DataTask("ask", tuple(Item(i, f"ask {i} {'=' * (i % 3 + 1)}") for i in range(items)), odd)
    return PromptRollouts(
        task,
        UniformSampler(items, seed=5),
        prompts=prompts,
        sampling=SamplingRecipe(max_new_tokens=limit, verifier_seconds=60.0, **sampling),
    )


def same(one: Trajectories, other: Trajectories) -> None:
    assert one.annotations == other.annotations
    for name in Trajectories.tensor_fields():
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name
    assert one.planned.keys() == other.planned.keys()
    assert all(torch.equal(one.planned[name], other.planned[name]) for name in one.planned)


def trained(algorithm, policy: CausalLanguageModel, folder: Path, source: Experience | None = None, **training) -> Trainer:
    recipe = TrainingRecipe(**{"iterations": 5, "minibatches": 2} | training)
    rate = OptimizerRecipe(learning_rate=0.01)
    return Trainer(algorithm, policy, source or experience(), folder=folder, training=recipe, optimizer=rate, seed=3)


@pytest.mark.parametrize("rollouts", [1, 3])
def test_3_a_window_as_long_as_the_limit_gives_the_trajectories_of_ppo(policy, rollouts) -> None:
    whole, windowed = experience(), experience()
    for iteration in range(3):
        one, _ = whole.collect(policy, Demand(iteration, rollouts=rollouts))
        other, metrics = windowed.collect(policy, Demand(iteration, rollouts=rollouts, window=6))
        fresh = other.planned.pop(FRESH)
        assert torch.equal(fresh, other.mask)
        same(one, other)
        assert metrics["window/cut_fraction"] == 0.0
        assert metrics["window/per_response"] == 1.0


def test_3_and_its_weights_given_the_same_value_target(policy, tmp_path) -> None:
    other = twin(policy)
    trained(TPPO(rollouts=2, window=6, lam=1.0), policy, tmp_path / "a").train()
    trained(PPO(rollouts=2, lam=1.0, normalize_advantage=False), other, tmp_path / "b").train()
    ours, theirs = policy.module.state_dict(), other.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_5_every_token_is_trained_on_once_by_each_and_prompts_never(policy) -> None:
    source, limit = experience(prompts=5, limit=6), 6
    counts: dict[int, torch.Tensor] = {}
    said: dict[int, list[int]] = {}
    finished: list[int] = []
    for iteration in range(9):
        batch, _ = source.collect(policy, Demand(iteration, window=2))
        assert len(batch) == 5
        ready = TPPO(window=2).prepare(batch, SETTING, Planning())
        for row in range(5):
            group, mine = int(batch.group[row]), batch.mask[row]
            tokens = batch.action[row][mine].tolist()
            assert tokens[: len(said.get(group, []))] == said.get(group, [])
            said[group] = tokens
            seen = torch.stack([ready.planned[name][row] for name in (POLICY, CRITIC)]).int()
            assert not (seen * ~mine).any()
            before = counts.setdefault(group, torch.zeros(2, limit, dtype=torch.int))
            before[:, : len(tokens)] += seen[:, mine]
            ended = bool((batch.terminated | batch.truncated)[row].any())
            assert ended == bool(seen[1].any())
            if ended:
                finished.append(group)
                assert tokens[-1] % 4 == 0 or len(tokens) == limit
                assert bool(batch.truncated[row].any()) == (tokens[-1] % 4 != 0)
                assert counts[group][:, : len(tokens)].tolist() == [[1] * len(tokens)] * 2
            else:
                assert len(tokens) < limit
                assert all(t % 4 for t in tokens)
    assert len(finished) == len(set(finished)) > 8
    assert {len(said[g]) for g in finished} >= {1, 2, 6}


def test_a_window_never_chooses_more_than_it_may_and_stops_at_the_end(policy) -> None:
    source = experience(prompts=8)
    for iteration in range(6):
        batch, metrics = source.collect(policy, Demand(iteration, window=4))
        fresh = batch.planned[FRESH].sum(1)
        ended = (batch.terminated | batch.truncated).any(1)
        assert (fresh[~ended] == 4).all()
        assert ((fresh >= 1) & (fresh <= 4)).all()
        assert (batch.mask.sum(1) <= 6).all()
        assert metrics["tokens/rollout"] == fresh.sum()
        assert metrics["decode/steps"] == fresh.max()
        assert metrics["decode/utilization"] == pytest.approx(float(fresh.sum()) / (8 * float(fresh.max())))
        assert metrics["window/cut_fraction"] == float((~ended).float().mean())
        assert metrics["length/truncated_fraction"] == pytest.approx(float(batch.truncated.any(1)[ended].float().mean()))


def test_rewards_are_counted_over_finished_responses_alone(policy, tmp_path) -> None:
    seen = []

    class Watched(PromptRollouts):
        def collect(self, policy, demand):
            batch, metrics = super().collect(policy, demand)
            seen.append(batch.reward[(batch.terminated | batch.truncated).any(1)])
            return batch, metrics

    source = Watched(experience().task, UniformSampler(9), prompts=6, sampling=SamplingRecipe(max_new_tokens=6, verifier_seconds=60.0))
    rows = []
    run = trained(TPPO(window=2), policy, tmp_path, source)
    run.observer.iteration = lambda done, total, metrics: rows.append(metrics)
    run.train()
    assert [row.get("reward/mean") for row in rows] == pytest.approx([float(r.mean()) for r in seen])
    assert any(0 < float(r.mean()) < 1 for r in seen)


def test_log_probs_are_those_of_the_policy_that_wrote_each_window(policy) -> None:
    source = experience(prompts=6)
    first, _ = source.collect(policy, Demand(0, window=2))
    before = twin(policy)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    second, _ = source.collect(policy, Demand(1, window=2))
    old = second.mask & ~second.planned[FRESH]
    assert old.any()
    with torch.no_grad():
        then, now = before.evaluate(second).log_prob, policy.evaluate(second).log_prob
    torch.testing.assert_close(second.behaviour_log_prob[old], then[old], rtol=0, atol=1e-4)
    fresh = second.planned[FRESH]
    torch.testing.assert_close(second.behaviour_log_prob[fresh], now[fresh], rtol=0, atol=1e-4)
    assert (then - now)[old].abs().max() > 1e-2
    assert first.planned[FRESH].sum() == first.mask.sum()


def test_6_slots_keep_their_number_and_a_saved_state_reproduces_them(policy) -> None:
    one = experience(prompts=3)
    for iteration in range(4):
        batch, metrics = one.collect(policy, Demand(iteration, rollouts=3, window=2))
        assert len(batch) == 9
        assert len(one.slots) == round(9 * metrics["window/cut_fraction"])
    assert one.slots
    saved = io.BytesIO()
    torch.save(one.state_dict(), saved)
    saved.seek(0)
    other = experience(prompts=3)
    other.load_state_dict(torch.load(saved, weights_only=True))
    for iteration in range(4, 8):
        pair = [source.collect(policy, Demand(iteration, rollouts=3, window=2)) for source in (one, other)]
        same(pair[0][0], pair[1][0])
        assert pair[0][1] == pair[1][1]
        assert one.slots == other.slots
        assert one.waiting == other.waiting


def test_a_state_is_not_changed_by_what_comes_after(policy) -> None:
    source = experience(prompts=3)
    source.collect(policy, Demand(0, window=2))
    state = source.state_dict()
    before = copy.deepcopy(state)
    source.collect(policy, Demand(1, window=2))
    assert state == before


def test_rollouts_of_a_prompt_share_a_group_also_when_they_begin_in_different_windows(policy) -> None:
    source = experience(prompts=3)
    prompts: dict[int, set[str]] = {}
    begun: dict[int, int] = {}
    iterations: dict[int, set[int]] = {}
    for iteration in range(8):
        batch, _ = source.collect(policy, Demand(iteration, rollouts=3, window=2))
        for row, group in enumerate(batch.group.tolist()):
            prompts.setdefault(group, set()).add(batch.annotations["prompt"][row])
            if torch.equal(batch.planned[FRESH][row], batch.mask[row]):
                begun[group] = begun.get(group, 0) + 1
                iterations.setdefault(group, set()).add(iteration)
    assert all(len(asked) == 1 for asked in prompts.values())
    *before, last = (begun[group] for group in sorted(begun))  # groups are numbered as they are drawn
    assert before == [3] * len(before)
    assert last == 3 - len(source.waiting)
    assert any(len(when) > 1 for when in iterations.values())


def test_workers_ask_different_prompts_however_many_each_needs(policy) -> None:
    workers = [experience(prompts=5, items=400) for _ in range(2)]
    asked: list[set[int]] = [set(), set()]
    groups: list[set[int]] = [set(), set()]
    needed = [[], []]
    for iteration in range(6):
        for rank, source in enumerate(workers):
            batch, _ = source.collect(policy, Demand(iteration, window=2, worker=rank, workers=2))
            assert len(batch) == (3, 2)[rank]
            new = set(batch.annotations["item"]) - asked[rank]
            needed[rank].append(len(new))
            asked[rank] |= new
            groups[rank] |= set(batch.group.tolist())
    assert not asked[0] & asked[1]
    assert not groups[0] & groups[1]
    assert needed[0] != needed[1]


def test_an_exhausted_pool_begins_anew(policy) -> None:
    source = experience(prompts=4, items=2)
    asked = [i for iteration in range(6) for i in source.collect(policy, Demand(iteration, window=3))[0].annotations["item"]]
    assert set(asked) == {0, 1}


# ---------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("stop", [1, 2, 5, 8])
def test_stopping_anywhere_and_continuing_gives_the_same_weights(fixed, tmp_path, stop) -> None:
    straight = trained(TPPO(rollouts=2, window=2), twin(fixed), tmp_path / "straight")
    last = straight.train()
    first = trained(TPPO(rollouts=2, window=2), twin(fixed), tmp_path / "stopped")
    first.stop_after_steps = stop
    with pytest.raises(Stopped):
        first.train()
    second = trained(TPPO(rollouts=2, window=2), twin(fixed), tmp_path / "stopped")
    second.resume()
    row = second.train()
    expected = straight.policy.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.policy.module.state_dict().items())
    timed = ("seconds", "time/rollout", "time/update")
    assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in last.items() if k not in timed}


def test_an_interrupted_collection_is_repeated_exactly(fixed, tmp_path) -> None:
    straight = trained(TPPO(rollouts=2, window=3), twin(fixed), tmp_path / "straight")
    straight.train()
    first = trained(TPPO(rollouts=2, window=3), twin(fixed), tmp_path / "stopped")
    should_stop, asked = first.feed.demand, []

    def demand(iteration: int) -> Demand:
        def stop() -> bool:
            asked.append(iteration)
            return asked.count(2) == 2  # in the middle of the third collection

        return dataclasses.replace(should_stop(iteration), should_stop=stop)

    first.feed.demand = demand
    with pytest.raises(Stopped):
        first.train()
    assert first.iteration == 2
    second = trained(TPPO(rollouts=2, window=3), twin(fixed), tmp_path / "stopped")
    second.resume()
    assert second.experience.slots
    second.train()
    expected = straight.policy.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.policy.module.state_dict().items())


# ---------------------------------------------------------------------------------------------------- what moves and what does not


class Scripted(Experience):
    """The answers of a string problem; in iterations listed in `cut` none of them has ended."""

    max_new_tokens = 3

    def __init__(self, cut: tuple[int, ...]) -> None:
        self.cut = cut

    def collect(self, policy, demand):
        problem = StringProblem(vocabulary=3, length=3)
        batch = problem.batch([(i % 2, (i % 3, (i + demand.iteration) % 3, 1)) for i in range(6)], list(range(6)))
        batch.reward = torch.arange(6).double() / 6
        if demand.iteration in self.cut:
            batch.terminated = torch.zeros_like(batch.mask)
        return batch, {}


def history(algorithm: TPPO, folder: Path, cut: tuple[int, ...], **training) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and values before, and after each iteration."""
    policy = BigramPolicy(3, seed=1)
    with torch.no_grad():
        policy.value.copy_(torch.tensor([0.3, -0.2, 0.5]))
    run = trained(algorithm, policy, folder, Scripted(cut), **training)
    seen = [(policy.logits.detach().clone(), policy.value.detach().clone())]
    run.observer.iteration = lambda *told: seen.append((policy.logits.detach().clone(), policy.value.detach().clone()))
    run.train()
    return seen


def test_a_step_in_which_nothing_finished_leaves_the_critic_as_it_was(tmp_path) -> None:
    """Bit for bit, although Adam's momentum from the iterations before is not 0."""
    seen = history(TPPO(), tmp_path, cut=(2, 3))
    moved = [[not torch.equal(a[i], b[i]) for i in (0, 1)] for a, b in itertools.pairwise(seen)]
    assert moved == [[True, True], [True, True], [True, False], [True, False], [True, True]]


def test_the_critic_alone_is_trained_during_the_warm_up(tmp_path) -> None:
    seen = history(TPPO(value_warmup=3), tmp_path, cut=())
    moved = [[not torch.equal(a[i], b[i]) for i in (0, 1)] for a, b in itertools.pairwise(seen)]
    assert moved == [[False, True], [False, True], [True, True], [True, True], [True, True]]  # of 2 optimiser steps each


def test_zero_values_and_no_end_give_no_update_at_all(policy, tmp_path) -> None:
    """A new critic is 0 everywhere: safe, not harmful."""
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    policy.model.generation_config.eos_token_id = policy.tokenizer.eos_token_id
    run = trained(TPPO(window=1), policy, tmp_path, experience(limit=20), iterations=2)
    row = run.train()
    assert row["window/cut_fraction"] == 1.0
    assert row["steps/skipped_empty"] == 4
    assert "reward/mean" not in row
    assert all(torch.equal(value, before[name]) for name, value in policy.module.state_dict().items())


def test_a_parameter_without_gradient_on_every_worker_stays_without(monkeypatch) -> None:
    asked = []

    def other_worker(tensor: torch.Tensor) -> None:
        """Has a gradient of 1 for the first parameter and none for the others."""
        asked.append(tensor.shape)
        tensor += torch.tensor([1.0, 0.0, 0.0]) if len(asked) == 1 else (1.0 if len(asked) == 2 else 0.0)

    monkeypatch.setattr(torch.distributed, "all_reduce", other_worker)
    theirs, ours, nobodys = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 3, 4))
    ours.grad = torch.full((3,), 5.0)
    Workers(0, 2).sum_gradients([theirs, ours, nobodys])
    assert asked == [(3,), (2,), (3,)]
    assert theirs.grad.tolist() == [1.0, 1.0]
    assert ours.grad.tolist() == [5.0, 5.0, 5.0]
    assert nobodys.grad is None


def test_a_value_loss_without_values_is_refused_only_where_a_token_counts() -> None:
    batch, _, log_prob, _ = mixed()
    bare = Evaluation(log_prob)
    with pytest.raises(InputError, match="ValueLoss needs a policy with a value head"):
        loss_of(TPPO(), batch, bare)
    nothing = torch.zeros_like(batch.mask)
    assert float(ValueLoss(tokens=CRITIC)(bare, batch.with_planned(tppo__critic=nothing)).detach()) == 0.0


# ---------------------------------------------------------------------------------------------------- the engine


def test_rows_of_one_batch_have_limits_of_their_own(policy) -> None:
    engine = ContinuousBatch(policy.model, max_new_tokens=5, end_tokens=[], pad_token=1, batch_rows=2)
    for request, limit in enumerate([1, 3, None, 2]):
        engine.add([3, 4, 5][: request % 3 + 1], [request], limit)
    done = engine.run()
    assert [len(done[i].tokens) for i in range(4)] == [1, 3, 5, 2]
    assert not any(c.ended for c in done.values())
    with pytest.raises(InputError, match=r"limit of a row is 0 new tokens; accepted: 1 or more"):
        engine.add([3], [9], 0)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"window": 0}, r"algorithm.window is 0; accepted: 1 or more"),
        ({"value_warmup": -1}, r"algorithm.value_warmup is -1; accepted: 0 or more"),
        ({"rollouts": 0}, r"algorithm.rollouts is 0; accepted for tppo: 1 or more"),
        ({"lam": 1.5}, r"algorithm.lam is 1.5; accepted: a number in \[0, 1\]"),
    ],
)
def test_bad_settings(setting, message) -> None:
    with pytest.raises(InputError, match=message):
        TPPO(**setting).terms(SETTING)


def test_an_unknown_bootstrap() -> None:
    with pytest.raises((InputError, TypeError), match="'copy'"):  # the type checker of the tests may be the first to refuse
        GAE(bootstrap="copy")


def test_values_that_are_not_finite_or_of_another_length() -> None:
    with pytest.raises(InputError, match=r"value is nan at row 0, position 3; accepted: finite numbers"):
        EGAE(response([0.1, 0.2, float("nan")]))
    with pytest.raises(InputError, match=r"value is \[1, 4\] but must be \[1, 5\]"):
        response(VALUES).replace(value=torch.zeros(1, 4))


def test_a_window_longer_than_the_limit_is_warned_of(policy) -> None:
    with pytest.warns(UserWarning, match=r"window of 9 new tokens is longer than rollouts.max_new_tokens \(6\)"):
        experience().collect(policy, Demand(0, window=9))


def test_a_worker_without_slots(policy) -> None:
    with pytest.raises(InputError, match=r"training.prompts is 1: a worker has no response to work on; accepted: 2 or more"):
        experience(prompts=1).collect(policy, Demand(0, window=2, worker=1, workers=2))


def test_a_policy_that_does_not_generate(policy) -> None:
    from unipg.policies.reward_model import SequenceScorer, build_reward_model

    scorer = SequenceScorer(build_reward_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), policy.tokenizer), policy.tokenizer)
    with pytest.raises(InputError, match=r"a window needs a policy that generates token by token, not SequenceScorer"):
        experience().collect(scorer, Demand(0, window=2))


@dataclasses.dataclass(frozen=True)
class WindowedHPT(HPT):
    @property
    def window(self) -> int:
        return 2


@dataclasses.dataclass(frozen=True)
class ToppedUp(TPPO):
    @property
    def most_sampling_rounds(self) -> int:
        return 2


@pytest.mark.parametrize("algorithm", [WindowedHPT(), ToppedUp(window=2)])
def test_demonstrations_and_dynamic_sampling_are_refused_before_anything_runs(policy, tmp_path, algorithm) -> None:
    with pytest.raises(InputError, match=r"algorithm.window is 2: only rollouts of a language model, without tools"):
        trained(algorithm, policy, tmp_path)


def test_tools_and_other_experiences_are_refused_before_anything_runs(policy, tmp_path) -> None:
    source = experience()
    source.tools = {"search": None}
    for refused, who in ((source, policy), (StringExperience(StringProblem()), BigramPolicy(3))):
        with pytest.raises(InputError, match=r"algorithm.window is 2: .*accepted here: null"):
            trained(TPPO(window=2), who, tmp_path, refused)
    assert GRPO().window is None
