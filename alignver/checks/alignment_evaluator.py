r"""Alignment at the current parameters of a model, evaluated repeatedly: the cheapest method that decides comes first.

0. The data: with equal inputs and different targets the answer is FAILS at every theta. Samples that repeat others are
   left out of all further steps.
1. The Gram matrix :math:`M = J J^\top` from the factors of the layers. If its smallest eigenvalue exceeds its rounding
   error and the square of a hundred times the largest tolerance, J has full row rank and every target is in its column
   space. M is not used for any other conclusion: squaring loses half of the digits.
2. If they are cheap: the singular values of J itself, from M in twice the precision
   (:mod:`alignver.jacobians.compression`), from J or from its streamed QR.
3. Otherwise: least squares with M as the preconditioner, with bounds of rho(tau) measured with products by J
   (:mod:`alignver.linalg.least_squares`); LSMR if M does not fit into memory. If they do not decide, step 2 follows for
   up to :data:`ROWS` rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import lapack

from alignver.arrays import EPS, available_memory
from alignver.checks.combine import bounds_by_rule, membership_by_rule, residual_tolerance
from alignver.checks.data import conflict_sentence
from alignver.errors import InvalidInput
from alignver.features.threads import threads_for
from alignver.jacobians.compression import CompressedJacobian, Factors
from alignver.jacobians.gram import gram
from alignver.jacobians.jacobian import bound_copy
from alignver.jacobians.jacobian_form import Plan, plan, represent
from alignver.jacobians.operator import JacobianOperator
from alignver.jacobians.prepare import PreparedAlignment
from alignver.linalg import rank_rules
from alignver.linalg.least_squares import preconditioned_iterates, residual_interval
from alignver.linalg.lsmr import Iterate, lsmr
from alignver.linalg.norms import largest_singular_value, spectral_norm, start_vector
from alignver.linalg.qr_reduction import reduce
from alignver.linalg.rank_rules import Scale
from alignver.linalg.svd import svd_profile
from alignver.network.functional import Functional, parameter_layout
from alignver.network.inputs import dtype_name, full_precision
from alignver.network.validate_model import probe
from alignver.progress import track

Matrix = npt.NDArray[np.float64]
Answers = Mapping[str, Mapping[str, Any]]

ROWS = 1000
"""Number of rows up to which the singular values decide if least squares do not."""

_NEAR = 100.0  # levels within this factor of a tolerance are recorded (RangeProfile.near): s_N has to exceed them all
_EIGENVALUES = 1500  # rows up to which all eigenvalues of M take about a second at most
_SOON = 2e10  # operations: about a second of dense linear algebra on a CPU
_MATRICES = 4  # N x N matrices in memory at the same time: M, M_0, a factor, and its work space
_BATCH = 1024  # samples of a forward pass


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentEvaluation:
    """The result of one evaluation.

    Attributes
    ----------
    outputs : (n, m_y) float64
        f_X(theta) for all samples.
    answers : mapping of rule to mapping
        ``tolerance``, ``residual`` (lower, upper), ``verdict``; ``rank``, ``near`` and ``member`` if the singular
        values are known.
    spectral : float or None
        s_1; None if the data decide.
    smallest : float or None
        s_N if it is known.
    gram : (N, N) float64 or None
        M of the distinct samples, if it fits into memory.
    matrix : (N, .) float64 or None
        A matrix with the column space and the singular values of J, if one was computed.
    iterates : sequence of Iterate
        Of least squares with y / ||y||, if they were computed.
    methods : tuple of str
        The methods that were tried, in this order.
    """

    outputs: Matrix
    answers: Answers
    spectral: float | None
    smallest: float | None
    gram: Matrix | None
    matrix: Matrix | None
    iterates: Sequence[Iterate]
    methods: tuple[str, ...]


class AlignmentEvaluator:
    """Checks the alignment of one model with its data; each call of :meth:`evaluate` uses the current parameters.

    Parameters
    ----------
    prepared : PreparedAlignment
        Of :func:`alignver.jacobians.prepare.prepare_alignment`.
    rules : sequence of str
        Names of :data:`alignver.linalg.rank_rules.RULES` that need no entries of J.
    dtype : str, optional
        As in :func:`alignver.jacobians.jacobian.jacobian`.
    limit : float, optional
        eps_y; by default the square root of the eps that J is computed with.
    thorough : bool
        Compute rank and singular values in every evaluation, not only if they decide or are cheap.

    Examples
    --------
    >>> from alignver.jacobians.prepare import prepare_alignment
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1)).double()
    >>> prepared = prepare_alignment(net, [[0.0], [1.0], [2.0]], [1.0, 3.0, 9.0], "squared", "float64")
    >>> evaluation = AlignmentEvaluator(prepared).evaluate()
    >>> evaluation.answers["golub"]["verdict"], evaluation.answers["golub"]["rank"]
    ('HOLDS', 3)
    """

    def __init__(
        self,
        prepared: PreparedAlignment,
        *,
        rules: Sequence[str] = ("press", "golub"),
        dtype: str | None = "float64",
        limit: float | None = None,
        thorough: bool = False,
    ) -> None:
        self.prepared, self.rules, self._dtype, self._thorough = prepared, tuple(rules), dtype, thorough
        self._model, self._x = prepared.model, prepared.x
        self.n, self.m_y, self.d = len(prepared.x), prepared.m_y, parameter_layout(prepared.model).d
        self.N = self.n * self.m_y
        duplicates = prepared.duplicates
        self._conflict = conflict_sentence(duplicates, None, "no theta") if duplicates.conflicts.count else ""
        self._layers = None if self._conflict else CompressedJacobian.suits(self._model, self._x, dtype=dtype)
        if self._layers is not None and self._layers.flops > _SOON:
            self._layers = None
        self.computed_in = self._dtype_of_outputs() if self._layers is None else self._layers.computed_in
        self._eps = EPS[self.computed_in]
        self.limit = residual_tolerance(self._eps) if limit is None else limit
        self._plan: Plan = plan(self.n, self.m_y, self.d)
        size = float(np.linalg.norm(prepared.y))
        self.target: Matrix = prepared.y / size if size else prepared.y
        self._deficient = False  # the last evaluation needed the Gram matrix in twice the precision

    def forms_gram(self) -> bool:
        """Whether evaluations form M, given the memory that is currently free."""
        return not self._conflict and (self._layers is not None or self._fits())

    def evaluate(self) -> AlignmentEvaluation:
        """Evaluate the alignment at the current parameters.

        Raises
        ------
        InvalidInput
            As :func:`alignver.jacobians.jacobian.jacobian`.
        """
        if self._conflict:
            return self._refuted()
        parts = self._factors()
        self._resize(parameter_layout(self._model).d)
        M: torch.Tensor | None
        if parts is not None and self._layers is not None:
            with threads_for(self._layers.flops):
                outputs, M = parts.outputs, parts.gram(precise=self._deficient)
        else:
            outputs = self._outputs()
            M = gram(self._model, self._x, dtype=self._dtype) if self._fits() else None
        values = self.prepared.of_all(outputs.double().cpu().numpy())
        if not np.isfinite(values).all() or (M is not None and not bool(torch.isfinite(M.sum()))):
            got = "outputs or derivatives that are NaN or Inf"
            raise InvalidInput("model", got, "finite outputs at finite theta", "not-finite")
        methods = []
        if M is not None and self.d >= self.N:
            methods.append("Gram matrix")
            full = full_rank(M, self._scale, self.rules, terms=None if parts is None else parts.terms)
            self._deficient = full is None
            if full is not None:
                answers, spectral, smallest = full
                return AlignmentEvaluation(values, answers, spectral, smallest, _host(M), None, (), tuple(methods))
        M_host = None if M is None else _host(M)
        if parts is not None or self._cheap() or self._thorough:
            return self._accurately(values, M_host, (), methods, parts)
        return self._bounded(values, M_host, methods)

    def _resize(self, d: int) -> None:
        """Take the number of parameters, which changes where layers are frozen or replaced during the training."""
        if d != self.d:
            self.d, self._plan = d, plan(self.n, self.m_y, d)

    def _refuted(self) -> AlignmentEvaluation:
        """Answer from the data: no theta fits equal inputs with different targets."""
        values = self._outputs().double().cpu().numpy()
        if not np.isfinite(values).all():
            got = "outputs that are NaN or Inf"
            raise InvalidInput("model", got, "finite outputs at finite theta", "not-finite")
        answer = {"tolerance": None, "residual": None, "verdict": "FAILS"}
        methods = (f"data: {self._conflict}",)
        return AlignmentEvaluation(values, dict.fromkeys(self.rules, answer), None, None, None, None, (), methods)

    def _bounded(self, values: Matrix, M: Matrix | None, methods: list[str]) -> AlignmentEvaluation:
        """Answer by least squares, and by the singular values if those do not decide."""
        operator = JacobianOperator(self._model, self._x, dtype=self._dtype)
        target = torch.from_numpy(self.target).to(operator.device, operator.dtype)
        solutions: Iterator[Iterate]
        if M is not None:
            methods.append("least squares with the Gram matrix")
            spectral, solutions = math.sqrt(largest_singular_value(M)), preconditioned_iterates(operator, M, target)
        else:
            methods.append("LSMR")
            start = torch.from_numpy(start_vector(self.N)).to(operator.device, operator.dtype)
            spectral, solutions = spectral_norm(operator, start), iter([lsmr(operator, target)])
        iterates, answers = [], by_bounds([], self._scale(spectral), self.limit, self.rules)
        for iterate in solutions:
            iterates.append(iterate)
            answers = by_bounds(iterates, self._scale(spectral), self.limit, self.rules)
            if all(answer["verdict"] != "UNDECIDED" for answer in answers.values()):
                break
        if self.N > ROWS or all(answer["verdict"] != "UNDECIDED" for answer in answers.values()):
            return AlignmentEvaluation(values, answers, spectral, None, M, None, iterates, tuple(methods))
        return self._accurately(values, M, iterates, methods, None)

    def _accurately(
        self, values: Matrix, M: Matrix | None, iterates: Sequence[Iterate], methods: list[str], parts: Factors | None
    ) -> AlignmentEvaluation:
        """Answer by the singular values of J, or of a factor of M in twice the precision."""
        flops = self._plan.flops if parts is None or self._layers is None else self._layers.flops
        with threads_for(flops):
            if parts is not None:
                matrix = parts.factor()
            else:
                engine = self._plan.engine if self._plan.engine in ("dense", "streamed") else "streamed"
                how = plan(self.n, self.m_y, self.d, engine=engine)
                J = represent(self._model, self._x, how, dtype=self._dtype, chunk_size=None)
                matrix = J.matrix.double().cpu().numpy()
            profile = svd_profile(reduce(matrix, self.target))
        largest, smallest = float(profile.levels[0]), float(profile.levels[-1])
        answers = by_singular_values(profile, self._scale(largest), self.limit, self.rules)
        methods = [*methods, "singular values"]
        return AlignmentEvaluation(values, answers, largest, smallest, M, matrix, iterates, tuple(methods))

    def _cheap(self) -> bool:
        return self._plan.engine in ("dense", "streamed") and self._plan.flops <= _SOON

    def _fits(self) -> bool:
        return available_memory() >= 8 * _MATRICES * self.N**2

    def _scale(self, spectral: float) -> Scale:
        return Scale(self.N, self.d, spectral, None, self._eps, self._eps)

    def _factors(self) -> Factors | None:
        """Return the factors of the layers; None from the first time that they are not those of the model."""
        if self._layers is not None:
            try:
                return self._layers.factors()
            except InvalidInput:  # a layer does more than multiply and add: the other engines follow
                self._layers = None
        return None

    def _dtype_of_outputs(self) -> str:
        with _bound(self._model, self._x, self._dtype, self.prepared.graded) as (function, x):
            return dtype_name(probe(function, x).computed_in)

    def _outputs(self) -> torch.Tensor:
        return outputs_of(self._model, self._x, self._dtype, graded=self.prepared.graded)


@contextlib.contextmanager
def _bound(
    model: torch.nn.Module, x: torch.Tensor, dtype: str | None, graded: bool
) -> Iterator[tuple[Functional, torch.Tensor]]:
    with bound_copy(model, x, dtype) as (function, x), full_precision(function.device, function.dtype):
        yield dataclasses.replace(function, graded=graded), x


def outputs_of(model: torch.nn.Module, x: torch.Tensor, dtype: str | None, *, graded: bool = False) -> torch.Tensor:
    """Return the outputs of a model, (n, m_y), computed in a dtype; ``graded``: those that gradients belong to."""
    with _bound(model, x, dtype, graded) as (function, x), torch.no_grad():
        batches = track(torch.split(x, _BATCH), "outputs")
        return torch.cat([function(function.theta, function.batch(b)).reshape(len(b), -1) for b in batches])


def full_rank(
    M: torch.Tensor, scale_of: Callable[[float], Scale], rules: Sequence[str], *, terms: int | None = None
) -> tuple[Answers, float, float | None] | None:
    r"""Return the answer of each rule, s_1, and s_N if known, if M shows full row rank; None if it does not.

    Every entry of M is a sum of d products or equivalent to one: its error is at most
    :math:`\gamma_d \sqrt{M_{ii} M_{jj}}`, so that of M is at most :math:`\gamma_d \, \mathrm{tr} M` in norm; the
    errors of eigenvalues and of Cholesky's pivots are a modest multiple of N eps tr M. With c = (t + N) eps tr M, where
    t is d or the ``terms`` of the sums in M, :math:`s_N^2 > c` if M - 2 c I is positive definite. In addition, s_N has
    to exceed a hundred times every tolerance: then no singular value is in the tolerance interval of any rule.

    Parameters
    ----------
    M : (N, N) torch.Tensor
        J J^T.
    scale_of : callable
        The scale of J, given s_1.
    rules : sequence of str
    terms : int, optional
        t, for :math:`\gamma_t` instead of :math:`\gamma_d`, if the sums in M have so few terms.

    Examples
    --------
    >>> scale_of = lambda s: Scale(2, 5, s, None, 2.0**-52, 2.0**-52)
    >>> full_rank(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), scale_of, ["golub"])[1:]
    (2.0, 1.0)
    >>> full_rank(torch.diag(torch.tensor([4.0, 0.0], dtype=torch.float64)), scale_of, ["golub"]) is None
    True
    """
    N = len(M)
    trace, known = float(M.trace()), scale_of(1.0)
    if not trace > 0.0:
        return None
    rounding = ((known.columns if terms is None else terms) + N) * float(torch.finfo(M.dtype).eps) * trace
    smallest: float | None = None
    if N <= _EIGENVALUES:
        if not _definite(M, 2.0 * rounding):  # ten times faster than the eigenvalues
            return None
        eigenvalues = torch.linalg.eigvalsh(M)
        largest, least = float(eigenvalues[-1]), float(eigenvalues[0])
    else:
        largest, least = largest_singular_value(_host(M)), math.nan
    spectral = math.sqrt(max(largest, 0.0))
    tolerances = {rule: rank_rules.tolerance(rule, scale_of(spectral)).value for rule in rules}
    # sqrt(trace) >= s_1 for any estimate of s_1; tolerances are proportional to it.
    above = _NEAR * max(tolerances.values()) * math.sqrt(trace / largest)
    if N <= _EIGENVALUES:
        smallest = math.sqrt(max(least, 0.0))
        clear = least > 2.0 * rounding and least - rounding > above**2
    else:
        clear = 2.0 * rounding + above**2 < float(M.diagonal().min()) and _definite(M, 2.0 * rounding + above**2)
    if not clear:
        return None
    answer = {"rank": N, "residual": [0.0, 0.0], "member": True, "near": (), "verdict": "HOLDS"}
    return {rule: {"tolerance": tau, **answer} for rule, tau in tolerances.items()}, spectral, smallest


def by_singular_values(profile: Any, scale: Scale, limit: float, rules: Sequence[str]) -> Answers:
    """Return :func:`~alignver.checks.combine.membership_by_rule`, residuals as intervals, with the levels nearby."""
    return {
        rule: {**answer, "residual": [answer["residual"]] * 2, "near": profile.near(answer["tolerance"], _NEAR)}
        for rule, answer in membership_by_rule(profile, scale, limit, rules).items()
    }


def by_bounds(iterates: Sequence[Iterate], scale: Scale, limit: float, rules: Sequence[str]) -> Answers:
    """Return :func:`alignver.checks.combine.bounds_by_rule` for iterates of least squares with a target of norm 1."""
    return bounds_by_rule(lambda tau: residual_interval(iterates, tau), scale, limit, rules)


def _definite(M: torch.Tensor, shift: float) -> bool:
    """Whether the Cholesky factorization of M - shift I succeeds."""
    if M.device.type != "cpu":
        shifted = M.clone()
        shifted.diagonal().sub_(shift)
        return int(torch.linalg.cholesky_ex(shifted)[1]) == 0
    work = M.numpy().astype(np.float64, order="C", copy=True).T  # M is symmetric: no second copy in Fortran order
    np.fill_diagonal(work, work.diagonal() - shift)
    return int(lapack.dpotrf(work, lower=1, overwrite_a=1, clean=0)[1]) == 0


def _host(M: torch.Tensor) -> Matrix:
    entries: Matrix = M.double().cpu().numpy()
    return entries
