"""Random numbers that depend on a seed and a name, not on what ran before: a resumed run draws what the uninterrupted one would have."""

from __future__ import annotations

import hashlib
import random

import torch


def derived_seed(seed: int, *names: object) -> int:
    """A 63-bit seed from `seed` and any names, e.g. `derived_seed(0, "rollout", iteration)`."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator for the named purpose."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *names))


def seed_everything(seed: int, *names: object) -> None:
    """Seeds the global generators of Python, NumPy and torch (dropout, user code) for the named purpose."""
    import numpy

    random.seed(value := derived_seed(seed, *names))
    numpy.random.seed(value % 2**32)  # noqa: NPY002  (user code may use the global generator)
    seed_torch(seed, *names)


def seed_torch(seed: int, *names: object) -> None:
    """Seeds the global generators of torch (dropout) for the named purpose."""
    value = derived_seed(seed, *names)
    # torch.manual_seed walks through every kind of device, each time: a tenth of a small controller's step
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)
