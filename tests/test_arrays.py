"""Validation: what is accepted is widened exactly, what is refused is refused by name, before any decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from alignver.arrays import EPS, as_matrix, as_vector, blocks, digest, host, is_operator, namespace, same_place
from alignver.errors import InvalidInput
from tests.bad_input import BAD_MATRICES, BAD_VECTORS


@pytest.mark.parametrize("name", BAD_MATRICES)
def test_bad_matrices(name):
    value, words = BAD_MATRICES[name]()
    with pytest.raises(InvalidInput, match=words) as refusal:
        as_matrix(value, "J")
    assert refusal.value.argument == "J"
    assert refusal.value.need


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_bad_vectors(name):
    value, words = BAD_VECTORS[name]()
    with pytest.raises(InvalidInput, match=words):
        as_vector(value, "y")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_widened_exactly_in_place(backend, rng, dtype):
    values = rng.standard_normal((4, 3)).astype(dtype)
    given = backend(values, dtype)
    entries = as_matrix(given, "J")
    np.testing.assert_array_equal(host(entries.array), values.astype(np.float64))
    assert namespace(entries.array) is namespace(given)
    assert (entries.dtype, entries.eps, entries.handed_eps) == (dtype, EPS[dtype], EPS[dtype])


def test_float64_is_not_copied(backend):
    given = backend(np.eye(3))
    entries = as_matrix(given, "J")
    given[0, 0] = 5.0
    assert float(entries.array[0, 0]) == 5.0


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]], dtype=np.int8),
        np.array([[1, 2], [3, 4]], dtype=np.uint64),
        np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]),
        np.array([[1.0, 0, 2.0], [3.0, 0, 4.0]])[:, ::2],
        np.array([[1.0, 2.0], [3.0, 4.0]], dtype=">f8"),
        np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float16),
        ((1, 2.0), (3, 4)),
    ],
    ids=["list", "int8", "uint64", "fortran", "strided", "big-endian", "float16", "tuples"],
)
def test_unusual_but_right(value):
    np.testing.assert_array_equal(as_matrix(value, "J").array, [[1.0, 2.0], [3.0, 4.0]])


def test_read_only_and_matrix_subclass():
    values = np.eye(3)
    values.setflags(write=False)
    assert as_matrix(values, "J").array is values
    with pytest.warns(PendingDeprecationWarning):
        subclass = np.matrix([[1.0, 2.0]])
    assert type(as_matrix(subclass, "J").array) is np.ndarray
    np.testing.assert_array_equal(as_matrix(np.array([[True, False]]), "J").array, [[1.0, 0.0]])


def test_low_precision_torch():
    torch = pytest.importorskip("torch")
    for dtype in (torch.bfloat16, torch.float16):
        entries = as_matrix(torch.eye(2, dtype=dtype, requires_grad=True), "J")
        assert entries.eps == torch.finfo(dtype).eps
        assert entries.array.dtype == torch.float64
        assert not entries.array.requires_grad


def test_epsilons_are_numpys():
    for dtype in ("float16", "float32", "float64"):
        assert EPS[dtype] == np.finfo(dtype).eps


def test_computed_in_never_gains_digits():
    assert as_matrix(np.eye(2), "J", computed_in="float32").eps == EPS["float32"]
    assert as_matrix(np.eye(2, dtype=np.float32), "J", computed_in="float64").eps == EPS["float32"]
    with pytest.raises(InvalidInput, match="computed_in"):
        as_matrix(np.eye(2), "J", computed_in="double")


def test_nonfinite_is_found_in_any_block():
    big = np.zeros((300, 40_000))
    big[299, 39_999] = -np.inf
    with pytest.raises(InvalidInput, match=r"-inf at \(299, 39999\)"):
        as_matrix(big, "J")
    vector = np.zeros(5)
    vector[3] = np.nan
    with pytest.raises(InvalidInput, match="nan at 3"):
        as_vector(vector, "y")


def test_huge_finite_entries_are_finite():
    assert as_matrix(np.full((2, 2), 1.7e308), "J").array[0, 0] == 1.7e308


def test_same_place():
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidInput, match="torch array with a numpy J"):
        same_place(np.eye(2), torch.ones(2), ("J", "y"))
    same_place(torch.eye(2), torch.ones(2), ("J", "y"))


def test_blocks_cover_once(backend):
    values = np.arange(60.0).reshape(12, 5)
    for axis in (0, 1):
        starts = [start for start, _ in blocks(backend(values), axis)]
        assert starts[0] == 0
    tall = np.zeros((20_000_000, 1), dtype=np.uint8)
    pieces = blocks(tall, 0)
    assert len(pieces) > 1
    assert sum(piece.shape[0] for _, piece in pieces) == 20_000_000


def test_digest_is_of_content():
    a = np.arange(6.0).reshape(2, 3)
    assert digest(a) == digest(a.copy(order="F")) == digest(np.ascontiguousarray(a))
    assert len({digest(x) for x in (a, a.T, a.reshape(3, 2), a.astype("f4"), -a, a + 0.0)}) == 5
    assert digest(np.zeros(1)) != digest(-np.zeros(1))


def test_operators_are_not_arrays():
    assert is_operator(sparse.linalg.aslinearoperator(np.eye(3)))
    assert not is_operator(np.eye(3))
    assert not is_operator([[1.0]])


def test_arrays_of_another_device_come_to_the_host():
    """Those of CuPy and CUDA have ways of their own; any other library's come by DLPack."""
    import array_api_strict as xp

    there = xp.asarray([[1.0, 2.0]], device=xp.Device("device1"))
    with pytest.raises(RuntimeError):
        np.asarray(there)
    assert np.array_equal(host(there), [[1.0, 2.0]])
    assert digest(there) == digest(np.array([[1.0, 2.0]]))
