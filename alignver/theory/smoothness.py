r"""Lipschitz constants of the gradient in the exploitation phase, which limit the step size.

Lemma 8 of the paper has :math:`\hat L = \frac{L_\ell}{n} \sum_i Z_i^2` with :math:`Z_i` the largest norm of row i
among the :math:`A_j`. Its proof contains a smaller constant. The gradient is :math:`\frac1n A_j^\top \partial_j \ell`,
so

.. math:: \|\nabla \hat{\mathcal L}(\theta') - \nabla \hat{\mathcal L}(\theta)\|^2
          \le \frac{1}{n^2} \max_j \|A_j\|_2^2\, L_\ell^2 \sum_j \|A_j (\theta'_j - \theta_j)\|^2
          \le \Bigl(\frac{L_\ell}{n} \max_j \|A_j\|_2^2\Bigr)^2 \|\theta' - \theta\|^2 ,

and :math:`\frac{L_\ell}{n} \max_j \|A_j\|_2^2` can replace :math:`\hat L`. It is never larger, since
:math:`\|A_j\|_2^2 \le \|A_j\|_F^2 \le \sum_i Z_i^2`, and up to n times smaller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math

import numpy as np
from scipy.sparse.linalg import ArpackError, eigsh

from alignver.features.products import gate_matrix_error, gram, row_kronecker
from alignver.linalg.norms import start_vector
from alignver.progress import track
from alignver.proof.cholesky import is_positive_definite
from alignver.proof.rounding import FloatArray, add_up, gamma, mul_up, sqrt_up, square_sums_up, sum_up
from alignver.theory.exploitation import Exploitation
from alignver.theory.losses import SampleLoss, sample_loss

_ORDER = 3000
"""Largest order of a symmetric matrix that an eigenvalue and a factorization bound: some seconds each."""


@dataclasses.dataclass(frozen=True)
class Smoothness:
    r"""Constants of the exploitation phase.

    Attributes
    ----------
    paper : float
        Lemma 8's :math:`\hat L`, rounded up.
    spectral : float
        Upper bound of :math:`\frac{L_\ell}{n} \max_j \|A_j\|_2^2`, at most ``paper``.
    spectral_estimate : float
        The same number in floating-point arithmetic, without an error bound: it shows how sharp the bound is.
    how : str
        ``"eigenvalues"``: bound verified by a Cholesky factorization; ``"Schur"``: the product bound, for large n;
        ``"gates of 1"``: bound with gates of 1.
    sample : float
        :math:`L_\ell \max_i Z_i^2`, rounded up: valid for the loss of any one sample, and of any batch.
    """

    paper: float
    spectral: float
    spectral_estimate: float
    how: str
    sample: float

    @property
    def step(self) -> float:
        """1 / spectral: Theorem 5 (i) holds with it."""
        return math.nextafter(1.0 / self.spectral, 0.0) if self.spectral else math.inf

    @property
    def limit(self) -> float:
        """2 / spectral: gradient descent with a constant step below it never increases the loss (Lemma 2)."""
        return math.nextafter(2.0 / self.spectral, 0.0) if self.spectral else math.inf

    def of_batches(self, n: int, size: int) -> Smoothness:
        r"""Return constants that are valid for the mean loss of any ``size`` of the n samples.

        With :math:`A_{j,B}` the rows of a batch, :math:`\frac{L_\ell}{b} \|A_{j,B}\|_2^2` is at most
        :math:`\frac{L_\ell}{b} \|A_j\|_2^2 = \frac nb` times the constant of all samples, and at most
        :math:`\frac{L_\ell}{b} \sum_{i \in B} Z_i^2 \le L_\ell \max_i Z_i^2`.
        """
        share = mul_up(n / size, 1.0 + 2.0**-50)
        spectral = min(mul_up(self.spectral, share), self.sample)
        return dataclasses.replace(self, paper=self.sample, spectral=spectral)


def smoothness(model: Exploitation, loss: str | SampleLoss, *, order: int = _ORDER) -> Smoothness:
    r"""Return Lipschitz constants of the gradient: the paper's and the spectral one.

    .. math:: \hat L = \frac{L_\ell}{n} \sum_i \max_j \|(A_j)_{i*}\|^2 , \qquad \frac{L_\ell}{n} \max_j \|A_j\|_2^2

    Parameters
    ----------
    model : Exploitation
    loss : str or SampleLoss
    order : int
        Largest min(n, h m) for which eigenvalues are computed. Beyond it :math:`\|A_j\|_2 \le
        \|\mathrm{diag}(\|t_i\|) Z\|_2` replaces them (t_i row i of the gate values times output weights).

    Returns
    -------
    Smoothness
        Both are upper bounds for the exact gates: eigenvalues are verified, sums rounded outward, and the error of the
        gate values (:func:`~alignver.features.products.gate_matrix_error`) is included. If that error is not small, the
        upper bound 1 replaces the gates, and both numbers are computed from row norms.

    Raises
    ------
    InvalidInput
        If the loss is unknown or not convex.

    References
    ----------
    Lemma 8; the Schur product bound is Theorem 5.5.18 of Horn and Johnson, *Topics in Matrix Analysis* (1991).

    Examples
    --------
    >>> import numpy as np
    >>> model = Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
    >>> bounds = smoothness(model, "squared")
    >>> round(bounds.paper, 6), round(bounds.spectral, 6)
    (4.5, 3.927055)
    """
    constant = mul_up(float(sample_loss(loss, model.m_y).smoothness) / model.n, 1.0 + 2.0**-50)
    longest = sqrt_up(float(square_sums_up(model.Z, 1).max()))
    gates = max(float(square_sums_up(R, 0).max()) for R in model.steep_gates)
    relative = add_up(gate_matrix_error(model.m, longest, sqrt_up(gates)), 2.0**-52)
    if not relative < 2.0**-10:
        lengths = square_sums_up(model.Z, 1) * float(square_sums_up(model.output_weights, 1).max())
        bound = mul_up(constant, sum_up(lengths * (1.0 + 2.0**-50)))
        most = mul_up(mul_up(constant, float(model.n)), mul_up(float(lengths.max()), 1.0 + 2.0**-50))
        return Smoothness(bound, bound, bound, "gates of 1", max(most, bound))
    room = mul_up(add_up(1.0, mul_up(1.01, relative)), add_up(1.0, mul_up(1.01, relative)))
    squares = row_norms(model) ** 2 * (1.0 + 2.0**-50)
    paper = mul_up(constant, sum_up(squares), room)
    sample = max(mul_up(constant, float(model.n), float(squares.max()), room), paper)
    norms = [squared_norm_up(model.Z, model.factors[j], order=order) for j in track(range(model.m_y), "norms of A_j")]
    # ||A' - A||_2 <= ||A' - A||_F <= 1.01 relative ||A||_F. This share of ||A||_2 is not a bound: errors of the gates
    # with different signs can increase the norm by more.
    size = add_up(sqrt_up(max(upper for upper, _, _ in norms)), mul_up(1.01, relative, sqrt_up(sum_up(squares))))
    spectral = min(mul_up(constant, size, size), paper)
    how = "Schur" if any(how == "Schur" for _, _, how in norms) else "eigenvalues"
    return Smoothness(paper, spectral, constant * max(estimate for _, estimate, _ in norms), how, sample)


def row_norms(model: Exploitation) -> FloatArray:
    r"""Return Z of Lemma 8: :math:`Z_i = \max_j \|(A_j)_{i*}\| = \|z_i\| \max_j \|W_{j*} \circ S^{(j)}_i\|`, (n,)."""
    lengths = np.stack([square_sums_up(factor, 1) for factor in model.factors]).max(axis=0)
    norms: FloatArray = np.sqrt(lengths * square_sums_up(model.Z, 1)) * (1.0 + 2.0**-50)
    return norms


def squared_norm_up(Z: FloatArray, T: FloatArray, *, order: int = _ORDER) -> tuple[float, float, str]:
    r"""Return a bound of :math:`\|A\|_2^2` for the A with rows :math:`T_i \otimes z_i`, an estimate, and the method.

    If min(n, h m) <= ``order``, the bound is the largest eigenvalue from Lanczos' iteration plus a millionth, and a
    Cholesky factorization of the bound times I minus the Gram matrix proves it (rounding included). If that fails or
    the orders are larger: :math:`A A^\top = P \circ (D Z)(D Z)^\top`, D = diag(||T_i||) and P the Gram
    matrix of unit vectors, so :math:`\|A\|_2 \le \|D Z\|_2` by Schur's inequality; likewise with Z and T exchanged.
    Each is at most :math:`\|A\|_F`.

    Examples
    --------
    >>> import numpy as np
    >>> Z, T = np.array([[2.0, 1.0], [0.0, 1.0]]), np.full((2, 3), 0.5)
    >>> upper, estimate, how = squared_norm_up(Z, T)
    >>> exact = np.linalg.norm((T[:, :, None] * Z[:, None, :]).reshape(2, -1), 2) ** 2
    >>> bool(exact <= upper <= 1.000002 * exact), bool(squared_norm_up(Z, T, order=0)[0] >= exact)
    (True, True)
    """
    n, m = Z.shape
    h = T.shape[1]
    lengths = square_sums_up(Z, 1) * square_sums_up(T, 1)
    frobenius = sum_up(lengths * (1.0 + 2.0**-50))
    if not 0.0 < frobenius < math.inf:
        return frobenius, frobenius, "eigenvalues"
    if min(n, h * m) <= order:
        if n <= h * m:
            G, inner = gram(Z, T), m + h + 2
        else:
            A = row_kronecker(T, Z)
            G, inner = A.T @ A, n + 2
        upper, estimate = _largest_eigenvalue_up(G, mul_up(gamma(inner), frobenius))
        if upper < frobenius:
            return upper, estimate, "eigenvalues"
    left = np.sqrt(square_sums_up(T, 1))[:, None] * Z
    right = np.sqrt(square_sums_up(Z, 1))[:, None] * T
    bounds = []
    for B in (left, right):
        if B.shape[1] <= max(order, _ORDER):
            G = B.T @ B
            bounds.append(_largest_eigenvalue_up(G, mul_up(gamma(n + 4), frobenius)))
    upper, estimate = min(bounds, default=(frobenius, frobenius))
    return min(upper, frobenius), min(estimate, frobenius), "Schur"


def _largest_eigenvalue_up(G: FloatArray, error: float) -> tuple[float, float]:
    """Return a verified upper bound of the largest eigenvalue of every symmetric matrix within ``error`` of G (2-norm),
    and an estimate of it; the bound is infinity if the verification fails.
    """
    estimate = _largest_eigenvalue(G)
    for room in (2.0**-20, 2.0**-10, 0.25):
        upper = add_up(mul_up(max(estimate, 0.0), 1.0 + room), mul_up(4.0, error))
        shifted = -G
        shifted.flat[:: len(G) + 1] += upper
        # The subtraction on the diagonal rounds by at most u (upper + |g|): the error includes twice that of upper.
        if is_positive_definite(shifted, error=add_up(error, mul_up(2.0**-51, upper))):
            return upper, estimate
    return math.inf, estimate


def _largest_eigenvalue(G: FloatArray) -> float:
    """Return the largest eigenvalue by Lanczos' iteration, which approaches it from below, or by LAPACK."""
    if len(G) > 200:
        with contextlib.suppress(ArpackError):
            return float(eigsh(G, k=1, which="LA", v0=start_vector(len(G)), tol=1e-10, return_eigenvectors=False)[0])
    return float(np.linalg.eigvalsh(G)[-1])
