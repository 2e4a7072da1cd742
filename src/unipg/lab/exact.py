"""Problems whose every trajectory is listed: expectations, objectives and their gradients are finite sums, exact to float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unipg.lab.strings import StringProblem, TabularPolicy
from unipg.trajectories import Trajectories


@dataclass(frozen=True)
class ExactProblem:
    """Every trajectory of every context (prompt, start state), the policy that is studied, and a demonstrator.

    Expectations are over the trajectories of one context, then the plain mean over contexts.
    """

    name: str
    title: str
    """The problem in one plain sentence."""
    rows: Trajectories
    """The N trajectories; `group` is the number of the context, from 0."""
    log_environment: Tensor
    """[N] log-probability of what the environment did in each trajectory; 0 where it has no randomness."""
    policy: TabularPolicy
    """pi_theta: every exact gradient is taken here."""
    anchor: TabularPolicy
    """The policy that a KL is measured against."""
    demonstrator: Tensor
    """[N] pi_beta(trajectory | context)."""
    horizon: int
    """Limit on the policy's tokens (or steps) in one trajectory."""

    @property
    def trajectories(self) -> int:
        """How many there are in all."""
        return len(self.rows)

    @property
    def outcome(self) -> str:
        """What makes it a yardstick."""
        return f"{self.title}: {self.trajectories} trajectories in all, so every gradient is known exactly."

    @property
    def context(self) -> Tensor:
        """[N] the context of each trajectory."""
        assert self.rows.group is not None
        return self.rows.group

    @property
    def contexts(self) -> int:
        return int(self.context.max()) + 1

    def log_prob(self, policy: TabularPolicy | None = None) -> Tensor:
        """[N,T] log-probability of each action, with the graph."""
        return (policy or self.policy).evaluate(self.rows).log_prob

    def probability(self, policy: TabularPolicy | None = None) -> Tensor:
        """[N] probability of each trajectory given its context, with the graph."""
        return self.probability_of(self.log_prob(policy))

    def probability_of(self, log_prob: Tensor) -> Tensor:
        """[N] from log-probabilities of the actions `[N,T]`; −inf for an action that is never taken."""
        return (torch.where(self.rows.mask, log_prob, 0).sum(1) + self.log_environment).exp()

    # ------------------------------------------------------------------------------------------------ objectives

    def expected_reward(self, policy: TabularPolicy | None = None) -> Tensor:
        """J = E_pi[R], with the graph."""
        return (self.probability(policy) * self.rows.total_reward()).sum() / self.contexts

    def demonstration_likelihood(self, policy: TabularPolicy | None = None) -> Tensor:
        """E_beta[log pi] = −KL(pi_beta || pi) plus what does not depend on pi: what SFT maximises, with the graph."""
        return (self.demonstrator * torch.where(self.rows.mask, self.log_prob(policy), 0).sum(1)).sum() / self.contexts

    def divergence_from_anchor(self, policy: TabularPolicy | None = None) -> Tensor:
        """KL(pi || pi_anchor) over whole trajectories, with the graph."""
        log_ratio = torch.where(self.rows.mask, self.log_prob(policy) - self.log_prob(self.anchor).detach(), 0).sum(1)
        return (self.probability(policy) * log_ratio).sum() / self.contexts

    def regularised_reward(self, weight: float, policy: TabularPolicy | None = None) -> Tensor:
        """E_pi[R] − weight · KL(pi || pi_anchor), with the graph."""
        return self.expected_reward(policy) - weight * self.divergence_from_anchor(policy)

    def common_objective(self, mu: float, policy: TabularPolicy | None = None) -> Tensor:
        """J_mu = E_pi[R] − mu · KL(pi_beta || pi), up to pi_beta's entropy, with the graph. Source: arXiv 2509.04419, section 3."""
        return self.expected_reward(policy) + mu * self.demonstration_likelihood(policy)

    def gradient(self, objective: Callable[[TabularPolicy], Tensor], policy: TabularPolicy | None = None) -> Tensor:
        """[S·A] exact gradient of one of the objectives in the policy's logits."""
        policy = policy or self.policy
        (found,) = torch.autograd.grad(objective(policy), policy.logits)
        return found.flatten()

    # ------------------------------------------------------------------------------------------------ other policies

    def lagged(self, steps: int, size: float) -> TabularPolicy:
        """The policy that `steps` exact policy-gradient steps of length `size` ago would have become the present one, nearly: the
        gradient is descended, a step at a time, from the present parameters."""
        past = self.policy.twin()
        for _ in range(steps):
            slope = self.gradient(self.expected_reward, past)
            with torch.no_grad():
                past.logits.sub_((slope / slope.norm()).reshape(past.logits.shape), alpha=size)
        return past

    def values(self, log_prob: Tensor) -> Tensor:
        """[N,T] the exact value before each step under a policy with log-probabilities `log_prob`: what a perfect critic would say.

        V(history) = E[reward from here on | history]
        """
        rows = self.rows
        weight = self.probability_of(log_prob).detach()
        step_reward = torch.zeros(rows.mask.shape, dtype=weight.dtype) if rows.step_reward is None else rows.step_reward
        earned = torch.where(rows.mask, step_reward, 0)
        to_go = rows.total_reward().unsqueeze(1) - earned.cumsum(1) + earned
        values = torch.zeros_like(earned)
        for step in range(rows.mask.shape[1]):
            here = rows.mask[:, step]
            history = [self.context.unsqueeze(1), rows.action[:, :step]]
            if rows.observation is not None:
                history.append(rows.observation[:, : step + 1])
            seen, index = torch.cat(history, 1)[here].unique(dim=0, return_inverse=True)
            mass, total = torch.zeros(2, len(seen), dtype=weight.dtype)
            mass = mass.index_add(0, index, weight[here])
            total = total.index_add(0, index, weight[here] * to_go[here, step])
            values[here, step] = torch.where(mass > 0, total / torch.where(mass > 0, mass, 1), 0)[index]
        return values


def noisy_best(rows: Trajectories, log_environment: Tensor, noise: float) -> Tensor:
    """[N] a demonstrator: the best trajectory of each context with probability 1 − noise, otherwise what a policy that acts uniformly
    at random would do."""
    assert rows.group is not None
    chosen = torch.zeros(len(rows), dtype=torch.float64)
    reward = rows.total_reward()
    for context in rows.group.unique():
        mine = (rows.group == context).nonzero().squeeze(-1)
        spread = log_environment[mine].exp()
        chosen[mine] = noise * spread / spread.sum()
        chosen[mine[reward[mine].argmax()]] += 1 - noise
    return chosen


def from_strings(
    problem: StringProblem, policy: TabularPolicy, *, name: str, title: str, noise: float, anchor: TabularPolicy
) -> ExactProblem:
    """The exact form of a string problem: contexts are its prompts, in order."""
    pairs = [(number, prompt, answer) for number, prompt in enumerate(problem.prompts) for answer in problem.answers()]
    rows = problem.batch([(prompt, answer) for _, prompt, answer in pairs], [number for number, _, _ in pairs])
    quiet = torch.zeros(len(rows), dtype=torch.float64)
    return ExactProblem(name, title, rows, quiet, policy, anchor, noisy_best(rows, quiet, noise), problem.length)
