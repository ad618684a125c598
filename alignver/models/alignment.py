"""Data-architecture alignment of a torch model with its data: Definition 2, from a module to a verdict."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from alignver.checks.membership import check_membership
from alignver.errors import InvalidInput
from alignver.models.conflicts import Conflicts
from alignver.models.factored_proof import prove_by_factors
from alignver.models.kinks import met_kinks
from alignver.models.planner import Plan, gram_first
from alignver.models.question import Question, question
from alignver.models.represented import Represented, planned, represent
from alignver.models.slots import slots
from alignver.results import CheckResult, Verdict

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
    engine : {"dense", "streamed", "gram", "matrix-free"}, optional
        What stands for J; by default the first that fits into memory (:func:`alignver.models.planner.plan`): J itself,
        the triangle of its streamed QR, or products with it (LSMR, bounds only). A proof through the verified Gram
        matrix of the layers' factors comes before them where it is cheaper (``method="auto"`` with ``certify``), and
        with ``"gram"`` in any case; where the conditioning does not allow it, the others follow.

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
    inputs, equal in theory, are made equal in the computed matrix. A proof through the Gram matrix is about the matrix
    whose layer factors (inputs and backpropagated outputs) are the floats that were computed, and every matrix within
    the rank rule's tolerance of it (:mod:`alignver.models.factored_proof`).

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
    if engine == "gram" and (method != "auto" or not certify):
        got = f"engine='gram' with method={method!r}, certify={certify}"
        raise InvalidInput("engine", got, "method='auto' and certify=True: the Gram matrix only ever proves")
    asked = question(model, X, Y, loss, dtype)
    chosen = planned(len(asked.x), asked.m_y, slots(asked.model).d, engine)
    prove = method == "auto" and certify
    J, result = _answered(asked, check, chosen, rule, tolerance, dtype, chunk_size, engine, prove=prove)
    clash, bends = asked.clash, met_kinks(asked.model, asked.x, dtype)
    measured = {
        **result.measured,
        "n": J.n,
        "m_y": J.m_y,
        "d": J.d,
        "loss": loss,
        "dtype": J.dtype,
        "computed_in": J.computed_in,
        "engine": J.words,
        "planned": chosen.reason,
        "conflicts": {"count": clash.count, "pairs": clash.pairs},
        **({} if bends is None else {"kinks": bends.summary()}),
    }
    sentences = [*_sentences(clash, asked.given, asked.targets, loss), result.reason]
    if result.verdict is not Verdict.FAILS:  # an operator's rows cannot be compared: the conflict is said, not proved
        sentences.reverse()
    bent = () if bends is None else (bends.sentence(),)
    return dataclasses.replace(
        result,
        reason=sentences[0],
        name="alignment",
        statement="Data-architecture alignment (Definition 2)",
        evidence=(*sentences[1:], *result.evidence, _what_j_is(J), *bent),
        measured=measured,
        cost={**result.cost, "seconds": time.perf_counter() - began},
    )


def _answered(
    asked: Question,
    check: Callable[..., CheckResult],
    chosen: Plan,
    rule: str,
    tolerance: float | None,
    dtype: str | None,
    chunk_size: int | None,
    engine: str | None,
    *,
    prove: bool,
) -> tuple[Represented, CheckResult]:
    """Answer through the Gram matrix where that is worth a try and succeeds, else from what stands for J."""
    n, d = len(asked.x), slots(asked.model).d
    tried = ""
    if prove and (engine == "gram" or (engine is None and gram_first(n, asked.m_y, d, chosen))):
        if asked.groups:
            tried = "samples with equal inputs have equal rows"
        else:
            attempt = prove_by_factors(
                asked.model,
                asked.x,
                asked.y,
                rule=rule,
                tolerance=tolerance,
                dtype=dtype,
                chunk_size=chunk_size,
                chosen=chosen,
                asked=engine == "gram",
            )
            if attempt.result is not None:
                words = f"gram: layer factors, never J itself; {chosen.engine} would have followed"
                return Represented(None, n, asked.m_y, d, attempt.computed_in, words, attempt.dtype), attempt.result
            tried = attempt.reason
    J = represent(asked.model, asked.x, chosen, dtype=dtype, chunk_size=chunk_size)
    J.equalise(asked.groups)
    y = torch.from_numpy(asked.y).to(J.matrix.device)
    # Equal inputs give equal rows at every theta: a conflict is a statement about the exact matrix, without a ball.
    result = check(J.matrix, y, computed_in=None if asked.clash.count else J.computed_in)
    if tried:
        line = f"no proof through the Gram matrix of layer factors: {tried}"
        result = dataclasses.replace(result, evidence=(*result.evidence, line))
    return J, result


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
