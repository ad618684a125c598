"""Arrays of any namespace: what is accepted, what is refused and why.

This is the only module that imports ``array_api_compat`` or handles CuPy. All modules above it get validated real
arrays of float64 in the namespace and on the device of the caller, together with the epsilon of the dtype that they
were computed in. Validation comes before any LAPACK call: on NaN several libraries hang, or return without a warning.

Data frames and series of pandas and polars become arrays of NumPy without a change of any number: the libraries make
object arrays of frames with columns of several kinds, and round integers beside floats, so each column is read by
itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.errors import InvalidInput, kind_of
from alignver.limits import address_space, most_memory

Array: TypeAlias = Any
"""An array of a namespace that follows the array API standard; the standard has no runtime type for it."""

EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
"""Machine epsilon (the spacing above 1, twice the unit roundoff u) of every accepted floating dtype; IEEE 754, and for
bfloat16 its 8 significand bits."""

_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_EXACT_INTEGER = 2**53  # every integer of at most this magnitude is a float64
_BLOCK_BYTES = 1 << 26  # temporaries of elementwise passes over a large matrix stay below this


@dataclasses.dataclass(frozen=True)
class Entries:
    """A validated array, and what it was before it was widened to float64.

    Attributes
    ----------
    array : Array
        float64, finite, in the namespace and on the device of the input; never a copy of a float64 input.
    dtype : str
        The dtype that the entries were computed in (of the input, or ``computed_in`` of the caller).
    eps : float
        Its machine epsilon.
    handed_eps : float
        Epsilon of the dtype of the input array, the only one that a library can know.
    """

    array: Array
    dtype: str
    eps: float
    handed_eps: float


def namespace(array: Array) -> ModuleType:
    """Return the array API namespace of ``array``."""
    xp: ModuleType = array_api_compat.array_namespace(array)
    return xp


def as_matrix(value: Any, name: str, *, computed_in: str | None = None) -> Entries:
    """Validate a real matrix: 2-d, not empty, finite, of a real dtype; widen it to float64 exactly.

    ``computed_in`` names the dtype that the entries were computed in when it is not the one they are stored in (a
    float32 Jacobian kept as float64). Raises :class:`~alignver.errors.InvalidInput` naming ``name``.

    Examples
    --------
    >>> as_matrix([[1, 2], [3, 4]], "A").array
    array([[1., 2.],
           [3., 4.]])
    >>> as_matrix([[1.0, float("nan")]], "A")
    Traceback (most recent call last):
        ...
    alignver.errors.InvalidInput: A: got nan at (0, 1); needs finite entries
    """
    return _validated(value, name, 2, computed_in)


def as_vector(value: Any, name: str) -> Entries:
    """Validate a real vector, as :func:`as_matrix` does; an (N, 1) or (1, N) matrix is refused."""
    return _validated(value, name, 1, None)


def is_array(value: Any) -> bool:
    """Whether ``value`` is an array of a library that follows the array API standard: NumPy's, a tensor, CuPy's."""
    return bool(array_api_compat.is_array_api_obj(value))


def is_operator(value: Any) -> bool:
    """Whether ``value`` is a linear operator: ``shape``, ``matvec`` and ``rmatvec``, and not an array."""
    return not array_api_compat.is_array_api_obj(value) and all(
        hasattr(value, attribute) for attribute in ("shape", "matvec", "rmatvec")
    )


def _validated(value: Any, name: str, ndim: int, computed_in: str | None) -> Entries:
    array = native(value, name)
    dtype = str(array.dtype).rpartition(".")[2]
    kind = {1: "vector", 2: "matrix"}[ndim]
    shape = tuple(array.shape)
    if dtype not in EPS and dtype not in _INTEGERS and dtype != "bool":
        need = "real numbers: float16, bfloat16, float32, float64, integers or bool"
        raise InvalidInput(name, f"dtype {dtype}", need, "wrong-dtype")
    if array.ndim != ndim:
        need = f"a {kind}, {ndim} dimension{'s' * (ndim > 1)}"
        got = f"{array.ndim} dimension{'s' * (array.ndim != 1)}, shape {shape}"
        raise InvalidInput(name, got, need, "wrong-shape")
    if 0 in shape:
        raise InvalidInput(name, f"shape {shape}", f"a {kind} that is not empty", "wrong-shape")
    if computed_in is not None:
        require.one_of("computed_in", computed_in, EPS)
    if dtype in EPS:
        _require_finite(array, name)
    elif dtype != "bool":
        _require_exact(array, name)
    xp = namespace(array)
    if dtype == "bool":  # the standard casts bool through integers
        array = xp.astype(array, xp.uint8)
    wide = array if dtype == "float64" else xp.astype(array, xp.float64)
    stored = dtype if dtype in EPS else "float64"
    # Widening adds no digits: the coarser of the two dtypes determines the precision of the entries.
    source = max((stored, computed_in or stored), key=EPS.__getitem__)
    return Entries(wide, source, EPS[source], EPS[stored])


def native(value: Any, name: str) -> Array:
    """Return ``value`` as an array of a supported namespace, without changing one that already is."""
    value = from_frame(value, name)
    if hasattr(value, "tocsr") or getattr(getattr(value, "layout", None), "__repr__", str)() in _TORCH_SPARSE:
        need = "a dense array (.toarray() or .to_dense())"
        need += ", or scipy.sparse.linalg.aslinearoperator(J)" * (name == "J")  # where products with vectors suffice
        raise InvalidInput(name, f"a sparse {type(value).__name__}", need, "wrong-type")
    if isinstance(value, np.ma.MaskedArray):
        need = "an array without a mask (.filled(...) or .compressed())"
        raise InvalidInput(name, "a masked array", need, "wrong-type")
    if array_api_compat.is_torch_array(value):
        if value.is_meta:
            raise InvalidInput(name, "a meta tensor, which has no entries", "a tensor with data", "wrong-type")
        if value.is_quantized:
            raise InvalidInput(name, "a quantized tensor", "real entries: .dequantize()", "wrong-dtype")
        return value.detach()
    if array_api_compat.is_jax_array(value) or array_api_compat.is_lazy_array(value):
        got = f"a {type(value).__module__.partition('.')[0]} array"
        raise InvalidInput(name, got, "an eager, mutable array: numpy.asarray(...) makes one", "wrong-type")
    if array_api_compat.is_numpy_array(value):
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
        return value.view(np.ndarray) if type(value) is not np.ndarray else value
    if array_api_compat.is_array_api_obj(value):
        return value
    if hasattr(value, "matvec"):
        need = "products with its transpose too: shape, matvec and rmatvec"
        raise InvalidInput(name, f"{kind_of(value)} without rmatvec", need, "wrong-type")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        got = f"{kind_of(value)} that does not form an array"
        raise InvalidInput(name, got, "rows of equal length", "wrong-shape") from error


_TORCH_SPARSE = {f"torch.sparse_{kind}" for kind in ("coo", "csr", "csc", "bsr", "bsc")}


def _require_finite(array: Array, name: str) -> None:
    xp = namespace(array)
    for start, block in blocks(array, axis=0):
        finite = xp.isfinite(block)
        if not bool(xp.all(finite)):
            flat = int(xp.argmax(xp.astype(xp.reshape(~finite, (-1,)), xp.uint8)))
            index = np.unravel_index(flat, tuple(block.shape))
            where = (start + int(index[0]), *(int(k) for k in index[1:]))
            bad = float(block[tuple(int(k) for k in index)])
            place = where[0] if len(where) == 1 else where
            raise InvalidInput(name, f"{bad} at {place}", "finite entries", "not-finite")


def _require_exact(array: Array, name: str) -> None:
    """Refuse integers that float64 cannot hold: widening them would change the matrix of the verdict."""
    xp = namespace(array)
    low, high = int(xp.min(array)), int(xp.max(array))
    if max(-low, high) > _EXACT_INTEGER:
        extreme = high if high > -low else low
        need = "integers of at most 2**53 in magnitude, which float64 holds exactly"
        raise InvalidInput(name, f"the integer {extreme}", need, "wrong-dtype")


def blocks(array: Array, axis: int) -> list[tuple[int, Array]]:
    """Cut an array into slices along ``axis`` (views, in order) of bounded size: (start, slice) pairs."""
    length = int(array.shape[axis])
    width = max(1, int(np.prod(array.shape, dtype=np.int64)) // max(1, length)) * 8
    step = max(1, _BLOCK_BYTES // width)
    cut = [slice(None)] * array.ndim
    pieces = []
    for start in range(0, length, step):
        cut[axis] = slice(start, min(start + step, length))
        pieces.append((start, array[tuple(cut)]))
    return pieces


def same_place(first: Array, second: Array, names: tuple[str, str]) -> None:
    """Require two arrays of the same namespace and device: arrays are not moved implicitly."""
    xp, other = namespace(first), namespace(second)
    if xp is not other:
        libraries = [module.__name__.rpartition(".")[2] for module in (xp, other)]
        got = f"a {libraries[1]} array with a {libraries[0]} {names[0]}"
        raise InvalidInput(names[1], got, f"the library of {names[0]}", "wrong-type")
    device, other_device = array_api_compat.device(first), array_api_compat.device(second)
    if device != other_device:
        got = f"device {other_device}, but {names[0]} on {device}"
        raise InvalidInput(names[1], got, f"the device of {names[0]}", "wrong-device")


def host(array: Array) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a (small) array as a NumPy array, in which decisions are made."""
    if isinstance(array, np.ndarray):
        return array
    if array_api_compat.is_cupy_array(array):
        return np.asarray(array.get())
    if array_api_compat.is_torch_array(array):
        return np.asarray(array_api_compat.to_device(array, "cpu"))
    try:
        return np.asarray(array)
    except (RuntimeError, TypeError):  # on a device of its library, without implicit conversion
        return np.from_dlpack(array)


def on_host(array: Array) -> Array:
    """Return an array of torch in the memory of the CPU as a NumPy array that shares it, any other array as it is."""
    if array_api_compat.is_torch_array(array) and array.device.type == "cpu":
        return array.numpy()
    return array


def like(values: Any, reference: Array) -> Array:
    """Return host ``values`` as a float64 array in the namespace and on the device of ``reference``."""
    xp = namespace(reference)
    return xp.asarray(values, dtype=xp.float64, device=array_api_compat.device(reference))


def accelerator(value: Any) -> Array | None:
    """Return an empty array on the GPU of ``value``, a CuPy array or a CUDA tensor; None for other values.

    Examples
    --------
    >>> import numpy as np
    >>> accelerator(np.eye(2)) is None
    True
    """
    if array_api_compat.is_cupy_array(value) or (array_api_compat.is_torch_array(value) and value.is_cuda):
        return value[:0]
    return None


def digest(array: Array) -> str:
    """Return the SHA-256 of dtype, shape and the entries in row-major order, as 64 hexadecimal digits.

    Examples
    --------
    >>> import numpy as np
    >>> digest(np.eye(2)) == digest(np.asfortranarray(np.eye(2)))
    True
    >>> digest(np.eye(2)) == digest(np.eye(2, dtype=np.float32))
    False
    """
    content = hashlib.sha256()
    entries = host(array)
    content.update(f"{entries.dtype.str} {entries.shape}".encode())
    for _, block in blocks(entries, axis=0) if entries.ndim else [(0, entries)]:
        content.update(np.ascontiguousarray(block).tobytes())
    return content.hexdigest()


def available_memory() -> int:
    """Return the bytes of available main memory, within the limits of the process, its control group and the call."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass  # not Linux: all memory of the machine
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        available = min(available, max(0, limit - int((group / "memory.current").read_text())))
    except (OSError, ValueError):
        pass  # no limit
    limits = (limit for limit in (address_space(), most_memory()) if limit is not None)
    return min((available, *limits))


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
