"""Does ``f = J nu`` hold? Outputs are compared with Jacobian-vector products at several theta (Assumption 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.arrays import EPS, as_matrix, host
from alignver.errors import InvalidInput
from alignver.linalg import rank_rules
from alignver.linalg.rank_rules import FACTOR
from alignver.results import Bound, CheckResult, Rigor, Subject, Tolerance, Verdict

STATEMENT = "Common model structure (Assumption 1)"
_AFTER = 64  # operations that a term passes through after it was multiplied by its parameter
_KINDS = {Verdict.HOLDS: "sampled", Verdict.FAILS: "residual", Verdict.UNDECIDED: "rounding"}
_NEXT_STEPS = {
    Verdict.HOLDS: ("for a proof: a forward method that can be traced, without control flow on values",),
    Verdict.FAILS: ("leave S out, and it is searched for", "or end the network with a linear layer, and name it: S="),
    Verdict.UNDECIDED: ("compute in float64: dtype='float64'", "or give a tolerance that you can justify: tolerance="),
}


def check_structure(
    outputs: Sequence[Any],
    products: Sequence[Any],
    *,
    terms: int,
    magnitudes: Sequence[Any] | None = None,
    tolerance: float | None = None,
    computed_in: str = "float64",
    labels: Sequence[str] | None = None,
) -> CheckResult:
    """Check ``f_X(theta) = J(theta) nu(theta)`` at the given thetas, where nu is theta on S and 0 elsewhere.

    The residual at one theta is ``max_ij |f_ij - (J nu)_ij| / scale_ij``, where the scale of an output j is the largest
    of ``max_i |f_ij|``, ``max_i |(J nu)_ij|`` and, for the entry, the magnitude given for this theta.

    Parameters
    ----------
    outputs, products : sequence of (n, m_y) arrays
        f_X(theta) and J(theta) nu(theta), in pairs; the first pair is at the model's own theta.
    terms : int
        Number of entries of S: the number of products in a sum is at most this.
    magnitudes : sequence of float or (n, m_y) arrays, optional
        For each pair an estimate of ``sum_{k in S} |theta_k df_ij / dtheta_k|``, to which the rounding error of such a
        sum is relative. Terms that cancel may hide a difference: if it exceeds sqrt(eps) of the output itself, the
        verdict is UNDECIDED.
    tolerance : float, optional
        The largest residual that counts as rounding. By default ``(terms + 64) eps``: f and J nu are two sums of the
        same products t_k in floating point, each within ``gamma_terms sum |t_k|`` of the exact one (Higham,
        Accuracy and Stability of Numerical Algorithms, 2nd ed., (3.5)), with up to 64 operations on the way out.
    computed_in : str
        The coarsest dtype of the evaluations, which sets eps.
    labels : sequence of str, optional
        Names of the thetas.

    Returns
    -------
    CheckResult
        HOLDS with rigor STATISTICAL if every residual is within the tolerance: Assumption 1 is about all theta, and
        these are a sample. FAILS with rigor NUMERICAL if one residual exceeds ten times the tolerance and 10 sqrt(eps)
        (only ten times the tolerance if the caller gives one): one theta is enough. UNDECIDED in between.

    Raises
    ------
    InvalidInput
        Arrays that are not finite real matrices, or whose shapes do not fit each other.

    Notes
    -----
    If f - J nu is real analytic in theta and does not vanish everywhere, the probability that it vanishes at a theta
    drawn from a density is zero. Not covered: a difference that is small everywhere, and functions that are not
    analytic.

    Examples
    --------
    >>> w, h = np.array([[2.0, 3.0]]), np.array([[1.0, 1.0], [0.0, 1.0]])
    >>> check_structure([h @ w.T], [h @ w.T], terms=2).verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> check_structure([h @ w.T + 1.0], [h @ w.T], terms=2).verdict
    <Verdict.FAILS: 'FAILS'>
    """
    pairs = _pairs(outputs, products)
    sizes = [0.0] * len(pairs) if magnitudes is None else list(magnitudes)
    names = [f"theta {t}" for t in range(len(pairs))] if labels is None else list(labels)
    for argument, values in (("magnitudes", sizes), ("labels", names)):
        if len(values) != len(pairs):
            raise InvalidInput(argument, f"{len(values)} for {len(pairs)} outputs", "one for each", "wrong-shape")
    terms = require.integer("terms", terms, least=0)
    require.one_of("computed_in", computed_in, EPS)
    limit = _tolerance(tolerance, terms, EPS[computed_in])
    fails = FACTOR * (limit.value if tolerance is not None else max(limit.value, math.sqrt(limit.eps)))
    residuals, worst_at, hidden = [], [], 0.0
    for (f, p), size in zip(pairs, sizes):
        outputs_scale = np.maximum(np.abs(f), np.abs(p)).max(axis=0, keepdims=True)
        scale = np.maximum(outputs_scale, np.nan_to_num(np.asarray(size, dtype=np.float64), posinf=0.0))
        gap = np.abs(f - p)
        relative = gap / np.where(scale > 0.0, scale, 1.0)
        residuals.append(float(relative.max()))
        worst_at.append(np.unravel_index(int(relative.argmax()), relative.shape))
        hidden = max(hidden, float((gap / np.where(outputs_scale > 0.0, outputs_scale, 1.0)).max()))
    worst = int(np.argmax(residuals))
    i, j = (int(k) for k in worst_at[worst])
    entries = {"f": float(pairs[worst][0][i, j]), "J nu": float(pairs[worst][1][i, j])}
    where = f"at {names[worst]}, sample {i}, output {j}: f = {entries['f']:.6g}, J nu = {entries['J nu']:.6g}"
    witness = None
    bounds: tuple[Bound, ...] = ()
    if residuals[worst] <= limit.value and hidden > max(math.sqrt(limit.eps), limit.value):
        verdict, rigor = Verdict.UNDECIDED, Rigor.NUMERICAL
        reason = f"terms that cancel may hide a difference between f and J nu: up to {hidden:.1e} of the outputs"
    elif residuals[worst] <= limit.value:
        verdict, rigor = Verdict.HOLDS, Rigor.STATISTICAL
        bounds = (Bound("residual", residuals[worst], "<=", limit.value),)
        reason = f"f = J nu up to rounding at {len(pairs)} theta: relative residual at most {residuals[worst]:.1e}"
    elif residuals[worst] > fails:
        verdict, rigor = Verdict.FAILS, Rigor.NUMERICAL
        bounds = (Bound("residual", residuals[worst], ">", fails),)
        reason = f"f is not J nu {where}"
        witness = {"theta": names[worst], "sample": i, "output": j, **entries}
    else:
        verdict, rigor = Verdict.UNDECIDED, Rigor.NUMERICAL
        excess = f"{residuals[worst]:.1e} {where}"
        reason = f"f differs from J nu by more than rounding errors, but too little to refute it: {excess}"
    return CheckResult(
        name="structure",
        statement=STATEMENT,
        verdict=verdict,
        rigor=rigor,
        subject=Subject.NETWORK,
        code=f"structure-{_KINDS[verdict]}",
        next_steps=_NEXT_STEPS[verdict],
        reason=reason,
        evidence=(f"tolerance {limit.value:.1e}: {limit.formula}",),
        measured={
            "residual": residuals[worst],
            "residuals": dict(zip(names, residuals)),
            "fails_above": fails,
            "terms": terms,
            "computed_in": computed_in,
        },
        bounds=bounds,
        tolerance=limit,
        witness=witness,
    )


def _tolerance(given: float | None, terms: int, eps: float) -> Tolerance:
    if given is not None:
        return Tolerance("given", rank_rules.checked_tolerance(given, "tolerance"), "given", "the caller", eps)
    source = "Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., (3.5)"
    return Tolerance("rounding", (terms + _AFTER) * eps, f"({terms} terms + {_AFTER}) eps", source, eps)


def _pairs(outputs: Sequence[Any], products: Sequence[Any]) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    if len(outputs) == 0 or len(outputs) != len(products):
        got = f"{len(products)} arrays for {len(outputs)} of outputs"
        raise InvalidInput("products", got, "as many arrays as outputs has, at least one", "wrong-shape")
    pairs = []
    for t, arrays in enumerate(zip(outputs, products)):
        f, p = (host(as_matrix(array, f"{name}[{t}]").array) for array, name in zip(arrays, ("outputs", "products")))
        if f.shape != p.shape:
            got = f"shape {p.shape} for outputs of shape {f.shape}"
            raise InvalidInput(f"products[{t}]", got, "that of its outputs", "wrong-shape")
        pairs.append((f, p))
    return pairs


@dataclasses.dataclass(frozen=True)
class Indicator:
    """Least-squares weights s of ``G s = f``, few of them non-zero.

    Attributes
    ----------
    weights : tuple of float
        Zero for columns that depend on those before them.
    residual : float
        ||f - G s|| / ||f||, rows scaled: zero up to rounding if any real weights solve the system.
    unique : bool
        Whether all columns are used: then the weights are unique.
    """

    weights: tuple[float, ...]
    residual: float
    unique: bool

    def subset(self) -> tuple[int, ...] | None:
        """Return the indices of the weights 1 if all weights are 0 or 1 up to 1e-6, else None."""
        if any(min(abs(w), abs(w - 1.0)) > 1e-6 for w in self.weights):
            return None
        return tuple(k for k, w in enumerate(self.weights) if w > 0.5)


def indicator(G: npt.NDArray[np.float64], f: npt.NDArray[np.float64], eps: float = EPS["float64"]) -> Indicator:
    """Solve ``G s = f`` for weights on the columns, the first columns first.

    A column is not used if it lies, up to sqrt(eps), in the span of the used ones before it. The columns of G are the
    sums of ``theta_k df / dtheta_k`` over groups of parameters. S satisfies Assumption 1 at the thetas of the rows if
    and only if its indicator solves the system; without a real solution there is no such S.

    Parameters
    ----------
    G : (rows, columns) float64
    f : (rows,) float64
    eps : float
        Machine epsilon of the dtype in which G and f were computed.

    Examples
    --------
    >>> G = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0], [3.0, 3.0, 5.0]])
    >>> indicator(G, G[:, 0]).subset()
    (0,)
    >>> indicator(G, 0.5 * G[:, 0]).subset() is None
    True
    """
    columns: list[int] = []
    basis = np.zeros((len(G), 0))
    for k in range(G.shape[1]):
        rest = G[:, k]
        for _ in range(2):  # twice is enough
            rest = rest - basis @ (basis.T @ rest)
        length = float(np.linalg.norm(rest))
        if length > math.sqrt(eps) * float(np.linalg.norm(G[:, k])):
            columns.append(k)
            basis = np.column_stack([basis, rest / length])
    weights = np.zeros(G.shape[1])
    if columns:
        lengths = np.linalg.norm(G[:, columns], axis=0)
        weights[columns] = np.linalg.lstsq(G[:, columns] / lengths, f, rcond=None)[0] / lengths
    size = float(np.linalg.norm(f))
    residual = float(np.linalg.norm(f - G @ weights)) / size if size else 0.0
    return Indicator(tuple(float(w) for w in weights), residual, len(columns) == G.shape[1])
