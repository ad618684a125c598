r"""Which derivative of a model is right: torch's passes are compared with each other and with a difference.

For a random direction v of the parameters and weights u of the outputs, the adjoint identity says

.. math:: \langle J^\top u, v \rangle = \langle u, J v \rangle, \qquad
          J v \approx \frac{f(\theta + h v) - f(\theta - h v)}{2 h} .

The left side is one backward pass, the right side two evaluations of the function itself. Custom backward passes,
``detach`` and straight-through estimators make them differ. The gradient of a sample alone is compared with that of the
sample in a batch of two: torch 2.13 differentiates some operations wrongly for a batch of one. Where the two differ,
the difference decides. Forward mode and vmap are compared with a backward pass where they are used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from alignver.errors import InvalidInput, first_line
from alignver.network.convolution import Convolutions
from alignver.network.functional import Functional, Theta, comparison_weights
from alignver.network.inputs import DispatchMode, failing_module, module_name

_LEAST = 1e-3  # relative difference of a derivative and a difference along a direction that is an error
_AMPLIFIED = 16.0  # rounding errors of a pass over those of its parameters: each layer has some
_NAMED = 64  # parameters that are examined one by one for a message
_CHECKPOINTS = "torch.utils.checkpoint with use_reentrant=False"
_NEED = "a forward whose gradient is its derivative: no detach, custom backward or straight-through estimator, and "
_NEED += _CHECKPOINTS


@dataclasses.dataclass(frozen=True, eq=False)
class Arbitrated:
    """The function whose passes give its derivatives.

    Attributes
    ----------
    function : Functional
    notes : tuple of str
        What was decided, in sentences; empty where all passes agree.
    refusal : InvalidInput or None
        Why no pass of torch gives the derivatives.
    custom : bool
        Whether a backward pass of the user is among them: differences agree with it, up to their own error only.
    """

    function: Functional
    notes: tuple[str, ...] = ()
    refusal: InvalidInput | None = None
    custom: bool = False


def is_rounding(function: Functional, x: torch.Tensor, batch: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether outputs in a coarser dtype differ by what its rounding errors do to this model, as far as seen.

    A network whose last layer cancels large terms loses most digits, and so does (x + 2^40) - 2^40. Errors of the
    coarser dtype with random signs, in the parameters and in the result of every operation, move the outputs by about
    as much as its own errors; the terms of a sum in one operation have some more. Numbers below tiny / eps lose digits
    by underflow.
    """
    limits, signs = torch.finfo(plain.dtype), torch.Generator().manual_seed(0)
    moved = limits.tiny / limits.eps
    for _ in range(3):
        rounding = _RoundingErrors(limits.eps, signs)
        theta = {name: rounding.moved(tensor) for name, tensor in function.theta.items()}
        with torch.no_grad(), rounding:
            outputs = function(theta, function.batch(x)).reshape(batch.shape)
        moved = max(moved, float((outputs - batch).abs().max()))
    return float((plain.to(batch.dtype) - batch).abs().max()) <= _AMPLIFIED * moved


class _RoundingErrors(DispatchMode):
    """Move the result of every operation that computes in floating point by a relative error with random signs."""

    def __init__(self, eps: float, signs: torch.Generator) -> None:
        super().__init__()
        self.eps, self.signs = eps, signs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; views and what is written in place stay as they are."""
        result = func(*args, **(kwargs or {}))
        new = all(value.alias_info is None for value in func._schema.returns)
        return pytree.tree_map_only(torch.Tensor, self.moved, result) if new else result

    def moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor with errors, if its entries are floating-point numbers."""
        if not tensor.is_floating_point():
            return tensor
        up = torch.randint(0, 2, tensor.shape, generator=self.signs).to(tensor)
        return tensor * (1 + self.eps * (2 * up - 1))


def arbitrate(
    function: Functional,
    x: torch.Tensor,
    computed_in: torch.dtype,
    batch: ForwardPass | None = None,
    single: Mapping[int, ForwardPass] | None = None,
) -> Arbitrated:
    """Compare backward passes of a model with differences of its outputs, on the samples in ``x``.

    Parameters
    ----------
    function : Functional
    x : torch.Tensor
        A few samples that the model takes.
    computed_in : torch.dtype
        The coarsest dtype that a forward pass rounds to, on which the step h depends.
    batch, single : ForwardPass, and mapping of int to ForwardPass, optional
        Those of ``x`` and of some of its samples alone, if there are any already.

    Raises
    ------
    InvalidInput
        A backward pass raises an exception.

    Examples
    --------
    >>> from torch import nn
    >>> from alignver.network.functional import functional
    >>> f = functional(nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)), torch.float64)
    >>> arbitrate(f, torch.ones(4, 2), torch.float64).refusal is None
    True
    """
    return _Arbitration(function, x, computed_in, single or {}).decide(batch)


def graded_rows(x: torch.Tensor) -> list[int]:
    """Return the samples whose gradients alone are compared: all of three, the first and the last of more."""
    return list(range(len(x))) if len(x) <= 3 else [0, len(x) - 1]


class PaddingRows(TorchFunctionMode):
    """Notes the rows of tables that lookups exclude from their gradients: they are no part of theta."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[torch.Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        if func is F.embedding:
            table = args[1] if len(args) > 1 else kwargs.get("weight")
            index = args[2] if len(args) > 2 else kwargs.get("padding_idx")
            if isinstance(table, torch.Tensor) and index is not None:
                self.rows.append((table, int(index)))
        return func(*args, **kwargs)


def _evaluated(function: Functional, x: torch.Tensor, theta: Theta) -> torch.Tensor:
    with Convolutions():
        return function(theta, function.batch(x)).reshape(len(x), -1)


@dataclasses.dataclass(frozen=True, eq=False)
class ForwardPass:
    """The outputs of some samples, with their graph, at leaves theta; and the tables with rows that are padding."""

    function: Functional
    theta: Theta
    outputs: torch.Tensor
    padding: PaddingRows

    @classmethod
    def of(
        cls, function: Functional, x: torch.Tensor, evaluate: Callable[..., torch.Tensor] = _evaluated
    ) -> ForwardPass:
        """Run a model on a batch by ``evaluate(function, x, theta=theta)``, which returns (samples, m_y)."""
        theta = function.leaves()
        with torch.enable_grad(), PaddingRows() as padding:
            return cls(function, theta, evaluate(function, x, theta=theta), padding)

    @functools.cached_property
    def gradients(self) -> Mapping[str, torch.Tensor]:
        """``J^T u`` by parameter, with fixed weights u of the outputs."""
        return self.product(_weights(self.outputs.detach()))

    def product(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``J^T u`` by parameter, once.

        Raises
        ------
        InvalidInput
            The outputs have no gradient, or the backward pass raises an exception.
        """
        if not self.outputs.requires_grad:
            got = f"{type(self.function.source).__name__}, whose outputs have no gradient"
            need = "a forward without no_grad, detach or .data, that uses its parameters"
            raise InvalidInput("model", got, need, code="unsupported-model")
        leaves, options = list(self.theta.values()), {"allow_unused": True, "materialize_grads": True}
        try:
            gradients = torch.autograd.grad(self.outputs, leaves, weights, **options)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a backward pass of the user, or a checkpoint, can raise anything
            raise refused_backward(self.function.model, error) from error
        return dict(zip(self.theta, (g.detach() for g in gradients)))

    @property
    def padding_rows(self) -> dict[str, set[int]]:
        """Rows of slots that are padding."""
        names = {id(value): name for name, value in self.theta.items()}
        rows: dict[str, set[int]] = {}
        for table, index in self.padding.rows:
            if id(table) in names:
                rows.setdefault(names[id(table)], set()).add(index % len(table))
        return rows

    @property
    def other_leaves(self) -> bool:
        """Whether the outputs have derivatives by tensors that are not in theta."""
        known = {id(value) for value in self.theta.values()}
        leaves = (getattr(step, "variable", None) for step in _steps(self.outputs.grad_fn))
        return any(leaf is not None and id(leaf) not in known for leaf in leaves)


def _weights(outputs: torch.Tensor) -> torch.Tensor:
    return comparison_weights(outputs.numel(), outputs).reshape(outputs.shape)


class _Arbitration:
    """The comparisons on some samples, with one direction and one set of weights."""

    def __init__(
        self, function: Functional, x: torch.Tensor, computed_in: torch.dtype, single: Mapping[int, ForwardPass]
    ) -> None:
        self.function, self.x, self.single = function, x, single
        self.eps = float(torch.finfo(computed_in).eps)
        self.h = self.eps ** (1 / 3)
        self.padding: Mapping[str, set[int]] = {}

    def decide(self, batch: ForwardPass | None) -> Arbitrated:
        """Compare all gradients together; those of parameters one by one too, if a backward pass is the user's."""
        if batch is None:
            batch = ForwardPass.of(self.function, self.x)
        self.padding = batch.padding_rows
        outputs, graph = batch.outputs.detach(), batch.outputs.grad_fn
        gradients, weights = batch.gradients, _weights(outputs)
        direction = self._direction(gradients)
        steps = _custom_steps(graph)
        if self._wrong(gradients, self.x, direction, weights, outputs.double()) or (
            steps and self._wrong_parameter(gradients, direction, weights)
        ):
            return Arbitrated(self.function, refusal=self._refusal(gradients, direction, weights, graph))
        result = self._of_single_samples(gradients, direction, weights, graph)
        if not steps or result.refusal is not None:
            return result
        note = f"the backward pass of {', '.join(steps[:3])} is the model's own: it agrees with differences of the "
        note += "outputs, which see no errors below theirs, so nothing is proved with it"
        return dataclasses.replace(result, notes=(*result.notes, note), custom=True)

    def _of_single_samples(
        self, gradients: Mapping[str, torch.Tensor], direction: Theta, weights: torch.Tensor, graph: Any
    ) -> Arbitrated:
        """Compare the gradients of samples alone with those in batches.

        They are in one batch first: if the sum of their gradients is that of the gradients alone, so are the terms, up
        to what the comparison would allow them.
        """
        rows = graded_rows(self.x)
        alone = {row: self._alone(row).product(weights[row : row + 1]) for row in rows}
        if len(rows) > 1:
            if len(rows) < len(self.x):
                ends = torch.cat([self.x[:1], self.x[-1:]])
                gradients = self._gradients(ends, torch.cat([weights[:1], weights[-1:]]))
            first, *others = alone.values()
            if self._agree({name: sum((other[name] for other in others), g) for name, g in first.items()}, gradients):
                return Arbitrated(self.function)
        for row, single in alone.items():
            sample, again, u = self.x[row : row + 1], self.x[(row + 1) % len(self.x)][None], weights[row : row + 1]
            pair = self._gradients(torch.cat([sample, again]), torch.cat([u, torch.zeros_like(u)]))
            if self._agree(single, pair):
                continue
            if self._wrong(pair, sample, direction, u):
                return Arbitrated(self.function, refusal=self._refusal(pair, direction, weights, graph))
            if not self._wrong(single, sample, direction, u):
                return Arbitrated(self.function)  # kinks: both are derivatives
            differing = [name for name, g in pair.items() if not _close(single[name], g, self.eps)]
            note = "torch's backward pass is wrong for a batch of one sample (by differences of the outputs; for "
            note += f"{differing[0] if differing else 'theta'!r}): samples are differentiated in batches of two or more"
            return Arbitrated(dataclasses.replace(self.function, doubled=True), (note,))
        return Arbitrated(self.function)

    def _alone(self, row: int) -> ForwardPass:
        known = self.single.get(row)
        return ForwardPass.of(self.function, self.x[row : row + 1]) if known is None else known

    def _gradients(self, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        return ForwardPass.of(self.function, x).product(weights)

    def _direction(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return noise of the size of each parameter, less for those that would dominate the products."""
        generator = torch.Generator().manual_seed(0)
        sizes = {name: _size(value) or 0.1 for name, value in self.function.theta.items()}
        shares = sorted(share for name, g in gradients.items() if (share := sizes[name] * _norm(g)) > 0.0)
        middle = shares[len(shares) // 2] if shares else 1.0
        direction = {}
        for name, value in self.function.theta.items():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value)  # faster than randn
            noise = noise.sub_(0.5).mul_(math.sqrt(12.0))  # of mean 0 and variance 1
            share = sizes[name] * _norm(gradients[name])
            direction[name] = noise * (sizes[name] * min(1.0, middle / share if share else 1.0))
            for index in self.padding.get(name, ()):
                direction[name][index] = 0.0
        return direction

    def _moved(self, x: torch.Tensor, direction: Theta, step: float) -> torch.Tensor:
        """Return the outputs at theta moved by a step."""
        theta = {name: value + step * direction[name] for name, value in self.function.theta.items()}
        with torch.no_grad(), Convolutions():
            return self.function(theta, self.function.batch(x)).reshape(len(x), -1).double()

    def _difference(self, x: torch.Tensor, direction: Theta, h: float) -> tuple[torch.Tensor, float]:
        """Return J v by a central difference, and the largest output."""
        ends = [self._moved(x, direction, step) for step in (h, -h)]
        return (ends[0] - ends[1]) / (2.0 * h), float(ends[0].abs().max())

    def _is_kink(self, x: torch.Tensor, direction: Theta, weights: torch.Tensor, off: float) -> bool:
        """Whether the one-sided derivatives at theta are apart, so that one of them is off their mean by ``off``.

        What a second derivative adds to their difference is proportional to the step.
        """
        middle = self._moved(x, direction, 0.0)
        sizes = []
        for h in (self.h, self.h / 4.0):
            change = self._moved(x, direction, h) - 2.0 * middle + self._moved(x, direction, -h)
            sizes.append(0.5 * float((weights.double() * change / h).abs().sum()))
        return min(sizes) >= 0.9 * off and sizes[1] >= 0.5 * sizes[0]

    def _wrong(
        self,
        gradients: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        direction: Theta,
        weights: torch.Tensor,
        outputs: torch.Tensor | None = None,
    ) -> bool:
        """Whether J^T u contradicts differences that agree with each other at two steps.

        With the ``outputs`` at theta, the difference from them is tried first: it takes one evaluation, and its error,
        of the order of h, is below what the comparison allows unless the second derivative is large.
        """
        terms = [gradients[name].double() * direction[name].double() for name in gradients]
        product = float(sum(term.sum() for term in terms))
        if not math.isfinite(product):
            return False  # which the caller refuses, with the sample and the parameter
        spread = math.sqrt(float(sum(term.square().sum() for term in terms)))

        def compared(Jv: torch.Tensor, h: float, largest: float) -> tuple[float, float]:
            """Return u^T J v by a difference, and how far it may be from that of the gradients."""
            noise = 16.0 * self.eps / h * largest * float(weights.norm())
            scale = max(spread, abs(product), float(weights.norm() * Jv.norm()) / math.sqrt(weights.numel()))
            return float((weights.double() * Jv).sum()), max(_LEAST, 30.0 * self.h) * scale + noise

        if outputs is not None:
            Jv = (self._moved(x, direction, self.h) - outputs) / self.h
            value, limit = compared(Jv, self.h, float(outputs.abs().max()))
            if abs(value - product) <= limit:
                return False
        seen: list[float] = []
        for h in (self.h, self.h / 4.0):
            Jv, largest = self._difference(x, direction, h)
            value, limit = compared(Jv, h, largest)
            if not math.isfinite(value) or abs(value - product) <= limit:
                return False
            seen.append(value)
        off = abs(seen[0] - product)
        if abs(seen[0] - seen[1]) > 0.1 * off:  # a jump or a kink is between the ends
            return False
        return not self._is_kink(x, direction, weights, off)  # else theta itself is at a kink

    def _agree(self, first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
        """Whether two gradients are equal up to rounding, which leaves those that are zero at that of the largest."""
        floor = 1e3 * self.eps * max(_norm(g) for g in second.values())
        return all(_close(first[name], g, self.eps, floor) for name, g in second.items())

    def _wrong_parameter(self, gradients: Mapping[str, torch.Tensor], direction: Theta, weights: torch.Tensor) -> str:
        """Return the first parameter whose derivative contradicts differences in itself; empty if none does."""
        for candidate in list(gradients)[:_NAMED]:
            part = {n: v if n == candidate else torch.zeros_like(v) for n, v in direction.items()}
            if self._wrong(gradients, self.x[: len(weights)], part, weights[: len(self.x)]):
                return candidate
        return ""

    def _refusal(
        self, gradients: Mapping[str, torch.Tensor], direction: Theta, weights: torch.Tensor, graph: Any
    ) -> InvalidInput:
        """Name the parameter whose derivative is wrong, and what in the graph may be the reason."""
        culprit, need = "", _NEED
        name = self._wrong_parameter(gradients, direction, weights)
        steps = _custom_steps(graph)
        if steps:
            culprit = f": the custom backward of {', '.join(steps[:3])}"
            need = _CHECKPOINTS if "CheckpointFunction" in steps else need
        model = type(self.function.source).__name__
        got = f"{model}, whose backward pass is not the derivative of its outputs"
        got += (f" by {name!r}" if name else "") + f" (by differences of the outputs){culprit}"
        return InvalidInput("model", got, need, code="unsupported-model")


def refused_backward(model: nn.Module, error: Exception) -> InvalidInput:
    """Return the exception for a backward pass that raises one, with a remedy.

    Examples
    --------
    >>> print(refused_backward(nn.Linear(1, 1), RuntimeError("checkpoint: use_reentrant=True")).need)
    torch.utils.checkpoint with use_reentrant=False
    """
    words = first_line(error)
    need = "a model that torch.autograd.grad differentiates"
    if "second time" in str(error):
        need = "tensors that are kept between two forward passes without their graph: kept = tensor.detach()"
    elif "use_reentrant" in str(error) or "checkpoint" in str(error).lower():
        need = _CHECKPOINTS
    got = f"{module_name(*failing_module(model, error))}, whose backward pass raised {type(error).__name__}: {words}"
    return InvalidInput("model", got, need, code="unsupported-model")


def _steps(graph: Any) -> Iterator[Any]:
    """Yield the steps of a graph of autograd."""
    stack, seen = [graph] if graph is not None else [], {graph}
    while stack:
        step = stack.pop()
        yield step
        following = [part for part, _ in step.next_functions if part is not None and part not in seen]
        seen.update(following)
        stack += following


def _custom_steps(graph: Any) -> list[str]:
    """Return the names of the user's functions in a graph of autograd."""
    kind = torch.autograd.function.BackwardCFunction
    custom = [step for step in _steps(graph) if isinstance(step, kind) and not _library(step)]
    return list(dict.fromkeys(type(step).__name__.removesuffix("Backward") for step in custom))


def _library(step: Any) -> bool:
    """Whether a step is a convolution of :mod:`alignver.network.convolution`."""
    return bool(type(step)._forward_cls.__module__ == Convolutions.__module__)


def _close(first: torch.Tensor, second: torch.Tensor, eps: float, floor: float = 0.0) -> bool:
    return _norm(first - second) <= math.sqrt(eps) * _norm(second) + floor


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _size(tensor: torch.Tensor) -> float:
    return _norm(tensor) / math.sqrt(max(1, tensor.numel()))
