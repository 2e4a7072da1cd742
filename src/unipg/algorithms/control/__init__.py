"""Algorithms for policies that act in environments; those that need no prompts of what they are given serve language too."""
