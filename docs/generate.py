"""Writes what the docs derive from the code: the algorithm reference. `make docs` runs it; a test checks that it is up to date."""

from pathlib import Path

from unipg.algorithms import registered
from unipg.reports.explain import reference

TARGET = Path(__file__).parent / "algorithms.md"

if __name__ == "__main__":
    TARGET.write_text(reference(registered()), encoding="utf-8")
    print(TARGET)
