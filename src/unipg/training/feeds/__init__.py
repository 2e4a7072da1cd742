"""Where the rows of an optimiser step come from.

Belongs here: what is gathered in an iteration, in which rounds, and which rows each update is given. Does not belong here: how trajectories
are drawn (`rollouts/`), kept (`replay/`) or learned from (`learner.py`).
"""
