"""Random batches that are fed to a peer's functions and to ours, all in float64."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from unipg import Advantage, Evaluation, Objective, Term, Trajectories


@dataclass(frozen=True)
class Given(Advantage):
    """An advantage per token that the test brings along, so that losses are compared whatever made the advantage."""

    needs: ClassVar[frozenset[str]] = frozenset({"given"})

    def __call__(self, batch, now=None, planning=None):
        return batch.require("given", "Given")


@dataclass
class Case:
    """Tensors of one batch: `[B,T]` per token, `[B]` per row. `mask` has right padding, and holes where a tool would speak."""

    log_prob: Tensor
    old: Tensor
    behaviour: Tensor
    anchor: Tensor
    mask: Tensor
    response: Tensor
    """[B,T] bool without the holes: everything up to each row's length."""
    advantage: Tensor
    reward: Tensor
    group: Tensor
    value: Tensor
    value_now: Tensor
    entropy: Tensor

    given: ClassVar[Given] = Given()

    @property
    def number(self) -> Tensor:
        """The mask as the peers hold it: 0 and 1 in int64."""
        return self.mask.long()

    @property
    def outcome(self) -> Tensor:
        """[B,T] the reward on each row's last policy step, 0 elsewhere: the form in which verl takes it."""
        last = torch.where(self.mask, torch.arange(self.mask.shape[1]), -1).amax(1)
        return torch.zeros_like(self.log_prob).scatter(1, last.unsqueeze(1), self.reward.unsqueeze(1))

    def batch(self, **changes) -> Trajectories:
        fields = {
            "action": torch.zeros(self.mask.shape, dtype=torch.long),
            "mask": self.mask,
            "group": self.group,
            "reward": self.reward,
            "old_log_prob": self.old,
            "behaviour_log_prob": self.behaviour,
            "anchor_log_prob": self.anchor,
            "value": self.value,
            "planned": {"given": self.advantage},
        }
        return Trajectories(**{**fields, **changes})

    def gradient(self, objective: Objective | Term, *, of: str = "log_prob", **changes) -> Tensor:
        """Our gradient with respect to what the policy says: `log_prob`, `entropy` or `value`."""
        return self.ours(objective, of=of, **changes)[1]

    def ours(self, objective: Objective | Term, *, of: str = "log_prob", **changes) -> tuple[Tensor, Tensor]:
        """Our loss and gradient."""
        now = {"log_prob": self.log_prob, "entropy": self.entropy, "value": self.value_now}
        now = {name: tensor.clone().requires_grad_() for name, tensor in now.items()}
        loss = objective(Evaluation(**now), self.batch(**changes))
        return loss.detach(), torch.autograd.grad(loss, now[of])[0]

    def beside(self, *bounds: float) -> None:
        """Makes the first rows one token long, with ratios a millionth below and above each bound under advantages of either sign."""
        row = 0
        for bound in bounds:
            for factor in (1 - 1e-6, 1 + 1e-6):
                for sign in (-1.0, 1.0):
                    self.mask[row] = torch.arange(self.mask.shape[1]) == 0
                    self.old[row, 0] = self.log_prob[row, 0] - math.log(bound * factor)
                    self.advantage[row] = sign
                    row += 1

    def select(self, rows) -> Case:
        return Case(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})


def random_case(seed: int, groups: int = 4, size: int = 5, steps: int = 9) -> Case:
    rng = torch.Generator().manual_seed(seed)
    rows = groups * size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=rng)

    def chance(share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng) < share

    log_prob = -3 * torch.rand(rows, steps, dtype=torch.float64, generator=rng)
    old = log_prob + 0.3 * normal(rows, steps)
    old = torch.where(chance(0.1, rows, steps), log_prob, old)  # some ratios are exactly 1
    old = torch.where(chance(0.15, rows, steps), log_prob - 1.5 - normal(rows, steps).abs(), old)  # some are beyond a dual clip
    response = torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1), generator=rng)
    response[0] = True
    mask = response & ~chance(0.2, rows, steps)
    mask[:, 0] = True
    reward = normal(rows)
    reward[size : 2 * size] = 0.1  # a group without signal, in a number that rounds
    return Case(
        log_prob=log_prob,
        old=old,
        behaviour=old + 0.05 * normal(rows, steps),
        anchor=log_prob + 0.4 * normal(rows, steps),
        mask=mask,
        response=response,
        advantage=torch.where(chance(0.1, rows, steps), 0.0, normal(rows, steps)),
        reward=reward,
        group=torch.arange(groups).repeat_interleave(size),
        value=normal(rows, steps),
        value_now=normal(rows, steps),
        entropy=torch.rand(rows, steps, dtype=torch.float64, generator=rng),
    )


@pytest.fixture(params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def case(request) -> Case:
    return random_case(request.param)


@pytest.fixture
def equal():
    """Asserts element-wise equality to 1e-10 (float64 on both sides) or to a stated tolerance."""

    def check(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=tolerance, atol=tolerance * 1e-3)

    return check
