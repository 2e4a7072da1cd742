"""Where transitions are kept and which of them are drawn again: ring buffers in files, given data, priorities, returns over several steps.

Belongs here: storage of rows and arithmetic on where they lie. Does not belong here: environments that rows come from (`rollouts/`), and
losses of what is drawn (`estimator/`).
"""

from unipg.replay.formats import open_data, save_data
from unipg.replay.neighbours import Pairs
from unipg.replay.priorities import Priorities
from unipg.replay.returns import Steps, n_step
from unipg.replay.ring import Ring
from unipg.replay.tables import Column, transition_columns
from unipg.replay.transitions import Transitions

__all__ = ["Column", "Pairs", "Priorities", "Ring", "Steps", "Transitions", "n_step", "open_data", "save_data", "transition_columns"]
