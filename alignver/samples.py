"""Samples read in order, a bounded number at a time, from whatever holds them: arrays, files, data sets, loaders.

A stream (a Dataset, a DataLoader) is read twice. What shuffles or augments gives other samples the second time, and no
statement about the data would be about the same data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import host, is_array, native
from alignver.errors import InvalidInput, first_line, reading
from alignver.kernel.data import canonical, digests_of, record_of
from alignver.progress import track

__all__ = [
    "Fingerprints",
    "Samples",
    "Sequential",
    "as_numbers",
    "fingerprints",
    "is_stream",
    "open_samples",
    "targets_of",
]

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
        The targets; None where the stream brings them, or there are none.
    name, targets_name : str
        What messages call the two.
    """

    source: Any
    targets: Any
    name: str = "X"
    targets_name: str = "Y"

    @property
    def streamed(self) -> bool:
        """Whether the samples come one after the other only."""
        return not is_array(self.source)

    def blocks(self) -> Iterator[tuple[npt.NDArray[Any], list[Any] | None]]:
        """Yield blocks of inputs (k, ...), with the targets that come with them.

        Raises
        ------
        InvalidInput
            Samples that are no arrays of numbers, or of different shapes.
        """
        if not self.streamed:
            size = max(1, int(np.prod(self.source.shape[1:], dtype=np.int64)))
            step = max(1, _BLOCK_BYTES // (8 * size))
            for start in range(0, len(self.source), step):
                yield as_numbers(self.source[start : start + step], self.name), None
            return
        with reading(self.name, "samples that cannot be read", "data that can be read from beginning to end"):
            yield from _joined(_batches(self.source, self.name), self.name)

    def kind(self) -> str:
        """Return the dtype of the inputs, in the spelling of ``numpy.dtype.str``: little-endian."""
        if not self.streamed:
            first = as_numbers(self.source[:1], self.name)
        else:
            with _random_state_kept():
                first = next(iter(_batches(self.source, self.name)), (np.empty(0), None))[0]
        return _little_endian(first.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprints:
    """What is kept of samples: a digest for each, the record that identifies all of them, and the targets.

    Attributes
    ----------
    digests : list of bytes
        SHA-256 of each input.
    record : dict
        For the certificate: ``sha256``, ``shape``, ``dtype``.
    targets : (n, m) float64 or None
    classes : bool
        Whether the targets were given as one number each.
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
    """Return samples in the form that they are read in.

    Parameters
    ----------
    X : array, tensor, nested list, alignver Dataset, torch Dataset or DataLoader
        A Dataset or DataLoader gives pairs (x, y), or x alone where ``Y`` is given.
    Y : array, optional

    Raises
    ------
    InvalidInput
        Something that has no samples, or whose samples cannot be read twice.

    Examples
    --------
    >>> samples = open_samples([[0.0], [1.0]], [3, 4])
    >>> samples.streamed, samples.kind()
    (False, '<f8')
    """
    name, targets_name = names
    if hasattr(X, "x") and hasattr(X, "y") and hasattr(X, "sha256"):  # of alignver.data
        if Y is not None:
            raise InvalidInput(targets_name, f"targets beside a {type(X).__name__} with its own", "one of the two")
        X, Y = X.x, X.y
    if is_stream(X):
        if hasattr(X, "__next__"):
            got = f"a {type(X).__name__}, which can be read once"
            raise InvalidInput(name, got, "an array, or a Dataset or DataLoader that can be read twice")
        sampler = type(getattr(X, "sampler", None)).__name__
        if "Random" in sampler:
            raise InvalidInput(name, f"a loader that shuffles ({sampler})", "shuffle=False: samples in a fixed order")
        return Samples(X, Y, name, targets_name)
    if X is None or isinstance(X, str | bytes | dict | set) or (not is_array(X) and not _listed(X)):
        need = "an array with a row for each sample, a Dataset or a DataLoader"
        raise InvalidInput(name, f"a {type(X).__name__}", need)
    if getattr(X, "is_nested", False):
        raise InvalidInput(name, "a nested tensor", "samples of one shape: X.to_padded_tensor(0.0)")
    array = native(X, name) if is_array(X) else as_numbers(X, name)
    if array.ndim == 0 or 0 in tuple(array.shape):
        need = "at least one sample, a row for each, with a number in it: shape (n, ...)"
        raise InvalidInput(name, f"shape {tuple(array.shape)}", need)
    return Samples(array, Y, name, targets_name)


class Sequential:
    """The inputs of a stream as the kernel reads them: slices of rows, from the first to the last, once.

    Parameters
    ----------
    samples : Samples
    shape : tuple of int
        What a certificate says that they are.

    Raises
    ------
    InvalidInput
        Samples of another shape: the kernel plans its blocks by it.
    """

    def __init__(self, samples: Samples, shape: Any) -> None:
        self._blocks = samples.blocks()
        self._held = next(self._blocks)[0]
        sizes = shape if isinstance(shape, tuple | list) else ()
        if tuple(sizes[1:]) != self._held.shape[1:] or not all(type(size) is int for size in sizes):
            got = f"samples of shape {self._held.shape[1:]} beside a certificate about {shape}"
            raise InvalidInput(samples.name, got, "the inputs that the certificate is about")
        self.shape = tuple(sizes)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Return the next rows, as many as the slice has where there are so many."""
        wanted = min(rows.stop, self.shape[0]) - rows.start
        parts, count = [self._held], len(self._held)
        while count < wanted and (block := next(self._blocks, None)) is not None:
            parts.append(block[0])
            count += len(block[0])
        joined = np.concatenate(parts)
        self._held = joined[wanted:]
        return joined[:wanted]


def targets_of(samples: Samples) -> npt.NDArray[np.float64] | None:
    """Return the targets as a matrix of float64: those that were given, or those that a stream brings."""
    streamed: list[Any] = []
    n = 0
    for block, labels in samples.blocks() if samples.streamed else ():
        n += len(block)
        streamed += labels or []
    return _targets(samples, streamed or None, n or len(samples.source))[0]


def fingerprints(samples: Samples, *, cast: str | None = None, kind: str | None = None) -> Fingerprints:
    """Read samples and keep a digest of each; a stream is read again to see that it is the same.

    Parameters
    ----------
    samples : Samples
    cast : {"float16", "float32", "float64"}, optional
        Round the inputs to it first, as a module of that dtype does.
    kind : str, optional
        Compare the inputs in this dtype, which holds all of them.

    Raises
    ------
    InvalidInput
        NaN or Inf; samples of different shapes or dtypes; targets of another number; samples that are others when they
        are read again.
    """
    if cast is not None and cast not in _CASTS:
        raise InvalidInput("dtype", repr(cast), "one of " + ", ".join(_CASTS))
    kind = kind if cast is None else _CASTS[cast]
    with _random_state_kept():
        digests, record, streamed = _read(samples, kind)
        targets, classes = _targets(samples, streamed, len(digests))
        if samples.streamed:
            _require_the_same(samples, kind, digests, targets)
    return Fingerprints(digests, record, targets, classes)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put torch's random state back in the end: a DataLoader draws a seed each time that it is read.

    Not between two readings, which have to differ where samples are drawn at random.
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
        Rows of different lengths; entries that are no real numbers.
    """
    if type(value).__module__ == "torch" and type(value).__name__ == "Tensor":
        with contextlib.suppress(TypeError, RuntimeError):  # a dense tensor on the CPU, as almost all are
            value = value.detach().numpy()
    try:
        array = native(value, name)
        array = host(array.float() if str(array.dtype) == "torch.bfloat16" else array)
    except (TypeError, RuntimeError) as error:
        need = "real numbers, in samples of one shape"
        raise InvalidInput(name, f"a {type(value).__name__} that is no array ({first_line(error)})", need) from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InvalidInput(name, f"entries of dtype {array.dtype}", _REMEDIES.get(array.dtype.kind, "real numbers"))
    return array


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) or hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def is_stream(value: Any) -> bool:
    """Whether a value gives samples one after the other: a Dataset, a DataLoader, an iterable."""
    if is_array(value) or isinstance(value, Sequence | str | bytes | dict | set) or hasattr(value, "__array__"):
        return False
    return hasattr(value, "__iter__") or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _batches(source: Any, name: str) -> Iterator[tuple[npt.NDArray[Any], Any]]:
    """Yield (inputs, targets or None): batches of a loader, samples of a data set as batches of one."""
    if hasattr(source, "dataset") and hasattr(source, "__iter__"):  # a DataLoader
        expected, count = _expected(source), 0
        for item in source:
            x, y = _pair(item, name)
            inputs = as_numbers(x, name)
            count += len(inputs)
            yield inputs, y
        if expected is not None and count != expected:
            got = f"{count} samples of a loader over {expected}"
            raise InvalidInput(name, got, "all samples: drop_last=False")
        return
    length = _length(source)
    items = iter(source) if hasattr(source, "__iter__") else map(source.__getitem__, range(length or 0))
    count = 0
    for item in items:
        x, y = _pair(item, name)
        count += 1
        yield as_numbers(x, name)[None], None if y is None else [y]
    if length is not None and count != length:
        raise InvalidInput(name, f"{count} samples, though its length is {length}", "as many as its length says")


def _expected(loader: Any) -> int | None:
    """Return how many samples a loader has to give: those of its sampler."""
    return next(
        (n for n in (_length(getattr(loader, "sampler", None)), _length(loader.dataset)) if n is not None), None
    )


def _length(value: Any) -> int | None:
    """Return the length of something; None where it has none, as a stream of unknown length."""
    try:
        return len(value)
    except TypeError:
        return None


def _pair(item: Any, name: str) -> tuple[Any, Any]:
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise InvalidInput(name, f"samples of {len(item)} parts", "pairs (x, y), or x alone")
        return item[0], item[1] if len(item) == 2 else None
    if isinstance(item, dict | str | bytes):
        raise InvalidInput(name, f"samples that are a {type(item).__name__}", "pairs (x, y), or x alone")
    return item, None


def _joined(batches: Iterator[tuple[npt.NDArray[Any], Any]], name: str) -> Iterator[tuple[npt.NDArray[Any], Any]]:
    """Join batches of a stream up to the size of a block; all samples have one shape and dtype."""
    like: tuple[tuple[int, ...], np.dtype[Any]] | None = None
    kept: list[npt.NDArray[Any]] = []
    targets: list[Any] = []
    count = size = 0
    for inputs, y in batches:
        if inputs.ndim == 0 or 0 in inputs.shape:
            raise InvalidInput(name, f"sample {count} of shape {inputs.shape[1:]}", "samples that are not empty")
        if like is None:
            like = (inputs.shape[1:], inputs.dtype)
        if (inputs.shape[1:], inputs.dtype) != like:
            got = f"sample {count} of shape {inputs.shape[1:]} and {inputs.dtype} beside {like[0]} and {like[1]}"
            raise InvalidInput(name, got, "samples of one shape and dtype")
        labels = None if y is None else list(y)
        if labels is not None and len(labels) != len(inputs):
            raise InvalidInput(name, f"{len(labels)} targets with {len(inputs)} inputs", "a target for each sample")
        if kept and (labels is None) != (not targets):
            raise InvalidInput(
                name, f"sample {count}, with a target where others have none", "pairs (x, y), or x alone"
            )
        kept.append(inputs)
        targets += labels or []
        count, size = count + len(inputs), size + inputs.nbytes
        if size >= _BLOCK_BYTES // 8:
            yield np.concatenate(kept), targets or None
            kept, targets, size = [], [], 0
    if kept:
        yield np.concatenate(kept), targets or None
    if not count:
        raise InvalidInput(name, "no samples", "at least one")


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
    """Name the first sample with an entry that is refused."""
    with np.errstate(all="ignore"):
        bad = np.flatnonzero(~np.isfinite(block.astype(kind)).reshape(len(block), -1).all(axis=1))
    where = f" at sample {start + int(bad[0])}" if bad.size else ""
    return InvalidInput(name, error.got + where, error.need)


def _require_the_same(
    samples: Samples, kind: str | None, digests: list[bytes], targets: npt.NDArray[np.float64] | None
) -> None:
    """Read a stream again, and say what it does if it gives other samples."""
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
    """Return targets as a matrix of float64, and whether they were one number a sample."""
    name = samples.targets_name
    if streamed is not None and samples.targets is not None:
        raise InvalidInput(name, f"targets beside those that {samples.name} brings", "one of the two")
    given: Any = samples.targets if samples.targets is not None else streamed
    if given is None:
        return None, False
    if streamed is not None:
        given = list(map(as_numbers, streamed, itertools.repeat(name)))
    Y = as_numbers(given, name)
    if Y.ndim not in (1, 2) or 0 in Y.shape:
        raise InvalidInput(name, f"shape {Y.shape}", "a target for each sample: shape (n,) or (n, m)")
    if len(Y) != n:
        raise InvalidInput(name, f"{len(Y)} targets beside {n} samples in {samples.name}", "a target for each sample")
    if Y.dtype.kind in "iu" and (int(Y.min()) < -(2**53) or int(Y.max()) > 2**53):
        raise InvalidInput(name, "integers beyond 2**53", "targets that float64 holds exactly")
    values = Y.astype(np.float64).reshape(n, -1)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InvalidInput(name, f"NaN or Inf at sample {bad}", "finite targets")
    return values, Y.ndim == 1
