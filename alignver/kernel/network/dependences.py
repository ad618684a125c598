r"""Exact dependences of the rows and columns of a Jacobian, from its entries as polynomials with rational coefficients.

Parameters and inputs are rational numbers, and so are sums and products of them. Any other number that arises, such as
tanh of a polynomial, becomes an indeterminate, equal ones the same. With monomials :math:`\mu` in the indeterminates,

.. math:: J_{ik} = \sum_\mu c_{ik\mu}\, \mu, \qquad c_{ik\mu} \in \mathbb Q .

A combination of columns k with rational weights vanishes if it does for the vectors :math:`(c_{ik\mu})_k` of all i and
:math:`\mu`, and one of rows i if it does for the vectors :math:`(c_{ik\mu})_i` of all k and :math:`\mu`, whatever the
values of the indeterminates. Ranks of these vectors are computed in integers. Indeterminates may be related in ways
that are not known here: then fewer dependences are found, and none that is not there.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from alignver.kernel.failure import require
from alignver.kernel.network import ball_matrices
from alignver.kernel.network.balls import arb, dot, exactly, product, square

fmpq: Any
fmpq_mat: Any
fmpz_mat: Any
try:
    from flint import fmpq, fmpq_mat, fmpz_mat
except ImportError:  # balls are optional: without them their claims are refused
    fmpq = fmpq_mat = fmpz_mat = None

_MOST_TERMS = 100  # of a polynomial; a longer one becomes an indeterminate, as one of a larger degree does, or
_MOST_BITS = 2**14  # one with a longer coefficient: repeated squares double both
_ODD = {"asinh", "atan", "erf", "sin", "sinh", "tanh"}
_EVEN = {"cos", "cosh"}
_FUNCTIONS = _ODD | _EVEN | {"erfc", "exp", "expm1", "log", "log1p", "tan"}
_ONE: tuple[int, ...] = ()
_Terms = dict[tuple[int, ...], Any]


class Ring:
    """The indeterminates of an evaluation."""

    def __init__(self) -> None:
        self.balls: list[Any] = []  # keeps those that are not points, so that no other object has their identity
        self.squares: dict[int, Any] = {}  # of indeterminates that are roots of rational numbers
        self._places: dict[Any, int] = {}
        self._pairs: dict[Any, Any] = {}

    def exactly(self, array: Any) -> Any:
        """Return an array of floats as numbers."""
        result = exactly(array)
        result.reshape(-1)[:] = [self.lifted(ball) for ball in result.reshape(-1)]
        return result

    def lifted(self, number: Any) -> Number:
        """Return a number that is given as a ball; one object is one number."""
        if isinstance(number, Number):
            return number
        ball = number if isinstance(number, arb) else arb(number)
        return self.unknown(("object", id(ball)), ball)

    def ratio(self, num: float, den: float, root: bool) -> Any:
        """Return num / den, or num / sqrt(den)."""
        if root:
            return num / self.lifted(arb(den)).sqrt()
        quotient = fmpq(*num.as_integer_ratio()) / fmpq(*den.as_integer_ratio())
        return Number(self, arb(quotient), {_ONE: quotient} if num else {})

    def unknown(self, key: Any, ball: Any) -> Number:
        """Return the number that a key stands for, which is in a ball: an indeterminate, unless the ball is a point."""
        require(ball.is_finite(), "a number is not finite in this precision")
        if ball.is_exact():
            mantissa, exponent = map(int, ball.man_exp())
            if abs(exponent) + mantissa.bit_length() <= _MOST_BITS:
                return Number(self, ball, {_ONE: fmpq(mantissa) * fmpq(2) ** exponent} if mantissa else {})
            key = ("point", mantissa, exponent)
        place = self._places.setdefault(key, len(self.balls))
        if place == len(self.balls):
            self.balls.append(ball)
        return Number(self, ball, {(place,): fmpq(1)})

    def mapped(self, x: Number, name: str, rule: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return value and derivative of a function at x; the same polynomials wherever it has the same argument.

        Values are one object only if their gradients are equal too, as the rule of maxima assumes.
        """
        key = x.key(name)
        if key not in self._pairs:
            try:
                pair = rule(x)
            except (AttributeError, TypeError):  # an operation that numbers do not have
                pair = rule(x.ball)
            self._pairs[key] = tuple(
                part if part is None or isinstance(part, Number) else self.unknown((*key, side), part)
                for side, part in enumerate(pair)
            )
        value, slope = self._pairs[key]
        if slope is not None and not slope.terms:  # with the same gradient, 0: a maximum of those that are equal has it
            return self._pairs.setdefault(value.key("constant"), value), slope
        return value.equal_to(value), slope  # another object: its argument may have another gradient


class Number:
    """A polynomial in the indeterminates of a ring, and the ball of its value."""

    __slots__ = ("ball", "ring", "terms")

    def __init__(self, ring: Ring, ball: Any, terms: _Terms) -> None:
        self.ring, self.ball, self.terms = ring, ball, terms
        if len(terms) > _MOST_TERMS or any(len(m) > _MOST_TERMS or _bits(c) > _MOST_BITS for m, c in terms.items()):
            self.terms = ring.unknown(self.key("sum"), ball).terms

    def key(self, name: str) -> tuple[str, Any]:
        """Return what tells a function of this number from others."""
        return name, frozenset((monomial, int(factor.p), int(factor.q)) for monomial, factor in self.terms.items())

    def __add__(self, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return NotImplemented
        other = self.ring.lifted(other)
        return Number(self.ring, self.ball + other.ball, _sum([self.terms, other.terms]))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, np.ndarray):
            return NotImplemented
        other = self.ring.lifted(other)
        products = [self._times(p, q) for p in self.terms.items() for q in other.terms.items()]
        return Number(self.ring, self.ball * other.ball, _sum(products))

    def _times(self, p: tuple[tuple[int, ...], Any], q: tuple[tuple[int, ...], Any]) -> _Terms:
        """Return the product of two terms: the square of a root is a rational number."""
        monomial, factor = [*p[0], *q[0]], p[1] * q[1]
        for root in self.ring.squares.keys() & p[0] & set(q[0]) if p[0] and q[0] else ():
            monomial.remove(root)
            monomial.remove(root)
            factor *= self.ring.squares[root]
        return {tuple(sorted(monomial)): factor}

    def _inverse(self) -> Number:
        require(len(self.terms) > 0 and 0 not in self.ball, "a division by 0")
        ((monomial, factor), *more), squares = self.terms.items(), self.ring.squares
        if not more and all(place in squares for place in monomial):
            for place in monomial:
                factor = factor * squares[place]
            return Number(self.ring, 1 / self.ball, {monomial: 1 / factor})
        return self.ring.unknown(self.key("inverse"), 1 / self.ball)

    def __getattr__(self, name: str) -> Any:
        if name not in _FUNCTIONS:
            raise AttributeError(f"numbers have no {name}")
        return lambda: self._of(name)

    def _of(self, name: str) -> Number:
        if name in _ODD | _EVEN and self.terms and self.terms[min(self.terms)] < 0:
            return -(-self)._of(name) if name in _ODD else (-self)._of(name)
        return self.ring.unknown(self.key(name), getattr(self.ball, name)())

    def sqrt(self) -> Number:
        """Return the root, whose square is known if this is a rational number."""
        root = self.ring.unknown(self.key("sqrt"), self.ball.sqrt())
        if self.terms.keys() == {_ONE} and root.terms.keys() != {_ONE}:
            ((place,),) = root.terms
            self.ring.squares[place] = self.terms[_ONE]
        return root

    def __neg__(self) -> Number:
        return Number(self.ring, -self.ball, {monomial: -factor for monomial, factor in self.terms.items()})

    def __sub__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, np.ndarray) else self + -self.ring.lifted(other)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __truediv__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, np.ndarray) else self * self.ring.lifted(other)._inverse()

    def __rtruediv__(self, other: Any) -> Any:
        return self._inverse() * other

    def __pow__(self, exponent: Any) -> Any:
        if type(exponent) is not int or not 0 <= exponent <= 8:
            raise TypeError("not a small power")
        return math.prod([self] * exponent, start=self.ring.lifted(1))

    def __abs__(self) -> Number:
        if 0 in self.ball:
            raise TypeError("no sign")
        return self if self.ball > 0 else -self

    def __gt__(self, other: Any) -> bool:
        return bool(self.ball > _ball(other))

    def __lt__(self, other: Any) -> bool:
        return bool(self.ball < _ball(other))

    def __contains__(self, other: Any) -> bool:
        return other in self.ball

    def mapped(self, name: str, rule: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return value and derivative of a function of this number."""
        return self.ring.mapped(self, name, rule)

    def max(self, other: Any) -> Number:
        """Return the larger of two numbers of which that is not known."""
        other = self.ring.lifted(other)
        return self.ring.unknown((self.key("max"), other.key("max")), self.ball.max(other.ball))

    def equal_to(self, other: Any) -> Number:
        """Return this number by another expression that equals it."""
        return Number(self.ring, self.ball, self.ring.lifted(other).terms)

    def mid(self) -> Any:
        """Return the centre of the ball."""
        return self.ball.mid()

    def is_finite(self) -> bool:
        """Whether the ball is finite."""
        return bool(self.ball.is_finite())

    __radd__, __rmul__ = __add__, __mul__


def _bits(ratio: Any) -> int:
    return int(max(ratio.p.bit_length(), ratio.q.bit_length()))


def _ball(number: Any) -> Any:
    return number.ball if isinstance(number, Number) else number


def _sum(parts: Iterable[_Terms]) -> _Terms:
    total: _Terms = {}
    for part in parts:
        for monomial, factor in part.items():
            total[monomial] = total[monomial] + factor if monomial in total else factor
    return {monomial: factor for monomial, factor in total.items() if factor != 0}


class Dependences:
    """The exact dependences of the rows and columns of a matrix of numbers.

    Attributes
    ----------
    J : (N, d) balls
    """

    def __init__(self, J: Any, ring: Ring) -> None:
        self._numbers = numbers = _objects((ring.lifted(entry) for entry in J.reshape(-1)), J.shape)
        self._ring, self.J = ring, _objects((number.ball for number in numbers.reshape(-1)), J.shape)
        self._scales = []  # numbers that are not 0, by which columns are divided
        columns: dict[Any, dict[int, Any]] = {}
        rows: dict[Any, dict[int, Any]] = {}
        for k, column in enumerate(numbers.T):
            counts = [Counter(monomial) for number in column for monomial in number.terms] or [Counter()]
            shared = functools.reduce(lambda a, b: a & b, counts)
            shared = Counter({place: power for place, power in shared.items() if 0 not in ring.balls[place]})
            self._scales.append(math.prod((ring.balls[place] for place in shared.elements()), start=arb(1)))
            for i, number in enumerate(column):
                for monomial, factor in number.terms.items():
                    rest = tuple(sorted((Counter(monomial) - shared).elements()))
                    columns.setdefault((i, rest), {})[k] = factor
                    rows.setdefault((k, rest), {})[i] = factor
        constants = [columns.pop((i, _ONE), {}) for i in range(len(J))]
        self._columns = _lines(columns.values())
        self._rows = [_lines(row for (k, _), row in rows.items() if k == column) for column in range(J.shape[1])]
        self._constants = constants

    def column_basis(self) -> list[int]:
        """Return the first columns of which the others are combinations."""
        return _reduced(self._columns | _lines(self._constants), self.J.shape[1])[1]

    def row_basis(self, y: Any, among: Sequence[int] | None = None) -> list[int]:
        """Return the first rows of [J y], of those given, of which the others are combinations."""
        return _reduced(_lines([_vector(y)]).union(*self._rows), len(self.J), among)[1]

    def generators(self, first: int) -> tuple[list[list[Any]], list[int]]:
        """Return independent vectors in whose span the first columns are, and a basis of the others modulo this span.

        The vectors are those of the coefficients, in their reduced echelon form. An integer combination of rows
        vanishes on them for each row that is not a pivot; a basis of the other columns is one of these combinations.
        """
        N, d = self.J.shape
        lines, pivots = _reduced(set[Any]().union(*self._rows[:first]), N)
        residuals = []
        for i in sorted(set(range(N)) - set(pivots)):
            combined = self._numbers[i, first:]
            for line, pivot in zip(lines, pivots, strict=True):
                if line[i] != 0:
                    factor = fmpq(line[i], line[pivot])
                    combined = combined - self._numbers[pivot, first:] * Number(self._ring, arb(factor), {_ONE: factor})
            residuals.append(combined)
        others = _objects(itertools.chain.from_iterable(residuals), (len(residuals), d - first))
        return lines, [first + k for k in Dependences(others, self._ring).column_basis()]

    def weights(self, y: Any) -> Any:
        """Return weights with which the columns give exactly y, as balls.

        Raises
        ------
        NotProved
            If there are none that do so whatever the values of the indeterminates.
        """
        d, right = self.J.shape[1], _vector(y)
        system = [{**row, **({d: right[i]} if i in right else {})} for i, row in enumerate(self._constants)]
        lines, pivots = _reduced(self._columns | _lines(system), d + 1)
        require(d not in pivots, "y is not a combination of the columns with known weights")
        if not lines:
            return exactly(np.zeros(d))
        A, b = fmpz_mat([line[:d] for line in lines]), fmpz_mat([line[d:] for line in lines])
        v = fmpq_mat(A.transpose()) * fmpq_mat(A * A.transpose()).solve(fmpq_mat(b))  # of least norm
        return _objects((arb(weight) / scale for weight, scale in zip(v.entries(), self._scales, strict=True)), (d,))

    def reached(self, y: Any, rows: Sequence[int]) -> Any:
        r"""Return the ball of the square of kappa for y in the column space of J.

        Either all rows of [J y] are combinations of some rows, which are independent in J; or, for no rows, known
        weights of the columns give y. Their norm is at least kappa, which is at least :math:`\|y\|^2 / \|J^\top y\|`.

        Raises
        ------
        NotProved
            If that is not so.
        """
        if rows:
            require(len(self.row_basis(y)) == len(self.row_basis(y, rows)), "not all rows depend on those")
            return ball_matrices.definite(square(self.J[rows])).form(y[rows])
        weights, target = self.weights(y), exactly(y)
        if not np.any(y):
            return dot(weights, weights)
        image = product(self.J.T, target[:, None])[:, 0]
        return dot(weights, weights).union(dot(target, target) ** 2 / dot(image, image))

    def missed(self, y: Any, generators: tuple[list[list[Any]], list[int]]) -> Any:
        """Return the ball of the squared distance of y from the span of :meth:`generators`, which has all columns of J.

        Raises
        ------
        NotProved
            If they, with y, are not known to be independent.
        """
        lines, basis = generators
        vectors = _objects((arb(entry) for line in lines for entry in line), (len(lines), len(self.J)))
        require(len(lines) + len(basis) < len(y), "as many columns as rows")
        return ball_matrices.squared_distance(np.concatenate([vectors.T, self.J[:, basis]], axis=1), y)


def _objects(entries: Iterable[Any], shape: tuple[int, ...]) -> Any:
    result = np.empty(math.prod(shape), dtype=object)
    result[:] = list(entries)
    return result.reshape(shape)


def _vector(y: Any) -> dict[int, Any]:
    """Return the entries of floats that are not 0."""
    return {int(i): fmpq(*float(y[i]).as_integer_ratio()) for i in np.flatnonzero(y)}


def _lines(vectors: Iterable[dict[int, Any]]) -> set[frozenset[tuple[int, int]]]:
    """Return the vectors that are not 0 as relatively prime integers, each direction once."""
    lines = set()
    for vector in vectors:
        common = math.lcm(*(int(factor.q) for factor in vector.values()))
        entries = {k: int(factor.p) * (common // int(factor.q)) for k, factor in vector.items()}
        divisor = math.gcd(*entries.values()) * (-1 if entries and entries[min(entries)] < 0 else 1)
        if entries:
            lines.add(frozenset((k, entry // divisor) for k, entry in entries.items()))
    return lines


def _reduced(
    lines: Iterable[frozenset[tuple[int, int]]], width: int, among: Sequence[int] | None = None
) -> tuple[list[list[Any]], list[int]]:
    """Return the reduced row echelon form of vectors, in integers, and its pivots; of some entries only."""
    places = list(range(width) if among is None else among)
    where = {k: j for j, k in enumerate(places)}
    table = set()
    for line in lines:
        row = [0] * len(places)
        for k, entry in line:
            if k in where:
                row[where[k]] = entry
        table.add(tuple(row))
    if not table or not places:
        return [], []
    form, _, rank = fmpz_mat([list(row) for row in table]).rref()
    result = [[form[i, j] for j in range(len(places))] for i in range(rank)]
    return result, [places[next(j for j, entry in enumerate(line) if entry != 0)] for line in result]
