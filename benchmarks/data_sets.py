"""What the data decide, for five image sets: equal images, conflicting labels, and the resulting bounds.

    ALIGNVER_DATA=DIR python benchmarks/data_sets.py [NAME ...] [--out FILE]

Runs ``check_data`` with the cross-entropy and the test set, for MNIST, KMNIST, Semeion, CIFAR-10 and CIFAR-100, with
the original pixels of the files. Semeion is in the package and has no test set; the others are in DIR, in a format that
the loaders of ``alignver.data`` read. Each set runs in a separate process. Seconds are the smallest of three calls.
Memory is the peak of the process during the calls, images included, together with the memory before them. The
certificate is re-checked.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from collect import machine

import alignver as av
from alignver.checks.exploration_report import forget_peak, peak_bytes
from alignver.data import Dataset, semeion
from alignver.data.image_sets import cifar10, cifar100, kmnist, mnist
from alignver.report.provenance import versions
from alignver.results import shown_down

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "data" / "data_sets.json"
ROUNDS = 3
LOADERS: dict[str, Callable[..., Dataset]] = {
    "mnist": mnist,
    "kmnist": kmnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
SETS = ("mnist", "kmnist", "semeion", "cifar10", "cifar100")


def examined(name: str) -> dict[str, Any]:
    """Return the results for one data set."""
    if name == "semeion":
        train, test = semeion(), None
    else:
        folder = os.environ.get("ALIGNVER_DATA", "")
        train, test = LOADERS[name](folder), LOADERS[name](folder, train=False)
    more: dict[str, Any] = {} if test is None else {"X_test": test.x, "Y_test": test.y}
    forget_peak()
    before = peak_bytes()
    results = [av.check_data(train.x, train.y, loss="cross_entropy", **more) for _ in range(ROUNDS)]
    after = peak_bytes()
    result = results[0]
    assert result.certificate is not None
    measured = result.measured
    row = {
        "name": train.name,
        "source": train.source,
        "licence": train.licence,
        "sha256": train.sha256,
        "shape": list(train.x.shape),
        "verdict": str(result.verdict),
        "rigor": str(result.rigor),
        "reason": result.reason,
        "evidence": list(result.evidence),
        "rechecked": str(av.recheck(result.certificate, X=train.x, Y=train.y).verdict),
        "samples": measured["samples"],
        "distinct": measured["distinct"],
        "equal": pairs(measured["equal"], train.y),
        "conflicts": pairs(measured["conflicts"], train.y),
        "loss_lower": measured["loss_lower"],
        "errors_lower": measured["errors_lower"],
        "rank_phi_upper": measured["rank_phi_upper"],
        "test": None,
        "seconds": round(min(each.cost["seconds"] for each in results), 3),
        "held_bytes": before.get("peak_bytes"),
        "peak_bytes": after.get("peak_bytes"),
    }
    if test is not None:
        inside, overlap = av.check_data(test.x, test.y).measured, measured["test"]
        row["test"] = {
            "sha256": test.sha256,
            "samples": overlap["samples"],
            "seen": overlap["seen"],
            "seen_with_another_label": overlap["conflicts"]["count"],
            "pairs_with_training": overlap["pairs"],
            "pairs_with_another_label": overlap["conflicts"]["pairs"],
            "distinct": inside["distinct"],
            "equal": pairs(inside["equal"], test.y),
            "conflicts": pairs(inside["conflicts"], test.y),
        }
    return row


def pairs(found: dict[str, Any], labels: Any) -> dict[str, Any]:
    """Return pairs of samples with their labels."""
    return {"count": found["count"], "pairs": [[i, j, int(labels[i]), int(labels[j])] for i, j in found["pairs"]]}


def line(row: dict[str, Any]) -> str:
    """Return a row of the printed table."""
    test = row["test"]
    overlap = "-" if test is None else f"{test['seen']} ({test['seen_with_another_label']})"
    inside = "-" if test is None else f"{test['equal']['count']} ({test['conflicts']['count']})"
    errors, loss = row["errors_lower"], shown_down(row["loss_lower"], 6)
    return (
        f"{row['name']:<10} {row['samples']:>6} {row['distinct']:>8} {row['equal']['count']:>6} "
        f"{row['conflicts']['count']:>9} {loss:>12} {errors:>6} {overlap:>9} {inside:>12} "
        f"{row['seconds']:>8.2f} {(row['peak_bytes'] or 0) / 1e9:>6.2f}"
    )


def main() -> int:
    """Examine the sets, print a table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SETS))
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where the JSON goes; by default docs, if all sets ran"
    )
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in SETS]
    if unknown:
        parser.error(f"unknown data set {unknown[0]}: one of {', '.join(SETS)}")
    print("data set    train distinct  equal conflicts   least loss errors test seen  within test  seconds     GB")
    rows = []
    for name in options.names or SETS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                rows.append(pool.submit(examined, name).result())
            except av.InvalidInput as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 2
        print(line(rows[-1]), flush=True)
    out = options.out or (None if options.names else RESULTS)
    if out is not None:
        document = {
            "results": "data_sets",
            "what": (__doc__ or "").split("\n\n")[0],
            "command": "python benchmarks/data_sets.py",
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "versions": versions(),
            "sets": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
