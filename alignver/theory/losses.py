"""The modified targets Y_l of the paper: what the Jacobian's column space has to contain, for each loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import as_matrix, as_vector, host
from alignver.errors import InvalidInput

__all__ = ["LOSSES", "modified_targets"]

LOSSES = ("squared", "binary_cross_entropy", "cross_entropy")
"""The losses whose modified targets the paper defines (Section 2.1.2)."""

Targets = npt.NDArray[np.float64]


def modified_targets(Y: Any, loss: str, n: int, m_y: int) -> Targets:
    """Return the modified target matrix Y_l of the data (X, Y) for a loss.

    ``Y_l = Y`` for the squared loss and ``(Y_l)_ij = 2 Y_ij - 1`` with ``Y_ij`` in {0, 1} for the binary and the
    multi-class cross-entropy losses (paper, Section 2.1.2, before Definition 2).

    Parameters
    ----------
    Y : array or nested list
        ``"squared"``: real numbers of shape (n, m_y), or (n,) when m_y = 1.
        ``"cross_entropy"``: integer labels 0..m_y-1 of shape (n,), or one-hot rows of shape (n, m_y).
        ``"binary_cross_entropy"``: {0, 1} of shape (n, m_y), several ones in a row allowed.
        With m_y = 1 both cross-entropies take {0, 1} of shape (n,) or (n, 1).
        bool, integers and floats are all accepted as {0, 1}; labels have to be integers.
    loss : str
        One of :data:`LOSSES`.
    n, m_y : int
        Number of samples and of outputs of the model.

    Returns
    -------
    numpy.ndarray
        (n, m_y), float64; exact, nothing is rounded.

    Raises
    ------
    InvalidInput
        Unknown loss, wrong shape, NaN or Inf, labels out of range or not integers, soft labels.

    Notes
    -----
    Rigor: exact.

    Examples
    --------
    >>> modified_targets([2, 0], "cross_entropy", 2, 3)
    array([[-1., -1.,  1.],
           [ 1., -1., -1.]])
    >>> modified_targets([0, 1, 1], "binary_cross_entropy", 3, 1).ravel()
    array([-1.,  1.,  1.])
    >>> modified_targets([-1, 1], "binary_cross_entropy", 2, 1)
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: Y: got Y=-1 at 0; needs 0 or 1: (Y + 1) / 2 makes that from targets -1 and 1
    """
    if loss not in LOSSES:
        raise InvalidInput("loss", f"loss={loss!r}", "one of " + ", ".join(repr(known) for known in LOSSES))
    ndim = _ndim(Y)
    if ndim == 1 and loss == "cross_entropy" and m_y > 1:
        return 2.0 * _one_hot(Y, n, m_y) - 1.0
    targets = _rows(Y, loss, n, m_y, ndim)
    if loss == "squared":
        return targets
    _require_bits(targets, ndim)
    if loss == "cross_entropy" and m_y > 1:
        _require_one_hot(targets)
    return 2.0 * targets - 1.0


def _ndim(Y: Any) -> int:
    if hasattr(Y, "ndim"):
        return int(Y.ndim)
    try:
        return np.ndim(Y)
    except ValueError:  # ragged: the validation says so
        return 1


def _rows(Y: Any, loss: str, n: int, m_y: int, ndim: int) -> Targets:
    """Validate targets given row by row: (n, m_y), or (n,) when there is one output."""
    if ndim == 1:
        entries = as_vector(Y, "Y").array
        if m_y > 1:
            need = f"shape ({n}, {m_y}), one column for each output of the model"
            if loss == "binary_cross_entropy":
                need += "; for one class out of several use loss='cross_entropy'"
            raise InvalidInput("Y", f"shape ({entries.shape[0]},) for loss={loss!r}", need)
    else:
        entries = as_matrix(Y, "Y").array
    values = np.array(host(entries), dtype=np.float64)  # a copy: the caller's Y is never aliased
    if values.shape[0] != n:
        raise InvalidInput("Y", f"{values.shape[0]} rows beside {n} samples", f"one row for each sample, {n} in all")
    values = values.reshape(n, -1)
    if values.shape[1] != m_y:
        need = f"shape ({n}, {m_y}), one column for each output of the model"
        if loss == "cross_entropy" and values.shape[1] == 1:
            need += f", or labels of shape ({n},): Y[:, 0]"
        raise InvalidInput("Y", f"shape {values.shape} for loss={loss!r}", need)
    return values


def _one_hot(Y: Any, n: int, m_y: int) -> Targets:
    """Integer labels of shape (n,) to one-hot rows."""
    entries = as_vector(Y, "Y")
    kind = str(getattr(Y, "dtype", np.asarray(Y).dtype)).rpartition(".")[2]
    values = host(entries.array)
    if values.shape[0] != n:
        raise InvalidInput(
            "Y", f"{values.shape[0]} labels beside {n} samples", f"one label for each sample, {n} in all"
        )
    if not kind.startswith(("int", "uint")):
        whole = bool(np.all(values == np.floor(values)))
        remedy = "convert with Y.astype(int)" if whole else "loss='squared' takes real targets"
        need = f"integer labels 0..{m_y - 1} or one-hot rows of shape ({n}, {m_y}); {remedy}"
        raise InvalidInput("Y", f"shape ({n},) and dtype {kind} for loss='cross_entropy'", need)
    outside = np.flatnonzero((values < 0) | (values >= m_y))
    if outside.size:
        where = int(outside[0])
        label = int(values[where])
        remedy = (
            "drop the samples that have no label" if label < 0 else f"the model has {m_y} outputs; labels start at 0"
        )
        raise InvalidInput("Y", f"Y={label} at {where}", f"labels 0..{m_y - 1}: {remedy}")
    one_hot = np.zeros((n, m_y))
    one_hot[np.arange(n), values.astype(np.int64)] = 1.0
    return one_hot


def _require_bits(targets: Targets, ndim: int) -> None:
    bad = np.argwhere((targets != 0.0) & (targets != 1.0))
    if not bad.size:
        return
    row, column = (int(k) for k in bad[0])
    value = float(targets[row, column])
    if set(np.unique(targets)) <= {-1.0, 1.0}:
        remedy = "(Y + 1) / 2 makes that from targets -1 and 1"
    elif 0.0 < value < 1.0:
        remedy = "the paper defines no Y_l for soft labels; round them, or use loss='squared'"
    else:
        remedy = "loss='squared' takes any real targets"
    place = f"{row}" if ndim == 1 else f"({row}, {column})"
    raise InvalidInput("Y", f"Y={value:g} at {place}", f"0 or 1: {remedy}")


def _require_one_hot(targets: Targets) -> None:
    wrong = np.flatnonzero(targets.sum(axis=1) != 1.0)
    if wrong.size:
        row = int(wrong[0])
        got = f"a row with {int(targets[row].sum())} ones at {row}"
        need = "one-hot rows, or integer labels; for several classes at once use loss='binary_cross_entropy'"
        raise InvalidInput("Y", got, need)
