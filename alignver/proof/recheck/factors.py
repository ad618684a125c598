"""Full row rank of a matrix made of layer factors, re-checked from the factors by code of its own.

Rows are taken sample by sample instead of output by output; columns of layers with several positions are formed, of
layers with one never. An approximate Cholesky factor is multiplied out, so how it was computed does not matter.
Products satisfy |fl(x^T y) - x^T y| <= k u |x|^T |y| + k 2^-1022 for k terms in any order (C.-P. Jeannerod, S. M. Rump,
SIAM J. Matrix Anal. Appl. 34 (2013) 338-344).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignver.proof.certificate import Certificate
from alignver.proof.recheck.failure import NotProved

__all__ = ["factored"]

_U = 2.0**-53
_TINY = 2.0**-1022
_ROOM = 1.0 + 2.0**-30  # more than the rounding of the scalar operations that it covers
_FAR = 2.0**400
_WIDTH = 256  # columns that are formed at once, about


def factored(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """Every matrix in the ball around the one made of the factors has full row rank, so y is in its column space."""
    constants = certificate.constants
    n, m = constants["samples"], constants["outputs"]
    if any(type(size) is not int or size < 1 for size in (n, m)) or not isinstance(constants["layers"], tuple):
        raise NotProved("the certificate lacks samples, outputs or layers")
    if certificate.claim != "factored-membership" or inputs["y"].shape != (n * m,):
        raise NotProved("y does not have one entry for each sample and output")
    exponents = certificate.data["scaling"]
    if exponents.dtype != np.int64 or exponents.shape != (n * m,) or bool(np.any(np.abs(exponents) > 500)):
        raise NotProved("the scaling is none")
    radius = _radius(constants["ball"])
    power = np.ldexp(1.0, exponents).reshape(m, n)
    sources = {**certificate.data, **inputs}
    gram, squares, longest, additions, lost, columns = np.zeros((n * m, n * m)), np.zeros(n * m), 0, 8, 0.0, 0
    for k, layer in enumerate(constants["layers"]):
        A, B = _factors(sources, k, layer, n, m)
        B = B * power[:, :, None, None]
        if not all(float(np.abs(x).max()) < _FAR for x in (A, B)):
            raise NotProved(f"the factors of layer {k} are too large")
        lengths = [np.sqrt((x * x).sum(-1) + x.shape[-1] * _TINY) for x in (A, B)]
        length = np.einsum("it,jit->ij", *lengths).reshape(-1)
        length = length * (1.0 + (A.shape[1] + A.shape[2] + B.shape[3] + 8) * 2.0 * _U) + A.shape[1] * _TINY
        squares += length * length
        own, added, missing = _add(gram, A, B)
        longest, additions = max(longest, own), additions + added
        lost += missing * math.sqrt(float((length * length).sum())) * _ROOM
        lost += (1.0 + float(A.shape[1])) * n * m * A.shape[2] * B.shape[3] * _TINY * _FAR
        columns += A.shape[2] * B.shape[3]
    # A product goes through the roundings of its own share and one for each share that is added: k of them are worth
    # less than k u (1 + k u), and 2^22 u is far below what _ROOM leaves.
    roundings = longest + additions
    if roundings > 2**20:
        raise NotProved("the factors are too large for the bound")
    if columns < n * m:
        raise NotProved("there are fewer columns than rows")
    noise = (roundings * _U * float(squares.sum()) + n * m * float(roundings) ** 3 * _TINY * _FAR**2 * 4.0) * _ROOM
    floor = _definite(gram, noise, max(float(constants["shift"]), 0.0))
    top = float(power.max())
    smallest = math.sqrt(floor) * (1.0 - 2.0**-50) - lost * _ROOM
    if not smallest > radius * top * _ROOM:
        raise NotProved(
            f"the smallest singular value is only known to exceed {smallest / top:.3e}, the ball {radius:.3e}"
        )
    if not 0.0 <= float(constants["s_min"]) * top <= smallest:
        raise NotProved(f"the smallest singular value is only known to exceed {smallest / top:.3e}, not what is stated")
    whose = "given" if set(inputs) > {"y"} else "in the certificate"
    return (
        f"{n * m} independent rows throughout the ball: the Gram matrix of the factors {whose} was factored and "
        "multiplied out"
    )


def _radius(ball: Any) -> float:
    value = ball["value"]
    if ball["kind"] != "norm" or not (isinstance(value, float) and 0.0 <= value < math.inf):
        raise NotProved("the ball has no radius")
    return value


def _factors(sources: Mapping[str, Any], k: int, layer: Any, n: int, m: int) -> tuple[Any, Any]:
    T = layer["positions"]
    A, B = sources[f"A{k}"], sources[f"B{k}"]
    if type(T) is not int or T < 1 or A.ndim != 2 or B.ndim != 2 or A.dtype != np.float64 or B.dtype != np.float64:
        raise NotProved(f"the factors of layer {k} are none")
    if A.shape[0] != n * T or B.shape[0] != m * n * T or 0 in A.shape or 0 in B.shape:
        raise NotProved(f"the factors of layer {k} do not fit {n} samples, {m} outputs and {T} positions")
    return A.reshape(n, T, -1), B.reshape(m, n, T, -1)


def _add(gram: Any, A: Any, B: Any) -> tuple[int, int, float]:
    """Add a layer's share, rows i m + j; return its roundings and additions, and the relative error of columns."""
    m, n, T, b = B.shape
    a = A.shape[2]
    if T == 1:
        rows = np.ascontiguousarray(B[:, :, 0].transpose(1, 0, 2)).reshape(n * m, b)
        inner = A[:, 0] @ A[:, 0].T
        for i in range(n):
            block = slice(i * m, (i + 1) * m)
            gram[block] += (rows[block] @ rows.T) * np.repeat(inner[i], m)[None, :]
        return a + b + 1, 1, 0.0
    step = max(1, _WIDTH // b)
    starts = range(0, a, step)
    for start in starts:
        part = (B.transpose(1, 0, 3, 2) @ A[:, None, :, start : start + step]).reshape(n * m, -1)
        gram += part @ part.T
    # T more: the columns that were formed are longer than those that are meant by (1 + T u) at most.
    return min(step, a) * b + T, len(starts), (T + 2) * _U * _ROOM


def _definite(gram: Any, noise: float, target: float) -> float:
    """Return a positive lower bound, >= target where possible, of the smallest eigenvalue, else NotProved.

    With C any lower triangular matrix and s a number, M = C C^T + s I + F + E, F the computed rest, E what rounding
    can have done: ``noise`` to the matrix, (n + 1) u |c_i||c_j| to C C^T, u |F| to the differences. C C^T is never
    negative.
    """
    n = gram.shape[0]
    size = float(np.trace(gram))
    shift = target + 1.2 * (noise + (n + 36) * _U * size)  # 36: what the roundings below take from a small matrix
    shifted = gram.copy()
    shifted.flat[:: n + 1] -= shift
    try:
        C = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        raise NotProved("the Gram matrix minus its shift is not definite in floating point") from None
    # Both triangles are compared: what was computed need not be symmetric to the last bit.
    rest = gram - C @ C.T
    rest.flat[:: n + 1] -= shift
    errors = noise + (n + 1) * _U * _length(C) ** 2 + n * n * _TINY
    errors += 2.0 * _U * (_length(rest) + math.sqrt(n) * shift)
    floor = (shift - (_length(rest) + errors) * _ROOM) * (1.0 - 2.0**-50)
    if not 0.0 < floor < math.inf:
        raise NotProved("the factorization of the Gram matrix, multiplied out, is too far from it")
    return float(floor)


def _length(x: Any) -> float:
    """Return an upper bound of the 2-norm of all entries."""
    return math.sqrt(float(np.vdot(x, x)) * (1.0 + 2.0 * (x.size + 2) * _U) + x.size * _TINY) * _ROOM
