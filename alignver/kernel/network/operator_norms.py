r"""Upper bounds of spectral norms: of matrices, by squaring, and of convolutions, by their symbols.

**Squaring.** :math:`\|F\|^2 = \|F F^*\|` for every matrix F. With :math:`F_0 = K^* K`, :math:`F_{i+1}` the computed
:math:`F_i F_i^*` and :math:`f_i = \|F_i\|_F`, :math:`\|F_i\|^2 \le \|F_{i+1}\| + \gamma f_i^2`: the bound of the last
one by its Frobenius norm goes back through roots, and p squarings of order n overestimate :math:`\|K\|` by at most
:math:`n^{2^{-(p+2)}}`. An entry of a complex product is two sums of 2k real products: its error is at most
:math:`\sqrt 2\,\gamma_{2k} \le \gamma_{3k}` times the product of the lengths of a row and a column.

**Convolutions.** Zero padding is an isometry, sampling with a stride a contraction, and dilation does not change the
range of the symbol :math:`K(\omega) = \sum_t w_t e^{-i \omega t}`: so the norm is at most :math:`\sup \|K(\omega)\|`.
On M equidistant frequencies for a side of length k, :math:`r = (k-1)/2` and M > 2r, the supremum is at most the largest
value divided by :math:`\cos(\pi r / M)`, one factor for each side: along a side, the real part of :math:`u^* K v`,
turned to its middle frequency, is of exponential type r, and :math:`f'^2 + r^2 f^2 \le r^2 \|f\|^2` (R. J. Duffin and
A. C. Schaeffer, *Bull. Amer. Math. Soc.* 44, 1938), so it falls from its maximum at most like the cosine.

Bounds are floats. Products are conventional: no Strassen-like scheme, no emulated arithmetic.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from alignver.kernel.failure import require

SLACK = 1.0 + 2.0**-40
"""Factor for an expression of fewer than 4000 sums, products, quotients and roots of floats that are not negative."""

_U = 2.0**-53
_SQUARINGS = 5
_CHUNK = 2**22  # complex entries of symbols that are held at a time
_BOUNDS: dict[bytes, float] = {}  # by content: an array may change in place


def gamma_up(k: int) -> float:
    """Return an upper bound of k u / (1 - k u)."""
    require(0 <= k < 2**32, "sums of too many terms")
    return k * _U * (1.0 + 2.0**-20)


def _frobenius(F: Any) -> Any:
    """Return upper bounds of the Frobenius norms of a stack, whose entries are 0 or about 1 in size at the most."""
    return np.sqrt((F.real**2 + F.imag**2 if np.iscomplexobj(F) else F * F).sum((-2, -1)) + 2.0**-1000) * (
        1.0 + gamma_up(F.shape[-1] * F.shape[-2] + 9)
    )


def _scaled(F: Any) -> tuple[Any, Any]:
    """Return a stack divided by powers of two, with largest components in [1/2, 1), and the powers."""
    parts = np.maximum(np.abs(F.real), np.abs(F.imag)) if np.iscomplexobj(F) else np.abs(F)
    exponent = np.frexp(parts.max((-2, -1), initial=0.0))[1]
    half = np.ldexp(1.0, -(exponent // 2))[..., None, None]
    return F * half * np.ldexp(1.0, -(exponent - exponent // 2))[..., None, None], exponent


def spectral(K: Any, squarings: int = _SQUARINGS) -> Any:
    """Return upper bounds of the spectral norms of a stack of real or complex matrices, shape ``K.shape[:-2]``.

    Examples
    --------
    >>> 1.0 <= float(spectral(np.eye(3))) < 1.01
    True
    """
    require(bool(np.isfinite(K).all()), "a matrix that is not finite")
    if min(K.shape[-2:]) == 0:
        return np.zeros(K.shape[:-2])
    if K.shape[-2] < K.shape[-1]:
        K = np.swapaxes(K, -1, -2).conj()
    K, outer = _scaled(K)
    length = _frobenius(K)
    if K.shape[-1] == 1:
        return np.ldexp(length * SLACK, outer) + 2.0**-1000
    terms = 3 if np.iscomplexobj(K) else 1
    F = np.matmul(np.swapaxes(K, -1, -2).conj(), K)
    steps = [(length, gamma_up(terms * K.shape[-2]), None)]
    for _ in range(squarings):
        F, exponent = _scaled(F)
        steps[-1] = (*steps[-1][:2], exponent)
        steps.append((_frobenius(F), gamma_up(terms * F.shape[-1]), None))
        F = np.matmul(F, np.swapaxes(F, -1, -2).conj())
    F, exponent = _scaled(F)
    steps[-1] = (*steps[-1][:2], exponent)
    bound = _frobenius(F)
    for size, relative, exponent in reversed(steps):
        bound = np.sqrt(np.ldexp(bound, exponent) + relative * size * size + 2.0**-900) * SLACK
    return np.ldexp(np.minimum(bound, length * SLACK), outer) + 2.0**-1000


def _remembered(arrays: Any, details: tuple[Any, ...], compute: Callable[[], float]) -> float:
    """Return a bound, computed once for arrays of the same content: an array may change in place."""
    digest = hashlib.blake2b(repr((details, *(array.shape for array in arrays))).encode(), digest_size=32)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    name = digest.digest()
    if name not in _BOUNDS:
        _BOUNDS[name] = float(compute())
    return _BOUNDS[name]


def windows(conv: Mapping[str, Any]) -> int:
    """Return a bound of the number of windows of a convolution that hold one entry."""
    sides = zip(conv["kernel"], conv["stride"], conv["dilation"], strict=True)
    return math.prod(-(-k // (s // math.gcd(s, d))) for k, s, d in sides)


def affine_norm(W: Any, copies: int, conv: Mapping[str, Any] | None) -> float:
    r"""Return an upper bound of the norm of x -> y, where rows of entries of x are multiplied by matrices.

    In general :math:`\sqrt c \|W\|`. For a convolution the symbol is another bound; for a transposed one, so is the
    first of its adjoint, which gathers windows of y for each channel of x.

    Parameters
    ----------
    W : ndarray
        Shape (groups, k, n); for a convolution k counts input channels of a group, then the kernel's entries.
    copies : int
        c, the largest number of entries of the rows that are one entry of x.
    conv : mapping or None
        ``kind`` ("conv" or "transposed"), ``kernel``, ``stride``, ``dilation``.
    """
    groups, length, width = W.shape

    def bound() -> float:
        plain = math.sqrt(copies) * float(spectral(W).max(initial=0.0)) * SLACK
        if conv is None or math.prod(conv["kernel"]) == 1:
            return plain
        channels = length // math.prod(conv["kernel"])
        if conv["kind"] == "transposed":
            adjoint = float(spectral(W.reshape(groups, channels, -1)).max(initial=0.0))
            plain = min(plain, math.sqrt(windows(conv)) * adjoint * SLACK)
        return min(plain, symbol_norm(W.transpose(0, 2, 1).reshape(groups * width, channels, *conv["kernel"]), groups))

    details = () if conv is None else tuple(conv[name] for name in ("kind", "kernel", "stride", "dilation"))
    return _remembered([W], (copies, *map(str, details)), bound)


def symbol_norm(weight: Any, groups: int) -> float:
    """Return an upper bound of the norm of a convolution with zero padding, or of its transpose, by its symbol.

    Parameters
    ----------
    weight : ndarray
        Shape (channels, channels in a group, *kernel), as for the convolution or its transpose.
    groups : int
        Divides the first axis of the weight.

    Examples
    --------
    >>> 3.0 <= symbol_norm(np.ones((1, 1, 3)), 1) < 3.3
    True
    """
    rows, columns, *kernel = weight.shape
    radii = [(k - 1) / 2 for k in kernel]
    sides = [max(1, math.ceil(12 * r)) for r in radii]
    order = math.lcm(*sides)
    cosines, sines = _twiddles(order)
    half = [range(sides[0] // 2 + 1), *map(range, sides[1:])]  # the symbol at -omega is the conjugate
    frequencies = np.array(list(itertools.product(*half)), dtype=np.int64)
    taps = np.array(list(itertools.product(*map(range, kernel))), dtype=np.int64)
    phases = (frequencies * (order // np.array(sides))) @ taps.T % order
    flat = weight.reshape(groups * (rows // groups) * columns, -1)
    # Two sums of K products, twiddles within 4u, and one unit to spare; the Frobenius norm bounds the spectral norm.
    total = np.abs(flat).sum(1).reshape(groups, rows // groups, columns)
    shifted, exponent = _scaled(total)
    error = np.ldexp(1.5 * gamma_up(2 * len(taps) + 6) * _frobenius(shifted) * SLACK, exponent).max() + 2.0**-1000
    largest = 0.0
    count = max(1, _CHUNK // len(flat))
    for start in range(0, len(phases), count):
        part = phases[start : start + count].T
        symbol = flat @ cosines[part] - 1j * (flat @ sines[part])
        symbol = symbol.T.reshape(-1, groups, rows // groups, columns)
        largest = max(largest, float(spectral(symbol).max()))
    fall = math.prod(math.cos(math.pi * r / m) for r, m in zip(radii, sides))
    return (largest + float(error)) / fall * SLACK


def _twiddles(order: int) -> tuple[Any, Any]:
    """Return the cosines and sines of 2 pi j / order, within 4u.

    Angles are reduced to [0, pi/4] in integers: an angle errs by at most 2.4u of itself, hence by less than 1.9u, which
    moves either function by at most 1.9u; the functions themselves err by 2u of at most 1.
    """
    cosines, sines = np.empty(order), np.empty(order)
    for j in range(order):
        octant, rest = divmod(8 * j, order)  # the angle is (octant + rest / order) pi / 4
        angle = math.pi * (rest if octant % 2 == 0 else order - rest) / (4 * order)
        c, s = math.cos(angle), math.sin(angle)
        if octant % 4 in (1, 2):
            c, s = s, c
        cosines[j] = -c if octant in (2, 3, 4, 5) else c
        sines[j] = -s if octant >= 4 else s
    return cosines, sines
