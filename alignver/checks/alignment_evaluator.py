r"""Alignment looked at again and again, at the parameters as they are: the cheapest way that decides goes first.

0. The data: samples with equal inputs and different targets are FAILS at every theta. Samples that repeat others are
   left out of everything below.
1. The Gram matrix :math:`M = J J^\top` from the factors of the layers. Where its smallest eigenvalue clears its
   rounding and a hundred times the largest tolerance, J has full row rank and every target is in its column space.
   That is all that M may say: squaring costs half of the digits.
2. Where they are cheap: the singular values of J itself, from a matrix compressed layer by layer
   (:mod:`alignver.jacobians.compression`), from J or from its streamed QR.
3. Otherwise: least squares with M as the preconditioner, bounds of rho(tau) measured with products by J
   (:mod:`alignver.linalg.least_squares`); LSMR where M does not fit into memory. What they leave open, 2. decides
   after all up to :data:`ROWS` rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import lapack

from alignver.arrays import EPS
from alignver.checks.combine import bounds_by_rule, membership_by_rule, residual_tolerance
from alignver.checks.data import conflict_sentence
from alignver.errors import InvalidInput
from alignver.features.threads import single_threaded_blas
from alignver.jacobians.compression import CompressedJacobian, Factors
from alignver.jacobians.gram import gram
from alignver.jacobians.jacobian import bind
from alignver.jacobians.jacobian_form import Plan, available_memory, plan, represent
from alignver.jacobians.operator import JacobianOperator
from alignver.jacobians.prepare import PreparedAlignment
from alignver.linalg import rank_rules
from alignver.linalg.least_squares import iterated_tikhonov, residual_interval
from alignver.linalg.lsmr import Iterate, lsmr
from alignver.linalg.norms import largest_singular_value, spectral_norm, start_vector
from alignver.linalg.qr_reduction import reduce
from alignver.linalg.rank_rules import Scale
from alignver.linalg.svd import svd_profile
from alignver.network.functional import parameter_layout
from alignver.network.inputs import as_asked, dtype_name
from alignver.network.preserve_state import preserve_state
from alignver.network.validate_model import probe

__all__ = ["ROWS", "AlignmentEvaluation", "AlignmentEvaluator", "by_bounds", "by_singular_values", "full_rank"]

Matrix = npt.NDArray[np.float64]
Answers = Mapping[str, Mapping[str, Any]]

ROWS = 1000
"""Rows up to which the singular values decide what least squares leave open."""

_NEAR = 100.0  # levels within this factor of a tolerance are recorded (RangeProfile.near): M has to clear them all
_ALONE = 2e9  # operations up to which other BLAS threads bring nothing; they spin on into the training that follows
_EIGENVALUES = 1500  # rows up to which all eigenvalues of M take less than a second or so
_SOON = 2e10  # operations: about a second of dense linear algebra on a CPU
_MATRICES = 4  # of N x N beside each other: M, M_0, a factor, and what it is made in
_BATCH = 1024  # samples of a forward pass


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentEvaluation:
    """What one look found.

    Attributes
    ----------
    outputs : (n, m_y) float64
        f_X(theta), of all samples.
    answers : mapping of rule to mapping
        ``tolerance``, ``residual`` (lower, upper), ``verdict``; ``rank``, ``near`` and ``member`` where the singular
        values are known.
    spectral : float or None
        s_1; None where the data decided.
    smallest : float or None
        s_N where it is known.
    gram : (N, N) float64 or None
        M of the distinct samples, where it fits into memory.
    matrix : (N, .) float64 or None
        With the column space and the singular values of J, where one was made.
    iterates : sequence of Iterate
        Of least squares with y / ||y||, where they were made.
    ways : tuple of str
        How the answers were found, in the order in which it was tried.
    """

    outputs: Matrix
    answers: Mapping[str, Mapping[str, Any]]
    spectral: float | None
    smallest: float | None
    gram: Matrix | None
    matrix: Matrix | None
    iterates: Sequence[Iterate]
    ways: tuple[str, ...]


class AlignmentEvaluator:
    """Checks the alignment of one model with its data; each call of :meth:`look` uses the current parameters.

    Parameters
    ----------
    asked : Question
        Of :func:`alignver.jacobians.prepare.prepare_alignment`.
    rules : sequence of str
        Names of :data:`alignver.linalg.rank_rules.RULES` that need no entries of J.
    dtype : str, optional
        As in :func:`alignver.jacobians.jacobian.jacobian`.
    limit : float, optional
        eps_y; by default the root of the eps that J is computed with.
    thorough : bool
        Find rank and singular values at every look, whatever they cost, not only where they decide or are cheap.

    Examples
    --------
    >>> from alignver.jacobians.prepare import question
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1)).double()
    >>> asked = question(net, [[0.0], [1.0], [2.0]], [1.0, 3.0, 9.0], "squared", "float64")
    >>> look = Lookout(asked).look()
    >>> look.answers["golub"]["verdict"], look.answers["golub"]["rank"]
    ('HOLDS', 3)
    """

    def __init__(
        self,
        asked: PreparedAlignment,
        *,
        rules: Sequence[str] = ("press", "golub"),
        dtype: str | None = "float64",
        limit: float | None = None,
        thorough: bool = False,
    ) -> None:
        self.asked, self.rules, self._dtype, self._thorough = asked, tuple(rules), dtype, thorough
        self.n, self.m_y, self.d = len(asked.x), asked.m_y, parameter_layout(asked.model).d
        self.N = self.n * self.m_y
        self._conflict = (
            conflict_sentence(asked.duplicates, None, "no theta") if asked.duplicates.conflicts.count else ""
        )
        self._layers = None if self._conflict else CompressedJacobian.suits(asked.model, asked.x, dtype=dtype)
        if self._layers is not None and self._layers.flops > _SOON:
            self._layers = None
        self.computed_in = self._probed() if self._layers is None else self._layers.computed_in
        self._eps = EPS[self.computed_in]
        self.limit = residual_tolerance(self._eps) if limit is None else limit
        self._plan: Plan = plan(self.n, self.m_y, self.d)
        size = float(np.linalg.norm(asked.y))
        self.target: Matrix = asked.y / size if size else asked.y

    def forms_gram(self) -> bool:
        """Whether looks form M, judged by the memory that is currently free."""
        return not self._conflict and (self._layers is not None or self._fits())

    def look(self) -> AlignmentEvaluation:
        """Look at the model as it is now.

        Raises
        ------
        InvalidInput
            What :func:`alignver.jacobians.jacobian.jacobian` refuses.
        """
        if self._conflict:
            return self._refuted()
        parts = None if self._layers is None else self._layers.factors()
        M: torch.Tensor | None
        if parts is not None:
            outputs, M = parts.outputs, parts.gram()
        else:
            outputs = self._outputs()
            M = gram(self.asked.model, self.asked.x, dtype=self._dtype) if self._fits() else None
        values = self.asked.of_all(outputs.double().cpu().numpy())
        if not np.isfinite(values).all() or (M is not None and not bool(torch.isfinite(M.sum()))):
            raise InvalidInput("model", "outputs or derivatives that are NaN or Inf", "finite outputs at finite theta")
        ways = []
        if M is not None and self.d >= self.N:
            ways.append("Gram matrix")
            found = full_rank(M, self._scale, self.rules, terms=None if parts is None else parts.terms)
            if found is not None:
                answers, spectral, smallest = found
                return AlignmentEvaluation(values, answers, spectral, smallest, _host(M), None, (), tuple(ways))
        if parts is not None or self._cheap() or self._thorough:
            answers, levels, matrix = self._accurately(parts)
            ways.append("singular values")
            kept = None if M is None else _host(M)
            return AlignmentEvaluation(
                values, answers, float(levels[0]), float(levels[-1]), kept, matrix, (), tuple(ways)
            )
        return self._bounded(values, None if M is None else _host(M), ways)

    def _refuted(self) -> AlignmentEvaluation:
        """Answer from the data: equal inputs with different targets are out of reach of every theta."""
        values = self._outputs().double().cpu().numpy()
        if not np.isfinite(values).all():
            raise InvalidInput("model", "outputs that are NaN or Inf", "finite outputs at finite theta")
        answer = {"tolerance": None, "residual": None, "verdict": "FAILS"}
        ways = (f"data: {self._conflict}",)
        return AlignmentEvaluation(values, dict.fromkeys(self.rules, answer), None, None, None, None, (), ways)

    def _bounded(self, values: Matrix, M: Matrix | None, ways: list[str]) -> AlignmentEvaluation:
        """Answer by least squares, and by the singular values what those leave open."""
        operator = JacobianOperator(self.asked.model, self.asked.x, dtype=self._dtype)
        target = torch.from_numpy(self.target).to(operator.device, operator.dtype)
        if M is not None:
            ways.append("least squares with the Gram matrix")
            spectral, iterates = math.sqrt(largest_singular_value(M)), iterated_tikhonov(operator, M, target)
        else:
            ways.append("LSMR")
            start = torch.from_numpy(start_vector(self.N)).to(operator.device, operator.dtype)
            spectral, iterates = spectral_norm(operator, start), [lsmr(operator, target)]
        answers = dict(by_bounds(iterates, self._scale(spectral), self.limit, self.rules))
        open_ = [rule for rule, answer in answers.items() if answer["verdict"] == "UNDECIDED"]
        if not open_ or self.N > ROWS:
            return AlignmentEvaluation(values, answers, spectral, None, M, None, iterates, tuple(ways))
        found, levels, matrix = self._accurately(None)
        ways.append("singular values")
        return AlignmentEvaluation(values, found, float(levels[0]), float(levels[-1]), M, matrix, iterates, tuple(ways))

    def _accurately(self, parts: Factors | None) -> tuple[Answers, Matrix, Matrix]:
        """Return answers and levels from the singular values, and the matrix that they are of."""
        flops = self._plan.flops if parts is None or self._layers is None else self._layers.flops
        with single_threaded_blas() if flops <= _ALONE else contextlib.nullcontext():
            return self._decomposed(parts)

    def _decomposed(self, parts: Factors | None) -> tuple[Answers, Matrix, Matrix]:
        if parts is not None:
            matrix = parts.factor()
        else:
            engine = self._plan.engine if self._plan.engine in ("dense", "streamed") else "streamed"
            J = represent(self.asked.model, self.asked.x, self._planned(engine), dtype=self._dtype, chunk_size=None)
            matrix = J.matrix.double().cpu().numpy()
        profile = svd_profile(reduce(matrix, self.target))
        scale = self._scale(float(profile.levels[0]))
        return by_singular_values(profile, scale, self.limit, self.rules), profile.levels, matrix

    def _planned(self, engine: str) -> Plan:
        return plan(self.n, self.m_y, self.d, engine=engine)

    def _cheap(self) -> bool:
        return self._plan.engine in ("dense", "streamed") and self._plan.flops <= _SOON

    def _fits(self) -> bool:
        return available_memory() >= 8 * _MATRICES * self.N**2

    def _scale(self, spectral: float) -> Scale:
        return Scale(self.N, self.d, spectral, None, self._eps, self._eps)

    def _probed(self) -> str:
        with preserve_state(self.asked.model):
            function, x = bind(self.asked.model, self.asked.x, self._dtype, include_frozen=False)
            with as_asked(function.device, function.dtype):
                return dtype_name(probe(function, x).computed_in)

    def _outputs(self) -> torch.Tensor:
        with preserve_state(self.asked.model):
            function, x = bind(self.asked.model, self.asked.x, self._dtype, include_frozen=False)
            with as_asked(function.device, function.dtype), torch.no_grad():
                batches = torch.split(x, _BATCH)
                return torch.cat([function(function.theta, function.batch(b)).reshape(len(b), -1) for b in batches])


def full_rank(
    M: torch.Tensor, scale_of: Callable[[float], Scale], rules: Sequence[str], *, terms: int | None = None
) -> tuple[Answers, float, float | None] | None:
    r"""Return what each rule says, s_1, and s_N if known, where M shows full row rank; None where it does not.

    Every entry of M is a sum of d products or an equivalent of it: off by at most
    :math:`\gamma_d \sqrt{M_{ii} M_{jj}}`, so M by :math:`\gamma_d \, \mathrm{tr} M` in norm; eigenvalues and Cholesky's
    pivots come within a modest multiple of N eps tr M. With c = (t + N) eps tr M, where t is d or the ``terms`` of the
    sums that M was made of, M - 2 c I positive definite leaves :math:`s_N^2 > c`. It is also asked that s_N exceed a
    hundred times every tolerance: no band of any rule then has a singular value in it.

    Parameters
    ----------
    M : (N, N) torch.Tensor
        J J^T.
    scale_of : callable
        The scale of J, given s_1.
    rules : sequence of str
    terms : int, optional
        t with :math:`\gamma_t` in place of :math:`\gamma_d`, where M was made of sums that short.

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
        eigenvalues = torch.linalg.eigvalsh(M)
        largest, least = float(eigenvalues[-1]), float(eigenvalues[0])
    else:
        largest, least = largest_singular_value(_host(M)), math.nan
    spectral = math.sqrt(max(largest, 0.0))
    tolerances = {rule: rank_rules.tolerance(rule, scale_of(spectral)).value for rule in rules}
    # sqrt(trace) >= s_1 whatever the estimate of s_1 was; tolerances are proportional to it.
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
    """Whether Cholesky's factorization of M - shift I runs to its end."""
    if M.device.type != "cpu":
        shifted = M.clone()
        shifted.diagonal().sub_(shift)
        return int(torch.linalg.cholesky_ex(shifted)[1]) == 0
    work = M.numpy().astype(np.float64, order="C", copy=True).T  # M is symmetric: no second copy in Fortran's order
    np.fill_diagonal(work, work.diagonal() - shift)
    return int(lapack.dpotrf(work, lower=1, overwrite_a=1, clean=0)[1]) == 0


def _host(M: torch.Tensor) -> Matrix:
    found: Matrix = M.double().cpu().numpy()
    return found
