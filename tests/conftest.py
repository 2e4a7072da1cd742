"""Shapes in the annotations of public tensor functions are checked at run time while tests run."""

import os

import pytest
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

install_import_hook("unipg.estimator", "beartype.beartype").__enter__()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The key that signs pickled environments is made outside the user's home; processes that tests start find it too."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
