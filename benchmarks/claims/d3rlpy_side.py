"""A run of d3rlpy on given transitions, in a process of its own: `python d3rlpy_side.py METHOD ARRAYS.npz SETTINGS`, the last in JSON.

Prints one line of JSON: the return of its policy, the CPU-seconds of its updates, and versions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

EPISODES = range(10_000, 10_020)
"""Seeds of the episodes that policies are judged by."""


def mean_return(act: Callable[[np.ndarray], np.ndarray], environment: str) -> float:
    """Of a policy without chance, [N,O] float32 to actions [N,A] of the environment, over `EPISODES` side by side."""
    made = [gymnasium.make(environment) for _ in EPISODES]
    seen = np.stack([each.reset(seed=seed)[0] for each, seed in zip(made, EPISODES, strict=True)]).astype(np.float32)
    total, going = np.zeros(len(made)), np.ones(len(made), bool)
    while going.any():
        action = act(seen)
        for k in np.flatnonzero(going):
            seen[k], reward, terminated, truncated, _ = made[k].step(action[k])
            total[k] += reward
            going[k] = not (terminated or truncated)
    return float(total.mean())


def main(method: str, place: str, settings: dict[str, Any]) -> None:
    import d3rlpy
    import structlog
    import torch

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(1)
    d3rlpy.seed(settings["seed"])
    data = np.load(place)
    given = d3rlpy.dataset.MDPDataset(
        observations=data["observation"],
        actions=data["action"],
        rewards=data["reward"].reshape(-1, 1) * np.float32(settings["reward_scale"]),
        terminals=data["terminated"].astype("f4"),
        timeouts=data["truncated"].astype("f4"),
    )
    encoder, rate = d3rlpy.models.VectorEncoderFactory(settings["hidden"]), settings["learning_rate"]
    bounds = d3rlpy.preprocessing.MinMaxActionScaler(minimum=settings["low"], maximum=settings["high"])
    common = {"batch_size": 256, "gamma": 0.99, "action_scaler": bounds}
    both = {"actor_encoder_factory": encoder, "critic_encoder_factory": encoder, "actor_learning_rate": rate, "critic_learning_rate": rate}
    units = {"observation_scaler": d3rlpy.preprocessing.StandardObservationScaler()}
    algos = d3rlpy.algos
    made = {
        "bc": lambda: algos.BCConfig(**common, **units, encoder_factory=encoder, learning_rate=rate, policy_type="stochastic"),
        "td3_bc": lambda: algos.TD3PlusBCConfig(**common, **units, **both),
        "prdc": lambda: algos.PRDCConfig(**common, **units, **both),
        "iql": lambda: algos.IQLConfig(**common, **both, value_encoder_factory=encoder),
        "awac": lambda: algos.AWACConfig(**common, **both),
        "cql": lambda: algos.CQLConfig(**common, **both, temp_learning_rate=rate, alpha_learning_rate=0.0),
    }[method]().create(device=False)
    updates = settings["updates"]
    began = time.process_time()
    made.fit(given, updates, n_steps_per_epoch=updates, show_progress=False, logger_adapter=d3rlpy.logging.NoopAdapterFactory())
    seconds = time.process_time() - began
    found = mean_return(made.predict, settings["environment"])
    versions = {"d3rlpy": d3rlpy.__version__, "gymnasium": gymnasium.__version__, "torch": torch.__version__}
    print(json.dumps({"return": found, "cpu": seconds, "versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
