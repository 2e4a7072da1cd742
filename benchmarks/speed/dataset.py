"""Ten million transitions from an HDF5 file: how long the first and the second opening take, how much memory, and how long a draw of 256.

    python benchmarks/speed/dataset.py [--rows N]

About a minute and 2 GB of disk in a temporary folder. Exits with 1 where a draw takes 0.2 ms or more at the median, or the second opening
more than a second.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from unipg.replay import open_data

PART = 100_000


def write(path: Path, rows: int) -> None:
    """A Hopper's sizes in D4RL's layout: 11 observations, 3 actions, episodes of 1,000 steps that are cut."""
    draw = np.random.default_rng(0)
    shapes = {"observations": (11,), "actions": (3,), "rewards": ()}
    with h5py.File(path, "w") as file:
        for name, shape in shapes.items():
            file.create_dataset(name, (rows, *shape), "f4")
        for start in range(0, rows, PART):
            for name, shape in shapes.items():
                file[name][start : start + PART] = draw.standard_normal((min(PART, rows - start), *shape), np.float32)
        file["terminals"], file["timeouts"] = np.zeros(rows, bool), np.arange(rows) % 1000 == 999


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        path = Path(folder) / "data.hdf5"
        write(path, rows)
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            data = open_data(path)
            seconds.append(time.perf_counter() - began)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        source, spent = torch.Generator().manual_seed(0), []
        for _ in range(2000):
            index = torch.randint(len(data), (256,), generator=source)
            began = time.perf_counter()
            data.draw(index)
            spent.append(1e3 * (time.perf_counter() - began))
    draw = float(np.median(spent))
    print(f"{len(data):,} transitions: opened in {seconds[0]:.1f} s (converted), {1e3 * seconds[1]:.0f} ms (again); peak {memory:.0f} MB")
    print(f"a draw of 256: median {draw:.3f} ms, mean {np.mean(spent):.3f} ms")
    return int(draw >= 0.2 or seconds[1] > 1)


if __name__ == "__main__":
    sys.exit(main())
