"""No proof through layer factors is wrong, whatever the shapes and the scales; and every one re-checks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignver.checks.recheck import recheck
from alignver.proof.factored_gram import Layer, row_rank_by_factors
from alignver.results import Verdict
from tests.proof.layers import claim, exceeds, matrix

seeds = st.integers(0, 2**32 - 1)


def entries(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "integers":
        return rng.integers(-3, 4, shape).astype(float)
    if kind == "float32":
        return rng.standard_normal(shape).astype(np.float32).astype(float)
    if kind == "graded":
        return rng.standard_normal(shape) * 10.0 ** rng.uniform(-8, 8, (*shape[:-1], 1))
    if kind == "sparse":
        return rng.standard_normal(shape) * (rng.random(shape) < 0.4)
    return rng.standard_normal(shape)


KINDS = ["normal", "integers", "float32", "graded", "sparse"]


@st.composite
def layered(draw: st.DrawFn) -> list[Layer]:
    """Up to three layers of one or several positions, at any power of two."""
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(seeds))
    collected = []
    for k in range(draw(st.integers(1, 3))):
        T = draw(st.sampled_from([1, 1, 2, 5]))
        a, b = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        A = entries(rng, draw(st.sampled_from(KINDS)), (n, T, a))
        B = entries(rng, draw(st.sampled_from(KINDS)), (m, n, T, b))
        collected.append(Layer(f"layer {k}", A, B * 2.0 ** draw(st.sampled_from([0, 0, 0, -150, 150]))))
    return collected


@given(layered(), st.sampled_from([0.0, 1e-14, 1e-9, 1e-3]))
def test_no_bound_is_wrong_and_every_proof_rechecks(layers, relative):
    J = matrix(layers)
    norm = float(sum(x * x for row in J for x in row)) ** 0.5
    radius = relative * norm
    for stored in (True, False):
        proof, certificate, inputs = claim(layers, radius, stored=stored)
        assert proof.s_min >= 0.0
        if proof.s_min > 0.0:
            assert exceeds(J, Fraction(proof.s_min))
        if not proof.proved:
            assert certificate is None
            assert proof.reason
            continue
        assert exceeds(J, Fraction(radius))
        assert proof.constants["size"] >= norm * (1 - 1e-15)
        again = recheck(certificate, **inputs)
        assert again.verdict is Verdict.HOLDS, again.reason


@st.composite
def deficient(draw: st.DrawFn) -> list[Layer]:
    """Layers whose rows are dependent in exact arithmetic: integers, the last sample a combination of two others."""
    n, m = draw(st.integers(2, 5)), draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["twice", "sum", "zero", "tiny"]))
    collected = []
    for k in range(draw(st.integers(1, 3))):
        T = draw(st.sampled_from([1, 1, 3]))
        a, b = draw(st.integers(2, 5)), draw(st.integers(2, 5))
        A = rng.integers(-9, 10, (n, T, a)).astype(float)
        B = rng.integers(-9, 10, (m, n, T, b)).astype(float)
        if kind == "twice":
            A[-1], B[:, -1] = A[0], 2.0 * B[:, 0]
        elif kind == "sum":  # equal inputs of three samples: rows are linear in their gradients
            A[-1] = A[0]
            if n > 2:
                A[1] = A[0]
                B[:, -1] = B[:, 0] + 3.0 * B[:, 1]
            else:
                B[:, -1] = -B[:, 0]
        elif kind == "zero":
            B[0, -1] = 0.0
        else:
            A[-1], B[:, -1] = A[0], B[:, 0] * 2.0**-300
        collected.append(Layer(f"layer {k}", A * 0.1, B / 3.0 if kind in ("twice", "zero") else B))
        if kind == "twice":  # a product that is rounded, twice as large where it should be, to the last bit
            collected[-1].gradients[:, -1] = 2.0 * collected[-1].gradients[:, 0]
            collected[-1].inputs[-1] = collected[-1].inputs[0]
    return collected


@given(deficient())
def test_dependent_rows_are_never_proved_independent(layers):
    assert not exceeds(matrix(layers), Fraction(0))
    proof = row_rank_by_factors(layers, lambda size: 0.0)
    assert not proof.proved
    assert proof.s_min == 0.0


@given(seeds, st.integers(-52, -10), st.sampled_from([1, 2]))
def test_a_hair_above_dependence(seed, exponent, T):
    """Equal samples but for a small part: what is proved is true down to where nothing is proved."""
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((3, T, 4)), rng.standard_normal((1, 3, T, 3))
    A[2] = A[0] + 2.0**exponent * rng.standard_normal((T, 4))
    B[:, 2] = B[:, 0]
    layers = [Layer("layer", A, B)]
    proof, certificate, inputs = claim(layers)
    if proof.s_min > 0.0:
        assert exceeds(matrix(layers), Fraction(proof.s_min))
    if exponent > -16:
        assert proof.proved
    if exponent < -40:
        assert not proof.proved
    if certificate is not None:
        assert recheck(certificate, **inputs).verdict is Verdict.HOLDS


@pytest.mark.parametrize("shape", [(40, 1, 30, 20), (12, 30, 3, 4), (12, 3, 40, 30), (30, 2, 2, 400), (30, 2, 400, 2)])
def test_bounds_are_close_where_the_matrix_is_well_conditioned(shape):
    """Near the truth for scaled rows, at sizes where columns and pairs of positions are both taken; and re-checked."""
    n, T, a, b = shape
    rng = np.random.default_rng(3)
    layers = [
        Layer("first", rng.standard_normal((n, T, a)), rng.standard_normal((2, n, T, b))),
        Layer("second", rng.standard_normal((n, 1, 9)), rng.standard_normal((2, n, 1, 8))),
    ]
    J = np.concatenate(
        [np.einsum("ita,jitb->jiba", layer.inputs, layer.gradients).reshape(2 * n, -1) for layer in layers],
        axis=1,
    )
    truth = np.linalg.svd(J, compute_uv=False)
    radius = 1e-13 * truth[0]
    for stored in (True, False):
        proof, certificate, inputs = claim(layers, radius, stored=stored)
        assert proof.proved, proof.reason
        power = np.ldexp(1.0, proof.exponents)
        least = np.linalg.svd(power[:, None] * J, compute_uv=False)[-1] / power.max()
        assert least / 3.0 < proof.s_min < truth[-1]
        assert recheck(certificate, **inputs).verdict is Verdict.HOLDS
    assert proof.constants["size"] == pytest.approx(np.linalg.norm(J), rel=1e-6)
    too_far, certificate, _ = claim(layers, 1.001 * truth[-1])
    assert not too_far.proved
    assert certificate is None
