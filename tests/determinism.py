"""What the checks answer on small real inputs, in a form that can be compared between processes and machines.

Run as a program, it prints one JSON object: for every case the verdict, the whole result without durations and memory,
and the digest of the certificate as it is sealed, without the versions of the software. ``test_determinism.py``
compares this between processes, ``numpy_versions.py`` between versions of NumPy.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import alignver as av
from alignver.arrays import digest
from alignver.data import semeion, two_moons

Case = Callable[[], Any]


def digits(n: int) -> Any:
    return semeion().x[:n].reshape(n, -1).astype(np.float64)


def labels(n: int) -> Any:
    return semeion().y[:n].astype(np.int64)


def exactly(rows: int, columns: int, rank: int) -> Any:
    """Return a product of integer matrices, of exactly this rank."""
    rng = np.random.default_rng(1)
    return (rng.integers(-9, 10, (rows, rank)) @ rng.integers(-9, 10, (rank, columns))).astype(np.float64)


def features(n: int, m: int) -> Any:
    """Return bounded features of digits: products of integers, which are exact, and one division each."""
    products = digits(n) @ np.random.default_rng(0).integers(-9, 10, (256, m - 1)).astype(np.float64)
    return np.column_stack([products / (16.0 + np.abs(products)), np.ones(n)])


def random(rows: int, columns: int) -> Any:
    return np.random.default_rng(2).standard_normal((rows, columns))


def exploitation(n: int, h: int, perturbation: float) -> tuple[Any, Any, Any]:
    """Return an exploitation problem with parameters near its optimum: model, weights and targets."""
    z, rng = features(n, 8), np.random.default_rng(3)
    model = av.Exploitation(z, rng.standard_normal((1, 8, h)), rng.standard_normal((1, h)))
    weights = rng.standard_normal((1, h, 8))
    return model, weights + perturbation, model.outputs(weights)


ARRAYS: dict[str, Case] = {
    "membership, full row rank": lambda: av.check_membership(random(120, 300), random(120, 1)[:, 0]),
    "membership, graded": lambda: av.check_membership(
        np.ldexp(random(60, 90), -np.arange(60)[:, None] // 2), random(60, 1)[:, 0]
    ),
    "membership, ball": lambda: av.check_membership(random(100, 220), np.ones(100), ball=av.Ball(norm=1e-9)),
    "membership, exact": lambda: av.check_membership(exactly(40, 30, 12), exactly(40, 30, 12) @ np.arange(30.0)),
    "membership, fails by a residual": lambda: av.check_membership(random(300, 120), np.ones(300)),
    "membership, fails exactly": lambda: av.check_membership(exactly(40, 30, 12), np.arange(40.0) ** 2),
    "membership, numerical": lambda: av.check_membership(digits(200), labels(200).astype(float), certify=False),
    "membership, computed in float32": lambda: av.check_membership(
        random(90, 150).astype(np.float32), np.ones(90), computed_in="float32"
    ),
    "rank, full": lambda: av.check_rank(random(150, 260)),
    "rank, deficient": lambda: av.check_rank(exactly(60, 50, 20), rank=20),
    "rank, of digits": lambda: av.check_rank(digits(300)),
    "rank, all rules": lambda: av.check_rank(digits(300), certify=False),
    "exploration, staircase": lambda: av.check_safe_exploration(features(300, 24)),
    "exploration, gram": lambda: av.check_safe_exploration(features(200, 20), width=30, method="gram"),
    "exploration, dense": lambda: av.check_safe_exploration(features(120, 12), width=14, method="dense"),
    "exploration, too narrow": lambda: av.check_safe_exploration(features(200, 20), width=9),
    "data, consistent": lambda: av.check_data(digits(400), labels(400), loss="cross_entropy"),
    "data, conflict": lambda: av.check_data(np.repeat(digits(40), 2, axis=0), np.arange(80) % 10, loss="cross_entropy"),
    "optimality, holds": lambda: av.check_optimality(*exploitation(60, 12, 1e-6), loss="squared", tolerance=1e-3),
    "optimality, fails": lambda: av.check_optimality(*exploitation(60, 12, 0.5), loss="squared", tolerance=1e-3),
    "optimality, narrow": lambda: av.check_optimality(*exploitation(60, 3, 1e-3), loss="squared", tolerance=1e-9),
}
"""Cases that need no torch."""


def models() -> dict[str, Case]:
    """Return the cases that need torch."""
    import torch
    from torch import nn

    def network(*sizes: int, activation: Any = nn.Tanh, seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for ins, outs in itertools.pairwise(sizes):
            layers += [nn.Linear(ins, outs), activation()]
        return nn.Sequential(*layers[:-1]).double()

    def convolutions() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 4, 5, 2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Softplus(), nn.Flatten(),
            nn.Linear(96, 10),
        ).eval()  # fmt: skip

    x, y = torch.from_numpy(digits(12)), labels(12)
    images = x.float().reshape(12, 1, 16, 16)
    moons = two_moons()
    points, sides = torch.tensor(moons.x[:40], dtype=torch.float64), moons.y[:40]
    wide, deep = network(256, 40, 10), network(2, 30, 30, 1)
    fit = {"loss": "cross_entropy"}
    return {
        "alignment, digits": lambda: av.check_alignment(wide, x, y, **fit),
        "alignment, two moons": lambda: av.check_alignment(deep, points, sides, loss="binary_cross_entropy"),
        "alignment, convolutions": lambda: av.check_alignment(convolutions(), images[:6], y[:6], **fit),
        "alignment, fails": lambda: av.check_alignment(network(256, 2, 10), x, y, **fit),
        "alignment, engine gram": lambda: av.check_alignment(wide, x, y, engine="gram", **fit),
        "structure": lambda: av.check_common_structure(convolutions(), images),
        "analytic": lambda: av.check_analytic(deep, points),
        "not analytic": lambda: av.check_analytic(convolutions(), images),
        "exploration, network": lambda: av.check_safe_exploration(
            network(256, 12, activation=nn.Tanh), X=x, add_constant=True
        ),
        "optimality, network": lambda: av.check_optimality(
            deep, X=points, Y=sides, loss="binary_cross_entropy", tolerance=10.0
        ),
        "optimality, network fails": lambda: av.check_optimality(
            deep, X=points, Y=sides, loss="binary_cross_entropy", tolerance=1e-3
        ),
        "model": lambda: av.check_model(wide, x, y, max_seconds=None, **fit),
        "jacobian": lambda: av.jacobian(convolutions(), images[:6]),
        "gram": lambda: av.gram(convolutions(), images[:6]),
        "training": lambda: trained(network(2, 12, 12, 1), points, sides),
    }


def trained(model: Any, x: Any, y: Any) -> Any:
    """Return the history of a short training and its proof."""
    wrapper = av.EEWrapper(model.float(), loss="binary_cross_entropy", tau=4, exploit_optimizer="newton")
    wrapper.fit((x.float(), y), epochs=8)
    return [record["loss"] for record in wrapper.history], plainly(wrapper.check(x.float(), y))


def plainly(value: Any) -> Any:
    """Return an answer as plain data without durations and memory."""
    if isinstance(value, av.Report):
        return [plainly(result) for result in value.results]
    if isinstance(value, av.CheckResult):
        certificate = value.certificate
        document = untimed({**value.to_dict(), "cost": None, "plan": None, "certificate": None})
        if isinstance(certificate, av.Certificate):
            document["certificate"] = dataclasses.replace(certificate, versions={}).header()
            document["seal"] = certificate.seal
        return document
    return value if isinstance(value, tuple | list) else {"sha256": digest(value)}


def untimed(value: Any) -> Any:
    """Return plain data without its durations: fields ``seconds``, and ``(0.1 s)`` in sentences."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list):
        return [untimed(item) for item in value]
    return re.sub(r"[0-9.]+ s\b", "... s", value) if isinstance(value, str) else value


def differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """Yield the places in which two answers differ, with both values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(first.keys() | second.keys()):
            yield from differences(first.get(key), second.get(key), f"{path}/{key}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for k, pair in enumerate(zip(first, second, strict=True)):
            yield from differences(*pair, f"{path}/{k}")
    elif first != second:
        yield f"{path}: {str(first)[:80]} | {str(second)[:80]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", action="store_true", help="the cases with torch models instead")
    options = parser.parse_args()
    cases = models() if options.torch else ARRAYS
    answers = {}
    for name, case in cases.items():
        began = time.perf_counter()
        answers[name] = plainly(case())
        print(f"{time.perf_counter() - began:6.1f} s  {name}", file=sys.stderr)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
