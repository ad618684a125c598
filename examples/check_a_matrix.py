"""
Is my target in the column space?
=================================

This example checks whether a target lies in the column space of a matrix. For exact entries the verdict is a proof.
For computed entries the report shows the tolerances for which it is valid.
"""

import numpy as np

import alignver as av
from alignver.report.verdict_plots import spectrum


def main() -> object:
    rng = np.random.default_rng(0)
    factors = rng.integers(-3, 4, (60, 12)).astype(float), rng.integers(-3, 4, (12, 200)).astype(float)
    J = factors[0] @ factors[1]  # 60 x 200, rank 12

    # Integers are exact in floating point, so a proof for these entries applies to the intended matrix.
    result = av.check_membership(J, J @ rng.integers(-9, 10, 200))
    print(result)
    print()

    # A product with real numbers is rounded. With computed_in, the question covers every matrix within the tolerance.
    result = av.check_membership(J, J @ rng.standard_normal(200) + rng.standard_normal(60), computed_in="float64")
    print(result)
    print()

    # All numbers of the report are also available as data.
    print("rank:", result.measured["rank"], " residual:", round(result.measured["residual"], 3))
    for row in result.measured["rules"]:
        print(f"  {row['rule']:<12} tolerance {row['tolerance']:.1e}  rank {row['rank']}  {row['shipped_by']}")
    tolerances = {
        row["rule"]: row["tolerance"] for row in result.measured["rules"] if row["rule"] in ("press", "golub")
    }
    return spectrum(np.linalg.svd(J, compute_uv=False), tolerances).figure


if __name__ == "__main__":
    figure = main()
