"""What is looked at in a model's weights: whether they are numbers, and which model it is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from unipg.errors import InputError

SAMPLED = 1024
"""Numbers of each parameter by which a frozen model is known again."""


def all_finite(parameters: Sequence[Tensor]) -> bool:
    """Whether no entry is NaN or infinite. One pass over the parameters; the largest entry of each is looked at, so nothing overflows."""
    trained = [p.detach() for p in parameters if p.is_floating_point() and p.numel()]
    if not trained:
        return True
    finite = [size.isfinite() for size in torch._foreach_norm(trained, math.inf)]
    return bool(torch.stack([each.to(finite[0].device) for each in finite]).all())


def nonfinite(named: Iterable[tuple[str, Tensor]]) -> str:
    """`'lm_head.weight' is not finite (nan; 12 of its 4096 numbers, in 3 of 25 tensors)`, of the first that is not; empty where all are."""
    count, bad, first = 0, 0, ""
    for name, tensor in named:
        count += 1
        if tensor.is_floating_point() and not all_finite([tensor]):
            bad += 1
            if not first:
                wrong = ~tensor.detach().isfinite()
                what = "nan" if bool(tensor.detach().isnan().any()) else "infinity"
                first = f"'{name}' is not finite ({what}; {int(wrong.sum())} of its {tensor.numel()} numbers"
    return f"{first}, in {bad} of {count} tensors)" if bad else ""


def check_finite(module: nn.Module, what: str) -> None:
    """Refuses a model with weights that are no numbers, naming the first tensor: whatever it said would be NaN."""
    if not all_finite(list(module.parameters())):
        raise InputError(f"{what} cannot be used: {nonfinite(module.named_parameters())}")


def fingerprint(module: nn.Module) -> str:
    """Of the frozen parameters, from some of their numbers: a pass over all of a large model would take longer than loading it."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            flat = parameter.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // SAMPLED)].float().cpu().contiguous()
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
