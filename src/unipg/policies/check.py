"""The proof of a model that is only named: from its configuration, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unipg.errors import InputError, nearest
from unipg.hub import check_folder, first_line, loading, saved_model
from unipg.policies.actor_critic import is_controller
from unipg.policies.causal_lm import adapter_of, load_model
from unipg.policies.decoding import proof_of
from unipg.policies.proof import Proof


def proof_of_name(name: str, attention: str | None = None, trust_remote_code: bool = False) -> tuple[Proof, int | None]:
    """The proof of a hub name, a folder with a checkpoint, a run folder, or an architecture of transformers (its default configuration, as
    a decoder), and the most tokens that a row of it may have (None for no limit of the model's own).

    Only the configuration is read, unless there can be no small model of it. Errors: `InputError` for a name that cannot be read, or
    that is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    config, weights = _config(saved_model(name), trust_remote_code)
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise InputError(f"'{name}' is no causal language model: {first_line(error)}") from error
    proof = proof_of(model)
    if not proof.replica and weights is not None:
        proof = proof_of(load_model(weights, attention=attention, trust_remote_code=trust_remote_code))
    return proof, proof.longest(config)


def _config(name: str, trust_remote_code: bool) -> tuple[Any, str | None]:
    """The configuration that a name stands for, and where its weights are; an architecture has none."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
        except Exception as error:
            raise InputError(f"'{name}' has no default configuration: {first_line(error)}") from error
        if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
            config.is_decoder = True
        return config, None
    if not Path(name).exists() and "/" not in name:
        raise InputError(f"'{name}' is neither a folder nor an architecture; {nearest(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}")
    check_folder(name)
    if is_controller(Path(name)):
        raise InputError(f"'{name}' is a controller; accepted: a causal language model")
    adapter = adapter_of(name)
    where = name if adapter is None else adapter.base
    with loading("the configuration of", where):
        return AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code), where
