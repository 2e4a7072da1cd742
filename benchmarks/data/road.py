"""Writes road.npz beside it, 100 episodes of a noisy driver, and road-driver/: a policy cloned from them, with a constant error."""

import shutil
import tempfile
from pathlib import Path

import torch

from unipg import train
from unipg.environments.road import collect
from unipg.policies.actor_critic import ActorCritic
from unipg.replay import Transitions, save_data

HERE = Path(__file__).parent
ROAD = "unipg.environments:unipg/Road-v0"
ERROR = (0.45, 0.25)
"""Added to the actions of the clone, which arrives without it and crashes with it."""

if __name__ == "__main__":
    (HERE / "road.npz").unlink(missing_ok=True)
    save_data(Transitions.of(collect(100, seed=0), {"environment": ROAD, "name": "road", "seed": 0}), HERE / "road.npz")
    with tempfile.TemporaryDirectory() as scratch:
        train(
            "bc",
            environment=ROAD,
            output=f"{scratch}/run",
            dataset={"path": str(HERE / "road.npz"), "updates": 3000},
            controller={"hidden": [32, 32], "kind": "gaussian"},
            optimizer={"learning_rate": 1e-3},
            training={"iterations": 1},
        )
        policy = ActorCritic.load(Path(scratch, "run", "model"))
    with torch.no_grad():
        policy.module.actor.layers[-1].bias += torch.tensor(ERROR)
    shutil.rmtree(HERE / "road-driver", ignore_errors=True)
    policy.save(HERE / "road-driver")
