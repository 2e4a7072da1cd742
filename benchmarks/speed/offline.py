"""TD3+BC, IQL and PRDC on given transitions: updates per CPU-second beside d3rlpy, and beside a bare loop of the same arithmetic.

    python benchmarks/speed/offline.py --d3rlpy PYTHON [--cases iql-256,td3_bc-64] [--repeats 5] [--updates N] [--quick]

All sides have the arrays of benchmarks/data/pendulum-mix.npz, batches of 256, one thread, and networks of 2 x 64 or 2 x 256 with ReLU.
Ours is a run as `unipg train` makes it, d3rlpy's its `fit` without progress and loggers, and the bare loop the same arithmetic written down
plainly, with torch's optimisers and nothing around it. The sides of a case are processes that live side by side and take turns,
so that what else the machine does falls on all of them; the first turn of each does not count. d3rlpy needs an environment of its own
(`pip install torch==2.13.0 d3rlpy==2.8.1`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control import ROOT, told

OUTPUT = ROOT / "benchmarks" / "results" / "speed-offline.json"
DATA = ROOT / "benchmarks" / "data" / "pendulum-mix.npz"
BATCH, DISCOUNT, TAU = 256, 0.99, 0.005
BARE = 0.9
"""Of the bare loop's updates per CPU-second what a run is to reach."""
Turn = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """What is run: updates of a turn, and how many times d3rlpy's updates per CPU-second are aimed at."""

    algorithm: str
    hidden: int
    updates: int
    aim: float


CASES = {
    f"{name}-{hidden}": Case(name, hidden, updates, aim)
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
    training, dataset = TrainingRecipe(iterations=turns, save_every=turns), DatasetRecipe(str(DATA), batch=BATCH, updates=case.updates)
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
        if step % case.updates == 0:
            turn()

    steps = {"n_steps": turns * case.updates, "n_steps_per_epoch": case.updates}
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
        for number in range(case.updates):
            rows = table[torch.randint(len(table), (BATCH,), generator=source)]
            update(number, rows[:, :3], rows[:, 3:6], rows[:, 6:7], rows[:, 7], 1 - rows[:, 8])
        turn()


SIDES = {"ours": ours, "bare": bare, "d3rlpy": d3rlpy}


class Side:
    """A process that takes turns."""

    def __init__(self, python: str, side: str, name: str, turns: int, updates: int | None) -> None:
        alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [python, __file__, "--side", side, "--cases", name, "--repeats", str(turns)]
        command += [] if updates is None else ["--updates", str(updates)]
        self._process = subprocess.Popen(
            command, env={**os.environ, **alone}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def seconds(self) -> float:
        """CPU-seconds of its next turn."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        while not (line := process.stdout.readline()).startswith("turn "):
            if not line:
                _, said = process.communicate()
                raise RuntimeError(f"{shlex.join(map(str, process.args))} failed:\n{said[-2000:]}")
        return float(line.removeprefix("turn "))

    def end(self) -> None:
        self._process.communicate("\n")


def take_turns(side: str, case: Case, repeats: int) -> None:
    """What a side's process does: waits, works, and says what its turn took."""
    import torch

    torch.set_num_threads(1)
    sys.stdin.readline()
    began = time.process_time()

    def turn() -> None:
        nonlocal began
        told(f"turn {time.process_time() - began}")
        sys.stdin.readline()
        began = time.process_time()

    SIDES[side](case, repeats + 1, turn)


def measured(name: str, case: Case, peer: str | None, repeats: int, updates: int | None) -> dict[str, Any]:
    """Updates per CPU-second of each side, and the ratios of turns that followed each other."""
    pythons = {side: peer if side == "d3rlpy" else sys.executable for side in SIDES}
    sides = {side: Side(python, side, name, repeats, updates) for side, python in pythons.items() if python}
    for side in sides.values():
        side.seconds()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            seconds[side].append(sides[side].seconds())
    for each in sides.values():
        each.end()
    of = updates or case.updates
    found: dict[str, Any] = {side: {"updates_per_cpu_second": spread([of / each for each in mine])} for side, mine in seconds.items()}
    for side in ("d3rlpy", "bare"):
        if side in seconds:
            ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds[side], strict=True)]
            aim = case.aim if side == "d3rlpy" else BARE
            found[side] |= {"ratio": spread(ratios) | {"target": aim}, "reached": statistics.median(ratios) >= aim}
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--d3rlpy", help="Python of an environment with d3rlpy (default $UNIPG_D3RLPY_PYTHON; without it that side is left out)"
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side that count (default %(default)s)")
    parser.add_argument("--updates", type=int, help="of a turn, instead of the case's own")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="two turns of 40 updates: only whether it runs")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.cases.split(",")) - set(CASES):
        parser.error(f"cases {', '.join(sorted(unknown))} do not exist; accepted: {', '.join(CASES)}")
    if chosen.side:
        case = CASES[chosen.cases]
        take_turns(chosen.side, Case(case.algorithm, case.hidden, chosen.updates or case.updates, case.aim), chosen.repeats)
        return 0
    peer = chosen.d3rlpy or os.environ.get("UNIPG_D3RLPY_PYTHON")
    if peer and (not Path(peer).is_file() or subprocess.run([peer, "-c", "import d3rlpy"], capture_output=True, check=False).returncode):
        told(f"'{peer}' cannot import d3rlpy; `pip install torch==2.13.0 d3rlpy==2.8.1` there, or give --d3rlpy PYTHON")
        return 1
    repeats, updates = (2, 40) if chosen.quick else (chosen.repeats, chosen.updates)
    cases = {}
    for name in chosen.cases.split(","):
        cases[name] = found = measured(name, CASES[name], peer, repeats, updates)
        told(f"{name}: {found['ours']['updates_per_cpu_second']['median']:.0f} updates per CPU-second")
        for side in found.keys() - {"ours"}:
            ratio, word = found[side]["ratio"], "reached" if found[side]["reached"] else "NOT reached"
            told(f"{'':8s}{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}] x {side}, aim {ratio['target']}: {word}")
    if not chosen.quick:
        from unipg.training.record import cpu_name, versions

        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        result = {
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "benchmarks/speed/offline.py", *("PYTHON" if a == chosen.d3rlpy else a for a in arguments)]),
            "commit": head,
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": 1, "python": platform.python_version()},
            "load": os.getloadavg()[0],
            "versions": versions(),
            "repeats": repeats,
            "cases": cases,
        }
        chosen.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        told(f"written to {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
