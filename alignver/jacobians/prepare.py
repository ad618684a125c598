"""What Definition 2 asks of a model and its data, before any long work: the targets, and which samples are equal.

What a certificate of an alignment is about, made again from the model and the data it came from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.arrays import EPS, host
from alignver.errors import InvalidInput
from alignver.jacobians.factored_proof import LayerFactors, arrays_of, layer_factors
from alignver.jacobians.jacobian_form import count_outputs, plan, represent
from alignver.kernel import Certificate
from alignver.network.functional import parameter_layout
from alignver.network.inputs import as_inputs, as_targets, dtype_name, resolve_dtype
from alignver.network.validate_model import validate_model
from alignver.proof.duplicate_inputs import DuplicateInputs
from alignver.results import shown_down, shown_up
from alignver.samples import fingerprints, open_samples
from alignver.theory.losses import LOSSES, modified_targets

__all__ = ["PreparedAlignment", "duplicates_of", "inputs_again", "prepare_alignment"]
Targets = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedAlignment:
    """Is ``y = vec(Y_l)`` in the column space of the Jacobian of this model on these inputs?

    Samples with equal inputs have equal rows at every theta. Where their targets are equal too, one of them stands for
    all: the question is asked of the distinct samples. Where they are not, the answer is known.

    Attributes
    ----------
    model : torch.nn.Module
    x : torch.Tensor
        (n, ...), on the model's device: the distinct inputs, or all where there is a conflict.
    m_y : int
        Outputs.
    given : object
        The targets of all samples as the caller gave them, as an array.
    targets : numpy.ndarray
        (n, m_y), the modified targets Y_l of the samples in ``x``.
    duplicates : DuplicateInputs
        Which samples are equal.
    """

    model: nn.Module
    x: torch.Tensor
    m_y: int
    given: Any
    targets: Targets
    duplicates: DuplicateInputs

    @property
    def y(self) -> Targets:
        """``vec(Y_l)``, (n m_y,): columns stacked, entry (i, j) at j n + i."""
        return self.targets.ravel(order="F")

    @property
    def merged(self) -> bool:
        """Whether a sample in ``x`` stands for others."""
        return len(self.x) < self.duplicates.n

    def of_all(self, rows: Targets) -> Targets:
        """Return rows that belong to the samples in ``x`` for all samples."""
        return rows[self.duplicates.position] if self.merged else rows


def prepare_alignment(model: Any, X: Any, Y: Any, loss: str, dtype: str | None) -> PreparedAlignment:
    """Validate a model, inputs and targets, and find what can be said of them without a Jacobian.

    Raises
    ------
    InvalidInput
        A model, inputs or targets that no verdict can be about; an unknown loss.

    Examples
    --------
    >>> asked = question(nn.Linear(1, 1), [[0.0], [1.0], [0.0]], [1.0, 3.0, 1.0], "squared", "float64")
    >>> asked.y.tolist(), asked.duplicates.distinct
    ([1.0, 3.0], 2)
    """
    if loss not in LOSSES:
        raise InvalidInput("loss", f"loss={loss!r}", "one of " + ", ".join(repr(known) for known in LOSSES))
    model = validate_model(model)
    x = as_inputs(X, next(model.parameters()).device)
    given = as_targets(Y, len(x))
    m_y = count_outputs(model, x, dtype)
    targets = modified_targets(given, loss, len(x), m_y)  # refused before the long work, where they do not fit
    duplicates = duplicates_of(model, x, given, dtype)
    if duplicates.distinct < len(x) and not duplicates.conflicts.count:
        kept = duplicates.representatives
        x, targets = x[torch.from_numpy(kept).to(x.device)], targets[kept]
    return PreparedAlignment(model, x, m_y, given, targets, duplicates)


def duplicates_of(model: nn.Module, x: torch.Tensor, given: Any, dtype: str | None) -> DuplicateInputs:
    """Return which inputs are equal as they enter the model, which is run in ``dtype``; ``given`` are targets or None.

    Examples
    --------
    >>> duplicates_of(nn.Linear(1, 1), torch.tensor([[1.0], [2.0], [1.0]]), None, "float64").first.tolist()
    [0, 1, 0]
    """
    enters = resolve_dtype(model, dtype)
    rounds = x.is_floating_point() and EPS[dtype_name(x.dtype)] < EPS[dtype_name(enters)]
    entered = x.to(enters) if rounds else x
    return DuplicateInputs.of(fingerprints(open_samples(entered, given)))


Matrix = npt.NDArray[np.float64]

_CLAIMS = ("membership", "non-membership", "factored-membership")
_OF_DATA = ("conflicting", "consistent")


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
    """Compute the inputs that a certificate of :func:`~alignver.checks.alignment.check_alignment` is about, once more.

    J (or the triangle of its streamed QR, whichever has the shape in the certificate) and y; or y and those factors of
    the layers that the certificate does not hold. Digits depend on the machine, the version of torch and the number of
    threads: a digest that differs says that this is another computation, not that the claim is wrong.

    Returns
    -------
    inputs : dict of str to array
        For :func:`alignver.recheck`; X and Y themselves where the claim is about the data.
    notes : tuple of str
        What they have to do with the model, in sentences.
    covered : bool
        False where the model is further from the factors in the certificate than its ball reaches: what the certificate
        proves is not about this model then.

    Raises
    ------
    InvalidInput
        A certificate of another kind, or about a matrix that this model and these data do not give; whatever
        ``check_alignment`` refuses.

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
    if certificate.claim not in _CLAIMS:
        raise InvalidInput("certificate", f"a claim {certificate.claim!r}", "one that check_alignment made")
    asked = prepare_alignment(model, X, Y, loss, dtype)
    n, d = len(asked.x), parameter_layout(asked.model).d
    if certificate.claim == "factored-membership":
        found = layer_factors(asked.model, asked.x, dtype=dtype, chunk_size=chunk_size)
        arrays = arrays_of(found)
        note, covered = _compared(found, arrays, certificate)
        return {"y": asked.y, **{k: v for k, v in arrays.items() if k in certificate.inputs}}, (note,), covered
    shape = _shape(certificate.inputs)
    N = n * asked.m_y
    if shape not in ((N, d), (N, min(N, d))):
        got = f"a certificate about a matrix of {' x '.join(map(str, shape))}"
        raise InvalidInput("certificate", got, f"one of this model and these data: {N} x {d}, or its triangle")
    chosen = plan(n, asked.m_y, d, engine="dense" if shape == (N, d) else "streamed")
    J = represent(asked.model, asked.x, chosen, dtype=dtype, chunk_size=chunk_size)
    matrix = np.ascontiguousarray(host(J.matrix).astype(np.float64))
    return {"J": matrix, "y": asked.y}, (f"J was computed again: {J.words}",), True


def _shape(inputs: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the shape of J as a certificate states it; empty where it states none."""
    shape = inputs.get("J", {}).get("shape", ())
    return tuple(shape) if isinstance(shape, tuple | list) and all(isinstance(size, int) for size in shape) else ()


def _compared(found: LayerFactors, arrays: Mapping[str, Matrix], certificate: Certificate) -> tuple[str, bool]:
    """Say how the factors in a certificate differ from the model's, and whether the ball around them reaches these;
    refuse more than rounding explains.
    """
    need = "the model and the data that it was made from: the same code, weights, seed and dtype"
    names = [layer.name for layer in found.layers]
    if (found.n, found.m_y, names) != _stated(certificate):
        raise InvalidInput("certificate", "factors of other layers than this model has", need)
    held = {name: array for name, array in certificate.data.items() if name in arrays}
    if not held:
        return "the factors are those that this model gives here: the certificate has their digests", True
    if set(held) != set(arrays) or any(arrays[name].shape != held[name].shape for name in held):
        raise InvalidInput("certificate", "factors of other shapes than this model's", need)
    if all(np.array_equal(arrays[name], held[name]) for name in held):
        return "the factors in the certificate are those that this model gives here, bit for bit", True
    gap = max(float(np.abs(arrays[k] - held[k]).max()) / max(float(np.abs(held[k]).max()), 1e-300) for k in held)
    if not gap <= EPS[found.computed_in] ** 0.5:
        raise InvalidInput(
            "certificate", f"layer factors that differ from this model's by {gap:.0e} of the largest", need
        )
    distance, radius = _distance(found, held), float(certificate.constants["ball"]["value"])
    said = (
        f"the matrix made of the factors in the certificate is within {shown_up(distance)} (Frobenius norm) of this "
        "model's"
    )
    if distance <= radius:
        return f"{said}, and every matrix within {shown_down(radius)} is covered", True
    return f"{said}, further than the {shown_down(radius)} that are covered: nothing is proved of this model", False


def _stated(certificate: Certificate) -> tuple[Any, Any, list[Any]]:
    """Return samples, outputs and layers as a certificate states them, whoever wrote it."""
    try:
        constants = certificate.constants
        float(constants["ball"]["value"])
        return constants["samples"], constants["outputs"], [layer["name"] for layer in constants["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput("certificate", f"one that lacks what its claim needs ({error})", "a whole one") from error


def _distance(found: LayerFactors, held: Mapping[str, Matrix]) -> float:
    """Bound the Frobenius norm of what differs: sum_t |b - b'| |a| + |b'| |a - a'| for every row, rounded up."""
    squares = 0.0
    for k, layer in enumerate(found.layers):
        A, B = layer.inputs, layer.gradients
        a, b = held[f"A{k}"].reshape(A.shape), held[f"B{k}"].reshape(B.shape)
        moved = np.linalg.norm(B - b, axis=3) * np.linalg.norm(A, axis=2)
        moved += np.linalg.norm(b, axis=3) * np.linalg.norm(A - a, axis=2)
        squares += float(np.square(moved.sum(axis=2)).sum())
    return math.sqrt(squares) * (1.0 + 2.0**-20)  # more than any sum of fewer than 2^30 terms rounds
