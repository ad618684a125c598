"""Limits of seconds and bytes: a check stops at a step of a long loop, and says where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import time

import numpy as np
import pytest

import alignver as av
from alignver.arrays import available_memory
from alignver.limits import OutOfTime, memory_limit, remaining, time_limit
from alignver.progress import stage, track


def test_a_loop_stops_at_its_limit_and_tells_how_far_it_is():
    with pytest.raises(OutOfTime) as caught, time_limit(0.2):
        [time.sleep(0.05) for _ in track(range(100), "steps")]
    assert caught.value.place.startswith("'steps', ")
    assert 3 <= caught.value.done <= 5
    assert caught.value.left == pytest.approx(0.05 * (100 - caught.value.done), rel=0.3)
    assert remaining() == math.inf


def test_an_outer_limit_stays_in_force():
    with time_limit(0.01), time_limit(100.0):
        time.sleep(0.02)
        with pytest.raises(OutOfTime), stage("svd"):
            raise AssertionError


def test_no_handler_of_errors_catches_it():
    with pytest.raises(OutOfTime), time_limit(1e-9), contextlib.suppress(Exception):
        list(track([1], "steps"))


@pytest.mark.parametrize("check", ["rank", "membership", "exploration"])
def test_a_check_of_a_matrix_is_undecided_at_its_limit(check, monkeypatch):
    A = np.random.default_rng(0).standard_normal((30, 40))
    calls = {
        "rank": lambda: av.check_rank(A, certify=False, max_seconds=1e-9),
        "membership": lambda: av.check_membership(A, A[:, 0], certify=False, max_seconds=1e-9),
        "exploration": lambda: av.check_safe_exploration(A, add_constant=True, max_seconds=1e-9),
    }
    result = calls[check]()
    assert (result.verdict, result.rigor, result.code) == ("UNDECIDED", "NUMERICAL", f"{check}-out-of-time")
    assert "the limit, in" in result.reason
    assert "max_seconds" in result.next_steps[0]


@pytest.mark.parametrize("check", ["data", "structure", "analytic"])
def test_a_check_of_a_model_or_data_is_undecided_at_its_limit(check):
    torch = pytest.importorskip("torch")
    net, X = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)), torch.randn(40, 3)
    calls = {
        "data": lambda **limits: av.check_data(X, torch.arange(40), **limits),
        "structure": lambda **limits: av.check_common_structure(net, X, **limits),
        "analytic": lambda **limits: av.check_analytic(net, X, **limits),
    }
    result = calls[check](max_seconds=1e-9)
    assert (result.name, result.verdict, result.code) == (check, "UNDECIDED", f"{check}-out-of-time")
    assert calls[check](max_seconds=60, max_memory=10**9).verdict == "HOLDS"


def test_a_certificate_is_undecided_at_its_limit():
    J = np.random.default_rng(0).standard_normal((30, 40))
    certificate = av.check_membership(J, J[:, 0]).certificate
    result = av.recheck(certificate, J=J, y=J[:, 0], max_seconds=1e-9)
    assert (result.verdict, result.code) == ("UNDECIDED", "recheck-out-of-time")
    assert av.recheck(certificate, J=J, y=J[:, 0], max_seconds=60.0, max_memory=10**9).verdict == "HOLDS"


def test_a_gram_matrix_is_refused_at_its_limit():
    torch = pytest.importorskip("torch")
    net, X = (
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)),
        torch.randn(40, 3),
    )
    with pytest.raises(av.InvalidInput, match=r"^max_seconds: got 1e-09 s, which ended in .+; needs "):
        av.gram(net, X, max_seconds=1e-9)
    assert torch.equal(av.gram(net, X, max_seconds=60.0), av.gram(net, X))
    with pytest.raises(av.InvalidInput, match="max_seconds"):
        av.gram(net, X, max_seconds=-1.0)


def test_the_memory_to_plan_with():
    free = available_memory()
    with memory_limit(1000), memory_limit(10**6):
        assert available_memory() == 1000
    assert available_memory() > 1000 or free <= 1000


@pytest.mark.parametrize(
    "options", [{"max_seconds": 0}, {"max_seconds": math.nan}, {"max_seconds": "1"}, {"max_memory": -1}]
)
def test_other_limits_are_refused(options):
    with pytest.raises(av.InvalidInput, match=next(iter(options))):
        av.check_rank(np.eye(2), **options)


def test_a_proof_about_the_network_that_lacks_time_is_a_next_step():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    X, Y = torch.randn(40, 3), torch.arange(40) % 2
    result = av.check_alignment(net, X, Y, loss="cross_entropy", budget_seconds=1e-3)
    assert result.subject == "COMPUTED_MATRIX"
    assert result.next_steps[-1].startswith("max_seconds=3: a proof about the network would take about 0 s")


@pytest.mark.parametrize("memory", [1, 10**4, 10**6, 10**8])
def test_an_alignment_is_decided_in_little_memory(memory):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Tanh(), torch.nn.Linear(300, 1))
    result = av.check_alignment(net, torch.randn(3, 300), torch.randn(3), loss="squared", max_memory=memory)
    assert (result.verdict, result.rigor) == ("HOLDS", "PROOF" if memory >= 10**4 else "NUMERICAL")
    if memory == 1:
        assert any("enclosures of J J^T would take more than 0.000216 MB" in line for line in result.evidence)


def test_a_check_without_enough_memory_is_undecided_and_its_remedy_works():
    torch = pytest.importorskip("torch")
    from alignver.limits import limited

    net, X = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)), torch.randn(5, 3)

    @limited("size", "the size of the Gram matrix")
    def check(*, max_memory: int | None = None) -> av.CheckResult:
        return dataclasses.replace(av.check_rank([[1.0]]), reason=f"{tuple(av.gram(net, X).shape)}")

    result = check(max_memory=100)
    assert (result.verdict, result.code) == ("UNDECIDED", "size-out-of-memory")
    assert result.reason == "out of memory: 100 bytes of max_memory are too few"
    need = re.search(r"at least (\d+): 800 for the result, as much for its use", result.next_steps[0])
    assert need is not None
    assert check(max_memory=int(need[1])).verdict == "HOLDS"
    assert check(max_memory=int(need[1]) - 2).verdict == "UNDECIDED"


def test_an_alignment_whose_proof_takes_too_long_is_decided_by_numbers(monkeypatch):
    torch = pytest.importorskip("torch")
    from alignver.checks import alignment

    def endless(*_args, **_options):
        for _ in track(range(10**6), "balls"):
            time.sleep(0.01)

    torch.manual_seed(0)
    net, X = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)), torch.randn(7, 3)
    assert av.check_alignment(net, X, torch.randn(7), loss="squared").subject == "NETWORK"  # and torch is loaded
    monkeypatch.setattr(alignment, "prove_about_network", endless)
    result = av.check_alignment(net, X, torch.randn(7), loss="squared", max_seconds=8.0)
    assert (result.verdict, result.subject) == ("HOLDS", "COMPUTED_MATRIX")
    assert any("nothing is proved about the network: stopped after" in line for line in result.evidence)
    assert result.cost["seconds"] < 8.0
