"""check_membership compared with numpy and scipy methods for the same residual: time ratios and peak memory.

    python benchmarks/membership.py [rows] [columns]

Each method computes the distance of y from Col(J) for the same J in a separate process, so that its peak memory can be
measured. The methods take turns in five rounds, and the ratio is computed from medians. Methods that square the
condition number are listed for comparison and marked: their residual is correct only if cond(J) is below about 1e8.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

ROUNDS = 5


def alignver_svd(J, y):
    import alignver as av

    return av.check_membership(J, y, method="svd", certify=False).measured["residual"]


def alignver_auto(J, y):
    import alignver as av

    result = av.check_membership(J, y)
    return result.measured.get("residual", 0.0)


def numpy_lstsq(J, y):
    return np.linalg.norm(y - J @ np.linalg.lstsq(J, y, rcond=None)[0]) / np.linalg.norm(y)


def scipy_gelsy(J, y):
    from scipy import linalg

    b = linalg.lstsq(J, y, lapack_driver="gelsy", check_finite=False)[0]
    return np.linalg.norm(y - J @ b) / np.linalg.norm(y)


def numpy_svd(J, y):
    u, s, _ = np.linalg.svd(J, full_matrices=False)
    kept = u[:, s > s[0] * max(J.shape) * 2.0**-52]
    return np.linalg.norm(y - kept @ (kept.T @ y)) / np.linalg.norm(y)


def numpy_qr_svd(J, y):
    r = np.linalg.qr(J.T, mode="r")
    u, s, _ = np.linalg.svd(r.T)
    kept = u[:, s > s[0] * max(J.shape) * 2.0**-52]
    return np.linalg.norm(y - kept @ (kept.T @ y)) / np.linalg.norm(y)


def scipy_qr_svd(J, y):
    from scipy import linalg

    r = linalg.qr(J.T, mode="r", check_finite=False)[0][: J.shape[0]]
    u, s, _ = linalg.svd(r.T, check_finite=False)
    kept = u[:, s > s[0] * max(J.shape) * 2.0**-52]
    return np.linalg.norm(y - kept @ (kept.T @ y)) / np.linalg.norm(y)


def gram_eigh_squared(J, y):
    values, u = np.linalg.eigh(J @ J.T)
    kept = u[:, values > values[-1] * max(J.shape) * 2.0**-52]
    return np.linalg.norm(y - kept @ (kept.T @ y)) / np.linalg.norm(y)


CONTENDERS = {
    f.__name__: f
    for f in (
        alignver_svd,
        alignver_auto,
        numpy_lstsq,
        scipy_gelsy,
        numpy_svd,
        numpy_qr_svd,
        scipy_qr_svd,
        gram_eigh_squared,
    )
}


def problem(rows, columns):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, columns)), rng.standard_normal(rows)


def contend(name, rows, columns):
    """Run one method in this process and print its time and the peak memory in addition to J."""
    J, y = problem(rows, columns)
    # Load libraries and start threads before the measurement. The small problem does not affect the peak memory.
    CONTENDERS[name](J[: rows // 20, : columns // 20].copy(), y[: rows // 20].copy())
    began = time.perf_counter()
    residual = CONTENDERS[name](J, y)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "residual": float(residual), "size": J.nbytes}))


def said(met):
    return "met" if met else "MISSED"


def main():
    rows, columns = (int(v) for v in sys.argv[1:3]) if len(sys.argv) > 2 else (1000, 20000)
    runs = {name: [] for name in CONTENDERS}
    for _ in range(ROUNDS):
        for name in CONTENDERS:
            command = [sys.executable, __file__, str(rows), str(columns), name]
            runs[name].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    medians = {name: statistics.median(run["seconds"] for run in each) for name, each in runs.items()}
    peers = [name for name in CONTENDERS if not name.startswith("alignver") and not name.endswith("squared")]
    cheapest = min(peers, key=medians.__getitem__)
    print(f"check_membership, {rows} x {columns} float64, median of {ROUNDS}")
    print(f"{'contender':<20}{'seconds':>9}{'min-max':>14}{'peak / J':>10}{'residual':>10}")
    for name, each in runs.items():
        times = [run["seconds"] for run in each]
        spread = f"{min(times):.2f}-{max(times):.2f}"
        peak = max(run["peak"] / run["size"] for run in each)
        print(f"{name:<20}{medians[name]:>9.2f}{spread:>14}{peak:>10.2f}{each[0]['residual']:>10.1e}")
    ratio = medians["alignver_svd"] / medians[cheapest]
    memory = max(run["peak"] / run["size"] for run in runs["alignver_svd"])
    print(f"alignver_svd / {cheapest} (the cheapest peer) = {ratio:.2f}   target <= 1.50  {said(ratio <= 1.5)}")
    print(f"alignver_svd peak / J = {memory:.2f}   target <= 2.50  {said(memory <= 2.5)}")
    print("(the peak includes the interpreter, its libraries and J)")
    squared = medians["alignver_svd"] / medians["gram_eigh_squared"]
    print(f"alignver_svd / gram_eigh_squared = {squared:.2f}   (squares the condition number; no target)")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        contend(sys.argv[3], int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
