"""Data-architecture alignment of a torch model with its data: Definition 2, from a module to a verdict.

The numbers of parameters and of outputs bound the rank of the Jacobian before it is computed.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from alignver import require
from alignver.arrays import available_memory
from alignver.checks.combine import alignment_steps
from alignver.checks.data import merge_sentence, refutation
from alignver.checks.membership import membership_of
from alignver.errors import InvalidInput
from alignver.features.cluster import Cluster
from alignver.features.threads import dense_flops, threads_for
from alignver.jacobians.factored_proof import prove_by_factors
from alignver.jacobians.gram import gram
from alignver.jacobians.jacobian_form import (
    JacobianForm,
    Plan,
    gram_first,
    gram_plan,
    planned,
    represent,
    represent_square,
    represent_tall,
)
from alignver.jacobians.nonsmooth_points import find_nonsmooth_points
from alignver.jacobians.operator import JacobianOperator
from alignver.jacobians.prepare import PreparedAlignment, prepare_alignment
from alignver.limits import OutOfTime, limited, out_of_time, remaining, time_limit
from alignver.network.enclosures import EnclosedNetwork, NetworkProof, prove_alignment
from alignver.network.functional import parameter_layout, write_counts
from alignver.network.inputs import dtype_name
from alignver.network.row_rank_bound import RankBound, row_rank_bound
from alignver.progress import announce, flop_rate, stage
from alignver.results import CheckResult, Rigor, Subject, Verdict, shown_down, shown_up

_TRAINED = (
    "the model was trained meanwhile: a proof is about the parameters at one time, the numbers may be from another"
)
_LONG = 2e11  # operations: about ten seconds, for which a second Gram matrix is worth its time
_PATIENCE = 10.0  # estimated seconds of a proof about the network that is tried without a limit
_PROOF_SHARE = 0.8  # of a limit of time, for a proof about the network, before the computed matrix is decided
_ROWS = 100  # rows of J that may show that it is deficient
_ENCLOSED = 10000  # rows of J for which a proof about the network is tried
STATEMENT = "Data-architecture alignment (Definition 2)"


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of :func:`check_alignment` on which its answer depends, or how it is found."""

    method: str = "auto"
    rule: str = "golub"
    certify: bool = True
    tolerance: float | None = None
    residual_tolerance: float | None = None
    dtype: str | None = "float64"
    chunk_size: int | None = None
    engine: str | None = None
    budget_seconds: float | None = None
    folder: str | os.PathLike[str] | None = None
    cluster: Cluster | None = None

    def membership(self, J: Any, y: Any, *, certify: bool, **more: Any) -> CheckResult:
        """Decide by :func:`~alignver.checks.membership.membership_of`."""
        limits: dict[str, Any] = {"tolerance": self.tolerance, "residual_tolerance": self.residual_tolerance}
        return membership_of(J, y, method=self.method, rule=self.rule, certify=certify, **limits, **more)


@limited("alignment", STATEMENT, Subject.NETWORK)
def check_alignment(
    model: nn.Module,
    X: Any,
    Y: Any = None,
    *,
    loss: Any,
    method: str = "auto",
    rule: str = "golub",
    certify: bool = True,
    tolerance: float | None = None,
    residual_tolerance: float | None = None,
    dtype: str | None = "float64",
    chunk_size: int | None = None,
    engine: str | None = None,
    budget_seconds: float | None = None,
    max_seconds: float | None = None,
    max_memory: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    client: Any = None,
    select: str | int | Callable[[Any], Any] | None = None,
    forward_args: Mapping[str, Any] | None = None,
) -> CheckResult:
    """Check the data-architecture alignment condition of a model at its present theta.

    ``vec(Y_l) in Col(d vec(f_X(theta)) / d theta)`` (paper, Definition 2), with Y_l of
    :func:`alignver.theory.losses.modified_targets` and the matrix of :func:`alignver.jacobians.jacobian.jacobian`.

    Parameters
    ----------
    model : torch.nn.Module
        Its outputs are the values before the last nonlinearity (logits). It is not changed.
    X : array, tuple or dict of arrays, Dataset or DataLoader
        Inputs, one sample per row: (n, ...); several inputs by position or name
        (:func:`alignver.network.adapt.adapted`).
    Y : torch.Tensor, numpy.ndarray or list, optional
        Targets, in a form that the loss accepts; by default those in X.
    loss : str or torch loss
        ``"squared"``, ``"binary_cross_entropy"`` or ``"cross_entropy"``, an alias (``"mse"``, ``"bce"``, ``"ce"``), or
        a loss of ``torch.nn``.
    method, rule, certify, tolerance, residual_tolerance
        As in :func:`alignver.checks.membership.check_membership`.
    dtype, chunk_size
        As in :func:`alignver.jacobians.jacobian.jacobian`.
    engine : {"dense", "streamed", "gram", "matrix-free"}, optional
        The representation of J; by default the first that fits into memory
        (:func:`alignver.jacobians.jacobian_form.plan`): J itself, the triangle of its streamed QR, or products with it
        (LSMR, bounds only). With ``method="auto"`` the Gram matrix of the layers' factors is tried before them if it is
        cheaper, and always with ``"gram"``: if it shows full row rank, every target is reached. Otherwise an N x N
        matrix with the column space and the singular values of J follows, from the same factors or from a streamed QR.
    budget_seconds : float, optional
        The estimated time that a proof about the network may take: by default half of ``max_seconds``, or 10 s
        without that limit; 0 for the computed matrix alone.
    max_seconds, max_memory : float and int, optional
        Limits: UNDECIDED when the time is over, at the next step of a long loop; the memory, in bytes, to plan with. A
        Gram matrix of N rows that does not fit is factored in tiles, which need 4 N^2 bytes and the layers' factors.
    folder : path, optional
        Prove through the Gram matrix, and store the tiles of its factorization there, with less in memory; an
        interrupted run continues from them. The verdict of such a run is NUMERICAL, since the origin of stored tiles is
        unknown, until its certificate is verified.
    client : dask.distributed.Client, optional
        Compute the tiles on the workers of a cluster, which share ``folder`` with this process.
    select : str, int or callable, optional
        The output of a model that returns several: a key, field or position, or a function of what it returns.
    forward_args : mapping, optional
        Further keyword arguments of the forward pass, the same for all samples.

    Returns
    -------
    CheckResult
        About the network where that is proved (subject ``network``): with ``method="auto"``, ``certify``, no engine and
        no tolerance given, the exact Jacobian of the network is enclosed (:mod:`alignver.network.enclosures`). HOLDS
        then comes with kappa, the norm of the smallest parameters beta with J beta = y, and the answer of the computed
        matrix is in ``measured["computed_matrix"]``. Otherwise of
        :func:`~alignver.checks.membership.check_membership`, with a description of J. For samples with equal inputs
        and different labels: FAILS with PROOF, about the data (:func:`~alignver.checks.data.check_data`), at any n.
        Samples that repeat others, input and label, are merged: the check is made for the distinct samples, and the
        answer is valid for all.

    Raises
    ------
    InvalidInput
        For a model, inputs or targets without a verdict; the message gives the reason and the remedy.

    Notes
    -----
    Rigor: PROOF about the network in real arithmetic, where it is enclosed. Otherwise that of the membership check,
    about the matrix of derivatives as computed for the distinct samples. A proof through the Gram matrix is about the
    matrix whose layer factors (inputs and backpropagated outputs) are the computed floats, and about every matrix
    within the rank rule's tolerance of it (:mod:`alignver.jacobians.factored_proof`).

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
    if budget_seconds is not None:
        budget_seconds = require.real("budget_seconds", budget_seconds, least=0.0)
    membership = Options(method, rule, certify, tolerance, residual_tolerance).membership
    membership(np.ones((1, 1)), np.ones(1), certify=certify)  # refuses an invalid option before the long computation
    cluster = None if client is None else Cluster(client)
    if client is not None and folder is None:
        need = "a folder that this process and all workers share"
        raise InvalidInput("folder", "a client without a folder", need, "conflicting-arguments")
    if folder is not None:
        if (place := require.path("folder", folder)).exists() and not place.is_dir():
            raise InvalidInput("folder", f"{place}, a file", "the name of a folder", "unwritable-file")
        if engine not in (None, "gram"):
            need = "engine='gram', whose tiles are stored"
            raise InvalidInput("folder", f"a folder with engine={engine!r}", need, "conflicting-arguments")
        engine = "gram"
    if engine == "gram" and (method != "auto" or not certify):
        got = f"engine='gram' with method={method!r}, certify={certify}"
        need = "method='auto' and certify=True: the Gram matrix gives proofs only"
        raise InvalidInput("engine", got, need, "conflicting-arguments")
    options = Options(
        method, rule, certify, tolerance, residual_tolerance, dtype, chunk_size, engine, budget_seconds, folder, cluster
    )
    prepared = prepare_alignment(model, X, Y, loss, dtype, select=select, forward_args=forward_args)
    result = decide_alignment(prepared, options)
    return dataclasses.replace(result, cost={**result.cost, "seconds": time.perf_counter() - began})


def decide_alignment(
    prepared: PreparedAlignment, options: Options, network: EnclosedNetwork | str | None = None
) -> CheckResult:
    """Decide the alignment of a prepared model and its data.

    ``network`` is the traced model, or why it cannot be traced; traced here by default.
    """
    began, writes = time.perf_counter(), write_counts(prepared.model)
    loss, m_y, d = prepared.loss, prepared.m_y, parameter_layout(prepared.model).d
    sizes = {"n": prepared.duplicates.n, "m_y": m_y, "d": d, "loss": loss}
    refuted = refutation(prepared.duplicates, loss, name="alignment", statement=STATEMENT, measured=sizes)
    if refuted is not None:
        return refuted
    bound = row_rank_bound(prepared.model, prepared.x, m_y)
    theorem: NetworkProof | str = ""
    seconds, flops = _proof_seconds(options.budget_seconds), dense_flops(len(prepared.x) * m_y, d)
    announced = planned(len(prepared.x), m_y, d, options.engine)
    on_cpu = prepared.x.device.type == "cpu"
    least = least_seconds(prepared, announced, options.engine) if on_cpu else None
    if not bound.sentence and (options.engine == "gram" or _gram_only(prepared, announced, options)):
        announced = gram_plan(len(prepared.x), m_y, d, stored=options.folder is not None)
    announce(
        f"alignment of {len(prepared.x)} samples, {m_y} output{'s' * (m_y > 1)} and {d} parameters "
        f"({announced.reason})",
        seconds=least,
        peak_bytes=announced.peak_bytes,
    )
    certify = options.certify
    if certify and options.method == "auto" and options.engine is None and options.tolerance is None and seconds > 0.0:
        started, left = time.perf_counter(), remaining()
        try:
            with threads_for(flops), time_limit(_PROOF_SHARE * left if 0.0 < left < math.inf else None):
                theorem = prove_about_network(prepared, options.dtype, seconds=seconds, bound=bound, network=network)
        except OutOfTime as error:
            if remaining() <= 0.0:
                raise
            theorem = f"stopped after {time.perf_counter() - started:.1f} s in {error.place}"
        certify = not isinstance(theorem, NetworkProof)
    certify = certify and not prepared.custom
    try:
        if prepared.refusal is not None and not isinstance(theorem, NetworkProof):
            raise prepared.refusal
        with threads_for(flops):
            if prepared.refusal is not None:
                result = _not_computed(prepared, sizes)
            else:
                result = _of_computed_matrix(prepared, dataclasses.replace(options, certify=certify), bound, sizes)
    except OutOfTime as error:
        if not isinstance(theorem, NetworkProof):
            raise
        spent = time.perf_counter() - began
        result = out_of_time(error, "alignment", STATEMENT, Subject.COMPUTED_MATRIX, spent)
    if isinstance(theorem, NetworkProof):
        result = _with_theorem(result, theorem)
    unproved = theorem if isinstance(theorem, str) else ""
    lines = (f"nothing is proved about the network: {unproved}",) if unproved else ()
    merged = (merge_sentence(prepared.duplicates),) if prepared.merged else ()
    limit = (bound.sentence,) if bound.sentence else ()
    trained = (_TRAINED,) if write_counts(prepared.model) != writes else ()
    return dataclasses.replace(
        result,
        evidence=(*trained, *prepared.notes, *lines, *merged, *limit, *result.evidence),
        next_steps=alignment_steps(result, len(prepared.x) * m_y, d, bound.sentence, unproved),
    )


def _of_computed_matrix(
    prepared: PreparedAlignment, options: Options, bound: RankBound, sizes: dict[str, Any]
) -> CheckResult:
    """Decide from the Jacobian as it is computed, in the form that fits."""
    n, m_y, d = len(prepared.x), prepared.m_y, parameter_layout(prepared.model).d
    engine = options.engine
    passes: dict[str, Any] = {"dtype": options.dtype, "chunk_size": options.chunk_size}
    plan = planned(n, m_y, d, engine)
    J: JacobianForm
    result: CheckResult | None = None
    failure = ""
    large = options.method == "auto" and engine is None and gram_first(n, m_y, d, plan)
    if engine == "gram" or large:
        if bound.sentence:
            failure = f"rank J <= {bound.value}"
        elif large and plan.flops > _LONG and _dependent(prepared, options.dtype):
            failure = f"the rows of the first {_few(prepared)} samples are dependent within rounding error"
        else:
            attempt = prove_by_factors(
                prepared.model,
                prepared.x,
                prepared.y,
                rule=options.rule,
                tolerance=options.tolerance,
                plan=plan,
                required=engine == "gram",
                certify=options.certify,
                folder=options.folder,
                cluster=options.cluster,
                **passes,
            )
            result, failure = attempt.result, attempt.reason
            words = f"gram: from layer factors, without forming J; fallback: {plan.engine}"
            J = JacobianForm(None, n, m_y, d, attempt.computed_in, words, attempt.dtype)
    long = large and not bound.sentence and plan.flops > _LONG
    if result is None and long and 8 * 3 * (n * m_y) ** 2 <= available_memory():
        decided = _by_least_squares(prepared, options)
        if decided is not None:
            J, result = decided
    if result is None:
        deficient = bound.value < min(n * m_y, d)
        if large:
            J, plan = represent_square(prepared.model, prepared.x, m_y, plan, **passes)
        elif deficient and d < n * m_y:
            J = represent_tall(prepared.model, prepared.x, prepared.y, plan, **passes)
        else:
            J = represent(prepared.model, prepared.x, plan, **passes)
        y = torch.from_numpy(prepared.y).to(J.matrix.device) if J.target is None else J.target
        certify = options.certify and J.certifiable
        result = options.membership(
            J.matrix, y, computed_in=J.computed_in, certify=certify, rows=n * m_y, columns=d, deficient=deficient
        )
        if failure:
            line = f"no {'proof' if options.certify else 'answer'} from the Gram matrix of the layer factors: {failure}"
            result = dataclasses.replace(result, evidence=(*result.evidence, line))
    nonsmooth = find_nonsmooth_points(prepared.model, prepared.x, options.dtype)
    measured = {
        **result.measured,
        **sizes,
        "distinct": n,
        "dtype": J.dtype,
        "computed_in": J.computed_in,
        "engine": J.words,
        "planned": plan.reason,
        "conflicts": prepared.duplicates.conflicts.plain(),
        "rank_upper": bound.value,
        **({} if nonsmooth is None else {"kinks": nonsmooth.summary()}),
    }
    points = () if nonsmooth is None else (nonsmooth.sentence(),)
    return dataclasses.replace(
        result,
        name="alignment",
        code=result.code.replace("membership", "alignment", 1),
        statement=STATEMENT,
        evidence=(*result.evidence, _description(J), *points),
        measured=measured,
        plan=dataclasses.asdict(plan),
    )


def prove_about_network(
    prepared: PreparedAlignment,
    dtype: str | None,
    *,
    seconds: float = 10.0,
    bound: RankBound | None = None,
    network: EnclosedNetwork | str | None = None,
) -> NetworkProof | str:
    """Prove the alignment of the network itself, or say why it is not proved.

    Parameters
    ----------
    prepared : PreparedAlignment
    dtype : str or None
        Of the float64 Gram matrix that suggests a precision.
    seconds : float
        The time that a proof may take, as estimated.
    bound : RankBound, optional
        The result of :func:`row_rank_bound`.
    network : EnclosedNetwork or str, optional
        The traced model, or why it cannot be traced; traced here by default.

    Examples
    --------
    >>> from alignver.jacobians.prepare import prepare_alignment
    >>> prepared = prepare_alignment(nn.Linear(1, 1), [[1.0], [2.0]], [1.0, 5.0], "squared", "float64")
    >>> prove_about_network(prepared, "float64").verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    if bound is None:
        bound = row_rank_bound(prepared.model, prepared.x, prepared.m_y)
    N, d = len(prepared.y), parameter_layout(prepared.model).d
    if N > _ENCLOSED:
        return f"N = {N} is more than the {_ENCLOSED} rows for which it is tried"
    least = EnclosedNetwork.least_seconds(d, len(prepared.x), prepared.m_y)
    if least > seconds:
        return f"enclosures would take more than {least:.0f} s"
    if available_memory() < 3 * 8 * N**2:  # J J^T, a factor and a residual in float64
        return f"enclosures of J J^T would take more than {3 * 8 * N**2 / 1e6:.3g} MB"
    if network is None:
        with stage("tracing the network"):
            network = traced_network(prepared)
    if isinstance(network, str):
        return network
    comparable = d >= N and prepared.refusal is None
    with stage("enclosures of the network's Jacobian"):
        return prove_alignment(
            network,
            prepared.y,
            prepared.m_y,
            seconds=seconds,
            condition=lambda: _condition(prepared, dtype) if comparable else 1.0,
            deficient=bound.value < min(N, d),
        )


def _gram_only(prepared: PreparedAlignment, form: Plan, options: Options) -> bool:
    """Whether the Gram matrix fits in memory, and no other form of the Jacobian but products with it."""
    free = options.method == "auto" and options.engine is None and form.engine == "matrix-free"
    return free and gram_first(len(prepared.x), prepared.m_y, parameter_layout(prepared.model).d, form)


def least_seconds(prepared: PreparedAlignment, form: Plan, engine: str | None) -> float:
    """Estimate the time of the linear algebra on this CPU: of J J^T and its factorizations where they come first.

    In tiles, one factorization takes N^3 / 3 operations, and the matrix about as many again, for layers of usual width.
    """
    N, d = len(prepared.y), parameter_layout(prepared.model).d
    first = engine is None and gram_first(len(prepared.x), prepared.m_y, d, form)
    tiled = engine == "gram" or form.engine == "matrix-free"
    flops = (1.0 if tiled else 2.0) * float(N) ** 3 if first or engine == "gram" else form.flops
    return flops / flop_rate() if flops > 1e9 else 0.0


def _proof_seconds(budget: float | None) -> float:
    """Return the estimated time that a proof about the network may take, within the limit of the call."""
    left = remaining()
    return min(left, budget) if budget is not None else left / 2.0 if math.isfinite(left) else _PATIENCE


def traced_network(prepared: PreparedAlignment) -> EnclosedNetwork | str:
    """Trace the model of an alignment check, or say why it cannot be traced."""
    try:
        return EnclosedNetwork.of(prepared.model, prepared.x)
    except InvalidInput as error:
        return error.got


def _condition(prepared: PreparedAlignment, dtype: str | None) -> float:
    """Return the condition number of the Gram matrix, as far as float64 shows it; 1 if there is no memory for it."""
    try:
        M = gram(prepared.model, prepared.x, dtype=dtype)
    except InvalidInput as error:
        if error.code != "too-large":
            raise
        return 1.0
    levels = np.linalg.eigvalsh(M.double().cpu().numpy())
    return float(levels[-1] / levels[0]) if levels[0] > 0.0 else math.inf


def _with_theorem(result: CheckResult, theorem: NetworkProof) -> CheckResult:
    """Return a result about the network, in which that about the computed matrix is evidence."""
    low, high = theorem.kappa
    evidence = [f"in real arithmetic, {theorem.how}"]
    if theorem.hidden:
        evidence.append(f"about the derivatives of the function; those of autograd differ: {'; '.join(theorem.hidden)}")
    if theorem.verdict is Verdict.HOLDS:
        shuffled = f"; {theorem.shuffled:.3g} for shuffled targets (median of 20)" if theorem.shuffled > 0.0 else ""
        evidence.append(
            f"kappa = min ||beta||, J beta = y, is between {shown_down(low, 4)} and {shown_up(high, 4)}{shuffled}"
        )
    if theorem.reach:
        listed = ", ".join(f"{shown_up(row.upper)} for ||beta|| <= {row.budget:g}" for row in theorem.reach[:4])
        evidence.append(f"least ||J beta - y|| / ||y||: {listed}")
    evidence.append(f"about the computed matrix: {result.verdict}, {result.rigor.value.lower()}: {result.reason}")
    kind = "exact dependences" if theorem.certificate.method == "exact" else "independent columns"
    matrix = {"verdict": result.verdict.value, "rigor": result.rigor.value, "reason": result.reason}
    return dataclasses.replace(
        result,
        verdict=theorem.verdict,
        rigor=Rigor.PROOF,
        subject=Subject.NETWORK,
        code="alignment-network-" + ("proved" if theorem.verdict is Verdict.HOLDS else "refuted"),
        reason=theorem.reason,
        evidence=(*evidence, *result.evidence),
        witness=None if theorem.verdict is Verdict.HOLDS else {"kind": kind},
        certificate=theorem.certificate,
        bounds=(),
        measured={
            **result.measured,
            "kappa": {"lower": low, "upper": high},
            "kappa_shuffled": theorem.shuffled,
            "reach": [dataclasses.asdict(row) for row in theorem.reach],
            "network": {"how": theorem.how, "seconds": theorem.seconds},
            "computed_matrix": matrix,
        },
    )


def _not_computed(prepared: PreparedAlignment, sizes: dict[str, Any]) -> CheckResult:
    """Return the answer about a Jacobian that torch computes wrongly: the graph alone gives the derivatives."""
    assert prepared.refusal is not None
    return CheckResult(
        "alignment",
        STATEMENT,
        Verdict.UNDECIDED,
        Rigor.NUMERICAL,
        f"not computed: {prepared.refusal.got}",
        measured={**sizes, "distinct": len(prepared.x), "conflicts": prepared.duplicates.conflicts.plain()},
        subject=Subject.COMPUTED_MATRIX,
        code="alignment-network-proved",
    )


def _few(prepared: PreparedAlignment) -> int:
    """Return the number of samples that have about a hundred rows."""
    return min(len(prepared.x), max(1, _ROWS // prepared.m_y))


def _dependent(prepared: PreparedAlignment, dtype: str | None) -> bool:
    """Whether a few samples show that J has no full row rank that a Gram matrix could prove.

    The smallest eigenvalue of a matrix is at most that of a principal submatrix, here with rows of norm 1, which is
    nearly the best scaling. If that is rounding error, a proof fails.
    """
    M = gram(prepared.model, prepared.x[: _few(prepared)], dtype=dtype).double()
    sizes = M.diagonal().sqrt()
    if not bool((sizes > 0.0).all()):
        return True
    return float(torch.linalg.eigvalsh(M / sizes / sizes[:, None])[0]) <= 16 * 2.0**-52 * len(M)


def _by_least_squares(prepared: PreparedAlignment, options: Options) -> tuple[JacobianForm, CheckResult] | None:
    """Decide by least squares with the Gram matrix as the preconditioner and products with J; None if that does not.

    It takes as long as the attempt to prove full row rank, a fraction of a factorization of J^T.
    """
    passes: dict[str, Any] = {"dtype": options.dtype, "chunk_size": options.chunk_size}
    M = gram(prepared.model, prepared.x, **passes)
    operator = JacobianOperator(prepared.model, prepared.x, **passes)
    y = torch.from_numpy(prepared.y).to(operator.device, operator.dtype)
    result = options.membership(
        operator, y, computed_in=operator.computed_in, certify=False, gram=M.double().cpu().numpy()
    )
    if result.verdict is Verdict.UNDECIDED:
        return None
    n, m_y, d = len(prepared.x), prepared.m_y, operator.shape[1]
    words = "products with J and its Gram matrix"
    J = JacobianForm(operator, n, m_y, d, operator.computed_in, words, dtype_name(operator.dtype))
    return J, result


def _description(J: JacobianForm) -> str:
    rounding = "" if J.dtype == J.computed_in else f", rounded to {J.computed_in} in between"
    plural = "s" * (J.m_y > 1)
    return f"J: {J.n} samples, {J.m_y} output{plural}, {J.d} parameters; {J.dtype}{rounding}; {J.words}"
