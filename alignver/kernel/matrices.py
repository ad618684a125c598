r"""Claims about a matrix, or about every matrix in a ball around it: rank, membership, non-membership.

The claim ``factored-membership`` is about a Jacobian J that is given by layer factors: every matrix in a ball around it
has full row rank, so every target is in its column space. Layer s has inputs A (n, T, a) and output gradients B
(m, n, T, b); its columns of J are :math:`\sum_t b_{jit} a_{it}^\top` in row i m + j, sample by sample. With one
position its contribution to :math:`J J^\top` is computed from the factors, with several its columns are formed, tile by
tile.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from alignver.kernel import exact
from alignver.kernel.certificate import Certificate, Inputs, unpack
from alignver.kernel.exact import (
    equal,
    exponents,
    floats,
    independent_modulo,
    indices,
    nonzero,
    number,
    power,
    rank_modulo,
    residues,
    small_primes,
    sqrt_down,
)
from alignver.kernel.failure import NotProved, require
from alignver.kernel.floats import (
    OMEGA,
    Run,
    definite_floor,
    gamma,
    gram_floor,
    inverse_floor,
    lengths_up,
    norm_down,
    norm_up,
    product_error,
    spectral_up,
)


def _full_rank(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """Every matrix in the ball has full rank: by definiteness, by a right inverse, or modulo a prime."""
    A = inputs["A"] if "A" in inputs else inputs["J"]
    side = certificate.constants["side"]
    wide = A if side == "rows" else np.ascontiguousarray(A.T)
    require(side in ("rows", "columns"), "the claim names neither rows nor columns")
    require(wide.shape[0] <= wide.shape[1], "a matrix cannot have more independent rows than columns")
    sentence = _conclude_lower(certificate, A, min(A.shape))
    top, stated = power(int(exponents(certificate.data["scaling"], wide.shape[0]).max())), _states(certificate, "s_min")
    in_ball = certificate.constants.get("ball") is not None
    radius = ball_radius(certificate, wide.shape, side == "columns") if in_ball else Fraction(0)
    claimed = number(certificate.constants, "s_min") * top if stated else Fraction(0)
    try:
        floor, how = _singular_floor(certificate, wide, max(radius, claimed), run)
        require(floor > radius, "s_min is not proved to exceed the radius of the ball")
        require(floor >= claimed, "s_min is not proved to be as large as claimed")
    except NotProved:
        if in_ball or stated:
            raise
        how = f"full rank modulo {independent_modulo(wide, wide.shape[0], 'the matrix')}"
    return f"{sentence}{', throughout the ball' if in_ball else ''} ({how})"


def _states(certificate: Certificate, name: str) -> bool:
    """Whether a number is part of the claim, which it is not in format 1."""
    return certificate.version != 1 and name in certificate.constants


def _scaled(certificate: Certificate, wide: Any) -> Any:
    """Return the matrix with its rows multiplied by powers of two, which must be exact."""
    powers = exponents(certificate.data["scaling"], wide.shape[0])[:, None]
    matrix = wide * np.ldexp(1.0, powers)
    require(equal(matrix * np.ldexp(1.0, -powers), wide), "the scaling is not exact on this matrix")
    return matrix


def _singular_floor(certificate: Certificate, wide: Any, target: Fraction | None, run: Run) -> tuple[Fraction, str]:
    """Return a lower bound of the smallest singular value of the scaled matrix, and the method in words.

    ``target`` is the bound that the claim needs; None stands for the largest possible bound. The certificate may select
    columns, since s_min(A) is at least that of some of its columns.
    """
    matrix = _scaled(certificate, wide)
    columns = certificate.data.get("columns")
    if columns is not None:
        matrix = np.ascontiguousarray(matrix[:, indices(columns, matrix.shape[1])])
    if certificate.method != "gram" and "right_inverse" in certificate.data:
        return inverse_floor(matrix, certificate.data["right_inverse"], target), "a right inverse was multiplied out"
    # The largest possible bound is the shift that the producer proved.
    goal = number(certificate.constants, "shift") if target is None else target**2
    return exact.sqrt_down(gram_floor(matrix, goal, run)), "a factorization of A A^T was multiplied out"


def require_ball(certificate: Certificate, inputs: Inputs) -> None:
    """Require that a ball is one, also of a method that holds for every matrix and does not read it."""
    ball = certificate.constants["ball"]
    require(ball["kind"] in ("norm", "entrywise"), "an unknown kind of ball")
    if ball["kind"] == "norm" or ball["value"] is not None:
        number(ball, "value")
    else:
        radii = floats(certificate.data["ball_radii"], inputs["A" if "A" in inputs else "J"].shape, "radii of the ball")
        require(bool(np.all(radii >= 0)), "a negative radius")


def ball_radius(certificate: Certificate, shape: tuple[int, ...], transposed: bool) -> Fraction:
    r"""Bound :math:`\|D E\|_2` over the ball, D = diag(2^e) the scaling of the rows.

    A norm bound is multiplied by the largest power; one radius r for all entries gives the rank-one matrix
    :math:`r\,2^{e_i}`, whose norm is :math:`r (d \sum_i 4^{e_i})^{1/2}`; a matrix of radii R has
    :math:`\|D E\|_2 \le \|D R\|_2`, bounded by :func:`~alignver.kernel.floats.spectral_up`.
    """
    ball, powers = certificate.constants["ball"], exponents(certificate.data["scaling"], shape[0])
    top = int(powers.max())
    if ball["kind"] == "norm":
        return number(ball, "value") * power(top)
    if ball["value"] is not None:
        squares = sum((power(2 * e) for e in powers.tolist()), Fraction(0))
        return number(ball, "value") * exact.sqrt_up(Fraction(shape[1] * squares))
    radii = certificate.data["ball_radii"]
    radii = radii.T if transposed else radii
    # Relative to the largest power nothing overflows; the error of an underflow is at most 2^-1075.
    scaled = np.ldexp(radii, (powers - top)[:, None])
    radius: Fraction = (spectral_up(scaled) + scaled.size * power(-1074)) * power(top)
    return radius


def _minor(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """A minor that does not vanish: the rank is at least its order."""
    A = inputs["A"] if "A" in inputs else inputs["J"]
    rows, columns = (indices(certificate.data[name], size) for name, size in zip(("rows", "columns"), A.shape))
    require(len(rows) == len(columns), "the minor is not square")
    p = independent_modulo(A[np.ix_(rows, columns)], len(rows), "the minor") if rows else 0
    return _conclude_lower(certificate, A, len(rows)) + f" (a minor of order {len(rows)} is not zero modulo {p})"


def _conclude_lower(certificate: Certificate, A: Any, order: int) -> str:
    """Return the reason if ``rank >= order`` proves the claim, else raise NotProved."""
    claim = certificate.claim
    if claim == "membership" and order == A.shape[0]:
        return "J has full row rank, so every y is in its column space"
    if claim == "rank" and order == min(A.shape) == _rank(certificate):
        return f"the rank is {order}"
    proves = claim == "not-rank" and order > _rank(certificate)
    require(proves, f"a rank of at least {order} does not prove the claim")
    return f"the rank is at least {order}, more than {_rank(certificate)}"


def _conclude_upper(certificate: Certificate, A: Any, most: int) -> str:
    """Return the reason if ``rank <= most`` proves the claim, with a proof of the lower bound if needed."""
    if certificate.claim == "not-rank" and most < _rank(certificate):
        return f"the rank is at most {most}, less than {_rank(certificate)}"
    if certificate.claim == "rank" and most == _rank(certificate):
        if most:
            independent_modulo(A, most, "A")
        return f"the rank is {most}"
    raise NotProved(f"a rank of at most {most} does not prove the claim")


def _rank(certificate: Certificate) -> int:
    rank: int = certificate.constants["rank"]
    require(type(rank) is int and rank >= 0, "the claimed rank is not a number")
    return rank


def _reduced(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """The dropped rows are zero or equal to remaining rows, targets included; the remaining rows are independent."""
    J, y = inputs["J"], inputs["y"]
    dropped = indices(certificate.data["dropped"], len(y))
    repeats = certificate.data["repeats"]
    require(repeats.dtype == np.int64 and repeats.shape == (len(dropped),), "the repeats do not match the dropped rows")
    remains = np.ones(len(y), dtype=bool)
    remains[dropped] = False
    for i, j in zip(dropped, repeats.tolist(), strict=True):
        if j == -1:
            same = not nonzero(J[i]).any() and not nonzero(y[i : i + 1]).any()
        else:
            same = 0 <= j < len(y) and bool(remains[j]) and equal(J[i], J[j]) and equal(y[i : i + 1], y[j : j + 1])
        require(same, f"row {i} does not repeat row {j} and its target")
    rest = J[remains]
    p = independent_modulo(rest, len(rest), "the matrix without repeated rows") if len(rest) else 0
    return f"the {len(rest)} rows without repetitions are independent (modulo {p})"


def _shape(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """The rank never exceeds the smaller dimension, for every matrix of the shape and so for every ball."""
    rows, columns = inputs["A"].shape
    require(_rank(certificate) > min(rows, columns), "the shape does not prove the claim")
    return f"no {rows} by {columns} matrix has rank {_rank(certificate)}"


def _primes(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    r"""Ranks of at most r modulo primes whose product exceeds every minor of order r + 1 as an integer.

    With :math:`A_{ij} = b_{ij}\,2^{r_i + c_j}` in integers b, a minor of order r + 1 is an integer times a power of
    two, at most the product of the r + 1 largest of :math:`(d \max_j b_{ij}^2)^{1/2}` (Hadamard).
    """
    A = inputs["A"]
    most = certificate.constants["most"]
    require(type(most) is int and 0 <= most < min(A.shape), "the bound of the rank is not a number")
    bound = math.prod(sorted(_row_squares(A), reverse=True)[: most + 1])
    product = 1
    for p in small_primes():
        require(rank_modulo(residues(A, p), p) <= most, f"the rank exceeds {most}")
        product *= p
        if product * product > bound:
            return _conclude_upper(certificate, A, most)
    raise NotProved("the primes below 2^21 are not enough")


def _row_squares(A: Any) -> list[int]:
    """Return d max_j b_ij^2 for each row, b the integers after division by powers of two for rows and columns."""
    m, e = exact.integers(A)
    here = m != 0
    odd = np.where(here, m & -m, 1)
    e = e + np.frexp(odd.astype(np.float64))[1] - 1
    m = np.abs(m) // odd
    far = 1 << 20
    columns = np.min(np.where(here, e, far), axis=0)
    e = np.where(here, e - columns, far)
    shifts = np.where(here, e - e.min(axis=1, keepdims=True), 0)
    lengths = np.where(here, shifts + np.frexp(m.astype(np.float64))[1], 0).max(axis=1)
    return [A.shape[1] << 2 * int(length) for length in lengths]


def _solution(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """J beta = y, entry by entry, with beta = numerators 2^exponents / denominator; for a ball only beta = 0."""
    J, y = inputs["J"], inputs["y"]
    support = indices(certificate.data["support"], J.shape[1])
    require(not support or certificate.constants.get("ball") is None, "a solution applies to the given matrix only")
    *numerators, denominator = unpack(certificate.data, "beta", len(support) + 1)
    require(denominator != 0, "the denominator of beta is zero")
    powers = exponents(certificate.data["exponents"], len(support)).tolist()
    # J beta - y, times the denominator, with y as one more column.
    lines = np.vstack([J[:, support].T, y])
    differences, _ = exact.combination(lines, [*numerators, -denominator], [*powers, 0])
    require(not any(differences), "J beta differs from y")
    return f"J beta = y holds exactly, with {len(support)} coefficients"


def _null_vector(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """w^T J = 0 and w^T y != 0 (Fredholm alternative)."""
    J, y = inputs["J"], inputs["y"]
    support = indices(certificate.data["support"], J.shape[0])
    weights = unpack(certificate.data, "w", len(support))
    powers = exponents(certificate.data["exponents"], len(support)).tolist()
    lines = np.column_stack([J[support], y[support]])
    *products, target = exact.combination(lines, weights, powers)[0]
    require(not any(products), "w^T J is not zero")
    require(target != 0, "w^T y is zero")
    return f"w^T J = 0 and w^T y != 0 hold exactly, with {len(support)} weights"


def _null_space(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """Null vectors, each non-zero at an index where the others are zero: the other indices bound the rank."""
    A = inputs["A"]
    lines = A if certificate.constants["side"] == "left" else np.ascontiguousarray(A.T)
    first = indices(certificate.data["own"], lines.shape[0])
    shared = indices(certificate.data["shared"], lines.shape[0])
    require(not (set(first) & set(shared)), "index sets that overlap")
    width = 1 + len(shared)
    weights = unpack(certificate.data, "w", width * len(first))
    powers = exponents(certificate.data["exponents"], lines.shape[0])
    for k, line in enumerate(first):
        vector = weights[k * width : (k + 1) * width]
        require(vector[0] != 0, "a null vector is zero at its leading index")
        terms = [(index, value) for index, value in zip([line, *shared], vector, strict=True) if value]
        support = [index for index, _ in terms]
        sums, _ = exact.combination(lines[support], [value for _, value in terms], powers[support].tolist())
        require(not any(sums), f"vector {k} is not a null vector")
    return _conclude_upper(certificate, A, lines.shape[0] - len(first)) + f" ({len(first)} independent null vectors)"


def _outside(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    r"""The distance from y to the column space is positive throughout the ball, or as large as claimed.

    For the given matrix alone, without a claimed distance: rank [J y] = d + 1 exceeds the rank of d columns.
    Otherwise, with any beta, :math:`r = y - J\beta` and a ball of radius delta,

    .. math:: \mathrm{dist} \ge \|r\| - \delta\|\beta\|
              - \frac{\|J^\top r\| + \delta \|r\| + (\|J\| + \delta)\,\delta\,\|\beta\|}{s_{\min}(J) - \delta} .

    The error of the computed residual, of d + 1 products, is at most
    :math:`\gamma_{d+1} (\|y\| + \|J\|_F \|\beta\|) + n (d+1)\,\omega`.
    """
    J, y = inputs["J"], inputs["y"]
    n, d = J.shape
    require(n > d, "a distance needs more rows than columns")
    in_ball, stated = certificate.constants.get("ball") is not None, _states(certificate, "distance")
    if not in_ball and not stated:
        p = independent_modulo(np.column_stack([J, y]), d + 1, "J with y as one more column")
        return f"J has {d} columns, and with y beside them the rank is {d + 1} (modulo {p})"
    wide = np.ascontiguousarray(J.T)
    delta = ball_radius(certificate, wide.shape, True) if in_ball else Fraction(0)
    floor, _ = _singular_floor(certificate, wide, None, run)
    require(floor > delta, "the columns are not proved to be independent throughout the ball")
    matrix = np.ascontiguousarray(_scaled(certificate, wide).T)
    beta = floats(certificate.data["beta"], (d,), "beta")
    scale = -math.frexp(float(np.abs(y).max()))[1]
    target = np.ldexp(y, scale)  # the error of an underflow is at most 2^-1075
    # Any beta is valid: underflow here changes the size of the bound, not its validity.
    beta = np.ldexp(beta, scale - exponents(certificate.data["scaling"], d))
    residual = target - matrix @ beta
    size, length = norm_up(matrix), norm_up(beta)
    error = product_error(d + 1, Fraction(1), norm_up(target) + size * length, n) + n * power(-1074)
    longest = norm_up(residual) + error
    slope = norm_up(matrix.T @ residual) + product_error(n, size, norm_up(residual), d) + size * error
    moved = delta * length
    absorbed = (slope + delta * longest + (size + delta) * moved) / (floor - delta)
    distance = norm_down(residual) - error - moved - absorbed
    require(distance > 0, "the residual is not large enough for the columns and the ball")
    claimed = number(certificate.constants, "distance") if stated else Fraction(0)
    require(distance >= claimed * power(scale), "the distance is not proved to be as large as claimed")
    return "the distance from y to the column space is positive" + (" throughout the ball" if in_ball else "")


IN_A_BALL = {"gram", "right inverse", "residual", "solution", "shape", "factored gram"}
"""Methods that can prove a claim about every matrix in a ball; the others are about the given matrix."""

_FAR = 2.0**400  # products of factors below it do not overflow
_WIDTH = 256  # approximate number of columns formed at once


def _full_row_rank(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    r"""Every matrix in the ball around the one given by the factors has full row rank, so y is in its column space.

    Let p_s be the vector of :math:`\sum_t \|a_{it}\| \|b_{jit}\|`. The sum of the magnitudes of the products in entry
    (k, l) of a contribution is at most :math:`p_{sk} p_{sl}` (Cauchy and Schwarz), and each undergoes at most R
    roundings, so the error of the Gram matrix is at most :math:`\gamma_R \sum_s \|p_s\|^2` in norm. The error of formed
    columns is at most :math:`\gamma_T \|p_s\|` in norm, which is subtracted from the smallest singular value.
    """
    constants = certificate.constants
    n, m, layers = constants["samples"], constants["outputs"], constants["layers"]
    require(all(type(size) is int and size >= 1 for size in (n, m)), "the samples or outputs are not numbers")
    require(inputs["y"].shape == (n * m,), "y does not have one entry for each sample and output")
    powers = exponents(certificate.data["scaling"], n * m)
    scale = np.ldexp(1.0, powers).reshape(m, n)
    sources = {**certificate.data, **inputs}
    names = {f"{letter}{k}" for k in range(len(layers)) for letter in "AB"}
    require(set(inputs) in ({"y"}, {"y", *names}), "the inputs are neither all factors nor none")
    factors: list[tuple[Any, Any]] = []
    size, lost, most, additions, columns, terms = Fraction(0), Fraction(0), 0, 0, 0, 0
    for k, layer in enumerate(layers):
        A, B = _factors(sources, k, layer, n, m)
        B = np.ascontiguousarray((B * scale[:, :, None, None]).transpose(1, 0, 2, 3))
        require(all(float(np.abs(x).max()) < _FAR for x in (A, B)), f"the factors of layer {k} are too large")
        T, a, b = A.shape[1], A.shape[2], B.shape[3]
        # T + 1 more roundings: the products of lengths, and their sum.
        share = norm_up(np.einsum("it,ijt->ij", lengths_up(A), lengths_up(B))) / (1 - gamma(T + 1)) + n * m * T * OMEGA
        size += share**2
        if T > 1:
            # The bound of the size covers that formed columns may be longer than the exact ones.
            lost += gamma(T) * share
        group = max(1, _WIDTH // b)  # inputs of which the columns are formed at once
        most = max(most, (a + b + 1 if T == 1 else min(group, a) * b) + 2 * T)
        additions += 1 if T == 1 else -(-a // group)
        factors.append((A, B.reshape(n * m, T, b)))
        columns, terms = columns + a * b, terms + (a + b) * T * T
        lost += n * m * a * b * T * OMEGA * power(400)  # underflow in the scaling of B, times A
    require(columns >= n * m, "there are fewer columns than rows")
    # Inner products of a and b terms lose a omega and b omega, and are below b 2^800 and a 2^800.
    noise = gamma(most + additions) * size + (n * m) ** 2 * terms**2 * OMEGA * power(804)
    top = power(int(powers.max()))
    radius, claimed = number(constants["ball"], "value"), number(constants, "s_min")
    require(constants["ball"]["kind"] == "norm", "an unknown kind of ball")
    target = (max(radius, claimed) * top + lost) ** 2
    eigenvalue = definite_floor(partial(factored_tile, factors), n * m, size + noise, noise, target, run)
    floor = (sqrt_down(eigenvalue) - lost) / top
    require(floor > radius, "s_min is not proved to exceed the radius of the ball")
    require(floor >= claimed, "s_min is not proved to be as large as claimed")
    whose = "given" if set(inputs) > {"y"} else "in the certificate"
    return f"{n * m} independent rows throughout the ball: the Gram matrix of the factors {whose} was factored again"


def _factors(sources: Inputs, k: int, layer: Any, n: int, m: int) -> tuple[Any, Any]:
    T = layer["positions"]
    A, B = sources[f"A{k}"], sources[f"B{k}"]
    require(type(T) is int and T >= 1 and A.size > 0 and B.size > 0, f"layer {k} has no positions or factors")
    floats(A, (n * T, A.shape[-1]), f"inputs of layer {k}")
    floats(B, (m * n * T, B.shape[-1]), f"gradients of layer {k}")
    return A.reshape(n, T, -1), B.reshape(m, n, T, -1)


def factored_tile(factors: list[tuple[Any, Any]], rows: slice, columns: slice) -> Any:
    """Return entries of the Gram matrix of the rows with factors A (n, T, a) and B (n m, T, b), sample by sample."""
    gram = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
    for A, B in factors:
        i, k = (np.arange(side.start, side.stop) // (len(B) // len(A)) for side in (rows, columns))
        if B.shape[1] == 1:
            inner = A[i[0] : i[-1] + 1, 0] @ A[k[0] : k[-1] + 1, 0].T
            gram += (B[rows, 0] @ B[columns, 0].T) * inner[i - i[0]][:, k - k[0]]
            continue
        step = max(1, _WIDTH // B.shape[2])
        for part in (A[:, :, start : start + step] for start in range(0, A.shape[2], step)):
            left, right = (B[side].transpose(0, 2, 1) @ part[of] for side, of in ((rows, i), (columns, k)))
            gram += left.reshape(len(i), -1) @ right.reshape(len(k), -1).T
    return gram


_OF_RANK = {"gram": _full_rank, "right inverse": _full_rank, "minor": _minor, "null space": _null_space}
_OF_MEMBERS = {"gram": _full_rank, "right inverse": _full_rank, "minor": _minor, "reduced": _reduced}
METHODS = {(claim, name): method for claim in ("rank", "not-rank") for name, method in _OF_RANK.items()}
METHODS |= {("membership", name): method for name, method in _OF_MEMBERS.items()}
METHODS |= {("rank", "primes"): _primes, ("not-rank", "primes"): _primes, ("not-rank", "shape"): _shape}
METHODS |= {("membership", "solution"): _solution, ("non-membership", "null vector"): _null_vector}
METHODS |= {("non-membership", "residual"): _outside, ("factored-membership", "factored gram"): _full_row_rank}
