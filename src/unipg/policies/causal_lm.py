"""Causal language models from `transformers` as policies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from unipg.errors import InputError, missing_package, nearest
from unipg.estimator.likelihoods import (
    POSITION_KEY,
    Positions,
    Reading,
    categorical_log_prob,
    check_temperature,
    placed,
    token_log_prob,
    wanted,
)
from unipg.policies import packing
from unipg.policies.base import Policy
from unipg.trajectories import Evaluation, Trajectories

if TYPE_CHECKING:
    from unipg.policies.reward_model import SequenceScorer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class CausalLanguageModel(Policy):
    """log pi(token | what came before) of a Hugging Face causal language model, at the temperature that rollouts are sampled at.

    Only positions where the policy acted are projected onto the vocabulary. With `value_head`, a linear head on the last hidden state
    estimates the value before each token.
    """

    def __init__(self, model: Any, tokenizer: Any, *, temperature: float = 1.0, value_head: bool = False) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.temperature = check_temperature(temperature)
        self.has_value = value_head
        parts: dict[str, nn.Module] = {"model": model}
        self._value_head: nn.Linear | None = None
        if value_head:
            head = nn.Linear(_hidden_size(model), 1).to(device=model.device, dtype=torch.float32)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            parts["value_head"] = self._value_head = head
        self.module = nn.ModuleDict(parts)
        self._trunk, self._head = _trunk_and_head(model)
        self._packs = self._trunk is not None and packing.enable(model, self._trunk)
        self._flex = self._packs and packing.flexible(self._trunk)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._packs:  # its attention has a name that another process does not know yet
            packing.register()

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """[B,T] log-probabilities of `batch.action` (token ids) where `batch.mask` is 1; see `Policy.evaluate`.

        Rows are padded on the right, so causal attention alone keeps padding out of sight.
        """
        mask, tokens = batch.mask, batch.action
        if bool(mask[:, 0].any()):
            raise InputError("the first token of a row has no context to be predicted from: its mask must be 0")
        chosen = mask[:, 1:]
        tokens = torch.where(batch.present, tokens, 0) if batch.present is not None else tokens
        target = tokens[:, 1:][chosen]
        planned = wanted(batch, readings)
        hidden: Tensor | None = None
        if self._trunk is not None:
            layout = packing.plan(batch.replace(action=tokens), _hidden_size(self.model)) if self._packs else None
            if layout is None:
                hidden = self._trunk(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state[chosen]
            else:
                hidden = packing.run(self._trunk, layout, self._flex).index_select(0, layout.predictor)
            log_prob, h, read = token_log_prob(
                hidden,
                self._head.weight,
                target,
                bias=self._head.bias,
                temperature=self.temperature,
                entropy=entropy,
                readings=readings,
                planned=planned,
            )
        else:  # a model that does more to its logits than one projection
            out = self.model(input_ids=tokens[:, :-1], use_cache=False, output_hidden_states=value)
            logits = out.logits[chosen]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
            log_prob, h = categorical_log_prob(logits, target, entropy=entropy)
            positions = Positions(logits, target, planned.get(POSITION_KEY, target), planned=planned)
            read = {reading: reading(positions) for reading in readings}
            hidden = out.hidden_states[-1][chosen] if value else None
        values = None
        if value:
            if hidden is None or self._value_head is None:
                raise InputError("this policy was built without a value head")
            values = self._value_head(hidden.to(torch.float32)).squeeze(-1)
        return Evaluation(
            placed(log_prob, mask),
            placed(h, mask) if entropy and h is not None else None,
            None if values is None else placed(values, mask),
            {reading: {name: placed(found, mask) for name, found in named.items()} for reading, named in read.items()},
        )

    def cost_together(self, batch: Trajectories, unit: Tensor, units: int) -> Tensor:
        """[units] tokens: without padding where the model can run packed, and a group's prompt once."""
        if not self._packs:
            return super().cost_together(batch, unit, units)
        prefix = packing.shared_prefixes(batch)
        own = torch.zeros(units, dtype=torch.long, device=unit.device).index_add(0, unit, self.cost(batch) - prefix)
        return own + torch.zeros_like(own).scatter_reduce(0, unit, prefix, "amax")

    def cuts(self, batch: Trajectories, budget: int, together: bool = False) -> list[Tensor]:
        """See `Policy.cuts`. Packed, groups stay whole so that their prompts are computed once, and micro-batches are of equal size."""
        if not self._packs or not len(batch):
            return super().cuts(batch, budget, together)
        assert batch.group is not None
        units, unit = batch.group.unique(return_inverse=True)
        costs = self.cost_together(batch, unit, len(units))
        if int(costs.max()) > budget and not together:  # a group that is too large is cut between its rows
            unit, costs = torch.arange(len(batch), device=unit.device), self.cost(batch)
        bins = packing.balanced(costs.tolist(), budget)
        return [torch.isin(unit, torch.tensor(chosen, device=unit.device)).nonzero().squeeze(1) for chosen in bins]

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """The model in evaluation mode without gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self.model.train(was_training)

    def frozen_copy(self) -> CausalLanguageModel:
        """The policy as it is now, never to be trained: an anchor for KL penalties. With adapters, the base model without them."""
        if hasattr(self.model, "disable_adapter"):
            return _BaseOfAdapter(self.model, self.tokenizer, temperature=self.temperature)
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        return CausalLanguageModel(model, self.tokenizer, temperature=self.temperature)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class _BaseOfAdapter(CausalLanguageModel):
    """The base model of a `peft` model, reached by switching the adapters off."""

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        with self.model.disable_adapter():
            return super().evaluate(batch, entropy=entropy, value=value, readings=readings)


def _hidden_size(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(config.hidden_size)


def _trunk_and_head(model: Any) -> tuple[Any, Any]:
    """The model without its output projection, and the projection; (None, None) where logits are not just one projection."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk, head = getattr(base, base.base_model_prefix, None), base.get_output_embeddings()
    if trunk is None or not isinstance(head, nn.Linear):
        return None, None
    probe = torch.arange(4, device=base.device).unsqueeze(0) % base.get_input_embeddings().weight.shape[0]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=probe, use_cache=False).logits
        hidden = trunk(input_ids=probe, use_cache=False).last_hidden_state
        same = torch.allclose(head(hidden).float(), expected.float(), rtol=1e-4, atol=1e-4)
    model.train(was_training)
    return (trunk, head) if same else (None, None)


@dataclass(frozen=True)
class ScratchModel:
    """A small model built from scratch, with a tokenizer trained on the task's own text."""

    architecture: str = "qwen3"
    """A causal architecture of transformers: qwen3, llama, gpt2 …"""
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 384
    max_positions: int = 1024
    vocabulary: int = 512
    """Largest number of tokens of the byte-level BPE tokenizer. Digits are always single tokens."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters through `peft` (extra `lora`)."""

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target: str | list[str] = "all-linear"


@dataclass(frozen=True)
class ModelRecipe:
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
    attention: str | None = None
    """transformers' attention implementation (sdpa, flash_attention_2, eager); default: its choice."""
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    anchor: str | None = None
    """The model that KL penalties are measured against; default: the model as it is at the start."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if (self.model is None) == (self.scratch is None):
            raise InputError("policy: give either `model` (a hub name or a folder) or `scratch` (build a new one)")
        if self.kind == "reward" and self.anchor is not None:
            raise InputError("policy.anchor is set, but a reward model has no probabilities to measure a KL of; accepted: null")

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
        from unipg.policies.reward_model import SequenceScorer, build_reward_model, load_reward_model

        torch.manual_seed(seed)
        scores = self.kind == "reward"
        if self.scratch is not None:
            tokenizer = load_tokenizer(self.tokenizer) if self.tokenizer else train_tokenizer(texts(), self.scratch.vocabulary, tags)
            model = (build_reward_model if scores else build_model)(self.scratch, tokenizer).to(DTYPES[self.dtype])
        else:
            assert self.model is not None
            tokenizer = load_tokenizer(self.tokenizer or self.model, self.trust_remote_code)
            load = load_reward_model if scores else load_model
            model = load(self.model, self.dtype, self.attention, self.trust_remote_code)
        if self.gradient_checkpointing:
            recompute_activations(model)
        if self.lora is not None:
            model = add_lora(model, self.lora, "SEQ_CLS" if scores else "CAUSAL_LM")
        if scores:
            return SequenceScorer(model.to(device), tokenizer)
        return CausalLanguageModel(model.to(device), tokenizer, temperature=temperature, value_head=value_head)

    def build_anchor(self, policy: CausalLanguageModel) -> CausalLanguageModel:
        """The frozen policy that KL penalties are measured against."""
        if self.anchor is None:
            return policy.frozen_copy()
        model = load_model(self.anchor, self.dtype, self.attention, self.trust_remote_code).to(policy.device)
        return CausalLanguageModel(model.eval().requires_grad_(False), policy.tokenizer, temperature=policy.temperature)


def recompute_activations(model: Any) -> None:
    """Layers keep their inputs alone and run again in the backward pass."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # before transformers 5.20
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def load_model(name: str, dtype: str = "float32", attention: str | None = None, trust_remote_code: bool = False) -> Any:
    """A causal language model from a hub name or a folder; InputError in one line when it cannot be read."""
    from transformers import AutoModelForCausalLM

    check_folder(name)
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, **options)
    except Exception as error:
        raise InputError(f"the model '{name}' cannot be loaded: {first_line(error)}") from error


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """A tokenizer from a hub name or a folder, with padding and end-of-sequence tokens settled."""
    from transformers import AutoTokenizer

    check_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(f"the tokenizer of '{name}' cannot be loaded: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of '{name}' has no end-of-sequence token: answers could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_folder(name: str) -> None:
    """Refuses what looks like a local folder and holds no checkpoint."""
    path = Path(name)
    looks_local = path.exists() or name.startswith((".", "/", "~", "runs/"))
    if looks_local and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        what = "has no config.json" if path.is_dir() else "does not exist" if not path.exists() else "is not a folder"
        raise InputError(f"the model folder '{name}' {what}; accepted: a folder written by save_pretrained, or a hub name")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for one-line messages."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def train_tokenizer(texts: list[str], vocabulary: int, tags: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens learnt from `texts`; each digit is a token of its own.

    `tags`: strings that are one token each, added to the vocabulary, and stay visible in decoded text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 260:
        raise InputError(f"policy.scratch.vocabulary is {vocabulary}; accepted: 260 or more (256 bytes and the special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1])


def build_model(scratch: ScratchModel, tokenizer: Any) -> Any:
    """A randomly initialised causal language model of the named architecture."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(scratch_config(scratch, tokenizer))


def scratch_config(scratch: ScratchModel, tokenizer: Any) -> Any:
    """The configuration of a model built from scratch."""
    from transformers import CONFIG_MAPPING

    if scratch.architecture not in CONFIG_MAPPING:
        hint = nearest(scratch.architecture, ["qwen3", "qwen2", "llama", "gpt2", "mistral", "gemma"])
        raise InputError(f"policy.scratch.architecture '{scratch.architecture}' does not exist; {hint}")
    if scratch.hidden_size % scratch.heads:
        raise InputError(f"policy.scratch.hidden_size ({scratch.hidden_size}) must be a multiple of heads ({scratch.heads})")
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": scratch.hidden_size,
        "num_hidden_layers": scratch.layers,
        "num_attention_heads": scratch.heads,
        "num_key_value_heads": scratch.heads,
        "head_dim": scratch.hidden_size // scratch.heads,
        "intermediate_size": scratch.intermediate_size,
        "max_position_embeddings": scratch.max_positions,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CONFIG_MAPPING[scratch.architecture](**sizes)


def add_lora(model: Any, lora: Lora, task: str = "CAUSAL_LM") -> Any:
    """The model with adapters; `task` is peft's name for what it is used for."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise missing_package("peft", "lora", "policy.lora") from None
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target, task_type=task)
    return get_peft_model(model, config)
