"""A saved controller as one file for other programs: what `unipg export` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unipg.errors import InputError
from unipg.files import check_output, write_output
from unipg.hub import check_folder, check_place, in_home, saved_model
from unipg.policies.actor_critic import ActorCritic, is_controller
from unipg.policies.export import FORMATS, Format, check_format, export


def export_model(
    model: str, format: Format = "onnx", *, output: str | None = None, checkpoint: str = "last"
) -> tuple[Path, dict[str, Any]]:
    """Writes the most likely action of the controller in a run or model folder as one graph; returns where, and `Acting.description`.

    `output`: by default `actor.onnx` or `actor.pt` in `model`. `checkpoint`: `last` or `best` of a run. See `policies.export.Acting`.

    Errors: `InputError` for a language model, for a format that does not exist or needs a package, and where another file is in the way.
    """
    check_place(model, runs=True)
    check_format(format)
    place = saved_model(model, checkpoint)
    if not is_controller(Path(place)):
        check_folder(place, runs=True)
        raise InputError(
            f"'{model}' is a language model, which needs no export: transformers loads it as it is, "
            f"AutoModelForCausalLM.from_pretrained('{place}'); accepted: a controller"
        )
    path = Path(model) / f"actor{FORMATS[format]}" if output is None else Path(in_home(output))
    check_output(path, "export")
    told: list[dict[str, Any]] = []
    write_output(path, lambda unfinished: told.append(export(ActorCritic.load(Path(place)), unfinished, format)), "export")
    return path, told[0]
