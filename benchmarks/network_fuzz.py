"""Random small networks with known answers: how many are decided about the network, and whether a proof is wrong.

    python benchmarks/network_fuzz.py [--cases N] [--seed S] [--family NAME ...] [--verbose]

Each case is a random program of layers with parameters of several kinds (small integers, ties, copied units, large,
tiny and subnormal ones, float16 to float64, frozen ones), inputs (close to each other, mirrored, repeated, large) and
targets. The same program is run by torch, for :func:`alignver.check_alignment`, and here, one sample at a time, by
numbers of python-flint and derivatives of its own. Ranks, with and without the targets, are found by elimination: what
is not 0 is so for certain, and what may be 0 in 1200 and in 2600 bits counts as 0. Verdicts, kappa and distances are
compared with these, and certificates are checked again; every other case tries float64 before balls. The exit code is
1 for a wrong proof, or if fewer than nine in ten cases are decided.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections import Counter, defaultdict

from flint import arb, arb_mat, ctx
from network_programs import FAMILIES, Kink, case

import alignver as av
from alignver.errors import InvalidInput
from alignver.jacobians.prepare import inputs_again
from alignver.network import enclosures

PRECISIONS = (1200, 2600)
SHARE = 0.9


@dataclasses.dataclass
class Truth:
    """J and y as balls, independent rows and columns of J that all others depend on, and whether y depends on J."""

    J: list
    y: list
    rows: list
    columns: list
    inside: bool

    def kappa(self):
        """Return min ||beta||, J beta = y."""
        if not self.rows:
            return arb(0)
        B, y = arb_mat([self.J[i] for i in self.rows]), arb_mat([[self.y[i]] for i in self.rows])
        return (y.transpose() * (B * B.transpose()).solve(y))[0, 0].sqrt()

    def distance(self):
        """Return the distance of y from the columns of J."""
        y = arb_mat([[v] for v in self.y])
        square = (y.transpose() * y)[0, 0]
        if self.columns:
            C = arb_mat([[row[k] for k in self.columns] for row in self.J])
            right = C.transpose() * y
            square -= (right.transpose() * (C.transpose() * C).solve(right))[0, 0]
        return square.sqrt()


def eliminated(J, y):
    """Return the rows and columns of the pivots of J, and whether what remains of y may be 0."""
    A, left, d = [[*row, v] for row, v in zip(J, y)], list(range(len(J))), len(J[0])
    rows, columns = [], []
    while left:
        entries = [(abs(A[i][k]).lower(), i, k) for i in left for k in range(d) if 0 not in A[i][k]]
        if not entries:
            break
        _, i, k = max(entries, key=lambda entry: entry[0])
        left.remove(i)
        rows.append(i)
        columns.append(k)
        for other in left:
            factor = A[other][k] / A[i][k]
            A[other] = [a - factor * b for a, b in zip(A[other], A[i])]
            A[other][k] = arb(0)
    return rows, columns, all(0 in A[i][d] for i in left)


def truth(case):
    """Return what is so; None at a kink, or if two precisions differ."""
    answers, found = set(), None
    for bits in PRECISIONS:
        with ctx.workprec(bits):
            try:
                J, y = case.model.jacobian(case.X.double().numpy())[0], [arb(float(v)) for v in case.Y.reshape(-1)]
                found = Truth(J, y, *eliminated(J, y))
            except (Kink, ZeroDivisionError):
                return None
            answers.add((len(found.rows), found.inside))
    return found if len(answers) == 1 else None


# -- the run ----------------------------------------------------------------------------------------------------------


def faults(case, result, known):
    """Yield what is wrong with a proof."""
    holds = result.verdict.value == "HOLDS"
    if known is not None and known.inside != holds:
        yield f"{result.verdict.value}, of rank {len(known.rows)}, {result.reason}"
    elif known is not None and result.subject.value == "NETWORK":
        with ctx.workprec(PRECISIONS[1]):
            if holds:
                kappa, ends = known.kappa(), result.measured["kappa"]
                if kappa > ends["upper"] or kappa < ends["lower"]:
                    yield f"kappa is {kappa.str(5)}, and not in {ends}"
            elif known.distance() < result.certificate.constants["distance"]:
                yield f"the distance is {known.distance().str(5)}: {result.reason}"
    if result.subject.value == "NETWORK":
        given, _, _ = inputs_again(result.certificate, case.model, case.X, case.Y, loss="squared")
        again = av.recheck(result.certificate, **given)
        if again.verdict.value != "HOLDS":
            yield f"the re-check says: {again.reason}"


def judged(case, seconds=5.0):
    """Return an outcome in a word, the reason if there is no proof, and what is wrong."""
    try:
        result = av.check_alignment(case.model, case.X, case.Y, loss="squared", budget_seconds=seconds)
    except InvalidInput as error:
        return "refused", str(error), []
    if result.subject.value in ("NETWORK", "DATA") and result.rigor.value == "PROOF":
        known = truth(case)
        word = f"{result.verdict.value} {result.subject.value}"
        return word + ("" if known else ", unknown"), "", list(faults(case, result, known))
    if truth(case) is None:
        return "not differentiable", "", []
    return "undecided", next((line for line in result.evidence if "about the network" in line), result.reason), []


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args(arguments)
    tallies, wrong, began, quick = defaultdict(Counter), 0, time.perf_counter(), enclosures._QUICK
    for number in range(given.cases):
        family = given.family[number % len(given.family)]
        enclosures._QUICK = quick if number // len(given.family) % 2 else -1.0
        drawn_case = case(given.seed + number, family)
        try:
            outcome, reason, errors = judged(drawn_case)
        except Exception as error:  # a crash
            outcome, reason, errors = "crashed", "", [repr(error)]
        tallies[family][outcome] += 1
        wrong += len(errors)
        for error in errors:
            print(f"WRONG {error}: {drawn_case.words}", flush=True)
        if given.verbose and reason:
            print(f"{outcome}: {reason}: {drawn_case.words}", flush=True)
    for family, tally in tallies.items():
        print(f"{family}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.items())))
    whole = sum(tallies.values(), Counter())
    decided = sum(count for outcome, count in whole.items() if outcome.startswith(("HOLDS", "FAILS")))
    share = decided / max(1, decided + whole["undecided"])
    print(f"{decided} of {decided + whole['undecided']} cases decided about the network ({share:.1%}), {wrong} wrong, "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    return bool(wrong) or share < SHARE


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main(sys.argv[1:]))
