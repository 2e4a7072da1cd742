"""Closed-form oracles of SPO (arXiv 2509.13232) and its bad input."""

import itertools
import json
import math

import pytest
import torch

from unipg import Evaluation, InputError, Outcome, Planning, PolicyGradient, SequenceMeanTokenSum, Trajectories
from unipg.algorithms import Setting
from unipg.algorithms.language.spo import SPO, initial_counts, observed, prompt_keys
from unipg.estimator.baselines import RowsWhitened
from unipg.lab import BigramPolicy, StringExperience, StringProblem
from unipg.samplers import PrioritizedSampler, UniformSampler
from unipg.samplers.priority import TRACKER, priorities
from unipg.training import Trainer, TrainingRecipe
from unipg.training.trainer import Stopped

SETTING = Setting(6)


def batch_of(rewards: list[float], items: list[int] | None = None, lengths: list[int] | None = None) -> Trajectories:
    """Rows of a prompt token and an answer of `lengths` tokens."""
    lengths = lengths or [1] * len(rewards)
    steps = torch.arange(max(lengths, default=0) + 1)
    present = steps <= torch.tensor(lengths).reshape(-1, 1)
    return Trajectories(
        action=torch.arange(len(rewards)).unsqueeze(1).expand(present.shape) % 4,
        mask=present & (steps > 0),
        present=present,
        reward=torch.tensor(rewards, dtype=torch.float64),
        annotations={} if items is None else {"item": items},
    )


def tracked(values: dict) -> Planning:
    return Planning(memory={TRACKER: {key: {"value": v, "count": n, "visits": 1} for key, (v, n) in values.items()}})


def still(batch: Trajectories) -> Evaluation:
    """A policy that never moves."""
    return Evaluation(torch.full(batch.mask.shape, -1.0, dtype=torch.float64))


def advantages(spo: SPO, batch: Trajectories, planning: Planning) -> torch.Tensor:
    objective = spo.terms(SETTING)
    ready = objective.prepare(spo.prepare(batch, SETTING, planning), planning)
    return ready.planned["policy_gradient/advantage"][:, 0]


# ---------------------------------------------------------------------------------------------------- 1, 2. the tracker


def test_1_initial_counts_and_one_update() -> None:
    alpha, beta = initial_counts(5, 8, 0.875)
    assert (alpha, beta) == pytest.approx((4.8888889, 3.1111111), abs=5e-8)
    value = alpha / (alpha + beta)
    assert value == pytest.approx(0.6111111, abs=5e-8)
    new, count = observed(value, alpha + beta, 0.9, 1.0)
    assert (new, count) == pytest.approx((0.6585366, 8.2), abs=5e-8)
    counted = (0.9 * alpha + 1) / (0.9 * alpha + 1 + 0.9 * beta)
    assert new == pytest.approx(counted, abs=1e-15)
    assert initial_counts(0, 0, 0.875) == (0.5, 0.5)


@pytest.mark.parametrize("rho", [0.875, 0.96])
def test_1_counts_and_moving_average_stay_the_same_and_the_count_converges(rho) -> None:
    draw = torch.Generator().manual_seed(0)
    alpha = beta = value = 0.5
    count = 1.0
    for reward in (torch.rand(400, generator=draw) < 0.3).double().tolist():
        alpha, beta = rho * alpha + reward, rho * beta + 1 - reward
        value, count = observed(value, count, rho, reward)
        assert (value, count) == pytest.approx((alpha / (alpha + beta), alpha + beta), abs=1e-12)
    assert count == pytest.approx(1 / (1 - rho), rel=1e-5)


def test_2_forgetting() -> None:
    spo = SPO()
    assert spo.forgotten(0.0) == 0.96
    assert spo.forgotten(0.06) == 0.875
    assert 2 ** (-0.06 / spo.half_life) == 0.5
    for edge, bound in ((0.06 * math.log2(1 / 0.96), 0.96), (0.06 * math.log2(1 / 0.875), 0.875)):
        assert edge == pytest.approx({0.96: 0.0035336, 0.875: 0.0115587}[bound], abs=6e-8)
        inside = edge * (1 + 1e-6) if bound == 0.96 else edge * (1 - 1e-6)
        assert 0.875 < spo.forgotten(inside) < 0.96
        assert spo.forgotten(inside) == pytest.approx(bound, rel=1e-6)
    assert SPO(forgetting="constant").forgotten(0.0) == 0.875


def test_the_distance_is_the_mean_absolute_log_ratio_of_the_stored_response() -> None:
    """Two tokens that moved by +0.01 and −0.004: D = 0.007; other rows and the new response do not matter."""
    planning, spo = Planning(), SPO()
    spo.learn(batch_of([1.0, 0.0], [3, 8], [2, 3]), planning, still)
    before = dict(planning.memory[TRACKER])
    assert before[3]["visits"] == 1
    assert (before[3]["value"], before[3]["count"]) == observed(0.5, 1.0, 0.96, 1.0)
    assert before[3]["action"].tolist() == [0, 0, 0]
    assert before[8]["action"].tolist() == [1, 1, 1, 1]

    def moved(batch: Trajectories) -> Evaluation:
        shift = torch.tensor([0.0, 0.01, -0.004, 9.0, 9.0], dtype=torch.float64)[: batch.mask.shape[1]]
        return Evaluation(still(batch).log_prob + shift)

    told = spo.learn(batch_of([0.0, 0.0], [3, 9], [4, 1]), planning, moved)
    rho = 2 ** (-0.007 / 0.06)
    after = planning.memory[TRACKER]
    assert (after[3]["value"], after[3]["count"]) == pytest.approx(observed(before[3]["value"], before[3]["count"], rho, 0.0), abs=1e-14)
    assert told["tracker/rho"] == pytest.approx((rho + 0.96) / 2, abs=1e-14)
    assert told["tracker/first_visit_fraction"] == 0.5
    assert told["tracker/clamped_fraction"] == 0.5
    assert after[8] is before[8]
    torch.testing.assert_close(after[3]["log_prob"][1:3], torch.tensor([-0.99, -1.004], dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------- 3. expected gradients


def test_3_a_constant_baseline_does_not_change_the_expected_gradient() -> None:
    logits, reward = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64, requires_grad=True), (1.0, 0.0, 0.3)
    worth = torch.tensor(reward, dtype=torch.float64)
    (exact,) = torch.autograd.grad((logits.softmax(0) * worth).sum(), logits)
    for constant in (0.0, 0.37, -2.0):
        total = torch.zeros(3, dtype=torch.float64)
        for arm in range(3):
            log_prob = logits.log_softmax(0)[arm].reshape(1, 1)
            batch = Trajectories(torch.tensor([[arm]]), torch.ones(1, 1, dtype=torch.bool), reward=worth[arm].reshape(1))
            (slope,) = torch.autograd.grad(PolicyGradient(advantage=Outcome(constant))(Evaluation(log_prob), batch), logits)
            total -= float(log_prob.detach().exp()) * slope
        torch.testing.assert_close(total, exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3])
def test_3_centring_over_the_batch_leaves_1_minus_1_over_n(size) -> None:
    """With 0/1 rewards and eps >> std, (a − mean) / (std + eps) is the centred advantage over eps."""
    logits, reward = torch.tensor([0.2, -0.4, 0.7], dtype=torch.float64, requires_grad=True), (1.0, 0.0, 0.3)
    (exact,) = torch.autograd.grad((logits.softmax(0) * torch.tensor(reward, dtype=torch.float64)).sum(), logits)
    total, eps = torch.zeros(3, dtype=torch.float64), 1e9
    for arms in itertools.product(range(3), repeat=size):
        log_prob = logits.log_softmax(0)[list(arms)].unsqueeze(1)
        mask = torch.ones(size, 1, dtype=torch.bool)
        batch = Trajectories(torch.tensor(arms).unsqueeze(1), mask, reward=torch.tensor([reward[a] for a in arms], dtype=torch.float64))
        term = PolicyGradient(advantage=RowsWhitened(eps=eps), aggregate=SequenceMeanTokenSum())
        (slope,) = torch.autograd.grad(term(Evaluation(log_prob), batch), logits)
        total -= eps * float(log_prob.detach().sum().exp()) * slope
    torch.testing.assert_close(total, (1 - 1 / size) * exact, rtol=1e-8, atol=1e-10)


# ---------------------------------------------------------------------------------------------------- 4. the sampler


def test_4_priorities() -> None:
    value, count = torch.tensor([0.0, 0.5, 1.0, float("nan")], dtype=torch.float64), torch.tensor([4.0, 4.0, 4.0, 1.0])
    weights = priorities(value, count)
    torch.testing.assert_close(weights, torch.tensor([0.05, 0.55, 0.05, 0.0], dtype=torch.float64), rtol=0, atol=1e-15)
    share = weights[:3] / weights.sum() * 13
    torch.testing.assert_close(share * 0.65 / 0.65, torch.tensor([1.0, 11.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-12)
    assert priorities(value, count, power=0.5)[1] == pytest.approx(0.30, abs=1e-15)


def sampler_with(values: dict[int, float], size: int, **settings) -> PrioritizedSampler:
    sampler = PrioritizedSampler(size, 3, **settings)
    sampler.update(batch_of([]), {TRACKER: {key: {"value": v, "count": 8.0} for key, v in values.items()} | {"a text": {}}})
    return sampler


def test_4_draws_follow_the_priorities_without_replacement() -> None:
    sampler = sampler_with({0: 0.0, 1: 0.5, 2: 1.0}, 3)
    first = torch.tensor([sampler.choose(1)[0] for _ in range(2600)]).bincount(minlength=3) / 2600
    torch.testing.assert_close(first, torch.tensor([1.0, 11.0, 1.0]) / 13, rtol=0, atol=0.03)  # 4 standard deviations
    assert all(sorted(sampler.choose(3)) == [0, 1, 2] for _ in range(20))
    assert len(sampler.choose(7)) == 7  # more than there are: with replacement


def test_4_unknown_prompts() -> None:
    assert set(sampler_with({1: 0.4}, 4, unknown=None).choose(1)) == {1}
    assert sampler_with({1: 0.4}, 4).weights().tolist() == pytest.approx([0.55, 0.05 + math.sqrt(0.24), 0.55, 0.55])
    nothing = PrioritizedSampler(4, unknown=None)
    assert nothing.weights().tolist() == [1.0] * 4  # all weights 0: uniform
    assert sorted(nothing.choose(4)) == [0, 1, 2, 3]


def test_the_sampler_survives_save_and_load_bit_for_bit() -> None:
    sampler = sampler_with({0: 0.1, 5: 0.7}, 9)
    sampler.choose(4)
    other = PrioritizedSampler(9, 3)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(other.weights(), sampler.weights())
    assert [other.choose(4) for _ in range(5)] == [sampler.choose(4) for _ in range(5)]


def test_the_algorithm_chooses_its_sampler() -> None:
    assert isinstance(SPO(sampler="uniform").build_sampler(5, 0), UniformSampler)
    chosen = SPO(exploration=0.2, count_power=0.5, register_unknown=False).build_sampler(5, 0)
    assert isinstance(chosen, PrioritizedSampler)
    assert (chosen.exploration, chosen.power) == (0.2, 0.5)
    assert chosen.value.isnan().all()


# ---------------------------------------------------------------------------------------------------- 5. advantages


def test_5_advantages_order_by_surplus() -> None:
    planning = tracked({0: (0.9, 8.0), 1: (0.2, 8.0), 2: (0.5, 8.0)})
    found = advantages(SPO(), batch_of([1.0, 1.0, 0.0], [0, 1, 2]), planning)
    surplus = torch.tensor([0.1, 0.8, -0.5], dtype=torch.float64)
    torch.testing.assert_close(found, (surplus - surplus.mean()) / (surplus.std() + 1e-8), rtol=0, atol=1e-14)
    assert found[1] > found[0] > found[2]


def test_5_a_constant_surplus_gives_0() -> None:
    planning = tracked({0: (0.9, 8.0), 1: (0.9, 8.0), 2: (0.9, 8.0)})
    assert (advantages(SPO(), batch_of([0.1 * 3] * 3, [0, 1, 2]), planning) == 0).all()


def test_whitening_by_tokens_centres_the_token_weighted_loss() -> None:
    lengths, rewards = [1, 5, 2], [1.0, 0.0, 1.0]
    weight = torch.tensor(lengths, dtype=torch.float64)
    by_token = advantages(SPO(whiten="token"), batch_of(rewards, [0, 1, 2], lengths), Planning())
    by_row = advantages(SPO(), batch_of(rewards, [0, 1, 2], lengths), Planning())
    assert float((by_token * weight).sum()) == pytest.approx(0.0, abs=1e-14)
    assert float(by_row.sum()) == pytest.approx(0.0, abs=1e-14)
    assert float((by_row * weight).sum()) < -0.5  # the long failure dominates
    tokens = torch.tensor(rewards, dtype=torch.float64).repeat_interleave(torch.tensor(lengths))
    expected = (tokens - tokens.mean()) / (tokens.std() + 1e-8)
    torch.testing.assert_close(by_token.repeat_interleave(torch.tensor(lengths)), expected, rtol=0, atol=1e-14)


def test_the_baseline_is_the_value_before_the_response() -> None:
    planning, spo = tracked({0: (0.25, 4.0), 1: (0.75, 4.0)}), SPO()
    batch = batch_of([1.0, 0.0], [0, 1])
    ready = spo.prepare(batch, SETTING, planning)
    assert ready.planned["spo/baseline"].tolist() == [0.25, 0.75]
    assert planning.memory[TRACKER][0]["value"] == 0.25
    spo.learn(batch, planning, still)
    assert planning.memory[TRACKER][0]["value"] > 0.25
    assert spo.prepare(batch_of([1.0, 0.0], [7, 0]), SETTING, planning).planned["spo/baseline"][0] == 0.5


# ---------------------------------------------------------------------------------------------------- 6. a prompt twice


def test_6_updates_of_a_prompt_that_occurs_twice_are_in_order() -> None:
    planning, spo = tracked({4: (0.5, 8.0)}), SPO(forgetting="constant")
    spo.learn(batch_of([1.0, 0.0, 0.0], [4, 6, 4]), planning, still)
    once = observed(0.5, 8.0, 0.875, 1.0)
    twice = observed(*once, 0.875, 0.0)
    entry = planning.memory[TRACKER][4]
    assert (entry["value"], entry["count"], entry["visits"]) == (*twice, 3)
    assert twice[0] != observed(0.5, 8.0, 0.875, 0.0)[0]  # what "the last one wins" would give


@pytest.mark.parametrize("forgetting", ["kl", "constant"])
def test_6_workers_apply_all_updates_in_order_of_ranks(forgetting) -> None:
    batch, spo = batch_of([1.0, 0.0, 0.0, 1.0], [4, 6, 4, 4]), SPO(forgetting=forgetting)

    def fresh() -> Planning:
        planning = Planning()
        SPO().learn(batch_of([1.0, 1.0], [4, 6]), planning, lambda rows: Evaluation(still(rows).log_prob - 0.01))
        return planning

    alone = fresh()
    spo.learn(batch, alone, still)
    told: dict[int, list] = {}
    for rank, rows in ((0, [0, 1]), (1, [2, 3])):
        spo.learn(
            batch.select(rows), Planning(memory=fresh().memory, gather=lambda value, rank=rank: told.setdefault(rank, [value])), still
        )
    joint = Planning(memory=fresh().memory, gather=lambda value: told[0] + told[1], rank=1)
    spo.learn(batch.select([2, 3]), joint, still)
    names = ("value", "count", "visits")
    ours, theirs = ({key: [e[n] for n in names] for key, e in p.memory[TRACKER].items()} for p in (joint, alone))
    assert ours == theirs
    assert ours[4][2] == 4


# ---------------------------------------------------------------------------------------------------- 7. state


def test_7_an_empty_batch_changes_nothing() -> None:
    planning = tracked({4: (0.5, 8.0)})
    before = planning.memory[TRACKER]
    assert SPO().learn(batch_of([1.0], [4]).select([]), planning, still) == {}
    assert planning.memory[TRACKER] is before


def test_the_table_is_replaced_and_never_changed_in_place() -> None:
    planning = tracked({4: (0.5, 8.0)})
    before = planning.memory[TRACKER]
    SPO().learn(batch_of([1.0, 0.0], [4, 5]), planning, still)
    assert before == {4: {"value": 0.5, "count": 8.0, "visits": 1}}


class SampledStrings(StringExperience):
    """One response to each prompt that a sampler chooses; prompts are known by number."""

    def __init__(self, sampler) -> None:
        super().__init__(StringProblem(vocabulary=4, prompts=(0, 1, 2, 3), length=2))
        self.sampler = sampler

    def collect(self, policy, demand):
        chosen = self.sampler.choose(3)
        draw = torch.Generator().manual_seed(demand.iteration)
        rows = []
        for item in chosen:
            tokens = [item]
            for _ in range(2):
                tokens.append(int(torch.multinomial(policy.logits.detach()[tokens[-1]].softmax(-1), 1, generator=draw)))
            rows.append((item, tuple(tokens[1:])))
        batch = self.problem.batch(rows, list(range(len(rows))))
        return batch.replace(annotations={"item": chosen, "prompt": [f"repeat {item}" for item in chosen]}), {}

    def update(self, batch, memory) -> None:
        self.sampler.update(batch, memory)

    def state_dict(self):
        return self.sampler.state_dict()

    def load_state_dict(self, state) -> None:
        self.sampler.load_state_dict(state)


def trainer(folder, iterations: int = 6) -> Trainer:
    spo = SPO()
    recipe = TrainingRecipe(iterations=iterations, epochs=2)
    experience = SampledStrings(spo.build_sampler(4, 5))
    return Trainer(spo, BigramPolicy(4, seed=1), experience, folder=folder, training=recipe, seed=5)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_7_tracker_and_sampler_survive_a_stop_bit_for_bit(tmp_path, stop) -> None:
    straight = trainer(tmp_path / "straight")
    last = straight.train()
    assert last["tracker/value"] != 0.5
    assert 0.875 <= last["tracker/rho"] <= 0.96
    first = trainer(tmp_path / "stopped")
    first.stop_after_steps = stop
    with pytest.raises(Stopped):
        first.train()
    second = trainer(tmp_path / "stopped")
    second.resume()
    second.train()
    ours, theirs = second.learner.memory[TRACKER], straight.learner.memory[TRACKER]
    assert list(ours) == list(theirs)
    assert sum(entry["visits"] for entry in ours.values()) == 18
    for key in ours:
        assert {k: v for k, v in ours[key].items() if not isinstance(v, torch.Tensor)} == {
            k: v for k, v in theirs[key].items() if not isinstance(v, torch.Tensor)
        }
        assert all(torch.equal(ours[key][name], theirs[key][name]) for name in ("action", "mask", "log_prob"))
    assert torch.equal(second.experience.sampler.weights(), straight.experience.sampler.weights())
    assert torch.equal(second.policy.logits, straight.policy.logits)


def test_the_sampler_sees_what_the_tracker_learnt(tmp_path) -> None:
    run = trainer(tmp_path)
    run.train()
    value = run.experience.sampler.value
    assert {i: float(v) for i, v in enumerate(value) if i in run.learner.memory[TRACKER]} == {
        k: e["value"] for k, e in run.learner.memory[TRACKER].items()
    }


def test_stored_log_probs_are_those_after_the_updates(tmp_path) -> None:
    run = trainer(tmp_path, iterations=1)
    run.train()
    entry = next(iter(run.learner.memory[TRACKER].values()))
    row = Trajectories(entry["action"].unsqueeze(0), entry["mask"].unsqueeze(0))
    assert torch.equal(run.policy.evaluate(row).log_prob.detach()[0][entry["mask"]], entry["log_prob"][entry["mask"]])


# ---------------------------------------------------------------------------------------------------- other rewards, keys, offline scores


def test_rewards_of_any_size_in_the_form_of_a_moving_average() -> None:
    planning = tracked({0: (0.5, 8.0)})
    spo = SPO(tracker="ema", forgetting="constant")
    advantages(spo, batch_of([7.0, -2.0], [0, 1]), planning)
    spo.learn(batch_of([7.0, -2.0], [0, 1]), planning, still)
    assert planning.memory[TRACKER][0]["value"] == 0.5 + (7.0 - 0.5) / (0.875 * 8 + 1)
    assert planning.memory[TRACKER][1]["value"] == 0.5 + (-2.0 - 0.5) / (0.875 + 1)
    assert torch.isfinite(sampler_with({0: 7.0}, 2).weights()).all()


def test_prompts_are_known_by_number_text_or_tokens() -> None:
    batch = batch_of([1.0, 0.0])
    assert prompt_keys(batch, {}) == [(0,), (1,)]
    assert prompt_keys(batch.replace(annotations={"prompt": ["a", "b"]}), {}) == ["a", "b"]
    assert prompt_keys(batch.replace(annotations={"prompt": ["a", "b"], "item": [5, 6]}), {}) == [5, 6]


def test_initial_scores(tmp_path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"0": [1, 0, 0.5, 1, 1, 1, 0, 0], "some text": [0] * 8}), encoding="utf-8")
    planning, spo = Planning(), SPO(initial_responses=8, initial_scores=str(path), register_unknown=False)
    ready = spo.prepare(batch_of([1.0, 0.0], [0, 0]), SETTING, planning)
    assert float(ready.planned["spo/baseline"][0]) == pytest.approx(5.5 / 9, abs=1e-15)
    assert planning.memory[TRACKER][0]["count"] == pytest.approx(8.0, abs=1e-12)
    assert planning.memory[TRACKER]["some text"]["value"] == pytest.approx(0.5 / 9, abs=1e-15)
    with pytest.raises(InputError, match="prompt 1 has no tracked value; accepted: those in initial_scores"):
        spo.prepare(batch_of([1.0, 0.0], [1, 0]), SETTING, planning)
    path.write_text(json.dumps({"0": [1, 0, 1]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"prompt '0' has 3 scores; accepted: initial_responses \(8\)"):
        spo.prepare(batch_of([1.0, 0.0], [0, 0]), SETTING, Planning())
    with pytest.raises(InputError, match=r"initial_scores '.*nowhere\.json' cannot be read"):
        SPO(initial_responses=8, initial_scores=str(tmp_path / "nowhere.json")).prepare(batch_of([1.0, 0.0], [0, 0]), SETTING, Planning())


def test_initial_scores_decide_the_first_draw_by_number_or_by_text(tmp_path) -> None:
    """Item 0 is known to be solved, item 1 by its text to be undecided, item 2 is unknown and taken to be at 0.5."""
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"0": [1] * 8, "two": [1, 0] * 4}), encoding="utf-8")
    spo = SPO(initial_responses=8, initial_scores=str(path))
    sampler = spo.build_sampler(3, 0, lambda: ["one", "two", "three"])
    solved = 8.5 / 9
    expected = torch.tensor([math.sqrt(solved * (1 - solved)), 0.5, 0.5], dtype=torch.float64) + 0.05
    torch.testing.assert_close(sampler.weights(), expected)
    assert sampler.count.tolist() == pytest.approx([8.0, 8.0, 1.0])
    unknown = SPO(initial_responses=8, initial_scores=str(path), register_unknown=False).build_sampler(
        3, 0, lambda: ["one", "two", "three"]
    )
    assert [bool(weight) for weight in unknown.weights()] == [True, True, False]
    assert SPO().build_sampler(3, 0).weights().tolist() == [0.55] * 3


def test_initial_scores_by_text_are_those_of_the_item_with_that_text(tmp_path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"two": [0] * 8}), encoding="utf-8")
    spo = SPO(initial_responses=8, initial_scores=str(path), forgetting="constant")
    planning, batch = Planning(), batch_of([1.0, 0.0], [0, 1]).replace(annotations={"item": [0, 1], "prompt": ["one", "two"]})
    ready = spo.prepare(batch, SETTING, planning)
    assert ready.planned["spo/baseline"].tolist() == pytest.approx([0.5, 0.5 / 9])
    spo.learn(batch, planning, lambda rows, readings=(): None)
    value, count = observed(0.5 / 9, 8.0, 0.875, 0.0)
    assert (planning.memory[TRACKER][1]["value"], planning.memory[TRACKER][1]["count"]) == pytest.approx((value, count))


# ---------------------------------------------------------------------------------------------------- bad input, section 9


@pytest.mark.parametrize(
    "settings",
    [
        {"rho_min": 0.0},
        {"rho_min": 0.97},
        {"rho_max": 1.0},
        {"half_life": 0.0},
        {"exploration": -0.1},
        {"count_power": 2.0},
        {"initial_responses": 8},
        {"initial_scores": "scores.json"},
    ],
)
def test_values_outside_their_range(settings) -> None:
    with pytest.raises(InputError, match=r"accepted|go together"):
        SPO(**settings)


def test_bad_batches() -> None:
    def prepare(batch: Trajectories) -> None:
        SPO().prepare(batch, SETTING, Planning())

    with pytest.raises(InputError, match=r"the reward of row 1 is 1\.5; accepted for tracker beta: 0 to 1; else set tracker: ema"):
        prepare(batch_of([1.0, 1.5], [0, 1]))
    with pytest.raises(InputError, match=r"the reward of row 0 is -1; accepted for tracker beta"):
        prepare(batch_of([-1.0, 0.0], [0, 1]))
    with pytest.raises(InputError, match="item 3 stands for two prompts, 'one' and 'two'"):
        prepare(batch_of([1.0, 0.0]).replace(annotations={"item": [3, 3], "prompt": ["one", "two"]}))
    planning = Planning()
    SPO().learn(batch_of([1.0, 0.0]).replace(annotations={"item": [3, 4], "prompt": ["one", "x"]}), planning, still)
    with pytest.raises(InputError, match="item 3 stands for two prompts, 'one' and 'two'"):
        SPO().prepare(batch_of([1.0, 0.0]).replace(annotations={"item": [3, 4], "prompt": ["two", "x"]}), SETTING, planning)
    with pytest.raises(InputError, match="this batch has observations; accepted: language tasks"):
        SPO().learn(batch_of([1.0]).replace(observation=torch.zeros(1, 2)), Planning(), still)
    with pytest.raises(InputError, match="nothing to sample from"):
        PrioritizedSampler(0)


def test_a_batch_of_one_has_advantage_0_and_says_so() -> None:
    assert advantages(SPO(), batch_of([1.0], [0]), Planning()).tolist() == [0.0]
    with pytest.warns(UserWarning, match="a single trajectory has advantage 0"):
        SPO().learn(batch_of([1.0], [0]), Planning(), still)
