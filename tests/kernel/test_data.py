"""Claims about data: what is accepted and what is not, and sources, numbers and constants that are made to deceive."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

import alignver as av
from alignver.errors import InvalidInput
from alignver.kernel import Certificate, data, seal, verify
from alignver.kernel.__main__ import main
from alignver.kernel.certificate import LOSSES, describe, record
from alignver.kernel.data import canonical, digests_of, first_equal, least_loss, record_of
from alignver.results import Rigor, Verdict
from tests.kernel.test_closure import numpy_only

__all__ = ["numpy_only"]

X = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [0.0, 5.0], [-0.0, 5.0]])
GOOD, BAD = np.array([[0.0], [1.0], [0.0], [2.0], [2.0]]), np.array([[0.0], [1.0], [1.0], [2.0], [2.0]])
NO_LOSS = {"loss": None, "floor": 0.0, "errors": None}


def of_rows(X, kind="<f8", shape=None):
    """Return the record of X, and the digests of its distinct rows."""
    digests = digests_of(canonical(X, kind))
    stored = b"".join(dict.fromkeys(digests))
    return record_of(digests, shape or np.shape(X), kind), np.frombuffer(stored, dtype=np.uint8).reshape(-1, 32)


def claimed(claim, X=X, Y=None, kind="<f8", rows=None, sealed=None, **constants):
    """Return what verify says of a claim that is true as far as nothing else is said."""
    entry, digests = (sealed, None) if sealed else of_rows(X, kind)
    inputs, given = {"X": entry}, {"X": X}
    if Y is not None:
        inputs["Y"], given["Y"] = np.reshape(np.asarray(Y, dtype=float), (len(Y), -1)), Y
        constants = NO_LOSS | constants
    content = {} if rows is None else {"rows": np.array(rows)}
    if claim != "conflicting" and digests is not None:
        content["digests"] = digests
    constants.setdefault("rank", None if digests is None else len(digests))
    return verify(seal(claim, "digests", inputs, content, constants), given)


def holds(*arguments, **options):
    return claimed(*arguments, **options).verdict is Verdict.HOLDS


def test_what_is_true_is_accepted():
    result = claimed("distinct")
    assert (result.verdict, result.rigor) == (Verdict.HOLDS, Rigor.PROOF)
    assert result.reason == "3 of 5 rows of X are distinct"
    result = claimed("consistent", Y=GOOD, loss="cross_entropy")
    assert result.reason == "3 of 5 rows of X are distinct, and equal ones have equal targets"
    assert result.statement == "Certificate: equal rows of X have equal rows of Y, and 3 rows of X are distinct"
    result = claimed("conflicting", Y=BAD, rows=[0, 2], loss="cross_entropy", floor=0.277, errors=1)
    assert result.reason == (
        "rows 0 and 2 of X are equal, and their targets differ; 3 of 5 rows of X are distinct; every function of a row "
        "has a cross_entropy loss of at least 0.277 and at least 1 error"
    )
    assert result.statement.endswith("; every function of a row of X has a cross_entropy loss of at least 0.277")
    assert claimed("conflicting", Y=BAD, rows=[2, 0], errors=1).reason.endswith("a row has at least 1 error")
    assert holds("conflicting", Y=BAD[:, 0], rows=[0, 2])  # a vector of targets


def test_what_is_false_is_refused():
    assert not holds("consistent", Y=BAD)
    for rows in ([0, 1], [3, 4], [0, 0], [0, 5], [-1, 2], [0], [0, 2, 1], [[0, 2]], [0.0, 2.0]):
        assert not holds("conflicting", Y=BAD, rows=rows), rows
    assert not holds("conflicting", Y=BAD)
    for rank in (2, 4, 5, 3.0, True, "3", None, 10**30, -3):
        assert not holds("distinct", rank=rank), rank
        assert not holds("consistent", Y=GOOD, rank=rank), rank
        assert not holds("conflicting", Y=BAD, rows=[0, 2], rank=rank), rank
    assert not holds("distinct", np.zeros((2, 1)), rank=True)
    for Y in (GOOD[:4], BAD[:4]):  # targets of fewer samples
        for claim in ("consistent", "conflicting"):
            assert not holds(claim, Y=Y, rows=[0, 2])


def test_digests_are_those_of_the_distinct_rows():
    entry, digests = of_rows(X)

    def accepted(content):
        return (
            verify(seal("distinct", "digests", {"X": entry}, content, {"rank": 3}), {"X": X}).verdict is Verdict.HOLDS
        )

    assert accepted({"digests": digests})
    assert accepted({})  # X is what the claim is about
    flipped = digests.copy()
    flipped[1, 7] ^= 1
    for wrong in (
        flipped, digests[::-1], digests[:2], np.vstack([digests, digests[:1]]), digests.reshape(-1), digests[:, :31],
        digests.reshape(6, 16), digests.astype(np.int64), digests.view(np.int64), digests.astype(float), digests[:0],
    ):  # fmt: skip
        assert not accepted({"digests": wrong}), wrong.shape


def test_any_change_of_an_input_is_refused():
    made = {"distinct": ({}, {"rank": 3}), "consistent": ({}, {"rank": 3, **NO_LOSS})}
    made["conflicting"] = ({"rows": np.array([0, 2])}, {"rank": 3, **NO_LOSS})
    for claim, (content, constants) in made.items():
        Y = BAD if claim == "conflicting" else GOOD
        inputs = {"X": X} if claim == "distinct" else {"X": X, "Y": Y}
        certificate = seal(claim, "digests", inputs | {"X": of_rows(X)[0]}, content, constants)
        assert verify(certificate, inputs).verdict is Verdict.HOLDS
        assert verify(certificate, inputs | {"X": X.astype(np.float32)}).verdict is Verdict.HOLDS  # the same numbers
        up = X.copy()
        up[1, 1] = np.nextafter(4.0, 5.0)
        for other in (up, X[::-1], X[:, ::-1], X[:4], np.vstack([X, X]), X.reshape(5, 1, 2), X[:, :1], X + 1):
            assert verify(certificate, inputs | {"X": other}).verdict is Verdict.FAILS
        nothing = (None, X.tolist(), X[:0], X[0, 0], X.astype(object), X.astype(str), X * 1j)
        for other in (*nothing, np.full_like(X, np.nan), np.full_like(X, np.inf)):
            with pytest.raises(InvalidInput, match=r"^X: "):
                verify(certificate, inputs | {"X": other})
        if claim != "distinct":
            for other in (Y + 0.5, Y[::-1], np.hstack([Y, Y]), Y[:4]):
                assert verify(certificate, inputs | {"Y": other}).verdict is Verdict.FAILS
            for other in (np.full_like(Y, np.nan), None, Y[:, :, None], Y[:0], Y.astype(object)):
                with pytest.raises(InvalidInput, match=r"^Y: "):
                    verify(certificate, inputs | {"Y": other})
        for other in ({}, {"Y": Y}, {"X": X, "Y": Y, "Z": Y}):
            if set(other) != set(inputs):
                with pytest.raises(InvalidInput, match=r"^inputs: "):
                    verify(certificate, other)


def test_the_digest_of_rows():
    """Of dtype, shape and the digests of the rows in that dtype, as the documents say."""
    rows = (X + 0.0).astype("<f4")
    content = b"rows <f4 (5, 2)" + b"".join(hashlib.sha256(row.tobytes()).digest() for row in rows)
    wanted = {"sha256": hashlib.sha256(content).hexdigest(), "shape": (5, 2), "dtype": "<f4"}
    assert of_rows(X, "<f4")[0] == wanted


def test_a_record_of_another_form_is_refused():
    entry = of_rows(X)[0]
    for change in (
        {"dtype": "<f4"}, {"dtype": "f8"}, {"dtype": ">f8"}, {"dtype": "float64"}, {"dtype": "<c16"}, {"dtype": "|O"},
        {"dtype": "<f16"}, {"dtype": "<M8[s]"}, {"dtype": None}, {"dtype": 8}, {"dtype": ("<f8",)}, {"dtype": {}},
        {"dtype": "|V8"}, {"dtype": "<f8, <f8"}, {"shape": (5,)}, {"shape": (2, 5)}, {"shape": None}, {"shape": "5"},
        {"shape": (10**30, 2)}, {"shape": (-5, 2)}, {"sha256": "0" * 64}, {"sha256": None}, {"more": 1},
    ):  # fmt: skip
        assert not holds("distinct", sealed={**entry, **change}, rank=3), change
    assert not holds("distinct", sealed=record(X), rank=3)  # the digest of a matrix as other inputs have it
    assert not holds("distinct", sealed={"none": 0}, rank=3)
    certificate = seal("distinct", "digests", {}, {}, {"rank": 3})
    assert verify(certificate, {"X": X}).verdict is Verdict.FAILS


# ---- numbers


def test_rows_have_equal_bytes_exactly_where_their_numbers_are_equal():
    tiny = 5e-324
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [tiny, 1.0], [-tiny, 1.0], [0.0, np.nextafter(1.0, 2.0)]])
    assert first_equal(digests_of(canonical(rows, "<f8"))).tolist() == [0, 0, 2, 3, 4]
    for kind, least in (("<f2", 2.0**-24), ("<f4", 2.0**-149)):
        rows = np.array([[0.0], [-0.0], [least], [-least], [least / 4], [-least / 4]])
        assert first_equal(digests_of(canonical(rows, kind))).tolist() == [0, 0, 2, 3, 0, 0]
    assert np.array_equal(rows, [[0.0], [-0.0], [least], [-least], [least / 4], [-least / 4]])  # nothing is changed
    assert np.signbit(rows[1, 0])


@pytest.mark.parametrize("kind", ["|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"])
def test_every_dtype_in_every_form(kind):
    n = 2 if kind == "|b1" else 7
    A = (np.arange(6 * n).reshape(3 * n, 2) % n).astype(kind)
    entry, digests = of_rows(A, kind)
    assert first_equal(digests_of(canonical(A, kind))).tolist() == first_equal([bytes(row) for row in A]).tolist()
    certificate = seal("distinct", "digests", {"X": entry}, {"digests": digests}, {"rank": len(digests)})
    swapped = A.astype(A.dtype.newbyteorder(">"))
    for form in (A, np.asfortranarray(A), np.repeat(A, 2, axis=0)[::2], swapped, A.astype(float), A.astype(int)):
        assert of_rows(form, kind)[0] == entry
        assert verify(certificate, {"X": form}).verdict is Verdict.HOLDS
    images = A.reshape(3 * n, 1, 2, 1)
    assert of_rows(images, kind)[0]["sha256"] != entry["sha256"]  # the shape belongs to it
    assert holds("distinct", images, kind=kind)
    assert holds("distinct", A[:, 0], kind=kind)


@pytest.mark.parametrize(
    ("values", "given", "kind"),
    [
        ([0.25, 0.75], "f8", "|b1"), ([2, 1], "u1", "|b1"), ([-1, 1], "i8", "|b1"), ([0.25, 0.75], "f2", "|u1"),
        ([256, 0], "i8", "|u1"), ([-1, 255], "i2", "|u1"), ([128, -128], "f4", "|i1"), ([-1, 2**32 - 1], "i8", "<u4"),
        ([2**31, -(2**31)], "f8", "<i4"), ([0.5, 0.0], "f4", "<i8"), ([2**63, 2**63 - 1], "u8", "<i8"),
        ([-1, 1], "i8", "<u8"), ([2**63, 2**63 - 1024], "f8", "<i8"), ([2**64, 0], "f8", "<u8"),
        ([2**53 + 1, 2**53], "i8", "<f8"), ([-(2**53) - 1, 0], "i8", "<f8"), ([2**64 - 1, 2**64 - 2], "u8", "<f8"),
        ([2**60, 2**60 + 1], "i8", "<f4"),
    ],
)  # fmt: skip
def test_a_cast_that_merges_numbers_is_refused(values, given, kind):
    """Different rows were once equal as integers of a narrower dtype: a conflict that is none."""
    A = np.array(values, dtype=given)[:, None]
    with pytest.raises(InvalidInput, match=r"^X: "):
        canonical(A, kind)
    with np.errstate(all="ignore"):
        merged = np.array(A.astype(kind))
    sealed = record_of(digests_of(merged), A.shape, kind)
    distinct = len(set(digests_of(merged)))
    content = {"rows": np.array([0, 1])}
    for claim, more in (("distinct", {}), ("conflicting", NO_LOSS)):
        inputs = {"X": sealed} | ({"Y": np.eye(2)} if more else {})
        given = {"X": A} | ({"Y": np.eye(2)} if more else {})
        result = verify(seal(claim, "digests", inputs, content, {"rank": distinct, **more}), given)
        assert result.verdict is Verdict.FAILS
        assert "does not hold" in result.reason or "integers beyond 2**53" in result.reason


@pytest.mark.parametrize("kind", ["<f2", "<f4"])
def test_a_cast_to_narrower_floats_is_named(kind):
    """Rows that are equal in the dtype of the model may differ in the file: the sentences say which is meant."""
    name, close = np.dtype(kind).name, 1.0 + np.array([[0.0], [2.0**-40]])
    result = claimed("conflicting", close, np.array([0, 1]), kind=kind, rows=[0, 1], loss="squared", floor=0.25)
    assert result.verdict is Verdict.HOLDS
    for sentence in (result.reason, result.statement):
        assert sentence.count("of X") == sentence.count(f"of X in {name}") >= 2
    assert not holds("conflicting", close, np.array([0, 1]), rows=[0, 1])
    large = np.array([[1e6], [1.0]]) * 10.0 ** (35 if kind == "<f4" else 0)
    with pytest.raises(InvalidInput, match=r"^X: got NaN or Inf; needs finite numbers of float"):
        canonical(large, kind)
    assert not holds("distinct", large, sealed={"sha256": "", "shape": (2, 1), "dtype": kind}, rank=2)
    assert "float64" not in claimed("distinct").statement


@pytest.mark.parametrize("bad", [
    np.ones((2, 1), dtype=object), np.ones((2, 1)) * 1j, np.array([["a"], ["b"]]), np.zeros((2, 1), dtype="M8[s]"),
    np.zeros((2, 1), dtype="m8[s]"), np.zeros((2, 1), dtype="f8, f8"), np.ones((2, 1), dtype=np.longdouble),
    np.array([[np.nan], [0.0]]), np.array([[np.inf], [0.0]], dtype=np.float16), np.array([[b"a"], [b"b"]]),
], ids=lambda bad: str(bad.dtype))  # fmt: skip
def test_what_is_no_real_number_is_refused(bad):
    for kind in ("<f8", "<i8", "|b1"):
        with pytest.raises(InvalidInput, match=r"^X: "):
            canonical(bad, kind)
    with pytest.raises(InvalidInput, match=r"^X: "):
        claimed("distinct", bad, sealed=of_rows(np.ones((2, 1)))[0], rank=1)


# ---- sources


class Source:
    """Rows that are no array: what they say of their shape and what they return may be anything."""

    def __init__(self, rows, shape=None, extra=0):
        self.rows, self.shape, self.extra, self.asked = rows, rows.shape if shape is None else shape, extra, []

    def __getitem__(self, which):
        self.asked.append((which.start, which.stop))
        return self.rows[which.start : which.stop + self.extra]


def test_a_source_is_read_once_block_by_block(monkeypatch):
    monkeypatch.setattr(data, "_BLOCK_BYTES", 2 * 8 * 2)
    source = Source(X)
    assert claimed("distinct", source, sealed=of_rows(X)[0], rank=3).verdict is Verdict.HOLDS
    assert source.asked == [(0, 2), (2, 4), (4, 6)]
    for rows, shape, extra in ((X[:4], (5, 2), 0), (X, (4, 2), 1), (X, None, 1), (X, (5, 3), 0), (X[:, 0], (5, 2), 0)):
        with pytest.raises(InvalidInput, match=r"^X: got rows of shape"):
            claimed("distinct", Source(rows, shape, extra), sealed=of_rows(X)[0], rank=3)
    images = Source(X.reshape(5, 2, 1))
    assert claimed("distinct", images, sealed=of_rows(X.reshape(5, 2, 1))[0], rank=3).verdict is Verdict.HOLDS


@pytest.mark.parametrize("shape", [(), (0, 2), (5, 0), (-1, 2), (-5, -2), (5, -1)])
def test_a_shape_that_is_none_is_refused(shape):
    """Without rows, no row differed from another: 0 rows of X were distinct once."""
    sealed = record_of([], shape, "<f8")
    with pytest.raises(InvalidInput, match=r"^X: got shape"):
        claimed("distinct", Source(np.zeros((0, 2)), shape), sealed=sealed, rank=0)


def test_a_huge_shape_costs_nothing():
    """What a source says of itself, or a certificate of it, is no reason to reserve memory."""
    for shape in ((10**12, 10**12), (10**30, 1), (1, 10**15)):
        with pytest.raises(InvalidInput, match=r"^X: got rows of shape"):
            claimed("distinct", Source(X, shape), sealed={"sha256": "", "shape": shape, "dtype": "<f8"}, rank=3)


def test_an_array_that_changes_while_it_is_read():
    """A row is copied, and what is looked at is the copy."""

    class Changing(Source):
        def __getitem__(self, which):
            block = super().__getitem__(which).copy()
            self.rows[...] = 7.0  # whoever reads again reads something else
            return block

    assert claimed("distinct", Changing(X.copy()), sealed=of_rows(X)[0], rank=3).verdict is Verdict.HOLDS
    block = X.copy()
    rows = canonical(block, "<f8")
    block[:] = 7.0
    assert np.array_equal(rows, X)
    assert not np.shares_memory(rows, block)


def test_a_source_that_changes_the_arithmetic():
    pytest.importorskip("torch")
    code = """
import sys
import numpy as np
import torch
from alignver.kernel import seal, verify
from alignver.kernel.data import canonical, digests_of, record_of
X = np.eye(3)
class Source:
    shape = (3, 3)
    def __getitem__(self, which):
        if not torch.set_flush_denormal(True):
            sys.exit(77)
        return X[which]
record = record_of(digests_of(canonical(X, "<f8")), (3, 3), "<f8")
found = verify(seal("distinct", "digests", {"X": record}, {}, {"rank": 3}), {"X": Source()})
assert found.verdict.value == "UNDECIDED" and "flushes subnormal" in found.reason, found
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this processor does not flush subnormal numbers")
    assert done.returncode == 0, done.stderr


# ---- bounds

FLOOR = Fraction(least_loss(first_equal(digests_of(canonical(X, "<f8"))), BAD, "cross_entropy")[0])


def test_bounds_are_stated_to_the_last_digit():
    """A little more than what is known is refused, in the loss and in errors."""
    for loss in LOSSES:
        Y = np.minimum(BAD, 1.0) if loss == "binary_cross_entropy" else BAD
        lower, errors = least_loss(first_equal(digests_of(canonical(X, "<f8"))), Y, loss)
        common = {"Y": Y, "rows": [0, 2], "loss": loss}
        assert lower > 0.0
        assert holds("conflicting", **common, floor=lower)
        assert holds("conflicting", **common, floor=0.0)
        assert not holds("conflicting", **common, floor=float(np.nextafter(lower, 1.0)))
        assert holds("conflicting", **common, errors=errors or 0)
        assert not holds("conflicting", **common, errors=(errors or 0) + 1)
    assert not holds("conflicting", Y=BAD, rows=[0, 2], floor=5e-324)  # of no loss
    assert not holds("consistent", Y=GOOD, loss="cross_entropy", floor=5e-324)
    assert not holds("consistent", Y=GOOD, errors=1)
    soft = np.full((5, 2), 0.5)
    assert holds("consistent", Y=soft, loss="cross_entropy", floor=0.693)
    assert not holds("consistent", Y=soft, loss="cross_entropy", floor=0.6932)


HOSTILE = (
    True, False, None, 7, -1, 10**400, 2**63, "0.1", "", (), {}, [1.0], (0.1,), {"float": "0x1p-1"}, 1e308, -1.0,
    -5e-324, "cross_entropy\0", "SQUARED",
)  # fmt: skip


@pytest.mark.parametrize("name", ["rank", "loss", "floor", "errors"])
def test_hostile_constants_are_refused(name):
    base = {"rank": 3, "loss": "cross_entropy", "floor": 0.1, "errors": 1}
    content = {"rows": np.array([0, 2])}
    inputs = {"X": of_rows(X)[0], "Y": BAD}
    for value in HOSTILE:
        certificate = seal("conflicting", "digests", inputs, content, {**base, name: value})
        nothing_said = name == "errors" and value is None
        result = verify(certificate, {"X": X, "Y": BAD}).verdict
        assert result is (Verdict.HOLDS if nothing_said else Verdict.FAILS), value
    fewer = {key: value for key, value in base.items() if key != name}
    certificate = seal("conflicting", "digests", inputs, content, fewer)
    assert verify(certificate, {"X": X, "Y": BAD}).verdict is Verdict.FAILS
    for value in (float("nan"), float("inf"), 0.1 + 0.1j, object()):
        broken = Certificate("conflicting", "digests", inputs, content, {**base, name: value}, {}, "0" * 64)
        assert verify(broken, {"X": X, "Y": BAD}).verdict is Verdict.FAILS


def test_hostile_constants_of_other_claims_are_refused():
    for more in ({"s_min": 0.5}, {"distance": 0.5}, {"ball": {"kind": "norm", "value": 1.0}}, {"ball": 0}):
        assert not holds("distinct", **more), more
        assert not holds("conflicting", Y=BAD, rows=[0, 2], **more), more


def test_no_other_claim_states_a_loss():
    A = {"A": np.eye(2)}
    for claim in ("rank", "distinct", "membership", "exploration", "suboptimality", "no-exploration", "optimality"):
        for inputs in (A, {"X": of_rows(X)[0]}):
            certificate = seal(claim, "any", inputs, {}, {"rank": 1, "gap": 0.5, "loss": "squared", "floor": 0.25})
            assert "0.25" not in describe(certificate), claim
    for floor in (0.0, -1.0, 1, True, "0.5", None):
        certificate = seal("conflicting", "digests", {"X": of_rows(X)[0]}, {}, {"loss": "squared", "floor": floor})
        assert "loss of at least" not in describe(certificate)
    certificate = seal("conflicting", "digests", {"X": of_rows(X)[0]}, {}, {"loss": "any", "floor": 0.5})
    assert "loss" not in describe(certificate)
    certificate = seal("conflicting", "digests", {"X": of_rows(X)[0]}, {}, {"loss": "squared", "floor": 0.12349})
    assert describe(certificate).endswith("has a squared loss of at least 0.123")


@pytest.mark.parametrize(
    ("Y", "loss"),
    [
        (-np.eye(5), "cross_entropy"), ([0.5, 1, 1, 2, 2], "cross_entropy"), ([-1.0, 1, 1, 2, 2], "cross_entropy"),
        (2 * np.eye(5), "binary_cross_entropy"), (-np.eye(5), "binary_cross_entropy"),
        ([2.0, 1, 1, 0, 0], "binary_cross_entropy"), (np.eye(5) * 2.0**900, "cross_entropy"),
        (np.eye(5) * 1.7e308, "cross_entropy"),
    ],
)  # fmt: skip
def test_a_loss_that_the_targets_have_none_of(Y, loss):
    """Targets may be anything; that the certificate names a loss for them is no fault of who checks it."""
    Y = np.reshape(Y, (5, -1)).astype(float)
    with pytest.raises(InvalidInput, match=f"^Y: got targets that loss='{loss}' does not take"):
        least_loss(np.arange(5), Y, loss)
    result = claimed("conflicting", Y=Y, rows=[0, 2], loss=loss)
    assert (result.verdict, result.reason) == (Verdict.FAILS, f"the targets do not fit the loss {loss}")
    assert holds("conflicting", Y=Y, rows=[0, 2])
    assert least_loss(np.arange(5), Y, None)[0] == 0.0


def test_groups_are_those_of_equal_rows_only():
    """Two groups of two, one of them with a conflict, in any order."""
    Y = np.array([[0.0], [0.0], [1.0], [0.0]])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        first = first_equal([b"abab"[i : i + 1] for i in order])
        assert least_loss(first, Y[order], "squared") == (0.125, None)
        lower, errors = least_loss(first, Y[order], "cross_entropy")
        assert lower == pytest.approx(np.log(2) / 2, rel=1e-9)
        assert errors == 1


# ---- a claim about a training loss


def optimality(X, Z, Y, gap, floor=True):
    n = len(Z)
    model = {"Z": Z, "R": np.zeros((2, 1)), "W": np.ones((1, 1)), "theta": np.zeros((1, 2)), "Y": Y}
    inputs = {**model, "X": of_rows(X)[0]} if floor else model
    constants = {"loss": "binary_cross_entropy", "gap": gap, "errors": None, "ranks": (None,)}
    given = {**model, "X": X} if floor else model
    assert n == len(Y)
    return verify(seal("optimality", "outputs", inputs, {}, constants), given)


def test_a_gap_is_counted_from_what_the_data_cost():
    """Outputs of 0, and equal inputs with both labels: no function has a smaller loss."""
    Y = np.array([[0.0], [1.0], [0.0], [1.0]])
    Z = np.column_stack([np.repeat([1.0, 2.0], 2), np.ones(4)])
    X = np.repeat([[1.0], [2.0]], 2, axis=0)
    result = optimality(X, Z, Y, 1e-9)
    assert result.verdict is Verdict.HOLDS
    assert "above what the data cost, 0.693147 or more" in result.reason
    assert "no function of a row of X has a smaller training loss by more" in result.statement
    assert optimality(X, Z, Y, 1e-9, floor=False).verdict is Verdict.FAILS
    alone = optimality(X, Z, Y, 0.7, floor=False)
    assert "no parameters of any layer have a smaller training loss by more" in alone.statement
    assert "never below 0" in alone.reason
    assert optimality(np.arange(4.0)[:, None], Z, Y, 1e-9).verdict is Verdict.FAILS  # inputs that differ cost nothing
    with pytest.raises(InvalidInput, match=r"^inputs: "):
        verify(seal("optimality", "outputs", {"X": of_rows(X)[0]}, {}, {}), {"Z": Z})
    assert "X in float32" in describe(seal("optimality", "outputs", {"X": of_rows(X, "<f4")[0]}, {}, {"gap": 0.5}))


def test_outputs_that_are_not_a_function_of_the_inputs_have_no_floor():
    """Equal rows of X with features that differ can be told apart by the model: its infimum may be 0."""
    Y = np.array([[0.0], [1.0], [0.0], [1.0]])
    Z = np.column_stack([np.arange(4.0), np.ones(4)])
    result = optimality(np.zeros((4, 1)), Z, Y, 1e-9)
    assert (result.verdict, "not a function of X" in result.reason) == (Verdict.FAILS, True)
    fewer = optimality(np.zeros((3, 1)), np.ones((4, 2)), Y, 1e-9)
    assert (fewer.verdict, fewer.reason) == (Verdict.FAILS, "X and Y differ in length")


# ---- files


def test_files_are_checked_from_a_shell(tmp_path, capsys):
    labels = np.array([0, 1, 1, 2, 2])
    np.save(tmp_path / "X.npy", X.astype(np.float32))
    np.save(tmp_path / "Y.npy", labels)
    np.save(tmp_path / "other.npy", labels[::-1])
    result = av.check_data(X.astype(np.float32), labels, loss="cross_entropy")
    proof = str(result.certificate.save(tmp_path / "proof"))
    x, y = f"X={tmp_path / 'X.npy'}", f"Y={tmp_path / 'Y.npy'}"
    assert main([proof, "--input", x, "--input", y]) == 0
    assert "two equal rows of X in float32 have different rows of Y" in capsys.readouterr().out
    assert main([proof, "--input", x, "--input", f"Y={tmp_path / 'other.npy'}"]) == 1
    assert main([proof, "--input", x]) == 2


def test_only_numpy_is_needed(numpy_only, tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    images[4] = images[1]
    np.save(tmp_path / "X.npy", images)
    np.save(tmp_path / "Y.npy", np.array([0, 1, 2, 0, 2, 0]))
    av.check_data(images, [0, 1, 2, 0, 2, 0], loss="cross_entropy").certificate.save(tmp_path / "proof")
    done = numpy_only("-m", "alignver.kernel", "proof", "--input", "X=X.npy", "--input", "Y=Y.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rows 1 and 4 of X are equal, and their targets differ" in done.stdout


def test_format_and_seal_of_such_a_certificate(tmp_path):
    certificate = av.check_data(X, GOOD).certificate
    assert certificate.claim == "consistent"
    path = certificate.save(tmp_path / "proof")
    assert av.recheck(path, X=X, Y=GOOD).verdict is Verdict.HOLDS
    changed = dataclasses.replace(certificate, constants={**certificate.constants, "floor": 0.5})
    assert verify(changed, {"X": X, "Y": GOOD}).reason.startswith("the seal is broken")


def test_errors_are_named_after_what_is_counted():
    """Several labels a sample are several outputs; one label a sample is one answer."""
    X = np.zeros((2, 1))
    for loss, Y, words in (
        ("binary_cross_entropy", np.array([[1.0, 1.0], [0.0, 0.0]]), "at least 2 wrong outputs"),
        ("binary_cross_entropy", np.array([[1.0], [0.0]]), "at least 1 error"),
        ("cross_entropy", np.array([[1.0, 0.0], [0.0, 1.0]]), "at least 1 error"),
        (None, np.array([[1.0], [0.0]]), "at least 1 error"),
    ):
        rows = digests_of(canonical(X, "<f8"))
        lower, errors = least_loss(first_equal(rows), Y, loss)
        constants = {"rank": 1, "loss": loss, "floor": lower, "errors": errors}
        inputs = {"X": record_of(rows, X.shape, "<f8"), "Y": Y}
        certificate = seal("conflicting", "digests", inputs, {"rows": np.array([0, 1])}, constants)
        reason = verify(certificate, {"X": X, "Y": Y}).reason
        assert reason.endswith(words), reason


def test_each_loss_says_which_targets_it_takes():
    for loss, need in (("binary_cross_entropy", "numbers from 0 to 1"), ("cross_entropy", r"classes 0, 1, \.\.\.")):
        with pytest.raises(InvalidInput, match=f"needs {need}"):
            least_loss(np.zeros(2, dtype=int), np.array([[-1.0], [2.0]]), loss)
