"""Algorithms that learn from given completions: pairs, liked or not, or with scores."""
