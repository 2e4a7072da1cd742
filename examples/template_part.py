"""A part of your own, ready to be changed: copy this file, rename the class, put your equation into `__call__`.

    PolicyGradient(mask=MarginClip(0.2), reference=OldPolicy(), advantage=GroupStandardized(), aggregate=TokenMean())

uses it; `tests/test_template.py` tests it: every law, by listing the part in a class. An advantage, a reference, an aggregate or a
likelihood is written in the same way, from the base class of that name in `unipg.estimator`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator import Mask
from unipg.trajectories import Trajectories


# A part is a value: a frozen dataclass whose fields are its settings. They appear in tables and errors under their names.
@dataclass(frozen=True)
class MarginClip(Mask):
    """A symmetric trust region on each token's ratio r = pi_theta / pi_old, whichever way the advantage pushes.

        1  iff  |log r| <= log(1 + margin)

    `margin`: how far r, or 1 / r, may be above 1; above 0. Shapes: `log_ratio`, `advantage` and the result are `[B,T]`; `log_ratio` is 0
    where the policy did not act, so such tokens pass and the estimator leaves them out by itself. Source: change to the paper's section.
    """

    # Fields of the batch that `__call__` reads; the trainer provides them, or says before the model is loaded that it cannot.
    needs: ClassVar[frozenset[str]] = frozenset()
    # Why the expected gradient is not the exact one; "" claims that it is, and the law of exactness holds you to it.
    bias: ClassVar[str] = ""

    margin: float = 0.2

    # Refuse what makes no sense where it is written: name, value, and what is accepted.
    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise InputError(f"MarginClip.margin is {self.margin}; accepted: a distance of the ratio from 1 above 0")

    # Only for a mask on a ratio: the log-probability that the ratio is taken to. Leave this out if no ratio is read.
    @property
    def ratio_field(self) -> str:
        return "old_log_prob"

    # Everything that comes in is detached and 0 where the policy did not act. Look at each row alone: which rows come together is chance.
    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Trajectories) -> Tensor:
        return torch.abs(log_ratio) <= math.log1p(self.margin)
