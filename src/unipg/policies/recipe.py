"""The `policy` section of a recipe: which language model is trained, and how it is built or loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from unipg.arguments import CheckedArguments
from unipg.errors import InputError
from unipg.hub import in_home
from unipg.policies.causal_lm import (
    CRITIC_WEIGHTS,
    DTYPES,
    CausalLanguageModel,
    Critic,
    Lora,
    ScratchModel,
    adapter_of,
    add_lora,
    build_model,
    continue_lora,
    load_model,
    load_tokenizer,
    recompute_activations,
    train_tokenizer,
)
from unipg.policies.reward_model import SequenceScorer, build_reward_model, load_reward_model


@dataclass(frozen=True)
class ModelRecipe(CheckedArguments):
    """Which language model is trained."""

    kind: Literal["causal", "reward"] = "causal"
    """causal: a language model. reward: a sequence classifier with one output, which scores whole answers; it may start from a causal
    model, with a new head."""
    model: str | None = None
    """A hub name or a local folder with a Hugging Face checkpoint."""
    scratch: ScratchModel | None = None
    """Instead of `model`: build a new one."""
    tokenizer: str | None = None
    """A hub name or folder; default: the model's own."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """What is computed in. With bfloat16, whatever is trained keeps float32 weights, as in mixed precision elsewhere, and so does the
    checkpoint; frozen weights below adapters are bfloat16. float16 cannot be trained."""
    attention: str | None = None
    """transformers' attention implementation (sdpa, flash_attention_2, eager); default: its choice."""
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    critic: Critic = "shared"
    """Where the algorithm has one. shared: a head on the policy's trunk, which its loss moves too. detached: the same without gradient into
    the trunk. separate: a trunk of its own, started as a copy; with `lora`, adapters of its own on the same base."""
    critic_from: str | None = None
    """A run folder whose critic this one starts as, or its folder `critic`; both are of the same kind. Default: a head that starts at 0."""
    anchor: str | None = None
    """The model that KL penalties are measured against; default: the model as it is at the start."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        for name in ("model", "tokenizer", "anchor", "critic_from"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, in_home(value))
        if (self.model is None) == (self.scratch is None):
            raise InputError("policy: give either `model` (a hub name or a folder) or `scratch` (build a new one)")
        if self.dtype == "float16":
            raise InputError("policy.dtype is float16, in which small gradients are 0; accepted: float32, bfloat16, float64")
        if self.kind == "reward" and self.anchor is not None:
            raise InputError("policy.anchor is set, but a reward model has no probabilities to measure a KL of; accepted: null")
        if self.kind == "reward" and self.critic != "shared":
            raise InputError(f"policy.critic is '{self.critic}', but a reward model has no critic; accepted: leave it out")

    def critic_folder(self, has_critic: bool) -> Path | None:
        """Where the critic that `critic_from` names is. Errors: `InputError` where there is none, or an algorithm without a critic."""
        if self.critic_from is None:
            return None
        if not has_critic:
            raise InputError("policy.critic_from is set, but this algorithm has no critic; accepted here: null")
        place = Path(self.critic_from)
        folder = place / "critic" if (place / "critic").is_dir() else place
        if not (folder / CRITIC_WEIGHTS).is_file():
            raise InputError(
                f"policy.critic_from '{place}' holds no {CRITIC_WEIGHTS}; accepted: the folder of a run with a critic, or its critic folder"
            )
        return folder

    def build(
        self,
        texts: Callable[[], list[str]],
        *,
        temperature: float,
        value_head: bool,
        device: torch.device | str,
        seed: int,
        tags: Sequence[str] = (),
    ) -> CausalLanguageModel | SequenceScorer:
        """The policy of this kind. `texts` gives the task's own text, where a tokenizer built from scratch learns from it; `tags` are
        then tokens of their own.
        """
        torch.manual_seed(seed)
        scores = self.kind == "reward"
        half = self.dtype == "bfloat16"
        adapters = None if self.model is None else adapter_of(self.model)
        # whatever is trained is float32, and only computed with in half precision
        dtype = "float32" if half and self.lora is None and adapters is None else self.dtype
        if self.scratch is not None:
            tokenizer = load_tokenizer(self.tokenizer) if self.tokenizer else train_tokenizer(texts(), self.scratch.vocabulary, tags)
            model = (build_reward_model if scores else build_model)(self.scratch, tokenizer).to(DTYPES[dtype])
        else:
            assert self.model is not None
            tokenizer = load_tokenizer(self.tokenizer or self.model, self.trust_remote_code)
            load = load_reward_model if scores else load_model
            if adapters is None:
                model = load(self.model, dtype, self.attention, self.trust_remote_code)
            else:
                base = load(adapters.base, dtype, self.attention, self.trust_remote_code)
                model = continue_lora(base, adapters, self.lora)
        if self.gradient_checkpointing:
            recompute_activations(model)
        if self.lora is not None and adapters is None:
            model = add_lora(model, self.lora, "SEQ_CLS" if scores else "CAUSAL_LM")
        for parameter in model.parameters():
            if half and parameter.requires_grad:
                parameter.data = parameter.data.float()
        compute = DTYPES[self.dtype] if half else None
        if scores:
            return SequenceScorer(model.to(device), tokenizer, compute=compute)
        critic, saved = self.critic if value_head else None, self.critic_folder(value_head)
        policy = CausalLanguageModel(model.to(device), tokenizer, temperature=temperature, critic=critic, compute=compute)
        if saved is not None:
            policy.load_critic(saved)
        return policy

    def build_anchor(self, policy: CausalLanguageModel) -> CausalLanguageModel:
        """The frozen policy that KL penalties are measured against."""
        if self.anchor is None:
            return policy.frozen_copy()
        model = load_model(self.anchor, self.dtype, self.attention, self.trust_remote_code).to(policy.device)
        return CausalLanguageModel(model.requires_grad_(False), policy.tokenizer, temperature=policy.temperature, compute=policy.compute)
