"""Small networks as one vector each, so that an optimiser step costs a few operations and not a few for every parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class ParameterVector:
    """Parameters as views of one vector `[N]`, which is what the optimiser sees. All of them get a gradient, or none does.

    At the size of a controller's networks, clipping and an AdamW step on a dozen parameters cost as much as their forward pass.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        pieces = self.vector.detach().split([p.numel() for p in parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.data = piece.view_as(parameter)

    def gather(self) -> None:
        """The vector's gradient, from those of the parameters."""
        gradients = [p.grad.reshape(-1) for p in self.parameters if p.grad is not None]
        self.vector.grad = torch.cat(gradients) if len(gradients) == len(self.parameters) else None
