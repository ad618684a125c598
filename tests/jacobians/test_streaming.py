"""Blocks of columns and the streamed triangle, against a float64 loop of autograd.grad and singular values of J."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from alignver.errors import InvalidInput
from alignver.jacobians import layer_gradients
from alignver.jacobians.columns import JacobianColumns, packed
from alignver.jacobians.jacobian_form import streamed_qr
from tests import zoo
from tests.reference import fingerprint, reference_jacobian


def assembled(columns: JacobianColumns) -> torch.Tensor:
    """J from its blocks; NaN where no block wrote."""
    J = torch.full(columns.shape, float("nan"), dtype=torch.float64)
    for block in columns:
        at = 0
        for start, stop in block.pieces:
            assert bool(torch.isnan(J[:, start:stop]).all())
            J[:, start:stop] = block.matrix[:, at : at + stop - start]
            at += stop - start
        assert at == block.matrix.shape[1]
    return J


def close(computed: torch.Tensor, wanted: torch.Tensor) -> bool:
    return float((computed - wanted).norm()) <= 1e-12 * float(wanted.norm())


@pytest.mark.parametrize(("block_bytes", "chunk_size"), [(None, None), (3000, 2)])
@pytest.mark.parametrize("name", zoo.CASES)
def test_blocks_are_the_jacobian_and_leave_no_trace(name, block_bytes, chunk_size):
    model, x = zoo.build(name)
    wanted = reference_jacobian(model.layer if isinstance(model, zoo.Counting) else model, x)
    before, stored = fingerprint(model), x.clone()
    columns = JacobianColumns(model, x, block_bytes=block_bytes, chunk_size=chunk_size)
    assert columns.shape == tuple(wanted.shape)
    assert close(assembled(columns), wanted)
    assert fingerprint(model) == before
    assert torch.equal(x, stored)


@pytest.mark.parametrize("name", ["mlp", "lenet", "attention", "tied embedding"])
def test_the_triangle_has_the_singular_values(name):
    model, x = zoo.build(name)
    wanted = reference_jacobian(model, x)
    computed = streamed_qr(model, x, block_bytes=1)
    assert computed.r.shape == (min(wanted.shape), len(wanted))
    assert torch.equal(computed.r, computed.r.triu())
    s, t = (torch.linalg.svdvals(matrix) for matrix in (wanted, computed.r))
    assert float((s - t).abs().max()) <= 1e-14 * len(s) * float(s[0])
    assert (computed.n, computed.m_y, computed.d) == (len(x), len(wanted) // len(x), wanted.shape[1])
    assert computed.computed_in == "float64"


def test_digits_that_the_gram_matrix_loses():
    """A model whose Jacobian is a given matrix with singular values down to 1e-12."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((size, 12)))[0] for size in (12, 40))
    s = np.logspace(0, -12, 12)
    model = nn.Linear(40, 1, bias=False).double()
    computed = streamed_qr(model, u * s @ v.T)
    small = torch.linalg.svdvals(computed.r)[-1]
    gram = torch.linalg.eigvalsh(computed.r.T @ computed.r)[0].clamp(min=0).sqrt()
    assert abs(float(small) / 1e-12 - 1) < 1e-2
    assert abs(float(gram) / 1e-12 - 1) > 0.9


def test_the_models_own_dtype_is_widened_in_the_triangle():
    model, x = zoo.build("mlp")
    computed = streamed_qr(model, x, dtype="same")
    assert computed.r.dtype == torch.float64
    assert computed.computed_in == "float32"
    wanted = torch.linalg.svdvals(reference_jacobian(model, x))
    assert float((torch.linalg.svdvals(computed.r) - wanted).abs().max()) < 1e-5 * float(wanted[0])


def test_frozen_parameters():
    model, x = zoo.build("frozen half")
    assert JacobianColumns(model, x).shape == (10, 10)
    columns = JacobianColumns(model, x, include_frozen=True)
    assert close(assembled(columns), reference_jacobian(model, x, include_frozen=True))


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (3, 4, 9)),
    (nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), groups=4, bias=False), (2, 4, 6, 5)),
    (nn.Conv2d(3, 3, 3, padding="same", dilation=2, padding_mode="circular", groups=3), (2, 3, 6, 6)),
    (nn.Conv2d(2, 4, (3, 5), padding="same"), (2, 2, 4, 6)),
    (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (3, 2, 4, 5)),
    (nn.Conv3d(2, 2, 2, stride=2, padding=1), (2, 2, 3, 4, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
@pytest.mark.parametrize("block_bytes", [None, 1])
def test_every_kind_of_convolution(layer, shape, block_bytes):
    torch.manual_seed(0)
    model, x = nn.Sequential(copy.deepcopy(layer), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)), torch.randn(shape)
    model(x)
    columns = JacobianColumns(model, x, block_bytes=block_bytes)
    assert close(assembled(columns), reference_jacobian(model, x))
    assert "per-sample" not in columns.engine


class TimeFirst(nn.Module):
    """The batch is the second axis of the layer's input, as long as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.layer(x.transpose(0, 1))).cumsum(0)[-1])


class UsedBeside(nn.Module):
    """A layer's weight is used once more, past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.layer(x)) @ self.layer.weight)


@pytest.mark.parametrize(("model", "shape"), [(TimeFirst, (4, 4, 3)), (TimeFirst, (5, 2, 3)), (UsedBeside, (5, 3))])
def test_layers_whose_factors_do_not_tell_are_noticed(model, shape):
    torch.manual_seed(0)
    net, x = model(), torch.randn(shape)
    columns = JacobianColumns(net, x)
    assert close(assembled(columns), reference_jacobian(net, x))
    assert "per-sample gradients" in columns.engine


def test_a_wrong_contraction_is_noticed(monkeypatch):
    model, x = zoo.build("mlp")
    right = layer_gradients.contract

    def wrong(captured, where, start, stop, target):
        done = right(captured, where, start, stop, target)
        target[0, 0, 0] += 1.0
        return done

    monkeypatch.setattr(layer_gradients, "contract", wrong)
    assert close(assembled(JacobianColumns(model, x)), reference_jacobian(model, x))


def test_one_pass_for_layers_that_are_held_however_many_blocks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 60), nn.Tanh(), nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 1))
    computed = streamed_qr(model, torch.randn(40, 50), block_bytes=8 * 40 * 600)
    assert computed.blocks >= 10
    assert computed.passes <= 4


def test_memory_is_that_of_a_block():
    """The rows that the QR gets are views of one buffer, at most N at a time; J would be twenty times that."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(400, 200), nn.Tanh(), nn.Linear(200, 1)), torch.randn(50, 400)
    block = 1 << 20
    columns = JacobianColumns(model, x, block_bytes=block)
    wide = max(piece.matrix.shape[1] for piece in columns)
    assert 8 * 50 * wide <= block
    assert columns.shape[1] * 50 * 8 > 20 * block
    places = set()
    for rows in columns.row_blocks():
        assert rows.shape[0] <= rows.shape[1] == 50
        places.add(rows.__array_interface__["data"][0])
    assert max(places) - min(places) < block


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(1, 30),
)
def test_packing_covers_everything_once(rows, most):
    slots = [(k, height * inner, inner) for k, (height, inner) in enumerate(rows)]
    seen = {k: [] for k, _, _ in slots}
    for block in packed(slots, most):
        assert 0 < sum(stop - start for _, start, stop in block) <= most
        assert len({k for k, _, _ in block}) == len(block)
        for k, start, stop in block:
            inner = slots[k][2]
            whole = start % inner == 0 and stop % inner == 0
            assert whole or start // inner == (stop - 1) // inner
            seen[k] += range(start, stop)
    assert all(seen[k] == list(range(size)) for k, size, _ in slots)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * torch.sqrt(self.scale)


@pytest.mark.parametrize(
    ("model", "X", "options", "argument"),
    [
        ("no module", torch.zeros(2, 3), {}, "model"),
        (nn.ReLU(), torch.zeros(2, 3), {}, "model"),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), torch.zeros(2, 3), {}, "model"),
        (nn.Linear(3, 2), [[0.0, float("inf"), 0.0]], {}, "X"),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"block_bytes": 0}, "block_bytes"),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"block_bytes": True}, "block_bytes"),
        (nn.Linear(3, 2), torch.zeros(2, 3), {"chunk_size": -1}, "chunk_size"),
        (Root(), torch.ones(2, 3), {}, "model"),
    ],
)
def test_bad_input(model, X, options, argument):
    with pytest.raises(InvalidInput) as refused:
        streamed_qr(model, X, **options)
    assert refused.value.argument == argument


def test_an_error_in_a_slot_that_is_small_beside_the_others_is_noticed(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)).double(), torch.randn(4, 3).double()
    with torch.no_grad():
        model[1].weight.mul_(1e-9)
    wanted, right = reference_jacobian(model, x), layer_gradients.contract

    def wrong(captured, where, start, stop, target):
        done = right(captured, where, start, stop, target)
        if where[0].module is model[0]:
            target.mul_(-1.0)
        return done

    monkeypatch.setattr(layer_gradients, "contract", wrong)
    assert close(assembled(JacobianColumns(model, x))[:, :12] * 1e9, wanted[:, :12] * 1e9)
