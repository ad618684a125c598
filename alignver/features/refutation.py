r"""Proofs that no gates of a width give phi(q) rank n, each with a witness.

* Count: phi has h m columns, so its rank is below n if h m < n.
* Equal rows: z_i = z_j makes rows i and j of phi equal for every q. Equal inputs make z_i = z_j for every theta.
* Columns: rank phi <= h rank Z, as phi = [diag(S_1) Z, ..., diag(S_h) Z], so its rank is below n if h rank(Z) < n.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.features.rows import Rows, RowScan
from alignver.kernel import Certificate, seal
from alignver.progress import stage
from alignver.proof import prove_rank
from alignver.results import Verdict, plain

_EXACT_ENTRIES = 2_000_000  # largest size of Z for an exact rank: beyond it that takes minutes
_EXACT_SECONDS = 20.0
_MOST_TIED = 200_000  # largest number of rows with equal projections that are compared


@dataclasses.dataclass(frozen=True)
class Refutation:
    """Why Assumption 4 fails at these features.

    Attributes
    ----------
    reason : str
        A sentence.
    witness : dict
        Plain data for a re-check.
    certificate : Certificate
    """

    reason: str
    witness: dict[str, Any]
    certificate: Certificate


def by_count(n: int, m: int, width: int, record: dict[str, Any], added: bool) -> Refutation | None:
    """Refute a width if ``width * m < n``."""
    if width * m >= n:
        return None
    constants = {"rank": n, "width": width, "add_constant": added}
    certificate = seal("no-exploration", "count", {"Z": record}, {}, constants)
    reason = f"width {width} times {m} features is {width * m} columns, fewer than {n} samples"
    return Refutation(reason, {"kind": "count", "width": width, "features": m, "samples": n}, certificate)


def by_equal_rows(rows: Rows, scan: RowScan, width: int) -> Refutation | None:
    """Search for equal rows of Z among the rows whose projections agree up to rounding."""
    values = scan.projections[:, 0]
    order = np.argsort(values, kind="stable")
    tied = np.diff(values[order]) <= 2.0 * float(scan.errors[0])
    ends = np.concatenate([[0], np.flatnonzero(~tied) + 1, [rows.n]])  # of the groups of tied rows
    pairs: list[tuple[int, int]] = []
    compared = 0
    for k in np.flatnonzero(np.diff(ends) > 1).tolist():
        compared += int(ends[k + 1] - ends[k])
        if compared > _MOST_TIED:
            break
        pairs += _equal(rows, np.sort(order[ends[k] : ends[k + 1]]))
    if not pairs:
        return None
    i, j = min(pairs)
    data = {"rows": np.array([i, j], dtype=np.int64)}
    constants = {"rank": rows.n, "width": width, "add_constant": rows.added}
    certificate = seal("no-exploration", "equal rows", {"Z": scan.record}, data, constants)
    others = "" if len(pairs) == 1 else f" ({len(pairs)} such pairs in all)"
    reason = f"samples {i} and {j} have equal features{others}: their rows of phi are equal for every q"
    return Refutation(reason, {"kind": "equal rows", "rows": (i, j), "pairs": len(pairs)}, certificate)


def _equal(rows: Rows, indices: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    first: dict[bytes, int] = {}
    pairs = []
    for start in range(0, indices.size, 4096):
        chunk = indices[start : start + 4096]
        content = rows.take(chunk) + 0.0  # -0.0 + 0.0 is 0.0
        for index, row in zip(chunk.tolist(), content):
            other = first.setdefault(row.tobytes(), index)
            if other != index:
                pairs.append((other, index))
    return pairs


def by_columns(rows: Rows, scan: RowScan, width: int) -> Refutation | None:
    """Refute by the rank of Z: by zero and repeated columns first, then by exact arithmetic if Z is small."""
    zero, copies = _idle_columns(rows)
    rank = rows.m - len(zero) - len(copies)
    if rank * width < rows.n:
        data = {"zero": np.array(zero, dtype=np.int64), "copies": np.array(copies, dtype=np.int64).reshape(-1, 2)}
        constants = {"rank": rows.n, "width": width, "add_constant": rows.added}
        certificate = seal("no-exploration", "columns", {"Z": scan.record}, data, constants)
        reason = (
            f"{len(zero)} features are zero and {len(copies)} repeat another one, so Z has rank {rank} at most: times "
            f"width {width} that is fewer than {rows.n} samples"
        )
        return Refutation(reason, {"kind": "columns", "zero": zero, "copies": copies, "rank": rank}, certificate)
    if rows.n * rows.m > _EXACT_ENTRIES:
        return None
    Z = rows.read(0, rows.n)
    rank = int(np.linalg.matrix_rank(Z))
    if rank * width >= rows.n:
        return None
    with stage("exact rank of Z"):
        decision = prove_rank(Z, rank, budget_seconds=_EXACT_SECONDS)
    inner = decision.certificate
    if decision.verdict is not Verdict.HOLDS or inner is None:
        return None
    # The inner certificate is about Z with its constant; the outer one contains it, and is about Z as it was given.
    of_Z = {"method": inner.method, "constants": plain(dict(inner.constants))}
    outer: dict[str, Any] = {"rank": rows.n, "width": width, "add_constant": rows.added, "of Z": of_Z}
    certificate = seal("no-exploration", "rank of Z", {"Z": scan.record}, inner.data, outer)
    reason = f"Z has rank {rank} exactly: times width {width} that is fewer than {rows.n} samples"
    return Refutation(reason, {"kind": "rank of Z", "rank": rank, "width": width}, certificate)


def _idle_columns(rows: Rows) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the columns that are zero, and (column, earlier column) pairs that are equal, in one pass."""
    zero = np.ones(rows.m, dtype=bool)
    earlier: npt.NDArray[np.int64] | None = None
    for _, stored in rows.passes("columns of Z"):
        block = rows.complete(stored)
        zero &= ~np.any(block, axis=0)
        if earlier is None:
            seen: dict[bytes, int] = {}
            columns = block.T + 0.0
            earlier = np.array([seen.setdefault(column.tobytes(), k) for k, column in enumerate(columns)])
        else:
            candidates = np.flatnonzero(earlier != np.arange(rows.m))
            same = np.all(block[:, candidates] == block[:, earlier[candidates]], axis=0)
            # A column that differs from its first match may still equal another one: no proof needs that pair, and it
            # is dropped.
            earlier[candidates[~same]] = candidates[~same]
    assert earlier is not None
    idle = [int(k) for k in np.flatnonzero(zero)]
    copies = [(k, int(j)) for k, j in enumerate(earlier.tolist()) if j != k and not zero[k]]
    return idle, copies
