"""The laws bite: each deliberate mistake is caught by the law that is there for it, and its sentence names the property."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from unipg.algorithms import registered
from unipg.laws import LAWS, LawBroken, search, trial


def _load(name: str):
    spec = importlib.util.spec_from_file_location(f"laws_{name}", Path(__file__).parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_broken = _load("broken")
BROKEN, Worthless = _broken.BROKEN, _broken.Worthless


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_is_caught_by_its_law(mistake: str) -> None:
    law, words, build = BROKEN[mistake]
    with pytest.raises(LawBroken) as caught:
        search(law, build())
    sentence = str(caught.value)
    assert sentence.startswith(law.replace("_", " "))
    assert re.search(words, sentence), sentence
    assert "; example: " in sentence
    assert "\n" not in sentence
    print(f"{mistake}: {sentence}")


SEARCHED = [
    (name, law)
    for name, algorithm in registered().items()
    for law in ("split", "silence", "exactness", "agreement", "emptiness", "second_opinion")
    if law != "exactness" or not algorithm.bias  # a stated bias is one check on fixed problems, in test_laws
]


@pytest.mark.parametrize(("name", "law"), SEARCHED)
def test_registered_algorithms_keep_the_laws_on_generated_examples(name: str, law: str) -> None:
    search(law, registered()[name](), 10)


@pytest.mark.parametrize("law", [law for law in LAWS if law not in ("learning", "resume")])
@pytest.mark.parametrize("bias", ["", "deliberate"])
def test_no_law_holds_where_there_is_nothing_to_compare(law: str, bias: str) -> None:
    silent = trial(Worthless(), bias)
    for tried in (lambda: LAWS[law](silent), lambda: search(law, silent, 3)):
        with pytest.raises(LawBroken, match=r"nothing was compared|no step would learn anything|no bias is stated"):
            tried()


def test_every_law_has_a_mistake_that_it_catches() -> None:
    assert {law for law, _, _ in BROKEN.values()} == set(LAWS)
