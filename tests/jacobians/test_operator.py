"""Products with J and its transpose against a float64 loop of autograd.grad."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.errors import InvalidInput
from alignver.jacobians.operator import JacobianOperator
from alignver.results import Verdict
from tests import zoo
from tests.reference import fingerprint, reference_jacobian


def pair(J: JacobianOperator) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(size, generator=generator, dtype=J.dtype) for size in reversed(J.shape))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", zoo.CASES)
def test_products_agree_with_a_loop_and_leave_no_trace(name, chunk_size):
    model, x = zoo.build(name)
    wanted = reference_jacobian(model.layer if isinstance(model, zoo.Counting) else model, x)
    before, given = fingerprint(model), x.clone()
    J = JacobianOperator(model, x, chunk_size=chunk_size)
    v, u = pair(J)
    forward, backward = J.matvec(v), J.rmatvec(u)
    assert fingerprint(model) == before
    assert torch.equal(x, given)
    assert J.shape == tuple(wanted.shape)
    assert not forward.requires_grad
    assert not backward.requires_grad
    assert float((forward - wanted @ v).norm()) <= 1e-12 * float(wanted.norm() * v.norm())
    assert float((backward - wanted.T @ u).norm()) <= 1e-12 * float(wanted.norm() * u.norm())


class Backward(torch.autograd.Function):
    """The square of a number, with derivatives by backward passes only."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z**2

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return 2 * z * g


class Own(nn.Module):
    """A layer with an operation of its own that forward mode does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 4), nn.Parameter(torch.ones(2))
        self.out = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(Backward.apply(self.layer(x)))


def test_double_backward_where_forward_mode_is_missing():
    torch.manual_seed(0)
    model, x = Own(), torch.randn(5, 3)
    wanted, J = reference_jacobian(model, x), JacobianOperator(model, x, chunk_size=2)
    v, u = pair(J)
    torch.testing.assert_close(J.matvec(v), wanted @ v)
    torch.testing.assert_close(J.rmatvec(u), wanted.T @ u)
    assert J.mode == "double backward"


def test_forward_mode_where_there_is_one():
    J = JacobianOperator(*zoo.build("mlp"))
    assert J.mode == ""
    J.matvec(pair(J)[0])
    assert J.mode == "forward mode"
    assert repr(J) == f"JacobianOperator(Sequential, 10 x {J.shape[1]}, float64)"


def test_membership_takes_it():
    model, x = zoo.build("mlp")
    J = JacobianOperator(model, x)
    y = J.matvec(pair(J)[0])
    assert av.check_membership(J, y).verdict is Verdict.HOLDS
    flat = JacobianOperator(nn.Linear(1, 1), torch.arange(3.0)[:, None])
    bent = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert av.check_membership(flat, bent, tolerance=1e-6).verdict is Verdict.FAILS


def test_the_parameters_of_later_change_nothing():
    model, x = zoo.build("mlp")
    J = JacobianOperator(model, x)
    v, _ = pair(J)
    first = J.matvec(v)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    x.zero_()
    assert torch.equal(J.matvec(v), first)


def test_frozen_parameters_and_the_models_own_dtype():
    model, x = zoo.build("frozen half")
    assert JacobianOperator(model, x).shape == (10, 10)
    J = JacobianOperator(model, x, include_frozen=True, dtype="same")
    assert J.shape == (10, 26)
    assert J.dtype == torch.float32
    v, _ = pair(J)
    wanted = reference_jacobian(model, x, include_frozen=True) @ v.double()
    assert float((J.matvec(v) - wanted).norm() / wanted.norm()) < 1e-5


def test_inside_no_grad_and_inference_mode():
    model, x = zoo.build("mlp")
    J = JacobianOperator(model, x)
    v, u = pair(J)
    with torch.no_grad():
        forward = J.matvec(v)
    with torch.inference_mode():
        backward = J.rmatvec(u)
    assert torch.equal(forward, J.matvec(v))
    assert torch.equal(backward, J.rmatvec(u))


@pytest.mark.parametrize(
    ("vector", "word"),
    [
        (np.zeros(10), "ndarray"),
        (torch.zeros(10), "float32"),
        (torch.zeros(9, dtype=torch.float64), r"\(9,\)"),
        (torch.zeros(10, 1, dtype=torch.float64), r"\(10, 1\)"),
        (torch.zeros(10, dtype=torch.float64, device="meta"), "meta"),
    ],
)
def test_vectors_that_do_not_fit(vector, word):
    model, x = zoo.build("linear")
    with pytest.raises(InvalidInput, match=word):
        JacobianOperator(model, x).rmatvec(vector)


def test_a_changed_mode_is_noticed():
    model, x = zoo.build("batch norm in eval mode")
    J = JacobianOperator(model, x)
    model.train()
    with pytest.raises(InvalidInput, match="mode"):
        J.matvec(pair(J)[0])


@pytest.mark.parametrize(
    ("model", "X", "options", "argument"),
    [
        ("no module", torch.zeros(2, 3), {}, "model"),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), torch.zeros(2, 3), {}, "model"),
        (nn.ReLU(), torch.zeros(2, 3), {}, "model"),
        (nn.GRU(3, 2), torch.zeros(2, 3), {}, "model"),
        (nn.Linear(3, 2), torch.full((2, 3), float("nan")), {}, "X"),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"chunk_size": 0}, "chunk_size"),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"dtype": "float16"}, "dtype"),
    ],
)
def test_bad_input(model, X, options, argument):
    with pytest.raises(InvalidInput) as refused:
        JacobianOperator(model, X, **options)
    assert refused.value.argument == argument
