"""Data-architecture alignment of a torch model with its data: Definition 2, from a module to a verdict."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.arrays import host
from alignver.checks.membership import check_membership
from alignver.errors import InvalidInput
from alignver.models.checkable import require_checkable
from alignver.models.conflicts import Conflicts, conflicts, equal_rows
from alignver.models.inputs import as_inputs, as_targets
from alignver.models.jacobian import Differentiated, differentiate
from alignver.results import CheckResult
from alignver.theory.losses import LOSSES, modified_targets

__all__ = ["check_alignment"]


def check_alignment(
    model: nn.Module,
    X: Any,
    Y: Any,
    *,
    loss: str,
    method: str = "auto",
    rule: str = "golub",
    certify: bool = True,
    tolerance: float | None = None,
    residual_tolerance: float | None = None,
    dtype: str | None = "float64",
    chunk_size: int | None = None,
) -> CheckResult:
    """Check the data-architecture alignment condition of a model at its present theta.

    ``vec(Y_l) in Col(d vec(f_X(theta)) / d theta)`` (paper, Definition 2), with Y_l of
    :func:`alignver.theory.losses.modified_targets` and the matrix of :func:`alignver.models.jacobian.jacobian`.

    Parameters
    ----------
    model : torch.nn.Module
        Its outputs are the values before the last nonlinearity (logits). It is left as it was.
    X : torch.Tensor or numpy.ndarray
        Inputs, one sample a row: (n, ...).
    Y : torch.Tensor, numpy.ndarray or list
        Targets, in a form that the loss takes.
    loss : str
        ``"squared"``, ``"binary_cross_entropy"`` or ``"cross_entropy"``.
    method, rule, certify, tolerance, residual_tolerance
        As in :func:`alignver.checks.membership.check_membership`.
    dtype, chunk_size
        As in :func:`alignver.models.jacobian.jacobian`.

    Returns
    -------
    CheckResult
        Of :func:`~alignver.checks.membership.check_membership`, with what J is, and the samples that have equal
        inputs and different labels, if any.

    Raises
    ------
    InvalidInput
        A model, inputs or targets that no verdict can be about; the message says why, and the remedy.

    Notes
    -----
    Rigor: that of the membership check, about the matrix of derivatives as computed. Rows of samples with equal
    inputs, equal in theory, are made equal in the computed matrix.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(1, 1)
    >>> line = check_alignment(model, [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], loss="squared")
    >>> line.verdict
    <Verdict.HOLDS: 'HOLDS'>
    >>> bent = check_alignment(model, [[0.0], [1.0], [2.0]], [1.0, 3.0, 9.0], loss="squared")
    >>> bent.verdict
    <Verdict.FAILS: 'FAILS'>
    """
    began = time.perf_counter()
    check = functools.partial(
        check_membership,
        method=method,
        rule=rule,
        certify=certify,
        tolerance=tolerance,
        residual_tolerance=residual_tolerance,
    )
    check(np.ones((1, 1)), np.ones(1))  # refuses a bad option now, not after the long work
    if loss not in LOSSES:
        raise InvalidInput("loss", f"loss={loss!r}", "one of " + ", ".join(repr(known) for known in LOSSES))
    model = require_checkable(model)
    x = as_inputs(X, next(model.parameters()).device)
    given = as_targets(Y, len(x))
    found: list[npt.NDArray[np.float64]] = []
    J = differentiate(
        model,
        x,
        chunk_size=chunk_size,
        dtype=dtype,
        announce=lambda n, m_y: found.append(modified_targets(given, loss, n, m_y)),
    )
    targets = found[0]
    groups = equal_rows(host(x.float() if x.dtype == torch.bfloat16 else x))
    _equalise(J, groups)
    # vec stacks columns: column-major order of (n, m_y).
    y = torch.from_numpy(targets.ravel(order="F")).to(J.matrix.device)
    clash = conflicts(groups, targets)
    # Equal inputs give equal rows at every theta: a conflict is a statement about the exact matrix, without a ball.
    result = check(J.matrix, y, computed_in=None if clash.count else J.computed_in)
    measured = {
        **result.measured,
        "n": J.n,
        "m_y": J.m_y,
        "d": J.slots.d,
        "loss": loss,
        "dtype": str(J.matrix.dtype).rpartition(".")[2],
        "computed_in": J.computed_in,
        "engine": J.engine,
        "conflicts": {"count": clash.count, "pairs": clash.pairs},
    }
    sentences = (*_sentences(clash, given, targets, loss), result.reason)
    return dataclasses.replace(
        result,
        reason=sentences[0],
        name="alignment",
        statement="Data-architecture alignment (Definition 2)",
        evidence=(*sentences[1:], *result.evidence, _what_j_is(J)),
        measured=measured,
        cost={**result.cost, "seconds": time.perf_counter() - began},
    )


def _equalise(J: Differentiated, groups: list[list[int]]) -> None:
    """Give samples with equal inputs the same rows to the last bit: batched products may round them differently."""
    rows = J.matrix.view(J.m_y, J.n, -1)
    for first, *others in groups:
        for other in others:
            rows[:, other] = rows[:, first]


def _what_j_is(J: Differentiated) -> str:
    rounding = "" if str(J.matrix.dtype).endswith(J.computed_in) else f", rounded to {J.computed_in} on the way"
    kind = str(J.matrix.dtype).rpartition(".")[2]
    outputs = f"{J.m_y} output{'s' * (J.m_y > 1)}"
    return f"J: {J.n} samples, {outputs}, {J.slots.d} parameters; {kind}{rounding}; {J.engine}"


def _sentences(clash: Conflicts, given: Any, targets: npt.NDArray[np.float64], loss: str) -> tuple[str, ...]:
    if not clash.count:
        return ()
    i, j = clash.pairs[0]
    noun = "targets" if loss == "squared" else "labels"
    sentence = f"samples {i} and {j} have equal inputs and different {noun}"
    labels = [_label(given, targets, k, loss) for k in (i, j)]
    if all(labels):
        sentence += f" ({', '.join(labels)})"
    sentence += ": no theta fits both"
    more = clash.count - 1
    if more:
        others = ", ".join(f"{a} and {b}" for a, b in clash.pairs[1:3]) + (", ..." if more > 2 else "")
        sentence += f"; so do {more} other pair{'s' * (more > 1)} ({others})"
    return (sentence,)


def _label(given: Any, targets: npt.NDArray[np.float64], k: int, loss: str) -> str:
    """Name the target of a sample as the caller gave it; empty where it is a vector that is not one-hot."""
    row = targets[k]
    if len(row) == 1:
        return f"{row[0]:g}" if loss == "squared" else f"{(row[0] + 1) / 2:g}"
    return str(int(row.argmax())) if loss == "cross_entropy" else ""
