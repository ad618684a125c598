"""Models that compute parts of themselves again in the backward pass (torch.utils.checkpoint)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from alignver.checks.alignment import check_alignment
from alignver.errors import InvalidInput
from alignver.jacobians.gram import gram
from alignver.jacobians.jacobian import jacobian, outputs
from alignver.jacobians.jacobian_form import streamed_qr
from alignver.jacobians.kernel_distance import RepresentationSnapshot, representation_change
from alignver.jacobians.operator import JacobianOperator
from alignver.network.functional import functional
from alignver.network.validate_model import recomputes
from tests import zoo
from tests.reference import fingerprint, reference_jacobian


class Checkpointed(nn.Module):
    """A checkpoint around a module, or around a function that uses a parameter."""

    def __init__(self, by: str = "module") -> None:
        super().__init__()
        self.inner, self.out = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by == "module":
            return self.out(checkpoint(self.inner, x, use_reentrant=False))
        first = self.inner[0]
        return self.out(checkpoint(lambda x: torch.tanh(F.linear(x, first.weight, first.bias)), x, use_reentrant=False))


def build(by: str = "module", dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        return Checkpointed(by).to(dtype), torch.randn(5, 3, dtype=dtype)


def check(model, x):
    return check_alignment(model, x, np.zeros((5, 2)), loss="squared")


@pytest.mark.parametrize("by", ["module", "function"])
def test_in_the_models_own_dtype_it_is_differentiated(by):
    model, x = build(by)
    J = reference_jacobian(model, x)
    before = fingerprint(model)
    assert float((jacobian(model, x) - J).norm()) <= 1e-12 * float(J.norm())
    assert float((gram(model, x) - J @ J.T).norm()) <= 1e-12 * float(J.norm()) ** 2
    R = streamed_qr(model, x).r
    assert float((R.T @ R - J @ J.T).norm()) <= 1e-12 * float(J.norm()) ** 2
    u = torch.cos(torch.arange(10.0, dtype=torch.float64))
    operator = JacobianOperator(model, x)
    assert float((operator.rmatvec(u) - J.T @ u).norm()) <= 1e-12 * float(J.norm())
    v = torch.cos(torch.arange(float(J.shape[1]), dtype=torch.float64))
    assert float((operator.matvec(v) - J @ v).norm()) <= 1e-12 * float(J.norm()) * 5
    assert fingerprint(model) == before


@pytest.mark.parametrize("by", ["module", "function"])
@pytest.mark.parametrize("entry", [gram, jacobian, outputs, streamed_qr, JacobianOperator, check])
def test_widened_it_is_refused_by_name_with_the_remedy(entry, by):
    model, x = build(by, torch.float32)
    before = fingerprint(model)
    name = r"Linear 'inner\.0'" if by == "module" else "Checkpointed"
    with pytest.raises(InvalidInput, match=rf"{name}, whose backward pass fails in float64.*dtype='same'.*checkpoint"):
        entry(model, x)
    assert fingerprint(model) == before
    if entry is not check:
        entry(model, x, dtype="same")


@pytest.mark.parametrize("name", zoo.CASES)
def test_other_models_do_not(name):
    model, x = zoo.build(name)
    assert not recomputes(functional(model, torch.float64), x[:1].double() if x.is_floating_point() else x[:1])


@pytest.mark.parametrize("by", ["module", "function"])
def test_values_that_the_module_does_not_have_are_refused(by):
    """On the way back a checkpoint takes the module's own parameters: the derivative would be of no function."""
    model, x = build(by)
    assert recomputes(functional(model, torch.float64), x[:1])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.inner[0].weight.mul_(1.5)
    state = other.state_dict()
    for entry in (gram, JacobianOperator):
        with pytest.raises(InvalidInput, match=r"state: got values of 'inner\.0\.weight'.*load_state_dict"):
            entry(model, x, state=state)
        entry(model, x, state=copy.deepcopy(model.state_dict()))
    with pytest.raises(InvalidInput, match="checkpoint"):
        representation_change(model, x, state)
    start = RepresentationSnapshot(model, x, method="exact")
    probed = RepresentationSnapshot(model, x, method="probes", probes=33)
    model.load_state_dict(state)
    J, K = (reference_jacobian(m, x) for m in (build(by)[0], other))
    assert start.change().value == pytest.approx(float((K @ K.T - J @ J.T).square().sum()), rel=1e-10)
    with pytest.raises(InvalidInput, match="checkpoint"):
        probed.change()
