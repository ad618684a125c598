"""One BLAS thread inside the block, the previous number outside, also for nested blocks and after errors."""

from __future__ import annotations

import concurrent.futures

import flint
import numpy as np
import pytest
import threadpoolctl

from alignver.features import threads
from alignver.features.threads import single_threaded_blas, threaded_flint
from alignver.kernel.network import ball_matrices, balls


def _threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}


def test_a_nested_block_does_not_change_the_limit() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = _threads()
        with single_threaded_blas():
            with single_threaded_blas():
                assert _threads() == {1}
            assert _threads() == {1}
        assert _threads() == before


def test_after_an_error_the_next_block_limits_again() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = _threads()
        with pytest.raises(ZeroDivisionError), single_threaded_blas():
            _ = 1 / 0
        assert _threads() == before
        with single_threaded_blas():
            assert _threads() == {1}
        assert _threads() == before


def _factored(rows: int) -> list[tuple[int, ...]]:
    A = np.random.default_rng(0).normal(size=(110, 120))
    with balls.precision(300), threaded_flint(rows):
        M = balls.square(balls.exactly(A))
        D = ball_matrices.definite(M)
        numbers = [*M.reshape(-1), *D.L.reshape(-1), D.floor, D.form(A[:, 0])]
        return [(*map(int, x.mid().man_exp()), *map(int, x.rad().man_exp())) for x in numbers]


def test_balls_are_the_same_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _factored(1)
    for count in (2, 5):
        monkeypatch.setattr(threads, "workers", lambda count=count: count)
        assert _factored(1000) == alone
        assert flint.ctx.threads == 1


def test_threads_of_flint_end_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "workers", lambda: 2)
    with threaded_flint(1000):
        assert flint.ctx.threads == 2
        with threaded_flint(1000):
            assert flint.ctx.threads == 2
        assert flint.ctx.threads == 2
    with pytest.raises(ZeroDivisionError), threaded_flint(1000):
        _ = 1 / 0
    assert flint.ctx.threads == 1
    with threaded_flint(10):
        assert flint.ctx.threads == 1
    alone = _factored(1)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert all(result == alone for result in pool.map(_factored, [1000] * 3))
    assert flint.ctx.threads == 1
