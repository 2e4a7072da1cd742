"""What critics promised against what came of it: values of the actions that were taken, beside the returns of the episodes that ended.

Nothing is played for it: kept transitions are looked at again, with the networks as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipg.critics.regression import Bootstrapped, Regression
from unipg.critics.values import bonus_of, reduced
from unipg.estimator import Planning
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE
from unipg.replay import Ring
from unipg.trajectories import Evaluation, Source, Trajectories

MOST = 4096
"""Newest transitions that are looked at."""
PIECE = 512
"""Transitions of one forward pass."""
UNSEEN = 0.5
"""Most weight that may lie on what follows a time limit, which the critic itself has to say."""
READ = ("observation", "next_observation", "action", "reward", "terminated")


@torch.no_grad()
def promised(
    ring: Ring, policy: ActorCritic, regression: Regression, planning: Planning, source: torch.Generator, *, newest: int, ahead: int = 1
) -> dict[str, float]:
    """Means over the steps of episodes that ended among the `newest` rows; empty where there are none that say anything.

        values/predicted   Q(s_t, a_t), mean of the members of the network that `regression` trains
        values/observed    G_t = r_t + discount · (b_{t+1} + G_{t+1}),  b: what the target adds to the value, an entropy bonus
        values/steps       how many steps that is

    After a terminal step nothing follows; after a time limit what the regression's target says, and steps on which that weighs more than
    `UNSEEN` are left out. `ahead`: steps of its returns, of whose last state alone b counts. `source`: noise of the targets' actions.
    """
    first = max(0, len(ring) - MOST)
    ends = ring.draw(torch.arange(first, len(ring)), "episode", "terminated", "truncated")
    episode, terminated = ends["episode"].numpy(), ends["terminated"].numpy()
    ended = terminated | ends["truncated"].numpy()
    rows = np.flatnonzero(np.isin(episode, episode[-newest:][ended[-newest:]]))
    if not len(rows):
        return {}
    rows = rows[np.argsort(episode[rows], kind="stable")]  # one episode after the other, each in the order of time
    last = np.flatnonzero(np.append(np.diff(episode[rows]) != 0, True))
    index = torch.from_numpy(rows + first)
    value, bonus = _judged(ring, policy, regression, planning, index)
    tail = _targets(ring, policy, regression, planning, index[torch.from_numpy(last)], source)
    reward = ring.draw(index, "reward")["reward"].numpy()
    assert isinstance(regression.target, Bootstrapped)
    observed, unseen = _returns(reward, bonus, tail, last, terminated[rows][last], regression.target.discount, ahead)
    counted = unseen <= UNSEEN
    if not counted.any():
        return {}
    return {
        "values/predicted": float(value[counted].mean()),
        "values/observed": float(observed[counted].mean()),
        "values/steps": float(counted.sum()),
    }


def _returns(
    reward: np.ndarray, bonus: np.ndarray, tail: np.ndarray, last: np.ndarray, terminal: np.ndarray, discount: float, ahead: int
) -> tuple[np.ndarray, np.ndarray]:
    """[N] G of steps that stand episode after episode, and [N] the weight in it of what follows the episode's end.

    `last` [E]: where each episode ends, `tail` [E]: its last step's target, `terminal` [E]: whether nothing follows it.
    """
    total, extra, unseen = (np.zeros(len(reward)) for _ in range(3))
    start = 0
    for end, ending, over in zip(last.tolist(), tail.tolist(), terminal.tolist(), strict=True):
        total[end], unseen[end] = ending, 0.0 if over else discount
        for t in range(end - 1, start - 1, -1):
            total[t], unseen[t] = reward[t] + discount * total[t + 1], discount * unseen[t + 1]
            if t + ahead <= end:
                extra[t] = discount**ahead * (bonus[t + ahead] + extra[t + ahead])
        start = end + 1
    return total + extra, unseen


def _judged(ring: Ring, policy: ActorCritic, regression: Regression, planning: Planning, index: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """[N] values of the actions that were taken, and [N] what the target adds to such values."""
    added = bonus_of(regression.target.value) if isinstance(regression.target, Bootstrapped) else None
    values, bonuses = [], []
    for piece in index.split(PIECE):
        batch = _batch(ring, policy, piece)
        now: Evaluation = policy.now(batch)
        values.append(reduced(now.action_value(regression.of), "mean"))
        bonuses.append(torch.zeros_like(values[-1]) if added is None else added(batch, now, planning))
    return _flat(values), _flat(bonuses)


def _targets(
    ring: Ring, policy: ActorCritic, regression: Regression, planning: Planning, index: Tensor, source: torch.Generator
) -> np.ndarray:
    """[E] what the regression aims at on some rows."""
    found = []
    for piece in index.split(PIECE):
        batch = _batch(ring, policy, piece)
        for at in regression.noise:
            noise = torch.randn(len(piece), 1, policy.actions.noises, generator=source)
            batch = batch.with_planned(**{NOISE.format(at): noise.to(policy.device)})
        found.append(regression.aim(policy.now(batch), batch, planning))
    return _flat(found)


def _flat(pieces: list[Tensor]) -> np.ndarray:
    flat: np.ndarray = torch.cat(pieces).reshape(-1).double().cpu().numpy()
    return flat


def _batch(ring: Ring, policy: ActorCritic, index: Tensor) -> Trajectories:
    rows: dict[str, Any] = {name: tensor.unsqueeze(1) for name, tensor in ring.draw(index, *READ).items()}
    rows["step_reward"] = rows.pop("reward")
    source = torch.full((len(index),), int(Source.REPLAY))
    return Trajectories(mask=torch.ones(len(index), 1, dtype=torch.bool), source=source, **rows).to(policy.device)
