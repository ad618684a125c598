r"""Claims about data: equal rows of X, conflicts of their targets, and the resulting bounds for every model.

Every function of a single input has equal outputs for equal inputs. In a group of k samples with equal inputs, and thus
one output q, the least sum of the losses is, with sums over the group,

* squared, :math:`\|q - y\|^2`: :math:`\sum_i \|y_i\|^2 - \|\sum_i y_i\|^2 / k`, exactly, in rational arithmetic;
* cross-entropy: :math:`\sum_c C_c \ln(C / C_c)`, C_c the sums of the columns of the targets, C their sum;
* binary cross-entropy: the same for the two labels of each output, with sums C_j and k - C_j.

If each target is one class, a group has at least k - max_c C_c errors, since it has one output. The claims are about
numbers: -0.0 equals 0.0, and rows with different SHA-256 digests differ.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np

from alignver.errors import InvalidInput
from alignver.kernel.certificate import LOSSES, Certificate, Inputs, rows_of
from alignver.kernel.exact import equal, indices, integers, number, power, rounded_down
from alignver.kernel.failure import NotProved, demand, require
from alignver.kernel.floats import Run
from alignver.kernel.gates import LIBRARY
from alignver.kernel.machine import require_ieee
from alignver.results import shown_down

_KINDS = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
_BLOCK_BYTES = 1 << 26
_FAR = 900  # sums of numbers below 2^900, and logarithms times them, do not overflow


def canonical(block: Any, kind: str) -> Any:
    """Return rows as a matrix of the dtype ``kind``, in which two rows have equal bytes if and only if they are equal.

    Floats are rounded to a narrower floating-point dtype.

    Raises
    ------
    InvalidInput
        If entries are not real numbers, are NaN or Inf (also after rounding), or are not representable in ``kind``.
    """
    rows, lost = _cast(block, kind)
    demand(not lost, "X", lost, f"finite numbers of {np.dtype(kind)}")
    return rows


def _cast(block: Any, kind: str) -> tuple[Any, str]:
    """Return rows as a matrix of another dtype, and a description of the entries that it cannot represent."""
    array = np.array(block, order="C", copy=True)  # private: the checked entries are the hashed ones
    demand(array.dtype.kind in "biuf" and array.dtype.itemsize <= 8, "X", f"dtype {array.dtype}", "real numbers")
    demand(bool(np.isfinite(array).all()), "X", "NaN or Inf", f"finite numbers of {np.dtype(kind)}")
    array = array.reshape(len(array), -1)
    with np.errstate(all="ignore"):
        rows = array.astype(kind, copy=False)
    if kind[1] != "f":
        # A cast to integers may make different numbers equal. Python compares integers and floats exactly.
        low, high = (0, 1) if kind[1] == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        held = low <= array.min().item() <= array.max().item() <= high and np.array_equal(rows, array)
        return rows, "" if held else f"numbers that {np.dtype(kind)} does not hold"
    if array.dtype.kind != "f" and not -(2**53) <= array.min().item() <= array.max().item() <= 2**53:
        return rows, "integers beyond 2**53"
    patterns = rows.view(f"<i{rows.dtype.itemsize}")
    patterns[patterns == np.iinfo(patterns.dtype).min] = 0  # -0.0, without a floating-point operation
    return rows, "" if bool(np.isfinite(rows).all()) else "NaN or Inf"


def digests_of(rows: Any) -> list[bytes]:
    """Return the SHA-256 digest of each row of a canonical matrix."""
    return [hashlib.sha256(row).digest() for row in rows]


def record_of(digests: Iterable[bytes], shape: tuple[int, ...], kind: str) -> dict[str, Any]:
    """Return the record that identifies rows: shape, dtype, and SHA-256 of both and the digests of all rows."""
    content = hashlib.sha256(f"rows {kind} {shape}".encode())
    content.update(b"".join(digests))
    return {"sha256": content.hexdigest(), "shape": shape, "dtype": kind}


def first_equal(digests: list[bytes]) -> Any:
    """Return for each row the index of the first row that has its digest.

    Examples
    --------
    >>> first_equal([b"a", b"b", b"a"]).tolist()
    [0, 1, 0]
    """
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(digest, i) for i, digest in enumerate(digests)], dtype=np.int64)


def identified(certificate: Certificate, X: Any, track: Any) -> tuple[Any, list[bytes]]:
    """Read X once; return for each row the first row equal to it, and the digests. X must be the sealed one.

    X is an array, or any object with ``shape`` and slices of rows. No row is read twice.
    """
    sealed = dict(certificate.inputs.get("X", {}))
    kind = sealed.get("dtype")
    require(isinstance(kind, str) and kind in _KINDS, "the certificate names no dtype of X")
    demand(hasattr(X, "shape"), "X", f"a {type(X).__name__}", "an array, or an object with a shape and slices of rows")
    shape = tuple(int(size) for size in X.shape)
    demand(min(shape, default=0) >= 1, "X", f"shape {shape}", "at least one row, not empty")
    step = max(_BLOCK_BYTES // (8 * math.prod(shape[1:])), 1)
    digests: list[bytes] = []
    for start in track(range(0, shape[0], step), "reading X"):
        block = np.asarray(X[start : start + step])
        whole = block.shape == (min(step, shape[0] - start), *shape[1:])
        demand(whole, "X", f"rows of shape {block.shape} from row {start} on", f"all rows of shape {shape}")
        rows, lost = _cast(block, str(kind))
        require(not lost, f"X is not the input that this certificate is about: {lost}")
        digests += digests_of(rows)
    require_ieee(threaded=True)  # the source may have changed the arithmetic
    same = sealed == record_of(digests, shape, str(kind))
    require(same, "X is not the input that this certificate is about: their digests differ")
    return first_equal(digests), digests


@np.errstate(all="ignore")
def least_loss(first: Any, Y: Any, loss: str | None) -> tuple[float, int | None]:
    r"""Return lower bounds of the mean loss and of the errors of every function of the rows of X.

    Parameters
    ----------
    first : (n,) int64
        From :func:`first_equal`.
    Y : (n, m) float64
        Targets. One column of integers contains classes; 0 and 1 are the classes of one output.
    loss : {"squared", "binary_cross_entropy", "cross_entropy"} or None
        None means a loss of 0; errors are counted if the targets are classes.

    Returns
    -------
    lower : float
        Exact up to one rounding for the squared loss, otherwise too small by less than 2^-30 of it, for groups of up
        to a million samples and sums of targets with ratios of at most 2^1000.
    errors : int or None
        None if targets are not classes; the number of wrong entries if several outputs have separate labels.

    Raises
    ------
    InvalidInput
        If the loss is not defined for the targets.
    """
    n, m = Y.shape
    classes = m == 1 and loss in (None, "cross_entropy")
    order = np.lexsort((Y[:, 0], first)) if classes else np.argsort(first, kind="stable")
    new, T = np.diff(first[order], prepend=-1) != 0, Y[order]
    starts = np.flatnonzero(new)
    sizes, whole = np.diff(np.append(starts, n)), bool(np.all(np.floor(Y) == Y))
    if loss == "squared":
        total = sum((_spread(column, starts, sizes) for column in T.T), Fraction(0))
        return rounded_down(min(total / n, Fraction(sys.float_info.max))) + 0.0, None
    if classes:
        _demand_targets(loss is None or (whole and bool(np.all(Y >= 0.0))), loss)
        if not whole:
            return 0.0, None
        heads = np.flatnonzero(new | (np.diff(T[:, 0], prepend=0.0) != 0.0))
        parts = np.diff(np.append(heads, n))
        others = np.repeat(sizes, np.diff(np.append(np.searchsorted(heads, starts), heads.size))) - parts
        errors = n - int(np.maximum.reduceat(parts, np.searchsorted(heads, starts)).sum())
        return (0.0 if loss is None else _entropy(parts, others, n, int(sizes.max()) + 1)), errors
    sums = np.add.reduceat(T, starts, axis=0)
    hard = bool(np.all((Y == 0.0) | (Y == 1.0)))
    if loss == "binary_cross_entropy":
        _demand_targets(bool(np.all((Y >= 0.0) & (Y <= 1.0))), loss)
        rest = np.add.reduceat(1.0 - T, starts, axis=0)
        wrong = int(np.minimum(sums, rest).sum()) if hard else None
        return _entropy(np.vstack([sums, rest]), np.vstack([rest, sums]), n, int(sizes.max()) + m), wrong
    _demand_targets(loss is None or bool(np.all((Y >= 0.0) & (Y < 2.0**_FAR))), loss)
    wrong = n - int(sums.max(axis=1).sum()) if hard and bool(np.all(Y.sum(axis=1) == 1.0)) else None
    if loss is None:
        return 0.0, wrong
    # The sum of the other columns from both sides, since a difference would lose digits.
    none = np.zeros((len(sums), 1))
    before = np.hstack([none, np.cumsum(sums[:, :-1], axis=1)])
    after = np.hstack([np.cumsum(sums[:, :0:-1], axis=1)[:, ::-1], none])
    return _entropy(sums, before + after, n, int(sizes.max()) + m), wrong


def _demand_targets(good: bool, loss: str | None) -> None:
    labels = "classes 0, 1, ... ((Y + 1) / 2 converts labels of -1 and 1; samples without a label are left out)"
    needs = {"cross_entropy": f"{labels}, or a column of numbers from 0 to 2**{_FAR} for each class"}
    need = needs.get(str(loss), "numbers from 0 to 1" if loss == "binary_cross_entropy" else "numbers of at least 0")
    demand(good, "Y", f"targets that loss={loss!r} does not take", need)


def _entropy(parts: Any, others: Any, n: int, terms: int) -> float:
    r"""Return a lower bound of the sum of :math:`C_c \ln (1 + D_c / C_c)`, by n, D_c the sum of the other columns.

    With u = 2^-53, C_c is a computed sum of fewer than t non-negative terms, D_c one of fewer than 2 t, and the
    quotient has one more rounding: it is at most :math:`1 + (3 t + 3) u` times the exact one, and so is its log1p,
    which has a further relative error of 2^-40 (:mod:`alignver.kernel.gates`). A term is too large by less than
    :math:`(4 t + 8) u + 2^{-40}` of it. Products that underflow lose 2^-1075. Rounding may double a subnormal quotient,
    so C_c loses D_c; the other columns are then those with a truncated quotient, which gain more than 15 D_c.
    """
    some = parts > 0.0
    parts, others = parts[some], others[some]
    shares = parts * np.log1p(np.minimum(others / parts, 2.0**1000))
    total = Fraction(math.fsum(shares.tolist())) * (1 - (terms + 2) * power(-51) - LIBRARY)
    return max(rounded_down(total / n - power(-1000)), 0.0)


def _spread(column: Any, starts: Any, sizes: Any) -> Fraction:
    """Return, summed over groups of size k, the sum of squares minus the squared sum over k, in exact integers."""
    mixed = np.repeat(np.maximum.reduceat(column, starts) != np.minimum.reduceat(column, starts), sizes)
    if not mixed.any():
        return Fraction(0)
    mantissas, exponents = integers(column[mixed])
    low = int(exponents.min(initial=1024, where=mantissas != 0))  # without zeros, which have the lowest exponent
    values = mantissas.astype(object) << np.maximum(exponents - low, 0).astype(object)
    counts = sizes[mixed[starts]]
    heads = np.cumsum(counts) - counts
    numerators = np.add.reduceat(values * values, heads) * counts.astype(object) - np.add.reduceat(values, heads) ** 2
    by_size = (Fraction(int(numerators[counts == k].sum()), k) for k in np.unique(counts).tolist())
    return sum(by_size, Fraction(0)) * power(2 * low)


def _distinct(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """The number of distinct rows is as claimed, and the certificate contains their digests."""
    first, digests = inputs["X"]
    rows = np.flatnonzero(first == np.arange(first.size))
    rank, stored = certificate.constants["rank"], certificate.data.get("digests")
    require(type(rank) is int and rank == rows.size, f"{rows.size} rows of {rows_of(certificate)} are distinct")
    if stored is not None:
        require(stored.shape == (rows.size, 32) and stored.dtype == np.uint8, "digests of the wrong kind or number")
        expected = b"".join(digests[i] for i in rows.tolist())
        require(stored.tobytes() == expected, "the digests are not those of the distinct rows")
    return f"{rows.size} of {first.size} rows of {rows_of(certificate)} are distinct"


def _consistent(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """Rows with the same digest have the same target; other rows are not equal."""
    sentence = _distinct(certificate, inputs, run)
    first, Y = inputs["X"][0], inputs["Y"]
    require(len(Y) == first.size and equal(Y, Y[first]), "two equal rows of X have different targets")
    return f"{sentence}, and equal ones have equal targets{_stated(certificate, inputs)}"


def _conflicting(certificate: Certificate, inputs: Inputs, run: Run) -> str:
    """Two rows are equal and their targets differ."""
    sentence = _distinct(certificate, inputs, run)
    first, Y = inputs["X"][0], inputs["Y"]
    stated = _stated(certificate, inputs)
    i, j = indices(certificate.data["rows"], first.size)
    require(first[i] == first[j] and not equal(Y[i], Y[j]), f"rows {i} and {j} do not conflict")
    return f"rows {i} and {j} of {rows_of(certificate)} are equal, and their targets differ; {sentence}{stated}"


def _stated(certificate: Certificate, inputs: Inputs) -> str:
    """Require the bounds that the claim states, and return them as text."""
    constants = certificate.constants
    loss, least, errors = constants["loss"], number(constants, "floor"), constants["errors"]
    require(loss is None or loss in LOSSES, "an unknown loss")
    lower, wrong = _bounds(inputs, loss)
    require(Fraction(lower) >= least, f"the loss of every function is only known to be at least {shown_down(lower)}")
    counted = errors is None or (type(errors) is int and 0 <= errors <= (wrong or 0))
    require(counted, f"{wrong or 0} errors are known")
    costs = [f"a {loss} loss of at least {shown_down(float(least))}"] if least else []
    what = "wrong output" if loss == "binary_cross_entropy" and inputs["Y"].shape[1] > 1 else "error"
    costs += [f"at least {errors} {what}{'s' * (errors > 1)}"] if errors else []
    return f"; every function of a row has {' and '.join(costs)}" if costs else ""


def _bounds(inputs: Inputs, loss: str | None) -> tuple[float, int | None]:
    first, Y = inputs["X"][0], inputs["Y"]
    require(len(Y) == first.size, "X and Y differ in length")
    try:
        return least_loss(first, Y, loss)
    except InvalidInput as error:  # the certificate chooses the loss
        raise NotProved(f"the targets do not fit the loss {loss}") from error


def floor_of(inputs: Inputs, loss: str) -> Fraction:
    """Return a lower bound of the loss of every function of the rows of X, for a claim about a training loss."""
    floor = Fraction(_bounds(inputs, loss)[0])
    same = equal(inputs["Z"], inputs["Z"][inputs["X"][0]])
    require(same, "equal rows of X have different rows of Z: the outputs are not a function of X")
    return floor


METHODS = {("distinct", "digests"): _distinct, ("consistent", "digests"): _consistent}
METHODS |= {("conflicting", "digests"): _conflicting}
