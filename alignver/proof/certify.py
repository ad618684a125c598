"""Certificates: each function writes the one for the result of a proof method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.kernel.certificate import Certificate, pack, seal
from alignver.kernel.exact import FARTHEST, equal
from alignver.proof.cholesky import FullRank
from alignver.proof.decision import Ball
from alignver.proof.exact import Combination, Profile, mantissas
from alignver.proof.matrix_structure import Conflict
from alignver.proof.residual import Distance
from alignver.proof.rounding import FloatArray, mul_down

Inputs = Mapping[str, FloatArray]

_ROOM = 0.99  # the fraction of a proved bound that is stated: a check by other bounds proves slightly less
_MULTIPLIED = 1 << 26  # most products in an exact residual: seconds for FLINT


def _ball(ball: Ball | None) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the constants and data that describe the ball."""
    if ball is None:
        return {}, {}
    if ball.norm is not None:
        return {"ball": {"kind": "norm", "value": ball.norm}}, {}
    if isinstance(ball.entrywise, np.ndarray):
        return {"ball": {"kind": "entrywise", "value": None}}, {"ball_radii": ball.entrywise}
    return {"ball": {"kind": "entrywise", "value": ball.entrywise}}, {}


def scaling_is_exact(matrix: FloatArray, exponents: npt.NDArray[np.int64]) -> bool:
    """Whether scaling the rows by powers of two is exact; certificates with a bound or a ball require it."""
    if not exponents.any():
        return True
    with np.errstate(all="ignore"):
        return equal(np.ldexp(np.ldexp(matrix, exponents[:, None]), -exponents[:, None]), matrix)


def _integers(numbers: Sequence[int], exponents: npt.NDArray[np.int64]) -> tuple[list[int], int]:
    """Return integers and e with n 2^p = integer 2^e."""
    low = int(exponents.min(initial=0))
    return [value << (power - low) for value, power in zip(numbers, exponents.tolist(), strict=True)], low


def _folded(numbers: Sequence[int], exponents: npt.NDArray[np.int64]) -> tuple[list[int], npt.NDArray[np.int64], int]:
    """Return integers, exponents within the limits of certificates, and e with n 2^p = integer 2^(exponent + e)."""
    if not bool(np.any(np.abs(exponents) > FARTHEST)):
        return list(numbers), exponents, 0
    integers, low = _integers(numbers, exponents)
    return integers, 0 * exponents, low


def certify_full_rank(
    claim: str, inputs: Inputs, side: str, full: FullRank, ball: Ball | None, rank: int | None = None
) -> Certificate:
    """Full rank from the Gram matrix or a right inverse; a ball or a bound of s_min needs the stored right inverse.

    The bound of s_min is stated only if it can be checked: if the scaling is exact, and the right inverse small enough
    for an exact product.
    """
    constants, data = _ball(ball)
    assert full.exponents is not None
    A = inputs["A"] if "A" in inputs else inputs["J"]
    wide = A if side == "rows" else A.T
    stated = full.s_min > 0.0 and scaling_is_exact(wide, full.exponents)
    data["scaling"] = full.exponents
    if full.factor is not None:
        stated = stated and full.factor.size * wide.shape[0] <= _MULTIPLIED
        if ball is not None or stated:
            data["right_inverse"] = full.factor
    if full.columns is not None:
        data["columns"] = full.columns
    constants["side"] = side
    if full.factor is None:
        constants["shift"] = full.shift
    if stated:
        constants["s_min"] = mul_down(_ROOM, full.s_min)
    if rank is not None:
        constants["rank"] = rank
    return seal(claim, "gram" if full.factor is None else "right inverse", inputs, data, constants)


def certify_distance(inputs: Inputs, outcome: Distance, ball: Ball | None) -> Certificate:
    """Non-membership from full column rank and a residual, with the distance if it can be checked."""
    constants, data = _ball(ball)
    full, beta = outcome.full, outcome.beta
    assert full is not None
    assert full.exponents is not None
    small = full.factor is None or full.factor.size * full.factor.shape[1] <= _MULTIPLIED
    checked = beta is not None and bool(np.all(np.isfinite(beta))) and scaling_is_exact(inputs["J"].T, full.exponents)
    stated = outcome.stated > 0.0 and checked and small
    if beta is not None and (ball is not None or stated):
        data |= {"scaling": full.exponents, "beta": beta}
        if full.factor is not None:
            data["right_inverse"] = full.factor
        else:
            constants["shift"] = full.shift
    if stated:
        constants["distance"] = outcome.stated
    return seal("non-membership", "residual", inputs, data, constants)


def certify_conflict(inputs: Inputs, conflict: Conflict) -> Certificate:
    """Non-membership from a null vector of one or two floats."""
    numerators, exponents = mantissas(np.array(conflict.weights))
    weights, exponents, _ = _folded(numerators.tolist(), exponents)
    data = {"support": np.array(conflict.rows, dtype=np.int64), "exponents": exponents, **pack("w", weights)}
    return seal("non-membership", "null vector", inputs, data, {"found": conflict.kind})


def certify_null_vector(inputs: Inputs, w: Combination, exponents: npt.NDArray[np.int64]) -> Certificate:
    """Non-membership from a rational null vector (Fredholm alternative); ``exponents`` are those of all rows."""
    support = np.array(w.support, dtype=np.int64)
    weights, powers, _ = _folded(w.numerators, exponents[support])
    data = {"support": support, "exponents": powers, **pack("w", weights)}
    return seal("non-membership", "null vector", inputs, data, {"found": "exact"})


def certify_solution(
    inputs: Inputs, beta: Combination, exponents: npt.NDArray[np.int64], ball: Ball | None = None
) -> Certificate:
    """Membership from a rational solution; ``exponents`` are those of all columns."""
    support = np.array(beta.support, dtype=np.int64)
    numerators, powers, low = _folded(beta.numerators, exponents[support])
    numerators, denominator = [value << max(low, 0) for value in numerators], beta.denominator << max(-low, 0)
    constants, data = _ball(ball)
    data |= {"support": support, "exponents": powers, **pack("beta", [*numerators, denominator])}
    return seal("membership", "solution", inputs, data, constants)


def certify_minor(claim: str, inputs: Inputs, minor: Profile, rank: int | None = None) -> Certificate:
    """A lower bound of the rank from a minor that is not zero modulo a prime."""
    data = {"rows": np.array(minor.rows, dtype=np.int64), "columns": np.array(minor.columns, dtype=np.int64)}
    constants: dict[str, Any] = {"prime": minor.prime, "order": minor.rank}
    return seal(claim, "minor", inputs, data, constants if rank is None else {**constants, "rank": rank})


def certify_null_space(
    claim: str,
    inputs: Inputs,
    vectors: Sequence[Combination],
    shared: Sequence[int],
    exponents: npt.NDArray[np.int64],
    *,
    left: bool,
    rank: int,
) -> Certificate:
    """An upper bound of the rank from independent null vectors."""
    # All vectors share one list of exponents. If it exceeds the limits of certificates, the weights include it.
    far = bool(np.any(np.abs(exponents) > FARTHEST))
    weights: list[int] = []
    for vector in vectors:
        weights += _integers(vector.numerators, exponents[list(vector.support)])[0] if far else vector.numerators
    data = {
        "own": np.array([vector.support[0] for vector in vectors], dtype=np.int64),
        "shared": np.array(shared, dtype=np.int64),
        "exponents": 0 * exponents if far else exponents,
        **pack("w", weights),
    }
    return seal(claim, "null space", inputs, data, {"side": "left" if left else "right", "rank": rank})


def certify_primes(claim: str, inputs: Inputs, most: int, used: Sequence[int], rank: int) -> Certificate:
    """An upper bound of the rank from ranks modulo primes whose product exceeds every larger minor."""
    data = {"primes": np.array(used, dtype=np.int64)}
    return seal(claim, "primes", inputs, data, {"most": most, "rank": rank})


def certify_reduced(inputs: Inputs, repeated: Mapping[int, int]) -> Certificate:
    """Membership from full rank of the rows without zero rows and rows that repeat others, targets included."""
    data = {
        "dropped": np.array(list(repeated), dtype=np.int64),
        "repeats": np.array(list(repeated.values()), dtype=np.int64),
    }
    return seal("membership", "reduced", inputs, data, {})


def certify_repeats(claim: str, inputs: Inputs, repeated: Mapping[int, int], *, left: bool, rank: int) -> Certificate:
    """An upper bound of the rank from zero and repeated rows or columns: null vectors with entries 1 and -1."""
    shared = sorted({line for line in repeated.values() if line >= 0})
    vectors = [
        Combination((repeat, *shared), (1, *(-1 if line == other else 0 for other in shared)), 1)
        for repeat, line in repeated.items()
    ]
    exponents = np.zeros(inputs["A"].shape[0 if left else 1], dtype=np.int64)
    return certify_null_space(claim, inputs, vectors, shared, exponents, left=left, rank=rank)
