"""Certificates and inputs made to deceive: each of these was believed once."""

from __future__ import annotations

import dataclasses
import os
from fractions import Fraction

import mpmath
import numpy as np
import pytest

import alignver as av
from alignver.checks import exploration
from alignver.errors import InvalidInput
from alignver.features import tiles
from alignver.features.cholesky import prove_definite
from alignver.features.products import scaled_gram
from alignver.features.rows import digest_rows, open_rows
from alignver.kernel import seal, snapshot
from alignver.results import Rigor, Verdict

WRAPS = 2**32 * ((2**30 - 12345) | 1)  # its square is 0 modulo 2^64


def dependent(n, seed, low=1.0):
    """Return rows with a + b = c exactly: rank 3."""
    random = np.random.default_rng(seed)
    a, b = (np.round((random.random(n) + low) * 2**51) / 2**51 for _ in range(2))
    assert all(Fraction(x) + Fraction(y) == Fraction(x + y) for x, y in zip(a, b))
    return np.column_stack([a, b, a + b, np.ones(n)])


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_a_staircase_along_integers_whose_squares_wrap_around(kind):
    Z, n = dependent(5, 1), 5
    v = np.array([WRAPS, WRAPS, -WRAPS, 0])
    projections = (v[None, :] @ Z.T)[0]
    values = np.unique(projections)[::-1]
    thresholds = np.append((values[:-1] + values[1:]) / 2, values[-1] - 500.0)
    levels = np.searchsorted(-thresholds, -projections)
    order = np.argsort(levels, kind="stable")
    stops = np.append(np.flatnonzero(np.diff(levels[order])) + 1, n)
    starts = np.concatenate([[0], stops[:-1]])
    least = [np.linalg.svd(Z[order[i:j]], compute_uv=False)[-1] for i, j in zip(starts, stops)]
    floors = 0.9 * np.array(least)
    data = {"direction": v.astype(kind), "thresholds": thresholds, "floors": floors}
    constants = {"rank": n, "width": len(thresholds), "add_constant": False, "c": 1.0, "margin": 1.0, "delta": 0.0}
    constants["s_min"] = float(floors.min()) * 0.4
    forged = seal("exploration", "staircase", {"Z": digest_rows(open_rows(Z))}, data, constants)
    result = av.recheck(forged, Z=Z)
    assert result.verdict is Verdict.FAILS
    assert ("wrong kind" in result.reason) == (kind is np.int64)


@pytest.mark.parametrize(
    ("gate", "slack", "words"),
    [(WRAPS, 0.0, "wrong kind"), (float(WRAPS), 0.0, ""), (2.0**62 * 1.2345678901234567, 1.0, "delta")],
    ids=["integers", "floats", "a negative radius"],
)
def test_gates_with_projections_that_are_rounding_only(gate, slack, words):
    Z = dependent(4, 0, low=0.0)
    delta = -slack * 5 * 2**-53 * np.linalg.norm(Z, axis=1).max() * (1 + 1e-8)
    q = np.array([[0, gate], [0, gate], [0, -gate], [0, 0]])
    S = 1 / (1 + np.exp(-np.clip(Z @ q, -700, 700)))
    phi = np.hstack([S[:, [k]] * Z for k in range(2)])
    scaled = phi / np.linalg.norm(phi, axis=1)[:, None]
    s, scaled_s = (np.linalg.svd(A, compute_uv=False)[-1] for A in (phi, scaled))
    constants = {"rank": 4, "width": 2, "add_constant": False, "s_min": float(s / 25), "delta": float(delta)}
    constants["scaled_s_min"] = float(scaled_s / 2)
    forged = seal("exploration-gates", "gram", {"Z": digest_rows(open_rows(Z))}, {"gates": q}, constants)
    result = av.recheck(forged, Z=Z)
    assert result.verdict is Verdict.FAILS
    assert words in result.reason


def test_what_a_certificate_of_gates_claims_is_proved_again():
    random = np.random.default_rng(0)
    Z = np.column_stack([random.standard_normal((12, 3)), np.ones(12)])
    q = random.standard_normal((4, 6))
    made = av.check_safe_exploration(Z, q=q, method="gram").certificate
    assert av.recheck(made, Z=Z).verdict is Verdict.HOLDS
    S = 1 / (1 + np.exp(-Z @ q))
    true = np.linalg.svd(np.hstack([S[:, [k]] * Z for k in range(6)]), compute_uv=False)[-1]
    assert made.constants["s_min"] < true
    more = dict(made.constants) | {"s_min": 1.001 * float(true)}
    assert (
        av.recheck(seal("exploration-gates", "gram", dict(made.inputs), dict(made.data), more), Z=Z).verdict
        is Verdict.FAILS
    )


def two_files(tmp_path):
    random = np.random.default_rng(0)
    good = np.column_stack([random.standard_normal((20, 4)), np.ones(20)])
    bad = good.copy()
    bad[3] = bad[7]
    return good, bad, tmp_path / "z.npy"


def test_a_mapped_file_whose_name_now_belongs_to_another(tmp_path):
    good, bad, file = two_files(tmp_path)
    np.save(file, bad)
    Z = np.load(file, mmap_mode="r")
    np.save(tmp_path / "other.npy", good)
    os.replace(tmp_path / "other.npy", file)
    assert np.array_equal(Z[3], Z[7])
    result = av.check_safe_exploration(Z, width=5)
    assert (result.verdict, result.rigor) == (Verdict.FAILS, Rigor.PROOF)
    assert av.check_safe_exploration(np.load(file, mmap_mode="r"), width=5).verdict is Verdict.HOLDS


@pytest.mark.parametrize("most", [snapshot.MOST_COPIED, 0], ids=["copied", "digests"])
def test_a_file_that_is_written_to_meanwhile(tmp_path, monkeypatch, most):
    """What was read first is what is proved: from a copy, or the rows are refused that are no longer the same."""
    good, bad, file = two_files(tmp_path)
    np.save(file, good)
    Z, writable = np.load(file, mmap_mode="r"), np.load(file, mmap_mode="r+")
    searched = exploration.find_staircase

    def written(*arguments, **options):
        writable[:] = bad  # not even flushed: no time of change tells
        return searched(*arguments, **options)

    monkeypatch.setattr(snapshot, "MOST_COPIED", most)
    monkeypatch.setattr(exploration, "find_staircase", written)
    if most:
        result = av.check_safe_exploration(Z, width=5)
        assert result.verdict is Verdict.HOLDS
        assert av.recheck(result.certificate, Z=good).verdict is Verdict.HOLDS
        assert av.recheck(result.certificate, Z=Z).verdict is Verdict.FAILS
    else:
        with pytest.raises(InvalidInput, match="rows that changed while they were read"):
            av.check_safe_exploration(Z, width=5)


def test_tiles_that_no_factorization_wrote(tmp_path):
    """Tiles that could be true are taken over, but what is made with them is no proof."""
    random = np.random.default_rng(0)
    Z, q = np.column_stack([random.standard_normal((6, 2)), np.ones(6)]), np.zeros((3, 2))  # rank phi = 3
    keys = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "alignver.features.cholesky.open_store",
            lambda folder, key, place=None: keys.append(key) or tiles.MemoryStore(),
        )
        prove_definite(scaled_gram(Z, q), folder=tmp_path)
    for name, column in (("zero", np.zeros((6, 6))), ("shape", np.eye(5)), ("sign", -np.eye(6))):
        tiles.FolderStore(tmp_path / name, keys[0]).append(column)
        with pytest.raises(InvalidInput, match="a tile column that no factorization wrote"):
            av.check_safe_exploration(Z, q=q, method="gram", folder=tmp_path / name)
    tiles.FolderStore(tmp_path / "forged", keys[0]).append(np.eye(6))
    result = av.check_safe_exploration(Z, q=q, method="gram", folder=tmp_path / "forged")
    assert "1 of its tile columns from the folder" in str(result)
    assert result.rigor is Rigor.NUMERICAL
    assert av.recheck(result.certificate, Z=Z).verdict is Verdict.FAILS


@pytest.mark.parametrize("delta", [None, 1e-3])
def test_the_norm_of_phi_is_bounded_for_exact_gates_and_all_of_the_ball(delta):
    random, mp = np.random.default_rng(4), mpmath.mp
    cases = [
        (
            np.array([[-0.0002459810269868742, 1.0], [0.00018858568529816008, 1.0]]),
            np.array([[6.194129292612721], [-43.7157898465838]]),
        )
    ]
    for _ in range(5):
        Z = np.column_stack([random.standard_normal((8, 3)), np.ones(8)])
        cases.append((Z / np.linalg.norm(Z, axis=1)[:, None] * 2.0, random.standard_normal((4, 6))))
        cases[-1][0][:, -1] = 1.0
    for Z, q in cases:
        result = av.check_safe_exploration(Z, q=q, method="gram", delta=delta)
        if result.verdict is not Verdict.HOLDS:
            continue
        moved = Z.copy()
        if delta:
            moved[:, :-1] *= 1.0 + 0.999 * delta / np.linalg.norm(Z[:, :-1], axis=1)[:, None]
        with mp.workdps(60):
            total = mp.mpf(0)
            for z in moved:
                size = sum(mp.mpf(float(x)) ** 2 for x in z)
                for gate in q.T:
                    x = sum(mp.mpf(float(a)) * mp.mpf(float(b)) for a, b in zip(z, gate))
                    total += (1 / (1 + mp.exp(-x))) ** 2 * size
            assert mp.mpf(result.measured["norm_upper"]) >= mp.sqrt(total)


@pytest.mark.parametrize("seed", [3556, 1, 2, 3])
def test_proofs_about_columns_of_very_different_sizes_are_proved_again(seed):
    random = np.random.default_rng(seed)
    Z = np.column_stack([random.standard_normal((3, 2)) * 10.0 ** np.array([[7, -8]]), np.ones(3)])
    result = av.check_safe_exploration(Z, width=3, method="staircase")
    if result.verdict is Verdict.HOLDS:
        assert av.recheck(result.certificate, Z=Z).verdict is Verdict.HOLDS
    assert result.verdict is Verdict.HOLDS or seed != 3556


@pytest.mark.parametrize("kind", [bool, complex, np.float32])
def test_arrays_of_a_kind_that_no_file_can_hold_are_refused_not_raised(kind):
    """A certificate that is built in Python, and never read from a file."""
    Z = np.column_stack([np.random.default_rng(0).standard_normal((12, 3)), np.ones(12)])
    of_gates = av.check_safe_exploration(Z, q=np.random.default_rng(1).standard_normal((4, 6)), method="gram")
    of_rank = av.check_rank(Z[:3], ball=av.Ball(norm=1e-12))
    for computed, inputs in ((of_gates, {"Z": Z}), (of_rank, {"A": Z[:3]})):
        data = {name: array.astype(kind) for name, array in computed.certificate.data.items()}
        assert data
        changed = dataclasses.replace(computed.certificate, data=data)
        resealed = dataclasses.replace(changed, seal=changed.expected_seal())
        assert resealed.sealed
        again = av.recheck(resealed, **inputs)
        assert (again.verdict, again.rigor) == (Verdict.FAILS, Rigor.PROOF)
        assert "an array of <f8, <i8, |u1" in again.reason
