"""What is asked about phi, and the sentences that answer it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from alignver.arrays import Array
from alignver.linalg import rank_rules
from alignver.linalg.rank_rules import Scale
from alignver.phi.cluster import Cluster
from alignver.phi.refute import Refutation
from alignver.phi.rows import Rows
from alignver.phi.staircase import Staircase
from alignver.proof import Certificate
from alignver.proof.rounding import FloatArray, mul_down, mul_up, sqrt_up
from alignver.results import Bound, CheckResult, Rigor, Subject, Verdict, shown_down

__all__ = [
    "STATEMENT",
    "Setting",
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
