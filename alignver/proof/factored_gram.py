r"""Full row rank of a matrix given by the factors of its columns, proved through its Gram matrix.

A layer with inputs :math:`a_{it}` and backpropagated outputs :math:`b_{jit}` (sample i, output j, position t) adds the
columns :math:`\sum_t b_{jit} a_{it}^\top` to row j n + i of a Jacobian. With one position, its contribution to the Gram
matrix is :math:`(A A^\top) \circ (B B^\top)`, and the columns are never formed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from alignver.kernel.floats import arithmetic_fault
from alignver.progress import track
from alignver.proof.cholesky import safety_margin, verified_shift
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

__all__ = ["FactoredRank", "Layer", "row_rank_by_factors"]

_WIDTH = 256  # approximate number of columns formed at a time with many positions: longer sums have larger errors
_FAR = 2.0**400  # magnitude from which on factors are left to other methods
_NEAR = 64  # largest exponent of rows that need no scaling
_RANGE = "a layer has factors that are too large, or become too large when rows are scaled"
_PASS = 24.0  # approximate cost of one elementwise pass, in operations per entry


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
    def by_pairs(self) -> bool:
        """Whether pairs of positions need fewer operations than the columns themselves."""
        pairs, formed = self._operations()
        return self.inputs.shape[1] == 1 or pairs <= formed

    @property
    def flops(self) -> float:
        """Approximate number of operations of its contribution to the Gram matrix."""
        return self._operations()[0 if self.by_pairs else 1]

    def _operations(self) -> tuple[float, float]:
        m, n, T, b = self.gradients.shape
        a, N = self.inputs.shape[2], m * n
        return T * T * (2.0 * a * n * n + (2.0 * b + _PASS) * N * N), 2.0 * a * b * T * N + 2.0 * a * b * N * N

    def roundings(self) -> tuple[int, int]:
        """Bound the roundings of one product within its contribution, and the subsequent additions of contributions.

        The bounds hold for both orders of summation, here and in a re-check. By pairs of positions: a + b + 1 for the
        two inner products and their product, T additions over the second position, then one for each first position.
        By columns: an inner product of at most ``_WIDTH`` columns or the length of one factor; then one addition for
        each group.
        """
        _, _, T, b = self.gradients.shape
        a = self.inputs.shape[2]
        if T == 1:
            return a + b + 1, 1
        groups = max(-(-long // max(1, _WIDTH // short)) for long, short in ((a, b), (b, a)))
        return a + b + T + _WIDTH + 1, max(T, groups)

    def lengths(self) -> FloatArray:
        r"""Return upper bounds p (m, n) of :math:`\sum_t \|a_{it}\| \|b_{jit}\|`, hence of the norms of the rows."""
        (n, T, a), (m, _, _, b) = self.inputs.shape, self.gradients.shape
        inputs = _root(square_sums_up(self.inputs.reshape(-1, a), 1)).reshape(1, n, T)
        gradients = _root(square_sums_up(self.gradients.reshape(-1, b), 1)).reshape(m, n, T)
        with np.errstate(all="ignore"):
            sums = (inputs * gradients).sum(axis=2)
            return np.asarray(sums * (1.0 + (T + 8) * 2.0 * U) + T * OMEGA)


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
    """

    proved: bool
    s_min: float
    reason: str
    exponents: npt.NDArray[np.int64] | None = None
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)


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
    (:meth:`Layer.roundings`), so it enters with a factor :math:`1 + \theta`, :math:`|\theta| \le \gamma_K` (Higham
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
    m, n = layers[0].gradients.shape[:2]
    N, columns = m * n, sum(layer.columns for layer in layers)
    if columns < N:
        return FactoredRank(False, 0.0, f"{N} rows in {columns} columns are dependent")
    fault = arithmetic_fault()
    if fault:
        return FactoredRank(False, 0.0, fault)
    if not all(_in_range(layer) for layer in layers):
        return FactoredRank(False, 0.0, _RANGE)
    with np.errstate(all="ignore"):
        return _prove(layers, N, radius)


def _prove(layers: Sequence[Layer], N: int, radius: Callable[[float], float]) -> FactoredRank:
    sizes = [layer.lengths().reshape(N) for layer in layers]
    squares = np.sum([size * size for size in sizes], axis=0)
    if not bool(np.all((squares > 2.0**-900) & (squares < 2.0**900))):
        return FactoredRank(False, 0.0, "a row is zero, or too large or too small")
    exponents = -(np.frexp(squares)[1].astype(np.int64) // 2)
    if float(squares.max()) <= 16.0 * float(squares.min()):  # no scaling, or one power for all rows if far from 1
        exponents[:] = 0 if int(np.abs(exponents).max()) <= _NEAR else int(exponents.max())
    power = np.ldexp(1.0, exponents)
    scaled = [
        dataclasses.replace(
            layer, gradients=layer.gradients * power.reshape(layer.gradients.shape[:2])[:, :, None, None]
        )
        for layer in layers
    ]
    if not all(_in_range(layer) for layer in scaled):
        return FactoredRank(False, 0.0, _RANGE)
    lengths = [layer.lengths().reshape(N) for layer in scaled]
    trace = add_up(*(sum_up(_up(size * size)) for size in lengths))
    largest = float(_up(np.sum([_up(size * size) for size in lengths], axis=0)).max())
    gram, lost = _gram(scaled, N)
    counts = [layer.roundings() for layer in scaled]
    terms = max(within for within, _ in counts) + sum(additions for _, additions in counts) + 4
    # Underflow. Two inner products of a and b terms lose a OMEGA and b OMEGA and are below b 2^800 and a 2^800, so
    # their product loses less than 4 a b 2^800 OMEGA with a b <= terms^2 / 4, for at most terms^2 pairs of positions,
    # and the same amount again in the subsequent roundings; N entries in a row. Scaling B may lose OMEGA in each entry,
    # times an entry of A, in J itself.
    tiny = mul_up(float(N), float(terms) ** 4, OMEGA, 2.0**802)
    columns = sum(layer.columns * layer.inputs.shape[1] for layer in layers)
    lost = add_up(lost, mul_up(float(N), float(columns), OMEGA, _FAR))
    error = add_up(mul_up(gamma(terms), trace, 1.0 + 2.0**-10), tiny)
    margin = safety_margin(N, error, trace, largest)
    if not (margin < math.inf and gamma(terms) < 2.0**-11 and bool(np.all(np.isfinite(gram)))):
        return FactoredRank(False, 0.0, "the matrix is too large for the bound")
    shift = verified_shift(gram, margin)
    if shift is None:
        reason = f"the Gram matrix is not safely definite: a shift of {margin:.1e} of trace {trace:.1e} breaks Cholesky"
        return FactoredRank(False, 0.0, reason)
    top = int(exponents.max())
    # ||J||_F^2 is the trace of M for the unscaled rows; ``lost`` belongs to the scaled rows.
    diagonal = np.diagonal(gram) + mul_up(gamma(terms), 1.0 + 2.0**-10) * np.sum([_up(x * x) for x in lengths], axis=0)
    size = add_up(
        sqrt_up(sum_up(_up(np.ldexp(diagonal * (1.0 + 2.0**-40) + tiny, -2 * exponents)))),
        scale_up(lost, -int(exponents.min())),
    )
    delta = radius(size)
    floor = max(0.0, sub_down(sqrt_down(shift), lost))
    s_min = scale_down(floor, -top)
    constants = {"shift": shift, "margin": margin, "lost": lost, "s_min": s_min, "size": size, "radius": delta}
    if not floor > mul_up(scale_up(delta, top), 1.0 + 2.0**-20):  # a re-check may round its scalars more coarsely
        reason = f"the ball's radius {delta:.1e} exceeds the proved s_min {s_min:.1e}"
        return FactoredRank(False, s_min, reason, None, constants)
    return FactoredRank(True, s_min, "", exponents, constants)


def _gram(layers: Sequence[Layer], N: int) -> tuple[FloatArray, float]:
    """Return the Gram matrix, and a bound of the error in formed columns (Frobenius norm)."""
    total, lost = np.zeros((N, N)), 0.0
    for layer in track(layers, "Gram matrix of layer factors"):
        T = layer.inputs.shape[1]
        for share in _by_pairs(layer, N) if layer.by_pairs else _by_columns(layer, N):
            total += share
        if T > 1:
            lost = add_up(
                lost,
                mul_up(gamma(T + 3), norm_up(layer.lengths().reshape(N))),
                mul_up(float(N), float(layer.columns), float(T), OMEGA),
            )
    return total, lost


def _by_pairs(layer: Layer, N: int) -> Iterator[FloatArray]:
    """Yield the contribution of each first position t: sum_s (A_t A_s^T) o (B_t B_s^T)."""
    m, n, T, b = layer.gradients.shape
    for t in range(T):
        left = np.ascontiguousarray(layer.gradients[:, :, t]).reshape(N, b)
        whole: FloatArray | None = None
        for s in range(T):
            # An array times its own transpose may cost half as much (syrk), with the same sums.
            right = left if s == t else np.ascontiguousarray(layer.gradients[:, :, s]).reshape(N, b)
            share = (left @ right.T).reshape(m, n, m, n)
            share *= (layer.inputs[:, t] @ layer.inputs[:, s].T)[None, :, None, :]
            whole = share.reshape(N, N) if whole is None else np.add(whole, share.reshape(N, N), out=whole)
        assert whole is not None
        yield whole


def _by_columns(layer: Layer, N: int) -> Iterator[FloatArray]:
    """Yield, for groups of columns, their product with their transpose."""
    m, n, T, b = layer.gradients.shape
    step = max(1, _WIDTH // layer.inputs.shape[2])
    for start in range(0, b, step):
        part = layer.gradients[:, :, :, start : start + step]
        formed = (part.transpose(1, 0, 3, 2).reshape(n, -1, T) @ layer.inputs).reshape(n, m, -1)
        rows = np.ascontiguousarray(formed.transpose(1, 0, 2)).reshape(N, -1)
        yield rows @ rows.T


def _in_range(layer: Layer) -> bool:
    """Whether squares and products of the factors are far from overflow; False for NaN."""
    return all(max(-float(x.min()), float(x.max())) < _FAR for x in (layer.inputs, layer.gradients))


def _root(x: FloatArray) -> FloatArray:
    return np.asarray(np.nextafter(np.sqrt(x), np.inf))


def _up(x: FloatArray) -> FloatArray:
    return np.asarray(np.nextafter(np.nextafter(x, np.inf), np.inf))
