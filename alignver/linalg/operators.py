"""Operators of the caller: products that are validated, and scaled into the range of float64.

An operator is known by its products alone. Each is checked before it enters an iteration: real, of the right length,
and without an exception of the caller's code.
"""

from __future__ import annotations

import math
from typing import Any

from alignver.arrays import EPS, Array, namespace, native
from alignver.errors import InvalidInput, first_line, kind_of
from alignver.linalg.norms import power_of_two

_LARGE = 400  # exponents beyond which squares are not in range, as of norms.extreme_scale


class Operator:
    """An operator J / unit with validated products in float64.

    Parameters
    ----------
    operator : object with shape, matvec and rmatvec
    name : str
        Its name in messages.

    Attributes
    ----------
    unit : float
        A power of two.
    eps : float
        The coarsest epsilon of the dtypes of the products so far.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import aslinearoperator
    >>> operator = Operator(aslinearoperator(1e-200 * np.eye(2)), "J")
    >>> operator.scale(np.ones(2))
    >>> bool(operator.matvec(np.ones(2))[0] * operator.unit == 1e-200)
    True
    """

    def __init__(self, operator: Any, name: str) -> None:
        self.operator, self.name = operator, name
        self.shape = self._shape()
        self.unit, self.eps = 1.0, EPS["float64"]

    def _shape(self) -> tuple[int, int]:
        shape = self.operator.shape
        try:
            rows, columns = (int(size) for size in shape)
        except (TypeError, ValueError) as error:
            got = f"an operator of shape {shape!r}"
            raise InvalidInput(self.name, got, "a shape of two integers", "wrong-shape") from error
        if rows < 1 or columns < 1:
            got = f"an operator of shape {(rows, columns)}"
            raise InvalidInput(self.name, got, "an operator that is not empty", "wrong-shape")
        return rows, columns

    def scale(self, vector: Array) -> None:
        """Choose the unit: 1, or the size of the products where their squares could overflow or underflow.

        The size is that of J^T times ``vector``, which is made smaller or larger where this overflows or vanishes.
        """
        xp = namespace(vector)
        for exponent in (0, -512, 512):
            image = self.rmatvec(vector * math.ldexp(1.0, exponent))
            if bool(xp.all(xp.isfinite(image))) and bool(xp.any(image != 0.0)):
                size = math.frexp(power_of_two(image))[1] - 1 - exponent
                self.unit = math.ldexp(1.0, min(max(size, -1021), 1021)) if abs(size) > _LARGE else 1.0
                return

    def matvec(self, vector: Array) -> Array:
        """Return J v / unit."""
        return self._product("matvec", vector, self.shape[0])

    def rmatvec(self, vector: Array) -> Array:
        """Return J^T u / unit."""
        return self._product("rmatvec", vector, self.shape[1])

    def _product(self, kind: str, vector: Array, length: int) -> Array:
        """Divide by half of the unit before, and by the other half after the product: neither leaves the range."""
        half = math.ldexp(1.0, (math.frexp(self.unit)[1] - 1) // 2)
        try:
            value = getattr(self.operator, kind)(vector if self.unit == 1.0 else vector / half)
        except (InvalidInput, MemoryError):
            raise
        except Exception as error:  # the caller's code
            got = f"an operator whose {kind} raises {type(error).__name__}: {first_line(error)}"
            need = "products J v of matvec(v) and J^T u of rmatvec(u)"
            raise InvalidInput(self.name, got, need) from error
        result = native(value, self.name)
        dtype = str(result.dtype).rpartition(".")[2]
        if dtype not in EPS:
            got = (
                f"an operator with products of dtype {dtype}" if dtype != "object" else f"products of {kind_of(value)}"
            )
            need = "real floating-point products"
            if dtype.startswith("complex"):
                need += "; [[Re J, -Im J], [Im J, Re J]] with [Re y, Im y] asks the same in real numbers"
            raise InvalidInput(self.name, got, need, "wrong-dtype")
        if math.prod(result.shape) != length:
            got = f"an operator of shape {self.shape} whose {kind} gives shape {tuple(result.shape)}"
            raise InvalidInput(self.name, got, f"a vector of {length} entries", "wrong-shape")
        self.eps = max(self.eps, EPS[dtype])
        xp, like = namespace(result), namespace(vector)
        if xp is not like:
            got = f"products of {kind_of(value)} for a vector that is {kind_of(vector)}"
            raise InvalidInput(self.name, got, "products of the library of y", "wrong-type")
        result = xp.reshape(result, (length,)) if result.ndim != 1 else result
        result = result if dtype == "float64" else xp.astype(result, xp.float64)
        return result if self.unit == 1.0 else result / (self.unit / half)
