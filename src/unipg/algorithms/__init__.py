"""One module an algorithm: its four parts on the first screen, then only what is its own.

Belongs here: compositions of parts, and `preparation.py`, whole-batch work that several of them share. Does not belong here: loops, models,
tasks. A new module is found by itself: `registered()` imports every module of this folder.
"""

from unipg.algorithms.base import Algorithm, Setting, algorithm_named, register, registered, setting

__all__ = ["Algorithm", "Setting", "algorithm_named", "register", "registered", "setting"]
