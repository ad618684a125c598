"""What a certificate of an alignment is about, made again from the model and the data it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from alignver.arrays import EPS, host
from alignver.errors import InvalidInput
from alignver.models.factored_proof import arrays_of
from alignver.models.layer_factors import layer_factors
from alignver.models.planner import plan
from alignver.models.question import question
from alignver.models.represented import represent
from alignver.models.slots import slots
from alignver.proof import Certificate
from alignver.proof.certificate import digest_input

__all__ = ["inputs_again"]

_CLAIMS = ("membership", "non-membership", "factored-membership")


def inputs_again(
    certificate: Certificate,
    model: Any,
    X: Any,
    Y: Any,
    *,
    loss: str,
    dtype: str | None = "float64",
    chunk_size: int | None = None,
) -> tuple[dict[str, np.ndarray[Any, np.dtype[np.float64]]], tuple[str, ...]]:
    """Compute the inputs that a certificate of :func:`~alignver.models.alignment.check_alignment` is about, once more.

    J (or the triangle of its streamed QR, whichever has the shape in the certificate) and y; or y and those factors of
    the layers that the certificate does not hold. Digits depend on the machine, the version of torch and the number of
    threads: a digest that differs says that this is another computation, not that the claim is wrong.

    Returns
    -------
    inputs : dict of str to array
        For :func:`alignver.recheck`.
    notes : tuple of str
        What they have to do with the model, in sentences.

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
    >>> inputs, notes = inputs_again(proved.certificate, model, X, Y, loss="squared")
    >>> alignver.recheck(proved.certificate, **inputs).verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    if certificate.claim not in _CLAIMS:
        raise InvalidInput("certificate", f"a claim {certificate.claim!r}", "one that check_alignment made")
    asked = question(model, X, Y, loss, dtype)
    n, d = len(asked.x), slots(asked.model).d
    if certificate.claim == "factored-membership":
        arrays = arrays_of(layer_factors(asked.model, asked.x, dtype=dtype, chunk_size=chunk_size))
        held = {name: array for name, array in certificate.data.items() if name[0] in "AB"}
        note = _compared(arrays, held, str(certificate.constants["dtype"])) if held else "layer factors: computed again"
        return {"y": asked.y, **{k: v for k, v in arrays.items() if k in certificate.inputs}}, (note,)
    shape = _shape(certificate.inputs)
    N = n * asked.m_y
    if shape not in ((N, d), (N, min(N, d))):
        got = f"a certificate about a matrix of {' x '.join(map(str, shape))}"
        raise InvalidInput("certificate", got, f"one of this model and these data: {N} x {d}, or its triangle")
    chosen = plan(n, asked.m_y, d, engine="dense" if shape == (N, d) else "streamed")
    J = represent(asked.model, asked.x, chosen, dtype=dtype, chunk_size=chunk_size)
    J.equalise(asked.groups)
    matrix = np.ascontiguousarray(host(J.matrix).astype(np.float64))
    return {"J": matrix, "y": asked.y}, (f"J was computed again: {J.words}",)


def _shape(inputs: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    record = inputs.get("J", {})
    return tuple(int(size) for size in record.get("shape", ()))


def _compared(
    arrays: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]], held: Mapping[str, np.ndarray[Any, Any]], dtype: str
) -> str:
    """Say how the factors in a certificate differ from those of the model; refuse more than rounding explains."""
    need = "the model and the data that it was made from: the same code, weights, seed and dtype"
    if set(arrays) != set(held) or any(arrays[name].shape != held[name].shape for name in held):
        raise InvalidInput("certificate", "factors of other layers than this model has", need)
    if all(digest_input(arrays[name]) == digest_input(held[name]) for name in held):
        return "the factors in the certificate are those that this model gives here, bit for bit"
    gap = max(float(np.abs(arrays[k] - held[k]).max()) / max(float(np.abs(held[k]).max()), 1e-300) for k in held)
    if not gap <= EPS.get(dtype, EPS["float64"]) ** 0.5:
        raise InvalidInput(
            "certificate", f"layer factors that differ from this model's by {gap:.0e} of the largest", need
        )
    return f"the factors in the certificate are those of this model up to rounding: {gap:.1e} of the largest"
