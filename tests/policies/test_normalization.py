"""Running statistics of observations: those of everything shown, however it was cut; part of the policy and of what it saves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from unipg.errors import InputError
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.policies.normalization import LIMIT, RunningNormalizer
from unipg.trajectories import Trajectories

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def far(rows: int) -> torch.Tensor:
    """Numbers of three scales, far from 0."""
    draw = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    return draw * torch.tensor([1.0, 10.0, 1e-3]) + torch.tensor([1000.0, -5.0, 0.0])


def test_the_statistics_are_those_of_all_batches() -> None:
    x = far(1000)
    pieces = RunningNormalizer(3)
    for piece in x.split([1, 7, 400, 592]):
        pieces.update(piece)
    wide = x.double()
    torch.testing.assert_close(pieces.mean, wide.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pieces.squares / pieces.count, wide.var(0, correction=0), rtol=1e-9, atol=1e-15)
    expected = (wide - wide.mean(0)) / (wide.var(0, correction=0) + 1e-8).sqrt()
    seen = pieces(x)
    assert seen.dtype == x.dtype
    torch.testing.assert_close(seen, expected.float().clamp(-10, 10))
    assert torch.equal(torch.from_numpy(pieces.on_the_host()(x.numpy())), seen)


def test_workers_that_share_a_batch_agree_with_one() -> None:
    x = far(100)
    alone, *shared = (RunningNormalizer(3) for _ in range(3))
    alone.update(x)
    parts = x.split([30, 70])
    added = [torch.cat([p.double().sum(0), torch.tensor([float(len(p))])]) for p in parts]
    mean = alone.mean
    sums = [sum(added), sum(((p.double() - mean) ** 2).sum(0) for p in parts)]
    for part, mine in zip(parts, shared, strict=True):
        totals = iter(sums)
        mine.update(part, lambda _, totals=totals: next(totals))
        torch.testing.assert_close(mine.squares, alone.squares)
        torch.testing.assert_close(mine.mean, alone.mean)
        assert mine.count == 100


def test_before_anything_was_shown_and_after_nothing() -> None:
    empty = RunningNormalizer(3)
    x = far(4)
    assert empty(x) is x
    empty.update(x[:0])
    assert empty.empty
    empty.update(torch.ones(5, 3))
    assert (empty(torch.ones(1, 3)) == 0).all()
    assert (empty(torch.tensor([[1e6, 1.0, -1e6]])) == torch.tensor([[LIMIT, 0.0, -LIMIT]])).all()


def test_a_number_that_never_changed_is_not_blown_up() -> None:
    """Three constants, one of them not exact in binary; then a one-hot that lights up, and rounding of the others."""
    seen = RunningNormalizer(4)
    row = torch.tensor([0.1, -3e6, 0.0])
    for piece in (1, 7, 1000):
        seen.update(torch.cat([row.expand(piece, 3), torch.linspace(0, 1, piece).unsqueeze(1)], 1))
    found = seen(torch.tensor([[0.1, -3e6, 0.0, 0.5], [0.1 + 1e-7, -3e6, 1.0, 0.5]]))
    assert found[:, :3].tolist() == [pytest.approx([0, 0, 0], abs=1e-6), pytest.approx([0, 0, 1], abs=1e-6)]
    assert seen(torch.tensor([[0.0] * 3 + [1.0]]))[0, 3] == pytest.approx(3**0.5, rel=0.02)
    nearly = RunningNormalizer(1)
    nearly.update(torch.tensor([[0.5], [0.501]]))
    assert nearly(torch.tensor([[0.0]])).item() == -LIMIT


def policy() -> ActorCritic:
    made = ActorCriticRecipe([8], normalize_observations=True).build(BOX, spaces.Discrete(2), 0)
    made.observe(batch(), lambda counts: counts)
    return made


def batch() -> Trajectories:
    observation = far(12).reshape(4, 3, 3)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 2] = False
    observation[1, 2] = torch.nan
    return Trajectories(action=torch.zeros(4, 3, dtype=torch.long), mask=mask, observation=observation)


def test_everything_that_reads_observations_reads_the_same() -> None:
    made, rows = policy(), batch()
    assert made.module.normalizer is not None
    assert made.module.normalizer.count == 11  # what the policy did not act on does not count
    live = rows.observation[rows.mask]  # type: ignore[index]
    seen = made.module.normalizer(live)
    output = made.module.actor(seen)
    now = made.evaluate(rows, value=True)
    torch.testing.assert_close(now.log_prob[rows.mask], torch.log_softmax(output, -1)[:, 0])
    torch.testing.assert_close(now.value[rows.mask], made.module.critic(seen).squeeze(-1))  # type: ignore[index]
    torch.testing.assert_close(made.value(live), made.module.critic(seen).squeeze(-1))
    assert made.actor()(live.numpy(), None).tolist() == output.argmax(-1).tolist()


def test_evaluating_moves_no_statistics() -> None:
    made = policy()
    before = {name: tensor.clone() for name, tensor in made.module.state_dict().items()}
    made.module.train()
    made.evaluate(batch(), value=True)
    made.actor()(far(3).numpy(), None)
    assert all(torch.equal(before[name], tensor) for name, tensor in made.module.state_dict().items())


def test_they_are_saved_and_follow_the_policy(tmp_path: Path) -> None:
    made, rows = policy(), batch()
    made.save(tmp_path)
    loaded = ActorCritic.load(tmp_path)
    assert loaded.normalizes
    assert torch.equal(loaded.evaluate(rows).log_prob, made.evaluate(rows).log_prob)
    other = ActorCriticRecipe([8], normalize_observations=True).build(BOX, spaces.Discrete(2), 5)
    assert other.must_observe
    other.follow(made)
    assert not other.must_observe
    assert torch.equal(other.evaluate(rows).log_prob, made.evaluate(rows).log_prob)


def test_a_normaliser_of_the_environment_is_replaced_and_said() -> None:
    with pytest.warns(UserWarning, match="NormalizeObservation is switched off, and the policy keeps the statistics"):
        assert ActorCriticRecipe([8]).build(BOX, spaces.Discrete(2), 0, normalized=True).normalizes
    assert not ActorCriticRecipe([8]).build(BOX, spaces.Discrete(2), 0).normalizes
    with pytest.raises(InputError, match=r"controller\.normalize_observations is false, but the environment is wrapped by"):
        ActorCriticRecipe([8], normalize_observations=False).build(BOX, spaces.Discrete(2), 0, normalized=True)
