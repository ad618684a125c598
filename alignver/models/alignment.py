"""Data-architecture alignment of a torch model with its data: Definition 2, from a module to a verdict."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver.checks.data import merge_sentence, refutation
from alignver.checks.membership import check_membership
from alignver.errors import InvalidInput
from alignver.models.factored_proof import prove_by_factors
from alignver.models.kinks import met_kinks
from alignver.models.planner import Plan, gram_first
from alignver.models.question import Question, question
from alignver.models.rank_bounds import RankBound, row_rank_bound
from alignver.models.represented import Represented, planned, represent
from alignver.models.slots import slots
from alignver.results import CheckResult

__all__ = ["check_alignment"]

_STATEMENT = "Data-architecture alignment (Definition 2)"


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
        Of :func:`~alignver.checks.membership.check_membership`, with what J is. Samples with equal inputs and different
        labels: FAILS with PROOF at once, about the data (:func:`~alignver.checks.data.check_data`), at any n. Samples
        that repeat others, input and label, are merged: the distinct ones are asked about, and the answer is for all.

    Raises
    ------
    InvalidInput
        A model, inputs or targets that no verdict can be about; the message says why, and the remedy.

    Notes
    -----
    Rigor: that of the membership check, about the matrix of derivatives as computed for the distinct samples. A proof
    through the Gram matrix is about the matrix whose layer factors (inputs and backpropagated outputs) are the floats
    that were computed, and every matrix within the rank rule's tolerance of it (:mod:`alignver.models.factored_proof`).

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
    d = slots(asked.model).d
    sizes = {"n": asked.duplicates.n, "m_y": asked.m_y, "d": d, "loss": loss}
    refuted = refutation(asked.duplicates, loss, name="alignment", statement=_STATEMENT, measured=sizes)
    if refuted is not None:
        return dataclasses.replace(refuted, cost={"seconds": time.perf_counter() - began})
    bound = row_rank_bound(asked.model, asked.x, asked.m_y)
    chosen = planned(len(asked.x), asked.m_y, d, engine)
    prove = method == "auto" and certify
    J, result = _answered(asked, check, chosen, rule, tolerance, dtype, chunk_size, engine, bound, prove=prove)
    bends = met_kinks(asked.model, asked.x, dtype)
    measured = {
        **result.measured,
        **sizes,
        "distinct": len(asked.x),
        "dtype": J.dtype,
        "computed_in": J.computed_in,
        "engine": J.words,
        "planned": chosen.reason,
        "conflicts": asked.duplicates.conflicts.plain(),
        "rank_upper": bound.value,
        **({} if bends is None else {"kinks": bends.summary()}),
    }
    merged = (merge_sentence(asked.duplicates),) if asked.merged else ()
    limit = (bound.sentence,) if bound.sentence else ()
    bent = () if bends is None else (bends.sentence(),)
    return dataclasses.replace(
        result,
        name="alignment",
        code=result.code.replace("membership", "alignment", 1),
        statement=_STATEMENT,
        evidence=(*merged, *limit, *result.evidence, _what_j_is(J), *bent),
        measured=measured,
        plan=dataclasses.asdict(chosen),
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
    bound: RankBound,
    *,
    prove: bool,
) -> tuple[Represented, CheckResult]:
    """Answer through the Gram matrix where that is worth a try and succeeds, else from what stands for J."""
    n, d = len(asked.x), slots(asked.model).d
    tried = ""
    if prove and (engine == "gram" or (engine is None and gram_first(n, asked.m_y, d, chosen))):
        if bound.sentence:
            tried = f"rank J <= {bound.value}"
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
                words = f"gram: from layer factors, without forming J; fallback: {chosen.engine}"
                return Represented(None, n, asked.m_y, d, attempt.computed_in, words, attempt.dtype), attempt.result
            tried = attempt.reason
    J = represent(asked.model, asked.x, chosen, dtype=dtype, chunk_size=chunk_size)
    y = torch.from_numpy(asked.y).to(J.matrix.device)
    result = check(J.matrix, y, computed_in=J.computed_in)
    if tried:
        line = f"no proof through the Gram matrix of layer factors: {tried}"
        result = dataclasses.replace(result, evidence=(*result.evidence, line))
    return J, result


def _what_j_is(J: Represented) -> str:
    rounding = "" if J.dtype == J.computed_in else f", rounded to {J.computed_in} on the way"
    plural = "s" * (J.m_y > 1)
    return f"J: {J.n} samples, {J.m_y} output{plural}, {J.d} parameters; {J.dtype}{rounding}; {J.words}"
