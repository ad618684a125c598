"""Make the committed results of the paper's figures and tables again, the fastest first, and compare.

    python benchmarks/reproduce_fast.py [--minutes 10]

A result is a document in docs/results. Those whose recorded work adds up to at most that time are made again by the
command they carry. The verdicts have to be the same. Numbers of trained networks depend on the processor and the
versions, so they are shown beside the earlier ones. The exit code is 1 if a verdict differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    left = 60.0 * parser.parse_args().minutes
    documents = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    documents.sort(key=lambda document: document["provenance"]["work_seconds"])
    differ = 0
    for document in documents:
        provenance = document["provenance"]
        left -= provenance["work_seconds"]
        if left < 0:
            break
        command = [sys.executable, "-m", "alignver", *provenance["command"].split(), "--json", "-q"]
        began = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(
            f"{provenance['command']}: {time.perf_counter() - began:.0f} s, {provenance['work_seconds']:.0f} s before"
        )
        if done.returncode == 2:
            print("  not made again: the exit code is 2")
            differ += 1
            continue
        for now, before in zip(json.loads(done.stdout)["results"], document["results"], strict=True):
            same = now["verdict"] == before["verdict"]
            differ += not same
            print(
                f"  {'same' if same else 'DIFFERENT'}: {before['statement']}: {before['verdict']}, {before['reason']}"
            )
            if now["reason"] != before["reason"]:
                print(f"    now: {now['verdict']}, {now['reason']}")
    print(f"{differ} differences" if differ else "all verdicts as before")
    return int(differ > 0)


if __name__ == "__main__":
    raise SystemExit(main())
