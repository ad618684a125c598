"""The built-in problems: what was expected of each, and what was found."""

from __future__ import annotations

import time
from typing import Any

from alignver.cli.exits import Exit, say
from alignver.cli.session import Session
from alignver.errors import MissingDependency
from alignver.results import CheckResult

__all__ = ["builtin"]


def builtin(
    *, device: str, dtype: str, seed: int, html: str | None, junit: str | None, json: bool, quiet: bool, verbose: bool
) -> int:
    """Run every built-in problem; 0 when each one's verdict is the expected one, 1 when not."""
    session = Session(
        "check",
        json=json,
        quiet=quiet,
        verbose=verbose,
        html=html,
        junit=junit,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    return session.conduct(lambda: _all(session))


def _all(session: Session) -> Exit:
    from alignver.cli import files

    began = time.perf_counter()
    with session.working("loading the built-in problems"):
        problems = _problems()
    results: list[CheckResult] = []
    for problem in problems:
        with session.working(problem.name), files.blamed({}):
            results.append(problem.run(session.seed, session.device, session.dtype))
        if not session.json:
            _show(session, problem, results[-1], first=len(results) == 1)
    agreed = [problem.expected is result.verdict for problem, result in zip(problems, results)]
    report = session.report(tuple(results), {}, problems=_expectations(problems, results))
    if session.json:
        session.write(report)
    else:
        _conclude(session, agreed, time.perf_counter() - began)
    session.keep(report)
    return Exit.HOLDS if all(agreed) else Exit.FAILS


def _problems() -> list[Any]:
    try:
        from alignver.experiments.builtin import problems
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise MissingDependency("torch", "running the built-in problems", "torch") from error
    return list(problems())


def _expectations(problems: list[Any], results: list[CheckResult]) -> list[dict[str, Any]]:
    return [
        {
            "name": problem.name,
            "description": problem.description,
            "source": problem.source,
            "expected": problem.expected.value,
            "found": result.verdict.value,
            "agrees": problem.expected is result.verdict,
        }
        for problem, result in zip(problems, results)
    ]


def _show(session: Session, problem: Any, result: CheckResult, *, first: bool) -> None:
    from rich.text import Text

    agrees = problem.expected is result.verdict
    if session.verbosity < 0:
        session.show(result)
        if not agrees:
            say(f"{problem.name}: expected {problem.expected}, found {result.verdict}")
        return
    named = problem.description.startswith(problem.name)
    title = Text(problem.description if named else f"{problem.name}: {problem.description}", style="cyan")
    title.stylize("bold", 0, len(problem.name))
    session.print(*([] if first else [Text()]), title)
    found = "as found" if agrees else f"but found {result.verdict}"
    session.show(result, (f"expected {problem.expected}, {found}: {problem.source}",))


def _conclude(session: Session, agreed: list[bool], seconds: float) -> None:
    from rich.text import Text

    if session.verbosity >= 0:
        style = "bold green" if all(agreed) else "bold red"
        count = f"{sum(agreed)} of {len(agreed)} built-in problems as expected"
        session.print(Text(), Text.assemble((count, style), f"; {seconds:.1f} s"))
    session.show_provenance({})
