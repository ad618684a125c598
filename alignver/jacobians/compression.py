r"""The Jacobian of a network of linear layers, compressed by orthogonal transformations of its columns, layer by layer.

A linear layer on vectors has the columns :math:`b_i \otimes [a_i, 1]` for its inputs a (n x k) and the derivatives b
(N x l) of the network's outputs by its own. With :math:`[A, 1] = L_A Q_A^\top` and :math:`B = L_B Q_B^\top`,
orthonormal columns in both Q,

.. math:: b_i \otimes [a_i, 1] = (L_B)_i \otimes (L_A)_i \; (Q_B \otimes Q_A)^\top

so the columns :math:`(L_B)_i \otimes (L_A)_i`, min(N, l) min(n, k + 1) of them instead of l (k + 1), have the same
inner products. J is not squared: each factorization is backward stable. For 100 samples and layers of width 300, 10000
columns replace 90300; :func:`alignver.linalg.qr_reduction.preconditioned_factor` then computes an N x N matrix from
them with the column space and the singular values of J.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.errors import InvalidInput
from alignver.jacobians import layer_gradients
from alignver.jacobians.jacobian import bind, probed_copy
from alignver.linalg.qr_reduction import preconditioned_factor
from alignver.network.functional import Functional
from alignver.network.inputs import dtype_name, full_precision
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import validate_model

__all__ = ["CompressedJacobian", "Factors"]

Matrix = npt.NDArray[np.float64]
Lowered = Sequence[tuple[Matrix, Matrix]]

_VERIFIED = 32  # calls from one comparison with a backward pass to the next: it costs as much as a call


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """The factors of the layers at some parameters.

    Attributes
    ----------
    outputs : (n, m_y) torch.Tensor
        f_X(theta).
    layers : sequence of ((n, k), (N, l) float64 torch.Tensor, bool)
        Inputs, derivatives of the outputs (rows output-major), and whether there is a bias: a further input, always 1.
    """

    outputs: torch.Tensor
    layers: Sequence[tuple[torch.Tensor, torch.Tensor, bool]]

    @property
    def terms(self) -> int:
        r"""t with :math:`|\mathrm{fl}(M)_{ij} - M_{ij}| \le \gamma_t \sqrt{M_{ii} M_{jj}}` for M of :meth:`gram`.

        A layer's share is a product of two inner products, of k (and one for the bias) and of l terms, so its error is
        at most :math:`\gamma_{k + 1 + l + 1}` times the product of the four norms, for any order of summation
        (Higham, Accuracy and Stability, Section 3.1). The sum over L layers adds :math:`\gamma_L`, and by
        Cauchy-Schwarz the products of norms add up to at most :math:`\sqrt{M_{ii} M_{jj}}`.
        """
        return len(self.layers) + max(A.shape[1] + B.shape[1] + 2 for A, B, _ in self.layers)

    def gram(self) -> torch.Tensor:
        """Return J J^T (N, N): the sum over layers of (A A^T) o (B B^T)."""
        n, N = len(self.outputs), self.outputs.numel()
        M: torch.Tensor | None = None
        for A, B, bias in self.layers:
            inner = A @ A.T
            if bias:
                inner += 1.0
            outer = (B @ B.T).view(N // n, n, N // n, n)
            M = outer.mul_(inner[None, :, None, :]) if M is None else M.addcmul_(outer, inner[None, :, None, :])
        assert M is not None
        return M.reshape(N, N)

    def compressed(self) -> Matrix:
        """Return the compressed Jacobian, (N, columns) float64, rows output-major.

        Raises
        ------
        InvalidInput
            A derivative is NaN or Inf.
        """
        return self._wide(self._lowered())

    def factor(self) -> Matrix:
        """Return T (N x N), float64, with the column space and the singular values of the compressed Jacobian.

        Raises
        ------
        InvalidInput
            A derivative is NaN or Inf.
        """
        lower = self._lowered()
        return preconditioned_factor(self._wide(lower), self._directions(lower))

    def _lowered(self) -> Lowered:
        return [(_lower(_with_ones(A).numpy() if bias else A.numpy()), _lower(B.numpy())) for A, B, bias in self.layers]

    def _directions(self, lower: Lowered) -> Matrix:
        """Return the left singular vectors of 2 N random combinations of the columns, without forming the columns.

        A combination with weights u_k v_l takes a product with each side of a layer. 2 N of them preserve the norm of
        every combination of the *rows* up to a modest factor, however small the norm is: with these directions the rows
        of the rotated matrix are well conditioned at once (:mod:`alignver.linalg.qr_reduction` verifies it).
        """
        n, N = len(self.outputs), self.outputs.numel()
        random = np.random.default_rng(0)  # the same in every call: records do not depend on earlier calls
        some = np.zeros((N // n, n, 2 * N))
        for A, B in lower:
            left = A @ random.standard_normal((A.shape[1], 2 * N))
            some += (B @ random.standard_normal((B.shape[1], 2 * N))).reshape(some.shape) * left
        _require_finite(some)
        directions: Matrix = np.linalg.svd(some.reshape(N, 2 * N), full_matrices=False)[0]
        return directions

    def _wide(self, lower: Lowered) -> Matrix:
        n, N = len(self.outputs), self.outputs.numel()
        W = np.empty((N, sum(A.shape[1] * B.shape[1] for A, B in lower)))
        column = 0
        for A, B in lower:
            width, height = A.shape[1], B.shape[1]
            block = W[:, column : column + width * height].reshape(N // n, n, height, width)
            np.multiply(B.reshape(N // n, n, height, 1), A[None, :, None, :], out=block)
            column += width * height
        _require_finite(W)
        return W


class CompressedJacobian:
    """The Jacobian of a model whose parameters all belong to linear layers on vectors, each used once.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU. Its structure is read once, at construction; :meth:`factor` uses its parameters at the time of the
        call.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample per row: (n, ...).
    dtype : str, optional
        As in :func:`alignver.jacobians.jacobian.jacobian`, for the factors; all further computation is in float64.

    Attributes
    ----------
    n, m_y, d : int
        Samples, outputs, parameters.
    columns : int
        Columns of the compressed Jacobian; at least N = n m_y.
    computed_in : str
        The coarsest dtype of a forward pass.

    Raises
    ------
    InvalidInput
        As :func:`~alignver.jacobians.jacobian.jacobian`; the model has another structure, or its compressed Jacobian
        has fewer columns than rows (see :meth:`suits`).

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0) and None
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1)).double()
    >>> X = torch.randn(9, 2, dtype=torch.float64)
    >>> J = CompressedJacobian(net, X)
    >>> J.columns, J.d
    (36, 201)
    >>> T = J.factor()
    >>> from alignver.jacobians.gram import gram
    >>> bool(abs(torch.from_numpy(T @ T.T) - gram(net, X)).max() < 1e-12)
    True
    """

    def __init__(self, model: nn.Module, X: Any, *, dtype: str | None = "float64") -> None:
        self._model, self._dtype = validate_model(model), dtype
        with probed_copy(model, X, dtype) as (function, x, probed):
            self._function, self._x = function, x
            self._layers = _layers(function, x, probed.m_y)
        self.n, self.m_y, self.d = len(self._x), probed.m_y, function.layout.d
        self.computed_in = dtype_name(probed.computed_in)
        self._calls, self._scratch = 0, dict[Any, torch.Tensor]()
        sizes = [(layer.in_features + (layer.bias is not None), layer.out_features) for layer, _, _ in self._layers]
        self.columns = sum(min(self.n, inputs) * min(self.n * self.m_y, outputs) for inputs, outputs in sizes)
        if self.columns < self.n * self.m_y:
            got = f"{self.columns} columns for {self.n * self.m_y} rows"
            raise _unsupported(got, "a compressed Jacobian with at least as many columns as rows")

    @property
    def flops(self) -> float:
        """Operations of :meth:`factor`: two sweeps of two products with the compressed matrix."""
        return 8.0 * (self.n * self.m_y) ** 2 * self.columns

    @property
    def peak_bytes(self) -> int:
        """Memory of :meth:`factor`: the compressed matrix, its rotation, and a few N x N matrices."""
        N = self.n * self.m_y
        return 8 * N * (2 * self.columns + 8 * N)

    @classmethod
    def suits(cls, model: nn.Module, X: Any, *, dtype: str | None = "float64") -> CompressedJacobian | None:
        """Return the compressed Jacobian of a model, or None if the model has another structure."""
        try:
            return cls(model, X, dtype=dtype)
        except InvalidInput:
            return None

    def factor(self) -> Matrix:
        """Return T (N x N), float64, with the column space and the singular values of J at the present parameters.

        Raises
        ------
        InvalidInput
            A derivative is NaN or Inf; the factors of a layer disagree with the gradient of a backward pass.
        """
        return self.factors().factor()

    def factors(self) -> Factors:
        """Return the inputs and derivatives of every layer at the present parameters.

        The first call and every 32nd call after it compare them with an ordinary backward pass: whether a layer only
        multiplies and adds depends on its code, not on its parameters.

        Raises
        ------
        InvalidInput
            The factors of a layer disagree with the gradient of a backward pass.
        """
        verify = self._calls % _VERIFIED == 0
        with preserve_state(self._model, self._scratch):
            function = self._bound()
            with full_precision(function.device, function.dtype):
                modules = [layer for layer, _, _ in self._layers]
                names = [name for _, *pair in self._layers for name in pair if name is not None]
                weights = torch.cos(torch.arange(1.0, self.n * self.m_y + 1.0, dtype=function.dtype))
                weights = weights.reshape(self.m_y, self.n).T
                against = (weights, names) if verify else ()
                captured = layer_gradients.capture(function, self._x, modules, self.m_y, *against)
        factors = []
        for layer, name, bias in self._layers:
            (use,) = captured.uses[layer] or (None,)
            assert use is not None
            A, B = use.inputs, use.derivatives  # (n, k), (n, m_y, l)
            if verify:
                mixed = torch.einsum("ij,ijl->il", weights, B)
                _require_equal(name, captured.gradients.get(name), mixed.T @ A)
                if bias is not None:
                    _require_equal(bias, captured.gradients.get(bias), mixed.sum(0))
            B = B.transpose(0, 1).reshape(self.n * self.m_y, -1)
            factors.append((A.double(), B.double(), bias is not None))
        self._calls += 1
        return Factors(captured.outputs, factors)

    def _bound(self) -> Functional:
        """Return the model as a function of its present parameters, in the memory of the previous call if they fit."""
        free = tuple(name for name, p in self._model.named_parameters() if p.requires_grad)
        if free != self._function.layout.names or not self._function.refresh():
            self._function = bind(self._model, self._x, self._dtype, include_frozen=False)[0]
        return self._function


def _with_ones(A: torch.Tensor) -> torch.Tensor:
    return torch.cat([A, A.new_ones((len(A), 1))], 1)


def _layers(function: Functional, x: torch.Tensor, m_y: int) -> list[tuple[nn.Linear, str, str | None]]:
    """Return the layers with the slots of their weights and biases; refuse any other structure."""
    if function.device.type != "cpu":
        raise InvalidInput("model", f"on {function.device}", "a model on the CPU", code="wrong-device")
    owners = layer_gradients.owners(function)
    attributes: dict[nn.Module, dict[str, str]] = {}
    for name in function.layout.names:
        holders = owners.get(name, ())
        if len(holders) != 1 or type(holders[0].module) is not nn.Linear:
            raise _unsupported(f"parameter {name!r}, not of one linear layer alone", "linear layers only")
        attributes.setdefault(holders[0].module, {})[holders[0].attribute] = name
    uses = layer_gradients.capture(function, x[:2], attributes, m_y).uses
    layers = []
    for layer, slots in attributes.items():
        calls = uses[layer]
        if calls is None or len(calls) != 1 or calls[0].inputs.ndim != 2:
            raise _unsupported(f"the layer of {next(iter(slots.values()))!r}", "linear layers used once, on vectors")
        has_bias = getattr(layer, "bias", None) is not None
        if "weight" not in slots or has_bias != ("bias" in slots) or not isinstance(layer, nn.Linear):
            got = f"a layer of which only {sorted(slots)} is trainable"
            raise _unsupported(got, "layers that are trainable as a whole")
        layers.append((layer, slots["weight"], slots.get("bias")))
    return layers


def _unsupported(got: str, need: str) -> InvalidInput:
    return InvalidInput("model", got, need, code="unsupported-model")


def _require_finite(matrix: Matrix) -> None:
    if not np.isfinite(matrix.sum()):
        need = "a differentiable model at finite theta"
        raise InvalidInput("model", "a derivative that is NaN or Inf", need, code="not-finite")


def _require_equal(name: str, gradient: torch.Tensor | None, formula: torch.Tensor) -> None:
    if gradient is None:
        return
    eps, flat = torch.finfo(gradient.dtype).eps, formula.reshape(-1)
    size = max(float(gradient.norm()), float(flat.norm()))
    # Two sums of n m_y l products in different orders: eps times the square root of their number, with a margin.
    if float((gradient - flat).norm()) > 1e3 * eps**0.75 * size:
        raise _unsupported(f"a layer of {name!r} that does more than multiply and add", "plain linear layers")


def _lower(A: Matrix) -> Matrix:
    """Return L of A = L Q^T if it has fewer columns than A, else A."""
    n, k = A.shape
    if k <= n:
        return A
    r: Matrix = np.asarray(np.linalg.qr(A.T, mode="r"))
    return np.ascontiguousarray(r.T)
