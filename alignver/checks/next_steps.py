"""What to try next, in order and with the numbers, for answers on the rank and the column space of a matrix."""

from __future__ import annotations

import re

from alignver.results import CheckResult, Rigor, Verdict

_JUSTIFIED = "state a tolerance that you can justify: tolerance="
_LONGER = "a proof about the network would take about"
_TRACK = "true at these parameters only: av.AlignmentTracker follows it while they change"


def membership_steps(result: CheckResult, rows: int, columns: int) -> tuple[str, ...]:
    """Return the next steps of an answer on membership in the column space of a rows x columns matrix.

    Examples
    --------
    >>> from alignver.checks.membership import check_membership
    >>> membership_steps(check_membership([[1.0], [2.0]], [1.0, 3.0]), 2, 1)[0]
    'd = 1 < N = 2: full row rank is impossible; at least 1 more column, or fewer rows'
    """
    if result.verdict is Verdict.UNDECIDED:
        return _undecided(result)
    steps: list[str] = []
    if result.verdict is Verdict.FAILS:
        rank, residual = result.measured.get("rank"), result.measured.get("residual")
        if columns < rows:
            more = f"{rows - columns} more column{'s' * (rows - columns > 1)}"
            steps.append(f"d = {columns} < N = {rows}: full row rank is impossible; at least {more}, or fewer rows")
        elif rank is not None and rank < rows:
            steps.append(f"rank J = {rank} < N = {rows}: {rows - rank} more independent columns reach every y")
        if residual:
            steps.append(f"or take the nearest vector in the column space: least squares leaves {residual:.1e} ||y||")
        if not steps:
            steps.append("other columns, or another y: no b gives this one")
    return (*steps, *_towards_proof(result))


def rank_steps(result: CheckResult) -> tuple[str, ...]:
    """Return the next steps of an answer on the rank of a matrix.

    Examples
    --------
    >>> from alignver.checks.rank import check_rank
    >>> rank_steps(check_rank([[1.0, 2.0], [2.0, 4.0]]))[0]
    'drop the rows or columns that depend on the others; rank=1 asks for the rank that was counted'
    """
    if result.verdict is Verdict.UNDECIDED:
        return _undecided(result)
    steps: tuple[str, ...] = ()
    if result.verdict is Verdict.FAILS:
        counted = result.measured.get("rank")
        claim = "" if counted is None else f"; rank={counted} asks for the rank that was counted"
        steps = ("drop the rows or columns that depend on the others" + claim,)
    return (*steps, *_towards_proof(result))


def alignment_steps(result: CheckResult, N: int, d: int, narrow: str, unproved: str) -> tuple[str, ...]:
    """Return the next steps of an answer on alignment.

    Parameters
    ----------
    result : CheckResult
    N, d : int
        Numbers of entries of the outputs and of parameters.
    narrow : str
        Why the sizes of the layers exclude full row rank, if they do and d < N does not.
    unproved : str
        Why nothing is proved about the network; empty if something is.
    """
    estimate = re.search(r"would take (?:about|more than) (\d+) s", unproved)
    more = () if estimate is None else (f"max_seconds={3 * int(estimate[1]) + 3}: {_LONGER} {estimate[1]} s",)
    if result.verdict is Verdict.UNDECIDED:
        return (*result.next_steps, "run the model in float64: dtype='float64'", *more)
    steps: list[str] = []
    if result.verdict is Verdict.FAILS:
        rank = result.measured.get("rank")
        if d < N:
            wider = f"{N - d} more parameter{'s' * (N - d > 1)}, or fewer outputs or samples"
            steps.append(f"d = {d} < N = {N}: full row rank is impossible; {wider}")
        elif narrow:
            steps.append(f"widen the narrow layer: {narrow}")
        elif rank is not None and rank < N:
            steps.append(f"rank J = {rank} < N = {N}: wider layers, or other parameters (another seed, some training)")
        else:
            steps.append("other parameters: another seed, or some steps of training")
        steps.append("av.AlignmentTracker shows whether training reaches alignment")
    else:
        steps.append(_TRACK)
    return (*steps, *more, *(_towards_proof(result) if "proof" in result.measured else ()))


def _undecided(result: CheckResult) -> tuple[str, ...]:
    kind, tolerance = result.code.partition("-")[2], result.tolerance
    if "operator" in kind:
        return ("give a larger tolerance, or the matrix itself",)
    if kind == "methods-disagree":
        return ("decide in rational arithmetic: method='exact'", f"or name one method, and {_JUSTIFIED}")
    if kind == "not-proved":
        return ("a smaller ball, or none", "or the numerical answer: method='auto' without a ball")
    turn = result.measured.get("turns_at")
    where = f"the answer changes at {turn:.1e}, the tolerance is {tolerance.value:.1e}: " if turn and tolerance else ""
    more = ", residual_tolerance=" if result.name == "membership" else ""
    return (f"{where}{_JUSTIFIED}{more}", *_towards_proof(result))


def _towards_proof(result: CheckResult) -> tuple[str, ...]:
    """Return what would give a proof instead of a numerical answer."""
    if result.rigor is not Rigor.NUMERICAL:
        differ = result.measured.get("numerical", {}).get("verdict") not in (None, result.verdict)
        return ("if the entries carry rounding errors, give the dtype of their computation: computed_in=",) * differ
    proof = result.measured.get("proof")
    if "operator" in result.code:
        return ("a proof needs the matrix itself",)
    if proof is None:
        return ("search for a proof: method='auto' and certify=True",)
    if proof["about"].startswith("every"):
        return (
            "a proof has to cover the rounding errors: float64 entries, or a smaller tolerance= that you can justify",
        )
    return ("for a proof, whatever its time: method='exact'",)
