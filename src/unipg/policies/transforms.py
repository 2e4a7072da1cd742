"""What lies between a controller's actions and those that its environment is given, on the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch

from unipg.errors import InputError
from unipg.networks.corrections import Correction
from unipg.networks.denoisers import Denoiser
from unipg.policies.actions import BoxActions

PolicyTransform = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`transform(observation [N,O] as stored, action [N,A])`: other actions [N,A], both in the policy's units."""


def decoding(decoder: Denoiser) -> PolicyTransform:
    """Actions that a decoder makes of latent ones. Errors: `InputError` where it gives what is not finite, which bounds would hide."""
    decode = decoder.on_the_host()

    def transform(observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # told below, of what comes out
            decoded = decode(observation, action)
        if not np.isfinite(decoded).all():
            row = int(np.argwhere(~np.isfinite(decoded))[0][0])
            raise InputError(f"the decoder gives {decoded[row].tolist()} for the latent action {action[row].tolist()} (row {row})")
        return decoded

    return transform


def correcting(correction: Correction, actions: BoxActions) -> PolicyTransform:
    """a + d(s, a) of actions held inside their bounds; the action itself, to the bit, where d is 0 or not finite.

    Those that are not finite are counted (`Correction.given_up`), and told of once.
    """

    @torch.no_grad()
    def transform(observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(action)
        inner = actions.inside(given)
        added = correction(torch.from_numpy(observation).float(), inner)
        broken = ~torch.isfinite(added).all(1)
        if count := int(broken.sum()):
            if not correction.given_up:
                warnings.warn("a correction is not finite: such actions are left as the policy has them, and counted", stacklevel=2)
            correction.given_up += count
        moved = (added != 0).any(1) & ~broken
        return torch.where(moved.unsqueeze(1), inner + added, given).numpy()

    return transform
