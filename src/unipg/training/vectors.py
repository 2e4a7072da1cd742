"""Small networks as one vector each, so that an optimiser step costs a few operations and not a few for every parameter."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Variable


class ParameterVector:
    """Parameters as parts of one vector `[N]`, which is what the optimiser sees. All of them get a gradient, or none does.

    They stay the same objects, share the vector's memory and its version: a step between a forward pass and its backward pass raises, as
    it does in plain torch. Raises RuntimeError, as `torch.utils.swap_tensors` does, for a parameter that has weak references.

    At the size of a controller's networks, clipping and an AdamW step on a dozen parameters cost as much as their forward pass.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        whole, start = self.vector.detach(), 0
        for parameter in self.parameters:
            # `parameter.data = …` would keep the parameter's own version, which no step on the vector counts up; a detached piece has the
            # vector's version and is, to autograd, no view of anything
            piece = whole[start : start + parameter.numel()].view_as(parameter).detach().requires_grad_(parameter.requires_grad)
            piece.__class__ = type(parameter)
            torch.utils.swap_tensors(parameter, piece)
            start += parameter.numel()

    @property
    def trained(self) -> bool:
        """Whether its parameters want a gradient at all."""
        return self.parameters[0].requires_grad

    def take(self, gradients: Sequence[Tensor]) -> None:
        """The vector's gradient, from one for each of the parameters, in their order."""
        self.vector.grad = joined(gradients)

    def gather(self) -> None:
        """The vector's gradient, from those of the parameters."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.vector.grad = joined(gradients) if len(gradients) == len(self.parameters) else None


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """[D] of tensors of any shapes, one behind the other: `torch.cat` of them, flattened, without a call for each."""
    return torch._C._nn.flatten_dense_tensors(list(tensors))


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`torch.autograd.grad(loss, parameters)`, to the bit, by its engine alone: what torch has around it costs a small network's forward
    pass."""
    one = _one(loss.dtype, loss.device)
    found: tuple[Tensor, ...] = Variable._execution_engine.run_backward((loss,), (one,), False, False, tuple(parameters), False, False)
    return found


@functools.cache
def _one(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones((), dtype=dtype, device=device)
