"""Environments one step at a time, for buffers that keep transitions; what a window of them is, is `environments.py`."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unipg.rollouts.blame import blame
from unipg.rollouts.playing import check_counts, not_finite, resets_in_same_step

if TYPE_CHECKING:
    import gymnasium

    from unipg.policies.actor_critic import Controller


@dataclass
class Step:
    """What one step of N environments gave; rows that only reset themselves are left out."""

    observation: np.ndarray
    """[N,O] before the step."""
    next_observation: np.ndarray
    """[N,O] after it: the true final observation where the episode ended."""
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    """An end that is both is an end: `terminated` alone."""
    episode: np.ndarray
    """[N] a number that no other episode of the run has."""
    live: np.ndarray | None
    """[N of all environments] bool: those that this is of; None for all of them."""


class Episodes:
    """The episodes that N environments are in: their numbers, returns and lengths; and those that have ended."""

    def __init__(self, rows: int, recent: int) -> None:
        self.number = np.arange(rows)
        self.begun = rows
        self.returns, self.lengths = np.zeros(rows), np.zeros(rows, np.int64)
        self.ended: list[tuple[float, int]] = []
        """Return and length of the episodes that have ended since `told`."""
        self.recent: deque[float] = deque(maxlen=recent)
        self.steps = 0

    def add(self, reward: np.ndarray, ended: list[int], live: np.ndarray | None) -> None:
        """A step of all environments, of which rows `ended`; `live`: those that took one."""
        if live is None:
            self.returns += reward
            self.lengths += 1
            self.steps += len(reward)
        else:
            self.returns[live] += reward[live]
            self.lengths[live] += 1
            self.steps += int(live.sum())
        for row in ended:
            self.ended.append((float(self.returns[row]), int(self.lengths[row])))
            self.recent.append(float(self.returns[row]))
            self.returns[row] = self.lengths[row] = 0
            self.number[row] = self.begun
            self.begun += 1

    def renumber(self) -> None:
        """Every environment is in a new episode."""
        self.number = self.begun + np.arange(len(self.number))
        self.begun += len(self.number)

    def told(self) -> dict[str, float]:
        """Metrics of the episodes that have ended since the last call."""
        metrics = {"return/episodes": float(len(self.ended)), "environment/steps": float(self.steps)}
        if self.ended:
            returns, lengths = zip(*self.ended, strict=True)
            metrics |= {"return/mean": float(np.mean(returns)), "length/mean": float(np.mean(lengths))}
        if self.recent:
            metrics[f"return/last_{self.recent.maxlen}"] = float(np.mean(self.recent))
        self.ended = []
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "number": self.number.tolist(),
            "begun": self.begun,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "ended": [list(pair) for pair in self.ended],
            "recent": list(self.recent),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.begun, self.steps = np.array(state["number"]), state["begun"], state["steps"]
        self.returns, self.lengths = np.array(state["returns"]), np.array(state["lengths"], np.int64)
        self.ended = [(value, length) for value, length in state["ended"]]
        self.recent = deque(state["recent"], self.recent.maxlen)


class Stepper:
    """Environments that are stepped one step at a time and reset themselves.

    `name`: of the environment, for errors. Errors: `InputError` for an observation or a reward that is not finite, naming environment, row
    and step of the run.
    """

    def __init__(
        self, environments: gymnasium.vector.VectorEnv, name: str, policy: Controller, observation: np.ndarray, episodes: Episodes
    ) -> None:
        self.environments, self.name, self.episodes = environments, name, episodes
        self._policy, self._flatten, self._flatten_one = policy, policy.flatten, policy.flatten_one
        self.observation = observation.copy()
        """[N,O] where they stand; a copy, since environments may write over theirs."""
        self.resetting = np.zeros(len(observation), bool)
        """Rows whose next step is only a reset."""
        self._same_step = resets_in_same_step(environments)

    def step(self, given: np.ndarray) -> Step:
        """One step with the environments' own actions [N,…]."""
        before, resetting = self.observation, self.resetting
        try:
            following, reward, terminated, truncated, infos = self.environments.step(given)
            after = np.array(self._flatten(following))  # a copy: environments may write over theirs
        except (Exception, SystemExit) as error:
            blame(error, self.name, f"at step {self.episodes.steps} of the run")
            raise
        reward = np.asarray(reward, np.float64)
        ended = terminated | truncated
        rows = ended.nonzero()[0].tolist()
        if rows:
            truncated = truncated & ~terminated
        final = after
        if self._same_step:
            if rows:
                final = after.copy()
                for row in rows:
                    final[row] = self._flatten_one(infos["final_obs"][row])
            live = None
        else:
            self.resetting = ended
            if resetting.any():
                live = ~resetting
                rows = (ended & live).nonzero()[0].tolist()
            else:
                live = None
        if not math.isfinite(float(final.sum()) + float(reward.sum())):
            self._refuse(final, reward, live)
        check_counts(self._policy, self.name, final, live, self._place)
        step = Step(before, final, reward, terminated, truncated, self.episodes.number.copy(), live)
        self.episodes.add(reward, rows, live)
        self.observation = after
        if live is None:
            return step
        kept = {name: values[live] for name, values in vars(step).items() if values is not None and name != "live"}
        return Step(**kept, live=live)

    def state_dict(self) -> dict[str, Any]:
        """Where they stand, without the environments themselves."""
        return {
            "observation": torch.from_numpy(self.observation.copy()),
            "resetting": self.resetting.tolist(),
            "episodes": self.episodes.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """`state` without an observation is that of environments that start afresh: their episodes are new ones."""
        afresh = {name: value for name, value in self.episodes.state_dict().items() if name in ("returns", "lengths")}
        if "observation" in state:
            self.observation, self.resetting = state["observation"].numpy().copy(), np.array(state["resetting"], bool)
            self.episodes.load_state_dict(state["episodes"])
            return
        self.episodes.load_state_dict(state["episodes"] | afresh)
        self.episodes.renumber()

    def _refuse(self, observation: np.ndarray, reward: np.ndarray, live: np.ndarray | None) -> None:
        for what, values in (("observation", observation), ("reward", reward)):
            bad = ~np.isfinite(values)
            bad = bad.any(1) if bad.ndim > 1 else bad
            if live is not None:
                bad &= live
            if bad.any():
                row = int(bad.nonzero()[0][0])
                raise not_finite(self.name, what, values[row], self._place(row))

    def _place(self, row: int) -> str:
        return f"row {row} at step {self.episodes.lengths[row]} of its episode (step {self.episodes.steps} of the run)"
