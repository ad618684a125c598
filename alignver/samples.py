"""Read samples in order, a bounded number at a time, from arrays, files, data sets and loaders.

A stream (a Dataset, a DataLoader) is read twice. A stream that shuffles or augments gives other samples the second
time, so that no statement could be about the same data; it is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver import require
from alignver.arrays import from_frame, host, is_array, is_text, native, numbered
from alignver.errors import InvalidInput, kind_of, reading
from alignver.kernel.data import canonical, digests_of, record_of
from alignver.progress import track

LABELS = ("labels", "label", "targets", "target", "y")
"""Names of the targets in a dict."""

_BLOCK_BYTES = 1 << 26
_REMEDIES = {
    "O": "real numbers: .astype(float) where all entries are",
    "U": "real numbers: numpy.unique(values, return_inverse=True)[1] numbers the classes",
    "S": "real numbers: numpy.unique(values, return_inverse=True)[1] numbers the classes",
    "c": "real numbers: numpy.stack([x.real, x.imag], -1)",
}
_CASTS = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and targets that are read block by block.

    Attributes
    ----------
    source : object
        An array with a row for each sample, or a stream of pairs (x, y).
    targets : array or None
        The targets; None if the stream contains them, or without targets.
    name, targets_name : str
        The names of the two in messages.
    """

    source: Any
    targets: Any
    name: str = "X"
    targets_name: str = "Y"

    @property
    def streamed(self) -> bool:
        """Whether the samples are only available one after the other."""
        return not is_array(self.source)

    def blocks(self) -> Iterator[tuple[npt.NDArray[Any], list[Any] | None]]:
        """Yield blocks of inputs (k, ...), with their targets in the stream.

        Raises
        ------
        InvalidInput
            Samples that are not arrays of numbers, or have different shapes.
        """
        if not self.streamed:
            size = max(1, int(np.prod(self.source.shape[1:], dtype=np.int64)))
            step = max(1, _BLOCK_BYTES // (8 * size))
            for start in range(0, len(self.source), step):
                yield as_numbers(self.source[start : start + step], self.name), None
            return
        with reading_samples(self.name):
            yield from _joined(_batches(self.source, self.name), self.name)

    def kind(self) -> str:
        """Return the dtype of the inputs as in ``numpy.dtype.str``, little-endian."""
        if not self.streamed:
            first = as_numbers(self.source[:1], self.name)
        else:
            with _preserve_random_state():
                first = next(iter(_batches(self.source, self.name)), (np.empty(0), None))[0]
        return _little_endian(first.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprints:
    """Digests of samples, the record that identifies all of them, and the targets.

    Attributes
    ----------
    digests : list of bytes
        SHA-256 of each input.
    record : dict
        For the certificate: ``sha256``, ``shape``, ``dtype``.
    targets : (n, m) float64 or None
    classes : bool
        Whether each target is a single number.
    """

    digests: list[bytes]
    record: dict[str, Any]
    targets: npt.NDArray[np.float64] | None
    classes: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return tuple(self.record["shape"])


def open_samples(X: Any, Y: Any = None, *, names: tuple[str, str] = ("X", "Y")) -> Samples:
    """Return samples in a form that can be read block by block.

    Parameters
    ----------
    X : array, tensor, nested list, dict of arrays, alignver Dataset, torch Dataset or DataLoader
        A Dataset or DataLoader gives pairs (x, y), or x alone if ``Y`` is given. Several inputs, a dict by their names
        or a tuple before the targets, are one sample together: their numbers side by side. Targets in a dict have one
        of the names :data:`LABELS`.
    Y : array, optional
        Targets, a row or a number for each sample.
    names : tuple of two str
        The names of X and Y in messages.

    Raises
    ------
    InvalidInput
        An object without samples, or whose samples cannot be read twice.

    Examples
    --------
    >>> samples = open_samples([[0.0], [1.0]], [3, 4])
    >>> samples.streamed, samples.kind()
    (False, '<f8')
    """
    name, targets_name = names
    X, Y = from_frame(X, name), from_frame(Y, targets_name)
    if hasattr(X, "x") and hasattr(X, "y") and hasattr(X, "sha256"):  # of alignver.data
        if Y is not None:
            got = f"targets in addition to those of {kind_of(X)}"
            raise InvalidInput(targets_name, got, "one of the two", "conflicting-arguments")
        X, Y = X.x, X.y
    if isinstance(X, Mapping):
        X, labels = _Packing(name).of_dict(X)
        if Y is not None and labels is not None:
            got, need = f"targets in addition to those in {name}", "one of the two"
            raise InvalidInput(targets_name, got, need, "conflicting-arguments")
        Y = labels if Y is None else Y
    if is_stream(X):
        if hasattr(X, "__next__"):
            got = f"{kind_of(X)}, which can be read once"
            need = "an array, or a Dataset or DataLoader that can be read twice"
            raise InvalidInput(name, got, need, "wrong-type")
        sampler = type(getattr(X, "sampler", None)).__name__
        if "Random" in sampler:
            need = "samples in a fixed order: shuffle=False, or the loader's dataset"
            raise InvalidInput(name, f"a loader that shuffles ({sampler})", need)
        return Samples(X, Y, name, targets_name)
    if X is None or isinstance(X, str | bytes | dict | set) or (not is_array(X) and not _is_nested_list(X)):
        need = "an array with a row for each sample, a Dataset or a DataLoader"
        raise InvalidInput(name, kind_of(X), need, "wrong-type")
    if getattr(X, "is_nested", False):
        raise InvalidInput(name, "a nested tensor", "samples of one shape: X.to_padded_tensor(0.0)", "wrong-shape")
    array = native(X, name) if is_array(X) else as_numbers(X, name)
    if array.ndim == 0 or 0 in tuple(array.shape):
        need = "at least one sample, a row for each, with a number in it: shape (n, ...)"
        raise InvalidInput(name, f"shape {tuple(array.shape)}", need, "wrong-shape")
    return Samples(array, Y, name, targets_name)


def reading_samples(name: str = "X") -> contextlib.AbstractContextManager[None]:
    """Turn whatever the code of a stream raises into an error in ``name``."""
    return reading(name, "samples that cannot be read", "data that can be read from beginning to end")


class Sequential:
    """The inputs of a stream in the form that the kernel reads: slices of rows, from the first to the last, once.

    Parameters
    ----------
    samples : Samples
    shape : tuple of int
        Their shape in the certificate.

    Raises
    ------
    InvalidInput
        Samples of another shape; the kernel plans its blocks by the shape.
    """

    def __init__(self, samples: Samples, shape: Any) -> None:
        self._blocks = samples.blocks()
        self._buffer = next(self._blocks)[0]
        sizes = shape if isinstance(shape, tuple | list) else ()
        if tuple(sizes[1:]) != self._buffer.shape[1:] or not all(type(size) is int for size in sizes):
            got = f"samples of shape {self._buffer.shape[1:]} for a certificate about {shape}"
            raise InvalidInput(samples.name, got, "the inputs that the certificate is about", "wrong-shape")
        self.shape = tuple(sizes)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Return the next rows, as many as the slice has, or fewer at the end."""
        size = min(rows.stop, self.shape[0]) - rows.start
        parts, count = [self._buffer], len(self._buffer)
        while count < size and (block := next(self._blocks, None)) is not None:
            parts.append(block[0])
            count += len(block[0])
        joined = np.concatenate(parts)
        self._buffer = joined[size:]
        return joined[:size]


def targets_of(samples: Samples) -> npt.NDArray[np.float64] | None:
    """Return the targets as a matrix of float64: the given ones, or those of the stream."""
    streamed: list[Any] = []
    n = 0
    for block, labels in samples.blocks() if samples.streamed else ():
        n += len(block)
        streamed += labels or []
    return _targets(samples, streamed or None, n or len(samples.source))[0]


def fingerprints(samples: Samples, *, cast: str | None = None, kind: str | None = None) -> Fingerprints:
    """Read samples and compute a digest of each; a stream is read twice to check that it is the same.

    Parameters
    ----------
    samples : Samples
    cast : {"float16", "float32", "float64"}, optional
        Round the inputs to it first, like a module of that dtype.
    kind : str, optional
        Compare the inputs in this dtype, which holds all of them.

    Raises
    ------
    InvalidInput
        NaN or Inf; samples of different shapes or dtypes; another number of targets; samples that differ when they are
        read again.
    """
    if cast is not None:
        kind = _CASTS[require.one_of("dtype", cast, _CASTS)]
    with _preserve_random_state():
        digests, record, streamed = _read(samples, kind)
        targets, classes = _targets(samples, streamed, len(digests))
        if samples.streamed:
            _require_the_same(samples, kind, digests, targets)
    return Fingerprints(digests, record, targets, classes)


@contextlib.contextmanager
def _preserve_random_state() -> Iterator[None]:
    """Restore torch's random state at the end: a DataLoader draws a seed each time that it is read.

    The state is not restored between two readings, which have to differ if samples are drawn at random.
    """
    torch = sys.modules.get("torch")
    state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        if torch is not None:
            torch.set_rng_state(state)


def as_numbers(value: Any, name: str) -> npt.NDArray[Any]:
    """Return an array, tensor, image or number as a NumPy array of real numbers.

    Raises
    ------
    InvalidInput
        Rows of different lengths; entries that are not real numbers.
    """
    if type(value).__module__ == "torch" and type(value).__name__ == "Tensor":
        with contextlib.suppress(TypeError, RuntimeError):  # the fast path for a dense tensor on the CPU
            value = value.detach().numpy()
    try:
        array = native(value, name)
        array = host(array.float() if str(array.dtype) == "torch.bfloat16" else array)
    except (TypeError, RuntimeError) as error:
        got = f"{kind_of(value)} that does not form an array"
        raise InvalidInput(name, got, "real numbers, in samples of one shape", "wrong-shape") from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        need = _REMEDIES.get(array.dtype.kind, "real numbers")
        raise InvalidInput(name, f"entries of dtype {array.dtype}", need, "wrong-dtype")
    return array


def _is_nested_list(value: Any) -> bool:
    return isinstance(value, Sequence) or hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def is_stream(value: Any) -> bool:
    """Whether a value gives samples one after the other: a Dataset, a DataLoader, an iterable."""
    if is_array(value) or isinstance(value, Sequence | str | bytes | dict | set) or hasattr(value, "__array__"):
        return False
    return hasattr(value, "__iter__") or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _batches(source: Any, name: str) -> Iterator[tuple[npt.NDArray[Any], Any]]:
    """Yield (inputs, targets or None): batches of a loader, samples of a data set as batches of one."""
    count = 0
    batched = hasattr(source, "dataset") and hasattr(source, "__iter__")  # a DataLoader
    pair = _Packing(name, batched=batched).pair
    if batched:
        for item in source:
            x, y = pair(item)
            inputs = as_numbers(x, name)
            count += len(inputs)
            yield inputs, y
        require_all(source, count, name)
        return
    length = _length(source)
    items = iter(source) if hasattr(source, "__iter__") else map(source.__getitem__, range(length or 0))
    for item in items:
        x, y = pair(item)
        count += 1
        yield as_numbers(x, name)[None], None if y is None else [y]
    if length is not None and count != length:
        raise InvalidInput(name, f"{count} samples, though its length is {length}", "as many as its length")


def require_all(loader: Any, count: int, name: str = "X") -> None:
    """Refuse a DataLoader that gave another number of samples than it has, or may give, as one with ``drop_last``."""
    lengths = (_length(getattr(loader, "sampler", None)), _length(loader.dataset))
    expected = next((n for n in lengths if n is not None), None)
    if expected is None and getattr(loader, "drop_last", False):
        raise InvalidInput(name, "a loader that may leave samples out", "all samples: drop_last=False")
    if expected is not None and count != expected:
        raise InvalidInput(name, f"{count} samples of a loader over {expected}", "all samples: drop_last=False")


def _length(value: Any) -> int | None:
    """Return the length of an object; None without one, as for a stream of unknown length."""
    try:
        return len(value)
    except TypeError:
        return None


def is_collated(value: Any) -> bool:
    """Whether an entry of a batch is a list of arrays: torch's collate function makes one of the tuples of samples."""
    return isinstance(value, list) and len(value) > 1 and all(is_array(part) and part.ndim for part in value)


class _Packing:
    """Puts the numbers of several inputs side by side: of every sample in the same order, shapes and dtypes."""

    def __init__(self, name: str, *, batched: bool = True) -> None:
        self.name, self.batched = name, batched
        self._layout: dict[Any, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def pair(self, item: Any) -> tuple[Any, Any]:
        """Return the inputs and the targets of a sample or a batch."""
        if isinstance(item, str | bytes):
            raise self._refused(f"samples that are {kind_of(item)}", "pairs (x, y), or x alone", "wrong-type")
        if isinstance(item, Mapping):
            return self.of_dict(item)
        if not isinstance(item, tuple | list):
            return item, None
        *inputs, y = item if len(item) > 1 else (*item, None)
        if len(inputs) == 1 and (isinstance(inputs[0], Mapping | tuple) or (self.batched and is_collated(inputs[0]))):
            parts = inputs[0] if isinstance(inputs[0], Mapping) else dict(enumerate(inputs[0]))
            return self._joined(parts), y
        return (inputs[0] if len(inputs) == 1 else self._joined(dict(enumerate(inputs)))), y

    def of_dict(self, item: Mapping[Any, Any]) -> tuple[npt.NDArray[Any], Any]:
        """Return the inputs of a dict, and what it has under the name of targets."""
        label = next((key for key in LABELS if key in item), None)
        inputs = {key: value for key, value in item.items() if key != label and value is not None}
        return self._joined(inputs), None if label is None else item[label]

    def _joined(self, inputs: Mapping[Any, Any]) -> npt.NDArray[Any]:
        """Return the numbers of inputs, (n, entries) of a batch, in a dtype that holds all of them."""
        arrays = {key: as_numbers(value, self.name) for key, value in inputs.items()}
        arrays = arrays if self.batched else {key: array[None] for key, array in arrays.items()}
        rows = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
        if 0 in (size := set(rows.values()) or {0}) or len(size) > 1:
            got = ", ".join(f"{count} rows of {key!r}" for key, count in rows.items()) or "no inputs"
            raise self._refused(got, "a row of each input for each sample", "wrong-shape")
        layout = {key: (array.shape[1:], array.dtype) for key, array in arrays.items()}
        self._layout = self._layout or layout
        if layout != self._layout:  # equal numbers would not be equal inputs
            first, now = (", ".join(f"{k!r} {s} {t}" for k, (s, t) in each.items()) for each in (self._layout, layout))
            raise self._refused(f"samples of {now}, but {first} before", "samples of one structure", "wrong-shape")
        arrays = {key: arrays[key] for key in self._layout}
        if len({array.dtype for array in arrays.values()}) > 1:
            wide = [array for array in arrays.values() if array.dtype.kind in "iu" and array.size]
            if any(int(array.min()) < -(2**53) or int(array.max()) > 2**53 for array in wide):
                raise self._refused(
                    "integers beyond 2**53 beside inputs of another dtype", "smaller ones", "wrong-dtype"
                )
            arrays = {key: array.astype(np.float64) for key, array in arrays.items()}
        joined = np.concatenate([array.reshape(len(array), -1) for array in arrays.values()], 1)
        return joined if self.batched else joined[0]

    def _refused(self, got: str, need: str, code: str) -> InvalidInput:
        return InvalidInput(self.name, got, need, code)


def _joined(batches: Iterator[tuple[npt.NDArray[Any], Any]], name: str) -> Iterator[tuple[npt.NDArray[Any], Any]]:
    """Join batches of a stream up to the size of a block; all samples have one shape and dtype."""
    like: tuple[tuple[int, ...], np.dtype[Any]] | None = None
    arrays: list[npt.NDArray[Any]] = []
    targets: list[Any] = []
    count = size = 0
    for inputs, y in batches:
        if inputs.ndim == 0 or 0 in inputs.shape:
            got = f"sample {count} of shape {inputs.shape[1:]}"
            raise InvalidInput(name, got, "samples that are not empty", "wrong-shape")
        if like is None:
            like = (inputs.shape[1:], inputs.dtype)
        if (inputs.shape[1:], inputs.dtype) != like:
            got = f"sample {count} of shape {inputs.shape[1:]} and {inputs.dtype}, but {like[0]} and {like[1]} before"
            raise InvalidInput(name, got, "samples of one shape and dtype", "wrong-shape")
        labels = None if y is None else list(y)
        if labels is not None and len(labels) != len(inputs):
            got = f"{len(labels)} targets with {len(inputs)} inputs"
            raise InvalidInput(name, got, "a target for each sample", "wrong-shape")
        if arrays and (labels is None) != (not targets):
            got = f"samples with and without targets (at sample {count})"
            raise InvalidInput(name, got, "pairs (x, y), or x alone", "wrong-shape")
        arrays.append(inputs)
        targets += labels or []
        count, size = count + len(inputs), size + inputs.nbytes
        if size >= _BLOCK_BYTES // 8:
            yield np.concatenate(arrays), targets or None
            arrays, targets, size = [], [], 0
    if arrays:
        yield np.concatenate(arrays), targets or None
    if not count:
        raise InvalidInput(name, "no samples", "at least one", "wrong-shape")


def _read(samples: Samples, kind: str | None) -> tuple[list[bytes], dict[str, Any], list[Any] | None]:
    digests: list[bytes] = []
    targets: list[Any] = []
    shape: tuple[int, ...] = ()
    for block, labels in track(samples.blocks(), f"reading {samples.name}"):
        shape, kind = block.shape[1:], kind or _little_endian(block.dtype)
        try:
            digests += digests_of(canonical(block, kind))
        except InvalidInput as error:
            raise _located(error, block, kind, samples.name, len(digests)) from error
        targets += labels or []
    return digests, record_of(digests, (len(digests), *shape), str(kind)), targets or None


def _little_endian(dtype: np.dtype[Any]) -> str:
    return dtype.newbyteorder("<").str


def _located(error: InvalidInput, block: npt.NDArray[Any], kind: str, name: str, start: int) -> InvalidInput:
    """Return the error with the first sample that has a refused entry."""
    with np.errstate(all="ignore"):
        bad = np.flatnonzero(~np.isfinite(block.astype(kind)).reshape(len(block), -1).all(axis=1))
    where = f" at sample {start + int(bad[0])}" if bad.size else ""
    return InvalidInput(name, error.got + where, error.need, error.code)


def _require_the_same(
    samples: Samples, kind: str | None, digests: list[bytes], targets: npt.NDArray[np.float64] | None
) -> None:
    """Read a stream again, and refuse it if it gives other samples; the message says how they differ."""
    again, _, streamed = _read(samples, kind)
    need = "samples that are the same each time they are read"
    if len(again) != len(digests):
        raise InvalidInput(samples.name, f"{len(digests)} samples, then {len(again)} when read again", need)
    if again != digests:
        if sorted(again) == sorted(digests):
            got = "the samples in another order when read again: it shuffles"
            raise InvalidInput(samples.name, got, f"{need}: shuffle=False")
        first = next(i for i, (old, new) in enumerate(zip(digests, again, strict=True)) if old != new)
        got = f"another sample {first} when read again: it augments or draws at random"
        raise InvalidInput(samples.name, got, f"{need}: transforms without randomness")
    now = None if streamed is None else _targets(samples, streamed, len(again))[0]
    if now is not None and (targets is None or not np.array_equal(now, targets)):
        raise InvalidInput(samples.targets_name, "other targets when read again", need)


def _targets(samples: Samples, streamed: list[Any] | None, n: int) -> tuple[npt.NDArray[np.float64] | None, bool]:
    """Return targets as a matrix of float64, and whether they are one number per sample."""
    name = samples.targets_name
    if streamed is not None and samples.targets is not None:
        got = f"targets in addition to those in {samples.name}"
        raise InvalidInput(name, got, "one of the two", "conflicting-arguments")
    given: Any = samples.targets if samples.targets is not None else streamed
    if given is None:
        return None, False
    if streamed is not None:
        given = list(map(as_numbers, streamed, itertools.repeat(name)))
    Y = numbered(given) if is_text(given) else as_numbers(given, name)
    if Y.ndim not in (1, 2) or 0 in Y.shape:
        raise InvalidInput(name, f"shape {Y.shape}", "a target for each sample: shape (n,) or (n, m)", "wrong-shape")
    if len(Y) != n:
        got = f"{len(Y)} targets for {n} samples in {samples.name}"
        raise InvalidInput(name, got, "a target for each sample", "wrong-shape")
    if Y.dtype.kind in "iu" and (int(Y.min()) < -(2**53) or int(Y.max()) > 2**53):
        raise InvalidInput(name, "integers beyond 2**53", "targets that float64 holds exactly", "wrong-dtype")
    values = Y.astype(np.float64).reshape(n, -1)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InvalidInput(name, f"NaN or Inf at sample {bad}", "finite targets", "not-finite")
    return values, Y.ndim == 1
