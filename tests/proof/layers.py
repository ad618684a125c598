"""Matrices made of layer factors, in exact arithmetic, and layers drawn at random for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from alignver.kernel import Certificate, seal
from alignver.proof.factored_gram import FactoredRank, Layer, row_rank_by_factors

Exact = list[list[Fraction]]


def matrix(layers: Sequence[Layer]) -> Exact:
    """J with rows j n + i, exactly: for each layer sum_t b_jit a_it^T."""
    m, n = layers[0].gradients.shape[:2]
    rows: Exact = [[] for _ in range(m * n)]
    for layer in layers:
        _, T, a = layer.inputs.shape
        b = layer.gradients.shape[3]
        A = [[[Fraction(float(x)) for x in line] for line in sample] for sample in layer.inputs]
        for j in range(m):
            for i in range(n):
                B = [[Fraction(float(x)) for x in line] for line in layer.gradients[j, i]]
                rows[j * n + i] += [
                    sum((B[t][r] * A[i][t][c] for t in range(T)), Fraction()) for r in range(b) for c in range(a)
                ]
    return rows


def exceeds(rows: Exact, s: Fraction) -> bool:
    """Whether the smallest singular value is more than s >= 0: J J^T - s^2 I has positive pivots, exactly."""
    n = len(rows)
    M = [[sum((x * y for x, y in zip(p, q)), Fraction()) for q in rows] for p in rows]
    for k in range(n):
        M[k][k] -= s * s
    for k in range(n):
        if M[k][k] <= 0:
            return False
        for i in range(k + 1, n):
            factor = M[i][k] / M[k][k]
            for j in range(k, n):
                M[i][j] -= factor * M[k][j]
    return True


def claim(
    layers: Sequence[Layer],
    radius: float = 0.0,
    *,
    stored: bool = True,
    prove: Callable[[Sequence[Layer], Callable[[float], float]], FactoredRank] = row_rank_by_factors,
) -> tuple[FactoredRank, Certificate | None, dict[str, np.ndarray]]:
    """A proof, its certificate as a check of alignment writes it, and the inputs that go with that."""
    proof = prove(layers, lambda size: radius)
    m, n = layers[0].gradients.shape[:2]
    arrays = {}
    for k, layer in enumerate(layers):
        arrays[f"A{k}"] = np.ascontiguousarray(layer.inputs.reshape(-1, layer.inputs.shape[2]))
        arrays[f"B{k}"] = np.ascontiguousarray(layer.gradients.reshape(-1, layer.gradients.shape[3]))
    inputs = {"y": np.arange(1.0, m * n + 1.0)} | ({} if stored else arrays)
    if not proof.proved:
        return proof, None, inputs
    assert proof.exponents is not None
    constants = {
        "samples": n,
        "outputs": m,
        "shift": proof.constants["shift"],
        "s_min": proof.constants["s_min"],
        "ball": {"kind": "norm", "value": proof.constants["radius"]},
        "layers": [{"name": layer.name, "positions": int(layer.inputs.shape[1])} for layer in layers],
    }
    data = {"scaling": proof.exponents, **(arrays if stored else {})}
    return proof, seal("factored-membership", "factored gram", inputs, data, constants), inputs
