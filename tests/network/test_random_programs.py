"""Random programs of layers: verdicts, kappa and distances about the network against exact arithmetic of its own."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("flint")
FOLDER = Path(__file__).parents[2] / "benchmarks"
SEEDS = {"dense": (1, 2, 20008), "rows": (3, 5, 1269), "sequences": (4, 6, 20002), "pairs": (7, 20003, 20011)}
CASES = [(family, seed) for family, seeds in SEEDS.items() for seed in seeds]


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("network_fuzz")


def derivatives(model, X):
    """Autograd's Jacobian in float64, the outputs of the first sample first."""
    model = model.double()
    rows = [value for output in model(X.double()) for value in output]
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True) for v in rows]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in gradients]).numpy()


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_proofs_agree_with_exact_arithmetic(fuzz, family, seed):
    case = fuzz.case(seed, family)
    outcome, _, errors = fuzz.judged(case)
    assert not errors, case.words
    assert outcome in ("HOLDS NETWORK", "FAILS NETWORK", "FAILS DATA"), case.words
    known = fuzz.truth(case)
    exact = np.array([[float(entry.mid()) for entry in row] for row in known.J])
    plain = derivatives(case.model, case.X)
    assert np.abs(exact - plain).max() <= 1e-10 * np.abs(plain).max()


def test_a_wrong_verdict_kappa_or_distance_is_noticed(fuzz):
    seen = set()
    for family, seed in CASES:
        case = fuzz.case(seed, family)
        result = fuzz.av.check_alignment(case.model, case.X, case.Y, loss="squared")
        known, holds = fuzz.truth(case), result.verdict.value == "HOLDS"
        if result.subject.value != "NETWORK" or holds in seen:
            continue
        seen.add(holds)
        known.inside = not known.inside
        assert any("of rank" in error for error in fuzz.faults(case, result, known))
        known.inside, known.y = not known.inside, [value * (1000 if holds else 1e-3) for value in known.y]
        assert any("kappa is" in error or "distance is" in error for error in fuzz.faults(case, result, known))
    assert seen == {True, False}
