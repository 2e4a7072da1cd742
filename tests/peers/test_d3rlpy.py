"""d3rlpy's own losses of IQL, TD3+BC and CQL beside our learners, on the same weights, transitions and noise, in float64.

d3rlpy pins another gymnasium: it runs in the environment of $UNIPG_D3RLPY_PYTHON (`pip install torch==2.13.0 d3rlpy==2.8.1`), and these
tests are skipped without one. What differs is written down in docs/peers.md.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from offline import gradients, lag, learner_of, policy_of, rows
from torch import Tensor

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.estimator.likelihoods import nth
from unipg.policies.actor_critic import ActorCritic
from unipg.policies.now import NOISE
from unipg.trajectories import Trajectories

PYTHON = os.environ.get("UNIPG_D3RLPY_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="no environment of d3rlpy: UNIPG_D3RLPY_PYTHON")
SIDE, HIDDEN, DRAWS, DISCOUNT = Path(__file__).with_name("d3rlpy_side.py"), (16, 12), 4, 0.9


def layers(made: ActorCritic, network: str, tensors: list[Tensor]) -> list[np.ndarray]:
    """Weights [O,I] and biases [O], or their gradients, as separate networks have them; of an actor that says two things, one after the
    other."""
    flat = [tensor.detach() for tensor in tensors]
    if network.startswith("actor"):
        flat = [tensor for tensor in flat if tensor.ndim != 1 or tensor.shape[0] != 0]
        if made.actions.type == "squashed":
            *hidden, weight, bias = flat
            parts = list(zip(weight.chunk(2), bias.chunk(2), strict=True))
            flat = [*hidden, *(each for part in parts for each in part)]
        return [tensor.numpy() for tensor in flat]
    if flat[0].ndim == 2:  # one member
        return [(tensor.T if tensor.ndim == 2 else tensor).numpy() for tensor in flat]
    return [
        (tensor[k].T if number % 2 == 0 else tensor[k, 0]).numpy() for k in range(flat[0].shape[0]) for number, tensor in enumerate(flat)
    ]


def theirs(algorithm: Algorithm, made: ActorCritic, batch: Trajectories, folder: Path, **more: Any) -> dict[str, np.ndarray]:
    given: dict[str, Any] = {"algorithm": algorithm.name, "hidden": HIDDEN, "discount": DISCOUNT, **more}
    for name in ("observation", "next_observation", "action", "terminated"):
        given[name] = getattr(batch, name)[:, 0].numpy()
    given["reward"] = batch.step_reward[:, 0].numpy()
    for network in ("actor", "actor_lagged", "q", "q_lagged", "v"):
        if network in made.networks:
            for number, array in enumerate(layers(made, network, list(made.network(network).parameters()))):
                given[f"{network}/{number}"] = array
    np.savez(folder / "in.npz", **given)
    assert PYTHON is not None
    subprocess.run([PYTHON, str(SIDE), str(folder / "in.npz"), str(folder / "out.npz")], check=True, capture_output=True)
    return dict(np.load(folder / "out.npz"))


def same(
    algorithm: Algorithm,
    made: ActorCritic,
    batch: Trajectories,
    found: dict[str, np.ndarray],
    learner: str,
    network: str,
    factor: float = 1.0,
) -> None:
    """Ours times `factor` are theirs."""
    parameters = list(made.network(network).parameters())
    own = gradients(learner_of(algorithm, learner), made, batch)[network][: len(parameters)]
    ours = layers(made, network, own)
    assert len(ours) == sum(name.startswith(f"{network}/") for name in found)
    assert any(array.any() for array in ours)
    for number, array in enumerate(ours):
        np.testing.assert_allclose(factor * array, found[f"{network}/{number}"], rtol=1e-9, atol=1e-11, err_msg=f"{network}/{number}")


def policy(algorithm: Algorithm, kind: str) -> ActorCritic:
    made = policy_of(algorithm, kind, HIDDEN, activation="relu")
    lag(made, *(name for name in ("q_lagged", "actor_lagged") if name in made.networks))
    return made


def test_iql(tmp_path: Path) -> None:
    """d3rlpy's squared errors are whole."""
    algorithm = algorithm_named("iql")(discount=DISCOUNT)
    made, batch = policy(algorithm, "bounded"), rows(rows=32)
    found = theirs(algorithm, made, batch, tmp_path)
    same(algorithm, made, batch, found, "critic", "q", 2.0)
    same(algorithm, made, batch, found, "value", "v")
    same(algorithm, made, batch, found, "policy", "actor")


def test_td3_bc(tmp_path: Path) -> None:
    algorithm = algorithm_named("td3_bc")(discount=DISCOUNT)
    made, batch = policy(algorithm, "deterministic"), rows(rows=32)
    noise = batch.planned[NOISE.format("next_observation")][:, 0]
    found = theirs(algorithm, made, batch, tmp_path, smoothing=noise.numpy())
    same(algorithm, made, batch, found, "critic", "q")
    same(algorithm, made, batch, found, "policy", "actor")


def test_cql(tmp_path: Path) -> None:
    """No row is terminal: at such a one d3rlpy asks the policy for actions of the state after it."""
    algorithm = algorithm_named("cql")(discount=DISCOUNT, draws=DRAWS)
    made, batch = policy(algorithm, "squashed"), rows(rows=32)
    batch = batch.replace(terminated=torch.zeros_like(batch.terminated))
    draw = torch.Generator().manual_seed(5)
    normal = {
        at: torch.randn(DRAWS, *batch.action.shape, generator=draw, dtype=torch.float64)
        for at in ("observation", "next_observation", "uniform")
    }
    batch = batch.with_planned(**{NOISE.format(nth(at, k + 1)): values[k] for at, values in normal.items() for k in range(DRAWS)})
    evenly = 2 * torch.special.ndtr(normal["uniform"]) - 1
    drawn = {"drawn": normal["observation"][:, :, 0].numpy(), "drawn_after": normal["next_observation"][:, :, 0].numpy()}
    found = theirs(algorithm, made, batch, tmp_path, draws=DRAWS, evenly=evenly[:, :, 0].transpose(0, 1).contiguous().numpy(), **drawn)
    same(algorithm, made, batch, found, "critic", "q")
