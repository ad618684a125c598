"""The ball of matrices that a proof covers, the decision of a prover, and the record of its attempts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from alignver.errors import InvalidInput, kind_of
from alignver.kernel import Certificate
from alignver.progress import logger
from alignver.proof.rounding import FloatArray, frobenius_up, mul_up, scale_up, sqrt_up, sum_up
from alignver.results import Frozen, Verdict, plain


@dataclasses.dataclass(frozen=True)
class Ball:
    r"""All matrices within a distance of a given one, in the spectral norm or entry by entry.

    .. math:: \{A + E : \|E\|_2 \le \delta\} \quad\text{or}\quad \{A + E : |E_{ij}| \le R_{ij}\}

    The spectral ball contains the Frobenius ball of the same radius, so a proof for it covers both.

    Parameters
    ----------
    norm : float, optional
        Radius in the spectral norm, finite and >= 0. Exactly one of the two arguments is required.
    entrywise : float or array of the shape of the matrix, optional
        Radius of every entry, finite and >= 0.

    Raises
    ------
    InvalidInput
        If both or neither are given, or a radius is negative, NaN or infinite.

    Examples
    --------
    >>> Ball(norm=1e-9).is_point
    False
    >>> Ball(entrywise=0.0).is_point
    True
    """

    norm: float | None = None
    entrywise: float | npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if (self.norm is None) == (self.entrywise is None):
            got = f"norm={self.norm!r} with entrywise={self.entrywise!r}"
            raise InvalidInput("ball", got, "exactly one of the two", code="conflicting-arguments")
        name = "norm" if self.norm is not None else "entrywise"
        try:
            radius = np.array(self.norm if name == "norm" else self.entrywise, dtype=np.float64)
        except (TypeError, ValueError) as error:
            got = kind_of(getattr(self, name))
            raise InvalidInput(f"ball.{name}", got, "real numbers", code="wrong-type") from error
        if name == "norm" and radius.ndim:
            raise InvalidInput("ball.norm", f"shape {radius.shape}", "one number", code="wrong-shape")
        if radius.ndim not in (0, 2):
            need = "one number, or a matrix of radii"
            raise InvalidInput("ball.entrywise", f"shape {radius.shape}", need, code="wrong-shape")
        if radius.size == 0 or not bool(np.all(np.isfinite(radius) & (radius >= 0))):
            got = "a radius that is negative, NaN, infinite or missing"
            raise InvalidInput(f"ball.{name}", got, "non-negative finite radii", code="not-a-number")
        object.__setattr__(self, name, radius if radius.ndim else float(radius))

    @property
    def is_point(self) -> bool:
        """Whether the ball contains only its centre."""
        return not np.any(np.asarray(self.norm if self.norm is not None else self.entrywise))

    def check_shape(self, shape: tuple[int, ...], name: str) -> None:
        """Raise :class:`InvalidInput` unless an entrywise array has the ``shape`` of the matrix."""
        if isinstance(self.entrywise, np.ndarray) and self.entrywise.shape != shape:
            got, need = f"shape {self.entrywise.shape}", f"the shape {shape} of {name}"
            raise InvalidInput("ball.entrywise", got, need, code="wrong-shape")

    def transposed(self) -> Ball:
        """Return the ball around the transposed matrix."""
        return Ball(entrywise=self.entrywise.T) if isinstance(self.entrywise, np.ndarray) else self

    def scaled(self, exponents: npt.NDArray[np.int64]) -> Ball:
        """Return a ball that contains ``diag(2**exponents) E`` for every E in this one."""
        # The cap of 1.7e308 in place of infinity changes no proof: scaled rows are far below it.
        top = int(exponents.max())
        if self.norm is not None:
            return Ball(norm=min(scale_up(self.norm, top), 1.7e308))
        radius = self.entrywise
        if not isinstance(radius, np.ndarray):
            assert radius is not None
            return Ball(entrywise=min(scale_up(radius, top), 1.7e308))
        with np.errstate(all="ignore"):
            scaled = np.nextafter(np.ldexp(radius, exponents[:, None]), np.inf)
        return Ball(entrywise=np.where(radius > 0, np.minimum(scaled, 1.7e308), 0.0))

    def radius(self, shape: tuple[int, int]) -> float:
        r"""Return an upper bound of :math:`\|E\|_2` over the ball.

        An entrywise bound R gives :math:`\|E\|_2 \le \|E\|_F \le \|R\|_F`, and
        :math:`\|E\|_2 \le \sqrt{\|R\|_1 \|R\|_\infty}` (Higham 2002, table 6.2); the smaller one is returned.
        """
        if self.norm is not None:
            return self.norm
        if isinstance(self.entrywise, np.ndarray):
            R: FloatArray = self.entrywise
            rows = max(sum_up(row) for row in R)
            columns = max(sum_up(column) for column in np.ascontiguousarray(R.T))
            return min(frobenius_up(R), sqrt_up(mul_up(rows, columns)))
        assert self.entrywise is not None
        return mul_up(self.entrywise, sqrt_up(mul_up(float(shape[0]), float(shape[1]))))


@dataclasses.dataclass(frozen=True)
class Decision:
    """A verdict with proof, or UNDECIDED.

    Attributes
    ----------
    verdict : Verdict
        HOLDS and FAILS are proofs, each with a certificate; everything else is UNDECIDED.
    step : str
        The method that decided: ``"structure"``, ``"gram"``, ``"right inverse"``, ``"residual"`` or ``"exact"``;
        ``"arithmetic"`` if the arithmetic here excludes every proof.
    reason : str
        One sentence; for UNDECIDED, what could decide it.
    certificate : Certificate or None
    witness : mapping or None
        Plain data; present if the verdict is FAILS.
    tried : tuple of str
        Every method that did not decide, with the reason and its seconds.
    measured : mapping
        Verified bounds, such as ``s_min_lower``.
    """

    verdict: Verdict
    step: str
    reason: str
    certificate: Certificate | None = None
    witness: Mapping[str, Any] | None = None
    tried: tuple[str, ...] = ()
    measured: Mapping[str, Any] = dataclasses.field(default_factory=Frozen)


class ProofAttempts:
    """Records the methods that did not decide and the verified bounds, and builds a :class:`Decision` from them."""

    def __init__(self, ball: Ball | None) -> None:
        self.ball = ball
        self.tried: list[str] = []
        self.measured: dict[str, Any] = {}
        self._start = time.perf_counter()

    def missed(self, step: str, reason: str) -> None:
        """Record a method that did not decide."""
        now = time.perf_counter()
        self.tried.append(f"{step}: {reason} ({now - self._start:.2g} s)")
        logger.debug("no proof by %s", self.tried[-1])
        self._start = now

    def decided(
        self,
        verdict: Verdict,
        step: str,
        reason: str,
        certificate: Certificate,
        witness: Mapping[str, Any] | None = None,
    ) -> Decision:
        """Return the verdict with everything recorded so far."""
        shown = None if witness is None else plain(dict(witness))
        return Decision(verdict, step, reason, certificate, shown, tuple(self.tried), plain(self.measured))

    def undecided(self, reason: str, step: str = "none") -> Decision:
        """Return UNDECIDED with everything recorded so far."""
        return Decision(Verdict.UNDECIDED, step, reason, None, None, tuple(self.tried), plain(self.measured))
