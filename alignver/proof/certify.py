"""From what a step found to the certificate that states it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.proof.ball import Ball
from alignver.proof.certificate import Certificate, make, pack
from alignver.proof.exact import Combination, Profile
from alignver.proof.gram import FullRank
from alignver.proof.residual import Distance
from alignver.proof.rounding import FloatArray
from alignver.proof.structure import Conflict

__all__ = [
    "certify_conflict",
    "certify_distance",
    "certify_full_rank",
    "certify_minor",
    "certify_null_space",
    "certify_null_vector",
    "certify_primes",
    "certify_reduced",
    "certify_repeats",
    "certify_solution",
    "scaling_is_exact",
]

Inputs = Mapping[str, FloatArray]


def _ball(ball: Ball | None) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return constants and data that describe the ball."""
    if ball is None:
        return {}, {}
    if ball.norm is not None:
        return {"ball": {"kind": "norm", "value": ball.norm}}, {}
    if isinstance(ball.entrywise, np.ndarray):
        return {"ball": {"kind": "entrywise", "value": None}}, {"ball_radii": ball.entrywise}
    return {"ball": {"kind": "entrywise", "value": ball.entrywise}}, {}


def scaling_is_exact(matrix: FloatArray, exponents: npt.NDArray[np.int64]) -> bool:
    """Whether scaling the rows by powers of two loses nothing to underflow: what a re-check with a ball
    insists on.
    """
    with np.errstate(all="ignore"):
        return bool(np.all(np.ldexp(np.ldexp(matrix, exponents[:, None]), -exponents[:, None]) == matrix))


def certify_full_rank(
    claim: str, inputs: Inputs, side: str, full: FullRank, ball: Ball | None, rank: int | None = None
) -> Certificate:
    """Full rank from the Gram matrix or a right inverse; the inverse is stored only where a ball needs it."""
    constants, data = _ball(ball)
    assert full.exponents is not None
    data["scaling"] = full.exponents
    if full.factor is not None and ball is not None:
        data["right_inverse"] = full.factor
    if full.columns is not None:
        data["columns"] = full.columns
    constants |= {**full.constants, "side": side}
    if rank is not None:
        constants["rank"] = rank
    return make(claim, "gram" if full.factor is None else "right inverse", inputs, data, constants)


def certify_distance(inputs: Inputs, found: Distance, ball: Ball | None) -> Certificate:
    """Non-membership from full column rank and a residual."""
    constants, data = _ball(ball)
    full = found.full
    assert full is not None
    if ball is not None:
        assert full.exponents is not None
        assert found.beta is not None
        data |= {"scaling": full.exponents, "beta": found.beta}
        if full.factor is not None:
            data["right_inverse"] = full.factor
    return make("non-membership", "residual", inputs, data, {**constants, **full.constants, **found.constants})


def certify_conflict(inputs: Inputs, conflict: Conflict) -> Certificate:
    """Non-membership from a null vector of one or two floats."""
    ratios = [weight.as_integer_ratio() for weight in conflict.weights]
    numerators = [numerator for numerator, _ in ratios]
    exponents = np.array([1 - denominator.bit_length() for _, denominator in ratios], dtype=np.int64)
    data = {
        "support": np.array(conflict.rows, dtype=np.int64),
        "exponents": exponents,
        **pack("w", numerators),
    }
    return make("non-membership", "null vector", inputs, data, {"found": conflict.kind})


def certify_null_vector(inputs: Inputs, w: Combination, exponents: npt.NDArray[np.int64]) -> Certificate:
    """Non-membership from a rational null vector (Fredholm's alternative); ``exponents`` are those of all
    rows.
    """
    support = np.array(w.support, dtype=np.int64)
    data = {"support": support, "exponents": exponents[support], **pack("w", w.numerators)}
    return make("non-membership", "null vector", inputs, data, {"found": "exact"})


def certify_solution(
    inputs: Inputs, beta: Combination, exponents: npt.NDArray[np.int64], ball: Ball | None = None
) -> Certificate:
    """Membership from a rational solution; ``exponents`` are those of all columns."""
    support = np.array(beta.support, dtype=np.int64)
    packed = pack("beta", [*beta.numerators, beta.denominator])
    constants, data = _ball(ball)
    data |= {"support": support, "exponents": exponents[support], **packed}
    return make("membership", "solution", inputs, data, constants)


def certify_minor(claim: str, inputs: Inputs, minor: Profile, rank: int | None = None) -> Certificate:
    """A lower bound of the rank from a minor that is not zero modulo a prime."""
    data = {"rows": np.array(minor.rows, dtype=np.int64), "columns": np.array(minor.columns, dtype=np.int64)}
    constants: dict[str, Any] = {"prime": minor.prime, "order": minor.rank}
    return make(claim, "minor", inputs, data, constants if rank is None else {**constants, "rank": rank})


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
    data = {
        "own": np.array([vector.support[0] for vector in vectors], dtype=np.int64),
        "shared": np.array(shared, dtype=np.int64),
        "exponents": exponents,
        **pack("w", [value for vector in vectors for value in vector.numerators]),
    }
    return make(claim, "null space", inputs, data, {"side": "left" if left else "right", "rank": rank})


def certify_primes(claim: str, inputs: Inputs, most: int, used: Sequence[int], rank: int) -> Certificate:
    """An upper bound of the rank from ranks modulo primes whose product exceeds every larger minor."""
    data = {"primes": np.array(used, dtype=np.int64)}
    return make(claim, "primes", inputs, data, {"most": most, "rank": rank})


def certify_reduced(inputs: Inputs, repeated: Mapping[int, int], full: FullRank) -> Certificate:
    """Membership from full rank of the rows that remain when zero and repeated rows with the same targets are
    left out.
    """
    data = {
        "dropped": np.array(list(repeated), dtype=np.int64),
        "repeats": np.array(list(repeated.values()), dtype=np.int64),
    }
    return make("membership", "reduced", inputs, data, {"s_min": full.s_min})


def certify_repeats(claim: str, inputs: Inputs, repeated: Mapping[int, int], *, left: bool, rank: int) -> Certificate:
    """An upper bound of the rank from zero and repeated lines: null vectors with entries 1 and -1."""
    shared = sorted({line for line in repeated.values() if line >= 0})
    vectors = [
        Combination((own, *shared), (1, *(-1 if line == other else 0 for other in shared)), 1)
        for own, line in repeated.items()
    ]
    exponents = np.zeros(inputs["A"].shape[0 if left else 1], dtype=np.int64)
    return certify_null_space(claim, inputs, vectors, shared, exponents, left=left, rank=rank)
