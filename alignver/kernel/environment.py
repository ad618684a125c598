"""Does the arithmetic here do what every floating-point bound assumes? Asked at each entry, and in each thread that
works.

IEEE 754 binary64, rounding to nearest, gradual underflow. Another rounding mode errs by 2u in each operation; a thread
that flushes subnormal numbers to zero even takes two different numbers for equal. Nothing here changes a mode: where
the arithmetic is another one, floating-point proofs are refused.
"""

from __future__ import annotations

import numpy as np

from alignver.kernel.failure import Unsupported

__all__ = ["arithmetic_fault", "require_ieee"]

_U = 2.0**-53
_ABOVE = _U * (1.0 + 2.0**-20)
_ORDER, _TERMS = 160, 12  # a product that multithreaded BLAS libraries share out among their threads

# Terms and the float that is nearest to their sum, ties to even: both signs, just below, at and above a tie.
_LEFT, _RIGHT, _NEAREST = np.array(
    [(1, _U, 1), (1, _ABOVE, 1 + 2 * _U), (1, -_U / 2, 1), (-1, -_U, -1), (-1, -_ABOVE, -1 - 2 * _U), (-1, _U / 2, -1)]
).T
# 2^-1074, 2^-1023 and 2^-1022, from their bits.
_TINY = np.array([1, 1 << 51, 1 << 52], dtype=np.int64).view(np.float64)
_SCALES = np.array([1.0, 2.0**1000, 0.5])


def arithmetic_fault(*, threaded: bool = True) -> str:
    """Return what the arithmetic of this thread lacks; nothing if it rounds to nearest with gradual underflow.

    Parameters
    ----------
    threaded : bool
        Also look at the threads of the BLAS, by matrix products that are large enough to be shared out.

    Examples
    --------
    >>> arithmetic_fault()
    ''
    """
    with np.errstate(all="ignore"):
        if not _same(_LEFT + _RIGHT, _NEAREST):
            return "this thread does not round to nearest"
        # Operands are read (2^-1074 2^1000 = 2^-74), and results are kept (2^-1022 / 2 = 2^-1023).
        if not _same(_TINY * 2.0**1000, np.array([2.0**-74, 2.0**-23, 2.0**-22])) or not _same(
            _TINY[2:] / 2, _TINY[1:2]
        ):
            return "this thread flushes subnormal numbers to zero"
        if not threaded:
            return ""
        factors, others = np.zeros((_ORDER, _TERMS)), np.ones((_TERMS, _ORDER))
        factors[:, 0], factors[:, 1] = np.resize(_LEFT, _ORDER), np.resize(_RIGHT, _ORDER)
        if not _same(factors @ others, np.repeat(np.resize(_NEAREST, (_ORDER, 1)), _ORDER, axis=1)):
            return "the threads of the BLAS do not round to nearest"
        factors[:, 0], factors[:, 1], others[0] = np.resize(_TINY, _ORDER), 0.0, np.resize(_SCALES, _ORDER)
        same = _same(factors @ others, factors[:, :1] * others[:1])
        return "" if same else "the threads of the BLAS flush subnormal numbers to zero"


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    """Compare bit patterns: a thread that reads subnormal operands as zero finds them equal to zero."""
    return bool(np.array_equal(left.view(np.int64), right.view(np.int64)))


def require_ieee(*, threaded: bool = False) -> None:
    """Raise :class:`~alignver.kernel.failure.Unsupported` unless the arithmetic is the one that all bounds assume."""
    fault = arithmetic_fault(threaded=threaded)
    if fault:
        raise Unsupported(fault)
