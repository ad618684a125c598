"""Arguments that no verdict can be about: one battery, run over every public call that takes a matrix or a vector."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def _torch(make):
    def build():
        import torch

        return make(torch)

    return build


def _spoiled(shape, value):
    array = np.ones(shape)
    array[(-1,) * array.ndim] = value
    return array


def _strict_complex():
    import array_api_strict

    return array_api_strict.asarray([[1j]]), "complex128"


# name -> a function giving the value and the words that the refusal has to contain
BAD_MATRICES = {
    "nan": lambda: (_spoiled((3, 4), np.nan), r"nan at \(2, 3\)"),
    "inf": lambda: (_spoiled((3, 4), np.inf), r"inf at \(2, 3\)"),
    "-inf float32": lambda: (_spoiled((3, 4), -np.inf).astype(np.float32), r"-inf at \(2, 3\)"),
    "empty rows": lambda: (np.ones((0, 3)), "not empty"),
    "empty columns": lambda: (np.ones((3, 0)), "not empty"),
    "empty list": lambda: ([], "a matrix, 2 dimensions"),
    "0-d": lambda: (np.array(1.0), "2 dimensions"),
    "number": lambda: (3.0, "2 dimensions"),
    "1-d": lambda: (np.ones(3), "2 dimensions"),
    "3-d": lambda: (np.ones((2, 2, 2)), "2 dimensions"),
    "ragged": lambda: ([[1.0, 2.0], [3.0]], "rows of equal length"),
    "complex": lambda: (np.ones((2, 2), dtype=complex), "dtype complex128"),
    "object": lambda: (np.array([[1, None]], dtype=object), "dtype object"),
    "none": lambda: (None, "dtype object"),
    "dict": lambda: ({"J": [[1.0]]}, "dtype object"),
    "strings": lambda: (np.array([["1", "2"]]), "dtype"),
    "text": lambda: ("J.npy", "dtype"),
    "bytes": lambda: (b"abc", "dtype"),
    "datetimes": lambda: (np.array([["2022-08-01"]], dtype="M8[D]"), "dtype datetime64"),
    "structured": lambda: (np.zeros((2, 2), dtype=[("a", "f8")]), "dtype"),
    "longdouble": lambda: (np.ones((2, 2), dtype=np.longdouble), "dtype"),
    "integers past 2**53": lambda: (np.array([[2**53 + 1, 0]]), "2\\*\\*53"),
    "negative integers past 2**53": lambda: (np.array([[-(2**60), 0]]), "2\\*\\*53"),
    "integers past 64 bits": lambda: ([[10**30]], "dtype object"),
    "masked": lambda: (np.ma.masked_array(np.eye(2), mask=np.eye(2)), "masked"),
    "scipy sparse": lambda: (sparse.csr_array(np.eye(3)), "toarray"),
    "torch sparse": _torch(lambda torch: (torch.eye(3).to_sparse(), "sparse")),
    "torch complex": _torch(lambda torch: (torch.ones((2, 2), dtype=torch.complex64), "complex64")),
    "torch meta": _torch(lambda torch: (torch.ones((2, 2), device="meta"), "meta")),
    "torch nan": _torch(lambda torch: (torch.full((2, 2), float("nan")), r"nan at \(0, 0\)")),
    "strict complex": _strict_complex,
}

BAD_VECTORS = {
    "nan": lambda: (_spoiled((3,), np.nan), "nan at 2"),
    "inf": lambda: (_spoiled((3,), np.inf), "inf at 2"),
    "empty": lambda: (np.ones(0), "not empty"),
    "column": lambda: (np.ones((3, 1)), "a vector, 1 dimension"),
    "0-d": lambda: (np.array(1.0), "1 dimension"),
    "complex": lambda: (np.ones(3, dtype=complex), "complex128"),
    "object": lambda: (np.array([1, None, 2], dtype=object), "dtype object"),
    "strings": lambda: (np.array(["1", "2", "3"]), "dtype"),
    "sparse": lambda: (sparse.coo_array(np.ones(3)), "sparse"),
    "masked": lambda: (np.ma.masked_array(np.ones(3), mask=[0, 0, 1]), "masked"),
    "integers past 2**53": lambda: (np.array([2**53 + 1, 0, 0]), "2\\*\\*53"),
}
