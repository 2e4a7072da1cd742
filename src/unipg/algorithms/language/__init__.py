"""Algorithms for policies that answer prompts: rewards of answers, groups of rollouts, demonstrations."""
