"""Random certificates of every claim, of up to some hundred rows, whose numbers are near the edge of what is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from alignver.kernel import Certificate, seal
from alignver.kernel.data import canonical, digests_of, first_equal, least_loss, record_of
from alignver.kernel.gates import logistic
from tests.vectors.graphs import entries, graph, op, parameter

Made = tuple[Certificate, dict[str, Any]]
NEAR = (0.1, 0.5, 0.9, 0.99, 0.999, 1.0 - 1e-6, 1.0 - 1e-9, 1.0 - 1e-13, 1.0 + 1e-13, 1.0 + 1e-9, 1.001, 1.5)


def near(rng: np.random.Generator, value: float) -> float:
    """Return a number that is a little smaller or larger."""
    return abs(float(value)) * float(rng.choice(NEAR))


def matrix(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Return a matrix: of a normal law, with small integers, ill-conditioned, with rows of other sizes."""
    kind = rng.integers(4)
    A = rng.standard_normal((n, d)) if kind != 1 else rng.integers(-3, 4, (n, d)).astype(float)
    if kind == 2:
        U, s, V = np.linalg.svd(A, full_matrices=False)
        A = (U * np.geomspace(1.0, 10.0 ** -rng.integers(1, 9), len(s))) @ V
    if kind == 3:
        A = np.ldexp(A, rng.integers(-40, 41, (n, 1)))
    return A


def ball(rng: np.random.Generator, A: np.ndarray, radius: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the constants and data of a ball whose norm is about a radius, or of none."""
    kind = rng.integers(4)
    if kind == 0:
        return {}, {}
    if kind == 1:
        return {"ball": {"kind": "norm", "value": near(rng, radius)}}, {}
    each = radius / np.sqrt(A.size)
    if kind == 2:
        return {"ball": {"kind": "entrywise", "value": near(rng, each)}}, {}
    return {"ball": {"kind": "entrywise", "value": None}}, {"ball_radii": rng.random(A.shape) * near(rng, each)}


def full_rank(rng: np.random.Generator, n: int) -> Made:
    d = n + int(rng.integers(0, n + 1))
    rows = bool(rng.random() < 0.5)
    wide = matrix(rng, n, d)
    A = wide if rows else np.ascontiguousarray(wide.T)
    levels = np.linalg.svd(wide, compute_uv=False)
    scaling = np.zeros(n, dtype=np.int64)
    if rng.random() < 0.5:
        scaling = -np.frexp(np.abs(wide).max(axis=1))[1].astype(np.int64)
    constants, data = ball(rng, A, levels[-1])
    data |= {"scaling": scaling}
    if rng.random() < 0.5:
        constants["s_min"] = near(rng, levels[-1])
    method = str(rng.choice(["gram", "right inverse"]))
    if method == "right inverse":
        data["right_inverse"] = np.linalg.pinv(np.ldexp(wide, scaling[:, None]))
    constants["side"] = "rows" if rows else "columns"
    claim = str(rng.choice(["rank", "not-rank", "membership"]))
    if claim == "membership":
        y = rng.standard_normal(len(A)) if rng.random() < 0.8 else A[:, 0].copy()
        inputs = {"J": A, "y": y}
    else:
        constants["rank"] = n - int(rng.choice([0, 0, 1]))
        inputs = {"A": A}
    return seal(claim, method, inputs, data, constants), inputs


def low_rank(rng: np.random.Generator, n: int) -> Made:
    """A product of integers, and a minor or a bound of its rank."""
    r = int(rng.integers(1, n + 1))
    d = n + int(rng.integers(0, 3))
    A = (rng.integers(-2, 3, (n, r)) @ rng.integers(-2, 3, (r, d))).astype(float)
    rank = r + int(rng.choice([0, 0, -1, 1]))
    claim = str(rng.choice(["rank", "not-rank"]))
    if rng.random() < 0.5 and r < n:
        constants = {"rank": max(rank, 0), "most": min(r, n - 1)}
        return seal(claim, "primes", {"A": A}, {}, constants), {"A": A}
    rows = rng.permutation(n)[:r].astype(np.int64)
    minor = {"rows": rows, "columns": rng.permutation(d)[:r].astype(np.int64)}
    return seal(claim, "minor", {"A": A}, minor, {"rank": max(rank, 0)}), {"A": A}


def outside(rng: np.random.Generator, n: int) -> Made:
    d = max(1, n // 2)
    J, y = matrix(rng, n, d), rng.standard_normal(n)
    if rng.random() < 0.2:
        y = J @ rng.integers(-1, 2, d)
    beta = np.linalg.lstsq(J, y, rcond=None)[0]
    levels = np.linalg.svd(J, compute_uv=False)
    constants, data = ball(rng, J, levels[-1] / 4)
    if rng.random() < 0.7:
        constants["distance"] = near(rng, np.linalg.norm(y - J @ beta))
    data |= {"scaling": np.zeros(d, dtype=np.int64), "beta": beta}
    constants["shift"] = float(levels[-1] ** 2 * 0.9)
    inputs = {"J": J, "y": y}
    return seal("non-membership", "residual", inputs, data, constants), inputs


def factored(rng: np.random.Generator, n: int) -> Made:
    n, m = max(1, n // 2), 2
    data: dict[str, Any] = {}
    J: list[Any] = []
    layers = []
    for k in range(2):
        T, a, b = int(rng.integers(1, 3)), n, 2
        A, B = rng.standard_normal((n, T, a)), rng.standard_normal((m, n, T, b))
        data |= {f"A{k}": A.reshape(n * T, a), f"B{k}": B.reshape(m * n * T, b)}
        J.append(np.einsum("jitb,ita->jiba", B, A).reshape(m * n, -1))
        layers.append({"positions": T})
    smallest = np.linalg.svd(np.hstack(J), compute_uv=False)[-1]
    radius = {"kind": "norm", "value": near(rng, smallest)}
    constants = {"samples": n, "outputs": m, "layers": layers, "ball": radius, "s_min": near(rng, smallest)}
    inputs = {"y": rng.standard_normal(n * m)}
    data["scaling"] = np.zeros(n * m, dtype=np.int64)
    return seal("factored-membership", "factored gram", inputs, data, constants), inputs


def staircase(rng: np.random.Generator, n: int) -> Made:
    m = int(rng.integers(3, 12))
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    v = np.append(rng.standard_normal(m - 1), 0.0)
    order = np.argsort(-(Z @ v))
    size = m - int(rng.integers(0, 2))
    cuts = [*range(size, n, size), n]
    p = (Z @ v)[order]
    thresholds = np.array([(p[k - 1] + p[k]) / 2 for k in cuts[:-1]] + [p[-1] - 1.0])
    blocks = [Z[order[a:b]] for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    delta = float(rng.choice([0.0, 0.0, 1e-9]))
    floors = np.array([near(rng, np.linalg.svd(block, compute_uv=False)[-1]) for block in blocks])
    if rng.random() < 0.7:
        floors *= 0.5
    s_min = near(rng, floors.min() / 2 if len(blocks) > 1 else floors.min())
    added = bool(rng.random() < 0.5)
    inputs = {"Z": np.ascontiguousarray(Z[:, :-1]) if added else Z}
    data = {"direction": v, "thresholds": thresholds, "floors": floors}
    constants = {"rank": n, "width": len(thresholds), "add_constant": added, "delta": delta, "s_min": s_min,
                 "c": 2.0 ** int(rng.integers(4, 16))}  # fmt: skip
    return seal("exploration", "staircase", inputs, data, constants), inputs


def gates(rng: np.random.Generator, n: int) -> Made:
    n = min(n, 24)
    m = int(rng.integers(3, 7))
    h = -(-n // m) + int(rng.integers(0, 3))
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    q = rng.standard_normal((m, h)) * 3.0
    phi = np.einsum("ik,ia->ika", logistic(Z @ q), Z).reshape(n, -1)
    inputs = {"Z": Z}
    constants = {"rank": n, "width": h, "add_constant": False, "delta": float(rng.choice([0.0, 1e-12])),
                 "s_min": near(rng, np.linalg.svd(phi, compute_uv=False)[-1])}  # fmt: skip
    return seal("exploration-gates", "gram", inputs, {"gates": q}, constants), inputs


def refuted(rng: np.random.Generator, n: int) -> Made:
    m = int(rng.integers(2, 6))
    Z = np.column_stack([rng.integers(-2, 3, (n, m - 1)), np.ones(n)]).astype(float)
    h = max(1, -(-n // m) + int(rng.integers(-1, 2)))
    method = str(rng.choice(["count", "equal rows", "columns"]))
    same = np.flatnonzero(np.all(Z[0] == Z, axis=1))
    rows = same[[0, -1]] if len(same) > 1 else np.array([0, n - 1])
    data = {"count": {}, "equal rows": {"rows": rows.astype(np.int64)},
            "columns": {"zero": np.zeros(0, dtype=np.int64), "copies": np.zeros((0, 2), dtype=np.int64)}}  # fmt: skip
    constants = {"rank": n, "width": h, "add_constant": False}
    return seal("no-exploration", method, {"Z": Z}, data[method], constants), {"Z": Z}


def of_data(rng: np.random.Generator, n: int) -> Made:
    X = rng.choice([0.0, -0.0, 1.0, 1.0 + 2.0**-30, 0.5], (n, 3))
    kind = str(rng.choice(["<f8", "<f4"]))
    loss = str(rng.choice(["squared", "binary_cross_entropy", "cross_entropy"]))
    Y = rng.integers(0, 2, (n, 1)).astype(float) if loss != "squared" else rng.standard_normal((n, 2))
    first = first_equal(digests_of(canonical(X, kind)))
    if rng.random() < 0.3:
        Y = np.ascontiguousarray(Y[first])
    least, errors = least_loss(first, Y, loss)
    different = np.flatnonzero(np.any(Y[first] != Y, axis=1))
    claim = "conflicting" if len(different) else str(rng.choice(["consistent", "distinct"]))
    constants: dict[str, Any] = {"rank": len(set(first.tolist())) + int(rng.choice([0, 0, 0, 1]))}
    record = record_of(digests_of(canonical(X, kind)), X.shape, kind)
    if claim == "distinct":
        return seal(claim, "digests", {"X": record}, {}, constants), {"X": X}
    constants |= {
        "loss": loss,
        "floor": near(rng, least),
        "errors": None if errors is None else max(0, errors + int(rng.integers(-1, 2))),
    }
    data = {"rows": np.array([first[different[0]], different[0]])} if len(different) else {}
    return seal(claim, "digests", {"X": record, "Y": Y}, data, constants), {"X": X, "Y": Y}


def of_losses(rng: np.random.Generator, n: int) -> Made:
    n, m, h, m_y = min(n, 20), int(rng.integers(2, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 3))
    Z = np.column_stack([rng.standard_normal((n, m - 1)), np.ones(n)])
    R, W, theta = rng.standard_normal((m_y * m, h)), rng.standard_normal((m_y, h)), rng.standard_normal((m_y, h * m))
    loss = str(rng.choice(["squared", "binary_cross_entropy", "cross_entropy"]))
    Y = np.eye(max(m_y, 2))[rng.integers(0, max(m_y, 2), n)][:, :m_y]

    def outputs(theta: np.ndarray) -> np.ndarray:
        S = [logistic(Z @ part) * w for part, w in zip(R.reshape(m_y, m, h), W, strict=True)]
        return np.column_stack([(Z * (s @ t.reshape(h, m))).sum(1) for s, t in zip(S, theta, strict=True)])

    def value(f: np.ndarray) -> float:
        if loss == "squared":
            return float(((f - Y) ** 2).sum(1).mean())
        if loss == "cross_entropy" and m_y > 1:
            return float((np.logaddexp.reduce(f, axis=1) - f[np.arange(n), Y.argmax(1)]).mean())
        return float(np.logaddexp(0.0, np.where(Y == 1.0, -f, f)).sum(1).mean())

    inputs = {"Z": Z, "Y": np.ascontiguousarray(Y), "R": R, "W": W, "theta": theta}
    here = value(outputs(theta))
    constants: dict[str, Any] = {"loss": loss, "errors": None, "ranks": [None] * m_y}
    if rng.random() < 0.5:
        wrong = int(rng.integers(0, n)) if loss != "squared" and rng.random() < 0.3 else None
        return seal("optimality", "outputs", inputs, {}, {**constants, "gap": near(rng, here), "errors": wrong}), inputs
    better = theta * 0.5
    gap = near(rng, max(here - value(outputs(better)), 0.0) + 1e-3)
    return seal("suboptimality", "outputs", inputs, {"better": better}, {**constants, "gap": gap}), inputs


def of_networks(rng: np.random.Generator, n: int) -> Made:
    """A ReLU network with one hidden layer, in float32 numbers."""
    n, k, w = int(rng.integers(2, 7)), 2, int(rng.integers(2, 5))
    weights = [rng.standard_normal(shape).astype(np.float32).astype(float) for shape in ((w, k), (w,), (1, w), (1,))]
    x = rng.standard_normal((n, k)).astype(np.float32).astype(float)
    y = rng.standard_normal(n)
    claim = str(rng.choice(["network-alignment", "network-misalignment", "network-optimality", "network-exploration"]))
    hidden = np.maximum(x @ weights[0].T + weights[1], 0.0)
    batch = max(1, n - 1)
    names = ("1.weight", "1.bias", "2.weight", "2.bias")
    leaves = [parameter(name, *part.shape, leaf=i) for i, (name, part) in enumerate(zip(names, weights, strict=True))]
    body = [
        entries(batch, k),
        op("linear.default", batch, w, input=4, weight=0, bias=1),
        op("relu.default", batch, w, self=5),
    ]
    if claim == "network-exploration":
        document = graph(*leaves, *body)
    else:
        document = graph(*leaves, *body, op("linear.default", batch, 1, input=6, weight=2, bias=3))
    inputs = {"parameters": np.concatenate([part.reshape(-1) for part in weights])[None], "x": x}
    method = str(rng.choice(["balls", "norms"]))
    active = hidden > 0
    outer = (active * weights[2])[:, :, None] * x[:, None, :]
    J = np.hstack([outer.reshape(n, -1), active * weights[2], hidden, np.ones((n, 1))])
    bits = {"bits": 128} if method == "balls" else {}
    if claim == "network-alignment":
        kappa = np.linalg.norm(np.linalg.lstsq(J, y, rcond=None)[0])
        levels = np.linalg.svd(J, compute_uv=False)
        low, high = sorted((near(rng, kappa), near(rng, kappa)))
        constants = {"kappa": [low, high], **(bits or {"shift": float(1e-3 * levels[-1] ** 2 / levels[0] ** 2)})}
        return seal(claim, method, {**inputs, "y": y}, {"graph": document}, constants), {**inputs, "y": y}
    if claim == "network-misalignment":
        residual = np.linalg.norm(y - J @ np.linalg.lstsq(J, y, rcond=None)[0])
        basis = np.arange(min(n - 1, J.shape[1]), dtype=np.int64)
        constants = {"bits": 256, "distance": near(rng, residual)}
        return seal(claim, "exact", {**inputs, "y": y}, {"graph": document, "basis": basis}, constants), {
            **inputs,
            "y": y,
        }
    if claim == "network-exploration":
        Z = np.column_stack([hidden, np.ones(n)])
        floor = float(np.linalg.svd(Z, compute_uv=False)[-1]) if n <= w + 1 else 1.0
        data = {"graph": document, "direction": np.append(np.zeros(w), 0.0), "thresholds": np.array([-1.0]),
                "floors": np.array([near(rng, floor) + 1e-9])}  # fmt: skip
        constants = {
            "rank": n,
            "width": 1,
            "add_constant": True,
            "delta": 1e-10,
            "c": 1024.0,
            "s_min": near(rng, floor),
        }
        return seal(claim, "staircase", inputs, data, constants), inputs
    Y = rng.integers(0, 2, (n, 1)).astype(float)
    f = hidden @ weights[2].T + weights[3]
    loss = str(rng.choice(["squared", "binary_cross_entropy"]))
    here = (
        float(((f - Y) ** 2).mean())
        if loss == "squared"
        else float(np.logaddexp(0.0, np.where(Y == 1.0, -f, f)).mean())
    )
    errors = None if loss == "squared" else int(rng.integers(0, n + 1))
    constants = {"loss": loss, "gap": near(rng, here), "errors": errors, "bits": bits.get("bits")}
    return seal(claim, method, {**inputs, "Y": Y}, {"graph": document}, constants), {**inputs, "Y": Y}


MAKERS: list[Callable[[np.random.Generator, int], Made]] = [
    full_rank, full_rank, full_rank, low_rank, outside, outside, factored,
    staircase, gates, refuted, of_data, of_losses, of_networks,
]  # fmt: skip
