"""Pieces of the parameter vector: how slots are cut into blocks, and a model as a function of some."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch

from alignver.models.functional import Functional, Theta
from alignver.models.slots import Slots

__all__ = ["Piece", "of_pieces", "packed"]

Piece = tuple[int, int, int]
"""Index of a slot, first entry, and one past the last."""


def packed(slots: Iterable[tuple[int, int, int]], most: int) -> Iterator[list[Piece]]:
    """Cut slots (index, size, entries of a row) into blocks of at most ``most`` columns: whole rows where they fit.

    A row longer than that is cut; no piece then reaches over its end, and no block has two pieces of one slot.

    Examples
    --------
    >>> list(packed([(0, 6, 2), (1, 3, 1)], 5))
    [[(0, 0, 4)], [(0, 4, 6), (1, 0, 3)]]
    >>> list(packed([(0, 6, 3)], 2))
    [[(0, 0, 2)], [(0, 2, 3)], [(0, 3, 5)], [(0, 5, 6)]]
    """
    block: list[Piece] = []
    room = most
    for k, size, inner in slots:
        start = 0
        while start < size:
            left = size - start
            within = inner - start % inner  # to the end of the row
            fits = min(left, room // inner * inner) if within == inner and room >= inner else min(within, room)
            split = inner <= most and fits < inner and fits < left  # a row that a fresh block has room for
            if fits == 0 or split or (block and block[-1][0] == k):
                yield block
                block, room = [], most
                continue
            block.append((k, start, start + fits))
            start, room = start + fits, room - fits
            if room == 0:
                yield block
                block, room = [], most
    if block:
        yield block


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut(Functional):
    """A model as a function of consecutive entries of some of its slots."""

    whole: Theta
    ranges: dict[str, tuple[int, int]]

    def __call__(self, theta: Theta, x: torch.Tensor) -> torch.Tensor:
        """Run the model with the entries put in their places."""
        full = dict(self.whole)
        for name, part in theta.items():
            start, stop = self.ranges[name]
            flat = full[name].reshape(-1)
            full[name] = torch.cat([flat[:start], part.reshape(-1), flat[stop:]]).reshape(full[name].shape)
        # Where an output does not reach them, autograd finds no graph; a zero of theirs gives it one.
        return super().__call__(full, x) + 0.0 * sum(part.sum() for part in theta.values())


def of_pieces(function: Functional, slots: Slots, pieces: list[Piece]) -> Functional:
    """Return the model as a function of the given pieces, everything else held at its value."""
    names = tuple(slots.names[k] for k, _, _ in pieces)
    ranges = {name: (start, stop) for name, (_, start, stop) in zip(names, pieces)}
    theta = {name: function.theta[name].detach().reshape(-1)[slice(*ranges[name])] for name in names}
    sizes = tuple(stop - start for start, stop in ranges.values())
    parameters = tuple(slots.parameters[k] for k, _, _ in pieces)
    whole = {name: value.detach() for name, value in function.theta.items()}
    part = Slots(names, parameters, sizes, slots.fixed, slots.aliases)
    return _Cut(function.model, part, theta, function.held, function.dtype, function.places, whole, ranges)
