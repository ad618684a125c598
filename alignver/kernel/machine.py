r"""The arithmetic of this machine: what proofs assume of it, tested by computations whose results are known.

**Rounding.** IEEE 754 binary64, to nearest, gradual underflow: at each entry and in each working thread, also those of
the BLAS. In another rounding mode the error of an operation is up to 2u; a thread that flushes subnormal numbers to
zero can consider two different numbers equal. No mode is changed: in any other arithmetic, nothing is proved.

**Products.** Every entry is the sum of all its terms, in any order. In the first probe each inner product has one term
that is not zero, so it is exact in any order; the other factors of its row are :math:`2^{40}` times larger, or more. A
Strassen-like scheme, a fixed-point emulation and a narrower format lose digits of that term. The second probe compares
entries of a graded product with :math:`\gamma_k |x|^\top |y|`, in integers.

**Functions.** NumPy's functions on vectors of many lengths, whose last entries other code computes, against
:mod:`decimal`.

Products and functions are tested once in a process, before the first proof.
"""

from __future__ import annotations

import decimal
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from alignver.kernel.failure import Unsupported

_U = 2.0**-53
_ABOVE = _U * (1.0 + 2.0**-20)
# OpenBLAS gives each thread at least 2^18 multiplications: k = 128 and orders of 64 sqrt(threads) are twice that.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_ORDER, _TERMS = max(192, 64 * math.isqrt(_CORES - 1) + 64), 128

# Terms and the float nearest to their sum, ties to even: for both signs, at, below and above a tie.
_LEFT, _RIGHT, _NEAREST = np.array(
    [(1, _U, 1), (1, _ABOVE, 1 + 2 * _U), (1, -_U / 2, 1), (-1, -_U, -1), (-1, -_ABOVE, -1 - 2 * _U), (-1, _U / 2, -1)]
).T
# 2^-1074, 2^-1023 and 2^-1022, from their bits.
_TINY = np.array([1, 1 << 51, 1 << 52], dtype=np.int64).view(np.float64)
_SCALES = np.array([1.0, 2.0**1000, 0.5])


def arithmetic_fault(*, threaded: bool = True) -> str:
    """Return how the arithmetic here deviates from what proofs assume; an empty string if it does not.

    Parameters
    ----------
    threaded : bool
        Also test the threads of the BLAS, by matrix products that are large enough to be distributed; and, once in a
        process, products and functions.

    Examples
    --------
    >>> arithmetic_fault()
    ''
    """
    return thread_fault() or (threaded and (distributed_fault() or _first(_once()))) or ""


def require_ieee(*, threaded: bool = False) -> None:
    """Raise :class:`~alignver.kernel.failure.Unsupported` unless the arithmetic is the one that all bounds assume."""
    fault = arithmetic_fault(threaded=threaded)
    if fault:
        raise Unsupported(fault)


def require_functions() -> None:
    """Raise :class:`~alignver.kernel.failure.Unsupported` unless :data:`PRIMITIVES` err by at most 2u."""
    fault = thread_fault() or _once()["primitives"]
    if fault:
        raise Unsupported(fault)


def distrust(part: str, fault: str) -> None:
    """Exclude what rests on a part from being proved in this process, since a longer test has found a deviation.

    Parameters
    ----------
    part : str
        A key of :func:`outcome`, or a name that a producer of proofs knows.
    fault : str
        The deviation; an empty string if an earlier one is gone.
    """
    _distrusted[part] = fault


def distrusted(part: str) -> str:
    """Return the deviation of a part that :func:`distrust` was told of; an empty string for none."""
    return _distrusted.get(part, "")


_distrusted: dict[str, str] = {}


def outcome() -> dict[str, str]:
    """Return the deviation of each part that is tested once in a process, an empty string for none.

    Examples
    --------
    >>> outcome()
    {'rounding': '', 'products': '', 'functions': '', 'primitives': ''}
    """
    return dict(_once())


def digest() -> str:
    """Return a digest of :func:`outcome`: the same on all machines that satisfy the assumptions."""
    return hashlib.sha256(json.dumps(outcome(), sort_keys=True).encode()).hexdigest()[:16]


def _first(faults: Mapping[str, str]) -> str:
    """Return the deviation that concerns every proof: that of the primitives concerns bounds of 2u alone."""
    return faults["rounding"] or faults["products"] or faults["functions"]


def _once() -> Mapping[str, str]:
    """Test products and functions, in a thread that rounds to nearest: any other would be blamed on them for good."""
    fault = thread_fault()
    if fault:
        return dict.fromkeys(("rounding", "products", "functions", "primitives"), fault)
    return {part: distrusted(part) or fault for part, fault in _tested().items()}


@functools.cache
def _tested() -> Mapping[str, str]:
    errors = function_errors(POINTS)
    wide = {name: error for name, error in errors.items() if ASSUMED[name] > 2.0}
    return {
        "rounding": "",  # tested at each entry; a longer test may find more
        "products": next(filter(None, map(product_fault, (8, 192))), ""),
        "functions": inaccurate({name: errors[name] for name in ("exp", "log1p")}, 2.0**13) or inaccurate(wide),
        "primitives": inaccurate(errors),
    }


def thread_fault() -> str:
    """Return the deviation of this thread from rounding to nearest with gradual underflow; an empty string if none."""
    with np.errstate(all="ignore"):
        if not _same(_LEFT + _RIGHT, _NEAREST):
            return "this thread does not round to nearest"
        # Subnormal operands (2^-1074 2^1000 = 2^-74) and subnormal results (2^-1022 / 2 = 2^-1023).
        scaled = _same(_TINY * 2.0**1000, np.array([2.0**-74, 2.0**-23, 2.0**-22]))
        flushed = not scaled or not _same(_TINY[2:] / 2, _TINY[1:2])
        return "this thread flushes subnormal numbers to zero" if flushed else ""


def distributed_fault(order: int = _ORDER, multiply: Callable[[Any, Any], Any] = np.matmul) -> str:
    """Return the deviation of the threads of the BLAS, among which products of this order are distributed."""
    factors, others = np.zeros((order, _TERMS)), np.ones((_TERMS, order))
    with np.errstate(all="ignore"):
        factors[:, 0], factors[:, 1] = np.resize(_LEFT, order), np.resize(_RIGHT, order)
        if not _same(multiply(factors, others), np.repeat(np.resize(_NEAREST, (order, 1)), order, axis=1)):
            return "the threads of the BLAS do not round to nearest"
        factors[:, 0], factors[:, 1], others[0] = np.resize(_TINY, order), 0.0, np.resize(_SCALES, order)
        same = _same(multiply(factors, others), factors[:, :1] * others[:1])
        return "" if same else "the threads of the BLAS flush subnormal numbers to zero"


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    """Compare bit patterns, since a thread that reads subnormal operands as zero considers them equal to zero."""
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    return bool(np.array_equal(left.view(np.int64), right.view(np.int64)))


def product_fault(order: int, multiply: Callable[[Any, Any], Any] = np.matmul) -> str:
    """Return how products of this order differ from conventional ones; an empty string if they do not.

    Parameters
    ----------
    order : int
        Libraries choose their algorithm by size.
    multiply : callable
        The product: NumPy's, unless another library's is tested.

    Examples
    --------
    >>> product_fault(16)
    ''
    >>> product_fault(16, lambda A, B: (A.astype("f4") @ B.astype("f4")).astype("f8"))
    'products of order 16 are not the float64 inner products of all terms'
    """
    half, source = (order + 1) // 2, np.random.default_rng(order)
    left, right = source.uniform(1.0, 2.0, (order, 2 * half)), np.zeros((2 * half, half))
    permutation = source.permutation(half)
    right[half + permutation, np.arange(half)] = 1.0
    small = left[:, half:] * 2.0**-40
    tiny = source.integers(1, 2**20, (order, half)).view(np.float64)  # subnormal: multiples of 2^-1074
    tiny[np.arange(order) % 32 > 0] = 0.0  # they are slow
    terms = np.resize(np.column_stack([_LEFT, _RIGHT]), (order, 2))
    nearest = np.repeat(np.resize(_NEAREST, (order, 1)), half, axis=1)
    with np.errstate(all="ignore"):
        for A, B, exact, fault in (
            (np.hstack([left[:, :half], small]), right, small[:, permutation], _UNCONVENTIONAL),
            (np.hstack([left[:, :half], tiny]), right, tiny[:, permutation], _FLUSHED),
            (terms, np.ones((2, half)), nearest, _ROUNDED),
        ):
            rows = np.vstack([A, B.T])  # times its transpose: another routine, for symmetric products
            computed = (multiply(A, B), multiply(rows, rows.T)[:order, order:], multiply(A, B[:, :1]),
                        np.array([[multiply(a, B[:, 0])] for a in A[:6]]))  # fmt: skip
            if not all(_same(C, exact[: C.shape[0], : C.shape[1]]) for C in computed):
                return fault.format(order)
        return "" if _within_bound(order, source, multiply) else _UNCONVENTIONAL.format(order)


_UNCONVENTIONAL = "products of order {} are not the float64 inner products of all terms"
_FLUSHED = "products of order {} flush subnormal numbers to zero"
_ROUNDED = "products of order {} are not rounded to nearest"


def _within_bound(order: int, source: np.random.Generator, multiply: Callable[[Any, Any], Any]) -> bool:
    """Compare some entries of a graded product of integers, and their sums by other routines, with the exact ones."""
    grades = 2.0 ** source.integers(0, 40, order)
    A, B = (source.integers(-(2**53), 2**53, (order, order)) * grades for _ in range(2))
    products = multiply(A, B.T)
    for i, j in source.integers(0, order, (12, 2)).tolist():
        terms = [int(x) * int(y) for x, y in zip(A[i].tolist(), B[j].tolist(), strict=True)]
        exact, room = sum(terms), order * sum(map(abs, terms))
        computed = (products[i, j], multiply(A[i], B[j]), np.vdot(A[i], B[j]), np.einsum("k,k->", A[i], B[j]))
        # gamma_k = k / (2^53 - k)
        if not all(math.isfinite(x) and abs(int(x) - exact) * (2**53 - order) <= room for x in computed):
            return False
    return True


PRIMITIVES = ("arctan", "cos", "erf", "exp", "expm1", "log", "log1p", "sin", "tanh")
"""Functions of NumPy, and ``math.erf``, whose relative error is assumed to be at most 2u."""

_SCALAR = ("asinh", "atan", "erf", "exp", "expm1", "log", "log1p", "sinh", "tanh")

ASSUMED = (
    {"reciprocal": 1.0, "sqrt": 1.0}
    | dict.fromkeys(PRIMITIVES, 2.0)
    | dict.fromkeys(("logaddexp", *(f"math.{name}" for name in _SCALAR)), 2.0**13)
)
"""The relative error that is assumed of each function, in units of u; 2^13 u = 2^-40."""

erf = np.vectorize(math.erf, otypes=[np.float64])


def _function(name: str) -> Callable[[Any], Any]:
    """Return a function as it is used: of an array."""
    if name.startswith("math."):
        return np.vectorize(getattr(math, name.removeprefix("math.")), otypes=[np.float64])
    composed: dict[str, Callable[[Any], Any]] = {"erf": erf, "logaddexp": lambda x: np.logaddexp(0.0, x)}
    computed: Callable[[Any], Any] = composed[name] if name in composed else getattr(np, name)
    return computed


_LENGTHS = (1, 2, 3, 4, 7, 8, 9, 17, 67)  # around multiples of the widths of vector registers

_BOTH = (1e-9, -0.3, 0.7, -1.9, 4.4)
_STEEP = (*_BOTH, 18.3, -101.7, 699.3, -699.3)
_POSITIVE = (1e-9, 0.4, 0.999, 1.001, 1.7, 19.3, 1e300)
POINTS: dict[str, tuple[float, ...]] = {
    "arctan": (*_BOTH, 1e9), "cos": (*_BOTH, 3.1e4), "erf": _BOTH, "exp": _STEEP, "expm1": _STEEP, "log": _POSITIVE,
    "log1p": (*_POSITIVE, -1e-9, -0.3, -0.99), "logaddexp": (*_BOTH, 101.7, -40.1), "reciprocal": _POSITIVE,
    "sin": (*_BOTH, 3.1e4), "sqrt": _POSITIVE, "tanh": (*_BOTH, 18.3),
}  # fmt: skip
POINTS |= {f"math.{name}": (0.7, 1.9) for name in _SCALAR}


def function_errors(
    points: Mapping[str, Any],
    exact: Callable[[str, float], Any] | None = None,
    function: Callable[[str], Callable[[Any], Any]] = _function,
) -> dict[str, float]:
    """Return the largest relative error of each function at some points, in units of u, on vectors of many lengths.

    Parameters
    ----------
    points : mapping of str to sequence of float
        Names of :data:`ASSUMED`, and where to evaluate.
    exact : callable, optional
        Returns a number of at least 30 digits for a name and a point; by default, one of :mod:`decimal`.
    function : callable
        Returns the function of arrays by its name.
    """
    errors = {}
    with np.errstate(all="ignore"), decimal.localcontext(decimal.Context(prec=50, traps=[])):
        for name, values in points.items():
            x, computed = np.array(values), function(name)
            results: list[set[float]] = [set() for _ in x]
            for length in (*_LENGTHS, len(x)):
                which = np.resize(np.roll(np.arange(len(x)), length), length)
                for k, value in zip(which.tolist(), computed(x[which]).tolist(), strict=True):
                    results[k].add(value)
            errors[name] = max(_error(name, float(x[k]), results[k], exact) for k in range(len(x)))
    return errors


def _error(name: str, x: float, computed: set[float], exact: Callable[[str, float], Any] | None) -> float:
    if not all(map(math.isfinite, computed)):
        return math.inf
    if exact is not None:
        truth = exact(name, x)
        return max(float(abs((value - truth) / truth)) for value in computed) * 2.0**53
    value = _decimal(name.removeprefix("math."), Decimal(x))
    return max(float(abs((Decimal(each) - value) / value)) for each in computed) * 2.0**53


def inaccurate(errors: Mapping[str, float], most: float = 0.0) -> str:
    """Return which functions err by more than ``most``, or what is assumed of them; an empty string if none does."""
    wrong = [f"{name} by {error:.3g} u" for name, error in errors.items() if not error <= (most or ASSUMED[name])]
    return f"functions are less accurate than proofs assume: {', '.join(wrong)}" if wrong else ""


def _series(term: Decimal, ratio: Callable[[int], Decimal]) -> Decimal:
    """Return the sum of terms, of which the first is given, and then each by its quotient with the one before."""
    total, k = term, 0
    while abs(term) > abs(total).scaleb(-45):
        term *= ratio(k)
        total += term
        k += 1
    return total


def _arctan(x: Decimal) -> Decimal:
    """Return Euler's series, where it converges fast: the argument is halved twice."""
    if abs(x) > Decimal("0.3"):
        return 2 * _arctan(x / (1 + (1 + x * x).sqrt()))
    square = 1 + x * x
    return _series(x / square, lambda k: (2 * k + 2) * x * x / ((2 * k + 3) * square))


@functools.cache
def _pi() -> Decimal:
    return 4 * (4 * _arctan(Decimal(1) / 5) - _arctan(Decimal(1) / 239))


def _sin(x: Decimal) -> Decimal:
    r = x - (x / (2 * _pi())).to_integral_value() * 2 * _pi()
    return _series(r, lambda k: -r * r / ((2 * k + 2) * (2 * k + 3)))


def _erf(x: Decimal) -> Decimal:
    """Return the series with positive terms (Abramowitz and Stegun 7.1.6)."""
    return _series(2 * x * (-x * x).exp() / _pi().sqrt(), lambda k: 2 * x * x / (2 * k + 3))


def _decimal(name: str, x: Decimal) -> Decimal:
    """Return a function's value to 30 digits or more."""
    if name in ("arctan", "atan"):
        return _arctan(x)
    values: dict[str, Callable[[], Decimal]] = {
        "asinh": lambda: (abs(x) + (1 + x * x).sqrt()).ln().copy_sign(x),
        "cos": lambda: _sin(x + _pi() / 2), "erf": lambda: _erf(x), "exp": x.exp, "expm1": lambda: x.exp() - 1,
        "log": x.ln, "log1p": lambda: (1 + x).ln(), "logaddexp": lambda: (1 + x.exp()).ln(),
        "reciprocal": lambda: 1 / x, "sin": lambda: _sin(x), "sinh": lambda: (x.exp() - (-x).exp()) / 2, "sqrt": x.sqrt,
        "tanh": lambda: 1 - 2 / ((2 * x).exp() + 1),
    }  # fmt: skip
    return values[name]()
