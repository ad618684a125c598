"""Answers and certificates have the same bits at one and two threads, in other processes, and with other hash seeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

import alignver as av
from alignver.features.threads import SMALL, dense_flops, single_threaded_blas, threads_for
from tests.determinism import ARRAYS, differences, plainly

ROOT = Path(__file__).parents[1]


def answers(threads: int, seed: int, *options: str) -> dict[str, object]:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.determinism", *options]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("options", [(), ("--torch",)], ids=["arrays", "models"])
def test_the_same_bits_in_every_process(options):
    first, second = answers(1, 1, *options), answers(2, 2, *options)
    assert len(first) >= 15
    assert list(differences(first, second)) == []


def test_the_answers_contain_what_is_compared():
    kinds = {(answer.verdict, answer.rigor) for answer in (case() for case in ARRAYS.values())}
    assert len(kinds) == 3  # HOLDS by PROOF and NUMERICAL, FAILS by PROOF
    result = av.check_rank(np.eye(3))
    seal = result.certificate.seal
    document = plainly(result)
    assert document["seal"] == seal
    assert document["measured"]["rank"] == 3
    changed = plainly(av.check_rank(np.diag([1.0, 1.0, np.nextafter(1.0, 2.0)])))
    assert any("/certificate/inputs/A/sha256" in line for line in differences(document, changed))


def test_the_seal_depends_on_no_time():
    A = np.random.default_rng(0).standard_normal((20, 30))
    assert av.check_rank(A).certificate.seal == av.check_rank(A).certificate.seal


def test_the_files_of_a_certificate_have_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    J = np.outer([1.0, 2.0, 3.0], [4.0, 5.0])
    for name, seconds in (("first", 1.0e9), ("second", 1.5e9)):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: seconds)
        av.check_membership(J, J @ [1.0, 1.0]).certificate.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["certificate.json", "data.npz"]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def blas_threads(*more: str) -> set[int]:
    kinds = ("blas", *more)  # others register with threadpoolctl too: a reader of SciPy's, for example
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] in kinds}


def test_large_work_keeps_its_threads():
    assert dense_flops(1000, 2000) == SMALL
    with threadpoolctl.threadpool_limits(2):
        with threads_for(1.01 * SMALL):
            assert blas_threads() == {2}
        with threads_for(SMALL):
            assert blas_threads("openmp") == {1}
        assert blas_threads() == {2}
        with threads_for(float("nan")):
            assert blas_threads() == {2}


def test_blocks_in_two_threads_leave_the_number_of_threads_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with single_threaded_blas():
            entered.set()
            leave.wait(60)

    with threadpoolctl.threadpool_limits(2):
        thread = threading.Thread(target=other)
        with single_threaded_blas():
            thread.start()
            assert entered.wait(60)
            assert blas_threads() == {1}
        leave.set()
        thread.join()
        assert blas_threads() == {2}
        with single_threaded_blas():
            assert blas_threads() == {1}
        assert blas_threads() == {2}
