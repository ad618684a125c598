"""Sizes, memory and seconds of each check, every row in a process of its own: the table of docs/limits.md.

The memory is the peak of the whole process, with Python, NumPy and torch (0.4 GB). The seconds are those of one core:
with more cores a call ends earlier, and other programs on the machine do not add to it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def data(n: int, entries: int) -> Any:
    import alignver as av

    X = np.random.default_rng(0).random((n, entries), dtype=np.float32)
    return lambda: av.check_data(X, np.arange(n) % 10, loss="cross_entropy")


def rank(rows: int, columns: int) -> Any:
    import alignver as av

    A = np.random.default_rng(0).standard_normal((rows, columns))
    return lambda: av.check_rank(A)


def perceptron(width: int) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus(), nn.Linear(width, 10)
    )


def alignment(n: int, width: int) -> Any:
    import torch

    import alignver as av

    model, X = perceptron(width), torch.randn(n, 64, generator=torch.Generator().manual_seed(1))
    return lambda: av.check_alignment(model, X, torch.arange(n) % 10, loss="cross_entropy")


def images(n: int) -> Any:
    import torch

    import alignver as av
    from alignver.experiments.networks import lenet

    torch.manual_seed(0)
    model, X = lenet(side=28), torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return lambda: av.check_alignment(model, X, torch.arange(n) % 10, loss="cross_entropy")


def exploration(n: int, features: int) -> Any:
    import alignver as av

    Z = np.random.default_rng(0).standard_normal((n, features))
    return lambda: av.check_safe_exploration(Z, add_constant=True)


def optimality(n: int, width: int) -> Any:
    import torch

    import alignver as av

    model, X = perceptron(width), torch.randn(n, 64, generator=torch.Generator().manual_seed(1))
    return lambda: av.check_optimality(model, X=X, Y=torch.arange(n) % 10, loss="cross_entropy", tolerance=0.01)


ROWS: dict[str, tuple[str, Callable[[], Any]]] = {
    "check_data": ("50000 samples of 3072 numbers", lambda: data(50000, 3072)),
    "check_rank": ("A is 1000 x 2000", lambda: rank(1000, 2000)),
    "check_rank ": ("A is 4000 x 8000", lambda: rank(4000, 8000)),
    "check_alignment": ("n = 20, N = 200, d = 2474", lambda: alignment(20, 32)),
    "check_alignment ": ("n = 100, N = 1000, d = 8970", lambda: alignment(100, 64)),
    "check_alignment  ": ("n = 300, N = 3000, d = 26122", lambda: alignment(300, 128)),
    "check_alignment   ": ("n = 100, N = 1000, d = 61706, LeNet", lambda: images(100)),
    "check_alignment    ": ("n = 1000, N = 10000, d = 61706, LeNet", lambda: images(1000)),
    "check_safe_exploration": ("n = 1000, 65 features", lambda: exploration(1000, 64)),
    "check_safe_exploration ": ("n = 10000, 257 features", lambda: exploration(10000, 256)),
    "check_safe_exploration  ": ("n = 60000, 513 features", lambda: exploration(60000, 512)),
    "check_optimality": ("n = 1000, d = 26122", lambda: optimality(1000, 128)),
    "check_optimality ": ("n = 10000, d = 26122", lambda: optimality(10000, 128)),
}


def measure(name: str) -> None:
    """Run one row and print its line."""
    sizes, prepared = ROWS[name]
    call = prepared()
    began = time.process_time()
    result = call()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    answer = f"{result.verdict}, {result.rigor.value.lower()} ({result.subject.value.lower().replace('_', ' ')})"
    print(f"{name.strip():<23} {sizes:<38} {peak:5.1f} GB {seconds:8.1f} s   {answer}", flush=True)


def main() -> int:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return 0
    codes = [subprocess.run([sys.executable, __file__, name], check=False).returncode for name in ROWS]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
