"""Results on safe exploration: the setting, the report of each kind of answer, and the check of given gates.

Gates that are given or sampled are checked by the Gram matrix of phi, which proves, or by the singular values of phi,
which decide numerically.

Proofs that no gates of a width give phi(q) rank n, each with a witness:

* Count: phi has h m columns, so its rank is below n if h m < n.
* Equal rows: z_i = z_j makes rows i and j of phi equal for every q. Equal inputs make z_i = z_j for every theta.
* Columns: rank phi <= h rank Z, as phi = [diag(S_1) Z, ..., diag(S_h) Z], so its rank is below n if h rank(Z) < n.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import Array
from alignver.checks.rank import check_rank
from alignver.errors import InvalidInput
from alignver.features.cholesky import Definite, prove_definite
from alignver.features.cluster import Cluster
from alignver.features.products import dense_phi, scaled_gram
from alignver.features.rows import Rows, RowScan, directions, scan_rows
from alignver.features.staircase import Staircase
from alignver.kernel import Certificate, seal
from alignver.kernel.machine import arithmetic_fault
from alignver.linalg import rank_rules
from alignver.linalg.rank_rules import Scale
from alignver.progress import stage
from alignver.proof import prove_rank
from alignver.proof.rounding import FloatArray, add_up, mul_down, mul_up, sqrt_up
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict, plain, shown_down

STATEMENT = "Safe exploration (Assumption 4)"
exploration_result = functools.partial(
    CheckResult, name="exploration", statement=STATEMENT, subject=Subject.COMPUTED_MATRIX
)
"""Make a result of the check."""

_EXACT_ENTRIES = 2_000_000  # largest size of Z for an exact rank: beyond it that takes minutes
_EXACT_SECONDS = 20.0
_MOST_TIED = 200_000  # largest number of rows with equal projections that are compared

_DENSE_BYTES = 2_000_000_000
"""Largest phi that ``dense`` forms: beyond that its SVD takes hours."""

_DENSE_QUICK = 200_000_000
"""Largest phi that ``auto`` forms if the Gram matrix proves nothing: its SVD takes a minute."""

_EPS = 2.0**-52
_REMEDIES = {
    "count": "widen the last hidden layer to {least} units or more, or give it more features",
    "equal rows": "drop the samples that repeat another, or use a layer that tells them apart",
    "columns": "use a layer whose features are not constant and do not repeat each other",
    "rank of Z": "use a layer whose features depend less on each other",
}
_NAMED = ("press", "golub")  # the rules of the paper's Table 2


@dataclasses.dataclass(frozen=True)
class Setting:
    """The features and the options of the check.

    Attributes
    ----------
    rows : Rows
    width : int or None
    rule : str
    delta : float
        Bound of each row's error; 0 for the rows as they are.
    weights : (h,) float64 or None
    tries, seed : int
    idle : int
        Number of units with output weight zero, which the staircase does not use.
    place : array or None
        An array on the GPU that computes the tiles; None for the CPU.
    cluster : Cluster or None
        The workers that compute tiles and prove blocks.
    """

    rows: Rows
    width: int | None
    rule: str
    delta: float
    weights: FloatArray | None
    tries: int
    seed: int
    idle: int = 0
    place: Array | None = None
    cluster: Cluster | None = None

    def measured(self) -> dict[str, Any]:
        """Return the numbers of the setting."""
        n, m = self.rows.n, self.rows.m
        numbers: dict[str, Any] = {"samples": n, "features": m, "dtype": self.rows.dtype, "delta": self.delta}
        numbers |= {"smallest_possible_width": -(-n // m), "paper_width": -(-2 * n // m)}
        return numbers if self.width is None else {**numbers, "width": self.width}

    def remarks(self) -> tuple[str, ...]:
        """Return sentences on changes of the input, and on what the statement covers."""
        remarks = ["the constant column was added, as requested"] if self.rows.added else []
        if self.idle:
            remarks.append(f"{self.idle} units with output weight zero do not count in the width")
        if self.delta:
            remarks.append(f"for every Z whose rows differ by at most {shown_down(self.delta)} each")
        return tuple(remarks)


def peak_bytes() -> dict[str, int]:
    """Return the largest resident memory of this process so far; an empty dict if the system does not report it.

    Linux's VmHWM, not getrusage's maximum: the latter is inherited from the parent process.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return {"peak_bytes": int(line.split()[1]) * 1024}
    except (OSError, ValueError, IndexError):
        pass
    return {}


def forget_peak() -> None:
    """Reset the largest resident memory to the present one, if Linux permits it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")


def _size_line(setting: Setting, width: int) -> str:
    """Return the first sentence of every report on a width."""
    n, m = setting.rows.n, setting.rows.m
    smallest = f"(smallest possible: {-(-n // m)}; the paper's: {-(-2 * n // m)})"
    return f"{n} samples, {m} features, width {width} {smallest}"


def _compare_with_rules(
    setting: Setting, width: int, s_min: float, norm: float
) -> tuple[str, tuple[Bound, ...], tuple[dict[str, Any], ...]]:
    """Compare a proved lower bound of s_min(phi) with the tolerance of each rank rule.

    The rules use s_1, which is at most ``norm``. This bounds their tolerances from above, so an ``s_min`` above that
    bound determines the rank. The rank of a rule that is not settled is None. eps is that of float64, in which phi is
    computed from the rows as they are.

    Returns
    -------
    tuple
        A sentence, the bounds of the rules of Table 2, and the table of all rules.
    """
    n, columns = setting.rows.n, setting.rows.m * width
    row_sum = mul_up(norm, sqrt_up(float(columns)))  # ||A||_inf <= sqrt(d) ||A||_2
    scale = Scale(n, columns, norm, row_sum, _EPS, _EPS)
    table, bounds, comparisons = [], [], []
    for rule in rank_rules.RULES.values():
        if rule.levels != "singular values":
            continue
        value = rule.threshold(scale) * (1.0 + 2.0**-40)
        settled = s_min > value
        entry = {"rule": rule.name, "formula": rule.formula, "tolerance": value, "rank": n if settled else None}
        table.append({**entry, "shipped_by": rule.shipped_by, "source": rule.source})
        if rule.name in _NAMED:
            bounds.append(Bound(f"s_min(phi), {rule.name}", s_min, ">", value))
            comparisons.append(f"{rule.name} needs {value:.1e}" + ("" if settled else " (not settled by this bound)"))
    agreed = ": both rules agree" if all(bound.satisfied for bound in bounds) else ""
    sentence = f"s_min(phi) >= {shown_down(s_min, 2)}   {', '.join(comparisons)}{agreed}"
    return sentence, tuple(bounds), tuple(table)


def staircase_result(setting: Setting, stairs: Staircase, certificate: Certificate) -> CheckResult:
    """Return HOLDS with a staircase."""
    rows, width, sizes = setting.rows, stairs.width, [block.stop - block.start for block in stairs.blocks]
    inverses = sum(block.method != "gram" for block in stairs.blocks)
    s_min, norm = stairs.s_min, stairs.norm
    weighted: tuple[str, ...] = ()
    if setting.weights is not None:  # s_min(phi D) >= min |w_k| s_min(phi) for D = diag(w) (x) I
        size = abs(setting.weights)
        s_min, norm = mul_down(float(size.min()), s_min), mul_up(float(size.max()), norm)
        weighted = ("with the output weights given",)
    low, high = min(sizes), max(sizes)
    heights = f"{low}" if low == high else f"{low} or {high}" if high == low + 1 else f"{low} to {high}"
    evidence = [
        f"staircase witness: {len(sizes)} block{'s' * (len(sizes) > 1)} of {heights} rows, "
        f"direction {stairs.attempt} of {setting.tries}" + (f", {inverses} by a right inverse" if inverses else "")
    ]
    bounds: tuple[Bound, ...] = ()
    table: tuple[dict[str, Any], ...] = ()
    if s_min > 0.0:
        sentence, bounds, table = _compare_with_rules(setting, width, s_min, norm)
        evidence.append(sentence)
    minimal = width == -(-rows.n // rows.m)
    proved = "the smallest possible width" if minimal else "the smallest width that was proved"
    return exploration_result(
        verdict=Verdict.HOLDS,
        rigor=Rigor.PROOF,
        code="exploration-staircase",
        reason=_size_line(setting, width) + (f": {proved}" if setting.width is None else ""),
        evidence=(*evidence, *weighted, *setting.remarks()),
        measured={
            **setting.measured(),
            "method": "staircase",
            "width": width,
            "blocks": len(sizes),
            "smallest_block": low,
            "largest_block": high,
            "right_inverses": inverses,
            "direction": stairs.attempt,
            "c": stairs.c,
            "margin": stairs.margin,
            "s_min_lower": s_min,
            "norm_upper": norm,
            "rules": table,
        },
        bounds=bounds,
        certificate=certificate,
        next_steps=(() if minimal or setting.width is None else ("width=None searches for the smallest width",)),
    )


def _refuted(setting: Setting, reason: str, witness: dict[str, Any], certificate: Certificate) -> CheckResult:
    """Return FAILS with its witness and certificate."""
    kind, least = witness["kind"], -(-setting.rows.n // setting.rows.m)
    evidence = [f"{setting.rows.n} samples, {setting.rows.m} features"]
    if kind == "equal rows":
        evidence.append("if their inputs are equal too, this holds for every theta and every width")
    elif kind == "count":
        evidence.append(f"the smallest possible width is {least}, for every theta")
    return exploration_result(
        verdict=Verdict.FAILS,
        rigor=Rigor.PROOF,
        code=f"exploration-{kind.replace(' ', '-')}",
        next_steps=(_REMEDIES[kind].format(least=least),),
        reason=reason,
        evidence=(*evidence, *setting.remarks()),
        measured=setting.measured(),
        witness=witness,
        certificate=certificate,
    )


def refute_by_rows(setting: Setting, scan: RowScan) -> CheckResult | None:
    """Refute by the number of columns or by equal rows of Z; None if neither applies."""
    n, m, width = setting.rows.n, setting.rows.m, setting.width
    if width is not None and width * m < n:
        constants = {"rank": n, "width": width, "add_constant": setting.rows.added}
        certificate = seal("no-exploration", "count", {"Z": scan.record}, {}, constants)
        reason = f"width {width} times {m} features is {width * m} columns, fewer than {n} samples"
        witness = {"kind": "count", "width": width, "features": m, "samples": n}
        return _refuted(setting, reason, witness, certificate)
    # A refutation for Z does not extend to the Z within delta.
    return None if setting.delta else _refute_by_equal_rows(setting, scan, n if width is None else width)


def check_gates(
    setting: Setting, gates: FloatArray | None, method: str, folder: str | os.PathLike[str] | None
) -> CheckResult:
    """Check given gates (m, h), or gates sampled from the standard normal distribution as in the paper."""
    rows = setting.rows
    sampled = gates is None
    if gates is None:
        width = setting.width if setting.width is not None else -(-2 * rows.n // rows.m)
        gates = np.random.default_rng(setting.seed).standard_normal((rows.m, width))
    setting = dataclasses.replace(setting, width=int(gates.shape[1]))
    origin = f"q sampled from the standard normal distribution, seed {setting.seed}" if sampled else "q as given"
    quick = 8 * rows.n * rows.m * gates.shape[1] <= _DENSE_QUICK and not setting.delta
    fault = arithmetic_fault()
    if fault:
        if method != "gram" and quick:
            return _check_by_svd(setting, gates, origin, sampled)
        return _nothing_proved(setting, origin, {**setting.measured(), "method": method}, fault)
    scan = scan_rows(rows, directions(rows, 1, setting.seed))
    refuted = refute_by_rows(setting, scan)
    if refuted is not None:
        return refuted
    if method == "dense":
        result = _check_by_svd(setting, gates, origin, sampled)
        refuted = None if result.verdict is Verdict.HOLDS else refute_by_columns(setting, scan)
        return result if refuted is None else refuted
    proof = _prove_by_gram(setting, gates, origin, folder, scan)
    if proof.verdict is Verdict.HOLDS:
        return proof
    refuted = refute_by_columns(setting, scan)
    if refuted is not None:
        return refuted
    if method == "gram" or not quick:
        return proof
    result = _check_by_svd(setting, gates, origin, sampled)
    return dataclasses.replace(result, evidence=(*result.evidence, proof.reason))


def _prove_by_gram(
    setting: Setting, q: FloatArray, origin: str, folder: str | os.PathLike[str] | None, scan: RowScan
) -> CheckResult:
    rows, width = setting.rows, int(q.shape[1])
    gram = scaled_gram(rows.read(0, rows.n), q, setting.weights, setting.delta)
    if isinstance(gram, str):
        definite = Definite(False, 0.0, 0.0, 0.0, 0.0, gram)
    else:
        definite = prove_definite(gram, folder=folder, place=setting.place, cluster=setting.cluster)
    measured = {**setting.measured(), "method": "gram", "margin": definite.margin, "shift": definite.shift}
    if not definite.proved or isinstance(gram, str):
        return _nothing_proved(setting, origin, measured, definite.reason)
    # The norm of the computed D phi and the distance of the exact one from it, divided by the smallest scale 2^e.
    norm = mul_up(add_up(sqrt_up(gram.trace), gram.moved), 2.0 ** -int(gram.exponents.min()))
    sentence, bounds, table = _compare_with_rules(setting, width, definite.s_min, norm)
    # The origin of tiles that were read from a folder is unknown. The certificate does not use them.
    stored = ""
    if definite.taken:
        stored = f", {definite.taken} of its tile columns from the folder: no proof until the certificate is verified"
    weights = {} if setting.weights is None else {"weights": setting.weights}
    constants = {
        "rank": rows.n,
        "width": width,
        "add_constant": rows.added,
        "s_min": definite.s_min,
        "delta": setting.delta,
    }
    data = {"gates": q, "scaling": gram.exponents, **weights}
    return exploration_result(
        verdict=Verdict.HOLDS,
        rigor=Rigor.NUMERICAL if definite.taken else Rigor.PROOF,
        code="exploration-gram",
        reason=_size_line(setting, width),
        evidence=(origin, f"verified Cholesky factorization of phi phi^T{stored}", sentence, *setting.remarks()),
        measured={**measured, "s_min_lower": definite.s_min, "norm_upper": norm, "rules": table},
        bounds=bounds,
        certificate=seal("exploration-gates", "gram", {"Z": scan.record}, data, constants),
        next_steps=("for a proof: av.recheck(result.certificate, Z=Z), which uses no tiles",) * bool(definite.taken),
    )


def _nothing_proved(setting: Setting, origin: str, measured: dict[str, Any], why: str) -> CheckResult:
    assert setting.width is not None
    return exploration_result(
        verdict=Verdict.UNDECIDED,
        rigor=Rigor.NUMERICAL,
        code="exploration-gates-not-proved",
        next_steps=("method='staircase', which constructs its own gates", "float64 features, or a smaller delta"),
        reason=f"nothing was proved about these gates: {why}",
        evidence=(_size_line(setting, setting.width), origin, *setting.remarks()),
        measured=measured,
    )


def _check_by_svd(setting: Setting, q: FloatArray, origin: str, sampled: bool) -> CheckResult:
    rows, width = setting.rows, int(q.shape[1])
    size = 8 * rows.n * rows.m * width
    if size > _DENSE_BYTES:
        got, need = f"'dense' for a phi of {1e-9 * size:.1f} GB", "'staircase' or 'gram', which never form it"
        raise InvalidInput("method", got, need, "too-large")
    if setting.delta:
        need = "method='staircase' or method='gram': a proof covers a ball"
        raise InvalidInput("delta", "a radius with method='dense'", need, "conflicting-arguments")
    with np.errstate(all="ignore"):
        phi = dense_phi(rows.read(0, rows.n), q, setting.weights)
    if not bool(np.all(np.isfinite(phi))):
        got = f"entries up to {np.abs(q).max():.1e}"
        raise InvalidInput("q", got, "gates whose products with Z and w are finite", "not-finite")
    ranks = {
        rule: check_rank(phi, rank=rows.n, method="svd", rule=rule, certify=False)
        for rule in dict.fromkeys((*_NAMED, setting.rule))
    }
    deciding = ranks[setting.rule]
    verdict, reason = deciding.verdict, f"phi has {deciding.reason}"
    if sampled and verdict is Verdict.FAILS:
        verdict = Verdict.UNDECIDED
        reason += "; that refutes the sampled gates only"
    by_rule = ", ".join(f"{rule} gives rank {ranks[rule].measured['rank']}" for rule in _NAMED)
    levels = {key: deciding.measured[key] for key in ("rank", "smallest_level", "largest_singular_value", "rules")}
    return exploration_result(
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        code=f"exploration-{deciding.code}",
        next_steps=("for a proof: method='gram' for these gates, method='staircase' for its own",),
        reason=reason,
        evidence=(_size_line(setting, width), origin, f"{by_rule} of {rows.n}", *setting.remarks()),
        measured={**setting.measured(), "method": "dense", **levels},
        tolerance=deciding.tolerance,
    )


def _refute_by_equal_rows(setting: Setting, scan: RowScan, width: int) -> CheckResult | None:
    """Search for equal rows of Z among the rows whose projections agree up to rounding."""
    rows = setting.rows
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
    return _refuted(setting, reason, {"kind": "equal rows", "rows": (i, j), "pairs": len(pairs)}, certificate)


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


def refute_by_columns(setting: Setting, scan: RowScan) -> CheckResult | None:
    """Refute by the rank of Z, after a proof has failed: it may take a pass over Z and seconds.

    Zero and repeated columns come first, then exact arithmetic if Z is small.
    """
    rows, width = setting.rows, setting.width
    if width is None or setting.delta:
        return None
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
        return _refuted(setting, reason, {"kind": "columns", "zero": zero, "copies": copies, "rank": rank}, certificate)
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
    return _refuted(setting, reason, {"kind": "rank of Z", "rank": rank, "width": width}, certificate)


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
