"""Reward models: sequence classifiers with one output."""

from __future__ import annotations

from typing import Any

from unipg.policies.base import Policy


class SequenceScorer(Policy):
    """A sequence classifier with one output; being written."""

    model: Any
    tokenizer: Any
