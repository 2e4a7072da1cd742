"""Rollouts of one iteration: sampled, topped up while groups are missing; and, where cores allow it, in a process of their own."""

from __future__ import annotations

import contextlib
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from unipg.algorithms.base import Algorithm
from unipg.errors import InputError, one_line
from unipg.policies.base import Policy
from unipg.rollouts.base import Demand, Experience, Interrupted
from unipg.training.diagnostics import Histogram, batch_metrics
from unipg.trajectories import Trajectories

ACROSS_ROUNDS = ("tokens/", "verifier/")
POLL_SECONDS = 0.2
LAST_SECONDS = 5.0
"""How long the other process may take to end."""
UNSENT = (pickle.PicklingError, AttributeError, TypeError)
"""What pickling raises for things that cannot be."""


@dataclass
class Collected:
    """A fresh batch, and what is told of it."""

    batch: Trajectories
    metrics: dict[str, float]
    histograms: list[Histogram]
    trouble: str = ""
    """`Experience.trouble`."""


def collect(algorithm: Algorithm, experience: Experience, policy: Policy, demand: Demand, total: Callable[[Tensor], Tensor]) -> Collected:
    """The rollouts of one iteration, sampled again for groups that `Algorithm.keep` drops, as often as the algorithm allows.

    `total`: sums a tensor over all workers.
    """

    def groups(batch: Trajectories) -> float:
        assert batch.group is not None
        return float(total(torch.tensor(float(batch.group.unique().numel()), dtype=torch.float64)))

    began = time.perf_counter()
    kept: list[Trajectories] = []
    metrics: dict[str, float] = {}
    histograms: list[Histogram] = []
    share, wanted, rounds = 1.0, 0.0, algorithm.most_sampling_rounds
    for number in range(rounds):
        fresh, told = experience.collect(policy, replace(demand, round=number, share=share))
        for name, value in told.items():
            metrics[name] = metrics.get(name, 0.0) + value if name.startswith(ACROSS_ROUNDS) else value
        if number == 0:
            more, histograms = batch_metrics(fresh)
            metrics |= more
            wanted = groups(fresh)
        kept.append(algorithm.keep(fresh) if rounds > 1 else fresh)
        share = 1 - sum(groups(b) for b in kept) / max(1.0, wanted)
        if rounds > 1:
            metrics["rollout/rounds"] = float(number + 1)
        if share <= 0:
            break
    batch = Trajectories.join([b for b in kept if len(b)] or kept[:1])
    return Collected(batch, metrics | {"time/rollout": time.perf_counter() - began}, histograms, experience.trouble)


def check_sent(*things: object) -> None:
    """Refuses what cannot be sent to another process, and sends nothing."""
    try:
        pickle.Pickler(_Nowhere()).dump(things)
    except UNSENT as error:
        raise _unsent(error) from error


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: bytes) -> int:
        return len(data)


def _unsent(error: Exception) -> InputError:
    return InputError(f"training.overlap: something here cannot be sent to another process: {one_line(error)}")


class CollectionProcess:
    """Another process that collects while this one trains.

    `policy`: what it samples from; its parameters are shared memory, so that new weights are written here, while it is idle, and read
    there. The process is told the experience's state with each request and gives the new one back with the batch: it keeps nothing.
    It ends with this process, or by `close`.
    """

    def __init__(self, algorithm: Algorithm, experience: Experience, policy: Policy) -> None:
        device = policy.device
        self.policy = policy.twin()
        self.policy.module.to("cpu").eval().requires_grad_(False).share_memory()
        context = torch.multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._busy = False
        try:
            work = (theirs, algorithm, experience, self.policy, str(device), torch.get_num_threads())
            self._process = context.Process(target=_serve, args=work, daemon=True)
            self._process.start()
        except UNSENT as error:
            raise _unsent(error) from error
        theirs.close()

    @property
    def busy(self) -> bool:
        return self._busy

    def start(self, demand: Demand, state: dict[str, Any]) -> None:
        """Asks for the rollouts of `demand`, from the experience's `state` and the policy's weights as they are now."""
        self._send((replace(demand, should_stop=bool), state))
        self._busy = True

    def result(self, should_stop: Callable[[], bool]) -> tuple[Collected, dict[str, Any]]:
        """What was asked for, and the experience's state after it.

        Raises what collecting raised there as InputError, and Interrupted when `should_stop` answers true.
        """
        try:
            while not self._connection.poll(POLL_SECONDS):
                if should_stop():
                    raise Interrupted
                if not self._process.is_alive():
                    raise EOFError
            answer = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise self._ended() from None
        self._busy = False
        if isinstance(answer, str):
            raise InputError(answer)
        collected, state = answer
        return collected, state

    def _send(self, message: object) -> None:
        try:
            # as bytes: what is sent must not be shared memory, which the sender would go on changing
            self._connection.send_bytes(pickle.dumps(message))
        except (BrokenPipeError, ConnectionError):
            raise self._ended() from None

    def _ended(self) -> InputError:
        self._process.join(1)
        return InputError(
            f"the process that samples ended by itself (exit code {self._process.exitcode}): out of memory? Without training.overlap "
            "nothing else is started"
        )

    def close(self) -> None:
        self._connection.close()  # where it is idle, it ends by itself
        if self._busy:
            self._process.terminate()
        self._process.join(LAST_SECONDS)
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, algorithm: Algorithm, experience: Experience, shared: Policy, device: str, threads: int) -> None:
    """The other process: collects whatever is asked for, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; who trains decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # leaves nothing behind
    torch.set_num_threads(threads)
    policy = shared if device == "cpu" else shared.twin()
    policy.module.to(device)

    def answer(demand: Demand, state: dict[str, Any]) -> tuple[Collected, dict[str, Any]] | str:
        if policy is not shared:
            policy.module.load_state_dict(shared.module.state_dict())
        try:
            experience.load_state_dict(state)
            collected = collect(algorithm, experience, policy, demand, lambda value: value)
        except InputError as error:
            return str(error)
        except Exception as error:
            return f"sampling in another process failed: {one_line(error)}; try without training.overlap to see where"
        collected.batch = collected.batch.to("cpu")
        return collected, experience.state_dict()

    with contextlib.suppress(EOFError, ConnectionError):  # nobody is there any more
        while True:
            connection.send_bytes(pickle.dumps(answer(*pickle.loads(connection.recv_bytes()))))
