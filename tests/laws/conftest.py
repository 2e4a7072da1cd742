"""A search evaluates thousands of batches; that is five times faster without the shape checks, which all other tests make."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def _no_shape_checks():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
