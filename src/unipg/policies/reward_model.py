"""Reward models: sequence classifiers of `transformers` with one output, which give a score to a whole answer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from unipg.errors import InputError
from unipg.estimator.likelihoods import Reading
from unipg.hub import check_folder, is_checkpoint, loading
from unipg.policies.base import Policy
from unipg.policies.causal_lm import DTYPES, ScratchModel, mixed_precision, scratch_config, settle
from unipg.policies.weights import check_finite
from unipg.trajectories import Evaluation, Trajectories


class SequenceScorer(Policy):
    """r(x, y): a number for a prompt with its answer, by an `AutoModelForSequenceClassification` with one output.

    As a policy it is unnormalised, pi(y | x) proportional to exp r(x, y), and the score stands in the place of the log-probability.
    """

    def __init__(self, model: Any, tokenizer: Any, *, compute: torch.dtype | None = None) -> None:
        if model.config.num_labels != 1:
            raise InputError(f"a reward model has one output, and this one has {model.config.num_labels}; accepted: num_labels 1")
        self.model, self.tokenizer = model, tokenizer
        # the classifier looks for the last token that is not padding: it must know which token that is
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            if config.pad_token_id is None:
                config.pad_token_id = tokenizer.pad_token_id
        known = model.get_input_embeddings().weight.shape[0]
        if self.pad_token >= known:
            raise InputError(
                f"the padding token {self.pad_token} of a reward model is none of its {known} tokens; accepted: one that it has"
            )
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._options = {"use_cache": False} if "use_cache" in inspect.signature(base.forward).parameters else {}
        self.module = nn.ModuleDict({"model": model})
        self.compute = compute
        settle(self.module)

    def evaluate(self, batch: Trajectories, *, entropy: bool = False, value: bool = False, readings: Sequence[Reading] = ()) -> Evaluation:
        """[B,T] the row's score at its last policy position, 0 elsewhere; the entropy is 0: there is no distribution over tokens.

        The score is that of the model's own forward pass, its own pooling included: the same as in any other tool. Most classifiers
        pool at the last token that is not the padding token; where that is the end-of-sequence token too, at the one before it.

        Errors: `InputError` for `readings` and for `value`, which a score per answer does not have.
        """
        if readings or value:
            what = type(readings[0]).__name__ if readings else "a critic"
            raise InputError(f"{what} needs a policy over tokens; a reward model gives one score to a whole answer")
        assert batch.present is not None
        tokens = torch.where(batch.present, batch.action, self.pad_token)
        with mixed_precision(self.device, self.compute):
            scores = self.model(input_ids=tokens, attention_mask=batch.present.long(), **self._options).logits.squeeze(-1)
        steps = torch.arange(batch.mask.shape[1], device=tokens.device)
        last = batch.mask & (steps == batch.last_step().unsqueeze(1))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        log_prob = torch.where(last, scores.unsqueeze(1), 0)
        return Evaluation(log_prob, torch.zeros_like(log_prob) if entropy else None)

    @property
    def pad_token(self) -> int:
        """The token that the classifier takes for padding."""
        return int(self.model.config.get_text_config().pad_token_id)

    def score(self, rows: Sequence[str | Sequence[int]], batch_rows: int = 64) -> list[float]:
        """The scores of texts (tokenized as they are, prompt and answer together) or of rows of token ids; no gradient.

        `batch_rows`: most rows scored together; rows of similar length share a batch. Errors: `InputError` for a row without tokens.
        """
        tokens = [self.tokenizer(row)["input_ids"] if isinstance(row, str) else list(row) for row in rows]
        bare = next((number for number, row in enumerate(tokens) if not row), None)
        if bare is not None:
            raise InputError(f"row {bare} of {len(tokens)} to score has no tokens")
        return scored(self, [(row, 0) for row in tokens], batch_rows)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def scored(
    policy: Policy, rows: Sequence[tuple[Sequence[int], int]], batch_rows: int = 64, progress: Callable[[float], None] | None = None
) -> list[float]:
    """What a policy makes of whole rows: the sum of its log-probabilities from a position on, without gradient.

    `rows`: token ids, and where the answer begins. For a `SequenceScorer` the sum is the score. Rows of similar length share a batch of at
    most `batch_rows`; `progress` is told the finished share.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    found = torch.zeros(len(rows), dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(order), batch_rows):
            chosen = order[start : start + batch_rows]
            batch = _padded([rows[i] for i in chosen]).to(policy.device)
            found[chosen] = policy.evaluate(batch).log_prob.sum(1).double().cpu()
            if progress is not None:
                progress((start + len(chosen)) / len(order))
    return found.tolist()


def _padded(rows: Sequence[tuple[Sequence[int], int]]) -> Trajectories:
    lengths = torch.tensor([len(tokens) for tokens, _ in rows]).unsqueeze(1)
    begins = torch.tensor([begin for _, begin in rows]).unsqueeze(1)
    action = nn.utils.rnn.pad_sequence([torch.tensor(list(tokens)) for tokens, _ in rows], batch_first=True)
    steps = torch.arange(action.shape[1])
    present = steps < lengths
    return Trajectories(action=action, mask=present & (steps >= begins), present=present)


def load_reward_model(
    name: str, dtype: str = "float32", attention: str | None = None, trust_remote_code: bool = False, *, trained: bool = False
) -> Any:
    """A sequence classifier with one output from a hub name or a folder.

    A causal language model is accepted as a start: a new head takes the place of its own. With `trained` it is not, because the scores
    of a new head mean nothing.

    Errors: `InputError`, one line, for a checkpoint that cannot be read, is no such model, or has more than one output.
    """
    from transformers import AutoModelForSequenceClassification

    check_folder(name)
    found = _described(name, trust_remote_code)
    if trained and not found.classifier:
        raise InputError(f"'{name}' is no reward model; accepted: a sequence classifier with one output, as `policy.kind: reward` trains")
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if found.new_head:
        options["num_labels"] = 1
    with loading("the reward model", name), _unreported(found.new_head):
        model = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, **options
        )
    if model.config.num_labels != 1:
        raise InputError(f"'{name}' has {model.config.num_labels} outputs; accepted for a reward model: 1")
    check_finite(model, f"the reward model '{name}'")
    return model


def build_reward_model(scratch: ScratchModel, tokenizer: Any) -> Any:
    """A randomly initialised sequence classifier with one output, of the named architecture.

    Errors: `InputError` for an architecture that has no sequence classifier.
    """
    from transformers import AutoModelForSequenceClassification

    config = scratch_config(scratch, tokenizer)
    config.num_labels = 1
    try:
        return AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(
            f"policy.scratch.architecture '{scratch.architecture}' has no sequence classifier; accepted: qwen3, llama …"
        ) from error


def is_reward_model(name: str, trust_remote_code: bool = False) -> bool:
    """Whether a hub name or a folder holds a sequence classifier; false for what cannot be read at all."""
    return _described(name, trust_remote_code).classifier


class _Description(NamedTuple):
    classifier: bool
    """Whether it was trained as a sequence classifier."""
    new_head: bool
    """Whether its base model has no head for scores: a causal model, or one below adapters."""


def _described(name: str, trust_remote_code: bool) -> _Description:
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    if not is_checkpoint(name):
        return _Description(False, False)
    try:
        with loading("the model", name):
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except InputError:  # adapters alone have no configuration of a model
        try:
            with loading("the adapter", name):
                adapter = json.loads(Path(find_adapter_config_file(name) or "").read_text(encoding="utf-8"))
        except InputError:
            return _Description(False, False)
        return _Description(adapter.get("task_type") == "SEQ_CLS", True)
    classifier = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return _Description(classifier, not classifier)


@contextmanager
def _unreported(expected: bool) -> Iterator[None]:
    """Keeps transformers from reporting missing weights where they are expected to be missing."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if expected:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
