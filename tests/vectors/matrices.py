"""Vectors of claims about matrices: small integers, so that ranks and singular values are known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from alignver.kernel.certificate import pack
from tests.vectors.case import GONE, Case, valid

WIDE = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # singular values 3 and 2
TALL = WIDE.T.copy()
LOW = np.array([[1.0, 2.0, 0.5], [3.0, 6.0, 1.5], [1.0, 0.0, 0.25], [2.0, 2.0, 0.75]])  # rank 2
VANISHING = np.diag([2097143.0 * 2097133.0, 1.0])  # the largest primes below 2^21: zero modulo each


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def norm(value: float | None) -> dict[str, object]:
    return {"kind": "norm", "value": value}


def entrywise(value: float | None) -> dict[str, object]:
    return {"kind": "entrywise", "value": value}


def of_ranks() -> Iterator[Case]:
    A = {"A": WIDE}
    gram = valid("gram", "rank", "gram", A, {"scaling": ints(0, 0)}, rank=2, side="rows")
    yield gram
    yield valid("gram, by columns", "rank", "gram", {"A": TALL}, {"scaling": ints(0, 0)}, rank=2, side="columns")
    yield gram.but("gram, scaled", None, True, data={"scaling": ints(-1, 1000)})
    yield gram.but("gram, of some columns", None, True, data={"columns": ints(1, 0)}, s_min=1.9375)
    yield gram.but("gram, with s_min", None, True, s_min=1.9999)
    yield gram.but("gram, in a ball", None, True, ball=norm(1.9999))
    yield gram.but("gram, in an entrywise ball", None, True, ball=entrywise(0.8125))
    yield gram.but(
        "gram, with radii", None, True, ball=entrywise(None), data={"ball_radii": np.array([[0, 1.9, 0], [1.9, 0, 0]])}
    )
    yield gram.but("gram, a modulus suffices", None, True, inputs={"A": np.array([[1.0, 0.0], [0.0, 2.0**-100]])})
    yield gram.but("gram, the ball null", None, True, ball=None)
    # Decided exactly: the smallest singular value is 2.
    yield gram.but("gram, s_min one unit too large", "proof", False, "s_min is 2", s_min=float(np.nextafter(2.0, 3.0)))
    yield gram.but("gram, radius equal to s_min", "proof", False, "a matrix at distance 2 has rank 1", ball=norm(2.0))
    yield gram.but("gram, radius too large", "proof", False, "the ball contains 0", ball=norm(1e300))
    yield gram.but(
        "gram, entrywise radius too large", "proof", False, "the ball contains a matrix of rank 1", ball=entrywise(2.0)
    )
    yield gram.but("gram, rank off by one", "proof", False, "the rank is 2", rank=1)
    yield gram.but(
        "gram, a dependent row",
        "proof",
        False,
        "row 1 is twice row 0",
        inputs={"A": np.array([[1.0, 2, 3], [2, 4, 6]])},
    )
    yield gram.but("gram, vanishing modulo primes", None, True, inputs={"A": VANISHING})
    yield gram.but(
        "gram, columns of smaller rank",
        "proof",
        True,
        "these columns have rank 1",
        data={"columns": ints(2, 0)},
        s_min=0.5,
    )
    for name, rank in {
        "true": True,
        "a float": 2.0,
        "negative": -1,
        "huge": 10**400,
        "text": "2",
        "missing": GONE,
    }.items():
        yield gram.but(
            f"gram, rank {name}",
            "certificate",
            None if name != "huge" else False,
            "rank is an int of at least 0",
            rank=rank,
        )
    yield gram.but("gram, neither side", "certificate", True, "side is rows or columns", side="left")
    yield gram.but(
        "gram, the longer side",
        "certificate",
        True,
        "more rows than columns",
        side="columns",
        data={"scaling": ints(0, 0, 0)},
    )
    yield gram.but(
        "gram, too few exponents", "certificate", True, "an exponent for each row", data={"scaling": ints(0)}
    )
    yield gram.but("gram, exponents that are floats", "certificate", True, "int64", data={"scaling": np.zeros(2)})
    yield gram.but(
        "gram, an exponent of 1001", "certificate", True, "exponents are at most 1000", data={"scaling": ints(0, 1001)}
    )
    yield gram.but(
        "gram, a scaling that loses digits",
        "certificate",
        True,
        "2^-1000 2^-100 is no float",
        s_min=2.0**-101,
        inputs={"A": np.array([[1.0, 0, 0], [0, 2.0**-100, 0]])},
        data={"scaling": ints(0, -1000)},
    )
    yield gram.but("gram, no scaling", "certificate", True, "scaling is missing", data={"scaling": GONE})
    yield gram.but("gram, s_min an int", "certificate", None, "s_min is a float", s_min=1)
    yield gram.but("gram, s_min negative", "certificate", None, "s_min is at least 0", s_min=-1.0)
    yield gram.but("gram, a distance", "certificate", True, "gram does not prove a distance", distance=0.5)
    yield gram.but("gram, a negative radius", "certificate", None, "a radius is at least 0", ball=norm(-0.5))
    yield gram.but(
        "gram, an unknown ball", "certificate", None, "norm or entrywise", ball={"kind": "frobenius", "value": 0.5}
    )
    yield gram.but("gram, a ball of text", "certificate", None, "a ball is an object", ball="norm")
    yield gram.but("gram, a ball without value", "certificate", None, "value is missing", ball={"kind": "norm"})
    yield gram.but("gram, no radii", "certificate", None, "ball_radii is missing", ball=entrywise(None))
    negative = {"ball_radii": np.array([[0.0, -0.5, 0], [0, 0, 0]])}
    yield gram.but(
        "gram, a negative entry of radii",
        "certificate",
        None,
        "radii are at least 0",
        ball=entrywise(None),
        data=negative,
    )
    shape = {"ball_radii": np.zeros((3, 2))}
    yield gram.but("gram, radii of another shape", "certificate", None, "2 by 3", ball=entrywise(None), data=shape)
    yield gram.but("gram, another method", "certificate", True, "no such method", method="cholesky")
    yield gram.but("gram, a method of another claim", "certificate", True, "no such method", method="solution")
    yield gram.but("gram, another matrix", "inputs", None, "an entry differs by one unit", records={"A": TALL.T * 2})
    yield gram.but(
        "gram, another shape", "inputs", None, "the digest covers the shape", inputs={"A": TALL}, records={"A": WIDE}
    )
    yield gram.but(
        "gram, minus zero",
        "inputs",
        None,
        "-0.0 has other bytes than 0.0",
        inputs={"A": -0.0 * WIDE + WIDE * [[-1.0], [1.0]]},
        records={"A": WIDE},
    )
    yield gram.but("gram, in version 1 s_min is not read", None, True, version=1, s_min=5.0)
    inverse = valid(
        "right inverse",
        "rank",
        "right inverse",
        A,
        {"scaling": ints(0, 0), "right_inverse": np.array([[1 / 3, 0], [0, 0.5], [0, 0]])},
        rank=2,
        side="rows",
    )
    yield inverse
    yield inverse.but("right inverse, in a ball", None, True, ball=norm(1.9999), s_min=1.9999)
    yield inverse.but(
        "right inverse, a coarse one",
        None,
        True,
        data={"right_inverse": np.array([[0.25, 0.1], [0, 0.5], [0, 0]])},
        s_min=0.5,
    )
    yield inverse.but("right inverse, none", None, True, data={"right_inverse": GONE})
    yield inverse.but(
        "right inverse, of another matrix",
        "proof",
        True,
        "the residual is larger than 1",
        s_min=1.0,
        data={"right_inverse": np.array([[-1.0, 0], [0, 0.5], [0, 0]])},
    )
    yield inverse.but(
        "right inverse, zero",
        "proof",
        True,
        "the residual has norm 1",
        data={"right_inverse": np.zeros((3, 2))},
        s_min=1.0,
    )
    yield inverse.but(
        "right inverse, transposed", "certificate", True, "3 by 2", data={"right_inverse": np.zeros((2, 3))}, s_min=1.0
    )
    yield inverse.but(
        "right inverse, radius equal to s_min", "proof", False, "a matrix at distance 2 has rank 1", ball=norm(2.0)
    )
    yield inverse.but("right inverse, s_min too large", "proof", False, "s_min is 2", s_min=2.5)
    minor = valid("minor", "rank", "minor", A, {"rows": ints(1, 0), "columns": ints(0, 1)}, rank=2)
    yield minor
    yield minor.but("minor, that is zero", "proof", True, "columns 0 and 2 of rank 1", data={"columns": ints(0, 2)})
    yield minor.but("minor, too small", "proof", True, "a minor of order 1", data={"rows": ints(0), "columns": ints(0)})
    yield minor.but("minor, not square", "certificate", True, "two rows and one column", data={"columns": ints(0)})
    yield minor.but("minor, of a repeated row", "certificate", True, "indices are distinct", data={"rows": ints(0, 0)})
    yield minor.but("minor, an index out of range", "certificate", True, "there are 2 rows", data={"rows": ints(0, 2)})
    yield minor.but(
        "minor, a negative index", "certificate", True, "indices are at least 0", data={"rows": ints(0, -1)}
    )
    yield minor.but(
        "minor, indices that are floats", "certificate", True, "int64", data={"rows": np.zeros(1), "columns": ints(0)}
    )
    yield minor.but("minor, with a ball", "certificate", True, "minor does not cover a ball", ball=norm(0.5))
    yield minor.but("minor, with s_min", "certificate", True, "minor does not prove s_min", s_min=0.5)
    low = {"A": LOW}
    left = {"own": ints(1, 3), "shared": ints(0, 2), **pack("w", [1, -3, 0, 1, -1, -1]), "exponents": ints(0, 0, 0, 0)}
    null = valid("null space", "rank", "null space", low, left, rank=2, side="left")
    yield null
    right = {"own": ints(1), "shared": ints(0, 2), **pack("w", [1, -1, -2]), "exponents": ints(0, 0, 0)}
    # Columns: 2 c_2 = c_0 / 2 + c_1 / 4.
    right = {"own": ints(2), "shared": ints(0, 1), **pack("w", [1, -1, -1]), "exponents": ints(-2, -3, 0)}
    yield valid("null space, right", "rank", "null space", low, right, rank=2, side="right")
    yield null.but(
        "null space, not a null vector", "proof", True, "the second vector", data=pack("w", [1, -3, 0, 1, -1, 1])
    )
    yield null.but(
        "null space, zero at its own line", "proof", True, "the first entry is 0", data=pack("w", [0, 0, 0, 1, -1, -1])
    )
    yield null.but("null space, rank off by one", "proof", False, "the rank is 2", rank=3)
    yield null.but("null space, sets that overlap", "certificate", True, "line 1 twice", data={"shared": ints(0, 1)})
    yield null.but("null space, too few integers", "certificate", True, "6 integers", data=pack("w", [1, -3, 0, 1, -1]))
    lengths = {"w_lengths": ints(1, 1, 1, 1, 1, 2)}
    yield null.but("null space, lengths that do not add up", "certificate", True, "6 bytes", data=lengths)
    yield null.but(
        "null space, a length of zero", "certificate", True, "at least 1", data={"w_lengths": ints(1, 1, 1, 1, 2, 0)}
    )
    primes = valid("primes", "rank", "primes", low, {}, rank=2, most=2)
    yield primes
    yield primes.but("primes, most too small", "proof", True, "the rank is 2", most=1)
    yield primes.but("primes, rank off by one", "proof", False, "the rank is 2", most=1, rank=1)
    yield primes.but(
        "primes, vanishing modulo the first ones",
        "proof",
        False,
        "the rank is 2",
        most=1,
        rank=1,
        inputs={"A": VANISHING},
    )
    yield primes.but("primes, most true", "certificate", True, "most is an int", most=True)
    yield primes.but("primes, most not below the smaller side", "certificate", True, "most is at most 2", most=3)


def of_other_ranks() -> Iterator[Case]:
    A, low = {"A": WIDE}, {"A": LOW}
    gram = valid("gram", "not-rank", "gram", A, {"scaling": ints(0, 0)}, rank=1, side="rows")
    yield gram
    yield gram.but("gram, in a ball", None, True, ball=entrywise(0.5), s_min=1.5)
    yield gram.but("gram, of the rank", "proof", False, "the rank is 2", rank=2)
    yield gram.but("gram, rank missing", "certificate", None, "rank is an int", rank=GONE)
    yield gram.but("gram, rank above", "proof", True, "a rank of at least 2 is no reason", rank=7)
    yield valid(
        "right inverse",
        "not-rank",
        "right inverse",
        A,
        {"scaling": ints(0, 0), "right_inverse": np.array([[1 / 3, 0], [0, 0.5], [0, 0]])},
        rank=0,
        side="rows",
    )
    yield valid("minor", "not-rank", "minor", low, {"rows": ints(0, 2), "columns": ints(0, 1)}, rank=1)
    yield valid("minor, zero", "not-rank", "minor", low, {"rows": ints(0, 1), "columns": ints(0, 1)}, rank=1).but(
        "minor, zero", "proof", True, "the minor is 0"
    )
    yield valid(
        "minor, of the rank", "not-rank", "minor", low, {"rows": ints(0, 2), "columns": ints(0, 1)}, rank=2
    ).but("minor, of the rank", "proof", False, "the rank is 2")
    left = {"own": ints(1, 3), "shared": ints(0, 2), **pack("w", [1, -3, 0, 1, -1, -1]), "exponents": ints(0, 0, 0, 0)}
    null = valid("null space", "not-rank", "null space", low, left, rank=3, side="left")
    yield null
    yield null.but("null space, of the rank", "proof", False, "the rank is 2", rank=2)
    primes = valid("primes", "not-rank", "primes", low, {}, rank=3, most=2)
    yield primes
    yield primes.but("primes, of the rank", "proof", False, "the rank is 2", rank=2)
    shape = valid("shape", "not-rank", "shape", A, {}, rank=3)
    yield shape
    yield shape.but("shape, in a ball", None, True, ball=norm(1e308))
    yield shape.but("shape, huge", None, True, rank=10**400)
    yield shape.but("shape, a ball of another form", "certificate", None, "norm or entrywise", ball={"kind": "all"})
    yield shape.but("shape, a negative radius", "certificate", None, "a radius is at least 0", ball=norm(-1.0))
    yield shape.but("shape, no radii", "certificate", None, "ball_radii is missing", ball=entrywise(None))
    yield shape.but("shape, a possible rank", "proof", False, "the rank is 2", rank=2)
    yield shape.but("shape, of a rank", "certificate", False, "shape does not prove a rank", claim="rank", rank=3)


def of_members() -> Iterator[Case]:
    y = np.array([1.0, -2.0])
    J = {"J": WIDE, "y": y}
    gram = valid("gram", "membership", "gram", J, {"scaling": ints(0, 0)}, side="rows")
    yield gram
    yield gram.but("gram, in a ball", None, True, ball=norm(1.5), s_min=1.5)
    yield gram.but(
        "gram, of a tall matrix", "proof", False, "y is outside", inputs={"J": TALL, "y": np.ones(3)}, side="columns"
    )
    yield gram.but(
        "gram, of a tall matrix whose span has y",
        "proof",
        True,
        "rank 2 is no reason",
        inputs={"J": TALL, "y": np.array([1.0, 1, 0])},
        side="columns",
    )
    yield gram.but(
        "gram, radius too large",
        "proof",
        False,
        "the ball contains a matrix whose span does not have y",
        ball=norm(2.5),
    )
    yield gram.but(
        "gram, another y", "inputs", None, "one unit in y", inputs={"y": np.nextafter(y, 9.0)}, records={"y": y}
    )
    yield gram.but("gram, without y", "inputs", None, "y is missing", inputs={"y": GONE}, records={"y": y})
    yield gram.but("gram, y too long", "certificate", None, "J has 2 rows", inputs={"y": np.zeros(3)})
    yield gram.but("gram, y a matrix", "inputs", None, "y is a vector", inputs={"y": y[:, None]})
    yield valid(
        "right inverse",
        "membership",
        "right inverse",
        J,
        {"scaling": ints(0, 0), "right_inverse": np.array([[1 / 3, 0], [0, 0.5], [0, 0]])},
        side="rows",
        s_min=1.5,
    )
    yield valid("minor", "membership", "minor", J, {"rows": ints(0, 1), "columns": ints(0, 1)})
    yield valid("minor, not of all rows", "membership", "minor", J, {"rows": ints(0), "columns": ints(0)}).but(
        "minor, not of all rows", "proof", True, "one row of two"
    )
    low = {"J": LOW, "y": LOW @ np.array([0.5, 0.25, 1.0])}
    beta = {"support": ints(0, 1), "exponents": ints(-1, 2), **pack("beta", [3, 1, 2])}  # 3/4 and 2
    member = LOW @ np.array([0.75, 2.0, 0.0])
    solution = valid("solution", "membership", "solution", {"J": LOW, "y": member}, beta)
    yield solution
    third = np.array([[3.0], [6.0]])
    yield valid(
        "solution, a third",
        "membership",
        "solution",
        {"J": third, "y": np.array([1.0, 2.0])},
        {"support": ints(0), "exponents": ints(0), **pack("beta", [1, 3])},
    )
    far = {"support": ints(0), "exponents": ints(0), **pack("beta", [3**800, 3**801])}
    yield valid(
        "solution, integers of 1270 bits", "membership", "solution", {"J": third, "y": np.array([1.0, 2.0])}, far
    )
    none = {"support": ints(), "exponents": ints(), **pack("beta", [1])}
    zero = valid("solution, zero", "membership", "solution", {"J": LOW, "y": np.zeros(4)}, none, ball=norm(1e308))
    yield zero
    yield zero.but(
        "solution, a ball with coefficients",
        "certificate",
        True,
        "only 0 is a solution in a ball",
        inputs={"y": np.zeros(4)},
        data={"support": ints(0), "exponents": ints(0), **pack("beta", [0, 1])},
    )
    yield zero.but("solution, a ball and y not zero", "proof", False, "0 is no solution", inputs={"y": member})
    yield solution.but("solution, off by one", "proof", True, "4/4 for 3/4", data=pack("beta", [4, 1, 2]))
    yield solution.but(
        "solution, y off by one unit",
        "proof",
        False,
        "y is outside",
        inputs={"y": np.append(member[:-1], np.nextafter(member[-1], 9))},
    )
    yield solution.but("solution, a denominator of zero", "certificate", True, "not 0", data=pack("beta", [3, 1, 0]))
    yield solution.but(
        "solution, another exponent", "proof", True, "half of the first coefficient", data={"exponents": ints(-2, 2)}
    )
    yield solution.but(
        "solution, exponents beyond 1000",
        "certificate",
        True,
        "exponents are at least -1000",
        data={"exponents": ints(-1001, 2)},
    )
    yield solution.but("solution, of non-membership", "certificate", False, "no such method", claim="non-membership")
    twin = np.array([[1.0, 2, 0], [0, 0, 0], [1, 2, 0], [0, 1, 1]])
    rows = {"dropped": ints(1, 2), "repeats": ints(-1, 0)}
    reduced = valid("reduced", "membership", "reduced", {"J": twin, "y": np.array([5.0, 0, 5, 7])}, rows)
    yield reduced
    yield reduced.but(
        "reduced, another target",
        "proof",
        False,
        "equal rows with targets 5 and 6",
        inputs={"y": np.array([5.0, 0, 6, 7])},
    )
    yield reduced.but(
        "reduced, a zero row with a target", "proof", False, "0 is not 1", inputs={"y": np.array([5.0, 1, 5, 7])}
    )
    yield reduced.but("reduced, of a row that differs", "proof", True, "rows 2 and 3", data={"repeats": ints(-1, 3)})
    yield reduced.but(
        "reduced, of each other", "proof", True, "a dropped row", data={"dropped": ints(0, 2), "repeats": ints(2, 0)}
    )
    yield reduced.but(
        "reduced, rows that depend",
        "proof",
        True,
        "rows 0 and 2 are equal",
        data={"dropped": ints(1), "repeats": ints(-1)},
    )
    yield reduced.but("reduced, too few repeats", "certificate", True, "one for each row", data={"repeats": ints(-1)})
    w = {"support": ints(0, 2), "exponents": ints(0, 0), **pack("w", [1, -1])}
    vector = valid("null vector", "non-membership", "null vector", {"J": twin, "y": np.array([5.0, 0, 6, 7])}, w)
    yield vector
    yield vector.but(
        "null vector, scaled", None, True, data={"exponents": ints(-900, -900), **pack("w", [7**400, -(7**400)])}
    )
    yield vector.but("null vector, not one", "proof", True, "w^T J is not 0", data=pack("w", [1, -2]))
    yield vector.but(
        "null vector, not one by a hair",
        "proof",
        True,
        "w^T J = 2^-1000",
        data={"exponents": ints(0, -1000), **pack("w", [1, -(2**1000) + 1])},
    )
    yield vector.but(
        "null vector, orthogonal to y", "proof", False, "y is a member", inputs={"y": np.array([5.0, 0, 5, 7])}
    )
    yield vector.but("null vector, zero", "proof", True, "w^T y = 0", data=pack("w", [0, 0]))
    yield vector.but(
        "null vector, with a ball", "certificate", True, "null vector does not cover a ball", ball=norm(0.0)
    )
    yield vector.but(
        "null vector, with a distance", "certificate", True, "null vector does not prove a distance", distance=0.1
    )
    # J = TALL spans the first two coordinates: the distance of (1, 1, 2) is 2.
    tall = {"J": TALL, "y": np.array([1.0, 1.0, 2.0])}
    plain = valid("residual", "non-membership", "residual", tall, {})
    yield plain
    yield plain.but("residual, of a member", "proof", False, "y is a member", inputs={"y": np.array([1.0, 1.0, 0.0])})
    yield plain.but(
        "residual, of dependent columns",
        "proof",
        True,
        "rank 2 of 3",
        inputs={"J": np.array([[1.0, 2.0], [2, 4], [0, 0]])},
    )
    far = {"scaling": ints(0, 0), "beta": np.array([1 / 3, 0.5])}
    away = plain.but("residual, with a distance", None, True, data=far, distance=1.9999, shift=3.9)
    yield away
    yield away.but("residual, beta zero", None, True, data={"beta": np.zeros(2)}, distance=0.25)
    yield away.but(
        "residual, by a right inverse",
        None,
        True,
        data={"right_inverse": np.array([[1 / 3, 0], [0, 0.5], [0, 0]])},
        shift=GONE,
    )
    yield away.but("residual, by rows", None, True, data={"columns": ints(0, 1)})
    ball = away.but("residual, in a ball", None, True, ball=norm(0.25), distance=1.125)
    yield ball
    yield ball.but("residual, in an entrywise ball", None, True, ball=entrywise(0.0625), distance=1.5)
    yield ball.but(
        "residual, radius equal to s_min",
        "proof",
        False,
        "the ball contains a matrix whose span has y",
        ball=norm(2.0),
        distance=GONE,
    )
    yield ball.but(
        "residual, distance in the ball too large", "proof", False, "the centre is 2 away", distance=2.0000001
    )
    yield away.but(
        "residual, distance one unit too large",
        "proof",
        False,
        "the distance is 2",
        distance=float(np.nextafter(2.0, 3.0)),
    )
    yield away.but("residual, distance infinite in words", "proof", False, "the distance is 2", distance=1.7e308)
    yield away.but("residual, no beta", "certificate", True, "beta is missing", data={"beta": GONE})
    yield away.but("residual, beta too short", "certificate", True, "two coefficients", data={"beta": np.zeros(1)})
    yield away.but("residual, no shift", "certificate", True, "shift is missing", shift=GONE)
    yield away.but(
        "residual, a wide matrix", "certificate", False, "every y is a member", inputs={"J": WIDE, "y": np.ones(2)}
    )
    yield away.but("residual, with s_min", "certificate", True, "residual does not prove s_min", s_min=0.5)
    yield low_member(low)


def low_member(inputs: dict[str, np.ndarray]) -> Case:
    """A member of a column space of deficient rank, claimed to be outside."""
    w = {"support": ints(0, 1), "exponents": ints(0, 0), **pack("w", [3, -1])}
    case = valid("null vector, of a member", "non-membership", "null vector", inputs, w)
    return case.but("null vector, of a member", "proof", False, "w^T y = 0")


def of_factors() -> Iterator[Case]:
    # Two samples, two outputs; a layer with one position and one with two. J is 4 by 6 + 2.
    factors = {
        "A0": np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]),
        "B0": np.array([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0], [1.0, 0.0]]),
        "A1": np.array([[1.0], [1.0], [0.0], [2.0]]),
        "B1": np.array(
            [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 2.0], [1.0, 0.0], [0.0, 3.0]]
        ),
    }
    y = {"y": np.array([1.0, 2.0, 3.0, 4.0])}
    layers = ({"positions": 1}, {"positions": 2})
    numbers = {"samples": 2, "outputs": 2, "layers": layers, "ball": norm(0.5), "s_min": 0.5}
    inside = valid(
        "factors in the data",
        "factored-membership",
        "factored gram",
        y,
        {"scaling": ints(0, 0, 0, 0), **factors},
        **numbers,
    )
    yield inside
    yield inside.but(
        "factors in the data, scaled", None, True, data={"scaling": ints(0, -1, 0, 1)}, ball=norm(0.125), s_min=0.125
    )
    yield valid(
        "factors as inputs",
        "factored-membership",
        "factored gram",
        {**y, **factors},
        {"scaling": ints(0, 0, 0, 0)},
        **numbers,
    )
    yield inside.but("radius too large", "proof", False, "more than the norm of the matrix", ball=norm(100.0))
    yield inside.but("s_min too large", "proof", False, "more than the norm of the matrix", s_min=100.0)
    yield inside.but(
        "a position less", "certificate", None, "B1 has 8 rows", layers=({"positions": 1}, {"positions": 1})
    )
    yield inside.but(
        "positions true", "certificate", None, "positions is an int", layers=({"positions": True}, {"positions": 2})
    )
    yield inside.but("samples missing", "certificate", None, "samples is missing", samples=GONE)
    yield inside.but("a factor missing", "certificate", None, "B1 is missing", data={"B1": GONE})
    yield inside.but("y too short", "certificate", None, "4 targets", inputs={"y": np.ones(3)})
    yield inside.but("no ball", "certificate", None, "ball is missing", ball=GONE)
    yield inside.but("an entrywise ball", "certificate", None, "a ball in the norm", ball=entrywise(0.01))
    yield inside.but("no s_min", "certificate", None, "s_min is missing", s_min=GONE)
    equal = {
        "A0": np.array([[1.0, 0, 2], [1, 0, 2]]),
        "B0": np.array([[1.0, 0], [1, 0], [2, 1], [2, 1]]),
        "A1": np.array([[1.0], [1], [1], [1]]),
        "B1": np.zeros((8, 2)),
    }
    yield inside.but("equal samples", "proof", False, "two rows of J are equal", data=equal, ball=norm(0.0), s_min=0.0)


CASES = [*of_ranks(), *(case for case in of_other_ranks()), *of_members(), *of_factors()]
