"""The modified targets Y_l: every accepted form, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignver.errors import InvalidInput
from alignver.theory.losses import modified_targets

LABELS = [0, 2, 1, 2]
ONE_HOT = [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]]
DTYPES = ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "uint64"])
def test_integer_labels(dtype):
    computed = modified_targets(np.array(LABELS, dtype=dtype), "cross_entropy", 4, 3)
    assert computed.dtype == np.float64
    assert np.array_equal(computed, 2.0 * np.array(ONE_HOT) - 1.0)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_rows(dtype, loss):
    computed = modified_targets(np.array(ONE_HOT, dtype=dtype), loss, 4, 3)
    assert np.array_equal(computed, 2.0 * np.array(ONE_HOT) - 1.0)


def test_lists_are_fine():
    assert np.array_equal(
        modified_targets(LABELS, "cross_entropy", 4, 3), modified_targets(ONE_HOT, "cross_entropy", 4, 3)
    )
    assert modified_targets([1.5, 2.5], "squared", 2, 1).tolist() == [[1.5], [2.5]]


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_output_takes_bits_with_or_without_an_axis(dtype, loss):
    bits = np.array([0, 1, 1], dtype=dtype)
    for Y in (bits, bits[:, None]):
        assert modified_targets(Y, loss, 3, 1).tolist() == [[-1.0], [1.0], [1.0]]


def test_several_ones_in_a_row_are_for_the_binary_loss_only():
    Y = [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert modified_targets(Y, "binary_cross_entropy", 3, 3).tolist() == [[-1, 1, -1], [1, 1, -1], [-1, -1, -1]]
    with pytest.raises(InvalidInput, match=r"Y: got a row with 2 ones at 1.*binary_cross_entropy"):
        modified_targets(Y, "cross_entropy", 3, 3)
    with pytest.raises(InvalidInput, match=r"a row with 0 ones at 1"):
        modified_targets(Y[::2], "cross_entropy", 2, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool"])
def test_squared_targets_are_kept_exactly(dtype):
    Y = np.array([[1, 0], [0, 3]], dtype=dtype)
    computed = modified_targets(Y, "squared", 2, 2)
    assert computed.dtype == np.float64
    assert np.array_equal(computed, Y.astype(np.float64))


def test_the_result_is_a_copy():
    Y = np.ones((3, 2))
    computed = modified_targets(Y, "squared", 3, 2)
    computed[0, 0] = 5.0
    assert Y[0, 0] == 1.0
    Y.setflags(write=False)
    assert np.array_equal(modified_targets(np.asfortranarray(Y)[::-1], "squared", 3, 2), Y)


REFUSED = {
    "an unknown loss": (
        [0, 1],
        "hinge",
        2,
        1,
        r"loss: got loss='hinge'; needs one of 'squared', 'binary_cross_entropy', 'cr",
    ),
    "no loss": ([0, 1], None, 2, 1, r"loss: got loss=None"),
    "a label of -1": ([0, -1], "cross_entropy", 2, 3, r"Y: got Y=-1 at 1; needs labels 0\.\.2: drop"),
    "a label too large": (
        [0, 3],
        "cross_entropy",
        2,
        3,
        r"Y: got Y=3 at 1; needs labels 0\.\.2: the model has 3 outputs",
    ),
    "labels with fractions": ([0.0, 1.5], "cross_entropy", 2, 3, r"float64.*loss='squared'"),
    "labels as bool": ([True, False], "cross_entropy", 2, 3, r"dtype bool"),
    "soft labels": ([[0.5, 0.5]], "cross_entropy", 1, 2, r"Y=0.5 at \(0, 0\); needs 0 or 1: .*soft labels"),
    "smoothed labels": ([[0.05, 0.95]], "binary_cross_entropy", 1, 2, r"Y=0.05 at \(0, 0\)"),
    "one soft output": ([0.0, 0.5], "binary_cross_entropy", 2, 1, r"Y=0.5 at 1;"),
    "signs": ([-1, 1], "binary_cross_entropy", 2, 1, r"Y=-1 at 0; needs 0 or 1: \(Y \+ 1\) / 2"),
    "signs in rows": ([[-1, 1]], "cross_entropy", 1, 2, r"Y=-1 at \(0, 0\).*\(Y \+ 1\) / 2"),
    "counts": ([0, 2], "binary_cross_entropy", 2, 1, r"Y=2 at 1; needs 0 or 1"),
    "labels for the binary loss": ([0, 1], "binary_cross_entropy", 2, 3, r"shape \(2,\).*loss='cross_entropy'"),
    "too few rows": ([[1, 0]], "cross_entropy", 2, 2, r"1 rows for 2 samples"),
    "too few labels": ([1], "cross_entropy", 2, 2, r"1 labels for 2 samples"),
    "too many columns": (np.ones((2, 3)), "squared", 2, 2, r"shape \(2, 3\).*shape \(2, 2\)"),
    "a vector for two outputs": (np.ones(2), "squared", 2, 2, r"shape \(2,\).*shape \(2, 2\)"),
    "a transposed matrix": (np.ones((2, 3)), "squared", 3, 2, r"2 rows for 3 samples"),
    "nan": ([1.0, float("nan")], "squared", 2, 1, r"Y: got nan at 1"),
    "inf": ([[1.0], [float("inf")]], "squared", 2, 1, r"Y: got inf at \(1, 0\)"),
    "nan labels": ([0.0, float("nan")], "cross_entropy", 2, 2, r"nan at 1"),
    "strings": (["cat", "dog"], "squared", 2, 1, r"numbers"),
    "None": ([None, 1], "cross_entropy", 2, 2, r"dtype object"),
    "ragged": ([[1, 0], [1]], "cross_entropy", 2, 2, r"rows of equal length"),
    "a number": (1.0, "squared", 1, 1, r"dimensions"),
    "three axes": (np.ones((2, 1, 1)), "squared", 2, 1, r"3 dimensions"),
    "empty": (np.ones((0,)), "squared", 0, 1, r"not empty"),
    "complex": ([1j, 0], "squared", 2, 1, r"complex128"),
    "integers that float64 cannot hold": ([2**53 + 1, 0], "squared", 2, 1, r"2\*\*53"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    Y, loss, n, m_y, words = REFUSED[name]
    with pytest.raises(InvalidInput, match=words):
        modified_targets(Y, loss, n, m_y)


@given(
    st.integers(2, 6).flatmap(lambda m: st.tuples(st.just(m), st.lists(st.integers(0, m - 1), min_size=1, max_size=9)))
)
def test_labels_and_one_hot_rows_say_the_same(case):
    m_y, labels = case
    computed = modified_targets(labels, "cross_entropy", len(labels), m_y)
    assert np.array_equal(computed, modified_targets(np.eye(m_y)[labels], "cross_entropy", len(labels), m_y))
    assert set(np.unique(computed)) <= {-1.0, 1.0}
    assert np.array_equal(computed.argmax(axis=1), labels)
    assert np.array_equal(computed.sum(axis=1), np.full(len(labels), 2.0 - m_y))
