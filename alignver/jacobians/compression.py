r"""The Jacobian of a network of linear layers, compressed by orthogonal transformations of its columns, layer by layer.

A linear layer on vectors has the columns :math:`b_i \otimes [a_i, 1]` for its inputs a (n x k) and the derivatives b
(N x l) of the network's outputs by its own. With :math:`[A, 1] = L_A Q_A^\top` and :math:`B = L_B Q_B^\top`,
orthonormal columns in both Q,

.. math:: b_i \otimes [a_i, 1] = (L_B)_i \otimes (L_A)_i \; (Q_B \otimes Q_A)^\top

so the columns :math:`(L_B)_i \otimes (L_A)_i`, min(N, l) min(n, k + 1) of them instead of l (k + 1), have the same
inner products. Nothing is squared: the factorizations are backward stable, each factor by itself. For 100 samples and
layers 300 wide that is 10000 columns for 90300; :func:`alignver.linalg.qr_reduction.preconditioned_factor` then
makes an N x N matrix of them that stands for J in every question about its column space and singular values.
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
from alignver.jacobians.jacobian import bind
from alignver.linalg.qr_reduction import preconditioned_factor
from alignver.network.functional import Functional
from alignver.network.inputs import as_asked, dtype_name
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, validate_model

__all__ = ["CompressedJacobian", "Factors"]

Matrix = npt.NDArray[np.float64]
Lowered = Sequence[tuple[Matrix, Matrix]]

_VERIFIED = 32  # looks from one comparison with a backward pass to the next: it costs as much as a look


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """What the layers leave of themselves at some parameters.

    Attributes
    ----------
    outputs : (n, m_y) torch.Tensor
        f_X(theta).
    layers : sequence of ((n, k), (N, l) float64 torch.Tensor, bool)
        Inputs, derivatives of the outputs (rows output-major), and whether there is a bias: one more input, always 1.
    """

    outputs: torch.Tensor
    layers: Sequence[tuple[torch.Tensor, torch.Tensor, bool]]

    @property
    def terms(self) -> int:
        r"""t with :math:`|\mathrm{fl}(M)_{ij} - M_{ij}| \le \gamma_t \sqrt{M_{ii} M_{jj}}` for M of :meth:`gram`.

        A layer's share is a product of two inner products, of k (and one for the bias) and of l terms, so off by
        :math:`\gamma_{k + 1 + l + 1}` times the product of the four norms, in whatever order the terms are added
        (Higham, Accuracy and Stability, Section 3.1). The sum over L layers costs :math:`\gamma_L` more, and by
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
            A derivative that is NaN or Inf.
        """
        return self._wide(self._lowered())

    def factor(self) -> Matrix:
        """Return T (N x N), float64, with the column space and the singular values of the compressed Jacobian.

        Raises
        ------
        InvalidInput
            A derivative that is NaN or Inf.
        """
        lower = self._lowered()
        return preconditioned_factor(self._wide(lower), self._directions(lower))

    def _lowered(self) -> Lowered:
        return [(_lower(_with_ones(A).numpy() if bias else A.numpy()), _lower(B.numpy())) for A, B, bias in self.layers]

    def _directions(self, lower: Lowered) -> Matrix:
        """Return the left singular vectors of 2 N random combinations of the columns, which are never formed for it.

        A combination with weights u_k v_l takes a product with each side of a layer. That many keep the norm of every
        combination of the *rows* up to a modest factor, however small it is: with these directions the rows of the
        rotated matrix are well conditioned at once (:mod:`alignver.linalg.qr_reduction`, which finds out).
        """
        n, N = len(self.outputs), self.outputs.numel()
        random = np.random.default_rng(0)  # the same at every look: records do not depend on what came before
        some = np.zeros((N // n, n, 2 * N))
        for A, B in lower:
            left = A @ random.standard_normal((A.shape[1], 2 * N))
            some += (B @ random.standard_normal((B.shape[1], 2 * N))).reshape(some.shape) * left
        if not np.isfinite(some.sum()):
            raise InvalidInput("model", "a derivative that is NaN or Inf", "a differentiable model at finite theta")
        directions: Matrix = np.linalg.svd(some.reshape(N, 2 * N), full_matrices=False)[0]
        return directions

    def _wide(self, lower: Lowered) -> Matrix:
        n, N = len(self.outputs), self.outputs.numel()
        W = np.empty((N, sum(A.shape[1] * B.shape[1] for A, B in lower)))
        at = 0
        for A, B in lower:
            width, height = A.shape[1], B.shape[1]
            block = W[:, at : at + width * height].reshape(N // n, n, height, width)
            np.multiply(B.reshape(N // n, n, height, 1), A[None, :, None, :], out=block)
            at += width * height
        if not np.isfinite(W.sum()):
            raise InvalidInput("model", "a derivative that is NaN or Inf", "a differentiable model at finite theta")
        return W


class CompressedJacobian:
    """The Jacobian of a model whose parameters all belong to linear layers on vectors, each used once.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU. It is looked at once, here; :meth:`factor` takes its parameters as they are when it is called.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...).
    dtype : str, optional
        As in :func:`alignver.jacobians.jacobian.jacobian`. The factors are computed in it; everything after in float64.

    Attributes
    ----------
    n, m_y, d : int
        Samples, outputs, parameters.
    columns : int
        Of the compressed Jacobian; at least N = n m_y.
    computed_in : str
        The coarsest dtype of a forward pass.

    Raises
    ------
    InvalidInput
        What :func:`~alignver.jacobians.jacobian.jacobian` refuses; a model of another structure, or wider than its
        columns would be: :meth:`suits` tells.

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
        with preserve_state(model):
            function, self._x = bind(model, X, dtype, include_frozen=False)
            self._function = function
            with as_asked(function.device, function.dtype):
                probed = probe(function, self._x)
                self._layers = _layers(function, self._x, probed.m_y)
        self.n, self.m_y, self.d = len(self._x), probed.m_y, function.slots.d
        self.computed_in = dtype_name(probed.computed_in)
        self._taken, self._scratch = 0, dict[Any, torch.Tensor]()
        sizes = [(layer.in_features + (layer.bias is not None), layer.out_features) for layer, _, _ in self._layers]
        self.columns = sum(min(self.n, inputs) * min(self.n * self.m_y, outputs) for inputs, outputs in sizes)
        if self.columns < self.n * self.m_y:
            got = f"{self.columns} columns for {self.n * self.m_y} rows"
            raise InvalidInput("model", got, "a Jacobian at least as wide as high, once compressed")

    @property
    def flops(self) -> float:
        """Operations of :meth:`factor`: two sweeps of two products with the compressed matrix."""
        return 8.0 * (self.n * self.m_y) ** 2 * self.columns

    @classmethod
    def suits(cls, model: nn.Module, X: Any, *, dtype: str | None = "float64") -> CompressedJacobian | None:
        """Return the compressed Jacobian of a model that has the structure for it, or None."""
        try:
            return cls(model, X, dtype=dtype)
        except InvalidInput:
            return None

    def factor(self) -> Matrix:
        """Return T (N x N), float64, with the column space and the singular values of J at the present parameters.

        Raises
        ------
        InvalidInput
            A derivative that is NaN or Inf; layers whose factors do not give the gradient of a backward pass.
        """
        return self.factors().factor()

    def compressed(self) -> Matrix:
        """Return the compressed Jacobian, (N, columns) float64, rows output-major."""
        return self.factors().compressed()

    def factors(self) -> Factors:
        """Return the inputs and derivatives of every layer at the parameters as they are now.

        Every 32nd call compares them with an ordinary backward pass, the first one among them: whether a layer only
        multiplies and adds is a matter of its code, not of its parameters.

        Raises
        ------
        InvalidInput
            Layers whose factors do not give the gradient of a backward pass.
        """
        verify = self._taken % _VERIFIED == 0
        with preserve_state(self._model, self._scratch):
            function = self._bound()
            with as_asked(function.device, function.dtype):
                modules = [layer for layer, _, _ in self._layers]
                names = [name for _, *pair in self._layers for name in pair if name is not None]
                weights = torch.cos(torch.arange(1.0, self.n * self.m_y + 1.0, dtype=function.dtype))
                weights = weights.reshape(self.m_y, self.n).T
                against = (weights, names) if verify else ()
                captured = layer_gradients.capture(function, self._x, modules, self.m_y, *against)
        found = []
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
            found.append((A.double(), B.double(), bias is not None))
        self._taken += 1
        return Factors(captured.outputs, found)

    def _bound(self) -> Functional:
        """Return the model as a function of its present parameters, in the memory of the last time if they fit."""
        free = tuple(name for name, p in self._model.named_parameters() if p.requires_grad)
        if free != self._function.slots.names or not self._function.refresh():
            self._function = bind(self._model, self._x, self._dtype, include_frozen=False)[0]
        return self._function


def _with_ones(A: torch.Tensor) -> torch.Tensor:
    return torch.cat([A, A.new_ones((len(A), 1))], 1)


def _layers(function: Functional, x: torch.Tensor, m_y: int) -> list[tuple[nn.Linear, str, str | None]]:
    """Return the layers with the slots of their weights and biases; refuse any other structure."""
    if function.device.type != "cpu":
        raise InvalidInput("model", f"on {function.device}", "a model on the CPU")
    places = layer_gradients.owners(function)
    layers: dict[nn.Module, dict[str, str]] = {}
    for name in function.slots.names:
        where = places.get(name, ())
        if len(where) != 1 or type(where[0].module) is not nn.Linear:
            raise InvalidInput("model", f"parameter {name!r}, not of one linear layer alone", "linear layers only")
        layers.setdefault(where[0].module, {})[where[0].attribute] = name
    uses = layer_gradients.capture(function, x[:2], layers, m_y).uses
    found = []
    for layer, slots in layers.items():
        seen = uses[layer]
        if seen is None or len(seen) != 1 or seen[0].inputs.ndim != 2:
            raise InvalidInput(
                "model", f"the layer of {next(iter(slots.values()))!r}", "linear layers used once, on vectors"
            )
        has_bias = getattr(layer, "bias", None) is not None
        if "weight" not in slots or has_bias != ("bias" in slots) or not isinstance(layer, nn.Linear):
            raise InvalidInput(
                "model", f"a layer of which only {sorted(slots)} is free", "layers that are free as a whole"
            )
        found.append((layer, slots["weight"], slots.get("bias")))
    return found


def _require_equal(name: str, gradient: torch.Tensor | None, formula: torch.Tensor) -> None:
    if gradient is None:
        return
    eps, flat = torch.finfo(gradient.dtype).eps, formula.reshape(-1)
    size = max(float(gradient.norm()), float(flat.norm()))
    # Two sums of n m_y l products in different orders: eps times the square root of their number, and room.
    if float((gradient - flat).norm()) > 1e3 * eps**0.75 * size:
        raise InvalidInput("model", f"a layer of {name!r} that does more than multiply and add", "plain linear layers")


def _lower(A: Matrix) -> Matrix:
    """Return L of A = L Q^T where that has fewer columns than A; A itself otherwise."""
    n, k = A.shape
    if k <= n:
        return A
    r: Matrix = np.asarray(np.linalg.qr(A.T, mode="r"))
    return np.ascontiguousarray(r.T)
