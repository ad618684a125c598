"""Consistent inputs: the checked entries are the hashed ones, by a copy or by the digests of the first reading.

Another thread or process may write to an array or a file during a check. Arrays are copied, hashed and not read again.
Rows that are too large for a second copy in memory are read again when needed, and each must then have the digest of
the pass that identified all rows.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from alignver.kernel.certificate import Certificate
from alignver.kernel.failure import demand, require
from alignver.kernel.machine import require_ieee
from alignver.results import Frozen, plain

MOST_COPIED = 1 << 30
"""Size of rows in bytes up to which a copy is made; for larger ones, digests of the rows are stored."""

_BLOCK_BYTES = 1 << 26  # of float64 rows in memory at a time in one pass
_FLOATS = ("float16", "float32", "float64")


def frozen(certificate: Certificate) -> Certificate:
    """Return a private copy: arrays are copied, the rest is converted to plain data."""
    mappings = (certificate.data, certificate.constants, certificate.inputs, *certificate.inputs.values())
    words = (certificate.claim, certificate.method, certificate.seal)
    if not all(isinstance(part, Mapping) for part in mappings) or not all(isinstance(word, str) for word in words):
        raise TypeError("parts of a certificate of the wrong kind")
    data = {name: np.array(array, order="C", copy=True) for name, array in certificate.data.items()}
    constants, inputs = plain(dict(certificate.constants)), plain(dict(certificate.inputs))
    return dataclasses.replace(certificate, data=Frozen(data), constants=constants, inputs=inputs)


def real(value: Any, name: str, dimensions: int) -> Any:
    """Return a private float64 copy of an array of finite real numbers, each exactly representable in float64.

    Raises
    ------
    InvalidInput
        If the array has another dtype or number of dimensions, is empty, or contains NaN or Inf.
    """
    array = np.array(value, order="C", copy=True)
    array = array[:, None] if name == "Y" and array.ndim == 1 else array  # one target for each sample
    known = array.dtype.name in _FLOATS or array.dtype.kind in "iub"
    demand(known, name, f"dtype {array.dtype}", "float16, float32, float64, integers or bool")
    fits = array.ndim == dimensions and array.size > 0
    demand(fits, name, f"shape {array.shape}", f"{dimensions} dimensions, not empty")
    exactly = array.dtype.kind not in "iu" or -(2**53) <= int(array.min()) <= int(array.max()) <= 2**53
    demand(exactly, name, "integers beyond 2**53", "integers that float64 represents exactly")
    array = array.astype(np.float64, copy=False)
    demand(bool(np.isfinite(array).all()), name, "NaN or Inf", "finite entries")
    return array


class Rows:
    """The rows z_i: one pass over all rows, then reads of some rows, which must be the same as in the first pass.

    Parameters
    ----------
    source : array, or an object that can be indexed like one
        Has ``shape`` (n, k) and ``dtype`` float16, float32 or float64; slices and index arrays of rows give arrays.
    added : bool
        Append the constant 1 to every row.

    Attributes
    ----------
    n, m, stored : int
        Number of rows, of columns with the added constant, and of columns without it.
    source
        The object to read from.

    Raises
    ------
    InvalidInput
        If the source is not a matrix of floats, or rows have changed since they were first read.
    """

    def __init__(self, source: Any, added: bool) -> None:
        kind = str(source.dtype)
        matrix = len(source.shape) == 2 and all(source.shape) and kind in _FLOATS
        demand(matrix, "Z", f"{kind} of shape {tuple(source.shape)}", "a matrix of floats, not empty")
        self.n, self.stored = (int(size) for size in source.shape)
        self.m, self.dtype, self.added = self.stored + added, kind, added
        self.source = source
        self._copy: Any = None  # of all rows after the first pass, or
        self._digests: list[bytes] | None = None  # of each row

    def blocks(self, track: Any, label: str) -> Iterator[tuple[int, Any]]:
        """Yield (start, float64 rows) as stored, a bounded number at a time; the first pass determines them."""
        small = self.n * self.stored * np.dtype(self.dtype).itemsize <= MOST_COPIED
        first = self._copy is None and self._digests is None
        copy = np.empty((self.n, self.stored), dtype=self.dtype) if first and small else None
        digests: list[bytes] = []
        step = max(_BLOCK_BYTES // (8 * self.m), 1)
        for start in track(range(0, self.n, step), label):
            place = slice(start, min(start + step, self.n))
            rows = self.raw(place, None if copy is None else copy[place])
            if first and copy is None:
                digests += [_digest(row) for row in rows]
            yield start, np.ascontiguousarray(rows, dtype=np.float64)
        if copy is not None:
            self._copy = copy
        elif first:
            self._digests = digests

    def raw(self, which: Any, rows: Any = None) -> Any:
        """Return rows as they are stored, by a slice (start, stop) or an array of indices; do not modify them."""
        if self._copy is not None:
            return self._copy[which]
        count = which.stop - which.start if isinstance(which, slice) else len(which)
        read = np.asarray(self.source[which])
        demand(read.shape == (count, self.stored), "Z", f"{read.shape} for {count} rows", "all requested rows")
        rows = np.empty(read.shape, dtype=self.dtype) if rows is None else rows
        np.copyto(rows, read, casting="unsafe")
        if self._digests is not None:
            indices = range(which.start, which.stop) if isinstance(which, slice) else which.tolist()
            same = all(_digest(row) == self._digests[index] for row, index in zip(rows, indices, strict=True))
            demand(same, "Z", "rows that changed while they were read", "rows that are not modified meanwhile")
        return rows

    def take(self, indices: Any) -> Any:
        """Return the rows with these indices, in this order, as float64; do not modify them."""
        return self.complete(self.raw(indices))

    def read(self, start: int, stop: int) -> Any:
        """Return rows ``start`` to ``stop`` as float64; do not modify them."""
        return self.complete(self.raw(slice(start, stop)))

    def identify(self, certificate: Certificate, track: Any, visit: Callable[[int, Any], None] | None = None) -> None:
        """Pass over all rows, ``visit`` each block, and require finite entries, the constant and the sealed digest."""
        content = hashlib.sha256(f"<f8 {(self.n, self.stored)}".encode())
        # Hashing releases the interpreter lock: it runs in parallel, one block behind; the end of the pool waits for
        # it.
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            waiting = None
            for start, stored in self.blocks(track, "reading Z"):
                if waiting is not None:
                    waiting.result()
                waiting = beside.submit(content.update, stored.data.cast("B"))
                require(bool(np.isfinite(stored).all()), f"rows from {start} on are not finite")
                require(self.added or bool(np.all(stored[:, -1] == 1.0)), f"rows from {start} on do not end with 1")
                if visit is not None:
                    visit(start, self.complete(stored))
        require_ieee(threaded=True)  # the source may have changed the arithmetic
        actual = {"sha256": content.hexdigest(), "shape": (self.n, self.stored), "dtype": "<f8"}
        same = dict(certificate.inputs.get("Z", {})) == actual and certificate.constants["rank"] == self.n
        require(same, "Z is not the input that this certificate is about: their digests differ")

    def complete(self, rows: Any) -> Any:
        """Return stored rows as float64, with the added constant."""
        if not self.added:
            return rows.astype(np.float64, copy=False)
        whole = np.empty((len(rows), self.m))
        whole[:, :-1], whole[:, -1] = rows, 1.0
        return whole


def _digest(row: Any) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).data.cast("B"), digest_size=16).digest()
