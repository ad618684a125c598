"""The guarantee of the exploitation phase: ranks, conditioning and stable steps, with gates repaired if needed.

A repair replaces as few gates as possible until rank n is proved, and keeps the outputs on the samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from alignver import require
from alignver.checks.exploration import Ranks, prove_ranks
from alignver.errors import printable
from alignver.features.products import gram
from alignver.linalg.lsmr import lsmr
from alignver.proof.rounding import FloatArray
from alignver.results import shown_down
from alignver.theory.exploitation import Exploitation
from alignver.theory.smoothness import Smoothness, smoothness

MODES = ("none", "redraw", "staircase")
LARGEST = 6000
"""Samples up to which the ranks are proved by default: a verified Cholesky factorization of that order per output."""
_DIRECTIONS = 100  # drawn for a staircase, for each number of principal directions
_DIRECT = 5000  # samples up to which the least-squares problem is solved by its Gram matrix
_SINGULAR = 20_000_000  # entries of A_j up to which its singular values are computed


@dataclasses.dataclass(frozen=True, eq=False)
class Repaired:
    """Gates and weights after a repair.

    Attributes
    ----------
    model : Exploitation
    weights : (m_y, h, m) array
    ranks : Ranks
        The ranks proved for the new gates.
    replaced : tuple of tuple of int
        For each output, the units whose gates are new.
    moved : float
        Largest change of an output on the training samples.
    """

    model: Exploitation
    weights: FloatArray
    ranks: Ranks
    replaced: tuple[tuple[int, ...], ...]
    moved: float


def repair(
    model: Exploitation,
    weights: FloatArray,
    ranks: Ranks,
    *,
    mode: str,
    seed: int = 0,
    outputs: FloatArray | None = None,
) -> Repaired:
    """Replace gates until rank n is proved for every output, and refit the weights to the outputs on the samples.

    First the output weights are brought to one size (:func:`balanced`), which changes no output.

    ``staircase``: the units with the largest output weights get the gates of a staircase (:func:`stairs`). The number
    of units starts at one and grows by half while the proof fails: blocks of fewer rows are better conditioned. Once
    the proof succeeds, smaller numbers are tried by bisection. ``redraw``: the same with gates drawn from the normal
    distribution. If the proof fails for every number, the largest number of units gets new gates, provided that they
    have rank n in floating-point arithmetic and the trained gates do not.

    Parameters
    ----------
    model : Exploitation
        With the current gates.
    weights : (m_y, h, m) array
        W^(H-1,j); they change by the least norm that keeps every output on the samples.
    ranks : Ranks
        The ranks proved for ``model``; the gates of outputs with rank n are not changed.
    mode : {"redraw", "staircase"}
    seed : int
        Seed of drawn gates and of the directions of the staircase.
    outputs : (n, m_y) array, optional
        The outputs on the samples that are kept; None: those of ``model``.

    Returns
    -------
    Repaired
        ``ranks.all`` is True if rank n is proved. Where ``ranks.refuted``, for example by equal rows of Z, no gates
        have rank n, and the gates are not changed.
    """
    require.one_of("repair", mode, MODES[1:])
    if ranks.refuted:
        return Repaired(model, model.weights(weights), ranks, ((),) * model.m_y, 0.0)
    before = model.outputs(weights) if outputs is None else outputs
    gates, output = np.array(model.gates), np.array(model.output_weights)
    theta = np.array(model.weights(weights))
    replaced: list[tuple[int, ...]] = []
    for j, entry in enumerate(ranks.entries):
        units: tuple[int, ...] = ()
        if entry is None:
            output[j], theta[j] = balanced(output[j], theta[j])
            units, gates[j] = _new_gates(model, gates[j], output[j], mode, seed + j)
        replaced.append(units)
    repaired = Exploitation(model.Z, gates, output, model.slope)
    for j, units in enumerate(replaced):
        if units or outputs is not None:
            theta[j] = _refitted(repaired, theta[j], before[:, j], j)
    moved = float(np.abs(repaired.outputs(theta) - before).max())
    return Repaired(repaired, theta, prove_ranks(repaired), tuple(replaced), moved)


def balanced(output: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Bring all output weights to one size by powers of two, and divide the weights of the units by them.

    With frozen gates a unit enters the outputs as the product of its output weight and its weights, so the outputs do
    not change, not even by rounding; but the columns of A_j get similar norms, which brings its singular values closer
    together. A unit whose output weight is zero gets a nonzero output weight, and weights zero.

    Examples
    --------
    >>> output, weights = balanced(np.array([8.0, 0.5, 0.0]), np.ones((3, 2)))
    >>> output, weights[:, 0] * output
    (array([0.5, 0.5, 0.5]), array([8. , 0.5, 0. ]))
    """
    mantissas, exponents = np.frexp(output)
    alive = output != 0.0
    size = int(np.sort(exponents[alive])[(int(alive.sum()) - 1) // 2]) if alive.any() else 0  # the lower median
    new = np.where(alive, np.ldexp(mantissas, size), np.ldexp(0.5, size))
    shift = np.where(alive, exponents - size, 0)
    return new, np.where(alive[:, None], np.ldexp(weights, shift[:, None]), 0.0)


def _new_gates(
    model: Exploitation, gates: FloatArray, output: FloatArray, mode: str, seed: int
) -> tuple[tuple[int, ...], FloatArray]:
    """Return the units with new gates, and the gates (m, h) of an output; no units if new gates do not help."""
    units = np.argsort(-np.abs(output), kind="stable")
    if _proved(model, gates, output):
        return (), gates
    too_few = 0
    most = min(model.n, model.h) if mode == "staircase" else model.h
    for k in _counts(most):
        trial = _trial(model, gates, units[:k], mode, seed)
        if _proved(model, trial, output):
            break
        too_few = k
    else:
        if _numerical_rank_n(model, trial, output) and not _numerical_rank_n(model, gates, output):
            return tuple(units[:most].tolist()), trial
        return (), gates
    while k - too_few > 1:
        middle = (k + too_few) // 2
        fewer = _trial(model, gates, units[:middle], mode, seed)
        if _proved(model, fewer, output):
            k, trial = middle, fewer
        else:
            too_few = middle
    return tuple(units[:k].tolist()), trial


def _counts(most: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 9, 13, ... below ``most``, and ``most``."""
    k = 1
    while k < most:
        yield k
        k += max(1, k // 2)
    yield most


def _trial(model: Exploitation, gates: FloatArray, units: npt.NDArray[np.int64], mode: str, seed: int) -> FloatArray:
    """Return the gates (m, h) of an output with new gates for some units."""
    q = stairs(model.Z, len(units), seed) if mode == "staircase" else _drawn(model.Z, len(units), seed)
    trial = gates.copy()
    trial[:, units] = q / model.slope
    return trial


def _numerical_rank_n(model: Exploitation, gates: FloatArray, output: FloatArray) -> bool:
    """Whether A_j has rank n by its singular values (NumPy's rule); False where it is too large to compute them."""
    if model.n * model.h * model.m > _SINGULAR:
        return False
    A = Exploitation(model.Z, gates[None], output[None], model.slope).dense(0)
    return int(np.linalg.matrix_rank(A)) == model.n


def _drawn(Z: FloatArray, k: int, seed: int) -> FloatArray:
    """Draw gates whose arguments have magnitude about 4: neither all in the linear range nor all saturated."""
    source = np.random.default_rng([seed, k])
    scale = 4.0 / max(float(np.sqrt((Z[:, :-1] ** 2).sum(axis=1).mean())), 1e-300)
    gates: FloatArray = source.standard_normal((Z.shape[1], k))
    gates[:-1] *= scale
    return gates


def stairs(Z: FloatArray, k: int, seed: int = 0) -> FloatArray:
    r"""Return gates (m, k) of a staircase with k blocks, only as steep as its gaps need.

    Unit j has the gate :math:`\tilde\sigma(c_j (v^\top z - t_j))`: near 1 on the first j blocks along v and near 0 on
    the rest. The proof in :mod:`alignver.features.staircase` uses one steepness for all units; its limit argument also
    holds for a separate steepness :math:`c_j = 5 / \mathrm{gap}_j` of each unit. A gate is then 0.92 on one side of its
    gap and 0.08 on the other: this is enough for well-conditioned columns, and steeper gates have arguments with larger
    rounding errors.

    Trained features form clusters, and along their principal direction the gaps inside a cluster can be 1e-12 of the
    spread. Directions are therefore drawn among the leading principal directions, each scaled to unit variance and
    orthogonal to the mean (which would only make thresholds large), and the one with the smallest
    :math:`\max_j \|q_j\|` is taken; block boundaries are placed in wide gaps nearby. This function proves nothing.

    Examples
    --------
    >>> Z = np.column_stack([np.arange(6.0), np.ones(6)])
    >>> (Z @ stairs(Z, 3) > 0.0).sum(axis=0)  # rows where each gate is open
    array([2, 4, 6])
    """
    bare = Z[:, :-1]
    mean = bare.mean(axis=0)
    _, s, axes = np.linalg.svd(bare - mean, full_matrices=False)
    alive = int((s > 1e-12 * s[0]).sum())
    source = np.random.default_rng([seed, k])
    best: tuple[float, FloatArray] | None = None
    for leading in sorted({min(alive, count) for count in (1, 3, 8, 12, 20, 30)} - {0}):
        for _ in range(1 if leading == 1 else _DIRECTIONS):
            v = axes[:leading].T @ (source.standard_normal(leading) / s[:leading])
            if leading > 1:
                v -= mean * (float(mean @ v) / max(float(mean @ mean), 1e-300))
            staircase = _stairs_along(bare @ v, k)
            if staircase is None:
                continue
            steepness, thresholds = staircase
            q = np.vstack([v[:, None] * steepness, -(thresholds * steepness)[None]])
            longest = float(np.sqrt((q**2).sum(axis=0)).max())
            if best is None or longest < best[0]:
                best = (longest, q)
    return _drawn(Z, k, seed) if best is None else best[1]  # drawn if no direction separates all blocks


def _stairs_along(p: FloatArray, k: int) -> tuple[FloatArray, FloatArray] | None:
    """Cut projections into k blocks; return steepness and thresholds of the units."""
    n = len(p)
    ordered = np.sort(p)[::-1]
    gaps = ordered[:-1] - ordered[1:]
    spread = float(ordered[0] - ordered[-1])
    if not spread > 0.0:
        return None
    slack = n // (4 * k)
    cuts: list[int] = []
    for j in range(1, k):
        middle = round(j * n / k) - 1  # the gap after this many rows
        low, high = max(middle - slack, cuts[-1] + 1 if cuts else 0), min(middle + slack, n - 2)
        if low > high:
            return None
        cuts.append(low + int(np.argmax(gaps[low : high + 1])))
    after = np.asarray(cuts, dtype=np.int64)
    widths = gaps[after]
    if not (widths > 1e-15 * spread).all():
        return None
    middles = (ordered[after] + ordered[after + 1]) / 2
    last = spread / n  # the last unit is open for all rows: its threshold is below them by an average gap
    return np.append(5.0 / widths, 2.5 / last), np.append(middles, ordered[-1] - last)


def _proved(model: Exploitation, gates: FloatArray, output: FloatArray) -> bool:
    return prove_ranks(Exploitation(model.Z, gates[None], output[None], model.slope)).all


def _refitted(model: Exploitation, weights: FloatArray, target: FloatArray, j: int) -> FloatArray:
    """Return the nearest weights of output j with the given outputs: theta + A^T (A A^T)^-1 (f - A theta)."""
    A = model.operator(j)
    theta = np.asarray(weights, dtype=np.float64).ravel()
    factored = None
    if model.n <= _DIRECT:
        try:
            factored = cho_factor(gram(model.Z, model.factors[j]), lower=True)
        except LinAlgError:  # the rank is proved with scaled rows, and the plain Gram matrix is worse conditioned
            factored = None
    for _ in range(3):  # the second and third step correct rounding errors
        rest = target - A.matvec(theta)
        theta = theta + (lsmr(A, rest).b if factored is None else A.rmatvec(cho_solve(factored, rest)))
    return theta.reshape(model.h, model.m)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Guarantee:
    """Ranks, conditioning and stable steps at tau, and the repairs.

    Attributes
    ----------
    model : Exploitation
        Features, gates (repaired if they were) and output weights.
    weights : (m_y, h, m) array
        W^(H-1,j), refitted if gates were replaced.
    before : Ranks or None
        The ranks proved for the trained gates; None if no proof was attempted.
    after : Ranks or None
        The ranks proved for the gates of ``model``.
    replaced : tuple of tuple of int
        Units with new gates, for each output.
    moved : float
        Largest change of an output on the training samples by the repair.
    smoothness : Smoothness
        Lhat and the stable steps.
    notes : tuple of str
        Further conditions of the phase: layers that are frozen, an optimiser that adds to the loss.
    batch_size : int or None
        Samples in the smallest batch of a step; None: all.
    feature_reset : float
        Share of the way to their initial values that the parameters before the last hidden layer were moved.
    """

    model: Exploitation
    weights: FloatArray
    before: Ranks | None
    after: Ranks | None
    replaced: tuple[tuple[int, ...], ...]
    moved: float
    smoothness: Smoothness
    notes: tuple[str, ...] = ()
    batch_size: int | None = None
    feature_reset: float = 0.0

    def __repr__(self) -> str:
        """Return the sentences: the arrays would fill screens."""
        return printable("Guarantee(" + "; ".join(self.sentences) + ")")

    @property
    def steps(self) -> Smoothness:
        """The constants that limit a step: those of a batch, whose loss may have a larger curvature."""
        if self.batch_size is None:
            return self.smoothness
        return self.smoothness.of_batches(self.model.n, self.batch_size)

    @property
    def proved(self) -> bool:
        """Whether rank n is proved for every output: convergence to a global minimum is then a theorem (Theorem 4)."""
        return self.after is not None and self.after.all

    @property
    def sentences(self) -> tuple[str, ...]:
        """The guarantee in words."""
        count, n = self.model.m_y, self.model.n
        lines = []
        if self.before is None:
            lines.append(f"no proof of the ranks was attempted for {n} samples (by default up to {LARGEST})")
        else:
            good = sum(entry is not None for entry in self.before.entries)
            lines.append(f"rank n = {n} of the trained gates is proved for {good} of {count} outputs")
            if good < count:
                lines.append(f"without it: {self.before.reasons[0]}")
            if self.before.refuted:
                lines.append("no gates give these samples rank n: no gates were replaced")
        units = [len(replaced) for replaced in self.replaced]
        if any(units):
            counts = str(units[0]) if len(set(units)) == 1 else f"{min(units)} to {max(units)}"
            lines.append(
                f"gates of {counts} of {self.model.h} units replaced for each output concerned; the outputs on the "
                f"training samples moved by {self.moved:.1e} at most"
            )
        if self.feature_reset:
            lines.append(
                f"no gates separated the samples by the trained features: the parameters before the last hidden layer "
                f"were moved {self.feature_reset:g} of the way back to their initial values"
            )
        if self.after is not None and not self.after.all:
            good = sum(entry is not None for entry in self.after.entries)
            if any(units):
                lines.append("new gates without a proof have rank n in floating point only")
            lines.append(f"rank n is proved for {good} of {count} outputs: the global minimum is not guaranteed")
        if self.after is not None and self.after.all:
            least = min(entry["s_min"] for entry in self.after.entries if entry is not None)
            lines.append(f"rank n is proved for every output, s_min >= {shown_down(least, 2)}")
        bounds = self.smoothness
        lines.append(
            f"Lhat {bounds.spectral:.3g} ({bounds.paper:.3g} by Lemma 8): step 1/Lhat {bounds.step:.3g}, "
            f"stable below {shown_down(bounds.limit)}"
        )
        if self.batch_size is not None:
            steps = self.steps
            lines.append(
                f"for batches of {self.batch_size}: Lhat {steps.spectral:.3g}, step {steps.step:.3g}, stable below "
                f"{shown_down(steps.limit)}"
            )
        return (*lines, *self.notes)

    def summary(self) -> Mapping[str, Any]:
        """Return the numbers as plain data."""
        entries = () if self.after is None else self.after.entries
        return {
            "samples": self.model.n,
            "outputs": self.model.m_y,
            "width": self.model.h,
            "proved_before": None if self.before is None else self.before.all,
            "proved": self.proved,
            "s_min": [None if entry is None else entry["s_min"] for entry in entries],
            "replaced": [len(units) for units in self.replaced],
            "moved": self.moved,
            "feature_reset": self.feature_reset,
            "Lhat": self.smoothness.spectral,
            "Lhat_paper": self.smoothness.paper,
            "stable_step": self.steps.limit,
            "notes": list(self.notes),
        }


def guarantee(
    model: Exploitation,
    weights: FloatArray,
    *,
    loss: str,
    mode: str,
    seed: int = 0,
    prove: bool | None = None,
    outputs: FloatArray | None = None,
) -> Guarantee:
    """Prove the ranks, repair the gates where the proof fails and ``mode`` allows it, and compute Lhat.

    Parameters
    ----------
    model : Exploitation
        With the gates of theta^tau.
    weights : (m_y, h, m) array
    loss : str
    mode : {"none", "redraw", "staircase"}
        Of :func:`~alignver.training.guarantee.repair`.
    seed : int
    prove : bool, optional
        Whether to prove ranks. None: up to 6000 samples.
    outputs : (n, m_y) array, optional
        The outputs on the samples that a repair keeps; None: the model's outputs.

    Returns
    -------
    Guarantee
    """
    prove = model.n <= LARGEST if prove is None else prove
    before = prove_ranks(model) if prove else None
    if before is None or (before.all and outputs is None) or mode == "none":
        return Guarantee(model, weights, before, before, ((),) * model.m_y, 0.0, smoothness(model, loss))
    new = repair(model, weights, before, mode=mode, seed=seed, outputs=outputs)
    return Guarantee(new.model, new.weights, before, new.ranks, new.replaced, new.moved, smoothness(new.model, loss))
