"""What the Jacobian refuses, every other way into the library refuses too, by name, and leaves the model as it was."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import alignver as av
from alignver.checks.analytic import check_analytic
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


def trained(model, X):
    return av.EEWrapper(model, loss="cross_entropy", tau=1, width=5).fit((X, torch.arange(4) % 2), 2)


OTHERS = {
    "optimality": lambda model, X: av.check_optimality(model, X=X, Y=torch.zeros(4, 2), loss="squared", tolerance=0.1),
    "exploration": lambda model, X: av.check_safe_exploration(model, X=X),
    "analyticity": check_analytic,
    "the trace": av.trace_model,
    "the wrapper": trained,
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", [*MODELS, *DERIVATIVES])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::alignver.errors.LostGuarantee")
def test_what_needs_no_jacobian_refuses_a_model_or_answers(name, other):
    """No other exception, and no change of the model: a product made at construction leads to its gradients."""
    build, _ = {**MODELS, **DERIVATIVES}[name]
    model = build()
    safe = isinstance(model, nn.Module) and not any(p.is_meta or nn.parameter.is_lazy(p) for p in model.parameters())
    with torch.random.fork_rng():  # training draws
        before = fingerprint(model) if safe else None
        state = torch.get_rng_state()
        with contextlib.suppress(InvalidInput):
            OTHERS[other](model, torch.arange(12.0).reshape(4, 3) ** 2 + 1.0)
        torch.set_rng_state(state)
        assert before is None or fingerprint(model) == before


@pytest.mark.parametrize("name", INPUTS)
def test_what_needs_no_jacobian_refuses_inputs_or_answers(name):
    for other in OTHERS.values():
        with contextlib.suppress(InvalidInput):
            other(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), INPUTS[name][0]())


def test_a_model_whose_copy_is_itself_is_not_trained():
    class Own(nn.Sequential):
        def __deepcopy__(self, memo):
            return self

    model = Own(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    before = fingerprint(model)
    with pytest.raises(InvalidInput, match="a copy of it has the same parameters"):
        trained(model, torch.arange(12.0).reshape(4, 3) + 1.0)
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
