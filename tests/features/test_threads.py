"""One BLAS thread inside the block, the previous number outside, also for nested blocks and after errors."""

from __future__ import annotations

import pytest
import threadpoolctl

from alignver.features.threads import single_threaded_blas


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
