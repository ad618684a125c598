"""Vectors of claims about the feature matrix of gated units, and about data and training losses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from alignver.kernel.certificate import pack
from alignver.kernel.data import canonical, digests_of
from tests.vectors.case import GONE, Case, rows_record, valid
from tests.vectors.matrices import ints

Z = np.array([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [4.0, 1.0, 1.0], [5.0, 3.0, 1.0], [6.0, 1.0, 1.0]])


def explorations() -> Iterator[Case]:
    # Projections 0, 1, 4, 5, 6 and thresholds 2.5 and -1: the blocks are rows 2 to 4, and rows 0 and 1.
    stairs = {
        "direction": np.array([1.0, 0.0, 0.0]),
        "thresholds": np.array([2.5, -1.0]),
        "floors": np.array([0.25, 0.75]),
    }
    numbers = {"rank": 5, "width": 2, "add_constant": False, "c": 32.0, "delta": 0.0, "s_min": 0.0625}
    case = valid("staircase", "exploration", "staircase", {"Z": Z}, stairs, **numbers)
    yield case
    yield case.but("staircase, with a constant added", None, True, inputs={"Z": Z[:, :2].copy()}, add_constant=True)
    yield case.but("staircase, for rows nearby", None, True, delta=2.0**-10)
    yield case.but("staircase, a surplus unit", None, True, width=3, data={"thresholds": np.array([9.0, 2.5, -1.0])})
    yield case.but("staircase, in version 1", None, True, version=1, s_min=0.125)
    yield case.but("staircase, s_min more than half of a floor", "proof", True, "1/8 is proved", s_min=0.2)
    yield case.but(
        "staircase, s_min larger than a row", "proof", False, "the smallest row has norm 2 or less", s_min=4.0
    )
    yield case.but(
        "staircase, a floor too large",
        "proof",
        True,
        "s_min of the first block is below 2",
        data={"floors": np.array([2.0, 0.75])},
    )
    yield case.but(
        "staircase, a floor of 0", "certificate", True, "floors are positive", data={"floors": np.array([0.0, 0.75])}
    )
    yield case.but("staircase, one floor", "certificate", True, "two blocks", data={"floors": np.array([0.25])})
    yield case.but(
        "staircase, a threshold that is met",
        "proof",
        True,
        "row 2 is on it",
        data={"thresholds": np.array([4.0, -1.0])},
    )
    yield case.but(
        "staircase, one block of five rows",
        "proof",
        None,
        "more rows than columns",
        data={"thresholds": np.array([-1.0, -2.0])},
    )
    yield case.but(
        "staircase, a row below all", "proof", None, "row 0 is below 0.5", data={"thresholds": np.array([2.5, 0.5])}
    )
    yield case.but(
        "staircase, thresholds that ascend",
        "certificate",
        True,
        "descending",
        data={"thresholds": np.array([-1.0, 2.5])},
    )
    yield case.but("staircase, c small", "proof", True, "the gates are not close to 0 and 1", c=1.0)
    yield case.but("staircase, c no power of two", "certificate", True, "c v may be rounded", c=33.0)
    yield case.but("staircase, c an int", "certificate", None, "c is a float", c=32)
    yield case.but(
        "staircase, c so large that gates overflow", "certificate", True, "2^1023 2.5 is no float", c=2.0**1023
    )
    yield case.but("staircase, delta too large", "proof", False, "rows nearby are on another side", delta=2.0)
    yield case.but(
        "staircase, a direction along the constant",
        "certificate",
        True,
        "its last entry is 0",
        data={"direction": np.array([1.0, 0.0, 1.0])},
    )
    yield case.but("staircase, a longer direction", "certificate", True, "3 entries", data={"direction": np.ones(4)})
    yield case.but(
        "staircase, dependent rows",
        "proof",
        False,
        "two rows of phi are equal",
        inputs={"Z": np.vstack([Z[:4], Z[3]])},
        data={"thresholds": np.array([2.5, -1.0])},
    )
    yield case.but("staircase, rank off by one", "certificate", None, "rank is the number of rows", rank=4)
    yield case.but("staircase, width off by one", "certificate", None, "two thresholds", width=1)
    yield case.but("staircase, width true", "certificate", None, "an int", width=True)
    yield case.but("staircase, add_constant 0", "certificate", None, "a bool", add_constant=0)
    yield case.but("staircase, add_constant missing", "certificate", None, "a bool", add_constant=GONE)
    yield case.but(
        "staircase, without a constant", "certificate", None, "the last column is not 1", inputs={"Z": Z[:, :2].copy()}
    )
    yield case.but(
        "staircase, another Z", "inputs", None, "an entry differs", inputs={"Z": Z + 0.0}, records={"Z": Z[::-1].copy()}
    )
    yield case.but("staircase, a ball", "certificate", None, "delta is the ball", ball={"kind": "norm", "value": 0.0})


def given_gates() -> Iterator[Case]:
    gates = np.array([[4.0, 2.0], [1.0, -1.0], [-8.0, 1.0]])
    numbers = {"rank": 5, "width": 2, "add_constant": False, "delta": 0.0, "s_min": 2.0**-10}
    case = valid("gates", "exploration-gates", "gram", {"Z": Z}, {"gates": gates}, **numbers)
    yield case
    yield case.but("gates, for rows nearby", None, True, delta=2.0**-20)
    yield case.but("gates, with weights", None, True, data={"weights": np.array([2.0, -1.0])})
    yield case.but("gates, scaled", None, True, data={"scaling": ints(-1, 0, -2, -3, -3)})
    yield case.but("gates, a weight of zero", "proof", False, "rank 3 at most", data={"weights": np.array([0.0, 1.0])})
    yield case.but("gates, equal ones", "proof", False, "rank 3 at most", data={"gates": gates[:, [0, 0]].copy()})
    yield case.but("gates, s_min too large", "proof", False, "a row of phi is shorter", s_min=8.0)
    yield case.but("gates, s_min slightly too large", "proof", False, "s_min is 0.304688...", s_min=0.3047)
    yield case.but("gates, delta too large", "proof", False, "two rows of Z nearby are equal", delta=8.0)
    yield case.but("gates, another shape", "certificate", None, "3 by 2", data={"gates": np.zeros((2, 3))})
    yield case.but("gates, too many weights", "certificate", None, "two weights", data={"weights": np.ones(3)})
    yield case.but("gates, missing", "certificate", None, "gates are missing", data={"gates": GONE})
    yield case.but(
        "gates, a scaling far off", "certificate", True, "norms near 1", data={"scaling": ints(0, 0, 0, 0, 90)}
    )


def refutations() -> Iterator[Case]:
    numbers = {"rank": 5, "width": 1, "add_constant": False}
    count = valid("count", "no-exploration", "count", {"Z": Z}, {}, **numbers)
    yield count
    yield count.but("count, wide enough", "proof", False, "a staircase has rank 5", width=2)
    yield count.but("count, rank off by one", "certificate", None, "rank is the number of rows", rank=6)
    twins = np.vstack([Z[:4], Z[1]])
    equal = valid(
        "equal rows", "no-exploration", "equal rows", {"Z": twins}, {"rows": ints(1, 4)}, **{**numbers, "width": 9}
    )
    yield equal
    yield equal.but("equal rows, that differ", "proof", True, "rows 1 and 3", data={"rows": ints(1, 3)})
    yield equal.but("equal rows, of one row", "certificate", True, "two indices", data={"rows": ints(1, 1)})
    yield equal.but(
        "equal rows, one unit apart",
        "proof",
        False,
        "no two rows are equal",
        inputs={"Z": np.vstack([Z[:4], np.nextafter(Z[1], [2, 2, 1])])},
        width=5,
    )
    thin = np.column_stack([Z[:, 0], np.zeros(5), Z[:, 0], np.ones(5)])
    columns = valid(
        "columns",
        "no-exploration",
        "columns",
        {"Z": thin},
        {"zero": ints(1), "copies": ints(0, 2)[None]},
        **{**numbers, "width": 2},
    )
    yield columns
    yield columns.but(
        "columns, of a column that is not zero",
        "proof",
        True,
        "column 0",
        data={"zero": ints(0), "copies": ints(2, 2)[None][:0]},
    )
    yield columns.but(
        "columns, a copy that is none", "proof", True, "columns 0 and 3", data={"copies": ints(0, 3)[None]}
    )
    yield columns.but(
        "columns, copies of each other",
        "certificate",
        True,
        "both would be left out",
        data={"copies": np.array([[0, 2], [2, 0]])},
    )
    yield columns.but("columns, wide enough", "proof", False, "a staircase has rank 5", width=3)
    inner = {"own": ints(0, 1), "shared": ints(2, 3), **pack("w", [1, -1, 0, 1, 0, 0]), "exponents": ints(0, 0, 0, 0)}
    of_z = {"method": "null space", "constants": {"rank": 2, "side": "right"}}
    rank = valid(
        "rank of Z", "no-exploration", "rank of Z", {"Z": thin}, inner, rank=5, width=2, add_constant=False, of_Z=of_z
    )
    yield rank
    yield rank.but(
        "rank of Z, another rank",
        "proof",
        True,
        "the rank is 2",
        of_Z={"method": "null space", "constants": {"rank": 1, "side": "right"}},
    )
    yield rank.but(
        "rank of Z, in a ball",
        "certificate",
        True,
        "the rank of one matrix",
        of_Z={
            "method": "null space",
            "constants": {"rank": 2, "side": "right", "ball": {"kind": "norm", "value": 0.0}},
        },
    )
    yield rank.but("rank of Z, wide enough", "proof", False, "a staircase has rank 5", width=3)
    yield rank.but(
        "rank of Z, an unknown method",
        "certificate",
        True,
        "no such method",
        of_Z={"method": "guess", "constants": {"rank": 2}},
    )


X = np.array([[0.0, 1.0], [2.0, 3.0], [-0.0, 1.0], [2.0, 3.0], [0.5, 0.5]])
LABELS = np.array([[0.0], [1.0], [1.0], [1.0], [0.0]])
NO_COSTS = {"loss": None, "floor": 0.0, "errors": None}


def of_data() -> Iterator[Case]:
    record = {"X": rows_record(X)}
    distinct = valid("digests", "distinct", "digests", {"X": X}, {}, rank=3)
    distinct = distinct.but("digests", None, True, records=record)
    yield distinct
    stored = np.frombuffer(b"".join(digests_of(canonical(X, "<f8"))[i] for i in (0, 1, 4)), np.uint8).reshape(3, 32)
    yield distinct.but("digests, that are stored", None, True, data={"digests": stored})
    yield distinct.but(
        "digests, in another order",
        "proof",
        True,
        "in the order of first occurrence",
        data={"digests": stored[::-1].copy()},
    )
    yield distinct.but("digests, too few", "certificate", True, "three digests", data={"digests": stored[:2].copy()})
    yield distinct.but("digests, rank too large", "proof", False, "-0.0 equals 0.0: three rows are distinct", rank=4)
    yield distinct.but("digests, rank too small", "proof", False, "three rows are distinct", rank=2)
    yield distinct.but(
        "digests, rank true",
        "certificate",
        None,
        "an int",
        inputs={"X": X[:1]},
        records={"X": rows_record(X[:1])},
        rank=True,
    )
    near = np.array([[1.0], [1.0 + 2.0**-30]])
    yield distinct.but(
        "digests, equal in float32", None, True, inputs={"X": near}, records={"X": rows_record(near, "<f4")}, rank=1
    )
    yield distinct.but(
        "digests, distinct in float64",
        "proof",
        False,
        "two rows are distinct",
        inputs={"X": near},
        records={"X": rows_record(near)},
        rank=1,
    )
    images = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2) % 8
    yield distinct.but(
        "digests, of images", None, True, inputs={"X": images}, records={"X": rows_record(images)}, rank=2
    )
    yield distinct.but(
        "digests, of one dimension",
        None,
        True,
        inputs={"X": np.arange(3)},
        records={"X": rows_record(np.arange(3))},
        rank=3,
    )
    careless = {"X": rows_record(near.astype(np.int64))}
    yield distinct.but(
        "digests, of integers after rounding",
        "inputs",
        None,
        "1 + 2^-30 is no integer",
        inputs={"X": near},
        records=careless,
        rank=1,
    )
    yield distinct.but("digests, other rows", "inputs", None, "one unit", inputs={"X": np.nextafter(X, 9.0)})
    yield distinct.but(
        "digests, of the bytes of X",
        "inputs",
        None,
        "rows have records of their own",
        records={"X": {"sha256": "0" * 64, "shape": (5, 2), "dtype": "<f8"}},
    )
    yield distinct.but(
        "digests, an unknown dtype", "inputs", None, "complex", records={"X": {**record["X"], "dtype": "<c16"}}
    )

    agreeing = LABELS.copy()
    agreeing[2] = 0.0
    same = valid("digests", "consistent", "digests", {"X": X, "Y": agreeing}, {}, rank=3, **NO_COSTS).but(
        "digests", None, True, records=record
    )
    yield same
    yield same.but("digests, with a loss", None, True, loss="cross_entropy")
    yield same.but("digests, of a conflict", "proof", False, "rows 0 and 2", inputs={"Y": LABELS})
    yield same.but(
        "digests, a loss of more than 0", "proof", False, "no two targets conflict", loss="cross_entropy", floor=5e-324
    )
    yield same.but("digests, an error", "proof", False, "no two targets conflict", errors=1)
    yield same.but("digests, targets too few", "certificate", None, "one for each row", inputs={"Y": agreeing[:4]})
    yield same.but("digests, an unknown loss", "certificate", None, "no such loss", loss="hinge")
    yield same.but("digests, no loss", "certificate", None, "loss is missing", loss=GONE)
    yield same.but("digests, a negative number of errors", "certificate", None, "at least 0", errors=-1)
    yield same.but(
        "digests, a negative class",
        "certificate",
        None,
        "classes are 0, 1, ...",
        inputs={"Y": agreeing - 1.0},
        loss="cross_entropy",
    )

    # Rows 0 and 2 are equal, with labels 0 and 1; so are rows 1 and 3, with equal labels.
    apart = valid("digests", "conflicting", "digests", {"X": X, "Y": LABELS}, {"rows": ints(0, 2)}, rank=3, **NO_COSTS)
    apart = apart.but("digests", None, True, records=record)
    yield apart
    yield apart.but("digests, an error", None, True, errors=1)
    yield apart.but("digests, the squared loss", None, True, loss="squared", floor=float(np.nextafter(0.1, 0)))
    yield apart.but(
        "digests, the cross-entropy", None, True, loss="cross_entropy", floor=0.2772588, errors=1
    )  # 2 ln 2 / 5
    yield apart.but(
        "digests, two label columns",
        None,
        True,
        inputs={"Y": np.hstack([LABELS, 1.0 - LABELS])},
        loss="cross_entropy",
        floor=0.2772588,
    )
    yield apart.but(
        "digests, the binary cross-entropy", None, True, loss="binary_cross_entropy", floor=0.2772588, errors=1
    )
    yield apart.but(
        "digests, soft targets", None, True, inputs={"Y": LABELS / 4 + 0.25}, loss="binary_cross_entropy", floor=0.6
    )
    yield apart.but(
        "digests, the squared loss rounded up",
        "proof",
        False,
        "the float 0.1 is more than 1/10",
        loss="squared",
        floor=0.1,
    )
    yield apart.but(
        "digests, the cross-entropy too large", "proof", False, "2 ln 2 / 5", loss="cross_entropy", floor=0.2772589
    )
    yield apart.but(
        "digests, the binary cross-entropy too large",
        "proof",
        False,
        "2 ln 2 / 5",
        loss="binary_cross_entropy",
        floor=0.2772589,
    )
    yield apart.but("digests, too many errors", "proof", False, "one error", errors=2)
    yield apart.but("digests, errors of a squared loss", "proof", False, "none are counted", loss="squared", errors=1)
    yield apart.but("digests, rows with equal targets", "proof", True, "rows 1 and 3", data={"rows": ints(1, 3)})
    yield apart.but("digests, rows that differ", "proof", True, "rows 0 and 1", data={"rows": ints(0, 1)})
    yield apart.but("digests, no conflict", "proof", False, "equal targets", inputs={"Y": agreeing})
    yield apart.but("digests, no rows", "certificate", True, "rows is missing", data={"rows": GONE})
    yield apart.but(
        "digests, other targets",
        "inputs",
        None,
        "another label",
        inputs={"Y": 1.0 - LABELS},
        records={**record, "Y": LABELS},
    )
    yield apart.but(
        "digests, targets of one dimension",
        None,
        True,
        inputs={"Y": LABELS[:, 0].copy()},
        records={**record, "Y": LABELS},
    )


def of_losses() -> Iterator[Case]:
    # One hidden unit with gates 1/2: f = z theta / 2 with theta = (2, 0), so f = z_0.
    features = np.array([[1.0, 1.0], [-1.0, 1.0], [2.0, 1.0]])
    model = {"Z": features, "R": np.zeros((2, 1)), "W": np.ones((1, 1)), "theta": np.array([[2.0, 0.0]])}
    labels = np.array([[1.0], [0.0], [1.0]])
    plain = {"errors": None, "ranks": (None,)}
    squared = valid(
        "squared", "optimality", "outputs", {**model, "Y": labels}, {}, loss="squared", gap=0.6667, **plain
    )  # (0 + 1 + 1) / 3
    yield squared
    entropy = math.log1p(math.exp(-1.0)) * 2 / 3 + math.log1p(math.exp(-2.0)) / 3
    binary = squared.but("binary cross-entropy", None, True, loss="binary_cross_entropy", gap=entropy + 1e-9, errors=0)
    yield binary
    two = {"Z": features, "R": np.zeros((4, 1)), "W": np.ones((2, 1)), "theta": np.array([[2.0, 0.0], [-2.0, 0.0]])}
    classes = {**two, "Y": np.hstack([labels, 1.0 - labels])}
    softmax = math.log1p(math.exp(-2.0)) * 2 / 3 + math.log1p(math.exp(-4.0)) / 3
    several = valid(
        "cross-entropy",
        "optimality",
        "outputs",
        classes,
        {},
        loss="cross_entropy",
        gap=softmax + 1e-9,
        errors=0,
        ranks=(None, None),
    )
    yield several
    # Rows 0 and 1 of x are equal, and so are their features; every function of a row costs 2 ln 2 / 3.
    twins = {**model, "Z": features[[0, 0, 2]], "X": features[[0, 0, 2], :1].copy(), "Y": labels}
    floor = 2 * math.log(2.0) / 3
    shared = (2 * math.log1p(math.exp(-1.0)) + 1.0 + math.log1p(math.exp(-2.0))) / 3 - floor
    data = valid("with X", "optimality", "outputs", twins, {}, loss="binary_cross_entropy", gap=shared + 1e-9, **plain)
    data = data.but("with X", None, True, records={"X": rows_record(twins["X"])}, errors=1)
    yield data
    yield data.but("with X, gap too small", "proof", False, "L - b is larger", gap=shared - 1e-6)
    yield data.but(
        "with X, other features of equal rows", "proof", False, "Z is no function of X", inputs={"Z": features}
    )
    yield squared.but("squared, gap too small", "proof", False, "the loss is 2/3", gap=0.25)
    yield squared.but("squared, a label that is none", None, True, inputs={"Y": labels / 2}, gap=1.1667)
    yield binary.but(
        "binary cross-entropy, gap too small", "proof", False, "the loss is twice as large", gap=entropy / 2
    )
    yield binary.but(
        "binary cross-entropy, targets between", "certificate", None, "targets are 0 and 1", inputs={"Y": labels / 2}
    )
    wrong = {"Y": 1.0 - labels}
    yield binary.but(
        "binary cross-entropy, errors too few", "proof", False, "three errors", inputs=wrong, gap=3.0, errors=2
    )
    yield binary.but("binary cross-entropy, errors as they are", None, True, inputs=wrong, gap=3.0, errors=3)
    yield several.but(
        "cross-entropy, a tie is an error",
        "proof",
        False,
        "row 0 has equal outputs",
        inputs={"theta": np.zeros((2, 2))},
        gap=1.0,
    )
    yield several.but(
        "cross-entropy, no class", "certificate", None, "one 1 in each row", inputs={"Y": np.zeros((3, 2))}
    )
    yield squared.but("squared, errors negative", "certificate", None, "at least 0", errors=-5)
    yield squared.but("squared, gap missing", "certificate", None, "gap is missing", gap=GONE)
    yield squared.but("squared, ranks too few", "certificate", None, "one for each output", ranks=())
    yield squared.but(
        "squared, theta of another shape", "certificate", None, "1 by 2", inputs={"theta": np.ones((1, 3))}
    )
    yield squared.but(
        "squared, features without constant", "certificate", None, "the last column is 1", inputs={"Z": features * 2}
    )
    ranked = squared.but(
        "squared, a rank", None, True, inputs={"Z": features[:2], "Y": labels[:2]}, gap=0.5001, ranks=({"s_min": 0.7},)
    )
    yield ranked
    yield ranked.but(
        "squared, a rank that is none", "proof", False, "s_min of phi is 1 / sqrt(2)", ranks=({"s_min": 0.7072},)
    )
    better = {"better": np.array([[1.0, 1.0]])}  # f = (1, 0, 3/2): 1/12 instead of 2/3
    worse = valid(
        "better weights", "suboptimality", "outputs", {**model, "Y": labels}, better, loss="squared", gap=0.41, **plain
    )
    yield worse
    yield worse.but("better weights, gap too large", "proof", True, "2/3 - 1/12", gap=0.5834)
    yield worse.but("better weights, more than the loss", "proof", False, "the loss is 2/3", gap=0.67)
    yield worse.but(
        "better weights, that are worse", "proof", True, "5 for theta", data={"better": np.array([[9.0, 1.0]])}
    )
    yield worse.but("better weights, with errors", "certificate", True, "errors is null", errors=0)
    yield worse.but(
        "better weights, of another shape", "certificate", True, "as theta", data={"better": np.ones((2, 2))}
    )
    infimum = ranked.but("an infimum of 0", None, True, claim="suboptimality", gap=0.49)  # (0 + 1) / 2
    yield infimum
    yield infimum.but("an infimum of 0, no rank", "proof", True, "neither better weights nor a rank", ranks=(None,))
    yield infimum.but("an infimum of 0, gap equal to the loss", "proof", False, "more than the gap", gap=0.5)


CASES = [*explorations(), *given_gates(), *refutations(), *of_data(), *of_losses()]
