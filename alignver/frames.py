"""Data frames and series of pandas and polars as arrays of NumPy, without a change of any number.

The libraries make object arrays of frames with columns of several kinds, and round integers beside floats. Here each
column is read by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.errors import InvalidInput

_NUMBERS = "biuf"
_DUMMIES = "pandas.get_dummies(X), or X.to_dummies() of polars, makes a column of each class"


def from_frame(value: Any, name: str) -> Any:
    """Return the entries of a data frame (n, columns) or series (n,); any other value as it is.

    A series of texts or categories becomes an array of texts.

    Raises
    ------
    InvalidInput
        Missing values; columns that are not numbers; integers that the common dtype of the columns does not hold.

    Examples
    --------
    >>> from_frame([1.0, 2.0], "X")
    [1.0, 2.0]
    """
    library = type(value).__module__.partition(".")[0]
    if library not in ("pandas", "polars") or not hasattr(value, "to_numpy"):
        if library == "polars" and hasattr(value, "collect"):
            raise InvalidInput(name, f"a {type(value).__name__}", "a frame: X.collect()", "wrong-type")
        return value
    if not hasattr(value, "columns"):
        return _entries(value, name, "a series")
    columns = value.items() if library == "pandas" else zip(value.columns, value.get_columns())
    arrays = {k: (label, _entries(column, name, f"the column {label!r}")) for k, (label, column) in enumerate(columns)}
    if len(arrays) > 1:
        for label, array in arrays.values():
            if array.dtype.kind not in _NUMBERS:
                raise InvalidInput(name, f"texts in the column {label!r}", f"numbers: {_DUMMIES}", "wrong-dtype")
    if not arrays:
        raise InvalidInput(name, "a frame without columns", "at least one column", "wrong-shape")
    common = np.result_type(*(array.dtype for _, array in arrays.values()))
    for label, array in arrays.values():
        if array.dtype.kind in "iu" and common.kind == "f" and not _fits_exactly(array, common):
            got = f"integers in the column {label!r} that {common} does not hold, together with columns of fractions"
            raise InvalidInput(name, got, "integers of at most 2**53 in magnitude", "wrong-dtype")
    return np.stack([array.astype(common) for _, array in arrays.values()], axis=1)


def is_text(value: Any) -> bool:
    """Whether a value is an array or list of texts, as names of classes."""
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(entry, str) for entry in value)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return kind in ("U", "T") or (kind == "O" and np.ndim(value) == 1 and is_text(list(value)))


def numbered(labels: Any) -> npt.NDArray[np.int64]:
    """Return names of classes as numbers, in their sorted order from 0.

    Examples
    --------
    >>> numbered(["dog", "cat", "dog"])
    array([1, 0, 1])
    """
    return np.unique(np.asarray(labels, dtype=np.str_).reshape(-1), return_inverse=True)[1].astype(np.int64)


def _fits_exactly(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    return all(int(wide) == int(entry) for wide, entry in zip(array.astype(dtype), array, strict=True))


def _entries(series: Any, name: str, what: str) -> npt.NDArray[Any]:
    """Return the entries of a series: numbers, or texts."""
    missing = series.isna().any() if hasattr(series, "isna") else series.null_count() > 0
    if bool(missing):
        need = "numbers everywhere: dropna() or fillna(...) of pandas, drop_nulls() or fill_null(...) of polars"
        raise InvalidInput(name, f"missing values in {what}", need, "not-finite")
    array = np.asarray(series.to_numpy())
    if array.dtype.kind in _NUMBERS:
        return array
    entries = array.tolist() if array.dtype.kind == "O" else array
    if array.dtype.kind in "OUT" and all(isinstance(entry, str) for entry in entries):
        return np.array(entries, dtype=np.str_)
    if array.dtype.kind == "O" and all(isinstance(entry, bool | int | float | np.number) for entry in entries):
        exact = np.array(entries)
        if exact.dtype.kind in _NUMBERS and all(a == b for a, b in zip(exact.tolist(), entries, strict=True)):
            return exact
    kinds = "astype('int64') of pandas, or cast(int)" if array.dtype.kind in "mM" else "astype(float), or cast(float)"
    need = f"numbers: {kinds} of polars"
    raise InvalidInput(name, f"entries of dtype {series.dtype} in {what}", need, "wrong-dtype")
