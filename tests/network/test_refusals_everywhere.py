"""What the Jacobian refuses, every other way into the library refuses too, by name, and leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alignver.checks.common_structure import check_common_structure
from alignver.errors import InvalidInput
from alignver.jacobians.columns import JacobianColumns
from alignver.jacobians.factored_proof import layer_factors
from alignver.jacobians.jacobian_form import streamed_qr
from alignver.jacobians.kernel_distance import RepresentationSnapshot
from alignver.jacobians.operator import JacobianOperator
from tests.network.test_validate_model import DERIVATIVES, INPUTS, MODELS
from tests.reference import fingerprint

ENTRIES = [
    JacobianOperator,
    JacobianColumns,
    streamed_qr,
    layer_factors,
    RepresentationSnapshot,
    check_common_structure,
]
each = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)


@each
@pytest.mark.parametrize("name", MODELS)
def test_models(name, entry):
    build, words = MODELS[name]
    model = build()
    safe = isinstance(model, nn.Module) and not any(p.is_meta or nn.parameter.is_lazy(p) for p in model.parameters())
    before = fingerprint(model) if safe else None
    with pytest.raises(InvalidInput, match=words):
        entry(model, torch.arange(12.0).reshape(4, 3) ** 2 + 1.0)
    assert before is None or fingerprint(model) == before


@each
@pytest.mark.parametrize("name", [name for name in DERIVATIVES if name != "an infinite derivative"])
def test_models_without_the_derivatives(name, entry):
    build, words = DERIVATIVES[name]
    model = build()
    before = fingerprint(model)
    with pytest.raises(InvalidInput, match=words):
        entry(model, torch.arange(12.0).reshape(4, 3) + 1.0)
    assert fingerprint(model) == before


@pytest.mark.parametrize("method", ["exact", "probes"])
def test_an_infinite_derivative(method):
    build, _ = DERIVATIVES["an infinite derivative"]
    x = torch.arange(12.0).reshape(4, 3) + 1.0
    with pytest.raises(InvalidInput, match="NaN or Inf"):
        streamed_qr(build(), x)
    with pytest.raises(InvalidInput, match="NaN or Inf"):
        RepresentationSnapshot(build(), x, method=method).change()


@each
@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name, entry):
    build, words = INPUTS[name]
    with pytest.raises(InvalidInput, match=words):
        entry(nn.Linear(3, 2), build())


@each
def test_inputs_of_another_dtype(entry):
    with pytest.raises(InvalidInput, match=r"X: got dtype float64 with a model that computes in float32"):
        entry(nn.Linear(3, 2), np.ones((4, 3)), dtype="same")
