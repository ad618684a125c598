"""Certificates about given gates, checked again: a factor of the Gram matrix, however it was made, is multiplied out.

The factor comes from the producer's routine, or from a folder, or from anywhere: with C lower triangular and s a
number, A = C C^T + s I + F + E gives lambda_min(A) >= s - ||F|| - ||E|| since C C^T is never negative. F is computed
here tile by tile and E bounded: |E| <= (b + K + 2) u |c_i||c_j| for products summed over K tile columns of b, (m + h
+ 3) u of the diagonal for the assembly. The gates are computed by another formula, (1 + tanh(x/2)) / 2 or e^x / (1 +
e^x), from the library's functions, which are taken to be good to 2^-40.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alignver.phi.cholesky import factor_tiles
from alignver.phi.hadamard import ScaledGram
from alignver.phi.recheck_rows import identify
from alignver.phi.rows import Rows
from alignver.phi.tiles import MemoryStore
from alignver.progress import track
from alignver.proof.certificate import Certificate
from alignver.proof.recheck.failure import NotProved
from alignver.proof.rounding import shown_down

__all__ = ["full_rank", "gram"]

_U = 2.0**-53
_TINY = 2.0**-1022
_ROOM = 1.0 + 2.0**-30
_LIBRARY = 2.0**-40  # relative error of exp and of the quotient made of it
_TILE = 1024


def gram(certificate: Certificate, rows: Rows) -> str:
    """phi of the given gates has full row rank: its Gram matrix is definite."""
    constants = certificate.constants
    gates = certificate.data["gates"]
    if gates.shape != (rows.m, constants["width"]) or not bool(np.all(np.isfinite(gates))):
        raise NotProved("q has another shape")
    Z = np.empty((rows.n, rows.m))

    def visit(start: int, block: Any) -> None:
        Z[start : start + len(block)] = block

    identify(certificate, rows, visit)
    delta, claimed = float(constants["delta"]), float(constants["s_min"])
    if not 0.0 <= delta < math.inf or not 0.0 < claimed < math.inf:
        raise NotProved("the radius or the bound is none")
    weights = certificate.data.get("weights")
    bound = full_rank(Z, gates, weights, delta, float(constants["scaled_s_min"]), claimed)
    least = shown_down(bound)
    return f"phi(q) has rank {rows.n}, s_min(phi) >= {least}: a factorization of phi phi^T was multiplied out"


def full_rank(Z: Any, gates: Any, weights: Any, delta: float, scaled_s_min: float, claimed: float) -> float:
    """Return a proved lower bound of s_min(phi), at least ``claimed``; NotProved where there is none.

    A producer claims a fifth of what it has proved: by these other bounds less may come out.
    """
    scaled, moved = _scaled(Z, gates, weights, delta)
    # Rows are scaled to within a factor of two of the producer's: so are the singular values.
    floor = _floor(scaled, 0.45 * scaled_s_min + moved)
    smallest = math.sqrt(max(floor, 0.0)) * (1.0 - 2.0**-50) - moved * _ROOM
    bound = math.ldexp(smallest, -int(scaled.exponents.max())) * (1.0 - 2.0**-50)
    if not smallest > 0.0 or not bound >= claimed:
        raise NotProved("the smallest singular value of phi is not bounded away from zero again")
    return bound


def _scaled(Z: Any, q: Any, weights: Any, delta: float) -> tuple[ScaledGram, float]:
    n, m = Z.shape
    h = q.shape[1]
    x = Z @ q
    power = np.exp(-np.abs(x))
    S = np.where(x >= 0, 1.0, power) / (1.0 + power)
    if weights is not None:
        if weights.shape != (h,):
            raise NotProved("the weights have another shape")
        S *= weights
    size = np.sqrt((Z * Z).sum(axis=1)) * (1.0 + 2.0 * (m + 4) * _U) + m * 2.0**-500
    gate = float(np.sqrt((q * q).sum(axis=0)).max()) * (1.0 + 2.0 * (m + 4) * _U)
    lengths = np.sqrt((S * S).sum(axis=1)) * (1.0 + 2.0 * (h + 4) * _U) + h * 2.0**-500
    argument = (m + 1) * _U * float(size.max()) * gate * _ROOM + delta * gate * _ROOM
    if not argument < 0.1:
        raise NotProved("the gates are not known well enough")
    relative = (2.0 * argument + 2.0 * _LIBRARY) * _ROOM
    products = lengths * size
    if not bool(np.all((products > 2.0**-400) & (products < 2.0**400))):
        raise NotProved("a row of phi is too large or too small")
    exponents = -np.frexp(products)[1].astype(np.int64)
    T = np.ldexp(S, exponents[:, None])
    units = np.ldexp(products, exponents)
    move = 1.01 * relative * units + 1.01 * delta * np.ldexp(lengths, exponents)
    tiny = (
        2.0**-550 * n * h * (1.0 + float(size.max())) * (1.0 if weights is None else 1.0 + float(np.abs(weights).max()))
    )
    moved = float(np.sqrt((move * move).sum())) * (1.0 + 2.0 * (n + 4) * _U) * _ROOM + tiny
    trace = float((units * units).sum()) * (1.0 + 2.0 * (n + 4) * _U) * _ROOM
    largest = float((units * units).max()) * _ROOM
    error = (m + h + 3) * _U * trace * _ROOM + n * (m + h + 4) * 2.0**-500
    return ScaledGram(Z, T, exponents, trace, largest, error, moved), moved


def _floor(gram: ScaledGram, target: float) -> float:
    n = gram.Z.shape[0]
    tile = min(_TILE, n)
    count = -(-n // tile)
    depth = (tile + count + 2) * _U
    shift = target * target + gram.error + 2.0 * depth * gram.trace
    store = MemoryStore()
    if factor_tiles(gram, shift, tile, store) is not None:
        raise NotProved("phi phi^T minus its shift is not definite in floating point")
    square, length = 0.0, 0.0
    for j in track(range(count), "multiplying out"):
        columns = slice(j * tile, min((j + 1) * tile, n))
        own = np.tril(store[j][: columns.stop - columns.start])
        length += float((own * own).sum()) + float((store[j][columns.stop - columns.start :] ** 2).sum())
        for i in range(j, count):
            rows = slice(i * tile, min((i + 1) * tile, n))
            rest = gram.tile(rows, columns)
            if i == j:
                rest.flat[:: rest.shape[1] + 1] -= shift
            for k in range(j + 1):
                left = store[k][rows.start - k * tile : rows.stop - k * tile]
                right = store[k][columns.start - k * tile : columns.stop - k * tile]
                if k == j:
                    right = own
                    left = own if i == j else left
                rest -= left @ right.T
            square += float((rest * rest).sum()) * (1 if i == j else 2)
    room = (1.0 + 4.0 * (tile + 8) * _U) * _ROOM
    remainder = math.sqrt(square) * room
    # The differences round by u of what they give: at most u (|A| + |C||C^T|) each of the K + 1 times, counted in
    # depth.
    errors = (gram.error + depth * (length * room + gram.trace) + n * n * tile * _TINY) * _ROOM
    floor = float(shift - (remainder + errors) * _ROOM)
    if not (0.0 < floor < math.inf):
        raise NotProved("the factorization of phi phi^T, multiplied out, is too far from it")
    return floor
