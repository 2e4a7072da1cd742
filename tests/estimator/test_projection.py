"""The vocabulary projection against a plain log-softmax: values, gradients, memory, and what it leaves out."""

import pytest
import torch

from unipg.estimator import projection
from unipg.estimator.projection import project


def plain(hidden, weight, token, bias, temperature):
    logits = (hidden @ weight.T + (0 if bias is None else bias)) / temperature
    log_p = torch.log_softmax(logits, -1)
    return log_p.gather(1, token.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(1)


def inputs(rows=7, width=5, vocabulary=11, bias=True, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, dtype=torch.float64, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, dtype=torch.float64, generator=draw).to(dtype).requires_grad_()
    offset = torch.randn(vocabulary, dtype=torch.float64, generator=draw).to(dtype).requires_grad_() if bias else None
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=draw), offset


@pytest.fixture(params=["kept", "formed again, one chunk", "formed again, many chunks"])
def way(request, monkeypatch):
    """Each way of holding the logits."""
    if request.param != "kept":
        monkeypatch.setattr(projection, "KEPT_ELEMENTS", 0)
    if "many" in request.param:
        monkeypatch.setattr(projection, "CHUNK_ELEMENTS", 23)  # two rows of eleven words


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy", [True, False])
def test_every_way_equals_the_plain_one(way, bias, temperature, entropy) -> None:
    hidden, weight, token, offset = inputs(bias=bias)
    leaves = [t for t in (hidden, weight, offset) if t is not None]
    log_prob, h = project(hidden, weight, token, bias=offset, temperature=temperature, entropy=entropy)
    expected, expected_h = plain(hidden, weight, token, offset, temperature)
    torch.testing.assert_close(log_prob, expected, rtol=1e-13, atol=1e-13)
    factor = torch.linspace(-1, 2, 7, dtype=torch.float64)
    loss, expected_loss = (factor * log_prob).sum(), (factor * expected).sum()
    if entropy:
        torch.testing.assert_close(h, expected_h, rtol=1e-13, atol=1e-13)
        loss, expected_loss = loss + (factor * h).sum(), expected_loss + (factor * expected_h).sum()
    for found, wanted in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected_loss, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_gradcheck(way) -> None:
    hidden, weight, token, offset = inputs(rows=4, vocabulary=6)
    assert torch.autograd.gradcheck(lambda h, w, b: project(h, w, token, bias=b, temperature=1.3, entropy=True), (hidden, weight, offset))


def test_positions_without_a_gradient_are_left_out_exactly(way, monkeypatch) -> None:
    hidden, weight, token, _ = inputs(bias=False)
    factor = torch.tensor([0.0, 1.0, 0.0, 0.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    log_prob, _ = project(hidden, weight, token)
    found = torch.autograd.grad((factor * log_prob).sum(), (hidden, weight))
    expected = torch.autograd.grad((factor * plain(hidden, weight, token, None, 1.0)[0]).sum(), (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert (found[0][factor == 0] == 0).all()


def test_frozen_head_and_frozen_trunk(way) -> None:
    hidden, weight, token, _ = inputs(bias=False)
    (found,) = torch.autograd.grad(project(hidden, weight.detach(), token)[0].sum(), hidden)
    (expected,) = torch.autograd.grad(plain(hidden, weight, token, None, 1.0)[0].sum(), hidden)
    torch.testing.assert_close(found, expected)
    (found,) = torch.autograd.grad(project(hidden.detach(), weight, token)[0].sum(), weight)
    (expected,) = torch.autograd.grad(plain(hidden, weight, token, None, 1.0)[0].sum(), weight)
    torch.testing.assert_close(found, expected)


def test_half_precision_inputs_are_summed_in_float32(way) -> None:
    hidden, weight, token, _ = inputs(rows=64, width=256, vocabulary=40, bias=False, dtype=torch.bfloat16)
    log_prob, h = project(hidden, weight, token, entropy=True)
    assert log_prob.dtype == h.dtype == torch.float32
    exact, exact_h = plain(hidden.double(), weight.double(), token, None, 1.0)
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(h.double(), exact_h, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(log_prob.sum() + h.sum(), (hidden, weight))
    wanted = torch.autograd.grad(exact.sum() + exact_h.sum(), (hidden, weight))
    for found, expected in zip(grads, wanted, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-2, atol=1e-2)


def test_impossible_tokens(way) -> None:
    """A logit of −inf: probability 0, nothing in the entropy, no gradient, −inf for whoever picks it."""
    hidden, weight, token, _ = inputs(bias=False)
    offset = torch.zeros(11, dtype=torch.float64)
    offset[3] = -torch.inf
    token = torch.where(token == 3, 4, token)
    log_prob, h = project(hidden, weight, token, bias=offset, entropy=True)
    possible = torch.arange(11) != 3
    expected, expected_h = plain(hidden, weight[possible], token - (token > 3).long(), None, 1.0)
    torch.testing.assert_close((log_prob, h), (expected, expected_h))
    gradient = torch.autograd.grad(log_prob.sum() + h.sum(), weight)[0]
    assert torch.isfinite(gradient).all()
    assert (gradient[3] == 0).all()
    assert (project(hidden, weight, torch.full_like(token, 3), bias=offset)[0] == -torch.inf).all()


def test_the_full_logits_never_exist(monkeypatch) -> None:
    """Nothing larger than a chunk is ever allocated, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    monkeypatch.setattr(projection, "KEPT_ELEMENTS", 0)
    monkeypatch.setattr(projection, "CHUNK_ELEMENTS", 1000)
    hidden, weight, token, _ = inputs(rows=200, width=4, vocabulary=100, bias=False)
    with Largest() as largest:
        log_prob, h = project(hidden, weight, token, entropy=True)
        (log_prob.sum() + h.sum()).backward()
    assert largest.elements == 1000  # 20,000 logits in all


def test_no_rows(way) -> None:
    hidden, weight, token, _ = inputs(bias=False)
    log_prob, h = project(hidden[:0], weight, token[:0], entropy=True)
    assert len(log_prob) == len(h) == 0
    assert (torch.autograd.grad(log_prob.sum(), weight)[0] == 0).all()


@pytest.mark.parametrize("entropy", [True, False])
def test_half_precision_products_of_a_device_that_sums_them_in_float32(way, entropy, monkeypatch) -> None:
    """What runs on a GPU, with its product imitated: inputs are multiplied as they are, and the gradient is right to their precision."""
    products = []

    def mm(left, right, *, out_dtype):
        products.append((left.dtype, right.dtype, out_dtype))
        return left.float() @ right.float()

    monkeypatch.setattr(projection, "HALF_PRODUCTS", ("cpu",))
    monkeypatch.setattr(torch, "mm", mm)
    hidden, weight, token, offset = inputs(dtype=torch.bfloat16)
    log_prob, h = project(hidden, weight, token, bias=offset, entropy=entropy)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, offset)]
    expected, expected_h = plain(exact[0], exact[1], token, exact[2], 1.0)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), expected, rtol=1e-5, atol=1e-5)
    factor = torch.linspace(-1, 2, 7)
    loss, expected_loss = (factor * log_prob).sum(), (factor * expected).sum()
    if entropy:
        torch.testing.assert_close(h.double(), expected_h, rtol=1e-5, atol=1e-5)
        loss, expected_loss = loss + (factor * h).sum(), expected_loss + (factor * expected_h).sum()
    for found, wanted in zip(torch.autograd.grad(loss, (hidden, weight, offset)), torch.autograd.grad(expected_loss, exact), strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-2)
    assert set(products) == {(torch.bfloat16, torch.bfloat16, torch.float32)}
    assert len(products) >= 3
