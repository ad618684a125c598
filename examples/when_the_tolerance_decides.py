"""
When the tolerance decides
==========================

The Hilbert matrix is invertible, but in floating point its smallest singular values can hardly be distinguished from
zero. If a factor of ten in the tolerance changes the rank, the verdict is UNDECIDED. The report shows the rank
according to each library.
"""

import numpy as np
from scipy.linalg import hilbert

import alignver as av
from alignver.report.verdict_plots import rules


def main() -> object:
    for size in (5, 10, 12, 14):
        result = av.check_rank(hilbert(size), certify=False)
        by_rule = {row["rule"]: row["rank"] for row in result.measured["rules"]}
        print(f"Hilbert {size:>2}: {result.verdict!s:<9}", by_rule)

    result = av.check_rank(hilbert(12), certify=False)
    print()
    print(result.reason)
    near = result.measured["levels_near_tolerance"]
    print("singular values near the tolerance:", np.array(near))
    tolerances, ranks = ({row["rule"]: row[key] for row in result.measured["rules"]} for key in ("tolerance", "rank"))
    return rules(tolerances, ranks, near, deciding=result.tolerance.rule).figure


if __name__ == "__main__":
    figure = main()
