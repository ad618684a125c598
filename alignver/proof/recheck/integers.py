"""Solutions and null vectors checked as identities between integers: Python's own arithmetic, no library, no
rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignver.proof.certificate import Certificate, unpack
from alignver.proof.recheck.failure import NotProved
from alignver.proof.recheck.modular import conclude_upper

__all__ = ["null_space", "null_vector", "solution"]

_FAR = 1 << 14  # exponents of weights beyond this come from no matrix of floats


def _split(x: Any) -> tuple[list[Any], list[Any]]:
    """Return integers and exponents with x = integer 2^exponent, of a vector or matrix."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(fraction, 53).astype(np.int64).tolist(), (exponent.astype(np.int64) - 53).tolist()


def _indices(value: Any, size: int) -> list[int]:
    if value.ndim != 1 or value.dtype != np.int64 or len(set(value.tolist())) != value.size:
        raise NotProved("an index set that is none")
    if value.size and not 0 <= int(value.min()) <= int(value.max()) < size:
        raise NotProved("an index out of range")
    return [int(k) for k in value]


def _exponents(value: Any, count: int) -> list[int]:
    if value.dtype != np.int64 or value.shape != (count,) or bool(np.any((value > _FAR) | (value < -_FAR))):
        raise NotProved("exponents out of range")
    return [int(k) for k in value]


def combination(
    lines: tuple[list[Any], list[Any]], numbers: Sequence[int], exponents: Sequence[int]
) -> list[tuple[int, int]]:
    """Return sum_k numbers_k 2^exponents_k lines_k exactly, as (integer, exponent) for every entry."""
    mantissas, powers = lines
    length = len(mantissas[0]) if mantissas else 0
    if not mantissas:
        return []
    low = min(min(row) for row in powers) + min(exponents)
    total = [0] * length
    for row, powers_of_row, number, exponent in zip(mantissas, powers, numbers, exponents, strict=True):
        base = exponent - low
        for j, (m, e) in enumerate(zip(row, powers_of_row, strict=True)):
            if m:
                total[j] += (m * number) << (e + base)
    return [(value, low) for value in total]


def _equal(left: tuple[int, int], right: tuple[int, int]) -> bool:
    (a, e), (b, f) = left, right
    low = min(e, f)
    return a << (e - low) == b << (f - low)


def solution(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """J beta = y, entry by entry, with beta = numerators 2^exponents / denominator."""
    J, y = inputs["J"], inputs["y"]
    support = _indices(certificate.data["support"], J.shape[1])
    if certificate.claim != "membership" or (support and certificate.constants.get("ball") is not None):
        raise NotProved("a solution proves membership, and unless it is zero for the given matrix only")
    *numerators, denominator = unpack(certificate.data, "beta")
    if len(numerators) != len(support) or denominator == 0:
        raise NotProved("beta is incomplete")
    exponents = _exponents(certificate.data["exponents"], len(support))
    columns = _split(np.ascontiguousarray(J[:, support].T)) if support else ([], [])
    sums = combination(columns, numerators, exponents) or [(0, 0)] * len(y)
    for i, (value, m, e) in enumerate(zip(sums, *_split(y), strict=True)):
        if not _equal(value, (m * denominator, e)):
            raise NotProved(f"J beta differs from y in row {i}")
    return f"J beta = y holds exactly, with {len(support)} coefficients"


def null_vector(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """w^T J = 0 and w^T y != 0 (Fredholm's alternative)."""
    if certificate.claim != "non-membership" or certificate.constants.get("ball") is not None:
        raise NotProved("a null vector proves non-membership for the given matrix only")
    J, y = inputs["J"], inputs["y"]
    support = _indices(certificate.data["support"], J.shape[0])
    weights = unpack(certificate.data, "w")
    exponents = _exponents(certificate.data["exponents"], len(support))
    if not support or len(weights) != len(support):
        raise NotProved("w is incomplete")
    if any(value for value, _ in combination(_split(J[support]), weights, exponents)):
        raise NotProved("w^T J is not zero")
    if combination(_split(y[support, None]), weights, exponents)[0][0] == 0:
        raise NotProved("w^T y is zero")
    return f"w^T J = 0 and w^T y != 0 hold exactly, with {len(support)} weights"


def null_space(certificate: Certificate, inputs: Mapping[str, Any]) -> str:
    """Null vectors, each with an index of its own where it is not zero and all others are: the rank is at
    most the rest.
    """
    if certificate.constants.get("ball") is not None:
        raise NotProved("null vectors say nothing about a ball")
    A = inputs["A"]
    left = certificate.constants["side"] == "left"
    lines = A if left else np.ascontiguousarray(A.T)
    own = _indices(certificate.data["own"], lines.shape[0])
    shared = _indices(certificate.data["shared"], lines.shape[0])
    if set(own) & set(shared):
        raise NotProved("index sets that overlap")
    weights = unpack(certificate.data, "w")
    width = 1 + len(shared)
    if len(weights) != width * len(own):
        raise NotProved("the null vectors are incomplete")
    exponents = _exponents(certificate.data["exponents"], lines.shape[0])
    for k, line in enumerate(own):
        vector = weights[k * width : (k + 1) * width]
        if vector[0] == 0:
            raise NotProved("a null vector is zero at its own index")
        support = [index for index, value in zip([line, *shared], vector, strict=True) if value]
        values = [value for value in vector if value]
        if any(value for value, _ in combination(_split(lines[support]), values, [exponents[i] for i in support])):
            raise NotProved(f"null vector {k} is none")
    return conclude_upper(certificate, A, lines.shape[0] - len(own)) + f" ({len(own)} independent null vectors)"
