"""Episodes that begin in one of a few ways, for environments whose seed decides their layout."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Configurations(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Resets with one of the seeds `first`, `first` + 1 … (`count` of them), drawn with the seed that it is given itself."""

    def __init__(self, environment: gymnasium.Env, count: int, first: int = 0) -> None:
        if count < 1:
            raise ValueError(f"count is {count}; accepted: 1 or more configurations")
        super().__init__(environment)
        self.count, self.first = count, first
        self.draw = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.draw = np.random.default_rng(seed)
        return self.env.reset(seed=self.first + int(self.draw.integers(self.count)), options=options)
