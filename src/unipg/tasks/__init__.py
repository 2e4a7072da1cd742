"""What is asked and how an answer is scored: prompts, verifiers, demonstrations, environments, tools.

Belongs here: items, where they come from, and rewards. Does not belong here: which item comes next (`samplers/`), how answers are drawn
(`rollouts/`).
"""

from unipg.tasks.base import Item, ScoredCompletion, Task, Verifier

__all__ = ["Item", "ScoredCompletion", "Task", "Verifier"]
