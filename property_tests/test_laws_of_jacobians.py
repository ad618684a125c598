"""Every way to a Jacobian gives that of a float64 loop of autograd.grad, on networks drawn at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignver.jacobians.gram import gram
from alignver.jacobians.jacobian import jacobian
from alignver.jacobians.jacobian_form import streamed_qr
from alignver.jacobians.kernel_distance import representation_change
from alignver.jacobians.operator import JacobianOperator
from tests.one_thread import single_thread
from tests.reference import fingerprint, reference_jacobian

from .test_laws_of_gram import close, drawn

one_thread = pytest.fixture(autouse=True, scope="module")(single_thread)

# Each example differentiates output by output: a third of what the profile says.
fewer = settings(max_examples=max(5, settings().max_examples // 3))


@fewer
@given(drawn(), st.sampled_from([None, 1, 2]))
def test_every_way_agrees_with_a_loop(case, chunk_size):
    model, x = case
    J = reference_jacobian(model, x)
    M = J @ J.T
    before = fingerprint(model)
    assert close(jacobian(model, x, chunk_size=chunk_size), J)
    assert close(gram(model, x, chunk_size=chunk_size), M)
    R = streamed_qr(model, x, chunk_size=chunk_size, block_bytes=1).r
    assert close(R.T @ R, M)
    operator = JacobianOperator(model, x, chunk_size=chunk_size)
    v, u = (torch.cos(torch.arange(float(size), dtype=torch.float64)) for size in reversed(J.shape))
    assert float((operator.matvec(v) - J @ v).norm()) <= 1e-12 * float(J.norm() * v.norm())
    assert float((operator.rmatvec(u) - J.T @ u).norm()) <= 1e-12 * float(J.norm() * u.norm())
    assert fingerprint(model) == before


@fewer
@given(drawn())
def test_in_float32(case):
    model, x = case
    J = reference_jacobian(model, x)
    assert close(jacobian(model, x, dtype="same"), J, 1e-4)
    assert close(gram(model, x, dtype="same"), J @ J.T, 1e-4)


@fewer
@given(drawn(), st.integers(0, 2**16))
def test_change_of_representation(case, seed):
    """The interval of random products holds the exact change: at a confidence of one in a billion, always."""
    model, x = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.mul_(1.0 + 0.1 * (k % 3))
    exact = representation_change(model, x, before)
    change = representation_change(model, x, before, method="probes", probes=9, confidence=1.0 - 1e-9, seed=seed)
    scale = 1e-12 * float(gram(model, x).norm()) ** 2
    assert change.interval[0] - scale <= exact.value <= change.interval[1] + scale
