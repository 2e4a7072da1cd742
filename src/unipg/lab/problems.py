"""The problems of the lab: bandits, counting strings, small trees; each an `ExactProblem`, so that one study runs on all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unipg.errors import InputError, nearest
from unipg.lab.continuous import Diffusions
from unipg.lab.control import PROBLEMS as CONTROL
from unipg.lab.exact import ExactProblem, from_strings, noisy_best
from unipg.lab.strings import BigramPolicy, StringProblem, TabularPolicy, check_count
from unipg.seeding import generator
from unipg.trajectories import Trajectories

DEMONSTRATION_NOISE = 0.2
"""Share of demonstrations that are random instead of the best."""


def bandit(
    rewards: Sequence[Sequence[float]], logits: Sequence[Sequence[float]], demonstrator: Sequence[Sequence[float]] | None = None
) -> ExactProblem:
    """One action, then the reward: answers of one token. `[C,K]` rewards, logits and demonstrator's probabilities by context and arm.

    Without `demonstrator` it plays the best arm, and a random one in a share `DEMONSTRATION_NOISE` of the cases.
    """
    contexts, arms = len(rewards), len(rewards[0])
    if contexts > arms:
        raise InputError(f"a bandit of {arms} arms has room for {arms} contexts, not {contexts}")
    problem = StringProblem(
        vocabulary=arms, prompts=tuple(range(contexts)), length=1, reward=lambda prompt, answer: float(rewards[prompt][answer[0]])
    )
    policy, anchor = BigramPolicy(arms), BigramPolicy(arms)
    with torch.no_grad():
        anchor.logits.zero_()
        policy.logits.zero_()
        policy.logits[:contexts] = torch.as_tensor(logits, dtype=torch.float64)
    title = f"{contexts} bandit{'s' * (contexts > 1)} of {arms} arms"
    exact = from_strings(problem, policy, name="bandit", title=title, noise=DEMONSTRATION_NOISE, anchor=anchor)
    if demonstrator is not None:
        exact.demonstrator.copy_(torch.as_tensor(demonstrator, dtype=torch.float64).flatten())
    return exact


def default_bandit(seed: int = 0, vocabulary: int = 4, length: int = 1) -> ExactProblem:
    """As many contexts as arms less one; in context c arm c + 1 earns 1 and the next one 0.5."""
    if length != 1:
        raise InputError(f"a bandit acts once: its length is 1, not {length}")
    _check_size(vocabulary)
    check_count((vocabulary - 1) * vocabulary, "arms (over all contexts)")
    logits = 0.7 * torch.randn(vocabulary - 1, vocabulary, dtype=torch.float64, generator=generator(seed, "bandit"))
    earned = {0: 1.0, 1: 0.5}
    rewards = [[earned.get((arm - context - 1) % vocabulary, 0.0) for arm in range(vocabulary)] for context in range(vocabulary - 1)]
    return bandit(rewards, logits.tolist())


def counting(seed: int = 0, vocabulary: int = 4, length: int | None = None) -> ExactProblem:
    """Count up from the prompt's digit to the last digit, then stop: digits 0 … V−2 and an end token, answers of at most `length` tokens.

    Reward 1 for the right answer, 0.5 where only its first token is right, else 0. The prompts differ in difficulty, for a right answer
    has 1 to V − 1 tokens. The policy leans towards the right token.
    """
    _check_size(vocabulary)
    end = vocabulary - 1
    length = end if length is None else length
    if length < end:
        raise InputError(f"length is {length}; accepted: {end} or more, for so many tokens has the longest right answer")

    def reward(prompt: int, answer: tuple[int, ...]) -> float:
        right = tuple(range(prompt + 1, vocabulary))
        return 1.0 if answer == right else 0.5 * (answer[0] == right[0])

    problem = StringProblem(vocabulary=vocabulary, prompts=tuple(range(end)), length=length, reward=reward, end=end)
    check_count(len(problem.prompts) * problem.count, "strings (over all prompts)")
    policy, anchor = BigramPolicy(vocabulary, seed), BigramPolicy(vocabulary, seed)
    with torch.no_grad():
        policy.logits.add_(torch.diag(torch.ones(end, dtype=torch.float64), 1), alpha=1.4)
    title = f"count up from the prompt's digit and stop: {end} prompts, answers of at most {length} tokens"
    return from_strings(problem, policy, name="strings", title=title, noise=DEMONSTRATION_NOISE, anchor=anchor)


def tree(
    logits: Tensor,
    *,
    depth: int,
    leaf_reward: Callable[[int, int], float],
    step_reward: Callable[[int, int], float] = lambda node, action: 0.0,
    slip: float = 0.0,
    noise: float = DEMONSTRATION_NOISE,
) -> ExactProblem:
    """A tree MDP: `depth` actions lead from a root to a leaf; with probability `slip` the environment takes a child at random instead.

    `logits [S,A]`: of every inner node; the nodes of each start state's tree are numbered in breadth-first order, one tree after the
    other, so S is a multiple of the inner nodes of one tree. `leaf_reward(start, leaf)` is earned at the end, leaves counted from 0;
    `step_reward(node, action)` after each step. States are the nodes, so the policy sees all that matters.
    """
    branching = logits.shape[1]
    inner = sum(branching**level for level in range(depth))
    starts, rest = divmod(len(logits), inner)
    if rest or not starts or not 0 <= slip <= 1:
        raise InputError(f"a tree of depth {depth} and {branching} actions has {inner} inner nodes a start state, slip in [0, 1]")
    ways = branching**2 if slip else branching
    check_count(starts * ways**depth, "paths through the tree")
    moves = [
        (action, child, slip / branching + (1 - slip) * (action == child))
        for action in range(branching)
        for child in range(branching)
        if slip or action == child
    ]
    actions, nodes, earned, outcome, chance, group = [], [], [], [], [], []
    for start in range(starts):
        for path in itertools.product(moves, repeat=depth):
            place, visited = 0, []
            for _, child, _ in path:
                visited.append(place)
                place = place * branching + 1 + child
            nodes.append([start * inner + node for node in visited])
            actions.append([action for action, _, _ in path])
            earned.append([step_reward(node, action) for node, action in zip(nodes[-1], actions[-1], strict=True)])
            outcome.append(leaf_reward(start, place - inner))
            chance.append(sum(math.log(p) for _, _, p in path))
            group.append(start)
    mask = torch.ones(len(nodes), depth, dtype=torch.bool)
    rows = Trajectories(
        action=torch.tensor(actions),
        mask=mask,
        observation=torch.tensor(nodes),
        group=torch.tensor(group),
        terminated=mask & (torch.arange(depth) == depth - 1),
        reward=torch.tensor(outcome, dtype=torch.float64),
        step_reward=torch.tensor(earned, dtype=torch.float64),
    )
    log_environment = torch.tensor(chance, dtype=torch.float64)
    policy, anchor = TabularPolicy(logits.clone()), TabularPolicy(torch.zeros_like(logits))
    title = f"{starts} trees of depth {depth} with {branching} actions; a step slips with probability {slip:g}"
    return ExactProblem("tree", title, rows, log_environment, policy, anchor, noisy_best(rows, log_environment, noise), depth)


def default_tree(seed: int = 0, vocabulary: int = 2, length: int | None = None) -> ExactProblem:
    """Two start states; `vocabulary` actions, `length` steps.

    The last leaf (in the second tree the first) earns 1 and its half of the leaves 0.5; each action 1 costs 0.05.
    """
    depth = 3 if length is None else length
    if vocabulary < 2 or depth < 1:
        raise InputError(f"a tree of {vocabulary} actions and {depth} steps has no choice in it; accepted: 2 or more and 1 or more")
    leaves = vocabulary**depth
    inner = (leaves - 1) // (vocabulary - 1)
    check_count(2 * leaves**2, "paths through the tree")
    logits = 0.5 * torch.randn(2 * inner, vocabulary, dtype=torch.float64, generator=generator(seed, "tree"))
    logits[:inner, -1] += 0.8  # the first tree is half learnt

    def leaf_reward(start: int, leaf: int) -> float:
        close = leaf if start == 0 else leaves - 1 - leaf
        return 1.0 if close == leaves - 1 else 0.5 * (close >= leaves // 2)

    return tree(logits, depth=depth, leaf_reward=leaf_reward, step_reward=lambda node, action: -0.05 * (action == 1), slip=0.1)


PROBLEMS: dict[str, Callable[..., ExactProblem]] = {"bandit": default_bandit, "strings": counting, "tree": default_tree}


def problem_named(name: str, seed: int = 0, vocabulary: int | None = None, length: int | None = None) -> ExactProblem:
    """The default problem of that name, in another size where one is given. Raises `InputError` for one too large to enumerate."""
    if name not in PROBLEMS:
        raise InputError(f"problem '{name}' does not exist; {nearest(name, [*PROBLEMS, *CONTROL, Diffusions.name])}")
    sizes = {key: value for key, value in (("vocabulary", vocabulary), ("length", length)) if value is not None}
    return PROBLEMS[name](seed, **sizes)


def _check_size(vocabulary: int) -> None:
    if vocabulary < 2:
        raise InputError(f"vocabulary is {vocabulary}; accepted: 2 or more")
