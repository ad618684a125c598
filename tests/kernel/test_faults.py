"""Independence, by injecting faults: a routine behind a proof is made wrong, and the kernel refuses what it then
claims.

Each case replaces one routine of the producers, shows that a false claim comes out with the word PROOF, and that the
kernel, which shares no code with what was replaced, does not believe it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import alignver as av
from alignver import kernel
from alignver.checks import exploration as ranks_module
from alignver.checks import exploration_report, optimality
from alignver.features import block_prover, products, rows, staircase
from alignver.features import cholesky as tiled_cholesky
from alignver.proof import Ball, cholesky, exact, prove, prove_membership, prove_rank, residual, right_inverse
from alignver.proof.cholesky import factor_shifted
from alignver.proof.exact import Combination, Profile
from alignver.proof.matrix_structure import Conflict
from alignver.results import Rigor, Verdict
from alignver.theory.enclosure import Enclosure
from tests.proof.layers import claim

pytest.importorskip("flint")

RNG = np.random.default_rng(8)
# Rank 3 of 6 exactly, with products of entries that are rounded.
LOW = RNG.integers(-(2**20), 2**20, (6, 3)).astype(float) @ RNG.integers(-(2**20), 2**20, (3, 9)).astype(float)
OFF = RNG.standard_normal(6)  # in no column space of rank 3
FULL = RNG.standard_normal((5, 8))
TALL = RNG.integers(-9, 10, (8, 3)).astype(float)
INSIDE = TALL @ np.array([1.0, 2.0, -1.0])
FEATURES = np.column_stack([RNG.standard_normal((14, 3)), np.ones(14)])
FEATURES[1], FEATURES[3] = FEATURES[0], FEATURES[2]  # phi has rank 12 of 14 at most, whatever the gates
DISTINCT = np.column_stack([RNG.standard_normal((14, 3)), np.ones(14)])
GATES = RNG.standard_normal((4, 8))


def always(value: Any) -> Any:
    return lambda *arguments, **options: value


def lifted_tile(self: Any, rows: slice, columns: slice) -> Any:
    Z, T = (factor[:, 0] for factor in self.factors[0])
    block = (T[rows] @ T[columns].T) * (Z[rows] @ Z[columns].T)
    if rows == columns:
        block.flat[:: block.shape[1] + 1] += 2.0**-10
    return block


def lifted_factor(A: Any, shift: float) -> Any:
    return factor_shifted(A + np.eye(len(A)) * 0.1 * np.trace(A), 0.0)


def blocks_that_hold(Z: Any, start: int, stop: int, delta: float = 0.0) -> Any:
    return block_prover.Block(start, stop, 0.5, "gram")


def other_rows(scaled: Any) -> Any:
    def changed(A: Any, **options: Any) -> Any:
        computed = scaled(A, **options)
        return dataclasses.replace(
            computed, matrix=np.eye(*A.shape) + 0.01 * computed.matrix / np.abs(computed.matrix).max()
        )

    return changed


def as_if_all_were_apart(self: Any, indices: Any) -> Any:
    return np.column_stack(
        [np.random.default_rng(0).standard_normal((len(indices), self.m - 1)), np.ones(len(indices))]
    )


def no_pair(*arguments: Any) -> None:
    return None


SPOILED_PROFILE = Profile(2**61 - 1, (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5))
UNEQUAL = FULL[:, :4].copy()


def exploration(**options: Any) -> Any:
    return lambda: av.check_safe_exploration(FEATURES, **options), {"Z": FEATURES}


def distinct(**options: Any) -> Any:
    return lambda: av.check_safe_exploration(DISTINCT, **options), {"Z": DISTINCT}


def membership(J: Any, y: Any, **options: Any) -> Any:
    return lambda: prove_membership(J, y, **options), {"J": J, "y": y}


def rank(A: Any, r: int, **options: Any) -> Any:
    return lambda: prove_rank(A, r, **options), {"A": A}


NO_REFUTATION = [("alignver.checks.exploration_report._refute_by_equal_rows", no_pair)]
FREE = cholesky.FullRank(True, 1.0, "", exponents=np.zeros(3, np.int64))


CASES: dict[str, tuple[list[tuple[str, Any]], Any]] = {
    # Gram matrices of phi: tiles, shifts, gates.
    "tiles": (
        [("alignver.proof.gram_tiles.FactoredGram.tile", lifted_tile), *NO_REFUTATION],
        exploration(q=GATES, method="gram"),
    ),
    "a factorization that ends": (
        [(f"{tiled_cholesky.__name__}.factor_diagonal", lambda tile: np.eye(len(tile))), *NO_REFUTATION],
        exploration(q=GATES, method="gram"),
    ),
    "gates": (
        [
            (
                f"{products.__name__}.gate_matrix",
                lambda Z, q: np.random.default_rng(len(Z)).random((len(Z), q.shape[1])),
            ),
            *NO_REFUTATION,
        ],
        exploration(q=GATES, method="gram"),
    ),
    # Staircases.
    "bounds of blocks": (
        [(f"{block_prover.__name__}.prove_block", blocks_that_hold), *NO_REFUTATION],
        exploration(width=5),
    ),
    "rows of blocks": ([(f"{rows.__name__}.Rows.take", as_if_all_were_apart), *NO_REFUTATION], exploration(width=5)),
    "margins": (
        [
            (f"{block_prover.__name__}.SortedProjections.margin", always(1.0)),
            (f"{block_prover.__name__}.SortedProjections.usable", lambda self, at: np.ones(np.shape(at), dtype=bool)),
            (f"{block_prover.__name__}.prove_block", blocks_that_hold),
            *NO_REFUTATION,
        ],
        exploration(width=14),
    ),
    "c": (
        [(f"{staircase.__name__}._exponent", always(-5)), (f"{staircase.__name__}._halvings", always(60))],
        distinct(width=5),
    ),
    "s_min of a staircase": ([(f"{staircase.__name__}._ROOM", 4.0)], distinct(width=5)),
    "s_min of gates": ([(f"{tiled_cholesky.__name__}._ROOM", 1e8)], distinct(q=GATES, method="gram")),
    "equal rows": (
        [(f"{exploration_report.__name__}._equal", always([(0, 1)])), (f"{rows.__name__}.gamma", always(1e9))],
        distinct(width=5),
    ),
    "idle columns": ([(f"{exploration_report.__name__}._idle_columns", always(([0, 1], []))),
        (f"{block_prover.__name__}.prove_block",
        lambda Z, start, stop, delta=0.0: block_prover.Block(start, stop, 0.0, "", "no"))], distinct(width=6)),
    # Matrices: Gram matrix, scaling, right inverse, residual.
    "shifts": ([(f"{cholesky.__name__}.factor_shifted", lifted_factor)], membership(LOW, OFF)),
    "scaling": ([(f"{cholesky.__name__}.scale_rows", other_rows(cholesky.scale_rows))], membership(LOW, OFF)),
    "rounding of the Gram matrix": (
        [(f"{cholesky.__name__}.rump_shift", always(-1.0)), (f"{cholesky.__name__}.gamma", always(0.0)),
         (f"{cholesky.__name__}.factor_shifted", lambda A, shift: np.eye(len(A)))], rank(LOW, 6),
    ),
    "s_min of a rank": ([(f"{cholesky.__name__}.scale_down", lambda x, e: 10.0 * x)], rank(FULL, 5)),
    "right inverses": (
        [(f"{right_inverse.__name__}.right_residual", lambda A, X: (0.01, np.zeros((len(A), len(A))))),
         (f"{prove.__name__}.by_gram", always(None))], membership(LOW, OFF),
    ),
    "norms of right inverses": (
        [(f"{right_inverse.__name__}._norm_up", always(1e-3)), ("alignver.proof.prove.by_gram", always(None))],
        rank(FULL, 5),
    ),
    "radii of balls": (
        [("alignver.proof.decision.Ball.radius", always(1e-9))], rank(FULL, 5, ball=Ball(norm=100.0)),
    ),
    "distances": ([(f"{residual.__name__}.distance_bound", always(1.0))], membership(TALL, INSIDE, exact="never")),
    "distances in a ball": (
        [(f"{residual.__name__}.distance_bound", always(1.0))], membership(TALL, INSIDE, ball=Ball(norm=1e-9)),
    ),
    # Structure and exact arithmetic.
    "conflicts": (
        [(f"{prove.__name__}.find_conflict", always(Conflict("equal rows", (0, 1), (1.0, -1.0), "said so")))],
        membership(FULL, FULL[:, 0]),
    ),
    "repeated rows": (
        [(f"{prove.__name__}.redundant_rows", always({3: 0, 4: 1, 5: 2})),
         (f"{prove.__name__}.by_gram",
          lambda wide, attempts, ball: (FREE, "gram") if len(wide) == 3 else None),
         (f"{prove.__name__}.find_conflict", always(None))],
        membership(LOW, np.append(OFF[:3], OFF[:3])),
    ),
    "ranks from repeats": (
        [(f"{prove.__name__}.redundant_rows", always({3: 0})), (f"{prove.__name__}._wide_rank",
          lambda rest, attempts: (cholesky.FullRank(True, 1.0, ""), "gram")),
         (f"{prove.__name__}.full_rank", always(None)),
         ("alignver.proof.prove.full_rank", always(None))], rank(FULL, 4),
    ),
    "profiles": ([(f"{exact.__name__}.profile", always(SPOILED_PROFILE))], membership(LOW, OFF, exact="force")),
    "ranks by minors": ([(f"{exact.__name__}.profile", always(SPOILED_PROFILE))], rank(LOW, 6, exact="force")),
    "solutions": (
        [(f"{exact.__name__}.solve", lambda matrix, target, minor: (Combination((0, 1, 2), (1, 2, 3), 1), -1))],
        membership(LOW, OFF, exact="force"),
    ),
    "null vectors": (
        [(f"{exact.__name__}.solve", lambda matrix, target, minor: (None, 4)),
         (f"{exact.__name__}.left_null_vector", always(Combination((0, 4), (3, 1), 1)))],
        membership(LOW, LOW[:, 0], exact="force"),
    ),
    "null spaces": (
        [(f"{exact.__name__}.profile", always(Profile(7, (0, 1, 2, 3), (0, 1, 2, 3)))),
         (f"{exact.__name__}.null_vectors", always([Combination((4, 0, 1, 2, 3), (1, 0, 0, 0, 1), 1)])),
         (f"{exact.__name__}.seconds_for_solve", always(0.0))],
        rank(FULL, 4, exact="force"),
    ),
    "counts of primes": (
        [(f"{exact.__name__}.profile", always(Profile(7, (0, 1), (0, 1)))),
         (f"{exact.__name__}.vanishing_primes", always([7])),
         (f"{exact.__name__}.seconds_for_solve", always(1e9)), (f"{exact.__name__}.seconds_for_rank", always(0.0))],
        rank(LOW, 2, exact="force"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_false_claim_is_refused(name, monkeypatch):
    faults, (produce, inputs) = CASES[name]
    for target, wrong in faults:
        monkeypatch.setattr(target, wrong)
    made = produce()
    assert made.verdict is not Verdict.UNDECIDED, made
    assert getattr(made, "rigor", Rigor.PROOF) is Rigor.PROOF
    assert made.certificate is not None
    monkeypatch.undo()
    result = kernel.verify(made.certificate, inputs)
    assert result.verdict is Verdict.FAILS, (made.reason, result.reason)


@pytest.mark.parametrize("stored", [True, False])
def test_factors_of_layers(stored, monkeypatch):
    from alignver.proof import factored_gram

    A, B = RNG.standard_normal((4, 1, 3)), RNG.standard_normal((1, 4, 1, 2))
    A[1], B[:, 1] = A[0], B[:, 0]  # two equal rows
    layers = [factored_gram.Layer("w", A, B)]
    assert claim(layers, stored=stored)[1] is None
    monkeypatch.setattr(cholesky, "factor_shifted", lifted_factor)
    _, certificate, inputs = claim(layers, stored=stored)
    assert certificate is not None
    assert kernel.verify(certificate, inputs).verdict is Verdict.FAILS


MODEL = av.Exploitation([[2.0, 1.0], [0.0, 1.0]], np.zeros((1, 2, 3)), np.ones((1, 3)))
TARGETS = np.array([[4.5], [1.5]])


@pytest.mark.parametrize("fault", ["outputs", "losses", "errors", "ranks", "better weights"])
def test_gaps(fault, monkeypatch):
    theta, loss, Y = np.zeros((1, 3, 2)), "squared", TARGETS
    if fault == "outputs":
        exact_outputs = Enclosure(TARGETS, np.zeros((2, 1)), np.zeros((2, 1)))
        monkeypatch.setattr(optimality, "enclose", always(exact_outputs))
    elif fault == "losses":
        monkeypatch.setattr(optimality, "loss_bounds", always(optimality.LossBounds(0.0, 0.0, None)))
    elif fault == "errors":
        loss, Y, theta = "binary_cross_entropy", np.array([[1.0], [0.0]]), np.ones((1, 3, 2))
        monkeypatch.setattr(optimality, "loss_bounds", always(optimality.LossBounds(0.0, 1.0, 0)))
    elif fault == "ranks":
        ranks = ranks_module.Ranks(({"s_min": 50.0},), ())
        monkeypatch.setattr(optimality, "prove_ranks", always(ranks))
        monkeypatch.setattr(optimality, "better_weights", lambda problem, theta: theta)
    else:
        worse = np.full((1, 3, 2), 100.0)
        monkeypatch.setattr(optimality, "better_weights", always(worse))
        bounds = iter([optimality.LossBounds(9.0, 9.5, None)] * 2 + [optimality.LossBounds(0.0, 0.1, None)])
        monkeypatch.setattr(optimality, "loss_bounds", lambda *arguments: next(bounds))
    made = av.check_optimality(MODEL, theta, Y, loss=loss, tolerance=1e-3 if fault != "errors" else 10.0)
    assert made.rigor is Rigor.PROOF
    monkeypatch.undo()
    assert kernel.verify(made.certificate, MODEL.inputs(theta, Y)).verdict is Verdict.FAILS


def test_what_is_replaced_is_not_the_kernels():
    names = {target for faults, _ in CASES.values() for target, _ in faults}
    assert not [name for name in names if name.startswith(kernel.__name__)]
