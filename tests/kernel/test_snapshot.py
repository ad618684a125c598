"""What is hashed is what is proved: arrays that another thread writes to, files, and sources that change their mind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import alignver as av
from alignver import kernel
from alignver.errors import InvalidInput
from alignver.kernel import seal, snapshot
from alignver.kernel.certificate import record
from alignver.results import Rigor, Verdict

N = 120
RNG = np.random.default_rng(0)
GOOD = RNG.standard_normal((N, N))
BAD = GOOD.copy()
BAD[1] = BAD[0]  # rank N - 1
TARGET = np.ones(N)
TARGET[1] = 2.0  # in no column space where rows 0 and 1 are equal


class Writing:
    """A thread that writes the one matrix and the other into row 1 of J, in turn, for as long as the block lasts."""

    def __init__(self, J):
        self._J, self._done = J, threading.Event()
        self._thread = threading.Thread(target=self._write)

    def _write(self):
        while not self._done.is_set():
            self._J[1] = GOOD[1]
            self._J[1] = BAD[1]

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize("delay", [0.0, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_an_array_that_changes_while_it_is_verified(delay):
    certificate = seal(
        "membership", "minor", {"J": BAD, "y": TARGET}, {"rows": np.arange(N), "columns": np.arange(N)}, {}
    )
    assert kernel.verify(certificate, {"J": BAD, "y": TARGET}).verdict is Verdict.FAILS
    began = time.perf_counter()
    record(BAD)
    hashed = time.perf_counter() - began
    for _ in range(3):
        J = BAD.copy()
        timer = threading.Timer(delay * hashed, J.__setitem__, (1, GOOD[1]))
        timer.start()
        assert av.recheck(certificate, J=J, y=TARGET).verdict is Verdict.FAILS
        timer.join()


def test_arrays_that_change_while_they_are_proved():
    """Whatever was seen of them, verdict and certificate are about the same matrix."""
    J, y = BAD.copy(), TARGET.copy()
    with Writing(J):
        for _ in range(4):
            results = [av.check_membership(J, y, method="auto"), av.check_rank(J, rank=N)]
            for result in results:
                if result.rigor is not Rigor.PROOF or result.certificate is None:
                    continue
                sha = result.certificate.inputs["J" if "y" in result.certificate.inputs else "A"]["sha256"]
                full = {record(GOOD)["sha256"]: True, record(BAD)["sha256"]: False}.get(sha)
                if full is not None:  # neither where a row was half written: then only the kernel knows
                    assert (result.verdict is Verdict.HOLDS) == full


class Turning:
    """Rows that are good when they are read block by block, and others when they are asked for by index."""

    shape, dtype = (40, 6), np.dtype(np.float64)

    def __init__(self):
        features = np.random.default_rng(1).standard_normal((40, 5))
        self.first = np.column_stack([features, np.ones(40)])
        self.then = self.first.copy()
        self.then[5] = self.then[4]

    def __getitem__(self, which):
        return self.first[which] if isinstance(which, slice) else self.then[which]


def test_rows_are_those_that_were_identified(monkeypatch):
    source = Turning()
    twins = {"rank": 40, "width": 8, "add_constant": False}
    forged = seal("no-exploration", "equal rows", {"Z": source.first}, {"rows": np.array([4, 5])}, twins)
    stairs = av.check_safe_exploration(source.first, width=8).certificate
    assert kernel.verify(forged, {"Z": source}).verdict is Verdict.FAILS
    assert kernel.verify(stairs, {"Z": source}).verdict is Verdict.HOLDS  # from the copy
    monkeypatch.setattr(snapshot, "MOST_COPIED", 0)
    for certificate in (forged, stairs):
        with pytest.raises(InvalidInput, match="Z: got rows that changed while they were read"):
            kernel.verify(certificate, {"Z": source})
        assert kernel.verify(certificate, {"Z": source.first}).verdict is (
            Verdict.HOLDS if certificate is stairs else Verdict.FAILS
        )


def test_a_certificate_that_changes_while_it_is_verified():
    certificate = av.check_rank(GOOD[:5], rank=5, ball=av.Ball(norm=1e-6)).certificate
    data = {name: array.copy() for name, array in certificate.data.items()}
    mine = kernel.Certificate(certificate.claim, certificate.method, certificate.inputs, data, certificate.constants,
                              certificate.versions, certificate.seal)  # fmt: skip
    result = kernel.verify(mine, {"A": GOOD[:5]})
    assert result.verdict is Verdict.HOLDS
    assert all(not np.shares_memory(array, data[name]) for name, array in result.certificate.data.items())


def test_inputs_are_copied_before_they_are_looked_at():
    for array in (np.eye(2), np.asfortranarray(np.ones((2, 3))), np.eye(2).astype(np.float32), np.eye(2).astype(">f8")):
        copy = snapshot.real(array, "A", 2)
        assert not np.shares_memory(copy, array)
        assert copy.dtype == np.float64
        assert copy.flags.c_contiguous


def test_kinds_of_arrays():
    A = np.eye(2)
    certificate = seal("rank", "minor", {"A": A}, {"rows": np.arange(2), "columns": np.arange(2)}, {"rank": 2})
    for same in (
        A.astype(int),
        A.astype(bool),
        A.astype(np.float32),
        A.astype(">f8"),
        np.asfortranarray(A),
        A.tolist(),
    ):
        assert kernel.verify(certificate, {"A": same}).verdict is Verdict.HOLDS
    for other, words in (
        (A.astype(complex), "complex"), (A.astype(object), "object"), (A[0], "dimensions"), (A[:0], "not empty"),
        (A * np.nan, "finite"), (A.astype(int) * (2**53 + 1), "2\\*\\*53"), (A.astype(np.longdouble), "float"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=words):
            kernel.verify(certificate, {"A": other})
    with pytest.raises(InvalidInput, match="exactly A"):
        kernel.verify(certificate, {"J": A})
