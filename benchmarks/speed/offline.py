"""TD3+BC, IQL and PRDC on given transitions: updates per CPU-second beside d3rlpy, and beside a bare loop of the same arithmetic.

    python benchmarks/speed/offline.py --d3rlpy PYTHON [--cases iql-256,td3_bc-64] [--repeats 5] [--each N] [--quick]

All sides have the arrays of benchmarks/data/pendulum-mix.npz, batches of 256, one thread, and networks of 2 x 64 or 2 x 256 with ReLU.
Ours is a run as `unipg train` makes it, d3rlpy's its `fit` without progress and loggers, and the bare loop the same arithmetic written down
plainly, with torch's optimisers and nothing around it. They take turns (`turns.py`). d3rlpy needs an environment of its own
(`pip install torch==2.13.0 d3rlpy==2.8.1`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from control import ROOT
from turns import Benchmark, Case, Turn, main

DATA = ROOT / "benchmarks" / "data" / "pendulum-mix.npz"
BATCH, DISCOUNT, TAU = 256, 0.99, 0.005
CASES = {
    f"{name}-{hidden}": Case(name, hidden, updates, aim, 0.9)
    for hidden, updates, aim in ((64, 600, 3.0), (256, 300, 2.0))
    for name in ("td3_bc", "iql", "prdc")
}


def ours(case: Case, turns: int, turn: Turn) -> None:
    from unipg.algorithms import algorithm_named
    from unipg.policies.actor_critic import ActorCriticRecipe
    from unipg.rollouts.environments import EnvironmentRecipe
    from unipg.training.feeds.dataset import DatasetRecipe
    from unipg.training.observer import Observer
    from unipg.training.run import wanted_of
    from unipg.training.trainer import Trainer, TrainingRecipe

    class Turns(Observer):
        def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
            turn()

    experience = EnvironmentRecipe("Pendulum-v1").build(0)
    experience.evaluate = lambda *_: []  # type: ignore[method-assign]
    algorithm = algorithm_named(case.algorithm)()
    controller = ActorCriticRecipe(hidden=[case.hidden, case.hidden])
    policy = controller.build(experience.observation_space, experience.action_space, 0, wanted=wanted_of(algorithm))
    training, dataset = TrainingRecipe(iterations=turns, save_every=turns), DatasetRecipe(str(DATA), batch=BATCH, updates=case.each)
    with tempfile.TemporaryDirectory() as scratch:
        run = Trainer(algorithm, policy, experience, folder=Path(scratch, "run"), training=training, dataset=dataset, observer=Turns())
        run.train()


def d3rlpy(case: Case, turns: int, turn: Turn) -> None:
    import d3rlpy as peer
    import numpy
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    data = numpy.load(DATA)
    rows = {"observations": data["observation"], "actions": data["action"], "rewards": data["reward"].reshape(-1, 1)}
    given = peer.dataset.MDPDataset(**rows, terminals=data["terminated"].astype("f4"), timeouts=data["truncated"].astype("f4"))
    encoder = peer.models.VectorEncoderFactory([case.hidden, case.hidden])
    settings: dict[str, Any] = {"batch_size": BATCH, "gamma": DISCOUNT, "actor_encoder_factory": encoder, "critic_encoder_factory": encoder}
    settings["action_scaler"] = peer.preprocessing.MinMaxActionScaler(minimum=[-2.0], maximum=[2.0])
    if case.algorithm == "iql":
        made = peer.algos.IQLConfig(**settings, value_encoder_factory=encoder)
    else:
        kind = {"td3_bc": peer.algos.TD3PlusBCConfig, "prdc": peer.algos.PRDCConfig}[case.algorithm]
        made = kind(**settings, observation_scaler=peer.preprocessing.StandardObservationScaler())

    def stepped(algo: Any, epoch: int, step: int) -> None:
        if step % case.each == 0:
            turn()

    steps = {"n_steps": turns * case.each, "n_steps_per_epoch": case.each}
    made.create(device=False).fit(given, **steps, show_progress=False, logger_adapter=peer.logging.NoopAdapterFactory(), callback=stepped)


def bare(case: Case, turns: int, turn: Turn) -> None:
    """Rows gathered from one table, networks as one product a layer, gradients by the engine, a fused Adam."""
    import numpy
    import torch
    from scipy.spatial import cKDTree

    from unipg.networks.perceptron import Ensemble, Perceptron

    data, source = numpy.load(DATA), torch.Generator().manual_seed(0)
    seen, mean, std = data["observation"], data["observation"].mean(0), data["observation"].std(0)
    normal = case.algorithm != "iql"
    both = [(each - mean) / std if normal else each for each in (seen, data["next_observation"])]
    table = torch.from_numpy(numpy.concatenate([*both, data["action"] / 2, data["reward"][:, None], data["terminated"][:, None]], 1))
    table = table.float()
    hidden = [case.hidden, case.hidden]
    actor, lagged = (Perceptron([3, *hidden, 1], activation="relu", source=source) for _ in range(2))
    q, q_lagged = (Ensemble(2, [4, *hidden, 1], source=source) for _ in range(2))
    v = Ensemble(1, [3, *hidden, 1], source=source)
    log_std = torch.nn.Parameter(torch.zeros(1))
    acting = [*actor.parameters(), log_std] if case.algorithm == "iql" else list(actor.parameters())
    trained = ((actor, acting), (q, list(q.parameters())), (v, list(v.parameters())))
    steps = {id(net): torch.optim.Adam(parameters, lr=3e-4, fused=True) for net, parameters in trained}
    pairs = cKDTree(torch.cat([2 * table[:, :3], table[:, 6:7]], 1).numpy()) if case.algorithm == "prdc" else None

    def step(net: Any, parameters: list[Any], loss: Any) -> None:
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        steps[id(net)].step()

    def follow(net: Any, copy: Any) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(list(copy.parameters()), list(net.parameters()), TAU)

    def values(net: Any, s: Any, a: Any, members: int | None = None) -> Any:
        return net(torch.cat([s, a], 1), members=members).squeeze(-1)

    def pathwise(number: int, s: Any, after: Any, a: Any, r: Any, alive: Any) -> None:
        with torch.no_grad():
            noise = (0.2 * torch.randn(a.shape, generator=source)).clamp(-0.5, 0.5)
            target = r + DISCOUNT * alive * values(q_lagged, after, (lagged(after).tanh() + noise).clamp(-1, 1)).min(0).values
        step(q, list(q.parameters()), 0.5 * (values(q, s, a) - target).square().sum(0).mean())
        if number % 2:
            return
        own = actor(s).tanh()
        value = values(q, s, own, 1)[0]
        near = a
        if pairs is not None:
            _, index = pairs.query(torch.cat([2 * s, own.detach()], 1).numpy())
            near = table[torch.from_numpy(index), 6:7]
        step(actor, acting, (own - near).square().mean() - 2.5 / value.detach().abs().mean() * value.mean())
        follow(q, q_lagged)
        follow(actor, lagged)

    def in_sample(number: int, s: Any, after: Any, a: Any, r: Any, alive: Any) -> None:
        with torch.no_grad():
            worth = values(q_lagged, s, a).min(0).values
        y = worth - v(s)[0, :, 0]
        step(v, list(v.parameters()), (torch.where(y < 0, 0.3, 0.7) * y.square()).mean())
        with torch.no_grad():
            weight = (3 * (worth - v(s)[0, :, 0])).exp().clamp_max(100)
            target = r + DISCOUNT * alive * v(after)[0, :, 0]
        z = (a - actor(s).tanh()) * (-log_std).exp()
        step(actor, acting, (weight * (0.5 * z.square() + log_std).sum(1)).mean())
        step(q, list(q.parameters()), 0.5 * (values(q, s, a) - target).square().sum(0).mean())
        follow(q, q_lagged)

    update = in_sample if case.algorithm == "iql" else pathwise
    for _ in range(turns):
        for number in range(case.each):
            rows = table[torch.randint(len(table), (BATCH,), generator=source)]
            update(number, rows[:, :3], rows[:, 3:6], rows[:, 6:7], rows[:, 7], 1 - rows[:, 8])
        turn()


OFFLINE = Benchmark(
    script=__file__,
    doc=__doc__ or "",
    output=ROOT / "benchmarks" / "results" / "speed-offline.json",
    cases=CASES,
    sides={"ours": ours, "bare": bare, "peer": d3rlpy},
    unit="updates",
    peer="d3rlpy",
    option="--d3rlpy",
    needs="pip install torch==2.13.0 d3rlpy==2.8.1",
    environment="UNIPG_D3RLPY_PYTHON",
)


if __name__ == "__main__":
    sys.exit(main(OFFLINE, sys.argv[1:]))
