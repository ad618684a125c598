"""The Gram matrix M = J J^T of a torch model, layer by layer, without forming J."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from alignver import require
from alignver.arrays import available_memory
from alignver.errors import InvalidInput, first_line
from alignver.features.threads import threads_for
from alignver.jacobians import jacobian
from alignver.jacobians.contractions import Rows, add_product, mirror
from alignver.jacobians.gram_planning import SUMS, GramPlan, plan_slots, uniform, with_blocks
from alignver.jacobians.jacobian import checked_chunk, nonfinite_derivative, probed_copy
from alignver.jacobians.sample_blocks import Block, OutputScan, block, scan_outputs, verify_against_backward
from alignver.limits import in_memory, in_time
from alignver.network.functional import (
    Functional,
    as_module,
    at_state,
    require_memory,
    require_same_dtype,
    require_state,
)
from alignver.network.inputs import as_inputs
from alignver.network.validate_model import probe, recomputes, require_own_values, validate_model
from alignver.progress import track

_SCANNED = 5  # samples of the pass that finds the structure: a prime, so that few other axes have this size


@in_memory
@in_time
def gram(
    model: nn.Module | Callable[..., Any],
    X: Any,
    X2: Any = None,
    *,
    params: Mapping[str, torch.Tensor] | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
    chunk_size: int | None = None,
    memory: int | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
    max_seconds: float | None = None,
) -> torch.Tensor:
    """Return the Gram matrix of the Jacobian (the empirical neural tangent kernel) without forming the Jacobian.

    ``M = J J^T`` with J of :func:`alignver.jacobians.jacobian.jacobian`; entry (j n + i, l n2 + k) is the inner
    product of the derivatives of f(x_i, theta)_j and f(x2_k, theta)_l. With ``X2``, the cross matrix ``J(X) J(X2)^T``.

    Parameters
    ----------
    model : torch.nn.Module or callable
        As for :func:`~alignver.jacobians.jacobian.jacobian`, and not changed; or, with ``params``, a function
        ``model(params, x)``.
    X, X2 : torch.Tensor or numpy.ndarray
        Inputs, one sample per row: (n, ...) and (n2, ...).
    params : mapping of str to torch.Tensor, optional
        The parameters of a functional model: all of them belong to theta. A tensor under two names is one parameter.
    dtype : str, optional
        ``"float64"``: parameters, buffers and inputs are converted (exactly) to float64 for the computation. None or
        ``"same"``: the model's own dtype.
    include_frozen : bool
        Differentiate with respect to parameters with ``requires_grad=False`` too.
    chunk_size : int, optional
        Samples in a block; by default as many as fit into ``memory``.
    memory : int, optional
        Bytes for the result and the work on it, approximately; by default half of the free memory. With less memory
        the model is differentiated again for each group of parameters whose factors fit: slower, never quadratic in n.
        The largest layer of one sample must fit.
    state : mapping of str to torch.Tensor, optional
        Parameters and buffers to use in place of the module's own: a state dict.
    max_seconds : float, optional
        Stop after about this time.

    Returns
    -------
    torch.Tensor
        (n m_y, n2 m_y), on the model's device; exactly symmetric without ``X2``.

    Raises
    ------
    InvalidInput
        As :func:`~alignver.jacobians.jacobian.jacobian`; the result or the largest layer does not fit in memory;
        derivatives are NaN or Inf, or their products overflow; the time is over.

    Notes
    -----
    Rigor: floating-point, with errors of the order of the eps of the dtype of computation; there is no sampling error.

    A linear layer on vectors contributes ``(A A^T) o (B B^T)`` with its inputs A and the gradients B of the network's
    outputs by the layer's outputs; other structured layers sum such products over positions, or sum over positions
    first, whichever takes fewer operations (:func:`plan` reports the choice and its reason). Uses of one parameter at
    several places are summed before the inner product. Parameters that are used in any other way are differentiated
    sample by sample. The factors of every block are compared with an ordinary backward pass before they are used,
    unless the modules prove that the model is a chain of linear layers and elementwise functions.

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
    options: dict[str, Any] = {
        "include_frozen": include_frozen,
        "chunk_size": chunk_size,
        "memory": memory,
        "state": state,
    }
    with GramianComputation.open(model, X, X2, params=params, dtype=dtype, **options) as computation:
        refused: dict[str, str] = {}
        while True:
            planned = computation.plan(refused)
            try:
                with threads_for(planned.flops):
                    return computation.compute(planned)
            except _Disagreement as disagreement:
                refused |= dict.fromkeys(disagreement.names, str(disagreement))


def plan(
    model: nn.Module | Callable[..., Any],
    X: Any,
    X2: Any = None,
    *,
    params: Mapping[str, torch.Tensor] | None = None,
    dtype: str | None = "float64",
    include_frozen: bool = False,
    chunk_size: int | None = None,
    memory: int | None = None,
) -> GramPlan:
    """Return the plan of :func:`gram` for the same call: the formula of every slot, blocks, operations and memory.

    ``gram`` follows the plan except for slots whose factors disagree with a backward pass: those are differentiated
    sample by sample.

    Returns
    -------
    GramPlan
        ``describe()`` returns it as text.

    Raises
    ------
    InvalidInput
        As :func:`gram`, except for errors that only the derivatives reveal.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> [(slot.name, slot.engine) for slot in plan(net, torch.zeros(9, 3)).slots][0]
    ('0.weight', 'pairs')
    """
    options: dict[str, Any] = {"include_frozen": include_frozen, "chunk_size": chunk_size, "memory": memory}
    with GramianComputation.open(model, X, X2, params=params, dtype=dtype, **options) as computation:
        return computation.plan({})


class _Disagreement(Exception):
    """The formulas of some slots disagree with the model."""

    def __init__(self, names: Iterable[str], why: str) -> None:
        self.names = tuple(names)
        super().__init__(why)


@dataclasses.dataclass(eq=False)
class GramianComputation:
    """One call: the model, the inputs of both sides, and the structure found so far."""

    function: Functional
    x: torch.Tensor
    x2: torch.Tensor | None
    m_y: int
    computed_in: torch.dtype
    plain: bool
    chunk_size: int | None
    memory: int | None
    scan: OutputScan = dataclasses.field(init=False)

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        model: Any,
        X: Any,
        X2: Any = None,
        *,
        params: Mapping[str, torch.Tensor] | None = None,
        dtype: str | None,
        include_frozen: bool = False,
        chunk_size: int | None = None,
        memory: int | None = None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[GramianComputation]:
        """Validate the arguments, and bind the model to its inputs until the end of the block."""
        if params is not None:
            if state is not None:
                raise InvalidInput(
                    "state", "a state together with params", "one of the two", code="conflicting-arguments"
                )
            model = as_module(model, params)
        model = validate_model(model, include_frozen=include_frozen)
        values = {} if state is None else require_state(model, state)
        chunk = checked_chunk(chunk_size)
        if memory is not None:
            memory = require.integer("memory", memory, least=1)
        with probed_copy(model, X, dtype, include_frozen=include_frozen) as (function, x, probed):
            x2 = None if X2 is None else _second_inputs(X2, function, probed.m_y)
            if values:
                again = recomputes(function, x[:1])
                function = at_state(function, values)  # only now: the probes need the module's own values
                if again:
                    require_own_values(function, "state")
            yield cls(function, x, x2, probed.m_y, probed.computed_in, probed.plain, chunk, memory)

    def plan(self, refused: dict[str, str], *, room: int | None = None) -> GramPlan:
        """Find the structure and choose the formulas; ``refused`` slots get none.

        ``room``, in bytes, is for blocks of factors that are used without the matrix.
        """
        n, n2 = len(self.x), None if self.x2 is None else len(self.x2)
        rows, columns = n * self.m_y, (n if n2 is None else n2) * self.m_y
        if room is None:
            require_memory(rows * columns, self.function, f"a Gram matrix of {rows} x {columns},", "a matrix")
        if not refused:
            source = self.x if n2 is None or n >= n2 else self.x2
            assert source is not None
            try:
                self.scan = scan_outputs(self.function, source[:_SCANNED])
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:  # the model does not run under observation: its structure stays unknown
                refused |= dict.fromkeys(self.function.layout.names, _unobservable(error))
                self.scan = OutputScan(1, (), (), frozenset())
        share = 2 if self.memory is None and room is None else 1
        memory = _available(self.function) // 2 if self.memory is None else self.memory
        result = rows * columns * torch.finfo(self.function.dtype).bits // 8
        memory = memory if room is None else result + room
        slots = plan_slots(self.function, self.scan, n, n2, self.m_y, refused, max(0, memory - result) // 2)
        return with_blocks(self.function, self.scan, slots, n, n2, self.m_y, self.chunk_size, memory, share)

    def block(self, x: torch.Tensor, outputs: range, slots: Sequence[str]) -> tuple[Block, frozenset[str]]:
        """Differentiate some samples and outputs by the uses of ``slots``; return the slots that disagree too."""
        made = block(self.function, x, outputs, slots, self.scan.batch_axes)
        return made, verify_against_backward(self.function, made)

    def compute(self, planned: GramPlan) -> torch.Tensor:
        """Fill the matrix as planned; raises :class:`_Disagreement` if a slot's formula disagrees with the model."""
        n, m_y = len(self.x), self.m_y
        other = self.x if self.x2 is None else self.x2
        M = self.x.new_zeros((n * m_y, len(other) * m_y), dtype=self.function.dtype, device=self.function.device)
        verified: set[tuple[bool, int, int, str]] = set()
        sides = [(False, self.x)] if self.x2 is None else [(False, self.x), (True, self.x2)]
        steps = [
            (group, right, x, start, outputs)
            for group in planned.groups
            for right, x in sides
            for start, outputs in _block_starts(len(x), m_y, planned)
        ]
        label = f"Gram matrix, {M.shape[0]} x {M.shape[1]}, about {planned.peak_bytes / 1e6:.0f} MB"
        rows: dict[bool, Rows] = {}
        for k, (group, right, x, start, outputs) in enumerate(track(steps, label)):
            names = list(dict.fromkeys(piece.name for piece in group if piece.engine != "per sample"))
            keys = {(right, start, outputs.start, name) for name in names}
            compare = not self.plain and not keys <= verified
            made = self._differentiated(x[start : start + planned.samples], outputs, names, compare)
            if not self.plain:  # for a chain of linear layers and elementwise functions the formulas are proved
                sums = [piece.name for piece in group if piece.engine in SUMS]
                irregular = [name for name in sums if not uniform(name, [part.use for part in made.parts[name]])]
                if irregular:
                    raise _Disagreement(irregular, "its uses differ from sample to sample")
                wrong = verify_against_backward(self.function, made) if compare else frozenset[str]()
                if wrong:
                    raise _Disagreement(wrong, "its formula disagrees with a backward pass")
                verified |= keys
            side = rows.setdefault(right, Rows(self.function, group, len(x), m_y))
            differing = side.add(made, start)
            if differing:
                raise _Disagreement(differing, "its positions differ from sample to sample")
            if k + 1 == len(steps) or steps[k + 1][0] is not group:
                add_product(M, rows[False], rows[self.x2 is not None])
                rows = {}
        if self.x2 is None:
            mirror(M)
        self._require_finite(M)
        return M

    def _differentiated(self, x: torch.Tensor, outputs: range, names: Sequence[str], compare: bool) -> Block:
        try:
            return block(self.function, x, outputs, names, self.scan.batch_axes, compare=compare)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # the model ran on the scanned samples, but not on these
            raise _Disagreement(names, _unobservable(error)) from error

    def _require_finite(self, M: torch.Tensor) -> None:
        if bool(torch.isfinite(M.sum())) or bool(torch.isfinite(M).all()):
            return
        i, j = (int(k) for k in (~torch.isfinite(M)).nonzero()[0])
        for x, row in ((self.x, i), (self.x if self.x2 is None else self.x2, j)):
            output, sample = divmod(row, len(x))
            derivatives = jacobian.loop(self.function, x[sample : sample + 1], self.m_y)
            for name, columns in zip(self.function.layout.names, derivatives):
                if not bool(torch.isfinite(columns[0, output]).all()):
                    raise nonfinite_derivative(output, name, sample)
        need = "outputs on a smaller scale"
        raise InvalidInput("model", "derivatives whose products overflow", need, code="not-finite")


def _second_inputs(X2: Any, function: Functional, m_y: int) -> torch.Tensor:
    try:
        x2 = as_inputs(X2, function.device)
        require_same_dtype(x2, function.dtype)
        outputs = probe(function, x2).m_y
    except InvalidInput as error:
        if error.argument != "X":
            raise
        raise InvalidInput("X2", error.got, error.need, error.code) from error
    if outputs != m_y:
        raise InvalidInput("X2", f"inputs with {outputs} outputs", f"{m_y} outputs, as for X", code="wrong-shape")
    return x2


def _available(function: Functional) -> int:
    if function.device.type == "cuda":
        return torch.cuda.mem_get_info(function.device)[0]
    return available_memory()


def _unobservable(error: Exception) -> str:
    return f"not observable: {first_line(error)[:100]}"


def _block_starts(n: int, m_y: int, planned: GramPlan) -> list[tuple[int, range]]:
    """Return the first sample and the outputs of every block."""
    cut = range(0, m_y, planned.outputs)
    return [(start, range(j, min(j + planned.outputs, m_y))) for start in range(0, n, planned.samples) for j in cut]
