"""What is asked about phi, and the sentences that answer it.

Safe exploration for gates that are given or sampled: the Gram matrix proves, the singular values of phi decide.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from alignver.features.refutation import Refutation, by_columns, by_count, by_equal_rows
from alignver.features.rows import Rows, RowScan, directions, scan_rows
from alignver.features.staircase import Staircase
from alignver.kernel import Certificate, seal
from alignver.kernel.floats import arithmetic_fault
from alignver.linalg import rank_rules
from alignver.linalg.rank_rules import Scale
from alignver.proof.rounding import FloatArray, add_up, mul_down, mul_up, sqrt_up
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict, shown_down

__all__ = [
    "STATEMENT",
    "Setting",
    "check",
    "forget_peak",
    "peak_bytes",
    "refutation",
    "rules_settled",
    "size_line",
    "staircase",
]
STATEMENT = "Safe exploration (Assumption 4)"

_EPS = 2.0**-52
_REMEDIES = {
    "count": "widen the last hidden layer, or give it more features",
    "equal rows": "drop the samples that repeat another, or use a layer that tells them apart",
    "columns": "use a layer whose features are not constant and do not repeat each other",
    "rank of Z": "use a layer whose features depend less on each other",
}
_NAMED = ("press", "golub")  # the two that the paper's Table 2 was verified with


@dataclasses.dataclass(frozen=True)
class Setting:
    """The question.

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
        Units with output weight zero, which the staircase does without.
    place : array or None
        On the GPU where the tiles are made, if it is not here.
    cluster : Cluster or None
        The workers that make tiles and prove blocks.
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
        """Return the numbers of the question."""
        n, m = self.rows.n, self.rows.m
        numbers: dict[str, Any] = {"samples": n, "features": m, "dtype": self.rows.dtype, "delta": self.delta}
        numbers |= {"smallest_possible_width": -(-n // m), "paper_width": -(-2 * n // m)}
        return numbers if self.width is None else {**numbers, "width": self.width}

    def remarks(self) -> tuple[str, ...]:
        """Return what was done to the input, and what the statement covers."""
        remarks = ["the constant column was added, as asked"] if self.rows.added else []
        if self.idle:
            remarks.append(f"{self.idle} units with output weight zero are left out of the width")
        if self.delta:
            remarks.append(f"for every Z whose rows differ by at most {shown_down(self.delta)} each")
        return tuple(remarks)


def peak_bytes() -> dict[str, int]:
    """Return the largest resident memory of this process so far, where the system tells: nothing elsewhere.

    Linux's VmHWM, not getrusage's maximum: that one is inherited from the process that started this one.
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
    """Count the largest resident memory from here on, where Linux lets a process: not what was before."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")


def size_line(setting: Setting, width: int) -> str:
    """Return the first sentence of every report on a width."""
    n, m = setting.rows.n, setting.rows.m
    beside = f"(smallest possible: {-(-n // m)}; the paper's: {-(-2 * n // m)})"
    return f"{n} samples, {m} features, width {width} {beside}"


def rules_settled(
    setting: Setting, width: int, s_min: float, norm: float
) -> tuple[str, tuple[Bound, ...], tuple[dict[str, Any], ...]]:
    """Compare a proved lower bound of s_min(phi) with what each rank rule counts as zero.

    The rules use s_1, which is at most ``norm``: their tolerance is bounded from above, so a bound that exceeds it
    settles the rule. The rank of a rule that is not settled is None. eps is that of float64, in which phi is
    computed from the rows as they are.
    """
    n, columns = setting.rows.n, setting.rows.m * width
    row_sum = mul_up(norm, sqrt_up(float(columns)))  # ||A||_inf <= sqrt(d) ||A||_2
    scale = Scale(n, columns, norm, row_sum, _EPS, _EPS)
    table, bounds, said = [], [], []
    for rule in rank_rules.RULES.values():
        if rule.levels != "singular values":
            continue
        value = rule.threshold(scale) * (1.0 + 2.0**-40)
        settled = s_min > value
        entry = {"rule": rule.name, "formula": rule.formula, "tolerance": value, "rank": n if settled else None}
        table.append({**entry, "shipped_by": rule.shipped_by, "source": rule.source})
        if rule.name in _NAMED:
            bounds.append(Bound(f"s_min(phi), {rule.name}", s_min, ">", value))
            said.append(f"{rule.name} needs {value:.1e}" + ("" if settled else " (not settled by this bound)"))
    agreed = ": both rules agree" if all(bound.satisfied for bound in bounds) else ""
    sentence = f"s_min(phi) >= {shown_down(s_min, 2)}   {', '.join(said)}{agreed}"
    return sentence, tuple(bounds), tuple(table)


def staircase(setting: Setting, stairs: Staircase, certificate: Certificate) -> CheckResult:
    """Return HOLDS with a staircase."""
    rows, width, sizes = setting.rows, stairs.width, [block.stop - block.start for block in stairs.blocks]
    inverses = sum(block.method != "gram" for block in stairs.blocks)
    s_min, norm = stairs.s_min, stairs.norm
    weighted: tuple[str, ...] = ()
    if setting.weights is not None:
        s_min, norm, weighted = _weighted(setting.weights, stairs)
    evidence = [
        f"staircase witness: {len(sizes)} block{'s' * (len(sizes) > 1)} of {_sizes(sizes)} rows, "
        f"direction {stairs.attempt} of {setting.tries}" + (f", {inverses} by a right inverse" if inverses else "")
    ]
    bounds: tuple[Bound, ...] = ()
    table: tuple[dict[str, Any], ...] = ()
    if s_min > 0.0:
        sentence, bounds, table = rules_settled(setting, width, s_min, norm)
        evidence.append(sentence)
    found = "the smallest width there can be" if width == -(-rows.n // rows.m) else "the smallest width that was proved"
    reason = size_line(setting, width) + (f": {found}" if setting.width is None else "")
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=Verdict.HOLDS,
        rigor=Rigor.PROOF,
        reason=reason,
        evidence=(*evidence, *weighted, *setting.remarks()),
        subject=Subject.COMPUTED_MATRIX,
        code="exploration-staircase",
        measured={
            **setting.measured(),
            "method": "staircase",
            "width": width,
            "blocks": len(sizes),
            "smallest_block": min(sizes),
            "largest_block": max(sizes),
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
    )


def _sizes(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    if low == high:
        return str(low)
    return f"{low} or {high}" if high == low + 1 else f"{low} to {high}"


def _weighted(weights: FloatArray, stairs: Staircase) -> tuple[float, float, tuple[str, ...]]:
    r"""Return the bounds with output weights: :math:`s_{\min}(\phi D) \ge \min|w_k|\, s_{\min}(\phi)` for D = diag(w)
    (x) I.
    """
    size = abs(weights)
    least, most = float(size.min()), float(size.max())
    return mul_down(least, stairs.s_min), mul_up(most, stairs.norm), ("with the output weights given",)


def refutation(setting: Setting, refuted: Refutation) -> CheckResult:
    """Return FAILS with its witness and certificate."""
    evidence = [f"{setting.rows.n} samples, {setting.rows.m} features"]
    if refuted.witness["kind"] == "equal rows":
        evidence.append("if their inputs are equal too, this holds for every theta: no width helps")
    elif refuted.witness["kind"] == "count":
        evidence.append(f"the smallest possible width is {-(-setting.rows.n // setting.rows.m)}, for every theta")
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=Verdict.FAILS,
        rigor=Rigor.PROOF,
        reason=refuted.reason,
        evidence=(*evidence, *setting.remarks()),
        measured=setting.measured(),
        subject=Subject.COMPUTED_MATRIX,
        code=f"exploration-{refuted.witness['kind'].replace(' ', '-')}",
        next_steps=(_REMEDIES[refuted.witness["kind"]],),
        witness=refuted.witness,
        certificate=refuted.certificate,
    )


_DENSE_BYTES = 2_000_000_000
"""Largest phi that ``dense`` forms: its SVD takes hours beyond that."""

_DENSE_QUICK = 200_000_000
"""Largest phi that ``auto`` forms where the Gram matrix proved nothing: a minute's SVD."""


def check(
    setting: Setting, gates: FloatArray | None, method: str, folder: str | os.PathLike[str] | None
) -> CheckResult:
    """Check given gates (m, h), or gates sampled from the standard normal distribution as the paper does."""
    rows = setting.rows
    sampled = gates is None
    if gates is None:
        width = setting.width if setting.width is not None else -(-2 * rows.n // rows.m)
        gates = np.random.default_rng(setting.seed).standard_normal((rows.m, width))
    setting = dataclasses.replace(setting, width=int(gates.shape[1]))
    how = f"q sampled from the standard normal distribution, seed {setting.seed}" if sampled else "q as given"
    fault = arithmetic_fault()
    if fault and method != "gram" and 8 * rows.n * rows.m * gates.shape[1] <= _DENSE_QUICK and not setting.delta:
        return _by_svd(setting, gates, how, sampled)
    if fault:
        return _nothing_proved(setting, how, {**setting.measured(), "method": method}, fault)
    found = scan_rows(rows, directions(rows, 1, setting.seed))
    refuted = _refuted(setting, found)
    if refuted is not None:
        return refuted
    proof = None
    if method in ("auto", "gram"):
        proof = _by_gram(setting, gates, how, folder, found)
        if proof.verdict is Verdict.HOLDS:
            return proof
        refuted = _refuted_by_columns(setting, found)
        size = 8 * rows.n * rows.m * gates.shape[1]
        if refuted is not None or method == "gram" or size > _DENSE_QUICK or setting.delta:
            return proof if refuted is None else refuted
    result = _by_svd(setting, gates, how, sampled)
    if proof is not None:
        return dataclasses.replace(result, evidence=(*result.evidence, proof.reason))
    refuted = None if result.verdict is Verdict.HOLDS else _refuted_by_columns(setting, found)
    return result if refuted is None else refuted


def _refuted(setting: Setting, found: RowScan) -> CheckResult | None:
    rows, width = setting.rows, setting.width
    assert width is not None
    refuted = by_count(rows.n, rows.m, width, found.record, rows.added)
    if refuted is None and not setting.delta:
        refuted = by_equal_rows(rows, found, width)
    return None if refuted is None else refutation(setting, refuted)


def _refuted_by_columns(setting: Setting, found: RowScan) -> CheckResult | None:
    """Refute by the rank of Z: looked at where nothing was proved, since it can take a pass over Z and seconds."""
    assert setting.width is not None
    refuted = None if setting.delta else by_columns(setting.rows, found, setting.width)
    return None if refuted is None else refutation(setting, refuted)


def _by_gram(
    setting: Setting, q: FloatArray, how: str, folder: str | os.PathLike[str] | None, found: RowScan
) -> CheckResult:
    rows, width = setting.rows, int(q.shape[1])
    Z = rows.read(0, rows.n)
    gram = scaled_gram(Z, q, setting.weights, setting.delta)
    if isinstance(gram, str):
        definite = Definite(False, 0.0, 0.0, 0.0, 0.0, gram)
    else:
        definite = prove_definite(gram, folder=folder, place=setting.place, cluster=setting.cluster)
    measured = {**setting.measured(), "method": "gram", "margin": definite.margin, "shift": definite.shift}
    line = size_line(setting, width)
    if not definite.proved or isinstance(gram, str):
        return _nothing_proved(setting, how, measured, definite.reason)
    # Of D phi as computed, and of how far the exact one may be; undone by the largest 2^-e.
    norm = mul_up(add_up(sqrt_up(gram.trace), gram.moved), 2.0 ** -int(gram.exponents.min()))
    sentence, bounds, table = rules_settled(setting, width, definite.s_min, norm)
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=Verdict.HOLDS,
        rigor=Rigor.NUMERICAL if definite.taken else Rigor.PROOF,
        subject=Subject.COMPUTED_MATRIX,
        code="exploration-gram",
        reason=line,
        evidence=(how, f"verified Cholesky factorization of phi phi^T{_taken(definite)}", sentence, *setting.remarks()),
        measured={**measured, "s_min_lower": definite.s_min, "norm_upper": norm, "rules": table},
        bounds=bounds,
        certificate=_certificate(setting, q, definite, gram.exponents, found),
    )


def _nothing_proved(setting: Setting, how: str, measured: dict[str, Any], why: str) -> CheckResult:
    assert setting.width is not None
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=Verdict.UNDECIDED,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code="exploration-gates-not-proved",
        next_steps=("method='staircase', which makes gates of its own", "float64 features, or a smaller delta"),
        reason=f"nothing was proved about these gates: {why}",
        evidence=(size_line(setting, setting.width), how, *setting.remarks()),
        measured=measured,
    )


def _taken(definite: Definite) -> str:
    """Say what was not computed here. The origin of tiles in a folder is unknown; the certificate does without them."""
    if not definite.taken:
        return ""
    return f", {definite.taken} of its tile columns from the folder: no proof until the certificate has been verified"


def _certificate(
    setting: Setting, q: FloatArray, definite: Definite, exponents: npt.NDArray[np.int64], found: RowScan
) -> Certificate:
    rows = setting.rows
    constants = {
        "rank": rows.n,
        "width": int(q.shape[1]),
        "add_constant": rows.added,
        "s_min": definite.s_min,
        "delta": setting.delta,
    }
    data = {"gates": q, "scaling": exponents} | ({} if setting.weights is None else {"weights": setting.weights})
    return seal("exploration-gates", "gram", {"Z": found.record}, data, constants)


def _by_svd(setting: Setting, q: FloatArray, how: str, sampled: bool) -> CheckResult:
    rows, width = setting.rows, int(q.shape[1])
    if 8 * rows.n * rows.m * width > _DENSE_BYTES:
        size = 8e-9 * rows.n * rows.m * width
        raise InvalidInput(
            "method", f"'dense' for a phi of {size:.1f} GB", "'staircase' or 'gram', which never form it"
        )
    if setting.delta:
        raise InvalidInput("delta", "a radius with method='dense'", "'staircase' or 'gram': a proof covers a ball")
    with np.errstate(all="ignore"):
        phi = dense_phi(rows.read(0, rows.n), q, setting.weights)
    if not bool(np.all(np.isfinite(phi))):
        raise InvalidInput("q", f"entries up to {np.abs(q).max():.1e}", "gates whose products with Z and w are finite")
    named = ("press", "golub")
    ranks = {rule: check_rank(phi, rank=rows.n, method="svd", rule=rule, certify=False) for rule in named}
    if setting.rule in ranks:
        deciding = ranks[setting.rule]
    else:
        deciding = check_rank(phi, rank=rows.n, method="svd", rule=setting.rule, certify=False)
    verdict, reason = deciding.verdict, f"phi has {deciding.reason}"
    if sampled and verdict is Verdict.FAILS:
        verdict = Verdict.UNDECIDED
        reason += "; that refutes the sampled gates only: another seed, or method='staircase', may do"
    said = ", ".join(f"{rule} says rank {result.measured['rank']}" for rule, result in ranks.items())
    return CheckResult(
        name="exploration",
        statement=STATEMENT,
        verdict=verdict,
        rigor=Rigor.NUMERICAL,
        subject=Subject.COMPUTED_MATRIX,
        code=f"exploration-{deciding.code}",
        next_steps=deciding.next_steps,
        reason=reason,
        evidence=(size_line(setting, width), how, f"{said} of {rows.n}", *setting.remarks()),
        measured={**setting.measured(), "method": "dense", **_levels(deciding)},
        tolerance=deciding.tolerance,
    )


def _levels(result: CheckResult) -> dict[str, object]:
    keys = ("rank", "smallest_level", "largest_singular_value", "rules")
    return {key: result.measured[key] for key in keys}
