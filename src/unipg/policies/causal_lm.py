"""Causal language models from `transformers` as policies."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from unipg.arguments import CheckedArguments
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
from unipg.hub import check_folder, first_line, impatient, is_checkpoint, loading
from unipg.policies import packing
from unipg.policies.base import Policy
from unipg.policies.decoding import proof_of
from unipg.policies.proof import bare, head_of, trunk_of
from unipg.policies.weights import check_finite, nonfinite
from unipg.trajectories import Evaluation, Trajectories

Critic = Literal["shared", "detached", "separate"]
CRITIC_WEIGHTS = "critic.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class CausalLanguageModel(Policy):
    """log pi(token | what came before) of a Hugging Face causal language model, at the temperature that rollouts are sampled at.

    Only positions where the policy acted are projected onto the vocabulary. With a `critic`, a linear head that starts at 0 estimates the
    value before each token from a last hidden state:

        shared      the policy's own; the value loss moves the policy's trunk too
        detached    the policy's own without gradient: the head alone learns
        separate    that of a trunk of its own, a copy of the policy's as it is now. Parameters that do not require a gradient are shared:
                    with adapters the critic has adapters of its own on the same base.
    """

    twice_differentiable = False  # the projection onto the vocabulary, and fused attention, have a first derivative alone

    def __init__(
        self, model: Any, tokenizer: Any, *, temperature: float = 1.0, critic: Critic | None = None, compute: torch.dtype | None = None
    ) -> None:
        """`compute`: what products are computed in where that is less than what the weights are kept in (mixed precision)."""
        self.model, self.tokenizer, self.compute = model, tokenizer, compute
        self.temperature = check_temperature(temperature)
        if critic not in (None, *get_args(Critic)):
            raise InputError(f"critic '{critic}' does not exist; {nearest(str(critic), get_args(Critic))}")
        self.critic, self.has_value = critic, critic is not None
        self.proof = proof_of(model)
        self.proof.require()
        self._longest = self.proof.longest(bare(model).config)
        projects = self.proof.allows("projection")
        self._trunk: Any = trunk_of(model) if projects else None
        self._head: nn.Linear | None = head_of(model) if self._trunk is not None else None
        self._packs = self.proof.packs and self._trunk is not None
        if self._packs:
            packing.enable(self._trunk)
        self._flex = self._packs and packing.flexible(self._trunk)
        self.module = nn.ModuleDict({"model": model})
        self._value_head: nn.Linear | None = None
        self._critic_trunk: Any = None
        if critic is not None:
            head = nn.Linear(_hidden_size(model), 1, device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.module["value_head"] = self._value_head = head
        if critic == "separate":
            self.module["critic"] = self._critic_trunk = _own_copy(trunk_of(model))
        settle(self.module)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._packs:  # its attention has a name that another process does not know yet
            packing.register()

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """[B,T] log-probabilities of `batch.action` (token ids) where `batch.mask` is 1; see `Policy.evaluate`.

        Rows are padded on the right, so causal attention alone keeps padding out of sight.
        """
        with mixed_precision(self.device, self.compute):
            return self._evaluate(batch, entropy, value, readings)

    def _evaluate(self, batch: Trajectories, entropy: bool, value: bool, readings: Sequence[Reading]) -> Evaluation:
        mask, tokens = batch.mask, batch.action
        if self._longest is not None and mask.shape[1] > self._longest:
            self._check_length(batch)
        if bool(mask[:, 0].any()):
            raise InputError("the first token of a row has no context to be predicted from: its mask must be 0")
        chosen = mask[:, 1:]
        tokens = torch.where(batch.present, tokens, 0) if batch.present is not None else tokens
        target = tokens[:, 1:][chosen]
        planned = wanted(batch, readings)
        hidden: Tensor | None = None
        layout = packing.plan(batch.replace(action=tokens), _hidden_size(self.model)) if self._packs else None

        def states(trunk: Any) -> Tensor:
            """[N,H] last hidden states from which the policy's tokens are predicted."""
            if layout is None:
                return trunk(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state[chosen]
            return packing.run(trunk, layout, self._flex).index_select(0, layout.predictor)

        if self._trunk is not None:
            assert self._head is not None
            hidden = states(self._trunk)
            weight, bias = (None if p is None else p.to(self.compute or p.dtype) for p in (self._head.weight, self._head.bias))
            hidden = hidden.to(self.compute or hidden.dtype)
            log_prob, h, read = token_log_prob(
                hidden,
                weight,
                target,
                bias=bias,
                temperature=self.temperature,
                entropy=entropy,
                readings=readings,
                planned=planned,
            )
        else:  # a model that does more to its logits than one projection
            reads_hidden = value and self._critic_trunk is None
            out = self.model(input_ids=tokens[:, :-1], use_cache=False, output_hidden_states=reads_hidden)
            logits = out.logits[chosen]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
            log_prob, h = categorical_log_prob(logits, target, entropy=entropy)
            positions = Positions(logits, target, planned.get(POSITION_KEY, target), planned=planned)
            read = {reading: reading(positions) for reading in readings}
            hidden = out.hidden_states[-1][chosen] if reads_hidden else None
        values = None
        if value:
            if self._value_head is None:
                raise InputError("this policy was built without a critic")
            if self._critic_trunk is not None:
                hidden = states(self._critic_trunk)
            assert hidden is not None
            read_from = hidden.detach() if self.critic == "detached" else hidden
            values = self._value_head(read_from.to(self._value_head.weight.dtype)).squeeze(-1)
        return Evaluation(
            placed(log_prob, mask),
            placed(h, mask) if entropy and h is not None else None,
            None if values is None else placed(values, mask),
            {reading: {name: placed(found, mask) for name, found in named.items()} for reading, named in read.items()},
        )

    def _check_length(self, batch: Trajectories) -> None:
        longest = int(self.cost(batch).max())
        if longest - 1 > self._longest:  # type: ignore[operator]
            raise InputError(
                f"a row has {longest} tokens, but a model of type '{self.proof.architecture}' gives right log-probabilities within its "
                f"original context of {self._longest} alone; accepted: shorter prompts and rollouts.max_new_tokens"
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
        """The model for sampling: without gradients, and without recomputing activations, which would forget the cache."""
        self.model.eval()
        try:
            with torch.no_grad(), mixed_precision(self.device, self.compute):
                yield self.model
        finally:
            settle(self.model)

    def frozen_copy(self) -> CausalLanguageModel:
        """The policy as it is now, never to be trained: an anchor for KL penalties. Of new adapters, the base model without them."""
        options: dict[str, Any] = {"temperature": self.temperature, "compute": self.compute}
        if hasattr(self.model, "disable_adapter") and not getattr(self.model, CONTINUED, False):
            return _BaseOfAdapter(self.model, self.tokenizer, **options)
        # what is frozen is shared: below adapters that are trained on, that is the base model
        model = _own_copy(self.model).requires_grad_(False)
        return CausalLanguageModel(model, self.tokenizer, **options)

    def proposal(self) -> CausalLanguageModel:
        """A twin without the critic: answers are sampled and scored without values."""
        bare = copy.copy(self)
        bare.module = nn.ModuleDict({"model": self.model})
        bare.critic, bare.has_value, bare._value_head, bare._critic_trunk = None, False, None, None
        return bare.twin()

    @property
    def critic_parameters(self) -> list[nn.Parameter]:
        """Those of a `detached` or `separate` critic that are trained; see `Policy.critic_parameters`."""
        return [] if self.critic == "shared" else [p for p in self._critic_state().values() if p.requires_grad]

    def _critic_state(self) -> dict[str, nn.Parameter]:
        """Parameters that the critic does not share with the model, by their name in `module`."""
        return {name: p for name, p in self.module.named_parameters() if not name.startswith("model.")}

    def save(self, folder: Path) -> None:
        """Writes the model and its tokenizer by `save_pretrained`, without the critic (`save_critic`)."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_critic(self, folder: Path) -> None:
        """Writes `critic.safetensors`: the value head and, where the critic is separate, its own parameters; of adapters those alone."""
        from safetensors.torch import save_file

        state = self._critic_state()
        if state:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / CRITIC_WEIGHTS)

    def load_critic(self, folder: Path) -> None:
        """Takes over what `save_critic` wrote. Errors: `InputError` for a missing file, or a critic of another kind or size."""
        from safetensors.torch import load_file

        path, state = folder / CRITIC_WEIGHTS, self._critic_state()
        if not path.is_file():
            raise InputError(f"{folder} holds no {CRITIC_WEIGHTS}; accepted: a folder that save_critic wrote")
        found = load_file(path)
        if wrong := nonfinite(found.items()):
            raise InputError(f"the critic '{path}' cannot be used: {wrong}")
        if {n: t.shape for n, t in found.items()} != {n: t.shape for n, t in state.items()}:
            raise InputError(f"'{path}' holds a critic of another kind or size than this policy's, which is {self.critic or 'none'}")
        with torch.no_grad():
            for name, parameter in state.items():
                parameter.copy_(found[name])


class _BaseOfAdapter(CausalLanguageModel):
    """The base model of a `peft` model, reached by switching the adapters off."""

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        with self.model.disable_adapter():
            return super().evaluate(batch, entropy=entropy, value=value, readings=readings)


def _hidden_size(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(config.hidden_size)


def settle(module: nn.Module) -> None:
    """Evaluation mode throughout, because dropout and a router's noise would make log-probabilities random. Layers that recompute their
    activations stay in training mode by themselves, which is what makes transformers do so, with whatever they drop at 0.
    """
    module.eval()
    for layer in module.modules():
        if getattr(layer, "gradient_checkpointing", False):
            layer.training = True
            for name, value in vars(layer).items():
                if "drop" in name and isinstance(value, float):
                    setattr(layer, name, 0.0)


def mixed_precision(device: torch.device, compute: torch.dtype | None) -> Any:
    """Products in `compute`, whatever the weights are kept in; None for none of this."""
    return nullcontext() if compute is None else torch.autocast(device.type, dtype=compute)


def _own_copy(trunk: Any) -> Any:
    """A copy of a trunk with trained parameters of its own; those that are frozen are the same tensors."""
    if trunk is None:
        raise InputError("critic: this model's trunk is no part of its own that could be copied; accepted here: shared, detached")
    return copy.deepcopy(trunk, {id(p): p for p in trunk.parameters() if not p.requires_grad})


@dataclass(frozen=True)
class ScratchModel(CheckedArguments):
    """A small model built from scratch, with a tokenizer trained on the task's own text."""

    architecture: str = "qwen3"
    """A causal architecture of transformers: qwen3, llama, gpt2 …"""
    hidden_size: int = 128
    """Width of the model; a multiple of `heads`."""
    layers: int = 2
    """Number of layers."""
    heads: int = 4
    """Attention heads."""
    intermediate_size: int = 384
    """Width inside each layer's perceptron."""
    max_positions: int = 1024
    """Longest row, in tokens."""
    vocabulary: int = 512
    """Largest number of tokens of the byte-level BPE tokenizer. Digits are always single tokens."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "heads", "intermediate_size", "max_positions"):
            if not 1 <= getattr(self, name) <= 2**24:
                raise InputError(f"policy.scratch.{name} is {getattr(self, name)}; accepted: 1 or more, and at most {2**24}")
        if self.vocabulary < 260:
            raise InputError(f"policy.scratch.vocabulary is {self.vocabulary}; accepted: 260 or more (256 bytes and the special tokens)")


@dataclass(frozen=True)
class Lora(CheckedArguments):
    """Low-rank adapters through `peft` (extra `lora`)."""

    r: int = 16
    """Rank of the adapters."""
    alpha: int = 32
    """What they are scaled by, times 1/r."""
    dropout: float = 0.0
    """Kept in the adapter's configuration for other tools; here dropout is off."""
    target: str | list[str] = "all-linear"
    """Modules that get adapters, by name; all-linear: every linear layer but the output projection."""

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            if getattr(self, name) < 1:
                raise InputError(f"policy.lora.{name} is {getattr(self, name)}; accepted: 1 or more")
        if not 0 <= self.dropout < 1:
            raise InputError(f"policy.lora.dropout is {self.dropout}; accepted: a share in [0, 1)")


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
    if Path(name).is_dir():
        adapter_of(name)  # which says what is wrong with it
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    with loading("the model", name):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, **options)
    check_finite(model, f"the model '{name}'")
    return model


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """A tokenizer from a hub name or a folder, with padding and end-of-sequence tokens settled."""
    from transformers import AutoTokenizer

    check_folder(name)
    with loading("the tokenizer of", name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of '{name}' has no end-of-sequence token: answers could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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


class Adapter(NamedTuple):
    """A folder or hub name that holds adapters alone."""

    name: str
    base: str
    """The model that they belong to."""


def adapter_of(name: str) -> Adapter | None:
    """What is known of adapters under a name; None where there are none, or a whole model."""
    from transformers.utils.peft_utils import find_adapter_config_file

    folder = Path(name)
    if folder.is_dir() and not (folder / "adapter_config.json").is_file():
        return None
    check_folder(name)
    try:
        with impatient(name):
            found = find_adapter_config_file(name)
        base = None if found is None else json.loads(Path(found).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise InputError(f"the adapters '{name}' cannot be read: {first_line(error)}") from error
    if found is not None and not base:
        raise InputError(f"the adapters '{name}' do not say which model they belong to (base_model_name_or_path)")
    if found is not None and not is_checkpoint(str(base)):
        raise InputError(
            f"the adapters '{name}' belong to the model '{base}', which is not there; accepted: a base_model_name_or_path that is"
        )
    return None if found is None else Adapter(name, str(base))


CONTINUED = "_continued"
"""Attribute of a model whose adapters were trained before: they are part of the policy as it is at the start."""


def continue_lora(base: Any, adapter: Adapter, wanted: Lora | None) -> Any:
    """The model with adapters that were trained before, to be trained on.

    Errors: `InputError` where `wanted` (`policy.lora`) asks for others than they are.
    """
    try:
        from peft import PeftModel
    except ModuleNotFoundError:
        raise missing_package("peft", "lora", f"the adapters '{adapter.name}'") from None
    with loading("the adapters", adapter.name):
        model = PeftModel.from_pretrained(base, adapter.name, is_trainable=True)
    check_finite(model, f"the adapters '{adapter.name}'")
    theirs = model.peft_config[model.active_adapter]
    for key, of_theirs in (("r", "r"), ("alpha", "lora_alpha")):
        mine = None if wanted is None else getattr(wanted, key)
        if mine is not None and mine != (found := getattr(theirs, of_theirs, None)):
            raise InputError(
                f"policy.lora.{key} is {mine}, but the adapters '{adapter.name}', which are trained on, have {found}; accepted: {found}, "
                "or no policy.lora"
            )
    setattr(model, CONTINUED, True)
    return model


def add_lora(model: Any, lora: Lora, task: str = "CAUSAL_LM") -> Any:
    """The model with adapters; `task` is peft's name for what it is used for."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise missing_package("peft", "lora", "policy.lora") from None
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target,
        task_type=task,
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),  # GPT-2's weights are the other way round
    )
    return get_peft_model(model, config)
