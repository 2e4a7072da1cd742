"""What all sides of the language benchmark share: the work, the meter, and how a side is told to go on.

Runs in the peers' environments too, so it imports nothing but torch and transformers, and those late.
"""

from __future__ import annotations

import functools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PAD, EOS = "<pad>", "<eos>"
LEARNING_RATE = 1e-5
PROOF_RATE = 1.0
"""Of the one SGD step that has to be equal: large, so that the weights move far."""
CLIP = 0.2
STANDARD_EPSILON = 1e-4
"""Added to a group's standard deviation; TRL's number, taken over by all sides."""
FIRST_CHARACTER = 0x4E00
"""The vocabulary's words are single characters from here on: one token each, whatever the tokenizer does."""


@dataclass(frozen=True)
class Work:
    """One GRPO step: sizes, lengths, and which part of it is measured."""

    name: str
    title: str
    about: str
    measured: str = "step"
    """step: generation and update, lengths forced; update: given completions; rollout: generation alone."""
    prompts: int = 8
    rollouts: int = 8
    prompt_tokens: int = 32
    mean_tokens: int = 32
    longest: int = 32
    """Of a completion, its end token included; all are this long unless `skewed`."""
    skewed: bool = False
    dead: int = 0
    """Prompts, the first ones, whose completions all have the same reward: no advantage."""
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    vocabulary: int = 512
    slots: int = 256
    """Rows decoded together."""
    targets: dict[str, float] = field(default_factory=dict)
    """What is to be reached against TRL: `time`, at least so many times faster; `memory`, at most this share of its peak."""

    @property
    def rows(self) -> int:
        return self.prompts * self.rollouts

    @functools.cached_property
    def prompt_texts(self) -> list[str]:
        draw = _generator(1)
        return [text(_words(self, self.prompt_tokens, draw)) for _ in range(self.prompts)]

    def lengths(self) -> list[int]:
        """Tokens of each completion, prompt by prompt; log-normal with sigma 1 where skewed."""
        if not self.skewed:
            return [self.longest] * self.rows
        import torch

        drawn = torch.exp(torch.randn(self.rows, generator=_generator(2), dtype=torch.float64) - 0.5) * self.mean_tokens
        lengths: list[int] = drawn.long().clamp(2, self.longest).tolist()
        lengths[-1] = self.longest
        return lengths

    def completions(self) -> list[list[int]]:
        """Token ids of each completion, prompt by prompt, each with its end token."""
        draw = _generator(3)
        return [[*_words(self, length - 1, draw), 1] for length in self.lengths()]

    def reward(self, prompt: str, answer: str) -> float:
        """Share of even characters; 0 for the prompts that are to have no advantage."""
        if prompt in self.prompt_texts[: self.dead]:
            return 0.0
        even = sum(ord(c) % 2 == 0 for c in answer)
        return even / max(1, len(answer))


def text(ids: Sequence[int]) -> str:
    """The words of token ids 2, 3 …"""
    return "".join(chr(FIRST_CHARACTER + i - 2) for i in ids)


def _words(work: Work, count: int, draw: Any) -> list[int]:
    import torch

    words: list[int] = torch.randint(2, work.vocabulary, (count,), generator=draw).tolist()
    return words


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)


def build(work: Work, folder: Path) -> None:
    """Initial weights and tokenizer, for every side to load."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=work.vocabulary,
            hidden_size=work.hidden,
            num_hidden_layers=work.layers,
            num_attention_heads=work.heads,
            num_key_value_heads=work.heads,
            head_dim=work.hidden // work.heads,
            intermediate_size=3 * work.hidden,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    model.save_pretrained(folder)


def load(work: Work, folder: Path) -> tuple[Any, Any]:
    """The model with the initial weights, and its tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = {PAD: 0, EOS: 1, **{text([i]): i for i in range(2, work.vocabulary)}}
    fast = Tokenizer(models.WordLevel(words, unk_token=PAD))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token=PAD, eos_token=EOS, unk_token=PAD, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


class ForcedLengths:
    """A logits processor of transformers: row i ends with its `lengths[i]`-th token, and not before."""

    def __init__(self, prompt_tokens: int, lengths: Sequence[int]) -> None:
        import torch

        self.prompt_tokens, self.lengths = prompt_tokens, torch.tensor(lengths)

    def __call__(self, tokens: Any, scores: Any) -> Any:
        last = self.lengths == tokens.shape[1] - self.prompt_tokens + 1
        return force_end(scores, last)


def force_end(scores: Any, last: Any) -> Any:
    """[B,V] scores in which rows of `last` [B] can only end, and others cannot."""
    scores = scores.clone()
    scores[:, 1] = -math.inf
    if bool(last.any()):
        scores[last] = -math.inf
        scores[last, 1] = 0.0
    return scores


# ---------------------------------------------------------------------------------------------------------------------- meter


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_mb(name: str = "VmRSS") -> float:
    """Memory of this process in MB: VmRSS now, VmHWM at most. (ru_maxrss would include what the parent had when it forked.)"""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Meter:
    """CPU and wall seconds of one step, and of the rollout phase in it."""

    def __init__(self) -> None:
        self.base = memory_mb()
        self.rollout = 0.0

    def begin(self) -> None:
        self.rollout = 0.0
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def generated(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose time counts as rollout."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = cpu_seconds()
            try:
                return call(*arguments, **named)
            finally:
                self.rollout += cpu_seconds() - began

        return timed

    def end(self) -> dict[str, float]:
        cpu, wall = cpu_seconds() - self._cpu, time.perf_counter() - self._wall
        return {"cpu": cpu, "wall": wall, "rollout": self.rollout, "update": cpu - self.rollout}


# ---------------------------------------------------------------------------------------------------------------------- protocol


@dataclass(frozen=True)
class Order:
    """What a side is started with, as JSON in its arguments."""

    work: Work
    folder: str
    """Where the initial weights are."""
    setting: dict[str, Any]
    """The side's own options."""
    proof: str = ""
    """Do one SGD step on the given completions and save the weights here; nothing is timed."""

    @classmethod
    def read(cls, argument: str) -> Order:
        found = json.loads(argument)
        return cls(**{**found, "work": Work(**found["work"])})

    def written(self) -> str:
        return json.dumps(asdict(self))

    @property
    def given(self) -> bool:
        """Whether completions are given rather than sampled."""
        return bool(self.proof) or self.work.measured == "update"


class Line:
    """A side's line to whoever started it: one line of JSON per step, when asked."""

    def __init__(self) -> None:
        # whatever the libraries print must not get between
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> bool:
        """Until the next step is wanted; False when no more are."""
        return sys.stdin.readline().strip() == "go"

    def tell(self, row: dict[str, Any]) -> None:
        self._out.write(json.dumps(row) + "\n")
        self._out.flush()


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def save_weights(model: Any, path: str) -> None:
    """State dict by transformers' own names."""
    import torch

    torch.save({name: value.detach().clone() for name, value in model.state_dict().items()}, path)
