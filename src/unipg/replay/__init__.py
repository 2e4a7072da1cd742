"""Where transitions are kept and which of them are drawn again: ring buffers in files, priorities, returns over several steps.

Belongs here: storage of rows and arithmetic on where they lie. Does not belong here: environments that rows come from (`rollouts/`), and
losses of what is drawn (`estimator/`).
"""

from unipg.replay.ring import Column, Ring, transition_columns

__all__ = ["Column", "Ring", "transition_columns"]
