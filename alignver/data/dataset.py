"""What a loader returns: two read-only arrays with their content hash, source and licence."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.arrays import digest
from alignver.errors import InvalidInput

__all__ = ["Dataset"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Inputs and targets, one row for each sample, and where they came from.

    Attributes
    ----------
    name : str
        What to call it in a report.
    x, y : numpy.ndarray
        Inputs (n, ...) and targets (n, ...), made read-only.
    source, licence : str
        Where the data come from (a citation, or the formula that makes them), and their licence.
    sha256 : str
        Hash of the content: SHA-256 of the :func:`alignver.arrays.digest` of x followed by that of y.

    Examples
    --------
    >>> import numpy as np
    >>> Dataset("two points", np.eye(2), np.array([0, 1]), "by hand", "none")
    Dataset('two points', x (2, 2) float64, y (2,) int64, sha256 bb385f2f...)
    """

    name: str
    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    source: str
    licence: str
    sha256: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.x.ndim == 0 or self.y.ndim == 0 or len(self.x) != len(self.y):
            raise InvalidInput(
                "y", f"shape {self.y.shape} beside x of shape {self.x.shape}", "one row for each row of x"
            )
        for field in ("x", "y"):
            own = np.array(getattr(self, field))  # a copy: making it read-only must not lock the caller's array
            own.setflags(write=False)
            object.__setattr__(self, field, own)
        content = (digest(self.x) + digest(self.y)).encode()
        object.__setattr__(self, "sha256", hashlib.sha256(content).hexdigest())

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.x)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{key} {a.shape} {a.dtype}" for key, a in (("x", self.x), ("y", self.y)))
        return f"Dataset({self.name!r}, {arrays}, sha256 {self.sha256[:8]}...)"

    def take(self, indices: npt.ArrayLike) -> Dataset:
        """Return the dataset of the given samples, in the given order."""
        chosen = np.asarray(indices)
        return Dataset(self.name, self.x[chosen], self.y[chosen], self.source, self.licence)
