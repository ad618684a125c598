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
from alignver.models.represented import Represented, count_outputs, represent
from alignver.results import CheckResult, Verdict
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
    engine: str | None = None,
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
    engine : {"dense", "streamed", "matrix-free"}, optional
        What stands for J; by default the first that fits into memory (:func:`alignver.models.planner.plan`): J itself,
        the triangle of its streamed QR, or products with it (LSMR, bounds only).

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
    m_y = count_outputs(model, x, dtype)
    targets = modified_targets(given, loss, len(x), m_y)  # refused before the long work, where they do not fit
    J = represent(model, x, m_y, engine=engine, dtype=dtype, chunk_size=chunk_size)
    groups = equal_rows(host(x.float() if x.dtype == torch.bfloat16 else x))
    J.equalise(groups)
    # vec stacks columns: column-major order of (n, m_y).
    y = torch.from_numpy(targets.ravel(order="F")).to(J.matrix.device)
    clash = conflicts(groups, targets)
    # Equal inputs give equal rows at every theta: a conflict is a statement about the exact matrix, without a ball.
    result = check(J.matrix, y, computed_in=None if clash.count else J.computed_in)
    measured = {
        **result.measured,
        "n": J.n,
        "m_y": J.m_y,
        "d": J.d,
        "loss": loss,
        "dtype": J.dtype,
        "computed_in": J.computed_in,
        "engine": J.words,
        "conflicts": {"count": clash.count, "pairs": clash.pairs},
    }
    sentences = [*_sentences(clash, given, targets, loss), result.reason]
    if result.verdict is not Verdict.FAILS:  # an operator's rows cannot be compared: the conflict is said, not proved
        sentences.reverse()
    return dataclasses.replace(
        result,
        reason=sentences[0],
        name="alignment",
        statement="Data-architecture alignment (Definition 2)",
        evidence=(*sentences[1:], *result.evidence, _what_j_is(J)),
        measured=measured,
        cost={**result.cost, "seconds": time.perf_counter() - began},
    )


def _what_j_is(J: Represented) -> str:
    rounding = "" if J.dtype == J.computed_in else f", rounded to {J.computed_in} on the way"
    plural = "s" * (J.m_y > 1)
    return f"J: {J.n} samples, {J.m_y} output{plural}, {J.d} parameters; {J.dtype}{rounding}; {J.words}"


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
