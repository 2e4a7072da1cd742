"""Closed-form oracles of CAPO (arXiv 2510.00819), its model of the last layer against autograd and torch's own Adam, and bad input."""

import dataclasses
import itertools
import math
import warnings

import pytest
import torch

from unipg import Evaluation, InputError, Planning, Progress, Trajectories
from unipg.algorithms import Setting, registered
from unipg.algorithms.language.capo import CAPO, KEPT, ROWS, STATE
from unipg.estimator import curvature
from unipg.estimator.curvature import ADVANTAGE, AdamModel, LastLayerStep
from unipg.estimator.likelihoods import Positions
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.lab.diff import measure
from unipg.lab.gradients import selected
from unipg.laws import checks
from unipg.laws.cases import VOCABULARY, random_batch
from unipg.policies.actions import BoxActions, DiscreteActions
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model
from unipg.training import Trainer, TrainingRecipe
from unipg.training.optimization import OptimizerRecipe

BASES = {"grpo": registered()["grpo"](), "dr_grpo": registered()["dr_grpo"](), "reinforce": registered()["reinforce"](signed=False)}
DOUBLE = torch.float64


def positions(weight: torch.Tensor, hidden: torch.Tensor, action: list[int], advantage: list[float], temperature: float = 1.0) -> Positions:
    """Positions of the policy softmax(hidden weightᵀ / temperature)."""
    planned = {ADVANTAGE: torch.tensor(advantage, dtype=DOUBLE)}
    key = torch.zeros(len(action), dtype=torch.long)
    return Positions(hidden @ weight.T / temperature, torch.tensor(action), key, hidden, weight, planned, temperature)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def trained_adam(seed: int, vocabulary: int, width: int, steps: int = 4) -> tuple[AdamModel, torch.optim.Adam, torch.nn.Parameter]:
    """The model, and torch's own Adam, after the same gradients."""
    weight = torch.nn.Parameter(torch.zeros(vocabulary, width, dtype=DOUBLE))
    real, model = torch.optim.Adam([weight], lr=1.0), AdamModel()
    for number in range(steps):
        weight.grad = drawn(seed + number, vocabulary, width)
        model = model.learnt(weight.grad, torch.ones(vocabulary, dtype=torch.bool))
        real.step()
    return model, real, weight


def close(found: torch.Tensor, expected: torch.Tensor | float, atol: float = 1e-14) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-12, atol=atol)


# ---------------------------------------------------------------------------------------------------- 1. autograd


@pytest.mark.parametrize("model", ["sgd", "adam"])
@pytest.mark.parametrize("seed", range(5))
def test_1_gradient_hessian_and_m_h_are_those_of_autograd(seed, model) -> None:
    weight, h, a, advantage, rate = drawn(seed, 5, 3), drawn(seed + 50, 3), seed % 5, 1.3 - seed, 0.7
    old = torch.softmax(weight @ h, 0)

    def objective(w: torch.Tensor) -> torch.Tensor:
        return advantage * torch.softmax(w @ h, 0)[a] / old[a]

    gradient = torch.autograd.functional.jacobian(objective, weight)
    hessian = torch.autograd.functional.hessian(objective, weight)
    v = torch.eye(5, dtype=DOUBLE)[a] - old
    fisher = torch.diag(old) - torch.outer(old, old)
    close(gradient, advantage * torch.outer(v, h), 1e-15)
    close(hessian, advantage * torch.einsum("ij,k,l->ikjl", torch.outer(v, v) - fisher, h, h), 1e-15)
    of_log = torch.autograd.functional.hessian(lambda w: advantage * torch.log_softmax(w @ h, 0)[a], weight)
    close(of_log, -advantage * torch.einsum("ij,k,l->ikjl", fisher, h, h), 1e-15)
    adam, step = None, gradient
    if model == "adam":  # what torch's own Adam does to the gradient
        adam, real, parameter = trained_adam(seed, 5, 3)
        before, parameter.grad = parameter.detach().clone(), gradient
        real.step()
        step = before - parameter.detach()
    found = LastLayerStep(rate, adam)(positions(weight, h[None], [a], [advantage]))
    exact = rate * (gradient * step).sum() + 0.5 * rate**2 * torch.einsum("ik,ikjl,jl->", step, hessian, step)
    close(found["predicted_gain"], exact)
    u = step @ h
    close(found["predicted_shift"], 0.5 * rate**2 * (v @ u) ** 2)
    close(found["expected_shift"], 0.5 * rate**2 * (u @ fisher @ u))


def test_adam_without_a_state_steps_along_the_gradient() -> None:
    at = positions(drawn(0, 5, 3), drawn(1, 6, 3), [0, 1, 2, 3, 4, 0], [1.0, -1.0, 0.5, 0.0, 2.0, 1.0])
    plain, fresh = LastLayerStep(0.1)(at), LastLayerStep(0.1, AdamModel())(at)
    assert all(torch.equal(plain[name], fresh[name]) for name in plain)


def test_chunks_and_blocks_change_nothing(monkeypatch) -> None:
    adam, _, _ = trained_adam(3, 7, 5)
    weight, hidden = drawn(0, 7, 5), drawn(1, 11, 5)
    action, advantage = [i % 7 for i in range(11)], [(-1.0) ** i * i / 5 for i in range(11)]
    for support in (None, 3):
        whole = LastLayerStep(0.1, adam, support, largest_shift=0.02)
        expected = whole(positions(weight, hidden, action, advantage))
        monkeypatch.setattr(curvature, "BLOCK_ELEMENTS", 12)
        cut = LastLayerStep(0.1, adam, support, largest_shift=0.02)
        parts = [cut(positions(weight, hidden[i : i + 4], action[i : i + 4], advantage[i : i + 4])) for i in (0, 4, 8)]
        monkeypatch.undo()
        for name, values in expected.items():
            close(torch.cat([part[name] for part in parts]), values)
        for name, sums in whole.gathered.items():
            close(cut.gathered[name], sums)
            assert sums.abs().sum() > 0


# ---------------------------------------------------------------------------------------------------- 2, 3, 4. what m_F is


def test_2_the_divergence_is_the_expected_shift_to_second_order() -> None:
    weight, h, direction = drawn(0, 5, 3), drawn(1, 3), drawn(2, 5, 3)
    pi = torch.softmax(weight @ h, 0)
    u = direction @ h
    quadratic = 0.5 * (pi @ u**2 - (pi @ u) ** 2)
    errors = []
    for eps in (1e-1, 1e-2, 1e-3):
        moved = torch.log_softmax((weight + eps * direction) @ h, 0)
        errors.append(abs(float((pi @ (pi.log() - moved)) / eps**2 / quadratic) - 1))
    assert errors[0] < 0.1
    for larger, smaller in itertools.pairwise(errors):
        assert 8 < larger / smaller < 12.5


def test_3_the_expectation_of_m_f_over_the_policys_actions_is_exact() -> None:
    u = drawn(3, 6)

    class Given(AdamModel):
        def against(self, slope, hidden, rows):
            return u.expand_as(slope)

    weight, h = drawn(0, 6, 4), drawn(1, 4)
    found = LastLayerStep(0.3, Given())(positions(weight, h.expand(6, 4), list(range(6)), [1.0] * 6))
    close((torch.softmax(weight @ h, 0) * found["predicted_shift"]).sum(), found["expected_shift"][0])


def test_4_by_hand() -> None:
    found = LastLayerStep(0.1)(positions(torch.zeros(2, 1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE), [0], [1.0]))
    close(found["predicted_gain"], 0.05)
    close(found["predicted_shift"], 0.00125)


def test_4_closed_form_of_plain_gradient_ascent() -> None:
    weight, hidden = drawn(0, 5, 3), drawn(1, 4, 3)
    action, advantage, rate = [0, 3, 3, 1], [1.0, -2.0, 0.3, 0.7], 0.2
    v = torch.eye(5, dtype=DOUBLE)[action] - torch.softmax(hidden @ weight.T, 1)
    expected = 0.5 * (rate * torch.tensor(advantage, dtype=DOUBLE) * v.square().sum(1) * hidden.square().sum(1)) ** 2
    close(LastLayerStep(rate)(positions(weight, hidden, action, advantage))["predicted_shift"], expected)


# ---------------------------------------------------------------------------------------------------- 5. without thresholds


@pytest.mark.parametrize("deltas", [(0.0, 0.0), (math.inf, math.inf), (0.0, math.inf)])
@pytest.mark.parametrize("base", BASES)
def test_5_thresholds_off_or_infinite_are_the_base_bit_for_bit(base, deltas) -> None:
    capo = CAPO(base=base, delta_f=deltas[0], delta_h=deltas[1])
    batch, policy = random_batch(capo, 4), BigramPolicy(VOCABULARY, 4)
    expected = checks.step(
        *(checks.prepared(BASES[base], batch)[i] if i != 1 else policy for i in (0, 1)), checks.prepared(BASES[base], batch)[1]
    )
    objective, ready = checks.prepared(capo, batch, policy=policy)
    assert expected[1:].norm() > 1e-3
    assert torch.equal(checks.step(objective, policy, ready), expected)


def test_5_no_test_costs_no_pass() -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("the policy was run")

    batch = random_batch(CAPO())
    assert CAPO(delta_f=0.0, delta_h=0.0).select(batch, Planning(), refuse) is batch


PROBLEM = StringProblem(vocabulary=4, prompts=(0, 1, 2), length=2)


def trained(algorithm, folder, iterations=4, rate=0.05, optimizer=None, **recipe):
    policy = BigramPolicy(4, seed=1)
    trainer = Trainer(
        algorithm,
        policy,
        StringExperience(PROBLEM),
        folder=folder,
        training=TrainingRecipe(iterations=iterations, **recipe),
        optimizer=optimizer or OptimizerRecipe(learning_rate=rate),
        seed=7,
    )
    last = trainer.train()
    return policy.logits.detach(), last, trainer


@pytest.mark.parametrize("base", BASES)
def test_5_training_with_infinite_thresholds_gives_the_weights_of_the_base(base, tmp_path) -> None:
    plain, *_ = trained(BASES[base], tmp_path / "base", minibatches=2, epochs=2)
    same, last, _ = trained(CAPO(base=base, delta_f=math.inf, delta_h=math.inf), tmp_path / "capo", minibatches=2, epochs=2)
    assert torch.equal(same, plain)
    assert last["curvature/rejected"] == 0
    assert not torch.equal(trained(CAPO(base=base, reject=0.2), tmp_path / "cut", minibatches=2, epochs=2)[0], plain)


# ---------------------------------------------------------------------------------------------------- 6, 7. which tokens count


def lines(rewards: list[list[float]], length: int = 2) -> Trajectories:
    """Groups of rows of a prompt token 0 and `length` tokens 1, 2 …"""
    rows = sum(map(len, rewards))
    action = (torch.arange(length + 1).unsqueeze(0) + torch.arange(rows).unsqueeze(1)) % VOCABULARY
    return Trajectories(
        action=action,
        mask=(torch.arange(length + 1) > 0).expand(rows, length + 1).clone(),
        group=torch.tensor([g for g, group in enumerate(rewards) for _ in group]),
        reward=torch.tensor([r for group in rewards for r in group], dtype=DOUBLE),
    )


def at(rate: float, **memory) -> Planning:
    return Planning(Progress(0, 10, rate), memory=memory)


def chosen(capo: CAPO, batch: Trajectories, policy: BigramPolicy, planning: Planning) -> Trajectories:
    objective = capo.terms(Setting(6))
    return selected(capo, policy, objective.prepare(capo.prepare(batch, Setting(6), planning), planning), planning)


def test_6_tokens_without_advantage_have_no_step_and_are_kept() -> None:
    weight, hidden = drawn(0, 5, 3), drawn(1, 2, 3)
    plain = LastLayerStep(0.5)(positions(weight, hidden, [0, 1], [0.0, 0.0]))
    assert all(bool((values == 0).all()) for values in plain.values())
    reading = LastLayerStep(0.5, largest_shift=1e-300, largest_gain=1e-300)
    assert all(bool(passed.all()) for passed in reading.keeps(plain["predicted_gain"], plain["predicted_shift"]))
    adam, _, _ = trained_adam(0, 5, 3)
    momentum = LastLayerStep(0.5, adam)(positions(weight, hidden, [0, 1], [0.0, 0.0]))
    assert (momentum["predicted_gain"] == 0).all()
    assert (momentum["predicted_shift"] > 0).all()  # the others' momentum


def test_6_zero_advantages_matter_only_through_the_count_of_tokens() -> None:
    """A group without signal beside one with: it is kept, and counts as rows."""
    capo = CAPO(model="sgd", delta_f=1e-30, delta_h=0.0, patience=9)
    ready = chosen(capo, lines([[1, 0], [1, 1]]), BigramPolicy(VOCABULARY, 0), at(1.0))
    assert ready.planned[KEPT].tolist() == [[False] * 3] * 2 + [[False, True, True]] * 2
    assert ready.planned[ROWS].tolist() == [0.5] * 4


def test_7_everything_rejected_is_a_loss_of_exactly_0() -> None:
    capo, policy = CAPO(model="sgd", delta_f=1e-30, delta_h=0.0), BigramPolicy(VOCABULARY, 0)
    batch = random_batch(capo).replace(reward=torch.arange(len(random_batch(capo)), dtype=DOUBLE))
    ready = chosen(capo, batch, policy, at(1.0))
    objective = capo.terms(Setting(6))
    assert not ready.planned[KEPT].any()
    assert not objective.touched_rows(ready).any()
    assert torch.equal(checks.step(objective, policy, ready), torch.zeros(1 + VOCABULARY**2 + VOCABULARY, dtype=DOUBLE))


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [[0, 1 / 4, 0], [0, 1 / 8, 1 / 8], [0, 0, 0], [0, 1 / 8, 1 / 8]]),
        ({"base": "dr_grpo"}, [[0, 1 / 24, 0], [0, 1 / 24, 1 / 24], [0, 0, 0], [0, 1 / 24, 1 / 24]]),
        ({"base": "reinforce"}, [[0, 1 / 4, 0], [0, 1 / 4, 1 / 4], [0, 0, 0], [0, 1 / 4, 1 / 4]]),
        ({"aggregate": "token_mean"}, [[0, 1 / 5, 0], [0, 1 / 5, 1 / 5], [0, 0, 0], [0, 1 / 5, 1 / 5]]),
    ],
    ids=["sequence mean", "constant length 6", "sequence sum", "token mean"],
)
def test_kept_tokens_are_counted_and_rows_without_any_stay_rows(settings, weights) -> None:
    """Row 0 keeps one of two tokens, which has the row's whole weight; row 2 keeps none, and is still a fourth of the mean."""
    capo = CAPO(model="sgd", delta_f=1.0, delta_h=0.0, **settings)
    objective = capo.terms(Setting(6))
    batch = lines([[1, 0], [1, 0]])
    ready = objective.prepare(capo.prepare(batch, Setting(6), Planning()))
    kept = batch.mask.clone()
    kept[0, 2] = kept[2, 1] = kept[2, 2] = False

    def some(rows, *, readings):
        (reading,) = readings
        shift = torch.where(kept, 0.5, 2.0).double()
        return Evaluation(shift, read={reading: {"predicted_gain": 0 * shift, "predicted_shift": shift}})

    ready = capo.select(ready, at(0.1), some)
    assert torch.equal(ready.planned[KEPT], kept)
    close(objective.plan(ready).planned["policy_gradient/weight"], torch.tensor(weights, dtype=DOUBLE))


def test_rejection_is_monotonous_in_the_threshold_and_bounds_what_is_kept() -> None:
    policy, batch = BigramPolicy(VOCABULARY, 2), random_batch(CAPO(), 2, groups=8)
    state = {STATE: {"adam": dict(zip(("steps", "momentum", "square"), (3, drawn(0, 5, 5), drawn(1, 5, 5) ** 2), strict=True))}}
    counts, largest = [], []
    for delta in (3e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1.0):
        planning = at(0.1, **state)
        ready = chosen(CAPO(delta_f=delta, delta_h=0.0), batch, policy, planning)
        told = planning.memory[STATE]["told"][0]
        counts.append(int((batch.mask & ~ready.planned[KEPT]).sum()))
        largest.append(told.get("shift_kept_max", 0.0))
        assert largest[-1] < delta
        assert told["rejected"] == told["rejected_by_shift"] == counts[-1] / int(batch.mask.sum())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[-1] == 0


def test_the_band_of_m_h() -> None:
    gain = torch.tensor([-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2])
    shift = torch.zeros(7)
    symmetric = LastLayerStep(1.0, largest_gain=0.1).keeps(gain, shift)[1]
    assert symmetric.tolist() == [False, False, True, True, True, False, False]
    assert LastLayerStep(1.0, largest_gain=0.1, symmetric=False).keeps(gain, shift)[1].tolist() == [False] * 3 + [True] * 2 + [False] * 2
    assert LastLayerStep(1.0).keeps(gain, shift)[1].all()
    strict = LastLayerStep(1.0, largest_shift=0.1).keeps(shift, torch.tensor([0.0, 0.0999, 0.1, math.inf, math.nan, 0.2, 0.0]))[0]
    assert strict.tolist() == [True, True, False, False, False, False, True]


def test_a_learning_rate_of_0_keeps_everything() -> None:
    for capo in (CAPO(), CAPO(delta_f=1e-9, delta_h=1e-9), CAPO(delta_f=1e-9, delta_h=1e-9, symmetric=False)):
        batch = random_batch(capo)
        assert torch.equal(chosen(capo, batch, BigramPolicy(VOCABULARY), at(0.0)).planned[KEPT], batch.mask)


# ---------------------------------------------------------------------------------------------------- thresholds from the update before


@pytest.mark.parametrize("reject", [0.0, 0.1, 0.3])
def test_thresholds_of_null_reject_their_share(reject) -> None:
    """Of the batch itself at the start; later of the batch before, in proportion to the learning rate."""
    capo = CAPO(model="sgd", delta_h=0.0, reject=reject)
    policy, batch, planning = BigramPolicy(VOCABULARY, 5), random_batch(capo, 5, groups=12), at(0.1)
    carrying = capo.terms(Setting(6)).prepare(batch).planned[ADVANTAGE] != 0
    first = chosen(capo, batch, policy, planning).planned[KEPT]
    count = int((carrying & batch.mask).sum())
    assert 0 <= int((batch.mask & ~first).sum()) <= reject * count
    assert int((batch.mask & ~first).sum()) > reject * count - 6  # equal values stay together
    assert torch.equal(chosen(capo, batch, policy, Planning(Progress(1, 10, 0.7), memory=planning.memory)).planned[KEPT], first)
    told = planning.memory[STATE]["told"]
    assert told[1]["delta_f"] == pytest.approx(49 * told[0]["delta_f"])


def test_a_batch_without_signal_changes_no_threshold() -> None:
    capo, policy, planning = CAPO(model="sgd", reject=0.2), BigramPolicy(VOCABULARY, 5), at(0.1)
    chosen(capo, lines([[1, 1], [0, 0]]), policy, planning)
    assert "delta_f" not in planning.memory[STATE]["told"][0]
    chosen(capo, lines([[1, 0], [0, 1]]), policy, planning)
    usual = planning.memory[STATE]["usual"]
    chosen(capo, lines([[1, 1], [0, 0]]), policy, planning)
    assert planning.memory[STATE]["usual"] == usual
    assert all(value > 0 for value in usual.values())


def test_tokens_that_the_policy_is_certain_of_are_kept() -> None:
    """All have exactly no step, and so would be the threshold."""
    policy = BigramPolicy(VOCABULARY)
    with torch.no_grad():
        policy.logits.copy_(1e4 * torch.roll(torch.eye(VOCABULARY, dtype=DOUBLE), 1, 1))  # what `lines` holds
    batch = lines([[1, 0]])
    capo, planning = CAPO(model="sgd"), at(0.1)
    assert torch.equal(chosen(capo, batch, policy, planning).planned[KEPT], batch.mask)
    assert planning.memory[STATE]["usual"] == {"gain": 0.0, "shift": 0.0}


# ---------------------------------------------------------------------------------------------------- the optimiser model


@pytest.mark.parametrize("support", [None, 2])
def test_the_state_learns_the_mean_gradient_of_kept_tokens_by_row(support) -> None:
    """Against plain loops: each row of the weight is averaged over the kept positions that have it in their support."""
    weight, hidden = drawn(0, 5, 3), drawn(1, 8, 3)
    action, advantage = [0, 1, 2, 3, 0, 1, 2, 3], [1.0, -1.0, 0.5, 2.0, 0.2, 3.0, -0.7, 0.1]
    reading = LastLayerStep(0.1, AdamModel(), support, largest_shift=0.005)
    kept = reading.keeps(*(reading(positions(weight, hidden, action, advantage))[f"predicted_{n}"] for n in ("gain", "shift")))[0]
    reading = LastLayerStep(0.1, AdamModel(), support, largest_shift=0.005)
    reading(positions(weight, hidden, action, advantage))
    assert 0 < int(kept.sum()) < 8
    sums, counts = torch.zeros(5, 3, dtype=DOUBLE), torch.zeros(5, dtype=DOUBLE)
    for n in range(8):
        logits = hidden[n] @ weight.T
        rows = list(range(5)) if support is None else sorted({*logits.topk(support).indices.tolist(), action[n]})
        pi = torch.softmax(logits[rows], 0)
        for place, row in enumerate(rows):
            if kept[n]:
                sums[row] += advantage[n] * (float(row == action[n]) - pi[place]) * hidden[n]
                counts[row] += 1
    mean = sums / counts.clamp_min(1).unsqueeze(1)
    model = reading.learnt()
    assert model.steps == 1
    assert model.momentum is not None
    assert model.square is not None
    close(model.momentum, 0.1 * mean)
    close(model.square, 0.001 * mean**2)
    # two workers, one of them without tokens
    idle = LastLayerStep(0.1, AdamModel(), support)
    kinds = [(torch.Size([5, 3]), DOUBLE), None]
    both = idle.learnt(lambda t: t + reading.gathered["gradient" if t.ndim == 2 else "positions"], lambda value: kinds)
    close(both.momentum, model.momentum)
    again = LastLayerStep(0.1, model, support, largest_shift=1e-30)
    again(positions(weight, hidden, action, advantage))
    assert again.learnt() is model  # nothing passed


def test_rows_that_were_not_seen_keep_their_state() -> None:
    model = AdamModel().learnt(torch.ones(2, 1, dtype=DOUBLE), torch.tensor([True, True]))
    later = model.learnt(torch.ones(2, 1, dtype=DOUBLE), torch.tensor([True, False]))
    close(later.momentum, torch.tensor([[0.19], [0.1]], dtype=DOUBLE))
    close(later.square, torch.tensor([[0.001999], [0.001]], dtype=DOUBLE))
    assert later.steps == 2


def test_a_support_is_the_largest_logits_and_the_sampled_token() -> None:
    weight, hidden = drawn(0, 7, 4), drawn(1, 7, 4)
    adam, _, _ = trained_adam(5, 7, 4)
    action, advantage = list(range(7)), [1.0, -1.0, 0.5, 2.0, 0.2, 3.0, -0.7]
    at_all = positions(weight, hidden, action, advantage)
    full, cut = LastLayerStep(0.1, adam), LastLayerStep(0.1, adam, 7)
    for name, values in full(at_all).items():
        close(cut(at_all)[name], values)
    found = LastLayerStep(0.1, adam, 3)(at_all)
    outside = 0
    for n in range(7):
        largest = (hidden[n] @ weight.T).topk(3).indices.tolist()
        outside += n not in largest
        rows = sorted({*largest, n})
        part = AdamModel(steps=adam.steps, momentum=adam.momentum[rows], square=adam.square[rows])
        small = LastLayerStep(0.1, part)(positions(weight[rows], hidden[n : n + 1], [rows.index(n)], advantage[n : n + 1]))
        for name, values in small.items():
            close(found[name][n : n + 1], values)
    assert 0 < outside < 7


# ---------------------------------------------------------------------------------------------------- policies


class Tokenizer:
    eos_token_id, pad_token_id = 1, 0

    def __len__(self) -> int:
        return 11


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("chunk", [None, 20])
def test_a_language_models_states_are_those_that_made_the_logits(temperature, chunk, monkeypatch) -> None:
    """m_F = (lr A |∇_W log pi|²)² / 2 under plain gradient ascent, with autograd's gradient in the head of the very model."""
    if chunk is not None:
        from unipg.estimator import likelihoods

        monkeypatch.setattr(likelihoods, "CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    model = build_model(ScratchModel("qwen3", 16, 1, 2, 32, 64), Tokenizer()).double().eval()
    model.lm_head.weight = torch.nn.Parameter(0.5 * drawn(9, 11, 16))  # not tied to the embeddings
    policy = CausalLanguageModel(model, Tokenizer(), temperature=temperature)
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 1, 1]], dtype=torch.bool)
    present = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    batch = Trajectories(action=torch.randint(2, 11, (2, 5), generator=torch.Generator().manual_seed(1)), mask=mask, present=present)
    advantage = drawn(3, 2, 5)
    batch = batch.with_planned(**{ADVANTAGE: advantage, "position_key": torch.zeros(2, 5, dtype=torch.long)})
    reading = LastLayerStep(0.3)
    with torch.no_grad():
        found = policy.evaluate(batch, readings=[reading]).reading(reading)["predicted_shift"]
    log_prob = policy.evaluate(batch).log_prob
    expected = torch.zeros(2, 5, dtype=DOUBLE)
    for row, step in mask.nonzero().tolist():
        (slope,) = torch.autograd.grad(log_prob[row, step], model.lm_head.weight, retain_graph=True)
        expected[row, step] = 0.5 * (0.3 * advantage[row, step] * slope.square().sum()) ** 2
    close(found, expected)
    assert (found[mask] > 0).all()


def test_a_controllers_last_layer_has_a_bias_too() -> None:
    policy = ActorCritic((3,), DiscreteActions(4), hidden=(6,), seed=1)
    policy.module.double()
    mask = torch.tensor([[True], [True], [False], [True]])
    observation = drawn(0, 4, 1, 3)
    observation[2] = math.nan
    advantage = drawn(1, 4, 1)
    batch = Trajectories(action=torch.tensor([[0], [3], [9], [1]]), mask=mask, observation=observation)
    batch = batch.with_planned(**{ADVANTAGE: advantage, "position_key": torch.zeros(4, 1, dtype=torch.long)})
    reading = LastLayerStep(0.3)
    found = policy.evaluate(batch, readings=[reading]).reading(reading)["predicted_shift"]
    log_prob, last = policy.evaluate(batch).log_prob, policy.module.actor.layers[-1]
    for row in (0, 1, 3):
        slopes = torch.autograd.grad(log_prob[row, 0], [last.weight, last.bias], retain_graph=True)
        close(found[row, 0], 0.5 * (0.3 * advantage[row, 0] * sum(s.square().sum() for s in slopes)) ** 2)
    assert found[2] == 0


# ---------------------------------------------------------------------------------------------------- training


def test_a_deadlock_is_an_error(tmp_path) -> None:
    stuck = CAPO(delta_f=1e-12, delta_h=0.0)
    with pytest.raises(InputError, match=r"rejected every token with an advantage in 3 updates in a row: their m_F .* delta_f is 1e-12"):
        trained(stuck, tmp_path / "stuck", 9)
    logits, last, trainer = trained(dataclasses.replace(stuck, patience=10), tmp_path / "patient", 9)
    assert torch.equal(logits, BigramPolicy(4, seed=1).logits.detach())  # training silently stands still, which is why it is an error
    assert trainer.learner.skipped["empty"] > 0
    assert last["curvature/rejected"] > 0


def test_the_count_of_a_deadlock_starts_again() -> None:
    capo, policy = CAPO(model="sgd", delta_f=1e-12, delta_h=0.0), BigramPolicy(VOCABULARY, 0)
    planning = at(0.1)
    for rewards in ([[1, 0]], [[1, 0]], [[1, 1]], [[1, 0]], [[1, 0]]):
        chosen(capo, lines(rewards), policy, planning)
    with pytest.raises(InputError, match="3 updates in a row"):
        chosen(capo, lines([[1, 0]]), policy, planning)


def test_metrics(tmp_path) -> None:
    _, last, trainer = trained(CAPO(reject=0.2), tmp_path, 6, minibatches=2)
    names = ("rejected", "rejected_by_shift", "rejected_by_gain", "shift_q50", "shift_kept_max", "gain_kept_max", "delta_f", "delta_h")
    assert {f"curvature/{name}" for name in names} <= last.keys()
    assert 0 < last["curvature/rejected"] < 0.5
    assert last["curvature/rejected"] <= last["curvature/rejected_by_shift"] + last["curvature/rejected_by_gain"] + 1e-9
    assert last["curvature/shift_q50"] <= last["curvature/shift_q99"]
    assert trainer.learner.memory[STATE]["told"] == []
    assert trainer.learner.memory[STATE]["adam"]["steps"] == 12


def test_a_model_of_another_optimiser_gets_one_warning(tmp_path) -> None:
    with pytest.warns(UserWarning, match=r"CAPO models sgd .* but the run's optimiser is adamw") as caught:
        trained(CAPO(model="sgd"), tmp_path / "sgd")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"eps 1e-05\), but the run's optimiser is adamw \(\(0.9, 0.999\), 1e-08\)"):
        trained(CAPO(eps=1e-5), tmp_path / "eps")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(CAPO(model="sgd"), tmp_path / "same", optimizer=OptimizerRecipe(kind="sgd", learning_rate=0.5))


# ---------------------------------------------------------------------------------------------------- what kept tokens may cost


def arms(seed: int, count: int, rollouts: int) -> tuple[StringProblem, BigramPolicy, Trajectories]:
    """A bandit with rewards in [0, 1], a policy and rollouts of it."""
    draw = torch.Generator().manual_seed(seed)
    reward = torch.rand(count, dtype=DOUBLE, generator=draw).tolist()
    problem = StringProblem(vocabulary=count, prompts=(0,), length=1, reward=lambda prompt, answer: reward[answer[0]])
    policy = BigramPolicy(count, seed, scale=1.0)
    taken = torch.multinomial(policy.logits[0].detach().softmax(0), rollouts, replacement=True, generator=draw)
    return problem, policy, problem.batch([(0, (int(a),)) for a in taken], [0] * rollouts)


def test_kept_tokens_do_not_lower_the_expected_reward_beyond_the_bound() -> None:
    """One state and plain gradient ascent, where the last layer is all there is and steps are exact: with KL <= delta,

        J(new) − J(old) >= −range(R) · sqrt(delta / 2)      (the paper's bound at gamma = 0, by Pinsker's inequality)

    GRPO's steps of the same size, on the same rollouts, go beyond.
    """
    rate, delta = 4.0, 0.005
    capo = CAPO(model="sgd", delta_f=delta, delta_h=0.0)
    changes: dict[str, list[float]] = {"capo": [], "grpo": []}
    for seed in range(60):
        problem, policy, batch = arms(seed, 5, 8)
        before = float(problem.expected_reward(policy).detach())
        worth = [problem.reward(0, answer) for answer in problem.answers()]
        bound = (max(worth) - min(worth)) * math.sqrt(delta / 2)
        for name, algorithm in (("capo", capo), ("grpo", BASES["grpo"])):
            objective, ready = checks.prepared(algorithm, batch, at(rate), policy)
            gradient = checks.step(objective, policy, ready)[1 : 1 + 25].reshape(5, 5)
            moved = policy.twin()
            with torch.no_grad():
                moved.logits.sub_(gradient, alpha=rate)
            changes[name].append((float(problem.expected_reward(moved).detach()) - before) / bound)
    assert min(changes["capo"]) > -0.1
    assert sum(change > 0 for change in changes["capo"]) >= 5
    assert sum(change < -1 for change in changes["grpo"]) >= 2


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delta_f": -1e-4}, "algorithm.delta_f is -0.0001; accepted: above 0, 0 for no test"),
        ({"delta_h": math.nan}, "algorithm.delta_h is nan"),
        ({"reject": 1.0}, "algorithm.reject is 1.0; accepted: a share"),
        ({"betas": (1.0, 0.9)}, "algorithm.betas is"),
        ({"eps": 0.0}, "eps 0.0"),
        ({"top_k": 0}, "top_k 0"),
        ({"patience": 0}, "patience is 0"),
        ({"rollouts": 1}, "algorithm.rollouts is 1"),
        ({"base": "ppo"}, "CAPO: base 'ppo' does not exist"),
        ({"model": "lion"}, "CAPO: model 'lion' does not exist"),
    ],
)
def test_bad_settings(settings, words) -> None:
    with pytest.raises(InputError, match=words):
        CAPO(**settings)


def test_a_support_larger_than_the_vocabulary() -> None:
    capo = CAPO(top_k=VOCABULARY + 1)
    with pytest.raises(InputError, match=f"a support of 6 logits is more than there are; accepted: 1 to {VOCABULARY}, or null"):
        chosen(capo, random_batch(capo), BigramPolicy(VOCABULARY), at(0.1))


def test_an_advantage_that_is_no_number() -> None:
    capo = CAPO()
    ready = lines([[1, 0]]).with_planned(**{ADVANTAGE: torch.tensor([[math.nan, 0.0, math.nan], [0.0] * 3], dtype=DOUBLE)})
    with pytest.raises(InputError, match="the advantage is nan at row 0, position 2; accepted: finite numbers"):
        selected(capo, BigramPolicy(VOCABULARY), ready, at(0.1))


def test_policies_without_hidden_states() -> None:
    capo, batch = CAPO(), lines([[1, 0]]).with_planned(**{ADVANTAGE: torch.ones(2, 3, dtype=DOUBLE)})

    class Closed(BigramPolicy):
        """Logits, and nothing else."""

        def evaluate(self, batch, **asked):
            at = Positions(self.logits[self.states(batch)][batch.mask], batch.action[batch.mask], batch.action[batch.mask])
            for reading in asked["readings"]:
                reading(dataclasses.replace(at, planned={ADVANTAGE: torch.ones(4)}))

    with pytest.raises(InputError, match="needs a policy's last hidden states, and this policy offers none"):
        selected(capo, Closed(VOCABULARY), batch, at(0.1))
    gaussian = ActorCritic((3,), BoxActions((1,), (-1.0,), (1.0,)))
    real = batch.replace(action=torch.zeros(2, 3, 1), observation=torch.zeros(2, 3, 3))
    with pytest.raises(InputError, match="LastLayerStep reads distributions over Discrete actions, not over BoxActions"):
        selected(capo, gaussian, real, at(0.1))
    with pytest.raises(InputError, match="LastLayerStep must be read off the policy's logits"):
        capo.select(batch, at(0.1), lambda rows, readings: Evaluation(torch.zeros(2, 3)))


def test_without_selection_there_is_no_silent_fallback() -> None:
    capo = CAPO()
    objective, ready = checks.prepared(capo, random_batch(capo))
    with pytest.raises(InputError, match=KEPT):
        objective.plan(ready)


def test_the_lab_compares_it_by_what_it_keeps() -> None:
    """`unipg diff` selects too: with thresholds that reject some tokens the gradients differ, with infinite ones they do not."""
    capo = CAPO(delta_f=math.inf, delta_h=math.inf)
    batch, policy = random_batch(capo, 3), BigramPolicy(VOCABULARY, 3)
    assert measure(capo, BASES["grpo"], policy, batch, 6).total.cosine == pytest.approx(1.0, abs=1e-12)
    assert measure(CAPO(reject=0.2), BASES["grpo"], policy, batch, 6).total.cosine < 1 - 1e-6
