"""Every public call at a limit of the address space: it works, or says what is missing, with a number."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

CODE = """
import json, resource, sys, tempfile, warnings
from pathlib import Path
import numpy as np
import torch
import alignver as av

warnings.simplefilter("ignore")
torch.set_num_threads(1)
rng = np.random.default_rng(0)
folder = Path(tempfile.mkdtemp())


def calls(size):
    # Every public call, on inputs that grow with the size.
    torch.manual_seed(0)
    A, y = rng.standard_normal((7 * size, 20 * size)), np.ones(7 * size)
    net = torch.nn.Sequential(torch.nn.Linear(50, 3 * size), torch.nn.Tanh(), torch.nn.Linear(3 * size, 1))
    X, Y = torch.randn(4 * size, 50), torch.randn(4 * size)
    Z = np.column_stack([rng.standard_normal((30 * size, 79)), np.ones(30 * size)])
    many = rng.standard_normal((2000 * size, 10))
    certificate = av.check_rank(A, rank=len(A)).certificate
    certificate.save(folder / "proof")
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    direction = torch.ones(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    q = rng.standard_normal((80, 30))
    return {
        "check_membership": lambda: av.check_membership(A, y),
        "check_rank": lambda: av.check_rank(A, rank=len(A)),
        "check_rank exactly": lambda: av.check_rank(A[: 2 * size, : 3 * size], rank=2 * size, method="exact"),
        "check_rank numerically": lambda: av.check_rank(A, rank=len(A), certify=False),
        "check_data": lambda: av.check_data(many, np.zeros(len(many))),
        "check_safe_exploration": lambda: av.check_safe_exploration(Z),
        "check_safe_exploration with gates": lambda: av.check_safe_exploration(Z[: 10 * size], q=q, method="gram"),
        "check_safe_exploration of a network": lambda: av.check_safe_exploration(net, X=X, layer="1"),
        "check_alignment": lambda: av.check_alignment(net, X, Y, loss="squared"),
        "check_common_structure": lambda: av.check_common_structure(net, X),
        "check_analytic": lambda: av.check_analytic(net, X),
        "check_optimality": lambda: av.check_optimality(net, X=X, Y=Y, loss="squared", tolerance=1e-3),
        "check_model": lambda: av.check_model(net, X, Y, loss="squared", max_seconds=5.0),
        "recheck": lambda: av.recheck(certificate, A=A),
        "load_certificate": lambda: av.load_certificate(folder / "proof"),
        "gram": lambda: av.gram(net, X),
        "jacobian": lambda: av.jacobian(net, X),
        "JacobianOperator": lambda: av.JacobianOperator(net, X).matvec(direction),
        "representation_change": lambda: av.representation_change(net, X, weights),
        "RepresentationSnapshot": lambda: av.RepresentationSnapshot(net, X).change(),
        "trace_model": lambda: av.trace_model(net, X),
        "adapted": lambda: av.adapted(net, X),
        "EEWrapper": lambda: av.EEWrapper(net, loss="squared", tau=0.5).fit((X, Y), 2),
        "AlignmentTracker": lambda: av.AlignmentTracker(net, X, Y, loss="squared").check(),
        "doctor": lambda: av.doctor(),
    }


for call in calls(2).values():  # imports what it needs: half of an import is not undone by Python
    call()
limit = resource.getrlimit(resource.RLIMIT_AS)[1]
for name, call in calls(100).items():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]) * 2**20, limit))
    try:
        result = call()
        told = [getattr(result, "code", "") or "", str(getattr(result, "reason", ""))]
    except av.InvalidInput as error:
        told = ["InvalidInput " + error.argument, str(error)]
    except BaseException as error:
        told = [type(error).__name__, str(error)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps([name, *told]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [12, 48])
def test_every_call_at_a_limit(megabytes):
    command = [sys.executable, "-c", CODE, str(megabytes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (lines[-1:], done.stderr)
    assert len(lines) == 25
    short = 0
    for name, code, reason in lines:
        assert not code.endswith(("Error", "Exception")), (name, code, reason)
        if code.endswith("out-of-memory") or code.startswith("InvalidInput"):
            short += 1
            assert re.search(r"\d (MB|GB|MiB|GiB|KiB|bytes)", reason), (name, reason)
    assert short >= (2 if megabytes <= 12 else 0), lines
