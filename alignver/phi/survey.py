"""One pass over the rows: are they finite, is the constant there, what identifies them, how do they project?"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.errors import InvalidInput
from alignver.phi.rows import Rows
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    add_up,
    gamma,
    mul_up,
    norm_up,
    sqrt_up,
    square_sums_up,
)

__all__ = ["Survey", "directions", "survey"]

_SAMPLE = 512  # rows: a spread estimated from them is within a few per cent, and any direction is admissible


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass over the rows found.

    Attributes
    ----------
    record : mapping
        Digest, shape and dtype of the rows as float64 without an added constant: what a certificate identifies them by.
    squares : (n,) float64
        Upper bounds of the squared norms of the rows.
    directions : (m, k) float64
        The directions that were projected on.
    projections : (n, k) float64
        Computed products of every row with every direction.
    errors : (k,) float64
        Upper bounds of what any projection on that direction is wrong by.
    """

    record: dict[str, Any]
    squares: FloatArray
    directions: FloatArray
    projections: FloatArray
    errors: FloatArray


def directions(rows: Rows, count: int, seed: int) -> FloatArray:
    """Return random directions v (m, count), each feature weighted by one over its spread, with v_m = 0.

    Any direction is admissible. The weights make the result independent of the units of the features.
    """
    sample = rows.take(np.linspace(0, rows.n - 1, min(rows.n, _SAMPLE)).astype(np.int64))
    with np.errstate(all="ignore"):
        spread = sample.std(axis=0)
        weights = np.where((spread > 2.0**-500) & (spread < 2.0**500), 1.0 / spread, 0.0)
    weights[-1] = 0.0
    if not np.any(weights):
        weights[:-1] = 1.0
    source = np.random.default_rng(seed)
    V: FloatArray = source.standard_normal((rows.m, count)) * weights[:, None] / np.sqrt(rows.m)
    return V


def survey(rows: Rows, V: FloatArray) -> Survey:
    r"""Validate all rows and project them on the directions ``V`` (m, k), whose last entries are zero.

    A computed projection errs by at most :math:`\gamma_m \|z_i\| \|v\| + m \omega` (Higham 2002, eq. (3.5), then Cauchy
    and Schwarz), whatever the order of summation.

    Raises
    ------
    InvalidInput
        NaN, Inf or a last entry that is not 1, named by row.
    """
    n, m = rows.n, rows.m
    projections, squares = np.empty((n, V.shape[1])), np.empty(n)
    content = hashlib.sha256(f"<f8 {(n, rows.stored)}".encode())
    # Hashing is as slow as all the rest and lets go of the interpreter: it runs beside it, in order.
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        hashed: concurrent.futures.Future[None] | None = None
        for start, block in rows.passes("reading Z"):
            bare = np.ascontiguousarray(block[:, : rows.stored])
            if hashed is not None:
                hashed.result()
            hashed = beside.submit(content.update, bare.data.cast("B"))
            stop = start + block.shape[0]
            squares[start:stop] = square_sums_up(block, 1)
            if not bool(np.all(np.isfinite(squares[start:stop]))):
                _blame(block, start)
            if rows.m > rows.stored or bool(np.all(block[:, -1] == 1.0)):
                projections[start:stop] = block @ V
            else:
                _no_constant(rows, block, start)
        if hashed is not None:
            hashed.result()
    longest = sqrt_up(float(squares.max()))
    sizes = [norm_up(np.ascontiguousarray(v)) for v in V.T]
    errors = np.array([add_up(mul_up(gamma(m), longest, size), mul_up(float(m), OMEGA)) for size in sizes])
    record = {"sha256": content.hexdigest(), "shape": [n, rows.stored], "dtype": "<f8"}
    return Survey(record, squares, V, projections, errors)


def _blame(block: FloatArray, start: int) -> None:
    """Name the first entry that is no number; nothing can be proved about a row whose square overflows."""
    bad = ~np.isfinite(block)
    if bad.any():
        i, j = (int(k[0]) for k in np.nonzero(bad))
        raise InvalidInput("Z", f"{float(block[i, j])} at {(start + i, j)}", "finite entries")
    i = int(np.argmax(np.abs(block).max(axis=1)))
    raise InvalidInput("Z", f"entries of {float(np.abs(block[i]).max()):.1e} in row {start + i}", "entries below 1e150")


def _no_constant(rows: Rows, block: FloatArray, start: int) -> None:
    i = int(np.argmax(block[:, -1] != 1.0))
    ones = np.flatnonzero(np.all(block == 1.0, axis=0))
    hint = f" (column {int(ones[0])} holds it: move it to the end)" if ones.size else ""
    raise InvalidInput(
        "Z",
        f"{float(block[i, -1]):.3g} in the last column, row {start + i}",
        f"the constant 1 as its last column, or add_constant=True{hint}",
    )


def digest_rows(rows: Rows) -> dict[str, Any]:
    """Return what identifies the rows, as :func:`survey` does, by a pass of its own."""
    content = hashlib.sha256(f"<f8 {(rows.n, rows.stored)}".encode())
    for _, block in rows.passes("identifying Z"):
        content.update(np.ascontiguousarray(block[:, : rows.stored]).tobytes())
    return {"sha256": content.hexdigest(), "shape": [rows.n, rows.stored], "dtype": "<f8"}


Indices = npt.NDArray[np.int64]
