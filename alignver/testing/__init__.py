"""For the tests of your own project: assertions with the whole report, and hypothesis strategies with known answers.

    >>> from alignver.testing import assert_full_rank
    >>> assert_full_rank([[2.0, 1.0], [1.0, 2.0]]).rigor
    <Rigor.PROOF: 'PROOF'>

The strategies are in :mod:`alignver.testing.strategies`; only they need hypothesis.
"""

from __future__ import annotations

from typing import Any

from alignver.checks.exploration import check_safe_exploration
from alignver.checks.rank import check_rank
from alignver.errors import InvalidInput
from alignver.results import CheckResult, Rigor, Verdict

__all__ = ["assert_aligned", "assert_full_rank", "assert_safely_explored"]


def assert_aligned(
    model: Any, X: Any, Y: Any, *, loss: str, rigor: Rigor | str = Rigor.NUMERICAL, **options: Any
) -> CheckResult:
    """Assert that a model is aligned with its data at its present theta (Definition 2).

    Parameters
    ----------
    model, X, Y, loss, **options
        As in :func:`alignver.check_alignment`.
    rigor : Rigor or str
        The least that counts: ``"NUMERICAL"``, or ``"PROOF"`` for a certificate.

    Returns
    -------
    CheckResult

    Raises
    ------
    AssertionError
        The verdict is not HOLDS, or its rigor is less than asked for; the message is the report. UNDECIDED fails too.
    InvalidInput
        What :func:`alignver.check_alignment` refuses: that is no failed assertion, but a question without an answer.

    Examples
    --------
    >>> import torch
    >>> line = torch.nn.Linear(1, 1)
    >>> assert_aligned(line, [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], loss="squared").verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    from alignver.checks.alignment import check_alignment

    least = _least(rigor)
    return _required(check_alignment(model, X, Y, loss=loss, **options), least)


def assert_full_rank(A: Any, *, rigor: Rigor | str = Rigor.NUMERICAL, **options: Any) -> CheckResult:
    """Assert that a matrix has full rank, min(N, d).

    Parameters
    ----------
    A, **options
        As in :func:`alignver.check_rank`.
    rigor, Returns, Raises
        As in :func:`assert_aligned`.

    Examples
    --------
    >>> assert_full_rank([[1.0, 2.0], [2.0, 4.0]])
    Traceback (most recent call last):
        ...
    AssertionError: ...
    """
    least = _least(rigor)
    return _required(check_rank(A, **options), least)


def assert_safely_explored(
    Z: Any, *, width: int | None = None, rigor: Rigor | str = Rigor.NUMERICAL, **options: Any
) -> CheckResult:
    """Assert that gates of this width give phi rank n (Assumption 4).

    Parameters
    ----------
    Z, width, **options
        As in :func:`alignver.check_safe_exploration`.
    rigor, Returns, Raises
        As in :func:`assert_aligned`.

    Examples
    --------
    >>> assert_safely_explored([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]], width=2, rigor="PROOF").verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    least = _least(rigor)
    return _required(check_safe_exploration(Z, width=width, **options), least)


def _least(rigor: Rigor | str) -> Rigor:
    known = {kind.value: kind for kind in (Rigor.NUMERICAL, Rigor.PROOF)}
    name = rigor.value if isinstance(rigor, Rigor) else rigor
    if name not in known:
        raise InvalidInput("rigor", repr(rigor), "one of " + ", ".join(known))
    return known[name]


def _required(result: CheckResult, least: Rigor) -> CheckResult:
    if result.verdict is not Verdict.HOLDS:
        raise AssertionError(f"\n{result}")
    enough = (Rigor.PROOF,) if least is Rigor.PROOF else (Rigor.PROOF, Rigor.NUMERICAL)
    if result.rigor not in enough:
        raise AssertionError(f"{result.rigor.value} where {least.value} was asked for\n{result}")
    return result
