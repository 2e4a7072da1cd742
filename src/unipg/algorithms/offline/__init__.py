"""Algorithms for transitions that are given: nothing is collected while they learn, but where a recipe says so.

Belongs here: a module for each, in parts and learners. Does not belong here: how data are read (`replay/`) and drawn (`training/feeds/`).
"""
