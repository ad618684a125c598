"""Samples that no model can fit together: equal inputs with different targets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Conflicts", "conflicts", "equal_rows"]

_LISTED = 20


@dataclasses.dataclass(frozen=True)
class Conflicts:
    """Pairs of samples with equal inputs and different targets.

    Attributes
    ----------
    count : int
        How many pairs there are.
    pairs : tuple of (int, int)
        The first twenty of them, each with the smaller index first, in lexicographic order.
    """

    count: int
    pairs: tuple[tuple[int, int], ...]


def equal_rows(x: npt.NDArray[Any]) -> list[list[int]]:
    """Group the samples that have equal inputs: lists of at least two indices, found by hashing rows in O(n).

    Equality is that of bits: a model may tell -0.0 from 0.0 (atan2 does).

    Examples
    --------
    >>> equal_rows(np.array([[0.0], [1.0], [-0.0], [2.0], [1.0]]))
    [[1, 4]]
    """
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(x):
        key = hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=32).digest()
        groups.setdefault(key, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def conflicts(groups: Sequence[Sequence[int]], targets: npt.NDArray[np.float64]) -> Conflicts:
    """Find the pairs inside groups of equal inputs whose rows of targets (n, m_y) differ.

    Such a pair refutes the alignment of every theta at once: two equal rows of J with different targets.

    Examples
    --------
    >>> conflicts([[0, 2, 3]], np.array([[1.0], [5.0], [-1.0], [1.0]]))
    Conflicts(count=2, pairs=((0, 2), (2, 3)))
    """
    count, pairs = 0, []
    for group in groups:
        kinds = [(targets[i] + 0.0).tobytes() for i in group]
        sizes: dict[bytes, int] = {}
        for kind in kinds:
            sizes[kind] = sizes.get(kind, 0) + 1
        if len(sizes) == 1:
            continue
        count += (len(group) ** 2 - sum(size**2 for size in sizes.values())) // 2
        pairs += _first_pairs(group, kinds)
    return Conflicts(count, tuple(sorted(pairs)[:_LISTED]))


def _first_pairs(group: Sequence[int], kinds: Sequence[bytes]) -> list[tuple[int, int]]:
    """List the first pairs of one group that differ, at most as many as are reported in all."""
    found: list[tuple[int, int]] = []
    last = max(k for k in range(len(group)) if kinds[k] != kinds[-1])  # after it, all targets are equal
    for a in range(last + 1):
        for b in range(a + 1, len(group)):
            if kinds[a] != kinds[b]:
                found.append((group[a], group[b]))
                if len(found) == _LISTED:
                    return found
    return found
