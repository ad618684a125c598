"""Upper bounds of spectral norms: against singular values, and against convolutions as matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from flint import arb, ctx

from alignver.kernel.failure import NotProved
from alignver.kernel.network import operator_norms
from alignver.kernel.network.operator_norms import affine_norm, spectral, symbol_norm

CLOSE = 1.0 + 1e-12


@pytest.mark.parametrize("imaginary", [0.0, 1.0])
@pytest.mark.parametrize("size", [1.0, 2.0**-700, 2.0**700])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (1, 4), (4, 1), (40, 40), (2, 3, 4, 6)])
def test_matrices(shape, size, imaginary):
    rng = np.random.default_rng(0)
    K = rng.normal(size=shape)
    K = K + 1j * rng.normal(size=shape) if imaginary else K
    true = np.linalg.norm(K, 2, axis=(-2, -1))
    bound = spectral(K * size) / size
    assert bound.shape == shape[:-2]
    assert (true <= bound * CLOSE).all()
    assert (bound <= true * 1.01).all()
    assert (true <= spectral(K, 1) * CLOSE).all()


def test_matrices_that_are_nearly_of_rank_one_or_zero():
    ones = np.ones((30, 40))
    assert math.sqrt(1200) <= float(spectral(ones)) * CLOSE <= math.sqrt(1200) * 1.0001
    assert 0.0 <= float(spectral(0 * ones)) < 1e-140
    assert spectral(np.ones((2, 3, 0))).shape == (2,)
    with pytest.raises(NotProved):
        spectral(np.array([[np.nan]]))


def test_the_rounding_of_the_squares_is_counted():
    """Where an entry is lost in F_0, the bound without the rounding of the products is too small."""
    K = np.array([[1.0, 0.0], [2.0**-30, 0.0]])
    with ctx.workprec(300):
        square = 1 + arb(2) ** -60
        assert arb(float(spectral(K))) ** 2 >= square


def test_a_changed_array_has_another_bound():
    W = np.eye(3)[None]
    before = affine_norm(W, 1, None)
    W *= 2.0
    assert affine_norm(W, 1, None) >= 2.0 > before


@pytest.mark.parametrize("order", [1, 2, 3, 7, 12, 18, 30, 96])
def test_twiddles_are_within_4u(order):
    cosines, sines = operator_norms._twiddles(order)
    with ctx.workprec(200):
        for j in range(order):
            angle = 2 * arb.pi() * j / order
            for computed, exact in ((cosines[j], angle.cos()), (sines[j], angle.sin())):
                assert abs(arb(float(computed)) - exact) <= arb(2) ** -51


def matrix_of(function, shape):
    columns = [function(unit.reshape(shape)).reshape(-1) for unit in torch.eye(math.prod(shape), dtype=torch.double)]
    return torch.stack(columns, dim=1).numpy()


@pytest.mark.parametrize("kernel", [(1,), (2,), (3,), (4,), (2, 2), (3, 3), (1, 3), (2, 3), (2, 2, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(kernel, groups):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((4, 4 // groups, *kernel), generator=generator, dtype=torch.double)
    bound = symbol_norm(weight.numpy(), groups)
    axes = len(kernel)
    apply = (torch.conv1d, torch.conv2d, torch.conv3d)[axes - 1]
    transposed = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[axes - 1]
    size = {1: 12, 2: 5, 3: 3}[axes]
    for stride, padding in itertools.product((1, 2), (0, 1)):
        for function in (apply, transposed):
            if function is apply or groups == 1:
                K = matrix_of(
                    lambda x, f=function, s=stride, p=padding: f(x, weight, stride=s, padding=p, groups=groups),
                    (1, 4, *[size] * axes),
                )
                assert np.linalg.norm(K, 2) <= bound * CLOSE
    large = np.linalg.norm(matrix_of(lambda x: apply(x, weight, padding=1, groups=groups), (1, 4, *[size] * axes)), 2)
    assert bound <= 1.9 * large


@pytest.mark.parametrize(("k", "sides"), [(3, 1), (3, 2), (2, 1), (4, 1)])
def test_the_grid_is_corrected_by_one_cosine_a_side(k, sides):
    """Cosines with their maximum between two points of the grid: with one factor too few the bound is too small."""
    middle, grid = (k - 1) / 2, max(1, math.ceil(12 * (k - 1) / 2))
    shift = math.pi / grid  # half a step
    with ctx.workprec(200):
        # Two channels carry the real and imaginary parts of a symbol whose modulus is cos(r (omega - shift)).
        taps = np.zeros(k, dtype=complex)
        taps[0], taps[-1] = np.exp(1j * middle * shift) / 2, np.exp(-1j * middle * shift) / 2
        line = np.stack([np.stack([taps.real, -taps.imag]), np.stack([taps.imag, taps.real])])
        weight = line if sides == 1 else np.einsum("abi,bcj->acij", line, line)
        assert symbol_norm(weight, 1) >= 1.0 - 1e-12
