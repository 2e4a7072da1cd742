"""What an architecture can be trusted with: proved once, on a small model of the same configuration, before a policy is built.

A model's own code decides whether padding, packing, shared prompts, a cache … leave log-probabilities as they are. So each of these ways
is tried and compared with plain forward passes of single rows, on a replica: the same class and configuration with few layers, small sizes
and short windows, whose weights have grown so that its logits are as large as a trained model's, on rows longer than every window and
than the original context. Tolerances are multiples of float32 rounding, measured on the same replica. What fails is not used; a model
whose plain padded batches fail, or whose log-probabilities know later tokens, cannot be a policy.

Belongs here: the replica, the trials, what they found. Does not belong here: the layouts (`packing.py`) and decoding (`decoding.py`).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unipg.errors import InputError, one_line
from unipg.policies import packing
from unipg.trajectories import Trajectories

CONTEXT, WINDOW, VOCABULARY, ANSWER = 48, 16, 96, 24
"""Of the replica: original context, longest window, number of tokens; and tokens of an answer in trials of decoding."""
LARGEST = 3e8
"""Most parameters of a replica."""
ROUNDINGS, LEAST, MOST = 64, 2e-5, 5e-3
"""Tolerance in nats: so many times what rounding moves, but at least and at most."""
WAYS = {
    "causal": "log-probabilities know no later token",
    "padded": "batches padded on the right",
    "projection": "logits are one projection of the last hidden state",
    "packed": "rows as one stream",
    "branched": "rows as one stream, a group's prompt once",
    "growing": "decoding with a cache that grows",
    "shared": "decoding with a group's prompt once",
    "fixed": "decoding with a cache of fixed shape",
}
"""What is tried, in this order."""
Decoded = Callable[[Any, str, Sequence[Sequence[int]]], "list[list[tuple[list[int], list[float]]]]"]
"""(model, decoding, prompts) to answers with their log-probabilities as sampled."""


@dataclass(frozen=True)
class Trial:
    """One way, tried."""

    off: float | None
    """The largest difference from plain forward passes, in nats; None where it ended in an error or was not tried."""
    tolerance: float
    reason: str = ""
    """The error, or why it was not tried."""

    @property
    def holds(self) -> bool:
        return self.off is not None and self.off <= self.tolerance


@dataclass(frozen=True)
class Proof:
    """What was found for an architecture."""

    architecture: str
    trials: dict[str, Trial]
    bounded: bool = False
    """Whether it holds for rows within the original context alone."""
    spare: int = 0
    """Positions of that context that no row can have (embeddings that begin after the padding's)."""
    replica: str = ""
    """What was tried."""

    def allows(self, way: str) -> bool:
        """Whether a way of `WAYS` may be used."""
        trial = self.trials.get(way)
        return trial is not None and trial.holds

    @property
    def packs(self) -> bool:
        return self.allows("projection") and self.allows("packed") and self.allows("branched")

    def longest(self, config: Any) -> int | None:
        """Most tokens of a row of a model with this configuration; None for no limit of the model's own."""
        context = context_of(config)
        return context - self.spare if self.bounded and context is not None else None

    def require(self) -> None:
        """Errors: `InputError` for what cannot be a policy."""
        for way, meaning in (("causal", "knows the tokens after it"), ("padded", "depends on the padding after its row")):
            trial = self.trials[way]
            if trial.holds:
                continue
            if trial.off is None:
                raise InputError(f"policy: a model of type '{self.architecture}' cannot be run as a language model: {trial.reason}")
            raise InputError(
                f"policy: a model of type '{self.architecture}' cannot be trained: the log-probability of a token {meaning} "
                f"(by {trial.off:.2g} nats in a trial); accepted: causal language models. See: unipg check-model"
            )


TRUSTED = Proof("", {way: Trial(0.0, 0.0) for way in WAYS})
"""For the trials themselves."""


def bare(model: Any) -> Any:
    """The model below its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk_of(model: Any) -> Any:
    """The model without its output projection; None where it is not a part of its own."""
    base = bare(model)
    found = getattr(base, base.base_model_prefix, None) if base.base_model_prefix else None
    return None if found is base else found


def head_of(model: Any) -> nn.Linear | None:
    """The output projection, where the model has one."""
    head = bare(model).get_output_embeddings()
    return head if isinstance(head, nn.Linear) else None


# ------------------------------------------------------------------------------------------------ the replica

_WIDTHS = {"hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64, "word_embed_proj_dim": 64, "embedding_size": 64}
_INNER = ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_kv_heads")
_RECURRENT = {
    "mamba_n_heads": 8,
    "n_mamba_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 16,
    "mamba_headdim": 16,
    "mamba_d_ssm": 128,
} | dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 16)
_RANKS = ("q_lora_rank", "kv_lora_rank", "o_lora_rank")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_blocks")
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length", "context_length")
_VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input")


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for name in getattr(type(config), "sub_configs", None) or {}:
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "to_dict"):
            yield from _configs(part)


def context_of(config: Any) -> int | None:
    """The context that a configuration was made for: the original one, where rotary embeddings were stretched after."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = _originals(text)
    return min(found) if found else next((v for name in _CONTEXTS if (v := _number(text, name)) is not None), None)


def _originals(config: Any) -> list[int]:
    tables = [t for name in ("rope_parameters", "rope_scaling") if isinstance(t := getattr(config, name, None), dict)]
    tables += [t for table in tables for t in table.values() if isinstance(t, dict)]
    found = [t["original_max_position_embeddings"] for t in tables if t.get("original_max_position_embeddings")]
    own = _number(config, "original_max_position_embeddings")
    return [int(x) for x in [*found, *([own] if own else [])]]


def _number(config: Any, name: str) -> int | None:
    """A whole number of a configuration; None where it has none of this name, or one for each layer."""
    try:
        value = getattr(config, name, None)
    except Exception:  # configurations whose layers differ refuse to name one number
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _set(config: Any, name: str, value: Any) -> None:
    try:
        setattr(config, name, value)
    except (AttributeError, NotImplementedError, ValueError):  # a name that the configuration only reads
        warnings.warn(f"{type(config).__name__}.{name} cannot be set", stacklevel=2)


def _shortened(config: Any) -> None:
    """Few layers of every kind, few tokens, short windows and context: what costs time and says nothing about the code that runs."""
    original = next((v for name in _LAYERS if (v := _number(config, name)) is not None), 0)
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    seen = max((list(kinds).index(kind) + 1 for kind in set(kinds)), default=0)
    layers = min(original, max(4 if original > 4 else 2, min(seen, 12)))
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == original > layers:
            _set(config, name, type(value)(value[:layers]))
    for name in _LAYERS:
        if (_number(config, name) or 0) > layers:
            _set(config, name, layers)
    for name, value in list(vars(config).items()):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if "window" in name and "layer" not in name and value > WINDOW:
            _set(config, name, WINDOW)
        if name in ("attention_chunk_size", "chunk_size", "index_topk") and value > WINDOW:
            _set(config, name, WINDOW)
        if name in _VOCABULARIES:
            _set(config, name, VOCABULARY)
        if name.endswith("_token_id") and value >= VOCABULARY:
            _set(config, name, 2)
    if isinstance(getattr(config, "eos_token_id", None), list):
        config.eos_token_id = 2
    for name in _CONTEXTS:
        if _number(config, name) is not None:
            _set(config, name, CONTEXT)
    before = _originals(config)
    for table_name in ("rope_parameters", "rope_scaling"):
        table = getattr(config, table_name, None)
        for part in [table, *(table.values() if isinstance(table, dict) else [])]:
            if isinstance(part, dict) and part.get("original_max_position_embeddings"):
                part["original_max_position_embeddings"] = CONTEXT
    if before and _number(config, "original_max_position_embeddings"):
        _set(config, "original_max_position_embeddings", CONTEXT)
    if before:
        for name in _CONTEXTS:
            if _number(config, name) is not None:
                _set(config, name, 4 * CONTEXT)


def _narrowed(config: Any) -> None:
    """Small sizes, where these are the usual ones."""
    heads = next((v for name in _HEADS if (v := _number(config, name)) is not None), 0)
    for name, size in _WIDTHS.items():
        if _number(config, name) is not None:
            _set(config, name, size)
    for name, value in list(vars(config).items()):
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            continue
        if name in _INNER:
            _set(config, name, 96)
        elif name in _RANKS:
            _set(config, name, 32)
        elif "head_dim" in name or name == "kv_channels":
            _set(config, name, 16)
        elif "linear_num_" in name:
            _set(config, name, 4 if "value" in name else 2)
    for name in _KEY_HEADS:
        if (count := _number(config, name) or 0) > 0:
            _set(config, name, 4 if count >= heads else 1 if count == 1 else 2)
    for name in _HEADS:
        if _number(config, name) is not None:
            _set(config, name, 4)
    recurrent = _RECURRENT | (
        {"num_heads": 8} if isinstance(getattr(config, "expand", None), int) else {}
    )  # expand · hidden = heads · size
    for name, size in recurrent.items():
        if (_number(config, name) or 0) > 0:
            _set(config, name, size)
    for name in _EXPERTS:
        if (_number(config, name) or 0) > 8:
            _set(config, name, 8)
    for name, most in (("num_experts_per_tok", 2), ("moe_topk", 2), ("moe_k", 2), ("n_group", 2), ("topk_group", 1), ("rotary_dim", 8)):
        if (_number(config, name) or 0) > most:
            _set(config, name, most)


def _grown(model: Any) -> Any:
    """Weights of a trained model's size: a layer's outputs as large as its inputs, logits of several nats, biases that are seen."""
    vocabulary = bare(model).get_input_embeddings()
    tables = {id(vocabulary.weight)} if vocabulary is not None and hasattr(vocabulary, "weight") else set()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
                continue
            wanted = (4.0 if id(parameter) in tables else 1.2) / parameter[0].numel() ** 0.5
            spread = float(parameter.std())
            if spread == 0:
                parameter.copy_(parameter + wanted * noise)
            elif spread < wanted:
                parameter.mul_(wanted / spread)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor the random state of the caller are touched."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            yield
        finally:
            logging.set_verbosity(before)


REPLICAS: dict[str, tuple[Callable[[Any], None], ...]] = {"small sizes": (_shortened, _narrowed), "few layers": (_shortened,)}
"""What is tried, and how its configuration is made; the next where that cannot be built."""


def _replica_config(base: Any, what: str) -> Any:
    config = copy.deepcopy(base.config)
    for part in _configs(config):
        for step in REPLICAS[what]:
            step(part)
    # what runs on a GPU alone is tried as SDPA
    attention = base.config._attn_implementation
    config._attn_implementation = "eager" if attention == "eager" else "sdpa"
    return config


def _built(model: Any, config: Any) -> Any:
    kind = type(bare(model))
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise InputError(f"{size:.1g} parameters")
    replica = _grown(kind(config).float().eval())
    replica(input_ids=torch.arange(3, 11)[None], use_cache=False)
    return replica


# ------------------------------------------------------------------------------------------------ the trials


def _rows(longest: int, vocabulary: int) -> list[tuple[int, list[int], list[int]]]:
    """(group, prompt, answer): two groups with a prompt each, and a row by itself; the longest has `longest` tokens."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=draw).tolist()

    answers = [[9, longest // 2, 14], [5, longest // 3, 11, 3], [longest - longest // 4]]
    prompts = [tokens(longest - longest // 2), tokens(longest // 3), tokens(longest // 4)]
    return [(group, prompts[group], tokens(n)) for group, lengths in enumerate(answers) for n in lengths]


def _batch(rows: Sequence[tuple[int, list[int], list[int]]]) -> Trajectories:
    width = max(len(prompt) + len(answer) for _, prompt, answer in rows)
    action = torch.zeros(len(rows), width, dtype=torch.long)
    begins = torch.tensor([len(prompt) for _, prompt, _ in rows]).unsqueeze(1)
    ends = torch.tensor([len(prompt) + len(answer) for _, prompt, answer in rows]).unsqueeze(1)
    for i, (_, prompt, answer) in enumerate(rows):
        action[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    steps = torch.arange(width)
    present = steps < ends
    return Trajectories(action=action, mask=present & (steps >= begins), present=present, group=torch.tensor([g for g, _, _ in rows]))


def _log_probs(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """[N-1] of a row's tokens from the second on."""
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(tokens[1:])[:, None]).squeeze(1)


def _plain(model: Any, tokens: Sequence[int]) -> Tensor:
    """Log-probabilities of a row's tokens from the second on, by one forward pass of this row alone."""
    device = next(model.parameters()).device
    return _log_probs(model(input_ids=torch.tensor([tokens[:-1]], device=device), use_cache=False).logits[0].cpu(), tokens)


def _furthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    off = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True) if len(a)]
    worst = max(off, default=0.0)
    return float("inf") if any(x != x for x in off) else worst


class _Trials:
    """The trials of a replica, on rows of at most `longest` tokens."""

    def __init__(self, model: Any, longest: int, decoded: Decoded) -> None:
        self.model, self.decoded, self.longest = model, decoded, longest
        self.rows = _rows(longest, VOCABULARY)
        self.device = next(model.parameters()).device
        self.whole = [prompt + answer for _, prompt, answer in self.rows]
        self.expected = [_plain(model, row) for row in self.whole]
        if any(not bool(torch.isfinite(row).all()) for row in self.expected):
            raise ValueError("its log-probabilities are not finite")
        self.tolerance = min(max(LEAST, ROUNDINGS * self._rounding()), MOST)

    def _rounding(self) -> float:
        """How far log-probabilities move when every weight is rounded once more, in nats."""
        if self.device.type != "cpu":  # the model itself, where there is no replica
            return float("inf")
        draw = torch.Generator().manual_seed(2)
        before = [p.clone() for p in self.model.parameters()]
        for p in self.model.parameters():
            p.mul_(1 + torch.finfo(torch.float32).eps * torch.randn(p.shape, generator=draw))
        moved = [_plain(self.model, row) for row in self.whole[:3]]
        for p, old in zip(self.model.parameters(), before, strict=True):
            p.copy_(old)
        return _furthest(moved, self.expected[:3])

    def run(self, way: str) -> Trial:
        """What came of a way of `WAYS`."""
        try:
            off = getattr(self, f"_{way}")() if hasattr(self, f"_{way}") else self._sampled(way)
        except Exception as error:  # whatever a model's code says to it, it is not used
            return Trial(None, self.tolerance, one_line(error))
        return Trial(off, self.tolerance)

    def _causal(self) -> float:
        """Another token near the end, and one in the middle: everything before stays as it was."""
        tokens, found, expected = self.whole[1], [], []
        for place in (len(tokens) - 2, len(tokens) // 2):
            changed = [*tokens]
            changed[place] = 3 + (changed[place] - 2) % (VOCABULARY - 3)
            found.append(_plain(self.model, changed)[: place - 1])
            expected.append(self.expected[1][: place - 1])
        return _furthest(found, expected)

    def _padded(self) -> float:
        batch = _batch(self.rows)
        logits = self.model(input_ids=batch.action[:, :-1].to(self.device), use_cache=False).logits.cpu()
        return _furthest([_log_probs(logits[i, : len(row) - 1], row) for i, row in enumerate(self.whole)], self.expected)

    def _projection(self) -> float:
        trunk, head = trunk_of(self.model), head_of(self.model)
        if trunk is None or head is None:
            raise ValueError("trunk and head are not apart")
        states = (trunk(input_ids=torch.tensor([row[:-1]]), use_cache=False).last_hidden_state[0] for row in self.whole)
        return _furthest([_log_probs(head(s), row) for s, row in zip(states, self.whole, strict=True)], self.expected)

    def _streamed(self, branched: bool) -> float:
        batch = _batch(self.rows)
        prefix = packing.shared_prefixes(batch)
        layout = packing.layout_of(batch, prefix if branched else torch.zeros_like(prefix))
        states = packing.run(trunk_of(self.model), layout)[layout.predictor]
        head = head_of(self.model)
        assert head is not None
        target = batch.action[:, 1:][batch.mask[:, 1:]]
        found = torch.log_softmax(head(states).float(), -1).gather(1, target[:, None]).squeeze(1)
        own = [expected[len(prompt) - 1 :] for expected, (_, prompt, _) in zip(self.expected, self.rows, strict=True)]
        return _furthest(found.split([len(x) for x in own]), own)

    def _packed(self) -> float:
        return self._streamed(False)

    def _branched(self) -> float:
        return self._streamed(True)

    def _sampled(self, decoding: str) -> float:
        prompts = list(dict.fromkeys(tuple(prompt[: self.longest - ANSWER]) for _, prompt, _ in self.rows))
        answers = self.decoded(self.model, decoding, prompts)
        found, expected = [], []
        for prompt, rows in zip(prompts, answers, strict=True):
            for tokens, log_probs in rows:
                found.append(torch.tensor(log_probs))
                expected.append(_plain(self.model, [*prompt, *tokens])[len(prompt) - 1 :])
        return _furthest(found, expected)


def _tried(model: Any, longest: int, decoded: Decoded) -> dict[str, Trial]:
    trials = _Trials(model, longest, decoded)
    found = {way: trials.run(way) for way in ("causal", "padded", "projection")}
    usable = found["causal"].holds and found["padded"].holds
    streams = usable and found["projection"].holds and trunk_of(model).config._attn_implementation == "sdpa"
    if streams:
        packing.enable(trunk_of(model))
        found |= {way: trials.run(way) for way in ("packed", "branched")}
        streams = found["packed"].holds and found["branched"].holds
        if not streams:
            packing.disable(trunk_of(model))
    for way in ("growing", "shared", "fixed"):
        if usable and (streams or way != "shared"):
            found[way] = trials.run(way)
    return {way: found.get(way, Trial(None, trials.tolerance, "needs what does not hold")) for way in WAYS}


def _prove(model: Any, decoded: Decoded) -> Proof:
    name = str(getattr(bare(model).config, "model_type", type(bare(model)).__name__))
    refused = Trial(None, 0.0)
    reasons = []
    for what in REPLICAS:
        try:
            replica = _built(model, _replica_config(bare(model), what))
        except Exception as error:
            reasons.append(one_line(error))
            continue
        proof = Proof(name, {}, replica=what)
        for bounded, spare in ((False, 0), (True, 0), (True, 2)):
            try:
                trials = _tried(replica, CONTEXT - spare if bounded else 2 * CONTEXT, decoded)
            except Exception as error:
                refused = Trial(None, 0.0, one_line(error))
                trials = dict.fromkeys(WAYS, refused)
            proof = replace(proof, trials=trials, bounded=bounded, spare=spare)
            if trials["causal"].holds and trials["padded"].holds:
                return proof
        return proof
    # no replica can be had: the model itself, as it is, on short rows
    untried = {way: Trial(None, 0.0, f"no replica: {'; '.join(reasons)}") for way in WAYS}
    was_training = bare(model).training
    bare(model).eval()
    try:
        itself = _Trials(bare(model), CONTEXT, decoded)
        return Proof(name, untried | {way: itself.run(way) for way in ("causal", "padded", "growing")}, replica="the model itself")
    except Exception as error:
        return Proof(name, dict.fromkeys(WAYS, Trial(None, 0.0, one_line(error))))
    finally:
        bare(model).train(was_training)


_of_models: weakref.WeakKeyDictionary[Any, Proof] = weakref.WeakKeyDictionary()
_of_keys: dict[str, Proof] = {}


def prove(model: Any, decoded: Decoded) -> Proof:
    """The proof of a model's architecture; `decoded` runs trials of decoding.

    Found again by the small configuration, the attention, and the versions of torch, transformers and this package: in this process, and
    in the user's cache folder.
    """
    base = bare(model)
    if base not in _of_models:
        keys = [_key(base, "small sizes"), _key(base, None)]  # the whole configuration, where no small replica can be had
        known = (_of_keys.get(key) or _read(key) for key in keys)
        found = next((proof for proof in known if proof is not None), None)
        if found is None:
            with _quiet():
                found = _prove(base, decoded)
            _write(keys[found.replica != "small sizes"], found)
        _of_models[base] = found
    return _of_models[base]


def _key(base: Any, what: str | None) -> str:
    import transformers

    try:
        config = base.config if what is None else _replica_config(base, what)
        said = json.dumps(config.to_dict(), sort_keys=True, default=str)
    except Exception as error:  # the replica's own trial says the same
        said = f"{base.config!r} {one_line(error)}"
    versions = torch.__version__, transformers.__version__, _source()
    said = "\n".join((said, type(base).__qualname__, str(what), str(base.config._attn_implementation == "eager"), *versions))
    return hashlib.sha256(said.encode()).hexdigest()[:32]


@functools.cache
def _source() -> str:
    """A checksum of what the trials run, so that a changed library proves anew."""
    here = Path(__file__).parent
    names = ("proof", "packing", "decoding", "slots", "fixed")
    return hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in names)).hexdigest()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unipg" / "proofs"


def _read(key: str) -> Proof | None:
    try:
        found = json.loads((_folder() / f"{key}.json").read_text(encoding="utf-8"))
        trials = {way: Trial(**found["trials"][way]) for way in WAYS}
        return Proof(**(found | {"trials": trials}))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(key: str, proof: Proof) -> None:
    _of_keys[key] = proof
    path = _folder() / f"{key}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(proof)), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        pass  # proved anew next time
