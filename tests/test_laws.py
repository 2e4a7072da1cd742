"""Every law on every registered algorithm: an algorithm joins by being registered."""

import dataclasses

import pytest
import torch

from unipg.algorithms import registered
from unipg.algorithms.control.ppo import PPO
from unipg.algorithms.control.reinforce import Reinforce
from unipg.estimator import Outcome, PolicyGradient, Reference
from unipg.lab import BigramPolicy
from unipg.laws import LAWS, LawBroken, checks, exactness
from unipg.laws.cases import VOCABULARY, random_batch


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", registered())
def test_law(name: str, law: str) -> None:
    LAWS[law](registered()[name]())


@pytest.mark.parametrize("name", registered(answers=True))
def test_the_laws_run_on_a_gradient_that_is_not_zero(name: str) -> None:
    algorithm = registered()[name]()
    policy = BigramPolicy(VOCABULARY)
    objective, ready = checks.prepared(algorithm, random_batch(algorithm), policy=policy)
    assert checks.gradient(objective, policy, ready).norm() > 1e-3


@pytest.mark.parametrize(
    "algorithm",
    [
        Reinforce(signed=False),
        Reinforce(signed=False, baseline=0.3),
        PPO(normalize_advantage=False, lam=1.0, aggregate="sequence_mean_token_sum"),
    ],
    ids=["reinforce with the reward itself", "with a constant baseline", "ppo without whitening, rows by their sums"],
)
def test_exact_where_the_bias_is_switched_off(algorithm) -> None:
    class Unbiased(type(algorithm)):
        bias = ""

    assert exactness(Unbiased(**dataclasses.asdict(algorithm))) > 1 - 1e-10


def test_silence_catches_a_product_with_the_mask(monkeypatch) -> None:
    """NaN · 0 is NaN: a part that multiplies by the mask leaks once nothing in front of it silences the inputs."""
    from unipg.estimator import policy_gradient

    @dataclasses.dataclass(frozen=True)
    class Leaky(Reference):
        def __call__(self, log_prob, batch):
            log_ratio = (log_prob - batch.old_log_prob) * batch.mask
            return log_prob - log_ratio.sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True).clamp_min(1)

    class Broken(type(registered()["gspo"]())):
        def objective(self, setting):
            return PolicyGradient(reference=Leaky(), advantage=Outcome())

    checks.silence(Broken())
    monkeypatch.setattr(policy_gradient, "silence", lambda batch: batch)
    with pytest.raises(LawBroken, match=r"silence: nan where the mask is 0.*; example: 4 groups x 4 rollouts, lengths "):
        checks.silence(Broken())


def test_gradients_of_the_whole_batch_match_a_sum_written_by_hand() -> None:
    """GRPO's gradient against the textbook max(-A r, -A clip r) averaged per row, then over rows."""
    grpo = registered()["grpo"]()
    batch = random_batch(grpo, 2)
    policy = BigramPolicy(VOCABULARY, 2)
    objective, ready = checks.prepared(grpo, batch)
    ours = checks.gradient(objective, policy, ready)
    policy.module.zero_grad()
    ratio = (policy.evaluate(batch).log_prob - batch.old_log_prob).exp()
    advantage = ready.planned["policy_gradient/advantage"]
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
    length = batch.mask.sum(1)
    (torch.where(batch.mask, loss, 0).sum(1) / length.clamp_min(1)).sum().div((length > 0).sum()).backward()
    torch.testing.assert_close(ours[:25], policy.module["logits"].grad.flatten(), rtol=0, atol=1e-12)
