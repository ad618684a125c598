"""Exact dependences of Jacobians, and what is proved by them, agree with ranks in 400 digits."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from alignver.errors import InvalidInput
from alignver.kernel.failure import NotProved
from alignver.kernel.network import alignment, balls
from alignver.kernel.network.dependences import Number
from alignver.network.enclosures import EnclosedNetwork, prove_alignment
from property_tests.kernel.dual_networks import RandomNetwork, Undecided, exact, mp

DIGITS, TINY, CLEAR = 400, mp.mpf(10) ** -300, mp.mpf(10) ** -120


class Unclear(ArithmeticError):
    """A pivot is neither clearly zero nor clearly another number."""


def rank(rows: list[list[Any]]) -> int:
    """The rank, by elimination with complete pivoting of rows and columns that are scaled."""
    with mp.workdps(DIGITS):
        M = [list(row) for row in rows]
        for _ in range(2):
            M = [[v / max(map(abs, row)) for v in row] for row in M if any(row)]
            M = [list(column) for column in zip(*M, strict=True)]
        found = 0
        while M and M[0]:
            size, i, j = max((abs(v), i, j) for i, row in enumerate(M) for j, v in enumerate(row))
            if size < TINY:
                break
            if size < CLEAR:
                raise Unclear
            pivot = M.pop(i)
            M = [
                [v - row[j] / pivot[j] * p for k, (v, p) in enumerate(zip(row, pivot, strict=True)) if k != j]
                for row in M
            ]
            found += 1
        return found


def jacobian(model: RandomNetwork, x: Any) -> list[list[Any]]:
    """The rows of all samples, output by output; entries that shrink with more digits are rounding errors of 0."""

    def computed(digits: int) -> list[list[Any]]:
        with mp.workdps(digits):
            samples = [exact(model, row.tolist())[1] for row in x]
            return [sample[j] for j in range(3) for sample in samples]

    J = computed(DIGITS)
    if all(v == 0 or abs(v) > TINY for row in J for v in row):
        return J
    finer = computed(2 * DIGITS)
    return [[w if abs(w) > TINY * abs(v) else mp.mpf(0) for v, w in zip(*rows, strict=True)] for rows in zip(J, finer)]


@cache
def network_of(seed: int, size: int, n: int) -> tuple[RandomNetwork, EnclosedNetwork] | None:
    model = RandomNetwork(seed, torch.float64, size)
    if not any(p.requires_grad for p in model.p):
        return None
    x = np.random.default_rng(seed).normal(size=(n, 3))
    if seed % 4 == 1:
        x[0] = -x[1]
    if seed % 4 == 2:
        x[0] = 0.0
    if seed % 4 == 3:
        x[:, 1] = 2 * x[:, 0]
    try:
        return model, EnclosedNetwork.of(model.eval(), torch.from_numpy(x))
    except InvalidInput:
        return None


def targets(J: list[list[Any]], seed: int, N: int) -> Any:
    """Random ones, 0, those of a column, or the same for all samples."""
    rng = np.random.default_rng(seed)
    kinds = [
        rng.normal(size=N),
        np.zeros(N),
        [float(row[seed % len(row)]) for row in J],
        np.repeat(rng.normal(size=3), N // 3),
    ]
    return np.asarray(kinds[seed % 4], dtype=np.float64)


def violations(seed: int, size: int, n: int) -> list[str]:
    """What is claimed of a network, and not true."""
    made = network_of(seed, size, n)
    if made is None:
        return []
    model, network = made
    try:
        J = jacobian(model, network.x)
        N = len(J)
        y = targets(J, seed, N)
        true = rank(J)
        inside = rank([[*row, mp.mpf(v)] for row, v in zip(J, y.tolist(), strict=True)]) == true
        with balls.precision(128):
            D = alignment.dependences(network.traced.graph, network.parameters[0], network.x, N)
        columns, rows = D.column_basis(), D.row_basis(0.0 * y)
    except (Unclear, Undecided, ZeroDivisionError, OverflowError, NotProved):
        return []
    wrong = []
    if rank([[row[k] for k in columns] for row in J]) != true:
        wrong.append(f"columns {columns} are no basis")
    if rank([J[i] for i in rows]) != true:
        wrong.append(f"rows {rows} are no basis")
    if sum(map(len, D.generators(seed % (len(J[0]) + 1)))) < true:
        wrong.append("too few generators")
    proof = prove_alignment(network, y, 3, seconds=20.0, condition=lambda: 1.0)
    if not isinstance(proof, str) and (proof.verdict == "HOLDS") != inside:
        wrong.append(f"{proof.verdict} of y, by {proof.how}, and inside is {inside}")
    return wrong


@given(seed=st.integers(0, 10**6), size=st.integers(1, 4), n=st.sampled_from([2, 6]))
@example(seed=185189, size=2, n=2)  # J is 0: sums of what is centred
def test_ranks_of_random_networks(seed, size, n):
    assert not violations(seed, size, n)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("functions of other arguments are equal", lambda self, name: (name, frozenset())),
        ("coefficients are forgotten", lambda self, name: (name, frozenset(self.terms))),
    ],
)
def test_wrong_rules_are_noticed(monkeypatch, name, change):
    monkeypatch.setattr(Number, "key", change)
    assert any(violations(seed, 3, 2) for seed in range(40)), name
