"""A controller's most likely action as one self-contained graph: what the environment gives goes in, what it takes comes out."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from unipg.errors import InputError, missing_package, nearest, one_line
from unipg.files import generator
from unipg.networks.encoders import Leaf
from unipg.networks.perceptron import Ensemble
from unipg.policies.actions import BoxActions
from unipg.policies.actor_critic import ActorCritic

Format = Literal["onnx", "torchscript"]
FORMATS: dict[str, str] = {"onnx": ".onnx", "torchscript": ".pt"}
"""With the ending of each one's files."""
OUTPUT = "action"
NOTE = "unipg.json"
"""Of a TorchScript file: the extra file that says what goes in and comes out."""
_OPSET = 18


class Acting(nn.Module):
    """Observations as the environment gives them to actions as it takes them: encoding, frozen statistics, network, bounds and all.

        action = for_environment(argmax_a π(a | (encode(o) − mean) · scale))

    One argument for each leaf of the observation space, [N,…]; actions [N,…] of the space's own shape and dtype.
    """

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        networks = policy.module
        self.encoder, self.actions = policy.encoder, policy.actions
        self.flat = networks.flat
        self.normalizer = None if networks.normalizer is None else networks.normalizer.frozen()
        self.actor = networks.actor
        self.decoder = networks.decoder
        trained = policy.correction is not None and bool(policy.correction.fitted)
        self.correction = policy.correction if trained else None
        self.leaves: list[Leaf] = policy.encoder.leaves()

    def forward(self, *observation: Tensor) -> Tensor:
        seen = self.encoder.stack(observation)
        condition = seen = seen if self.flat is None else self.flat(seen)
        seen = seen if self.normalizer is None else self.normalizer(seen)
        output = self.actor(seen)
        if output.ndim == 3:  # an ensemble of values, whose mean chooses
            output = cast("Ensemble", self.actor).mean_value(output)
        action = self.actions.likeliest(output)
        action = action if self.decoder is None else self.decoder.decode(condition, action)
        if self.correction is not None:
            inner = cast("BoxActions", self.actions).inside(action)
            added = self.correction.added(condition, inner)
            action = torch.where(torch.isfinite(added).all(1, keepdim=True), inner + added, inner)
        return self.actions.given(action)

    def examples(self, rows: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(rows, *leaf.shape, dtype=getattr(torch, leaf.dtype)) for leaf in self.leaves)

    def description(self) -> dict[str, Any]:
        """What goes in and comes out, in plain values."""
        with torch.no_grad():
            action = self(*self.examples(1))
        given = {"name": OUTPUT, "shape": ["N", *action.shape[1:]], "dtype": str(action.dtype).removeprefix("torch.")}
        taken = [{"name": leaf.name, "shape": ["N", *leaf.shape], "dtype": leaf.dtype} for leaf in self.leaves]
        return {"generator": generator("export"), "inputs": taken, "outputs": [given]}


def check_format(format: str) -> None:
    """Refuses a format that does not exist, and one whose packages are missing."""
    if format not in FORMATS:
        raise InputError(f"format '{format}' does not exist; {nearest(format, FORMATS)}")
    if format == "onnx":
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                raise missing_package(package, "export", "the format onnx")


@contextmanager
def _quiet() -> Iterator[None]:
    """What exporters say of themselves, and of what is fixed here for good, is no news."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def export(policy: ActorCritic, path: Path, format: Format) -> dict[str, Any]:
    """Writes the policy's most likely action to `path`, for batches of any size; returns `Acting.description`, which the file holds too.

    Errors: `InputError` for a format that does not exist, whose packages are missing, or whose exporter fails.
    """
    check_format(format)
    acting = copy.deepcopy(Acting(policy)).cpu().eval().requires_grad_(False)
    told = acting.description()
    try:
        with _quiet():
            (_onnx if format == "onnx" else _torchscript)(acting, path, json.dumps(told))
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"the controller cannot be exported as {format}: {one_line(error)}") from error
    return told


def _torchscript(acting: Acting, path: Path, note: str) -> None:
    traced = torch.jit.trace(acting, acting.examples(2))
    torch.jit.save(traced, path, _extra_files={NOTE: note})


def _onnx(acting: Acting, path: Path, note: str) -> None:
    import onnx

    names = [leaf.name for leaf in acting.leaves]
    rows = torch.export.Dim("N")
    program = torch.onnx.export(
        acting,
        acting.examples(2),
        input_names=names,
        output_names=[OUTPUT],
        dynamic_shapes=(tuple({0: rows} for _ in names),),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"unipg": note})
    onnx.save(model, path)
