"""Writes line-world.npz beside it: 4,000 steps of the line whose middle is recorded with steps to the left alone."""

from pathlib import Path

from unipg.environments.line_world import collect
from unipg.replay import Transitions, save_data

CARD = {"environment": "unipg.environments:unipg/LineWorld-v0", "name": "line_world", "seed": 0}

if __name__ == "__main__":
    place = Path(__file__).with_name("line-world.npz")
    place.unlink(missing_ok=True)
    save_data(Transitions.of(collect(4000, seed=0), CARD), place)
