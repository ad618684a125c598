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
    from alignver.checks.alignment import check_alignment
    from alignver.checks.analytic import check_analytic
    from alignver.checks.common_structure import check_common_structure
    from alignver.checks.convergence import check_convergence
    from alignver.checks.data import check_data
    from alignver.checks.doctor import MachineReport, doctor
    from alignver.checks.exploration import check_safe_exploration
    from alignver.checks.membership import check_membership
    from alignver.checks.model import check_model
    from alignver.checks.optimality import check_optimality
    from alignver.checks.rank import check_rank
    from alignver.checks.recheck import recheck
    from alignver.errors import InvalidInput, MissingDependency
    from alignver.jacobians.gram import gram
    from alignver.jacobians.jacobian import jacobian
    from alignver.jacobians.kernel_distance import RepresentationChange, RepresentationSnapshot, representation_change
    from alignver.jacobians.operator import JacobianOperator
    from alignver.kernel import Certificate, load_certificate
    from alignver.network.adapt import adapted
    from alignver.network.trace import NetworkGraph, trace_model
    from alignver.proof import Ball
    from alignver.report.history import History
    from alignver.results import Bound, CheckResult, Report, Rigor, Subject, Tolerance, Verdict, VerificationFailed
    from alignver.theory.exploitation import Exploitation
    from alignver.theory.record import TrainingRecord
    from alignver.training.saved_network import load
    from alignver.training.tracker import AlignmentTracker
    from alignver.training.wrapper import EEWrapper

_HOMES = {
    "AlignmentTracker": "alignver.training.tracker",
    "Ball": "alignver.proof",
    "Bound": "alignver.results",
    "Certificate": "alignver.kernel",
    "CheckResult": "alignver.results",
    "EEWrapper": "alignver.training.wrapper",
    "Exploitation": "alignver.theory.exploitation",
    "History": "alignver.report.history",
    "InvalidInput": "alignver.errors",
    "JacobianOperator": "alignver.jacobians.operator",
    "MachineReport": "alignver.checks.doctor",
    "MissingDependency": "alignver.errors",
    "NetworkGraph": "alignver.network.trace",
    "Report": "alignver.results",
    "RepresentationChange": "alignver.jacobians.kernel_distance",
    "RepresentationSnapshot": "alignver.jacobians.kernel_distance",
    "Rigor": "alignver.results",
    "Subject": "alignver.results",
    "Tolerance": "alignver.results",
    "TrainingRecord": "alignver.theory.record",
    "Verdict": "alignver.results",
    "VerificationFailed": "alignver.results",
    "adapted": "alignver.network.adapt",
    "check_alignment": "alignver.checks.alignment",
    "check_analytic": "alignver.checks.analytic",
    "check_common_structure": "alignver.checks.common_structure",
    "check_convergence": "alignver.checks.convergence",
    "check_data": "alignver.checks.data",
    "check_membership": "alignver.checks.membership",
    "check_model": "alignver.checks.model",
    "check_optimality": "alignver.checks.optimality",
    "check_rank": "alignver.checks.rank",
    "check_safe_exploration": "alignver.checks.exploration",
    "doctor": "alignver.checks.doctor",
    "gram": "alignver.jacobians.gram",
    "jacobian": "alignver.jacobians.jacobian",
    "load": "alignver.training.saved_network",
    "load_certificate": "alignver.kernel",
    "recheck": "alignver.checks.recheck",
    "representation_change": "alignver.jacobians.kernel_distance",
    "trace_model": "alignver.network.trace",
}

__all__ = [
    "AlignmentTracker",
    "Ball",
    "Bound",
    "Certificate",
    "CheckResult",
    "EEWrapper",
    "Exploitation",
    "History",
    "InvalidInput",
    "JacobianOperator",
    "MachineReport",
    "MissingDependency",
    "NetworkGraph",
    "Report",
    "RepresentationChange",
    "RepresentationSnapshot",
    "Rigor",
    "Subject",
    "Tolerance",
    "TrainingRecord",
    "Verdict",
    "VerificationFailed",
    "__version__",
    "adapted",
    "check_alignment",
    "check_analytic",
    "check_common_structure",
    "check_convergence",
    "check_data",
    "check_membership",
    "check_model",
    "check_optimality",
    "check_rank",
    "check_safe_exploration",
    "doctor",
    "gram",
    "jacobian",
    "load",
    "load_certificate",
    "recheck",
    "representation_change",
    "trace_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'alignver' has no attribute {name!r}")
    home = _HOMES[name]
    from alignver.limits import in_memory

    try:
        value = getattr(in_memory(importlib.import_module)(home), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from alignver.errors import MissingDependency

        raise MissingDependency("torch", f"alignver.{name}", "torch") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
