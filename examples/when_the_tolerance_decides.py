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


def main() -> None:
    for size in (5, 10, 12, 14):
        result = av.check_rank(hilbert(size), certify=False)
        by_rule = {row["rule"]: row["rank"] for row in result.measured["rules"]}
        print(f"Hilbert {size:>2}: {result.verdict!s:<9}", by_rule)

    result = av.check_rank(hilbert(12), certify=False)
    print()
    print(result.reason)
    print("singular values near the tolerance:", np.array(result.measured["levels_near_tolerance"]))


if __name__ == "__main__":
    main()
