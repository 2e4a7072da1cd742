"""Polychromic PPO (arXiv 2509.25424) on four rooms: whether both ways to the goal survive training, and what that is good for."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Check, Claim, Method, Runs, Told, by_seed, check, main

from unipg.algorithms.control.polychromic_ppo import PolychromicPPO
from unipg.environments.four_rooms import DOORS, SIZE, WALL, shortest_moves
from unipg.estimator import GAE
from unipg.estimator.advantages import Advantage
from unipg.policies.actor_critic import ActorCritic, ActorCriticRecipe
from unipg.rollouts.base import Demand, Vines
from unipg.rollouts.environments import EnvironmentRecipe
from unipg.seeding import derived_seed, generator
from unipg.training import Trainer, TrainingRecipe
from unipg.training.observer import Observer
from unipg.training.optimization import OptimizerRecipe
from unipg.training.run import wanted_of
from unipg.trajectories import Trajectories

SOURCE = "arXiv 2509.25424"
GRID, MINIGRID = "unipg.environments:unipg/FourRooms-v0", "minigrid:MiniGrid-FourRooms-v0"
HORIZON = 60
POINTS = 25
"""Of a curve."""
TRIES = 16
"""k of pass@k on Minigrid."""


@dataclass(frozen=True)
class WithoutSets(PolychromicPPO):
    """The same vines, but GAE on every step."""

    @property
    def advantage(self) -> Advantage:
        return GAE(gamma=self.gamma, lam=self.lam, normalize=self.normalize_advantage)


@dataclass(frozen=True)
class WithoutVines(WithoutSets):
    """PPO: as many whole episodes instead."""

    @property
    def vines(self) -> Vines:
        return Vines(0, self.vine_count)


METHODS: dict[str, tuple[str, type[PolychromicPPO], dict[str, Any]]] = {
    "ppo": ("PPO, whole episodes", WithoutVines, {}),
    "vines": ("vines, GAE everywhere", WithoutSets, {}),
    "no-diversity": ("set advantage with d = 1", PolychromicPPO, {"diversity": "none"}),
    "poly-1": ("polychromic PPO, poly_scale 1", PolychromicPPO, {"poly_scale": 1.0}),
    "poly-3": ("polychromic PPO, poly_scale 3", PolychromicPPO, {"poly_scale": 3.0}),
}
POLY = ("poly-1", "poly-3")


class Until(Observer):
    """Tells the share that is done, of the iterations or of a number of steps after which the run ends; and keeps the curve."""

    def __init__(self, told: Told, total: int, *, steps: bool = False) -> None:
        self.told, self.total, self.steps = told, total, steps
        self.curve: dict[str, float] = {}
        self.run: Any = None

    def start(self, trainer: Any) -> None:
        self.run = trainer

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        share = min(1.0, (metrics["environment/steps"] if self.steps else done) / self.total)
        for point in range(len(self.curve), int(share * POINTS)):
            self.curve[str(round(self.total * (point + 1) / POINTS))] = metrics["return/mean"]
        self.told(share)
        if share >= 1 and self.steps:
            self.run.finish("the steps are used up")


def train(
    algorithm: PolychromicPPO,
    policy: ActorCritic,
    environment: EnvironmentRecipe,
    iterations: int,
    rate: float,
    seed: int,
    until: Until,
) -> None:
    experience = environment.build(derived_seed(seed, "environment"))
    experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        training = TrainingRecipe(iterations=iterations, save_every=iterations)
        optimizer = OptimizerRecipe(learning_rate=rate)
        folder = Path(scratch, "run")
        Trainer(algorithm, policy, experience, folder=folder, training=training, optimizer=optimizer, seed=seed, observer=until).train()


def begun(policy: ActorCritic) -> ActorCritic:
    """The policy with its lagged copy where its actor now is."""
    policy.module.more["actor_b"].load_state_dict(policy.module.actor.state_dict())  # type: ignore[union-attr]
    return policy


def sampled(policy: ActorCritic, environment: EnvironmentRecipe, seed: int) -> Trajectories:
    """Whole episodes as in training, one of each environment."""
    return environment.build(seed).collect(policy, Demand(0, vines=Vines(0), seed=seed))[0]


def success(batch: Trajectories) -> np.ndarray:
    assert batch.terminated is not None
    return batch.terminated.any(1).numpy() & (batch.total_reward().numpy() > 0)


# ---------------------------------------------------------------------------------------------------- A. the grid


def table(seed: int) -> ActorCritic:
    """A table of logits: 0.9 on the moves of shortest ways, and noise of 0.15."""
    experience = EnvironmentRecipe(GRID, 1, HORIZON).build(0)
    recipe = ActorCriticRecipe(hidden=[])
    policy = recipe.build(experience.observation_space, experience.action_space, seed, wanted=wanted_of(PolychromicPPO()))
    noise = 0.15 * torch.randn(SIZE * SIZE, 4, generator=generator(seed, "start"))
    logits = 0.9 * torch.from_numpy(shortest_moves()).float() + noise
    with torch.no_grad():
        policy.module.actor.layers[-1].weight.copy_(logits.T)
        policy.module.actor.layers[-1].bias.zero_()  # type: ignore[union-attr, operator]
    return begun(policy)


def routes(policy: ActorCritic, episodes: int, seed: int) -> dict[str, float]:
    """Success, the share of successes through the upper right room, and the least success with one door closed."""
    free = sampled(policy, EnvironmentRecipe(GRID, episodes, HORIZON), seed)
    assert free.observation is not None
    won = success(free)
    cell = free.observation[..., 0].long().numpy()
    upper = ((cell // SIZE < WALL) & (cell % SIZE > WALL) & free.mask.numpy()).any(1)
    closed = {
        f"closed {row}, {column}": float(
            success(sampled(policy, EnvironmentRecipe(GRID, episodes, HORIZON, {"closed": [[row, column]]}), seed)).mean()
        )
        for row, column in DOORS
    }
    share = float(upper[won].mean()) if won.any() else 0.5
    return {"success": float(won.mean()), "share": share, "one-sided": abs(share - 0.5), "worst": min(closed.values()), **closed}


def grid(iterations: int, episodes: int) -> Claim:
    settings: dict[str, Any] = {"normalize_advantage": False, "lam": 1.0, "minibatches": 1, "kl": 0.01}
    rate = 0.05

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        _, kind, own = METHODS[method]
        algorithm = kind(**settings | own)
        policy, until = table(seed), Until(told, iterations)
        before = routes(policy, episodes, derived_seed(seed, "before") % 2**31)
        count = 8 if algorithm.vines.states else 8 + 8 * algorithm.vine_states * algorithm.vine_count
        train(algorithm, policy, EnvironmentRecipe(GRID, count, HORIZON), iterations, rate, seed, until)
        after = routes(policy, episodes, derived_seed(seed, "after") % 2**31)
        return {**after, "success before": before["success"], "share before": before["share"], "curve": until.curve}

    def checks(runs: Runs) -> list[Check | None]:
        def of(method: str, name: str) -> dict[int, float]:
            return by_seed(runs, method, name)

        return [
            *(
                check(f"{name}: share of the upper way, distance from 0.5, < 0.15", of(name, "one-sided"), lambda gap: gap < 0.15)
                for name in POLY
            ),
            check("ppo: the same > 0.35", of("ppo", "one-sided"), lambda gap: gap > 0.35),
            check("vines without set advantage: the same > 0.35", of("vines", "one-sided"), lambda gap: gap > 0.35),
            *(check(f"{name}: success with the worst door closed ≥ 0.35", of(name, "worst"), lambda won: won >= 0.35) for name in POLY),
            check("ppo: success with the worst door closed ≤ 0.2", of("ppo", "worst"), lambda won: won <= 0.2),
            *(check(f"{name}: success ≥ 0.99", of(name, "success"), lambda won: won >= 0.99) for name in (*POLY, "ppo")),
        ]

    return Claim(
        name="polychromic",
        title="Polychromic PPO keeps both ways through four rooms",
        source=SOURCE,
        methods={name: Method(title, {**settings, "rate": rate, **own}) for name, (title, _, own) in METHODS.items()},
        run=run,
        checks=checks,
        columns={
            "worst": "success, worst door closed",
            "share": "share of the upper way",
            "one-sided": "its distance from 0.5",
            "success": "success",
            "success before": "success before",
        },
        about=(
            f"11 × 11 cells, two equally short ways, {HORIZON} steps at most, reward 1 − 0.5 t/{HORIZON}. A table of logits (0.9 on "
            f"shortest moves, noise 0.15) and of values, Adam at {rate}, 2 epochs of whole batches, GAE with lambda 1 and not whitened, KL "
            f"0.01, {iterations} iterations of 136 trajectories: 8 episodes with 8 vines from two states of each, or 136 episodes (PPO). "
            f"Measured on {episodes} sampled episodes that no training saw, with every door open and with each one closed. The published "
            "toy steps its table by summed gradients over the root of visits instead of Adam, and its value is a running mean."
        ),
        setup={"iterations": iterations, "episodes": episodes, "trajectories": 136},
        limits=(0, 1),
        over="iterations",
    )


# ---------------------------------------------------------------------------------------------------- B. Minigrid


def rooms(count: int, *, configurations: int, first: int = 0, elsewhere: bool = False) -> EnvironmentRecipe:
    inner = ["unipg.environments.minigrid.Elsewhere"] if elsewhere else []
    starts = {"path": "unipg.environments.starts.Configurations", "count": configurations, "first": first}
    return EnvironmentRecipe(MINIGRID, count, 100, wrappers=[*inner, "unipg.environments.minigrid.Rooms", starts])


def cloned(seed: int, configurations: int, epochs: int) -> ActorCritic:
    """A small network that imitates shortest ways from many cells of the layouts, not well."""
    from unipg.environments.minigrid import shortest_way

    def shown(recipe: EnvironmentRecipe, number: int) -> list[tuple[np.ndarray, int]]:
        environment: Any = recipe.build(0)._environments.envs[0]
        seen, _ = environment.reset(seed=derived_seed(seed, "expert", number) % 2**31)
        found = []
        for action in shortest_way(environment):
            found.append((seen, action))
            seen = environment.step(action)[0]
        return found

    pairs = [
        pair
        for number in range(configurations)
        for elsewhere in (False, True)
        for pair in shown(rooms(1, configurations=1, first=number, elsewhere=elsewhere), number)
    ]
    experience = rooms(1, configurations=1).build(0)
    recipe = ActorCriticRecipe(hidden=[64, 64])
    policy = recipe.build(experience.observation_space, experience.action_space, seed, wanted=wanted_of(PolychromicPPO()))
    observation, action = (torch.from_numpy(np.array(column)) for column in zip(*pairs, strict=True))
    optimizer = torch.optim.Adam(policy.module.actor.parameters(), lr=1e-3)
    for _ in range(epochs):
        log_prob = policy.module.actor(policy.module.seen(observation)).log_softmax(-1)
        entropy = -(log_prob.exp() * log_prob).sum(-1).mean()
        loss = torch.nn.functional.nll_loss(log_prob, action) - 0.1 * entropy
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return begun(policy)


def passed(policy: ActorCritic, configurations: int, seed: int, *, elsewhere: bool = False) -> dict[str, float]:
    """pass@1 and pass@k of sampled episodes, means over the layouts."""
    won = np.stack(
        [
            success(sampled(policy, rooms(TRIES, configurations=1, first=number, elsewhere=elsewhere), derived_seed(seed, number) % 2**31))
            for number in range(configurations)
        ]
    )
    return {"one": float(won.mean()), "any": float(won.any(1).mean())}


def minigrid(steps: int, configurations: int, epochs: int) -> Claim:
    methods = {name: METHODS[name] for name in ("ppo", "poly-1", "poly-3")}
    rate = 2.5e-4

    def run(method: str, seed: int, told: Told) -> dict[str, Any]:
        _, kind, own = methods[method]
        algorithm = kind(**own)
        policy, until = cloned(seed, configurations, epochs), Until(told, steps, steps=True)
        before = passed(policy, configurations, seed)
        count = configurations * (1 if algorithm.vines.states else 1 + algorithm.vine_states * algorithm.vine_count)
        train(algorithm, policy, rooms(count, configurations=configurations), 10_000, rate, seed, until)
        here, moved = (passed(policy, configurations, seed + 1000, elsewhere=elsewhere) for elsewhere in (False, True))
        return {
            "pass1": here["one"],
            "passk": here["any"],
            "moved": moved["one"],
            "moved_any": moved["any"],
            "before": before["one"],
            "curve": until.curve,
        }

    def checks(runs: Runs) -> list[Check | None]:
        def gap(name: str) -> dict[int, float]:
            ours, theirs = by_seed(runs, "poly-1", name), by_seed(runs, "ppo", name)
            return {seed: round(ours[seed] - theirs[seed], 6) for seed in ours if seed in theirs}

        return [
            check("poly-1 − ppo, pass@1 ≥ −0.1", gap("pass1"), lambda value: value >= -0.1),
            check(f"poly-1 − ppo, pass@{TRIES} > 0", gap("passk"), lambda value: value > 0),
            check("poly-1 − ppo, pass@1 with the start in another room > 0", gap("moved"), lambda value: value > 0),
        ]

    return Claim(
        name="polychromic-minigrid",
        title="Polychromic PPO on Minigrid's four rooms: tries and moved starts",
        source=SOURCE,
        methods={name: Method(title, own) for name, (title, _, own) in methods.items()},
        run=run,
        checks=checks,
        columns={
            "passk": f"pass@{TRIES}",
            "pass1": "pass@1",
            "moved": "pass@1, start in another room",
            "moved_any": f"pass@{TRIES}, start in another room",
            "before": "pass@1 before",
        },
        about=(
            f"MiniGrid-FourRooms-v0, {configurations} fixed layouts, 100 steps at most, reward 1 − 0.5 t/100; a 64-64 network cloned from "
            f"shortest ways for {epochs} steps with an entropy bonus of 0.1, then {steps:,} steps of the environments with the algorithm's "
            f"defaults. {TRIES} sampled episodes for each layout."
        ),
        setup={"steps": steps, "configurations": configurations, "epochs": epochs},
        limits=(0, 1),
        over="environment steps",
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("grid", "minigrid"), default="grid", help="of the claim (default %(default)s)")


def build(chosen: argparse.Namespace) -> Claim:
    if chosen.part == "minigrid":
        return minigrid(2000, 2, 20) if chosen.quick else minigrid(300_000, 10, 60)
    return grid(2, 20) if chosen.quick else grid(150, 400)


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, build, sys.argv[1:], options=options, seeds=5))
