"""Certificates that claim anything about matrices of which everything is known: what the kernel must not believe.

Matrices have small integers or dyadic numbers times powers of two, from 2^-1074 to 2^1023, so that rank, membership and
the smallest singular value are decided in rationals. Claims about data are decided pair by pair, their losses in
rationals or 40 digits. A forgery is a well-sealed certificate with data that an enemy would choose: those of a proof of
something near, numbers at the edge, exponents at the limits, records of another dtype.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from alignver.errors import InvalidInput
from alignver.kernel import Certificate, seal
from alignver.kernel.certificate import LOSSES, pack
from alignver.kernel.data import canonical, digests_of, record_of
from alignver.kernel.exact import small_primes

__all__ = ["Forgery", "distance_squared", "exact", "exceeds", "exceeds_not", "forgeries", "rank_of"]

FULL_RANK = ("gram", "right inverse")
PRIMES = tuple(itertools.islice(small_primes(), 2))
EDGES = (0.0, 5e-324, 2.0**-1022, 2.0**-600, 1e-17, 1e-9, 0.5, 1.0, 2.0, 1e9, 1e150, 1.7e308)


@dataclasses.dataclass(frozen=True)
class Forgery:
    """A certificate, the inputs that it is about, and whether its claim is true."""

    certificate: Certificate
    inputs: dict[str, np.ndarray]
    true: bool
    kind: str


def exact(A: np.ndarray) -> list[list[Fraction]]:
    """Return the entries as rationals."""
    return [[Fraction(v) for v in row] for row in np.atleast_2d(A).tolist()]


def rank_of(rows: list[list[Fraction]]) -> int:
    """Return the rank, by elimination in rationals."""
    rows, rank = [list(row) for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] / rows[rank][column]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank


def exceeds(A: np.ndarray, s: Fraction) -> bool:
    """Whether the smallest of the min(N, d) singular values is more than ``s``: A A^T - s^2 I has positive pivots."""
    rows = exact(A if A.shape[0] <= A.shape[1] else A.T)
    M = [[sum((a * b for a, b in zip(p, q, strict=True)), Fraction(0)) for q in rows] for p in rows]
    for k in range(len(M)):
        M[k][k] -= s * s
        # Pivots so far were positive: eliminate below.
    for k in range(len(M)):
        if M[k][k] <= 0:
            return False
        for i in range(k + 1, len(M)):
            factor = M[i][k] / M[k][k]
            M[i] = [a - factor * b for a, b in zip(M[i], M[k], strict=True)]
    return True


def _matrix(rng: np.random.Generator) -> np.ndarray:
    n, d = (int(v) for v in rng.integers(1, 5, 2))
    kind = rng.integers(7)
    if kind == 6:  # what vanishes modulo the primes that are tried first
        A = np.eye(n, d)
        A[0, 0] = float(PRIMES[0] * PRIMES[1])
        return A
    if kind == 0:
        A = rng.integers(-3, 4, (n, d)).astype(float)
    elif kind == 1:
        r = int(rng.integers(0, min(n, d) + 1))
        A = rng.integers(-2, 3, (n, r)).astype(float) @ rng.integers(-2, 3, (r, d)).astype(float)
    elif kind == 2:
        A = np.eye(n, d) * 2.0 ** rng.integers(-30, 31, (n, 1))
    elif kind == 3:
        A = rng.integers(-(2**20), 2**20, (n, d)) / 2.0 ** rng.integers(0, 40, (n, d))
    elif kind == 4:
        A = rng.integers(-2, 3, (n, d)).astype(float)
        A[rng.integers(n)] = np.nextafter(A[rng.integers(n)], np.inf)
    else:
        A = np.eye(n, d)[rng.permutation(n)] + rng.integers(0, 2, (n, d)) * 2.0**-52
    with np.errstate(all="ignore"):
        scale = int(rng.choice([0, 0, 0, -1060, -1000, -500, 500, 990, int(rng.integers(-1070, 990))]))
        A = np.ldexp(A, scale)
        if rng.random() < 0.3:
            A = np.ldexp(A, rng.integers(-400, 401, (n, 1)))
        if rng.random() < 0.2:
            A = np.ldexp(A, rng.integers(-400, 401, (1, d)))
    return A if np.all(np.isfinite(A)) else np.nan_to_num(A, nan=1.0, posinf=2.0**1000, neginf=-(2.0**1000))


def _radius(rng: np.random.Generator, A: np.ndarray) -> float:
    """Return a radius: of an edge, near the smallest singular value, of the size of the matrix, anywhere."""
    with np.errstate(all="ignore"):
        e = int(np.frexp(np.abs(A).max())[1])
        unit = np.ldexp(A, -e)
        levels = np.linalg.svd(unit, compute_uv=False)
        near = float(levels[-1]) * float(rng.choice([0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 1 + 1e-3, 2.0, 1e3]))
        choice = rng.integers(4)
        if choice == 0:
            return float(rng.choice(EDGES))
        if choice == 1:
            return float(min(np.ldexp(near, e), 1.7e308))
        if choice == 2:
            return float(min(np.ldexp(float(rng.choice([0.1, 1.0, 3.0, 100.0])), e), 1.7e308))
        return float(np.ldexp(rng.random() + 0.5, int(rng.integers(-1074, 1023))))


def _scaling(rng: np.random.Generator, A: np.ndarray) -> np.ndarray:
    """Return exponents: of a producer, zeros, at the limits, any."""
    n = A.shape[0]
    choice = rng.integers(5)
    with np.errstate(all="ignore"):
        exponents = -np.frexp(np.abs(A).max(axis=1))[1].astype(np.int64)
    if choice == 0:
        return np.zeros(n, dtype=np.int64)
    if choice == 1:
        return np.clip(exponents, -1000, 1000)
    if choice == 2:
        return np.full(n, int(rng.choice([-1000, 1000, -999, 500, -540])), dtype=np.int64)
    if choice == 3:
        return np.clip(exponents + rng.integers(-30, 31), -1000, 1000)
    return rng.integers(-1000, 1001, n)


def _inverse(rng: np.random.Generator, wide: np.ndarray, scaling: np.ndarray) -> np.ndarray:
    """Return a right inverse of the scaled matrix, or what looks like one."""
    n, d = wide.shape
    with np.errstate(all="ignore"):
        scaled = np.ldexp(wide, scaling[:, None])
        # LAPACK may loop for ever over infinite entries.
        X = np.linalg.pinv(scaled) if np.all(np.isfinite(scaled)) else np.eye(d, n)
        X = X * float(rng.choice([1.0, 1.0, 0.999, 1e-3, 1e3, 2.0**-600, 2.0**600])) + rng.choice([0.0, 0.0, 1e-9])
    return X if X.shape == (d, n) and np.all(np.isfinite(X)) else np.eye(d, n)


def _full_rank(rng: np.random.Generator, A: np.ndarray) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield data and constants that say: full rank, of all of a ball, with a bound of s_min."""
    rows = bool(rng.random() < 0.5) if rng.random() < 0.2 else A.shape[0] <= A.shape[1]
    wide = np.ascontiguousarray(A if rows else A.T)
    data: dict[str, Any] = {"scaling": _scaling(rng, wide)}
    constants: dict[str, Any] = {"side": "rows" if rows else "columns", "shift": float(rng.choice(EDGES))}
    if rng.random() < 0.75:
        kind = str(rng.choice(["norm", "entrywise", "matrix"]))
        value = _radius(rng, A)
        if kind == "matrix":
            data["ball_radii"] = np.full(A.shape, value) * (rng.random(A.shape) < 0.7)
        constants["ball"] = {
            "kind": "norm" if kind == "norm" else "entrywise",
            "value": None if kind == "matrix" else value,
        }
    if rng.random() < 0.5:
        constants["s_min"] = _radius(rng, A)
    if rng.random() < 0.5:
        data["right_inverse"] = _inverse(rng, wide, data["scaling"])
    if rng.random() < 0.1:
        data["columns"] = rng.permutation(wide.shape[1])[: max(1, wide.shape[0])]
    yield str(rng.choice(FULL_RANK)), data, constants


def _holds_in_ball(A: np.ndarray, constants: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether every matrix of the ball has full rank, where that can be told; True where it cannot.

    In a spectral ball iff the radius is less than s_min. An entrywise ball of one radius contains the spectral ball of
    that radius, and of a matrix of radii the one of its smallest entry.
    """
    ball = constants.get("ball")
    if ball is None:
        return rank_of(exact(A)) == min(A.shape)
    radius = Fraction(ball["value"]) if ball["value"] is not None else Fraction(float(data["ball_radii"].min()))
    return exceeds(A, radius)


def _rank_forgery(rng: np.random.Generator) -> Iterator[Forgery]:
    A = _matrix(rng)
    true_rank = rank_of(exact(A))
    claimed = int(rng.integers(0, min(A.shape) + 1))
    inputs = {"A": A}
    for method, data, constants in _full_rank(rng, A):
        full = _holds_in_ball(A, constants, data)
        stated = "s_min" not in constants or not exceeds_not(A, Fraction(constants["s_min"]))
        for claim, rank in (("rank", min(A.shape)), ("not-rank", claimed)):
            holds = (
                full
                if claim == "rank"
                else (full and claimed != min(A.shape)) or ("ball" not in constants and claimed != true_rank)
            )
            yield Forgery(
                seal(claim, method, inputs, data, {**constants, "rank": rank}), inputs, holds and stated, method
            )
    size = int(rng.integers(0, min(A.shape) + 1))
    minor = {"rows": rng.permutation(A.shape[0])[:size], "columns": rng.permutation(A.shape[1])[:size]}
    weights = {
        "own": np.array([0]), "shared": np.arange(1, A.shape[0]), "exponents": rng.integers(-1000, 1001, A.shape[0]),
        **pack("w", [int(v) for v in rng.integers(-2, 3, A.shape[0])]),
    }  # fmt: skip
    most = int(rng.integers(0, min(A.shape)))
    for method, data, more in (
        ("minor", minor, {}), ("null space", weights, {"side": "left"}),
        ("primes", {}, {"most": most}), ("shape", {}, {}),
    ):  # fmt: skip
        for claim, rank in (("rank", claimed), ("not-rank", claimed), ("rank", most)):
            if method == "shape" and claim == "rank":
                continue
            holds = (true_rank == rank) == (claim == "rank")
            yield Forgery(seal(claim, method, inputs, data, {**more, "rank": rank}), inputs, holds, method)


def exceeds_not(A: np.ndarray, s: Fraction) -> bool:
    """Whether the smallest singular value is less than ``s``."""
    if s == 0:
        return False
    return not exceeds(A, s * (1 - Fraction(1, 2**200)))


def _membership_forgery(rng: np.random.Generator) -> Iterator[Forgery]:
    J = _matrix(rng)
    n, d = J.shape
    with np.errstate(all="ignore"):
        y = [J @ rng.integers(-1, 2, d), rng.integers(-2, 3, n).astype(float), np.zeros(n), np.eye(n)[0] * 5e-324][
            rng.integers(4)
        ]
    if not np.all(np.isfinite(y)):
        y = np.ones(n)
    inside = rank_of(exact(J)) == rank_of(exact(np.column_stack([J, y])))
    inputs = {"J": J, "y": y}
    for method, data, constants in _full_rank(rng, J):
        in_ball = _holds_in_ball(J, constants, data) and n <= d
        holds = in_ball or (("ball" not in constants) and inside) or not y.any()
        stated = "s_min" not in constants or not exceeds_not(J, Fraction(constants["s_min"]))
        yield Forgery(seal("membership", method, inputs, data, constants), inputs, holds and stated, method)
        away = {key: value for key, value in constants.items() if key != "s_min"}
        if rng.random() < 0.5:
            away["distance"] = float(rng.choice(EDGES))
        beta = {"beta": rng.choice([0.0, 1.0, 2.0**500, 5e-324], d)}
        outside = not inside and (
            n > d or "ball" not in constants
        )  # in a ball only matrices with more rows than columns
        radius = constants.get("ball", {}).get("value", 0.0)
        if outside and radius:
            # y is at most ||y|| from any column space, and a ball that reaches so far from any column contains it.
            outside = not (n <= d or (Fraction(radius) ** 2 >= sum(Fraction(v) ** 2 for v in y.tolist()) and False))
            outside = exceeds(J, Fraction(radius)) if n > d else False
        if "distance" in away and outside:
            outside = Fraction(away["distance"]) ** 2 <= distance_squared(J, y)
        yield Forgery(seal("non-membership", "residual", inputs, {**data, **beta}, away), inputs, outside, "residual")
    support = np.sort(rng.permutation(d)[: int(rng.integers(0, d + 1))])
    beta = {"support": support, "exponents": rng.integers(-1000, 1001, len(support)) * int(rng.random() < 0.5)}
    numbers = pack(
        "beta", [*(int(v) for v in rng.integers(-2, 3, len(support))), int(rng.choice([1, 1, 2, -1, 2**300]))]
    )
    yield Forgery(seal("membership", "solution", inputs, {**beta, **numbers}, {}), inputs, inside, "solution")
    rows = np.sort(rng.permutation(n)[: int(rng.integers(0, n + 1))])
    w = {"support": rows, "exponents": rng.integers(-1000, 1001, len(rows)) * int(rng.random() < 0.5)}
    numbers = pack("w", [int(v) for v in rng.integers(-2, 3, len(rows))])
    yield Forgery(
        seal("non-membership", "null vector", inputs, {**w, **numbers}, {}), inputs, not inside, "null vector"
    )
    minor = {"rows": rng.permutation(n), "columns": rng.permutation(d)[:n]}
    yield Forgery(seal("membership", "minor", inputs, minor, {}), inputs, inside, "minor")
    if n > 1:
        data = {"dropped": np.array([1]), "repeats": np.array([int(rng.choice([0, -1]))])}
        yield Forgery(seal("membership", "reduced", inputs, data, {}), inputs, inside, "reduced")


def distance_squared(J: np.ndarray, y: np.ndarray) -> Fraction:
    """Squared distance of y from the column space of J, of Gram determinants: det [J y]^T [J y] / det J^T J."""
    columns = [list(column) for column in zip(*exact(J), strict=True)]
    basis: list[list[Fraction]] = []
    for column in [*columns, [Fraction(v) for v in y.tolist()]]:
        rest = list(column)
        for b in basis:
            factor = sum((p * q for p, q in zip(rest, b, strict=True)), Fraction(0)) / sum(
                (q * q for q in b), Fraction(0)
            )
            rest = [p - factor * q for p, q in zip(rest, b, strict=True)]
        last = rest
        if any(rest):
            basis.append(rest)
    return sum((v * v for v in last), Fraction(0))


ROWS = {
    "<f8": (0.0, -0.0, 1.0, 1.0 + 2.0**-52, 1.0 + 2.0**-30, 5e-324, 0.25, -1.0, 256.0, 1e300),
    "<f4": (0.0, -0.0, 1.0, 1.0 + 2.0**-23, 5e-324, 2.0**-149, 1.0 + 2.0**-52, 256.0),
    "<f2": (0.0, -0.0, 1.0, 1.0 + 2.0**-30, 256.0, 5e-324),
    "|u1": (0.0, 1.0, 255.0, 256.0, 0.25, -1.0),
    "|b1": (0.0, 1.0, 2.0, 0.25),
    "<i8": (0.0, 1.0, 2.0**53, -(2.0**63), 2.0**63, 0.5),
}


def _forms(rng: np.random.Generator) -> tuple[np.ndarray, str, dict[str, Any]]:
    """Return rows, a dtype to compare them in, and a record: of these rows, or of what a careless cast makes."""
    kind = str(rng.choice(list(ROWS)))
    few = rng.choice(np.array(ROWS[kind]), 3)  # so that rows repeat
    X = rng.choice(few, (int(rng.integers(2, 6)), int(rng.integers(1, 3))))
    try:
        rows = canonical(X, kind)
    except InvalidInput:
        with np.errstate(all="ignore"):
            rows = X.astype(kind)
    return X, kind, record_of(digests_of(rows), X.shape, kind)


def _equal_in(X: np.ndarray, kind: str, i: int, j: int) -> bool:
    """Whether two rows are equal, as numbers, after the rounding that the sentence of the claim names."""
    if kind in ("<f2", "<f4"):
        X = X.astype(kind)
    return bool(X[i].tolist() == X[j].tolist())


def least_losses(groups: list[list[int]], Y: np.ndarray, loss: str) -> Any:
    """Return the sum of the least losses of groups of equal inputs: in rationals, or in the digits of mpmath."""
    total = Fraction(0) if loss == "squared" else mpmath.mpf(0)
    for group in groups:
        columns = [[Fraction(v) for v in column] for column in Y[group].T.tolist()]
        k = len(group)
        if loss == "squared":
            total += sum(sum(v * v for v in column) - sum(column) ** 2 / k for column in columns)
            continue
        sums = [sum(column, Fraction(0)) for column in columns]
        splits = [(s, k - s) for s in sums] if loss == "binary_cross_entropy" else [tuple(sums)]
        if loss == "cross_entropy" and Y.shape[1] == 1:
            splits = [tuple(Fraction(columns[0].count(label)) for label in set(columns[0]))]
        for split in splits:
            parts = [mpmath.mpf(part.numerator) / part.denominator for part in split if part]
            total += sum(part * mpmath.log(sum(parts) / part) for part in parts)
    return total


def _data_forgery(rng: np.random.Generator) -> Iterator[Forgery]:
    X, kind, record = _forms(rng)
    n = len(X)
    groups: list[list[int]] = []
    for i in range(n):
        group = next((group for group in groups if _equal_in(X, kind, group[0], i)), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    loss = str(rng.choice(LOSSES))
    choices = [np.eye(2)[rng.integers(0, 2, n)], rng.choice([0.0, 0.5, 1.0, 2.0**-60], (n, 2))]
    Y = [*choices, rng.integers(0, 2, (n, 1)).astype(float)][rng.integers(3)]
    if loss == "cross_entropy" and Y.shape[1] == 1:
        Y = np.floor(Y)
    pairs = list(itertools.combinations(range(n), 2))
    equal = {(i, j) for i, j in pairs if _equal_in(X, kind, i, j)}
    conflicts = {(i, j) for i, j in equal if Y[i].tolist() != Y[j].tolist()}
    with mpmath.workdps(40):
        exact = least_losses(groups, Y, loss) / n
        share = float(rng.choice([0.0, 1 - 2.0**-20, 1 + 2.0**-20, 2.0]))
        floor = min(float(exact) * share, sys.float_info.max)
        stated = mpmath.mpf(floor) <= exact if loss != "squared" else Fraction(floor) <= exact
    rank = len(groups) + int(rng.choice([0, 0, 0, 1, -1]))
    errors = int(rng.choice([0, 0, 1, n]))
    hard = bool(np.all(np.isin(Y, (0.0, 1.0)))) and loss != "squared"
    hard = hard and (loss == "binary_cross_entropy" or Y.shape[1] == 1 or bool(np.all(Y.sum(axis=1) == 1.0)))
    fewest = 0
    for group in groups:
        counts = [Y[group].sum(axis=0)] if loss == "cross_entropy" and Y.shape[1] > 1 else []
        counts = counts or [np.array([column.sum(), len(group) - column.sum()]) for column in Y[group].T]
        fewest += sum(int(count.sum() - count.max()) for count in counts)
    known = errors <= (fewest if hard else 0)
    constants = {"rank": rank, "loss": loss, "floor": floor, "errors": errors}
    i, j = pairs[rng.integers(len(pairs))]
    inputs, given = {"X": record, "Y": Y}, {"X": X, "Y": Y}
    counted = rank == len(groups)
    bounds = counted and bool(stated) and known
    rows = {"rows": np.array([i, j])}
    alone: tuple[dict[str, Any], dict[str, np.ndarray]] = ({"X": record}, {"X": X})
    yield Forgery(seal("distinct", "digests", alone[0], {}, {"rank": rank}), alone[1], counted, "distinct")
    consistent = seal("consistent", "digests", inputs, {}, constants)
    yield Forgery(consistent, given, bounds and not conflicts, "consistent")
    conflicting = seal("conflicting", "digests", inputs, rows, constants)
    yield Forgery(conflicting, given, bounds and (i, j) in conflicts, "conflicting")


def forgeries(seed: int, rounds: int) -> Iterator[Forgery]:
    """Yield the forgeries of ``rounds`` matrices for rank, as many for membership, about 20 for each, and of data."""
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        yield from _rank_forgery(rng)
        yield from _membership_forgery(rng)
        yield from _data_forgery(rng)
