"""Writes docs/architectures.md: every causal architecture of the installed transformers, what of it is proved, and what therefore runs how.

python docs/architectures.py            (about ten minutes on one core; `make architectures`)
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unipg.errors import InputError
from unipg.policies.check import proof_of_name
from unipg.policies.proof import Proof

PAGE = Path(__file__).parent / "architectures.md"
HEAD = """# Which architectures run how

Before a policy is built, its architecture is proved: a small model of the same configuration, with weights as large as a trained model's,
is run in every way that this library knows, on rows longer than its windows and its original context, and compared with plain forward
passes of single rows. Ways that differ by more than float32 rounding are not used; a model whose log-probabilities know later tokens, or
depend on padding, is refused. `unipg check-model NAME` prints the proof of a hub model, a folder or an architecture; it takes a second or
two, and is kept in the user's cache folder for each version of the libraries.

This page is made by `make architectures` from the default configuration of each causal architecture in transformers {transformers}
(torch {torch}); encoders are told to be decoders. A model whose configuration differs (a sliding window, another attention) has a proof
of its own.

- **trained**: `streams` runs rows end to end without padding, and a group's prompt once; `padded` runs padded batches. `chunks` projects
  onto the vocabulary a part at a time; `logits` needs all of them, because the model does more to them than one projection.
- **decoded**: `shared` keeps a group's prompt once, `fixed` has caches of fixed shape (a GPU replays each step), `growing` plain ones.
  `whole` has no cache: every token runs the row anew, which is slow and right.
- **rows**: `original context` where longer rows would change the log-probabilities of others, or cannot be run: they are refused.

| architecture | trained | decoded | rows |
|---|---|---|---|
"""


def row(name: str) -> str:
    """The line of an architecture."""
    try:
        proof, longest = proof_of_name(name)
    except InputError as error:
        return f"| {name} | not built: {str(error).partition(': ')[2][:90].replace('|', '/')} | | |"
    try:
        proof.require()
    except InputError:
        return f"| {name} | {_refused(proof)} | | |"
    trained = f"{'streams' if proof.packs else 'padded'}, {'chunks' if proof.allows('projection') else 'logits'}"
    decoded = ", ".join(way for way in ("shared", "fixed", "growing") if proof.allows(way) and (way != "shared" or proof.packs))
    return f"| {name} | {trained} | {decoded or 'whole'} | {'any' if longest is None else f'original context ({longest})'} |"


def _refused(proof: Proof) -> str:
    if not proof.replica:
        return "proved on the model itself when it is built"
    for way, what in (("causal", "knows later tokens"), ("padded", "depends on padding")):
        trial = proof.trials[way]
        if trial.off is not None and not trial.holds:
            return f"refused: {what} ({trial.off:.2g} nats)"
    return f"refused: {proof.trials['causal'].reason[:90]}".replace("|", "/")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", help="print these rows alone")
    names = options.parse_args().names
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    every = names or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for number, name in enumerate(every, 1):
        rows.append(row(name))
        print(f"{number}/{len(every)} {rows[-1]}", file=sys.stderr, flush=True)
    if not names:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
        PAGE.write_text(HEAD.format(**versions) + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
