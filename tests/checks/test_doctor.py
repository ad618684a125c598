"""``doctor`` names each fault of the machine, and a check whose proof rests on what is wrong proves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import alignver as av
from alignver.checks import doctor as module
from alignver.results import Verdict
from tests import faults

PRELUDE = """
import json
import numpy as np
import alignver as av
from alignver.checks import doctor as module
module._PRODUCTS, module._SOLVES = (8, 96), (72,)
rng = np.random.default_rng(0)
A = rng.standard_normal((12, 20))
Z = np.column_stack([rng.standard_normal((60, 5)), np.ones(60)])
checks = {
    "membership": lambda: av.check_membership(A, np.ones(12)),
    "rank": lambda: av.check_rank(A, rank=12),
    "ball": lambda: av.check_rank(A, rank=12, ball=av.Ball(norm=1e-9)),
    "null space": lambda: av.check_rank(np.vstack([A, A[0] + A[1]]), rank=12),
    "data": lambda: av.check_data([[0.0], [0.0]], [0, 1]),
    "staircase": lambda: av.check_safe_exploration(Z),
    "gram": lambda: av.check_safe_exploration(Z, q=rng.standard_normal((6, 20)), method="gram"),
}
"""
REPORT = """
report = av.doctor()
results = {name: check() for name, check in checks.items()}
shown = {n: [r.verdict, r.rigor, [l for l in r.lines()[:2]]] for n, r in results.items()}
print(json.dumps({"parts": {p.name: [p.verdict, p.reason] for p in report.parts}, "results": shown,
                  "text": str(report), "digest": report.digest}))
"""
ALONE = REPORT.replace("report = av.doctor()", "").replace("report.parts", "()").replace("str(report)", "''").replace(
    "report.digest", "''")  # fmt: skip
"""Without ``doctor``: the shorter test before the first proof suffices."""


def proved(report):
    return {
        name for name, (verdict, rigor, _) in report["results"].items() if rigor == "PROOF" and verdict != "UNDECIDED"
    }


@pytest.fixture(scope="module")
def healthy():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PRELUDE + REPORT], capture_output=True, check=True)
    return json.loads(done.stdout)


def test_a_healthy_machine(healthy):
    assert {verdict for verdict, _ in healthy["parts"].values()} == {"HOLDS"}, healthy["text"]
    assert proved(healthy) == set(healthy["results"])


FAULTS = {
    "flush": "flush subnormal numbers to zero",
    "single": "not the float64 inner products|do not round to nearest",
    "accumulate": "not the float64 inner products|do not round to nearest",
    "strassen": "not the float64 inner products|flush subnormal",
    "down": "round",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("code", [REPORT, ALONE], ids=["doctor", "first proof"])
def test_products(fault, code):
    report = json.loads(faults.run(PRELUDE + code, FAULT=fault))
    assert proved(report) == set(), report
    for name, (_, _, lines) in report["results"].items():
        # A claim of a proof alone is UNDECIDED with that reason; the staircase names it, too.
        assert any(word in " ".join(lines) for word in FAULTS[fault].split("|")), (name, lines)
    if code is REPORT:
        verdict, reason = report["parts"]["products"]
        assert verdict == "FAILS"
        assert any(word in reason for word in FAULTS[fault].split("|"))
        assert report["text"].splitlines()[0].endswith("FAILS")


@pytest.mark.parametrize("fault", ["inverted", "inverted solves"])
@pytest.mark.parametrize("code", [REPORT, ALONE], ids=["doctor", "first proof"])
def test_factorizations(fault, code, healthy):
    report = json.loads(faults.run(PRELUDE + code, FAULT_SOLVE=fault))
    assert proved(report) == proved(healthy) - {"gram"}  # the others are proved by other methods
    assert "not computed by substitution" in " ".join(report["results"]["gram"][2])
    if code is REPORT:
        assert report["parts"]["factorizations"][0] == "FAILS"
        assert report["parts"]["products"][0] == "HOLDS"


@pytest.mark.parametrize(("thread", "part"), [(1, "rounding"), (2, "factorizations")])
def test_one_thread_of_a_blas(thread, part):
    settings = {"FAULT": "down", "FAULT_THREAD": str(thread), "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    report = json.loads(faults.run(PRELUDE + REPORT, threads=True, **settings))
    if {verdict for verdict, _ in report["parts"].values()} == {"HOLDS"}:
        pytest.skip("this BLAS has one thread")
    assert report["parts"][part][0] == "FAILS"
    assert "do not round to nearest" in report["parts"][part][1]
    assert "gram" not in proved(report)
    assert thread == 2 or proved(report) == set()


WORKER = """
import concurrent.futures, ctypes, itertools
from alignver.features import threads
threads.workers = lambda: 3
first = itertools.count()
class Pool(concurrent.futures.ThreadPoolExecutor):
    def __init__(self, count):
        mode = lambda: ctypes.CDLL(None).fesetround(0x800) if next(first) % 3 == 1 else None
        super().__init__(count, initializer=mode)
threads.concurrent.futures.ThreadPoolExecutor = Pool
"""


def test_one_worker_rounds_otherwise():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + WORKER + REPORT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["parts"]["rounding"] == ["FAILS", "1 of 3 worker threads: this thread does not round to nearest"]
    assert proved(report) == set()


INACCURATE = """
import torch
good = np.exp
np.exp = lambda x, *more, **options: good(x, *more, **options) * (1.0 + 8.0 * 2.0**-53)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Sigmoid(), torch.nn.Linear(6, 1)).double()
X = torch.randn(20, 3, dtype=torch.float64)
checks |= {"features": lambda: av.check_safe_exploration(net, X=X, layer="1")}
"""


@pytest.mark.parametrize("code", [REPORT, ALONE], ids=["doctor", "first proof"])
def test_an_exponential_that_is_off_by_8_units(code):
    """Norm-wise enclosures assume 2 units: nothing is proved about the network, only of the features as computed."""
    report = json.loads(
        subprocess.run([sys.executable, "-c", PRELUDE + INACCURATE + code], capture_output=True, check=True).stdout
    )
    words = " ".join(report["results"].pop("features")[2])
    assert "nothing is proved about the network: functions are less accurate than proofs assume: exp by" in words
    assert proved(report) == set(report["results"])  # those that do not rest on it
    if code is REPORT:
        verdict, reason = report["parts"]["functions"]
        assert verdict == "FAILS"
        assert "exp by" in reason  # 8 u or more: its own error is added


def test_the_network_is_proved_with_the_right_exponential():
    code = PRELUDE + INACCURATE + "np.exp = good\nprint(checks['features']())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HOLDS  proof (network)" in done.stdout


def test_torch_that_flushes(monkeypatch):
    torch = pytest.importorskip("torch")
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda size, value, dtype: full(size, 0.0, dtype=dtype))
    verdict, reason, _ = module._torch()
    assert (verdict, reason) == (Verdict.FAILS, "torch's threads flush subnormal numbers to zero")


@pytest.mark.parametrize(
    ("name", "words"), [("exp", "torch's functions are less accurate"), ("matmul", "torch: products")]
)
def test_torch_that_is_inaccurate(name, words, monkeypatch):
    torch = pytest.importorskip("torch")
    if name == "exp":
        good = torch.exp
        monkeypatch.setattr(torch, "exp", lambda x: good(x) * (1.0 + 8.0 * 2.0**-53))
    else:
        product = torch.Tensor.__matmul__
        monkeypatch.setattr(torch.Tensor, "__matmul__", lambda A, B: product(A.float(), B.float()).double())
    verdict, reason, _ = module._torch()
    assert verdict is Verdict.FAILS
    assert words in reason


def test_torch_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object')")
    code = "from alignver.checks import doctor; print(doctor._torch()[:2], doctor._devices()[0])"
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "FAILS" in done.stdout
    assert "cannot be imported: libtorch_cpu.so" in done.stdout


def test_without_flint_accuracy_is_undecided(monkeypatch):
    there = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "flint" else there(name))
    verdict, reason, _ = module._functions()
    assert verdict is Verdict.UNDECIDED
    assert "python-flint is not installed" in reason
    good = np.tanh
    monkeypatch.setattr(np, "tanh", lambda x: good(x) * (1.0 + 2.0**-49))
    assert module._functions()[0] is Verdict.FAILS


SCHEMA = {
    "type": "object",
    "required": ["format", "verdict", "digest", "parts", "versions"],
    "properties": {
        "format": {"const": "alignver doctor 1"},
        "verdict": {"enum": ["HOLDS", "FAILS", "UNDECIDED"]},
        "digest": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        "parts": {
            "type": "array",
            "minItems": 7,
            "items": {"required": ["name", "verdict", "reason", "rests", "measured", "seconds"]},
        },
    },
}


def test_the_report(monkeypatch):
    monkeypatch.setattr(module, "_PRODUCTS", (8, 64))
    monkeypatch.setattr(module, "_SOLVES", (8,))
    import scipy.io  # noqa: F401  # registers a reader with threadpoolctl, whose version is a function

    report = av.doctor()
    pytest.importorskip("jsonschema").validate(json.loads(report.to_json()), SCHEMA)
    assert report.verdict is Verdict.HOLDS
    assert report["products"].measured["libraries"].keys() == {"numpy", "scipy"}
    assert report.digest == av.check_rank(np.eye(2), rank=2).certificate.versions["machine"]
    with pytest.raises(KeyError):
        report["nothing"]
    failing = module.Part("products", Verdict.FAILS, "by Strassen's scheme", "anything", {}, 0.0)
    text = str(module.MachineReport((*report.parts, failing), "0", {})).splitlines()
    assert "FAILS" in text[0]
    assert "Strassen" in text[1]  # what does not hold comes first
    assert text[2].strip() == "without it, not proved: anything"
    assert repr(report).startswith("<MachineReport rounding: HOLDS, ")


def test_it_takes_seconds():
    """Less than 5 s of the processor, which may be busy with something else: torch is imported, too."""
    code = "import resource, alignver as av; av.doctor(); u = resource.getrusage(0); print(u.ru_utime + u.ru_stime)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5.0
