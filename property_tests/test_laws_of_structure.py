"""Laws of f = J nu: it holds for every network with a linear last layer, and a changed one is caught."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from alignver.checks.analytic import check_analytic  # noqa: E402
from alignver.checks.common_structure import check_common_structure  # noqa: E402
from alignver.jacobians.columns import JacobianColumns  # noqa: E402
from alignver.jacobians.jacobian import jacobian, outputs  # noqa: E402
from alignver.jacobians.jacobian_form import streamed_qr  # noqa: E402
from alignver.jacobians.operator import JacobianOperator  # noqa: E402
from alignver.results import Verdict  # noqa: E402

ACTIVATIONS = [nn.Tanh, nn.Softplus, nn.ReLU, nn.GELU, nn.Sigmoid, nn.ELU]
SMOOTH = {nn.Tanh, nn.Softplus, nn.GELU, nn.Sigmoid}


@st.composite
def networks(draw):
    """(model, X, activations): a chain of layers with a linear last one, and as many samples as you like."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    selected = draw(st.lists(st.sampled_from(ACTIVATIONS), min_size=len(sizes) - 1, max_size=len(sizes) - 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layers = []
    for fan_in, fan_out, activation in zip(sizes, sizes[1:], selected):
        layers += [nn.Linear(fan_in, fan_out, bias=draw(st.booleans())), activation()]
    layers.append(nn.Linear(sizes[-1], draw(st.integers(1, 3)), bias=draw(st.booleans())))
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    X = torch.randn(draw(st.integers(1, 7)), sizes[0], generator=generator)
    return model, X, set(selected)


def last(model):
    return [name for name, _ in model.named_parameters() if name.startswith(f"{len(model) - 1}.")]


@given(networks())
def test_a_linear_last_layer_is_the_structure(problem):
    model, X, _ = problem
    result = check_common_structure(model, X)
    assert result.verdict is Verdict.HOLDS
    assert set(result.measured["S"]) == set(last(model))


@given(networks())
def test_f_is_j_nu(problem):
    model, X, _ = problem
    selected = set(last(model))
    nu = torch.cat([p.detach().double().reshape(-1) * (n in selected) for n, p in model.named_parameters()])
    f = outputs(model, X).T.reshape(-1)
    scale = float(jacobian(model, X).abs().max() * nu.abs().sum()) + 1e-300
    assert float((jacobian(model, X) @ nu - f).abs().max()) <= 1e-13 * scale
    assert float((JacobianOperator(model, X).matvec(nu) - f).abs().max()) <= 1e-13 * scale


class Changed(nn.Module):
    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.change(self.model(x))


# Every network shows every change, so that each need not see all of them: a third of what the profile says.
fewer = settings(max_examples=max(5, settings().max_examples // 3))
CHANGES = {
    "a constant is added": lambda f: f + 1.0,
    "squared": lambda f: f**2,
    "a nonlinearity after the last layer": torch.tanh,
    "a small constant": lambda f: f + 1e-5,
}


@pytest.mark.parametrize("change", CHANGES)
@fewer
@given(networks())
def test_a_changed_network_is_caught(change, problem):
    model, X, _ = problem
    f = outputs(model, X).abs()
    assume(float(f.min()) > 1e-2)
    assume(float(f.max()) < 3.0)
    result = check_common_structure(Changed(model, CHANGES[change]), X, S=[f"model.{name}" for name in last(model)])
    assert result.verdict is Verdict.FAILS


@given(networks(), st.sampled_from([1, 200, 10_000, None]), st.sampled_from([1, 3, None]))
def test_blocks_of_columns_do_not_depend_on_how_they_are_cut(problem, block_bytes, chunk_size):
    model, X, _ = problem
    J = jacobian(model, X)
    columns = JacobianColumns(model, X, block_bytes=block_bytes, chunk_size=chunk_size)
    covered = np.zeros(J.shape[1], dtype=int)
    for block in columns:
        wanted = torch.cat([J[:, start:stop] for start, stop in block.pieces], dim=1)
        assert float((block.matrix - wanted).abs().max()) <= 1e-13 * float(J.abs().max())
        for start, stop in block.pieces:
            covered[start:stop] += 1
    assert (covered == 1).all()


@given(networks())
def test_the_streamed_triangle_is_that_of_the_jacobian(problem):
    model, X, _ = problem
    J, r = jacobian(model, X), streamed_qr(model, X, block_bytes=1).r
    scale = float(J.norm()) ** 2 + 1e-300
    assert float((r.T @ r - J @ J.T).abs().max()) <= 1e-13 * scale


@given(networks())
def test_analytic_exactly_where_every_activation_is(problem):
    model, _, selected = problem
    verdict = check_analytic(model).verdict
    # A kink refutes analyticity, where a line is found on which the one-sided derivatives differ.
    assert verdict is Verdict.HOLDS if selected <= SMOOTH else verdict is not Verdict.HOLDS
