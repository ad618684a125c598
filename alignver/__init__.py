"""alignver: verdicts with proof about neural networks and the matrices behind them.

    >>> import alignver as av
    >>> result = av.check_membership([[1.0, 0.0], [1.0, 1.0]], [2.0, 3.0])
    >>> result.verdict
    <Verdict.HOLDS: 'HOLDS'>

Importing this module is cheap: every name below is loaded when it is first used, and torch only by the calls on models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignver._version import __version__

if TYPE_CHECKING:
    from alignver.checks.membership import check_membership
    from alignver.checks.rank import check_rank
    from alignver.errors import InvalidInput, MissingDependency, VerificationFailed
    from alignver.models.alignment import check_alignment
    from alignver.models.jacobian import jacobian
    from alignver.proof import Ball, Certificate, load_certificate, recheck
    from alignver.results import Bound, CheckResult, Report, Rigor, Tolerance, Verdict

_HOMES = {
    "Ball": "alignver.proof",
    "Certificate": "alignver.proof",
    "load_certificate": "alignver.proof",
    "recheck": "alignver.proof",
    "Bound": "alignver.results",
    "CheckResult": "alignver.results",
    "InvalidInput": "alignver.errors",
    "MissingDependency": "alignver.errors",
    "Report": "alignver.results",
    "Rigor": "alignver.results",
    "Tolerance": "alignver.results",
    "Verdict": "alignver.results",
    "VerificationFailed": "alignver.errors",
    "check_alignment": "alignver.models.alignment",
    "check_membership": "alignver.checks.membership",
    "check_rank": "alignver.checks.rank",
    "jacobian": "alignver.models.jacobian",
}

__all__ = [
    "Ball",
    "Bound",
    "Certificate",
    "CheckResult",
    "InvalidInput",
    "MissingDependency",
    "Report",
    "Rigor",
    "Tolerance",
    "Verdict",
    "VerificationFailed",
    "__version__",
    "check_alignment",
    "check_membership",
    "check_rank",
    "jacobian",
    "load_certificate",
    "recheck",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'alignver' has no attribute {name!r}")
    home = _HOMES[name]
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from alignver.errors import MissingDependency

        raise MissingDependency("torch", f"alignver.{name}", "torch") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
