"""Cost of a proof, as a ratio to the time that NumPy needs for an answer without proof.

    python benchmarks/proof.py [--quick]

The methods take turns, and the ratio is computed from the smallest times. ``--quick`` reduces each dimension of the
large cases by a factor of four.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from alignver.checks.recheck import recheck
from alignver.proof import Decision, prove_membership, prove_rank
from alignver.results import Verdict

ROUNDS = 5


def seconds(call: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def best(calls: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, object]]:
    times = {name: float("inf") for name in calls}
    values: dict[str, object] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            spent, values[name] = seconds(call)
            times[name] = min(times[name], spent)
    return times, values


def line(label: str, value: float, unit: str, limit: float, below: bool) -> bool:
    met = value <= limit if below else value >= limit
    print(
        f"{label:66s} {value:8.2f} {unit:2s}  target {'<=' if below else '>='} {limit:g}  {'met' if met else 'MISSED'}"
    )
    return met


def full_row_rank(n: int, d: int) -> list[bool]:
    rng = np.random.default_rng(0)
    J, y = rng.standard_normal((n, d)), rng.standard_normal(n)
    times, values = best(
        {
            "gram and cholesky": lambda: np.linalg.cholesky(J @ J.T),
            "prove_rank": lambda: prove_rank(J, n),
            "prove_membership": lambda: prove_membership(J, y),
        },
        ROUNDS,
    )
    decision = values["prove_rank"]
    assert isinstance(decision, Decision)
    assert decision.verdict is Verdict.HOLDS
    again, result = seconds(lambda: recheck(decision.certificate, A=J))
    assert result.verdict is Verdict.HOLDS  # type: ignore[attr-defined]
    slow, _values = best({"matrix_rank": lambda: np.linalg.matrix_rank(J)}, 2)
    plain = slow["matrix_rank"]
    print(f"full row rank, {n} x {d} Gaussian: " + ", ".join(f"{k} {v:.2f} s" for k, v in times.items()))
    size = decision.certificate.summary()["bytes"]
    print(f"    matrix_rank {plain:.2f} s, recheck {again:.2f} s, certificate {size} bytes")
    base, proof = times["gram and cholesky"], times["prove_rank"]
    line(
        "membership (structure searched first) / (J @ J.T and cholesky)",
        times["prove_membership"] / base,
        "x",
        1.5,
        True,
    )
    return [
        line("proof of full row rank / (J @ J.T and cholesky)", proof / base, "x", 1.5, True),
        line("matrix_rank / proof of full row rank", plain / proof, "x", 10.0, False),
    ]


def decided(label: str, J: np.ndarray, y: np.ndarray, limit: float) -> bool:
    spent, decision = seconds(lambda: prove_membership(J, y, exact="force"))
    assert isinstance(decision, Decision)
    again, result = seconds(lambda: recheck(decision.certificate, J=J, y=y))
    assert result.verdict is Verdict.HOLDS  # type: ignore[attr-defined]
    size = decision.certificate.summary()["bytes"] if decision.certificate else 0
    met = line(f"exact: {label}: {decision.verdict} by {decision.certificate.method}", spent, "s", limit, True)
    print(f"    recheck {again:.2f} s, certificate {size / 1e6:.2f} MB")
    return met


def exact(shrink: int) -> list[bool]:
    rng = np.random.default_rng(1)
    n, d, m = 300 // shrink, 400 // shrink, 1000 // shrink
    wide, tall = rng.standard_normal((n, d)), rng.standard_normal((d, n))
    integers = rng.integers(-9, 10, (m, m)).astype(float)
    singular = integers.copy()
    singular[-1] = singular[0] + singular[1] - singular[2]
    combination = rng.integers(-3, 4, m).astype(float)
    off = singular @ combination
    off[-1] += 1.0
    return [
        decided(f"{n} x {d} Gaussian", wide, rng.standard_normal(n), 60.0),
        decided(f"{d} x {n} Gaussian, y outside", tall, rng.standard_normal(d), 60.0),
        decided(f"{d} x {n} Gaussian, y a column", tall, tall[:, 3], 60.0),
        decided(f"{m} x {m} small integers", integers, rng.integers(-9, 10, m).astype(float), 30.0),
        decided(f"{m} x {m} small integers, singular, y inside", singular, singular @ combination, 30.0),
        decided(f"{m} x {m} small integers, singular, y outside", singular, off, 30.0),
    ]


def ill_conditioned(n: int, d: int) -> None:
    rng = np.random.default_rng(2)
    U, _ = np.linalg.qr(rng.standard_normal((n, n)))
    V, _ = np.linalg.qr(rng.standard_normal((d, n)))
    for exponent in (4, 8, 12, 14):
        J = (U * np.logspace(0, -exponent, n)) @ V.T
        spent, decision = seconds(lambda J=J: prove_rank(J, n, exact="never"))  # type: ignore[misc]
        assert isinstance(decision, Decision)
        bound = decision.measured.get("s_min_lower", 0.0)
        measured = f"s_min >= {bound:.1e}, {spent:.2f} s"
        print(f"condition 1e{exponent}, {n} x {d}: {decision.verdict} by {decision.step}, {measured}")


def main() -> int:
    shrink = 4 if "--quick" in sys.argv[1:] else 1
    met = [*full_row_rank(2000 // shrink, 8000 // shrink), *exact(shrink)]
    ill_conditioned(300 // shrink, 400 // shrink)
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
