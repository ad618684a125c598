r"""Values with proved radii, sample by sample: what the rules of norm-wise enclosures are made of.

**Bounds in floats.** A bound is an expression of sums, products, quotients and roots of floats that are not negative;
:func:`up` multiplies it by :data:`~alignver.kernel.network.operator_norms.SLACK` and adds 2^-1000. That also covers
what gradual underflow takes from the values of a step, :math:`\sqrt N k\,2^{-1074}` with N and k below 2^32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network.operator_norms import SLACK, gamma_up
from alignver.kernel.network.tape import Program, Step

U = 2.0**-53
TINY = 2.0**-1000


@dataclass(frozen=True, eq=False)
class Enclosure:
    """A computed value, and for each sample (or all, shape ()) a bound of its distance from the exact one."""

    value: Any
    error: Any


@dataclass(frozen=True, eq=False)
class Constants:
    """What does not depend on the inputs of a program.

    Attributes
    ----------
    values : dict of int to Enclosure or None
        The steps that depend on leaves alone; None where no other step needs the value.
    bounds : dict
        Bounds of the matrices of a step, by the step and a name.
    """

    values: dict[int, Enclosure | None]
    bounds: dict[tuple[int, str], float]

    def bound(self, i: int, name: str, compute: Callable[[], Any]) -> float:
        """Return a bound, computed once."""
        if (i, name) not in self.bounds:
            self.bounds[i, name] = float(compute())
        return self.bounds[i, name]


@dataclass(frozen=True, eq=False)
class Rows:
    """Gradients of matrices that every sample multiplies by one row: outer products, stacked over groups.

    Attributes
    ----------
    a : (groups, samples, k) ndarray
        The rows.
    g : (outputs, groups, samples, n) ndarray
        The gradients with respect to the rows' products.
    """

    a: Any
    g: Any

    def __len__(self) -> int:
        return int(len(self.g) * self.a.shape[1])

    def dense(self) -> Any:
        """Return the gradients of each output and sample, (outputs samples, groups k n)."""
        return np.moveaxis(self.a[..., :, None] * self.g[..., None, :], 1, 2).reshape(len(self), -1)


def up(bound: Any) -> Any:
    """Round a computed bound upward."""
    return bound * SLACK + TINY


def lengths(x: Any) -> Any:
    """Return upper bounds of the 2-norms along the last axis, 0 only for zeros.

    Squares that sum to 2^-900 or more lose at most a relative 2^-140 to underflow; other rows are scaled first.
    """
    factor = 1.0 + gamma_up(x.shape[-1] + 4)
    squares = np.einsum("...n,...n->...", x, x)
    if not squares.size or (squares.min() > 2.0**-900 and squares.max() < np.inf):
        return np.sqrt(squares) * factor
    top = np.abs(x).max(-1, initial=0.0)
    exponent = np.frexp(top)[1]
    unit = np.ldexp(x, -exponent[..., None])
    scaled = np.ldexp(np.sqrt(np.einsum("...n,...n->...", unit, unit)) * factor, exponent)
    return np.where(top > 0, np.maximum(scaled, TINY), top)


class Entries:
    """Which entries of a flat array belong to which sample; every sample has equally many."""

    def __init__(self, step: Step, samples: int) -> None:
        self.samples = 1 if step.owner is None else samples
        self.each = step.size // self.samples
        self.order = None
        if step.owner is not None:
            require(step.size == self.each * samples, "samples of different sizes")
            expected = np.arange(samples, dtype=np.int32)[:, None]
            if not (step.owner.reshape(samples, -1) == expected).all():
                self.order = np.argsort(step.owner, kind="stable")
                ordered = step.owner[self.order].reshape(samples, -1)
                require(bool((ordered == expected).all()), "samples of different sizes")

    def blocks(self, x: Any) -> Any:
        """Return the entries of each sample in a row: (..., size) becomes (..., samples, entries of a sample)."""
        return (x if self.order is None else x[..., self.order]).reshape(*x.shape[:-1], self.samples, self.each)

    def flat(self, blocks: Any) -> Any:
        """Return the array whose blocks are given."""
        x = blocks.reshape(*blocks.shape[:-2], -1)
        if self.order is None:
            return x
        result = np.empty_like(x)
        result[..., self.order] = x
        return result

    def largest(self, x: Any) -> Any:
        """Return the largest absolute value of each sample."""
        blocks = self.blocks(x)
        return np.maximum(blocks.max(-1, initial=0.0), -blocks.min(-1, initial=0.0))

    def norm(self, x: Any) -> Any:
        """Return an upper bound of the 2-norm of each sample."""
        return lengths(self.blocks(x))


class Run:
    """A program with the values of its steps.

    ``needed`` are the steps whose gradients are asked for, ``factored`` those whose gradients may remain
    :class:`Rows`.
    """

    def __init__(self, program: Program, values: Any, constants: Constants | None = None) -> None:
        self.program, self.values, self.needed = program, values, set[int]()
        self.constants = Constants({}, {}) if constants is None else constants
        self.factored = set[int]()
        self._entries: dict[int, Entries] = {}

    def entries(self, i: int) -> Entries:
        """Return the layout of the samples in a step."""
        if i not in self._entries:
            self._entries[i] = Entries(self.program.steps[i], self.program.samples)
        return self._entries[i]

    def arguments(self, step: Step) -> list[Enclosure]:
        """Return the enclosures of a step's arguments, with radii of shape (samples,), or (1,) if shared."""
        return [Enclosure(self.values[k].value, np.atleast_1d(self.values[k].error)) for k in step.of]

    def norms(self, step: Step) -> list[Any]:
        """Return upper bounds of the norms of a step's arguments, of the same shapes."""
        return [self.entries(k).norm(self.values[k].value.reshape(-1)) for k in step.of]


def row_owner(step: Step, rows: int) -> Any:
    """Return the sample of each row, or of each matrix of a stack."""
    if step.owner is None:
        return np.zeros(rows, dtype=np.int32)
    owner = step.owner.reshape(rows, -1)
    require(bool((owner == owner[:, :1]).all()), "a row or a matrix that mixes samples")
    return owner[:, 0]


def _collected(ufunc: Any, run: Run, step: Step, rows: Any) -> Any:
    result = np.zeros((*rows.shape[:-1], 1 if step.owner is None else run.program.samples))
    ufunc.at(result, (..., row_owner(step, rows.shape[-1])), rows)
    return result


def rows_largest(run: Run, step: Step, rows: Any) -> Any:
    """Return the largest value of the rows of each sample; shape (..., rows) becomes (..., samples)."""
    return _collected(np.maximum, run, step, rows)


def rows_norm(run: Run, step: Step, rows: Any) -> Any:
    """Return upper bounds of the 2-norm over the rows of each sample; shape (..., rows) becomes (..., samples)."""
    top = rows_largest(run, step, rows)
    unit = rows / np.where(top > 0, top, 1.0)[..., row_owner(step, rows.shape[-1])]
    squares = _collected(np.add, run, step, unit * unit)
    return top * np.sqrt(squares + 2.0**-900) * (1.0 + gamma_up(rows.shape[-1] + 8))
