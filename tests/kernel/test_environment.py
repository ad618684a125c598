"""Threads that flush subnormal numbers, or round otherwise: no proof, and no certificate is believed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from alignver.kernel import machine

PRELUDE = """
import ctypes, sys
import numpy as np
import alignver as av
from alignver import kernel
from alignver.kernel import seal
from alignver.kernel.certificate import pack
from alignver.results import Rigor, Verdict

t = float.fromhex("0x1p-1074")
rng = np.random.default_rng(0)
A, y = rng.standard_normal((3, 5)), np.ones(3)
Z = np.column_stack([rng.standard_normal((12, 3)), np.ones(12)])
true = av.check_rank(A, rank=3).certificate
own = [np.array([1]), np.array([0]), np.zeros(2, np.int64)]
subnormal = np.array([[1.0, 0.0], [1.0, t]])  # rank 2, which looks like two equal rows
forged = seal("rank", "null space", {"A": subnormal}, {"own": own[0], "shared": own[1], "exponents": own[2],
              **pack("w", [1, -1])}, {"side": "left", "rank": 1})
twin = Z.copy(); twin[1, 0] = 0.0; twin[0] = twin[1]; twin[1, 0] = t
equal = seal("no-exploration", "equal rows", {"Z": twin}, {"rows": np.array([0, 1])},
             {"rank": 12, "width": 4, "add_constant": False})
model = av.Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
"""
MODES = {
    "flush": "import torch\nif not torch.set_flush_denormal(True): sys.exit(77)",
    "down": "ctypes.CDLL(None).fesetround(0x400)",
    "up": "ctypes.CDLL(None).fesetround(0x800)",
    "to zero": "ctypes.CDLL(None).fesetround(0xC00)",
}
CHECKS = """
results = [
    av.check_membership(subnormal, np.array([1.0, 2.0])), av.check_rank(subnormal, rank=2),
    av.check_rank(subnormal, rank=1), av.check_rank(subnormal, rank=0),
    av.check_membership(subnormal, np.array([t, 0.0])), av.check_membership(A, y),
    av.check_membership(np.array([[t, 0.0], [0.0, 1.0]]), y[:2]), av.check_rank(A, rank=3, ball=av.Ball(norm=1e-9)),
    av.check_safe_exploration(Z, width=4), av.check_safe_exploration(twin, width=4),
    av.check_safe_exploration(Z, width=2), av.check_safe_exploration(Z, q=rng.standard_normal((4, 8)), method="gram"),
    av.check_optimality(model, np.ones((1, 3, 2)), [4.5, 1.5], loss="squared", tolerance=1e-9),
]
checked = [av.recheck(true, A=A), av.recheck(forged, A=subnormal), av.recheck(equal, Z=twin),
           kernel.verify(true, {"A": A}), kernel.verify(forged, {"A": subnormal})]
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this processor does not flush subnormal numbers")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_proved(mode):
    pytest.importorskip("torch")
    run(
        PRELUDE
        + MODES[mode]
        + CHECKS
        + "for r in results: assert r.rigor is not Rigor.PROOF or r.verdict is Verdict.UNDECIDED, r\n"
        + "for r in checked: assert r.verdict is Verdict.UNDECIDED and 'nothing can be proved here' in r.reason, r\n"
    )


def test_in_the_ordinary_mode_all_is_decided():
    run(
        PRELUDE
        + CHECKS
        + "assert [r.verdict.value for r in results] == ['HOLDS', 'HOLDS', 'FAILS', 'FAILS', 'HOLDS', 'HOLDS', "
        + "'HOLDS', 'HOLDS', 'HOLDS', 'UNDECIDED', 'FAILS', 'HOLDS', 'HOLDS'], results\n"
        + "assert all(r.rigor is Rigor.PROOF for r in results[:9] + results[10:]), results\n"
        + "assert [r.verdict.value for r in checked] == ['HOLDS', 'FAILS', 'FAILS', 'HOLDS', 'FAILS'], checked\n"
    )


def test_the_error_state_of_the_caller_changes_nothing():
    run(
        PRELUDE
        + "np.seterr(all='raise')\n"
        + CHECKS
        + "assert all(r.rigor is Rigor.PROOF for r in results[:9] + results[10:]), results\n"
        + "assert [r.verdict.value for r in checked] == ['HOLDS', 'FAILS', 'FAILS', 'HOLDS', 'FAILS'], checked\n"
        + "assert np.geterr() == dict.fromkeys(('divide', 'over', 'under', 'invalid'), 'raise')\n"
    )


def test_the_threads_of_the_blas_are_looked_at():
    """Products of another kind, in place of NumPy's: what a thread that flushes or rounds otherwise would give."""

    def rounded(A, B):
        product = A @ B
        return np.nextafter(product, np.inf) if abs(product).min() > 0.5 and abs(product).max() < 1.5 else product

    def flushed(A, B):
        product = A @ B
        return np.where(abs(product) < 2.0**-1022, 0.0, product)

    assert machine.distributed_fault() == machine.arithmetic_fault() == ""
    assert "do not round to nearest" in machine.distributed_fault(multiply=rounded)
    assert "flush subnormal numbers" in machine.distributed_fault(multiply=flushed)
