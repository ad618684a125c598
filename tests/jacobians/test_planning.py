"""The planner: a pure function of sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignver.errors import InvalidInput
from alignver.jacobians.jacobian_form import ENGINES, available_memory, plan

GB = 10**9
sizes = st.integers(1, 10**6)


@pytest.mark.parametrize(
    ("n", "m_y", "d", "memory", "engine"),
    [
        (100, 1, 181_801, 16 * GB, "dense"),
        (100, 10, 11_000_000, 16 * GB, "streamed"),
        (100, 10, 11_000_000, 256 * GB, "dense"),
        (5000, 1, 11_000_000, 2 * GB, "streamed"),
        (30_000, 1, 30_000_000, 64 * GB, "matrix-free"),
        (10_000, 1, 5_000_000, 3 * GB, "gram"),
        (60_000, 10, 11_000_000, 16 * GB, "matrix-free"),
        (100_000, 1, 1000, GB // 2, "matrix-free"),
    ],
)
def test_what_fits(n, m_y, d, memory, engine):
    selected = plan(n, m_y, d, memory=memory)
    assert selected.engine == engine
    assert selected.reason.startswith(engine)
    assert "\n" not in selected.reason


def test_the_bound_of_the_streamed_engine_is_the_documented_one():
    selected = plan(100, 10, 11_000_000, memory=16 * GB, block_bytes=1 << 29)
    assert selected.peak_bytes == 4 * 8 * 1000**2 + (1 << 29)
    assert selected.flops == pytest.approx(10 / 3 * 11e6 * 1e6, rel=1e-2)


def test_a_few_parameters_are_not_streamed():
    selected = plan(1_000_000, 1, 2000, memory=10 * GB)
    assert selected.engine == "matrix-free"
    assert "streamed saves nothing" in selected.reason


@pytest.mark.parametrize("engine", ENGINES)
def test_overruled(engine):
    selected = plan(100, 10, 11_000_000, memory=GB, engine=engine)
    assert selected.engine == engine
    assert "as requested" in selected.reason
    assert ("more than the 1.0 GB available" in selected.reason) == (selected.peak_bytes > GB)


@given(sizes, st.integers(1, 1000), sizes, st.integers(1, 10**12))
def test_the_choice_fits_unless_nothing_does(n, m_y, d, memory):
    selected = plan(n, m_y, d, memory=memory)
    assert selected.engine == "matrix-free" or selected.peak_bytes <= memory
    assert selected.engine != "streamed" or d > n * m_y


@given(sizes, sizes, st.integers(1, 10**11))
def test_more_memory_never_chooses_a_lesser_engine(n, d, memory):
    less, more = plan(n, 1, d, memory=memory), plan(n, 1, d, memory=2 * memory)
    assert ENGINES.index(more.engine) <= ENGINES.index(less.engine)


def test_single_precision_halves_j_and_is_widened():
    single, double = (plan(100, 1, 10**6, memory=GB, dtype=dtype, engine="dense") for dtype in ("float32", "float64"))
    assert single.peak_bytes > double.peak_bytes
    assert single.flops == double.flops


def test_the_memory_of_now():
    assert 0 < available_memory() < 2**60
    assert plan(2, 1, 3).engine == "dense"


@pytest.mark.parametrize(
    ("arguments", "options", "argument"),
    [
        ((0, 1, 1), {}, "n"),
        ((1, -1, 1), {}, "m_y"),
        ((1, 1, 2.0), {}, "d"),
        ((True, 1, 1), {}, "n"),
        ((1, 1, 1), {"engine": "fast"}, "engine"),
        ((1, 1, 1), {"dtype": "int8"}, "dtype"),
        ((1, 1, 1), {"memory": 0}, "memory"),
        ((1, 1, 1), {"block_bytes": 0}, "block_bytes"),
    ],
)
def test_bad_input(arguments, options, argument):
    with pytest.raises(InvalidInput) as refused:
        plan(*arguments, **options)
    assert refused.value.argument == argument
