"""The inputs of an alignment check (Definition 2): validated model and data, modified targets, and equal samples.

:func:`prepare_alignment` runs before any long computation. :func:`inputs_again` recomputes the inputs of an existing
certificate from the model and the data.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.arrays import EPS, host, is_text
from alignver.errors import InvalidInput
from alignver.jacobians.factored_proof import LayerFactors, arrays_of, layer_factors
from alignver.jacobians.jacobian_form import last_nonlinearity, plan, probed_outputs, represent
from alignver.kernel import Certificate
from alignver.network.adapt import adapted
from alignver.network.enclosures import EnclosedNetwork, traced_again
from alignver.network.functional import parameter_layout
from alignver.network.inputs import as_inputs, as_targets, dtype_name, resolve_dtype
from alignver.network.validate_model import probes, validate_model
from alignver.proof.duplicate_inputs import DuplicateInputs
from alignver.results import shown_down, shown_up
from alignver.samples import fingerprints, open_samples
from alignver.theory.losses import loss_name, modified_targets

Matrix = npt.NDArray[np.float64]

_MOST_ROWS = 4096  # samples in a batch of a graph that is traced again

_CLAIMS = ("membership", "non-membership", "factored-membership")
_OF_DATA = ("conflicting", "consistent")
_OF_NETWORK = ("network-alignment", "network-misalignment")


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedAlignment:
    """The question whether ``y = vec(Y_l)`` is in the column space of the Jacobian of a model on some inputs.

    Samples with equal inputs have equal rows at every theta. If their targets are equal too, one sample represents all
    of them, and the question concerns the distinct samples. If their targets differ, the answer is known.

    Attributes
    ----------
    model : torch.nn.Module
    x : torch.Tensor
        (n, ...), on the model's device: the distinct inputs, or all inputs if there is a conflict.
    m_y : int
        Number of outputs.
    loss : str
        The name of the loss.
    given : object
        The caller's targets of all samples, as an array.
    targets : numpy.ndarray
        (n, m_y), the modified targets Y_l of the samples in ``x``.
    duplicates : DuplicateInputs
        The equal samples.
    inputs : torch.Tensor
        All inputs.
    notes : tuple of str
        What the reader has to know of the derivatives.
    refusal : InvalidInput or None
        Why torch's derivatives are not those of the model: the Jacobian then cannot be computed.
    graded : bool
        Whether the model needs gradients in every pass (:class:`~alignver.network.functional.Functional`).
    custom : bool
        Whether a backward pass of the user makes a part of J: nothing about J is then a proof about the model.
    """

    model: nn.Module
    x: torch.Tensor
    m_y: int
    loss: str
    given: Any
    targets: Matrix
    duplicates: DuplicateInputs
    inputs: torch.Tensor
    notes: tuple[str, ...] = ()
    refusal: InvalidInput | None = None
    graded: bool = False
    custom: bool = False

    @property
    def y(self) -> Matrix:
        """``vec(Y_l)``, (n m_y,): columns stacked, entry (i, j) at j n + i."""
        return self.targets.ravel(order="F")

    @property
    def merged(self) -> bool:
        """Whether a sample in ``x`` represents several samples."""
        return len(self.x) < self.duplicates.n

    def of_all(self, rows: Matrix) -> Matrix:
        """Expand rows of the samples in ``x`` to rows of all samples."""
        return rows[self.duplicates.position] if self.merged else rows


def prepare_alignment(
    model: Any,
    X: Any,
    Y: Any,
    loss: Any,
    dtype: str | None,
    *,
    select: Any = None,
    forward_args: Mapping[str, Any] | None = None,
) -> PreparedAlignment:
    """Validate a model, inputs and targets; compute the modified targets and find equal samples.

    ``select`` and ``forward_args`` are those of :func:`alignver.network.adapt.adapted`.

    Raises
    ------
    InvalidInput
        The model, the inputs or the targets cannot be checked; the loss is unknown; the outputs are no logits of it.

    Examples
    --------
    >>> prepared = prepare_alignment(nn.Linear(1, 1), [[0.0], [1.0], [0.0]], [1.0, 3.0, 1.0], "squared", "float64")
    >>> prepared.y.tolist(), prepared.duplicates.distinct
    ([1.0, 3.0], 2)
    """
    loss = loss_name(loss)
    model, X, Y = adapted(validate_model(model), X, Y, select=select, forward_args=forward_args)
    x = as_inputs(X, next(model.parameters()).device)
    given = as_targets(Y, len(x))
    probed = probed_outputs(model, x, dtype)
    m_y = probed.m_y
    if loss != "squared":
        _require_logits(model, x, m_y, loss, dtype)
    targets = modified_targets(given, loss, len(x), m_y)
    duplicates = duplicates_of(model, x, given, dtype)
    every = x
    if duplicates.distinct < len(x) and not duplicates.conflicts.count:
        rows = duplicates.representatives
        x, targets = x[torch.from_numpy(rows).to(x.device)], targets[rows]
    notes = probed.notes
    if is_text(given):
        names = sorted(set(np.asarray(given).reshape(-1).tolist()))
        notes += (f"the classes are in sorted order: {', '.join(f'{k} is {name!r}' for k, name in enumerate(names))}",)
    special = notes, probed.refusal, probed.function.graded, probed.custom
    return PreparedAlignment(model, x, m_y, loss, given, targets, duplicates, every, *special)


def _require_logits(model: nn.Module, x: torch.Tensor, m_y: int, loss: str, dtype: str | None) -> None:
    """Refuse outputs that are not the values before the last nonlinearity, which the loss contains."""
    if m_y == 1 and loss == "cross_entropy":
        got = "'cross_entropy' of one output, whose softmax is 1 at every theta"
        raise InvalidInput("loss", got, "loss='binary_cross_entropy', or an output for each class")
    last = last_nonlinearity(model, probes(x), dtype)
    if last:
        got = f"{type(model).__name__}, whose outputs are those of a {last}, which {loss!r} contains"
        need = "logits: the model without its last nonlinearity (of a Sequential, model[:-1])"
        raise InvalidInput("model", got, need, code="unsupported-model")


def duplicates_of(model: nn.Module, x: torch.Tensor, given: Any, dtype: str | None) -> DuplicateInputs:
    """Find equal inputs after rounding to ``dtype``, in which the model runs; ``given`` are targets or None.

    Examples
    --------
    >>> duplicates_of(nn.Linear(1, 1), torch.tensor([[1.0], [2.0], [1.0]]), None, "float64").first.tolist()
    [0, 1, 0]
    """
    compute = resolve_dtype(model, dtype)
    rounds = x.is_floating_point() and EPS[dtype_name(x.dtype)] < EPS[dtype_name(compute)]
    rounded = x.to(compute) if rounds else x
    return DuplicateInputs.of(fingerprints(open_samples(rounded, given)))


def inputs_again(
    certificate: Certificate,
    model: Any,
    X: Any,
    Y: Any,
    *,
    loss: str,
    dtype: str | None = "float64",
    chunk_size: int | None = None,
) -> tuple[dict[str, Matrix], tuple[str, ...], bool]:
    """Recompute the inputs of a certificate of :func:`~alignver.checks.alignment.check_alignment`.

    They are those of the network (the values of its leaves, the inputs, and y); or J (or the triangle of its streamed
    QR, whichever has the shape in the certificate) and y; or y and those factors of the layers that the certificate
    does not hold. Digits depend on the machine, the version of torch and the
    number of threads: a different digest means another computation, not a wrong claim.

    Returns
    -------
    inputs : dict of str to array
        For :func:`alignver.recheck`; X and Y themselves if the claim is about the data.
    notes : tuple of str
        How the inputs relate to the model, in sentences.
    covered : bool
        False if the model is outside the ball around the factors in the certificate: the certificate then proves
        nothing about this model.

    Raises
    ------
    InvalidInput
        The certificate is of another kind, or about a matrix that this model and these data do not produce; otherwise
        as ``check_alignment``.

    Examples
    --------
    >>> import torch, alignver
    >>> model, X, Y = torch.nn.Linear(2, 1), [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]
    >>> proved = alignver.check_alignment(model, X, Y, loss="squared")
    >>> inputs, notes, covered = inputs_again(proved.certificate, model, X, Y, loss="squared")
    >>> alignver.recheck(proved.certificate, **inputs).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    if certificate.claim in _OF_DATA:
        return {"X": X, "Y": Y}, ("the claim is about the data: it holds for every model",), True
    if certificate.claim in _OF_NETWORK:
        prepared = prepare_alignment(model, X, Y, loss, dtype)
        trace = functools.partial(EnclosedNetwork.of, prepared.model, prepared.x)
        network, note = traced_again(certificate, trace, max(_MOST_ROWS, len(prepared.x)))
        return {"parameters": network.parameters, "x": network.x, "y": prepared.y}, (note,), True
    if certificate.claim not in _CLAIMS:
        raise InvalidInput("certificate", f"a claim {certificate.claim!r}", "one that check_alignment made")
    prepared = prepare_alignment(model, X, Y, loss, dtype)
    n, d = len(prepared.x), parameter_layout(prepared.model).d
    if certificate.claim == "factored-membership":
        factors = layer_factors(prepared.model, prepared.x, dtype=dtype, chunk_size=chunk_size)
        arrays = arrays_of(factors)
        note, covered = _compared(factors, arrays, certificate)
        return {"y": prepared.y, **{k: v for k, v in arrays.items() if k in certificate.inputs}}, (note,), covered
    shape = _shape(certificate.inputs)
    N = n * prepared.m_y
    if shape not in ((N, d), (N, min(N, d))):
        got = f"a certificate about a matrix of {' x '.join(map(str, shape))}"
        need = f"one of this model and these data: {N} x {d}, or its triangle"
        raise InvalidInput("certificate", got, need, code="wrong-shape")
    engine = plan(n, prepared.m_y, d, engine="dense" if shape == (N, d) else "streamed")
    J = represent(prepared.model, prepared.x, engine, dtype=dtype, chunk_size=chunk_size)
    matrix = np.ascontiguousarray(host(J.matrix).astype(np.float64))
    return {"J": matrix, "y": prepared.y}, (f"J was computed again: {J.words}",), True


def _shape(inputs: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the shape of J that a certificate states; empty if it states none."""
    shape = inputs.get("J", {}).get("shape", ())
    return tuple(shape) if isinstance(shape, tuple | list) and all(isinstance(size, int) for size in shape) else ()


def _compared(factors: LayerFactors, arrays: Mapping[str, Matrix], certificate: Certificate) -> tuple[str, bool]:
    """Return how the factors in a certificate differ from the model's, and whether the ball contains the model's.

    Raises
    ------
    InvalidInput
        They differ by more than rounding explains.
    """
    need = "the model and the data that it was made from: the same code, weights, seed and dtype"
    names = [layer.name for layer in factors.layers]
    if (factors.n, factors.m_y, names) != _stated(certificate):
        raise InvalidInput("certificate", "factors of other layers than this model has", need)
    held = {name: array for name, array in certificate.data.items() if name in arrays}
    if not held:
        return "the factors are those that this model gives here: the certificate has their digests", True
    if set(held) != set(arrays) or any(arrays[name].shape != held[name].shape for name in held):
        raise InvalidInput("certificate", "factors of other shapes than this model's", need, code="wrong-shape")
    if all(np.array_equal(arrays[name], held[name]) for name in held):
        return "the factors in the certificate are those that this model gives here, bit for bit", True
    gap = max(float(np.abs(arrays[k] - held[k]).max()) / max(float(np.abs(held[k]).max()), 1e-300) for k in held)
    if not gap <= EPS[factors.computed_in] ** 0.5:
        got = f"layer factors that differ from this model's by {gap:.0e} of the largest"
        raise InvalidInput("certificate", got, need)
    distance, radius = _distance(factors, held), float(certificate.constants["ball"]["value"])
    note = "the matrix made of the factors in the certificate is within "
    note += f"{shown_up(distance)} (Frobenius norm) of this model's"
    if distance <= radius:
        return f"{note}, and every matrix within {shown_down(radius)} is covered", True
    return f"{note}, further than the {shown_down(radius)} that are covered: nothing is proved about this model", False


def _stated(certificate: Certificate) -> tuple[Any, Any, list[Any]]:
    """Return the samples, outputs and layers that a certificate states; its author is not trusted."""
    try:
        constants = certificate.constants
        float(constants["ball"]["value"])
        return constants["samples"], constants["outputs"], [layer["name"] for layer in constants["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        got = f"one without the constants of its claim ({error})"
        raise InvalidInput("certificate", got, "a complete certificate") from error


def _distance(factors: LayerFactors, held: Mapping[str, Matrix]) -> float:
    """Bound the Frobenius norm of the difference: sum_t |b - b'| |a| + |b'| |a - a'| for every row, rounded up."""
    squares = 0.0
    for k, layer in enumerate(factors.layers):
        A, B = layer.inputs, layer.gradients
        a, b = held[f"A{k}"].reshape(A.shape), held[f"B{k}"].reshape(B.shape)
        moved = np.linalg.norm(B - b, axis=3) * np.linalg.norm(A, axis=2)
        moved += np.linalg.norm(b, axis=3) * np.linalg.norm(A - a, axis=2)
        squares += float(np.square(moved.sum(axis=2)).sum())
    return math.sqrt(squares) * (1.0 + 2.0**-20)  # more than the rounding of any sum of fewer than 2^30 terms
