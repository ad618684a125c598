"""The tests of the arithmetic that proofs assume: each fault is found, and nothing else is."""

from __future__ import annotations

import concurrent.futures
import ctypes
import json
import time

import numpy as np
import pytest
from flint import arb, ctx

from alignver.checks.doctor import function_errors
from alignver.kernel import machine, seal
from alignver.kernel.failure import Unsupported
from alignver.proof import cholesky
from tests import faults
from tests.features.test_device import fixed_point, single, strassen

EVERYTHING = """
import json
from alignver.kernel import machine
from alignver.proof import cholesky
print(json.dumps([machine.arithmetic_fault(), machine.outcome()["products"], cholesky.substitution_fault()]))
"""


@pytest.fixture
def forgetful():
    """Nothing that a test finds here is remembered."""
    yield
    machine._tested.cache_clear()
    machine._distrusted.clear()


def test_values_by_decimal_arithmetic_are_those_of_balls():
    """The error of each function at its points is the same by both, so the values agree to 30 digits or so."""
    flint = {"arctan": "atan"}

    def exact(name, x):
        of = name.removeprefix("math.")
        if of == "logaddexp":
            return arb(x).exp().log1p()
        return 1 / arb(x) if of == "reciprocal" else getattr(arb(x), flint.get(of, of))()

    with ctx.workprec(300):
        balls = machine.function_errors(machine.POINTS, exact)
    decimals = machine.function_errors(machine.POINTS)
    assert balls.keys() == decimals.keys() == machine.ASSUMED.keys()
    for name, error in balls.items():
        assert decimals[name] == pytest.approx(error, rel=1e-9), name


def test_the_accuracy_that_is_assumed():
    """Within 2u, at the ends of vectors too, whose last entries other code computes."""
    errors = function_errors(machine.function_errors, 1000)
    assert errors.keys() == machine.ASSUMED.keys()
    assert machine.inaccurate(errors) == "", errors
    assert all(error > 0.3 for name, error in errors.items() if name != "math.erf"), errors  # the probe sees errors


@pytest.mark.parametrize("name", [name for name in machine.ASSUMED if not name.startswith("math.") and name != "erf"])
@pytest.mark.parametrize("where", ["everywhere", "in the last entry of a long vector"])
def test_an_inaccurate_function_is_found(name, where, monkeypatch, forgetful):
    """By a little more than is assumed of it; by half of that, nothing is found."""
    good, most = getattr(np, name), machine.ASSUMED[name]

    def wrong(units):
        def computed(*x):
            y = np.array(good(*x))
            last = y if where == "everywhere" else y[-1:] if y.size > 16 else y[:0]
            last *= 1.0 + units * 2.0**-53
            return y

        return computed

    monkeypatch.setattr(np, name, wrong(most * 8.0))
    machine._tested.cache_clear()
    assert f"{name} by" in machine.outcome()["primitives"]
    if most < 100.0:
        assert machine.arithmetic_fault() == ""  # matrices and gates are proved as before
        with pytest.raises(Unsupported, match=f"less accurate than proofs assume: {name} by"):
            machine.require_functions()
    else:
        assert name in machine.arithmetic_fault()
    if most >= 2.0**13:
        monkeypatch.setattr(np, name, wrong(most / 2.0))
        machine._tested.cache_clear()
        assert set(machine.outcome().values()) == {""}


@pytest.mark.parametrize("name", ["exp", "log1p"])
def test_what_gates_and_losses_assume(name, monkeypatch, forgetful):
    good = getattr(np, name)
    monkeypatch.setattr(np, name, lambda x: good(x) * (1.0 + 2.0**-39))
    machine._tested.cache_clear()
    assert f"{name} by" in machine.arithmetic_fault()


@pytest.mark.parametrize("product", [single, fixed_point, strassen])
@pytest.mark.parametrize("order", [8, 64, 256])
def test_other_products_are_found(product, order):
    def multiply(A, B):
        whole = A.ndim == 2 and all(size % 2 == 0 for size in (*A.shape, *B.shape))
        return product(A, B) if whole else A @ B

    assert machine.product_fault(order) == ""
    assert f"products of order {order}" in machine.product_fault(order, multiply)


@pytest.mark.parametrize("order", range(1, 40))
def test_conventional_products_pass(order):
    def backwards(A, B):
        """Return the product summed one by one from the last term."""
        if A.ndim == 1:
            return float(backwards(A[None], B[:, None])[0, 0])
        total = np.zeros((A.shape[0], B.shape[1]))
        for k in range(A.shape[1] - 1, -1, -1):
            total += A[:, k, None] * B[None, k]
        return total

    assert machine.product_fault(order) == machine.product_fault(order, backwards) == ""
    assert cholesky.solve_fault(order + 1) == ""


FAULTS = {
    "single": "do not round to nearest|not the float64 inner products",
    "accumulate": "do not round to nearest|not the float64 inner products",
    "flush": "flush subnormal numbers",
    "down": "round",
    "strassen": "not the float64 inner products|flush subnormal numbers",  # sums of blocks lose them, too
}
IN_TURN = """
import itertools, json, os
from alignver.kernel import machine
from alignver.proof import cholesky
found = {}
for fault, routine in itertools.product(%r, ("gemm", "syrk", "gemv", "dot", "scipy")):
    os.environ |= {"FAULT": fault, "FAULT_IN": routine}
    machine._tested.cache_clear(), cholesky._substitution_tested.cache_clear()
    found[fault + " " + routine] = machine.arithmetic_fault(), cholesky.substitution_fault()
os.environ["FAULT"] = "plain"
machine._tested.cache_clear(), cholesky._substitution_tested.cache_clear()
found["plain"] = machine.arithmetic_fault(), cholesky.substitution_fault()
print(json.dumps(found))
"""


def test_a_blas_with_a_fault_in_one_routine():
    found = json.loads(faults.run(IN_TURN % (list(FAULTS),)))
    assert found.pop("plain") == ["", ""]
    for name, (whole, solves) in found.items():
        fault, routine = name.split()
        if fault == "strassen" and routine in ("gemv", "dot"):  # not a scheme for vectors
            assert whole == "", name
            continue
        where = solves if routine == "scipy" else whole
        assert any(words in where for words in FAULTS[fault].split("|")), (name, whole, solves)
        assert (whole == "") == (routine == "scipy"), name
    assert len(found) == 25


def test_a_blas_that_sums_in_another_order_passes():
    """Row by row, without fused operations, with solves in blocks and reciprocals of pivots."""
    assert json.loads(faults.run(EVERYTHING, FAULT="plain")) == ["", "", ""]


@pytest.mark.parametrize(
    ("fault", "words"), [("inverted", "Cholesky factorization"), ("inverted solves", "triangular solves")]
)
def test_solves_by_inverted_blocks(fault, words):
    whole, products, solves = json.loads(faults.run(EVERYTHING, FAULT_SOLVE=fault))
    assert whole == products == ""
    assert words in solves
    assert "by substitution" in solves


@pytest.mark.parametrize("mode", ["flush", "down"])
def test_one_thread_of_a_blas(mode):
    """NumPy's and SciPy's OpenBLAS create their threads as they are loaded, one after the other."""
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    reasons = [
        json.loads(faults.run(EVERYTHING, threads=True, FAULT=mode, FAULT_THREAD=str(k), **threads)) for k in (1, 2)
    ]
    if not any(map(any, reasons)):
        pytest.skip("this BLAS has one thread")
    words = {"flush": "the threads of the BLAS flush", "down": "the threads of the BLAS do not round to nearest"}
    assert words[mode] in reasons[0][0]
    assert words[mode] in reasons[1][2]


def test_a_thread_that_rounds_otherwise_blames_nothing_for_good(forgetful):
    machine._tested.cache_clear()
    upward, nearest, mode = 0x800, 0, ctypes.CDLL(None).fesetround
    healthy = machine.digest()
    machine._tested.cache_clear()

    def elsewhere():
        mode(upward)
        try:
            return machine.outcome(), machine.digest(), cholesky.substitution_fault(), machine.arithmetic_fault()
        finally:
            mode(nearest)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        outcome, digest, solves, whole = pool.submit(elsewhere).result()
    assert set(outcome.values()) == {solves} == {whole} == {"this thread does not round to nearest"}
    assert digest != healthy
    assert (machine.arithmetic_fault(), machine.digest()) == ("", healthy)


def test_distrust_excludes_what_rests_on_a_part(forgetful):
    healthy = machine.digest()
    machine.distrust("products", "products of order 4096 are by Strassen's scheme")
    assert machine.arithmetic_fault() == machine.outcome()["products"] != ""
    assert machine.digest() != healthy
    A = np.eye(2)
    certificate = seal("rank", "shape", {"A": A}, {}, {"rank": 2})
    assert certificate.versions["machine"] == machine.digest()
    machine.distrust("products", "")
    assert (machine.arithmetic_fault(), machine.digest()) == ("", healthy)


def test_it_is_quick():
    """The machine may be busy: the time of the processor is what counts."""
    machine.arithmetic_fault()
    machine._tested.cache_clear()
    best = np.inf
    for _ in range(10):
        machine._tested.cache_clear()
        began = time.thread_time()
        machine.arithmetic_fault()
        best = min(best, time.thread_time() - began)
    assert best < 0.05
