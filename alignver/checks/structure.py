"""Does ``f = J nu`` hold? Outputs beside Jacobian-vector products at several theta (Assumption 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import EPS, as_matrix, host
from alignver.errors import InvalidInput
from alignver.linalg import rank_rules
from alignver.results import Bound, CheckResult, Rigor, Subject, Tolerance, Verdict

__all__ = ["STATEMENT", "Indicator", "check_structure", "indicator"]

STATEMENT = "Common model structure (Assumption 1)"
_AFTER = 64  # operations that a term passes through after it was multiplied by its parameter
_FACTOR = 10.0


def check_structure(
    outputs: Sequence[Any],
    products: Sequence[Any],
    *,
    terms: int,
    magnitudes: Sequence[float] | None = None,
    tolerance: float | None = None,
    computed_in: str = "float64",
    labels: Sequence[str] | None = None,
) -> CheckResult:
    """Check ``f_X(theta) = J(theta) nu(theta)`` at each theta it was evaluated at, nu being theta on S and 0 elsewhere.

    The residual at one theta is ``max_ij |f_ij - (J nu)_ij| / scale``, scale the largest of max |f|, max |J nu| and the
    magnitude given for it.

    Parameters
    ----------
    outputs, products : sequence of (n, m_y) arrays
        f_X(theta) and J(theta) nu(theta), in pairs; the first pair is at the model's own theta.
    terms : int
        Entries of S: the most products that a sum of them has.
    magnitudes : sequence of float, optional
        For each pair an estimate of ``max_ij sum_{k in S} |theta_k df_ij / dtheta_k|``, what the rounding of such a
        sum is relative to.
    tolerance : float, optional
        The largest residual that counts as rounding. By default ``(terms + 64) eps``: f and J nu are two sums of the
        same products t_k in floating point, each within ``gamma_terms sum |t_k|`` of the exact one (Higham,
        Accuracy and Stability of Numerical Algorithms, 2nd ed., (3.5)), with up to 64 operations on the way out.
    computed_in : str
        The coarsest dtype of the evaluations, whose eps counts.
    labels : sequence of str, optional
        Names of the thetas.

    Returns
    -------
    CheckResult
        HOLDS with rigor STATISTICAL when every residual is within the tolerance: Assumption 1 speaks of all theta, and
        these are a sample. FAILS with rigor NUMERICAL when one exceeds ten times the tolerance and 10 sqrt(eps) (ten
        times a given tolerance alone): one theta is enough. UNDECIDED in between.

    Raises
    ------
    InvalidInput
        Arrays that no verdict can be about, or that do not go together.

    Notes
    -----
    If f - J nu is real analytic in theta, it vanishes at a theta drawn from a density with probability one only if it
    vanishes everywhere; what remains open is a difference that is small everywhere, and what is not analytic.

    Examples
    --------
    >>> w, h = np.array([[2.0, 3.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])
    >>> check_structure([h @ w.T], [h @ w.T], terms=2).verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> check_structure([h @ w.T + 1.0], [h @ w.T], terms=2).verdict
    <Verdict.FAILS: 'FAILS'>
    """
    pairs = _pairs(outputs, products)
    sizes = [0.0] * len(pairs) if magnitudes is None else [float(size) for size in magnitudes]
    named = [f"theta {t}" for t in range(len(pairs))] if labels is None else list(labels)
    for argument, values in (("magnitudes", sizes), ("labels", named)):
        if len(values) != len(pairs):
            raise InvalidInput(argument, f"{len(values)} beside {len(pairs)} outputs", "one for each")
    if isinstance(terms, bool) or not isinstance(terms, int) or terms < 0:
        raise InvalidInput("terms", f"terms={terms!r}", "a non-negative integer")
    if computed_in not in EPS:
        raise InvalidInput("computed_in", repr(computed_in), "one of " + ", ".join(sorted(EPS)))
    limit = _tolerance(tolerance, terms, EPS[computed_in])
    fails = _FACTOR * (limit.value if tolerance is not None else max(limit.value, math.sqrt(limit.eps)))
    residuals, worst_at = [], []
    for (f, p), size in zip(pairs, sizes):
        gap = np.abs(f - p)
        scale = max(float(np.abs(f).max()), float(np.abs(p).max()), size if math.isfinite(size) else 0.0)
        residuals.append(float(gap.max()) / scale if scale else 0.0)
        worst_at.append(np.unravel_index(int(gap.argmax()), gap.shape))
    worst = int(np.argmax(residuals))
    i, j = (int(k) for k in worst_at[worst])
    there = {"f": float(pairs[worst][0][i, j]), "J nu": float(pairs[worst][1][i, j])}
    where = f"at {named[worst]}, sample {i}, output {j}: f = {there['f']:.6g}, J nu = {there['J nu']:.6g}"
    witness = None
    if residuals[worst] <= limit.value:
        verdict, rigor = Verdict.HOLDS, Rigor.STATISTICAL
        reason = f"f = J nu up to rounding at {len(pairs)} theta: relative residual at most {residuals[worst]:.1e}"
    elif residuals[worst] > fails:
        verdict, rigor = Verdict.FAILS, Rigor.NUMERICAL
        reason = f"f is not J nu {where}"
        witness = {"theta": named[worst], "sample": i, "output": j, **there}
    else:
        verdict, rigor = Verdict.UNDECIDED, Rigor.NUMERICAL
        reason = (
            f"f differs from J nu by more than rounding explains and less than refutes: {residuals[worst]:.1e} {where}"
        )
    bounds = () if verdict is Verdict.UNDECIDED else (_bound(verdict, residuals[worst], limit.value, fails),)
    return CheckResult(
        name="structure",
        statement=STATEMENT,
        verdict=verdict,
        rigor=rigor,
        subject=Subject.NETWORK,
        code=f"structure-{_KINDS[verdict]}",
        reason=reason,
        evidence=(f"tolerance {limit.value:.1e}: {limit.formula}",),
        measured={
            "residual": residuals[worst],
            "residuals": dict(zip(named, residuals)),
            "fails_above": fails,
            "terms": terms,
            "computed_in": computed_in,
        },
        bounds=bounds,
        tolerance=limit,
        witness=witness,
    )


_KINDS = {Verdict.HOLDS: "sampled", Verdict.FAILS: "residual", Verdict.UNDECIDED: "rounding"}


def _bound(verdict: Verdict, residual: float, limit: float, fails: float) -> Bound:
    return (
        Bound("residual", residual, "<=", limit)
        if verdict is Verdict.HOLDS
        else Bound("residual", residual, ">", fails)
    )


def _tolerance(given: float | None, terms: int, eps: float) -> Tolerance:
    if given is not None:
        return Tolerance("given", rank_rules.checked_tolerance(given, "tolerance"), "given", "the caller", eps)
    source = "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., (3.5)"
    return Tolerance("rounding", (terms + _AFTER) * eps, f"({terms} terms + {_AFTER}) eps", source, eps)


def _pairs(outputs: Sequence[Any], products: Sequence[Any]) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    if not outputs or len(outputs) != len(products):
        got = f"{len(products)} beside {len(outputs)} outputs"
        raise InvalidInput("products", got, "at least one, one for each outputs")
    pairs = []
    for t, (f, p) in enumerate(zip(outputs, products)):
        found = host(as_matrix(f, f"outputs[{t}]").array), host(as_matrix(p, f"products[{t}]").array)
        if found[0].shape != found[1].shape:
            raise InvalidInput(
                f"products[{t}]", f"shape {found[1].shape} beside {found[0].shape}", "that of its outputs"
            )
        pairs.append(found)
    return pairs


@dataclasses.dataclass(frozen=True)
class Indicator:
    """Weights s with ``G s = f`` as nearly as possible, few of them non-zero.

    Attributes
    ----------
    weights : tuple of float
        Zero for columns that depend on those before them.
    residual : float
        ||f - G s|| / ||f||, rows scaled: zero up to rounding if any real weights solve the system.
    unique : bool
        Whether no column was left out: the weights are then the only ones.
    """

    weights: tuple[float, ...]
    residual: float
    unique: bool

    def chosen(self, closeness: float = 1e-6) -> tuple[int, ...] | None:
        """Indices of the ones if all weights are 0 or 1, else None."""
        if any(min(abs(w), abs(w - 1.0)) > closeness for w in self.weights):
            return None
        return tuple(k for k, w in enumerate(self.weights) if w > 0.5)


def indicator(G: npt.NDArray[np.float64], f: npt.NDArray[np.float64], eps: float = EPS["float64"]) -> Indicator:
    """Solve ``G s = f`` for weights on the columns, the first columns first.

    A column is left out when it lies, up to sqrt(eps), in the span of the kept ones before it. S satisfies Assumption 1
    at the thetas that gave the rows exactly if its indicator solves the system, G's columns being the sums of
    ``theta_k df / dtheta_k`` over groups of parameters; without any real solution there is no such S.

    Parameters
    ----------
    G : (rows, columns) float64
    f : (rows,) float64

    Examples
    --------
    >>> G = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0], [3.0, 3.0, 5.0]])
    >>> indicator(G, G[:, 0]).chosen()
    (0,)
    >>> indicator(G, 0.5 * G[:, 0]).chosen() is None
    True
    """
    kept: list[int] = []
    basis = np.zeros((len(G), 0))
    for k in range(G.shape[1]):
        rest = G[:, k]
        for _ in range(2):  # twice is enough
            rest = rest - basis @ (basis.T @ rest)
        length = float(np.linalg.norm(rest))
        if length > math.sqrt(eps) * float(np.linalg.norm(G[:, k])):
            kept.append(k)
            basis = np.column_stack([basis, rest / length])
    weights = np.zeros(G.shape[1])
    if kept:
        lengths = np.linalg.norm(G[:, kept], axis=0)
        weights[kept] = np.linalg.lstsq(G[:, kept] / lengths, f, rcond=None)[0] / lengths
    size = float(np.linalg.norm(f))
    residual = float(np.linalg.norm(f - G @ weights)) / size if size else 0.0
    return Indicator(tuple(float(w) for w in weights), residual, len(kept) == G.shape[1])
