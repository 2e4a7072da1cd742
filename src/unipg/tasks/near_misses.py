"""Wrong answers that are almost right, as a model that has learnt a little gives them."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator

import torch

MOST = 16
"""Near misses of an answer that are tried."""
NUMBER = re.compile(r"-?\d+")
OFF = (1, -1, 2, -2, 3, -3, 10, -10)
_Pick = Callable[[int], int]


def near_misses(answer: str, draw: torch.Generator) -> Iterator[str]:
    """Variants of `answer` with one mistake, none of them the answer itself; they may repeat.

    Where there is a number: off by 1, 2, 3 or 10, or with the other sign. Else a letter is left out or said twice, or two neighbours have
    changed places; a single letter is another one. Whether a variant is wrong is the scorer's to say.
    """

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=draw))

    numbers = list(NUMBER.finditer(answer))
    for _ in range(MOST):
        if numbers:
            found = numbers[pick(len(numbers))]
            value = int(found.group())
            other = value + OFF[pick(len(OFF))] if pick(4) else -value
            made = answer[: found.start()] + str(other) + answer[found.end() :]
        else:
            made = _misspelt(answer, pick)
        if made != answer:
            yield made


def _misspelt(text: str, pick: _Pick) -> str:
    places = [place for place, letter in enumerate(text) if letter.isalnum()]
    if not places:
        return text
    place = places[pick(len(places))]
    before, letter, after = text[:place], text[place], text[place + 1 :]
    if len(places) == 1:
        letters = string.ascii_uppercase if letter.isupper() else string.ascii_lowercase
        return before + letters[pick(len(letters))] + after
    return (before + after, before + 2 * letter + after, before + after[:1] + letter + after[1:])[pick(3)]
