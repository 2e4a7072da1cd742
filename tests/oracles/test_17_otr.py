"""Closed-form oracles of OTR, one-token rollouts (arXiv 2509.26313): O1 to O6, and bad input."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipg import Evaluation, InputError, Planning, Source, Trajectories
from unipg.algorithms import Setting, registered
from unipg.algorithms.base import Algorithm
from unipg.estimator import Objective, Positions, Progress, likelihoods
from unipg.estimator.likelihoods import OneTokenRollout, categorical_log_prob, read_off, token_log_prob, uniforms
from unipg.lab import BigramPolicy
from unipg.policies.actions import BoxActions
from unipg.policies.actor_critic import ActorCritic

LOGITS = (1.0, 0.5, -0.5, 0.0)
GIVEN = 1
TOKEN_MEAN = {"aggregate": "token_mean"}


def algorithm(name: str, **settings) -> Algorithm:
    return registered()[name](**settings)


def demonstrations(rows: int = 1) -> Trajectories:
    """[rows,2] prompt token 0, then the ground truth; each row answers a prompt of its own."""
    return Trajectories(
        action=torch.tensor([[0, GIVEN]]).expand(rows, 2).clone(),
        mask=torch.tensor([[False, True]]).expand(rows, 2).clone(),
        source=torch.full((rows,), int(Source.DEMONSTRATION)),
    )


def several(seed: int = 0) -> Trajectories:
    """Demonstrations of different lengths, padded, beside a rollout; a vocabulary of 4."""
    draw = torch.Generator().manual_seed(seed)
    first, length = torch.tensor([1, 2, 1, 1]), torch.tensor([5, 3, 1, 4])
    steps = torch.arange(6)
    end = (first + length).unsqueeze(1)
    return Trajectories(
        action=torch.randint(0, 4, (4, 6), generator=draw),
        mask=(steps >= first.unsqueeze(1)) & (steps < end),
        present=steps < end,
        source=torch.tensor([1, 1, 1, 0]),
        reward=torch.ones(4, dtype=torch.float64),
    )


def policy_with(logits: torch.Tensor) -> BigramPolicy:
    policy = BigramPolicy(4)
    policy.logits.data = logits.clone()
    return policy


def loss_and_ascent(
    method: Algorithm | Objective, batch: Trajectories, logits: torch.Tensor, seed: int = 0, step: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and the direction of ascent in the policy's logits `[4,4]`."""
    objective = method if isinstance(method, Objective) else method.terms(Setting(max_new_tokens=6))
    policy, planning = policy_with(logits), Planning(Progress(step, 4), seed=seed)
    planned = objective.plan(objective.prepare(batch, planning), planning)
    loss = objective.loss(policy.evaluate(planned, readings=objective.readings), planned, planning)
    loss.backward()
    assert policy.logits.grad is not None
    return loss.detach(), -policy.logits.grad


def one_position() -> torch.Tensor:
    logits = torch.zeros(4, 4, dtype=torch.float64)
    logits[0] = torch.tensor(LOGITS, dtype=torch.float64)
    return logits


def ascent(name: str = "otr", batch: Trajectories | None = None, seed: int = 0, **settings) -> torch.Tensor:
    """[4] at one position with the logits of the oracle."""
    found = loss_and_ascent(algorithm(name, **settings), batch or demonstrations(), one_position(), seed)[1]
    assert (found[1:] == 0).all()
    return found[0]


def near(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------- O1 and O2: the expectation

O1 = {
    (1.0, 0.0): (-0.125597, 0.199826, -0.028024, -0.046205),
    (1.0, -0.1): (-0.138157, 0.219809, -0.030827, -0.050825),
    (1.3, 0.0): (-0.125945, 0.200379, -0.028102, -0.046332),
    (1.3, -0.1): (-0.133692, 0.220341, -0.033583, -0.053065),
}


@pytest.mark.parametrize(("kappa", "beta"), O1)
def test_o1_exact_ascent_direction(kappa: float, beta: float) -> None:
    found = ascent(draws=None, temperature=kappa, beta=beta)
    torch.testing.assert_close(found, near(*O1[kappa, beta]), rtol=0, atol=1e-6)
    z = near(*LOGITS)
    pi, drawn = z.softmax(0), (z / kappa).softmax(0)
    hit = torch.nn.functional.one_hot(torch.tensor(GIVEN), 4).double() - pi
    torch.testing.assert_close(found, (1 - beta) * drawn[GIVEN] * hit + beta * (drawn - pi), rtol=0, atol=1e-12)


def test_o1_beta_is_a_step_size_at_kappa_1_only() -> None:
    plain = ascent(draws=None, temperature=1.0, beta=0.0)
    torch.testing.assert_close(ascent(draws=None, temperature=1.0, beta=-0.1), 1.1 * plain, rtol=0, atol=1e-12)
    tempered = 1.1 * ascent(draws=None, temperature=1.3, beta=0.0)
    torch.testing.assert_close(tempered, near(-0.138539, 0.220417, -0.030912, -0.050966), rtol=0, atol=1e-6)
    assert (ascent(draws=None, temperature=1.3, beta=-0.1) - tempered).abs().max() > 2e-3


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), beta=st.floats(-2.0, 0.9), scale=st.floats(0.1, 4.0))
def test_o2_at_kappa_1_the_expectation_is_dft(seed: int, beta: float, scale: float) -> None:
    logits = scale * torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    otr = algorithm("otr", draws=None, temperature=1.0, beta=beta, **TOKEN_MEAN)
    _, ours = loss_and_ascent(otr, several(seed), logits)
    _, dft = loss_and_ascent(algorithm("dft"), several(seed), logits)
    torch.testing.assert_close(ours, (1 - beta) * dft, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- O3: sampling


def per_draw(kappa: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """[4] mean and standard deviation of a single draw's ascent direction, by enumeration."""
    z = near(*LOGITS)
    pi, drawn = z.softmax(0), (z / kappa).softmax(0)
    reward = torch.where(torch.arange(4) == GIVEN, 1.0, beta).double()
    each = reward.unsqueeze(1) * (torch.eye(4, dtype=torch.float64) - pi)
    mean = drawn @ each
    return mean, (drawn @ (each - mean) ** 2).sqrt()


@pytest.mark.parametrize(("kappa", "beta"), O1)
def test_o3_many_draws_come_near_the_expectation(kappa: float, beta: float) -> None:
    draws = 200_000
    mean, std = per_draw(kappa, beta)
    torch.testing.assert_close(mean, near(*O1[kappa, beta]), rtol=0, atol=1e-6)
    found = ascent(draws=draws, temperature=kappa, beta=beta)
    assert ((found - mean).abs() <= 4 * std / math.sqrt(draws)).all()
    assert (found != mean).any()


def test_o3_unbiased_over_seeds_and_prompts() -> None:
    """100 seeds of 40 prompts with the same tokens: 4 draws each, all independent."""
    mean, std = per_draw(1.3, -0.1)
    batch = demonstrations(40)
    found = torch.stack([ascent(batch=batch, seed=seed, draws=4, temperature=1.3, beta=-0.1) for seed in range(100)])
    assert ((found.mean(0) - mean).abs() <= 4 * std / math.sqrt(100 * 40 * 4)).all()
    spread = found.std(0) / (std / math.sqrt(40 * 4))
    assert ((spread > 0.7) & (spread < 1.3)).all()  # of 100 values: 4 standard errors


def test_draws_change_with_step_and_prompt_but_not_with_order_or_padding() -> None:
    batch, otr = demonstrations(64), algorithm("otr", draws=4)
    first = loss_and_ascent(otr, batch, one_position())[1]
    assert not loss_and_ascent(otr, batch, one_position(), step=1)[1].equal(first)
    assert not loss_and_ascent(otr, batch.replace(group=torch.arange(64) + 64), one_position())[1].equal(first)
    backwards = loss_and_ascent(otr, batch.select(list(reversed(range(64)))), one_position())[1]
    torch.testing.assert_close(backwards, first, rtol=0, atol=1e-15)


def test_draws_in_blocks_and_logits_in_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, 3, dtype=torch.float64, generator=draw).requires_grad_()
    weight = torch.randn(4, 3, dtype=torch.float64, generator=draw)
    token, key = torch.randint(0, 4, (7,), generator=draw), torch.randint(0, 1 << 40, (7,), generator=draw)
    reading = OneTokenRollout(draws=50)
    found = []
    for most in (1 << 24, 12, 1):  # all at once; 3 positions and 4 draws at a time; one by one
        monkeypatch.setattr(likelihoods, "CHUNK_ELEMENTS", most)
        read = token_log_prob(hidden, weight, token, readings=(reading,), planned={"position_key": key})[2][reading]
        (slope,) = torch.autograd.grad(read["miss_log_prob"].sum(), hidden)
        found.append((read["hit"], read["miss_log_prob"].detach(), slope))
    for other in found[1:]:
        assert other[0].equal(found[0][0])
        torch.testing.assert_close(other[1:], found[0][1:], rtol=0, atol=1e-12)
    hits = found[0][0] * 50
    torch.testing.assert_close(hits, hits.round(), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- O4 and O5: the draws decide


@pytest.mark.parametrize("beta", [-0.1, 0.0])
def test_o4_draws_that_always_hit_are_sft_bit_for_bit(monkeypatch: pytest.MonkeyPatch, beta: float) -> None:
    batch, logits = several(), torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    hits = torch.nn.functional.one_hot(batch.action[batch.mask], 4).double()
    monkeypatch.setattr(OneTokenRollout, "share", lambda self, logits, key: hits)
    loss, direction = loss_and_ascent(algorithm("otr", beta=beta, **TOKEN_MEAN), batch, logits)
    sft_loss, sft = loss_and_ascent(algorithm("sft"), batch, logits)
    assert loss.equal(sft_loss)
    assert direction.equal(sft)
    assert (direction != 0).any()


def test_o4_draws_that_never_hit_are_silent_without_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, logits = several(), torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    misses = (1 - torch.nn.functional.one_hot(batch.action[batch.mask], 4).double()) / 3
    monkeypatch.setattr(OneTokenRollout, "share", lambda self, logits, key: misses)
    loss, direction = loss_and_ascent(algorithm("otr", beta=0.0), batch, logits)
    assert float(loss) == 0
    assert (direction == 0).all()
    _, pushed = loss_and_ascent(algorithm("otr", beta=-0.1), batch, logits)
    assert (pushed != 0).any()


def test_o5_one_draw_accepts_the_token_that_the_model_would_have_drawn() -> None:
    batch, otr = demonstrations(2000), algorithm("otr", draws=1, temperature=1.0, beta=0.0)
    objective = otr.terms(Setting(max_new_tokens=1))
    planning = Planning(seed=5)
    planned = objective.plan(objective.prepare(batch, planning), planning)
    pi = near(*LOGITS).softmax(0)
    accepted = 0
    for key in planned.planned["position_key"][:, 1]:
        height, token = float(uniforms(key.reshape(1), 1)), 0
        while height >= float(pi[: token + 1].sum()):
            token += 1
        accepted += token == GIVEN
    score = torch.nn.functional.one_hot(torch.tensor(GIVEN), 4) - pi
    torch.testing.assert_close(ascent(batch=batch, seed=5, draws=1, temperature=1.0, beta=0.0), accepted / 2000 * score, rtol=0, atol=1e-12)
    p = float(pi[GIVEN])
    assert abs(accepted / 2000 - p) < 4 * math.sqrt(p * (1 - p) / 2000)


# ---------------------------------------------------------------------------------------------------- O6: silence


@pytest.mark.parametrize("draws", [None, 16])
@pytest.mark.parametrize("rubbish", [0.0, float("nan"), float("inf")])
def test_o6_no_gradient_at_prompts_padding_and_rollouts(draws: int | None, rubbish: float) -> None:
    batch = several()
    objective = algorithm("otr", draws=draws).terms(Setting(max_new_tokens=6))
    planned = objective.plan(objective.prepare(batch))
    logits = torch.randn(4, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits = torch.where(batch.mask.unsqueeze(-1), logits, rubbish).requires_grad_()
    read = read_off(logits, batch.action, planned, objective.readings)
    chosen = categorical_log_prob(logits[batch.mask], batch.action[batch.mask])[0]  # as language models do: the policy's positions only
    now = Evaluation(torch.zeros(batch.mask.shape, dtype=torch.float64).masked_scatter(batch.mask, chosen), read=read)
    loss = objective.loss(now, planned)
    assert loss.isfinite()
    loss.backward()
    demonstrated = batch.mask & batch.rows_from(Source.DEMONSTRATION).unsqueeze(1)
    assert logits.grad is not None
    assert (logits.grad[~demonstrated] == 0).all()
    assert (logits.grad[demonstrated].abs().sum(-1) > 0).all()


def test_aggregates() -> None:
    """Rows of 5, 3 and 1 tokens: with the mean per sequence each row weighs 1/3, with the token mean each token 1/9."""
    batch = several().select([0, 1, 2])
    for aggregate, expected in (("sequence_mean_token_mean", (1 / 15, 1 / 9, 1 / 3)), ("token_mean", (1 / 9, 1 / 9, 1 / 9))):
        objective = algorithm("otr", aggregate=aggregate).terms(Setting(max_new_tokens=6))
        weight = objective.plan(objective.prepare(batch)).planned["hits/weight"]
        torch.testing.assert_close(weight.amax(1), near(*expected))
    assert algorithm("otr").aggregate == "sequence_mean_token_mean"


# ---------------------------------------------------------------------------------------------------- section 9: bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, r"algorithm\.draws is 0; accepted: 1 or more, or null"),
        ({"temperature": 0.0}, r"algorithm\.temperature is 0\.0; accepted: a finite number above 0"),
        ({"temperature": float("inf")}, r"algorithm\.temperature is inf"),
        ({"beta": 1.0}, r"algorithm\.beta is 1\.0; accepted: below 1"),
        ({"beta": float("nan")}, r"algorithm\.beta is nan"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        algorithm("otr", **settings)


def test_bad_settings_of_the_reading() -> None:
    with pytest.raises(InputError, match=r"OneTokenRollout\.draws is 0"):
        OneTokenRollout(draws=0)
    with pytest.raises(InputError, match="temperature is -1"):
        OneTokenRollout(temperature=-1.0)


def read(logits: list[float], token: int, draws: int | None = 8) -> dict[str, torch.Tensor]:
    values = torch.tensor([logits], dtype=torch.float64)
    return OneTokenRollout(draws)(Positions(values, torch.tensor([token]), torch.tensor([7])))


@pytest.mark.parametrize("draws", [None, 8])
@pytest.mark.parametrize("logits", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_nothing_can_be_drawn_from(logits: list[float], draws: int | None) -> None:
    with pytest.raises(InputError, match=r"logits of a position have a NaN, \+inf or nothing but −inf; accepted: finite"):
        read(logits, 0, draws)


@pytest.mark.parametrize("draws", [None, 8])
def test_an_impossible_token_is_never_drawn(draws: int | None) -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.5]], dtype=torch.float64, requires_grad=True)
    found = OneTokenRollout(draws)(Positions(logits, torch.tensor([0]), torch.tensor([7])))
    found["miss_log_prob"].sum().backward()
    assert found["miss_log_prob"].isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 1]) == 0
    given_impossible = read([0.0, -math.inf, 0.5], 1, draws)
    assert float(given_impossible["hit"]) == 0


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(InputError, match="outside the vocabulary; accepted: 0 to 3"):
        read(list(LOGITS), token)


def test_a_controller_with_real_actions_has_no_next_token_distribution() -> None:
    batch = demonstrations().replace(observation=torch.zeros(1, 2, 3))
    objective = algorithm("otr").terms(Setting())
    with pytest.raises(InputError, match="OneTokenRollout reads distributions over Discrete actions, not over BoxActions"):
        ActorCritic((3,), BoxActions((2,), (-1.0, -1.0), (1.0, 1.0))).evaluate(batch, readings=objective.readings)
    with pytest.raises(InputError, match="OneTokenRollout must be read off the policy's logits"):
        objective(Evaluation(torch.zeros(1, 2)), batch)


def test_nothing_demonstrated_is_nothing_learned() -> None:
    """All masked: the library's law of emptiness, an exact 0 with a usable graph, instead of an error."""
    batch = demonstrations()
    _, found = loss_and_ascent(algorithm("otr"), batch.replace(mask=torch.zeros_like(batch.mask)), one_position())
    assert (found == 0).all()
