r"""Full row rank of a matrix given by the factors of its columns, proved through its Gram matrix.

A layer with inputs :math:`a_{it}` and backpropagated outputs :math:`b_{jit}` (sample i, output j, position t) adds the
columns :math:`\sum_t b_{jit} a_{it}^\top` to row j n + i of a Jacobian. With one position, its contribution to the Gram
matrix is :math:`(A A^\top) \circ (B B^\top)`, and the columns are never formed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from alignver.kernel.machine import arithmetic_fault
from alignver.proof.cholesky import safety_margin, substitution_fault, verified_shift
from alignver.proof.gram_tiles import WIDTH, ScaledGram, by_pairs
from alignver.proof.rounding import (
    OMEGA,
    FloatArray,
    U,
    add_up,
    gamma,
    mul_up,
    norm_up,
    scale_down,
    scale_up,
    sqrt_down,
    sqrt_up,
    square_sums_up,
    sub_down,
    sum_up,
)

_FAR = 2.0**400  # magnitude from which on factors are left to other methods
_NEAR = 64  # largest exponent of rows that need no scaling
_SIZE = "the matrix is too large for the bound"
_RANGE = "a layer has factors that are too large, or become too large when rows are scaled"


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """The factors of some columns, as exact floats.

    Attributes
    ----------
    name : str
        The parameter that the columns are derivatives with respect to.
    inputs : (n, T, a) float64
        A; a constant 1 at the end represents a bias.
    gradients : (m, n, T, b) float64
        B.
    """

    name: str
    inputs: FloatArray
    gradients: FloatArray

    @property
    def columns(self) -> int:
        """Number of columns, a b."""
        return int(self.inputs.shape[2] * self.gradients.shape[3])

    @property
    def flops(self) -> float:
        """Approximate number of operations of its contribution to the Gram matrix."""
        m, n, T, b = self.gradients.shape
        return by_pairs(m * n, n, T, self.inputs.shape[2], b)[1]


@dataclasses.dataclass(frozen=True, eq=False)
class FactoredRank:
    """The result of a proof through the factors.

    Attributes
    ----------
    proved : bool
        Every matrix in the ball (spectral norm) around the matrix defined by the factors has full row rank.
    s_min : float
        Verified lower bound of the smallest singular value of the matrix defined by the factors.
    reason : str
        Why there is no proof; empty if there is one.
    exponents : array or None
        The row scaling D = diag(2**exponents), if there is a proof.
    constants : mapping
        The numbers of the bound, for the certificate.
    taken : int
        Tile columns of the factorization that were stored before, by another process.
    """

    proved: bool
    s_min: float
    reason: str
    exponents: npt.NDArray[np.int64] | None = None
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    taken: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class LayerGram(ScaledGram):
    r"""The Gram matrix of the scaled rows that layers define: :func:`scaled_layers`.

    Attributes
    ----------
    squares : (N,) float64
        :math:`\sum_s p_s^2` for each row.
    relative, tiny : float
        The error of a diagonal entry is at most relative times its entry of ``squares``, and ``tiny``.
    """

    squares: FloatArray = dataclasses.field(default_factory=lambda: np.empty(0))
    relative: float = 0.0
    tiny: float = 0.0

    def size(self, diagonal: FloatArray) -> float:
        """Return an upper bound of the Frobenius norm of J from the computed diagonal of the matrix."""
        # ||J||_F^2 is the trace of M for the unscaled rows; ``moved`` belongs to the scaled rows.
        upper = diagonal + self.relative * self.squares
        squares = np.ldexp(upper * (1.0 + 2.0**-40) + self.tiny, -2 * self.exponents)
        return add_up(sqrt_up(sum_up(_up(squares))), scale_up(self.moved, -int(self.exponents.min())))

    def by_outputs(self) -> npt.NDArray[np.int64]:
        """Return the exponents in the order of the rows of J, j n + i."""
        return np.ascontiguousarray(self.exponents.reshape(int(self.factors[0][0].shape[0]), -1).T).reshape(-1)


def row_rank_by_factors(layers: Sequence[Layer], radius: Callable[[float], float]) -> FactoredRank:
    r"""Prove that every matrix in a ball around the one that the factors of the layers define has full row rank.

    The matrix is :math:`J = [J_1, J_2, \ldots]`, :math:`J_s` with the columns of layer s, in exact arithmetic on the
    given floats. Additional columns, which belong to no layer, only increase :math:`J J^\top`. The computed matrix is

    .. math:: \hat M = \sum_s \Big\{\sum_{t,t'} (A_t A_{t'}^\top) \circ (B_t B_{t'}^\top)
              \ \text{ or }\ \hat J_s \hat J_s^\top\Big\}

    **The matrix.** Let :math:`p_s` be the vector of :math:`\sum_t \|a_{it}\| \|b_{jit}\|`. The products
    :math:`a_{it\alpha} a_{kt'\alpha} b_{jit\beta} b_{lkt'\beta}` of entry (k, l) of a contribution have magnitudes
    whose sum is at most :math:`p_{s,k} p_{s,l}` (Cauchy and Schwarz, for each pair of positions). Each undergoes at
    most K roundings, K the largest number within a contribution plus one for each added contribution
    (:func:`roundings`), so it enters with a factor :math:`1 + \theta`, :math:`|\theta| \le \gamma_K` (Higham
    2002, Lemma 3.1), and :math:`|\hat M - M| \le \gamma_K \sum_s p_s p_s^\top` entry by entry. The spectral norm of a
    matrix is at most that of a bound of its entries, and :math:`\|p_s p_s^\top\| = \|p_s\|^2`: the error is at most
    :math:`\gamma_K \sum_s \|p_s\|^2`.

    **Columns that are formed.** :math:`|\hat J_s - J_s| \le \gamma_T \sum_t |b_t| |a_t|^\top` entry by entry, rows of
    norms at most :math:`\gamma_T p_s`: the error :math:`\|\hat J_s - J_s\|_F \le \gamma_T \|p_s\|` of J itself is
    added, and the magnitudes above grow by the factor :math:`(1 + \gamma_T)^2`, less than :math:`1 + 2^{-10}`. Both are
    counted for every layer with several positions, formed or not, since a re-check may form columns that were not
    formed here.

    **The proof.** :math:`\hat M - (\text{margin} + t^2) I` has a Cholesky factorization; the margin exceeds the
    error above plus that of the factorization (:func:`~alignver.proof.cholesky.rump_shift`; only the lower triangle is
    read, and the bound holds for it too): :math:`\lambda_{\min}(M) > t^2`, hence
    :math:`s_{\min}(D J) > t - \text{lost}`, and :math:`s_{\min}(J) \ge s_{\min}(D J) / \max_i D_{ii}`. Rows are
    scaled by powers of two, D, through B. The scaling is exact except for underflow, which is included in ``lost``. A
    perturbation E keeps full rank while :math:`\|D E\| \le \max_i D_{ii} \|E\|` is below :math:`t - \text{lost}`.

    Parameters
    ----------
    layers : sequence of Layer
        At least one, all with the same n and m; finite.
    radius : callable
        Maps an upper bound of the Frobenius norm of the matrix to the radius of the ball (spectral norm).

    Returns
    -------
    FactoredRank
        ``proved`` is a PROOF.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> layer = Layer("w", rng.standard_normal((5, 1, 4)), rng.standard_normal((2, 5, 1, 3)))
    >>> row_rank_by_factors([layer], lambda size: 1e-12 * size).proved
    True
    """
    with np.errstate(all="ignore"):
        gram = scaled_layers(layers)
        return FactoredRank(False, 0.0, gram) if isinstance(gram, str) else _prove(gram, radius)


def scaled_layers(layers: Sequence[Layer]) -> LayerGram | str:
    """Return the Gram matrix of layers with the bounds of :func:`row_rank_by_factors`, or why it has none."""
    m, n = layers[0].gradients.shape[:2]
    N, columns = m * n, sum(layer.columns for layer in layers)
    if columns < N:
        return f"{N} rows in {columns} columns are dependent"
    fault = arithmetic_fault() or substitution_fault()
    if fault:
        return fault
    # Sample by sample, in copies that are scaled in place.
    factors = tuple(
        (
            layer.inputs,
            np.array(layer.gradients.transpose(1, 0, 2, 3), order="C").reshape(N, *layer.gradients.shape[2:]),
        )
        for layer in layers
    )
    if not all(_in_range(A) and _in_range(B) for A, B in factors):
        return _RANGE
    with np.errstate(all="ignore"):
        squares = np.sum([np.square(row_lengths(A, B)) for A, B in factors], axis=0)
        if not bool(np.all((squares > 2.0**-900) & (squares < 2.0**900))):
            return "a row is zero, or too large or too small"
        exponents = -(np.frexp(squares)[1].astype(np.int64) // 2)
        if float(squares.max()) <= 16.0 * float(squares.min()):  # no scaling, or one power for rows far from 1
            exponents[:] = 0 if int(np.abs(exponents).max()) <= _NEAR else int(exponents.max())
        if exponents.any():
            for _, B in factors:
                B *= np.ldexp(1.0, exponents)[:, None, None]
        if not all(_in_range(B) for _, B in factors):
            return _RANGE
        return _bounded(factors, exponents)


def _bounded(factors: tuple[tuple[FloatArray, FloatArray], ...], exponents: npt.NDArray[np.int64]) -> LayerGram | str:
    """Bound the errors of the Gram matrix of scaled factors."""
    N, lengths = exponents.size, [row_lengths(A, B) for A, B in factors]
    trace = add_up(*(sum_up(_up(size * size)) for size in lengths))
    squares = np.sum([_up(size * size) for size in lengths], axis=0)
    counts = [roundings(A.shape[1], A.shape[2], B.shape[2]) for A, B in factors]
    terms = max(within for within, _ in counts) + sum(additions for _, additions in counts) + 4
    # Underflow. Two inner products of a and b terms lose a OMEGA and b OMEGA and are below b 2^800 and a 2^800, so
    # their product loses less than 4 a b 2^800 OMEGA with a b <= terms^2 / 4, for at most terms^2 pairs of positions,
    # and the same amount again in the subsequent roundings; N entries in a row. Scaling B may lose OMEGA in each entry,
    # times an entry of A, in J itself.
    tiny = mul_up(float(N), float(terms) ** 4, OMEGA, 2.0**802)
    lost = mul_up(float(N), float(sum(A.shape[1] * A.shape[2] * B.shape[2] for A, B in factors)), OMEGA, _FAR)
    for (A, B), size in zip(factors, lengths):
        T = A.shape[1]
        if T > 1:
            underflow = mul_up(float(N), float(A.shape[2] * B.shape[2]), float(T), OMEGA)
            lost = add_up(lost, mul_up(gamma(T + 3), norm_up(size)), underflow)
    error = add_up(mul_up(gamma(terms), trace, 1.0 + 2.0**-10), tiny)
    if not (error < math.inf and gamma(terms) < 2.0**-11):
        return _SIZE
    relative, largest = mul_up(gamma(terms), 1.0 + 2.0**-10), float(_up(squares).max())
    return LayerGram(factors, exponents, trace, largest, error, lost, squares=squares, relative=relative, tiny=tiny)


def roundings(T: int, a: int, b: int) -> tuple[int, int]:
    """Bound the roundings of one product within the contribution of a layer, and the additions of contributions.

    The bounds hold for both orders of summation, here and in a re-check. By pairs of positions: a + b + 1 for the two
    inner products and their product, T additions over the second position, then one for each first position. By
    columns: an inner product of at most ``WIDTH`` columns or the length of one factor; then one addition for each
    group.
    """
    if T == 1:
        return a + b + 1, 1
    groups = max(-(-long // max(1, WIDTH // short)) for long, short in ((a, b), (b, a)))
    return a + b + T + WIDTH + 1, max(T, groups)


def row_lengths(A: FloatArray, B: FloatArray) -> FloatArray:
    r"""Return upper bounds p (n m,) of :math:`\sum_t \|a_{it}\| \|b_{rt}\|`, hence of the norms of the rows."""
    n, T, a = A.shape
    inputs = _root(square_sums_up(A.reshape(-1, a), 1)).reshape(n, 1, T)
    gradients = _root(square_sums_up(B.reshape(-1, B.shape[2]), 1)).reshape(n, -1, T)
    with np.errstate(all="ignore"):
        sums = (inputs * gradients).sum(axis=2).reshape(-1)
        return np.asarray(sums * (1.0 + (T + 8) * 2.0 * U) + T * OMEGA)


def _prove(gram: LayerGram, radius: Callable[[float], float]) -> FactoredRank:
    margin = safety_margin(gram.order, gram.error, gram.trace, gram.largest)
    lower = gram.lower()
    if not (margin < math.inf and bool(np.all(np.isfinite(lower)))):
        return FactoredRank(False, 0.0, _SIZE)
    shift = verified_shift(lower, margin)
    if shift is None:
        reason = f"a shift of {margin:.1e} of trace {gram.trace:.1e} breaks Cholesky"
        return FactoredRank(False, 0.0, f"the Gram matrix is not safely definite: {reason}")
    size = gram.size(np.diagonal(lower))
    return in_ball(gram, max(0.0, sub_down(sqrt_down(shift), gram.moved)), shift, margin, size, radius(size))


def in_ball(gram: LayerGram, floor: float, shift: float, margin: float, size: float, delta: float) -> FactoredRank:
    """Return the result of a proof that s_min(D J) >= ``floor``, for the ball of radius ``delta`` around J."""
    top = int(gram.exponents.max())
    s_min = scale_down(floor, -top)
    constants = {"shift": shift, "margin": margin, "lost": gram.moved, "s_min": s_min, "size": size, "radius": delta}
    if not floor > mul_up(scale_up(delta, top), 1.0 + 2.0**-20):  # a re-check may round its scalars more coarsely
        reason = f"the ball's radius {delta:.1e} exceeds the proved s_min {s_min:.1e}"
        return FactoredRank(False, s_min, reason, None, constants)
    return FactoredRank(True, s_min, "", gram.by_outputs(), constants)


def _in_range(x: FloatArray) -> bool:
    """Whether squares and products of factors are far from overflow; False for NaN."""
    return max(-float(x.min()), float(x.max())) < _FAR


def _root(x: FloatArray) -> FloatArray:
    return np.asarray(np.nextafter(np.sqrt(x), np.inf))


def _up(x: FloatArray) -> FloatArray:
    return np.asarray(np.nextafter(np.nextafter(x, np.inf), np.inf))
