"""Assertions for the tests of other projects: each shows the whole report if it fails.

    >>> from alignver.testing import assert_full_rank
    >>> assert_full_rank([[2.0, 1.0], [1.0, 2.0]]).rigor
    <Rigor.PROOF: 'PROOF'>

Hypothesis strategies with known answers are in :mod:`alignver.testing.strategies`, which needs hypothesis. The pytest
plugin, :mod:`alignver.testing.plugin`, has a fixture that needs no import.
"""

from __future__ import annotations

from typing import Any

from alignver import require
from alignver.results import CheckResult, Rigor, Verdict

__all__ = ["assert_aligned", "assert_full_rank", "assert_safely_explored", "require_rigor"]


def assert_aligned(
    model: Any, X: Any, Y: Any, *, loss: str, rigor: Rigor | str = Rigor.NUMERICAL, **options: Any
) -> CheckResult:
    """Assert that a model is aligned with its data at its current theta (Definition 2).

    Parameters
    ----------
    model, X, Y, loss, **options
        As in :func:`alignver.check_alignment`.
    rigor : Rigor or str
        The weakest accepted rigor: ``"NUMERICAL"``, or ``"PROOF"`` for a certificate.

    Returns
    -------
    CheckResult

    Raises
    ------
    AssertionError
        The verdict is FAILS or UNDECIDED, or its rigor is weaker than ``rigor``; the message is the report.
    InvalidInput
        As :func:`alignver.check_alignment` raises it, and for an unknown ``rigor``.

    Examples
    --------
    >>> import torch
    >>> line = torch.nn.Linear(1, 1)
    >>> assert_aligned(line, [[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0], loss="squared").verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    from alignver.checks.alignment import check_alignment

    least = _least(rigor)
    return require_rigor(check_alignment(model, X, Y, loss=loss, **options), least)


def assert_full_rank(A: Any, *, rigor: Rigor | str = Rigor.NUMERICAL, **options: Any) -> CheckResult:
    """Assert that a matrix has full rank, min(N, d).

    Parameters
    ----------
    A, **options
        As in :func:`alignver.check_rank`.
    rigor : Rigor or str
        The weakest accepted rigor: ``"NUMERICAL"``, or ``"PROOF"`` for a certificate.

    Returns
    -------
    CheckResult

    Raises
    ------
    AssertionError
        The verdict is FAILS or UNDECIDED, or its rigor is weaker than ``rigor``; the message is the report.
    InvalidInput
        As :func:`alignver.check_rank` raises it, and for an unknown ``rigor``.

    Examples
    --------
    >>> assert_full_rank([[1.0, 2.0], [2.0, 4.0]])
    Traceback (most recent call last):
        ...
    AssertionError: ...
    """
    from alignver.checks.rank import check_rank

    least = _least(rigor)
    return require_rigor(check_rank(A, **options), least)


def assert_safely_explored(
    Z: Any, *, width: int | None = None, rigor: Rigor | str = Rigor.NUMERICAL, **options: Any
) -> CheckResult:
    """Assert that gates of this width give phi rank n (Assumption 4).

    Parameters
    ----------
    Z, width, **options
        As in :func:`alignver.check_safe_exploration`.
    rigor : Rigor or str
        The weakest accepted rigor: ``"NUMERICAL"``, or ``"PROOF"`` for a certificate.

    Returns
    -------
    CheckResult

    Raises
    ------
    AssertionError
        The verdict is FAILS or UNDECIDED, or its rigor is weaker than ``rigor``; the message is the report.
    InvalidInput
        As :func:`alignver.check_safe_exploration` raises it, and for an unknown ``rigor``.

    Examples
    --------
    >>> assert_safely_explored([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]], width=2, rigor="PROOF").verdict
    <Verdict.HOLDS: 'HOLDS'>
    """
    from alignver.checks.exploration import check_safe_exploration

    least = _least(rigor)
    return require_rigor(check_safe_exploration(Z, width=width, **options), least)


def require_rigor(result: CheckResult, rigor: Rigor | str = Rigor.NUMERICAL) -> CheckResult:
    """Return a result that HOLDS with at least this rigor.

    Raises
    ------
    AssertionError
        It does not; the message is the report.
    InvalidInput
        An unknown ``rigor``.

    Examples
    --------
    >>> import alignver as av
    >>> require_rigor(av.check_rank([[1.0, 2.0], [3.0, 4.0]]), "PROOF").code
    'rank-gram'
    """
    __tracebackhide__ = True
    least = _least(rigor)
    if result.verdict is not Verdict.HOLDS:
        raise AssertionError(f"\n{result}")
    enough = (Rigor.PROOF,) if least is Rigor.PROOF else (Rigor.PROOF, Rigor.NUMERICAL)
    if result.rigor not in enough:
        raise AssertionError(f"the rigor is {result.rigor.value}, weaker than {least.value}\n{result}")
    return result


def _least(rigor: Rigor | str) -> Rigor:
    name = rigor.value if isinstance(rigor, Rigor) else rigor
    return Rigor(require.one_of("rigor", name, ("NUMERICAL", "PROOF"), need="one of NUMERICAL, PROOF"))
