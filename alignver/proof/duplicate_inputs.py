"""Samples with equal inputs, conflicts of their targets, and the resulting bounds for every model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.kernel import Certificate, seal
from alignver.kernel.data import first_equal, least_loss
from alignver.samples import Fingerprints

LISTED = 20
"""Number of pairs that a result lists; all pairs are counted."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of samples.

    Attributes
    ----------
    count : int
        Number of pairs.
    pairs : tuple of (int, int)
        The first twenty in lexicographic order, each with the smaller index first.
    """

    count: int
    pairs: tuple[tuple[int, int], ...]

    def plain(self) -> dict[str, Any]:
        """Return the pairs as plain data."""
        return {"count": self.count, "pairs": self.pairs}


@dataclasses.dataclass(frozen=True, eq=False)
class DuplicateInputs:
    """The samples of one data set, grouped by their inputs.

    Attributes
    ----------
    known : Fingerprints
        Digests and targets.
    first : (n,) int64
        For each sample, the first one with the same input.

    Examples
    --------
    >>> from alignver.samples import fingerprints, open_samples
    >>> duplicates = DuplicateInputs.of(fingerprints(open_samples([[0.0], [1.0], [-0.0], [1.0]], [5, 6, 5, 7])))
    >>> duplicates.equal, duplicates.conflicts, duplicates.distinct
    (Pairs(count=2, pairs=((0, 2), (1, 3))), Pairs(count=1, pairs=((1, 3),)), 2)
    """

    known: Fingerprints
    first: npt.NDArray[np.int64]

    @classmethod
    def of(cls, known: Fingerprints) -> DuplicateInputs:
        """Group samples by their digests."""
        return cls(known, first_equal(known.digests))

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.first)

    @functools.cached_property
    def representatives(self) -> npt.NDArray[np.int64]:
        """The first sample of each group, in order: one sample for each distinct input."""
        return np.flatnonzero(self.first == np.arange(self.n))

    @property
    def distinct(self) -> int:
        """Number of distinct inputs."""
        return len(self.representatives)

    @functools.cached_property
    def position(self) -> npt.NDArray[np.int64]:
        """For each sample, the position of its input among the distinct inputs."""
        return np.searchsorted(self.representatives, self.first)

    @functools.cached_property
    def groups(self) -> list[list[int]]:
        """Groups of at least two samples with equal inputs."""
        groups: dict[int, list[int]] = {}
        for i in np.flatnonzero(self.first != np.arange(self.n)).tolist():
            first = int(self.first[i])
            groups.setdefault(first, [first]).append(i)
        return list(groups.values())

    @functools.cached_property
    def equal(self) -> Pairs:
        """Pairs with equal inputs."""
        return _pairs(self.groups, None)

    @functools.cached_property
    def conflicts(self) -> Pairs:
        """Pairs with equal inputs and different targets."""
        Y = self.known.targets
        return Pairs(0, ()) if Y is None else _pairs(self.groups, [row.tobytes() for row in Y + 0.0])

    def least_loss(self, loss: str | None) -> tuple[float, int | None]:
        """Return lower bounds of the loss and of the errors of every model (:func:`~alignver.kernel.data.least_loss`).

        Raises
        ------
        InvalidInput
            If the loss is not defined for the targets.
        """
        Y = self.known.targets
        return (0.0, None) if Y is None else least_loss(self.first, Y, loss)

    def certificate(self, loss: str | None = None) -> Certificate:
        """Return a certificate of the equal inputs and, if there are targets, of the resulting bounds of the loss."""
        constants: dict[str, Any] = {"rank": self.distinct}
        inputs: dict[str, Any] = {"X": self.known.record}
        if self.known.targets is not None:
            inputs["Y"] = self.known.targets
            lower, errors = self.least_loss(loss)
            constants |= {"loss": loss, "floor": lower, "errors": errors}
        if self.conflicts.count:
            rows = np.array(self.conflicts.pairs[0], dtype=np.int64)
            return seal("conflicting", "digests", inputs, {"rows": rows}, constants)
        joined = b"".join(self.known.digests[i] for i in self.representatives.tolist())
        digests = np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)
        claim = "distinct" if self.known.targets is None else "consistent"
        return seal(claim, "digests", inputs, {"digests": digests}, constants)


def _pairs(groups: Sequence[Sequence[int]], targets: Sequence[bytes] | None) -> Pairs:
    """Count the pairs within groups (only those with different ``targets``, if given) and list the first ones."""
    count, listed = 0, []
    for group in groups:
        kinds = None if targets is None else [targets[i] for i in group]
        sizes: dict[bytes, int] = {}
        for kind in kinds or ():
            sizes[kind] = sizes.get(kind, 0) + 1
        count += (len(group) ** 2 - (sum(size**2 for size in sizes.values()) or len(group))) // 2
        if kinds is None or len(sizes) > 1:
            listed += _first_pairs(group, kinds)
    return Pairs(count, tuple(sorted(listed)[:LISTED]))


def _first_pairs(group: Sequence[int], kinds: Sequence[bytes] | None) -> list[tuple[int, int]]:
    """List the first pairs of one group, at most :data:`LISTED`."""
    listed: list[tuple[int, int]] = []
    # After the last sample that differs from the final one all targets are equal: no pair starts there.
    last = len(group) - 2 if kinds is None else max(k for k in range(len(group)) if kinds[k] != kinds[-1])
    for a in range(last + 1):
        for b in range(a + 1, len(group)):
            if kinds is None or kinds[a] != kinds[b]:
                listed.append((group[a], group[b]))
                if len(listed) == LISTED:
                    return listed
    return listed
