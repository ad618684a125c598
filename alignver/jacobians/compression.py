r"""A network of linear layers: an N x N matrix with the column space and the singular values of its Jacobian.

A linear layer on vectors has the columns :math:`b_i \otimes [a_i, 1]` for its inputs a (n x k) and the derivatives b
(N x l) of the network's outputs by its own: its share of :math:`J J^\top` is :math:`([A, 1] [A, 1]^\top) \circ (B
B^\top)`. J squared in twice the precision keeps the singular values that J has in float64
(:mod:`alignver.linalg.double_double`), and takes 6 (n^2 k + N^2 l) operations for each layer: for 100 samples and
layers of width 300, 4e7 instead of the 2e9 of a QR of the layer's 90300 columns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.arrays import EPS
from alignver.errors import InvalidInput
from alignver.features.threads import ordered
from alignver.jacobians import layer_gradients
from alignver.jacobians.jacobian import probed_copy
from alignver.linalg import double_double
from alignver.network.functional import Functional, running_copy
from alignver.network.inputs import dtype_name, full_precision
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import validate_model

Matrix = npt.NDArray[np.float64]

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

    def gram(self, *, precise: bool = False) -> torch.Tensor:
        """Return J J^T (N, N): the sum over layers of (A A^T) o (B B^T), or :attr:`precise_gram` rounded."""
        if precise:
            (high, _), exponent = self.precise_gram
            return torch.from_numpy(high * 4.0**exponent)
        (n, copies), N = self.outputs.shape, self.outputs.numel()
        M = np.zeros((copies, n, copies, n))
        for inputs, derivatives, bias in self.layers:
            A, B = inputs.numpy(), derivatives.numpy()
            outer = (B @ B.T).reshape(M.shape)
            outer *= (A @ A.T + float(bias))[:, None, :]
            M += outer
        return torch.from_numpy(M.reshape(N, N))

    @functools.cached_property
    def precise_gram(self) -> tuple[double_double.DoubleDouble, int]:
        """J J^T in twice the precision over 4^e, and e.

        Raises
        ------
        InvalidInput
            A derivative is NaN or Inf.
        """
        sides = [((_with_ones(A) if bias else A).numpy(), B.numpy()) for A, B, bias in self.layers]
        exponents = [(_exponent(A), _exponent(B)) for A, B in sides]
        top = max(sum(pair) for pair in exponents)
        # Powers of two: exact, and no product underflows.
        scaled = [(A * 2.0**-a, B * 2.0 ** (a - top)) for (A, B), (a, _) in zip(sides, exponents)]
        return functools.reduce(double_double.add, ordered(_share, scaled)), top

    def factor(self) -> Matrix:
        """Return T (N x N), float64, with the column space and the singular values of J.

        Raises
        ------
        InvalidInput
            A derivative is NaN or Inf.
        """
        M, exponent = self.precise_gram
        return double_double.factor(M) * 2.0**exponent

    def compressed(self, y: Matrix) -> tuple[Matrix, Matrix]:
        r"""Return U J V and U y, for orthonormal bases V of a space with the rows of J and U of one with [J, y].

        A layer of k inputs, more than samples, needs n of them: [A, 1] = L Q with L (n x n), and its columns
        :math:`b_i \otimes [a_i, 1]` become :math:`b_i \otimes l_i`. The derivatives of a sample by the results of the
        narrowest layer, of width w < m_y, and by those of the layers before it, lie in a space of w dimensions. In a
        basis of the m_y outputs that begins with one of this space, the last m_y - w rows of every sample are zero
        but for the columns of later layers: a QR of these rows, with y, leaves as many as there are such columns.
        """
        m_y, sides = self.outputs.shape[1], []
        for inputs, derivatives, bias in self.layers:
            A = (_with_ones(inputs) if bias else inputs).numpy()
            L = A if A.shape[1] <= len(A) else np.asarray(np.linalg.qr(A.T, mode="r")).T
            sides.append((L, _by_sample(derivatives.numpy(), m_y)))
        target = _by_sample(y[:, None], m_y)
        narrowest = min((B for _, B in sides), key=lambda B: B.shape[2])
        w = min(narrowest.shape[2], m_y)
        if w < m_y:
            basis = np.linalg.qr(narrowest, mode="complete")[0].transpose(0, 2, 1)
            sides, target = [(L, basis @ B) for L, B in sides], basis @ target
        upper = np.concatenate([_columns(L, B[:, :w]) for L, B in sides], axis=1)
        if w == m_y:
            return upper, target.reshape(-1)
        later = [not _negligible(B[:, w:], B) for _, B in sides]
        rest = [_columns(L, B[:, w:]) for (L, B), is_later in zip(sides, later) if is_later]
        R = np.asarray(np.linalg.qr(np.concatenate([*rest, target[:, w:].reshape(-1, 1)], axis=1), mode="r"))
        places = np.repeat(later, [L.shape[1] * B.shape[2] for L, B in sides])
        lower = np.zeros((len(R), upper.shape[1]))
        lower[:, places] = R[:, :-1]
        return np.concatenate([upper, lower]), np.concatenate([target[:, :w].reshape(-1), R[:, -1]])


def _by_sample(rows: Matrix, m_y: int) -> Matrix:
    """Return output-major rows as (n, m_y, columns)."""
    return rows.reshape(m_y, -1, rows.shape[1]).transpose(1, 0, 2)


def _columns(L: Matrix, B: Matrix) -> Matrix:
    """Return the products of l_i (n, p) and b_i (n, rows, l): (n rows, l p)."""
    return (B[:, :, :, None] * L[:, None, None, :]).reshape(B.shape[0] * B.shape[1], -1)


def _negligible(part: Matrix, whole: Matrix) -> bool:
    """Whether a part of the rows of every sample is rounding error of the product of derivatives that gives them.

    Without it entries are in error by 16 m_y eps of the largest, at most: the QR that follows makes larger errors. By
    magnitudes, of which none overflows or underflows.
    """
    limits = 16 * whole.shape[1] * EPS["float64"] * np.abs(whole).max(axis=(1, 2))
    return bool(np.all(np.abs(part).max(axis=(1, 2)) <= limits))


def _share(A: Matrix, B: Matrix) -> double_double.DoubleDouble:
    """Return (A A^T) o (B B^T), with A repeated for every output."""
    high, low = double_double.gram(A)
    copies = len(B) // len(A), len(B) // len(A)
    return double_double.multiply((np.tile(high, copies), np.tile(low, copies)), double_double.gram(B))


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
    computed_in : str
        The coarsest dtype of a forward pass.

    Raises
    ------
    InvalidInput
        As :func:`~alignver.jacobians.jacobian.jacobian`; the model has another structure.

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0) and None
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1)).double()
    >>> X = torch.randn(9, 2, dtype=torch.float64)
    >>> J = CompressedJacobian(net, X)
    >>> J.N, J.d
    (9, 201)
    >>> T = J.factor()
    >>> from alignver.jacobians.gram import gram
    >>> bool(abs(torch.from_numpy(T @ T.T) - gram(net, X)).max() < 1e-12)
    True
    """

    def __init__(self, model: nn.Module, X: Any, *, dtype: str | None = "float64") -> None:
        self._model, self._dtype = validate_model(model), dtype
        self._read(X)
        self._scratch = dict[Any, torch.Tensor]()

    def _read(self, X: Any) -> None:
        """Read the structure of the model as it is."""
        with probed_copy(self._model, X, self._dtype) as (function, x, probed):
            self._function, self._x = function, x
            self._layers = _layers(function, x, probed.m_y)
            names = {module: name for name, module in function.model.named_modules()}
        self._paths = [names[layer] for layer, _, _ in self._layers]
        self.n, self.m_y, self.d = len(self._x), probed.m_y, function.layout.d
        self.computed_in, self._calls = dtype_name(probed.computed_in), 0

    @property
    def N(self) -> int:
        """Rows of J: n m_y."""
        return self.n * self.m_y

    @property
    def width(self) -> int:
        """Columns of :meth:`Factors.compressed`: an upper bound of the rank of J."""
        sizes = [(layer.in_features + (bias is not None), layer.out_features) for layer, _, bias in self._layers]
        return sum(min(self.n, size) * height for size, height in sizes)

    @property
    def height(self) -> int:
        """Rows of :meth:`Factors.compressed`, at most."""
        w = min(self.m_y, *(layer.out_features for layer, _, _ in self._layers))
        return self.n * w + min(self.n * (self.m_y - w), self.width + 1)

    @property
    def flops(self) -> float:
        """Operations of :meth:`factor`: the products of every layer, and some seventy products' worth of N^3."""
        sides = [(layer.in_features + 1, layer.out_features) for layer, _, _ in self._layers]
        return sum(6.0 * (self.n**2 * k + self.N**2 * height) for k, height in sides) + 70.0 * self.N**3

    @property
    def peak_bytes(self) -> int:
        """Memory of :meth:`factor`: the parts of the factors of one layer, and some N x N matrices."""
        widest = max(self.n * (layer.in_features + 1) + self.N * layer.out_features for layer, _, _ in self._layers)
        return 8 * (6 * widest + 24 * self.N**2)

    @classmethod
    def suits(
        cls, model: nn.Module, X: Any, *, dtype: str | None = "float64", tall: bool = False
    ) -> CompressedJacobian | None:
        """Return an instance for the model, or None if it refuses the model or J is not wide, or not ``tall``."""
        try:
            suited = cls(model, X, dtype=dtype)
        except InvalidInput:
            return None
        return suited if tall == (suited.d < suited.N) else None

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
        function = self._bound()
        verify = self._calls % _VERIFIED == 0
        with self._modules() as model:
            function = dataclasses.replace(function, model=model)
            with full_precision(function.device, function.dtype):
                modules = [model.get_submodule(path) for path in self._paths]
                names = [name for _, *pair in self._layers for name in pair if name is not None]
                against: tuple[Any, ...] = ()
                if verify:
                    weights = torch.cos(torch.arange(1.0, self.N + 1.0, dtype=function.dtype))
                    weights = weights.reshape(self.m_y, self.n).T
                    against = weights, names
                captured = layer_gradients.capture(function, self._x, modules, self.m_y, *against)
        factors, eps = [], EPS[self.computed_in]
        for layer, (_, name, bias) in zip(modules, self._layers, strict=True):
            uses = captured.uses[layer]
            if uses is None or len(uses) != 1:
                raise _unsupported(f"the layer of {name!r}", "linear layers used once, on vectors")
            (use,) = uses
            A, B = use.inputs, use.derivatives  # (n, k), (n, m_y, l)
            if verify:
                mixed = torch.einsum("ij,ijl->il", weights, B)
                _require_equal(name, captured.gradients.get(name), mixed.T @ A, eps)
                if bias is not None:
                    _require_equal(bias, captured.gradients.get(bias), mixed.sum(0), eps)
            B = B.transpose(0, 1).reshape(self.n * self.m_y, -1)
            factors.append((A.double(), B.double(), bias is not None))
        self._calls += 1
        return Factors(captured.outputs, factors)

    def _bound(self) -> Functional:
        """Return the model as a function of its present parameters, in the memory of the previous call if they fit."""
        free = tuple(name for name, p in self._model.named_parameters() if p.requires_grad)
        if free != self._function.layout.names or not self._function.refresh():
            self._read(self._x)
        return self._function

    @contextlib.contextmanager
    def _modules(self) -> Iterator[nn.Module]:
        """Yield the modules to run: a copy, since another thread may run the model; itself, which is faster, alone."""
        if threading.active_count() == 1:
            with preserve_state(self._model, self._scratch):
                yield self._model
        else:
            with running_copy(self._model) as twin:
                yield twin


def _with_ones(A: torch.Tensor) -> torch.Tensor:
    return torch.cat([A, A.new_ones((len(A), 1))], 1)


def _exponent(A: Matrix) -> int:
    """Return e with all entries below 2^e in magnitude."""
    largest = float(max(A.max(), -A.min()))
    if not math.isfinite(largest):
        need = "a differentiable model at finite theta"
        raise InvalidInput("model", "a derivative that is NaN or Inf", need, code="not-finite")
    return math.frexp(largest)[1]


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


def _require_equal(name: str, gradient: torch.Tensor | None, formula: torch.Tensor, eps: float) -> None:
    if gradient is None:
        return
    flat = formula.reshape(-1)
    size = max(float(gradient.norm()), float(flat.norm()))
    # Two sums of n m_y l products in different orders: eps times the square root of their number, with a margin.
    if float((gradient - flat).norm()) > 1e3 * eps**0.75 * size:
        raise _unsupported(f"a layer of {name!r} that does more than multiply and add", "plain linear layers")
