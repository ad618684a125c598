"""Gates of full rank where the trained ones have none: replace as few as needed, keep the function on the samples.

What is known of the exploitation phase when it begins: ranks, conditioning and stable steps, repaired if need be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from alignver.checks.exploration import Ranks, prove_ranks
from alignver.errors import InvalidInput, printable
from alignver.features.products import gram
from alignver.linalg.lsmr import lsmr
from alignver.proof.rounding import FloatArray
from alignver.results import shown_down
from alignver.theory.exploitation import Exploitation
from alignver.theory.smoothness import Smoothness, smoothness

__all__ = ["MODES", "Guarantee", "Repaired", "balanced", "guarantee", "repair", "stairs"]
MODES = ("none", "redraw", "staircase")
_DIRECTIONS = 100  # drawn for a staircase, for each number of principal ones
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
        What is proved of the new gates.
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
    """Replace gates until rank n is proved of every output, and fit the weights to the function that was there.

    First the output weights are brought to one size (:func:`balanced`), which changes no output.

    ``staircase``: the units with the largest output weights get the gates of a staircase (:func:`stairs`). One unit
    first, then half as many again while the proof does not come through: blocks of fewer rows are better conditioned.
    Where it does, fewer units are tried again by bisection. ``redraw``: the same with gates drawn from the normal
    distribution. Where no proof comes through, the most units get new gates if that gives rank n in floating point and
    the trained gates have not even that.

    Parameters
    ----------
    model : Exploitation
        With the gates as they are.
    weights : (m_y, h, m) array
        W^(H-1,j), which the function is kept of: the change of least norm that keeps every output on the samples.
    ranks : Ranks
        What is proved of ``model``; outputs of rank n are left alone.
    mode : {"redraw", "staircase"}
    seed : int
        Of drawn gates and of the staircase's direction.
    outputs : (n, m_y) array, optional
        The function on the samples that is kept; None: that of ``model``.

    Returns
    -------
    Repaired
        ``ranks.all`` says whether it worked. Where ``ranks.refuted``, as by equal rows of Z, no gates do it, and
        nothing is touched.
    """
    if mode not in MODES[1:]:
        raise InvalidInput("repair", repr(mode), "one of " + ", ".join(MODES))
    if ranks.refuted:
        return Repaired(model, model.weights(weights), ranks, ((),) * model.m_y, 0.0)
    before = model.outputs(weights) if outputs is None else outputs
    gates, output = np.array(model.gates), np.array(model.output_weights)
    theta = np.array(model.weights(weights))
    replaced: list[tuple[int, ...]] = []
    for j, entry in enumerate(ranks.entries):
        chosen: tuple[int, ...] = ()
        if entry is None:
            output[j], theta[j] = balanced(output[j], theta[j])
            chosen, gates[j] = _new_gates(model, gates[j], output[j], mode, seed + j)
        replaced.append(chosen)
    repaired = Exploitation(model.Z, gates, output, model.slope)
    new = theta
    for j in (j for j, chosen in enumerate(replaced) if chosen or outputs is not None):
        new[j] = _refitted(repaired, theta[j], before[:, j], j)
    moved = float(np.abs(repaired.outputs(new) - before).max())
    return Repaired(repaired, new, prove_ranks(repaired), tuple(replaced), moved)


def balanced(output: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Bring all output weights to one size by powers of two, and divide the units' weights by them: the function stays.

    With frozen gates a unit enters as the product of its output weight and its weights, so nothing changes, not even by
    rounding; but the columns of A_j come to one size, and with them its singular values closer together. A unit whose
    output weight is zero gets one, and the weights zero.

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
    """Return the units with new gates and the gates (m, h) of an output; none and the old ones if nothing is proved."""
    units = np.argsort(-np.abs(output), kind="stable")
    if _proved(model, gates, output):
        return (), gates
    too_few, found = 0, None
    most = min(model.n, model.h) if mode == "staircase" else model.h
    for k in _counts(most):
        found = _tried(model, gates, output, units[:k], mode, seed)
        if found is not None:
            break
        too_few = k
    if found is None:
        trial = _trial(model, gates, units[:most], mode, seed)
        if _numerical(model, trial, output) and not _numerical(model, gates, output):
            return tuple(int(unit) for unit in units[:most]), trial
        return (), gates
    while k - too_few > 1:
        middle = (k + too_few) // 2
        fewer = _tried(model, gates, output, units[:middle], mode, seed)
        if fewer is None:
            too_few = middle
        else:
            k, found = middle, fewer
    return tuple(int(unit) for unit in units[:k]), found


def _counts(most: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 9, 13, ... up to ``most``, which comes last: there are no smaller blocks."""
    k = 1
    while k < most:
        yield k
        k += max(1, k // 2)
    yield most


def _tried(
    model: Exploitation, gates: FloatArray, output: FloatArray, units: npt.NDArray[np.int64], mode: str, seed: int
) -> FloatArray | None:
    """Return the gates (m, h) of an output with new ones for some units, if rank n is proved of them."""
    trial = _trial(model, gates, units, mode, seed)
    return trial if _proved(model, trial, output) else None


def _trial(model: Exploitation, gates: FloatArray, units: npt.NDArray[np.int64], mode: str, seed: int) -> FloatArray:
    q = stairs(model.Z, len(units), seed) if mode == "staircase" else _drawn(model.Z, len(units), seed)
    trial = gates.copy()
    trial[:, units] = q / model.slope
    return trial


def _numerical(model: Exploitation, gates: FloatArray, output: FloatArray) -> bool:
    """Whether A_j has rank n by its singular values (NumPy's rule); False where it is too large to look at."""
    if model.n * model.h * model.m > _SINGULAR:
        return False
    A = Exploitation(model.Z, gates[None], output[None], model.slope).dense(0)
    return int(np.linalg.matrix_rank(A)) == model.n


def _drawn(Z: FloatArray, k: int, seed: int) -> FloatArray:
    """Draw gates whose arguments are about 4 in size: neither all linear nor all saturated."""
    source = np.random.default_rng([seed, k])
    scale = 4.0 / max(float(np.sqrt((Z[:, :-1] ** 2).sum(axis=1).mean())), 1e-300)
    gates: FloatArray = source.standard_normal((Z.shape[1], k))
    gates[:-1] *= scale
    return gates


def stairs(Z: FloatArray, k: int, seed: int = 0) -> FloatArray:
    r"""Return gates (m, k) of a staircase with k blocks, as steep as its gaps ask for and no steeper.

    Unit j has the gate :math:`\tilde\sigma(c_j (v^\top z - t_j))`: near 1 on the first j blocks along v and near 0 on
    the rest. The proof in :mod:`alignver.features.staircase` takes one steepness for all units; its limit argument
    holds for
    each unit's own, :math:`c_j = 5 / \mathrm{gap}_j`, where a gate is 0.92 on one side of its gap and 0.08 on the
    other: enough for well-conditioned columns, and no more, since the arguments of steep gates are blurred by rounding.

    Trained features come in clusters, and along their principal direction the gaps inside a cluster can be 1e-12 of the
    spread. So directions are drawn among the leading principal ones, each scaled to unit variance, orthogonal to the
    mean (which would only make thresholds large), and the one with the smallest :math:`\max_j \|q_j\|` is taken;
    boundaries go to wide gaps nearby. Nothing is proved here.

    Examples
    --------
    >>> Z = np.column_stack([np.arange(6.0), np.ones(6)])
    >>> (Z @ stairs(Z, 3) > 0.0).sum(axis=0)  # rows on the open side of each gate
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
            found = _stairs_along(bare @ v, k)
            if found is None:
                continue
            steepness, thresholds = found
            q = np.vstack([v[:, None] * steepness, -(thresholds * steepness)[None]])
            longest = float(np.sqrt((q**2).sum(axis=0)).max())
            if best is None or longest < best[0]:
                best = (longest, q)
    if best is None:  # no direction tells all blocks apart
        return _drawn(Z, k, seed)
    return best[1]


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
    chosen = gaps[cuts] if cuts else np.empty(0)
    if chosen.size and not float(chosen.min()) > 1e-15 * spread:
        return None
    middles = (ordered[cuts] + ordered[np.asarray(cuts, dtype=np.int64) + 1]) / 2 if cuts else np.empty(0)
    last = spread / n  # the last unit is open for all rows: its threshold is below them by an average gap
    return np.append(5.0 / chosen, 2.5 / last), np.append(middles, ordered[-1] - last)


def _proved(model: Exploitation, gates: FloatArray, output: FloatArray) -> bool:
    return prove_ranks(Exploitation(model.Z, gates[None], output[None], model.slope)).all


def _refitted(model: Exploitation, weights: FloatArray, target: FloatArray, j: int) -> FloatArray:
    """Return the nearest weights of output j with the old outputs: theta + A^T (A A^T)^-1 (f - A theta)."""
    A = model.operator(j)
    theta = np.asarray(weights, dtype=np.float64).ravel()
    factored = None
    if model.n <= _DIRECT:
        try:
            factored = cho_factor(gram(model.Z, model.factors[j]), lower=True)
        except LinAlgError:  # proved with its rows scaled, which the plain Gram matrix is not
            factored = None
    for _ in range(3):  # the second and third time for what rounding left
        rest = target - A.matvec(theta)
        theta = theta + (lsmr(A, rest).b if factored is None else A.rmatvec(cho_solve(factored, rest)))
    return theta.reshape(model.h, model.m)


LARGEST = 6000
"""Samples up to which the ranks are proved unasked: a verified Cholesky factorization of that order an output."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Guarantee:
    """The state of affairs at tau.

    Attributes
    ----------
    model : Exploitation
        Features, gates (repaired if they were) and output weights.
    weights : (m_y, h, m) array
        W^(H-1,j), refitted if gates were replaced.
    before : Ranks or None
        What is proved of the trained gates; None where it was not looked at.
    after : Ranks or None
        What is proved of ``model``'s.
    replaced : tuple of tuple of int
        Units with new gates, for each output.
    moved : float
        Largest change of an output on the training samples by the repair.
    smoothness : Smoothness
        Lhat and with it the stable steps.
    notes : tuple of str
        What else the phase rests on: layers that are held still, an optimiser that adds to the loss.
    batch_size : int or None
        Samples in the smallest batch of a step; None: all.
    taken_back : float
        Share of the way to their initial values that the parameters before the last hidden layer were taken back.
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
    taken_back: float = 0.0

    def __repr__(self) -> str:
        """Say it in words: the arrays would fill screens."""
        return printable("Guarantee(" + "; ".join(self.sentences) + ")")

    @property
    def steps(self) -> Smoothness:
        """The constants that a step has to respect: those of a batch, whose loss may bend more than the whole one."""
        if self.batch_size is None:
            return self.smoothness
        return self.smoothness.of_batches(self.model.n, self.batch_size)

    @property
    def proved(self) -> bool:
        """Whether rank n is proved of every output: convergence to a global minimum is then a theorem (Theorem 4)."""
        return self.after is not None and self.after.all

    @property
    def sentences(self) -> tuple[str, ...]:
        """Say it in words."""
        count, n = self.model.m_y, self.model.n
        said = []
        if self.before is None:
            said.append(f"the ranks were not looked at: {n} samples, more than {LARGEST}")
        else:
            good = sum(entry is not None for entry in self.before.entries)
            said.append(f"rank n = {n} of the trained gates is proved for {good} of {count} outputs")
            if good < count:
                said.append(f"without it: {self.before.reasons[0]}")
            if self.before.refuted:
                said.append("no gates give these samples rank n: nothing was replaced")
        units = [len(own) for own in self.replaced]
        if any(units):
            spread = str(units[0]) if len(set(units)) == 1 else f"{min(units)} to {max(units)}"
            said.append(
                f"gates of {spread} of {self.model.h} units replaced for each output concerned; the outputs on the "
                f"training samples moved by {self.moved:.1e} at most"
            )
        if self.taken_back:
            said.append(
                f"no gates told the samples apart by the trained features: the parameters before the last hidden layer "
                f"were taken {self.taken_back:g} of the way back to their initial values"
            )
        if self.after is not None and not self.after.all:
            good = sum(entry is not None for entry in self.after.entries)
            if any(units):
                said.append("new gates without a proof have rank n in floating point only")
            said.append(f"rank n is proved for {good} of {count} outputs: the global minimum is not promised")
        if self.after is not None and self.after.all:
            least = min(entry["s_min"] for entry in self.after.entries if entry is not None)
            said.append(f"rank n is proved for every output, s_min >= {shown_down(least, 2)}")
        bounds = self.smoothness
        said.append(
            f"Lhat {bounds.spectral:.3g} ({bounds.paper:.3g} by Lemma 8): step 1/Lhat {bounds.step:.3g}, "
            f"stable below {shown_down(bounds.limit)}"
        )
        if self.batch_size is not None:
            steps = self.steps
            said.append(
                f"for batches of {self.batch_size}: Lhat {steps.spectral:.3g}, step {steps.step:.3g}, stable below "
                f"{shown_down(steps.limit)}"
            )
        return (*said, *self.notes)

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
            "replaced": [len(own) for own in self.replaced],
            "moved": self.moved,
            "taken_back": self.taken_back,
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
    """Prove the ranks, repair the gates where that fails and a repair is wanted, and compute Lhat.

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
        What a repair keeps on the samples; None: the model's outputs.

    Returns
    -------
    Guarantee
    """
    wanted = model.n <= LARGEST if prove is None else prove
    before = prove_ranks(model) if wanted else None
    none: tuple[tuple[int, ...], ...] = ((),) * model.m_y
    if before is None or (before.all and outputs is None) or mode == "none":
        return Guarantee(model, weights, before, before, none, 0.0, smoothness(model, loss))
    found: Repaired = repair(model, weights, before, mode=mode, seed=seed, outputs=outputs)
    return Guarantee(
        found.model, found.weights, before, found.ranks, found.replaced, found.moved, smoothness(found.model, loss)
    )
