"""av.gram: M = J J^T of a torch model, layer by layer.

The Gram matrix M = J J^T of a torch model, layer by layer, without forming J.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alignver.errors import InvalidInput, first_line
from alignver.jacobians import jacobian
from alignver.jacobians.contractions import add_pair
from alignver.jacobians.gram_planning import GramPlan, SlotPlan, plan_slots, uniform, with_blocks
from alignver.jacobians.jacobian import bind, checked_chunk
from alignver.jacobians.sample_blocks import Block, OutputScan, block, scan_outputs, verify_against_backward
from alignver.network.functional import (
    Functional,
    Theta,
    as_module,
    at_state,
    require_memory,
    require_same_dtype,
    require_state,
)
from alignver.network.inputs import as_asked, as_inputs
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe, recomputes, require_own_values, validate_model
from alignver.progress import track

__all__ = ["GramPlan", "GramianComputation", "SlotPlan", "gram", "plan"]
_SURVEYED = 5  # samples of the pass that looks for structure: a prime, so that few axes have that many by chance


def gram(
    model: nn.Module | Callable[..., Any],
    X: Any,
    X2: Any = None,
    *,
    params: Mapping[str, torch.Tensor] | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
    chunk_size: int | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the Gram matrix of the Jacobian (the empirical neural tangent kernel) without forming the Jacobian.

    ``M = J J^T`` with J of :func:`alignver.jacobians.jacobian.jacobian`; entry (j n + i, l n2 + k) is the inner
    product of the derivatives of f(x_i, theta)_j and f(x2_k, theta)_l. With ``X2``, the cross matrix ``J(X) J(X2)^T``.

    Parameters
    ----------
    model : torch.nn.Module or callable
        As :func:`~alignver.jacobians.jacobian.jacobian` takes it, and left as it was; or, with ``params``, a function
        ``model(params, x)``.
    X, X2 : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...) and (n2, ...).
    params : mapping of str to torch.Tensor, optional
        The parameters of a functional model: all of them count as theta. A tensor under two names is one parameter.
    dtype : str, optional
        ``"float64"``: parameters, buffers and inputs are widened (exactly) for the computation. None or ``"same"``: the
        model's own dtype.
    include_frozen : bool
        Differentiate by parameters with ``requires_grad=False`` too.
    chunk_size : int, optional
        Samples in a block; by default as many as keep the factors of the blocks at work near 1 GB.
    state : mapping of str to torch.Tensor, optional
        Parameters and buffers to use in place of the module's own: a state dict.

    Returns
    -------
    torch.Tensor
        (n m_y, n2 m_y), on the model's device; exactly symmetric without ``X2``.

    Raises
    ------
    InvalidInput
        What :func:`~alignver.jacobians.jacobian.jacobian` refuses; a result that does not fit in memory; derivatives
        that are NaN or Inf, or whose products overflow.

    Notes
    -----
    Rigor: floating point, with errors of the order of the eps of the dtype of computation; nothing is sampled.

    A linear layer on vectors contributes ``(A A^T) o (B B^T)`` with its inputs A and the gradients B of the network's
    outputs by its own; other structured layers sum such products over positions, or sum positions first, whichever
    takes fewer operations (:func:`plan` says which, and why). Uses of one parameter at several places are summed
    before the inner product is taken. Parameters that are used in any other way are differentiated sample by sample.
    The factors of every block are compared with an ordinary backward pass before they are used, except where the
    modules alone prove a chain of linear layers and elementwise functions.

    Source: Novak, Sohl-Dickstein, Schoenholz, "Fast Finite Width Neural Tangent Kernel" (2022), for the contractions.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> gram(layer, [[1.0, 2.0], [3.0, 4.0]])
    tensor([[ 5., 11.,  0.,  0.],
            [11., 25.,  0.,  0.],
            [ 0.,  0.,  5., 11.],
            [ 0.,  0., 11., 25.]], dtype=torch.float64)
    >>> gram(lambda p, x: x @ p["w"], [[1.0, 2.0]], [[3.0, 4.0]], params={"w": torch.ones(2, 1)})
    tensor([[11.]], dtype=torch.float64)
    """
    work = GramianComputation.of(model, params, include_frozen, chunk_size, state)
    with preserve_state(work.model):
        work.bind(X, X2, dtype)
        with as_asked(work.function.device, work.function.dtype):
            refused: dict[str, str] = {}
            while True:
                planned = work.plan(refused)
                try:
                    return work.compute(planned)
                except _Disagreement as found:
                    refused |= dict.fromkeys(found.names, str(found))


def plan(
    model: nn.Module | Callable[..., Any],
    X: Any,
    X2: Any = None,
    *,
    params: Mapping[str, torch.Tensor] | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
    chunk_size: int | None = None,
) -> GramPlan:
    """Say how :func:`gram` would compute the same call: the formula of every slot, blocks, operations and memory.

    ``gram`` follows the plan but for slots whose factors turn out to disagree with a backward pass: those are
    differentiated sample by sample.

    Returns
    -------
    GramPlan
        ``describe()`` makes text of it.

    Raises
    ------
    InvalidInput
        What :func:`gram` refuses, but for what only the derivatives show.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> [(slot.name, slot.engine) for slot in plan(net, torch.zeros(9, 3)).slots][0]
    ('0.weight', 'pairs')
    """
    work = GramianComputation.of(model, params, include_frozen, chunk_size)
    with preserve_state(work.model):
        work.bind(X, X2, dtype)
        with as_asked(work.function.device, work.function.dtype):
            return work.plan({})


class _Disagreement(Exception):
    """The factors of some slots are not those of the model."""

    def __init__(self, names: Iterable[str], why: str) -> None:
        self.names = tuple(names)
        super().__init__(why)


@dataclasses.dataclass(eq=False)
class GramianComputation:
    """One call: the model, both sides, and what is known of its structure."""

    model: nn.Module
    include_frozen: bool
    chunk_size: int | None
    values: Theta
    function: Functional = dataclasses.field(init=False)
    x: torch.Tensor = dataclasses.field(init=False)
    x2: torch.Tensor | None = dataclasses.field(init=False)
    m_y: int = dataclasses.field(init=False)
    computed_in: torch.dtype = dataclasses.field(init=False)
    plain: bool = dataclasses.field(init=False)
    found: OutputScan = dataclasses.field(init=False)

    @classmethod
    def of(
        cls,
        model: Any,
        params: Mapping[str, torch.Tensor] | None,
        include_frozen: bool,
        chunk_size: int | None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> GramianComputation:
        """Refuse what no work can be about, before anything runs."""
        if params is not None:
            if state is not None:
                raise InvalidInput("state", "a state beside params", "one of the two")
            model = as_module(model, params)
        model = validate_model(model, include_frozen=include_frozen)
        values = {} if state is None else require_state(model, state)
        return cls(model, include_frozen, checked_chunk(chunk_size), values)

    def bind(self, X: Any, X2: Any, dtype: str | None) -> None:
        """Bind the model to copies of its parameters, and the inputs; the caller guards the model."""
        self.function, self.x = bind(self.model, X, dtype, include_frozen=self.include_frozen)
        self.x2 = None
        with as_asked(self.function.device, self.function.dtype):
            probed = probe(self.function, self.x)
        self.m_y, self.computed_in, self.plain = probed.m_y, probed.computed_in, probed.plain
        if X2 is not None:
            try:
                self.x2 = as_inputs(X2, self.function.device)
                require_same_dtype(self.x2, self.function.dtype)
                with as_asked(self.function.device, self.function.dtype):
                    other = probe(self.function, self.x2).m_y
            except InvalidInput as error:
                if error.argument != "X":
                    raise
                raise InvalidInput("X2", error.got, error.need) from error
            if other != self.m_y:
                raise InvalidInput("X2", f"inputs with {other} outputs", f"{self.m_y} outputs, as X has")
        if self.values:
            with as_asked(self.function.device, self.function.dtype):
                again = recomputes(self.function, self.x[:1])
            self.function = at_state(self.function, self.values)  # now: the probes look at the module as it is
            if again:
                require_own_values(self.function, "state")

    def plan(self, refused: dict[str, str]) -> GramPlan:
        """Survey the structure and choose the formulas; ``refused`` slots get none."""
        n, n2 = len(self.x), None if self.x2 is None else len(self.x2)
        rows, columns = n * self.m_y, (n if n2 is None else n2) * self.m_y
        require_memory(rows * columns, self.function, f"a Gram matrix of {rows} x {columns},", "a matrix")
        if not refused:
            source = self.x if n2 is None or n >= n2 else self.x2
            assert source is not None
            try:
                self.found = scan_outputs(self.function, source[:_SURVEYED])
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # a model that does not run under observation has no structure we could use
                refused |= dict.fromkeys(self.function.slots.names, _unobservable(error))
                self.found = OutputScan(1, (), (), frozenset())
        slots = plan_slots(self.function, self.found, n, n2, self.m_y, refused)
        return with_blocks(self.function, self.found, slots, n, n2, self.m_y, self.chunk_size)

    def block(self, x: torch.Tensor, outputs: range, wanted: Sequence[str]) -> tuple[Block, frozenset[str]]:
        """Differentiate some samples and outputs by the uses of ``wanted`` slots; and name those that disagree."""
        made = block(self.function, x, outputs, wanted, self.found.layouts)
        return made, verify_against_backward(self.function, made)

    def compute(self, planned: GramPlan) -> torch.Tensor:
        """Fill the matrix as planned; raises where a slot's formula turns out not to be the model's."""
        n, m_y = len(self.x), self.m_y
        other = self.x if self.x2 is None else self.x2
        M = self.x.new_zeros((n * m_y, len(other) * m_y), dtype=self.function.dtype, device=self.function.device)
        view = M.view(m_y, n, m_y, len(other))
        wanted = [s.name for s in planned.slots if s.engine in ("pairs", "contract", "gradients")]
        sums = [s.name for s in planned.slots if s.engine in ("pairs", "contract")]
        checked: set[tuple[bool, int, int]] = set()

        def make(x: torch.Tensor, right: bool, start: int, outputs: range) -> Block:
            part = x[start : start + planned.samples]
            try:
                made = block(self.function, part, outputs, wanted, self.found.layouts)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # it ran on the samples of the survey, and not on these
                raise _Disagreement(wanted, _unobservable(error)) from error
            # Of a chain of linear layers and elementwise functions the formulas are known to hold.
            if self.plain or (right, start, outputs.start) in checked:
                return made
            other = [name for name in sums if not uniform(name, [part.use for part in made.parts[name]])]
            if other:
                raise _Disagreement(other, "its uses differ from sample to sample")
            wrong = verify_against_backward(self.function, made)
            if wrong:
                raise _Disagreement(wrong, "its formula disagrees with a backward pass")
            checked.add((right, start, outputs.start))
            return made

        left, right = _places(n, m_y, planned), _places(len(other), m_y, planned)
        label = f"Gram matrix, {M.shape[0]} x {M.shape[1]}, about {planned.peak_bytes / 1e6:.0f} MB"
        steps = _steps(len(left), len(right), self.x2 is None)
        held: tuple[int, Block] | None = None
        for p, q in track(steps, label):
            if held is None or held[0] != p:
                held = (p, make(self.x, False, *left[p]))
            first = held[1]
            second = first if self.x2 is None and p == q else make(other, self.x2 is not None, *right[q])
            rows = (slice(first.outputs.start, first.outputs.stop), slice(left[p][0], left[p][0] + first.n))
            columns = (slice(second.outputs.start, second.outputs.stop), slice(right[q][0], right[q][0] + second.n))
            if len(steps) == 1:
                add_pair(M, self.function, planned.slots, first, second, m_y)
                continue
            target = M.new_zeros((first.rows, second.rows))
            add_pair(target, self.function, planned.slots, first, second, m_y)
            tile = target.view(first.m, first.n, second.m, second.n)
            view[rows[0], rows[1], columns[0], columns[1]] = tile
            if self.x2 is None and p != q:
                view[columns[0], columns[1], rows[0], rows[1]] = tile.permute(2, 3, 0, 1)
        self._require_finite(M)
        return M

    def _require_finite(self, M: torch.Tensor) -> None:
        if bool(torch.isfinite(M.sum())) or bool(torch.isfinite(M).all()):
            return
        i, j = (int(k) for k in (~torch.isfinite(M)).nonzero()[0])
        for x, row in ((self.x, i), (self.x if self.x2 is None else self.x2, j)):
            output, sample = divmod(row, len(x))
            derivatives = jacobian.loop(self.function, x[sample : sample + 1], self.m_y)
            for name, columns in zip(self.function.slots.names, derivatives):
                if not bool(torch.isfinite(columns[0, output]).all()):
                    got = (
                        f"a derivative of output {output} by parameter {name!r} that is NaN or Inf, at sample {sample}"
                    )
                    need = "a differentiable model: look for sqrt, norm, log or a power at 0"
                    raise InvalidInput("model", got, need)
        raise InvalidInput("model", "derivatives whose products overflow", "outputs on a smaller scale")


def _unobservable(error: Exception) -> str:
    return f"not observable: {first_line(error)[:100]}"


def _steps(left: int, right: int, symmetric: bool) -> list[tuple[int, int]]:
    return [(p, q) for p in range(left) for q in range(p + 1 if symmetric else right)]


def _places(n: int, m_y: int, planned: GramPlan) -> list[tuple[int, range]]:
    """Return the first sample and the outputs of every block."""
    cut = range(0, m_y, planned.outputs)
    return [(start, range(j, min(j + planned.outputs, m_y))) for start in range(0, n, planned.samples) for j in cut]
