"""The whole idea in one file: one estimator, four parts, and HPT on top; torch only.

    grad J = E_data[ 1_stable · (1 / pi_ref) · Â · ∇ pi_theta ]                                    (arXiv 2509.04419)

Read it from top to bottom. Each part is a function of tensors `[B,T]` (B trajectories, T tokens); an algorithm is a choice of parts; two
algorithms on different data add up to a third. The last section trains a tiny model by SFT, by GRPO and by HPT, and shows why the sum is
worth having. Run it: `python examples/mini_unipg.py` (about half a minute). The library's gradients are tested against this file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------------------------------------------
# 1. The batch. Everything here is data: no graph.


@dataclass
class Batch:
    """B trajectories of at most T tokens, prompt and answer in one row."""

    tokens: Tensor
    """[B,T] prompt, answer, padding."""
    mask: Tensor
    """[B,T] 1 on the tokens the policy chose."""
    group: Tensor
    """[B] which prompt a row answers."""
    reward: Tensor
    """[B] how good it was."""
    demonstration: Tensor
    """[B] 1 where somebody else wrote the answer."""
    old_log_prob: Tensor | None = None
    """[B,T] under the policy that sampled."""
    weight: dict[str, Tensor] = field(default_factory=dict)
    """[B] row weights by term: a gate's decision."""


# ------------------------------------------------------------------------------------------------------------------------------------
# 2. First part: the stabilisation mask, 1_stable. Which tokens may move the policy?


def everything(log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """1 everywhere."""
    return torch.ones_like(log_ratio, dtype=torch.bool)


def ratio_clip(low: float = 0.2, high: float = 0.2) -> Callable[[Tensor, Tensor], Tensor]:
    """PPO: a token is silenced once its ratio r = pi / pi_old has moved far enough in the direction the advantage pushes it."""

    def mask(log_ratio: Tensor, advantage: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        return ~(((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low)))

    return mask


# ------------------------------------------------------------------------------------------------------------------------------------
# 3. Second part: the reference policy, 1 / pi_ref. What is the likelihood divided by?
#    The weight on ∇log pi is pi / pi_ref, since ∇pi = pi · ∇log pi.


def current_policy(log_prob: Tensor, old_log_prob: Tensor | None) -> Tensor:
    """pi_ref = pi: weight 1. SFT, REINFORCE."""
    return log_prob


def old_policy(log_prob: Tensor, old_log_prob: Tensor | None) -> Tensor:
    """pi_ref = pi_old: weight r. PPO, GRPO. On the first step after sampling the two policies are one, and r = 1."""
    return log_prob if old_log_prob is None else old_log_prob


def uniform(log_prob: Tensor, old_log_prob: Tensor | None) -> Tensor:
    """pi_ref = 1: weight pi. DFT: unlikely tokens of a demonstration hardly count."""
    return torch.zeros_like(log_prob)


def shaped_uniform(log_prob: Tensor, old_log_prob: Tensor | None) -> Tensor:
    """LUFFY: weight f'(pi) · pi with f(p) = p / (p + 0.1)."""
    weight = 0.1 / (log_prob.exp() + 0.1) ** 2 * log_prob.exp()
    return log_prob - weight.log()


# ------------------------------------------------------------------------------------------------------------------------------------
# 4. Third part: the advantage, Â. How good was the action, given what was to be expected?


def one(batch: Batch) -> Tensor:
    """[B] Â = 1: imitate."""
    return torch.ones_like(batch.reward)


def group_mean(batch: Batch, values: Tensor) -> Tensor:
    """[B] mean of `values` over the rollouts of each row's prompt."""
    counted = (~batch.demonstration).to(values.dtype)
    same = (batch.group.unsqueeze(0) == batch.group.unsqueeze(1)).to(values.dtype) * counted
    return same @ values / same.sum(1).clamp_min(1)


def group_centered(batch: Batch) -> Tensor:
    """[B] Â = R − mean over the group (Dr. GRPO)."""
    return batch.reward - group_mean(batch, batch.reward)


def group_standardized(batch: Batch) -> Tensor:
    """[B] Â = (R − mean) / std over the group (GRPO), the variance divided by n − 1."""
    n = group_mean(batch, torch.ones_like(batch.reward))  # 1 where the group has rollouts
    counted = (~batch.demonstration).to(batch.reward.dtype)
    size = ((batch.group.unsqueeze(0) == batch.group.unsqueeze(1)).to(n.dtype) * counted).sum(1)
    centred = group_centered(batch)
    variance = group_mean(batch, centred**2) * size / (size - 1).clamp_min(1)
    return centred / (variance.sqrt() + 1e-6)


# ------------------------------------------------------------------------------------------------------------------------------------
# 5. Fourth part: the likelihood and its gradient. Here: a softmax over the next token.


def token_log_prob(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """[B,T] log pi(token | tokens before it), with the graph; 0 for the first token, which nothing precedes."""
    log_p = model(tokens[:, :-1]).log_softmax(-1)
    return torch.nn.functional.pad(log_p.gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1), (1, 0))


# ------------------------------------------------------------------------------------------------------------------------------------
# 6. The estimator: how the parts multiply, and how tokens are aggregated.


@dataclass(frozen=True)
class PolicyGradient:
    """One term. `rows`: demonstrations or rollouts. `normalise`: [B,T] weights of the group's tokens, from the WHOLE batch."""

    advantage: Callable[[Batch], Tensor]
    reference: Callable[[Tensor, Tensor | None], Tensor] = current_policy
    mask: Callable[[Tensor, Tensor], Tensor] = everything
    normalise: Callable[[Tensor], Tensor] = lambda mask: mask / mask.sum().clamp_min(1)
    demonstrations: bool = False
    name: str = ""

    def plan(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Once per batch, before anything is cut into pieces: advantages [B,1] and token weights [B,T]."""
        mine = batch.demonstration == self.demonstrations
        weight = self.normalise((batch.mask & mine.unsqueeze(1)).to(batch.reward.dtype))
        rows = batch.weight.get(self.name)
        return self.advantage(batch).unsqueeze(1), weight if rows is None else weight * rows.unsqueeze(1)

    def loss(self, log_prob: Tensor, batch: Batch) -> Tensor:
        """−sum weight · coefficient · log pi, the coefficient detached: its gradient is the formula at the top of this file."""
        advantage, weight = self.plan(batch)
        live = weight != 0
        lp = torch.where(live, log_prob.detach(), 0)  # nothing may leak from where the mask is 0, NaN included
        old = None if batch.old_log_prob is None else torch.where(live, batch.old_log_prob, 0)
        log_reference = self.reference(lp, old)
        stable = self.mask(lp - log_reference, advantage)
        coefficient = torch.where(stable & live, advantage * (lp - log_reference).exp(), 0)
        return -(weight * coefficient * torch.where(live, log_prob, 0)).sum()


def token_mean(mask: Tensor) -> Tensor:
    """Every token of the group counts equally."""
    return mask / mask.sum().clamp_min(1)


def row_mean(mask: Tensor) -> Tensor:
    """Every row counts equally, long or short."""
    return mask / mask.sum(1, keepdim=True).clamp_min(1) / (mask.sum(1) > 0).sum().clamp_min(1)


def constant_length(length: int) -> Callable[[Tensor], Tensor]:
    """Every row's sum over a constant: long rows count for more, as they should."""
    return lambda mask: mask / length / (mask.sum(1) > 0).sum().clamp_min(1)


# ------------------------------------------------------------------------------------------------------------------------------------
# 7. Algorithms: rows of the paper's table.

LIMIT = 3  # tokens in an answer, its end included

SFT = (PolicyGradient(one, current_policy, demonstrations=True),)
DFT = (PolicyGradient(one, uniform, demonstrations=True),)
GRPO = (PolicyGradient(group_standardized, old_policy, ratio_clip(0.2, 0.2), row_mean),)
DR_GRPO = (PolicyGradient(group_centered, old_policy, ratio_clip(0.2, 0.2), constant_length(LIMIT)),)
HPT = (
    PolicyGradient(group_centered, old_policy, everything, constant_length(LIMIT), name="rollouts"),
    PolicyGradient(one, current_policy, demonstrations=True, name="sft"),
)


def gate(batch: Batch, gamma: float = 0.0) -> Batch:
    """HPT's gate: reinforcement where the success rate is above gamma, supervision elsewhere. A row of weight 0 still counts."""
    learns = (group_mean(batch, batch.reward) > gamma).to(batch.reward.dtype)
    batch.weight = {"rollouts": learns, "sft": 1 - learns}
    return batch


def total_loss(algorithm: tuple[PolicyGradient, ...], log_prob: Tensor, batch: Batch) -> Tensor:
    """A sum of estimators is an estimator."""
    return torch.stack([term.loss(log_prob, batch) for term in algorithm]).sum()


# ------------------------------------------------------------------------------------------------------------------------------------
# 8. A task to try it on: `a b op =` has the answer `b a` (op 0, swap) or `a+1 b+1` (op 1, modulo 8), then the end. The warm-up knows
#    swap only, so rollouts alone never find the second operation; and one demonstration in five has a wrong letter.

LETTERS, END, OPS, VOCABULARY = 8, 8, (9, 10), 11


def answers(prompts: Tensor) -> Tensor:
    """[B,3] the right answers, their end included."""
    first, second, op = prompts.unbind(1)
    swap = torch.stack([second, first], 1)
    shift = (torch.stack([first, second], 1) + 1) % LETTERS
    right = torch.where((op == OPS[0]).unsqueeze(1), swap, shift)
    return torch.cat([right, torch.full_like(right[:, :1], END)], 1)


def draw_prompts(count: int, rng: torch.Generator, ops: tuple[int, ...] = OPS) -> Tensor:
    """[B,3] two letters and an operation."""
    letters = torch.randint(LETTERS, (count, 2), generator=rng)
    return torch.cat([letters, torch.tensor(ops)[torch.randint(len(ops), (count, 1), generator=rng)]], 1)


class Model(torch.nn.Module):
    """A network over the last five tokens, one-hot: enough for this task."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(5 * VOCABULARY + 6, width), torch.nn.ReLU(), torch.nn.Linear(width, VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,T,V] logits of the next token."""
        length = tokens.shape[1]
        padded = torch.nn.functional.one_hot(torch.nn.functional.pad(tokens, (4, 0)), VOCABULARY).float()
        window = torch.cat([padded[:, i : i + length] for i in range(5)], -1)
        place = torch.eye(6)[:length].expand(len(tokens), -1, -1)
        return self.layers(torch.cat([window, place], -1))


@torch.no_grad()
def roll_out(model: Model, prompts: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three sampled tokens for each prompt, and their log-probabilities [B,6]."""
    tokens, log_prob = prompts, torch.zeros(prompts.shape)
    for _ in range(LIMIT):
        log_p = model(tokens)[:, -1].log_softmax(-1)
        choice = torch.multinomial(log_p.exp(), 1, generator=rng)
        tokens, log_prob = torch.cat([tokens, choice], 1), torch.cat([log_prob, log_p.gather(1, choice)], 1)
    return tokens, log_prob


def make_batch(model: Model, prompts: Tensor, rollouts: int, rng: torch.Generator) -> Batch:
    """The rollouts of each prompt, and one demonstration by a teacher who errs in one of five."""
    count = len(prompts)
    sampled, log_prob = roll_out(model, prompts.repeat_interleave(rollouts, 0), rng)
    right = answers(prompts)
    taught = right.clone()
    errs = torch.rand(count, generator=rng) < 0.2
    taught[errs, 0] = (taught[errs, 0] + 1) % LETTERS
    tokens = torch.cat([sampled, torch.cat([prompts, taught], 1)])
    group = torch.cat([torch.arange(count).repeat_interleave(rollouts), torch.arange(count)])
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    mask[:, prompts.shape[1] :] = True
    return Batch(
        tokens=tokens,
        mask=mask,
        group=group,
        reward=(tokens[:, prompts.shape[1] :] == right[group]).all(1).float(),
        demonstration=torch.arange(len(tokens)) >= count * rollouts,
        old_log_prob=torch.cat([log_prob, torch.zeros(count, tokens.shape[1])]),
    )


def train(
    algorithm: tuple[PolicyGradient, ...], steps: int, model: Model, seed: int, ops: tuple[int, ...] = OPS, rollouts: int = 8
) -> Model:
    """The one loop, for every algorithm: sample, gate, plan, step."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = make_batch(model, draw_prompts(32, rng, ops), rollouts, rng)
        if any(term.name for term in algorithm):
            batch = gate(batch)
        optimizer.zero_grad()
        total_loss(algorithm, token_log_prob(model, batch.tokens), batch).backward()
        optimizer.step()
    return model


def score(model: Model, seed: int = 12345) -> list[float]:
    """Share of right answers at temperature 1: all, swap, shift."""
    rng = torch.Generator().manual_seed(seed)
    shares = []
    for ops in (OPS, OPS[:1], OPS[1:]):
        prompts = draw_prompts(1000, rng, ops)
        tokens, _ = roll_out(model, prompts, rng)
        shares.append(float((tokens[:, prompts.shape[1] :] == answers(prompts)).all(1).float().mean()))
    return shares


def main(steps: int = 300) -> dict[str, list[float]]:
    """Trains the same warmed-up model by three algorithms and prints what each of them learnt."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = train(SFT, 150, Model(), seed=1, ops=OPS[:1], rollouts=1)
    results = {"warm-up": score(base)}
    for name, algorithm in (("SFT", SFT), ("GRPO", GRPO), ("HPT", HPT)):
        model = Model()
        model.load_state_dict(base.state_dict())
        results[name] = score(train(algorithm, steps, model, seed=2))
    print(f"{'':8}{'all':>8}{'swap':>8}{'shift':>8}   share of right answers, sampled")
    for name, shares in results.items():
        print(f"{name:8}" + "".join(f"{share:8.3f}" for share in shares))
    print("SFT copies the teacher's errors; GRPO never finds what it never samples; HPT does neither.")
    return results


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
